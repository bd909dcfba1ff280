"""The event-loop thread that all SyncBridges of a process share.

Rule: calls go to the loop and their results come back; callbacks run in the thread that waits for
the call. The loop's thread starts with the first bridge and ends with the last one. This module
does not know what a bridge can do.

Laws of the shared thread:
- Only the loop counts the bridges that are open on it, so the count needs no lock. A lock could
  deadlock: the garbage collector may close a bridge in any thread and at any line. If that thread
  held the lock, it would wait for the loop, and the loop for the lock.
- A call that the loop does not finish ends with ``LoopEnded``; no caller waits for a loop that has
  ended.
- After a fork the child has no loop: its first bridge starts one.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from bridgehead._transports.tasks import Threads, coming_from, holdable, threads_of, user_call

T = TypeVar("T")


class LoopEnded(Exception):
    """The loop ended before it finished a call."""


class Closable(Protocol):
    """A bridge or a fleet, which can be closed."""

    async def aclose(self) -> None: ...


C = TypeVar("C", bound=Closable)


class CallbackRunner:
    """Runs callbacks in a thread while that thread waits for a call on the loop.

    A notebook shows what a thread prints in the cell that started the thread. So callbacks run in
    the thread that called, not in the loop's.
    """

    def __init__(self, draw: Callable[[], object] | None = None, every: float = 0.1) -> None:
        """Call ``draw`` at intervals of ``every`` seconds."""
        self._draw, self._every = draw, every
        self._pending: SimpleQueue[Callable[[], object] | None] = SimpleQueue()

    def wrap(self, callback: Callable[..., object]) -> Callable[..., None]:
        """Return a function for the loop's thread that has the waiting thread run a callback."""
        return lambda *args: self._pending.put(functools.partial(callback, *args))

    def ask(self, callback: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        """Return a function for the loop's thread that awaits what a callback returns there."""

        async def asked(*args: Any) -> Any:
            answer: Future[Any] = Future()
            origin = user_call()

            def call() -> None:
                if not answer.set_running_or_notify_cancel():
                    return
                try:
                    with coming_from(origin):
                        answer.set_result(callback(*args))
                except BaseException as error:  # noqa: BLE001 - raised where it is awaited
                    answer.set_exception(holdable(error))

            self._pending.put(call)
            return await asyncio.wrap_future(answer)

        return asked

    def stop(self) -> None:
        """End ``run`` when it has run all pending callbacks; the loop's thread calls this."""
        self._pending.put(None)

    def run(self) -> None:
        """Run callbacks as they come, and draw at intervals, until ``stop``."""
        while True:
            try:
                callback = self._pending.get(timeout=self._every if self._draw else None)
            except Empty:
                assert self._draw is not None
                self._draw()
                continue
            if callback is None:
                return
            callback()


class LoopCall(Generic[T]):
    """One call on the loop, which another thread waits for.

    ``asyncio.run_coroutine_threadsafe`` does the same, but takes 40 µs instead of 25 µs, and a
    small push takes 150 µs in all. It notices the end one iteration of the loop later, and its
    future has a condition for many waiting threads, while one lock is enough here.
    """

    __slots__ = ("_ended", "_error", "_function", "_on_end", "_result", "_task", "is_done")

    def __init__(
        self,
        function: Callable[[], Awaitable[T]],
        on_end: Callable[[], object] = lambda: None,
    ) -> None:
        """Call ``on_end`` in the loop's thread when the call has ended."""
        self._function, self._on_end = function, on_end
        self._ended = threading.Lock()
        self._ended.acquire()  # released when the call has ended
        self._task: asyncio.Task[None] | None = None
        self._result: T
        self._error: BaseException | None = None
        self.is_done = False

    def wait(self) -> None:
        """Wait for the end of the call."""
        with self._ended:
            pass

    def result(self) -> T:
        """Wait for the end of the call; return its result or raise its error."""
        self.wait()
        error, self._error = self._error, None
        if error is None:
            return self._result
        try:
            raise error
        finally:
            del error  # its traceback refers to this frame

    # Only the loop's thread calls the methods below.

    def begin(self, calls: set[LoopCall[Any]]) -> None:
        """Start the call, unless it was started; it leaves ``calls`` when it has ended."""
        if self.is_done:
            calls.discard(self)
        if self.is_done or self._task is not None:
            return

        def ended(task: asyncio.Task[None]) -> None:
            calls.discard(self)
            if not self.is_done:  # cancelled before its first step
                self.end(asyncio.CancelledError())

        self._task = asyncio.get_running_loop().create_task(self._run())
        self._task.add_done_callback(ended)

    def cancel(self, calls: set[LoopCall[Any]]) -> None:
        """Cancel the call; one that was not started ends at once and leaves ``calls``."""
        if self._task is not None:
            self._task.cancel()
        elif not self.is_done:
            calls.discard(self)
            self.end(asyncio.CancelledError())

    def end(self, error: BaseException | None = None) -> None:
        self._error, self.is_done = error, True
        self._on_end()
        self._ended.release()

    async def _run(self) -> None:
        try:
            self._result = await self._function()
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            self.end(error)
        else:
            self.end()


class LoopThread:
    """A thread that runs an event loop for as long as a bridge is open on it."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._open_bridges = 0  # only the loop's own thread reads and writes it
        self._ending = False
        self._calls: set[LoopCall[Any]] = set()  # those that a thread waits for
        self._closings: set[asyncio.Task[None]] = set()
        self._own_threads: set[int] = set()  # the loop's thread and its workers
        started: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(
            target=self._serve, args=(started,), name="bridgehead", daemon=True
        )
        self._thread.start()
        self._loop = started.result()

    @property
    def is_current(self) -> bool:
        """Whether the caller is the loop's own thread."""
        return threading.get_ident() == self._thread.ident

    @property
    def is_usable(self) -> bool:
        """Whether a bridge may be opened on this loop."""
        return not self._ending and self._thread.is_alive()

    def check_caller(self) -> None:
        """Raise ``RuntimeError`` in the loop's own thread, where a wait for the loop never ends."""
        if self.is_current:
            raise RuntimeError(
                "a SyncBridge was used in the event-loop thread of all SyncBridges, where the call "
                "would never end; use it in another thread, not in a done callback of a task, not "
                "while an object is unpickled, and not in an iterable of map(), which takes a list "
                "of the items instead"
            )

    # ------------------------------------------------------------ calls

    def start(self, call: LoopCall[T]) -> LoopCall[T]:
        """Begin a call on the loop and return it.

        An interrupt may be raised here before or after the loop has taken the call. To start
        the call again does no harm.

        Raises:
            RuntimeError: the caller is the loop's own thread, where the call could never end, or
                is in a forked child, which does not have the loop's thread.
            LoopEnded: the loop has ended.
        """
        self.check_caller()
        if os.getpid() != self._process:
            raise RuntimeError("this bridge was opened before a fork; open another one here")
        self._calls.add(call)
        try:
            self._loop.call_soon_threadsafe(call.begin, self._calls)
        except RuntimeError:  # the loop is closed
            self._calls.discard(call)
            raise LoopEnded from None
        if self._loop.is_closed():  # its thread may have missed this call when it ended the others
            self._end_calls()
        return call

    def wait(
        self,
        function: Callable[[], Awaitable[T]],
        callbacks: CallbackRunner | None = None,
        *,
        finish: bool = False,
    ) -> T:
        """Run a call on the loop, wait for it, and return its result.

        An exception that ends the wait in this thread, such as ``KeyboardInterrupt``, cancels only
        this call; the loop goes on. With ``finish`` it is raised when the cancelled call has ended.

        Raises what ``start`` does.
        """
        call = LoopCall(function) if callbacks is None else LoopCall(function, callbacks.stop)
        try:
            self.start(call)
            if callbacks is not None:
                callbacks.run()
            return call.result()
        except BaseException as error:
            if not call.is_done:
                if call not in self._calls:  # ``start`` refused it
                    raise
                self.cancel(call)
                if finish:
                    call.wait()
            elif self._ending and isinstance(error, asyncio.CancelledError):
                raise LoopEnded from None
            raise

    def cancel(self, call: LoopCall[Any]) -> None:
        """Cancel a call; it ends soon after."""
        self.soon(lambda: call.cancel(self._calls))

    def soon(self, function: Callable[[], None]) -> None:
        """Have the loop call a function soon; with the loop, all calls have ended."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(function)

    # ------------------------------------------------------------ bridges

    async def open(self, make: Callable[[], Awaitable[C]]) -> C:
        """Open a bridge on this loop and keep the loop running until the bridge is closed.

        Raises:
            LoopEnded: the last other bridge was closed before this one was opened.
        """
        if self._ending:
            raise LoopEnded
        self._open_bridges += 1
        try:
            return await make()
        except BaseException:
            self._release()
            raise

    def close(self, bridge: Closable) -> None:
        """Close a bridge; closing the last one ends the thread.

        A ``KeyboardInterrupt`` is raised only after the bridge is closed, so nothing is left
        behind. The garbage collector may call this in the loop's own thread, which must not wait:
        there the bridge is closed soon after the call.
        """
        if self.is_current:
            closing = self._loop.create_task(self._close(bridge))
            self._closings.add(closing)  # a loop keeps only weak references to its tasks
            closing.add_done_callback(self._closings.discard)
            return
        closed = LoopCall(lambda: self._close(bridge))
        try:
            try:
                self.start(closed).wait()
            except BaseException:
                self.start(closed).result()  # the interrupt may have come before it was started
                raise
            closed.result()
        finally:
            self.join()

    def join(self) -> None:
        """Wait until the thread has ended, if its last bridge was closed.

        The loop's own threads do not wait, because the loop waits for them.
        """
        if self._ending and threading.get_ident() not in self._own_threads:
            self._thread.join()

    async def _close(self, bridge: Closable) -> None:
        try:
            await bridge.aclose()
        finally:
            self._release()

    def _release(self) -> None:
        self._open_bridges -= 1
        if not self._open_bridges:
            self._ending = True
            self._loop.stop()

    # ------------------------------------------------------------ the thread

    def _serve(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        self._note_own_thread()
        runner = asyncio.Runner()
        try:
            loop = runner.get_loop()
            threads = threads_of[loop] = Threads(self._note_own_thread)
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits for it
            started.set_exception(error)
            return
        started.set_result(loop)
        try:
            while not self._ending:
                # User code that runs while an object is unpickled may raise these. asyncio raises
                # them in the task, and then ends the loop as well.
                with contextlib.suppress(SystemExit, KeyboardInterrupt):
                    loop.run_forever()
        finally:
            try:
                runner.close()
                threads.close()
            finally:
                self._end_calls()

    def _note_own_thread(self) -> None:
        self._own_threads.add(threading.get_ident())

    def _end_calls(self) -> None:
        """End the calls that the loop did not begin or end."""
        with contextlib.suppress(KeyError):  # empty
            while True:
                call = self._calls.pop()  # two threads may run this; each call goes to one of them
                if not call.is_done:
                    call.end(LoopEnded())


# ------------------------------------------------------------ the thread of this process

# Reentrant: the garbage collector may run code that opens or closes a bridge while this thread
# holds the lock.
_lock = threading.RLock()
_shared: LoopThread | None = None


def shared_thread() -> LoopThread:
    """Return the loop thread of this process; start it if it does not run."""
    global _shared
    with _lock:
        if _shared is None or not _shared.is_usable:
            _shared = LoopThread()
        return _shared


def open_on_shared_loop(make: Callable[[], Awaitable[C]]) -> tuple[LoopThread, C]:
    """Open a bridge on the shared loop; return the loop's thread and the bridge.

    An exception that ends the wait cancels the opening, and is raised when nothing is left of it:
    a kernel that was being started has ended.
    """
    while True:
        thread = shared_thread()
        try:
            return thread, thread.wait(functools.partial(thread.open, make), finish=True)
        except LoopEnded:  # its last bridge was closed meanwhile
            continue
        except BaseException:
            thread.join()
            raise


def _after_fork() -> None:
    global _lock, _shared
    _lock, _shared = threading.RLock(), None


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
