"""Memory in Arrow's format, of libraries that lend it: out as buffers, and in without a copy.

Rule: as ``reducers`` says. This file knows Arrow's C data interface, and no library: it reads what
``__arrow_c_stream__`` and ``__arrow_c_array__`` return, and has such methods itself. pyarrow is not
needed, at neither end. See https://arrow.apache.org/docs/format/CDataInterface.html.

Facts: a type is a format, a text; it says which buffers an array has, and how long each of them is
for a number of items. The interface has no lengths of its own. What is lent is given back by a call
of ``release``, which the borrower makes in whatever thread it likes.
"""

from __future__ import annotations

import ctypes
import itertools
import pickle
from functools import lru_cache
from typing import Any


class CSchema(ctypes.Structure):
    """A type, and the name of its column."""


class CArray(ctypes.Structure):
    """A column: its length and the addresses of its buffers."""


class CStream(ctypes.Structure):
    """A source of arrays of one type."""


_Release = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_many_schemas = ctypes.POINTER(ctypes.POINTER(CSchema))
_many_arrays = ctypes.POINTER(ctypes.POINTER(CArray))
_READ = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
CSchema._fields_ = [
    *(("format", ctypes.c_char_p), ("name", ctypes.c_char_p), ("metadata", ctypes.c_void_p)),
    *(("flags", ctypes.c_int64), ("n_children", ctypes.c_int64), ("children", _many_schemas)),
    *(("dictionary", ctypes.POINTER(CSchema)), ("release", ctypes.c_void_p)),
    ("private_data", ctypes.c_void_p),
]
CArray._fields_ = [
    *((name, ctypes.c_int64) for name in ("length", "null_count", "offset")),
    *(("n_buffers", ctypes.c_int64), ("n_children", ctypes.c_int64)),
    *(("buffers", ctypes.POINTER(ctypes.c_void_p)), ("children", _many_arrays)),
    *(("dictionary", ctypes.POINTER(CArray)), ("release", ctypes.c_void_p)),
    ("private_data", ctypes.c_void_p),
]
CStream._fields_ = [
    *(("get_schema", _READ), ("get_next", _READ), ("get_last_error", ctypes.c_void_p)),
    *(("release", ctypes.c_void_p), ("private_data", ctypes.c_void_p)),
]

# The bits of an item of each format; of a time, the first two letters say it.
_ITEM_BITS = dict(zip("bcCsSiIlLefg", (1, 8, 8, 16, 16, 32, 32, 64, 64, 16, 32, 64)))
_TIME_BITS = {"tdD": 32, "tdm": 64, "tts": 32, "ttm": 32, "ttu": 64, "ttn": 64}
_OFFSETS = {"u": 4, "z": 4, "U": 8, "Z": 8, "+l": 4, "+L": 8, "+m": 4}  # bytes of an offset
_VIEWS_OF = ("vu", "vz")


class Unknown(Exception):
    """The memory is of a type that this file does not know."""


def _bits(form: str) -> int | None:
    """Return the bits of an item; None if the format is of no fixed size."""
    if form[:2] == "d:":
        parts = form[2:].split(",")
        return int(parts[2]) if len(parts) > 2 else 128
    if form[:2] == "w:":
        return 8 * int(form[2:])
    if form[:2] in ("ts", "tD"):
        return 64
    return _TIME_BITS.get(form) or _ITEM_BITS.get(form)


# ---------------------------------------------------------------- what another library lends


class Borrowed:
    """Memory that a library has lent; it is given back with the last buffer of it."""

    def __init__(self, struct: Any, source: Any) -> None:
        self.struct, self.source = struct, source

    def __del__(self) -> None:
        _give_back(self.struct)

    def buffer(self, address: int | None, size: int) -> pickle.PickleBuffer | None:
        """Return the bytes at an address, as a buffer that keeps them.

        No memoryview: the garbage collector crashes on a PickleBuffer of one (CPython 3.11).
        """
        if not address:
            return None
        block = (ctypes.c_ubyte * size).from_address(address)
        block.owner = self  # type: ignore[attr-defined]
        return pickle.PickleBuffer(block)


def _give_back(struct: Any) -> None:
    if struct.release:
        _Release(struct.release)(ctypes.addressof(struct))


