"""The peak memory of both processes while 1 GB crosses, beyond what they had before.

Rule: a new client process, whose peak is reset when the object exists. So the client's figure for
a push and the kernel's figure for a pull do not include the object; the other two do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
from collections.abc import Awaitable
from typing import Any

from bridgehead import Bridge
from bridgehead._tools.bench.samples import PAYLOADS
from tests.bench import fresh, proc
from tests.bench.targets import Reached

TIMES = 3


async def measure(wanted: argparse.Namespace) -> list[Reached]:
    try:
        runs = [await fresh.run("memory", wanted.lane) for _ in range(TIMES)]
    except RuntimeError as error:
        print(f"left out: {error}")
        return []
    found = []
    for what in runs[0]:
        megabytes = [run[what] / 1e6 for run in runs]
        detail = ", ".join(f"{value:.0f}" for value in megabytes)
        found.append(
            Reached(what, statistics.median(megabytes), "MB", f"lane {wanted.lane}: {detail}")
        )
    return found


async def once(lane: Any) -> dict[str, int]:
    """Return by how many bytes each process grew at most, in push and in pull."""
    payload = PAYLOADS["np1g"]
    async with Bridge.launch(lane=lane) as bridge:
        await bridge.pull("__import__('numpy').__name__")
        await bridge.push(small=1)
        value = payload.make()
        pids = {"client": os.getpid(), "kernel": bridge.info.pid}
        push, _ = await _peaks(bridge.push(x=value), pids)
        pull, back = await _peaks(bridge.pull("x"), pids)
        assert payload.same(value, back)
    return {
        f"{way} 1 GB, {process} peak": grown[process]
        for way, grown in (("push", push), ("pull", pull))
        for process in pids
    }


async def _peaks(work: Awaitable[Any], pids: dict[str, int]) -> tuple[dict[str, int], Any]:
    before = {process: proc.resident(pid) for process, pid in pids.items()}
    for pid in pids.values():
        proc.reset_peak(pid)
    result = await work
    return {process: proc.peak(pid) - before[process] for process, pid in pids.items()}, result


if __name__ == "__main__":
    print(json.dumps(asyncio.run(once(sys.argv[1]))))
