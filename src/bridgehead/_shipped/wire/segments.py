"""Segments: shared memory of the direct lane, leased and reused.

Rule: use the standard library only, run on Python 3.8 and later, the same file at both ends. This
file knows no socket. The sender has a ``Pool`` of segments and writes into them. The receiver maps
each segment once (``SegmentCache``) and hands out views. The receiver's lease of a segment lasts
until the last array in it has died there.

Facts this file rests on, measured for 100 MB (a warm copy takes 7 ms):

- New pages cost more than the copy: 35 ms with ``pwrite``, 60-150 ms written through a mapping.
  A segment is therefore filled with ``pwrite`` the first time, which needs no mapping and gives
  ENOSPC instead of SIGBUS. It is mapped when it is used again.
- Pages are mapped in advance (MADV_POPULATE), which takes 9 ms. Mapping them one by one, as they
  are first accessed, takes 27 ms.
"""

from __future__ import annotations

import mmap
import os
from collections import deque
from itertools import count
from threading import RLock
from time import monotonic
from typing import Any, Deque, Dict, Iterator, Sequence, Tuple
from weakref import ref

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.wire.frames import ALIGN, allocate

try:
    import fcntl
except ImportError:  # not POSIX: no segments
    fcntl = None  # type: ignore[assignment]

# Captured, because a user may replace them. ``segments_supported`` says whether
# this system has them all.
_close, _dup, _fstat, _mmap = os.close, os.dup, os.fstat, mmap.mmap
_pwrite: Any = getattr(os, "pwrite", None)
_preadv: Any = getattr(os, "preadv", None)
_ftruncate: Any = getattr(os, "ftruncate", None)
_memfd_create: Any = getattr(os, "memfd_create", None)
_fcntl: Any = getattr(fcntl, "fcntl", None)
_FUTURE_WRITE = 0x10  # F_SEAL_FUTURE_WRITE, Linux 5.1
IDLE = 30.0  # seconds after which an unused segment is closed
PORTION = 1 << 25  # bytes between the points at which filling a segment can be stopped
BRIEF = 1 << 20  # bytes copied at once; the copy holds the interpreter's lock for 0.1 ms
WASTE = 8  # a free segment larger than this many times the needed size is not used
POPULATE, DONT_NEED = 22, 4  # madvise(2): MADV_POPULATE_READ (Linux 5.14), MADV_DONTNEED
_numbers = count(1)  # of segments and leases; unique in this process, across all pools


def segments_supported() -> bool:
    """Return whether this system and this Python have what segments need."""
    return fcntl is not None and hasattr(os, "memfd_create") and hasattr(fcntl, "F_ADD_SEALS")


