"""Opening a bridge on a running kernel, in round trips of an empty cell on the same kernel.

Rule: a plain client makes round trips before and after every opening. The first opening on a
kernel installs the remote part and has its own figure. Closing is not measured.
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
            openings, round_trips = await _one_kernel(wanted)
            if number:  # with its first bridge this process imports modules: not counted
                first.append(openings[0])
                later += openings[1:]
                trips += round_trips
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
        client = Execute(manager.connection_file)
        try:
            await client.start()
            await client.round_trip()
            for _ in range(1 + LATER):
                await _round_trips(client, trips)
                started = time.perf_counter()
                bridge = await Bridge.attach(manager.connection_file, lane=wanted.lane)
                openings.append(time.perf_counter() - started)
                await bridge.aclose()
                await asyncio.sleep(0.05)
            await _round_trips(client, trips)
        finally:
            await client.stop()
    return openings, trips


async def _round_trips(client: Execute, trips: list[float]) -> None:
    for _ in range(TRIPS):
        started = time.perf_counter()
        await client.round_trip()
        trips.append(time.perf_counter() - started)
