"""What the blocking classes share: opening, closing, and calls on the event loop.

Rule: everything happens in the event loop that all SyncBridges share; a caller waits for it. The
last reference that is dropped closes, with a ``ResourceWarning``.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import threading
import warnings
import weakref
from collections.abc import (
    Awaitable,
    Callable,
)
from types import TracebackType
from typing import Any, Self, TypeVar

from bridgehead._bridge import loop_thread
from bridgehead._bridge.bridge import Bridge
from bridgehead._bridge.loop_thread import CallbackRunner, LoopCall, LoopEnded, LoopThread
from bridgehead._errors import CLOSED, BridgeClosed
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

    def _soon(self, function: Callable[[], None]) -> None:
        """Have the loop call a function soon; a loop that has ended does not."""
        self._thread.soon(function)

    def _check(self) -> None:
        if self._finalizer is not None and not self._finalizer.alive:
            raise _closed()


class SyncTargets(SyncBase):
    """Several kernels that a handoff goes to: a ``SyncFleet``."""

    __slots__ = ()


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
