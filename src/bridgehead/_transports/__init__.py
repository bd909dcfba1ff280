"""Transports carry Jupyter messages to one kernel and back.

Rule: a transport knows messages and connections, and nothing of objects or lanes. What all
transports share is here: the table of requests in flight, their window and their order, the
kernel's life, and who listens to iopub. A transport of its own adds how a message is sent,
and calls ``received``, ``gone`` and ``back``.

Laws of the dispatcher, each of which was broken once and cost messages:

1. One reader per channel, for as long as the bridge lives; its receive is never cancelled per
   request. Replies find their request by the parent's id; what nobody waits for is counted.
2. At most ``WINDOW`` requests are in flight. A slot is free again when the reply is here, not
   when the caller gave up: about 4,000 queued requests wedge ipykernel 7.4 for good.
3. Requests are sent in the order in which they were asked for, and never to another kernel
   than the one that was there when they were.
4. ``aborted`` means not executed: tried again before anything later, then told.
5. Completion never depends on iopub alone, which loses messages. An ``idle`` without a reply
   starts an inquiry; only a reply to a later request proves that ours is lost.
"""

from __future__ import annotations

import asyncio
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import anyio

from bridgehead._errors import (
    BridgeClosed,
    BridgeError,
    KernelRestarted,
    ReplyLost,
    RequestAborted,
)
from bridgehead._transports.messages import Message, Messages
from bridgehead._transports.turns import Turns
from bridgehead._wire import DATA_MESSAGE

WINDOW = 32
ABORT_PAUSES = (0.02, 0.04, 0.08, 0.16, 0.32, 0.64)  # s; 24 ms after an abort 1 of 30 is aborted
CONTROL = {"kernel_info_request", "interrupt_request", "shutdown_request", "debug_request"}
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
    buffers: list[Any] = field(default_factory=list)
    inquired: bool = False


