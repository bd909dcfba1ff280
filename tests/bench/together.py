"""Small operations beside others: 1,000 at once, and beside 1 GB of another bridge.

Rule: each figure is over that of the same operations alone in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from bridgehead import Bridge, BridgeError
from bridgehead._lanes.handshake import LaneName
from bridgehead._tools.bench.samples import PAYLOADS
from tests.bench.lag import p99
from tests.bench.targets import Reached

AT_ONCE, ROUNDS = 1000, 3
TRANSFERS = 5  # of 1 GB each
PAUSE = 0.001  # seconds between two small pushes, as in a program that does something else


async def measure(wanted: argparse.Namespace) -> list[Reached]:
    try:
        return [
            *await _at_once(wanted.lane),
            *await _at_once("buffers"),
            *await _beside_large(wanted.lane),
        ]
    except (ValueError, BridgeError) as error:
        print(f"left out: {type(error).__name__}: {error}")
        return []


async def _at_once(lane: LaneName) -> list[Reached]:
    found = []
    async with Bridge.launch(lane=lane) as bridge:
        await bridge.push(x=0)
        ways: dict[str, Callable[[], Awaitable[object]]] = {
            "push": lambda: bridge.push(x=1),
            "pull": lambda: bridge.pull("x"),
        }
        for way, one in ways.items():
            in_a_row, at_once = [], []
            for _ in range(ROUNDS):
                started = time.perf_counter()
                for _ in range(AT_ONCE):
                    await one()
                in_a_row.append(time.perf_counter() - started)
                started = time.perf_counter()
                await asyncio.gather(*(one() for _ in range(AT_ONCE)))
                at_once.append(time.perf_counter() - started)
            mine, reference = statistics.median(at_once), statistics.median(in_a_row)
            detail = f"{mine * 1000:.3g} / {reference * 1000:.3g} ms, lane {bridge.info.lane}"
            what = f"{AT_ONCE} at once / in a row, {way}, {lane}"
            found.append(Reached(what, mine / reference, detail=detail))
    return found


async def _beside_large(lane: LaneName) -> list[Reached]:
    found = []
    large = PAYLOADS["np1g"].make()
    async with Bridge.launch(lane=lane) as busy, Bridge.launch(lane=lane) as bridge:
        await busy.run("import numpy")
        await bridge.push(x=0)
        alone: list[float] = []
        async with _pushing(bridge, alone):
            await asyncio.sleep(2)
        for way in ("push", "pull"):
            beside: list[float] = []
            for _ in range(TRANSFERS):
                async with _pushing(bridge, beside):
                    if way == "push":
                        await busy.push(large=large)
                    else:
                        await busy.pull("large")
            most, rest = p99(beside), p99(alone)
            detail = f"p99 {most * 1000:.3g} / {rest * 1000:.3g} ms, n={len(beside)}, {len(alone)}"
            what = f"a small push beside a {way} of 1 GB / alone, p99"
            found.append(Reached(what, most / rest, detail=f"{detail}, lane {busy.info.lane}"))
    return found


@asynccontextmanager
async def _pushing(bridge: Bridge, times: list[float]) -> AsyncIterator[None]:
    """Note how long small pushes take while the block runs."""

    async def push() -> None:
        for number in itertools.count():
            await asyncio.sleep(PAUSE)
            started = time.perf_counter()
            await bridge.push(x=number)
            times.append(time.perf_counter() - started)

    pushing = asyncio.create_task(push())
    try:
        yield
    finally:
        pushing.cancel()
        await asyncio.wait([pushing])
