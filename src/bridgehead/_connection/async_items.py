"""The base of iterations, watches and streams: an async iterator that a block can close.

Rule: only what all of them share. A subclass says how the next item comes, and what closing ends.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, Self, TypeVar

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
