"""Segments of one kernel, leased on to another kernel.

Rule: a source kernel leases a segment to this process. This process leases the same file to a
target kernel, under another number; it neither reads nor copies the memory. When the target gives
the segment back, this process gives it back to the source. It reports the segment as tainted if
the target did, or if the target was lost before. A part of a shared slab is not leased on: the
target would see the other objects in it. Nor is memory without seals: the target could truncate it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from weakref import WeakKeyDictionary, finalize

from bridgehead._shipped.wire.leases import MappedSlab, mapped
from bridgehead._shipped.wire.segments import Pool, Segment
from bridgehead._shipped.wire.slabs import Slab

# Segments that are leased on at once. Each takes descriptors of three processes; more of them are
# copied.
MOST_FORWARDED = 8


class ForwardedSegment(Segment):
    """A segment of one process, leased on to a third process."""

    def __init__(self, mapping: MappedSlab) -> None:
        slab = Slab(mapping.capacity, file=os.dup(mapping.find_file()))
        super().__init__(FORWARDING_POOL, slab, 0, mapping.capacity)
        self.lease: tuple[MappedSlab, list[memoryview]] | None = None  # while it is leased on

    def drop_everywhere(self) -> None:
        """Have every holder drop it: the process that made it freed it, or ended."""
        self.slab.close()
        for holder in self.slab.holders:
            holder.gone(self.slab.number)


class ForwardingPool(Pool):
    """The segments that are leased on; none of them is memory of this process."""

    def __init__(self) -> None:
        super().__init__(0)
        self._known: WeakKeyDictionary[MappedSlab, ForwardedSegment] = WeakKeyDictionary()

    def pass_on(self, frames: Sequence[memoryview]) -> ForwardedSegment | None:
        """Return the segment that holds these frames, with one lease; None if there is none.

        There is none either if ``MOST_FORWARDED`` others are leased on, or descriptors are lacking.

        The frames must be all that were leased together: the next process finds them by their
        sizes alone.
        """
        mapping = mapped(frames[0]) if frames else None
        if mapping is None or mapping.private or mapping.is_shared or not mapping.sealed:
            return None
        with self._lock:
            segment = self._known.get(mapping)
            if segment is None:
                if len(self._known) >= MOST_FORWARDED and not self._drop_unused():
                    return None
                try:
                    segment = self._known[mapping] = ForwardedSegment(mapping)
                except OSError:
                    return None
                finalize(mapping, segment.drop_everywhere).atexit = False
            segment.leases += 1
            segment.lease = mapping, list(frames)
            return segment

    def _drop_unused(self) -> bool:
        """Drop a segment that is not leased on at the moment; return whether there is one."""
        for mapping, segment in list(self._known.items()):
            if not segment.leases:
                del self._known[mapping]
                segment.drop_everywhere()
                return True
        return False

    def give_back(self, segment: Segment, tainted: bool = False) -> None:
        assert isinstance(segment, ForwardedSegment)
        with self._lock:
            segment.leases -= 1
            if tainted and segment.lease is not None:
                segment.lease[0].tainted = True
            if not segment.leases:
                segment.lease = None


FORWARDING_POOL = ForwardingPool()
