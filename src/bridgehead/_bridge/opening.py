"""What the constructors of bridges and fleets return: one that is not open yet.

Rule: how it is awaited or entered, and the options that all constructors of a bridge share. The
constructors are in ``constructors``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from bridgehead._bridge.loop_thread import Closable
from bridgehead._connection.call import check_seconds
from bridgehead._connection.trust import TrustName, allowed, check_trust
from bridgehead._lanes.handshake import LaneName, check_lane
from bridgehead._transports.tasks import noted_on, require_asyncio

C = TypeVar("C", bound=Closable)


class Opening(Generic[C]):
    """A bridge or fleet that is not open yet: await it, or enter it with ``async with``."""

    def __init__(self, make: Callable[[], Awaitable[C]], timeout: float, kind: str) -> None:
        check_seconds(timeout)
        self._make, self._kind = make, kind
        self._bridge: C | None = None

    def __repr__(self) -> str:
        return f"<{self._kind}, not open yet: await it, or enter it with async with>"

    if not TYPE_CHECKING:  # a type checker reports both mistakes by itself

        def __getattr__(self, name):
            raise AttributeError(f"{self!r} has no attribute {name!r}")

        def __enter__(self):
            raise TypeError(f"{self!r}; for a plain 'with' use SyncBridge")

        def __exit__(self, *exc_info): ...

    def __await__(self) -> Generator[Any, None, C]:
        require_asyncio()
        return self._make().__await__()

    async def __aenter__(self) -> C:
        require_asyncio()
        self._bridge = await self._make()
        return self._bridge

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bridge is not None:
            with noted_on(error):
                await self._bridge.aclose()


class OpenOptions:
    """The options that all constructors of a bridge share, checked.

    Attributes:
        lane: the lane to use; ``"auto"`` for the fastest one that works.
        trust: what to open of what the kernel sends; None decides by what the kernel proves.
        allow: classes beyond data that are opened, by ``module.qualname``.
        pool: the largest share of the free memory that objects in transit may take.
    """

    def __init__(
        self,
        lane: LaneName = "auto",
        trust: TrustName | None = None,
        allow: Collection[type | str] = (),
        pool: float = 0.5,
    ) -> None:
        check_lane(lane)
        if not isinstance(pool, (int, float)) or not 0 <= pool <= 1:
            raise ValueError(f"pool must be a share of the free memory, from 0 to 1, not {pool!r}")
        if trust is not None:
            check_trust(trust)
        self.lane, self.trust, self.allow, self.pool = lane, trust, allowed(allow), float(pool)
