"""Helpers for asyncio tasks, for waiting and for closing.

Rule: futures and tasks of asyncio. This module knows nothing of kernels.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import logging
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from threading import Lock
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from bridgehead._transports.timings import Timings

T = TypeVar("T")
_user_call: contextvars.ContextVar[UserCall | None] = contextvars.ContextVar(
    "user_call", default=None
)
log = logging.getLogger("bridgehead")

# Of one event loop. They start when they are needed. With few of them, some bridges could delay all
# others: pickling may run user code that waits.
MOST_THREADS = 256


class UserCall:
    """A call of the user's code in a task of an owner; the block runs it.

    The tasks that the code starts have a copy of its context, and may run when the call has ended.

    Attributes:
        tasks: those of the owner. The code may close the owner, and closing must not wait for it.
        blocked: what does not go on before the call ends; mostly None.
    """

    def __init__(self, tasks: Tasks, blocked: object = None) -> None:
        self.tasks, self.blocked = tasks, blocked
        self.task: asyncio.Task[Any] | None = asyncio.current_task()
        self.is_running = False

    def __enter__(self) -> UserCall:
        self.is_running = True
        _user_call.set(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.is_running = False
        _user_call.set(None)


def user_call() -> UserCall | None:
    """Return the call of the user's code that called this function, if that call still runs."""
    call = _user_call.get()
    return call if call is not None and call.is_running else None


@contextlib.contextmanager
def closing(tasks: Tasks) -> Iterator[None]:
    """Close the owner of tasks; if the user's code closes it, do not wait for that code to end."""
    call = user_call()
    if call is None or call.task is None or call.task.get_loop() is not asyncio.get_running_loop():
        yield  # in another loop, a thread of the code closes
        return
    with call.tasks.spared(call, tasks):
        yield


@contextlib.contextmanager
def coming_from(call: UserCall | None) -> Iterator[None]:
    """Have what another thread asks in the block come from a call of the user's code."""
    token = _user_call.set(call)
    try:
        yield
    finally:
        _user_call.reset(token)


def no_user_call() -> None:
    """Have the task that runs be its owner's, although the user's code started it."""
    _user_call.set(None)


class Tasks:
    """The tasks of one owner; ``cancel`` ends them with it, and those that begin later, too."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()
        self._ended = False
        self._closers: list[tuple[UserCall, Tasks]] = []  # and whose owner each of them closes
        self._new_closer: asyncio.Future[None] | None = None  # while ``cancel`` waits

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a coroutine until it ends or ``cancel`` is called."""
        task = self.start(work)
        task.add_done_callback(retrieve_exception)
        return task

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Do as ``spawn``, and have asyncio log a failure that nothing looks at."""
        task = asyncio.get_running_loop().create_task(work)
        if self._ended:  # as by an event of a connection that breaks while the owner closes
            task.cancel()
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    def keep(self, work: Callable[[], Coroutine[Any, Any, None]], timings: Timings) -> None:
        """Run an endless task, also if it fails because this process lacks memory."""
        self.spawn(self._kept(work, timings))

    async def _kept(self, work: Callable[[], Coroutine[Any, Any, None]], timings: Timings) -> None:
        while True:
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - nothing else would read or watch
                log.debug("an endless task failed, and goes on: %r", error)
            except (KeyboardInterrupt, SystemExit):  # a program may go on with its event loop
                self.keep(work, timings)
                raise
            await asyncio.sleep(timings.reader_pause)

    @contextlib.contextmanager
    def spared(self, call: UserCall, closed: Tasks) -> Iterator[None]:
        """Have ``cancel`` not wait for the task of a call, which closes the owner of ``closed``.

        If that is the owner of these tasks, the call is not cancelled either: it would cancel its
        own closing. If it is another owner, waiting for it could never end: functions of two owners
        may close each other's.
        """
        self._closers.append((call, closed))
        if self._new_closer is not None and not self._new_closer.done():
            self._new_closer.set_result(None)
        try:
            yield
        finally:
            self._closers.remove((call, closed))

    async def cancel(self) -> None:
        """Cancel all tasks and wait until they have ended, but for those that are spared."""
        self._ended = True
        own = {call.task for call, closed in self._closers if closed is self and call.is_running}
        for task in self._running - own:
            task.cancel()
        # A task that was cancelled may close the owner, too, as in a ``finally``.
        while tasks := self._running - {call.task for call, _ in self._closers if call.is_running}:
            self._new_closer = asyncio.get_running_loop().create_future()
            ended = asyncio.gather(*tasks, return_exceptions=True)
            either: list[asyncio.Future[Any]] = [ended, self._new_closer]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                return


def require_asyncio() -> None:
    """Raise unless an asyncio event loop runs in this thread.

    Raises:
        RuntimeError: none runs; under trio, the coroutine of the caller runs nevertheless.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "bridgehead needs asyncio, and no asyncio event loop runs here; nothing was started. "
            "Use asyncio.run(), or under trio a SyncBridge in trio.to_thread.run_sync()"
        ) from None