def arrow_parts(source: Any) -> tuple[Any, list[Any]]:
    """Return the type of what lends its memory, as plain data, and its chunks.

    A chunk is a tuple of plain data and of ``PickleBuffer``; see ``ArrowMemory``.

    Raises:
        Unknown: a part is of a type that this file does not know.
    """
    capsule = source.__arrow_c_stream__()
    stream = CStream.from_address(_functions().pointer(capsule, b"arrow_array_stream"))
    schema = CSchema()
    _check(stream.get_schema(ctypes.addressof(stream), ctypes.addressof(schema)))
    try:
        described = _describe(schema)
    finally:
        _give_back(schema)
    chunks: list[Any] = []
    while True:
        array = CArray()
        _check(stream.get_next(ctypes.addressof(stream), ctypes.addressof(array)))
        if not array.release:
            return described, chunks
        chunks.append(_read_array(Borrowed(array, source), array, described))


def _check(code: int) -> None:
    if code:
        raise Unknown("error %d" % code)


def _describe(schema: CSchema) -> Any:
    form = schema.format.decode()
    children = tuple(_describe(schema.children[n].contents) for n in range(schema.n_children))
    known = form in ("n", "+s", *_OFFSETS, *_VIEWS_OF) or form[:3] == "+w:" or _bits(form)
    if not known or schema.dictionary:
        raise Unknown(form)
    return form, schema.name, _metadata(schema.metadata), schema.flags, children


def _metadata(address: int | None) -> bytes | None:
    """Return the metadata of a type, which says its own length only by its parts."""
    if not address:
        return None
    at = address + 4
    for _ in range(2 * ctypes.c_int32.from_address(address).value):
        at += 4 + ctypes.c_int32.from_address(at).value
    return ctypes.string_at(address, at - address)


