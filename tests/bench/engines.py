"""One object to four engines of a local ipyparallel cluster, by a fleet and by ipyparallel.

Rule: all ways use the same engines and take turns; the figures are ratios of medians. The cost of
an engine and a message for this process is its CPU time, which grows with their number on any
machine. The cost for the cluster is the controller's memory.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import psutil

from bridgehead import Bridge, Fleet
from bridgehead._tools.bench.samples import PAYLOADS
from tests.bench import proc
from tests.bench.targets import Reached

ENGINES = 4
ROUNDS = 9
SMALL_ROUNDS = 100

Way = Callable[[Any], Awaitable[Any]]


async def measure(wanted: argparse.Namespace) -> list[Reached]:
    try:
        import ipyparallel
    except ImportError as error:
        print(f"left out: {error}")
        return []
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bh-"))
        cluster = ipyparallel.Cluster(
            n=ENGINES, engines="local", profile_dir=folder, log_level=logging.ERROR
        )
        stack.push_async_callback(cluster.stop_cluster)
        client = await cluster.start_and_connect(n=ENGINES, activate=False)
        stack.callback(client.close)
        async with Bridge.over(client[0]):  # the first bridge reads and compiles the remote part
            pass
        started = time.process_time()
        fleet = await stack.enter_async_context(Fleet.over(client))
        opening = (time.process_time() - started) / ENGINES * 1e3
        await fleet.pull("__import__('numpy').__name__")
        direct, broadcast = client[:], client.broadcast_view()
        pushes: dict[str, Way] = {
            "fleet": lambda value: fleet.push(x=value),
            "DirectView": lambda value: asyncio.wrap_future(direct.push({"x": value})),
            "BroadcastView": lambda value: asyncio.wrap_future(broadcast.push({"x": value})),
        }
        pulls: dict[str, Way] = {
            "fleet": lambda _: fleet.pull("x"),
            "DirectView": lambda _: asyncio.wrap_future(direct.pull("x")),
        }
        payload = PAYLOADS["np100m"]
        value = payload.make()
        controller = psutil.Process(cluster.controller.pid)
        pids = [controller.pid, *(child.pid for child in controller.children(recursive=True))]
        memory = await _memory(pids, lambda: fleet.push(x=value), value.nbytes)
        found = [Reached(f"opening one of {ENGINES} engines, client CPU", opening, "ms")]
        for name, what, rounds in (("np100m", value, ROUNDS), ("int", 7, SMALL_ROUNDS)):
            pushed = await _in_turns(pushes, what, rounds)
            found += _ratios(f"{name} to {ENGINES} engines", pushed)
            await fleet.push(x=what)
            found += _ratios(f"{name} from {ENGINES} engines", await _in_turns(pulls, what, rounds))
        assert await fleet.pull("x") == [7] * ENGINES
        found += [*await _cpu(fleet, pids, value), memory]
    return found


async def _in_turns(ways: dict[str, Way], value: Any, rounds: int) -> dict[str, float]:
    """Return the median of each way, in seconds."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            await way(value)
            taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def _ratios(what: str, medians: dict[str, float]) -> list[Reached]:
    mine = medians.pop("fleet")
    return [
        Reached(f"{what} / {name}", mine / other, detail=f"{mine * 1e3:.3g} / {other * 1e3:.3g} ms")
        for name, other in medians.items()
    ]


async def _cpu(fleet: Fleet, pids: list[int], value: Any) -> list[Reached]:
    """Measure the CPU time for each engine: of a small, a medium and a large push."""
    found = []
    for name, what, rounds in (
        ("int", 7, SMALL_ROUNDS),
        ("np1m", PAYLOADS["np1m"].make(), SMALL_ROUNDS),
        ("np100m", value, ROUNDS),
    ):
        await fleet.push(x=what)
        client, controller = time.process_time(), _spent(pids)
        for _ in range(rounds):
            await fleet.push(x=what)
        each = 1e3 / rounds / ENGINES
        client = (time.process_time() - client) * each
        controller = (_spent(pids) - controller) * each
        title = f"{name} to one of {ENGINES} engines, client CPU"
        found.append(Reached(title, client, "ms", f"controller {controller:.3g} ms"))
    return found


def _spent(pids: list[int]) -> float:
    """Return the seconds of CPU that processes have used so far."""
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


async def _memory(pids: list[int], push: Callable[[], Awaitable[Any]], size: int) -> Reached:
    """Return by how much the memory of the controller's processes grew at most in a push."""
    await push()
    before = {one: proc.resident(one) for one in pids}
    for one in pids:
        proc.reset_peak(one)
    await push()
    grown = [proc.peak(one) - before[one] for one in pids]
    detail = f"MB: {', '.join(f'{one / 1e6:.0f}' for one in sorted(grown) if one > 1e6)}"
    return Reached(
        f"np100m to {ENGINES} engines, controller / payload", sum(grown) / size, detail=detail
    )
