"""Values in the kernels of a fleet, followed together.

Rule: several watches as one. What a watch sends, and when, is in ``_connection.watch``.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Callable, Collection, Sequence
from typing import Any, Generic, TypeVar

from bridgehead._connection.async_items import AsyncItems
from bridgehead._connection.watch import Watch
from bridgehead._transports.tasks import retrieve_exception

T = TypeVar("T")


class FleetWatch(AsyncItems[tuple[int, T]], Generic[T]):
    """An async iterator over what ``Fleet.watch`` follows: an index and a value at a time.

    The index is that of the kernel in the fleet. For one kernel all is as for a ``Watch``: a slow
    reader gets its latest value only, and what evaluating an expression raises is raised here, with
    a note that says which kernel it is about; the next wait goes on. It ends when the watches of
    all kernels have ended. Cancelling a wait loses nothing. ``aclose`` ends the watch in all
    kernels; after it was dropped without that, each ends too.

        >>> async with fleet.watch("6 * 7") as watch:
        ...     print(sorted([await anext(watch), await anext(watch)]))
        [(0, 42), (1, 42)]
    """

    def __init__(
        self, watches: Sequence[Watch[T]], note: Callable[[Exception, int], object]
    ) -> None:
        """``note`` adds to an error which kernel it is about."""
        self._watches, self._note = dict(enumerate(watches)), note
        self._waiting: dict[asyncio.Task[Any], int] = {}  # in the order in which they may be taken
        loop = asyncio.get_running_loop()
        self._finalizer = weakref.finalize(self, _cancel_soon, loop, self._waiting)
        self._finalizer.atexit = False

    def __repr__(self) -> str:
        return f"<FleetWatch of {len(self._watches)} kernels>"

    async def __anext__(self) -> tuple[int, T]:
        while self._watches:
            for index in self._watches.keys() - set(self._waiting.values()):
                task = asyncio.ensure_future(_next(self._watches[index]))
                task.add_done_callback(retrieve_exception)
                self._waiting[task] = index
            await asyncio.wait(self._waiting, return_when=asyncio.FIRST_COMPLETED)
            done = next((task for task in self._waiting if task.done()), None)
            if done is None:
                continue  # closed meanwhile
            index = self._waiting.pop(done)
            if done.cancelled():  # the bridge was closed
                self._watches.pop(index, None)
                continue
            try:
                return index, done.result()
            except StopAsyncIteration:
                self._watches.pop(index, None)
            except Exception as error:
                self._note(error, index)
                raise
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End the watch in all kernels; a waiting reader gets no more values.

        >>> watch = fleet.watch("6 * 7")
        >>> await watch.aclose()
        >>> watch
        <FleetWatch of 0 kernels>
        """
        watches, self._watches = self._watches, {}
        for task in self._waiting:
            task.cancel()
        for watch in watches.values():
            await watch.aclose()


def _cancel_soon(loop: asyncio.AbstractEventLoop, tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel the waits of a watch that was dropped; the garbage collector calls this anywhere."""

    def cancel() -> None:
        for task in tasks:
            task.cancel()

    with contextlib.suppress(RuntimeError):  # the loop is closed, and the bridges with it
        loop.call_soon_threadsafe(cancel)


async def _next(watch: Watch[T]) -> T:
    return await anext(watch)
