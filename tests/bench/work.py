"""Work in the kernel: calls, tasks, iterations and maps, beside ray, ipyparallel and pulls.

Rule: all ways take turns in one run, and each result is compared. A peer that is not installed is
left out.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from bridgehead import Bridge, BridgeError, Fleet
from bridgehead._bridge.fleet_map import CHUNK_SECONDS
from tests.bench.targets import Reached

ROUNDS = 30
EACH = 20  # operations in a row of one way, before the next one's turn
TASKS = 100  # that are submitted at once
INTS = 10_000
ARRAYS, LENGTH = 100, 1_250_000  # of 10 MB each

Way = Callable[[], Awaitable[Any]]


class MapCase(NamedTuple):
    """Items for a map.

    Attributes:
        function: takes the seconds of an item, and returns how many it took.
        chunk: items that cross together; None for those that ``chunksize="auto"`` takes.
    """

    what: str
    function: Callable[[float], float]
    items: int
    seconds: float
    kernels: int
    chunk: int | None = None


def nap(seconds: float) -> float:
    import time

    started = time.perf_counter()
    time.sleep(seconds)
    return time.perf_counter() - started


def spin(seconds: float) -> float:
    import time

    started = time.thread_time()
    n = 0
    while time.thread_time() - started < seconds:
        n += 1
    return time.thread_time() - started


MAPS = (
    MapCase("sleep 1 ms", nap, 10_000, 0.001, 4),
    MapCase("compute 50 ms", spin, 100, 0.05, 2),
    MapCase("compute 50 ms, in chunks of 5", spin, 100, 0.05, 2, 5),
)
MAP_ROUNDS = 3


def double(value: int) -> int:
    return 2 * value


def arrays() -> Iterator[Any]:
    import numpy

    for n in range(ARRAYS):
        yield numpy.full(LENGTH, float(n))


async def measure(wanted: argparse.Namespace) -> list[Reached]:
    try:
        async with Bridge.launch(lane=wanted.lane) as bridge, contextlib.AsyncExitStack() as peers:
            found = await _calls(bridge, peers)
            found += [await _ints(bridge), await _arrays(bridge), await _calls_back(bridge)]
        return found + [one for case in MAPS for one in await _maps(case, wanted.lane)]
    except BridgeError as error:
        print(f"left out: {type(error).__name__}: {error}")
        return []


async def _calls(bridge: Bridge, peers: contextlib.AsyncExitStack) -> list[Reached]:
    """Compare a call, and many submitted at once, with the peers'."""

    async def submitted() -> Any:
        return await asyncio.gather(*(bridge.submit(double, n) for n in range(TASKS)))

    one: dict[str, Way] = {
        "bridgehead": lambda: bridge.call(double, 3),
        "bridgehead async": lambda: bridge.call(asyncio.sleep, 0, 6),
    }
    many: dict[str, Way] = {"bridgehead": submitted}
    for make in (_ray, _ipyparallel):
        try:
            name, call, calls = await peers.enter_async_context(make())
        except ImportError as error:
            print(f"left out: {error}")
        else:
            one[name], many[name] = call, calls
    call_times = await _in_turns(one, lambda value: value == 6, ROUNDS * EACH)
    many_times = await _in_turns(many, lambda values: values[-1] == 2 * TASKS - 2, ROUNDS)
    return [
        *_over(call_times, "call", "bridgehead"),
        *_over({"bridgehead": call_times["bridgehead async"]} | _peers(call_times), "async call"),
        *_over(many_times, f"{TASKS} tasks at once"),
    ]


def _peers(times: dict[str, float]) -> dict[str, float]:
    return {name: taken for name, taken in times.items() if not name.startswith("bridgehead")}


def _over(times: dict[str, float], what: str, ours: str = "bridgehead") -> list[Reached]:
    return [
        Reached(
            f"{what}, bridgehead / {name}",
            times[ours] / theirs,
            detail=f"{times[ours] * 1000:.3g} / {theirs * 1000:.3g} ms",
        )
        for name, theirs in _peers(times).items()
    ]


