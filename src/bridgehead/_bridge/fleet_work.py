"""Work that a fleet divides among its kernels.

Rule: operations of which each kernel does a part, or one kernel all. What all kernels do alike is
in ``fleet``.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import Any, TypeVar, overload

from bridgehead._bridge.arguments import (
    check_flags,
    check_now,
    checked_objects,
    checked_size,
    is_coroutine_function,
    options_of,
    takes_options,
)
from bridgehead._bridge.bridge import Bridge
from bridgehead._bridge.executor import FleetExecutor
from bridgehead._bridge.fleet_base import FleetBase
from bridgehead._bridge.fleet_map import ChunkSize, FleetMap, MapWork
from bridgehead._bridge.progress import Report, reporting
from bridgehead._bridge.scatter import divided, joined
from bridgehead._bridge.work import call_source
from bridgehead._connection.tasks import RemoteTask
from bridgehead._connection.trust import check_trust
from bridgehead._protocol.payload import PayloadSource, SharedSource
from bridgehead._protocol.results import Transfer
from bridgehead._transports.tasks import in_thread

T = TypeVar("T")


class FleetWork(FleetBase):
    """The operations of a ``Fleet`` that divide work."""

    # ------------------------------------------------------------ functions

    @overload
    def submit(
        self, function: Callable[..., Coroutine[Any, Any, T]], /, *args: Any, **kwargs: Any
    ) -> RemoteTask[T]: ...

    @overload
    def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> RemoteTask[T]: ...

    @takes_options(Bridge.submit)
    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> RemoteTask[Any]:
        """Send a function to the kernel that has least to do, and return a handle on its work.

        That is the kernel with the fewest operations of its bridge and tasks that are not done; of
        equal ones, that which was chosen longest ago. A kernel that is lost is not chosen.

        Args:
            function, args, kwargs: as in ``Bridge.submit``, and its options; ``on_output`` gets the
                index of the kernel, too. A ``Ref`` belongs to one kernel, and is a ``ValueError``,
                raised here or from the task.

        Raises:
            OutcomeUnknown, BridgeClosed: no kernel is left; it says what ended the first one.

        Example::

            >>> tasks = [fleet.submit(abs, -n) for n in range(3)]
            >>> [await task for task in tasks]
            [0, 1, 2]
        """
        return self._submitted(function, args, kwargs)

    def _submitted(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        any_process: bool = False,
    ) -> RemoteTask[Any]:
        """Do as ``submit``; with ``any_process`` also in a kernel whose restart is not reported."""
        kwargs = kwargs or {}
        options = self._options(Bridge.submit, kwargs)
        source = self._call_source(function, args, kwargs, options)
        bridge = self._least_loaded()
        given = self._given(options, self._bridges.index(bridge), [])
        work = bridge._work(function, args, kwargs, **given, source=source)
        work.call.any_process = any_process
        return bridge._task(work)

    def _least_loaded(self) -> Bridge:
        alive = [bridge for bridge in self._order if not bridge._transport.life.is_lost]
        if not alive:
            self[0]._connection.check()
        responsive = [one for one in alive if not one._transport.life.is_unresponsive]
        chosen = min(responsive or alive, key=_load)
        self._order.remove(chosen)
        self._order.append(chosen)
        return chosen

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
    ) -> FleetMap[T]:
        """Call a function with each of many items, on whichever kernel is free.

        Each kernel has one chunk of items at work, and ``window - 1`` chunks ahead. The function
        crosses once for each kernel. Items are read as kernels take them, so they may be endless:
        at most four times what the kernels have is read ahead of the consumer, who thus stops the
        work by waiting. They are read in the event loop, so reading one must not take long.

        A kernel that is lost loses the chunk that it had begun. The others get what it had not. One
        that another program restarts gets the function again, and goes on. If no error of the map
        has said so, the next other call of that bridge raises ``KernelRestarted``.

        Args:
            function: any callable that can be pickled, plain or async. The chunks that a kernel has
                of an async one are at work together, and the items of a chunk one after the other.
            iterables: as of the builtin ``map``; the shortest one ends it.
            ordered: give the results in the order of the items; else as they come.
            chunksize: items that cross together, 10,000 at most; ``"auto"`` for about 50 ms of
                work, and 8 MB.
            window: chunks that a kernel has.
            retries: further tries of an item whose kernel was lost while it may have run (an
                ``OutcomeUnknown``), each on whichever kernel is free. An item that raises is not
                tried again.
            return_exceptions: give what an item raised, in place of its result. Without it the
                first error ends the map, and is raised after the results before it.
            by_value, namespace: as in ``Bridge.call``.

        Returns:
            A ``FleetMap``: an async iterator, and an async context manager. When it is left, what
            runs is interrupted, and the rest never begins.

        The first three of these errors are raised at once, the others while the results are
        iterated. So is what the iterables raise, after the results of the items before.

        Raises:
            TypeError: there is no iterable, or an argument is of a wrong type.
            ValueError: ``chunksize``, ``window`` or ``retries`` is too small.
            NotSupported: an async function, and a kernel that sends no events.
            RemoteError: the function raised for an item.
            OutcomeUnknown: the kernel was lost that had the item (``KernelDied``), or no kernel is
                left.
            KernelRestarted: a kernel was restarted before, and no call has reported that yet.
            EncodeError: the function or an item cannot be pickled.
            UntrustedPayload: a result is more than data, and only data is trusted.

        Example::

            >>> async with fleet.map(pow, range(4), [2, 2, 2, 2]) as squares:
            ...     [square async for square in squares]
            [0, 1, 4, 9]
        """
        for bridge in self:
            bridge._connection.check_caller()
        if not callable(function):
            raise TypeError(f"map() takes a function, not {type(function).__name__}")
        if not iterables:
            raise TypeError("map() takes at least one iterable")
        if chunksize != "auto":
            _check_count("chunksize", chunksize, 1)
        _check_count("window", window, 1)
        _check_count("retries", retries, 0)
        check_flags(ordered=ordered, return_exceptions=return_exceptions)
        self._refuse_refs(function)
        if is_coroutine_function(function):
            for bridge in self:
                bridge._connection.require_events("an async function")
        work = MapWork(
            self._bridges,
            function,
            iterables,
            ordered=ordered,
            chunksize=chunksize,
            window=window,
            retries=retries,
            return_exceptions=return_exceptions,
            by_value=by_value,
            namespace=namespace,
            stand_ins=self._stand_ins,
            note=self._note,
        )
        return FleetMap(work, getattr(function, "__qualname__", type(function).__qualname__))

    def executor(self) -> FleetExecutor:
        """Return a ``concurrent.futures.Executor`` whose functions run in the kernels.

        It is for ``loop.run_in_executor`` and for libraries that take an executor. Any thread may
        use it, the event loop's own too; see ``FleetExecutor``.

        Example::

            >>> loop = asyncio.get_running_loop()
            >>> await loop.run_in_executor(fleet.executor(), abs, -1)
            1
        """
        submit = partial(self._submitted, any_process=True)
        return FleetExecutor(submit, self[0]._connection.loop, self._bridges)

    # ------------------------------------------------------------ sequences

    async def scatter(
        self,
        name: str,
        sequence: Any,
        /,
        *,
        progress: bool | Report = False,
        **options: Any,
    ) -> list[Transfer]:
        """Divide a sequence, and bind a part of it to a name in each kernel.

        The parts are contiguous and in the order of the kernels, and their lengths differ by one
        at most. If there are fewer items than kernels, the last kernels get empty parts.

        Args:
            name: the name, in every kernel.
            sequence: a list, a tuple (no named one), a numpy array (along axis 0), the rows of a
                pandas or polars frame or series, or of an Arrow table.
            options: those of ``Fleet.push``.

        Raises:
            TypeError: the sequence is of another type.
            ValueError: it has a ``Ref``, which belongs to one kernel.
            EncodeError, PayloadTooLarge, UntrustedPayload: a part cannot cross; as in
                ``Bridge.push``.
            FleetError: kernels failed; the others have their parts.

        Example::

            >>> await fleet.scatter("rows", [1, 2, 3])
            [<Transfer rows: ...>, <Transfer rows: ...>]
            >>> await fleet.pull("rows")
            [[1, 2], [3]]
            >>> await fleet.gather("rows")
            [1, 2, 3]
        """
        parts = divided(sequence, len(self))
        policy = options.pop("return_exceptions", False), options.pop("fail_fast", False)
        options = self._checked_options(Bridge.push, options)
        timeout, now, data = options["timeout"], options["now"], options["trust"] == "data"
        check_trust(options["trust"])
        check_now(now)
        limit = checked_size(options["max_bytes"])
        sources = [
            # With the whole sequence, the path in an error is one in what the caller gave.
            PayloadSource(
                objects, {name: sequence}, options["by_value"], self._stand_ins, limit, data
            )
            for objects in [checked_objects({name: part}, {}) for part in parts]
        ]
        with reporting(progress, "scatter") as report, self._turns(now=now) as turns:
            # All before any is sent: what cannot cross leaves all kernels unchanged.
            payloads = await in_thread(lambda: [source.pack("none") for source in sources])
            together = self._together(report)

            async def push(bridge: Bridge, index: int) -> Transfer:
                one = together(index) if progress else None
                way = {"now": now, "data": data, "turn": turns[index]}
                return await bridge._bind([name], payloads[index], timeout, one, **way)

            return await self._all(push, *policy)

    async def gather(
        self, expression: str, /, *, progress: bool | Report = False, **options: Any
    ) -> Any:
        """Pull a sequence of each kernel, and return all of them as one, in the kernels' order.

        It gives what ``scatter`` was given: of the same type, with the same items.

        Args:
            expression: a name, or any expression, whose values are sequences of one type.
            options: those of ``Fleet.pull`` but ``return_exceptions``: an exception in place of a
                part could not be joined; ``pull`` takes it, and returns the parts in order.

        Raises:
            TypeError: the values are of different types, or of one that ``scatter`` does not take.
            FleetError: kernels failed; ``results`` has the parts of the others.

        Example::

            >>> await fleet.scatter("rows", (1, 2, 3))
            [<Transfer rows: ...>, <Transfer rows: ...>]
            >>> await fleet.gather("tuple(n * n for n in rows)")
            (1, 4, 9)
        """
        if "return_exceptions" in options:
            raise TypeError("gather() takes no return_exceptions=: an error has no items")
        return joined(await self._pulled((expression,), progress, options))

    # ------------------------------------------------------------ options

    @staticmethod
    def _options(method: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Take the options of a method of ``Bridge`` out of ``kwargs``, and return all."""
        return {name: kwargs.pop(name, value) for name, value in options_of(method).items()}

    @classmethod
    def _checked_options(cls, method: Any, options: dict[str, Any]) -> dict[str, Any]:
        """Return all options of a method of ``Bridge``; raise ``TypeError`` if there are others."""
        known = cls._options(method, options)
        if options:
            unknown = next(iter(options))
            raise TypeError(f"{method.__name__}() got an unexpected keyword argument {unknown!r}")
        return known

    def _call_source(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: Mapping[str, Any],
    ) -> SharedSource:
        """Return what a call of a function sends, whichever kernel gets it."""
        self._refuse_refs(function, *args, *kwargs.values())
        by_value, namespace = options["by_value"], options["namespace"]
        return call_source(
            SharedSource, function, args, kwargs, self._stand_ins, by_value, namespace
        )


def _load(bridge: Bridge) -> int:
    """Return how much a kernel has to do, as far as its bridge knows."""
    connection = bridge._connection
    turns = len(connection.queue.turns)
    others = not turns and bridge.state == "busy"  # such as another client's cell
    return turns + connection.resources.count()["tasks"] + others


def _check_count(name: str, value: object, least: int) -> None:
    if type(value) is not int:
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")
