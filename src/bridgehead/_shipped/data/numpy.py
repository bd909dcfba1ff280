"""numpy's data: dtypes, arrays of every dtype, scalars, masked and record arrays.

Rule: dtypes are built from checked descriptions and arrays over buffers whose size is checked,
never through ``__setstate__``: forged flags of a dtype are somebody else's memory.
"""

from __future__ import annotations

import math
import re
import sys
from typing import Any, Dict

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.data.registry import (
        NONE,
        REDUCERS,
        DataReader,
        DataWriter,
        constructor,
        is_scalar,
        library,
        library_reducers,
        need,
        untrusted,
    )

# Not by numpy's own parser: it evaluates shapes, repeats and Python objects. "O" is none of
# these: a buffer that is read as object pointers is somebody else's memory.
_PLAIN_DTYPE = re.compile(
    r"[<>|=](b1|[iu][1248]|f(2|4|8|12|16)|c(8|16|24|32)|[USV]\d{1,9}"
    r"|[mM]8(\[\d{0,9}(Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?)",
    re.ASCII,
)
_LARGEST_ITEM = (1 << 31) - 1  # bytes; numpy's own limit


def _describe_dtype(dtype: Any) -> Any:
    """A dtype in plain words; see ``_dtype`` for the way back."""
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return ("array", _describe_dtype(base), shape)
    if dtype.names is not None:
        if dtype.hasobject:
            raise untrusted("a structured numpy.dtype with Python objects in it")
        if any(len(field) > 2 for field in dtype.fields.values()):
            raise untrusted("a structured numpy.dtype with titles")
        fields = []
        for name in dtype.names:
            kind, offset = dtype.fields[name][:2]
            fields.append((name, _describe_dtype(kind), offset))
        record = dtype.type.__name__ == "record"
        return ("struct", fields, dtype.itemsize, dtype.isalignedstruct, record)
    if not _PLAIN_DTYPE.fullmatch(dtype.str) or dtype.type not in REDUCERS:
        raise untrusted("numpy.dtype %s" % dtype)
    return dtype.str


def _dtype(machine: DataReader, told: Any, depth: int = 0) -> Any:
    """The dtype of a description, each part of it checked before numpy sees it."""
    numpy = library("numpy")
    machine.charge(16)  # a description may be shared, like all that is in the memo
    need(depth < 16, "a dtype nested too deeply")
    if type(told) is str:
        need(_PLAIN_DTYPE.fullmatch(told), "no dtype that could be data")
        made = numpy.dtype(told)
    else:
        need(type(told) is tuple and told and type(told[0]) is str, "no description of a dtype")
        if told[0] == "array":
            need(len(told) == 3, "no description of a dtype")
            base, shape = _dtype(machine, told[1], depth + 1), told[2]
            _check_shape(shape)
            need(base.itemsize * math.prod(shape) <= _LARGEST_ITEM, "a dtype too large")
            made = numpy.dtype((base, shape))
        else:
            need(told[0] == "struct" and len(told) == 5, "no description of a dtype")
            made = _struct(machine, told, depth)
    need(not made.hasobject, "a dtype with Python objects")
    return made


def _struct(machine: DataReader, told: Any, depth: int) -> Any:
    numpy = library("numpy")
    _, fields, itemsize, aligned, record = told
    sized = type(itemsize) is int and 0 <= itemsize <= _LARGEST_ITEM
    need(sized and type(aligned) is type(record) is bool, "no description of a dtype")
    need(type(fields) is list, "no description of fields")
    names, formats, offsets, spans = [], [], [], []
    for field in fields:
        need(type(field) is tuple and len(field) == 3, "no description of a field")
        name, kind, offset = field
        need(type(name) is str and type(offset) is int and offset >= 0, "no field")
        made = _dtype(machine, kind, depth + 1)
        names.append(name)
        formats.append(made)
        offsets.append(offset)
        spans.append((offset, offset + made.itemsize))
    end = 0
    for first, last in sorted(spans):
        need(end <= first and last <= itemsize, "fields that overlap or stick out")
        end = last
    layout = {"names": names, "formats": formats, "offsets": offsets, "itemsize": itemsize}
    made = numpy.dtype(layout, align=aligned)
    return numpy.dtype((numpy.record, made)) if record else made


