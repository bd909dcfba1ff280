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
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

T = TypeVar("T")

Posts = SimpleQueue["Callable[[], object] | None"]  # None: the call is done


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

    def wait(self, call: Callable[[], Awaitable[T]], posts: Posts | None = None) -> T:
        """Run a call on the loop; whatever ends the wait here cancels it there.

        Args:
            call: gives what is to be awaited.
            posts: callables that the loop's side puts there, to be called here meanwhile: a
                notebook shows what a thread prints in the cell that started the thread.
        """
        future = self._portal.start_task_soon(call)
        try:
            if posts is not None:
                future.add_done_callback(lambda done: posts.put(None))
                while (post := posts.get()) is not None:
                    post()
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        self._portal.call(self._portal.stop)
        self._thread.join()


def posting(call: Callable[..., object], posts: Posts) -> Callable[..., None]:
    """``call``, for the loop's side: called in the thread that waits."""
    return lambda *args: posts.put(functools.partial(call, *args))


def _serve(make: type[BlockingPortal], started: Future[BlockingPortal]) -> None:
    """anyio's own starter is a generator, which hangs a forked child."""

    async def serve() -> None:
        async with make() as portal:
            started.set_result(portal)
            await portal.sleep_until_stopped()

    asyncio.run(serve())
