"""Parquet files and Arrow IPC files as tables, and tables as Arrow IPC files.

Rule: a column has the type of pandas that holds all of it, else Arrow's own type. The metadata of a
schema and of its fields, and which fields are not null, are in the table's ``attrs``, and are
written again from there. A file from which something would be lost is refused.
"""

from __future__ import annotations

import datetime
import io
import json
import reprlib
import warnings
from collections import Counter
from collections.abc import Iterable
from typing import Any

MAGIC = b"ARROW1"  # of a file; a stream has none
SCHEMA = "arrow_schema"  # the key in ``attrs``
_OF_PANDAS = (b"pandas", b"PANDAS_ATTRS")  # metadata that pandas writes and reads itself
_CODEC = ("utf-8", "surrogateescape")


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
        file = ipc.open_file(source)
        if getattr(file, "metadata", None):  # older versions of Arrow do not read it
            raise ValueError("the file has metadata beside its schema, which would be lost")
        _check_batches(map(file.get_batch_with_custom_metadata, range(file.num_record_batches)))
        return _frame(file.read_all())
    _check_batches(ipc.open_stream(data).iter_batches_with_custom_metadata())
    table = ipc.open_stream(source).read_all()
    if source.tell() < len(data):
        raise ValueError("more follows the first table, and would be lost")
    return _frame(table)


def _check_batches(batches: Iterable[Any]) -> None:
    if any(one.custom_metadata for one in batches):
        raise ValueError("a record batch has metadata, which would be lost")


def write_parquet(frame: Any) -> bytes:
    """Return the bytes of a Parquet file with a table.

    Raises:
        ValueError: the file would hold another table; says what.
        ArrowException, or what the class of a cell raises: it cannot hold the table.
    """
    from pyarrow import parquet

    sink = io.BytesIO()
    parquet.write_table(_arrow(frame), sink)
    _check_rows(frame, parquet.read_metadata(sink).num_rows)
    return sink.getvalue()


def write_ipc(frame: Any) -> bytes:
    """Return the bytes of an Arrow IPC file with a table; raise as ``write_parquet``."""
    from pyarrow import ipc

    table, sink = _arrow(frame), io.BytesIO()
    _check_rows(frame, table.num_rows)
    with ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _check_rows(frame: Any, rows: int) -> None:
    if rows != len(frame):
        raise ValueError(f"of {len(frame):,} rows without columns it would hold {rows:,}")


def _arrow(frame: Any) -> Any:
    """Return a table of Arrow with all that a table of pandas holds; raise as ``write_parquet``."""
    import pyarrow

    _check(frame)
    frame, facts = frame.copy(deep=False), frame.attrs.get(SCHEMA)
    if not _is_of_schema(facts):
        facts = {"metadata": {}, "fields": {}}
    else:
        frame.attrs = {name: value for name, value in frame.attrs.items() if name != SCHEMA}
    attrs = json.dumps(frame.attrs)
    if not _is_kept(dict(frame.attrs), json.loads(attrs)):
        raise ValueError(f"its attrs would become {reprlib.repr(json.loads(attrs))}")
    table = pyarrow.Table.from_pandas(frame)
    of_pandas = {b"PANDAS_ATTRS": attrs.encode()} if frame.attrs else {}
    metadata = {**_as_bytes(facts["metadata"]), **table.schema.metadata, **of_pandas}
    for at, field in enumerate(table.schema):
        fact = facts["fields"].get(field.name)
        if fact is None:
            continue
        column = table.column(at)
        nullable = bool(fact.get("nullable", True) or column.null_count)
        made = pyarrow.field(field.name, field.type, nullable, _as_bytes(fact.get("metadata", {})))
        table = table.set_column(at, made, column)
    # Arrow counts no rows of a table without columns whose metadata it replaces.
    return table if metadata == table.schema.metadata else table.replace_schema_metadata(metadata)


def _check(frame: Any) -> None:
    """Raise a ValueError if Arrow would convert something in a table to make it fit.

    It gives all cells of a column of objects one type, and all labels of columns: sets become
    lists, integers beside floats floats, and each dict gets the keys of all.
    """
    import pandas
    import pyarrow

    levels = [frame.index.get_level_values(level) for level in range(frame.index.nlevels)]
    for part in [*(column for _, column in frame.items()), *levels]:
        dtype = part.dtype
        cells = dtype.categories if isinstance(dtype, pandas.CategoricalDtype) else part
        if cells.dtype != object:
            continue
        objects = cells.to_numpy()
        arrows = pyarrow.array(objects, from_pandas=True).to_pylist()
        for cell, kept in zip(objects, arrows, strict=True):
            if not _is_kept(cell, kept):
                where = "the index" if part.name is None else repr(part.name)
                raise ValueError(
                    f"{where} has {reprlib.repr(cell)}, which would become {reprlib.repr(kept)}"
                )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of labels that become texts, which is refused here
        empty, _ = _to_pandas(pyarrow.Table.from_pandas(frame.iloc[:0]))
    for label, kept in zip(frame.columns, empty.columns, strict=True):
        if type(label) is not type(kept) or label != kept:
            raise ValueError(f"the name {label!r} of a column would become {kept!r}")


