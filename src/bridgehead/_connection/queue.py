"""The queue of one kernel: operations are sent in the order of their calls.

Rule: which operation is sent next, and which ones are sent with it. One message is in flight at a
time, so no operation can overtake one that has to be sent again, and a busy or stopped kernel has
one message to serve instead of a flood. Small requests that collect meanwhile go in one batch.

An operation takes its turn when it is called, before its object is pickled. An operation that is
cancelled before it is sent leaves the queue and never runs. An operation that has to be sent
again keeps the turn that it had.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

from bridgehead._errors import BridgeClosed, BridgeError
from bridgehead._lanes.base import Lane, Request
from bridgehead._protocol import request as _request
from bridgehead._protocol.response import PartialResponse
from bridgehead._transports.base import Transport
from bridgehead._transports.dispatch import Reply

T = TypeVar("T")

MAX_BATCH = 512  # requests in a message; the kernel serves other clients between two messages


class Turn:
    """One operation's place in the queue; its outcome fails at once if the kernel is lost."""

    def __init__(self, outcome: asyncio.Future[Any], number: int) -> None:
        self.outcome = outcome
        self.number = number
        self.sent = False  # if so, the request may run even if the caller gives up
        self.lane: Lane | None = None
        self.request: Request | None = None
        self.cell: Callable[[], Awaitable[Reply]] | None = None

    @property
    def prepared(self) -> bool:
        """Whether it can be sent."""
        return self.request is not None or self.cell is not None

    async def prepare(self, work: Coroutine[Any, Any, T]) -> T:
        """Await what has to be done before the request is sent; fail if the kernel is lost."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait([task, self.outcome], return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                self.outcome.result()
            return await task
        finally:
            task.cancel()


class Queue:
    """The turns of one kernel's operations, and the task that sends them."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._turns: deque[Turn] = deque()  # sorted by number
        self._numbers = itertools.count()
        self._changed = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None
        self._caller_sends = False  # an operation is sent by its caller, without the task

    @contextlib.contextmanager
    def turn(self, number: int | None = None) -> Iterator[Turn]:
        """Take a turn at the end of the queue, or, for a second attempt, turn ``number`` again.

        Leaving the block gives the turn up.
        """
        if number is None:
            turn, ahead = (
                Turn(self._transport.life.waiter(), next(self._numbers)),
                len(self._turns),
            )
        else:
            turn = Turn(self._transport.life.waiter(), number)
            ahead = sum(other.number < number for other in self._turns)
        self._turns.insert(ahead, turn)
        try:
            yield turn
        finally:
            turn.outcome.cancel()
            if not turn.sent:  # frees what it would have sent, at once
                with contextlib.suppress(ValueError):
                    self._turns.remove(turn)
            self._changed.set()

    @property
    def is_empty(self) -> bool:
        """Whether the next operation would be the first."""
        return not self._turns and self._serving is None and not self._caller_sends

    @contextlib.contextmanager
    def without_task(self) -> Iterator[int]:
        """Let the caller send an operation that found the queue empty, without a task.

        Others wait until the block ends. Yields the number of the turn that it would have had.
        """
        self._caller_sends = True
        try:
            yield next(self._numbers)
        finally:
            self._caller_sends = False
            if self._turns and self._serving is None:
                self._serving = self._transport.spawn(self._serve())

    async def carry(self, turn: Turn, lane: Lane, request: Request) -> PartialResponse:
        """Have the request sent when its turn comes; return the beginning of its response."""
        report = request.report

        def report_to_caller(done: int, total: int) -> None:
            if turn.outcome.done():
                raise _CallerLeft
            try:
                report(done, total)
            except asyncio.CancelledError:  # it would end the task that serves the queue
                turn.outcome.cancel()
                raise _CallerLeft from None

        request.report = report_to_caller
        turn.lane, turn.request = lane, request
        try:
            response: PartialResponse = await self._outcome(turn)
        except asyncio.CancelledError:
            outcome = turn.outcome
            if outcome.done() and not outcome.cancelled() and outcome.exception() is None:
                self._discard(turn, outcome.result())  # it arrived as the caller gave up
            raise
        request.report = report
        return response

    async def run(self, turn: Turn, cell: Callable[[], Awaitable[Reply]]) -> Reply:
        """Have a cell run when its turn comes."""
        turn.cell = cell
        reply: Reply = await self._outcome(turn)
        return reply

    async def _outcome(self, turn: Turn) -> Any:
        self._transport.life.check()
        self._changed.set()
        if self._serving is None and not self._caller_sends:
            self._serving = self._transport.spawn(self._serve())
        return await turn.outcome

    # ------------------------------------------------------------ serving

    async def _serve(self) -> None:
        try:
            while self._turns:
                first = self._turns[0]
                if first.outcome.done():
                    self._turns.popleft()
                elif first.prepared:
                    await self._send(self._next())
                    # An operation that has to be sent again takes its turn back before the next
                    # one is sent.
                    await asyncio.sleep(0)
                else:
                    self._changed.clear()
                    await self._changed.wait()
        except asyncio.CancelledError:
            for turn in self._turns:
                _settle(turn, BridgeClosed("this bridge was closed"))
            raise
        finally:
            self._serving = None

    def _next(self) -> list[Turn]:
        """Take the first turn out of the queue, with those behind it that fit in one batch."""
        first = self._turns.popleft()
        batch, lane = [first], first.lane
        if first.request is None or not _may_batch(first.request) or lane is None:
            return batch
        nbytes = first.request.nbytes
        while self._turns and len(batch) < MAX_BATCH:
            turn = self._turns[0]
            if not turn.outcome.done():
                if turn.request is None or turn.lane is not lane or not _may_batch(turn.request):
                    break
                nbytes += turn.request.nbytes
                if nbytes > lane.chunk:
                    break
                batch.append(turn)
            self._turns.popleft()
        return batch

    async def _send(self, turns: list[Turn]) -> None:
        for turn in turns:
            turn.sent = True
        try:
            outcomes = await self._carry_all(turns)
        except asyncio.CancelledError:
            for turn in turns:
                _settle(turn, BridgeClosed("this bridge was closed"))
            raise
        except Exception as error:  # noqa: BLE001 - each caller gets it, whatever it is
            outcomes = [copy.copy(error) if len(turns) > 1 else error for _ in turns]
        unserved = []
        for turn, outcome in zip(turns, outcomes, strict=True):
            if outcome is None:
                turn.sent = False
                unserved.append(turn)
            elif not _settle(turn, outcome):
                self._discard(turn, outcome)
        self._turns.extendleft(reversed(unserved))

    async def _carry_all(self, turns: list[Turn]) -> list[Any]:
        first = turns[0]
        if first.cell is not None:
            return [await first.cell()]
        assert first.lane is not None
        if len(turns) == 1:
            assert first.request is not None
            return [await first.lane.carry(first.request)]
        requests = [turn.request for turn in turns if turn.request is not None]
        return list(await first.lane.carry_batch(requests))

    def _discard(self, turn: Turn, outcome: Any) -> None:
        """Have the remote part drop the rest of a response that no caller waits for."""
        if isinstance(outcome, BaseException):
            return
        self._transport.dispatcher.late += 1
        if turn.lane is None or turn.request is None or not isinstance(outcome, PartialResponse):
            return
        if outcome.inbox.received < outcome.inbox.total:
            turn.lane.forget(turn.request.header)


class _CallerLeft(BridgeError):
    """The caller has left; what was sent so far is dropped."""


def _may_batch(request: Request) -> bool:
    return not request.delivered and _request.may_batch(request.header)


def _settle(turn: Turn, outcome: Any) -> bool:
    """Give the caller its outcome; return whether the caller still waits for it."""
    if turn.outcome.done():
        return False
    if isinstance(outcome, BaseException):
        turn.outcome.set_exception(outcome)
    else:
        turn.outcome.set_result(outcome)
    return True
