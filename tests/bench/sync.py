"""A ``SyncBridge`` over a ``Bridge`` to the same kernel: push and pull of an int.

Rule: both take turns in one run. The figure shows the cost of the event-loop thread.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable
from typing import Any

from bridgehead import Bridge, BridgeError, SyncBridge
from tests.bench.targets import Reached

ROUNDS = 40
EACH = 50  # operations in a row of one bridge, as in a program, before the other one's turn


async def measure(wanted: argparse.Namespace) -> list[Reached]:
    try:
        async with Bridge.launch(lane=wanted.lane) as bridge:
            file, lane = bridge.info.connection_file, bridge.info.lane
            blocking = await asyncio.to_thread(SyncBridge.attach, file, lane=wanted.lane)
            try:
                return await _both(bridge, blocking, f"lane {lane}")
            finally:
                await asyncio.to_thread(blocking.close)
    except BridgeError as error:
        print(f"left out: {type(error).__name__}: {error}")
        return []


async def _both(bridge: Bridge, blocking: SyncBridge, lane: str) -> list[Reached]:
    found = []
    ways: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "push": (lambda: bridge.push(x=1), lambda: blocking.push(x=1)),
        "pull": (lambda: bridge.pull("x"), lambda: blocking.pull("x")),
    }
    for way, (asynchronous, synchronous) in ways.items():
        theirs: list[float] = []
        mine: list[float] = []
        for _ in range(ROUNDS):
            for _ in range(EACH):
                started = time.perf_counter()
                await asynchronous()
                theirs.append(time.perf_counter() - started)
            # This thread is as idle as that of a script: its event loop runs nothing meanwhile.
            for _ in range(EACH):
                started = time.perf_counter()
                synchronous()
                mine.append(time.perf_counter() - started)
        ours, reference = statistics.median(mine), statistics.median(theirs)
        detail = f"{ours * 1000:.3g} / {reference * 1000:.3g} ms, {lane}"
        found.append(Reached(f"int {way}, SyncBridge / Bridge", ours / reference, detail=detail))
    return found
