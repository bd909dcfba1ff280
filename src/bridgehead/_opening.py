"""A bridge that is not open yet.

Rule: awaitable and an async context manager, as connections are elsewhere; what is wrong with
its arguments is told before anything is started.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from bridgehead._foothold import LaneName, check_lane, check_seconds

if TYPE_CHECKING:
    from bridgehead._bridge import Bridge

B = TypeVar("B", bound="Bridge")


class Opening(Generic[B]):
    """A bridge to be: ``await`` it, or enter it with ``async with``."""

    def __init__(self, make: Callable[[], Awaitable[B]], lane: LaneName, timeout: float) -> None:
        check_lane(lane)
        check_seconds(timeout)
        self._make = make
        self._bridge: B | None = None

    def __repr__(self) -> str:
        return "<Bridge, not open yet: await it, or enter it with async with>"

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{self!r} has no {name!r} before")

    def __enter__(self) -> Any:
        raise TypeError(f"{self!r}; SyncBridge is for a plain with")

    def __exit__(self, *exc_info: object) -> None: ...

    def __await__(self) -> Generator[Any, None, B]:
        return self._make().__await__()

    async def __aenter__(self) -> B:
        self._bridge = await self._make()
        return self._bridge

    async def __aexit__(self, *exc_info: object) -> None:
        if self._bridge is not None:
            await self._bridge.aclose()
