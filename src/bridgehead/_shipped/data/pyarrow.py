"""pyarrow's data, through Arrow's own stream format.

Rule: a stream's metadata is read here before pyarrow reads it: no extension types, whose
classes run code, and no compression, which hides bombs.
"""

from __future__ import annotations

import sys
from struct import Struct
from typing import Any

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.data.registry import (
        PANDAS,
        DataReader,
        DataWriter,
        constructor,
        library,
        library_reducers,
        need,
        untrusted,
    )
    from bridgehead._shipped.wire.errors import WireError

ARROW = 15  # the first pyarrow that does not unpickle what a schema tells it to


_EXTENSION = b"ARROW:extension:name"
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3  # the headers of messages in Arrow's IPC format
_ARROW_KINDS = ("table", "batch", "chunks", "array", "scalar", "schema", "type")


@constructor(str, (bytes, bytearray, memoryview), cost=PANDAS)
def make_arrow(machine: DataReader, kind: str, raw: Any) -> Any:
    """Whatever pyarrow has, as a stream of its IPC format."""
    pyarrow = _arrow()
    need(kind in _ARROW_KINDS, "nothing of pyarrow's")
    stream = pyarrow.py_buffer(raw)
    _check_stream(pyarrow, stream)
    reader = pyarrow.ipc.open_stream(stream)
    if kind in ("schema", "type"):
        return reader.schema if kind == "schema" else reader.schema.field(0).type
    if kind == "batch":
        made = reader.read_next_batch()
        made.validate(full=True)
        return made
    table = reader.read_all()
    table.validate(full=True)
    if kind == "table":
        return table
    need(table.num_columns == 1, "not one column")
    column = table.column(0)
    if kind == "chunks":
        return column
    need(column.num_chunks == 1, "not one chunk")
    if kind == "array":
        return column.chunk(0)
    need(len(column) == 1, "not one value")
    return column[0]


def _arrow() -> Any:
    pyarrow = library("pyarrow")
    library("pyarrow.ipc")
    if int(pyarrow.__version__.partition(".")[0]) < ARROW:
        message = "pyarrow %d or later is needed" % ARROW
        raise WireError("missing", message, module="pyarrow")
    return pyarrow


def _check_stream(pyarrow: Any, stream: Any) -> None:
    """Refuse extension types, whose classes run code, and compression, which hides bombs."""
    for message in pyarrow.ipc.MessageReader.open_stream(stream):
        metadata = message.metadata.to_pybytes()
        if _EXTENSION in metadata:
            raise untrusted("an extension type of pyarrow's")
        table = _Table(metadata, Struct("<I").unpack_from(metadata)[0])
        header, kind = table.follow(2), metadata[table.field(1)]
        if kind == _DICTIONARY:
            header = header.follow(1)
        need(kind in (_SCHEMA, _DICTIONARY, _BATCH), "no message of a stream")
        need(kind == _SCHEMA or not header.field(3), "a compressed batch")


class _Table:
    """A table of a flatbuffer: where its fields are."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def field(self, number: int) -> int:
        """Where a field is; 0 if it is not there."""
        directory = self.at - Struct("<i").unpack_from(self.data, self.at)[0]
        slot = 4 + 2 * number
        need(directory >= 0, "a damaged flatbuffer")
        if slot >= Struct("<H").unpack_from(self.data, directory)[0]:
            return 0
        offset: int = Struct("<H").unpack_from(self.data, directory + slot)[0]
        return offset and self.at + offset

    def follow(self, number: int) -> _Table:
        """The table that a field refers to."""
        at = self.field(number)
        need(at, "a damaged flatbuffer")
        return _Table(self.data, at + Struct("<I").unpack_from(self.data, at)[0])


def _write_arrow(pickler: DataWriter, kind: str, schema: Any, value: Any) -> Any:
    pyarrow = _arrow()
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, schema) as writer:
        if value is not None:
            writer.write(value)
    stream = sink.getvalue()
    _check_stream(pyarrow, stream)
    return make_arrow, (kind, pickler.buffer(stream))


def _reduce_column(pickler: DataWriter, kind: str, values: Any) -> Any:
    table = sys.modules["pyarrow"].table({"": values})
    return _write_arrow(pickler, kind, table.schema, table)


def _reduce_arrow_array(pickler: DataWriter, values: Any) -> Any:
    batch = sys.modules["pyarrow"].record_batch({"": values})
    return _write_arrow(pickler, "array", batch.schema, batch)


def _reduce_arrow_scalar(pickler: DataWriter, scalar: Any) -> Any:
    values = sys.modules["pyarrow"].array([scalar], type=scalar.type)
    return _reduce_column(pickler, "scalar", values)


def _reduce_arrow_type(pickler: DataWriter, kind: Any) -> Any:
    return _write_arrow(pickler, "type", sys.modules["pyarrow"].schema([("", kind)]), None)


@library_reducers("pyarrow")
def pyarrow_reducers(pyarrow: Any) -> Any:
    found = {
        pyarrow.Table: lambda p, v: _write_arrow(p, "table", v.schema, v),
        pyarrow.RecordBatch: lambda p, v: _write_arrow(p, "batch", v.schema, v),
        pyarrow.ChunkedArray: lambda p, v: _reduce_column(p, "chunks", v),
        pyarrow.Schema: lambda p, v: _write_arrow(p, "schema", v, None),
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
