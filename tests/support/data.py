"""Values that are data, comparisons of values, and checks of refusals.

Rule: a refusal is checked together with the interpreter's audit events, so that a test sees code
that ran.
"""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import enum
import fractions
import io
import math
import os
import pickle
import struct
import sys
import tracemalloc
import uuid
import zoneinfo
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from bridgehead._shipped.data import decode_data, encode_data, writer
from bridgehead._shipped.wire.errors import WireError
from support.memory import trace_anew

MEBIBYTE = 1 << 20


def sent(value: Any, allow: Sequence[type] = ()) -> Any:
    """Encode and decode a value, in the receiver's own memory; return the result."""
    names = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in allow}
    frames = [memoryview(bytearray(frame)) for frame in encode_data(value, set(names))]
    return decode_data(frames, names)


def same(one: Any, other: Any) -> bool:
    """Return whether two values are equal, with equal types and equally shared parts."""
    pairs, seen = [(one, other)], {}
    while pairs:
        a, b = pairs.pop()
        if a is b:  # a singleton, or immutable and so not copied
            continue
        if type(a) is not type(b):
            return False
        if id(a) in seen:
            if seen[id(a)] is not b:
                return False
            continue
        if not isinstance(a, (int, str, bytes, float, type(None), tuple, enum.Enum)):
            seen[id(a)] = b
        known = kind_of(a)
        if known is not None:
            if not known(a, b):
                return False
        elif isinstance(a, dict):
            if len(a) != len(b):
                return False
            pairs += [*zip(a, b, strict=True), *zip(a.values(), b.values(), strict=True)]
            if getattr(a, "default_factory", None) is not getattr(b, "default_factory", None):
                return False
        elif isinstance(a, (list, tuple, collections.deque)):
            if len(a) != len(b) or getattr(a, "maxlen", None) != getattr(b, "maxlen", None):
                return False
            pairs += zip(a, b, strict=True)
        elif isinstance(a, complex):
            pairs += [(a.real, b.real), (a.imag, b.imag)]
        elif isinstance(a, float):
            if struct.pack("d", a) != struct.pack("d", b):
                return False
        elif isinstance(a, decimal.Decimal):
            if a.as_tuple() != b.as_tuple():
                return False
        elif not a == b:
            return False
    return True


def kind_of(value: Any) -> Callable[[Any, Any], bool] | None:
    for kinds, compare in COMPARED:
        if isinstance(value, kinds):
            return compare
    return None


def same_arrays(a: Any, b: Any) -> bool:
    """Compare dtype, shape, order and writability, then bits, or items if they are objects."""
    flags = ("c_contiguous", "f_contiguous") if a.flags.contiguous or a.flags.fnc else ()
    if a.dtype != b.dtype or a.dtype.isalignedstruct != b.dtype.isalignedstruct:
        return False
    if a.shape != b.shape or any(getattr(a.flags, f) != getattr(b.flags, f) for f in flags):
        return False
    if a.dtype.hasobject:
        return same(a.ravel().tolist(), b.ravel().tolist())
    return a.tobytes() == b.tobytes()


def same_masked(a: Any, b: Any) -> bool:
    if a is np.ma.masked:
        return b is np.ma.masked
    fine = same_arrays(np.asarray(a), np.asarray(b)) and a.hardmask == b.hardmask
    fills = [x._fill_value if x._fill_value is None else x.fill_value.tobytes() for x in (a, b)]
    masks = [np.ma.getmask(x) is np.ma.nomask for x in (a, b)]
    return (
        fine
        and fills[0] == fills[1]
        and masks[0] == masks[1]
        and np.array_equal(np.ma.getmaskarray(a), np.ma.getmaskarray(b))
    )


def same_scalars(a: Any, b: Any) -> bool:
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


def holds(check: Callable[..., None], **options: Any) -> Callable[[Any, Any], bool]:
    def compare(a: Any, b: Any) -> bool:
        check(a, b, **options)
        flags, attrs = getattr(a, "flags", None), getattr(a, "attrs", {})
        assert getattr(b, "attrs", {}) == attrs
        return flags is None or flags == b.flags

    return compare


def same_indexes(a: Any, b: Any) -> bool:
    pd.testing.assert_index_equal(a, b, exact=True)
    if isinstance(a, (pd.DatetimeIndex, pd.TimedeltaIndex)):
        assert a.freq == b.freq
    return list(a.names) == list(b.names)


