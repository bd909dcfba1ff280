"""Digests: proof that bytes arrived as they were sent.

Rule: use the standard library only, run on Python 3.8 and later, the same file at both ends. The
digest of a stream has one value for each *leaf* of ``LEAF`` bytes, so the digest of a chunk is a
part of the stream's digest. The receiver checks each chunk when it arrives, while others are still
on their way.
"""

from __future__ import annotations

import sys
from hashlib import sha256
from struct import pack
from typing import Any, Dict, Iterable, Iterator, Union
from zlib import crc32

Buffer = Union[bytes, bytearray, memoryview]

LEAF = 1 << 20  # bytes of the stream for each value of a digest; a chunk is a multiple of it
ROW = 1024  # words of 8 bytes in each row that ``_sums`` adds up
WORD = (1 << 64) - 1


def _crc32(parts: Iterable[Buffer]) -> str:
    value = 0
    for part in parts:
        value = crc32(part, value)
    return "%08x" % value


def _sums(parts: Iterable[Buffer]) -> str:
    """Return the crc32 of sums: each frame's words as a table, its row sums and column sums.

    numpy adds up 100 MB in 6 ms; crc32 takes 24 ms. Like crc32, it detects accidents and no
    attacks. The lane chooses it while both ends have numpy loaded; nothing here imports it.
    """
    value = 0
    for part in parts:
        view = memoryview(part)
        rows = view.nbytes // (8 * ROW)
        if rows:
            for sums in _table_sums(view[: 8 * ROW * rows], rows):
                value = crc32(sums, value)
        value = crc32(view[8 * ROW * rows :], value)
    return "%08x" % value


def _table_sums(view: memoryview, rows: int) -> tuple[bytes, bytes]:
    """Return the sums of each row and of each column, without numpy if need be."""
    try:
        numpy: Any = sys.modules["numpy"]
        table = numpy.frombuffer(view, "u8").reshape(rows, ROW)
        return table.sum(axis=1).tobytes(), table.sum(axis=0).tobytes()
    except Exception:  # numpy is broken, removed or replaced: compute the same values slowly
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
    """Yield the stream in parts of ``LEAF`` bytes, as views; the last may be shorter."""
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
    """Return the digest of a chunk, which is a part of the stream's digest."""
    algorithm, _, values = whole.partition(":")
    return algorithm + ":" + ",".join(values.split(",")[start // LEAF : -(-stop // LEAF)])
