"""The blocking ``SyncBridge``, for scripts, threads and notebook cells.

Rule: no logic and no signatures of its own. Each operation is one of ``Bridge``, run on the event
loop that all SyncBridges share, so it works both outside and inside a running event loop. Callbacks
run in the calling thread. Only the overloads of ``handoff`` repeat its options: what it returns
depends on ``to=``, and no type can say that of another function's parameters.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import (
    Awaitable,
    Callable,
    Iterator,
    MutableMapping,
)
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, ParamSpec, Self, overload

from bridgehead._bridge.arguments import (
    is_coroutine_function,
)
from bridgehead._bridge.blocking_methods import (
    blocking,
    documented,
    iterating,
    making,
    written_as,
)
from bridgehead._bridge.bridge import Bridge
from bridgehead._bridge.notebook import run_notebook
from bridgehead._bridge.opening import Opening
from bridgehead._bridge.progress import Report
from bridgehead._bridge.sync_base import SyncBase, SyncTargets
from bridgehead._bridge.sync_iterators import SyncStream
from bridgehead._bridge.sync_task import SyncTask
from bridgehead._connection.callbacks import Callback
from bridgehead._connection.trust import TrustName
from bridgehead._kernels.discovery import DiscoveredKernel, kernels
from bridgehead._protocol.ref import Ref
from bridgehead._protocol.results import Info, Names, Stats, Transfer, bridge_html
from bridgehead._transports.messages import Message
from bridgehead._transports.tasks import in_thread

P = ParamSpec("P")

TYPE_CHECKING = False  # see ``blocking_methods``

if TYPE_CHECKING:

    def opening_of(make: Callable[P, Opening[Any]]) -> classmethod[Any, P, SyncBridge]: ...

else:
    from bridgehead._bridge.blocking_methods import opening_of


class SyncBridge(SyncBase, MutableMapping[str, Any]):
    """A ``Bridge`` whose operations block, and a mapping of the kernel's names.

    ``with SyncBridge.launch() as kernel: kernel["x"] = 1``. The mapping has the names that
    ``names()`` lists. Getting an item evaluates any expression; a name that does not exist raises
    ``KeyError``. Any thread may use a SyncBridge, including one that runs an event loop. A
    ``KeyboardInterrupt`` ends the wait for an operation; what the kernel runs goes on (see
    ``interrupt``).

    All SyncBridges of a process share one event-loop thread, which ends with the last of them.

    In the examples of the methods, ``kernel`` and ``target`` are open SyncBridges.

    >>> kernel["rows"] = [1, 2]
    >>> kernel["sum(rows)"], "rows" in kernel, list(kernel)
    (3, True, ['rows'])
    """

    __slots__ = ()
    _bridge: Bridge

    def __init__(self, make: Callable[[], Awaitable[Bridge]]) -> None:
        self._open(make)

    def __enter__(self) -> Self:  # jedi finds the type of ``with``'s variable here, not in a base
        return self

    # ------------------------------------------------------------ opening

    # Final, because pyright accepts an inferred type of a public attribute only then.
    launch: Final = opening_of(Bridge.launch)
    attach: Final = opening_of(Bridge.attach)
    connect: Final = opening_of(Bridge.connect)
    over: Final = opening_of(Bridge.over)
    loopback: Final = opening_of(Bridge.loopback)

    @staticmethod
    def kernels() -> list[DiscoveredKernel]:
        """Return the kernels that can be reached; see ``bridgehead.kernels``.

        >>> for found in SyncBridge.kernels():
        ...     print(found.state, found.where)
        """
        # In a thread of its own, because this thread may run an event loop.
        with ThreadPoolExecutor(1) as executor:
            return executor.submit(asyncio.run, kernels()).result()

    def close(self) -> None:
        """Close the bridge: end the kernel if this bridge started it, else only the connection.

        Calls that wait in other threads raise ``BridgeClosed``. Everything is released, whatever
        fails; called again, ``close`` tries again what failed. At the end of ``with``, an error of
        the block is raised, and what failed in closing is a note on it. A bridge is also closed
        when it is garbage collected, with a ``ResourceWarning``, and when Python exits.

        Raises:
            TransportError: the server did not end the kernel that this bridge started. If the
                server cannot be reached, a warning is logged instead.

        >>> kernel.close()
        >>> kernel.state
        'closed'
        """
        super().close()

    # ------------------------------------------------------------ operations

    push: Final = blocking(Bridge.push)
    pull: Final = blocking(Bridge.pull)
    names: Final = blocking(Bridge.names)
    delete: Final = blocking(Bridge.delete)
    exists: Final = blocking(Bridge.exists)
    call: Final = blocking(Bridge.call)
    run: Final = blocking(Bridge.run)
    interrupt: Final = blocking(Bridge.interrupt)
    restart: Final = blocking(Bridge.restart)
    iterate: Final = iterating(Bridge.iterate, Any)
    watch: Final = iterating(Bridge.watch, Any)
    watch_names: Final = iterating(Bridge.watch_names, Names)
    messages: Final = iterating(Bridge.messages, Message)

    submit: Final = making(Bridge.submit, SyncTask[Any])
    stream: Final = making(Bridge.stream, SyncStream)
    run_notebook: Final = blocking(run_notebook)

    @written_as(Bridge.callback)
    def callback(self, function: Callable[..., object], *args: Any, **kwargs: Any) -> Callback:
        if is_coroutine_function(function):
            raise TypeError("the callback of a SyncBridge is a plain function, not an async one")

        async def make() -> Callback:
            called = _in_other_thread(function) if callable(function) else function
            return self._bridge.callback(called, *args, **kwargs)

        return self._wait(make)

    if TYPE_CHECKING:  # typing cannot replace the type of one parameter in a ParamSpec

        @overload
        def handoff(
            self,
            *names: str,
            to: SyncBridge,
            return_exceptions: bool = False,
            fail_fast: bool = False,
            timeout: float | None = None,
            progress: bool | Report = False,
            max_bytes: int | None = None,
            trust: TrustName | None = None,
        ) -> Transfer: ...

        @overload
        def handoff(
            self,
            *names: str,
            to: SyncTargets,
            return_exceptions: bool = False,
            fail_fast: bool = False,
            timeout: float | None = None,
            progress: bool | Report = False,
            max_bytes: int | None = None,
            trust: TrustName | None = None,
        ) -> list[Transfer]: ...

        def handoff(self, *names: str, **options: Any) -> Any: ...

    else:

        @written_as(Bridge.handoff)
        def handoff(self, *names: str, to: SyncBridge | SyncTargets, **options: Any) -> Any:
            if not isinstance(to, (SyncBridge, SyncTargets)):
                raise TypeError(f"to= must be a SyncBridge or a SyncFleet, not {type(to).__name__}")
            self._check()
            to._check()
            return _handoff(self, *names, to=to._bridge, **options)

    @documented(Bridge.ref)
    def ref(self, expression: str) -> Ref:
        return _own_ref(self, self._bridge.ref(expression))

    @property
    @documented(Bridge.state)
    def state(self) -> str:
        return self._bridge.state

    @property
    @documented(Bridge.info)
    def info(self) -> Info:
        return self._bridge.info

    @property
    @documented(Bridge.stats)
    def stats(self) -> Stats:
        return self._bridge.stats

    def __reduce__(self) -> Any:
        raise TypeError("a bridge cannot be pickled; open another one in the other process")

    def __repr__(self) -> str:
        return f"<Sync{repr(self._bridge)[1:]}"

    def _repr_html_(self) -> str:
        return bridge_html("SyncBridge", self.state, self.info)

    # ------------------------------------------------------------ a mapping of names

    def __getitem__(self, name: str) -> Any:
        return self.pull(name)

    def __setitem__(self, name: str, value: Any) -> None:
        self.push({name: value})

    def __delitem__(self, name: str) -> None:
        self.delete(name)

    def __iter__(self) -> Iterator[str]:
        return iter([entry.name for entry in self.names()])

    def __len__(self) -> int:
        return len(self.names())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.isidentifier() and self.exists(name)

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        # By identity: two bridges are not equal because their kernels have equal names.
        return True if self is other else NotImplemented

    def _own(self, value: Any) -> Any:
        # One of this bridge, so that its pull() blocks, too.
        return _own_ref(self, value) if type(value) is Ref else value


_handoff = blocking(Bridge.handoff)


def _own_ref(bridge: SyncBridge, ref: Ref) -> Ref:
    """Return a ref of this bridge, so that its pull() blocks too."""
    return Ref(bridge, ref._expression, ref._objects)


def _in_other_thread(function: Callable[..., object]) -> Callable[..., object]:
    """Return a function that runs another one outside the thread of the event loop."""

    def call(*args: Any, **kwargs: Any) -> object:
        outcome = function(*args, **kwargs)
        if inspect.iscoroutine(outcome):
            outcome.close()
            raise TypeError(
                "the callback of a SyncBridge is a plain function, and this one returned a "
                "coroutine, which did not run; pass a function that does the work itself"
            )
        return outcome

    @functools.wraps(function, updated=())
    def run(*args: Any, **kwargs: Any) -> object:
        return in_thread(functools.partial(call, *args, **kwargs))

    return run
