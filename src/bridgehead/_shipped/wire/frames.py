"""Frames: the bytes of an object, cut, copied and digested.

Rule: use the standard library only, run on Python 3.8 and later, the same file at both ends, so
that the two cannot drift. This file knows no request: ``transfer`` stores what arrives of one, and
``header`` has its fields.

Words: a *frame* is a run of bytes. Frame 0 of an object is its pickle; the others are its
out-of-band buffers (PEP 574). The frames of one request, laid end to end, are its *stream*.
A stream that is too long for one message crosses in *chunks*. Each chunk has its offset, and the
receiver checks each chunk when it arrives (see ``digest``).
"""

from __future__ import annotations

import mmap
import sys
from time import thread_time
from typing import Any, Iterable, Iterator, Sequence

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.wire.digest import DIGESTS, Buffer, leaves
    from bridgehead._shipped.wire.errors import TooLarge, WireError

ALIGN = 64  # bytes; numpy sums an unaligned array 3 times slower, for the array's whole life
# Bytes of all frames together. From this sum on, they go through shared memory: requests in
# ``_lanes.direct``, responses in ``remote.replay``.
SHARE_FROM = 1 << 16
IN_BAND = 2048  # bytes; a smaller buffer costs more as a frame of its own than in the pickle
# A frame costs its receiver some hundred bytes and 1 µs, whatever its size, and its size costs the
# sender 2 bytes. So frames are many only where the bytes are: only a pickle is a small frame. Of
# pickles, a batch of requests has 512, one of an iteration 5,000, and a chunk of a map 10,000. From
# ``MAX_FRAMES`` on, buffers are pickled in-band.
SMALL_FRAME = 1024
FEW_FRAMES = 10_000
MAX_FRAMES = 1 << 20
COPIED_AT_ONCE = 1 << 18  # bytes; a MiB of new memory may take 8 ms, without other threads
HUGE_PAGE = 2 << 20  # bytes
# Seconds of CPU for one step of a copy. A new huge page takes 0.3 ms, or 6 ms if it comes from the
# host of a virtual machine.
SLOW_STEP = 0.003
OWN_MAPPING = 1 << 20  # bytes; a frame of this size and more gets huge pages of its own
MESSAGE = 16 << 20  # bytes of buffers in one message of a response
# The most buffers that ipyparallel is given. As an argument, each costs a pickle and a frame of its
# own; a result of 64 parts and more is pickled as a whole.
MAX_BUFFERS = 16

_threshold_raised = False


def raise_mmap_threshold() -> None:
    """Make malloc reuse memory for messages of some MiB.

    glibc maps every block above a threshold anew, and unmaps it when it is freed. The threshold
    grows with the largest block (up to 32 MiB) that was ever freed. The block freed here is never
    written to. Without this, page faults alone took 8 of the 11 ms that receiving a message of
    16 MiB took.
    """
    global _threshold_raised
    if not _threshold_raised:
        _threshold_raised = True
        bytes(31 << 20)


def allocate(size: int) -> memoryview:
    """Return writable memory for one received frame, aligned to ``ALIGN``.

    Large frames get an anonymous mapping. It is page-aligned, on huge pages where the system has
    them (touching 100 MB takes 16-19 ms instead of 62), and unmapped when the last array dies.
    """
    if size < ALIGN:
        return memoryview(bytearray(size))
    if size < OWN_MAPPING:
        import ctypes

        room = bytearray(size + ALIGN)
        at = -ctypes.addressof(ctypes.c_char.from_buffer(room)) % ALIGN
        return memoryview(room)[at : at + size]
    # With the default, shared, a forked child would write into the mapping.
    private = hasattr(mmap, "MAP_PRIVATE")
    options = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if private else {}
    try:
        block = mmap.mmap(-1, size, **options)
    except (OSError, OverflowError):
        raise MemoryError("no memory for a frame of %d bytes" % size) from None
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is not None:
        try:
            block.madvise(advice)
        except OSError:  # this Linux has no transparent huge pages
            pass
    return memoryview(block)


def copy_into(target: memoryview, source: memoryview) -> None:
    """Copy bytes into memory from ``allocate``; see ``copy_bytes``.

    A virtual machine may get huge pages from its host, one small page after the other: touching
    1 GB then took 3 s. Small pages, which the machine still had, took 0.7 s, and huge pages that it
    still had 0.3 s (measured). So a frame gets huge pages until one copy meets two that are slow.
    """
    if target.nbytes <= HUGE_PAGE:  # one step, which needs no clock
        copy_bytes(target, source)
        return
    slow = 0
    for at in range(0, target.nbytes, HUGE_PAGE):
        began = thread_time()  # not the wall's: another thread may run meanwhile
        copy_bytes(target[at : at + HUGE_PAGE], source[at : at + HUGE_PAGE])
        slow += thread_time() - began > SLOW_STEP
        if slow == 2:
            use_small_pages(target.obj)


