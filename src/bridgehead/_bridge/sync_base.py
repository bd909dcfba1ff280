"""What the blocking classes share, and what their operations return: tasks, iterators, streams.

Rule: everything happens in the event loop that all SyncBridges share; a caller waits for it. The
last reference that is dropped closes, with a ``ResourceWarning``.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import threading
import warnings
import weakref
from collections import deque
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
)
from concurrent.futures import Future
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

from bridgehead._bridge import loop_thread
from bridgehead._bridge.bridge import Bridge
from bridgehead._bridge.cell_stream import CellStream
from bridgehead._bridge.loop_thread import CallbackRunner, LoopCall, LoopEnded, LoopThread
from bridgehead._connection.tasks import RemoteTask
from bridgehead._errors import CLOSED, BridgeClosed
from bridgehead._protocol.results import Result
from bridgehead._transports.messages import Message
from bridgehead._transports.tasks import noted_on

log = logging.getLogger("bridgehead")
T = TypeVar("T")


class SyncBase:
    """What ``SyncBridge`` and ``SyncFleet`` share: a bridge or a fleet on the shared loop."""

    # No __dict__, so that kernel.x = 1 raises: it would not push x.
    __slots__ = ("__weakref__", "_bridge", "_finalizer", "_process", "_thread")
    _bridge: Any
    _thread: LoopThread

    def _open(self, make: Callable[[], Awaitable[Any]]) -> None:
        """Open a bridge or a fleet, which ``close`` closes."""
        self._finalizer: weakref.finalize[..., Any] | None = None
        self._process = os.getpid()
        self._thread, self._bridge = loop_thread.open_on_shared_loop(make)
        self._finalizer = weakref.finalize(self, _drop, self._thread, self._bridge, self._process)
        _notice_exit()

    def _borrow(self, bridge: Any, thread: LoopThread) -> None:
        """Use a bridge or a fleet that another object closes."""
        self._finalizer, self._process = None, os.getpid()
        self._thread, self._bridge = thread, bridge

    def close(self) -> None:
        """Close it, unless another object does; see ``SyncBridge.close``."""
        if self._finalizer is None:
            return
        if self._finalizer.detach() is not None:
            _close(self._thread, self._bridge, self._process)
        elif not self._bridge._is_released:
            _close_again(self._bridge, self._process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with noted_on(error):
            self.close()

    def _own(self, value: Any) -> Any:
        """Return a result as this object's callers use it."""
        return value

    # ------------------------------------------------------------ calls on the loop

    def _start(
        self, function: Callable[[], Awaitable[T]], on_end: Callable[[], object]
    ) -> LoopCall[T]:
        """Begin a call and return it; the caller waits for it in its own way."""
        self._check()
        try:
            return self._thread.start(LoopCall(function, on_end))
        except LoopEnded:
            raise _closed() from None

    def _wait(
        self, function: Callable[[], Awaitable[T]], callbacks: CallbackRunner | None = None
    ) -> T:
        self._check()
        try:
            return self._thread.wait(function, callbacks)
        except LoopEnded:
            raise _closed() from None

    def _check(self) -> None:
        if self._finalizer is not None and not self._finalizer.alive:
            raise _closed()


class SyncTargets(SyncBase):
    """Several kernels that a handoff goes to: a ``SyncFleet``."""

    __slots__ = ()