async def _in_turns(
    ways: dict[str, Way], right: Callable[[Any], bool], count: int
) -> dict[str, float]:
    """Return the median time of each way."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(max(1, count // EACH)):
        for name, way in ways.items():
            for _ in range(min(EACH, count)):
                started = time.perf_counter()
                value = await way()
                taken[name].append(time.perf_counter() - started)
                assert right(value), (name, value)
    return {name: statistics.median(times) for name, times in taken.items()}


async def _ints(bridge: Bridge) -> Reached:
    """Compare one of many ints that are iterated over with a pull of one."""
    await bridge.push(x=1)

    async def iterated() -> int:
        async with bridge.iterate(range, INTS) as items:
            return [n async for n in items][-1]

    items: list[float] = []
    pulls: list[float] = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        assert await iterated() == INTS - 1
        items.append((time.perf_counter() - started) / INTS)
        started = time.perf_counter()
        for _ in range(EACH):
            await bridge.pull("x")
        pulls.append((time.perf_counter() - started) / EACH)
    one, pull = statistics.median(items), statistics.median(pulls)
    detail = f"{one * 1e6:.3g} / {pull * 1e6:.3g} µs, lane {bridge.info.lane}"
    return Reached(f"one of {INTS} ints iterated over / pull of an int", one / pull, detail=detail)


async def _calls_back(bridge: Bridge) -> Reached:
    """Compare one of many calls back with a pull of an int."""
    await bridge.push(x=1)
    done = asyncio.Event()
    seen: list[int] = []

    def note(step: int) -> None:
        seen.append(step)
        if len(seen) == INTS:
            done.set()

    def work(report: Any) -> None:
        for step in range(INTS):
            report(step)

    calls: list[float] = []
    pulls: list[float] = []
    with bridge.callback(note) as report:
        for _ in range(ROUNDS):
            seen.clear()
            done.clear()
            started = time.perf_counter()
            await bridge.call(work, report)
            await done.wait()
            calls.append((time.perf_counter() - started) / INTS)
            assert seen == list(range(INTS))
            started = time.perf_counter()
            for _ in range(EACH):
                await bridge.pull("x")
            pulls.append((time.perf_counter() - started) / EACH)
    one, pull = statistics.median(calls), statistics.median(pulls)
    detail = f"{one * 1e6:.3g} / {pull * 1e6:.3g} µs, lane {bridge.info.lane}"
    return Reached(f"one of {INTS} calls back / pull of an int", one / pull, detail=detail)


async def _arrays(bridge: Bridge) -> Reached:
    """Compare an iteration over large arrays with pulls of arrays that are there."""
    await bridge.push(there=np.full(LENGTH, 3.0))
    ratios = []
    for _ in range(5):
        started = time.perf_counter()
        async with bridge.iterate(arrays) as items:
            total = sum([float(array[-1]) async for array in items])
        iterated = time.perf_counter() - started
        assert total == sum(range(ARRAYS))
        started = time.perf_counter()
        for n in range(ARRAYS):
            # As the generator does: the kernel makes the array, and only then it is pulled.
            assert (await bridge.pull(f"there + {n}"))[-1] == 3.0 + n
        ratios.append(iterated / (time.perf_counter() - started))
    return Reached(
        f"{ARRAYS} arrays of 10 MB, iterated over / pulled",
        statistics.median(ratios),
        detail=f"lane {bridge.info.lane}, {len(ratios)} pairs",
    )


async def _maps(case: MapCase, lane: Any) -> list[Reached]:
    """Compare a map with ipyparallel's load-balanced one, and with perfect division."""
    async with contextlib.AsyncExitStack() as opened:
        fleet = await opened.enter_async_context(Fleet.launch(case.kernels, lane=lane))
        items = [case.seconds] * case.items

        async def ours() -> list[float]:
            async with fleet.map(case.function, items, chunksize=case.chunk or "auto") as results:
                return [taken async for taken in results]

        ways: dict[str, Callable[[], Awaitable[list[float]]]] = {"bridgehead": ours}
        try:
            view = await opened.enter_async_context(_balanced(case.kernels))
        except ImportError as error:
            print(f"left out: {error}")
        else:
            size = case.chunk or max(1, round(CHUNK_SECONDS / case.seconds))

            async def theirs() -> list[float]:
                return await asyncio.to_thread(
                    view.map_sync, case.function, items, chunksize=size, ordered=True
                )

            ways["ipyparallel"] = theirs
        walls: dict[str, list[float]] = {name: [] for name in ways}
        ratios: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(MAP_ROUNDS):
            for name, way in ways.items():
                started = time.perf_counter()
                taken = await way()
                wall = time.perf_counter() - started
                assert len(taken) == case.items
                walls[name].append(wall)
                ratios[name].append(wall / (sum(taken) / case.kernels))
    what = f"map, {case.items:,} items that {case.what}, {case.kernels} kernels"
    ratio = statistics.median(ratios["bridgehead"])
    found = [Reached(f"{what}, time / (item seconds / kernels)", ratio, detail=_seconds(walls))]
    if "ipyparallel" in walls:
        ratio = statistics.median(walls["bridgehead"]) / statistics.median(walls["ipyparallel"])
        found.append(Reached(f"{what}, bridgehead / ipyparallel", ratio, detail=_seconds(walls)))
    return found


def _seconds(walls: dict[str, list[float]]) -> str:
    return " / ".join(f"{statistics.median(one):.3g}" for one in walls.values()) + " s"


# ------------------------------------------------------------ peers


@contextlib.asynccontextmanager
async def _balanced(engines: int) -> AsyncIterator[Any]:
    import ipyparallel

    cluster = ipyparallel.Cluster(n=engines, log_level=40)
    client = await asyncio.to_thread(cluster.start_and_connect_sync)
    try:
        view = client.load_balanced_view()
        await asyncio.to_thread(view.map_sync, nap, [0.0] * 4 * engines)
        yield view
    finally:
        client.close()
        await asyncio.to_thread(cluster.stop_cluster_sync)


@contextlib.asynccontextmanager
async def _ray() -> AsyncIterator[tuple[str, Way, Way]]:
    import ray

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        remote: Any = ray.remote(double)

        async def call() -> Any:
            return await remote.remote(3)

        async def calls() -> Any:
            return await asyncio.gather(*(remote.remote(n) for n in range(TASKS)))

        yield "ray", call, calls
    finally:
        ray.shutdown()


@contextlib.asynccontextmanager
async def _ipyparallel() -> AsyncIterator[tuple[str, Way, Way]]:
    import ipyparallel

    cluster = ipyparallel.Cluster(n=1, log_level=40)
    client = await asyncio.to_thread(cluster.start_and_connect_sync)
    try:
        view = client[0]

        async def call() -> Any:
            return await asyncio.wrap_future(view.apply_async(double, 3))

        async def calls() -> Any:
            waiting = [view.apply_async(double, n) for n in range(TASKS)]
            return [await asyncio.wrap_future(one) for one in waiting]

        yield "ipyparallel", call, calls
    finally:
        client.close()
        await asyncio.to_thread(cluster.stop_cluster_sync)
