"""Data of pyarrow, in Arrow's own stream format.

Rule: this file reads the metadata of a stream before pyarrow does. It refuses extension types,
whose classes run code, and compression, which hides decompression bombs.
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

ARROW = 15  # the first pyarrow that does not unpickle what a schema names


_EXTENSION = b"ARROW:extension:name"
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3  # the headers of messages in Arrow's IPC format
_ARROW_KINDS = ("table", "batch", "chunks", "array", "scalar", "schema", "type")


@constructor(str, (bytes, bytearray, memoryview), cost=PANDAS)
def make_arrow(reader: DataReader, kind: str, raw: Any) -> Any:
    """Make an object of pyarrow from a stream in Arrow's IPC format."""
    pyarrow = _arrow()
    need(kind in _ARROW_KINDS, "not a kind of pyarrow object")
    reader.own(raw)
    stream = pyarrow.py_buffer(raw)
    _check_stream(pyarrow, stream)
    batches = pyarrow.ipc.open_stream(stream)
    if kind in ("schema", "type"):
        return batches.schema if kind == "schema" else batches.schema.field(0).type
    if kind == "batch":
        made = batches.read_next_batch()
        made.validate(full=True)
        return made
    table = batches.read_all()
    table.validate(full=True)
    if kind == "table":
        return table
    need(table.num_columns == 1, "stream without exactly one column")
    column = table.column(0)
    if kind == "chunks":
        return column
    need(column.num_chunks == 1, "column without exactly one chunk")
    if kind == "array":
        return column.chunk(0)
    need(len(column) == 1, "column without exactly one value")
    return column[0]


def _arrow() -> Any:
    pyarrow = library("pyarrow")
    library("pyarrow.ipc")
    if int(pyarrow.__version__.partition(".")[0]) < ARROW:
        message = "pyarrow %s is too old, %d or later is needed" % (pyarrow.__version__, ARROW)
        raise WireError("missing", message, module="pyarrow")
    return pyarrow


def _check_stream(pyarrow: Any, stream: Any) -> None:
    """Refuse extension types and compressed batches."""
    for message in pyarrow.ipc.MessageReader.open_stream(stream):
        metadata = message.metadata.to_pybytes()
        if _EXTENSION in metadata:
            raise untrusted("a pyarrow extension type")
        table = _Table(metadata, Struct("<I").unpack_from(metadata)[0])
        header, kind = table.follow(2), metadata[table.field(1)]
        if kind == _DICTIONARY:
            header = header.follow(1)
        need(kind in (_SCHEMA, _DICTIONARY, _BATCH), "invalid message of a stream")
        need(kind == _SCHEMA or not header.field(3), "compressed batch")


class _Table:
    """A table of a flatbuffer, which finds its fields."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def field(self, number: int) -> int:
        """Return the offset of a field, or 0 if the table does not have it."""
        directory = self.at - Struct("<i").unpack_from(self.data, self.at)[0]
        slot = 4 + 2 * number
        need(directory >= 0, "damaged flatbuffer")
        if slot >= Struct("<H").unpack_from(self.data, directory)[0]:
            return 0
        offset: int = Struct("<H").unpack_from(self.data, directory + slot)[0]
        return offset and self.at + offset

    def follow(self, number: int) -> _Table:
        """Return the table that a field refers to."""
        at = self.field(number)
        need(at, "damaged flatbuffer")
        return _Table(self.data, at + Struct("<I").unpack_from(self.data, at)[0])


def _write_arrow(writer: DataWriter, kind: str, schema: Any, value: Any) -> Any:
    pyarrow = _arrow()
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, schema) as out:
        if value is not None:
            out.write(value)
    stream = sink.getvalue()
    _check_stream(pyarrow, stream)
    return make_arrow, (kind, writer.buffer(stream))


def _reduce_column(writer: DataWriter, kind: str, values: Any) -> Any:
    table = sys.modules["pyarrow"].table({"": values})
    return _write_arrow(writer, kind, table.schema, table)


def _reduce_arrow_array(writer: DataWriter, values: Any) -> Any:
    batch = sys.modules["pyarrow"].record_batch({"": values})
    return _write_arrow(writer, "array", batch.schema, batch)


def _reduce_arrow_scalar(writer: DataWriter, scalar: Any) -> Any:
    values = sys.modules["pyarrow"].array([scalar], type=scalar.type)
    return _reduce_column(writer, "scalar", values)


def _reduce_arrow_type(writer: DataWriter, kind: Any) -> Any:
    return _write_arrow(writer, "type", sys.modules["pyarrow"].schema([("", kind)]), None)


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
