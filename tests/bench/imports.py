"""The time of ``import bridgehead``, over that of ``import jupyter_client``, which it imports.

Rule: a new Python for each, in turns. The clock starts after the start of Python.
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
            if number:  # the first import reads from the disk, and may compile
                taken.append(float(out))
    ours, theirs = (statistics.median(taken) * 1000 for taken in times.values())
    detail = f"{ours:.0f} / {theirs:.0f} ms, {ROUNDS} each"
    return [Reached("import bridgehead / jupyter_client", ours / theirs, detail=detail)]
