"""The outputs of one cell, gathered while it runs.

Rule: iopub messages in, a ``Result`` out. iopub can lose messages, so whether the cell is
done is never decided here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from bridgehead._results import Result
from bridgehead._transports.messages import Message

STRAGGLERS = 2.0  # s after the reply in which the cell's idle must be seen, or is given up

_OUTPUTS = {"stream", "display_data", "execute_result", "error"}


class CellOutputs:
    """Collects the messages that belong to one cell."""

    def __init__(self, on_output: Callable[[Message], object] | None) -> None:
        self._on_output = on_output
        self._failure: BaseException | None = None
        self._outputs: list[dict[str, Any]] = []
        self._idle: set[str] = set()  # ids of requests whose last message was seen
        self._changed = asyncio.Event()
        self._clear = False

    def feed(self, message: Message) -> None:
        if message.type == "status":
            if message.content.get("execution_state") == "idle":
                self._idle.add(message.parent)
                self._changed.set()
            return
        if message.type == "clear_output":
            self._clear = True
            if not message.content.get("wait"):
                self._cleared()
            return
        if message.type == "update_display_data":
            self._update(message.content)
        elif message.type in _OUTPUTS:
            self._cleared()
            self._outputs.append({"output_type": message.type, **message.content})
        else:
            return
        if self._on_output is not None and self._failure is None:
            try:
                self._on_output(message)
            except BaseException as error:  # noqa: BLE001 - told to whoever awaits run, not to the reader
                self._failure = error

    def _cleared(self) -> None:
        if self._clear:
            self._clear = False
            self._outputs.clear()

    def _update(self, content: Any) -> None:
        identity = (content.get("transient") or {}).get("display_id")
        for output in self._outputs:
            if identity and (output.get("transient") or {}).get("display_id") == identity:
                output.update(data=content["data"], metadata=content.get("metadata", {}))

    async def complete(self, request: str) -> None:
        """Wait for the last outputs, which come on another channel than the reply.

        The reply may be here before them, and they may have been lost: then what there is must
        do. ``request`` is the one that was replied to; an aborted try of it was idle too.
        """
        try:
            async with asyncio.timeout(STRAGGLERS):
                while request not in self._idle:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass
        if self._failure is not None:
            raise self._failure

    def result(self, execution_count: Any) -> Result:
        text = {"stdout": "", "stderr": ""}
        merged: list[dict[str, Any]] = []
        data: dict[str, Any] = {}
        for output in self._outputs:
            if output["output_type"] == "stream":
                text[output["name"]] = text.get(output["name"], "") + output["text"]
                if merged and merged[-1].get("name") == output["name"]:
                    merged[-1]["text"] += output["text"]
                    continue
            elif output["output_type"] == "execute_result":
                data = dict(output["data"])
            merged.append({k: v for k, v in output.items() if k != "transient"})
        return Result(text["stdout"], text["stderr"], tuple(merged), data, execution_count)
