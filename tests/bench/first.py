"""The first transfer of a new bridge and of new ZeroMQ sockets: 100 MB.

Rule: each repetition has a client process, a kernel and a server of its own, because an earlier
repetition leaves mapped memory behind. All processes have imported numpy.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import sys
import time
from typing import Any

from bridgehead import Bridge
from bridgehead._tools.bench.peers import LanePeer, Peer, RawZmq
from bridgehead._tools.bench.samples import PAYLOADS
from tests.bench import fresh
from tests.bench.targets import Reached

PAIRS = 7
Times = dict[str, dict[str, float]]


async def measure(wanted: argparse.Namespace) -> list[Reached]:
    pairs: list[Times] = []
    for number in range(PAIRS):
        order = [wanted.lane, "zmq tcp"]
        try:
            pairs.append(await fresh.run("first", *(order if number % 2 else order[::-1])))
        except RuntimeError as error:
            print(f"left out: {error}")
            return []
    found = []
    for way in ("push", "pull"):
        mine, theirs = (
            statistics.median(pair[name][way] for pair in pairs) * 1000
            for name in (wanted.lane, "zmq tcp")
        )
        what = f"np100m first {way}, {wanted.lane} / zmq tcp"
        detail = f"{mine:.3g} / {theirs:.3g} ms, {PAIRS} pairs"
        found.append(Reached(what, mine / theirs, detail=detail))
    return found


async def once(names: list[str]) -> Times:
    """Measure each peer in this order, in this process, which has not transferred anything yet."""
    payload = PAYLOADS["np100m"]
    value, times = payload.make(), {}
    for name in names:
        lane: Any = name
        zmq = name == "zmq tcp"
        peer: Peer = RawZmq() if zmq else LanePeer(lane, Bridge.launch(lane=lane))
        try:
            await peer.start(payload.needs)
            await asyncio.sleep(0.5)  # a kernel is busy for a while after its start
            gc.collect()
            gc.disable()
            started = time.perf_counter()
            await peer.push("x", value)
            pushed = time.perf_counter()
            back = await peer.pull("x")
            pulled = time.perf_counter()
            gc.enable()
            assert payload.same(value, back)
            del back
            times[name] = {"push": pushed - started, "pull": pulled - pushed}
        finally:
            await peer.stop()
    return times


if __name__ == "__main__":
    print(json.dumps(asyncio.run(once(sys.argv[1:]))))
