"""Large bytes and texts: they cross out of band, and are read into memory on huge pages.

Rule: use the standard library only, run on Python 3.8 and later, the same file at both ends. This
file knows the few opcodes that the C pickler writes around a large object, and no library.

Facts (measured, 100 MB):

- Pickled in band, ``bytes`` take 230 ms for a push: they are copied into the pickle, out of it, and
  both times into new memory. Copied once, into memory on huge pages, they take 20.
- The C pickler writes an object of 64 KiB or more by itself, after its opcode and length.
- New memory on pages of 4 KiB takes 50 to 60 ms; on huge pages, 16 to 19.
"""

from __future__ import annotations

import mmap
import pickle
from functools import lru_cache
from io import BytesIO
from struct import unpack_from
from typing import Any

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.wire.digest import Buffer
    from bridgehead._shipped.wire.errors import TooLarge
    from bridgehead._shipped.wire.frames import MAX_FRAMES
    from bridgehead._shipped.wire.libraries import builder

WRITTEN_ALONE = 1 << 16  # bytes; the C pickler writes objects of this size and more by themselves
# Bytes; malloc maps larger objects on their own, and unmaps them when they are freed. What is
# smaller may get memory that was used before; an advice would outlive the object there.
MAPPED_ALONE = 32 << 20
FILLED_AT_ONCE = 1 << 20  # bytes; then another thread can run
_CALL = pickle.NEXT_BUFFER + pickle.TUPLE1 + pickle.REDUCE


class PickleOutput(BytesIO):
    """The file that a pickle is written to; large objects become frames of their own.

    Bytes beyond ``limit`` are only counted, or end the pickling with ``TooLarge`` if the output
    ``stops`` there. ``write`` is a Python function on purpose. The C
    pickler calls it every 64 KiB, and then another thread can run, such as that of an event loop.
    """

    def __init__(self, limit: int | None, frames: list[memoryview], *, stops: bool = False) -> None:
        super().__init__()
        self.limit, self.frames, self.total, self.stops = limit, frames, 0, stops
        self.end = b""  # the last bytes that were written

    def write(self, data: Any) -> int:
        size = len(data)
        if size < WRITTEN_ALONE or not self.take(data, size):
            self.total += size
            self.end = bytes(data[-9:])
            if self.fits:
                super().write(data)
            elif self.stops:
                raise TooLarge(self.total)
        return size

    @property
    def fits(self) -> bool:
        """Whether all bytes so far are within the limit."""
        return self.limit is None or self.total <= self.limit

    def take(self, data: Any, size: int) -> bool:
        """Make a large object a frame, and replace its opcode by a call of its builder.

        Return False if this is no such object. A frame of the pickle (PEP 3154) is none: it begins
        with its own length.
        """
        is_frame = data[:1] == pickle.FRAME and unpack_from("<Q", data, 1)[0] <= size - 9
        if is_frame or len(self.frames) >= MAX_FRAMES:
            return False
        found = [
            (header, make)
            for code, width, make in _WRITTEN
            for header in [code + size.to_bytes(8, "little")[:width]]
            if size >> 8 * width == 0 and self.end.endswith(header)
        ]
        if not found:
            return False
        ((header, make),) = found
        is_ascii = make is make_text and type(data) is bytes and data.isascii()
        name = make_ascii.__name__ if is_ascii else make.__name__
        call = ("c%s\n%s\n" % (__name__, name)).encode() + _CALL
        if self.fits:
            self.seek(-len(header), 2)
            self.truncate()
        self.total += len(call) - len(header)
        if self.fits:
            super().write(call)
        self.end = b""
        self.frames.append(memoryview(data))
        return True


# ---------------------------------------------------------------- the receiver


@builder
def make_bytes(data: Buffer) -> bytes:
    """Return the bytes of a frame."""
    view = memoryview(data)
    new = _large_objects(view.nbytes)
    if new is None:
        return bytes(view)
    made: bytes = new.bytes(None, view.nbytes)
    _fill(new, new.address_of_bytes(made), view)
    return made


