"""Helpers for asyncio tasks and for waiting.

Rule: futures and tasks of asyncio. This module knows nothing of kernels.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Tasks:
    """The tasks of one owner; ``cancel`` ends them with it."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a coroutine until it ends or ``cancel`` is called."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        task.add_done_callback(retrieve_exception)
        return task

    async def cancel(self) -> None:
        """Cancel all tasks and wait until they have ended."""
        tasks = list(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def waited(seconds: float) -> AsyncIterator[None]:
    """Leave the block after this many seconds, without an error."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            yield


async def finish(work: Awaitable[None]) -> None:
    """Run a coroutine to its end, even if the caller is cancelled; raise the cancel afterwards."""
    running = asyncio.ensure_future(work)
    cancelled = False
    shield: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    # Without anyio loaded, no scope of anyio can cancel this; importing it takes 8 ms.
    if "anyio" in sys.modules:
        import anyio

        shield = anyio.CancelScope(shield=True)
    with shield:
        while not running.done():
            try:
                await asyncio.wait([running])
            except asyncio.CancelledError:
                cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    running.result()


def retrieve_exception(done: asyncio.Future[Any]) -> None:
    """Keep asyncio from logging "exception was never retrieved".

    The waiter gets the exception, if there is one. There may be no waiter, or it was cancelled.
    """
    if not done.cancelled():
        done.exception()
