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
5. Completion never depends on iopub alone, which loses messages, nor on a reply that can't come
   any more. When a reply is missing, the kernel is asked: see ``Dispatcher._inquire``, and
   ``_inquire_on_control``.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import weakref
from asyncio import FIRST_COMPLETED as FIRST
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from bridgehead._errors import (
    RESTARTED,
    RESTARTED_MEANWHILE,
    BridgeError,
    KernelRestarted,
    KernelUnresponsive,
    ProtocolError,
    ReplyLost,
    RequestAborted,
    TransportError,
)
from bridgehead._shipped.wire.header import CONTROL_REQUEST, DATA_MESSAGE, EVENT_MESSAGE
from bridgehead._transports.messages import Message, Messages
from bridgehead._transports.state import STATES, KernelState

# Requests in flight at once: the queue's one message, and all that passes by the queue, such as
# operations with ``now=True`` and requests about what stays in the kernel.
WINDOW = 32
# A request that may ask for input has ``allow_stdin`` in its content, and a transport may carry it
# over a connection of its own; so does a question about it.
INPUT = "input"
# In place of a shell, for what a side channel owes: see ``KernelState.side_channel``.
BESIDE = "beside"
END_OF_INPUT = "\x04"  # as an answer, it raises ``EOFError`` in ``input()``
CONTROL = {
    "kernel_info_request",
    "interrupt_request",
    "shutdown_request",
    "debug_request",
    "create_subshell_request",
    "delete_subshell_request",
    "list_subshell_request",
}


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
    slot: bool  # whether it holds a slot of the window; inquiries and control requests do not
    subshell: str | None = None
    repeatable: bool = False  # it may be sent again if the connection breaks
    nbytes: int = 0  # size of the message that was sent, on transports with a size limit
    cut: bool = False  # its connection broke, so its response may arrive incomplete
    buffers: list[Any] = field(default_factory=list)
    due: float = 0.0  # the loop's time from which on the reply is missing; 0 until it is sent
    status: Any = None  # the last one that the kernel published for it: "busy", then "idle"
    begun: bool = False  # the kernel published that the cell begins; a message that may be lost
    handlers: Handlers = NO_HANDLERS

    @property
    def route(self) -> str | None:
        """What keeps its reply in order with others: its subshell, or a connection of its own."""
        return self.subshell if self.handlers.on_input is None else INPUT


REPLY_LOST = ReplyLost(
    "the kernel has answered a later request, so the request or its reply was lost; check what it "
    "changed before you send it again"
)


class Reconnected(TransportError):
    """The connection broke and was made again, to the same kernel. Repeatable requests repeat."""


@contextlib.contextmanager
def _restarted_meanwhile(was_sent: bool) -> Iterator[None]:
    """Say of a restart that the request may have run, if it was sent before."""
    try:
        yield
    except KernelRestarted:
        if was_sent:
            raise KernelRestarted(RESTARTED_MEANWHILE) from None
        raise


