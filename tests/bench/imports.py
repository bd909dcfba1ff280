"""How long ``import bridgehead`` takes, over ``import jupyter_client``, which it stands on.

Rule: a bare Python for each, one after the other; the clock starts when Python has.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys

from tests.bench.targets import Reached

ROUNDS = 21
CODE = "import time; started = time.perf_counter(); import {}; print(time.perf_counter() - started)"


async def measure(wanted: argparse.Namespace) -> list[Reached]:
    times: dict[str, list[float]] = {"bridgehead": [], "jupyter_client": []}
    for number in range(ROUNDS + 1):
        for module, taken in times.items():
            command = [sys.executable, "-c", CODE.format(module)]
            pipe = asyncio.subprocess.PIPE
            process = await asyncio.create_subprocess_exec(*command, stdout=pipe)
            out, _ = await process.communicate()
            if number:  # the first one reads from the disk, and may compile
                taken.append(float(out))
    ours, theirs = (statistics.median(taken) * 1000 for taken in times.values())
    detail = f"{ours:.0f} / {theirs:.0f} ms, {ROUNDS} each"
    return [Reached("import bridgehead / jupyter_client", ours / theirs, detail=detail)]
