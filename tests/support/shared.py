"""Shared memory between two ends of one test, and processes for dangerous tests.

Rule: no socket and no kernel. A test that sets a limit or forks runs in its own process. The code
of that process is a program in a string, and it prints its result as JSON.
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

import bridgehead
from bridgehead._shipped.wire.leases import SlabCache
from bridgehead._shipped.wire.segments import SHARED_BELOW, Pool, Segment

KIB, MIB = 1 << 10, 1 << 20
WHOLE = SHARED_BELOW  # bytes of the smallest segment that has a slab of its own
_filled: dict[int, Segment] = {}  # by number
# Of bridgehead only what is shipped, and no pytest: importing those takes 0.3 s.
PRELUDE = f"""
import errno, gc, os, resource, sys, types
package = sys.modules["bridgehead"] = types.ModuleType("bridgehead")
package.__path__ = {list(bridgehead.__path__)}
import numpy as np
from bridgehead._shipped.wire import segments as _segments
from bridgehead._shipped.wire.leases import SlabCache
from bridgehead._shipped.wire.segments import Pool
from support.shared import (
    MIB, WHOLE, descriptors, handed, in_child, leased, released, say, sent,
)
"""


def filled(pool: Pool, *arrays: np.ndarray[Any, Any]) -> tuple[Segment, list[int]]:
    """Return a segment that contains arrays, and the sizes of its frames."""
    frames = [memoryview(array).cast("B") for array in arrays]
    sizes = [frame.nbytes for frame in frames]
    segment = pool.take(sizes)
    assert segment is not None
    _filled[segment.number] = segment
    for _ in segment.fill(frames):
        pass
    return segment, sizes


def handed(maps: SlabCache, segment: Segment) -> None:
    """Map the slab of a segment as if its descriptor had arrived through a socket."""
    slab = segment.slab
    maps.add(slab.number, os.dup(slab.file), slab.capacity, slab.private, slab.is_shared)


def leased(maps: SlabCache, segment: Segment, sizes: list[int]) -> list[memoryview]:
    """Lease a segment as if a message had named it."""
    return maps.lease(segment.slab.number, segment.number, segment.start, sizes)


def sent(pool: Pool, maps: SlabCache, *arrays: np.ndarray[Any, Any]) -> tuple[Segment, list[Any]]:
    """Send arrays through a segment; return the segment and the receiver's views of it."""
    segment, sizes = filled(pool, *arrays)
    if segment.slab.number not in maps.known:
        handed(maps, segment)
    views = leased(maps, segment, sizes)
    return segment, [np.frombuffer(v, a.dtype) for v, a in zip(views, arrays, strict=True)]


def released(pool: Pool, maps: SlabCache) -> list[int]:
    """Pass the receiver's released segments to the pool; return their numbers."""
    gc.collect()
    numbers = [maps.released.popleft() for _ in range(len(maps.released))]
    for number in numbers:
        pool.give_back(_filled[abs(number)], tainted=number < 0)
    return numbers


def descriptors() -> int:
    """Count the descriptors that this process has open."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def resident() -> int:
    """Return the KiB of shared memory whose pages this process has mapped."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("RssShmem:"))


# ---------------------------------------------------------------- processes


def in_a_process(program: str, *, seconds: float = 60) -> Any:
    """Run a program with this interpreter and path; return the result that it prints."""
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
    """Print a program's result; the last step of every program."""
    print(json.dumps(found), flush=True)


def in_child(work: Callable[[], Any]) -> Any:
    """Call ``work`` in a forked child; return its result and check the child's exit code."""
    result_end, child_end = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(child_end, json.dumps(work()).encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(child_end)
    result = b""
    while part := os.read(result_end, 65536):
        result += part
    os.close(result_end)
    _, status = os.waitpid(child, 0)
    assert status == 0, (status, result)
    return json.loads(result)
