"""Who may send next.

Rule: one sender at a time, in the order in which the numbers were drawn; and nobody while one
with a lower number has to send again, or a request that was aborted would be overtaken.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """Numbered turns. Cancelling a wait gives the turn to the next one."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._again: set[int] = set()
        self._taken = False

    def draw(self) -> int:
        """A number, later than all that were drawn before."""
        return next(self._numbers)

    def again(self, number: int) -> None:
        """It was aborted and will be sent again: whoever is later waits."""
        self._again.add(number)

    def done(self, number: int) -> None:
        """It will not be sent again."""
        self._again.discard(number)
        self._next()

    @asynccontextmanager
    async def take(self, number: int) -> AsyncIterator[None]:
        """Wait for one's turn, and have it for as long as the block lasts."""
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (number, future))
        self._next()
        try:
            await future
        except BaseException:
            if not future.cancelled():
                self._leave()
            raise
        try:
            self._again.discard(number)
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        self._taken = False
        self._next()

    def _next(self) -> None:
        while not self._taken and self._waiting:
            number, future = self._waiting[0]
            if self._again and min(self._again) < number and not future.done():
                return
            heapq.heappop(self._waiting)
            if not future.done():
                self._taken = True
                future.set_result(None)
