"""Hostile streams for the data-only codec, made at random but near what it accepts.

Rule: a stream is opcodes. Any bytes are refused at the first of them, so a stream here is made of
calls of constructors with arguments of about the right kind, shared by the memo now and then.
"""

from __future__ import annotations

import copy
import pickle
import struct
from typing import Any

import numpy as np
from hypothesis import strategies as st

from bridgehead._shipped.data import pyarrow as _arrow
from bridgehead._shipped.data.registry import CONSTRUCTORS
from support.data import codec_call, data, pickled

CODES = st.sampled_from(["|i1", "<i4", "<i8"])
COUNTS = st.sampled_from([0, 1, 2, 3, 8, 9, 1 << 16, 1 << 33, -1])
SMALL = st.integers(0, 3)
SCALARS = st.one_of(
    st.sampled_from([None, True, 0, 1, -1, 2, 1.5, float("nan"), "", "a", "NaT", b"", b"ab"]),
    st.sampled_from([1 << 40, -(1 << 63), (1 << 61) - 1, 10**30, "x" * 300, "1E+500", "both"]),
)
UNITS = st.sampled_from(["s", "ms", "us", "ns", "D", "h", "W-TUE", "ME", "Y", "2D", "-1D", "min"])
ZONES = st.sampled_from([None, "UTC", "Europe/Berlin", "+01:00", "US/Eastern", "Nowhere"])
DTYPES = st.sampled_from(
    [
        *("<i1", "<i4", "<i8", ">i8", "<u8", "<f2", "<f4", "<f8", "<f16", "<c16", "|b1", "<U1"),
        *("|S2", "|V3", "<M8[ns]", "<M8[s]", "<m8[us]", "<M8[25D]", "<M8", "<U0"),
        ("array", "<i4", (2,)),
        ("struct", [("a", "<i4", 0), ("b", "|b1", 4)], 8, False, False),
    ]
)


def filled(draw: Any, count: int) -> bytes:
    """Draw bytes, of which some are extremes."""
    how = draw(st.sampled_from(["zeros", "ones", "few", "any"]))
    if how == "any":
        return draw(st.binary(min_size=count, max_size=count))
    if how == "few":
        kinds = st.sampled_from([0, 1, 2, 97, 127, 128, 255])
        return bytes(draw(st.lists(kinds, min_size=count, max_size=count)))
    return (b"\0" if how == "zeros" else b"\xff") * count


def buffer(raw: bytes) -> bytes:
    return data(bytearray(raw))


# ---------------------------------------------------------------- Arrow


@st.composite
def arrow_types(draw: Any, depth: int = 0) -> Any:
    plain = ("null", *_arrow._ARROW_BITS, *_arrow._ARROW_TEXTS)
    nested = ("list_", "large_list", "list_ of one size", "struct", "map_", "dictionary")
    kinds = (*plain, "unit", "decimal", "bytes of one size", *(nested * 3 if depth < 3 else ()))
    name = draw(st.sampled_from(kinds))
    if name in plain:
        return (name,)
    if name == "unit":
        name = draw(st.sampled_from(sorted(_arrow._ARROW_UNITS)))
        unit = draw(st.sampled_from(_arrow._ARROW_UNITS[name]))
        return (name, unit, draw(ZONES)) if name == "timestamp" else (name, unit)
    if name == "decimal":
        name = draw(st.sampled_from(sorted(_arrow._DECIMALS)))
        return (name, draw(st.integers(1, 9)), draw(st.sampled_from([0, 2, -3, 40])))
    if name == "bytes of one size":
        return ("binary", draw(SMALL))
    if name == "dictionary":
        index = draw(st.sampled_from(["int8", "uint8", "int32", "uint64"]))
        return (name, (index,), draw(arrow_types(3)), draw(st.booleans()))
    fields = [(draw(st.sampled_from(["", "a"])), draw(arrow_types(depth + 1)), True, [])]
    if name == "struct":
        fields += [("b", draw(arrow_types(depth + 1)), True, [])] * draw(st.integers(0, 1))
        return (name, fields)
    if name == "map_":
        return (name, (*fields[0][:2], False, []), fields[0], draw(st.booleans()))
    return ("list_", fields[0], draw(SMALL)) if "size" in name else (name, fields[0])


