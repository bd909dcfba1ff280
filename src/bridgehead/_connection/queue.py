"""The queue before one kernel: operations cross in the order of their calls.

Rule: who goes next, and who goes along. One request is on its way at a time, so nothing can
overtake what has to be sent again, and a busy or stopped kernel finds one request at its
door instead of a flood. Small ones that pile up behind it cross together in one message.

A place is taken when an operation is called, before its object is pickled; whoever leaves
before it was sent takes it out of the queue, and it never runs. What was refused and is to be
sent again has the place that it had.
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

MAX_BATCH = 512  # requests in a message; a kernel that serves others gets to them in between


class Turn:
    """One operation in the queue. Its outcome fails at once when the kernel goes."""

    def __init__(self, outcome: asyncio.Future[Any], number: int) -> None:
        self.outcome = outcome
        self.number = number
        self.sent = False  # what was sent may run, whoever gives up waiting
        self.lane: Lane | None = None
        self.request: Request | None = None
        self.cell: Callable[[], Awaitable[Reply]] | None = None

    @property
    def prepared(self) -> bool:
        return self.request is not None or self.cell is not None

    async def prepare(self, work: Coroutine[Any, Any, T]) -> T:
        """Await what has to be done first, unless the kernel goes meanwhile."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait([task, self.outcome], return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                self.outcome.result()
            return await task
        finally:
            task.cancel()


class Queue:
    """The places before one transport's kernel, and who serves them."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._turns: deque[Turn] = deque()  # by their numbers
        self._numbers = itertools.count()
        self._changed = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None
        self._fast_path = False  # somebody serves itself

    @contextlib.contextmanager
    def turn(self, number: int | None = None) -> Iterator[Turn]:
        """Take the last place, or again the one of this number; leaving the block gives it up."""
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
            if not turn.sent:  # nor does what it would have sent stay here till its turn
                with contextlib.suppress(ValueError):
                    self._turns.remove(turn)
            self._changed.set()

    @property
    def is_empty(self) -> bool:
        """Whether nobody is before the next one to come."""
        return not self._turns and self._serving is None and not self._fast_path

    @contextlib.contextmanager
    def fast_path(self) -> Iterator[int]:
        """For one who found the queue empty and serves itself: the others wait till it is done.

        Gives the number of the place that it would have had.
        """
        self._fast_path = True
        try:
            yield next(self._numbers)
        finally:
            self._fast_path = False
            if self._turns and self._serving is None:
                self._serving = self._transport.spawn(self._serve())

    async def carry(self, turn: Turn, lane: Lane, request: Request) -> PartialResponse:
        """Have the request cross when it is its turn; gives the beginning of the answer."""
        report = request.report

        def wanted(done: int, total: int) -> None:
            if turn.outcome.done():
                raise _CallerGone
            try:
                report(done, total)
            except asyncio.CancelledError:  # raised here it would end whoever serves the queue
                turn.outcome.cancel()
                raise _CallerGone from None

        request.report = wanted
        turn.lane, turn.request = lane, request
        try:
            opened: PartialResponse = await self._outcome(turn)
        except asyncio.CancelledError:
            outcome = turn.outcome
            if outcome.done() and not outcome.cancelled() and outcome.exception() is None:
                self._unwanted(turn, outcome.result())  # it was on its way to who gives up now
            raise
        request.report = report
        return opened

    async def run(self, turn: Turn, cell: Callable[[], Awaitable[Reply]]) -> Reply:
        """Have a cell run when it is its turn."""
        turn.cell = cell
        reply: Reply = await self._outcome(turn)
        return reply

    async def _outcome(self, turn: Turn) -> Any:
        self._transport.life.check()
        self._changed.set()
        if self._serving is None and not self._fast_path:
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
                    await asyncio.sleep(0)  # whoever has to come again is back before the next goes
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
        """The first place, and those behind it that may go along."""
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
            outcomes = await self._cross(turns)
        except asyncio.CancelledError:
            for turn in turns:
                _settle(turn, BridgeClosed("this bridge was closed"))
            raise
        except Exception as error:  # noqa: BLE001 - each caller is told, whatever it is
            outcomes = [copy.copy(error) if len(turns) > 1 else error for _ in turns]
        again = []
        for turn, outcome in zip(turns, outcomes, strict=True):
            if outcome is None:
                turn.sent = False
                again.append(turn)
            elif not _settle(turn, outcome):
                self._unwanted(turn, outcome)
        self._turns.extendleft(reversed(again))

    async def _cross(self, turns: list[Turn]) -> list[Any]:
        first = turns[0]
        if first.cell is not None:
            return [await first.cell()]
        assert first.lane is not None
        if len(turns) == 1:
            assert first.request is not None
            return [await first.lane.carry(first.request)]
        requests = [turn.request for turn in turns if turn.request is not None]
        return list(await first.lane.carry_batch(requests))

    def _unwanted(self, turn: Turn, outcome: Any) -> None:
        """Whoever asked has left: have the loader drop the rest of the answer, if any."""
        if isinstance(outcome, BaseException):
            return  # nothing came
        self._transport.dispatcher.late += 1
        if turn.lane is None or turn.request is None or not isinstance(outcome, PartialResponse):
            return
        if outcome.inbox.received < outcome.inbox.total:
            turn.lane.forget(turn.request.header)


class _CallerGone(BridgeError):
    """Whoever asked has left; what has crossed so far is dropped."""


def _may_batch(request: Request) -> bool:
    return not request.delivered and _request.may_batch(request.header)


def _settle(turn: Turn, outcome: Any) -> bool:
    """Tell whoever waits; false if nobody does."""
    if turn.outcome.done():
        return False
    if isinstance(outcome, BaseException):
        turn.outcome.set_exception(outcome)
    else:
        turn.outcome.set_result(outcome)
    return True