def same_arrow(a: Any, b: Any) -> bool:
    if isinstance(a, (pa.Table, pa.RecordBatch)):
        return a.equals(b, check_metadata=True)
    if isinstance(a, pa.ChunkedArray):
        return a.type == b.type and a.num_chunks == b.num_chunks and a.equals(b)
    return a.equals(b)


def same_moments(a: Any, b: Any) -> bool:
    parts = [(x.tzinfo, x.fold, getattr(x, "unit", None)) for x in (a, b)]
    return a == b and parts[0] == parts[1]


COMPARED: list[tuple[Any, Callable[[Any, Any], bool]]] = [
    (np.ma.MaskedArray, same_masked),
    (np.ndarray, same_arrays),
    (np.generic, same_scalars),
    (pd.DataFrame, holds(pd.testing.assert_frame_equal)),
    (pd.Series, holds(pd.testing.assert_series_equal)),
    (pd.Index, same_indexes),
    (pd.api.extensions.ExtensionArray, holds(pd.testing.assert_extension_array_equal)),
    ((pa.Table, pa.RecordBatch, pa.Array, pa.ChunkedArray), same_arrow),
    ((pa.Scalar, pa.Schema, pa.DataType), same_arrow),
    ((pd.Timestamp, datetime.datetime, datetime.time), same_moments),
]


def lap(value: Any) -> Any:
    """Put a container into itself and return it."""
    if isinstance(value, dict):
        value["itself"] = value
    else:
        value.append(value)
    return value


def tangled() -> Any:
    shared = [1]
    inner = (shared, {"shared": shared})
    shared.append(inner)
    return [inner, shared, {"deque": lap(collections.deque([shared]))}, frozenset([1, (2,)])]


def ordered(*keys: Any) -> Any:
    return collections.OrderedDict((key, index) for index, key in enumerate(keys))


def default(factory: Any) -> Any:
    made = collections.defaultdict(factory)
    made["a"] = [made]
    return made


PLAIN: dict[str, Any] = {
    "nothing": None,
    "truth": [True, False],
    "ints": [0, -1, 255, 256, 65535, 65536, -(2**31), 2**31, 2**63, -(2**64), 10**50, 7**4000],
    "floats": [0.0, -0.0, 1.5, math.inf, -math.inf, math.nan, 5e-324],
    "complex": [1j, complex(-0.0, math.nan)],
    "texts": ["", "a", "é", "\0", "𝒳", "\ud800", "x" * 255, "x" * 256, "x" * 70_000],
    "bytes": [b"", b"\x00", b"x" * 255, b"x" * 256, b"x" * 300_000],
    "bytearrays": [bytearray(), bytearray(b"x"), bytearray(b"x" * 300_000)],
    "lists": [[], [[]], [1], list(range(5000))],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), tuple(range(3000))],
    "dicts": [{}, {1: 2}, {None: 1, (1, "a"): 2, 1.5: 3, b"x": 4}, dict.fromkeys(range(5000))],
    "many keys": {f"key {n}": n / 2 for n in range(2500)},
    "sets": [set(), {1}, set(range(3000)), frozenset(), frozenset("abc"), {frozenset([1])}],
    "ranges": [range(0), range(1, 10, 3), range(10, -1, -1), range(10**30)],
    "slices": [slice(None), slice(1, None, -1), slice("a", "b"), slice(datetime.date(2020, 1, 2))],
    "an ellipsis": ...,
    "ordered": [collections.OrderedDict(), ordered("b", "a"), lap(ordered(1))],
    "deques": [collections.deque(), collections.deque([1, 2], 2), collections.deque(range(3000))],
    "a counter": collections.Counter("mississippi"),
    "defaults": [default(kind) for kind in (None, list, dict, set, int, float, str, tuple)],
    "itself": [lap([]), lap({}), lap(collections.deque()), lap(default(list))],
    "tangled": tangled(),
    "nested": [[[[[[[[(((((1,),),),),)]]]]]]]],
    "numbers": [
        *(array.array(code, [1, 2, 3]) for code in "bBhHiIlLqQfd"),
        *(array.array("d"), array.array("h", range(9000))),
    ],
    "dates": [datetime.date.min, datetime.date(2024, 2, 29)],
    "times": [
        datetime.time(1, 2, 3, 4),
        datetime.time(1, tzinfo=datetime.UTC),
        datetime.time(1, fold=1),
    ],
    "datetimes": [
        datetime.datetime(2020, 1, 2, 3, 4, 5, 6),
        datetime.datetime(2020, 10, 25, 2, 30, fold=1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
        datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=-3), "X")),
    ],
    "timedeltas": [datetime.timedelta.min, datetime.timedelta(1, 2, 3)],
    "time zones": [
        datetime.UTC,
        datetime.timezone(datetime.timedelta(minutes=7)),
        zoneinfo.ZoneInfo("America/Argentina/Buenos_Aires"),
    ],
    "decimals": [
        decimal.Decimal(text) for text in ("0", "-0.00", "1E+999", "NaN", "sNaN5", "-Inf")
    ],
    "fractions": [fractions.Fraction(1, 3), fractions.Fraction(-(10**50), 7)],
    "uuids": [uuid.UUID(int=0), uuid.UUID("12345678-1234-5678-1234-567812345678")],
}


