"""Data of pandas: scalars, arrays, indexes, series and frames.

Rule: a table crosses as its columns, and the public constructors of pandas put it together. The
pickling of pandas is not used.
"""

from __future__ import annotations

import functools
import re
import sys
from time import thread_time
from typing import Any

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.data.numpy import own_integers, sent_integers
    from bridgehead._shipped.data.registry import (
        BUFFER,
        CONTAINER_COST,
        NONE,
        DataReader,
        DataWriter,
        constructor,
        is_scalar,
        library,
        library_reducers,
        need,
        untrusted,
    )
    from bridgehead._shipped.data.standard import ZONE_KEY, check_zone
    from bridgehead._shipped.wire.errors import WireError

_FREQUENCY = re.compile(r"[-+0-9A-Za-z. ]{1,40}")
_FEW_LABELS = 1000  # of so few, no hash table takes long
_LONG_LABELS = 1 << 24  # bytes of labels; only those of more are counted exactly
_UNITS = ("s", "ms", "us", "ns")
_TIME_DTYPES = {"%s8[%s]" % (kind, unit) for kind in "Mm" for unit in _UNITS}


def _frequency(text: str) -> str:
    need(_FREQUENCY.fullmatch(text), "invalid frequency")
    return text


@functools.lru_cache(1000)  # to read one takes 20 µs, and an offset never changes
def _offset_of(freq: str) -> Any:
    return library("pandas.tseries.frequencies").to_offset(_frequency(freq))


def _localized(times: Any, zone: Any) -> Any:
    """Return times in UTC, converted to a time zone."""
    if zone is None:
        return times
    if type(zone) is str:
        need(ZONE_KEY.fullmatch(zone), "invalid name of a time zone")
    else:
        check_zone(zone)
    return times.tz_localize("UTC").tz_convert(zone)


def _column(pandas: Any, values: Any) -> Any:
    """Check that a column is an array of numpy or of pandas."""
    if type(values) is library("numpy").ndarray:
        kind = values.dtype.kind
        need(kind in "biufcO" or values.dtype.str[1:] in _TIME_DTYPES, "invalid column of numpy")
    else:
        need(isinstance(values, pandas.api.extensions.ExtensionArray), "not a column")
    return values


def _numpy_column(pandas: Any) -> Any:
    """Return the class of a column that is an array of numpy; pandas 2.1 renamed it."""
    arrays = pandas.arrays
    return getattr(arrays, "NumpyExtensionArray", None) or arrays.PandasArray


def _sent_column(values: Any) -> Any:
    """Return a column, unless a reader refuses it; see ``_column``."""
    try:
        return _column(sys.modules["pandas"], values)
    except WireError:
        raise untrusted("a pandas column of %s" % values.dtype) from None


def _labels(pandas: Any, index: Any) -> Any:
    need(isinstance(index, pandas.Index), "not an index")
    return index


def _try_hashes(reader: DataReader, pandas: Any, index: Any) -> None:
    """Refuse labels that collide in the hash table of pandas, before pandas hashes them all.

    Each part is four times as long as the one before, and is taken at random, so that a sender
    cannot have only the others collide.
    """
    rows = len(_labels(pandas, index))
    if type(index) is pandas.Index:
        items = getattr(index.array, "_ndarray", None)
        if items is not None and items.dtype.kind == "O":  # pandas compares them as Python does
            reader.collect(items.tolist())
    if rows <= _FEW_LABELS or type(index) is pandas.RangeIndex:
        return
    numbers = library("numpy").random.default_rng()

    def hash_part(size: int) -> None:
        index.take(numbers.integers(0, rows, size)).unique()

    hash_part(2)  # the first call in a process may import something
    parts = [rows >> 2]
    while parts[-1] > _FEW_LABELS:
        parts.append(parts[-1] >> 2)
    for size in reversed(parts):
        reader.try_out(functools.partial(hash_part, size))


def _claim_texts(reader: DataReader, pandas: Any, codes: Any, labels: Any) -> None:
    """Claim the texts that codes, which pandas has checked, stand for.

    A conversion of texts of Arrow copies one for each row.
    """
    column = labels.array
    if type(column).__name__ not in ("ArrowStringArray", "ArrowExtensionArray"):
        return
    if len(codes) * column.nbytes < _LONG_LABELS:
        return
    texts = column.__arrow_array__()
    kind = str(texts.type).replace("large_", "")
    if kind in ("string", "binary"):
        numpy, compute = library("numpy"), library("pyarrow.compute")
        lengths = compute.binary_length(texts).fill_null(0).to_numpy()
        counts = numpy.bincount(codes[codes >= 0], minlength=len(lengths))
        reader.claim(int(counts @ lengths.astype("i8")) >> 2, visited=False)