def _read_array(owner: Borrowed, array: CArray, described: Any) -> Any:
    """Return an array as its length, nulls, offset, buffers and children."""
    form, children = described[0], described[4]
    end = array.length + array.offset
    if array.offset > array.length + 1024:
        raise Unknown("a small part of a large array")
    sizes: list[int] = [] if form == "n" else [-(-end // 8)]  # the validity comes first

    def at(index: int, width: int, place: int) -> int:
        address = array.buffers[index]
        kind = ctypes.c_int32 if width == 4 else ctypes.c_int64
        return int(kind.from_address(address + width * place).value) if address else 0

    bits = _bits(form)
    if bits:
        sizes.append(-(-end * bits // 8))
    elif form in _OFFSETS:
        sizes.append(_OFFSETS[form] * (end + 1))
        if form[0] != "+":
            sizes.append(at(1, _OFFSETS[form], end))
    elif form in _VIEWS_OF:
        texts = array.n_buffers - 3
        sizes += [16 * end, *(at(array.n_buffers - 1, 8, n) for n in range(texts)), 8 * texts]
    if len(sizes) != array.n_buffers:
        raise Unknown(form)
    buffers = tuple(owner.buffer(array.buffers[n], size) for n, size in enumerate(sizes))
    parts = tuple(
        _read_array(owner, array.children[n].contents, child) for n, child in enumerate(children)
    )
    return array.length, array.null_count, array.offset, buffers, parts


# ---------------------------------------------------------------- what this file lends


class ArrowMemory:
    """An array whose memory a library may borrow: one chunk of ``arrow_parts``."""

    def __init__(self, described: Any, chunk: Any) -> None:
        self.described, self.chunk = described, chunk

    def __arrow_c_schema__(self) -> Any:
        return _functions().capsule(_lend_schema(self.described), b"arrow_schema")

    def __arrow_c_array__(self, requested_schema: Any = None) -> Any:
        array = _lend_array(self.chunk)
        return self.__arrow_c_schema__(), _functions().capsule(array, b"arrow_array")


_lent: dict[int, Any] = {}  # what is lent, by the number in ``private_data``
_lent_numbers = itertools.count(1)


def _lend(struct: Any, *kept: Any) -> Any:
    """Keep what a struct refers to until the borrower gives it back; return the struct."""
    number = next(_lent_numbers)
    struct.private_data, _lent[number] = number, (struct, kept)
    release = _functions().release_schema if type(struct) is CSchema else _functions().release_array
    struct.release = ctypes.cast(release, ctypes.c_void_p).value
    return struct


def _lend_schema(described: Any) -> CSchema:
    form, name, metadata, flags, children = described
    text = None if metadata is None else ctypes.create_string_buffer(metadata, len(metadata))
    parts = [_lend_schema(child) for child in children]
    schema = CSchema(form.encode(), name, ctypes.addressof(text) if text else None, flags)
    schema.n_children, schema.children = len(parts), _pointers(CSchema, parts)
    return _lend(schema, parts, schema.children, text)  # type: ignore[no-any-return]


def _lend_array(chunk: Any) -> CArray:
    length, nulls, offset, buffers, children = chunk
    views = [None if buffer is None else memoryview(buffer) for buffer in buffers]
    addresses = [0 if view is None else _functions().address(view) for view in views]
    parts = [_lend_array(child) for child in children]
    array = CArray(length, nulls, offset, len(views), len(parts))
    array.buffers = (ctypes.c_void_p * max(1, len(views)))(*addresses)
    array.children = _pointers(CArray, parts)
    return _lend(array, parts, array.children, views, array.buffers)  # type: ignore[no-any-return]


def _pointers(kind: Any, parts: list[Any]) -> Any:
    return (ctypes.POINTER(kind) * max(1, len(parts)))(*map(ctypes.pointer, parts))


class _ArrowFunctions:
    """The functions of CPython that capsules need, and those that borrowers call."""

    def __init__(self) -> None:
        def function(name: str, result: Any, *arguments: Any) -> Any:
            return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))

        kind, text, place = ctypes.py_object, ctypes.c_char_p, ctypes.c_void_p
        self.pointer = function("PyCapsule_GetPointer", place, kind, text)
        self._new = function("PyCapsule_New", kind, place, text, place)
        self._pointer_of = function("PyCapsule_GetPointer", place, place, text)
        self._name_of = function("PyCapsule_GetName", text, place)
        self.release_schema = _Release(lambda address: _released(CSchema, address))
        self.release_array = _Release(lambda address: _released(CArray, address))
        self._destroy = ctypes.PYFUNCTYPE(None, place)(self._destroyed)
        self._names: dict[bytes, Any] = {}
        # A borrower may give back at any time, also after this module is gone.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))

    def capsule(self, struct: Any, name: bytes) -> Any:
        """Return a capsule; if the struct is still in it at its end, that gives it back."""
        kept = self._names.setdefault(name, ctypes.create_string_buffer(name))
        destroy = ctypes.cast(self._destroy, ctypes.c_void_p)
        return self._new(ctypes.addressof(struct), ctypes.cast(kept, ctypes.c_char_p), destroy)

    def _destroyed(self, capsule: int) -> None:
        name = self._name_of(capsule)
        kind = CSchema if name == b"arrow_schema" else CArray
        _give_back(kind.from_address(self._pointer_of(capsule, name)))

    @staticmethod
    def address(view: memoryview) -> int:
        """Return where the bytes of a view are; they may be read-only."""
        found = ctypes.py_object(view)
        raw = _RawBuffer()
        ctypes.pythonapi.PyObject_GetBuffer(found, ctypes.byref(raw), 0)
        try:
            return raw.buf or 0
        finally:
            ctypes.pythonapi.PyBuffer_Release(ctypes.byref(raw))


class _RawBuffer(ctypes.Structure):
    """CPython's ``Py_buffer``."""

    _fields_ = (
        *(("buf", ctypes.c_void_p), ("obj", ctypes.c_void_p), ("len", ctypes.c_ssize_t)),
        *(("itemsize", ctypes.c_ssize_t), ("readonly", ctypes.c_int), ("ndim", ctypes.c_int)),
        *(("format", ctypes.c_char_p), ("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p)),
        *(("suboffsets", ctypes.c_void_p), ("internal", ctypes.c_void_p)),
    )


def _released(kind: Any, address: int) -> None:
    struct = kind.from_address(address)
    struct.release = None
    _, kept = _lent.pop(struct.private_data, (None, ()))
    for part in kept[0] if kept else ():
        _give_back(part)


@lru_cache(None)
def _functions() -> _ArrowFunctions:
    return _ArrowFunctions()
