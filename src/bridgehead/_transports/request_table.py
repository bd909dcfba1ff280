"""The table of the requests in flight to one kernel.

Rule: which requests were sent and have no reply yet, who gets their outputs, and how many there may
be at once. What is sent, and what arrives, belongs to ``dispatch``.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from bridgehead._errors import BridgeError
from bridgehead._transports.messages import Message
from bridgehead._transports.state import KernelState

# Requests in flight at once: the queue's one message, and all that passes by the queue, such as
# operations with ``now=True`` and requests about what stays in the kernel.
WINDOW = 32
# What keeps the replies to some requests in order: the main shell (None), a subshell (its id), or
# one of these. A request that may ask for input has ``allow_stdin`` in its content, and a transport
# may carry it over a connection of its own; so does a question about it.
INPUT = "input"
CONTROL = "control"


@dataclass(slots=True, eq=False)
class Reply:
    """A reply: the request's id, its content, and the buffers sent to this client before it."""

    id: str
    content: dict[str, Any]
    buffers: list[Any]


@dataclass(frozen=True, slots=True)
class Handlers:
    """What takes the messages of one request, besides its reply.

    Attributes:
        on_message: gets its iopub messages. One for which it returns true goes to no stream.
        lasting: it gets those that follow the end of the request, too, until ``unlisten``.
        on_sent: gets the id of the request's message each time that it is sent.
        on_chunk: gets each chunk of the response that has a header of its own: the future of the
            reply, the header, and the buffers. Other buffers come with the reply.
        on_input: gets the content of each question for input, which ``answer`` answers; also after
            a cancel.
    """

    on_message: Callable[[Message], object] | None = None
    lasting: bool = False
    on_sent: Callable[[str], object] | None = None
    on_chunk: Callable[[asyncio.Future[Reply], Any, list[Any]], object] | None = None
    on_input: Callable[[dict[str, Any]], object] | None = None


NO_HANDLERS = Handlers()


@dataclass(slots=True, eq=False)
class Pending:
    """A request that was sent and not answered yet."""

    id: str
    channel: str
    future: asyncio.Future[Reply]
    slot: Window | None  # the window of which it holds a slot; questions hold none
    subshell: str | None = None
    repeatable: bool = False  # it may be sent again if the connection breaks
    handlers: Handlers = NO_HANDLERS
    nbytes: int = 0  # size of the message that was sent, on transports with a size limit
    cut: bool = False  # its connection broke, so its response may arrive incomplete
    buffers: list[Any] = field(default_factory=list)
    due: float = 0.0  # the loop's time from which on the reply is missing; 0 until it is sent
    status: Any = None  # the last one that the kernel published for it: "busy", then "idle"
    begun: bool = False  # the kernel published that the cell begins; a message that may be lost

    @property
    def route(self) -> str | None:
        """What keeps its reply in order with others; see ``INPUT``."""
        if self.channel == "control":
            return CONTROL
        return self.subshell if self.handlers.on_input is None else INPUT


class Window:
    """The slots for the requests in flight.

    Attributes:
        size: how many there are.
        taken: how many of them requests hold.
    """

    def __init__(self, life: KernelState, size: int) -> None:
        self._life = life
        self.size: int = size
        self.taken: int = 0
        self._waiting: OrderedDict[asyncio.Future[None], None] = OrderedDict()

    async def take(self, generation: int) -> None:
        """Take a slot for a request to the kernel of this generation.

        Raises:
            BridgeError: that kernel is gone. Or all slots are taken, and it is unresponsive and
                gives none back. Nothing was sent.
        """
        self._life.check_same(generation)
        if self.taken < self.size:
            self.taken += 1
            return
        self._life.check_responsive()
        slot = self._life.waiter()
        self._waiting[slot] = None
        try:
            await asyncio.wait([slot])
            self._life.check_same(generation)
            slot.result()
        except BaseException:
            if not slot.cancel() and slot.exception() is None:
                self.release()  # it was passed on at the same moment
            raise
        finally:
            self._waiting.pop(slot, None)

    def release(self) -> None:
        """Give a slot back; the request that waits longest takes it."""
        self.taken -= 1
        while self._waiting and self.taken < self.size:
            slot, _ = self._waiting.popitem(last=False)
            if not slot.done():
                slot.set_result(None)
                self.taken += 1


