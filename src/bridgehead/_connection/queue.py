"""The queue of one kernel: operations are sent in the order of their calls.

Rule: whose turn it is, and which requests are sent together. An operation takes its turn when it is
called, before its object is pickled, and holds it until it is done, so one that has to be sent
again keeps its place. An operation that is cancelled before it is sent never runs.

One message of the queue is in flight at a time: no operation can overtake another, and a busy or
stopped kernel has one message to serve instead of a flood. Whose turn comes takes along what is
ready behind it: small requests cross in one batch. A task of the queue carries them, which no
caller's cancel ends. Only a request that finds the queue empty, on a lane that needs no message for
it, is sent by its caller: the task would take half of the time of a small operation (measured). If
that caller gives up while a cell runs, the kernel has its message and the next one.

Not everything takes a turn. An operation with ``now=True`` has ``AtOnce`` in place of one. Requests
about what stays in the kernel, and those on the control channel, are sent by who makes them. The
window of the dispatcher bounds all but those on control.
"""

from __future__ import annotations

import asyncio
import copy
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import replace
from types import TracebackType
from typing import Any, TypeVar

from bridgehead._errors import CLOSED, BridgeClosed, BridgeError, NotSupported
from bridgehead._lanes.base import Lane
from bridgehead._protocol import request as _request
from bridgehead._protocol.payload import EMPTY
from bridgehead._protocol.request import Request
from bridgehead._protocol.response import Response
from bridgehead._transports.base import Transport
from bridgehead._transports.request_table import Reply
from bridgehead._transports.tasks import retrieve_exception, user_call

T = TypeVar("T")

MAX_BATCH = 512  # requests in a message; the kernel serves other clients between two messages


class _CallerLeft(BridgeError):
    """The caller has left; what was sent so far is dropped."""


class Turn:
    """One operation's place in the queue: taken when the block begins, given up when it ends.

    Attributes:
        generation: the connection's, when the turn was taken.
        sent: whether the request may run even if the caller gives up.
    """

    __slots__ = (
        *("_prepared", "_queue", "cell", "generation"),
        *("lane", "outcome", "request", "sent"),
    )

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self.generation: int = queue.transport.life.generation
        self.outcome: asyncio.Future[Any] | None = None
        self.sent: bool = False
        self._prepared = False
        self.lane: Lane | None = None
        self.request: Request | None = None
        self.cell: Callable[[], Awaitable[Reply]] | None = None

    def __enter__(self) -> Turn:
        self._queue.check_wait()
        self._queue.turns[self] = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.outcome is not None:
            self.outcome.cancel()
        self.leave()
        if isinstance(error, BridgeClosed) and not self.sent:  # it says that this was on its way
            error.args = (CLOSED,)

    def leave(self) -> None:
        """Give the place up: what is behind it may be sent."""
        if self._queue.turns.pop(self, self) is None and self._queue.turns:
            self._queue.advance()

    def withdraw(self) -> bool:
        """Have it never sent, unless it was; its caller gets ``CancelledError`` if this is true."""
        if self.sent or self.outcome is None or self.outcome.done():
            return False
        return self.outcome.cancel()

    @property
    def is_left(self) -> bool:
        """Whether its caller waits no more."""
        return self.outcome is None or self.outcome.done()

    @property
    def is_ready(self) -> bool:
        """Whether it may be sent."""
        return self._prepared and not self.is_left

    @property
    def is_abandoned(self) -> bool:
        """Whether it is prepared and will never be sent: its caller is about to leave."""
        return self._prepared and self.is_left

    def _waiter(self) -> asyncio.Future[Any]:
        """Return the future of the outcome, which fails if the kernel is lost."""
        if self.outcome is None or self.outcome.done():
            self.outcome = self._queue.transport.life.waiter()
        return self.outcome

    async def prepare(self, work: Awaitable[T]) -> T:
        """Await what has to be done before the request is sent; fail if the kernel is lost."""
        task, lost = asyncio.ensure_future(work), self._waiter()
        try:
            await asyncio.wait([task, lost], return_when=asyncio.FIRST_COMPLETED)
            if lost.done():
                lost.result()
            return await task
        finally:
            task.add_done_callback(retrieve_exception)  # it may fail as it is cancelled
            task.cancel()

    async def carry(self, lane: Lane, request: Request) -> Response:
        """Have the request sent when its turn comes; return the beginning of its response.

        Raises:
            NotServed: the message was full before this request; nothing was done.
            BridgeError: see ``Lane.carry``.
        """
        response: Response
        if self._queue.has_one and lane.can_carry_now(request.header):
            self.sent = True
            return await lane.carry_now(request)
        report = request.report

        def report_to_caller(done: int, total: int) -> None:
            if self.is_left:
                raise _CallerLeft
            try:
                report(done, total)
            except asyncio.CancelledError:  # it would end the task that carries the request
                self._waiter().cancel()
                raise _CallerLeft from None

        self.lane, self.request = lane, replace(request, report=report_to_caller)
        try:
            response = await self._outcome()
        except asyncio.CancelledError:
            outcome = self.outcome
            if outcome and outcome.done() and not outcome.cancelled() and not outcome.exception():
                self.discard(outcome.result())  # it arrived as the caller gave up
            raise
        # The event loop keeps the response until its next turn. Its request would keep views of
        # the caller's objects until then, and a bytearray with a view cannot grow.
        response.request.report, response.request.payload = report, EMPTY
        self.request = None
        return response

    async def run(self, cell: Callable[[], Awaitable[Reply]]) -> Reply:
        """Have a cell run when its turn comes."""
        self.cell = cell
        reply: Reply = await self._outcome()
        return reply

    async def _outcome(self) -> Any:
        self._queue.transport.life.check()
        outcome = self._waiter()
        self._prepared = True
        self._queue.advance()
        return await outcome

    def send(self) -> None:
        """Note that it is sent now."""
        self._prepared, self.sent = False, True

    def settle(self, outcome: Any) -> None:
        """Give the caller its outcome, or drop it if the caller waits no more."""
        if self.outcome is None or self.outcome.done():
            self.discard(outcome)
        elif isinstance(outcome, BaseException):
            self.outcome.set_exception(outcome)
        else:
            self.outcome.set_result(outcome)

    def discard(self, outcome: Any) -> None:
        """Have the remote part drop the rest of a response that no caller waits for."""
        if isinstance(outcome, BaseException):
            return
        self._queue.transport.dispatcher.late += 1
        if isinstance(outcome, Response) and outcome.is_partial and self.lane is not None:
            self.lane.forget(outcome.request.header)


