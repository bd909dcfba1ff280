"""Where the time of a small push and pull goes: microseconds at each step, in both processes.

Rule: functions of both ends note the time when they are entered or left; the clock is the
machine's, so the notes of two processes can be put in order. There is a pause before each
operation, as in a program that does something else meanwhile: in a loop without pauses everything
is in the caches, and takes half of the time.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from bisect import bisect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bridgehead import Bridge
from bridgehead._lanes.socket import SocketClient
from bridgehead._shipped.wire.socket import FrameSocket
from tests.bench.targets import Reached

ROUNDS, WARM_UP = 400, 50
PAUSE = 0.001  # seconds
Notes = list[tuple[str, int]]  # steps, and when they were reached, in nanoseconds
# Class, method, the step when it is entered, the step when it is left.
CLIENT = (
    (SocketClient, "_send_now", "the request is packed", "the request is sent"),
    (FrameSocket, "receive", "", "the reply is read"),
)
IN_KERNEL = """
def _note_steps():
    import sys, time
    [module] = [m for n, m in sys.modules.items() if n.startswith("_bridgehead_")]
    notes = module.notes_of_steps = []
    def wrap(owner, name, begin, end):
        kept = getattr(owner, name)
        def noting(*args):
            if begin:
                notes.append((begin, time.perf_counter_ns()))
            result = kept(*args)
            if end:
                notes.append((end, time.perf_counter_ns()))
            return result
        setattr(owner, name, noting)
    wrap(module.FrameSocket, "receive", "", "kernel: the request is read")
    wrap(module.Remote, "receive", "kernel: it is parsed", "")
    wrap(module.Remote, "handle", "kernel: it is checked", "kernel: it is done")
    wrap(module, "send_all", "kernel: the reply is packed", "kernel: the reply is sent")
_note_steps()
"""
NOTES = (
    "[m for n, m in __import__('sys').modules.items() if n.startswith('_bridgehead_')]"
    "[0].notes_of_steps"
)


async def measure(wanted: argparse.Namespace) -> list[Reached]:
    async with Bridge.launch() as bridge:
        if bridge.info.lane != "direct":
            print("left out: there is no direct lane")
            return []
        await bridge.run(IN_KERNEL)
        taken: dict[str, list[Notes]] = {"push": [], "pull": []}
        with _noted() as notes:
            for number in range(ROUNDS):
                for way, rows in taken.items():
                    await asyncio.sleep(PAUSE)
                    notes.clear()
                    begun = time.perf_counter_ns()
                    await (bridge.push(x=number) if way == "push" else bridge.pull("x"))
                    rows.append([("", begun), *notes, ("the end", time.perf_counter_ns())])
        theirs = [(step, at) for step, at in await bridge.pull(NOTES)]
    return [figure for way, rows in taken.items() for figure in _figures(way, rows, theirs)]


@contextmanager
def _noted() -> Iterator[Notes]:
    """Have the functions of ``CLIENT`` note their steps while the block runs."""
    notes: Notes = []

    def noting(method: Any, begin: str, end: str) -> Any:
        def call(*args: Any) -> Any:
            if begin:
                notes.append((begin, time.perf_counter_ns()))
            result = method(*args)
            if end:
                notes.append((end, time.perf_counter_ns()))
            return result

        return call

    kept = [(owner, name, getattr(owner, name)) for owner, name, *_ in CLIENT]
    for owner, name, begin, end in CLIENT:
        setattr(owner, name, noting(getattr(owner, name), begin, end))
    try:
        yield notes
    finally:
        for owner, name, method in kept:
            setattr(owner, name, method)


def _figures(way: str, rows: list[Notes], theirs: Notes) -> list[Reached]:
    """Return the median time at which each step was reached, counted from the call."""
    times = [at for _, at in theirs]
    reached: dict[str, list[float]] = {}
    for ours in rows[WARM_UP:]:
        begun, end = ours[0][1], ours[-1][1]
        for step, at in {
            **dict(theirs[bisect(times, begun) : bisect(times, end)]),
            **dict(ours),
        }.items():
            reached.setdefault(step, []).append((at - begun) / 1000)
    del reached[""]
    medians = sorted((statistics.median(found), step) for step, found in reached.items())
    before, figures = 0.0, []
    for median, step in medians:
        figures.append(Reached(f"{way}: {step}", median, "µs", f"+{median - before:.0f}"))
        before = median
    return figures
