"""The figures behind the promises: delays, and the lag of the event loop.

Rule: no tests. Ratios are measured side by side in one run; times are those of this machine now.
``python tests/bench/promises.py`` measures all figures in about a minute; names as arguments
choose some of them.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from bridgehead import Bridge, BridgeError


async def death() -> str:
    """From SIGKILL to KernelDied of a pending call: bridges that launched, and that attached."""
    delays = []
    for attached in (False, True):
        times = []
        for _ in range(5):
            async with Bridge.launch() as owner:
                bridge = await Bridge.attach(owner.info.connection_file) if attached else owner
                pending = asyncio.ensure_future(bridge.pull("__import__('time').sleep(60)"))
                await asyncio.sleep(0.2)
                os.kill(bridge.info.pid, signal.SIGKILL)
                times.append(await timed(lambda pending=pending: failing(pending)))
                await bridge.aclose()
        delays.append(f"{statistics.median(times):.2f} s (at most {max(times):.2f})")
    return f"launched {delays[0]}, attached {delays[1]}"


async def silence() -> str:
    """From SIGSTOP to KernelUnresponsive, and from SIGCONT to the next answer."""
    async with Bridge.launch() as bridge:
        await bridge.push(x=1)
        os.kill(bridge.info.pid, signal.SIGSTOP)
        try:
            async with lag() as worst:
                reported = await timed(lambda: failing(bridge.pull("x")))
        finally:
            os.kill(bridge.info.pid, signal.SIGCONT)
        answered = await timed(lambda: bridge.pull("x"))
        return (
            f"{reported:.1f} s, answers after {answered * 1000:.0f} ms; "
            f"loop lag {worst() * 1000:.1f} ms"
        )


async def pickled() -> str:
    """100 MB of small objects, which pickle must traverse: loop lag while they cross."""
    async with Bridge.launch() as bridge:
        many = [{"number": i, "name": str(i)} for i in range(3_000_000)]
        async with lag() as push:
            sent = await bridge.push(many=many)
        async with lag() as pull:
            await bridge.pull("many")
        lags = f"{push() * 1000:.0f} ms, pull {pull() * 1000:.0f} ms"
        return f"{sent.bytes / 1e6:.0f} MB: push {lags}"


async def watching() -> str:
    """From a cell's reply to the arrival of a watched 1 MB array, 50 cells."""
    async with Bridge.launch() as bridge:
        await bridge.run("import numpy as np; a = np.zeros(125_000)")
        late = []
        async with bridge.watch("a") as values:
            await anext(values)
            for number in range(50):
                await bridge.run(f"a = a + {number + 1}")
                late.append(await timed(lambda: anext(values)))
        return f"median {statistics.median(late) * 1000:.2f} ms after the reply"


# ---------------------------------------------------------------- helpers


async def timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    await work()
    return time.perf_counter() - started


async def failing(work: Any) -> None:
    try:
        await work
    except BridgeError:
        return
    raise AssertionError("it should have failed")


@asynccontextmanager
async def lag() -> AsyncIterator[Callable[[], float]]:
    """Measure the longest time for which the event loop was blocked, in seconds."""
    worst = 0.0

    async def tick() -> None:
        nonlocal worst
        while True:
            started = time.perf_counter()
            await asyncio.sleep(0.001)
            worst = max(worst, time.perf_counter() - started - 0.001)

    ticking = asyncio.ensure_future(tick())
    try:
        yield lambda: worst
    finally:
        ticking.cancel()


FIGURES = [death, silence, pickled, watching]


async def main() -> None:
    wanted = set(sys.argv[1:]) or {figure.__name__ for figure in FIGURES}
    for figure in FIGURES:
        if figure.__name__ in wanted:
            print(f"{inspect.getdoc(figure)}\n    {await figure()}", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