class Dispatcher:
    """The requests in flight to one kernel, and the messages that it sends.

    ``send`` sends a message, ``message`` makes a new one, and ``spawn`` runs a task for as long as
    the transport lives. ``control`` says whether the kernel has a control channel, which answers
    while a cell runs.
    """

    def __init__(
        self,
        life: KernelState,
        *,
        send: Callable[[str, dict[str, Any], Sequence[Any]], Awaitable[None]],
        message: Callable[[str, dict[str, Any]], dict[str, Any]],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        control: bool = True,
    ) -> None:
        self._has_control = control
        self._life, self._send, self._message, self._spawn = life, send, message, spawn
        self._timings = life.timings
        # Whether a long reply may take its time on the way, and keep back the replies behind it.
        self.may_be_slow: bool = False
        self.late: int = 0  # replies without a waiting request
        self.retries: int = 0  # of requests that were aborted, or whose connection broke
        self.window: int = WINDOW
        self._slots = asyncio.Semaphore(self.window)
        self._subshell_slots = asyncio.Semaphore(WINDOW)
        self._waiting = 0  # requests that are not sent yet, for a slot or the connection
        self._all_sent = asyncio.Event()
        self.pending: dict[str, Pending] = {}
        # By request. They outlive the reply: outputs may arrive after it, until the idle status.
        self._listening: dict[str, Pending] = {}
        self._streams: weakref.WeakSet[Messages] = weakref.WeakSet()
        self._busy_with = ""
        self._arrived = 0  # messages that arrived on shell
        self._said_idle = False  # on iopub, of its main thread, and not busy since
        self._questions: deque[str] = deque(maxlen=2 * WINDOW)  # no stream shows their messages
        self._inquiries: set[str | None] = set()  # the routes that are being asked about
        self._next_look: asyncio.TimerHandle | None = None
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
        generation = self._life.generation
        slots = self._slots if subshell is None else self._subshell_slots
        pauses = iter(self._timings.abort_pauses)
        was_sent = False
        while True:
            with self._unsent(), _restarted_meanwhile(was_sent):
                await self._take(slots, generation)
                try:
                    self._life.check()
                    if generation != self._life.generation:
                        raise KernelRestarted(RESTARTED)
                except BaseException:
                    slots.release()
                    raise
                message = self._message("execute_request", content)
                if subshell is not None:
                    message["header"]["subshell_id"] = subshell
                try:
                    pending = await self.put(
                        *("shell", message, buffers, handlers), slot=True, repeatable=repeatable
                    )
                except TransportError:
                    await self._life.wait_for_cause()
                    raise
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
            f"{len(self._timings.abort_pauses) + 1} times; it was not executed"
        )

    async def _take(self, slots: asyncio.Semaphore, generation: int) -> None:
        """Take a slot; raise if the kernel becomes unresponsive, which gives none back.

        A kernel that is lost gives back all slots.
        """
        if not slots.locked():
            await slots.acquire()
            return
        self._life.check_responsive()
        taking, lost = asyncio.ensure_future(slots.acquire()), self._life.waiter()
        try:
            await asyncio.wait([taking, lost], return_when=FIRST)
            if not taking.done() and generation == self._life.generation:
                lost.result()
            await taking
        except BaseException:
            if taking.done() and not taking.cancelled():
                slots.release()
            raise
        finally:
            taking.cancel()
            lost.cancel()

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
            pending = await self.put("control", self._message(message_type, content))
        try:
            async with asyncio.timeout(patience):
                if patience is None:
                    await self._inquire_on_control(pending)
                return (await pending.future).content
        finally:
            self.forget(pending.id)
            pending.future.cancel()

    async def seek_sign(self) -> None:
        """Ask for a sign of life on the control channel, if there is one; return after a while."""
        if self._has_control:
            with contextlib.suppress(BridgeError, TimeoutError):
                await self.control("kernel_info_request", {}, self._timings.silence)

    async def answer(self, text: str) -> None:
        """Answer the question for input that the kernel has asked."""
        await self._send("stdin", self._message("input_reply", {"value": text}), ())

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

    def narrow(self, window: int) -> None:
        """Make the window fit the kernel, before anything but the handshake is sent to it."""
        if window < self.window:
            self.window = window
            self._slots = asyncio.Semaphore(max(0, window - self.in_flight))

    def serves(self, subshell: str) -> bool:
        """Return whether a request to this subshell is unanswered, even without a waiter."""
        return any(pending.subshell == subshell for pending in self.pending.values())

    async def wake(self) -> None:
        """Have the kernel's event loop turn, by a request for whose reply no caller waits."""
        with contextlib.suppress(BridgeError):
            self._drop_questions([await self._ask("shell")])

    def runs(self, identity: str) -> bool:
        """Return whether the cell of a request has begun, and its reply has not arrived."""
        pending = self.pending.get(identity)
        return pending is not None and pending.begun

    @property
    def queued(self) -> bool:
        """Whether a request of ours may still wait in the queue of the kernel's main thread."""
        pending = self.pending
        return bool(pending) and any(one.slot and not one.subshell for one in pending.values())

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
        handlers: Handlers = NO_HANDLERS,
        *,
        slot: bool = False,
        repeatable: bool = False,
    ) -> Pending:
        """Send a message and enter it into the table.

        With ``slot``, the caller has acquired a slot, and the table releases it with the request.
        """
        future = self._life.waiter()
        header = message["header"]
        pending = Pending(
            *(header["msg_id"], channel, future, slot, header.get("subshell_id"), repeatable),
            handlers=handlers,
        )
        if handlers.on_message is not None:
            self._listening[pending.id] = pending
        self.pending[pending.id] = pending
        try:
            await self._send(channel, message, buffers)
        except BaseException:
            self._listening.pop(pending.id, None)
            self.forget(pending.id)
            future.cancel()  # otherwise the kernel would still count it as a waiter
            raise
        if slot:
            # Not before: a message may wait, as for the confirmation of a subscription, and the
            # answer to a question says nothing about what is sent behind the question.
            pending.due = asyncio.get_running_loop().time() + self._timings.inquiry_after
            self._look_at(pending.due)
        return pending

    def forget(self, identity: str) -> Pending | None:
        """Remove a request from the table; its reply will count as late."""
        pending = self.pending.pop(identity, None)
        if pending is not None and pending.slot:
            (self._slots if pending.subshell is None else self._subshell_slots).release()
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
        for stream in list(self._streams):
            stream.end()

    # ------------------------------------------------------------ messages that arrive

    def received(self, channel: str, message: dict[str, Any]) -> None:
        """Handle one message; the reader of its channel calls this."""
        self._life.note_responsive()  # any message is a sign of life
        if channel == "iopub":
            in_subshell = bool(message["parent_header"].get("subshell_id"))
            self._on_iopub(Message.parse(message, self._life.trust), in_subshell)
            return
        self._arrived += channel == "shell"
        if message["header"]["msg_type"] == EVENT_MESSAGE:
            listener = self._life.listeners.get(message["content"]["resource"])
            if listener is not None:
                listener.feed(message["content"], message.get("buffers") or [])
            return
        if not isinstance(message["content"], dict):
            raise ProtocolError("the content of a message is not a JSON object")
        parent = message["parent_header"].get("msg_id")
        pending = self.pending.get(parent)
        if pending is None or pending.cut:
            self.late += parent not in self._questions
        elif message["header"]["msg_type"] == "input_request":
            if pending.handlers.on_input is not None:
                pending.handlers.on_input(message["content"])
        elif message["header"]["msg_type"] == DATA_MESSAGE:
            buffers = message.get("buffers") or []
            if pending.handlers.on_chunk is not None and message["content"]:
                if pending.future.done():  # its caller has given up
                    return
                pending.handlers.on_chunk(pending.future, message["content"], buffers)
            else:
                pending.buffers += buffers
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
        on_control = message.parent_type in CONTROL or message.parent_type.endswith(CONTROL_REQUEST)
        off_main_thread = in_subshell or on_control
        stale = message.parent in self._answered and not idle
        if message.type == "shutdown_reply":
            self._life.shut_down = not message.content.get("restart")
        if message.type == "status" and not stale:
            if not off_main_thread and not (self._life.is_lost or self._life.is_unresponsive):
                state = message.content.get("execution_state")
                if state in STATES:
                    self._life.state = state
                self._busy_with = message.parent
            if not off_main_thread:
                self._said_idle = idle
            if pending is not None:
                pending.status = message.content.get("execution_state")
        listening = self._listening.get(message.parent)
        if idle and listening is not None:
            self._end_outputs(listening)
        take = None if listening is None else listening.handlers.on_message
        if take is not None and take(message):
            return
        if self._streams and message.parent not in self._questions:
            for stream in list(self._streams):
                stream.feed(message)

    def _end_outputs(self, last: Pending) -> None:
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

    # ------------------------------------------------------------ the inquiry

    def _look_at(self, time: float) -> None:
        """Look for missing replies at this time of the loop, unless it will be done anyway."""
        if self._next_look is None:
            self._next_look = asyncio.get_running_loop().call_at(time, self._look)

    def _look(self) -> None:
        """Start an inquiry about each shell whose reply is missing; look again later."""
        self._next_look = None
        unanswered = [pending for pending in self.pending.values() if pending.due]
        if not unanswered:
            return
        now = asyncio.get_running_loop().time()
        for pending in unanswered:
            # A kernel that takes one request at a time is not asked while one is on its way.
            idle = pending.status == "idle" or (
                self._said_idle and now - pending.due > self._timings.lost_after
            )
            if pending.due <= now and (self.window > 1 or idle):
                self.inquire(pending.route)
        oldest = min(pending.due for pending in unanswered)
        self._look_at(oldest if oldest > now else now + self._timings.inquiry_after)

    def inquire(self, route: str | None = None) -> None:
        """Ask the kernel whether the requests to one of its shells ran."""
        if route not in self._inquiries and not self._life.is_unresponsive:
            self._inquiries.add(route)
            self._spawn(self._inquire(route))

    def inquire_beside(self) -> None:
        """Ask whether the kernel answers at all, while it owes a reply beside the messages."""
        if BESIDE not in self._inquiries and not self._life.is_unresponsive:
            self._inquiries.add(BESIDE)
            self._spawn(self._inquire_beside())

    async def _inquire(self, route: str | None) -> None:
        """Ask until it is known whether the replies that are missing can still arrive.

        Replies arrive in order. So the answer to a ``kernel_info_request`` proves that the replies
        to the requests before it are lost. It also wakes a kernel that missed an earlier message.
        While the kernel is busy, the question waits with the requests, as long as it takes. There
        is a deadline only while nothing arrives from the kernel and it says that it is idle, or
        does not answer on its control channel either.
        """
        questions: list[tuple[Pending, list[Pending]]] = []  # with the requests before each
        control: list[Pending] = []
        timings = self._timings
        every = pause = timings.inquiry_after
        idle = silent = 0.0
        try:
            while before := self._unanswered(route):
                questions.append((await self._ask("shell", route), before))
                if self._has_control:
                    control.append(await self._ask("control"))
                for _ in range(round(pause / every)):
                    # Seconds are counted by waits: if this program or the machine was stopped, the
                    # kernel still has its time to answer.
                    arrived = self._arrived
                    answers = [question.future for question, _ in questions]
                    await asyncio.wait(answers, timeout=every, return_when=FIRST)
                    for question, requests in questions:
                        if question.future.done():
                            question.future.result()
                            self._fail(requests, REPLY_LOST)
                            return
                    if not self.pending.keys() & {pending.id for pending in before}:
                        return
                    if arrived != self._arrived:
                        idle = silent = 0.0
                    if any(question.status == "idle" for question, _ in questions):
                        idle += every
                        # It is idle after the question, so its answer is lost, or waits behind a
                        # long reply.
                        if idle >= (
                            timings.lost_after if self.may_be_slow else timings.idle_silence
                        ):
                            self._fail(before, _no_answer(idle))
                            return
                    answered = not control or any(one.future.done() for one in control)
                    while answered and control:
                        self.forget(control.pop().id)
                    silent = 0.0 if answered and not self._is_idle(before) else silent + every
                    if silent >= timings.lost_after:
                        if answered:
                            self._fail(before, _no_answer(silent))
                        else:  # for whatever waits behind these requests, too
                            self._life.note_unresponsive(partial(_silent, silent), only_beats=True)
                        return
                pause *= 2
        except BridgeError:
            pass  # the kernel or the connection is lost or unresponsive, and all waiters know
        finally:
            self._inquiries.discard(route)
            self._drop_questions([*(question for question, _ in questions), *control])

    async def _inquire_beside(self) -> None:
        """Ask on control as long as a side channel owes a reply, which no broken socket can lose.

        What it does may take as long as it likes; but a kernel that does not answer on control
        either may never do anything again.
        """
        pause, life = self._timings.inquiry_after, self._life
        try:
            while life.side_channel is not None and life.side_channel.at_work:
                with contextlib.suppress(ReplyLost):  # it has answered a later question
                    await self.control("kernel_info_request", {})
                await asyncio.sleep(pause)
                pause *= 2
        except BridgeError:
            pass  # the kernel or the connection is lost or unresponsive, and all waiters know
        finally:
            self._inquiries.discard(BESIDE)

    async def _inquire_on_control(self, pending: Pending) -> None:
        """Return when a reply on the control channel has arrived; ask the kernel if none does.

        As on shell, the answer to a question proves that earlier replies are lost. No cell delays
        an answer here, so a silent kernel has a deadline from the first question on: a shorter one
        if it is known to be unresponsive.
        """
        questions: list[Pending] = []
        every = pause = self._timings.inquiry_after
        silent = 0.0
        try:
            while True:
                for _ in range(round(pause / every)):
                    waiting = [one.future for one in (pending, *questions)]
                    await asyncio.wait(waiting, timeout=every, return_when=FIRST)
                    if pending.future.done():
                        return
                    for question in questions:
                        if question.future.done():
                            question.future.result()
                            raise copy.copy(REPLY_LOST)
                    timings, known = self._timings, self._life.is_unresponsive
                    if silent >= (timings.silence if known else timings.lost_after):
                        # For all that waits: nothing else is quicker than this channel.
                        self._life.note_unresponsive(partial(_silent, silent), only_beats=True)
                        raise _silent(silent)
                    silent += every if questions else 0
                questions.append(await self._ask("control"))
                pause *= 2
        finally:
            self._drop_questions(questions)

    def _drop_questions(self, questions: list[Pending]) -> None:
        for question in questions:
            self.forget(question.id)
            question.future.cancel()

    async def _ask(self, channel: str, route: str | None = None) -> Pending:
        content = {"allow_stdin": True} if route == INPUT else {}
        message = self._message("kernel_info_request", content)
        if route not in (None, INPUT):
            message["header"]["subshell_id"] = route
        self._questions.append(message["header"]["msg_id"])
        return await self.put(channel, message)

    def _unanswered(self, route: str | None) -> list[Pending]:
        now = asyncio.get_running_loop().time()
        requests = [one for one in self.pending.values() if one.due and one.route == route]
        return requests if any(one.due <= now for one in requests) else []

    def _is_idle(self, requests: list[Pending]) -> bool:
        """Return whether the kernel has said that it does nothing that the requests wait for.

        A kernel without a control channel of ours reports the cells of this bridge only.
        """
        if all(one.status == "idle" for one in requests):
            return True
        if not self._has_control:
            return False
        subshell = requests[0].subshell
        if subshell is None:
            return self._said_idle
        # Nothing but requests of this bridge runs there, and those that ran are in the table.
        own = [one for one in self.pending.values() if one.subshell == subshell]
        return not any(one.status == "busy" for one in own)

    def _fail(self, requests: list[Pending], why: BridgeError) -> None:
        for pending in requests:
            if why is REPLY_LOST and self._busy_with == pending.id and self._life.state == "busy":
                self._life.state = "idle"  # the message that says so was lost, too
            self.settle(pending.id, copy.copy(why))


def _no_answer(seconds: float) -> ReplyLost:
    return ReplyLost(
        f"the kernel does not say that it is busy, and for {seconds:g} s it has replied neither to "
        "the request nor to a question about it; the request may have run"
    )


def _silent(seconds: float) -> KernelUnresponsive:
    return KernelUnresponsive(
        f"the kernel's process lives, but for {seconds:g} s it has answered nothing, not even on "
        "its control channel; the request may still run"
    )
