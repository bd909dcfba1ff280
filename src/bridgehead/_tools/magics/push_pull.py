"""``%bridge push`` and ``%bridge pull``: a bar for a long transfer, and what crossed.

Rule: objects cross as ``SyncBridge`` moves them; this file draws the bar in the calling thread and
says how much crossed, by which lane and in what time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from bridgehead._bridge.loop_thread import CallbackRunner
from bridgehead._bridge.progress import Report, drawing
from bridgehead._bridge.sync import SyncBridge
from bridgehead._protocol.formatting import short_list, size
from bridgehead._transports.base import Transport


def push(bridge: SyncBridge, objects: Mapping[str, Any]) -> str:
    """Bind objects to names in the kernel; return what crossed."""
    with _bar("push") as (report, runner):
        done = bridge._wait(lambda: bridge._bridge.push(dict(objects), progress=report), runner)
    return f"pushed {short_list(done.names)}: {_measures(done.bytes, done.lane, done.seconds)}"


def pull(bridge: SyncBridge, asked: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """Return the values of expressions by the names they get here, and what crossed."""
    total, began = 0, time.perf_counter()
    with _bar("pull") as (report, runner):

        def note(done: int, whole: int) -> None:
            nonlocal total
            total = whole
            report(done, whole)

        call = bridge._bridge.pull
        found = bridge._wait(lambda: call(*asked.values(), progress=note), runner)
    seconds = time.perf_counter() - began
    values = found if len(asked) > 1 else (bridge._own(found),)
    named = dict(zip(asked, values, strict=True))
    return named, f"pulled {short_list(list(asked))}: {_measures(total, bridge.info.lane, seconds)}"


def _measures(nbytes: int, lane: str, seconds: float) -> str:
    return f"{size(nbytes)} by {lane} in {seconds:.3g} s"


@contextmanager
def _bar(operation: str) -> Iterator[tuple[Report, CallbackRunner]]:
    """Give a function for bytes, and what draws the bar in this thread; no bar without tqdm."""
    with _drawing(operation) as (report, draw):
        yield report, CallbackRunner(draw, Transport.timings.bar_every)


def _drawing(operation: str) -> Any:
    try:
        import tqdm  # noqa: F401
    except ImportError:
        return drawing(False, operation)
    return drawing(True, operation)
