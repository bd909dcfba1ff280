"""The dispatcher: requests to one kernel, and its messages.

Rule: how a request is sent, and the routing of the messages that arrive. The dispatcher gets
what sends and the kernel's state when it is made; it knows no connection.

Laws of the dispatcher, each of which was broken once and cost messages:

1. There is one reader per channel, for as long as the bridge lives, and one for the iopub of all
   bridges of an event loop on a kernel; its receive is never cancelled for a single request. A
   reply finds its request by the parent's id. Replies without a waiting request are counted.
2. At most ``WINDOW`` requests are in flight, and as many to a subshell: a subshell that hangs must
   not block the requests to the main thread. A slot is free again when the reply has arrived, not
   when the caller is cancelled: about 4,000 queued requests block ipykernel 7.4 for good, and a
   xeus kernel mostly misses a request that arrives while it serves another one.
3. A request is only sent to the kernel that was connected when the request was made.
4. ``aborted`` means not executed: the request is tried again, and reported if all tries fail.
5. Completion never depends on iopub alone, which loses messages, nor on a reply that can't come
   any more. When a reply is missing, the kernel is asked: see ``inquiry``.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from bridgehead._errors import (
    RESTARTED_MEANWHILE,
    BridgeError,
    KernelRestarted,
    ProtocolError,
    RequestAborted,
    TransportError,
)
from bridgehead._shipped.wire.header import CONTROL_REQUEST, DATA_MESSAGE, EVENT_MESSAGE
from bridgehead._transports.inquiry import Inquiry
from bridgehead._transports.messages import Message, Messages
from bridgehead._transports.request_table import (
    NO_HANDLERS,
    WINDOW,
    Handlers,
    MessageWay,
    Reply,
    RequestTable,
)
from bridgehead._transports.state import KernelState

END_OF_INPUT = "\x04"  # as an answer, it raises ``EOFError`` in ``input()``
ON_CONTROL = {  # the requests that the kernel serves there
    "kernel_info_request",
    "interrupt_request",
    "shutdown_request",
    "debug_request",
    "create_subshell_request",
    "delete_subshell_request",
    "list_subshell_request",
}


class Reconnected(TransportError):
    """The connection broke and was made again, to the same kernel. Repeatable requests repeat."""


class Dispatcher(RequestTable):
    """The requests to one kernel, and the messages that it sends.

    ``control`` says whether the kernel has a control channel, which answers while a cell runs.
    """

    def __init__(self, life: KernelState, way: MessageWay, *, control: bool) -> None:
        super().__init__(life, way)
        self.inquiry: Inquiry = Inquiry(self, control=control)
        self.late: int = 0  # replies without a waiting request
        self.retries: int = 0  # of requests that were aborted, or whose connection broke
        self._waiting = 0  # requests that are not sent yet, for a slot or the connection
        self._all_sent = asyncio.Event()
        self._streams: weakref.WeakSet[Messages] = weakref.WeakSet()
        self._answered: deque[str] = deque(maxlen=2 * WINDOW)

    # ------------------------------------------------------------ requests

    async def request(
        self,
        content: dict[str, Any],
        buffers: Sequence[Any] = (),
        *,
        subshell: str | None = None,
        handlers: Handlers = NO_HANDLERS,
        repeatable: bool = False,
    ) -> Reply:
        """Send one ``execute_request`` and wait for its reply.

        ``repeatable`` says that the remote part runs the request once, however often it arrives;
        such a request is sent again if the connection breaks meanwhile. Cancelling abandons the
        reply and does not disturb other requests. If the request was sent, it may still run.

        Raises:
            RequestAborted: it was aborted each time it was tried; it did not run.
            BridgeError: the kernel or the connection ended meanwhile.
        """
        generation = self.life.generation
        window = self.window if subshell is None else self.subshell_window
        pauses = iter(self.life.timings.abort_pauses)
        was_sent = False
        while True:
            try:
                with self._unsent():
                    await window.take(generation)
                    message = self.way.message("execute_request", content)
                    if subshell is not None:
                        message["header"]["subshell_id"] = subshell
                    pending = await self.put(
                        "shell", message, buffers, handlers, slot=window, repeatable=repeatable
                    )
            except TransportError:
                await self.life.wait_for_cause()
                raise
            except KernelRestarted:
                if was_sent:
                    raise KernelRestarted(RESTARTED_MEANWHILE) from None
                raise
            self.inquiry.expect_reply(pending)
            if handlers.on_sent is not None:
                handlers.on_sent(pending.id)
            try:
                reply = await pending.future
            except BaseException as error:
                if repeatable and isinstance(error, Reconnected):
                    self.retries += 1
                    was_sent = True
                    continue  # it runs once, and it may be this message whose outputs arrive
                self._listening.pop(pending.id, None)  # no caller wants its outputs any more
                raise
            if reply.content.get("status") not in ("aborted", "abort"):
                return reply
            pause = next(pauses, None)
            if pause is None:
                break
            self.retries += 1
            with self._unsent():
                await asyncio.sleep(pause)
        raise RequestAborted(
            "failing cells of other clients aborted the request "
            f"{len(self.life.timings.abort_pauses) + 1} times; it was not executed"
        )

    @contextlib.contextmanager
    def _unsent(self) -> Iterator[None]:
        """Count a request that waits, for a slot or for the connection, while the block lasts."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._all_sent.set()

    async def all_sent(self) -> None:
        """Wait until every request that was made is sent, or has failed."""
        while self._waiting:
            self._all_sent.clear()
            await self._all_sent.wait()

    async def control(
        self, message_type: str, content: dict[str, Any], patience: float | None = None
    ) -> dict[str, Any]:
        """Ask on the control channel and return the reply's content.

        The control channel answers even while a cell runs. Raises ``TimeoutError`` after
        ``patience`` seconds. Without them, it waits until it is known that no reply will come.

        Raises:
            ReplyLost: the kernel has answered a later request on this channel.
            KernelUnresponsive: it answers nothing on this channel.
            BridgeError: the kernel or the connection ended meanwhile.
        """
        with self._unsent():
            pending = await self.put("control", self.way.message(message_type, content))
        try:
            if patience is None:
                self.inquiry.expect_reply(pending)
            async with asyncio.timeout(patience):
                return (await pending.future).content
        finally:
            self.forget(pending.id)
            pending.future.cancel()

    async def answer(self, text: str) -> None:
        """Answer the question for input that the kernel has asked."""
        await self.way.send("stdin", self.way.message("input_reply", {"value": text}), ())

    def messages(self) -> Messages:
        """Return a stream of all messages on iopub from now on."""
        stream = Messages()
        self._streams.add(stream)
        return stream

    @property
    def has_streams(self) -> bool:
        """Whether a stream of messages is read."""
        # Mostly there is none, and each message asks: to iterate over none took 2 µs.
        return bool(self._streams) and any(not stream.is_ended for stream in self._streams)

    async def wake(self) -> None:
        """Have the kernel's event loop turn, by a request for whose reply no caller waits."""
        with contextlib.suppress(BridgeError):
            async with self.inquiry.question(None):
                pass

    def clear(self) -> None:
        super().clear()
        for stream in list(self._streams):
            stream.end()

    # ------------------------------------------------------------ messages that arrive

    def received(self, channel: str, message: dict[str, Any]) -> None:
        """Handle one message; the reader of its channel calls this."""
        self.life.note_responsive()  # any message is a sign of life
        if channel == "iopub":
            in_subshell = bool(message["parent_header"].get("subshell_id"))
            self.take_published(Message.parse(message, self.life.trust), in_subshell)
            return
        self.arrived[channel] += 1
        if message["header"]["msg_type"] == EVENT_MESSAGE:
            listener = self.life.listeners.get(message["content"]["resource"])
            if listener is not None:
                listener.feed(message["content"], message.get("buffers") or [])
            return
        if not isinstance(message["content"], dict):
            raise ProtocolError("the content of a message is not a JSON object")
        kind, parent = message["header"]["msg_type"], message["parent_header"].get("msg_id")
        pending = self.pending.get(parent)
        if pending is None or pending.cut:
            self.late += parent not in self.inquiry.questions
        elif kind == "input_request":
            if pending.handlers.on_input is not None:
                pending.handlers.on_input(message["content"])
        elif kind == DATA_MESSAGE:
            buffers = message.get("buffers") or []
            if pending.handlers.on_chunk is not None and message["content"]:
                pending.handlers.on_chunk(pending.future, message["content"], buffers)
            else:
                pending.buffers += buffers
        elif kind.endswith("_reply"):
            if pending.future.done():
                self.late += 1
            self._answered.append(parent)
            self.life.note_done(parent)  # the iopub message that says so may arrive later
            self.settle(parent, Reply(parent, message["content"], pending.buffers))

    def take_published(self, message: Message, in_subshell: bool) -> None:
        """Handle a message of iopub, of a request to a subshell or to the main thread."""
        pending = self.pending.get(message.parent)
        if pending is not None and message.type == "execute_input":
            pending.begun = True
        status = message.content.get("execution_state") if message.type == "status" else None
        idle = status == "idle"
        # Three kinds of status do not tell whether the main thread is busy: that of a request in a
        # subshell, that of a control request, and one that arrives after the reply of its request.
        on_control = message.parent_type in ON_CONTROL
        on_control = on_control or message.parent_type.endswith(CONTROL_REQUEST)
        stale = message.parent in self._answered and not idle
        if message.type == "shutdown_reply":
            self.life.shut_down = not message.content.get("restart")
        if status is not None and not stale:
            if not (in_subshell or on_control):
                self.life.note_status(status, message.parent)
            if pending is not None:
                pending.status = status
        if idle and message.parent in self.inquiry.questions:
            self.inquiry.published.append(message.parent)
        listening = self._listening.get(message.parent)
        if idle and listening is not None:
            self.end_outputs(listening)
        take = None if listening is None else listening.handlers.on_message
        if take is not None and take(message):
            return
        if self._streams and message.parent not in self.inquiry.questions:
            for stream in list(self._streams):
                stream.feed(message)
