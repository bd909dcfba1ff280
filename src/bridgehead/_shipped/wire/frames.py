"""Frames: the bytes of an object in memory, cut, copied and signed.

Rule: standard library only, Python 3.8 and later; the same on both sides, so that the two cannot
drift. No request is known here: what arrives of one is kept in ``transfer``, and what one says of
itself is in ``header``.

Words: a *frame* is a run of bytes; frame 0 of an object is its pickle, the others are its
out-of-band buffers (PEP 574). The frames of one request, laid end to end, are its *stream*;
a stream too long for one message crosses in *pieces*, each with its offset, and each checked
when it arrives (see ``digest``).
"""

from __future__ import annotations

import mmap
from typing import Any, Iterable, Iterator, Sequence

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.wire.digest import DIGESTS, Buffer, leaves
    from bridgehead._shipped.wire.errors import TooLarge, WireError

ALIGN = 64  # bytes; an array that is not makes sums 3 times slower for its whole life
SHARED = 1 << 16  # bytes of frames from which on the direct lane uses shared memory
IN_BAND = 2048  # bytes; a smaller out-of-band buffer costs more as a frame than inside the pickle
OWN_MAPPING = 1 << 20  # bytes; from here on a frame gets huge pages of its own
MESSAGE = 16 << 20  # bytes of buffers in one message that goes back
MAX_BUFFERS = (
    16  # buffers that ipyparallel is given: each costs a pickle and a frame of its own as an
)
# argument, and a result of 64 parts and more is pickled as a whole

_threshold_raised = False


def raise_mmap_threshold() -> None:
    """Have messages of some MiB come in memory that was used before.

    glibc maps anew, and gives back, every block above a threshold, which grows with the
    largest block (up to 32 MiB) that was ever freed; nobody touches this one. Of a message of
    16 MiB the page faults alone took 8 ms, of the 11 until it was received.
    """
    global _threshold_raised
    if not _threshold_raised:
        _threshold_raised = True
        bytes(31 << 20)


def allocate(size: int) -> memoryview:
    """Writable memory for one received frame, aligned to ``ALIGN``.

    Large frames get an anonymous mapping: page-aligned, on huge pages where the system has
    them (100 MB touched in 16-19 ms instead of 62), given back when the last array dies.
    """
    if size < ALIGN:
        return memoryview(bytearray(size))
    if size < OWN_MAPPING:
        import ctypes

        room = bytearray(size + ALIGN)
        at = -ctypes.addressof(ctypes.c_char.from_buffer(room)) % ALIGN
        return memoryview(room)[at : at + size]
    if hasattr(mmap, "MAP_PRIVATE"):  # the default is shared: a forked child would write into it
        block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    else:
        block = mmap.mmap(-1, size)
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is not None:
        try:
            block.madvise(advice)
        except OSError:  # a kernel without transparent huge pages
            pass
    return memoryview(block)


def digest(algorithm: str, frames: Iterable[Buffer], each: Any = map) -> str:
    """``"crc32:…"``, ``"sums:…"`` or ``"sha256:…"`` over all frames in order, by leaves.

    ``"none:"`` for what never was in a message: memory needs no digest. ``each`` may be the
    ``map`` of an executor.
    """
    if algorithm == "none":
        return "none:"
    value = DIGESTS.get(algorithm)
    if value is None:
        raise WireError("protocol", "unknown digest %r" % (algorithm,))
    return algorithm + ":" + (",".join(each(value, leaves(frames))) or value(()))


def cut(frames: Sequence[memoryview], start: int, stop: int) -> Iterator[memoryview]:
    """The parts of the stream between two offsets, as views: nothing is copied."""
    at = 0
    for frame in frames:
        end = at + frame.nbytes
        if end > start and at < stop:
            yield frame[max(start - at, 0) : stop - at]
        at = end


def private_copy(frames: Sequence[Buffer]) -> list[memoryview]:
    """Copies that nobody else can write to, in steps between which others get their turn."""
    copies = []
    for frame in frames:
        source, copy = memoryview(frame), allocate(memoryview(frame).nbytes)
        for at in range(0, source.nbytes, 1 << 20):
            copy[at : at + (1 << 20)] = source[at : at + (1 << 20)]
        copies.append(copy)
    return copies


def snapshot(frames: list[memoryview]) -> list[memoryview]:
    """A snapshot: the pickle is ours, the other frames are views of live objects.

    Each frame in one step that no other thread comes between, and into memory as for one that
    is received: 100 MB in 14 ms, as ``bytes`` in 50.
    """
    copies = frames[:1]
    for frame in frames[1:]:
        try:
            copy = allocate(frame.nbytes)
        except OSError:  # which is how a mapping says it
            raise MemoryError("no memory for a copy of %d bytes" % frame.nbytes) from None
        copy[:] = frame
        copies.append(copy)
    return copies


def check_size(frames: list[memoryview], limit: int | None) -> list[memoryview]:
    """The frames; ``TooLarge`` if they have more bytes than the caller allows."""
    total = sum(frame.nbytes for frame in frames)
    if limit is not None and total > limit:
        raise TooLarge(total)
    return frames


def messages(frames: Sequence[memoryview]) -> Iterator[list[memoryview]]:
    """What goes back with one answer, in messages of a bounded size."""
    total = sum(frame.nbytes for frame in frames)
    for start in range(0, total or 1, MESSAGE):
        yield list(cut(frames, start, start + MESSAGE)) if total > MESSAGE else list(frames)


def coalesce(parts: Sequence[Any]) -> list[memoryview]:
    """Buffers as ipyparallel is to carry them; where they end in the stream is told elsewhere."""
    return [
        memoryview(part) for part in (parts if len(parts) <= MAX_BUFFERS else [b"".join(parts)])
    ]
