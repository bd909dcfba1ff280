"""``now=True`` while the kernel's main thread spins in Python.

Rule: pushes and pulls of an int, in each of several cells, with pauses between them as in a program
that does something else meanwhile. (Back to back, the kernel's thread may still have the
interpreter's lock from the operation before.) A cell spins until it is interrupted, so every
operation is measured while it runs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import time

from bridgehead import Bridge, BridgeError, RemoteError
from tests.bench.targets import Reached

CELLS = 5
PAIRS = 20
PAUSE = 0.002  # seconds
SPIN = "number = 0\nwhile True: number += 1"


async def measure(wanted: argparse.Namespace) -> list[Reached]:
    push: list[float] = []
    pull: list[float] = []
    try:
        async with Bridge.launch(lane=wanted.lane) as bridge:
            await bridge.push(x=0)
            await bridge.pull("x", now=True)  # the first operation with now=True also sets up
            for _ in range(CELLS):
                await _one_cell(bridge, push, pull)
            lane = bridge.info.lane
    except (ValueError, BridgeError) as error:
        print(f"left out: {type(error).__name__}: {error}")
        return []
    return [
        _figure("now=True while busy, one operation", [*push, *pull], lane),
        _figure("now=True while busy, push", push, lane),
        _figure("now=True while busy, pull", pull, lane),
    ]


async def _one_cell(bridge: Bridge, push: list[float], pull: list[float]) -> None:
    spinning = asyncio.ensure_future(bridge.run(SPIN))
    await asyncio.sleep(0.3)
    for number in range(PAIRS):
        await asyncio.sleep(PAUSE)
        started = time.perf_counter()
        await bridge.push(x=number, now=True)
        push.append(time.perf_counter() - started)
        await asyncio.sleep(PAUSE)
        started = time.perf_counter()
        assert await bridge.pull("x", now=True) == number
        pull.append(time.perf_counter() - started)
    assert not spinning.done()
    await bridge.interrupt()
    with contextlib.suppress(RemoteError):  # KeyboardInterrupt
        await spinning


def _figure(what: str, seconds: list[float], lane: str) -> Reached:
    low, middle, high = (value * 1000 for value in statistics.quantiles(seconds, n=4))
    most = max(seconds) * 1000
    detail = (
        f"lane {lane}: quartiles {low:.3g} and {high:.3g}, most {most:.3g} ms, n={len(seconds)}"
    )
    return Reached(what, middle, "ms", detail)
