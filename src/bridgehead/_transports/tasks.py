"""Helpers for asyncio tasks, for waiting and for closing.

Rule: futures and tasks of asyncio. This module knows nothing of kernels.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
log = logging.getLogger("bridgehead")


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
        error = None if running.cancelled() else running.exception()
        if error is not None:
            log.warning("closing was cancelled, and failed: %s", _described(error))
        raise asyncio.CancelledError from error
    running.result()


async def run_all(*steps: Callable[[], object]) -> None:
    """Run the steps of closing one after the other, each whatever an earlier one raised.

    A step may return an awaitable. The first error is raised at the end, with the later ones as
    its notes.
    """
    first: BaseException | None = None
    for step in steps:
        try:
            outcome = step()
            if inspect.isawaitable(outcome):
                await outcome
        except BaseException as error:  # noqa: BLE001 - raised when all steps are done
            if first is None:
                first = error
            else:
                _note(first, error)
    if first is not None:
        raise first


@contextlib.contextmanager
def noted_on(error: BaseException | None) -> Iterator[None]:
    """Turn what closing raises into a note on the error that led to it, and a log record.

    Without such an error, what closing raises is raised. A cancel always is.
    """
    try:
        yield
    except Exception as failure:
        if error is None:
            raise
        _note(error, failure)


def _note(error: BaseException, failure: BaseException) -> None:
    if failure is not error:
        log.warning("closing failed: %s", _described(failure))
        error.add_note(f"closing failed, too: {_described(failure)}")


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")


def retrieve_exception(done: asyncio.Future[Any]) -> None:
    """Keep asyncio from logging "exception was never retrieved".

    The waiter gets the exception, if there is one. There may be no waiter, or it was cancelled.
    """
    if not done.cancelled():
        done.exception()
