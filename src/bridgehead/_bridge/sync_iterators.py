"""Iterators that block until the next item: over a watch, an iteration, the outputs of a cell.

Rule: an item is waited for on the event loop that all SyncBridges share. Those that arrived with
it are popped in the caller's thread, one for each ``next``: none is consumed before. What an
iterator keeps in the kernel ends with ``close``.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self, TypeVar

from bridgehead._bridge.cell_stream import CellStream
from bridgehead._bridge.sync_base import SyncBase
from bridgehead._connection.async_items import BufferedItems, ItemBuffer
from bridgehead._errors import BridgeClosed
from bridgehead._protocol.results import Result
from bridgehead._transports.messages import Message
from bridgehead._transports.tasks import noted_on

T = TypeVar("T")


class OneAtATime(ItemBuffer):
    """The next item of an async iterator.

    It is taken on the loop: an interrupt of the calling thread would lose it.
    """

    wants_more = False

    def __init__(self, stream: AsyncIterator[Any]) -> None:
        super().__init__()
        self._stream = stream

    async def wait(self) -> None:
        self.ready.append(await anext(self._stream))

    def go_on(self) -> None:
        """Do nothing: the iterator makes its items by itself."""


class BlockingIterator(Iterator[T]):
    """A blocking iterator over an async one.

    It is not a generator, because a generator ends with its first exception and a watch goes on.
    """

    def __init__(self, bridge: SyncBase, stream: AsyncIterator[T]) -> None:
        self._bridge, self._stream = bridge, stream
        given = stream._buffer if isinstance(stream, BufferedItems) else None
        self._buffer: ItemBuffer = given or OneAtATime(stream)
        self._is_whole = given is not None  # a caller takes the items for all that there are

    def __next__(self) -> T:
        buffer = self._buffer
        while True:
            try:
                return buffer.pop(self._bridge._soon)  # type: ignore[no-any-return]
            except IndexError:  # another thread may take the last one
                pass
            try:
                self._bridge._wait(buffer.wait)
            except StopAsyncIteration:
                raise StopIteration from None
            except BridgeClosed:
                if self._is_whole:
                    raise
                raise StopIteration from None

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
        self._buffer.ready.clear()
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
