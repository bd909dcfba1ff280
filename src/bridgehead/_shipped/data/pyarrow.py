"""Data of pyarrow, as its buffers.

Rule: Arrow's IPC format is not used. Its reader is a large program in C++, and its format has
compression, deltas of dictionaries and views, each of which made a few bytes large or crashed.
Here a type is described as plain data, and an array is its length and its buffers, of which each
has exactly the size that the type and the length ask for. Arrow is given nothing else, and checks
what is in the buffers (offsets, indices, text) before anything reads the array.

Left out are extension types, whose classes run code; views, run ends and unions.
"""

from __future__ import annotations

import sys
from struct import unpack_from
from typing import Any, Dict, Iterator, List

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.data.pandas_metadata import check_pandas_metadata
    from bridgehead._shipped.data.registry import (
        BUFFER,
        CONTAINER_COST,
        NONE,
        DataReader,
        DataWriter,
        constructor,
        library,
        library_reducers,
        need,
        untrusted,
    )
    from bridgehead._shipped.data.standard import ZONE_NAME
    from bridgehead._shipped.wire.errors import WireError

ARROW = 15  # the first pyarrow that does not unpickle what a schema names

# The bits of a value of each type that has no parameters, by the name of its factory in pyarrow.
_ARROW_BITS = {
    **{"%s%d" % (kind, bits): bits for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    "float16": 16,
    "float32": 32,
    "float64": 64,
    "date32": 32,
    "date64": 64,
    "bool_": 1,
    "month_day_nano_interval": 128,
}
_ARROW_TEXTS = {
    "string": 4,
    "binary": 4,
    "large_string": 8,
    "large_binary": 8,
}  # bytes of an offset
_ARROW_LISTS = {"list_": 4, "map_": 4, "large_list": 8}
_ARROW_UNITS = {
    "timestamp": ("s", "ms", "us", "ns"),
    "duration": ("s", "ms", "us", "ns"),
    "time32": ("s", "ms"),
    "time64": ("us", "ns"),
}
_DECIMALS = {"decimal32": (32, 9), "decimal64": (64, 18), "decimal128": (128, 38)}
_DECIMALS["decimal256"] = (256, 76)  # the bits, and the most digits
_ARROW_KINDS = ("table", "batch", "chunks", "array", "scalar", "schema", "type")
_EXTENSION = b"ARROW:extension:name"
_ARROW_DEPTH = 32  # types in types; the conversion of a value to Python recurses in C
# Bytes of a claim for a dict or a list of Python: ``to_pylist`` makes one of each row. They take up
# to six times as much, but a row of an honest column may have a single byte.
_ROW = 32
_LONG_TEXTS = 1 << 24  # bytes; only a longer column of a dictionary is counted exactly


def _arrow() -> Any:
    pyarrow = library("pyarrow")
    if int(pyarrow.__version__.partition(".")[0]) < ARROW:
        message = "pyarrow %s is too old, %d or later is needed" % (pyarrow.__version__, ARROW)
        raise WireError("missing", message, module="pyarrow")
    return pyarrow


# ---------------------------------------------------------------- types


def _describe_arrow(pyarrow: Any, kind: Any) -> Any:
    """Return the description of a type as plain data; ``_arrow_type`` is the reverse."""
    types = pyarrow.types
    if isinstance(kind, pyarrow.BaseExtensionType):
        raise untrusted("a pyarrow extension type")
    for name in ("null", *_ARROW_BITS, *_ARROW_TEXTS):
        if kind == getattr(pyarrow, name)():
            return (name,)
    for name in _ARROW_UNITS:
        if getattr(types, "is_" + name)(kind):
            return (name, kind.unit, kind.tz) if name == "timestamp" else (name, kind.unit)
    for name in _DECIMALS:
        if hasattr(types, "is_" + name) and getattr(types, "is_" + name)(kind):
            return (name, kind.precision, kind.scale)
    if types.is_fixed_size_binary(kind):
        return ("binary", kind.byte_width)
    if types.is_map(kind):
        parts = [_describe_field(pyarrow, part) for part in (kind.key_field, kind.item_field)]
        return ("map_", *parts, kind.keys_sorted)
    if types.is_list(kind) or types.is_large_list(kind):
        name = "list_" if types.is_list(kind) else "large_list"
        return (name, _describe_field(pyarrow, kind.value_field))
    if types.is_fixed_size_list(kind):
        return ("list_", _describe_field(pyarrow, kind.value_field), kind.list_size)
    if types.is_struct(kind) and kind.num_fields:
        fields = [_describe_field(pyarrow, kind.field(n)) for n in range(kind.num_fields)]
        return ("struct", fields)
    if types.is_dictionary(kind) and _is_simple(pyarrow, kind.value_type):
        parts = [_describe_arrow(pyarrow, part) for part in (kind.index_type, kind.value_type)]
        return ("dictionary", *parts, kind.ordered)
    raise untrusted("a pyarrow.%s" % kind)


def _describe_field(pyarrow: Any, field: Any) -> Any:
    described = _describe_arrow(pyarrow, field.type)
    return (field.name, described, field.nullable, _describe_metadata(field.metadata))


def _describe_metadata(metadata: Any) -> Any:
    if metadata and _EXTENSION in metadata:
        raise untrusted("a pyarrow extension type")
    return [(bytes(key), bytes(value)) for key, value in (metadata or {}).items()]


def _describe_schema(pyarrow: Any, schema: Any) -> Any:
    fields = [_describe_field(pyarrow, schema.field(n)) for n in range(len(schema))]
    try:
        check_pandas_metadata(schema.metadata, schema.names)
    except (WireError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise untrusted("a pyarrow.Schema with such metadata of pandas") from None
    return (fields, _describe_metadata(schema.metadata))


def _arrow_type(pyarrow: Any, description: Any, depth: int = 0) -> Any:
    """Return the type of a description, after a check of each of its parts."""
    need(type(description) is tuple and description, "invalid description of an arrow type")
    need(depth < _ARROW_DEPTH, "arrow type nested too deeply")
    name, rest = description[0], description[1:]
    kinds = tuple([type(part) for part in rest])
    need(type(name) is str, "invalid description of an arrow type")
    plain = name == "null" or name in _ARROW_BITS or name in _ARROW_TEXTS
    if plain and not rest:
        return getattr(pyarrow, name)()
    if name == "binary" and kinds == (int,):
        need(0 <= rest[0] < 1 << 31, "invalid width")
        return pyarrow.binary(rest[0])
    if name in _ARROW_UNITS:
        need(kinds and rest[0] in _ARROW_UNITS[name], "invalid unit")
        if name == "timestamp" and kinds in ((str, str), (str, NONE)):
            need(rest[1] is None or ZONE_NAME.fullmatch(rest[1]), "invalid name of a time zone")
            return pyarrow.timestamp(*rest)
        need(kinds == (str,), "invalid description of an arrow type")
        return getattr(pyarrow, name)(*rest)
    if name in _DECIMALS and kinds == (int, int):
        need(0 < rest[0] <= _DECIMALS[name][1] and abs(rest[1]) < 1 << 10, "invalid decimal")
        return getattr(pyarrow, name)(*rest)
    if name == "struct" and kinds == (list,):
        need(rest[0], "a structure without fields")  # sorting them crashes (pyarrow 26)
        return pyarrow.struct([_arrow_field(pyarrow, part, depth) for part in rest[0]])
    if name == "dictionary" and kinds == (tuple, tuple, bool):
        index, value = [_arrow_type(pyarrow, part, depth + 1) for part in rest[:2]]
        # The conversion of a dictionary of nulls crashes (pyarrow 26).
        simple = pyarrow.types.is_integer(index) and _is_simple(pyarrow, value)
        need(simple, "invalid type of a dictionary")
        return pyarrow.dictionary(index, value, rest[2])
    if name == "map_" and kinds == (tuple, tuple, bool):
        key, item = [_arrow_field(pyarrow, part, depth) for part in rest[:2]]
        need(not key.nullable, "a map with keys that may be null")
        return pyarrow.map_(key, item, rest[2])
    need(name in ("list_", "large_list") and kinds[:1] == (tuple,), "unknown arrow type")
    sized = name == "list_" and kinds == (tuple, int) and 0 <= rest[1] < 1 << 31
    need(sized or len(rest) == 1, "invalid description of an arrow type")
    return getattr(pyarrow, name)(_arrow_field(pyarrow, rest[0], depth), *rest[1:])


def _arrow_field(pyarrow: Any, description: Any, depth: int) -> Any:
    need(
        type(description) is tuple
        and [type(part) for part in description] == [str, tuple, bool, list],
        "invalid description of an arrow field",
    )
    name, kind, nullable, metadata = description
    made = _arrow_type(pyarrow, kind, depth + 1)
    return pyarrow.field(name, made, nullable, _arrow_metadata(metadata))


def _arrow_metadata(items: Any) -> Any:
    for item in items:
        fine = type(item) is tuple and len(item) == 2 and type(item[0]) is type(item[1]) is bytes
        need(fine, "invalid metadata")
    if _EXTENSION in dict(items):
        raise untrusted("a pyarrow extension type")
    return dict(items) or None


def _arrow_schema(reader: DataReader, pyarrow: Any, description: Any) -> Any:
    need(
        type(description) is tuple and [type(part) for part in description] == [list, list],
        "invalid description of a schema",
    )
    fields = [_arrow_field(pyarrow, part, 0) for part in description[0]]
    schema = pyarrow.schema(fields, _arrow_metadata(description[1]))
    reader.charge(sum([len(value) for _, value in description[1]]))
    check_pandas_metadata(schema.metadata, schema.names)
    return schema


# ---------------------------------------------------------------- reading


@constructor(str, tuple, list, (*BUFFER, NONE), ..., cost=CONTAINER_COST)
def make_arrow(reader: DataReader, kind: str, description: Any, layouts: Any, *buffers: Any) -> Any:
    """Make an object of pyarrow of its description, the layouts of its arrays, and their buffers.

    The layout of an array is its length. If it has arrays inside, it is a tuple of its length and
    their layouts; a number in place of the layout of a dictionary is that of an earlier one.
    """
    pyarrow = _arrow()
    need(kind in _ARROW_KINDS, "not a kind of pyarrow object")
    assembly = _ArrowAssembly(reader, pyarrow, iter(buffers))
    if kind == "type":
        made = _arrow_type(pyarrow, description)
    elif kind == "schema":
        made = _arrow_schema(reader, pyarrow, description)
    elif kind in ("table", "batch"):
        schema = _arrow_schema(reader, pyarrow, description)
        need(len(layouts) == len(schema), "columns that do not match the schema")
        if kind == "batch":
            columns = [assembly.column(field.type, one) for field, one in zip(schema, layouts)]
            made = pyarrow.RecordBatch.from_arrays(columns, schema=schema)
        else:
            need(all(type(part) is list for part in layouts), "invalid layout")
            columns = [assembly.chunks(field.type, one) for field, one in zip(schema, layouts)]
            made = pyarrow.Table.from_arrays(columns, schema=schema)
        made.validate()
    else:
        column = assembly.chunks(_arrow_type(pyarrow, description), layouts)
        need(kind == "chunks" or column.num_chunks == 1, "column without exactly one chunk")
        need(kind != "scalar" or len(column) == 1, "column without exactly one value")
        made = column if kind == "chunks" else column.chunk(0)
        made = made[0] if kind == "scalar" else made
    need(next(assembly.buffers, assembly) is assembly, "a buffer is not used")
    return made


class _ArrowAssembly:
    """The arrays of one object, put together from their buffers."""

    def __init__(self, reader: DataReader, pyarrow: Any, buffers: Iterator[Any]) -> None:
        self.reader, self.pyarrow, self.buffers = reader, pyarrow, buffers
        self.dictionaries: List[Any] = []

    def chunks(self, kind: Any, layouts: Any) -> Any:
        made = [self.column(kind, layout) for layout in layouts]
        return self.pyarrow.chunked_array(made, type=kind)

    def column(self, kind: Any, layout: Any) -> Any:
        self.reader.charge(CONTAINER_COST)
        made = self.array(kind, layout)
        made.validate(full=True)
        return made

    def take(self, size: int, optional: bool = False) -> Any:
        """Return the next buffer, which has exactly this size."""
        raw: Any = next(self.buffers, self)
        need(raw is not self, "a buffer is missing")
        if raw is None:
            need(optional, "a buffer is missing")
            return None
        raw = self.reader.own(raw)
        nbytes = memoryview(raw).nbytes
        need(size in (nbytes, -1), "a buffer of %d bytes, not %d" % (nbytes, size))
        return self.pyarrow.py_buffer(raw)

    def array(self, kind: Any, layout: Any) -> Any:
        pyarrow, types = self.pyarrow, self.pyarrow.types
        length, *inner = layout if type(layout) is tuple and layout else (layout,)
        need(type(length) is int and 0 <= length < 1 << 48, "invalid length")
        if types.is_dictionary(kind):
            need(len(inner) == 1, "invalid layout")
            return self.with_dictionary(kind, length, inner[0])
        bits = _bits_of(pyarrow, kind)
        if types.is_null(kind) or bits == 0:
            self.reader.claim(8 * length)
        elif bits == 1:
            self.reader.claim(length)
        elif types.is_nested(kind) or types.is_fixed_size_list(kind):
            self.reader.claim(_ROW * length)
        buffers = [self.take(length + 7 >> 3, optional=True)]
        children: List[Any] = []
        if bits is not None:
            buffers.append(self.take(length * bits + 7 >> 3))
        elif types.is_null(kind):
            need(buffers == [None], "nulls with a buffer")
        elif types.is_struct(kind):
            need(len(inner) == kind.num_fields, "invalid layout")
            children = [self.array(kind.field(n).type, one) for n, one in enumerate(inner)]
            need(all(len(child) == length for child in children), "fields of another length")
        elif types.is_fixed_size_list(kind):
            need(len(inner) == 1, "invalid layout")
            children = [self.array(kind.value_type, inner[0])]
            need(len(children[0]) == length * kind.list_size, "items of another length")
        else:
            width = _offset_width(pyarrow, kind)
            buffers.append(self.take(width * (length + 1)))
            last = _offset(buffers[1], width, length)
            if types.is_nested(kind):
                need(len(inner) == 1, "invalid layout")
                children = [self.array(_items_type(pyarrow, kind), inner[0])]
                need(len(children[0]) == last, "items of another length")
                # Arrow aborts the process for a null entry or a null key.
                nulls = (
                    types.is_map(kind) and children[0].null_count + children[0].field(0).null_count
                )
                need(not nulls, "null keys of a map")
            else:
                buffers.append(self.take(last))
        return pyarrow.Array.from_buffers(kind, length, buffers, children=children or None)

    def with_dictionary(self, kind: Any, length: int, layout: Any) -> Any:
        codes = self.array(kind.index_type, length)
        if type(layout) is int:
            need(0 <= layout < len(self.dictionaries), "invalid dictionary")
            values, lengths = self.dictionaries[layout]
            need(values.type == kind.value_type, "a dictionary of another type")
        else:
            need(type(layout) is tuple and len(layout) == 1, "invalid layout")
            values = self.array(kind.value_type, layout[0])
            values.validate(full=True)
            lengths = _lengths(self.pyarrow, values)
            self.dictionaries.append((values, lengths))
        make = self.pyarrow.DictionaryArray.from_arrays
        made = make(codes, values, ordered=kind.ordered)
        if lengths:  # a code of one byte stands for a text of any length
            total = length * max(lengths)
            self.reader.claim((total if total < _LONG_TEXTS else _total(made, lengths)) >> 2)
        return made


def _bits_of(pyarrow: Any, kind: Any) -> Any:
    """Return the bits of a value of a type, or None if they are not always as many."""
    types = pyarrow.types
    parts = types.is_nested(kind) or types.is_fixed_size_list(kind)  # not nested in pyarrow 15
    if parts or types.is_null(kind) or types.is_dictionary(kind):
        return None
    return None if _offset_width(pyarrow, kind) else kind.bit_width


def _is_simple(pyarrow: Any, kind: Any) -> bool:
    """Return whether a type is that of numbers, texts or moments, so that nothing is inside it."""
    return bool(_bits_of(pyarrow, kind) or _offset_width(pyarrow, kind)) and not (
        pyarrow.types.is_nested(kind) or isinstance(kind, pyarrow.BaseExtensionType)
    )


def _offset_width(pyarrow: Any, kind: Any) -> int:
    """Return the bytes of an offset of texts and lists; 0 for other types."""
    types = pyarrow.types
    if types.is_string(kind) or types.is_binary(kind) or types.is_list(kind) or types.is_map(kind):
        return 4
    large = types.is_large_string(kind) or types.is_large_binary(kind) or types.is_large_list(kind)
    return 8 if large else 0


def _items_type(pyarrow: Any, kind: Any) -> Any:
    if pyarrow.types.is_map(kind):
        return pyarrow.struct([kind.key_field, kind.item_field])
    return kind.value_type


def _offset(buffer: Any, width: int, index: int) -> int:
    """Return an offset of texts or lists; the last one says how long their contents are."""
    found: int = unpack_from("<i" if width == 4 else "<q", buffer, width * index)[0]
    need(0 <= found < 1 << 48, "invalid offset")
    return found


def _lengths(pyarrow: Any, values: Any) -> List[int]:
    """Return the bytes of each text of a dictionary; nothing for numbers, which are short."""
    width = _offset_width(pyarrow, values.type)
    if not width or not len(values):
        return []
    offsets = memoryview(values.buffers()[1]).cast("i" if width == 4 else "q")
    return [end - start for start, end in zip(offsets, offsets[1:])]


def _total(array: Any, lengths: List[int]) -> int:
    """Return the bytes of all texts that the codes of a dictionary array stand for."""
    array.validate(full=True)
    counts = array.indices.value_counts()
    pairs = zip(counts.field(0).to_pylist(), counts.field(1).to_pylist())
    return sum([count * lengths[code] for code, count in pairs if code is not None])


# ---------------------------------------------------------------- writing


class _ArrowTaker:
    """The layouts and buffers of the arrays of one object."""

    def __init__(self, writer: DataWriter, pyarrow: Any) -> None:
        self.writer, self.pyarrow = writer, pyarrow
        self.buffers: List[Any] = []
        self.dictionaries: Dict[Any, int] = {}  # the places of the dictionaries, by their buffers

    def column(self, array: Any) -> Any:
        kept = len(self.buffers)
        layout = self.array(array)
        if layout is None:
            # A part of an array: Arrow's own writer copies no more than the part.
            del self.buffers[kept:]
            layout = self.array(_compacted(self.pyarrow, array))
        if layout is None:
            raise untrusted("a pyarrow.Array with parts out of place")
        return layout

    def put(self, buffer: Any, size: int) -> None:
        # No memoryview: the garbage collector crashes on a PickleBuffer of one (CPython 3.11).
        if not isinstance(buffer, self.pyarrow.Buffer):
            buffer = self.pyarrow.py_buffer(buffer or b"")
        self.buffers.append(self.writer.buffer(buffer.slice(0, size)))

    def array(self, array: Any) -> Any:
        """Return the layout of an array, or None if it does not begin where its buffers do."""
        pyarrow, types, kind, length = self.pyarrow, self.pyarrow.types, array.type, len(array)
        if array.offset:
            return None
        if types.is_dictionary(kind):
            return self.with_dictionary(array)
        buffers = array.buffers()
        if types.is_null(kind) or not array.null_count:
            self.buffers.append(None)
        else:
            self.put(buffers[0], length + 7 >> 3)
        bits = _bits_of(pyarrow, kind)
        if bits is not None:
            self.put(buffers[1], length * bits + 7 >> 3)
            return length
        if types.is_null(kind):
            return length
        if types.is_struct(kind):
            parts = [self.array(array.field(n)[:length]) for n in range(kind.num_fields)]
            return None if None in parts else (length, *parts)
        if types.is_fixed_size_list(kind):
            part = self.array(array.values[: length * kind.list_size])
            return part if part is None else (length, part)
        width = _offset_width(pyarrow, kind)
        offsets = buffers[1] if length else bytes(width)
        if _offset(offsets, width, 0):
            return None
        last = _offset(offsets, width, length)
        self.put(offsets, width * (length + 1))
        if not types.is_nested(kind):
            self.put(buffers[2], last)
            return length
        if types.is_map(kind):
            fields = [kind.key_field, kind.item_field]
            items = pyarrow.StructArray.from_arrays([array.keys, array.items], fields=fields)
        else:
            items = array.values
        part = self.array(items[:last])
        return part if part is None else (length, part)

    def with_dictionary(self, array: Any) -> Any:
        values = array.dictionary
        if self.array(array.indices) is None:
            return None
        places = [(part.address, part.size) if part else None for part in values.buffers()]
        key = (values.offset, len(values), *places)
        if key in self.dictionaries:
            return (len(array), self.dictionaries[key])
        layout = self.array(values)
        if layout is None:
            return None
        self.dictionaries[key] = len(self.dictionaries)
        return (len(array), (layout,))


def _compacted(pyarrow: Any, array: Any) -> Any:
    """Return a copy of an array that begins where its buffers do."""
    batch = pyarrow.RecordBatch.from_arrays([array], names=[""])
    library("pyarrow.ipc")
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, batch.schema) as out:
        out.write(batch)
    return pyarrow.ipc.open_stream(sink.getvalue()).read_next_batch().column(0)


def _write_arrow(writer: DataWriter, kind: str, description: Any, columns: Any) -> Any:
    taker = _ArrowTaker(writer, _arrow())
    layouts = [
        [taker.column(part) for part in one] if type(one) is list else taker.column(one)
        for one in columns
    ]
    return make_arrow, (kind, description, layouts, *taker.buffers)


def _reduce_arrow_table(writer: DataWriter, table: Any) -> Any:
    if not table.num_columns and table.num_rows:
        raise untrusted("a pyarrow.Table of rows without columns")
    description = _describe_schema(_arrow(), table.schema)
    return _write_arrow(writer, "table", description, [one.chunks for one in table.columns])


def _reduce_arrow_batch(writer: DataWriter, batch: Any) -> Any:
    if not batch.num_columns and batch.num_rows:
        raise untrusted("a pyarrow.RecordBatch of rows without columns")
    description = _describe_schema(_arrow(), batch.schema)
    return _write_arrow(writer, "batch", description, batch.columns)


def _reduce_arrow_chunks(writer: DataWriter, values: Any) -> Any:
    description = _describe_arrow(_arrow(), values.type)
    return _write_arrow(writer, "chunks", description, values.chunks)


def _reduce_arrow_array(writer: DataWriter, values: Any) -> Any:
    return _write_arrow(writer, "array", _describe_arrow(_arrow(), values.type), [values])


def _reduce_arrow_scalar(writer: DataWriter, scalar: Any) -> Any:
    description = _describe_arrow(_arrow(), scalar.type)
    values = sys.modules["pyarrow"].array([scalar], type=scalar.type)
    return _write_arrow(writer, "scalar", description, [values])


def _reduce_arrow_schema(writer: DataWriter, schema: Any) -> Any:
    return _write_arrow(writer, "schema", _describe_schema(_arrow(), schema), [])


def _reduce_arrow_type(writer: DataWriter, kind: Any) -> Any:
    return _write_arrow(writer, "type", _describe_arrow(_arrow(), kind), [])


@library_reducers("pyarrow")
def pyarrow_reducers(pyarrow: Any) -> Any:
    found = {
        pyarrow.Table: _reduce_arrow_table,
        pyarrow.RecordBatch: _reduce_arrow_batch,
        pyarrow.ChunkedArray: _reduce_arrow_chunks,
        pyarrow.Schema: _reduce_arrow_schema,
    }
    bases = {
        pyarrow.Array: _reduce_arrow_array,
        pyarrow.Scalar: _reduce_arrow_scalar,
        pyarrow.DataType: _reduce_arrow_type,
    }
    for kind in vars(pyarrow.lib).values():
        for base, reduce in bases.items():
            if isinstance(kind, type) and issubclass(kind, base):
                found[kind] = reduce
    return found
