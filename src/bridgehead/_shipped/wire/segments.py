"""Segments: stretches of shared memory that hold one payload each, and the pool that lends them.

Rule: use the standard library only, run on Python 3.8 and later, the same file at both ends. This
file knows no socket. A segment below ``SHARED_BELOW`` bytes takes a part of a shared slab, so live
objects cost memory, and neither descriptors nor mappings. A few larger ones have slabs of their
own, which can be leased on to another process. The receiver's lease of a segment lasts until the
last array in it has died there (see ``leases``).
"""

from __future__ import annotations

import mmap
from threading import RLock
from time import monotonic
from typing import Iterator, Sequence

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.wire.limits import free_memory
    from bridgehead._shipped.wire.slabs import (
        ABSENT,
        MAPPED,
        MAPPED_AT_ONCE,
        PORTION,
        WRITTEN,
        Extents,
        Slab,
        _close,
        _numbers,
        copy,
        layout,
        populate,
        write,
    )

IDLE = 30.0  # seconds after which an unused slab is closed
WASTE = 8  # a free slab larger than this many times the needed size is not used
SHARED_BELOW = 4 << 20  # bytes; smaller segments share slabs
MOST_WHOLE = 8  # slabs of a pool with one segment each; more large segments share slabs
SHARED_LEAST, SHARED_MOST = 16 << 20, 1 << 30  # bytes of a shared slab; each new one is larger
GRANT = 4 << 20  # bytes that a pool may grow before it looks at the free memory again
WARM = 32 << 20  # bytes of unused pages that are kept in a shared slab, to be written again


class Segment:
    """A stretch of a slab that holds one payload."""

    def __init__(
        self, pool: Pool, slab: Slab, start: int, capacity: int, pages: int = ABSENT
    ) -> None:
        self.pool: Pool = pool
        self.slab: Slab = slab
        self.start: int = start
        self.capacity: int = capacity
        self.number: int = next(_numbers)
        self.leases: int = 0  # number of receivers that may still use it
        self.pages: int = pages  # the state that all its pages have at least
        self._mapped = capacity if pages == MAPPED else 0  # bytes
        self.is_begun: bool = False  # some pages may exist

    def fill(self, frames: Sequence[memoryview]) -> Iterator[int]:
        """Write frames where ``layout`` puts them; yield the bytes done, every ``PORTION``.

        Raise ``OSError`` if there is not enough memory, or if the slab has been closed.
        """
        slab, start = self.slab, self.start
        offsets, total = layout([frame.nbytes for frame in frames])
        block: mmap.mmap | None = None
        if not slab.sealed:
            if self.pages == ABSENT:
                slab.reserve(start, start + total)
            block = slab.map()
        elif self.pages != ABSENT:
            block = slab.map()
            if total > self._mapped:
                for _ in populate(block, start + self._mapped, start + total, MAPPED_AT_ONCE):
                    yield 0
                self._mapped = total
                if total > self.capacity - mmap.PAGESIZE:
                    self.pages = MAPPED
        # Another thread may close the slab, and its descriptor's number may be used again.
        file = slab.duplicate()
        self.is_begun = True
        try:
            done = reported = 0
            for frame, offset in zip(frames, offsets):
                for at in range(0, frame.nbytes, PORTION):
                    part = frame[at : at + PORTION]
                    if block is None:
                        write(file, start + offset + at, part)
                    else:
                        copy(block, start + offset + at, part)
                    done += part.nbytes
                    if done - reported >= PORTION:
                        reported = done
                        yield done
            if self.pages == ABSENT:
                slab.seal()
                self.pages = WRITTEN
        finally:
            _close(file)
        yield done

    def read(self, sizes: Sequence[int]) -> list[memoryview]:
        """Return copies of the frames that were written into it."""
        return self.slab.read(self.start, sizes)


