"""Many bridges of one program on one kernel: what each costs at 10 and at 200 of them.

Rule: one process, one kernel, bridges that are opened one after the other and stay open. Every
figure is a cost for each bridge, at 200 over at 10; it is 1 where the cost does not depend on
their number. The bridges that come before are not counted: with them both processes import modules,
and take the memory that they have free.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import statistics
import time
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from pathlib import Path

import psutil

from bridgehead import Bridge, BridgeError
from tests.bench.kernels import plain_kernel
from tests.bench.targets import Reached

FEW, MANY = 10, 200
OPERATIONS = 1000  # small pushes, and cells, shared out among all bridges
IDLE = 5.0  # seconds
Costs = dict[str, float]


async def measure(wanted: argparse.Namespace) -> list[Reached]:
    try:
        async with plain_kernel() as manager, AsyncExitStack() as stack:
            file, lane = manager.connection_file, wanted.lane
            bridges: list[Bridge] = []
            for _ in range(FEW):
                await _added(stack, bridges, file, lane)
                await _used(bridges[-1])
            first, bridges = bridges[0], []
            pid = first.info.pid
            base = _held(pid)
            costs = []
            for count in (FEW, MANY):
                opening = []
                while len(bridges) < count:
                    opening.append(await _timed(_added(stack, bridges, file, lane)))
                found = {"opening, ms": 1000 * statistics.median(opening[-FEW:])}
                costs.append({**found, **await _costs(bridges, first, pid, base)})
            for count, found in ((MANY - FEW, costs[1]), (FEW, costs[0])):
                closing = [await _timed(bridges.pop().aclose()) for _ in range(count)]
                found["closing, ms"] = 1000 * statistics.median(closing[:FEW])
    except (ValueError, BridgeError) as error:
        print(f"left out: {type(error).__name__}: {error}")
        return []
    few, many = costs
    return [
        Reached(
            f"each of {MANY} bridges / of {FEW}: {what.partition(',')[0]}",
            many[what] / few[what] if few[what] else float(bool(many[what])),
            detail=f"{many[what]:.3g} / {few[what]:.3g}{what.partition(',')[2]}, lane {lane}",
        )
        for what in few
    ]


async def _added(stack: AsyncExitStack, bridges: list[Bridge], file: str, lane: str) -> None:
    bridges.append(await stack.enter_async_context(Bridge.attach(file, lane=lane)))


async def _used(bridge: Bridge) -> None:
    await bridge.push(x=1)
    await bridge.pull("x")
    await bridge.run("x", store_history=False)


async def _costs(bridges: list[Bridge], first: Bridge, pid: int, base: Costs) -> Costs:
    """Return what each bridge costs now."""
    for bridge in bridges:
        await _used(bridge)
    count, held = len(bridges), _held(pid)
    costs = {what: (held[what] - base[what]) / count for what in held}
    await asyncio.sleep(1)
    before = _processor(pid)
    await asyncio.sleep(IDLE)
    for what, seconds in _processor(pid).items():
        costs[f"idle in the {what}, ms of its processor in a second"] = (
            1000 * (seconds - before[what]) / IDLE / count
        )
    pushes = [await _timed(bridges[n % count].push(x=n)) for n in range(OPERATIONS)]
    costs["a small push, ms"] = 1000 * statistics.median(pushes)
    before = _processor(pid)
    cells = [await _timed(first.run("1", store_history=False)) for _ in range(OPERATIONS // 10)]
    costs["a cell of another bridge, ms"] = 1000 * statistics.median(cells)
    for what, seconds in _processor(pid).items():
        costs[f"a cell of another bridge in the {what}, ms of its processor"] = (
            10_000 * (seconds - before[what]) / OPERATIONS / count
        )
    return costs


def _held(pid: int) -> Costs:
    """Return what both processes hold."""
    gc.collect()
    found = {}
    for what, one in _both(pid):
        process = psutil.Process(one)
        found[f"memory of the {what}, kB"] = process.memory_info().rss / 1000
        found[f"descriptors of the {what}"] = len(list(Path(f"/proc/{one}/fd").iterdir()))
        found[f"threads of the {what}"] = process.num_threads()
    return found


def _processor(pid: int) -> Costs:
    """Return the seconds that both processes have computed."""
    times = {what: psutil.Process(one).cpu_times() for what, one in _both(pid)}
    return {what: spent.user + spent.system for what, spent in times.items()}


def _both(pid: int) -> tuple[tuple[str, int], tuple[str, int]]:
    return ("client", os.getpid()), ("kernel", pid)


async def _timed(work: Awaitable[object]) -> float:
    started = time.perf_counter()
    await work
    return time.perf_counter() - started
