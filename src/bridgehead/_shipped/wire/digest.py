"""Digests: what tells that bytes arrived as they were sent, the same on both sides.

Rule: standard library only, Python 3.8 and later; shipped together with ``_loader.py``. The
digest of a stream has one value for every *leaf* of it, ``LEAF`` bytes, so that of a piece is
a part of the whole's: each piece is checked when it arrives, while others are on their way.
"""

from __future__ import annotations

import sys
from hashlib import sha256
from struct import pack
from typing import Any, Dict, Iterable, Iterator, Union
from zlib import crc32

Buffer = Union[bytes, bytearray, memoryview]

LEAF = 4 << 20  # bytes of the stream for each value of a digest; a piece is a multiple of it
ROW = 1024  # words of 8 bytes, in what ``_sums`` adds up
WORD = (1 << 64) - 1


def summed(algorithm: str, total: int, there: Any) -> str:
    """The algorithm, or in place of crc32 the quicker one where both sides have numpy loaded."""
    if algorithm == "crc32" and total > LEAF and there is True and "numpy" in sys.modules:
        return "sums"
    return algorithm


def _crc32(parts: Iterable[Buffer]) -> str:
    value = 0
    for part in parts:
        value = crc32(part, value)
    return "%08x" % value


def _sums(parts: Iterable[Buffer]) -> str:
    """The crc32 of sums: of each frame's words in rows, those of the rows and of the columns.

    numpy adds 100 MB up in 6 ms, crc32 takes 24. As crc32 it finds what goes wrong, and would
    not stop who means it.
    """
    value = 0
    for part in parts:
        view = memoryview(part)
        rows = view.nbytes // (8 * ROW)
        if rows:
            for sums in _added(view[: 8 * ROW * rows], rows):
                value = crc32(sums, value)
        value = crc32(view[8 * ROW * rows :], value)
    return "%08x" % value


def _added(view: memoryview, rows: int) -> tuple[bytes, bytes]:
    try:
        numpy: Any = sys.modules["numpy"]
        table = numpy.frombuffer(view, "u8").reshape(rows, ROW)
        return table.sum(axis=1).tobytes(), table.sum(axis=0).tobytes()
    except Exception:  # it is gone, or not what it was: slow, and right all the same
        words = view.cast("Q")
        across = [sum(words[at : at + ROW]) & WORD for at in range(0, rows * ROW, ROW)]
        down = [sum(words[at::ROW]) & WORD for at in range(ROW)]
        return pack("%dQ" % rows, *across), pack("%dQ" % ROW, *down)


def _sha256(parts: Iterable[Buffer]) -> str:
    sha = sha256()
    for part in parts:
        sha.update(part)
    return sha.hexdigest()


DIGESTS: Dict[str, Any] = {"crc32": _crc32, "sums": _sums, "sha256": _sha256}


def leaves(frames: Iterable[Buffer]) -> Iterator[list[memoryview]]:
    """The stream in parts of ``LEAF`` bytes, as views; the last may be shorter."""
    leaf: list[memoryview] = []
    room = LEAF
    for frame in frames:
        view = memoryview(frame)
        while view.nbytes >= room:
            leaf.append(view[:room])
            yield leaf
            view, leaf, room = view[room:], [], LEAF
        if view.nbytes:
            leaf.append(view)
            room -= view.nbytes
    if leaf:
        yield leaf


def digest_of(whole: str, start: int, stop: int) -> str:
    """The part of a stream's digest that is the digest of a piece of it."""
    algorithm, _, values = whole.partition(":")
    return algorithm + ":" + ",".join(values.split(",")[start // LEAF : -(-stop // LEAF)])