class Pool:
    """The segments that one sender fills, in at most a ``share`` of the free memory.

    Several receivers can lease the same segment of a ``private`` pool at once; none of them sees
    what another writes, and each segment has a slab of its own. ``files`` is how many descriptors
    the receiver may have open: the pool's slabs take at most a sixteenth of them.
    """

    def __init__(self, share: float, *, private: bool = False, files: int = 1024) -> None:
        self.share: float = share
        self.private: bool = private
        self.most: int = files // 16
        self.slabs: dict[int, Slab] = {}
        self._whole: dict[int, Segment] = {}  # by the number of the slab that is its own
        self._granted = 0  # bytes in all that the free memory allowed when it was last looked at
        self._closed = False
        self._lock = RLock()  # reentrant: making a slab may trim the pool

    @property
    def nbytes(self) -> int:
        """The memory of all slabs together, in bytes."""
        return sum(slab.nbytes for slab in list(self.slabs.values()))

    def take(self, sizes: Sequence[int]) -> Segment | None:
        """Return a segment for frames of these sizes, with one lease, which the caller gives back.

        Return None if memory or file descriptors are lacking, or the system has no shared memory.
        """
        nbytes = max(layout(sizes)[1], 1)
        with self._lock:
            if self._closed:
                return None
            if nbytes >= SHARED_BELOW or self.private:
                segment = self._take_whole(nbytes) or self._take_part(nbytes)
            else:
                segment = self._take_part(nbytes) or self._take_whole(nbytes)
            if segment is not None:
                segment.leases = 1
                segment.slab.leased += 1
            return segment

    def _take_part(self, nbytes: int) -> Segment | None:
        if self.private:
            return None
        nbytes = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        shared = [slab for slab in self.slabs.values() if slab.is_shared]
        for slab in shared:
            segment = self._cut(slab, nbytes)
            if segment is not None:
                return segment
        capacity = min(max(SHARED_LEAST, sum(slab.capacity for slab in shared)), SHARED_MOST)
        capacity = max(capacity, nbytes)
        made = self._make_slab(capacity, shared=True) if self._may_grow(nbytes) else None
        return None if made is None else self._cut(made, nbytes)

    def _cut(self, slab: Slab, nbytes: int) -> Segment | None:
        if slab.extents is None or slab.tainted:
            return None
        found = slab.extents.take(nbytes)
        if found is None:
            return None
        start, pages = found
        if pages == ABSENT:
            if not self._may_grow(nbytes):
                slab.extents.give(start, start + nbytes, pages)
                return None
            slab.nbytes += nbytes
        return Segment(self, slab, start, nbytes, pages)

    def _take_whole(self, nbytes: int) -> Segment | None:
        fits = [
            segment
            for segment in self._whole.values()
            if not segment.leases and nbytes <= segment.capacity <= nbytes * WASTE
        ]
        if fits:
            return min(fits, key=lambda one: one.capacity)
        if len(self._whole) >= MOST_WHOLE:
            idle = [one.slab for one in self._whole.values() if not one.leases]
            if not idle:
                return None
            self._drop(min(idle, key=lambda one: one.touched))
        # Round up to eighths of a power of two: with few different sizes, segments fit again.
        quantum = max(mmap.PAGESIZE, 1 << max(0, nbytes.bit_length() - 4))
        capacity = -(-nbytes // quantum) * quantum
        slab = self._make_slab(capacity) if self._may_grow(capacity) else None
        if slab is None:
            return None
        segment = self._whole[slab.number] = Segment(self, slab, 0, capacity)
        return segment

    def _may_grow(self, nbytes: int) -> bool:
        """Return whether the pool may take more memory; what is unused makes room first."""
        for last in (False, True):
            size = self.nbytes + nbytes
            if size <= self._granted:
                return True
            limit = self.share * (free_memory() + size - nbytes)
            if size <= limit:
                self._granted = min(int(limit), size + GRANT)
                return True
            if not last:
                self.trim(0)
        return False

    def _make_slab(self, capacity: int, shared: bool = False) -> Slab | None:
        if len(self.slabs) >= self.most:
            self.trim(0)
        if len(self.slabs) >= self.most:
            return None
        try:
            slab = Slab(capacity, private=self.private, shared=shared)
        except (OSError, AttributeError):
            return None
        self.slabs[slab.number] = slab
        return slab

    def lease(self, segment: Segment) -> None:
        """Add a lease, for one more receiver."""
        with self._lock:
            segment.leases += 1

    def give_back(self, segment: Segment, tainted: bool = False) -> None:
        """End one receiver's lease; ``tainted`` memory is never used again."""
        slab = segment.slab
        with self._lock:
            segment.leases -= 1
            slab.touched = monotonic()
            slab.tainted = slab.tainted or tainted
            if segment.leases:
                return
            slab.leased -= 1
            if slab.extents is not None and slab.number in self.slabs and not slab.tainted:
                self._free_part(slab.extents, segment)
            if slab.tainted and not slab.leased:
                self._drop(slab)

    def _free_part(self, extents: Extents, segment: Segment) -> None:
        """Free a part of a shared slab, and its memory, but for some that is kept warm."""
        slab, stop, pages = segment.slab, segment.start + segment.capacity, segment.pages
        enough = slab.unused >= WARM + segment.capacity
        if pages == ABSENT and segment.is_begun:  # a copy was stopped
            slab.punch(segment.start, stop)
        if pages == ABSENT or (enough and slab.punch(segment.start, stop)):
            pages = ABSENT
            slab.nbytes -= segment.capacity
            self._granted = 0
        extents.give(segment.start, stop, pages)
        if not slab.leased:
            others = (one for one in self.slabs.values() if one.is_shared and one is not slab)
            if not all(one.leased for one in others):  # one empty slab is kept
                self._drop(slab)

    def trim(self, idle: float | None = None) -> None:
        """Close the slabs that were not used for ``idle`` seconds, by default ``IDLE``."""
        idle = IDLE if idle is None else idle
        with self._lock:  # so that no slab is closed while another thread takes it
            for slab in list(self.slabs.values()):
                if monotonic() - slab.touched >= idle:
                    if not slab.leased:
                        self._drop(slab)
                    elif slab.unused:
                        slab.free_unused()
                        self._granted = 0

    def _drop(self, slab: Slab) -> None:
        if self.slabs.pop(slab.number, None) is not None:
            self._whole.pop(slab.number, None)
            self._granted = 0
            slab.close()
            for holder in slab.holders:
                holder.gone(slab.number)

    def close(self) -> None:
        """Close all slabs; hand out no more."""
        with self._lock:
            self._closed = True
            for slab in list(self.slabs.values()):
                self._drop(slab)
