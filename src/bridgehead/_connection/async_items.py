"""The base of iterations, watches and streams: an async iterator that a block can close.

Rule: only what all of them share. A subclass says how the next item comes, and what closing ends.
Items that arrive several at a time wait in one place, and count as consumed when a consumer has
popped them, in whatever thread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T", covariant=True)


class AsyncItems(ABC, Generic[T]):
    """An async iterator with ``aclose``; leaving ``async with`` closes it."""

    def __aiter__(self) -> Self:
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    @abstractmethod
    async def __anext__(self) -> T: ...

    @abstractmethod
    async def aclose(self) -> None: ...


class ItemBuffer(ABC):
    """Items that have arrived and were not consumed. The loop adds them; any thread may pop them.

    A deque needs no lock for that.
    """

    def __init__(self) -> None:
        self.ready: deque[Any] = deque()

    @abstractmethod
    async def wait(self) -> None:
        """Wait until there is an item; raise what ended the iteration if there is none."""

    @property
    @abstractmethod
    def wants_more(self) -> bool:
        """Whether ``go_on`` would do something."""

    @abstractmethod
    def go_on(self) -> None:
        """Have more items made, if the consumer is not too far behind."""

    def opened(self, item: Any) -> Any:
        """Return what the consumer gets for an item."""
        return item

    def pop(self, call: Callable[[Callable[[], None]], object] | None = None) -> Any:
        """Return the next item, and have more made in time.

        Another thread gives ``call``, which has the loop call a function.

        Raises:
            IndexError: there is none.
        """
        item = self.ready.popleft()
        if self.wants_more:
            if call is None:
                self.go_on()
            else:
                call(self.go_on)
        return self.opened(item)

    def pop_all(self) -> list[Any]:
        items = [self.opened(self.ready.popleft()) for _ in range(len(self.ready))]
        if self.wants_more:
            self.go_on()
        return items


class BufferedItems(AsyncItems[T]):
    """An async iterator over items that arrive several at a time."""

    @property
    @abstractmethod
    def _buffer(self) -> ItemBuffer: ...