def copy_bytes(target: memoryview, source: memoryview) -> None:
    """Copy bytes; other threads can run between the steps of a long copy.

    With numpy loaded, other threads run during the copy as well; nothing here imports it. A thread
    that only may run between two steps waits for its turn, mostly 5 ms.
    """
    if target.nbytes > COPIED_AT_ONCE:
        try:
            numpy: Any = sys.modules["numpy"]
            numpy.copyto(numpy.frombuffer(target, "u1"), numpy.frombuffer(source, "u1"))
        except Exception:  # there is no numpy, or it is broken
            for at in range(0, target.nbytes, COPIED_AT_ONCE):
                target[at : at + COPIED_AT_ONCE] = source[at : at + COPIED_AT_ONCE]
    else:
        target[:] = source


def use_small_pages(block: Any) -> None:
    """Use no huge pages for what was not yet touched of a mapping."""
    small = getattr(mmap, "MADV_NOHUGEPAGE", None)
    if small is not None and isinstance(block, mmap.mmap):
        try:
            block.madvise(small)
        except OSError:  # this Linux has no transparent huge pages
            pass


def digest(algorithm: str, frames: Iterable[Buffer], each: Any = map) -> str:
    """Return ``"crc32:…"``, ``"sums:…"`` or ``"sha256:…"`` over all frames in order, by leaves.

    ``"none:"`` is for frames that never were in a message: shared memory needs no digest.
    ``each`` may be the ``map`` of an executor.
    """
    if algorithm == "none":
        return "none:"
    value = DIGESTS.get(algorithm)
    if value is None:
        raise WireError("protocol", "unknown digest %r" % (algorithm,))
    return algorithm + ":" + (",".join(each(value, leaves(frames))) or value(()))


def cut(frames: Sequence[memoryview], start: int, stop: int) -> Iterator[memoryview]:
    """Yield the parts of the stream between two offsets, as views, without copying."""
    at = 0
    for frame in frames:
        end = at + frame.nbytes
        if end > start and at < stop:
            yield frame[max(start - at, 0) : stop - at]
        at = end


def private_copy(frames: Sequence[Buffer]) -> list[memoryview]:
    """Copy frames into memory that only this process can write to.

    The copy is made in steps, so that other threads can run in between.
    """
    copies = []
    for frame in frames:
        source, copy = memoryview(frame), allocate(memoryview(frame).nbytes)
        copy_into(copy, source)
        copies.append(copy)
    return copies


def snapshot(frames: list[memoryview]) -> list[memoryview]:
    """Copy the frames that are views of live objects; the pickle, frame 0, needs no copy.

    Each frame is copied in one step, in which no other thread can run. Memory from ``allocate``
    takes 14 ms for 100 MB; ``bytes`` take 50.
    """
    copies = frames[:1]
    for frame in frames[1:]:
        copy = allocate(frame.nbytes)
        copy[:] = frame
        copies.append(copy)
    return copies


def check_sizes(sizes: Any) -> int:
    """Return the bytes of all frames; raise ``WireError`` for sizes that no sender announces."""
    many = type(sizes) is list and len(sizes) > FEW_FRAMES
    if type(sizes) is not list or (many and len(sizes) > MAX_FRAMES):
        raise WireError("protocol", "frame sizes must be a list, of at most %d" % MAX_FRAMES)
    small = 0
    for size in sizes:
        if type(size) is not int or size < 0:
            raise WireError("protocol", "frame sizes must be non-negative integers")
        if many and size < SMALL_FRAME:
            small += 1
            if small > FEW_FRAMES:
                raise WireError("protocol", "more than %d frames are almost empty" % FEW_FRAMES)
    return sum(sizes)


def check_size(frames: list[memoryview], limit: int | None) -> list[memoryview]:
    """Return the frames; raise ``TooLarge`` if they have more bytes than the caller allows."""
    total = sum(frame.nbytes for frame in frames)
    if limit is not None and total > limit:
        raise TooLarge(total)
    return frames


def messages(frames: Sequence[memoryview]) -> Iterator[list[memoryview]]:
    """Yield the frames of one response, in messages of at most ``MESSAGE`` bytes."""
    total = sum(frame.nbytes for frame in frames)
    for start in range(0, total or 1, MESSAGE):
        yield list(cut(frames, start, start + MESSAGE)) if total > MESSAGE else list(frames)


def coalesce(parts: Sequence[Any]) -> list[memoryview]:
    """Join buffers if there are too many of them for ipyparallel.

    The frames' sizes, with which the receiver splits the stream, are in the header.
    """
    return [
        memoryview(part) for part in (parts if len(parts) <= MAX_BUFFERS else [b"".join(parts)])
    ]