def layout(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Return the offsets in a segment of frames of these sizes, and how many bytes they take."""
    offsets, at = [], 0
    for size in sizes:
        offsets.append(at)
        at += -(-size // ALIGN) * ALIGN
    return offsets, at


# ---------------------------------------------------------------- the sender


class Segment:
    """Anonymous memory of a fixed size; a process that receives its file can map it."""

    def __init__(self, pool: Pool, capacity: int, file: int = -1) -> None:
        """Make a segment, or wrap the ``file`` of one that another process made."""
        self.pool = pool
        self.number: int = next(_numbers)
        self.capacity = capacity
        self.leases = 0  # number of receivers that may still use it
        self.touched: float = monotonic()
        self.filled: bool = False
        self.tainted = False  # a process may still see what is in it: never use it again
        self.holders: list[Any] = []  # frame sockets to notify when it is closed
        self._map: mmap.mmap | None = None
        self._populated = 0  # bytes whose pages are mapped
        self.file: int = file
        if file >= 0:
            return
        self.file = _memfd_create("bridgehead", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            _ftruncate(self.file, capacity)
            # Once no process can truncate it, no process that has it mapped can get SIGBUS.
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
            _fcntl(self.file, fcntl.F_ADD_SEALS, seals)
        except BaseException:
            _close(self.file)
            raise

    def fill(self, frames: Sequence[memoryview]) -> Iterator[int]:
        """Write frames where ``layout`` puts them; yield the bytes done, every ``PORTION``.

        Raise ``OSError`` if there is not enough memory, or if the segment has been closed.
        """
        offsets, total = layout([frame.nbytes for frame in frames])
        if self.filled:
            if self._map is None:
                self._map = _mmap(self.file, self.capacity)
            if total > self._populated:
                yield from populate(self._map, self._populated, total)
                self._populated = total
        # Another thread may close the segment, and its descriptor's number may be used again: a
        # duplicate stays valid.
        block, file = self._map, _dup(self.file)
        try:
            done = reported = 0
            for frame, offset in zip(frames, offsets):
                for start in range(0, frame.nbytes, PORTION):
                    part = frame[start : start + PORTION]
                    if block is None:
                        write(file, offset + start, part)
                    else:
                        copy(block, offset + start, part)
                    done += part.nbytes
                    if done - reported >= PORTION:
                        reported = done
                        yield done
            if not self.filled:
                self._seal(file)
            self.filled = True
        finally:
            _close(file)
        yield done

    def _seal(self, file: int) -> None:
        """Make the seals final.

        A segment of a private pool goes to several receivers. It is sealed so that none of them
        can write what the others see. This process maps it first: that mapping stays writable.
        """
        seals = fcntl.F_SEAL_SEAL
        if self.pool.private:
            self._map = _mmap(file, self.capacity)
            seals |= _FUTURE_WRITE
        _fcntl(file, fcntl.F_ADD_SEALS, seals)

    def read(self, sizes: Sequence[int]) -> list[memoryview]:
        """Return copies of the frames that were written into it."""
        frames = [allocate(size) for size in sizes]
        for frame, offset in zip(frames, layout(sizes)[0]):
            at = 0
            while at < frame.nbytes:
                at += _preadv(self.file, [frame[at:]], offset + at)
        return frames

    def close(self) -> None:
        """Close its file; the memory is freed when no process maps it any more."""
        self._map = None  # unmapped when its last view has died
        file, self.file = self.file, -1
        if file >= 0:
            _close(file)


def write(file: int, at: int, part: memoryview) -> None:
    """Write all of a part to a file at an offset."""
    while part.nbytes:
        written = _pwrite(file, part, at)
        at, part = at + written, part[written:]


def copy(block: mmap.mmap, at: int, part: memoryview) -> None:
    """Copy a part into a mapping in steps, between which other threads can run."""
    with memoryview(block) as target:
        for start in range(0, part.nbytes, BRIEF):
            chunk = part[start : start + BRIEF]
            target[at + start : at + start + chunk.nbytes] = chunk


def populate(block: mmap.mmap, start: int, stop: int) -> Iterator[int]:
    """Map pages in advance; yield between steps, because madvise holds the interpreter's lock."""
    for at in range(start // mmap.PAGESIZE * mmap.PAGESIZE, stop, PORTION):
        try:
            block.madvise(POPULATE, at, min(PORTION, stop - at))
        except (OSError, ValueError, AttributeError):  # older Linux: it maps a page on first access
            return
        yield 0


class Pool:
    """The segments that one sender fills, in at most a ``share`` of the free memory.

    Several receivers can lease the same segment of a ``private`` pool at once; none of them sees
    what another writes.
    """

    def __init__(self, share: float, *, private: bool = False) -> None:
        self.share: float = share
        self.private: bool = private
        self.segments: dict[int, Segment] = {}
        self._closed = False
        self._lock = RLock()  # reentrant: making a segment may trim the pool

    @property
    def nbytes(self) -> int:
        """The capacity of all segments together."""
        return sum(segment.capacity for segment in list(self.segments.values()))

    def take(self, sizes: Sequence[int]) -> Segment | None:
        """Return a segment for frames of these sizes, with one lease, which the caller gives back.

        Return None if memory or file descriptors are lacking, or the system has no segments.
        """
        _, nbytes = layout(sizes)
        with self._lock:
            if self._closed:
                return None
            fits = [
                segment
                for segment in self.segments.values()
                if not segment.leases and nbytes <= segment.capacity <= nbytes * WASTE
            ]
            if fits:
                segment = min(fits, key=lambda one: one.capacity)
            else:
                created = self._create(nbytes)
                if created is None:
                    return None
                segment = created
            segment.leases = 1
            return segment

    def _create(self, nbytes: int) -> Segment | None:
        # Round up to eighths of a power of two: with few different sizes, segments fit again.
        quantum = max(mmap.PAGESIZE, 1 << max(0, nbytes.bit_length() - 4))
        capacity = -(-nbytes // quantum) * quantum
        for last in (False, True):
            if self.nbytes + capacity <= self.share * (free_memory() + self.nbytes):
                break
            if last:
                return None
            self.trim(0)
        try:
            segment = Segment(self, capacity)
        except (OSError, AttributeError):
            return None
        self.segments[segment.number] = segment
        return segment

    def lease(self, segment: Segment) -> None:
        """Add a lease, for one more receiver."""
        with self._lock:
            segment.leases += 1

    def give_back(self, segment: Segment, tainted: bool = False) -> None:
        """End one receiver's lease; ``tainted`` memory is never used again."""
        with self._lock:
            segment.leases -= 1
            segment.touched = monotonic()
            segment.tainted = segment.tainted or tainted
            if segment.tainted and not segment.leases:
                self._drop(segment)

    def trim(self, idle: float | None = None) -> None:
        """Close the segments that were not used for ``idle`` seconds, by default ``IDLE``."""
        idle = IDLE if idle is None else idle
        with self._lock:  # so that no segment is closed while another thread takes it
            for segment in list(self.segments.values()):
                if not segment.leases and monotonic() - segment.touched >= idle:
                    self._drop(segment)

    def _drop(self, segment: Segment) -> None:
        if self.segments.pop(segment.number, None) is not None:
            segment.close()
            for holder in segment.holders:
                holder.gone(segment.number)

    def close(self) -> None:
        """Close all segments; hand out no more."""
        with self._lock:
            self._closed = True
            for segment in list(self.segments.values()):
                self.segments.pop(segment.number, None)
                segment.close()


def free_memory() -> int:
    """Return how many bytes this process can still allocate, by machine and control group."""
    found = []
    try:
        with open("/proc/meminfo", "rb") as lines:
            for line in lines:
                if line.startswith(b"MemAvailable:"):
                    found.append(int(line.split()[1]) * 1024)
        with open("/sys/fs/cgroup/memory.max", "rb") as most:
            limit = most.read().strip()
        with open("/sys/fs/cgroup/memory.current", "rb") as current:
            if limit != b"max":
                found.append(int(limit) - int(current.read()))
    except (OSError, ValueError):  # another system, or a machine without control groups
        pass
    return min(found) if found else 0


# ---------------------------------------------------------------- the receiver


class MappedSegment:
    """A sender's segment, mapped in the receiver's process."""

    def __init__(self, file: int, capacity: int, private: bool) -> None:
        self.file, self.capacity, self.private = file, capacity, private
        import ctypes

        self.tainted = False  # a forked child has it too: the sender must not write into it again
        seals = _fcntl(file, fcntl.F_GET_SEALS)
        if not seals & fcntl.F_SEAL_SHRINK or _fstat(file).st_size < capacity:
            raise OSError("the segment is not sealed and could be truncated")
        # In a shared mapping, a view is the memory itself, and writable. If several receivers have
        # the segment, each maps it privately: a page that it writes to becomes its own copy.
        how = mmap.MAP_PRIVATE if private else mmap.MAP_SHARED
        self.map = _mmap(file, capacity, flags=how, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        self.warm = capacity if private else 0  # bytes whose pages are mapped or need not be
        self.exporter = ctypes.c_ubyte * capacity

    def __del__(self) -> None:
        _close(self.file)

    def make_private(self) -> None:
        """Make the mapping private to this process, at the same address.

        What is written from now on shows neither in the file nor in other processes' mappings.
        """
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = (
            *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
            *(ctypes.c_int, ctypes.c_int, ctypes.c_long),
        )
        address = ctypes.addressof(self.exporter.from_buffer(self.map))
        fixed, access = 0x10, mmap.PROT_READ | mmap.PROT_WRITE
        libc.mmap(address, self.capacity, access, mmap.MAP_PRIVATE | fixed, self.file, 0)
        self.private = True


# The leases of this process, by number: a weak reference that ends the lease, and the mapping.
_leases: Dict[int, Tuple[Any, MappedSegment]] = {}


class SegmentCache:
    """The segments of one sender that this process has mapped, by number."""

    def __init__(self) -> None:
        self.known: dict[int, MappedSegment] = {}
        self.released: Deque[int] = deque()  # numbers to report to the sender; negative if tainted
        # Leases whose pages are not all mapped yet, and the end of the bytes to map.
        self.cold: Deque[Tuple[int, int]] = deque()

    def add(self, number: int, file: int, capacity: int, private: bool) -> None:
        """Map a segment and take over its file; raise ``OSError`` if it cannot be mapped."""
        self.known[number] = MappedSegment(file, capacity, private)

    def lease(self, number: int, sizes: Sequence[int]) -> list[memoryview]:
        """Return writable views of the frames in a segment; each view keeps the lease.

        Raise ``KeyError`` for an unknown segment, ``ValueError`` if the frames do not fit in it.
        """
        mapping = self.known[number]
        offsets, total = layout(sizes)
        if total > mapping.capacity:
            raise ValueError("%d bytes cannot be in a segment of %d" % (total, mapping.capacity))
        if mapping.private:
            mapping.map.madvise(DONT_NEED)  # drop this process's copies of earlier pages
        # The lease ends with this object: an mmap takes no weak reference, and a new mapping for
        # each lease would have to be populated again.
        root: Any = mapping.exporter.from_buffer(mapping.map)

        lease = next(_numbers)

        def release(reference: Any) -> None:
            _leases.pop(lease, None)
            if mapping.tainted:
                self.known.pop(number, None)
            self.released.append(-number if mapping.tainted else number)

        _leases[lease] = ref(root, release), mapping
        if total > mapping.warm:
            self.cold.append((lease, total))
        whole = memoryview(root).cast("B")
        return [whole[at : at + size] for at, size in zip(offsets, sizes)]

    def populate(self) -> None:
        """Map the pages of leased segments, at best before they are used; in any thread."""
        while True:
            try:
                lease, stop = self.cold.popleft()
            except IndexError:  # no check before popleft: another thread may take the last one
                return
            _, mapping = _leases.get(lease, (None, None))
            if mapping is not None:  # otherwise the lease has ended
                for _ in populate(mapping.map, mapping.warm, stop):
                    pass
                mapping.warm = max(mapping.warm, stop)

    def forget(self, number: int) -> None:
        """Forget a segment that the sender has closed; existing views keep its memory."""
        self.known.pop(number, None)


def mapped(view: memoryview) -> MappedSegment | None:
    """Return the segment that a leased view belongs to, or None."""
    for root, mapping in list(_leases.values()):
        if root() is view.obj:
            return mapping
    return None


def _before_fork() -> None:
    """Make leased segments private before a fork, so that parent and child don't share arrays.

    Each of the two then copies a page when it writes to it. The segments are tainted: their sender
    does not use them again.
    """
    for _, mapping in list(_leases.values()):
        if not mapping.private:
            mapping.make_private()
        mapping.tainted = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork)