def strided() -> Any:
    return np.arange(24).reshape(2, 3, 4)[:, ::-1, ::2]


def objects(*items: Any) -> Any:
    return np.fromiter(items, object, len(items))


POINT = np.dtype([("x", "<f8"), ("y", ">i2"), ("name", "<U3"), ("grid", "<u1", (2, 2))])
ALIGNED = np.dtype([("a", "i1"), ("b", "f8"), ("c", [("d", "?"), ("e", "M8[s]")])], align=True)
SPARSE = np.dtype({"names": ["b", "a"], "formats": ["i4", "i1"], "offsets": [8, 2], "itemsize": 20})
PLAIN_DTYPES = "? i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 g F D G >i4 >f8 >c16 U5 >U2 S3 V7".split()
PLAIN_DTYPES += ["M8[ns]", "M8[25s]", "m8[D]", "M8", ">m8[us]"]
NUMPY: dict[str, Any] = {
    **{f"array of {kind}": np.zeros((3, 2), kind) for kind in PLAIN_DTYPES},
    **{f"scalar of {kind}": np.ones((), kind)[()] for kind in PLAIN_DTYPES if kind != "V7"},
    **{f"nothing of {kind}": np.zeros((0, 4), kind) for kind in ("f8", "U5", "M8[s]", "O", "U0")},
    "numbers": np.random.default_rng(0).normal(size=(50, 60)),
    "no dimension": [np.array(5), np.array("x"), np.array(None, object)],
    "non-contiguous": strided(),
    "Fortran": np.asfortranarray(np.arange(600.0).reshape(20, 30)),
    "Fortran objects": np.asfortranarray(objects(*"abcdef").reshape(2, 3)),
    "broadcast": np.broadcast_to(np.float32(1), (10, 10)),
    "texts": np.array(["a", "bcd", "𝒳"]),
    "bytes": np.array([b"a", b"b\0c"]),
    "moments": np.array(["2020", "NaT"], "M8[ms]"),
    "structured": np.zeros(5, POINT),
    "structured, one": np.ones((), POINT)[()],
    "aligned": np.ones(3, ALIGNED),
    "with gaps": np.ones(3, SPARSE),
    "void": np.frombuffer(b"0123456", "V7")[0],
    "objects": objects([1, 2], (1,), None, "x", np.arange(3), np.array(5), {"a": objects()}),
    "long objects": objects(*range(3000)),
    "records": np.array([(1, 2.0), (3, 4.0)], [("a", "i4"), ("b", "f8")]).view(np.recarray),
    "records without fields": [
        np.zeros(3).view(np.recarray),
        np.asfortranarray(np.zeros((2, 3), "M8[s]")).view(np.recarray),
    ],
    "a record": np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")]).view(np.recarray)[0],
    "masked": np.ma.array([1, 2, 3], mask=[0, 1, 0], fill_value=7),
    "masked, not": np.ma.array([1.5, 2]),
    "masked, hard": np.ma.array([[1, 2]], mask=[[0, 1]], hard_mask=True),
    "masked, structured": np.ma.array([(1, 2)], mask=[(0, 1)], dtype="i4,f8"),
    "masked, texts": np.ma.array(["a", "b"], mask=[1, 0]),
    "masked itself": np.ma.masked,
    "strings": np.array(["a", "", "x" * 100], np.dtypes.StringDType()),
    "strings, missing": np.array([["a", None]], np.dtypes.StringDType(na_object=None)),
    "dtypes": [np.dtype(kind) for kind in PLAIN_DTYPES] + [POINT, ALIGNED, SPARSE, np.dtype("O")],
    "numpy texts": [np.str_("é"), np.bytes_(b"x"), np.str_("")],
    "numpy keys": {np.int64(1): 2, np.str_("a"): 3},
    "shared": [NUMBERS := np.arange(1000.0), NUMBERS, {"retry": NUMBERS}],
}

