"""The outputs of one cell, collected while it runs.

Rule: iopub messages in, a ``Result`` out. iopub can lose messages, so this file never decides
whether the cell is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from bridgehead._protocol.raising import as_text
from bridgehead._protocol.results import Result
from bridgehead._transports.base import Transport
from bridgehead._transports.messages import Message

_OUTPUTS = {"stream", "display_data", "execute_result", "error"}


class CellObserver:
    """An ``on_output`` that also knows its cell.

    Attributes:
        request: the id of the cell's message, as ``Connection.interrupt_cell`` takes it; empty
            until the message is sent.
        begun: whether the cell has begun; cells of other clients may run before.
    """

    def __init__(self, take: Callable[[Message], object]) -> None:
        self._take = take
        self.request = ""
        self.begun = False

    def __call__(self, message: Message) -> None:
        self.begun = True  # the message that says so may be lost
        self._take(message)


class CellOutputs:
    """The messages of one cell, collected."""

    def __init__(self, on_output: Callable[[Message], object] | None) -> None:
        self._on_output = on_output
        self._failure: BaseException | None = None
        self._outputs: list[dict[str, Any]] = []
        self._idle: set[str] = set()  # ids of requests whose last message was seen
        self._changed = asyncio.Event()
        self._clear = False
        self._left = False  # no caller waits

    def sent(self, request: str) -> None:
        """Note the id of the cell's message; an aborted cell is sent again, with another id."""
        if isinstance(self._on_output, CellObserver):
            self._on_output.request = request

    def feed(self, message: Message) -> None:
        """Take one of the cell's messages."""
        if self._left:
            return
        if message.type == "status":
            if message.content.get("execution_state") == "idle":
                self._idle.add(message.parent)
                self._changed.set()
            return
        if message.type == "execute_input":
            if isinstance(self._on_output, CellObserver):
                self._on_output.begun = True
            return
        if message.type == "clear_output":
            self._clear = True
            if not message.content.get("wait"):
                self._cleared()
        elif message.type == "update_display_data":
            self._update(message.content)
        elif message.type in _OUTPUTS:
            self._cleared()
            self._outputs.append(_output(message))
        else:
            return
        if self._on_output is not None:
            try:
                self._on_output(message)
            except BaseException as error:  # noqa: BLE001 - ``complete`` raises it, for the reader must go on
                self._failure, self._on_output = error, None

    def _cleared(self) -> None:
        if self._clear:
            self._clear = False
            self._outputs.clear()

    def _update(self, content: Any) -> None:
        identity = _mapping(content.get("transient")).get("display_id")
        for output in self._outputs:
            if identity and _mapping(output.get("transient")).get("display_id") == identity:
                output.update(data=_mapping(content.get("data")), metadata=content.get("metadata"))

    def leave(self) -> None:
        """Drop the outputs and all that follow: no caller waits for the cell any more."""
        self._on_output, self._left = None, True
        self._outputs.clear()

    async def complete(self, request: str) -> None:
        """Wait for the last outputs, which come on another channel than the reply.

        The reply may arrive before them. If they were lost, the outputs that did arrive must do.
        ``request`` is the id of the request that the reply belongs to; an earlier, aborted
        attempt had an "idle" too.
        """
        try:
            async with asyncio.timeout(Transport.timings.last_outputs):
                while request not in self._idle:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass
        if self._failure is not None:
            raise self._failure

    def result(self, execution_count: Any, trust: str) -> Result:
        """Return what was collected; neighbouring parts of one stream become one output.

        ``trust`` is that of the bridge.
        """
        texts: dict[str, list[str]] = {"stdout": [], "stderr": []}
        merged: list[dict[str, Any]] = []
        data: dict[str, Any] = {}
        parts: list[str] = []  # of the stream output that is last in ``merged``
        last: str | None = None  # the name of that stream
        for output in self._outputs:
            if output["output_type"] == "stream":
                texts.setdefault(output["name"], []).append(output["text"])
                if last != output["name"]:
                    last, parts = output["name"], []
                    merged.append({**output, "text": parts})
                parts.append(output["text"])
                continue
            last = None
            if output["output_type"] == "execute_result":
                data = dict(output["data"])
            merged.append({key: item for key, item in output.items() if key != "transient"})
        for output in merged:
            if output["output_type"] == "stream":
                output["text"] = "".join(output["text"])
        out, err = ("".join(texts[name]) for name in ("stdout", "stderr"))
        count = execution_count if type(execution_count) is int else None
        return Result(out, err, tuple(merged), data, count, trust)


def _output(message: Message) -> dict[str, Any]:
    """Return an output in the format of notebook files, whatever the kernel sent."""
    output = {**message.content, "output_type": message.type}
    if message.type == "stream":
        name, text = as_text(output.get("name")), as_text(output.get("text"))
        return {**output, "name": name, "text": text}
    if message.type != "error":
        output["data"] = _mapping(output.get("data"))
        output["transient"] = _mapping(output.get("transient"))
    return output


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
