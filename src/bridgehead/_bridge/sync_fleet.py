"""The blocking ``SyncFleet``, for scripts, threads and notebook cells.

Rule: no logic and no signatures of its own. Each operation is one of ``Fleet``, made to block as
``sync`` makes those of ``Bridge``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final, ParamSpec, Self, TypeVar, overload

from bridgehead._bridge.blocking_methods import blocking, documented, iterating, making
from bridgehead._bridge.bridge import Bridge
from bridgehead._bridge.executor import FleetExecutor
from bridgehead._bridge.fleet import Fleet
from bridgehead._bridge.opening import Opening
from bridgehead._bridge.sync import SyncBridge
from bridgehead._bridge.sync_base import SyncTargets
from bridgehead._bridge.sync_task import SyncTask
from bridgehead._protocol.ref import Ref
from bridgehead._protocol.results import fleet_html

P = ParamSpec("P")
T = TypeVar("T")

TYPE_CHECKING = False  # see ``blocking_methods``

if TYPE_CHECKING:

    def opening_of(make: Callable[P, Opening[Any]]) -> classmethod[Any, P, SyncFleet]: ...

else:
    from bridgehead._bridge.blocking_methods import opening_of


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

    launch: Final = opening_of(Fleet.launch)
    over: Final = opening_of(Fleet.over)

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

    push: Final = blocking(Fleet.push)
    pull: Final = blocking(Fleet.pull)
    names: Final = blocking(Fleet.names)
    delete: Final = blocking(Fleet.delete)
    exists: Final = blocking(Fleet.exists)
    run: Final = blocking(Fleet.run)
    call: Final = blocking(Fleet.call)
    interrupt: Final = blocking(Fleet.interrupt)
    restart: Final = blocking(Fleet.restart)
    scatter: Final = blocking(Fleet.scatter)
    gather: Final = blocking(Fleet.gather)

    watch: Final = iterating(Fleet.watch, tuple[int, Any])
    map: Final = iterating(Fleet.map, T)
    submit: Final = making(Fleet.submit, SyncTask[Any])

    @documented(Fleet.executor)
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
