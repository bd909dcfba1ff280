"""The outputs of one request, passed on and collected while it runs.

Rule: iopub messages in; calls of a caller's function, and for a cell a ``Result``, out. iopub can
lose messages, so this file never decides whether the request is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import groupby
from typing import Any

from bridgehead._protocol.raising import as_text
from bridgehead._protocol.results import Result
from bridgehead._shipped.wire.excerpt import Excerpt, characters, mark
from bridgehead._shipped.wire.header import OUTPUTS_END
from bridgehead._transports.base import Transport
from bridgehead._transports.messages import Message
from bridgehead._transports.tasks import waited

_OUTPUTS = {"stream", "display_data", "execute_result", "error"}
MARKS = 100  # characters for the lines that stand for what was dropped
COMMS = ("comm_open", "comm_msg")  # messages of widgets, which only an observer gets
_CHANGES = {"clear_output", "update_display_data"}  # of earlier outputs


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


class OutputListener:
    """Calls a caller's function with each output of one request.

    Attributes:
        answered: the id of the request's message that was replied to last; empty before.
        lasting: whether outputs follow the end of the request.
    """

    lasting: bool = False

    def __init__(self, on_output: Callable[[Message], object] | None) -> None:
        self.answered: str = ""
        self._on_output = on_output
        self._failure: BaseException | None = None
        self._idle: set[str] = set()  # ids of messages whose last output was seen
        self._changed = asyncio.Event()
        self._left = False  # no caller waits

    def feed(self, message: Message) -> object:
        """Take one of the request's messages; return true for one that is no other reader's."""
        if self._left:
            return None
        if message.type == "status" and message.content.get("execution_state") == "idle":
            self._idle.add(message.parent)
            self._changed.set()
        elif message.type in _OUTPUTS or message.type in _CHANGES:
            self._take(message)
        return None

    def _take(self, message: Message) -> None:
        """Pass an output on."""
        self._collect(message)
        if self._on_output is not None:
            try:
                self._on_output(message)
            except BaseException as error:  # noqa: BLE001 - ``complete`` raises it, for the reader must go on
                self._failure, self._on_output = error, None

    def _collect(self, message: Message) -> None:
        """Keep an output; a listener keeps none."""

    def reply(self, request: str) -> None:
        """Note that a message of the request was replied to."""
        self.answered = request

    def leave(self) -> None:
        """Drop the outputs that follow: no caller waits for them any more."""
        self._on_output, self._left = None, True

    async def complete(self, request: str) -> None:
        """Wait for the last outputs, which come on another channel than the reply.

        The reply may arrive before them. If they were lost, the outputs that did arrive must do.
        ``request`` is the id of the message that the reply belongs to, or empty if there was no
        reply; an earlier, aborted attempt had an "idle" too.
        """
        async with waited(Transport.timings.last_outputs):
            while request and request not in self._idle:
                self._changed.clear()
                await self._changed.wait()
        self.flush()
        if self._failure is not None:
            raise self._failure

    def flush(self) -> None:
        """Pass on what is held until the end; a listener holds nothing."""


class TaskOutputs(OutputListener):
    """Calls a caller's function with each output of a coroutine, which its request starts.

    The coroutine's last output is followed by a message of the remote part's, and only a coroutine
    with an outcome has that.
    """

    lasting = True

    def started(self) -> None:
        """Note that the coroutine was started: the end of the request says nothing of it."""
        self.answered = ""

    def finished(self) -> None:
        """Note that its outcome has arrived."""
        self.answered = OUTPUTS_END

    def feed(self, message: Message) -> object:
        if message.type != OUTPUTS_END:
            return super().feed(message)
        self._idle.add(OUTPUTS_END)
        self._changed.set()
        return True


class CellOutputs(OutputListener):
    """The outputs of one cell, collected; of all, or their beginning and their end.

    The kernel cuts streams and displays before it sends them. What arrives is bounded here all the
    same: threads display, too, and a kernel may send anything.

    The cell's value takes no room from the texts, whose end comes behind it and would push it out.
    Nor does its error. Each has the limit for itself.

    Attributes:
        error: the first error that the cell published. One that is longer than the limit is left
            out, and does not count: the reply has it as well.
    """

    def __init__(
        self, on_output: Callable[[Message], object] | None, max_output: int | None = None
    ) -> None:
        super().__init__(on_output)
        self._outputs: list[dict[str, Any]] = []
        self._clear = False
        self._count: Any = None  # the cell's number, as the kernel published it
        self._excerpt: Excerpt | None = None
        if max_output is not None:
            self._excerpt = Excerpt(max_output + MARKS)
        self._most = max_output
        self._has_value = False
        self._streams: dict[str, Message] = {}  # by name: a message of each, without its text
        self.error: Mapping[str, Any] | None = None
        self._marked = 0  # how much had been dropped at the last line that stands for it
        self.dropped_in_kernel = 0

    def sent(self, request: str) -> None:
        """Note the id of the cell's message; an aborted cell is sent again, with another id."""
        if isinstance(self._on_output, CellObserver):
            self._on_output.request = request

    def feed(self, message: Message) -> object:
        if message.type == "execute_input":
            self._count = message.content.get("execution_count")
            if isinstance(self._on_output, CellObserver):
                self._on_output.begun = True
        if message.type in COMMS and isinstance(self._on_output, CellObserver):
            self._on_output(message)
        return super().feed(message)

    def _take(self, message: Message) -> None:
        size, is_within = 0, True
        if self._most is not None and message.type != "stream":
            size = characters(message.content)
            is_within = size <= self._most
        if message.type == "error" and self.error is None:
            self.error = message.content
            if not is_within:
                return
            size = 0
        elif message.type == "execute_result" and not self._has_value:
            self._has_value = True
            size = 0 if is_within else size
        if self._excerpt is None:
            super()._take(message)
        elif message.type == "stream":
            name, text = as_text(message.content.get("name")), as_text(message.content.get("text"))
            if name not in self._streams:
                content = {"name": name, "text": ""}  # of a kernel that may send anything
                self._streams[name] = replace(message, content=content, metadata={}, buffers=())
            head = self._excerpt.take(self._streams[name], text)
            if head:
                super()._take(message if head == text else _with_text(message, head))
        elif self._excerpt.take_whole(message, size):
            super()._take(message)

    def flush(self) -> None:
        """Pass on the end of the outputs, which was held, behind a line for what was dropped."""
        if self._excerpt is None:
            return
        ends = self._excerpt.end()
        if self._excerpt.dropped != self._marked:
            self._marked = self._excerpt.dropped
            streams = [message for message, text in ends if text is not None]
            like = streams[0] if streams else Message("stream", {"name": "stdout"})
            super()._take(_with_text(like, mark(self._marked)))
        for message, text in ends:
            super()._take(message if text is None else _with_text(message, text))

    def _collect(self, message: Message) -> None:
        if message.type == "clear_output":
            self._clear = True
            if not message.content.get("wait"):
                self._cleared()
        elif message.type == "update_display_data":
            self._update(message.content)
        else:
            self._cleared()
            self._outputs.append(_output(message))

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
        super().leave()
        self._outputs.clear()

    def result(self, execution_count: Any, trust: str) -> Result:
        """Return what was collected; neighbouring parts of one stream become one output.

        ``execution_count`` is that of the reply, or None without one. ``trust`` is that of the
        bridge.
        """
        self.flush()
        merged: list[dict[str, Any]] = []
        for stream, outputs in groupby(self._outputs, _stream):
            parts = list(outputs)
            if stream is not None:
                parts = [{**parts[0], "text": "".join(part["text"] for part in parts)}]
            merged += [{key: one[key] for key in one if key != "transient"} for one in parts]
        out, err = (
            "".join(one["text"] for one in merged if _stream(one) == name)
            for name in ("stdout", "stderr")
        )
        values = [one["data"] for one in merged if one["output_type"] == "execute_result"]
        count = self._count if execution_count is None else execution_count
        count = count if type(count) is int else None
        dropped = self.dropped_in_kernel + (self._excerpt.dropped if self._excerpt else 0)
        data = dict(values[-1]) if values else {}
        return Result(out, err, tuple(merged), data, count, trust, dropped)


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


def _stream(output: Mapping[str, Any]) -> str | None:
    """Return the name of the stream that an output is a part of; None for another output."""
    return output["name"] if output["output_type"] == "stream" else None


def _with_text(message: Message, text: str) -> Message:
    return replace(message, content={**message.content, "text": text})


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