class MessageWay(Protocol):
    """The way of messages to one kernel, which the table, the dispatcher and the inquiry share."""

    def message(self, message_type: str, content: dict[str, Any]) -> dict[str, Any]:
        """Make a new message."""

    async def send(self, channel: str, message: dict[str, Any], buffers: Sequence[Any]) -> None:
        """Send a message."""

    async def nudge(self) -> None:
        """Make the kernel read messages that it has missed."""

    def spawn(self, work: Coroutine[Any, Any, None]) -> object:
        """Run a task for as long as the transport lives."""


class RequestTable:
    """The requests in flight to one kernel.

    Attributes:
        window: the slots for requests to the main thread.
        subshell_window: those for requests to a subshell.
        pending: the requests without a reply, by id.
        arrived: the number of messages that arrived, by channel.
    """

    def __init__(self, life: KernelState, way: MessageWay) -> None:
        self.life: KernelState = life
        self.way: MessageWay = way
        self.window: Window = Window(life, WINDOW)
        self.subshell_window: Window = Window(life, WINDOW)
        self.pending: dict[str, Pending] = {}
        # By request. They outlive the reply: outputs may arrive after it, until the idle status.
        self._listening: dict[str, Pending] = {}
        self.arrived: Counter[str] = Counter()

    async def put(
        self,
        channel: str,
        message: dict[str, Any],
        buffers: Sequence[Any] = (),
        handlers: Handlers = NO_HANDLERS,
        *,
        slot: Window | None = None,
        repeatable: bool = False,
    ) -> Pending:
        """Send a message and enter it into the table.

        The caller has taken a ``slot``, if it needs one; the table releases it with the request.
        """
        future = self.life.waiter()
        identity, subshell = message["header"]["msg_id"], message["header"].get("subshell_id")
        pending = Pending(identity, channel, future, slot, subshell, repeatable, handlers)
        if handlers.on_message is not None:
            self._listening[pending.id] = pending
        self.pending[pending.id] = pending
        try:
            await self.way.send(channel, message, buffers)
        except BaseException:
            self._listening.pop(pending.id, None)
            self.forget(pending.id)
            future.cancel()  # otherwise the kernel would still count it as a waiter
            raise
        return pending

    def forget(self, identity: str) -> Pending | None:
        """Remove a request from the table; its reply will count as late."""
        pending = self.pending.pop(identity, None)
        if pending is not None and pending.slot is not None:
            pending.slot.release()
        return pending

    def unlisten(self, on_message: Callable[[Message], object]) -> None:
        """Give no more messages to this function, which an earlier request named."""
        for one in list(self._listening.values()):
            if one.handlers.on_message == on_message:
                del self._listening[one.id]

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
        self._listening.clear()

    def end_outputs(self, last: Pending) -> None:
        """Note the last iopub message of a request, and of those before it on its channel.

        Their own last message may be lost. They would stay in the table for ever.
        """
        for one in list(self._listening.values()):
            earlier = (one.channel, one.subshell) == (last.channel, last.subshell)
            if not one.handlers.lasting and (
                one is last or (earlier and one.id not in self.pending)
            ):
                del self._listening[one.id]
            if one is last:
                return

    def serves(self, subshell: str) -> bool:
        """Return whether a request to this subshell is unanswered, even without a waiter."""
        return any(pending.subshell == subshell for pending in self.pending.values())

    def runs(self, identity: str) -> bool:
        """Return whether the cell of a request has begun, and its reply has not arrived."""
        pending = self.pending.get(identity)
        return pending is not None and pending.begun

    @property
    def queued(self) -> bool:
        """Whether a request of ours may still wait in the queue of the kernel's main thread."""
        pending = self.pending
        return bool(pending) and any(one.slot is self.window for one in pending.values())

    @property
    def in_flight(self) -> int:
        """The number of requests that hold a slot of a window."""
        return self.window.taken + self.subshell_window.taken
