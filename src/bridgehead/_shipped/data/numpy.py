"""Data of numpy: dtypes, arrays, scalars, masked and record arrays.

Rule: dtypes are built from checked descriptions, and arrays over buffers whose size is checked;
never through ``__setstate__``, because a dtype with forged flags gives access to other memory.

An array whose items share memory, as those of ``broadcast_to`` do, crosses as a copy of all items:
any copy or conversion makes them, and a few bytes must not cost the receiver what their shape
claims. A copy arrives read-only if the array is.
"""

from __future__ import annotations

import math
import re
import sys
from typing import Any, Dict, Tuple

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.data.registry import (
        BUFFER,
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

# numpy's own parser is not used: it evaluates shapes, repeats and Python objects. "O" is left out:
# bytes of a buffer that are read as pointers to objects give access to other memory.
_PLAIN_DTYPE = re.compile(
    r"[<>|=](b1|[iu][1248]|f(2|4|8|12|16)|c(8|16|24|32)|[USV]\d{1,9}"
    r"|[mM]8(\[([1-9]\d{0,8})?(Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?)",
    re.ASCII,
)
_MOST_AXES = 32  # numpy 2 allows twice as many
_LARGEST_ITEM = (1 << 31) - 1  # bytes; numpy's own limit
# Visits of a repr: of an array, 20 µs and more, and of each number, 1 to 7 µs.
_ARRAY = 100
_NUMBER = 10


def _describe_dtype(dtype: Any) -> Any:
    """Return the description of a dtype as plain data; ``_dtype`` is the reverse."""
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return ("array", _describe_dtype(base), shape)
    if dtype.names is not None:
        if dtype.hasobject:
            raise untrusted("a structured numpy.dtype with Python objects in it")
        if any(len(field) > 2 for field in dtype.fields.values()):
            raise untrusted("a structured numpy.dtype with titles")
        fields, spans = [], []
        for name in dtype.names:
            kind, offset = dtype.fields[name][:2]
            fields.append((name, _describe_dtype(kind), offset))
            spans.append((offset, offset + kind.itemsize))
        if _overlap(spans, dtype.itemsize):
            raise untrusted("a structured numpy.dtype with fields that overlap")
        record = dtype.type.__name__ == "record"
        return ("struct", fields, dtype.itemsize, dtype.isalignedstruct, record)
    if not _PLAIN_DTYPE.fullmatch(dtype.str) or dtype.type not in REDUCERS:
        raise untrusted("numpy.dtype %s" % dtype)
    return dtype.str


def _dtype(reader: DataReader, description: Any, depth: int = 0) -> Any:
    """Return the dtype of a description, after a check of each of its parts."""
    numpy = library("numpy")
    reader.charge(16)  # the memo lets a stream use one description many times
    need(depth < 16, "dtype nested too deeply")
    if type(description) is str:
        need(_PLAIN_DTYPE.fullmatch(description), "invalid dtype")
        made = numpy.dtype(description)
    else:
        need(
            type(description) is tuple and description and type(description[0]) is str,
            "invalid description of a dtype",
        )
        if description[0] == "array":
            need(len(description) == 3, "invalid description of a dtype")
            base, shape = _dtype(reader, description[1], depth + 1), description[2]
            count = _check_shape(reader, shape)
            need(
                base.itemsize * count <= _LARGEST_ITEM,
                "dtype larger than %d bytes" % _LARGEST_ITEM,
            )
            # An array of items of no size would have as many of them as it likes.
            need((count and base.itemsize) or shape[:1] == (0,), "dtype of parts without a size")
            made = numpy.dtype((base, shape))
        else:
            need(
                description[0] == "struct" and len(description) == 5,
                "invalid description of a dtype",
            )
            made = _struct(reader, description, depth)
    need(not made.hasobject, "dtype with Python objects")
    return made


def _struct(reader: DataReader, description: Any, depth: int) -> Any:
    numpy = library("numpy")
    _, fields, itemsize, aligned, record = description
    sized = type(itemsize) is int and 0 <= itemsize <= _LARGEST_ITEM
    need(sized and type(aligned) is type(record) is bool, "invalid description of a dtype")
    need(type(fields) is list, "invalid description of fields")
    names, formats, offsets, spans = [], [], [], []
    for field in fields:
        need(type(field) is tuple and len(field) == 3, "invalid description of a field")
        name, kind, offset = field
        need(type(name) is str and type(offset) is int and offset >= 0, "invalid field")
        made = _dtype(reader, kind, depth + 1)
        names.append(name)
        formats.append(made)
        offsets.append(offset)
        spans.append((offset, offset + made.itemsize))
    need(not _overlap(spans, itemsize), "fields overlap or exceed the item")
    layout = {"names": names, "formats": formats, "offsets": offsets, "itemsize": itemsize}
    made = numpy.dtype(layout, align=aligned)
    return numpy.dtype((numpy.record, made)) if record else made


def _overlap(spans: Any, itemsize: int) -> bool:
    """Return whether fields, from their first byte to their last, overlap or exceed the item."""
    spans = sorted(spans)
    ends = [0, *[last for _, last in spans]]
    return max(ends) > itemsize or any(first < end for end, (first, _) in zip(ends, spans))


def _check_shape(reader: DataReader, shape: Any) -> int:
    """Return the number of items; claim the lists that an empty array becomes."""
    fine = type(shape) is tuple and len(shape) <= _MOST_AXES
    need(fine and all(type(part) is int and part >= 0 for part in shape), "invalid shape")
    if 0 in shape:
        reader.claim_lists((*shape[: shape.index(0)], 0))
    return int(math.prod(shape))


@constructor(None)
def make_dtype(reader: DataReader, description: Any) -> Any:
    return library("numpy").dtype("O") if description == "O" else _dtype(reader, description)


@constructor(None, tuple, str, BUFFER)
def make_array(reader: DataReader, description: Any, shape: Any, order: str, raw: Any) -> Any:
    """Make an array over the buffer itself; it is writable if the buffer is."""
    numpy = library("numpy")
    dtype = _dtype(reader, description)
    count = _check_shape(reader, shape)
    need(order in ("C", "F"), "invalid memory order")
    size = memoryview(raw).nbytes
    need(
        size == count * dtype.itemsize, "%d bytes do not hold %d items of %s" % (size, count, dtype)
    )
    raw = reader.own(raw)
    if size == 0:
        reader.claim(8 * count)
        return numpy.ndarray(shape, dtype, order=order)
    array = numpy.ndarray(shape, dtype, buffer=raw, order=order)
    leaves, tuples = _parts_of_item(array.dtype)
    if array.ndim > 1 or tuples:
        reader.claim_lists(array.shape, array.size * tuples)
    # numpy prints a thousand items, or of more the first and the last three of each axis. Of what
    # a repr of them costs, this is about a tenth: an object may have an array at many places.
    printed = array.size if array.size <= 1000 else math.prod([min(n, 6) for n in array.shape])
    width = array.dtype.itemsize
    reader.show(_ARRAY + printed * (min(_NUMBER * leaves, 8 * width) + (width >> 3)))
    _check_items(numpy, array)
    return array


@constructor(None)
def make_read_only(reader: DataReader, array: Any) -> Any:
    need(type(array) is library("numpy").ndarray, "not an array")
    array = array.view()
    array.flags.writeable = False
    return array


def own_integers(reader: DataReader, kind: str, raw: Any) -> Any:
    """Return a flat array of integers that no other value shares.

    A library checks no place, start or code again. If a caller could write it through another
    value of the same stream, the library would read other memory.
    """
    need(kind in ("|i1", "<i2", "<i4", "<i8"), "invalid kind of integers")
    return make_array(reader, kind, (memoryview(raw).nbytes // int(kind[2:]),), "C", raw)


def sent_integers(writer: DataWriter, array: Any) -> Any:
    """Return the arguments for ``own_integers``."""
    numpy = library("numpy")
    array = numpy.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return array.dtype.str, writer.buffer(array)


def _parts_of_item(dtype: Any) -> Tuple[int, int]:
    """Return how many numbers or texts an item has, and how many lists or tuples as an object."""
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        leaves, tuples = _parts_of_item(base)
        count = math.prod(shape)
        return count * leaves, 1 + count * (len(shape) - 1 + tuples)
    if dtype.names is None:
        return 1, 0
    parts = [_parts_of_item(dtype[name]) for name in dtype.names]
    return sum([leaves for leaves, _ in parts]), 1 + sum([tuples for _, tuples in parts])


def _check_items(numpy: Any, array: Any) -> None:
    """Refuse items whose bytes are invalid: numpy's loops do not check them."""
    dtype = array.dtype
    if dtype.names is not None:
        for name in dtype.names:
            _check_items(numpy, array[name])
    elif dtype.kind == "b" and array.size:
        need(array.view("u1").max() <= 1, "bool that is neither 0 nor 1")
    elif dtype.kind == "U" and array.size and dtype.itemsize:
        points = numpy.ascontiguousarray(array).view(dtype.str[0] + "u4")
        need(points.max() <= sys.maxunicode, "character beyond Unicode")


@constructor(None, bytes)
def make_scalar(reader: DataReader, description: Any, raw: bytes) -> Any:
    return make_array(reader, description, (), "C", bytearray(raw))[()]


@constructor((str, bytes))
def make_numpy_string(reader: DataReader, value: Any) -> Any:
    numpy = library("numpy")
    return numpy.str_(value) if type(value) is str else numpy.bytes_(value)


# Four levels and that of the list: numpy's repr of an array in an array takes ten frames, and one
# for each axis.
@constructor(tuple, str, list, levels=4)
def make_objects(reader: DataReader, shape: Any, order: str, items: Any) -> Any:
    numpy = library("numpy")
    need(order in ("C", "F"), "invalid memory order")
    need(_check_shape(reader, shape) == len(items), "%d items do not fill the shape" % len(items))
    flat = numpy.fromiter(items, object, len(items))  # array() would look into the items
    made = flat.reshape(shape, order=order)
    reader.contain(made, 4 + len(shape) // 4, None)
    return reader.linked(made)


@constructor(tuple, list, tuple, bool)
def make_texts(reader: DataReader, shape: Any, items: Any, missing: Any, coerce: bool) -> Any:
    """Make an array of numpy's StringDType; ``missing`` is empty or holds the missing value."""
    numpy = library("numpy")
    need(hasattr(numpy.dtypes, "StringDType"), "this numpy has no StringDType")
    need(_check_shape(reader, shape) == len(items), "%d items do not fill the shape" % len(items))
    need(len(missing) <= 1 and all(map(is_scalar, missing)), "invalid missing value")
    need({str, NONE if missing else str}.issuperset(map(type, items)), "items that are not strings")
    options = {"na_object": missing[0]} if missing else {}
    array = numpy.empty(len(items), numpy.dtypes.StringDType(coerce=coerce, **options))
    for index, item in enumerate(items):
        array[index] = missing[0] if item is None else item
    return array.reshape(shape)


@constructor(None, None, tuple, bool)
def make_masked(reader: DataReader, data: Any, mask: Any, fill: Any, hard: bool) -> Any:
    """Make a masked array; ``fill`` is empty or holds the fill value as a 0-dimensional array."""
    numpy = library("numpy")
    arrays = [data, *([] if mask is None else [mask]), *fill]
    need(
        len(fill) <= 1 and all(type(part) is numpy.ndarray for part in arrays),
        "parts that are not arrays",
    )
    need(mask is None or mask.shape == data.shape, "mask of another shape")
    wanted = numpy.ma.make_mask_descr(data.dtype)
    need(mask is None or mask.dtype == wanted, "mask of another dtype")
    need(all(part.shape == () and part.dtype == data.dtype for part in fill), "invalid fill value")
    mask = numpy.ma.nomask if mask is None else mask
    made = numpy.ma.MaskedArray(data, mask, copy=False, hard_mask=hard)
    if fill:
        made.fill_value = fill[0][()]
    return made


@constructor()
def make_masked_constant(reader: DataReader) -> Any:
    return library("numpy.ma").masked


@constructor(None)
def make_records(reader: DataReader, array: Any) -> Any:
    numpy = library("numpy")
    need(type(array) is numpy.ndarray, "not an array")
    return array.view(numpy.recarray)


def _reduce_array(writer: DataWriter, array: Any) -> Any:
    dtype = array.dtype
    if array.ndim > _MOST_AXES:
        raise untrusted("a numpy.ndarray of more than %d axes" % _MOST_AXES)
    if not array.flags.writeable and (dtype.kind in "OT" or not array.nbytes):  # no buffer says it
        return make_read_only, (array.copy("K"),)
    if dtype.kind == "T":
        return _reduce_texts(writer, array)
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    if dtype.kind == "O":
        return make_objects, (array.shape, order, array.ravel(order).tolist())
    description = _describe_dtype(dtype)
    flat = array.ravel(order)  # copies what is not contiguous
    flat.flags.writeable = array.flags.writeable
    return make_array, (description, array.shape, order, writer.buffer(flat))


def _reduce_texts(writer: DataWriter, array: Any) -> Any:
    dtype = array.dtype
    missing = (dtype.na_object,) if hasattr(dtype, "na_object") else ()
    items = [item if type(item) is str else None for item in array.ravel().tolist()]
    return make_texts, (array.shape, items, missing, dtype.coerce)


def _reduce_masked(writer: DataWriter, array: Any) -> Any:
    numpy = sys.modules["numpy"]
    if array is numpy.ma.masked:
        return make_masked_constant, ()
    mask = None if array._mask is numpy.ma.nomask else array._mask.view(numpy.ndarray)
    fill = () if array._fill_value is None else (numpy.asarray(array._fill_value),)
    return make_masked, (array.view(numpy.ndarray), mask, fill, bool(array.hardmask))


def _reduce_records(writer: DataWriter, array: Any) -> Any:
    numpy = sys.modules["numpy"]
    dtype = array.dtype
    # The dtype of records that is not the record's own; one without fields stays as it is.
    plain = dtype if dtype.names is None else numpy.dtype((numpy.void, dtype))
    return make_records, (array.view(plain, numpy.ndarray),)


def _reduce_dtype(writer: DataWriter, dtype: Any) -> Any:
    return make_dtype, ("O" if dtype.kind == "O" else _describe_dtype(dtype),)


def _reduce_scalar(writer: DataWriter, scalar: Any) -> Any:
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
