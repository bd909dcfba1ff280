"""A ``RemoteTask`` as a ``concurrent.futures.Future``, for callers that block.

Rule: the task lives on the event loop that all SyncBridges share. A caller waits for it and looks
at its outcome; an exception that no caller looked at is logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

from bridgehead._bridge.sync_base import SyncBase
from bridgehead._connection.tasks import RemoteTask
from bridgehead._errors import BridgeClosed

log = logging.getLogger("bridgehead")
T = TypeVar("T")


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
            if not self._task.cancel():
                return False
            await asyncio.wait([self._task._work])  # ``cancelled`` is true behind this
            return self._task.cancelled()

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
