"""Transports carry Jupyter messages to one kernel and back.

Rule: a transport knows messages and connections, and nothing of objects or lanes. What all
transports share is here: the table of requests in flight and their window, the kernel's life,
and who listens to iopub. A transport of its own adds how a message is sent, and calls
``received``, ``gone`` and ``back``.

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
import contextlib
import uuid
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from bridgehead._errors import (
    BridgeClosed,
    BridgeError,
    KernelRestarted,
    ProtocolError,
    ReplyLost,
    RequestAborted,
    TransportError,
)
from bridgehead._shipped.wire.header import DATA_MESSAGE, NEWS_MESSAGE, Header
from bridgehead._transports.dispatch import Pending, Reconnected, Reply
from bridgehead._transports.messages import Message, Messages
from bridgehead._transports.tasks import noted, to_the_end

T = TypeVar("T")

WINDOW = 32
LARGEST = 32 << 20  # bytes of frames in a message, where the wire sets no limit of its own
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
STATES = ("starting", "busy", "idle")  # of those that a bridge is in, what a kernel may say
SILENCE = 5.0  # s without a heartbeat; one missed beat of 1 s is no more than a loaded machine
EXPLAINED_IN = 3.0  # s after which it is known whether a kernel that hung up died or restarted
INQUIRY_AFTER = 0.5  # s between an idle and the question where its reply is


class Listener(Protocol):
    """Who is told what the loader sends by itself."""

    def feed(self, content: dict[str, Any], buffers: list[Any]) -> None: ...

    def renew(self) -> None: ...

    def end(self) -> None: ...


class Beside(Protocol):
    """A connection to the kernel beside its messages."""

    @property
    def at_work(self) -> bool: ...

    def tell(self, why: Callable[[], BridgeError]) -> None: ...


class Many(Protocol):
    """What reaches several kernels with one message."""

    def broadcast(
        self, engines: Sequence[Any], expression: str, parts: Sequence[Any]
    ) -> list[asyncio.Future[Header]]: ...


class Transport(ABC):
    """One kernel's messages. Lives in the event loop that opened it."""

    name: str
    digest: str = "sha256"  # where the wire leaves the machine
    ours: bool = True  # the kernel is this user's, on this machine
    connection_file: str | None = None
    url: str | None = None  # of the server, and the kernel's id there
    kernel_id: str | None = None
    direct: bool = True  # a socket may lead to the kernel's process, where it is ours
    binary: bool = True  # messages may carry buffers
    resumes: bool = False  # a connection that broke is made anew, to the same kernel
    largest: int = LARGEST  # bytes of frames that one message may carry to the kernel
    largest_back: int = LARGEST  # and those of one request's answer
    called: str = ""  # what its owner knows the kernel by, where it has a name of its own
    unasked: bool = True  # the loader may send what nobody asked for
    many: Many | None = None  # the same one for all kernels that a message of it can reach

    def __init__(self) -> None:
        self.generation: int = 0  # grows whenever another kernel may be there
        self.kernel_info: dict[str, Any] = {}
        self.late: int = 0  # replies nobody waited for
        self.bad = 0  # messages that could not be read
        self.state: str = "starting"
        self._closing: asyncio.Future[None] | None = None
        self.window: int = WINDOW
        self._slots = asyncio.Semaphore(self.window)
        self._slots_aside = asyncio.Semaphore(WINDOW)  # a subshell's
        self._pending: dict[str, Pending] = {}
        self._promises: set[asyncio.Future[Any]] = set()
        self.listeners: dict[str, Listener] = {}  # for what comes without being asked, by id
        self.beside: Beside | None = None
        self._tails: dict[str, Callable[[Message], object]] = {}  # outlive the reply, until idle
        self._streams: weakref.WeakSet[Messages] = weakref.WeakSet()
        self._busy_with = ""
        self._answered: deque[str] = deque(maxlen=2 * WINDOW)
        self._why_gone: Callable[[], BridgeError] | None = None
        self._why_silent: Callable[[], BridgeError] | None = None
        self._heard = asyncio.Event()
        self._shut_down = False  # somebody asked the kernel to end
        self._restart: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    # ------------------------------------------------------------ for those above

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
        generation = self.generation
        slots = self._slots if subshell is None else self._slots_aside
        pauses = iter(ABORT_PAUSES)
        while True:
            await slots.acquire()
            try:
                self.check()
                if generation != self.generation:
                    raise KernelRestarted("the kernel was restarted meanwhile; this was not sent")
            except BaseException:
                slots.release()
                raise
            message = self.message("execute_request", content)
            if subshell is not None:
                message["header"]["subshell_id"] = subshell
            try:
                pending = await self.put(
                    "shell", message, buffers, on_message, slot=True, repeatable=repeatable
                )
            except TransportError:
                await self.explained()
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

    async def explained(self) -> None:
        """The connection is down: why is known in a moment, and raised here."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EXPLAINED_IN):
                await self.promise()

    def promise(self) -> asyncio.Future[Any]:
        """A future that fails when the kernel goes, or the way to it."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        future.add_done_callback(noted)
        future.add_done_callback(self._promises.discard)
        self._promises.add(future)
        return future

    async def control(
        self, message_type: str, content: dict[str, Any], patience: float | None = None
    ) -> dict[str, Any]:
        """Ask on the control channel, which answers even while a cell runs; gives the content.

        ``TimeoutError`` after ``patience`` seconds.
        """
        asked = await self.put("control", self.message(message_type, content))
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

    def check(self) -> None:
        """Raise if there is no kernel to send to."""
        if self._why_gone is not None:
            raise self._why_gone()

    @property
    def is_xeus(self) -> bool:
        """Whether the kernel is built on xeus, which is not ipykernel in ways that can be told."""
        return "xeus" in str(self.kernel_info.get("implementation"))

    def narrow(self) -> None:
        """Have the window fit the kernel, before anything is sent to it."""
        if self.is_xeus and self.window != 1:
            # Of two messages of some MiB that come together it reads one (0.19, measured).
            self.window = 1
            self._slots = asyncio.Semaphore(self.window)

    @property
    def is_gone(self) -> bool:
        """Whether there is no kernel to send to."""
        return self._why_gone is not None

    @property
    def is_silent(self) -> bool:
        """Whether the kernel showed no sign of life for a while."""
        return self._why_silent is not None

    def serves(self, subshell: str) -> bool:
        """Whether a subshell has not answered yet, be it that nobody waits for it any more."""
        return any(pending.subshell == subshell for pending in self._pending.values())

    @property
    def queued(self) -> bool:
        """Whether a request of ours may still stand in the queue of the kernel's main thread."""
        return any(pending.slot and not pending.subshell for pending in self._pending.values())

    @property
    def waited_for(self) -> bool:
        """Whether anybody waits for this kernel."""
        beside = self.beside is not None and self.beside.at_work
        return bool(self._promises or self._pending or beside)

    @property
    def in_flight(self) -> int:
        """Requests that hold a place in the window."""
        return sum(pending.slot for pending in self._pending.values())

    # ------------------------------------------------------------ for the transport of its own

    @abstractmethod
    async def send(self, channel: str, message: dict[str, Any], buffers: Sequence[Any]) -> None:
        """Hand one message to the wire, without waiting for the kernel."""

    def message(self, message_type: str, content: dict[str, Any]) -> dict[str, Any]:
        """A new message, with an id that is ours alone; a wire of Jupyter's adds a session."""
        header = {"msg_id": uuid.uuid4().hex, "msg_type": message_type}
        return {"header": header, "content": content}

    @abstractmethod
    async def interrupt(self) -> None: ...

    async def restart(self, timeout: float) -> None:
        """Have the kernel's process replaced; two at once are one."""
        if self._restart is None or self._restart.done():
            self._restart = self.spawn(self.replace(timeout))
        try:
            # It is the transport's own: whoever gives up waiting leaves no half a restart.
            await asyncio.shield(self._restart)
        except asyncio.CancelledError:
            self.check()  # closed meanwhile
            raise

    @abstractmethod
    async def replace(self, timeout: float) -> None:
        """Replace the process, and wait until the next one answers; for ``restart``."""

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

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a coroutine, at most for as long as the transport lives."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(noted)
        return task

    def received(self, channel: str, message: dict[str, Any]) -> None:
        """Take one message off the wire; called by the reader of its channel."""
        if channel == "iopub":
            # What runs in a subshell says nothing of whether the main thread is busy.
            aside = bool(message["parent_header"].get("subshell_id"))
            self._on_iopub(Message.parse(message), aside)
            return
        if message["header"]["msg_type"] == NEWS_MESSAGE:
            listener = self.listeners.get(message["content"]["watch"])
            if listener is not None:
                listener.feed(message["content"], message.get("buffers") or [])
            return
        if not isinstance(message["content"], dict):
            raise ProtocolError("a message's content is no object")
        parent = message["parent_header"].get("msg_id")
        pending = self._pending.get(parent)
        if pending is None or pending.cut:
            self.late += 1
        elif message["header"]["msg_type"] == DATA_MESSAGE:
            pending.buffers += message.get("buffers") or ()
        elif message["header"]["msg_type"].endswith("_reply"):
            if pending.future.done():
                self.late += 1
            self._answered.append(parent)
            if self._busy_with in (parent, "") and self.state == "busy":
                self.state = "idle"  # the message that says so is still on its way
            self._settle(parent, Reply(parent, message["content"], pending.buffers))

    def gone(self, why: Callable[[], BridgeError], state: str) -> None:
        """The kernel, or the way to it, is no more: tell everybody who waits."""
        if self.state == "closed":
            return
        self.generation += 1
        self._why_gone, self._why_silent, self.state = why, None, state
        self._heard.set()
        self._tell(why)
        for identity in list(self._pending):
            self.forget(identity)
        self._tails.clear()
        listeners: list[Listener | Messages] = [*self._streams, *self.listeners.values()]
        for listener in listeners:
            listener.end()

    def back(self) -> None:
        """A kernel answers again."""
        if self.state != "closed":
            self._why_gone, self._why_silent, self.state = None, None, "idle"
            self._shut_down = False

    def silent(self, why: Callable[[], BridgeError]) -> None:
        """The kernel shows no sign of life: tell everybody who waits; it may be ``heard`` again.

        What is in flight stays in the table: it may run yet, and its reply come late.
        """
        if self._why_gone is None and self._why_silent is None:
            self._why_silent, self.state = why, "unresponsive"
            self._heard.clear()
            self._tell(why)

    def heard(self) -> None:
        """The kernel, silent for a while, shows a sign of life."""
        if self._why_silent is not None:
            self._why_silent, self.state = None, "busy"  # iopub tells when it is idle
            self._heard.set()

    async def answering(self) -> None:
        """Wait a while for a kernel that is silent; raise if it stays so, or is gone."""
        self.check()
        if self._why_silent is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SILENCE):
                    await self._heard.wait()
        self.check()
        if self._why_silent is not None:
            raise self._why_silent()

    def _tell(self, why: Callable[[], BridgeError]) -> None:
        waiting = [*self._promises, *(pending.future for pending in self._pending.values())]
        for future in waiting:
            if not future.done():
                future.set_exception(why())
        if self.beside is not None:
            self.beside.tell(why)

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
        future = asyncio.get_running_loop().create_future()
        future.add_done_callback(noted)
        header = message["header"]
        pending = Pending(header["msg_id"], future, slot, header.get("subshell_id"), repeatable)
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
            (self._slots if pending.subshell is None else self._slots_aside).release()
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

    def _on_iopub(self, message: Message, aside: bool) -> None:
        pending = self._pending.get(message.parent)
        idle = message.type == "status" and message.content.get("execution_state") == "idle"
        # Neither does what is asked on the control channel, nor what is told late of a request
        # whose reply is here.
        aside = aside or message.parent_type in CONTROL
        stale = message.parent in self._answered and not idle
        if message.type == "shutdown_reply":
            self._shut_down = not message.content.get("restart")
        if message.type == "status" and not stale:
            if not aside and self._why_gone is None and self._why_silent is None:
                state = message.content.get("execution_state")
                if state in STATES:
                    self.state = state
                self._busy_with = message.parent
            if idle and pending is not None and pending.slot:
                loop = asyncio.get_running_loop()
                loop.call_later(INQUIRY_AFTER, self._inquire, message.parent)
        tail = self._tails.pop(message.parent, None) if idle else self._tails.get(message.parent)
        if tail is not None and tail(message):
            return
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
