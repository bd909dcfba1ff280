"""A handoff from one kernel to another, over a pull and a push by the same two bridges.

Rule: both ways take turns in one run, and the object is compared at the end. One figure is by how
much the memory of this process grows at most.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

from bridgehead import Bridge, BridgeError
from bridgehead._tools.bench.samples import PAYLOADS
from tests.bench import proc
from tests.bench.targets import Reached

SHOWN = ("int", "dict10k", "np1m", "np100m")
ROUNDS = 15


async def measure(wanted: argparse.Namespace) -> list[Reached]:
    found = []
    try:
        async with Bridge.launch(lane=wanted.lane) as source, Bridge.launch(lane=wanted.lane) as to:
            for name in SHOWN:
                found += await _one(name, source, to)
    except (ValueError, BridgeError) as error:
        print(f"left out: {type(error).__name__}: {error}")
    return found


async def _one(name: str, source: Bridge, to: Bridge) -> list[Reached]:
    payload = PAYLOADS[name]
    value = payload.make()
    await source.push(x=value)

    async def by_hand() -> None:
        await to.push(x=await source.pull("x"))

    def handed() -> Awaitable[Any]:
        return source.handoff("x", to=to)

    await handed()
    before = proc.resident(os.getpid())
    proc.reset_peak(os.getpid())
    await handed()
    grown = proc.peak(os.getpid()) - before
    await by_hand()
    times: dict[Callable[[], Awaitable[Any]], list[float]] = {handed: [], by_hand: []}
    for _ in range(ROUNDS):
        for way, taken in times.items():
            started = time.perf_counter()
            await way()
            taken.append(time.perf_counter() - started)
    assert payload.same(value, await to.pull("x"))
    await to.delete("x")
    mine, theirs = (statistics.median(taken) for taken in times.values())
    lane = f"lane {source.info.lane}"
    detail = f"{mine * 1000:.3g} / {theirs * 1000:.3g} ms, {lane}"
    return [
        Reached(f"{name} handoff / pull and push", mine / theirs, detail=detail),
        Reached(f"{name} handoff, client peak", grown / 1e6, "MB", lane),
    ]
