"""Push and pull of every payload by every peer, in rounds, as ratios to each of the others.

Rule: a peer that can't be imported or started, or that fails with a payload, is reported and left
out. The others are measured.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

from bridgehead._tools.bench.peers import Peer
from bridgehead._tools.bench.rounds import PeerTimes, side_by_side
from bridgehead._tools.bench.samples import PAYLOADS
from tests.bench import peers as every
from tests.bench.targets import TARGETS, Reached

PEERS = (
    "memcpy,pickle,zmq,ipyparallel,execute,ray,dask:direct,"
    "bridgehead:auto,bridgehead:direct,bridgehead:buffers"
)
WITHIN = ("memcpy", "pickle")  # peers in one process, for which push and pull are the same
TELLING = 10**5  # bytes; for smaller objects, pickling takes much less than a round trip


async def measure(wanted: argparse.Namespace) -> list[Reached]:
    payloads = [PAYLOADS[name] for name in wanted.payloads.split(",")]
    running = await started(wanted.peers.split(","))
    figures: list[Reached] = []
    try:
        for payload in payloads:
            timings = await side_by_side(running, payload, wanted.seconds)
            for timing in timings:
                print(_line(timing), flush=True)
            figures += ratios([timing for timing in timings if timing.push])
    finally:
        for peer in running:
            await _stopped(peer)
    return figures


async def started(specs: Sequence[str]) -> list[Peer]:
    """Start the peers of these names, and return those that work."""
    running: list[Peer] = []
    for spec in specs:
        peer: Peer | None = None
        try:
            peer = every.make(spec)
            await peer.start(("numpy", "pandas"))
            running.append(peer)
        except Exception as error:
            print(f"left out: {spec}: {type(error).__name__}: {error}".partition("\n")[0])
            if peer is not None:
                await _stopped(peer)
        except BaseException:
            for one in [*running, *([peer] if peer else [])]:
                await _stopped(one)
            raise
    return running


async def _stopped(peer: Peer) -> None:
    try:
        await peer.stop()
    except Exception as error:
        print(f"{peer.name} did not stop: {error!r}")


def ratios(timings: Sequence[PeerTimes]) -> list[Reached]:
    """Return the ratios of bridgehead to the other peers; to all of them for its first lane."""
    found = []
    lanes = [timing for timing in timings if timing.peer.lane]
    for ours in lanes:
        for other in timings:
            if other is ours:
                continue
            for way in ("push", "pull"):
                what = f"{ours.payload.name} {way}, {ours.peer.name} / {other.peer.name}"
                mine = ours.median(way)
                theirs = other.median(way)
                if other.peer.name in WITHIN:
                    theirs = statistics.median([*other.push, *other.pull])
                if what not in TARGETS and not _tells(other, first=ours is lanes[0]):
                    continue
                detail = f"{mine * 1000:.3g} / {theirs * 1000:.3g} ms"
                found.append(Reached(what, mine / theirs, detail=detail))
    return found


def _tells(other: PeerTimes, *, first: bool) -> bool:
    """Return whether a ratio without a target is worth showing."""
    if other.peer.name in WITHIN:
        return other.payload.about >= TELLING
    return not other.peer.lane and (first or other.peer.name == "zmq tcp")


def _line(timing: PeerTimes) -> str:
    start = f"{timing.payload.name:8} {timing.peer.name:16}"
    if not timing.push:
        return f"{start} left out: {timing.left_out}"
    line = f"{start} push {timing.median('push') * 1000:10.3f} ms"
    line += f"  pull {timing.median('pull') * 1000:10.3f} ms  {len(timing.push):3} rounds"
    if timing.touch:
        first, again = (sorted(times)[len(times) // 2] for times in zip(*timing.touch, strict=True))
        line += f"  read {first * 1000:.1f}, again {again * 1000:.1f} ms"
    return f"{line}  {timing.left_out}".rstrip()
