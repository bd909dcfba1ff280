"""The dispatcher: requests on their way to one kernel, and what arrives from it.

Rule: the table of requests in flight, their window, the inquiry, and who gets what arrives. The
dispatcher is given a way to send and the kernel's state when it is made; it knows no connection.

Laws of the dispatcher, each of which was broken once and cost messages:

1. One reader per channel, for as long as the bridge lives; its receive is never cancelled per
   request. Replies find their request by the parent's id; what nobody waits for is counted.
2. At most ``WINDOW`` requests are in flight, and as many to a subshell: one that hangs must not
   keep the main thread's from being sent. A slot is free again when the reply is here, not
   when the caller gave up: about 4,000 queued requests wedge ipykernel 7.4 for good, and two
   large ones a xeus kernel.
3. A request is never sent to another kernel than the one that was there when it was made.
4. ``aborted`` means not executed: tried again, then told.
5. Completion never depends on iopub alone, which loses messages. An ``idle`` without a reply
   starts an inquiry; only a reply to a later request proves that ours is lost.
"""

from __future__ import annotations

import asyncio
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
ABORT_PAUSES = (0.02, 0.04, 0.08, 0.16, 0.32, 0.64)  # s; 24 ms after an abort 1 of 30 is aborted
CONTROL = {
    "kernel_info_request",
    "interrupt_request",
    "shutdown_request",
    "debug_request",
    "create_subshell_request",
    "delete_subshell_request",
    "list_subshell_request",
}
INQUIRY_AFTER = 0.5  # s between an idle and the question where its reply is


@dataclass(slots=True)
class Reply:
    """A reply: the request's id, its content, and what was sent to us alone ahead of it."""

    id: str
    content: dict[str, Any]
    buffers: list[Any]


@dataclass(slots=True)
class Pending:
    """A request that was sent and is not answered yet."""

    id: str
    future: asyncio.Future[Reply]
    slot: bool  # of the window; inquiries and control requests take none
    subshell: str | None = None
    repeatable: bool = False  # it may be sent again if the connection breaks
    nbytes: int = 0  # as it was sent, where that matters
    cut: bool = False  # its connection broke: what arrives of it may not be all
    buffers: list[Any] = field(default_factory=list)
    inquired: bool = False


class Reconnected(TransportError):
    """The connection broke and was made anew, to the same kernel: what may be asked again, is."""