@contextlib.asynccontextmanager
async def waited(seconds: float) -> AsyncIterator[None]:
    """Leave the block after this many seconds, without an error."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            yield


class Threads:
    """The threads in which one event loop has work done that would hold it up.

    They are not those of ``asyncio.to_thread``, of which there are few: all of those may be taken
    by functions of the user's that wait for a bridge. A ``ThreadPoolExecutor`` whose new thread
    did not start counts it all the same, and gives it work (seen in Python 3.11). So there is
    another pool after that.

    A program may keep a closed bridge, and so the loop. The threads end with ``asyncio.run`` all
    the same: as asyncio ends the default executor's, which it does right after the generators.
    """

    def __init__(self, initializer: Callable[[], object] | None = None) -> None:
        """Call ``initializer`` in each thread as it starts."""
        self._initializer = initializer
        self._pool = self._new_pool()
        self._unfinished: set[Future[object]] = set()
        self._end: AsyncGenerator[None, None] | None = None

    def _new_pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(MOST_THREADS, "bridgehead", self._initializer)

    def run(self, function: Callable[[], object]) -> None:
        """Have a thread call a function.

        Raises:
            RuntimeError: the process cannot start a thread; the function may run all the same.
        """
        pool = self._pool
        try:
            work = pool.submit(function)
        except RuntimeError:
            self._pool = self._new_pool()
            pool.shutdown(wait=False)
            raise
        self._unfinished.add(work)
        work.add_done_callback(self._unfinished.discard)

    def close(self) -> None:
        """Wait until all threads have ended, but for a function of the user's that does not end."""
        running = wait(list(self._unfinished), Timings.threads_end).not_done
        self._pool.shutdown(wait=not running)

    def end_with_loop(self) -> None:
        """Have the running loop end the threads when it ends its asynchronous generators."""
        self._end = self._until_end()
        with contextlib.suppress(StopIteration):  # by its ``yield``
            self._end.__anext__().send(None)

    async def _until_end(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            threads_of.pop(asyncio.get_running_loop(), None)
            self.close()


# The threads end at the latest when their loop is dropped.
threads_of: WeakKeyDictionary[asyncio.AbstractEventLoop, Threads] = WeakKeyDictionary()


def in_thread(function: Callable[..., T], *args: Any) -> asyncio.Future[T]:
    """Run a function in a thread; in the caller's, if this process can start no thread.

    Without memory for a thread's stack, or at its limit of threads, a process can still do the
    work: its event loop stops meanwhile. A cancel does not end what has begun.
    """
    loop, job = asyncio.get_running_loop(), _ThreadCall(partial(function, *args))
    threads = threads_of.get(loop)
    if threads is None:
        threads = threads_of[loop] = Threads()
        threads.end_with_loop()
    try:
        threads.run(partial(contextvars.copy_context().run, job))
    except RuntimeError:  # "can't start new thread"
        job()
    return asyncio.wrap_future(job.outcome)


class _ThreadCall(Generic[T]):
    """A function that runs once, although two threads may try."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function, self._free = function, Lock()
        self.outcome: Future[T] = Future()

    def __call__(self) -> None:
        if not (self._free.acquire(blocking=False) and self.outcome.set_running_or_notify_cancel()):
            return
        try:
            result = self._function()
        except BaseException as error:  # noqa: BLE001 - raised where the outcome is awaited
            self.outcome.set_exception(holdable(error))
        else:
            self.outcome.set_result(result)


def holdable(error: BaseException) -> BaseException:
    """Return an error that a future of asyncio can hold.

    None holds ``StopIteration``. Python 3.12 puts a ``RuntimeError`` in its place; in 3.11, a
    future that ``wrap_future`` made is never done.
    """
    if not isinstance(error, StopIteration):
        return error
    held = RuntimeError("a function raised StopIteration, which no future can hold")
    held.__cause__ = error
    return held


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
