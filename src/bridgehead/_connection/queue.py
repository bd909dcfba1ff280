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
from bridgehead._protocol.response import Opened
from bridgehead._transports.base import Transport
from bridgehead._transports.dispatch import Reply

T = TypeVar("T")

TOGETHER = 512  # requests in a message; a kernel that serves others gets to them in between


class Place:
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
        self._places: deque[Place] = deque()  # by their numbers
        self._numbers = itertools.count()
        self._changed = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None
        self._alone = False  # somebody serves itself

    @contextlib.contextmanager
    def place(self, number: int | None = None) -> Iterator[Place]:
        """Take the last place, or again the one of this number; leaving the block gives it up."""
        if number is None:
            place, ahead = (
                Place(self._transport.life.promise(), next(self._numbers)),
                len(self._places),
            )
        else:
            place = Place(self._transport.life.promise(), number)
            ahead = sum(other.number < number for other in self._places)
        self._places.insert(ahead, place)
        try:
            yield place
        finally:
            place.outcome.cancel()
            if not place.sent:  # nor does what it would have sent stay here till its turn
                with contextlib.suppress(ValueError):
                    self._places.remove(place)
            self._changed.set()

    @property
    def is_empty(self) -> bool:
        """Whether nobody is before the next one to come."""
        return not self._places and self._serving is None and not self._alone

    @contextlib.contextmanager
    def alone(self) -> Iterator[int]:
        """For one who found the queue empty and serves itself: the others wait till it is done.

        Gives the number of the place that it would have had.
        """
        self._alone = True
        try:
            yield next(self._numbers)
        finally:
            self._alone = False
            if self._places and self._serving is None:
                self._serving = self._transport.spawn(self._serve())

    async def carry(self, place: Place, lane: Lane, request: Request) -> Opened:
        """Have the request cross when it is its turn; gives the beginning of the answer."""
        report = request.report

        def wanted(done: int, total: int) -> None:
            if place.outcome.done():
                raise _Left
            try:
                report(done, total)
            except asyncio.CancelledError:  # raised here it would end whoever serves the queue
                place.outcome.cancel()
                raise _Left from None

        request.report = wanted
        place.lane, place.request = lane, request
        try:
            opened: Opened = await self._outcome(place)
        except asyncio.CancelledError:
            outcome = place.outcome
            if outcome.done() and not outcome.cancelled() and outcome.exception() is None:
                self._unwanted(place, outcome.result())  # it was on its way to who gives up now
            raise
        request.report = report
        return opened

    async def run(self, place: Place, cell: Callable[[], Awaitable[Reply]]) -> Reply:
        """Have a cell run when it is its turn."""
        place.cell = cell
        reply: Reply = await self._outcome(place)
        return reply

    async def _outcome(self, place: Place) -> Any:
        self._transport.life.check()
        self._changed.set()
        if self._serving is None and not self._alone:
            self._serving = self._transport.spawn(self._serve())
        return await place.outcome

    # ------------------------------------------------------------ serving

    async def _serve(self) -> None:
        try:
            while self._places:
                first = self._places[0]
                if first.outcome.done():
                    self._places.popleft()
                elif first.prepared:
                    await self._send(self._next())
                    await asyncio.sleep(0)  # whoever has to come again is back before the next goes
                else:
                    self._changed.clear()
                    await self._changed.wait()
        except asyncio.CancelledError:
            for place in self._places:
                _settle(place, BridgeClosed("this bridge was closed"))
            raise
        finally:
            self._serving = None

    def _next(self) -> list[Place]:
        """The first place, and those behind it that may go along."""
        first = self._places.popleft()
        together, lane = [first], first.lane
        if first.request is None or not _joins(first.request) or lane is None:
            return together
        nbytes = first.request.nbytes
        while self._places and len(together) < TOGETHER:
            place = self._places[0]
            if not place.outcome.done():
                if place.request is None or place.lane is not lane or not _joins(place.request):
                    break
                nbytes += place.request.nbytes
                if nbytes > lane.piece:
                    break
                together.append(place)
            self._places.popleft()
        return together

    async def _send(self, places: list[Place]) -> None:
        for place in places:
            place.sent = True
        try:
            outcomes = await self._cross(places)
        except asyncio.CancelledError:
            for place in places:
                _settle(place, BridgeClosed("this bridge was closed"))
            raise
        except Exception as error:  # noqa: BLE001 - each caller is told, whatever it is
            outcomes = [copy.copy(error) if len(places) > 1 else error for _ in places]
        again = []
        for place, outcome in zip(places, outcomes, strict=True):
            if outcome is None:
                place.sent = False
                again.append(place)
            elif not _settle(place, outcome):
                self._unwanted(place, outcome)
        self._places.extendleft(reversed(again))

    async def _cross(self, places: list[Place]) -> list[Any]:
        first = places[0]
        if first.cell is not None:
            return [await first.cell()]
        assert first.lane is not None
        if len(places) == 1:
            assert first.request is not None
            return [await first.lane.carry(first.request)]
        requests = [place.request for place in places if place.request is not None]
        return list(await first.lane.carry_together(requests))

    def _unwanted(self, place: Place, outcome: Any) -> None:
        """Whoever asked has left: have the loader drop the rest of the answer, if any."""
        if isinstance(outcome, BaseException):
            return  # nothing came
        self._transport.dispatcher.late += 1
        if place.lane is None or place.request is None or not isinstance(outcome, Opened):
            return
        if outcome.inbox.received < outcome.inbox.total:
            place.lane.forget(place.request.header)


class _Left(BridgeError):
    """Whoever asked has left; what has crossed so far is dropped."""


def _joins(request: Request) -> bool:
    return not request.landed and _request.joins(request.header)


def _settle(place: Place, outcome: Any) -> bool:
    """Tell whoever waits; false if nobody does."""
    if place.outcome.done():
        return False
    if isinstance(outcome, BaseException):
        place.outcome.set_exception(outcome)
    else:
        place.outcome.set_result(outcome)
    return True