@constructor(str)
def make_missing(reader: DataReader, name: str) -> Any:
    need(name in ("NaT", "NA"), "invalid missing value")
    return getattr(library("pandas"), name)


@constructor(int, str, None, int, cost=100)
def make_timestamp(reader: DataReader, value: int, unit: str, zone: Any, fold: int) -> Any:
    numpy, pandas = library("numpy"), library("pandas")
    need(unit in _UNITS, "invalid unit")
    made = pandas.Timestamp(numpy.datetime64(value, unit))
    need(made is pandas.NaT or made.asm8.view("i8") == value, "time out of range")
    made = _localized(made, zone)
    return made.replace(fold=fold) if made.fold != fold else made


@constructor(int, str)
def make_pandas_timedelta(reader: DataReader, value: int, unit: str) -> Any:
    numpy, pandas = library("numpy"), library("pandas")
    need(unit in _UNITS, "invalid unit")
    return pandas.Timedelta(numpy.timedelta64(value, unit))


@constructor(int, str)
def make_period(reader: DataReader, ordinal: int, freq: str) -> Any:
    return library("pandas").Period(ordinal=ordinal, freq=_frequency(freq))


@constructor(str)
def make_offset(reader: DataReader, freq: str) -> Any:
    library("pandas")
    return _offset_of(freq)


@constructor(None, None, str)
def make_interval(reader: DataReader, left: Any, right: Any, closed: str) -> Any:
    need(is_scalar(left) and is_scalar(right), "invalid bounds")
    return library("pandas").Interval(left, right, closed)


@constructor(None, None, cost=CONTAINER_COST)
def make_datetimes(reader: DataReader, values: Any, zone: Any) -> Any:
    _check_times(reader, values, "M")
    index = library("pandas").DatetimeIndex(values, copy=False)
    return _localized(index, zone)._values  # not .array, which is read-only from pandas 3 on


@constructor(None, cost=CONTAINER_COST)
def make_timedeltas(reader: DataReader, values: Any) -> Any:
    _check_times(reader, values, "m")
    return library("pandas").TimedeltaIndex(values, copy=False)._values


def _check_times(reader: DataReader, values: Any, kind: str) -> None:
    fine = type(values) is library("numpy").ndarray and values.ndim == 1
    need(
        fine and values.dtype.str[1:] in _TIME_DTYPES and values.dtype.kind == kind,
        "not an array of times",
    )
    reader.charge(values.nbytes)


@constructor(None, str, cost=CONTAINER_COST)
def make_periods(reader: DataReader, ordinals: Any, freq: str) -> Any:
    numpy, pandas = library("numpy"), library("pandas")
    fine = type(ordinals) is numpy.ndarray and ordinals.ndim == 1
    need(fine and ordinals.dtype == "i8", "invalid ordinals")
    return pandas.arrays.PeriodArray(ordinals, dtype=pandas.PeriodDtype(_frequency(freq)))


@constructor(None, None, str, cost=CONTAINER_COST)
def make_intervals(reader: DataReader, left: Any, right: Any, closed: str) -> Any:
    numpy, pandas = library("numpy"), library("pandas")
    times = (type(None), pandas.arrays.DatetimeArray, pandas.arrays.TimedeltaArray)
    for side in (left, right):
        plain = type(side) is numpy.ndarray and side.dtype.kind in "iuf" and side.ndim == 1
        need(plain or type(side) in times, "invalid bounds")
        reader.charge(side.nbytes)
    left, right = pandas.Index(left), pandas.Index(right)
    return pandas.arrays.IntervalArray.from_arrays(left, right, closed)


@constructor(str, BUFFER, None, bool, cost=CONTAINER_COST)
def make_categorical(
    reader: DataReader, kind: str, codes: Any, categories: Any, ordered: bool
) -> Any:
    pandas = library("pandas")
    codes = own_integers(reader, kind, codes)
    reader.charge(codes.nbytes + len(_labels(pandas, categories)))
    _try_hashes(reader, pandas, categories)
    made = pandas.Categorical.from_codes(codes, categories, ordered)
    _claim_texts(reader, pandas, codes, categories)
    return made


