"""Segments of one kernel that are lent to another: neither mapped in between, nor copied.

Rule: a kernel lends this process a segment, and this process lends the same file to another
kernel, with a number of its own. Its lease of the one lasts until the other gives back; it is
then given back in turn, spoilt if the other one was, or if nobody will ever tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary, finalize

from bridgehead._shipped.wire.segments import MappedSegment, Pool, Segment, mapped


class RelayedSegment(Segment):
    """A segment of another process's, on its way to a third one."""

    def __init__(self, mapping: MappedSegment) -> None:
        super().__init__(RELAY_POOL, mapping.capacity, mapping.file)  # which the mapping closes
        self.lease: tuple[MappedSegment, list[memoryview]] | None = None  # while any is out

    def gone(self) -> None:
        """Who made it gave it back to the system, or went."""
        for holder in self.holders:
            holder.gone(self.number)


class RelayPool(Pool):
    """What is lent on; nothing of it is this process's memory."""

    def __init__(self) -> None:
        super().__init__(0)
        self._known: WeakKeyDictionary[MappedSegment, RelayedSegment] = WeakKeyDictionary()

    def pass_on(self, frames: Sequence[memoryview]) -> RelayedSegment | None:
        """The segment that these frames are, with one lease; None if they are no whole segment's.

        Frames that were leased together are where the next one looks for them.
        """
        mapping = mapped(frames[0]) if frames else None
        if mapping is None or mapping.private:
            return None
        with self._lock:
            segment = self._known.get(mapping)
            if segment is None:
                segment = self._known[mapping] = RelayedSegment(mapping)
                finalize(mapping, segment.gone).atexit = False
            segment.leases += 1
            segment.lease = mapping, list(frames)
            return segment

    def give_back(self, segment: Segment, tainted: bool = False) -> None:
        assert isinstance(segment, RelayedSegment)
        with self._lock:
            segment.leases -= 1
            if tainted and segment.lease is not None:
                segment.lease[0].tainted = True
            if not segment.leases:
                segment.lease = None


RELAY_POOL = RelayPool()