class Dispatcher:
    """The requests to one kernel that are in flight, and the messages that it sends.

    ``send`` hands a message to the wire, ``message`` makes a new one, and ``spawn`` runs a task
    for as long as the transport lives.
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
        self.late: int = 0  # replies nobody waited for
        self.window: int = WINDOW
        self._slots = asyncio.Semaphore(self.window)
        self._slots_aside = asyncio.Semaphore(WINDOW)  # a subshell's
        self.pending: dict[str, Pending] = {}
        self._tails: dict[str, Callable[[Message], object]] = {}  # outlive the reply, until idle
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
        repeatable: bool = False,
    ) -> Reply:
        """Send one ``execute_request`` and wait for its reply.

        ``on_message`` is given what iopub tells of it; no stream hears of what it returns true for.
        ``repeatable`` says that the loader does it once, however often it comes: where the
        connection broke meanwhile, it is sent again. Cancelling abandons the reply and disturbs
        nobody; if the request was sent, it may still run.

        Raises:
            RequestAborted: it was aborted each time it was tried; it did not run.
            BridgeError: whatever ended the kernel or the connection meanwhile.
        """
        generation = self._life.generation
        slots = self._slots if subshell is None else self._slots_aside
        pauses = iter(ABORT_PAUSES)
        while True:
            await slots.acquire()
            try:
                self._life.check()
                if generation != self._life.generation:
                    raise KernelRestarted("the kernel was restarted meanwhile; this was not sent")
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
                await self._life.explained()
                raise
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
            f"another client's failing cell aborted the request {len(ABORT_PAUSES) + 1} times; "
            "it was not executed"
        )

    async def control(
        self, message_type: str, content: dict[str, Any], patience: float | None = None
    ) -> dict[str, Any]:
        """Ask on the control channel, which answers even while a cell runs; gives the content.

        ``TimeoutError`` after ``patience`` seconds.
        """
        asked = await self.put("control", self._message(message_type, content))
        try:
            async with asyncio.timeout(patience):
                return (await asked.future).content
        finally:
            self.forget(asked.id)

    def messages(self) -> Messages:
        """Everything on iopub from now on."""
        stream = Messages()
        self._streams.add(stream)
        return stream

    def narrow(self, window: int) -> None:
        """Make the window fit the kernel, before anything is sent to it."""
        if window < self.window:
            self.window = window
            self._slots = asyncio.Semaphore(window)

    def serves(self, subshell: str) -> bool:
        """Whether a subshell has not answered yet, be it that nobody waits for it any more."""
        return any(pending.subshell == subshell for pending in self.pending.values())

    @property
    def queued(self) -> bool:
        """Whether a request of ours may still stand in the queue of the kernel's main thread."""
        return any(pending.slot and not pending.subshell for pending in self.pending.values())

    @property
    def in_flight(self) -> int:
        """Requests that hold a place in the window."""
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
        """Send a message and enter it into the table; ``slot`` gives back the one it brought."""
        future = self._life.waiter()
        header = message["header"]
        pending = Pending(header["msg_id"], future, slot, header.get("subshell_id"), repeatable)
        if on_message is not None:
            self._tails[pending.id] = on_message
        self.pending[pending.id] = pending
        try:
            await self._send(channel, message, buffers)
        except BaseException:
            self._tails.pop(pending.id, None)
            self.forget(pending.id)
            future.cancel()  # else it would look as if somebody waited for the kernel
            raise
        return pending

    def forget(self, identity: str) -> Pending | None:
        """Remove a request from the table; its reply will count as late."""
        pending = self.pending.pop(identity, None)
        if pending is not None and pending.slot:
            (self._slots if pending.subshell is None else self._slots_aside).release()
        return pending

    def settle(self, identity: str, outcome: Reply | BridgeError) -> None:
        """Remove a request from the table and end its caller's wait."""
        pending = self.forget(identity)
        if pending is None or pending.future.done():
            return
        if isinstance(outcome, Reply):
            pending.future.set_result(outcome)
        else:
            pending.future.set_exception(outcome)

    def clear(self) -> None:
        """Forget everything of a kernel that is gone; its state has failed all waits by now."""
        for identity in list(self.pending):
            self.forget(identity)
        self._tails.clear()
        for stream in list(self._streams):
            stream.end()

    # ------------------------------------------------------------ what arrives

    def received(self, channel: str, message: dict[str, Any]) -> None:
        """Take one message off the wire; called by the reader of its channel."""
        if channel == "iopub":
            # What runs in a subshell says nothing of whether the main thread is busy.
            aside = bool(message["parent_header"].get("subshell_id"))
            self._on_iopub(Message.parse(message), aside)
            return
        if message["header"]["msg_type"] == UPDATE_MESSAGE:
            listener = self._life.listeners.get(message["content"]["watch"])
            if listener is not None:
                listener.feed(message["content"], message.get("buffers") or [])
            return
        if not isinstance(message["content"], dict):
            raise ProtocolError("a message's content is no object")
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
                self._life.state = "idle"  # the message that says so is still on its way
            self.settle(parent, Reply(parent, message["content"], pending.buffers))

    def _on_iopub(self, message: Message, aside: bool) -> None:
        pending = self.pending.get(message.parent)
        idle = message.type == "status" and message.content.get("execution_state") == "idle"
        # Neither does what is asked on the control channel, nor what is told late of a request
        # whose reply is here.
        aside = aside or message.parent_type in CONTROL
        stale = message.parent in self._answered and not idle
        if message.type == "shutdown_reply":
            self._life.shut_down = not message.content.get("restart")
        if message.type == "status" and not stale:
            if not aside and not (self._life.is_lost or self._life.is_unresponsive):
                state = message.content.get("execution_state")
                if state in STATES:
                    self._life.state = state
                self._busy_with = message.parent
            if idle and pending is not None and pending.slot:
                loop = asyncio.get_running_loop()
                loop.call_later(INQUIRY_AFTER, self.inquire, message.parent)
        tail = self._tails.pop(message.parent, None) if idle else self._tails.get(message.parent)
        if tail is not None and tail(message):
            return
        for stream in list(self._streams):
            stream.feed(message)

    # ------------------------------------------------------------ the inquiry

    def inquire(self, identity: str) -> None:
        """The kernel went idle, the reply isn't here: ask something whose reply comes after."""
        pending = self.pending.get(identity)
        if pending is not None and not pending.inquired and not self._life.is_lost:
            pending.inquired = True
            self._spawn(self._inquiry(identity))

    async def _inquiry(self, identity: str) -> None:
        try:
            fence = await self.put("shell", self._message("kernel_info_request", {}))
            await fence.future
        except BridgeError:
            return
        self.settle(identity, ReplyLost("the kernel is done, but its reply never came"))