@constructor(str, None, None, cost=CONTAINER_COST)
def make_nullable(reader: DataReader, name: str, values: Any, mask: Any) -> Any:
    """Make a pandas array of numbers or booleans that has a mask."""
    numpy, pandas = library("numpy"), library("pandas")
    need(
        name in ("BooleanArray", "IntegerArray", "FloatingArray"), "not a nullable array of pandas"
    )
    for part in (values, mask):
        need(
            type(part) is numpy.ndarray and part.shape == values.shape,
            "parts that are not arrays of one shape",
        )
    need(values.ndim == 1, "not a column")
    return getattr(pandas.arrays, name)(values, mask)


@constructor(None, BUFFER, int, None, bool, cost=CONTAINER_COST)
def make_sparse(
    reader: DataReader, values: Any, places: Any, length: int, fill: Any, blocks: bool
) -> Any:
    numpy, pandas = library("numpy"), library("pandas")
    need(0 <= length < 1 << 31, "invalid sparse index")
    places = own_integers(reader, "<i4", places)
    need(type(_column(pandas, values)) is numpy.ndarray and values.ndim == 1, "invalid values")
    need(is_scalar(fill), "invalid fill value")
    reader.charge(places.nbytes)
    reader.claim(max(1, values.dtype.itemsize) * length)
    ascending = len(places) == 0 or (places[0] >= 0 and places[-1] < length)
    need(ascending and (places[1:] > places[:-1]).all(), "invalid sparse index")
    kind = "block" if blocks else "integer"
    make = pandas.arrays.SparseArray
    if hasattr(make, "from_indices"):
        return make.from_indices(values, places, length, fill, kind, values.dtype)
    index = library("pandas._libs.sparse").IntIndex(length, places, check_integrity=True)
    index = index.to_block_index() if blocks else index
    return make(values, index, fill, kind, pandas.SparseDtype(values.dtype, fill))


@constructor(str, bool, list, cost=CONTAINER_COST)
def make_strings(reader: DataReader, storage: str, nan: bool, items: Any) -> Any:
    need({str, NONE}.issuperset(map(type, items)), "items that are not strings")
    return library("pandas").array(items, dtype=_string_dtype(storage, nan))


@constructor(bool, None, cost=CONTAINER_COST)
def make_arrow_strings(reader: DataReader, nan: bool, column: Any) -> Any:
    pyarrow = library("pyarrow")
    need(type(column) is pyarrow.ChunkedArray, "not a column of pyarrow")
    need(column.type in (pyarrow.string(), pyarrow.large_string()), "not a column of strings")
    reader.charge(column.nbytes)
    return _string_dtype("pyarrow", nan).__from_arrow__(column)


def _string_dtype(storage: str, nan: bool) -> Any:
    pandas = library("pandas")
    need(storage in ("python", "pyarrow"), "invalid storage of strings")
    if storage == "pyarrow":
        library("pyarrow")
    if not nan:
        return pandas.StringDtype(storage)
    return pandas.StringDtype(storage, na_value=library("numpy").nan)


@constructor(None, cost=CONTAINER_COST)
def make_arrow_column(reader: DataReader, column: Any) -> Any:
    need(type(column) is library("pyarrow").ChunkedArray, "not a column of pyarrow")
    return library("pandas").arrays.ArrowExtensionArray(column)


@constructor(None, cost=CONTAINER_COST)
def make_numpy_column(reader: DataReader, values: Any) -> Any:
    pandas = library("pandas")
    need(type(_column(pandas, values)) is library("numpy").ndarray, "not an array of numpy")
    return _numpy_column(pandas)(values)


@constructor(None, cost=CONTAINER_COST)
def make_pandas_dtype(reader: DataReader, values: Any) -> Any:
    """Return a dtype; it crosses as an empty array of that dtype."""
    pandas = library("pandas")
    need(isinstance(values, pandas.api.extensions.ExtensionArray), "not an array of pandas")
    return values.dtype


@constructor(None, None, None, cost=CONTAINER_COST)
def make_index(reader: DataReader, values: Any, name: Any, freq: Any) -> Any:
    pandas = library("pandas")
    need(_column(pandas, values).ndim == 1, "not a one-dimensional index")
    if type(values) is library("numpy").ndarray and values.dtype.kind == "O":
        reader.charge(values.nbytes)
    options = {"name": name, "copy": False, "tupleize_cols": False}
    index = pandas.Index(values, dtype=values.dtype, **options)
    if freq is not None:
        kinds = (pandas.DatetimeIndex, pandas.TimedeltaIndex)
        need(type(freq) is str and type(index) in kinds, "invalid frequency")
        reader.charge(values.nbytes)
        index = _with_frequency(reader, index, _offset_of(freq))
    return index


