"""Opening a bridge on a running kernel, in round trips of an empty cell on the same kernel.

Rule: round trips by a plain client before and after every opening. The first one on a kernel
brings the loader and is told apart from later ones; closing is not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time

from bridgehead import Bridge, BridgeError
from bridgehead._tools.bench.peers import Execute
from tests.bench.kernels import plain_kernel
from tests.bench.targets import Reached

KERNELS = 5
LATER = 5  # openings of each kernel after the first
TRIPS = 5


async def measure(wanted: argparse.Namespace) -> list[Reached]:
    first: list[float] = []
    later: list[float] = []
    trips: list[float] = []
    try:
        for number in range(KERNELS + 1):
            openings, beside = await _one_kernel(wanted)
            if number:  # what this process imports with its first bridge is not counted
                first.append(openings[0])
                later += openings[1:]
                trips += beside
    except (ValueError, BridgeError) as error:
        print(f"left out: {error}")
        return []
    trip = statistics.median(trips)
    return [
        Reached(
            f"{which} opening / empty cell",
            statistics.median(taken) / trip,
            detail=f"{statistics.median(taken) * 1000:.3g} / {trip * 1000:.3g} ms, n={len(taken)}",
        )
        for which, taken in (("first", first), ("later", later))
    ]


async def _one_kernel(wanted: argparse.Namespace) -> tuple[list[float], list[float]]:
    openings: list[float] = []
    trips: list[float] = []
    async with plain_kernel() as manager:
        beside = Execute(manager.connection_file)
        try:
            await beside.start()
            await beside.round_trip()
            for _ in range(1 + LATER):
                await _round_trips(beside, trips)
                started = time.perf_counter()
                bridge = await Bridge.attach(manager.connection_file, lane=wanted.lane)
                openings.append(time.perf_counter() - started)
                await bridge.aclose()
                await asyncio.sleep(0.05)
            await _round_trips(beside, trips)
        finally:
            await beside.stop()
    return openings, trips


async def _round_trips(beside: Execute, trips: list[float]) -> None:
    for _ in range(TRIPS):
        started = time.perf_counter()
        await beside.round_trip()
        trips.append(time.perf_counter() - started)
