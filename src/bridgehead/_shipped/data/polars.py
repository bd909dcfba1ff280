"""Data of polars: series and frames, as columns of Arrow.

Rule: ``pyarrow`` makes and checks the columns, at both ends; a column of polars has nothing that
was not checked there. polars aborts an operation, by a panic that is no ``Exception``, where a date
or a time is out of its range: such values are refused.
"""

from __future__ import annotations

from typing import Any

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.data.registry import (
        DataReader,
        DataWriter,
        constructor,
        library,
        library_reducers,
        need,
        untrusted,
    )

_POLARS_COLUMN = 2000  # what a column of polars costs
_POLARS_DAYS = 95_000_000  # about 260,000 years, of which polars knows the calendar
_POLARS_DAY = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}
_POLARS_NUMBERS = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float", "double", "large_string", "string", "large_binary", "binary"),
)


@constructor(None, str, cost=_POLARS_COLUMN)
def make_series_of_polars(reader: DataReader, column: Any, name: str) -> Any:
    need(type(column) is library("pyarrow").ChunkedArray, "not a column of pyarrow")
    _check_polars_column(reader, column)
    return library("polars").Series(name, column)


@constructor(None, cost=_POLARS_COLUMN)
def make_frame_of_polars(reader: DataReader, table: Any) -> Any:
    need(type(table) is library("pyarrow").Table, "not a table of pyarrow")
    reader.charge(_POLARS_COLUMN * table.num_columns)
    names = table.column_names
    need(len(set(names)) == len(names) and names, "columns of one name, or none")
    for column in table.columns:
        _check_polars_column(reader, column)
    return library("polars").DataFrame(table)


def _check_polars_column(reader: DataReader, column: Any) -> None:
    """Refuse a type that polars has not, or has with other values; charge for its copy."""
    pyarrow = library("pyarrow")
    types, kind = pyarrow.types, column.type
    reader.charge(2 * column.nbytes + 500 * column.num_chunks)
    if types.is_date32(kind):
        _check_polars_range(pyarrow, column, "int32", -_POLARS_DAYS, _POLARS_DAYS)
    elif types.is_timestamp(kind):
        need(kind.unit in ("ms", "us", "ns"), "a unit that polars does not have")
        most = _POLARS_DAY[kind.unit] * _POLARS_DAYS
        _check_polars_range(pyarrow, column, "int64", -most, most)
    elif types.is_time64(kind):
        need(kind.unit == "ns", "a unit that polars does not have")
        _check_polars_range(pyarrow, column, "int64", 0, _POLARS_DAY["ns"] - 1)
    elif types.is_duration(kind):
        need(kind.unit in ("ms", "us", "ns"), "a unit that polars does not have")
        # A mean of milliseconds, which ``describe`` prints, is rounded to beyond the least of them.
        most = (1 << 62) if kind.unit == "ms" else (1 << 63) - 1
        _check_polars_range(pyarrow, column, "int64", -most, most)
    elif types.is_decimal128(kind):
        need(0 <= kind.scale <= kind.precision, "an invalid decimal")
    else:
        need(_is_polars_type(types, kind), "a column of a type that polars does not have")


def _check_polars_range(pyarrow: Any, column: Any, whole: str, least: int, most: int) -> None:
    library("pyarrow.compute")
    for chunk in column.chunks:
        found = pyarrow.compute.min_max(chunk.view(whole))
        low, high = found["min"].as_py(), found["max"].as_py()
        need(low is None or least <= low <= high <= most, "a time out of range")


def _is_polars_type(types: Any, kind: Any) -> bool:
    """Return whether a column of this type, at whatever depth, is of numbers and texts alone."""
    if types.is_large_list(kind) or types.is_list(kind):
        return _is_polars_type(types, kind.value_type)
    if types.is_struct(kind):
        fields = [kind.field(n) for n in range(kind.num_fields)]
        distinct = len({field.name for field in fields}) == len(fields)
        return distinct and all(_is_polars_type(types, field.type) for field in fields)
    return str(kind) in _POLARS_NUMBERS


def _reduce_series_of_polars(writer: DataWriter, series: Any) -> Any:
    pyarrow = library("pyarrow")
    column = pyarrow.chunked_array([_arrow_of_polars(series)])
    return make_series_of_polars, (column, series.name)


def _reduce_frame_of_polars(writer: DataWriter, frame: Any) -> Any:
    pyarrow = library("pyarrow")
    if not frame.width:
        raise untrusted("a polars.DataFrame without columns")
    columns = [_arrow_of_polars(series) for series in frame.get_columns()]
    return make_frame_of_polars, (pyarrow.table(columns, names=frame.columns),)


def _arrow_of_polars(series: Any) -> Any:
    """Return a series as an array of pyarrow."""
    types = library("pyarrow.types")
    try:
        array = series.to_arrow()
    except ValueError:  # a type that pyarrow does not have
        raise untrusted("a polars.Series of %s" % series.dtype) from None
    tests = (types.is_date32, types.is_timestamp, types.is_time64, types.is_duration)
    top = any(test(array.type) for test in (*tests, types.is_decimal128))
    if not top and not _is_polars_type(types, array.type):
        raise untrusted("a polars.Series of %s" % series.dtype)
    return array


@library_reducers("polars")
def polars_reducers(polars: Any) -> Any:
    library("pyarrow")
    return {polars.Series: _reduce_series_of_polars, polars.DataFrame: _reduce_frame_of_polars}