def _with_frequency(reader: DataReader, index: Any, freq: Any) -> Any:
    """Return an index with its frequency.

    pandas checks a frequency by making the whole index again, which takes up to 0.8 ms a row, and
    by hashing its steps. Here it checks the first, the shortest and the longest step of rows that
    ascend or descend. Whatever makes a range between two rows of the index then makes a few times
    as many rows as it has, at most.
    """
    began, parts = thread_time(), [index]
    if len(index) > 2:
        rows = index.asi8
        one, other = rows[:-1], rows[1:]
        later, earlier = (other, one) if rows[0] < rows[-1] else (one, other)
        need(not index.hasnans and (later > earlier).all(), "rows that have no frequency")
        steps = later.view("u8") - earlier.view("u8")  # a step may be too long for an i8
        places = {0, int(steps.argmin()), int(steps.argmax())}
        parts = [index[place : place + 2] for place in places]
    checked = [type(index)(part, freq=freq) for part in parts]
    reader.seconds -= thread_time() - began
    need(reader.seconds >= 0, "the checks of frequencies take too long")
    if len(index) <= 2:
        return checked[0]
    index = index[:]  # a view of its own
    # Before pandas 3.1 the array has the frequency. No public way sets it without the check.
    (index if hasattr(index, "_freq") else index._data)._freq = freq
    return index


@constructor(int, int, int, None, cost=CONTAINER_COST)
def make_range_index(reader: DataReader, start: int, stop: int, step: int, name: Any) -> Any:
    # Half of what an array takes: a column of bits may have as many rows. A repr shows none.
    reader.claim(4 * _length(range(start, stop, step)), visited=False)
    return library("pandas").RangeIndex(start, stop, step, name=name)