class Transport(ABC):
    """One kernel's messages. Lives in the event loop that opened it."""

    name: str
    digest: str = "sha256"  # where the wire leaves the machine
    connection_file: str | None = None

    def __init__(self) -> None:
        self.turns = Turns()
        self.generation = 0  # grows whenever another kernel may be there
        self.kernel_info: dict[str, Any] = {}
        self.late = 0  # replies nobody waited for
        self.bad = 0  # messages that could not be read
        self.state = "starting"
        self._closing: asyncio.Future[None] | None = None
        self._slots = asyncio.Semaphore(WINDOW)
        self._pending: dict[str, Pending] = {}
        self._tails: dict[str, Callable[[Message], None]] = {}  # outlive the reply, until idle
        self._streams: weakref.WeakSet[Messages] = weakref.WeakSet()
        self._busy_with = ""
        self._answered: deque[str] = deque(maxlen=2 * WINDOW)
        self._why_gone: Callable[[], BridgeError] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------ for those above

    async def request(
        self,
        content: dict[str, Any],
        buffers: Sequence[Any] = (),
        *,
        message_type: str = "execute_request",
        ordered: bool = True,
        prepare: Callable[[], Awaitable[None]] | None = None,
        on_message: Callable[[Message], None] | None = None,
    ) -> Reply:
        """Send one shell request and wait for its reply.

        ``prepare`` runs when it is this request's turn, ahead of the sending; what it sends
        itself is sent with ``ordered=False``. Cancelling abandons the reply and disturbs
        nobody; if the request was sent, it may still run.

        Raises:
            RequestAborted: it was aborted each time it was tried; it did not run.
            BridgeError: whatever ended the kernel or the connection meanwhile.
        """
        generation, number = self.generation, self.turns.draw()
        try:
            for pause in (*ABORT_PAUSES, None):
                async with self.turns.take(number) if ordered else nullcontext():
                    if prepare is not None:
                        await prepare()
                        prepare = None
                    pending = await self._post(
                        generation, message_type, content, buffers, on_message
                    )
                reply = await pending.future
                if reply.content.get("status") not in ("aborted", "abort"):
                    return reply
                if pause is not None:
                    if ordered:
                        self.turns.again(number)
                    await asyncio.sleep(pause)
        finally:
            self.turns.done(number)
        raise RequestAborted(
            f"another client's failing cell aborted the request {len(ABORT_PAUSES) + 1} times; "
            "it was not executed"
        )

    def messages(self) -> Messages:
        """Everything on iopub from now on."""
        stream = Messages()
        self._streams.add(stream)
        return stream

    def check(self) -> None:
        """Raise if there is no kernel to send to."""
        if self._why_gone is not None:
            raise self._why_gone()

    @property
    def in_flight(self) -> int:
        """Requests that hold a place in the window."""
        return sum(pending.slot for pending in self._pending.values())

    # ------------------------------------------------------------ for the transport of its own

    @abstractmethod
    async def send(self, channel: str, message: dict[str, Any], buffers: Sequence[Any]) -> None:
        """Hand one message to the wire, without waiting for the kernel."""

    @abstractmethod
    def message(self, message_type: str, content: dict[str, Any]) -> dict[str, Any]:
        """A new message, with an id and a session that are ours alone."""

    @abstractmethod
    async def interrupt(self) -> None: ...

    @abstractmethod
    async def restart(self, timeout: float) -> None: ...

    async def aclose(self) -> None:
        """Close to the end, whoever cancels whom meanwhile; may be called again."""
        self._closing = self._closing or asyncio.ensure_future(self.close())
        await to_the_end(self._closing)

    async def close(self) -> None:
        """End everything this transport started; for ``aclose``."""
        self.gone(lambda: BridgeClosed("this bridge was closed"), "closed")
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine, at most for as long as the transport lives."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_noted)
        return task

    def received(self, channel: str, message: dict[str, Any]) -> None:
        """Take one message off the wire; called by the reader of its channel."""
        if channel == "iopub":
            self._on_iopub(Message.parse(message))
            return
        parent = message["parent_header"].get("msg_id")
        pending = self._pending.get(parent)
        if pending is None:
            self.late += 1
        elif message["header"]["msg_type"] == DATA_MESSAGE:
            pending.buffers += message.get("buffers") or ()
        elif message["header"]["msg_type"].endswith("_reply"):
            if pending.future.done():
                self.late += 1
            self._answered.append(parent)
            if parent == self._busy_with and self.state == "busy":
                self.state = "idle"  # the message that says so is still on its way
            self._settle(parent, Reply(parent, message["content"], pending.buffers))

    def gone(self, why: Callable[[], BridgeError], state: str) -> None:
        """The kernel, or the way to it, is no more: tell everybody who waits."""
        if self.state == "closed":
            return
        self._why_gone, self.state = why, state
        self.generation += 1
        for identity in list(self._pending):
            self._settle(identity, why())
        self._tails.clear()
        for stream in list(self._streams):
            stream.end()

    def back(self) -> None:
        """A kernel answers again."""
        if self.state != "closed":
            self._why_gone, self.state = None, "idle"

    # ------------------------------------------------------------ the table

    async def _post(
        self,
        generation: int,
        message_type: str,
        content: dict[str, Any],
        buffers: Sequence[Any],
        on_message: Callable[[Message], None] | None,
    ) -> Pending:
        await self._slots.acquire()
        try:
            self.check()
            if generation != self.generation:
                raise KernelRestarted(
                    "the kernel was restarted while this waited for its turn; it was not sent"
                )
        except BaseException:
            self._slots.release()
            raise
        message = self.message(message_type, content)
        return await self.put("shell", message, buffers, on_message, slot=True)

    async def put(
        self,
        channel: str,
        message: dict[str, Any],
        buffers: Sequence[Any] = (),
        on_message: Callable[[Message], None] | None = None,
        *,
        slot: bool = False,
    ) -> Pending:
        """Send a message and enter it into the table; ``slot`` gives back the one it brought."""
        future = asyncio.get_running_loop().create_future()
        future.add_done_callback(_noted)
        pending = Pending(message["header"]["msg_id"], future, slot)
        if on_message is not None:
            self._tails[pending.id] = on_message
        self._pending[pending.id] = pending
        try:
            await self.send(channel, message, buffers)
        except BaseException:
            self._tails.pop(pending.id, None)
            self.forget(pending.id)
            raise
        return pending

    def forget(self, identity: str) -> Pending | None:
        """Strike a request off the table; its reply will be one that nobody waits for."""
        pending = self._pending.pop(identity, None)
        if pending is not None and pending.slot:
            self._slots.release()
        return pending

    def _settle(self, identity: str, outcome: Reply | BridgeError) -> None:
        pending = self.forget(identity)
        if pending is None or pending.future.done():
            return
        if isinstance(outcome, Reply):
            pending.future.set_result(outcome)
        else:
            pending.future.set_exception(outcome)

    # ------------------------------------------------------------ iopub

    def _on_iopub(self, message: Message) -> None:
        pending = self._pending.get(message.parent)
        idle = message.type == "status" and message.content.get("execution_state") == "idle"
        # What is asked on the control channel says nothing of whether the main thread is busy.
        # Nor does what is told late of a request whose reply is here.
        stale = message.parent in self._answered and not idle
        if message.type == "status" and message.parent_type not in CONTROL and not stale:
            if self._why_gone is None:
                self.state = str(message.content.get("execution_state", self.state))
                self._busy_with = message.parent
            if idle and pending is not None and pending.slot:
                loop = asyncio.get_running_loop()
                loop.call_later(INQUIRY_AFTER, self._inquire, message.parent)
        tail = self._tails.pop(message.parent, None) if idle else self._tails.get(message.parent)
        if tail is not None:
            tail(message)
        for stream in list(self._streams):
            stream.feed(message)

    def _inquire(self, identity: str) -> None:
        """The kernel went idle, the reply isn't here: ask something whose reply comes after."""
        pending = self._pending.get(identity)
        if pending is not None and not pending.inquired and self._why_gone is None:
            pending.inquired = True
            self.spawn(self._inquiry(identity))

    async def _inquiry(self, identity: str) -> None:
        try:
            fence = await self.put("shell", self.message("kernel_info_request", {}))
            await fence.future
        except BridgeError:
            return
        self._settle(identity, ReplyLost("the kernel is done, but its reply never came"))


async def to_the_end(work: asyncio.Future[None]) -> None:
    """Await what must not be left half done, whoever cancels whom meanwhile."""
    cancelled = False
    with anyio.CancelScope(shield=True):
        while not work.done():
            try:
                await asyncio.wait([work])
            except asyncio.CancelledError:
                cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    work.result()


def _noted(done: asyncio.Future[Any]) -> None:
    """Whoever waits for it is told; nobody has to, or may have given up: not "never retrieved"."""
    if not done.cancelled():
        done.exception()
