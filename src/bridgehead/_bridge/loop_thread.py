"""The event-loop thread that all SyncBridges of a process share.

Rule: calls go to the loop and their results come back; callbacks run in the thread that waits.
The thread starts with the first bridge and ends with the last. What a bridge can do is not known
here.

Laws of the shared thread:
- The loop alone counts the bridges that are open on it, so the count needs no lock. The garbage
  collector may close a bridge in any thread and at any line: a lock held at that line would be
  waited for by the loop, and the loop by the thread that holds it.
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

T = TypeVar("T")

# Threads start when they are needed. asyncio's own limit, 4 more than there are CPUs, would let
# the pickling of a few bridges, which may run code of the user's that waits, delay all the others.
WORKERS = 256


class LoopEnded(Exception):
    """The loop ended before it finished a call."""


class Closable(Protocol):
    """What is opened on the loop, and closed there."""

    async def aclose(self) -> None: ...


C = TypeVar("C", bound=Closable)


class CallbackQueue:
    """What a thread does while it waits for a call.

    A notebook shows what a thread prints in the cell that started the thread. So callbacks run in
    the thread that called, not in the loop's.
    """

    def __init__(self, draw: Callable[[], object] | None = None, every: float = 0.1) -> None:
        """LoopCall ``draw`` each ``every`` seconds."""
        self._draw, self._every = draw, every
        self._posts: SimpleQueue[Callable[[], object] | None] = SimpleQueue()

    def calling(self, function: Callable[..., object]) -> Callable[..., None]:
        """Return a function for the loop's thread that has the waiting thread call this one."""
        return lambda *args: self._posts.put(functools.partial(function, *args))

    def end(self) -> None:
        """End the wait, after what was posted before; the loop's thread calls this."""
        self._posts.put(None)

    def until_end(self) -> None:
        """Draw, and call what is posted, until the end."""
        while True:
            try:
                post = self._posts.get(timeout=self._every if self._draw else None)
            except Empty:
                assert self._draw is not None
                self._draw()
                continue
            if post is None:
                return
            post()