@builder
def make_bytearray(data: Buffer) -> bytearray:
    """Return a bytearray of the bytes of a frame."""
    view = memoryview(data)
    new = _large_objects(view.nbytes)
    if new is None:
        return bytearray(view)
    made: bytearray = new.bytearray(None, view.nbytes)  # bytearray(n) would write zeros
    _fill(new, new.address_of_bytearray(made), view)
    return made


def new_bytearray(size: int) -> bytearray:
    """Return a bytearray that the caller fills, on huge pages if it is large."""
    new = _large_objects(size)
    if new is None:
        return bytearray(size)
    made: bytearray = new.bytearray(None, size)  # bytearray(n) would write zeros
    new.advise(new.address_of_bytearray(made), size)
    return made


@builder
def make_text(data: Buffer) -> str:
    """Return the text that is in a frame as UTF-8."""
    return str(data, "utf-8", "surrogatepass")


@builder
def make_ascii(data: Buffer) -> str:
    """Return the text that is in a frame as ASCII."""
    view = memoryview(data)
    new = _large_objects(view.nbytes)
    if new is None:
        return str(view, "ascii")
    made: str = new.text(view.nbytes, 127)
    _fill(new, new.address_of_text(made, None), view)
    return made


# The opcodes of large objects, the bytes of the lengths after them, and what makes the objects.
_WRITTEN = (
    (pickle.BINBYTES, 4, make_bytes),
    (pickle.BINBYTES8, 8, make_bytes),
    (pickle.BINUNICODE, 4, make_text),
    (pickle.BINUNICODE8, 8, make_text),
    (pickle.BYTEARRAY8, 8, make_bytearray),
)


def _fill(new: _NewObjects, address: int, data: memoryview) -> None:
    """Copy bytes into a new object, in steps, so that other threads can run in between."""
    target = new.view(address, data.nbytes, 0x200)  # PyBUF_WRITE
    new.advise(address, data.nbytes)
    for at in range(0, data.nbytes, FILLED_AT_ONCE):
        target[at : at + FILLED_AT_ONCE] = data[at : at + FILLED_AT_ONCE]


class _NewObjects:
    """CPython's functions that make an object whose memory the caller fills; see its C API."""

    def __init__(self) -> None:
        import ctypes

        def function(name: str, result: Any, *arguments: Any) -> Any:
            # Not ctypes.pythonapi.name, whose types are shared with all code of the process.
            return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))

        made, address, size = ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t
        self.bytes = function("PyBytes_FromStringAndSize", made, address, size)
        self.bytearray = function("PyByteArray_FromStringAndSize", made, address, size)
        self.text = function("PyUnicode_New", made, size, ctypes.c_uint32)
        self.address_of_bytes = function("PyBytes_AsString", address, made)
        self.address_of_bytearray = function("PyByteArray_AsString", address, made)
        self.address_of_text = function("PyUnicode_AsUTF8AndSize", address, made, address)
        self.view = function("PyMemoryView_FromMemory", made, address, size, ctypes.c_int)
        self.huge = mmap.MADV_HUGEPAGE
        self.madvise = ctypes.CDLL(None).madvise
        self.madvise.argtypes = [address, ctypes.c_size_t, ctypes.c_int]

    def advise(self, address: int, size: int) -> None:
        """Ask for huge pages; a system that has none returns an error, which does not matter."""
        page = mmap.PAGESIZE
        start, stop = -(-address // page) * page, (address + size) // page * page
        self.madvise(start, stop - start, self.huge)


def _large_objects(size: int) -> _NewObjects | None:
    """Return CPython's functions for an object of this size; None if Python makes it as well."""
    return _new_objects() if size > MAPPED_ALONE else None


@lru_cache(None)
def _new_objects() -> _NewObjects | None:
    """Return CPython's functions; None where they, or huge pages, do not exist."""
    try:
        return _NewObjects()
    except Exception:
        return None
