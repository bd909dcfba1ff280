"""The closing of a connection whose bridge was dropped unclosed.

Rule: whatever the event loop does meanwhile, the connection is closed once. The garbage collector
may drop a bridge in any thread, at any line, and after the loop has ended.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from typing import TYPE_CHECKING

from bridgehead._transports.tasks import finish

if TYPE_CHECKING:
    from bridgehead._connection.connection import Connection

log = logging.getLogger("bridgehead")
_begun: set[Abandoned] = set()  # a loop keeps only weak references to its tasks


class Abandoned:
    """A connection without a bridge."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def close(self) -> None:
        """Close the connection soon, in its loop, or in a thread if that loop has ended.

        Not for a forked child, in which everything belongs to the parent.
        """
        loop = self._connection.loop
        try:
            if _is_in(loop):
                self._begin()
            else:
                loop.call_soon_threadsafe(self._begin)
        except RuntimeError:  # the loop is closed
            self._close_elsewhere()

    def _begin(self) -> None:
        _begun.add(self)
        self._connection.loop.create_task(self._close()).add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        _begun.discard(self)
        if not task.cancelled() and task.exception() is not None:
            log.warning("closing a dropped bridge failed: %s", task.exception())
        elif not self._connection.transport.is_released:
            self._close_elsewhere()  # asyncio.run cancels all tasks at its end, even new ones

    async def _close(self) -> None:
        await finish(self._connection.aclose())

    def _close_elsewhere(self) -> None:
        # While the interpreter ends, a thread would never start. The system then closes everything,
        # and a kernel notices that its parent has ended.
        if not sys.is_finalizing():
            threading.Thread(target=self._close_in_thread, name="bridgehead-closing").start()

    def _close_in_thread(self) -> None:
        timings = self._connection.transport.timings
        until = time.monotonic() + timings.loop_ends
        while not self._connection.loop.is_closed() and time.monotonic() < until:
            time.sleep(timings.poll_every)
        try:
            asyncio.run(self._close())
        except Exception as error:  # noqa: BLE001 - no caller waits for it
            log.warning("closing a dropped bridge failed: %s", error)


def _is_in(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
