"""Parquet files and Arrow IPC files as tables, and tables as Arrow IPC files.

Rule: a column has the type of pandas that holds all of it, else Arrow's own type. A file from which
something would be lost is refused.
"""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

MAGIC = b"ARROW1"  # of a file; a stream has none


def read_parquet(data: bytes) -> Any:
    """Return the table in the bytes of a Parquet file.

    Raises:
        ValueError: something in the file would be lost; says what.
    """
    from pyarrow import parquet

    return _frame(parquet.ParquetFile(io.BytesIO(data)).read())


def read_ipc(data: bytes) -> Any:
    """Return the table in the bytes of an Arrow IPC file or stream; Feather files are such files.

    Raises:
        ValueError: something in the file would be lost; says what.
    """
    from pyarrow import BufferReader, ipc

    source = BufferReader(data)
    if data.startswith(MAGIC):
        return _frame(ipc.open_file(source).read_all())
    table = ipc.open_stream(source).read_all()
    if source.tell() < len(data):
        raise ValueError("more follows the first table, and would be lost")
    return _frame(table)


def write_ipc(frame: Any) -> bytes:
    """Return the bytes of an Arrow IPC file with a table.

    Raises:
        ArrowException, ValueError or TypeError: it cannot hold the table.
    """
    import pyarrow
    from pyarrow import ipc

    table, sink = pyarrow.Table.from_pandas(frame), io.BytesIO()
    with ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _frame(table: Any) -> Any:
    """Return a table of pandas, with Arrow's own types where those of pandas hold less.

    Such are integers with nulls, decimals, and floats with both nulls and NaN.
    """
    import pandas

    name, times = Counter(table.column_names).most_common(1)[0] if table.column_names else ("", 0)
    if times > 1:
        raise ValueError(f"two columns have the name {name!r}, and one of them would be lost")
    frame = table.to_pandas()
    facts = table.schema.pandas_metadata or {}
    index = [one for one in facts.get("index_columns", ()) if isinstance(one, str)]
    columns = [one for one in table.column_names if one not in index]  # in the order of the frame's
    lost = _lost(table, frame)
    if lost and len(columns) == len(frame.columns):
        replaced = set(lost)  # the other columns, the index and the labels stay as they are
        for at, name in enumerate(columns):
            if name in replaced:
                frame.isetitem(at, pandas.arrays.ArrowExtensionArray(table.column(name)))
        lost = _lost(table, frame)
    if lost:
        what, kind = "index" if lost[0] in index else "column", table.schema.field(lost[0]).type
        raise ValueError(f"pandas can't hold {what} {lost[0]!r} of type {kind} as it is")
    return frame


def _lost(table: Any, frame: Any) -> list[str]:
    """Return the columns of an Arrow table that are others after pandas held them."""
    import pyarrow

    try:
        back = pyarrow.Table.from_pandas(frame)
    except (pyarrow.ArrowException, ValueError, TypeError):
        return list(table.column_names)
    return [name for name in table.column_names if not _is_same(table, back, name)]


def _is_same(table: Any, back: Any, name: str) -> bool:
    if name not in back.column_names:
        return False
    one, other = table.column(name), back.column(name)
    if one.type != other.type or one.null_count != other.null_count:
        return False
    # NaN is equal to no NaN, but its text is.
    return bool(one.equals(other)) or repr(one.to_pylist()) == repr(other.to_pylist())
