"""Measure bridgehead and its peers in one run.

From the checkout's root:

    python -m tests.bench transfers                 # push and pull: every peer, every payload
    python -m tests.bench transfers --peers memcpy,zmq,ray,bridgehead:auto --payloads int,np100m
    python -m tests.bench first                     # the first transfer of a bridge
    python -m tests.bench fan-out                   # one object to four kernels: time, memory
    python -m tests.bench handoff                   # kernel to kernel / pull and push
    python -m tests.bench engines                   # four ipyparallel engines / their views
    python -m tests.bench sync                      # SyncBridge / Bridge
    python -m tests.bench together                  # 1,000 at once; beside 1 GB of another bridge
    python -m tests.bench steps                     # where the time of a small push goes
    python -m tests.bench busy                      # now=True while the kernel is busy
    python -m tests.bench lag                       # the event loop while 1 GB is pushed, pulled
    python -m tests.bench memory                    # peaks of both processes, 1 GB
    python -m tests.bench import                    # import bridgehead / jupyter_client
    python -m tests.bench bridges                   # each of 200 bridges on a kernel / of 10
    python -m tests.bench opening                   # opening a bridge / an empty cell
    python -m tests.bench server                    # through a Jupyter server
    python -m tests.bench objects                   # heavy objects / numpy, cloudpickle
    python -m tests.bench work                      # calls, tasks, iterations, maps / ray, …
    python -m tests.bench objects --rows bytes,str
    python -m tests.bench all --json figures.json

Rule: no tests. Each scenario is a file that returns figures. ``targets`` holds what the figures
should reach, ``table`` prints them. ``pip install '.[bench,peers]'`` installs the peers. A missing
peer is reported and left out. Quote ratios, never single times.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from bridgehead._tools.bench.samples import PAYLOADS
from bridgehead._tools.bench.session import machine, versions
from tests.bench import (
    bridges,
    busy,
    engines,
    fan_out,
    first,
    handoff,
    imports,
    lag,
    memory,
    objects,
    opening,
    server,
    steps,
    sync,
    table,
    together,
    transfers,
    work,
)
from tests.bench.targets import Reached

Scenario = Callable[[argparse.Namespace], Awaitable[list[Reached]]]
SCENARIOS: dict[str, Scenario] = {
    "transfers": transfers.measure,
    "first": first.measure,
    "fan-out": fan_out.measure,
    "handoff": handoff.measure,
    "engines": engines.measure,
    "sync": sync.measure,
    "together": together.measure,
    "steps": steps.measure,
    "busy": busy.measure,
    "lag": lag.measure,
    "memory": memory.measure,
    "import": imports.measure,
    "opening": opening.measure,
    "bridges": bridges.measure,
    "server": server.measure,
    "objects": objects.measure,
    "work": work.measure,
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scenario", choices=[*SCENARIOS, "all"])
    parser.add_argument("--lane", default="auto", help="the lane, for all scenarios but transfers")
    parser.add_argument("--peers", default=transfers.PEERS, help="for transfers: %(default)s")
    parser.add_argument("--payloads", default=",".join(PAYLOADS), help="for transfers: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="for each peer and payload of transfers"
    )
    parser.add_argument("--rows", help="for objects: their names, with commas; by default all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    return parser.parse_args()


def main() -> None:
    wanted = arguments()
    report: dict[str, Any] = {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
    }
    print(f"{report['date']}, {report['machine']}", flush=True)
    for name, scenario in SCENARIOS.items():
        if wanted.scenario in (name, "all"):
            print(f"\n== {name}", flush=True)
            figures = asyncio.run(scenario(wanted))
            table.show(figures)
            report[name] = [figure.as_dict() for figure in figures]
    if wanted.json:
        wanted.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