class AtOnce(Turn):
    """In place of a turn, for an operation that waits for none: its caller sends it."""

    def __enter__(self) -> AtOnce:
        return self

    async def carry(self, lane: Lane, request: Request) -> Response:
        self.sent = True
        return await lane.carry(request)


class Queue:
    """The turns of one kernel's operations, in order, and the message that is in flight."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.turns: OrderedDict[Turn, None] = OrderedDict()
        self._carrying: asyncio.Task[None] | None = None

    def check_wait(self) -> None:
        """Raise ``NotSupported`` if the caller may not wait for what the kernel runs."""
        call = user_call()
        if call is not None and call.blocked is self:
            raise NotSupported(
                "a function that the running cell may wait for (on_input=, or a callback with "
                "when_full='wait') asked the same bridge for something that waits for the cell; "
                "use now=True, or ask outside of the function"
            )

    @property
    def has_one(self) -> bool:
        """Whether there is one turn, and no message is in flight."""
        return self._carrying is None and len(self.turns) == 1

    def advance(self) -> None:
        """Send the first operation, if it is ready, with those behind it that fit."""
        first = next(iter(self.turns), None)
        if first is not None and first.is_ready and self._carrying is None:
            self._carrying = self.transport.spawn(self._carry())

    def _batch(self) -> list[Turn]:
        """Return the operations of the next message; none if the first is not ready."""
        batch: list[Turn] = []
        nbytes = 0
        for turn in self.turns:
            if turn.is_abandoned:
                continue
            if not turn.is_ready or len(batch) == MAX_BATCH:
                break
            request, lane = turn.request, turn.lane
            if request is None or lane is None or not _may_batch(request):
                return batch or [turn]  # it crosses alone
            nbytes += request.nbytes
            if batch and (lane is not batch[0].lane or nbytes > lane.chunk):
                break
            batch.append(turn)
        return batch

    async def _carry(self) -> None:
        """Carry one message to the kernel; give each caller its outcome."""
        turns = self._batch()  # what became ready while this task was about to begin joins
        outcomes: list[Any] = []
        for turn in turns:
            turn.send()
        try:
            outcomes = await self._send(turns) if turns else []
        except asyncio.CancelledError:  # the transport closes, which every caller knows
            raise
        except BaseException as error:
            outcomes = [copy.copy(error) if len(turns) > 1 else error for _ in turns]
            if not isinstance(error, Exception):  # from ``report``, which runs here
                raise
        finally:
            self._carrying = None
            for turn, outcome in zip(turns, outcomes, strict=False):
                turn.settle(outcome)
        self.advance()  # the first operation may have left meanwhile

    async def _send(self, turns: list[Turn]) -> list[Any]:
        first = turns[0]
        if first.cell is not None:
            return [await first.cell()]
        assert first.lane is not None
        requests = [turn.request for turn in turns if turn.request is not None]
        if len(requests) == 1:
            return [await first.lane.carry(requests[0])]
        return list(await first.lane.carry_batch(requests))


def _may_batch(request: Request) -> bool:
    return not request.delivered and _request.may_batch(request.header)
