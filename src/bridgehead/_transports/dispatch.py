"""The dispatcher: requests in flight to one kernel, and its messages.

Rule: the table of requests in flight, their window, the inquiry, and the routing of the messages
that arrive. The dispatcher gets a function that sends and the kernel's state when it is made; it
knows no connection.

Laws of the dispatcher, each of which was broken once and cost messages:

1. There is one reader per channel, for as long as the bridge lives; its receive is never cancelled
   for a single request. A reply finds its request by the parent's id. Replies without a waiting
   request are counted.
2. At most ``WINDOW`` requests are in flight, and as many to a subshell: a subshell that hangs must
   not block the requests to the main thread. A slot is free again when the reply has arrived, not
   when the caller is cancelled: about 4,000 queued requests block ipykernel 7.4 for good, and two
   large ones block a xeus kernel.
3. A request is only sent to the kernel that was connected when the request was made.
4. ``aborted`` means not executed: the request is tried again, and reported if all tries fail.
5. Completion never depends on iopub alone, which loses messages. An ``idle`` without a reply
   starts an inquiry; only a reply to a later request proves that the reply to ours is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from bridgehead._errors import (
    BridgeError,
    KernelRestarted,
    ProtocolError,
    ReplyLost,
    RequestAborted,
    TransportError,
)
from bridgehead._shipped.wire.header import DATA_MESSAGE, UPDATE_MESSAGE
from bridgehead._transports.messages import Message, Messages
from bridgehead._transports.state import STATES, KernelState

WINDOW = 32
# s before each new try of an aborted request. Measured: of 30 requests that were sent again 24 ms
# after an abort, 1 was aborted again.
ABORT_PAUSES = (0.02, 0.04, 0.08, 0.16, 0.32, 0.64)
CONTROL = {
    "kernel_info_request",
    "interrupt_request",
    "shutdown_request",
    "debug_request",
    "create_subshell_request",
    "delete_subshell_request",
    "list_subshell_request",
}
INQUIRY_AFTER = 0.5  # s between an idle without a reply and the inquiry


@dataclass(slots=True)
class Reply:
    """A reply: the request's id, its content, and the buffers sent to this client before it."""

    id: str
    content: dict[str, Any]
    buffers: list[Any]


@dataclass(slots=True)
class Pending:
    """A request that was sent and not answered yet."""

    id: str
    future: asyncio.Future[Reply]
    slot: bool  # whether it holds a slot of the window; inquiries and control requests do not
    subshell: str | None = None
    repeatable: bool = False  # it may be sent again if the connection breaks
    nbytes: int = 0  # size of the message that was sent, on transports with a size limit
    cut: bool = False  # its connection broke, so its response may arrive incomplete
    buffers: list[Any] = field(default_factory=list)
    inquired: bool = False
    begun: bool = False  # the kernel published that the cell begins; a message that may be lost


class Reconnected(TransportError):
    """The connection broke and was made again, to the same kernel. Repeatable requests repeat."""