def _check_shape(shape: Any) -> None:
    fine = type(shape) is tuple and len(shape) <= 32
    need(fine and all(type(part) is int and part >= 0 for part in shape), "no shape")


@constructor(None)
def make_dtype(machine: DataReader, told: Any) -> Any:
    return library("numpy").dtype("O") if told == "O" else _dtype(machine, told)


@constructor(None, tuple, str, (bytes, bytearray, memoryview))
def make_array(machine: DataReader, told: Any, shape: Any, order: str, raw: Any) -> Any:
    """An array over the buffer itself, writable when that is."""
    numpy = library("numpy")
    dtype = _dtype(machine, told)
    _check_shape(shape)
    need(order in ("C", "F"), "no order")
    count = math.prod(shape)
    size = memoryview(raw).nbytes
    need(size == count * dtype.itemsize, "%d bytes for %d items of %s" % (size, count, dtype))
    if size == 0:
        machine.charge(count)
        return numpy.zeros(shape, dtype, order)
    array = numpy.ndarray(shape, dtype, buffer=raw, order=order)
    _check_items(numpy, array)
    return array


def _check_items(numpy: Any, array: Any) -> None:
    """Refuse bytes that numpy's own loops take for granted not to be there."""
    dtype = array.dtype
    if dtype.names is not None:
        for name in dtype.names:
            _check_items(numpy, array[name])
    elif dtype.kind == "b" and array.size:
        need(array.view("u1").max() <= 1, "a bool that is neither")
    elif dtype.kind == "U" and array.size and dtype.itemsize:
        points = numpy.ascontiguousarray(array).view(dtype.str[0] + "u4")
        need(points.max() <= sys.maxunicode, "a character beyond Unicode")


@constructor(None, bytes)
def make_scalar(machine: DataReader, told: Any, raw: bytes) -> Any:
    return make_array(machine, told, (), "C", bytearray(raw))[()]


@constructor((str, bytes))
def make_numpy_string(machine: DataReader, value: Any) -> Any:
    numpy = library("numpy")
    return numpy.str_(value) if type(value) is str else numpy.bytes_(value)


@constructor(tuple, str, list)
def make_objects(machine: DataReader, shape: Any, order: str, items: Any) -> Any:
    numpy = library("numpy")
    _check_shape(shape)
    need(order in ("C", "F"), "no order")
    need(math.prod(shape) == len(items), "%d items for another shape" % len(items))
    flat = numpy.fromiter(items, object, len(items))  # looks into none of the items
    return machine.linked(flat.reshape(shape, order=order))


@constructor(tuple, list, tuple, bool)
def make_texts(machine: DataReader, shape: Any, items: Any, missing: Any, coerce: bool) -> Any:
    """An array of numpy's StringDType; ``missing`` holds the missing value, if there is one."""
    numpy = library("numpy")
    need(hasattr(numpy.dtypes, "StringDType"), "numpy's StringDType, which this numpy lacks")
    _check_shape(shape)
    need(math.prod(shape) == len(items), "%d items for another shape" % len(items))
    need(len(missing) <= 1 and all(map(is_scalar, missing)), "no missing value")
    need({str, NONE if missing else str}.issuperset(map(type, items)), "no strings")
    options = {"na_object": missing[0]} if missing else {}
    array = numpy.empty(len(items), numpy.dtypes.StringDType(coerce=coerce, **options))
    for index, item in enumerate(items):
        array[index] = missing[0] if item is None else item
    return array.reshape(shape)