def arrow_layout(draw: Any, kind: Any, length: int, out: list[Any]) -> Any:
    """Draw the buffers of an array, and return its layout."""
    name = kind[0]
    if name == "dictionary":
        arrow_layout(draw, kind[1], length, out)
        count = draw(SMALL)
        return (length, (arrow_layout(draw, kind[2], count, out),))
    masked = name != "null" and draw(st.booleans())
    out.append(filled(draw, length + 7 >> 3) if masked else None)
    bits = {"binary": 8 * kind[1] if len(kind) == 2 else None, "time32": 32, **_arrow._ARROW_BITS}
    bits.update(dict.fromkeys(("timestamp", "time64", "duration"), 64))
    bits.update({each: width for each, (width, _) in _arrow._DECIMALS.items()})
    if bits.get(name) is not None:
        out.append(filled(draw, length * bits[name] + 7 >> 3))
        return length
    if name == "null":
        return length
    if name == "struct":
        return (length, *[arrow_layout(draw, field[1], length, out) for field in kind[1]])
    if name == "list_" and len(kind) == 3:
        return (length, arrow_layout(draw, kind[1][1], length * kind[2], out))
    count = draw(SMALL)
    places = sorted(draw(st.lists(st.integers(0, count), min_size=length + 1, max_size=length + 1)))
    places[-1] = count
    if draw(st.integers(0, 9)) == 0:
        places[draw(st.integers(0, length))] = draw(st.sampled_from([-1, 9, 2**31 - 1]))
    wide = name.startswith("large")
    out.append(struct.pack(f"<{length + 1}{'q' if wide else 'i'}", *places))
    if name in _arrow._ARROW_TEXTS:
        out.append(filled(draw, count))
        return length
    if name == "map_":
        out.append(None)
        return (length, (count, *[arrow_layout(draw, kind[n][1], count, out) for n in (1, 2)]))
    return (length, arrow_layout(draw, kind[1][1], count, out))


@st.composite
def arrow_calls(draw: Any) -> bytes:
    kind, out = draw(arrow_types()), []
    layout = arrow_layout(draw, kind, draw(st.sampled_from([0, 1, 2, 3, 9])), out)
    if out and draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(out) - 1))
        out[at] = draw(st.one_of(st.none(), st.binary(max_size=9)))
    form = draw(st.sampled_from(["array", "chunks", "table", "batch"]))
    layouts: Any = [layout]
    if form in ("table", "batch"):
        kind, layouts = ([("x", kind, True, [])], []), [[layout] if form == "table" else layout]
    buffers = [b"N" if raw is None else buffer(raw) for raw in out]
    return codec_call("make_arrow", form, kind, layouts, *buffers)


# ---------------------------------------------------------------- the other constructors


@st.composite
def arrays(draw: Any) -> bytes:
    dtype = draw(DTYPES)
    count = draw(SMALL)
    size = {"<f16": 16, "<c16": 16}.get(dtype if type(dtype) is str else "", 8)
    if type(dtype) is str and "8[" not in dtype and dtype[2:].isdigit():
        size = int(dtype[2:]) * (4 if dtype[1] == "U" else 1)
    shape: Any = (count,)
    if draw(st.integers(0, 9)) == 0:
        shape = tuple(draw(st.lists(COUNTS, max_size=3)))
    return codec_call("make_array", dtype, shape, "C", buffer(filled(draw, size * count)))


def lists(parts: Any) -> Any:
    return st.lists(parts, max_size=4).map(lambda items: b"](" + b"".join(items) + b"e")


