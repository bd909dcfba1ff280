"""A sequence of bridges: how it is opened and closed, and how the outcomes of all become one.

Rule: what every operation of a ``Fleet`` uses. Which operations there are is in ``fleet``.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from bridgehead._bridge.arguments import check_callbacks, check_flags
from bridgehead._bridge.bridge import Bridge, HandoffTargets
from bridgehead._bridge.fan_out import FanOut
from bridgehead._bridge.opening import Opening
from bridgehead._bridge.progress import Report, reporting
from bridgehead._connection.callbacks import Callback
from bridgehead._connection.queue import Turn
from bridgehead._errors import FleetError, KernelNotFound, show_fleet_errors
from bridgehead._protocol.payload import SharedSource
from bridgehead._protocol.ref import Ref
from bridgehead._protocol.results import Transfer, fleet_html
from bridgehead._transports.messages import Message
from bridgehead._transports.tasks import finish, noted_on, run_all

T = TypeVar("T")


class FleetBase(Sequence[Bridge], HandoffTargets):
    """The bridges of a ``Fleet``, which adds the operations."""

    def __init__(self, bridges: Sequence[Bridge], *, pool: float = 0.5) -> None:
        """Make a fleet of open bridges.

        Args:
            bridges: at least one, and each once.
            pool: the share of the free memory that pushed objects may take; see
                ``Bridge.launch``.

        Raises:
            ValueError: there is no bridge, or one is given twice.
            TypeError: one is not an open ``Bridge``.
        """
        self._bridges = list(bridges)
        for bridge in self._bridges:
            if not isinstance(bridge, Bridge):
                raise TypeError(f"a fleet takes open bridges, not {type(bridge).__name__}")
        if not self._bridges or len(set(map(id, self._bridges))) < len(self._bridges):
            raise ValueError("a fleet takes at least one bridge, and each bridge once")
        self._order = list(self._bridges)  # the one that got work longest ago is the first
        self._owns_bridges, self._owns_memory = False, True
        self._fan_out = FanOut(pool)

    # ------------------------------------------------------------ opening

    @classmethod
    def launch(
        cls, count: int, kernel_name: str = "python3", *, pool: float = 0.5, **options: Any
    ) -> Opening[Self]:
        """Start ``count`` kernels: await it, or enter it with ``async with``.

        ``options`` are those of ``Bridge.launch``, and so are the errors. After an error or a
        cancel, the kernels that had started are ended.

        Example::

            >>> async with Fleet.launch(2) as fleet:
            ...     print(len(set(await fleet.pull("__import__('os').getpid()"))))
            2
        """
        if type(count) is not int or count < 1:
            raise ValueError(f"a fleet has at least one kernel, not {count!r}")
        openings = [Bridge.launch(kernel_name, pool=pool, **options) for _ in range(count)]
        return cls._opening(openings, pool, options)

    @classmethod
    def over(cls, client: Any, *, pool: float = 0.5, **options: Any) -> Opening[Self]:
        """Connect to each engine of an ipyparallel client, or of its view ``client[:]``.

        Await it, or enter it with ``async with``; leaving closes the bridges, and neither the
        client nor the engines. ``options`` are those of ``Bridge.over``, which says what engines
        do not support. The fleet has the engines that exist now, in the order of their ids.

        Raises:
            TypeError: ``client`` is neither a client nor a direct view.
            KernelNotFound: it has no engines.

        Example, of a cluster of two::

            >>> async with Fleet.over(client) as fleet:
            ...     print(await fleet.call(len, "abc"))
            [3, 3]
        """
        views = _views(client)
        openings = [Bridge.over(view, pool=pool, **options) for view in views]
        return cls._opening(openings, pool, options)

    @classmethod
    def _opening(
        cls, openings: Sequence[Opening[Bridge]], pool: float, options: Mapping[str, Any]
    ) -> Opening[Self]:
        async def make() -> Self:
            tasks = [asyncio.ensure_future(_opened(opening)) for opening in openings]
            try:
                await asyncio.gather(*tasks)
            except BaseException as error:
                for task in tasks:
                    task.cancel()
                with noted_on(error):
                    await finish(_all_closed(tasks))
                raise
            fleet = cls([task.result() for task in tasks], pool=pool)
            fleet._owns_bridges = True
            return fleet

        return Opening(make, options.get("timeout", 60.0), cls.__name__)

    # ------------------------------------------------------------ closing

    async def aclose(self) -> None:
        """Close the bridges that this fleet opened, and end the kernels that ``launch`` started.

        All bridges are closed, whatever fails in one, as ``Bridge.aclose`` says; the errors are
        raised as a ``FleetError``. Called again, it tries again what failed.

        >>> await fleet.aclose()
        >>> bridge.state  # the caller passed it in, so it stays open
        'idle'
        """
        try:
            if self._owns_bridges:
                await self._all(lambda bridge, index: bridge.aclose())
        finally:
            if self._owns_memory:
                self._fan_out.close()

    @property
    def _is_released(self) -> bool:
        """Whether ``aclose`` has nothing to try again."""
        return not self._owns_bridges or all(bridge._is_released for bridge in self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with noted_on(error):
            await self.aclose()

    # ------------------------------------------------------------ a sequence of bridges

    @overload
    def __getitem__(self, index: int) -> Bridge: ...

    @overload
    def __getitem__(self, index: slice) -> Self: ...

    def __getitem__(self, index: int | slice) -> Bridge | Self:
        if not isinstance(index, slice):
            return self._bridges[index]
        part = type(self)(self._bridges[index])
        part._fan_out, part._owns_memory = self._fan_out, False
        return part

    def __len__(self) -> int:
        return len(self._bridges)

    def __iter__(self) -> Iterator[Bridge]:
        return iter(self._bridges)

    def __repr__(self) -> str:
        states = Counter(bridge.state for bridge in self._bridges)
        return f"<Fleet of {len(self)}: {', '.join(f'{n} {state}' for state, n in states.items())}>"

    def _repr_html_(self) -> str:
        return fleet_html([(bridge.state, bridge.info) for bridge in self._bridges])

    # ------------------------------------------------------------ all kernels at once

    async def _each(self, name: str, args: Sequence[Any], options: Mapping[str, Any]) -> list[Any]:
        """Run one operation of ``Bridge`` in all kernels, with its options and those of a fleet."""
        options = dict(options)
        policy = options.pop("return_exceptions", False), options.pop("fail_fast", False)
        raised: list[Exception] = []

        def operation(bridge: Bridge, index: int) -> Awaitable[Any]:
            given = self._given(options, index, raised)
            done: Awaitable[Any] = getattr(bridge, name)(*args, **given)
            return done

        return await self._all(operation, *policy, raised=raised)

    async def _errors_of(
        self,
        name: str,
        args: Sequence[Any],
        return_exceptions: bool,
        options: Mapping[str, Any],
    ) -> list[Exception | None] | None:
        """Run an operation that returns nothing; with ``return_exceptions`` return the errors."""
        options = {**options, "return_exceptions": return_exceptions}
        outcomes = await self._each(name, args, options)
        return outcomes if return_exceptions else None

    async def _pulled(
        self,
        expressions: Sequence[str | Ref],
        progress: bool | Report,
        options: Mapping[str, Any],
    ) -> list[Any]:
        self._refuse_refs(*expressions)
        options = dict(options)
        policy = options.pop("return_exceptions", False), options.pop("fail_fast", False)
        with reporting(progress, "pull") as report:
            together = self._together(report)

            async def pull(bridge: Bridge, index: int) -> Any:
                one = together(index) if progress else False
                return await bridge.pull(*expressions, progress=one, **options)

            return await self._all(pull, *policy)

    async def _take_handoff(
        self, source: Bridge, names: Sequence[str], options: Mapping[str, Any]
    ) -> list[Transfer]:
        options = dict(options)
        policy = options.pop("return_exceptions"), options.pop("fail_fast")
        progress = options.pop("progress")
        with reporting(progress, "handoff") as report:
            together = self._together(report)

            async def hand_over(bridge: Bridge, index: int) -> Transfer:
                one = together(index) if progress else False
                return await source.handoff(*names, to=bridge, progress=one, **options)

            return await self._all(hand_over, *policy)

    @staticmethod
    def _given(options: Mapping[str, Any], index: int, raised: list[Exception]) -> dict[str, Any]:
        """Return the options for one kernel: ``on_output`` gets its index, too.

        What that raises is also added to ``raised``.
        """
        on_output = options.get("on_output")
        if on_output is None:
            return dict(options)
        check_callbacks(on_output=on_output)

        def note(message: Message) -> None:
            try:
                on_output(message, index)
            except Exception as error:
                raised.append(error)
                raise

        return {**options, "on_output": note}

    @contextmanager
    def _turns(self, *, now: bool = False) -> Iterator[list[Turn]]:
        """Take a turn in each kernel, before what is sent there is ready.

        So what is called later does not overtake it.
        """
        with ExitStack() as stack:
            yield [stack.enter_context(bridge._connection.turn(now=now)) for bridge in self]

    def _together(self, report: Report) -> Callable[[int], Report]:
        """Return what gives a report for each kernel, whose sums go to one report."""
        done, total = [0] * len(self), [0] * len(self)

        def of_kernel(index: int) -> Report:
            def note(done_here: int, total_here: int) -> object:
                done[index], total[index] = done_here, total_here
                return report(sum(done), sum(total))

            return note

        return of_kernel

    @staticmethod
    def _check_policy(return_exceptions: bool, fail_fast: bool) -> None:
        check_flags(return_exceptions=return_exceptions, fail_fast=fail_fast)
        if return_exceptions and fail_fast:
            raise ValueError("fail_fast=True raises the first error; return_exceptions raises none")

    async def _all(
        self,
        operation: Callable[[Bridge, int], Awaitable[T]],
        return_exceptions: bool = False,
        fail_fast: bool = False,
        source: SharedSource | None = None,
        raised: Sequence[Exception] = (),
    ) -> list[Any]:
        """Run an operation on all bridges, each with its index; return the results.

        ``source`` is what all kernels get, and ``raised`` what callbacks of the caller raised.

        Raises:
            FleetError: kernels failed, unless ``return_exceptions``.
            ValueError, TypeError: the arguments are wrong, for whichever kernel.
            EncodeError: ``source`` cannot be pickled.
        """
        self._check_policy(return_exceptions, fail_fast)
        calls = [
            asyncio.ensure_future(operation(bridge, index)) for index, bridge in enumerate(self)
        ]
        stopped: set[asyncio.Future[T]] = set()
        try:
            when = asyncio.FIRST_EXCEPTION if fail_fast else asyncio.ALL_COMPLETED
            _, stopped = await asyncio.wait(calls, return_when=when)
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        results: dict[int, T] = {}
        errors: dict[int, Exception] = {}
        for index, call in enumerate(calls):
            if call.cancelled():
                if call not in stopped:
                    raise asyncio.CancelledError
                continue
            error = call.exception()
            if error is None:
                results[index] = call.result()
            elif isinstance(error, Exception):
                errors[index] = error
            else:
                raise error
        if not errors:
            return list(results.values())
        if source is not None and source.error is not None:
            raise source.error
        if not results:
            for error in errors.values():  # a wrong argument: no kernel was asked
                is_of_callback = any(error is one for one in raised)
                if type(error) in (TypeError, ValueError) and not is_of_callback:
                    raise error
        for index, error in errors.items():
            self._note(error, index)
        if return_exceptions:
            return [results[at] if at in results else errors[at] for at in range(len(self))]
        message = f"{len(errors)} of {len(self)} kernels failed"
        show_fleet_errors()
        raise FleetError(message, list(errors.values()), results, errors)

    def _note(self, error: Exception, index: int) -> None:
        """Add to an error which kernel it is about."""
        bridge = self._bridges[index]
        name = f", {bridge._transport.label}" if bridge._transport.label else ""
        error.add_note(f"kernel {index} of {len(self)}, pid {bridge.info.pid}{name}")

    # ------------------------------------------------------------ refs

    def _refuse_refs(self, *values: Any) -> None:
        """Raise ``ValueError`` for a ref, unless there is one kernel, whose it may be."""
        if len(self) > 1:
            for value in values:
                refuse_ref(value)

    @property
    def _stand_ins(self) -> Mapping[type, Callable[[Any], Any]]:
        """How to pickle what stands for something else; see ``CellMethods._stand_ins``."""
        return self[0]._stand_ins if len(self) == 1 else REFUSED


def refuse_ref(value: Any) -> None:
    """Refuse a ref or a callback, which belong to one of the kernels."""
    if type(value) is Ref:
        raise ValueError(f"{value!r} belongs to one kernel, not to a fleet; pull it there")
    if type(value) is Callback:
        raise ValueError(f"{value!r} belongs to one kernel, not to a fleet; make one for each")


REFUSED = {Ref: refuse_ref, Callback: refuse_ref}  # see ``PayloadSource.refs``


def _views(client_or_view: Any) -> list[Any]:
    """Return a view of each engine.

    Raises what ``Fleet.over`` does.
    """
    from bridgehead._transports import ipyparallel_engine

    client, is_client = client_or_view, ipyparallel_engine.is_client(client_or_view)
    if not is_client:
        if not ipyparallel_engine.is_direct(client_or_view):
            raise TypeError(
                "Fleet.over() takes an ipyparallel client or a direct view of it, "
                f"not {type(client_or_view).__name__}; for other bridges use Fleet([bridge, …])"
            )
        client = client_or_view.client
    ids = "all" if is_client else client_or_view.targets
    if isinstance(ids, int):
        ids = [ids]
    elif isinstance(ids, str):  # a view of all engines, whichever there are when it is used
        ids = client.ids
    if not ids:
        raise KernelNotFound(
            "the client has no engines; start them, and wait with client.wait_for_engines(n)"
        )
    return [client[engine] for engine in ids]


async def _opened(opening: Opening[Bridge]) -> Bridge:
    return await opening


async def _all_closed(tasks: Sequence[asyncio.Task[Bridge]]) -> None:
    """Close the bridges that the tasks opened, because another task failed."""
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    await run_all(*(bridge.aclose for bridge in outcomes if isinstance(bridge, Bridge)))
