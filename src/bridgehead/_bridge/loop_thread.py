"""An event loop in a thread of its own, for a caller that blocks.

Rule: calls go to the loop, and what is to be shown comes back to the thread that called. No
bridge is known here.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

T = TypeVar("T")


class Meanwhile:
    """What a thread does while it waits for one call after the other.

    A notebook shows what a thread prints in the cell that started the thread, so what is to be
    shown is shown by the one that called.
    """

    def __init__(self, draw: Callable[[], object] | None = None, every: float = 0.1) -> None:
        """``draw`` is called each so many seconds."""
        self._draw, self._every = draw, every
        self._posts: SimpleQueue[Callable[[], object] | None] = SimpleQueue()

    def calling(self, function: Callable[..., object]) -> Callable[..., None]:
        """The same function for the loop's thread: it is called in the one that waits."""
        return lambda *args: self._posts.put(functools.partial(function, *args))

    def until(self, done: Future[Any]) -> None:
        done.add_done_callback(lambda done: self._posts.put(None))
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


class LoopThread:
    """A thread that runs an event loop until it is stopped."""

    def __init__(self) -> None:
        from anyio.from_thread import BlockingPortal  # 8 ms, which only a blocking face needs

        started: Future[BlockingPortal] = Future()
        serve = functools.partial(_serve, BlockingPortal, started)
        self._thread = threading.Thread(target=serve, name="bridgehead", daemon=True)
        self._thread.start()
        self._portal = started.result()

    @property
    def is_current(self) -> bool:
        return threading.current_thread() is self._thread

    def start(self, call: Callable[[], Awaitable[T]]) -> Future[T]:
        """Begin a call on the loop; cancelling what is given cancels it there."""
        return self._portal.start_task_soon(call)

    def wait(self, call: Callable[[], Awaitable[T]], here: Meanwhile | None = None) -> T:
        """Run a call on the loop; whatever ends the wait here cancels it there."""
        future = self.start(call)
        try:
            if here is not None:
                here.until(future)
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        self._portal.call(self._portal.stop)
        self._thread.join()


def _serve(make: type[BlockingPortal], started: Future[BlockingPortal]) -> None:
    """anyio's own starter is a generator, which hangs a forked child."""

    async def serve() -> None:
        async with make() as portal:
            started.set_result(portal)
            await portal.sleep_until_stopped()

    asyncio.run(serve())