BERLIN = "Europe/Berlin"
DAYS = pd.date_range("2020", periods=3, name="days")
AWARE = pd.date_range("2020-03-28", periods=3, tz=BERLIN)
COLUMNS: dict[str, Any] = {
    "int": [1, 2, 3],
    "float16": np.array([1, 2, 3], "f2"),
    "big-endian": np.array([1, 2, 3], ">i4"),
    "complex": [1j, 2, 3],
    "str": ["a", None, "𝒳"],
    "string, python": pd.array(["a", None, "b"], "string[python]"),
    "string, pyarrow": pd.array(["a", None, "b"], "string[pyarrow]"),
    "str, python": pd.array(["a", None, "b"], pd.StringDtype("python", na_value=np.nan)),
    "object": np.array(["a", 1, None], object),
    "category": pd.Categorical(["a", None, "a"]),
    "ordered": pd.Categorical(["a", "b", "a"], ["b", "a", "c"], ordered=True),
    "category of numbers": pd.Categorical([3, 1, 3]),
    "datetime": DAYS,
    "datetime in seconds": pd.DatetimeIndex(DAYS).as_unit("s"),
    "datetime, aware": AWARE,
    "datetime, UTC": DAYS.tz_localize("UTC"),
    "datetime, offset": DAYS.tz_localize(datetime.timezone(datetime.timedelta(hours=2))),
    "timedelta": pd.to_timedelta([1, None, 3]),
    "period": pd.period_range("2020", periods=3, freq="M"),
    "period of weeks": pd.period_range("2020", periods=3, freq="W-WED"),
    "interval": pd.interval_range(0, 3),
    "interval of floats": pd.arrays.IntervalArray.from_breaks([0, 1.5, 2, 3], "both"),
    "interval of moments": pd.interval_range(AWARE[0], periods=3),
    "sparse": pd.arrays.SparseArray([0, 0, 1]),
    "sparse blocks": pd.arrays.SparseArray([math.nan, 0, 1], kind="block"),
    "sparse truth": pd.arrays.SparseArray([True, False, False]),
    **{kind: pd.array([1, None, 3], kind) for kind in ("Int8", "Int64", "UInt32", "Float32")},
    "boolean": pd.array([True, None, False], "boolean"),
    "arrow int": pd.array([1, None, 3], pd.ArrowDtype(pa.int16())),
    "arrow list": pd.array([[1], None, []], pd.ArrowDtype(pa.list_(pa.int64()))),
    "arrow moment": pd.array([DAYS[0], None, None], pd.ArrowDtype(pa.timestamp("us", "UTC"))),
}


def flagged(frame: Any) -> Any:
    frame.attrs["source"] = {"rows": [1, 2]}
    return frame.set_flags(allows_duplicate_labels=False)


