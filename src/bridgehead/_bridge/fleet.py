"""The ``Fleet``: many kernels as one object.

Rule: operations on several bridges at once, and nothing that concerns a single one. An object is
pickled once and is in memory once for all kernels. Each kernel has its own outcome; the failure of
one does not stop the others.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import ModuleType, TracebackType
from typing import Any, TypeVar, overload

from bridgehead._bridge.arguments import checked_objects
from bridgehead._bridge.bridge import Bridge
from bridgehead._bridge.opening import Opening
from bridgehead._errors import KernelNotFound
from bridgehead._lanes.broadcast import WORTH, Broadcast
from bridgehead._lanes.buffers import BuffersLane
from bridgehead._lanes.direct import copy_to_segment
from bridgehead._protocol import payload as _payload
from bridgehead._protocol.ref import Ref
from bridgehead._protocol.results import Result, Transfer, fleet_html
from bridgehead._shipped.wire import frames as _frames
from bridgehead._shipped.wire.segments import IDLE, SHARED_BELOW, Pool, Segment
from bridgehead._transports import ipyparallel_engine
from bridgehead._transports.base import Broadcaster, Transport
from bridgehead._transports.tasks import finish, noted_on, run_all

T = TypeVar("T")


class Fleet(Sequence[Bridge]):
    """A sequence of bridges that operate together.

    Every operation runs in all kernels at once and returns a list with one result for each, in
    order. If kernels fail, the operation waits for all others and raises an ``ExceptionGroup``;
    each error has a note that says which kernel it is about. Cancelling an operation cancels it
    in all kernels. Leaving ``async with`` closes the bridges that ``launch`` or ``over`` opened;
    bridges that the caller passed in stay open.

        >>> fleet = Fleet([bridge, other])
        >>> len(await fleet.push(x=1))
        2
        >>> await fleet.pull("x + 1")
        [2, 2]
        >>> await fleet[1].pull("x")
        1
    """

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
        self._owned = False
        self._pool = Pool(pool, private=True)
        self._trimming: asyncio.TimerHandle | None = None

    @classmethod
    def launch(
        cls, count: int, kernel_name: str = "python3", *, pool: float = 0.5, **options: Any
    ) -> Opening[Fleet]:
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
    def over(cls, client: Any, *, pool: float = 0.5, **options: Any) -> Opening[Fleet]:
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
    ) -> Opening[Fleet]:
        async def make() -> Fleet:
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
            fleet._owned = True
            return fleet

        return Opening(make, options.get("timeout", 60.0), cls.__name__)

    # ------------------------------------------------------------ a sequence of bridges

    @overload
    def __getitem__(self, index: int) -> Bridge: ...

    @overload
    def __getitem__(self, index: slice) -> list[Bridge]: ...

    def __getitem__(self, index: int | slice) -> Bridge | list[Bridge]:
        return self._bridges[index]

    def __len__(self) -> int:
        return len(self._bridges)

    def __iter__(self) -> Iterator[Bridge]:
        return iter(self._bridges)

    def __repr__(self) -> str:
        states = Counter(bridge.state for bridge in self._bridges)
        return f"<Fleet of {len(self)}: {', '.join(f'{n} {state}' for state, n in states.items())}>"

    def _repr_html_(self) -> str:
        return fleet_html([(bridge.state, bridge.info) for bridge in self._bridges])

    # ------------------------------------------------------------ operations

    async def push(
        self,
        mapping: Mapping[str, Any] | None = None,
        /,
        *,
        by_value: Sequence[ModuleType] = (),
        timeout: float | None = None,
        **values: Any,
    ) -> list[Transfer]:
        """Bind the same objects to names in every kernel; in each all of them, or none.

        The objects are pickled once. Kernels on the direct lane map the same memory, and each
        kernel sees only its own changes. Engines of one ipyparallel client get large objects by
        the client's broadcast: one copy leaves this process. ``Bridge.push`` has the details.

        >>> [transfer.lane for transfer in await fleet.push(x=1)]
        ['buffers', 'buffers']
        """
        objects = checked_objects(mapping, values)
        content = _payload.PayloadSource(objects, objects, by_value, _refuse_ref)
        payload = await asyncio.to_thread(content.pack, "none")
        segment = await self._copied_to_segment(payload)
        broadcasts: list[Broadcast] = []
        sending: list[asyncio.Task[None]] = []
        try:
            broadcasts += await self._broadcasts(payload)
            deliveries = {lane: one for cast in broadcasts for lane, one in cast.deliveries.items()}

            async def push(bridge: Bridge) -> Transfer:
                delivery = deliveries.get(bridge._connection.remote.lane)
                one = replace(payload, segment=segment)
                if delivery is not None:
                    one = replace(payload, digest=delivery.header["digest"])
                return await bridge._push_payload(list(objects), one, delivery, timeout)

            sending += [asyncio.create_task(cast.send()) for cast in broadcasts]
            return await self._all(push)
        finally:
            for task in sending:
                task.cancel()
            for cast in broadcasts:
                cast.close()
            if segment is not None:
                self._pool.give_back(segment)
                self._trim_later()

    async def pull(self, *expressions: str | Ref, timeout: float | None = None) -> list[Any]:
        """Return what ``Bridge.pull`` returns, for every kernel in order.

        >>> await fleet.pull("6 * 7")
        [42, 42]
        """
        if len(self) > 1:
            any(map(_refuse_ref, expressions))
        return await self._all(lambda bridge: bridge.pull(*expressions, timeout=timeout))

    async def run(self, code: str, *, timeout: float | None = None) -> list[Result]:
        """Run a cell in every kernel; see ``Bridge.run``.

        >>> await fleet.run("6 * 7")
        [<Result [1] 42>, <Result [1] 42>]
        """
        return await self._all(lambda bridge: bridge.run(code, timeout=timeout))

    async def call(
        self, function: Callable[..., T], /, *args: Any, timeout: float | None = None
    ) -> list[T]:
        """Have every kernel call a function; see ``Bridge.call``.

        >>> await fleet.call(len, "abc")
        [3, 3]
        """
        if len(self) > 1:
            any(map(_refuse_ref, (function, *args)))
        return await self._all(lambda bridge: bridge.call(function, *args, timeout=timeout))

    async def aclose(self) -> None:
        """Close the bridges that this fleet opened, and end the kernels that ``launch`` started.

        All bridges are closed, whatever fails in one, as ``Bridge.aclose`` says; the errors are
        raised as an ``ExceptionGroup``. Called again, it tries again what failed.

        >>> await fleet.aclose()
        >>> bridge.state  # the caller passed it in, so it stays open
        'idle'
        """
        if self._trimming is not None:
            self._trimming.cancel()
        try:
            if self._owned:
                await self._all(lambda bridge: bridge.aclose())
        finally:
            self._pool.close()

    async def __aenter__(self) -> Fleet:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with noted_on(error):
            await self.aclose()

    async def _all(self, operation: Callable[[Bridge], Awaitable[T]]) -> list[T]:
        """Run an operation on all bridges; return the results, or raise the errors as a group."""
        calls = (operation(bridge) for bridge in self._bridges)
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        failures = []
        for number, (bridge, outcome) in enumerate(zip(self._bridges, outcomes, strict=True)):
            if isinstance(outcome, Exception):
                name = f", {bridge._transport.label}" if bridge._transport.label else ""
                outcome.add_note(f"kernel {number} of {len(self)}, pid {bridge.info.pid}{name}")
                failures.append(outcome)
            elif isinstance(outcome, BaseException):
                raise outcome
        if failures:
            raise ExceptionGroup(f"{len(failures)} of {len(self)} kernels failed", failures)
        return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]

    async def _broadcasts(self, payload: _payload.Payload) -> list[Broadcast]:
        """Make a broadcast for each client that reaches several of the kernels by one message."""
        groups: dict[Broadcaster, list[Bridge]] = {}
        for bridge in self._bridges:
            broadcaster = bridge._transport.broadcaster
            lane = bridge._connection.remote.lane
            if (
                broadcaster is not None
                and lane.name == BuffersLane.name
                and not lane.transport.life.is_lost
            ):
                groups.setdefault(broadcaster, []).append(bridge)
        found = []
        for bridges in groups.values():
            if len(bridges) < 2 or payload.nbytes < WORTH:
                continue
            # Two bridges may lead to one engine, which needs the frames once.
            lane_of = {bridge.info.epoch: bridge._connection.remote.lane for bridge in bridges}
            used = {lane.digest for lane in lane_of.values()}
            algorithm = next(one for one in ("sha256", "crc32", "sums") if one in used)
            digest = await asyncio.to_thread(_frames.digest, algorithm, payload.frames)
            lanes = {lane: epoch for epoch, lane in lane_of.items()}
            found.append(Broadcast(lanes, payload.frames, digest))
        return found

    # ------------------------------------------------------------ memory

    async def _copied_to_segment(self, payload: _payload.Payload) -> Segment | None:
        """Copy a payload to a segment for the kernels on the direct lane.

        Return None if no kernel is on that lane, or there is no memory. A small payload is copied
        for each kernel instead, to a part of that kernel's own slab.
        """
        lanes = [bridge.info.lane for bridge in self._bridges]
        if payload.nbytes < SHARED_BELOW or "direct" not in lanes:
            return None
        return await copy_to_segment(self._pool, payload.frames, lambda done, total: None)

    def _trim_later(self) -> None:
        if self._trimming is not None:
            self._trimming.cancel()
        loop = asyncio.get_running_loop()
        self._trimming = loop.call_later(IDLE + Transport.timings.memory_every, self._trim)

    def _trim(self) -> None:
        self._trimming = None
        self._pool.trim()
        if self._pool.slabs:
            self._trim_later()


def _views(client_or_view: Any) -> list[Any]:
    """Return a view of each engine.

    Raises what ``Fleet.over`` does.
    """
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


def _refuse_ref(value: Any) -> None:
    """Refuse a ref, which means an object in one of the kernels; see ``PayloadSource.refs``."""
    if type(value) is Ref:
        raise ValueError(f"{value!r} belongs to one kernel, not to a fleet; pull it there")


async def _all_closed(tasks: Sequence[asyncio.Task[Bridge]]) -> None:
    """Close the bridges that the tasks opened, because another task failed."""
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    await run_all(*(bridge.aclose for bridge in outcomes if isinstance(bridge, Bridge)))
