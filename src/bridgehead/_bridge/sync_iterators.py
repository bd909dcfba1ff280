"""Iterators that block until the next item: over a watch, an iteration, the outputs of a cell.

Rule: the item is taken on the event loop that all SyncBridges share; a caller waits for it. What
an iterator keeps in the kernel ends with ``close``.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self, TypeVar

from bridgehead._bridge.cell_stream import CellStream
from bridgehead._bridge.sync_base import SyncBase
from bridgehead._errors import BridgeClosed
from bridgehead._protocol.results import Result
from bridgehead._transports.messages import Message
from bridgehead._transports.tasks import noted_on

T = TypeVar("T")


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