PANDAS: dict[str, Any] = {
    **{f"column of {name}": pd.Series(values) for name, values in COLUMNS.items()},
    **{f"array of {name}": pd.Series(values).array for name, values in COLUMNS.items()},
    "frame of all columns": pd.DataFrame(
        {**COLUMNS, **{f"{name} again": values for name, values in COLUMNS.items()}}
    ),
    "scalars": [
        *(pd.NaT, pd.NA, DAYS[0], AWARE[1], pd.Timestamp(5, unit="s"), pd.Timedelta("1ns")),
        *(pd.Timedelta(3, "s"), pd.Period("2020-05", "M"), pd.Interval(1, 2.5, "both")),
        *(pd.Interval(DAYS[0], DAYS[1]), pd.Timestamp("2020").replace(fold=1)),
        pd.Timestamp("2020-10-25 01:30", tz="UTC").tz_convert(BERLIN),
    ],
    "offsets": [pd.offsets.Hour(3), pd.offsets.MonthEnd(), pd.offsets.Week(2, weekday=3)],
    "dtypes": [pd.Series(values).dtype for values in COLUMNS.values()],
    "a plain index": pd.Index([1.5, 2], name="x"),
    "an index of tuples": pd.Index([(1, 2), (3,)], tupleize_cols=False),
    "an index of everything": pd.Index(["a", 1, None, (1, 2)]),
    **{
        f"index of {name}": pd.Index(pd.Series(values))
        for name, values in COLUMNS.items()
        if name not in ("float16", "arrow list")
    },
    "a range": pd.RangeIndex(10, 2, -3, name=("a", 1)),
    "an index of categories": pd.CategoricalIndex(["b", "a"], ordered=True, name="c"),
    "with a freq": [
        DAYS,
        AWARE,
        pd.date_range("2020", periods=4, freq="W-TUE", tz="UTC"),
        pd.bdate_range("2020", periods=9),
        pd.timedelta_range(0, periods=3, freq="2h"),
        pd.date_range("2020", periods=3, freq="MS"),
        DAYS[:0],
    ],
    "levels": pd.MultiIndex.from_arrays([[1, None, 1], DAYS, list("aba")], names=["x", None, "x"]),
    "no levels": pd.MultiIndex.from_product([[], ["a"]]),
    "a named series": pd.Series([1, 2], index=["a", "b"], name=("x", 1)),
    "a flagged series": flagged(pd.Series([1])),
    "a flagged frame": flagged(pd.DataFrame({"a": [1]})),
    "the same label twice": pd.DataFrame([[1, 2.0, "x"], [3, 4.0, "y"]], columns=["a", "a", "b"]),
    "levels on both sides": pd.DataFrame(
        np.arange(8.0).reshape(4, 2),
        pd.MultiIndex.from_product([["a", "b"], DAYS[:2]], names=["x", "y"]),
        pd.MultiIndex.from_tuples([("p", 1), ("q", 2)]),
    ),
    "names of both axes": pd.DataFrame({"a": [1]}).rename_axis(index="i", columns="c"),
    "no frame": [
        pd.DataFrame(),
        pd.DataFrame(index=[1, 2]),
        pd.DataFrame(columns=["a"]),
        pd.DataFrame({"a": []}, dtype="i4"),
        pd.DataFrame(COLUMNS).iloc[:0],
    ],
    "a slice of a frame": pd.DataFrame(np.arange(40.0).reshape(10, 4)).iloc[::3, 1:3],
    "a wide frame": pd.DataFrame(np.arange(3000).reshape(2, 1500)),
    "columns one by one": pd.DataFrame({name: pd.Series([name]) for name in "abcdefgh"}),
    "frames in a frame": pd.Series([pd.DataFrame({"a": [1]}), pd.Series([2])], dtype=object),
}


def arrives_as_it_was_sent(value: Any, in_band: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "IN_BAND", in_band)
    assert same(value, sent(value))
    assert same([value, value], sent([value, value]))


watched: list[str] | None = None


def watch(event: str, args: tuple[Any, ...]) -> None:
    if watched is not None and event != "builtins.id":
        watched.append(event)


sys.addaudithook(watch)  # it stays for ever, because audit hooks cannot be removed


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def data(value: Any) -> bytes:
    """Return the opcodes that push a plain value and do not use the memo."""
    if type(value) is bytearray:
        return b"\x96" + struct.pack("<Q", len(value)) + value
    file = io.BytesIO()
    pickler = pickle.Pickler(file, 3)
    pickler.fast = True
    pickler.dump(value)
    return file.getvalue()[2:-1]


def named(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def called(module: str, name: str, *args: Any) -> bytes:
    """Return a call of a global by STACK_GLOBAL and REDUCE; arguments of bytes are opcodes."""
    pushed = b"".join(arg if type(arg) is bytes else data(arg) for arg in args)
    return text(module) + text(name) + b"\x93(" + pushed + b"tR"


def codec_call(name: str, *args: Any) -> bytes:
    return called("bridgehead._shipped.data", name, *args)


def pickled(*parts: bytes) -> bytes:
    return b"\x80\x05" + b"".join(parts) + b"."


TRACE = Path("/tmp") / f"bridgehead-trace-{os.getpid()}"


def refused(raw: Any) -> tuple[str, Any]:
    """Return the kind of a refusal and the type that it names."""
    error = refusal_of(raw, MEBIBYTE)
    return error.kind, error.details.get("type")


def refusal_of(raw: Any, limit: int) -> WireError:
    """Return the error that refuses frames; check that nothing else happened.

    The interpreter reports no import, file, process, compilation or lookup of a pickle's name. No
    trace is left. Memory never exceeds ``limit`` bytes.
    """
    global watched
    frames = [raw] if isinstance(raw, bytes) else raw
    caught, before = None, set(sys.modules)
    assert not TRACE.exists()
    trace_anew()
    watched = []
    try:
        decode_data(frames)
    except WireError as error:
        caught = error
    finally:
        events, watched = watched, None
        peak = tracemalloc.get_traced_memory()[1]
    assert caught is not None
    assert events == []
    assert set(sys.modules) == before
    assert not TRACE.exists()
    assert "BRIDGEHEAD_TRACE" not in os.environ
    assert peak < limit, str(caught)
    assert len(str(caught)) < 500
    return caught
