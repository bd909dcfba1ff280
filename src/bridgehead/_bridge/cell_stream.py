"""The outputs of a cell as they come.

Rule: messages from the cell to the consumer, and what leaving early means. How the cell runs
belongs to ``cell_work``.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import deque
from collections.abc import Callable

from bridgehead._bridge.cell_work import CellWork
from bridgehead._connection.tasks import RemoteTask
from bridgehead._protocol.formatting import line
from bridgehead._protocol.results import Result
from bridgehead._transports.messages import Message


class CellStream:
    r"""An async iterator over the outputs of a cell, each a ``Message``, while it runs.

    It has the messages that ``on_output`` of ``Bridge.run`` gets. What the cell raises is raised
    at the end of the loop; then ``result`` has the ``Result``. A slow consumer slows nothing:
    messages wait here, of ``max_output`` characters at most. Cancelling a wait loses nothing.

    Leaving early, by ``aclose``, the end of ``async with`` or dropping the iterator, leaves the
    cell running, unless ``on_timeout="interrupt"``.

        >>> async with bridge.stream("print('at work', end='')\n6 * 7") as outputs:
        ...     async for message in outputs:
        ...         print(message)
        <stream at work>
        <execute_result 42>
        >>> outputs.result
        <Result [1] 42, 7 characters printed>
    """

    def __init__(self, make: Callable[[Callable[[Message], object]], CellWork], name: str) -> None:
        """Take the turn of a cell now; ``make`` makes it, of an ``on_output``."""
        self.owner: object = None  # kept from being dropped while this is used
        self._name, self._is_ended = name, False
        self._unread = unread = Unread()
        unread.work = work = make(unread.add)
        unread.task = self._task = work.submit(name)
        self._task.add_done_callback(lambda task: unread.changed.set())
        self._finalizer = weakref.finalize(self, _leave_soon, asyncio.get_running_loop(), unread)
        self._finalizer.atexit = False  # at exit, closing the bridge ends the wait for the cell

    def __repr__(self) -> str:
        state = "ended" if self._task.done() else "running"
        return f"<CellStream {line(self._name)}, {state}>"

    def __aiter__(self) -> CellStream:
        return self

    async def __aenter__(self) -> CellStream:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def __anext__(self) -> Message:
        unread = self._unread
        while not unread.messages:
            if self._is_ended:
                raise StopAsyncIteration
            if self._task.done():
                self._is_ended = True
                await self._task
                continue
            unread.changed.clear()
            await unread.changed.wait()
        return unread.messages.popleft()

    @property
    def result(self) -> Result:
        """The ``Result`` of the cell, as ``Bridge.run`` returns it; or its error is raised.

        Raises:
            asyncio.InvalidStateError: the cell has not ended.

        >>> async with bridge.stream("6 * 7") as outputs:
        ...     async for message in outputs: pass
        >>> outputs.result.data["text/plain"]
        '42'
        """
        return self._task.result()

    async def aclose(self) -> None:
        """Drop the unread messages, and those that follow.

        The cell goes on, unless ``on_timeout="interrupt"``: then it is interrupted, or never
        begins.

        >>> outputs = bridge.stream("6 * 7")
        >>> await outputs.aclose()
        >>> [message async for message in outputs]
        []
        """
        self._is_ended = True
        if self._finalizer.detach() is not None:
            self._unread.leave()


class Unread:
    """The messages of a cell that have arrived and were not read."""

    def __init__(self) -> None:
        self.messages: deque[Message] = deque()
        self.changed = asyncio.Event()
        self.work: CellWork
        self.task: RemoteTask[Result]

    def add(self, message: Message) -> None:
        """Take a message that arrived."""
        self.messages.append(message)
        self.changed.set()

    def leave(self) -> None:
        """Drop the messages: no consumer reads them any more."""
        self.messages.clear()
        self.changed.set()
        self.work.leave(self.task)


def _leave_soon(loop: asyncio.AbstractEventLoop, unread: Unread) -> None:
    """Drop the messages in the event loop; the garbage collector calls this in any thread."""
    with contextlib.suppress(RuntimeError):  # the loop is closed, and the bridge with it
        loop.call_soon_threadsafe(unread.leave)
