"""The blocking ``SyncFleet``, for scripts, threads and notebook cells.

Rule: no logic and no signatures of its own. Each operation is one of ``Fleet``, made to block as
``sync`` makes those of ``Bridge``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar, overload

from bridgehead._bridge import sync as _sync
from bridgehead._bridge.bridge import Bridge
from bridgehead._bridge.executor import FleetExecutor
from bridgehead._bridge.fleet import Fleet
from bridgehead._bridge.fleet_map import ChunkSize
from bridgehead._bridge.sync import BlockingIterator, SyncBridge, SyncTargets, SyncTask
from bridgehead._bridge.unopened import Opening
from bridgehead._protocol.ref import Ref
from bridgehead._protocol.results import fleet_html

P = ParamSpec("P")
T = TypeVar("T")

TYPE_CHECKING = False  # see ``sync``

if TYPE_CHECKING:

    def _opening(make: Callable[P, Opening[Fleet]]) -> classmethod[Any, P, SyncFleet]: ...

    def _blocking(
        method: Callable[Concatenate[Fleet, P], Coroutine[Any, Any, T]],
    ) -> Callable[Concatenate[SyncFleet, P], T]: ...

else:
    _opening, _blocking = _sync._opening, _sync._blocking


class SyncFleet(SyncTargets, Sequence[SyncBridge]):
    """A ``Fleet`` whose operations block: a sequence of ``SyncBridge``.

    An index gives a ``SyncBridge``, and a slice a ``SyncFleet``; both are closed with this one. A
    ``SyncFleet([kernel, …])`` of bridges that are open closes none of them. Any thread may use it,
    including one that runs an event loop. A ``KeyboardInterrupt`` ends the wait for an operation;
    what the kernels run goes on. Callbacks run in the calling thread. The iterables of ``map`` are
    read in the event-loop thread of all blocking bridges, so they may not use one: pass a list.

    In the examples of the methods, ``kernels`` is an open SyncFleet of two.

    >>> kernels.push(x=1)
    [<Transfer x: ...>, <Transfer x: ...>]
    >>> kernels.pull("x + 1")
    [2, 2]
    >>> kernels[1]["x"]
    1
    """

    __slots__ = ("_kernels",)
    _bridge: Fleet
    _kernels: list[SyncBridge]

    def __init__(
        self,
        bridges: Sequence[SyncBridge] | Callable[[], Awaitable[Fleet]],
        *,
        pool: float = 0.5,
    ) -> None:
        """Make a fleet of open bridges; the arguments and errors are those of ``Fleet``.

        ``launch`` and ``over`` give a function that opens a ``Fleet``, which ``close`` closes.
        """
        if callable(bridges):
            self._open(bridges)
            self._kernels = list(map(self._borrowed, self._bridge))
            return
        kernels = self._kernels = list(bridges)
        for kernel in kernels:
            if not isinstance(kernel, SyncBridge):
                raise TypeError(f"a SyncFleet takes SyncBridges, not {type(kernel).__name__}")
            kernel._check()
        if not kernels:
            raise ValueError("a fleet takes at least one bridge, and each bridge once")

        async def make() -> Fleet:
            return Fleet([kernel._bridge for kernel in kernels], pool=pool)

        self._borrow(kernels[0]._wait(make), kernels[0]._thread)

    def __enter__(self) -> Self:
        return self

    def _borrowed(self, bridge: Bridge) -> SyncBridge:
        """Return a ``SyncBridge`` of one of the bridges, which is closed with the fleet."""
        kernel = SyncBridge.__new__(SyncBridge)
        kernel._borrow(bridge, self._thread)
        return kernel

    # ------------------------------------------------------------ opening

    launch: Final = _opening(Fleet.launch)
    over: Final = _opening(Fleet.over)

    def close(self) -> None:
        """Close the bridges that this fleet opened, and end the kernels that ``launch`` started.

        All are closed, whatever fails in one; see ``SyncBridge.close``.

        Raises:
            FleetError: closing failed.

        >>> kernels.close()
        >>> kernels[0].state  # the caller passed it in, so it stays open
        'idle'
        """
        super().close()

    # ------------------------------------------------------------ a sequence of bridges

    @overload
    def __getitem__(self, index: int) -> SyncBridge: ...

    @overload
    def __getitem__(self, index: slice) -> Self: ...

    def __getitem__(self, index: int | slice) -> SyncBridge | Self:
        if not isinstance(index, slice):
            return self._kernels[index]
        part = type(self).__new__(type(self))
        part._borrow(self._bridge[index], self._thread)
        part._kernels = self._kernels[index]
        return part

    def __len__(self) -> int:
        return len(self._kernels)

    def __iter__(self) -> Iterator[SyncBridge]:
        return iter(self._kernels)

    def __repr__(self) -> str:
        return f"<Sync{repr(self._bridge)[1:]}"

    def _repr_html_(self) -> str:
        shown = [(kernel.state, kernel.info) for kernel in self]
        return fleet_html(shown).replace("Fleet", "SyncFleet", 1)

    def __reduce__(self) -> Any:
        raise TypeError("a fleet cannot be pickled; open another one in the other process")

    # ------------------------------------------------------------ operations

    push: Final = _blocking(Fleet.push)
    pull: Final = _blocking(Fleet.pull)
    names: Final = _blocking(Fleet.names)
    delete: Final = _blocking(Fleet.delete)
    exists: Final = _blocking(Fleet.exists)
    run: Final = _blocking(Fleet.run)
    call: Final = _blocking(Fleet.call)
    interrupt: Final = _blocking(Fleet.interrupt)
    restart: Final = _blocking(Fleet.restart)
    scatter: Final = _blocking(Fleet.scatter)
    gather: Final = _blocking(Fleet.gather)

    @_sync._documented(Fleet.watch)
    def watch(self, *expressions: str | Ref, **options: Any) -> Iterator[tuple[int, Any]]:
        async def begin() -> Any:
            return self._bridge.watch(*expressions, **options)

        return BlockingIterator(self, self._wait(begin))

    @_sync._documented(Fleet.map)
    def map(
        self,
        function: Callable[..., T],
        /,
        *iterables: Iterable[Any],
        ordered: bool = True,
        chunksize: ChunkSize = 1,
        window: int = 2,
        retries: int = 0,
        return_exceptions: bool = False,
        by_value: Sequence[ModuleType] = (),
        namespace: bool = False,
    ) -> BlockingIterator[T]:
        options: Any = {
            "ordered": ordered,
            "chunksize": chunksize,
            "window": window,
            "retries": retries,
            "return_exceptions": return_exceptions,
            "by_value": by_value,
            "namespace": namespace,
        }

        async def begin() -> Any:
            return self._bridge.map(function, *iterables, **options)

        return BlockingIterator(self, self._wait(begin))

    @_sync._documented(Fleet.submit)
    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> SyncTask[Any]:
        async def start() -> SyncTask[Any]:
            return SyncTask(self, self._bridge.submit(function, *args, **kwargs))

        return self._wait(start)

    @_sync._documented(Fleet.executor)
    def executor(self) -> FleetExecutor:
        self._check()
        return self._bridge.executor()

    def _own(self, value: Any) -> Any:
        if type(value) is list:
            return [self._own(item) for item in value]
        if type(value) is Ref:
            owner = next(kernel for kernel in self if kernel._bridge is value._bridge)
            return owner._own(value)
        return value