@constructor(None, None, tuple, bool)
def make_masked(machine: DataReader, data: Any, mask: Any, fill: Any, hard: bool) -> Any:
    """A masked array; ``fill`` holds its fill value as an array of no dimension, or nothing."""
    numpy = library("numpy")
    arrays = [data, *([] if mask is None else [mask]), *fill]
    need(len(fill) <= 1 and all(type(part) is numpy.ndarray for part in arrays), "no arrays")
    need(mask is None or mask.shape == data.shape, "a mask of another shape")
    wanted = numpy.ma.make_mask_descr(data.dtype)
    need(mask is None or mask.dtype == wanted, "a mask of another dtype")
    need(all(part.shape == () and part.dtype == data.dtype for part in fill), "no fill value")
    mask = numpy.ma.nomask if mask is None else mask
    made = numpy.ma.MaskedArray(data, mask, copy=False, hard_mask=hard)
    if fill:
        made.fill_value = fill[0][()]
    return made


@constructor()
def make_masked_constant(machine: DataReader) -> Any:
    return library("numpy.ma").masked


@constructor(None)
def make_records(machine: DataReader, array: Any) -> Any:
    numpy = library("numpy")
    need(type(array) is numpy.ndarray, "no array")
    return array.view(numpy.recarray)


def _reduce_array(pickler: DataWriter, array: Any) -> Any:
    dtype = array.dtype
    if dtype.kind == "T":
        return _reduce_texts(pickler, array)
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    if dtype.kind == "O":
        return make_objects, (array.shape, order, array.ravel(order).tolist())
    told = _describe_dtype(dtype)
    flat = array.ravel(order)  # copies what is not contiguous
    return make_array, (told, array.shape, order, pickler.buffer(flat))


def _reduce_texts(pickler: DataWriter, array: Any) -> Any:
    dtype = array.dtype
    missing = (dtype.na_object,) if hasattr(dtype, "na_object") else ()
    items = [item if type(item) is str else None for item in array.ravel().tolist()]
    return make_texts, (array.shape, items, missing, dtype.coerce)


def _reduce_masked(pickler: DataWriter, array: Any) -> Any:
    numpy = sys.modules["numpy"]
    if array is numpy.ma.masked:
        return make_masked_constant, ()
    mask = None if array._mask is numpy.ma.nomask else array._mask.view(numpy.ndarray)
    fill = () if array._fill_value is None else (numpy.asarray(array._fill_value),)
    return make_masked, (array.view(numpy.ndarray), mask, fill, bool(array.hardmask))


def _reduce_records(pickler: DataWriter, array: Any) -> Any:
    numpy = sys.modules["numpy"]
    return make_records, (array.view(numpy.dtype((numpy.void, array.dtype)), numpy.ndarray),)


def _reduce_dtype(pickler: DataWriter, dtype: Any) -> Any:
    return make_dtype, ("O" if dtype.kind == "O" else _describe_dtype(dtype),)


def _reduce_scalar(pickler: DataWriter, scalar: Any) -> Any:
    return make_scalar, (_describe_dtype(scalar.dtype), scalar.tobytes())


@library_reducers("numpy")
def numpy_reducers(numpy: Any) -> Any:
    scalars = {*numpy.sctypeDict.values(), numpy.record} - {numpy.object_}
    found: Dict[Any, Any] = dict.fromkeys(scalars, _reduce_scalar)
    kinds = {type(numpy.dtype(kind)) for kind in (*scalars, object)}
    found.update(dict.fromkeys(kinds, _reduce_dtype))
    found[numpy.str_] = lambda _, v: (make_numpy_string, (str(v),))
    found[numpy.bytes_] = lambda _, v: (make_numpy_string, (bytes(v),))
    found[numpy.ndarray] = _reduce_array
    found[numpy.recarray] = _reduce_records
    found[numpy.ma.MaskedArray] = _reduce_masked
    found[type(numpy.ma.masked)] = _reduce_masked
    return found
