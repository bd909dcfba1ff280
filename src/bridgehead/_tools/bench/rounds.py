"""Rounds: all peers take turns, side by side in one process.

Rule: peers that are compared are measured in the same seconds. A warm-up round is verified and
not counted. The order within a round is shuffled, so that no peer always follows the same one.
The garbage collector is off while the clock runs. Quote ratios, never single times.
"""

from __future__ import annotations

import asyncio
import gc
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bridgehead._tools.bench.peers import Peer
from bridgehead._tools.bench.samples import Sample, nbytes

NAME = "bridgehead_bench"  # of the pushed object, which is removed at the end
MIN_ROUNDS = 3  # rounds at least, except after a warm-up longer than LONG_WARM_UP
LONG_WARM_UP = 20.0  # s; after a longer warm-up there are no rounds, and the warm-up is the figure
SETTLE = 0.001  # s between two peers, so that late messages do not slow the next one
LARGE = 5 * 10**8  # bytes from which the pushed object is freed before the next peer's turn
TOUCHED = 10**7  # bytes from which reading the pulled array shows whether its pages are mapped


@dataclass(slots=True)
class PeerTimes:
    """The times of one peer with one payload.

    Attributes:
        payload, peer: the payload and the peer.
        size: the bytes of the pickle and its out-of-band buffers.
        push, pull: the seconds of each round.
        touch: the seconds of reading the whole array right after the pull, and of reading it
            once more. The difference shows pages that were mapped but not yet loaded. Only for
            arrays.
        left_out: why the peer was not measured, or not to the end; empty if it was.
    """

    payload: Sample
    peer: Peer
    size: int
    push: list[float] = field(default_factory=list)
    pull: list[float] = field(default_factory=list)
    touch: list[tuple[float, float]] = field(default_factory=list)
    left_out: str = ""

    @property
    def total(self) -> float:
        return sum(self.push) + sum(self.pull)

    def median(self, operation: str) -> float:
        """Return the median of ``"push"`` or ``"pull"``, in seconds."""
        return statistics.median(self.push if operation == "push" else self.pull)


async def side_by_side(peers: Sequence[Peer], payload: Sample, seconds: float) -> list[PeerTimes]:
    """Push and pull one payload by every peer, in rounds.

    Args:
        seconds: how long each peer is measured at most; it gets at least three rounds.
    """
    value, shuffled = payload.make(), random.Random(0)  # noqa: S311 - an order, no secret
    size = nbytes(value)
    timings = [PeerTimes(payload, peer, size) for peer in peers]
    for timing in timings:
        timing.left_out = timing.peer.refuses(payload) or ""
    running = [timing for timing in timings if not timing.left_out]
    for number in range(payload.rounds + 1):
        running = [timing for timing in running if number <= MIN_ROUNDS or timing.total < seconds]
        shuffled.shuffle(running)
        for timing in list(running):
            await asyncio.sleep(SETTLE)
            try:
                await _round(timing, value, warm_up=number == 0)
            except Exception as error:  # noqa: BLE001 - a peer that fails in any way is left out
                timing.left_out = _text(error)
            if timing.left_out or (number == 0 and timing.push):
                running.remove(timing)
    for timing in timings:
        if not timing.left_out:
            await timing.peer.free(NAME)
    return timings


async def _round(timing: PeerTimes, value: Any, *, warm_up: bool) -> None:
    peer, payload = timing.peer, timing.payload
    collecting = gc.isenabled()
    gc.disable()
    try:
        started = time.perf_counter()
        await peer.push(NAME, value)
        pushed = time.perf_counter()
        back = await peer.pull(NAME)
        pulled = time.perf_counter()
    finally:
        if collecting:
            gc.enable()
    counts = not warm_up or pulled - started > LONG_WARM_UP
    if counts:
        timing.push.append(pushed - started)
        timing.pull.append(pulled - pushed)
    if warm_up and peer.carries and not payload.same(value, back):
        timing.left_out = "the pulled object is not equal to the pushed one"
    if counts and peer.carries and payload.is_array and payload.about >= TOUCHED:
        timing.touch.append((_read(back), _read(back)))
    del back
    if peer.carries and payload.about >= LARGE:
        await peer.free(NAME)


def _read(array: Any) -> float:
    started = time.perf_counter()
    array.sum()
    return time.perf_counter() - started


def _text(error: Exception) -> str:
    line = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {line}"[:200]