class SyncTask(Future[T]):
    """A ``RemoteTask`` of a ``SyncBridge``: a ``concurrent.futures.Future``.

    ``concurrent.futures.wait`` and ``as_completed`` take it. ``cancel`` does what the
    ``RemoteTask``'s does. A failure that nothing ever looked at is logged.

    >>> task = kernel.submit(sum, [1, 2])
    >>> task.result(timeout=60)
    3
    """

    def __init__(self, bridge: SyncBase, task: RemoteTask[T]) -> None:
        """Follow a task; called on its loop."""
        super().__init__()
        self._bridge, self._task = bridge, task
        self._unseen: BaseException | None = None
        task.add_done_callback(self._settle)

    def __repr__(self) -> str:
        return repr(self._task).replace("RemoteTask", "SyncTask")

    def _settle(self, task: RemoteTask[T]) -> None:
        if task.cancelled():
            super().cancel()
            self.set_running_or_notify_cancel()
            return
        error = task.exception()
        if error is not None:
            self._unseen = error
            self.set_exception(error)
            return
        self.set_result(self._bridge._own(task.result()))

    def cancel(self) -> bool:
        """Cancel the work; return false if it is done already; see ``RemoteTask.cancel``.

        >>> kernel.submit(asyncio.sleep, 60).cancel()
        True
        """

        async def cancel() -> bool:
            return self._task.cancel()

        with contextlib.suppress(BridgeClosed):
            return self._bridge._wait(cancel)
        return False

    def result(self, timeout: float | None = None) -> T:
        """Wait for the result and return it, or raise the exception.

        Raises:
            TimeoutError: it is not done after so many seconds.
            concurrent.futures.CancelledError: it was cancelled.
            NotSupported: it is not done, and the caller is a callback for which the kernel may
                wait.
            RuntimeError: it is not done, and the caller is a done callback of another task, or
                another function that runs in the event-loop thread of all SyncBridges.

        >>> kernel.submit(sum, [1, 2]).result(timeout=60)
        3
        """
        with self._looked_at():
            return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the exception and return it, or None if there is a result; see ``result``.

        >>> kernel.submit(sum, [1, 2]).exception(timeout=60) is None
        True
        """
        with self._looked_at():
            return super().exception(timeout)

    @contextmanager
    def _looked_at(self) -> Iterator[None]:
        if not self.done():
            self._bridge._thread.check_caller()
            self._task._check_wait()
        try:
            yield
        finally:
            if self.done():
                self._unseen = None

    def __del__(self) -> None:
        if self._unseen is not None:
            log.error("the exception of %r was never retrieved", self, exc_info=self._unseen)

    def running(self) -> bool:
        """Return whether it is not done; it may not have begun in the kernel.

        >>> kernel.submit(asyncio.sleep, 60).running()
        True
        """
        return not self.done()


class BlockingIterator(Iterator[T]):
    """A blocking iterator over an async one.

    It is not a generator, because a generator ends with its first exception and a watch goes on.
    """

    def __init__(self, bridge: SyncBase, stream: AsyncIterator[T]) -> None:
        self._bridge, self._stream = bridge, stream
        self._arrived: deque[T] = deque()  # items that came with an earlier one

    def __next__(self) -> T:
        while True:
            with contextlib.suppress(IndexError):  # another thread may take the last one
                return self._arrived.popleft()
            try:
                is_more = self._bridge._wait(self._take)
            except BridgeClosed:
                if self._takes_all:  # a caller would take the items for all that there are
                    raise
                is_more = False
            if not is_more:
                raise StopIteration

    @property
    def _takes_all(self) -> bool:
        return hasattr(self._stream, "take")

    async def _take(self) -> bool:
        """Wait for the next items; return false if there are no more.

        This is on the loop: an interrupt of the calling thread would lose them.
        """
        stream: Any = self._stream
        try:
            items = await stream.take() if self._takes_all else [await anext(stream)]
        except StopAsyncIteration:
            return False
        self._arrived.extend(items)
        return bool(items)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with noted_on(exc_info[1] if isinstance(exc_info[1], BaseException) else None):
            self.close()

    def close(self) -> None:
        """End the iteration, in the kernel too; for one of ``iterate``, see ``Iteration.aclose``.

        >>> outputs = kernel.stream("6 * 7")
        >>> outputs.close()
        >>> list(outputs)
        []
        """
        close = getattr(self._stream, "aclose", None)
        self._arrived.clear()
        with contextlib.suppress(BridgeClosed):
            if close is not None:
                self._bridge._wait(close)

    def __repr__(self) -> str:
        return repr(self._stream)


class SyncStream(BlockingIterator[Message]):
    """A ``CellStream`` of a ``SyncBridge``: an iterator that blocks until the next output.

    >>> with kernel.stream("print('at work', end='')") as outputs:
    ...     for message in outputs:
    ...         print(message)
    <stream at work>
    >>> outputs.result
    <Result [1] no value, 7 characters printed>
    """

    def __init__(self, bridge: SyncBase, stream: CellStream) -> None:
        super().__init__(bridge, stream)
        self._cell = stream

    @property
    def result(self) -> Result:
        """The ``Result`` of the cell, as ``SyncBridge.run`` returns it; or its error is raised.

        Raises:
            asyncio.InvalidStateError: the cell has not ended.

        >>> with kernel.stream("6 * 7") as outputs:
        ...     for message in outputs: pass
        >>> outputs.result.data["text/plain"]
        '42'
        """
        return self._cell.result

    def __repr__(self) -> str:
        return repr(self._stream).replace("CellStream", "SyncStream")


def _closed() -> BridgeClosed:
    return BridgeClosed(CLOSED)


_exits = threading.Event()  # set when Python exits


@functools.cache
def _notice_exit() -> None:
    """Have ``_exits`` set before the finalizers run: what was registered last runs first."""
    atexit.register(_exits.set)


def _drop(thread: LoopThread, bridge: Bridge, process: int) -> None:
    """Close a bridge that was garbage collected, or that is open when Python exits."""
    try:
        if os.getpid() == process and not _exits.is_set():
            warnings.warn(
                f"<Sync{repr(bridge)[1:]} was dropped and not closed; use 'with', or call close()",
                ResourceWarning,
                stacklevel=2,
            )
    finally:  # warnings may be errors
        _close(thread, bridge, process)


def _close(thread: LoopThread, bridge: Bridge, process: int) -> None:
    if os.getpid() == process:  # a forked child has neither the thread nor the kernel
        thread.close(bridge)


def _close_again(bridge: Bridge, process: int) -> None:
    """Close a bridge whose own loop may have ended with the first attempt."""

    async def closing() -> Bridge:
        return bridge

    if os.getpid() == process:
        thread, _ = loop_thread.open_on_shared_loop(closing)
        thread.close(bridge)
