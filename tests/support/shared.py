"""Shared memory between two ends of one test, and a process of its own for what would end it.

Rule: nothing of a socket or a kernel is here. What a limit or a fork would do to the test run
happens in a process, whose code is a program in a string and which says what it found in JSON.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bridgehead._shipped.wire import segments as _segments
from bridgehead._shipped.wire.segments import Pool, Segment, SegmentCache

needs_segments = pytest.mark.skipif(
    not _segments.possible(), reason="this system or this Python has no memfd with seals"
)
KIB, MIB = 1 << 10, 1 << 20
PRELUDE = """
import errno, gc, os, resource
import numpy as np
from bridgehead._shipped.wire import segments as _segments
from bridgehead._shipped.wire.segments import SegmentCache, Pool
from support.shared import MIB, descriptors, handed, in_child, say, sent
"""


def filled(pool: Pool, *arrays: np.ndarray[Any, Any]) -> tuple[Segment, list[int]]:
    """A segment with arrays in it, and the sizes of its frames."""
    frames = [memoryview(array).cast("B") for array in arrays]
    sizes = [frame.nbytes for frame in frames]
    segment = pool.take(sizes)
    assert segment is not None
    for _ in segment.fill(frames):
        pass
    return segment, sizes


def handed(maps: SegmentCache, segment: Segment) -> None:
    """Map a segment as if its file had come through a socket."""
    maps.add(segment.number, os.dup(segment.file), segment.capacity, segment.pool.private)


def sent(
    pool: Pool, maps: SegmentCache, *arrays: np.ndarray[Any, Any]
) -> tuple[Segment, list[Any]]:
    """Arrays through a segment and back, as views of it."""
    segment, sizes = filled(pool, *arrays)
    if segment.number not in maps.known:
        handed(maps, segment)
    views = maps.lease(segment.number, sizes)
    return segment, [np.frombuffer(v, a.dtype) for v, a in zip(views, arrays, strict=True)]


def released(pool: Pool, maps: SegmentCache) -> list[int]:
    """What the receiver would tell, taken in by the pool."""
    gc.collect()
    numbers = [maps.released.popleft() for _ in range(len(maps.released))]
    for number in numbers:
        segment = pool.segments.get(abs(number))
        if segment is not None:
            pool.give_back(segment, tainted=number < 0)
    return numbers


def descriptors() -> int:
    """How many files this process has open."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def resident() -> int:
    """KiB of shared memory whose pages this process has mapped."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("RssShmem:"))


# ---------------------------------------------------------------- processes


def in_a_process(program: str, *, seconds: float = 60) -> Any:
    """What a program says it found; it is run with this interpreter and path."""
    ran = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PRELUDE + program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert ran.returncode == 0, (ran.returncode, ran.stderr)
    return json.loads(ran.stdout.splitlines()[-1])


def say(found: Any) -> None:
    """The last thing that a program does."""
    print(json.dumps(found), flush=True)


def in_child(work: Callable[[], Any]) -> Any:
    """What a forked child says, and that it ended well."""
    back, forth = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(forth, json.dumps(work()).encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(forth)
    said = b""
    while part := os.read(back, 65536):
        said += part
    os.close(back)
    _, status = os.waitpid(child, 0)
    assert status == 0, (status, said)
    return json.loads(said)
