"""Many operations without faults, and what they leave: ``python -m tests.soak --leaks``.

After 20,000 small operations, 500 large ones, 300 openings and 100 launches, memory, descriptors,
threads, tasks and files of this process and of the kernel are where they were.

Memory is that of the process alone: what is shared with the other one is a pool, which is bounded
and given back when it is idle. Each of its segments has a descriptor, which is counted apart: the
pool may have one more or one less at any moment, but never more and more.

Rule: first some operations of each stage are made that do not count, because what the first use
brings stays: pools of memory, imported modules, pyzmq's thread. A stage that leaves more than that
is a failure.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np

from bridgehead import Bridge
from tests.bench import proc
from tests.soak import left
from tests.soak.model import Wrong
from tests.soak.remote import sizes
from tests.soak.report import table
from tests.soak.values import call_times, count_up, count_up_later, later, rest, twice

LANES = ("direct", "buffers", "inline")
COUNTS = {"small": 20_000, "large": 500, "openings": 300, "launches": 100}
FIRST = {"small": 1000, "large": 40, "openings": 20, "launches": 3}  # that do not count
LARGE = 2_500_000  # numbers of 8 bytes
SHARED = "memfd:"  # in the name of the descriptor of a segment
# What a process may have more: bytes that malloc keeps, and segments that the pool keeps.
ALLOWED = {"MB": 24, "segments": 8}


async def run(folder: Path, share: float = 1.0) -> None:
    """Run a share of all stages, print the table, and raise ``Wrong`` for what is left."""
    rows: list[dict[str, Any]] = []
    async with AsyncExitStack() as stack:
        owner = await stack.enter_async_context(Bridge.launch())
        file = str(owner.info.connection_file)
        bridges = [
            await stack.enter_async_context(Bridge.attach(file, lane=lane)) for lane in LANES
        ]
        work = Work(owner, bridges, file)
        stages: dict[str, Callable[[int], Awaitable[None]]] = {
            "small": work.small,
            "large": work.large,
            "openings": work.opening,
            "launches": work.launch,
        }
        for name, stage in stages.items():
            for number in range(FIRST[name]):
                await stage(number)
        for name, stage in stages.items():
            count = max(2, round(COUNTS[name] * share))
            before = await measured(owner, folder)
            started = time.monotonic()
            for number in range(count):
                await stage(number)
            took = time.monotonic() - started
            after = await settled(owner, folder, before)
            rows += [
                {"": f"before {count:,} {name}", **before},
                {"": f"after, {took:.0f} s", **after},
            ]
            table(rows[-2:])
            if more := more_than(before, after):
                raise Wrong(f"{count:,} {name} leave more: {more}")
    print()
    table(rows)


class Work:
    """One operation of each stage."""

    def __init__(self, owner: Bridge, bridges: list[Bridge], file: str) -> None:
        self.owner, self.bridges, self.file = owner, bridges, file
        self.chance = random.Random(1)
        self.array = np.arange(LARGE)
        self._operations = [
            *([self._push_and_pull] * 8),
            *(self._names, self._cell, self._staged, self._streamed, self._call, self._coroutine),
            *(self._cancelled, self._kept, self._iterated, self._watched, self._names_watched),
            self._called_back,
        ]

    async def small(self, number: int) -> None:
        bridge = self.bridges[number % len(self.bridges)]
        await self._operations[number % len(self._operations)](bridge, number)

    async def large(self, number: int) -> None:
        bridge = self.bridges[0 if number % 5 else number % 3]
        await bridge.push(large=self.array)
        if number % 2 and not np.array_equal(await bridge.pull("large"), self.array):
            raise Wrong("a large array arrived as another one")

    async def opening(self, number: int) -> None:
        async with Bridge.attach(self.file, lane=LANES[number % 3]) as bridge:
            await self._push_and_pull(bridge, number)
            if number % 3 == 0:
                await bridge.run("1", store_history=False)

    async def launch(self, number: int) -> None:
        async with Bridge.launch() as bridge:
            await self._push_and_pull(bridge, number)

    # ------------------------------------------------------------ small operations

    async def _push_and_pull(self, bridge: Bridge, number: int) -> None:
        value = [number, str(number), np.arange(number % 20_000)]
        await bridge.push(small=value)
        found = await bridge.pull("small")
        if found[:2] != value[:2] or len(found[2]) != number % 20_000:
            raise Wrong(f"{value} arrived as {found!r:.200}")

    async def _names(self, bridge: Bridge, number: int) -> None:
        await bridge.push(gone=number)
        await bridge.names("g*", preview=True)
        await bridge.delete("gone")

    async def _cell(self, bridge: Bridge, number: int) -> None:
        await bridge.run(f"print({number})", store_history=False)

    async def _staged(self, bridge: Bridge, number: int) -> None:
        result = await bridge.run(
            "for n in range(99): print(n)",
            push={"small": number},
            pull=["small"],
            max_output=50,
            store_history=False,
        )
        if result.values != {"small": number} or not result.dropped:
            raise Wrong(f"a cell gave {result!r}, {result.values}")

    async def _streamed(self, bridge: Bridge, number: int) -> None:
        async with bridge.stream("for n in range(9): print(n)", store_history=False) as outputs:
            async for _ in outputs:
                if number % 2:
                    break

    async def _call(self, bridge: Bridge, number: int) -> None:
        if await bridge.call(twice, number) != [number, number]:
            raise Wrong("a function returned something else")

    async def _coroutine(self, bridge: Bridge, number: int) -> None:
        if await bridge.call(later, number, 0) != number:
            raise Wrong("a coroutine returned something else")

    async def _cancelled(self, bridge: Bridge, number: int) -> None:
        task = bridge.submit(later if number % 2 else rest, number, 0.01)
        await asyncio.sleep(self.chance.choice((0, 0.002)))
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def _kept(self, bridge: Bridge, number: int) -> None:
        ref = await bridge.call(twice, number, keep=True)
        if await bridge.pull(ref[0]) != number:
            raise Wrong("a kept object is another one")

    async def _iterated(self, bridge: Bridge, number: int) -> None:
        async with bridge.iterate(count_up if number % 2 else count_up_later, 30) as items:
            async for _ in items:
                if number % 5 == 0:
                    break

    async def _watched(self, bridge: Bridge, number: int) -> None:
        async with bridge.watch("seen", "seen + 1") as watch:
            await bridge.run(f"seen = {number}", store_history=False)
            await anext(watch)

    async def _names_watched(self, bridge: Bridge, number: int) -> None:
        async with bridge.watch_names("s*") as watch:
            await anext(watch)

    async def _called_back(self, bridge: Bridge, number: int) -> None:
        arrived: list[int] = []
        with bridge.callback(arrived.append) as report:
            await bridge.call(call_times, report, 5)
            while len(arrived) < 5:
                await asyncio.sleep(0.001)


# ---------------------------------------------------------------- what is left


async def measured(owner: Bridge, folder: Path) -> dict[str, Any]:
    """Return what this process, the kernel and the run's folders hold."""
    held, pid = left.Held.now(), owner.info.pid
    dumps = Path(os.environ[left.STACKS])  # where each kernel of a soak opens a file
    kernel = await owner.call(sizes)
    return {
        "MB": proc.private(os.getpid()) >> 20,
        "descriptors": sum(SHARED not in one for one in held.descriptors),
        "segments": sum(SHARED in one for one in held.descriptors),
        "threads": len(held.threads),
        "tasks": len(held.tasks),
        "files": sum(dumps not in file.parents for file in folder.rglob("*")),
        "processes": len(left.marked()),
        "kernel MB": proc.private(pid) >> 20,
        **{f"kernel {what}": count for what, count in kernel.items()},
    }


async def settled(owner: Bridge, folder: Path, before: dict[str, Any]) -> dict[str, Any]:
    """Wait until no more is left than before, or nothing more ends; return what is left."""
    end = time.monotonic() + left.PATIENCE
    while True:
        found = await measured(owner, folder)
        if not more_than(before, found) or time.monotonic() > end:
            return found
        await asyncio.sleep(0.5)


def more_than(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Return of what there is more than before; empty if of nothing."""
    return ", ".join(
        f"{what} {before.get(what, 0)} -> {count}"
        for what, count in after.items()
        if count > before.get(what, 0) + ALLOWED.get(what.removeprefix("kernel "), 0)
    )
