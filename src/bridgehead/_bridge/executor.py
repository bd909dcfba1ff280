"""A fleet as an executor of ``concurrent.futures``.

Rule: what ``Executor`` and ``Future`` promise, in any thread. Which kernel runs a function is
decided in ``fleet_work``.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, wait
from functools import partial
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from bridgehead._bridge.bridge import Bridge
from bridgehead._connection.tasks import RemoteTask
from bridgehead._errors import BridgeClosed, KernelRestarted, OutcomeUnknown, RemoteError

P = ParamSpec("P")
T = TypeVar("T")

AT_ONCE = 2  # functions that each kernel has: one at work, and one ahead
MOST_KERNELS = 10  # that a function is given to, if each is lost before it begins it


class FleetExecutor(Executor):
    """A ``concurrent.futures.Executor`` whose functions run in the kernels of a fleet.

    Any thread may use it, but a future is awaited, not waited for, in the event loop of the fleet,
    done callbacks included: there, ``result`` is a ``RuntimeError`` while it is not done. Each
    kernel has one function at work and one ahead; the others wait here for whichever kernel is
    free. Keyword arguments are the function's: there are no options. A future has the exception
    that the function raised, if it can be rebuilt here, with the ``RemoteError`` as its cause; else
    that error. Cancelling a future also interrupts a function that runs.

    A kernel that is lost loses what it had begun: the function at work, and each async one. Their
    futures have the ``OutcomeUnknown``, and the other kernels get what it had not begun. A kernel
    that another program restarts gets functions again. If no future has the ``KernelRestarted``,
    the next other call of that bridge raises it.

        >>> with fleet.executor() as executor:
        ...     futures = [executor.submit(pow, n, 2) for n in range(3)]
        ...     [await asyncio.wrap_future(future) for future in futures]
        [0, 1, 4]
    """

    def __init__(
        self,
        submit: Callable[[Callable[[], Any]], RemoteTask[Any]],
        loop: asyncio.AbstractEventLoop,
        bridges: Sequence[Bridge],
    ) -> None:
        """Take the fleet's ``submit``, the event loop in which to call it, and its bridges.

        ``submit`` also gives functions to a kernel whose restart no call has reported.
        """
        self._submit, self._loop, self._bridges = submit, loop, bridges
        self._lock = threading.Lock()
        self._waiting: deque[FleetFuture[Any]] = deque()
        self._unfinished: set[Future[Any]] = set()
        self._at_work = 0  # only the loop's thread reads and writes it
        self._is_shut = False  # or the event loop ends

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have a kernel call a function, and return the future of its result, at once.

        What keeps the function from being sent, such as an ``EncodeError``, is in the future, too.

        Raises:
            RuntimeError: the executor was shut down, or the event loop of the fleet ends.

        >>> future = fleet.executor().submit(abs, -1)
        >>> await asyncio.wrap_future(future)
        1
        """
        future: FleetFuture[T] = FleetFuture(self._loop, partial(fn, *args, **kwargs))
        with self._lock:
            if self._is_shut:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._waiting.append(future)
            self._unfinished.add(future)
        future.add_done_callback(self._forget)
        try:
            self._loop.call_soon_threadsafe(self._fill)
        except RuntimeError:
            future.cancel()
            raise
        if all(bridge.state == "closed" for bridge in self._bridges):  # the loop may be over, too
            future.settle(error=BridgeClosed("the bridges of this executor were closed"))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more functions; the kernels and the fleet stay open.

        Args:
            wait: block until all futures are done. In the event loop's own thread, where they
                could never be, this is a ``RuntimeError`` unless all are done.
            cancel_futures: cancel those whose function was not given to a kernel.

        >>> executor = fleet.executor()
        >>> future = executor.submit(abs, -1)
        >>> executor.shutdown(wait=False)
        >>> await asyncio.wrap_future(future)
        1
        """
        with self._lock:
            self._is_shut = True
            waiting = list(self._waiting) if cancel_futures else []
        for future in waiting:
            future.cancel()
        if wait:
            self._wait()

    def _wait(self) -> None:
        with self._lock:
            unfinished = set(self._unfinished)
        if unfinished:
            _check_caller(self._loop, "await the futures, or use shutdown(wait=False)")
        wait(unfinished)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A shutdown that cannot wait must not hide the error of the block.
        self.shutdown(wait=error is None or _running_loop() is not self._loop)

    def _forget(self, future: Future[Any]) -> None:
        with self._lock:
            self._unfinished.discard(future)
        if isinstance(future, FleetFuture):
            future.work = None  # a future that is kept keeps no arguments

    # ------------------------------------------------------------ in the loop's thread

    def _fill(self) -> None:
        """Give functions to the kernels that have room."""
        while self._at_work < AT_ONCE * self._kernels():
            with self._lock:
                if not self._waiting:
                    return
                future = self._waiting.popleft()
            work = future.work
            if work is not None and not future.done():
                self._start(future, work)

    def _kernels(self) -> int:
        """Return how many kernels are not lost; at least one, to raise the error."""
        lost = sum(bridge._transport.life.is_lost for bridge in self._bridges)
        return max(1, len(self._bridges) - lost)

    def _start(self, future: FleetFuture[Any], work: Callable[[], Any]) -> None:
        try:
            task = self._submit(work)
        except Exception as error:  # noqa: BLE001 - raised where the future is looked at
            future.settle(error=error)
            return
        self._at_work += 1
        future.task = task
        future.kernels += 1
        task.add_done_callback(partial(self._ended, future))
        if future.done():  # cancelled meanwhile
            task.cancel()

    def _ended(self, future: FleetFuture[Any], task: RemoteTask[Any]) -> None:
        self._at_work -= 1
        if task.cancelled():
            if not future.done():  # ``asyncio.run`` cancels all tasks, as its loop ends
                self._end()
                return
        else:
            error = task.exception()
            if error is not None and self._goes_on(future, task, error):
                future.task = None
                with self._lock:
                    self._waiting.appendleft(future)
            else:
                is_first = future.settle(None if error is not None else task.result(), error)
                if is_first and isinstance(error, KernelRestarted):
                    task._note_reported()
        self._fill()

    def _goes_on(
        self, future: FleetFuture[Any], task: RemoteTask[Any], error: BaseException
    ) -> bool:
        """Return whether another kernel gets a function, whose kernel was lost before it began."""
        is_lost = isinstance(error, (OutcomeUnknown, BridgeClosed))
        if future.done() or task._call.was_sent or not is_lost:
            return False
        lives = [bridge._transport.life for bridge in self._bridges]
        is_any_left = any(not (life.is_lost or life.is_unresponsive) for life in lives)
        return is_any_left and future.kernels < MOST_KERNELS

    def _end(self) -> None:
        """Take nothing more, and cancel all futures: the loop gives nothing to the kernels."""
        with self._lock:
            self._is_shut = True
            unfinished = list(self._unfinished)
        for future in unfinished:
            future.cancel()


class FleetFuture(Future[T]):
    """The future of a function of an executor; ``cancel`` never blocks."""

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Callable[[], T]) -> None:
        super().__init__()
        self._loop = loop
        self.work: Callable[[], T] | None = work  # until it is done
        self.task: RemoteTask[Any] | None = None
        self.kernels = 0  # that it was given to
        self._gate = threading.Lock()
        self._is_settled = False

    def _settles(self) -> bool:
        """Return whether the caller is the one that settles it."""
        with self._gate:
            first, self._is_settled = not self._is_settled, True
        return first

    def settle(self, value: Any = None, error: BaseException | None = None) -> bool:
        """Give it its outcome; return false if it has one."""
        if not self._settles():
            return False
        self.set_running_or_notify_cancel()
        if error is None:
            self.set_result(value)
        else:
            self.set_exception(_original(error))
        return True

    def cancel(self) -> bool:
        """Cancel it, also while the function runs; return false if it is done already."""
        if not self._settles():
            return self.cancelled()
        super().cancel()
        self.set_running_or_notify_cancel()
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the bridges with it
            self._loop.call_soon_threadsafe(self._cancel_task)
        return True

    def _cancel_task(self) -> None:
        if self.task is not None:
            self.task.cancel()

    def result(self, timeout: float | None = None) -> T:
        """Wait for the result and return it, or raise the exception.

        Raises:
            RuntimeError: it is not done, and the caller is in the event loop of the fleet, where
                the wait would never end; done callbacks are there, too.
        """
        self._check_wait()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the exception and return it, or None if there is a result; see ``result``."""
        self._check_wait()
        return super().exception(timeout)

    def _check_wait(self) -> None:
        """Raise an error where a wait for it would never end."""
        if not self.done():
            _check_caller(self._loop, "await asyncio.wrap_future(future)")
            if self.task is not None:
                self.task._check_wait()

    def running(self) -> bool:
        """Return whether a kernel has the function."""
        return self.task is not None and not self.done()


def _original(error: BaseException) -> BaseException:
    """Return what the function raised, caused by the ``RemoteError`` that reported it."""
    cause = error.__cause__
    if not isinstance(error, RemoteError) or not isinstance(cause, Exception):
        return error
    if isinstance(cause, StopIteration):  # before Python 3.12, awaiting the future never ended
        return error
    error.__cause__, error._is_cause = None, True
    cause.__cause__ = error
    return cause


def _check_caller(loop: asyncio.AbstractEventLoop, instead: str) -> None:
    """Raise ``RuntimeError`` in an event loop that a wait would stop, and so never end."""
    if _running_loop() is loop:
        raise RuntimeError(
            f"a wait for a function of an executor in the event loop of its fleet would never end; "
            f"{instead}"
        )


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
