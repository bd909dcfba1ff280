"""Leases: the slabs that a receiver has mapped, and its views of the segments in them.

Rule: use the standard library only, run on Python 3.8 and later, the same file at both ends. This
file knows no socket. A slab is mapped once. A lease of a segment lasts until the last view of it
has died, in whatever thread; the segment is then reported to its sender.

Law: the garbage collector calls weak references before it calls ``__del__``. So a lease may have
ended when the ``__del__`` of an object in a reference cycle runs. If that object holds a view
itself, and not an array, its ``__del__`` must not store the view anywhere.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections import deque
from itertools import chain
from typing import Any, Deque, Dict, Iterator, Sequence, Tuple
from weakref import ref

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.wire.errors import WireError
    from bridgehead._shipped.wire.frames import ALIGN
    from bridgehead._shipped.wire.limits import descriptor_limit
    from bridgehead._shipped.wire.slabs import (
        DONT_NEED,
        _close,
        _fstat,
        _mmap,
        hold_descriptors,
        layout,
        populate,
        sealed_size,
        shared_memory,
    )


# mmap(2): a private mapping of a large slab with few segments needs memory for few pages.
_NORESERVE = int(getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0))


class MappedSlab:
    """A sender's slab, mapped in the receiver's process.

    It holds one descriptor, or two of plain memory.
    """

    def __init__(self, file: int, capacity: int, private: bool, shared: bool) -> None:
        """Map a slab and take over its file; raise ``OSError`` if that is impossible."""
        import ctypes

        self.capacity, self.private, self.is_shared = capacity, private, shared
        self.sealed = shared_memory() == "sealed"
        self.of_several = private  # receivers
        self.tainted = False  # a forked child has it too: the sender must not write into it again
        self._file = -1  # of plain memory, whose identity says nothing on macOS
        self._duplicate = -1  # the mapping's own, once it was found
        try:
            if sealed_size(file) < capacity:
                raise OSError("the memory is not sealed and could be truncated")
            status = _fstat(file)
            hold_descriptors(self)
            self._identity = status.st_dev, status.st_ino
            # In a shared mapping, a view is the memory itself, and writable. If several receivers
            # have the slab, each maps it privately: a page that it writes to becomes its own copy.
            how = mmap.MAP_PRIVATE if private else mmap.MAP_SHARED
            self.map = _mmap(file, capacity, flags=how, prot=mmap.PROT_READ | mmap.PROT_WRITE)
            if not self.sealed:
                self._file, file = file, -1
        finally:
            if file >= 0:
                _close(file)  # the mapping has a duplicate
        self.warm = capacity if private else 0  # bytes whose pages are mapped or need not be
        self.exporter = ctypes.c_ubyte * capacity

    def find_file(self) -> int:
        """Return the descriptor that the mapping holds; raise ``OSError`` if it is not found.

        Python does not say which one it is, and another one for each slab would be one too many.
        """
        if self._file >= 0:
            return self._file
        for file in chain((self._duplicate,), _own_descriptors()):
            try:
                status = _fstat(file)
            except OSError:  # not found yet, or another thread has closed it
                continue
            if (status.st_dev, status.st_ino) == self._identity:
                self._duplicate = file
                return file
        raise OSError("the file of a mapping is not open")

    def allocated(self) -> int:
        """Return how many bytes of its file take memory: what was never written takes none."""
        return _fstat(self.find_file()).st_blocks * 512

    def __del__(self) -> None:
        if getattr(self, "_file", -1) >= 0:
            _close(self._file)

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
        file = self.find_file()
        private = mmap.MAP_PRIVATE | fixed | _NORESERVE
        if libc.mmap(address, self.capacity, access, private, file, 0) != address:
            raise OSError(ctypes.get_errno(), "the shared memory could not be made private")
        self.private = True


def _own_descriptors() -> Iterator[int]:
    try:
        yield from map(int, os.listdir("/proc/self/fd"))
    except OSError:  # no descriptor is free to list them
        yield from range(descriptor_limit())


# The leases of this process, by the id of the object whose death ends the lease: a weak reference
# to that object, and the mapping.
_leases: Dict[int, Tuple[Any, MappedSlab]] = {}


class SlabCache:
    """The slabs of one sender that this process has mapped, by number."""

    def __init__(self) -> None:
        self.known: dict[int, MappedSlab] = {}
        # Numbers of segments to report to the sender; negative if tainted.
        self.released: Deque[int] = deque()
        # Leases whose pages are not all mapped yet, by their weak references, and the end of the
        # bytes to map.
        self.cold: Deque[Tuple[Any, int]] = deque()

    def add(self, slab: int, file: int, capacity: int, private: bool, shared: bool) -> None:
        """Map a slab and take over its file; raise ``OSError`` if it cannot be mapped."""
        self.known[slab] = MappedSlab(file, capacity, private, shared)

    def lease(self, slab: int, segment: int, start: int, sizes: Sequence[int]) -> list[memoryview]:
        """Return writable views of the frames in a segment; each view keeps the lease.

        ``slab`` and ``segment`` are numbers; ``start`` is where the segment begins in the slab.

        Raise ``KeyError`` for an unknown slab, ``ValueError`` if the frames do not fit in it, or
        are not aligned: to read such memory ends the process in some libraries.
        """
        mapping = self.known[slab]
        offsets, total = layout(sizes)
        total += start
        if start % ALIGN:
            raise ValueError("a segment begins at byte %d, which is not aligned" % start)
        if total > mapping.capacity:
            raise ValueError("%d bytes cannot be in a slab of %d" % (total, mapping.capacity))
        if mapping.of_several:
            mapping.map.madvise(DONT_NEED)  # drop this process's copies of earlier pages
        # The lease ends with this object: an mmap takes no weak reference, and a new mapping for
        # each lease would have to be populated again.
        root: Any = mapping.exporter.from_buffer(mapping.map)

        lease = id(root)  # no other object has it before ``release`` has been called

        def release(_: Any) -> None:
            _leases.pop(lease, None)
            if mapping.tainted and not mapping.is_shared:
                self.known.pop(slab, None)
            self.released.append(-segment if mapping.tainted else segment)

        reference = ref(root, release)
        _leases[lease] = reference, mapping
        if total > mapping.warm:
            self.cold.append((reference, total))
        whole = memoryview(root).cast("B")
        return [whole[start + at : start + at + size] for at, size in zip(offsets, sizes)]

    def populate(self) -> None:
        """Map the pages of leased segments, at best before they are used; in any thread."""
        while True:
            try:
                reference, stop = self.cold.popleft()
            except IndexError:  # no check before popleft: another thread may take the last one
                return
            root = reference()
            if root is not None:  # otherwise the lease has ended
                mapping = _leases[id(root)][1]
                for _ in populate(mapping.map, mapping.warm, stop):
                    pass
                mapping.warm = max(mapping.warm, stop)
            del root, reference  # else the lease would not end while this waits for the next one

    def check_memory(self, frames: Sequence[memoryview]) -> None:
        """Refuse frames for which their sender took no memory; call this before they are read.

        Reading them would take this process's memory. A file is as long as its sender likes.
        """
        mapping = mapped(frames[0])
        if mapping is None or not mapping.sealed:
            return
        try:
            allocated = mapping.allocated()
        except OSError:
            allocated = 0
        nbytes = sum([frame.nbytes for frame in frames])
        if allocated < nbytes:
            message = "%d bytes in shared memory of which %d were written" % (nbytes, allocated)
            raise WireError("protocol", message)
        # Mapping pages in advance maps what is before the frames, too, which may have no memory.
        self.cold.clear()

    def forget(self, slab: int) -> None:
        """Forget a slab that the sender has closed; existing views keep its memory."""
        self.known.pop(slab, None)


def mapped(view: memoryview) -> MappedSlab | None:
    """Return the slab that a leased view belongs to, or None."""
    reference, mapping = _leases.get(id(view.obj), (None, None))
    return mapping if reference is not None and reference() is view.obj else None


def _before_fork() -> None:
    """Make leased slabs private before a fork, so that parent and child don't share arrays.

    Each of the two then copies a page when it writes to it. The slabs are tainted: their sender
    does not use them again.
    """
    for _, mapping in list(_leases.values()):
        if not mapping.private:
            mapping.make_private()
        mapping.tainted = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork)
