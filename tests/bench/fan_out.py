"""One array of 100 MB to four kernels: the time over that for one kernel, and the memory.

Rule: a ``Fleet`` pushes, or four bridges at once in a checkout without ``Fleet``. Memory is the
growth of the proportional memory (Pss) of all five processes by the first push.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import bridgehead
from bridgehead import Bridge, BridgeError
from bridgehead._tools.bench.samples import PAYLOADS
from tests.bench import proc
from tests.bench.targets import Reached

KERNELS = 4
ROUNDS = 9


async def measure(wanted: argparse.Namespace) -> list[Reached]:
    payload = PAYLOADS["np100m"]
    async with AsyncExitStack() as stack:
        try:
            bridges = [
                await stack.enter_async_context(Bridge.launch(lane=wanted.lane))
                for _ in range(KERNELS)
            ]
        except (ValueError, BridgeError) as error:
            print(f"left out: {error}")
            return []
        for bridge in bridges:
            await bridge.pull("__import__('numpy').__name__")
            await bridge.push(small=1)
        value = payload.make()
        to_all, how = _way(bridges)
        memory = await _memory(lambda: to_all(value), bridges, value.nbytes)
        for bridge in bridges:
            assert payload.same(value, await bridge.pull("x"))
        one, four = [], []
        for _ in range(ROUNDS):
            one.append(await _timed(bridges[0].push(x=value)))
            four.append(await _timed(to_all(value)))
        mine, single = statistics.median(four), statistics.median(one)
    detail = f"{mine * 1000:.3g} / {single * 1000:.3g} ms by {how}, lane {bridges[0].info.lane}"
    return [Reached("np100m to 4 kernels / to one", mine / single, detail=detail), memory]


def _way(bridges: list[Bridge]) -> tuple[Callable[[Any], Awaitable[Any]], str]:
    fleet = getattr(bridgehead, "Fleet", None)
    if fleet is None:
        return lambda value: asyncio.gather(*(b.push(x=value) for b in bridges)), "gather"
    together = fleet(bridges)
    return lambda value: together.push(x=value), "Fleet"


async def _memory(push: Callable[[], Awaitable[Any]], bridges: list[Bridge], size: int) -> Reached:
    pids = [os.getpid(), *(bridge.info.pid for bridge in bridges)]
    gc.collect()
    before, shared = [proc.proportional(pid) for pid in pids], proc.shared()
    await push()
    grown = [proc.proportional(pid) - old for pid, old in zip(pids, before, strict=True)]
    detail = (
        f"client {grown[0] / 1e6:.0f} MB, "
        f"kernels {', '.join(f'{g / 1e6:.0f}' for g in grown[1:])}; "
        f"shared memory of the machine {(proc.shared() - shared) / 1e6:+.0f} MB"
    )
    return Reached("np100m in 4 kernels, memory / payload", sum(grown) / size, detail=detail)


async def _timed(work: Awaitable[Any]) -> float:
    started = time.perf_counter()
    await work
    return time.perf_counter() - started