def _is_kept(cell: Any, kept: Any) -> bool:
    """Return whether a cell has the same type and value in Arrow; all missing values are null."""
    import numpy as np
    import pandas

    if type(cell) is str:  # most are
        return bool(cell == kept)
    if isinstance(cell, (np.generic, np.ndarray)):
        is_time = cell.dtype.kind in "mM"  # numpy returns those of nanoseconds as integers
        values = pandas.Series(np.ravel(cell)).tolist() if is_time else np.ravel(cell).tolist()
        cell = values if isinstance(cell, np.ndarray) else values[0]
    is_missing = cell is None or cell is pandas.NA or cell is pandas.NaT
    if is_missing or (type(cell) is float and cell != cell):
        return kept is None or kept != kept
    if type(cell) is list:
        return type(kept) is list and len(cell) == len(kept) and all(map(_is_kept, cell, kept))
    if type(cell) is dict:
        same = type(kept) is dict and cell.keys() == kept.keys()
        return same and all(_is_kept(cell[key], kept[key]) for key in cell)
    if isinstance(cell, datetime.datetime):  # also of pandas
        same = isinstance(kept, datetime.datetime) and cell == kept
        return same and cell.utcoffset() == kept.utcoffset()
    if isinstance(cell, datetime.timedelta):
        return isinstance(kept, datetime.timedelta) and cell == kept
    return type(cell) is type(kept) and bool(cell == kept)


def _frame(table: Any) -> Any:
    """Return a table of pandas, with Arrow's own types where those of pandas hold less.

    Such are integers with nulls, decimals, and floats with both nulls and NaN.
    """
    import pandas

    name, times = Counter(table.column_names).most_common(1)[0] if table.column_names else ("", 0)
    if times > 1:
        raise ValueError(f"two columns have the name {name!r}, and one of them would be lost")
    frame, unread = _to_pandas(table)
    facts = table.schema.pandas_metadata or {}
    index = [one for one in facts.get("index_columns", ()) if isinstance(one, str)]
    columns = [one for one in table.column_names if one not in index]  # in the order of the frame's
    lost = _lost(table, frame)
    if (lost or unread) and len(columns) == len(frame.columns):
        replaced = {*lost, *unread}  # the other columns, the index and the labels stay as they are
        for at, name in enumerate(columns):
            if name in replaced:
                frame.isetitem(at, pandas.arrays.ArrowExtensionArray(table.column(name)))
        lost = _lost(table, frame)
    if lost:
        what, kind = "index" if lost[0] in index else "column", table.schema.field(lost[0]).type
        raise ValueError(f"pandas can't hold {what} {lost[0]!r} of type {kind} as it is")
    metadata = table.schema.metadata or {}
    frame.attrs.update(json.loads(metadata.get(b"PANDAS_ATTRS", "{}")))
    facts = _of_schema(table.schema)
    if facts:
        frame.attrs[SCHEMA] = facts
    return frame


def _of_schema(schema: Any) -> dict[str, Any]:
    """Return what pandas has no place for, as JSON has it; empty if there is nothing."""
    own = {key: one for key, one in (schema.metadata or {}).items() if key not in _OF_PANDAS}
    fields: dict[str, Any] = {}
    for field in schema:
        fact: dict[str, Any] = {} if field.nullable else {"nullable": False}
        if field.metadata:
            fact["metadata"] = _as_texts(field.metadata)
        if fact:
            fields[field.name] = fact
    return {"metadata": _as_texts(own), "fields": fields} if own or fields else {}


def _is_of_schema(facts: Any) -> bool:
    """Return whether ``_of_schema`` may have made it, and not the user."""
    if not isinstance(facts, dict) or facts.keys() != {"metadata", "fields"}:
        return False
    fields = facts["fields"]
    if not isinstance(fields, dict) or not all(isinstance(one, dict) for one in fields.values()):
        return False
    each = [facts["metadata"], *(one.get("metadata", {}) for one in fields.values())]
    return all(
        isinstance(one, dict)
        and all(isinstance(text, str) for pair in one.items() for text in pair)
        for one in each
    )


def _as_texts(metadata: dict[bytes, bytes]) -> dict[str, str]:
    """Return metadata as JSON can have it, also that which is no text."""
    texts = {key: value.decode(*_CODEC) for key, value in metadata.items()}
    return {key.decode(*_CODEC): text for key, text in texts.items()}


def _as_bytes(metadata: dict[str, str]) -> dict[bytes, bytes]:
    return {key.encode(*_CODEC): value.encode(*_CODEC) for key, value in metadata.items()}


def _to_pandas(table: Any) -> tuple[Any, list[str]]:
    """Return a table of pandas, and which of its columns should have a type of Arrow.

    pandas writes the names of its types into a file, and can't read some of them: those of lists,
    of structs, of dictionaries and others that Arrow brings.
    """
    from pandas.api.types import pandas_dtype

    facts = table.schema.pandas_metadata or {}
    unread = []
    for column in facts.get("columns", ()):
        try:
            pandas_dtype(column["numpy_type"])
        except (TypeError, NotImplementedError):
            column["numpy_type"] = "object"
            unread.append(column["field_name"])
    if unread:
        written = {**table.schema.metadata, b"pandas": json.dumps(facts).encode()}
        table = table.replace_schema_metadata(written)
    return table.to_pandas(), unread


def _lost(table: Any, frame: Any) -> list[str]:
    """Return the columns of an Arrow table that are others after pandas held them."""
    import pyarrow

    try:
        back = pyarrow.Table.from_pandas(frame)
    except (pyarrow.ArrowException, ValueError, TypeError):
        return list(table.column_names)
    return [name for name in table.column_names if not _is_same(table, back, name)]


def _is_same(table: Any, back: Any, name: str) -> bool:
    import pyarrow

    if name not in back.column_names:
        return False
    one, other = table.column(name), back.column(name)
    if (one.type, other.type) == (pyarrow.string(), pyarrow.large_string()):
        one = one.cast(other.type)  # pandas has one type for texts
    if not one.type.equals(other.type, check_metadata=True) or one.null_count != other.null_count:
        return False
    # NaN is equal to no NaN, but its text is.
    return bool(one.equals(other)) or repr(one.to_pylist()) == repr(other.to_pylist())
