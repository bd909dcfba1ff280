"""Frames and their parts, for tests of the wire format.

Rule: bytes alone; nothing is pickled here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any


def joined(parts: Any) -> bytes:
    return b"".join(parts)


def frames_of(sizes: Sequence[int], seed: int = 0) -> list[memoryview]:
    """Frames of these sizes that hold no zero byte, so that what was not written shows."""
    source = random.Random(seed)
    return [memoryview(bytes(source.choices(range(1, 256), k=size))) for size in sizes]