def calls(parts: Any) -> Any:
    """Return calls whose arguments are ``parts``, or of the kind that the constructor takes."""
    counted = lists(parts)
    objects = st.builds(
        lambda items: codec_call("make_objects", (items.count(b"\xff\xfe"),), "C", items), counted
    ) | st.lists(parts, max_size=3).map(
        lambda items: codec_call("make_objects", (len(items),), "C", b"](" + b"".join(items) + b"e")
    )
    column = st.one_of(arrays(), objects, arrow_calls(), parts)
    index = st.one_of(
        column.map(lambda values: codec_call("make_index", values, None, None)),
        st.builds(
            lambda *ends: codec_call("make_range_index", *ends, None),
            *(COUNTS, COUNTS, st.sampled_from([1, 2, -1])),
        ),
    )
    label = st.one_of(parts, SCALARS.map(data))
    flag = st.booleans()
    codes = st.binary(max_size=3).map(buffer) | SMALL.map(lambda n: buffer(bytes(8 * n)))
    made = {
        "make_index": (column, label, st.none() | UNITS),
        "make_series": (column, index, label, st.just({}), flag),
        "make_categorical": (CODES, codes, index, flag),
        "make_multi_index": (
            index.map(lambda one: b"](" + one + b"e"),
            CODES.map(lambda one: [one]),
            label.map(lambda one: b"](" + one + b"e"),
            st.none() | SMALL,
            codes,
        ),
        "make_sparse": (column, codes, COUNTS, SCALARS.map(data), flag),
        "make_numpy_column": (column,),
        "make_arrow_column": (column,),
        "make_pandas_dtype": (column,),
        "make_records": (column,),
        "make_masked": (column, st.none() | column, st.just(()), flag),
        "make_datetimes": (column, ZONES),
        "make_timedeltas": (column,),
        "make_periods": (column, UNITS),
        "make_intervals": (column, column, st.sampled_from(["both", "left"])),
        "make_nullable": (
            *(st.sampled_from(["BooleanArray", "IntegerArray", "FloatingArray"]), column, column),
        ),
        "make_texts": (
            *(SMALL.map(lambda n: (n,)), counted, label.map(lambda one: b"(" + one + b"t"), flag),
        ),
        "make_strings": (st.sampled_from(["python", "pyarrow"]), flag, counted),
        "make_arrow_strings": (flag, column),
        "make_timestamp": (COUNTS, UNITS, ZONES, SMALL),
        "make_pandas_timedelta": (COUNTS, UNITS),
        "make_period": (COUNTS, UNITS),
        "make_offset": (UNITS,),
        "make_interval": (label, label, st.just("both")),
        "make_frame": (
            index,
            index,
            column.map(lambda one: b"](](K\0e" + one + b"te"),
            st.just({}),
            flag,
        ),
    }
    known = [
        st.builds(lambda *args, name=name: codec_call(name, *args), *args)
        for name, args in made.items()
    ]
    anything = st.sampled_from(sorted(CONSTRUCTORS)).flatmap(
        lambda name: st.lists(
            st.one_of(parts, SCALARS.map(data)), max_size=len(CONSTRUCTORS[name][1])
        ).map(lambda args: codec_call(name, *args))
    )
    return st.one_of(*known, objects, anything)


def shared(parts: Any) -> Any:
    """Return containers in which an earlier value comes again, by the memo."""
    number = st.integers(0, 3).map(lambda n: b"h" + bytes([n]))
    several = st.lists(st.one_of(parts.map(lambda one: one + b"\x94"), number), max_size=4)
    return several.map(lambda items: b"(" + b"".join(items) + b"t\x94")


MAPPINGS = st.sampled_from(["make_counter", "make_ordered"]).map(codec_call)
FIVE = (1 << 61) + 4  # which has the hash of 5
NUMBERS = st.sampled_from(
    [
        *(codec_call("make_decimal", text) for text in ("5", str(FIVE), "1E+500")),
        *(data(5), data(5 + (FIVE - 5 << 9000)), codec_call("make_fraction", FIVE, 1 << 61)),
    ]
)
VALUES = st.recursive(
    st.one_of(SCALARS.map(data), NUMBERS, arrays(), arrow_calls()),
    lambda parts: st.one_of(
        lists(parts),
        lists(parts).map(lambda items: items.replace(b"](", b"(", 1)[:-1] + b"t"),
        st.tuples(parts, parts).map(lambda pair: b"}" + pair[0] + pair[1] + b"s"),
        st.tuples(MAPPINGS, parts, parts).map(lambda three: b"".join(three) + b"s"),
        lists(parts).map(lambda items: b"\x8f" + items[1:-1] + b"\x90"),
        calls(parts),
        calls(parts),
        shared(parts),
    ),
    max_leaves=6,
)
STREAMS = VALUES.map(pickled)


# ---------------------------------------------------------------- what a caller does with a value

UNSAFE = (RecursionError, MemoryError, SystemError)


def use(value: Any, again: Any) -> None:
    """Hash, compare, print and convert a value; it may refuse, but not end the process."""
    for function in (
        *(repr, str, hash, list, len, bool, np.asarray, copy.deepcopy, pickle.dumps),
        lambda v: v == again,
        *(lambda v: v.tolist(), lambda v: v.to_pylist(), lambda v: v.to_pandas().to_string()),
        *(lambda v: v.to_numpy(), lambda v: repr(v + v), lambda v: v.unique(), lambda v: v.sum()),
        *(lambda v: v.equals(again), lambda v: v.astype(object), lambda v: v.to_frame()),
    ):
        try:
            function(value)
        except UNSAFE:
            raise
        except Exception:
            pass