class LoopCall(Generic[T]):
    """One call on the loop, for another thread that waits for it.

    ``asyncio.run_coroutine_threadsafe`` does the same and costs 40 µs where this costs 25, of the
    150 µs that a small push takes: it notices the end one iteration of the loop later, and its
    future holds a condition for many threads where here one lock is enough.
    """

    __slots__ = ("_ended", "_error", "_function", "_on_end", "_result", "_task", "is_done")

    def __init__(
        self,
        function: Callable[[], Awaitable[T]],
        on_end: Callable[[], object] = lambda: None,
    ) -> None:
        """LoopCall ``on_end`` in the loop's thread at the end of the call."""
        self._function, self._on_end = function, on_end
        self._ended = threading.Lock()
        self._ended.acquire()  # until the call has ended
        self._task: asyncio.Task[None] | None = None
        self._result: T
        self._error: BaseException | None = None
        self.is_done = False

    def wait(self) -> None:
        """Wait for the end of the call."""
        with self._ended:
            pass

    def result(self) -> T:
        """Wait for the end; return the result, or raise what the call raised."""
        self.wait()
        error, self._error = self._error, None
        if error is None:
            return self._result
        try:
            raise error
        finally:
            del error  # its traceback refers to this frame

    # The loop's thread calls what follows.

    def begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

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
        self._open = 0  # bridges; only the loop's own thread reads and writes it
        self._ending = False
        self._calls: set[LoopCall[Any]] = set()  # those that somebody waits for
        self._closings: set[asyncio.Task[None]] = set()
        self._own: set[int] = set()  # threads that end before this one does
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

    # ------------------------------------------------------------ calls

    def start(self, call: LoopCall[T]) -> LoopCall[T]:
        """Begin a call on the loop, and return it.

        Raises:
            RuntimeError: the caller is the loop's own thread, where the call could never end, or a
                forked child, which does not have the thread.
            LoopEnded: the loop has ended.
        """
        if self.is_current:
            raise RuntimeError(
                "a SyncBridge was used in the event-loop thread of all SyncBridges, where no call "
                "can wait for its end; use it in another thread, not while an object is unpickled"
            )
        if os.getpid() != self._process:
            raise RuntimeError("this bridge was opened before a fork; open another one here")
        self._calls.add(call)
        try:
            self._loop.call_soon_threadsafe(call.begin)
        except RuntimeError:  # the loop is closed
            self._calls.discard(call)
            raise LoopEnded from None
        if self._loop.is_closed():  # maybe after its thread ended the calls that were left
            self._end_calls()
        return call

    def wait(self, function: Callable[[], Awaitable[T]], here: CallbackQueue | None = None) -> T:
        """Run a call on the loop and return its result.

        An exception that ends the wait in this thread, as ``KeyboardInterrupt`` does, cancels this
        one call; the loop goes on.

        Raises what ``start`` does.
        """
        call = LoopCall(function) if here is None else LoopCall(function, here.end)
        self.start(call)
        try:
            if here is not None:
                here.until_end()
            return call.result()
        except BaseException as error:
            if not call.is_done:
                self.cancel(call)
            elif self._ending and isinstance(error, asyncio.CancelledError):
                raise LoopEnded from None
            raise
        finally:
            self._calls.discard(call)

    def cancel(self, call: LoopCall[Any]) -> None:
        """Cancel a call that is not waited for any more."""
        self._calls.discard(call)
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the call with it
            self._loop.call_soon_threadsafe(call.cancel)

    # ------------------------------------------------------------ bridges

    async def opened(self, make: Callable[[], Awaitable[C]]) -> C:
        """Open a bridge on this loop, which runs until the bridge is closed.

        Raises:
            LoopEnded: the last bridge was closed first.
        """
        if self._ending:
            raise LoopEnded
        self._open += 1
        try:
            return await make()
        except BaseException:
            self._left()
            raise

    def close(self, bridge: Closable) -> None:
        """Close a bridge; the last one ends the thread.

        ``KeyboardInterrupt`` is raised when the bridge is closed, so it leaves nothing behind. In
        the loop's own thread, where the garbage collector may call this, nothing can wait: the
        bridge is closed soon after.
        """
        if self.is_current:
            closing = self._loop.create_task(self._closed(bridge))
            self._closings.add(closing)  # a loop keeps only weak references to its tasks
            closing.add_done_callback(self._closings.discard)
            return
        try:
            closed = self.start(LoopCall(lambda: self._closed(bridge)))
            try:
                closed.wait()
            finally:
                closed.result()
        finally:
            self.join()

    def join(self) -> None:
        """Wait until the thread has ended, if its last bridge was closed.

        The loop's own threads do not wait: the loop waits for them.
        """
        if self._ending and threading.get_ident() not in self._own:
            self._thread.join()

    async def _closed(self, bridge: Closable) -> None:
        try:
            await bridge.aclose()
        finally:
            self._left()

    def _left(self) -> None:
        self._open -= 1
        if not self._open:
            self._ending = True
            self._loop.stop()

    # ------------------------------------------------------------ the thread

    def _serve(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        from concurrent.futures import ThreadPoolExecutor  # only where a SyncBridge is opened

        self._note_own()
        runner = asyncio.Runner()
        try:
            loop = runner.get_loop()
            loop.set_default_executor(
                ThreadPoolExecutor(WORKERS, "bridgehead", initializer=self._note_own)
            )
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits for it
            started.set_exception(error)
            return
        started.set_result(loop)
        try:
            while not self._ending:
                # Code of the user's that runs while an object is unpickled may raise these. asyncio
                # hands them to the task, and then ends the loop as well.
                with contextlib.suppress(SystemExit, KeyboardInterrupt):
                    loop.run_forever()
        finally:
            try:
                runner.close()
            finally:
                self._end_calls()

    def _note_own(self) -> None:
        self._own.add(threading.get_ident())

    def _end_calls(self) -> None:
        """End the calls that the loop did not begin or end."""
        with contextlib.suppress(KeyError):  # empty
            while True:
                call = self._calls.pop()  # two threads may do this; one gets the call
                if not call.is_done:
                    call.end(LoopEnded())


# ------------------------------------------------------------ the one of this process

# Reentrant: the garbage collector may close or open a bridge while this thread holds it.
_lock = threading.RLock()
_shared: LoopThread | None = None


def shared() -> LoopThread:
    """Return the loop thread of this process; start it if there is none."""
    global _shared
    with _lock:
        if _shared is None or not _shared.is_usable:
            _shared = LoopThread()
        return _shared


def opened(make: Callable[[], Awaitable[C]]) -> tuple[LoopThread, C]:
    """Open a bridge on the shared loop; return both.

    An exception that ends the wait cancels the opening.
    """
    while True:
        thread = shared()
        try:
            return thread, thread.wait(functools.partial(thread.opened, make))
        except LoopEnded:  # its last bridge was closed since
            continue
        except BaseException:
            thread.join()
            raise


def _after_fork() -> None:
    global _lock, _shared
    _lock, _shared = threading.RLock(), None


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
