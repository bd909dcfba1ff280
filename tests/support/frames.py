"""Frames and their parts, for tests of the wire format.

Rule: bytes alone; no pickles.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any


def joined(parts: Any) -> bytes:
    return b"".join(parts)


def frames_of(sizes: Sequence[int], seed: int = 0) -> list[memoryview]:
    """Return frames of these sizes without zero bytes, so that unwritten bytes are visible."""
    source = random.Random(seed)
    return [memoryview(bytes(source.choices(range(1, 256), k=size))) for size in sizes]