class Dispatcher:
    """The requests in flight to one kernel, and the messages that it sends.

    ``send`` sends a message, ``message`` makes a new one, and ``spawn`` runs a task for as long as
    the transport lives.
    """

    def __init__(
        self,
        life: KernelState,
        *,
        send: Callable[[str, dict[str, Any], Sequence[Any]], Awaitable[None]],
        message: Callable[[str, dict[str, Any]], dict[str, Any]],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self._life, self._send, self._message, self._spawn = life, send, message, spawn
        self.late: int = 0  # replies without a waiting request
        self.window: int = WINDOW
        self._slots = asyncio.Semaphore(self.window)
        self._subshell_slots = asyncio.Semaphore(WINDOW)
        self.pending: dict[str, Pending] = {}
        # By request. They outlive the reply: outputs may arrive after it, until the idle status.
        self._on_message: dict[str, Callable[[Message], object]] = {}
        self._streams: weakref.WeakSet[Messages] = weakref.WeakSet()
        self._busy_with = ""
        self._answered: deque[str] = deque(maxlen=2 * WINDOW)

    # ------------------------------------------------------------ requests

    async def request(
        self,
        content: dict[str, Any],
        buffers: Sequence[Any] = (),
        *,
        subshell: str | None = None,
        on_message: Callable[[Message], object] | None = None,
        on_sent: Callable[[str], object] | None = None,
        repeatable: bool = False,
    ) -> Reply:
        """Send one ``execute_request`` and wait for its reply.

        ``on_message`` gets the iopub messages of this request. A message for which it returns true
        goes to no stream. ``repeatable`` says that the remote part runs the request once, however
        often it arrives; such a request is sent again if the connection breaks meanwhile.
        ``on_sent`` gets the id of the request's message each time that it is sent. Cancelling
        abandons the reply and does not disturb other requests. If the request was sent, it may
        still run.

        Raises:
            RequestAborted: it was aborted each time it was tried; it did not run.
            BridgeError: the kernel or the connection ended meanwhile.
        """
        generation = self._life.generation
        slots = self._slots if subshell is None else self._subshell_slots
        pauses = iter(ABORT_PAUSES)
        while True:
            await slots.acquire()
            try:
                self._life.check()
                if generation != self._life.generation:
                    raise KernelRestarted(
                        "the kernel was restarted meanwhile; the request was not sent"
                    )
            except BaseException:
                slots.release()
                raise
            message = self._message("execute_request", content)
            if subshell is not None:
                message["header"]["subshell_id"] = subshell
            try:
                pending = await self.put(
                    "shell", message, buffers, on_message, slot=True, repeatable=repeatable
                )
            except TransportError:
                await self._life.wait_for_cause()
                raise
            if on_sent is not None:
                on_sent(pending.id)
            try:
                reply = await pending.future
            except Reconnected:
                if repeatable:
                    continue
                raise
            if reply.content.get("status") not in ("aborted", "abort"):
                return reply
            pause = next(pauses, None)
            if pause is None:
                break
            await asyncio.sleep(pause)
        raise RequestAborted(
            f"failing cells of other clients aborted the request {len(ABORT_PAUSES) + 1} times; "
            "it was not executed"
        )

    async def control(
        self, message_type: str, content: dict[str, Any], patience: float | None = None
    ) -> dict[str, Any]:
        """Ask on the control channel and return the reply's content.

        The control channel answers even while a cell runs. Raises ``TimeoutError`` after
        ``patience`` seconds.
        """
        pending = await self.put("control", self._message(message_type, content))
        try:
            async with asyncio.timeout(patience):
                return (await pending.future).content
        finally:
            self.forget(pending.id)

    def messages(self) -> Messages:
        """Return a stream of all messages on iopub from now on."""
        stream = Messages()
        self._streams.add(stream)
        return stream

    def narrow(self, window: int) -> None:
        """Make the window fit the kernel, before anything is sent to it."""
        if window < self.window:
            self.window = window
            self._slots = asyncio.Semaphore(window)

    def serves(self, subshell: str) -> bool:
        """Return whether a request to this subshell is unanswered, even without a waiter."""
        return any(pending.subshell == subshell for pending in self.pending.values())

    async def wake(self) -> None:
        """Have the kernel's event loop turn, by a request for whose reply no caller waits.

        An interrupt takes effect at once in a cell that computes or sleeps, but in a cell that
        awaits only when the loop turns: 5.8 s later in ``await asyncio.sleep(6)`` (measured).
        """
        with contextlib.suppress(BridgeError):
            await self.put("shell", self._message("kernel_info_request", {}))

    def runs(self, identity: str) -> bool:
        """Return whether the cell of a request has begun, and its reply has not arrived."""
        pending = self.pending.get(identity)
        return pending is not None and pending.begun

    @property
    def queued(self) -> bool:
        """Whether a request of ours may still wait in the queue of the kernel's main thread."""
        return any(pending.slot and not pending.subshell for pending in self.pending.values())

    @property
    def in_flight(self) -> int:
        """The number of requests that hold a slot of the window."""
        return sum(pending.slot for pending in self.pending.values())

    # ------------------------------------------------------------ the table

    async def put(
        self,
        channel: str,
        message: dict[str, Any],
        buffers: Sequence[Any] = (),
        on_message: Callable[[Message], object] | None = None,
        *,
        slot: bool = False,
        repeatable: bool = False,
    ) -> Pending:
        """Send a message and enter it into the table.

        With ``slot``, the caller has acquired a slot, and the table releases it with the request.
        """
        future = self._life.waiter()
        header = message["header"]
        pending = Pending(header["msg_id"], future, slot, header.get("subshell_id"), repeatable)
        if on_message is not None:
            self._on_message[pending.id] = on_message
        self.pending[pending.id] = pending
        try:
            await self._send(channel, message, buffers)
        except BaseException:
            self._on_message.pop(pending.id, None)
            self.forget(pending.id)
            future.cancel()  # otherwise the kernel would still count it as a waiter
            raise
        return pending

    def forget(self, identity: str) -> Pending | None:
        """Remove a request from the table; its reply will count as late."""
        pending = self.pending.pop(identity, None)
        if pending is not None and pending.slot:
            (self._slots if pending.subshell is None else self._subshell_slots).release()
        return pending

    def settle(self, identity: str, outcome: Reply | BridgeError) -> None:
        """Remove a request from the table and give its caller the reply or the error."""
        pending = self.forget(identity)
        if pending is None or pending.future.done():
            return
        if isinstance(outcome, Reply):
            pending.future.set_result(outcome)
        else:
            pending.future.set_exception(outcome)

    def clear(self) -> None:
        """Forget all requests to a lost kernel; ``KernelState`` has failed their futures before."""
        for identity in list(self.pending):
            self.forget(identity)
        self._on_message.clear()
        for stream in list(self._streams):
            stream.end()

    # ------------------------------------------------------------ messages that arrive

    def received(self, channel: str, message: dict[str, Any]) -> None:
        """Handle one message; the reader of its channel calls this."""
        if channel == "iopub":
            in_subshell = bool(message["parent_header"].get("subshell_id"))
            self._on_iopub(Message.parse(message), in_subshell)
            return
        if message["header"]["msg_type"] == UPDATE_MESSAGE:
            listener = self._life.listeners.get(message["content"]["watch"])
            if listener is not None:
                listener.feed(message["content"], message.get("buffers") or [])
            return
        if not isinstance(message["content"], dict):
            raise ProtocolError("the content of a message is not a JSON object")
        parent = message["parent_header"].get("msg_id")
        pending = self.pending.get(parent)
        if pending is None or pending.cut:
            self.late += 1
        elif message["header"]["msg_type"] == DATA_MESSAGE:
            pending.buffers += message.get("buffers") or ()
        elif message["header"]["msg_type"].endswith("_reply"):
            if pending.future.done():
                self.late += 1
            self._answered.append(parent)
            if self._busy_with in (parent, "") and self._life.state == "busy":
                self._life.state = "idle"  # the iopub message that says so may arrive later
            self.settle(parent, Reply(parent, message["content"], pending.buffers))

    def _on_iopub(self, message: Message, in_subshell: bool) -> None:
        pending = self.pending.get(message.parent)
        if pending is not None and message.type == "execute_input":
            pending.begun = True
        idle = message.type == "status" and message.content.get("execution_state") == "idle"
        # Three kinds of status do not tell whether the main thread is busy: that of a request in a
        # subshell, that of a control request, and one that arrives after the reply of its request.
        off_main_thread = in_subshell or message.parent_type in CONTROL
        stale = message.parent in self._answered and not idle
        if message.type == "shutdown_reply":
            self._life.shut_down = not message.content.get("restart")
        if message.type == "status" and not stale:
            if not off_main_thread and not (self._life.is_lost or self._life.is_unresponsive):
                state = message.content.get("execution_state")
                if state in STATES:
                    self._life.state = state
                self._busy_with = message.parent
            if idle and pending is not None and pending.slot:
                loop = asyncio.get_running_loop()
                loop.call_later(INQUIRY_AFTER, self.inquire, message.parent)
        if idle:
            on_message = self._on_message.pop(message.parent, None)
        else:
            on_message = self._on_message.get(message.parent)
        if on_message is not None and on_message(message):
            return
        for stream in list(self._streams):
            stream.feed(message)

    # ------------------------------------------------------------ the inquiry

    def inquire(self, identity: str) -> None:
        """Find out whether the reply to a request is lost.

        The kernel went idle, and the reply has not arrived. Replies arrive in order, so the reply
        to one more request proves that the missing one will not arrive.
        """
        pending = self.pending.get(identity)
        if pending is not None and not pending.inquired and not self._life.is_lost:
            pending.inquired = True
            self._spawn(self._inquiry(identity))

    async def _inquiry(self, identity: str) -> None:
        try:
            later = await self.put("shell", self._message("kernel_info_request", {}))
            await later.future
        except BridgeError:
            return
        self.settle(identity, ReplyLost("the kernel ran the request, but its reply was lost"))