def _length(rows: range) -> int:
    """Return the length of a range; len() does not return more than sys.maxsize."""
    return max(0, (rows[-1] - rows[0]) // rows.step + 1) if rows else 0


@constructor(list, list, list, (int, NONE), BUFFER, ..., cost=CONTAINER_COST)
def make_multi_index(
    reader: DataReader, levels: Any, kinds: Any, names: Any, order: Any, *codes: Any
) -> Any:
    pandas = library("pandas")
    need(len(kinds) == len(codes), "codes without a type")
    codes = tuple([own_integers(reader, kind, raw) for kind, raw in zip(kinds, codes)])
    for level in levels:
        need(type(_labels(pandas, level)) is not pandas.MultiIndex, "level that is a MultiIndex")
        reader.charge(len(level))
        _try_hashes(reader, pandas, level)
    for code in codes:
        reader.charge(code.nbytes)
    made = pandas.MultiIndex(levels=levels, codes=codes, names=names, sortorder=order)
    for level, code in zip(levels, codes):
        _claim_texts(reader, pandas, code, level)
    return made


@constructor(None, None, None, dict, bool, cost=CONTAINER_COST)
def make_series(
    reader: DataReader, values: Any, index: Any, name: Any, attrs: Any, duplicates: bool
) -> Any:
    pandas = library("pandas")
    need(_column(pandas, values).ndim == 1, "not a one-dimensional series")
    need(len(values) == len(_labels(pandas, index)), "index of another length")
    series = pandas.Series(values, index=index, name=name, dtype=values.dtype, copy=False)
    return _flagged(reader, series, attrs, duplicates)


@constructor(None, None, list, dict, bool, cost=CONTAINER_COST)
def make_frame(
    reader: DataReader, index: Any, columns: Any, blocks: Any, attrs: Any, duplicates: bool
) -> Any:
    """Make a frame from its blocks; each is a list of column numbers and the columns' values."""
    numpy, pandas = library("numpy"), library("pandas")
    rows, width = len(_labels(pandas, index)), len(_labels(pandas, columns))
    reader.charge(width)
    taken: Any = []
    made = []
    for block in blocks:
        need(type(block) is tuple and len(block) == 2 and type(block[0]) is list, "invalid block")
        places, values = block
        need(places, "block without columns")  # of two bytes each, by the memo
        reader.charge(len(places))
        need(all(type(place) is int for place in places), "invalid column numbers")
        shape = _column(pandas, values).shape
        flat = type(values) is not numpy.ndarray
        fits = shape == ((rows,) if flat else (len(places), rows))
        need(fits and (len(places) == 1 or not flat), "block of another shape")
        taken += places
        made.append((values, numpy.array(places, "i8")))
    need(sorted(taken) == list(range(width)), "blocks overlap or leave gaps")
    return _flagged(reader, _join_blocks(pandas, made, index, columns), attrs, duplicates)


def _join_blocks(pandas: Any, blocks: Any, index: Any, columns: Any) -> Any:
    try:
        from pandas.api.internals import create_dataframe_from_blocks
    except ImportError:  # before pandas 3; pandas and pyarrow use the same functions
        from pandas.core.internals import BlockManager
        from pandas.core.internals.api import make_block

        parts = tuple(make_block(values, places) for values, places in blocks)
        manager = BlockManager(parts, [columns, index])
        if hasattr(pandas.DataFrame, "_from_mgr"):
            return pandas.DataFrame._from_mgr(manager, manager.axes)
        return pandas.DataFrame(manager)
    return create_dataframe_from_blocks(blocks, index=index, columns=columns)


def _flagged(reader: DataReader, value: Any, attrs: Any, duplicates: bool) -> Any:
    if attrs:
        value.attrs = attrs
    if not duplicates:
        for axis in value.axes:
            _try_hashes(reader, library("pandas"), axis)
        value.flags.allows_duplicate_labels = False
    return value


def _frequency_name(freq: Any) -> Any:
    if freq is None:
        return None
    offset = sys.modules["pandas"].tseries.frequencies.to_offset
    try:
        same = offset(freq.freqstr) == freq
    except ValueError:
        same = False
    if not same:
        raise untrusted("the pandas offset %r" % (freq,))
    return freq.freqstr


def _period_name(freq: Any) -> str:
    name: str = sys.modules["pandas"].PeriodDtype(freq).name
    return name[len("period[") : -1]


def _zone_name(zone: Any) -> Any:
    """Return a time zone as data; one of pytz, which pandas 2 makes, by name."""
    if type(zone).__module__.partition(".")[0] == "pytz" and zone.zone:
        return zone.zone
    return zone


def _reduce_timestamp(writer: DataWriter, value: Any) -> Any:
    stamp = value.asm8
    unit = sys.modules["numpy"].datetime_data(stamp.dtype)[0]
    return make_timestamp, (int(stamp.view("i8")), unit, _zone_name(value.tz), value.fold)


def _reduce_pandas_timedelta(writer: DataWriter, value: Any) -> Any:
    span = value.asm8
    unit = sys.modules["numpy"].datetime_data(span.dtype)[0]
    return make_pandas_timedelta, (int(span.view("i8")), unit)


def _reduce_datetimes(writer: DataWriter, values: Any) -> Any:
    return make_datetimes, (values._ndarray, _zone_name(values.tz))


def _reduce_periods(writer: DataWriter, values: Any) -> Any:
    return make_periods, (values.asi8, _period_name(values.freq))


def _reduce_intervals(writer: DataWriter, values: Any) -> Any:
    return make_intervals, (values.left._values, values.right._values, values.closed)


def _reduce_categorical(writer: DataWriter, values: Any) -> Any:
    codes = sent_integers(writer, values._codes)
    return make_categorical, (*codes, values.categories, bool(values.ordered))


def _reduce_nullable(writer: DataWriter, values: Any) -> Any:
    return make_nullable, (type(values).__name__, values._data, values._mask)


def _reduce_sparse(writer: DataWriter, values: Any) -> Any:
    index = values.sp_index
    blocks = type(index).__name__ == "BlockIndex"
    places = index.to_int_index().indices
    _, places = sent_integers(writer, places)
    return make_sparse, (values.sp_values, places, index.length, values.fill_value, blocks)


def _reduce_strings(writer: DataWriter, values: Any) -> Any:
    dtype = values.dtype
    pandas = sys.modules["pandas"]
    nan = getattr(dtype, "na_value", pandas.NA) is not pandas.NA
    if dtype.storage == "python":
        return make_strings, ("python", nan, values.to_numpy(object, na_value=None).tolist())
    return make_arrow_strings, (nan, values.__arrow_array__())


def _reduce_arrow_column(writer: DataWriter, values: Any) -> Any:
    return make_arrow_column, (values.__arrow_array__(),)


def _reduce_pandas_dtype(writer: DataWriter, dtype: Any) -> Any:
    values = sys.modules["pandas"].array([], dtype=dtype)
    if values.dtype != dtype:
        raise untrusted("the pandas dtype %s" % dtype)
    return make_pandas_dtype, (values,)


def _reduce_index(writer: DataWriter, index: Any) -> Any:
    has_freq = type(index).__name__ in ("DatetimeIndex", "TimedeltaIndex")
    freq = _frequency_name(index.freq) if has_freq else None
    return make_index, (_sent_column(index._values), index.name, freq)


def _reduce_range_index(writer: DataWriter, index: Any) -> Any:
    return make_range_index, (index.start, index.stop, index.step, index.name)


def _reduce_multi_index(writer: DataWriter, index: Any) -> Any:
    sent = [sent_integers(writer, code) for code in index.codes]
    kinds, codes = [kind for kind, _ in sent], [raw for _, raw in sent]
    parts = (list(index.levels), kinds, list(index.names), index.sortorder)
    return make_multi_index, (*parts, *codes)


def _reduce_series(writer: DataWriter, series: Any) -> Any:
    duplicates = series.flags.allows_duplicate_labels
    values = _sent_column(series._values)
    parts = (values, series.index, series.name, dict(series.attrs), duplicates)
    return make_series, parts


def _reduce_frame(writer: DataWriter, frame: Any) -> Any:
    blocks: Any = []
    for block in frame._mgr.blocks:
        places, values = block.mgr_locs.as_array.tolist(), block.values
        if not places:
            continue
        if getattr(values, "ndim", 1) == 1:
            blocks.append((places, values))
        elif values.dtype.kind in "mM" and getattr(values, "tz", None) is None:
            blocks.append((places, getattr(values, "_ndarray", values)))
        elif type(values).__module__ == "numpy":
            blocks.append((places, _sent_column(values)))
        else:  # times with a zone, or periods: one block for each column
            blocks += [([place], values[row]) for row, place in enumerate(places)]
    duplicates = frame.flags.allows_duplicate_labels
    return make_frame, (frame.index, frame.columns, blocks, dict(frame.attrs), duplicates)


@library_reducers("pandas")
def pandas_reducers(pandas: Any) -> Any:
    arrays = pandas.arrays
    found = {
        type(pandas.NaT): lambda _, v: (make_missing, ("NaT",)),
        type(pandas.NA): lambda _, v: (make_missing, ("NA",)),
        pandas.Timestamp: _reduce_timestamp,
        pandas.Timedelta: _reduce_pandas_timedelta,
        pandas.Period: lambda _, v: (make_period, (v.ordinal, _period_name(v.freq))),
        pandas.Interval: lambda _, v: (make_interval, (v.left, v.right, v.closed)),
        arrays.DatetimeArray: _reduce_datetimes,
        arrays.TimedeltaArray: lambda _, v: (make_timedeltas, (v._ndarray,)),
        arrays.PeriodArray: _reduce_periods,
        arrays.IntervalArray: _reduce_intervals,
        pandas.Categorical: _reduce_categorical,
        arrays.SparseArray: _reduce_sparse,
        arrays.ArrowExtensionArray: _reduce_arrow_column,
        _numpy_column(pandas): lambda _, v: (make_numpy_column, (v.to_numpy(),)),
        pandas.RangeIndex: _reduce_range_index,
        pandas.MultiIndex: _reduce_multi_index,
        pandas.Series: _reduce_series,
        pandas.DataFrame: _reduce_frame,
    }
    for name in ("BooleanArray", "IntegerArray", "FloatingArray"):
        found[getattr(arrays, name)] = _reduce_nullable
    for name in ("Datetime", "Timedelta", "Period", "Interval", "Categorical", ""):
        found[getattr(pandas, name + "Index")] = _reduce_index
    for spec in ("string[python]", "string[pyarrow]", "str"):
        try:
            values = pandas.array([], dtype=spec)
        except ImportError:  # pyarrow is not installed
            continue
        if type(values.dtype) is pandas.StringDtype:
            found[type(values)] = _reduce_strings
    for kind in vars(pandas).values():
        if isinstance(kind, type) and issubclass(kind, pandas.api.extensions.ExtensionDtype):
            found[kind] = _reduce_pandas_dtype
    for kind in vars(pandas.offsets).values():
        if isinstance(kind, type):
            found[kind] = lambda _, v: (make_offset, (_frequency_name(v),))
    return found
