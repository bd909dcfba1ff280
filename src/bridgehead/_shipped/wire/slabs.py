"""Slabs: files of shared memory that a sender fills, each for one segment or for many.

Rule: use the standard library only, run on Python 3.8 and later, the same file at both ends. This
file knows files, pages and descriptors. Who leases what is in ``segments``.

Facts this file rests on, measured for 100 MB (a warm copy takes 7 ms):

- New pages cost more than the copy: 35 ms with ``pwrite``, 60-150 ms written through a mapping.
  A stretch is therefore filled with ``pwrite`` the first time, which needs no mapping and gives
  ENOSPC instead of SIGBUS. It is written through a mapping when it is used again: 1 MB then takes
  41 µs, and 90 µs with ``pwrite``.
- On Linux the file is a memfd with seals: no process that has it can truncate it, which would kill
  each process that reads it. Elsewhere it is plain memory of ``shm_open``, for two processes that
  trust each other. macOS cannot read or write the file of such memory, so it is always mapped.
- Each mapping holds a descriptor on every Python: ``trackfd=False`` of 3.13 is not used, because a
  handoff, and the check of what a kernel has written, need that of the mapping (``find_file``).
- Pages are mapped in advance (MADV_POPULATE), which takes 9 ms. Mapping them one by one, as they
  are first accessed, takes 27 ms.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect
from functools import lru_cache
from itertools import count
from time import monotonic
from typing import Any, Callable, Iterator, List, Sequence, Tuple
from weakref import WeakSet

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.wire.frames import ALIGN, allocate, copy_bytes
    from bridgehead._shipped.wire.limits import descriptor_limit

try:
    import fcntl
except ImportError:  # not POSIX: no slabs
    fcntl = None  # type: ignore[assignment]
try:  # multiprocessing.shared_memory has no public way to the descriptor
    import _posixshmem  # type: ignore[import-not-found]
except ImportError:
    _posixshmem = None

# Captured, because a user may replace them. ``shared_memory`` says whether this system has them.
_close, _dup, _fstat, _mmap = os.close, os.dup, os.fstat, mmap.mmap
_pwrite: Any = getattr(os, "pwrite", None)
_preadv: Any = getattr(os, "preadv", None)
_ftruncate: Any = getattr(os, "ftruncate", None)
_memfd_create: Any = getattr(os, "memfd_create", None)
_fcntl: Any = getattr(fcntl, "fcntl", None)
_shm_open: Any = getattr(_posixshmem, "shm_open", None)
_shm_unlink: Any = getattr(_posixshmem, "shm_unlink", None)
_FUTURE_WRITE = 0x10  # F_SEAL_FUTURE_WRITE, Linux 5.1
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # modes of fallocate(2)
PORTION = 1 << 25  # bytes between the points at which filling a segment can be stopped
BRIEF = 1 << 20  # bytes; copied at once, they hold the interpreter's lock for 0.1 ms
MAPPED_AT_ONCE = 1 << 22  # bytes; mapping their pages holds that lock for 0.4 ms
ABSENT, WRITTEN, MAPPED = range(3)  # pages: may not exist; exist; and this process mapped them
POPULATE, DONT_NEED = 22, 4  # madvise(2): MADV_POPULATE_READ (Linux 5.14), MADV_DONTNEED
_numbers = count(1)  # of slabs, segments and leases; unique in this process, across all pools


def shared_memory() -> str:
    """Return the kind of shared memory of this system and this Python; empty if there is none.

    ``"sealed"`` memory cannot be truncated by any process. ``"plain"`` memory can be.
    """
    if fcntl is None:
        return ""
    if hasattr(os, "memfd_create") and hasattr(fcntl, "F_ADD_SEALS"):
        return "sealed"
    return "plain" if _shm_open is not None else ""


def layout(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Return the offsets in a segment of frames of these sizes, and how many bytes they take."""
    offsets, at = [], 0
    for size in sizes:
        offsets.append(at)
        at += -(-size // ALIGN) * ALIGN
    return offsets, at


# ---------------------------------------------------------------- descriptors


_held: Any = WeakSet()  # what holds descriptors: slabs, and the mappings of other processes' slabs


def hold_descriptors(owner: Any) -> None:
    """Count the one or two descriptors that ``owner`` holds while it exists.

    Raise ``OSError`` if they would take more than a quarter of what this process may have open:
    the rest is for the program itself.
    """
    if 2 * len(_held) >= descriptor_limit() // 4:
        raise OSError("shared memory already takes a quarter of the descriptors of this process")
    _held.add(owner)


# ---------------------------------------------------------------- the slab


class Extents:
    """The free stretches of a slab: start, end, and the state of their pages.

    They are in order, and neighbours in the same state are one stretch.
    """

    def __init__(self, capacity: int) -> None:
        self._free: List[Tuple[int, int, int]] = [(0, capacity, ABSENT)]
        self._most = capacity  # no stretch is longer
        self.nbytes: int = capacity

    def take(self, nbytes: int) -> tuple[int, int] | None:
        """Take a stretch, at best one with pages; return its start and its state, or None."""
        if nbytes > self._most:
            return None
        found = -1
        for at, (start, stop, pages) in enumerate(self._free):
            if stop - start >= nbytes and (pages or found < 0):
                found = at
                if pages:
                    break
        if found < 0:
            self._most = max((stop - start for start, stop, _ in self._free), default=0)
            return None
        start, stop, pages = self._free[found]
        if stop - start == nbytes:
            del self._free[found]
        else:
            self._free[found] = start + nbytes, stop, pages
        self.nbytes -= nbytes
        return start, pages

    def drop_pages(self, punch: Callable[[int, int], bool]) -> int:
        """Have ``punch`` drop the pages of all stretches; return the bytes for which it did."""
        before, self._free, self.nbytes, dropped = self._free, [], 0, 0
        for start, stop, pages in before:
            if pages != ABSENT and punch(start, stop):
                pages, dropped = ABSENT, dropped + stop - start
            self.give(start, stop, pages)
        return dropped

    def give(self, start: int, stop: int, pages: int) -> None:
        """Make a stretch free again."""
        free = self._free
        self.nbytes += stop - start
        at = bisect(free, (start,))
        if at < len(free) and free[at][0] == stop and free[at][2] == pages:
            stop = free.pop(at)[1]
        if at and free[at - 1][1] == start and free[at - 1][2] == pages:
            start = free.pop(at - 1)[0]
            at -= 1
        free.insert(at, (start, stop, pages))
        self._most = max(self._most, stop - start)


class Slab:
    """Anonymous memory of a fixed size; a process that receives its file can map it.

    A shared slab has room for many segments. Only its sender and one receiver have it.
    """

    def __init__(
        self, capacity: int, *, private: bool = False, shared: bool = False, file: int = -1
    ) -> None:
        """Make a slab, or wrap the ``file`` of one that another process made.

        Raise ``OSError`` if that takes too many descriptors, or the system refuses.
        """
        self.number: int = next(_numbers)
        self.capacity: int = capacity
        self.private: bool = private  # several receivers have it; none sees what another writes
        self.extents: Extents | None = Extents(capacity) if shared else None
        self.nbytes: int = 0 if shared else capacity  # that were written to, or are about to be
        self.leased: int = 0  # number of segments in it that are leased
        self.touched: float = monotonic()
        self.tainted: bool = False  # a process may still see what is in it: never write to it again
        self.holders: list[Any] = []  # frame sockets to notify when it is closed
        self.sealed: bool = shared_memory() == "sealed"
        self._map: mmap.mmap | None = None
        self.file: int = file
        hold_descriptors(self)
        if file >= 0:
            return
        try:
            if not self.sealed:
                self._make_plain()
                return
            self.file = _memfd_create("bridgehead", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            _ftruncate(self.file, capacity)
            # Once no process can truncate it, no process that has it mapped can get SIGBUS.
            self._add_seals(fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            if not private:
                self._add_seals(fcntl.F_SEAL_SEAL)
        except BaseException:
            self.close()
            raise

    def _make_plain(self) -> None:
        """Make the file in plain memory; it has no name when this returns."""
        if self.private:
            raise OSError("memory that several processes read needs seals")
        name = "/bridgehead-" + os.urandom(8).hex()  # macOS takes 31 characters
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        self.file = _shm_open(name, flags, mode=0o600)  # closed at exec
        _shm_unlink(name)
        _ftruncate(self.file, self.capacity)

    def reserve(self, start: int, stop: int) -> None:
        """Have the system keep memory for a stretch of plain memory, where it can.

        Writing through a mapping where there is none would end this process.
        """
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self.file, start, stop - start)

    @property
    def is_shared(self) -> bool:
        """Whether it has room for many segments."""
        return self.extents is not None

    @property
    def unused(self) -> int:
        """How many bytes of a shared slab were written and belong to no segment."""
        return 0 if self.extents is None else self.nbytes - self.capacity + self.extents.nbytes

    def _add_seals(self, seals: int) -> None:
        _fcntl(self.file, fcntl.F_ADD_SEALS, seals)

    def seal(self) -> None:
        """Make the memory of a private slab read-only for all others, once it is filled.

        It goes to several receivers; none of them may write what the others see. This process
        maps it first: that mapping stays writable.
        """
        if self.private:
            self.map()
            self._add_seals(fcntl.F_SEAL_SEAL | _FUTURE_WRITE)

    def map(self) -> mmap.mmap:
        """Return its mapping in this process; raise ``OSError`` without address space for it."""
        if self._map is None:
            self._map = _mmap(self.file, self.capacity)
        return self._map

    def punch(self, start: int, stop: int) -> bool:
        """Give the pages of a stretch back to the system; return whether that worked."""
        mode = _KEEP_SIZE | _PUNCH_HOLE
        return bool(_fallocate()(self.file, mode, start, stop - start) == 0)

    def free_unused(self) -> None:
        """Give all pages that belong to no segment back to the system."""
        if self.extents is not None:
            self.nbytes -= self.extents.drop_pages(self.punch)

    def read(self, start: int, sizes: Sequence[int]) -> list[memoryview]:
        """Return copies of the frames that were written from ``start`` on."""
        frames = [allocate(size) for size in sizes]
        for frame, offset in zip(frames, layout(sizes)[0]):
            at = 0
            if not self.sealed:
                frame[:] = memoryview(self.map())[start + offset : start + offset + frame.nbytes]
                continue
            while at < frame.nbytes:
                at += _preadv(self.file, [frame[at:]], start + offset + at)
        return frames

    def duplicate(self) -> int:
        """Return another descriptor of its file, which stays valid when a thread closes the slab.

        Raise ``OSError`` if the slab has been closed.
        """
        number = self.file
        file = _dup(number)
        if self.file != number:  # closed meanwhile: another file may have had the number
            _close(file)
            raise OSError("the shared memory has been closed")
        return file

    def close(self) -> None:
        """Close its file; the memory is freed when no process maps it any more."""
        self._map = None  # unmapped when its last view has died
        _held.discard(self)
        file, self.file = self.file, -1
        if file >= 0:
            _close(file)


def sealed_size(file: int) -> int:
    """Return the size of a file that no process can truncate; 0 for another file.

    Where memory has no seals, every file counts: it is only shared with a peer that is trusted.
    Raise ``OSError`` for a file that takes no seals.
    """
    if shared_memory() == "sealed" and not _fcntl(file, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
        return 0
    return _fstat(file).st_size


@lru_cache(maxsize=None)
def _fallocate() -> Any:
    import ctypes

    found = getattr(ctypes.CDLL(None), "fallocate", None)
    if found is None:
        return lambda *_: -1
    found.argtypes = ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64
    return found


def write(file: int, at: int, part: memoryview) -> None:
    """Write all of a part to a file at an offset."""
    while part.nbytes:
        written = _pwrite(file, part, at)
        at, part = at + written, part[written:]


def copy(block: mmap.mmap, at: int, part: memoryview) -> None:
    """Copy a part into a mapping; other threads can run during a long copy."""
    with memoryview(block) as target:
        if part.nbytes > BRIEF:
            copy_bytes(target[at : at + part.nbytes], part)
        else:
            target[at : at + part.nbytes] = part


def populate(block: mmap.mmap, start: int, stop: int, step: int = PORTION) -> Iterator[int]:
    """Map pages in advance; yield between steps, because madvise holds the interpreter's lock."""
    for at in range(start // mmap.PAGESIZE * mmap.PAGESIZE, stop, step):
        try:
            block.madvise(POPULATE, at, min(step, stop - at))
        except (OSError, ValueError, AttributeError):  # older Linux: it maps a page on first access
            return
        yield 0
