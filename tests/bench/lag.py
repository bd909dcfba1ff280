"""How long the caller's event loop stops while 1 GB is pushed or pulled.

Rule: a task sleeps a millisecond again and again; its lag is what it sleeps longer. The figure is
the 99th percentile during the transfers of one lane, less that of the idle loop in the same run. A
lane that is slower gets a smaller array: the loop does the same for each chunk.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import cast

from bridgehead import Bridge, BridgeError
from bridgehead._lanes.handshake import LaneName
from bridgehead._tools.bench.samples import PAYLOADS
from tests.bench.targets import Reached

LANES = {"direct": "np1g", "buffers": "np1g", "inline": "np100m"}
ROUNDS = 3
BEAT = 0.001  # seconds
IDLE = 2.0  # seconds


async def measure(wanted: argparse.Namespace) -> list[Reached]:
    found: list[Reached] = []
    for lane in LANES if wanted.lane == "auto" else (wanted.lane,):
        try:
            found += await _one(lane, LANES[lane])
        except (ValueError, BridgeError) as error:
            print(f"left out: {lane}: {type(error).__name__}: {error}")
    return found


async def _one(lane: str, payload: str) -> list[Reached]:
    value = PAYLOADS[payload].make()
    idle: list[float] = []
    push: list[float] = []
    pull: list[float] = []
    async with Bridge.launch(lane=cast("LaneName", lane)) as bridge:
        await bridge.run("import numpy")
        async with _heart(idle):
            await asyncio.sleep(IDLE)
        for _ in range(ROUNDS):
            async with _heart(push):
                await bridge.push(value=value)
            async with _heart(pull):
                back = await bridge.pull("value")
            del back
            await bridge.delete("value")
    rest = p99(idle)
    return [
        Reached(
            f"loop lag p99 in a {way}, {lane}, beyond idle",
            (p99(lags) - rest) * 1000,
            "ms",
            f"{payload}: p99 {p99(lags) * 1000:.3g}, idle {rest * 1000:.3g}, "
            f"most {max(lags) * 1000:.3g} ms of {len(lags)} beats",
        )
        for way, lags in (("push", push), ("pull", pull))
    ]


@contextlib.asynccontextmanager
async def _heart(lags: list[float]) -> AsyncIterator[None]:
    """Note the lags of the event loop while the block runs."""

    async def beat() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(BEAT)
            lags.append(time.perf_counter() - began - BEAT)

    beating = asyncio.create_task(beat())
    await asyncio.sleep(2 * BEAT)
    try:
        yield
    finally:
        await asyncio.sleep(2 * BEAT)  # a stop at the end counts too
        beating.cancel()


def p99(times: list[float]) -> float:
    return sorted(times)[int(0.99 * len(times))]
