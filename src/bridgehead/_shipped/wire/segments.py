"""Shared memory that the two ends of the direct lane pass each other: segments, leased and reused.

Rule: standard library only, Python 3.8 and later; the same on both sides, shipped together with
``_loader.py``. No socket is known here. Whoever sends has a ``Pool`` of segments and writes into
them; whoever receives maps each once (``SegmentCache``) and hands out views. A segment is the
receiver's until the last array in it died there.

Facts this file rests on, measured for 100 MB (a warm copy takes 7 ms): pages that are new cost
more than the copy, 35 ms with ``pwrite``, 60-150 ms written through a mapping. A segment is
therefore filled with ``pwrite`` the first time, which needs no mapping and gives ENOSPC instead
of SIGBUS, and mapped when it is used again. Pages are mapped in advance (MADV_POPULATE, 9 ms):
one by one, as they are touched, takes 27 ms.
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
except ImportError:  # not POSIX: no segments there
    fcntl = None  # type: ignore[assignment]

# Captured: a user may replace them. What a system lacks, ``possible`` says.
_close, _dup, _fstat, _mmap = os.close, os.dup, os.fstat, mmap.mmap
_pwrite: Any = getattr(os, "pwrite", None)
_preadv: Any = getattr(os, "preadv", None)
_ftruncate: Any = getattr(os, "ftruncate", None)
_memfd_create: Any = getattr(os, "memfd_create", None)
_fcntl: Any = getattr(fcntl, "fcntl", None)
_FUTURE_WRITE = 0x10  # F_SEAL_FUTURE_WRITE, Linux 5.1
IDLE = 30.0  # s after which a segment that nobody uses is given back
PORTION = 1 << 25  # bytes after which whoever fills a segment may be asked to stop
BRIEF = 1 << 20  # bytes copied at once: the interpreter's lock is held so long, 0.1 ms
WASTE = 8  # times the size that is needed, beyond which a free segment is too large
POPULATE, DONT_NEED = 22, 4  # madvise(2): MADV_POPULATE_READ (Linux 5.14), MADV_DONTNEED
_numbers = count(1)  # of segments and leases; unique in this process, whatever the pool


def possible() -> bool:
    """Whether this machine and this Python have what segments need."""
    return fcntl is not None and hasattr(os, "memfd_create") and hasattr(fcntl, "F_ADD_SEALS")


def layout(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where in a segment frames of these sizes go, and how many bytes they take."""
    offsets, at = [], 0
    for size in sizes:
        offsets.append(at)
        at += -(-size // ALIGN) * ALIGN
    return offsets, at


# ---------------------------------------------------------------- the sender's


class Segment:
    """Anonymous memory of a fixed size, which any process that was handed its file can map."""

    def __init__(self, pool: Pool, capacity: int, file: int = -1) -> None:
        """``file`` is that of one which was made in another process."""
        self.pool = pool
        self.number: int = next(_numbers)
        self.capacity = capacity
        self.leases = 0  # receivers that may still use what is in it
        self.touched: float = monotonic()
        self.filled: bool = False
        self.tainted = False  # somebody may still see what is in it: not to be used again
        self.holders: list[Any] = []  # channels that are to be told when it is gone
        self._map: mmap.mmap | None = None
        self._threshold_raised = 0  # bytes of it whose pages are mapped
        self.file: int = file
        if file >= 0:
            return
        self.file = _memfd_create("bridgehead", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            _ftruncate(self.file, capacity)
            # Nobody can truncate it any more: no SIGBUS for whoever has it mapped.
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
            _fcntl(self.file, fcntl.F_ADD_SEALS, seals)
        except BaseException:
            _close(self.file)
            raise

    def fill(self, frames: Sequence[memoryview]) -> Iterator[int]:
        """Write frames where ``layout`` puts them; yields the bytes done, every ``PORTION``.

        ``OSError`` where there is no memory (any more).
        """
        offsets, total = layout([frame.nbytes for frame in frames])
        if self.filled:
            if self._map is None:
                self._map = _mmap(self.file, self.capacity)
            if total > self._threshold_raised:
                yield from populate(self._map, self._threshold_raised, total)
                self._threshold_raised = total
        # Its own, for the segment may be closed by another thread, and the number used again.
        block, file = self._map, _dup(self.file)
        try:
            done = told = 0
            for frame, offset in zip(frames, offsets):
                for start in range(0, frame.nbytes, PORTION):
                    part = frame[start : start + PORTION]
                    if block is None:
                        write(file, offset + start, part)
                    else:
                        copy(block, offset + start, part)
                    done += part.nbytes
                    if done - told >= PORTION:
                        told = done
                        yield done
            if not self.filled:
                self._seal(file)
            self.filled = True
        finally:
            _close(file)
        yield done

    def _seal(self, file: int) -> None:
        """Nobody takes the seals off; and of what several are to get, none of them can write into
        what the others see: it is mapped here before, which stays writable.
        """
        seals = fcntl.F_SEAL_SEAL
        if self.pool.private:
            self._map = _mmap(file, self.capacity)
            seals |= _FUTURE_WRITE
        _fcntl(file, fcntl.F_ADD_SEALS, seals)

    def read(self, sizes: Sequence[int]) -> list[memoryview]:
        """Copies of the frames that were written into it."""
        frames = [allocate(size) for size in sizes]
        for frame, offset in zip(frames, layout(sizes)[0]):
            at = 0
            while at < frame.nbytes:
                at += _preadv(self.file, [frame[at:]], offset + at)
        return frames

    def close(self) -> None:
        self._map = None  # unmapped when its last view is gone
        file, self.file = self.file, -1
        if file >= 0:
            _close(file)


def write(file: int, at: int, part: memoryview) -> None:
    while part.nbytes:
        written = _pwrite(file, part, at)
        at, part = at + written, part[written:]


def copy(block: mmap.mmap, at: int, part: memoryview) -> None:
    with memoryview(block) as target:
        for start in range(0, part.nbytes, BRIEF):
            chunk = part[start : start + BRIEF]
            target[at + start : at + start + chunk.nbytes] = chunk


def populate(block: mmap.mmap, start: int, stop: int) -> Iterator[int]:
    """Map pages in advance; yields between steps, for madvise holds the interpreter's lock."""
    for at in range(start // mmap.PAGESIZE * mmap.PAGESIZE, stop, PORTION):
        try:
            block.madvise(POPULATE, at, min(PORTION, stop - at))
        except (OSError, ValueError, AttributeError):  # an older kernel: they come as touched
            return
        yield 0


class Pool:
    """The segments that one sender fills; ``share`` of what memory is free is its most.

    From a ``private`` pool several receivers get the same segment at once, and none of them
    sees what another writes.
    """

    def __init__(self, share: float, *, private: bool = False) -> None:
        self.share: float = share
        self.private: bool = private
        self.segments: dict[int, Segment] = {}
        self._closed = False
        self._lock = RLock()  # trimmed while one is made, too

    @property
    def nbytes(self) -> int:
        return sum(segment.capacity for segment in list(self.segments.values()))

    def take(self, sizes: Sequence[int]) -> Segment | None:
        """A segment for frames of these sizes, with one lease, which is to be given back.

        None where there is no memory for it, no file descriptor, or no such thing at all.
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
                made = self._make(nbytes)
                if made is None:
                    return None
                segment = made
            segment.leases = 1
            return segment

    def _make(self, nbytes: int) -> Segment | None:
        # Few different sizes, so that they fit again: eighths of a power of two.
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
        """One more uses it."""
        with self._lock:
            segment.leases += 1

    def give_back(self, segment: Segment, tainted: bool = False) -> None:
        """One receiver less uses it; ``tainted`` memory is not used again."""
        with self._lock:
            segment.leases -= 1
            segment.touched = monotonic()
            segment.tainted = segment.tainted or tainted
            if segment.tainted and not segment.leases:
                self._drop(segment)

    def trim(self, idle: float | None = None) -> None:
        """Give back what nobody has used for ``idle`` seconds, by default ``IDLE``."""
        idle = IDLE if idle is None else idle
        with self._lock:  # or one that another thread takes just now would be closed below it
            for segment in list(self.segments.values()):
                if not segment.leases and monotonic() - segment.touched >= idle:
                    self._drop(segment)

    def _drop(self, segment: Segment) -> None:
        if self.segments.pop(segment.number, None) is not None:
            segment.close()
            for holder in segment.holders:
                holder.gone(segment.number)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for segment in list(self.segments.values()):
                self.segments.pop(segment.number, None)
                segment.close()


def free_memory() -> int:
    """Bytes that this process could still have: of the machine, and of its control group."""
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
    except (OSError, ValueError):  # another system, or no such group
        pass
    return min(found) if found else 0


# ---------------------------------------------------------------- the receiver's


class MappedSegment:
    """A sender's segment, mapped here."""

    def __init__(self, file: int, capacity: int, private: bool) -> None:
        self.file, self.capacity, self.private = file, capacity, private
        import ctypes

        self.tainted = False  # a child has it too: nobody may write into it again
        seals = _fcntl(file, fcntl.F_GET_SEALS)
        if not seals & fcntl.F_SEAL_SHRINK or _fstat(file).st_size < capacity:
            raise OSError("the segment could be truncated")
        # Shared: a view is the memory itself, and writable. Of what several have got at once,
        # each sees its own: a page that is written to becomes a copy.
        how = mmap.MAP_PRIVATE if private else mmap.MAP_SHARED
        self.map = _mmap(file, capacity, flags=how, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        self.warm = capacity if private else 0  # bytes of it whose pages are mapped, or needn't be
        self.exporter = ctypes.c_ubyte * capacity

    def __del__(self) -> None:
        _close(self.file)

    def make_private(self) -> None:
        """Make it this process's own, at the same address: what is written from now on is not
        seen in the file, nor by whoever else has it mapped.
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


# Of this process, by their numbers: what tells that a lease is over, and what it is of.
_leases: Dict[int, Tuple[Any, MappedSegment]] = {}


class SegmentCache:
    """The segments of one sender that are mapped here, by their numbers."""

    def __init__(self) -> None:
        self.known: dict[int, MappedSegment] = {}
        self.released: Deque[int] = deque()  # to be told; negative where it is spoilt
        self.cold: Deque[Tuple[int, int]] = deque()  # leases whose pages are to be mapped, to where

    def add(self, number: int, file: int, capacity: int, private: bool) -> None:
        """Map a segment; its file is this object's from now on. ``OSError`` where it can't be."""
        self.known[number] = MappedSegment(file, capacity, private)

    def lease(self, number: int, sizes: Sequence[int]) -> list[memoryview]:
        """Writable views of what is in a segment, each of which keeps it; ``KeyError``,
        ``ValueError`` where there is no such segment, or it has no room for that.
        """
        mapping = self.known[number]
        offsets, total = layout(sizes)
        if total > mapping.capacity:
            raise ValueError("%d bytes in a segment of %d" % (total, mapping.capacity))
        if mapping.private:
            mapping.map.madvise(DONT_NEED)  # copies of what was in it before
        # mmap objects know no weak references, and a new mapping would have to be populated.
        root: Any = mapping.exporter.from_buffer(mapping.map)

        lease = next(_numbers)

        def died(gone: Any) -> None:
            _leases.pop(lease, None)
            if mapping.tainted:
                self.known.pop(number, None)
            self.released.append(-number if mapping.tainted else number)

        _leases[lease] = ref(root, died), mapping
        if total > mapping.warm:
            self.cold.append((lease, total))
        whole = memoryview(root).cast("B")
        return [whole[at : at + size] for at, size in zip(offsets, sizes)]

    def populate(self) -> None:
        """Map the pages of what is leased, best before anybody touches them; in any thread."""
        while True:
            try:
                lease, stop = self.cold.popleft()
            except IndexError:  # not asked before: another thread may take the last one
                return
            _, mapping = _leases.get(lease, (None, None))
            if mapping is not None:  # or nobody waits for it any more
                for _ in populate(mapping.map, mapping.warm, stop):
                    pass
                mapping.warm = max(mapping.warm, stop)

    def forget(self, number: int) -> None:
        """The sender has given it back; what still uses it keeps it."""
        self.known.pop(number, None)


def mapped(view: memoryview) -> MappedSegment | None:
    """The segment that a leased view is of; None if it is of none."""
    for root, mapping in list(_leases.values()):
        if root() is view.obj:
            return mapping
    return None


def _before_fork() -> None:
    """A child that writes into its copy of an array must not write into ours, nor the other way.

    What is leased becomes private here and so in the child, page by page as it is written to;
    its sender is told not to use it again.
    """
    for _, mapping in list(_leases.values()):
        if not mapping.private:
            mapping.make_private()
        mapping.tainted = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork)
