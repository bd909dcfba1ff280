"""How soon, how much, how smooth: the figures behind the promises, measured on this machine.

Rule: no test. Ratios are taken side by side in one run; times are those of this machine now.
``python tests/bench/promises.py`` (about a minute); with names, only those.
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
from pathlib import Path
from typing import Any

import numpy as np

from bridgehead import Bridge, BridgeError

GIGABYTE = 125_000_000  # float64


async def together() -> str:
    """1,000 concurrent pushes of an int against 1,000 in a row; pulls likewise."""
    async with Bridge.launch() as bridge:
        await bridge.push(x=0)
        told = []
        for name, one in (("push", lambda: bridge.push(x=1)), ("pull", lambda: bridge.pull("x"))):
            sequential = await timed(lambda one=one: in_a_row(one, 1000))
            concurrent = await timed(lambda one=one: asyncio.gather(*(one() for _ in range(1000))))
            told.append(f"{name} {concurrent / sequential:.3f} x ({sequential:.2f} s in a row)")
        return ", ".join(told)


async def while_busy() -> str:
    """A pull with now=True in the middle of a cell that sleeps, and of one that spins."""
    async with Bridge.launch() as bridge:
        await bridge.push(x=1)
        told = []
        for cell in ("import time; time.sleep(2)", "for i in range(30_000_000): pass"):
            running = asyncio.ensure_future(bridge.run(cell))
            await asyncio.sleep(0.2)
            times = []
            while not running.done() and len(times) < 100:
                times.append(await timed(lambda: bridge.pull("x", now=True)))
            await running
            told.append(f"{statistics.median(times) * 1000:.1f} ms")
        return f"median {told[0]} while it sleeps, {told[1]} while it spins"


async def death() -> str:
    """From SIGKILL to KernelDied, of a pending call: launched here, and attached."""
    told = []
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
        told.append(f"{statistics.median(times):.2f} s (at most {max(times):.2f})")
    return f"launched {told[0]}, attached {told[1]}"


async def silence() -> str:
    """From SIGSTOP to KernelUnresponsive, and from SIGCONT to the next answer."""
    async with Bridge.launch() as bridge:
        await bridge.push(x=1)
        os.kill(bridge.info.pid, signal.SIGSTOP)
        try:
            async with lag() as worst:
                told = await timed(lambda: failing(bridge.pull("x")))
        finally:
            os.kill(bridge.info.pid, signal.SIGCONT)
        back = await timed(lambda: bridge.pull("x"))
        return f"{told:.1f} s, back after {back * 1000:.0f} ms; loop lag {worst() * 1000:.1f} ms"


async def large() -> str:
    """1 GB there and back: loop lag, and peak memory beyond what was there."""
    async with Bridge.launch() as bridge:
        await bridge.push(x=1)
        array, told, here = np.ones(GIGABYTE), [], os.getpid()
        for name in ("push", "pull"):
            before = [resident(here), resident(bridge.info.pid)]
            async with lag() as worst, peaks(here, bridge.info.pid) as most:
                if name == "push":
                    seconds = await timed(lambda: bridge.push(array=array))
                else:
                    seconds = await timed(lambda: bridge.pull("array"))
            near, remote = (peak - start for peak, start in zip(most(), before, strict=True))
            told.append(
                f"{name} {seconds:.1f} s, lag {worst() * 1000:.0f} ms, "
                f"near +{near >> 20} MiB, far +{remote >> 20} MiB"
            )
        return "; ".join(told)


async def pickled() -> str:
    """100 MB of small objects, which only pickle knows: loop lag while they cross."""
    async with Bridge.launch() as bridge:
        many = [{"number": i, "name": str(i)} for i in range(3_000_000)]
        async with lag() as push:
            sent = await bridge.push(many=many)
        async with lag() as pull:
            await bridge.pull("many")
        lags = f"{push() * 1000:.0f} ms, pull {pull() * 1000:.0f} ms"
        return f"{sent.bytes / 1e6:.0f} MB: push {lags}"


async def watching() -> str:
    """From the end of a cell's reply to the value here, 50 cells; a 1 MB array is watched."""
    async with Bridge.launch() as bridge:
        await bridge.run("import numpy as np; a = np.zeros(125_000)")
        late = []
        async with bridge.watch("a") as values:
            await anext(values)
            for number in range(50):
                await bridge.run(f"a = a + {number + 1}")
                late.append(await timed(lambda: anext(values)))
        return f"median {statistics.median(late) * 1000:.2f} ms after the reply"


# ---------------------------------------------------------------- the means


async def timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    await work()
    return time.perf_counter() - started


async def in_a_row(one: Callable[[], Any], count: int) -> None:
    for _ in range(count):
        await one()


async def failing(work: Any) -> None:
    try:
        await work
    except BridgeError:
        return
    raise AssertionError("it should have failed")


@asynccontextmanager
async def lag() -> AsyncIterator[Callable[[], float]]:
    """The longest that the event loop was not to be had, in seconds."""
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


@asynccontextmanager
async def peaks(*pids: int) -> AsyncIterator[Callable[[], list[int]]]:
    """The most memory that each process had, in bytes, looked at every 5 ms."""
    most = [0] * len(pids)

    async def look() -> None:
        while True:
            most[:] = [max(old, resident(pid)) for old, pid in zip(most, pids, strict=True)]
            await asyncio.sleep(0.005)

    looking = asyncio.ensure_future(look())
    try:
        yield lambda: most
    finally:
        looking.cancel()


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


FIGURES = [together, while_busy, death, silence, large, pickled, watching]


async def main() -> None:
    wanted = set(sys.argv[1:]) or {figure.__name__ for figure in FIGURES}
    for figure in FIGURES:
        if figure.__name__ in wanted:
            print(f"{inspect.getdoc(figure)}\n    {await figure()}", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
