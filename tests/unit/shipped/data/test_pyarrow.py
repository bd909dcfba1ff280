"""Data of pyarrow arrives as it was sent, and hostile Arrow streams are refused."""

from __future__ import annotations

import datetime
import decimal
import json
import struct
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from bridgehead._shipped.data import decode_data, encode_data
from bridgehead._shipped.wire.errors import WireError
from support.data import (
    BERLIN,
    arrives_as_it_was_sent,
    codec_call,
    data,
    pickled,
    refusal_of,
    refused,
    sent,
)

# ---------------------------------------------------------------- data

TABLE = pa.table(
    {"a": [1, None, 3], "s": ["x", "y", None], "l": [[1], [], None]}
).replace_schema_metadata({"who": "me"})
ARROW: dict[str, Any] = {
    "table": TABLE,
    "table in chunks": pa.concat_tables([TABLE, TABLE]),
    "empty table": TABLE.slice(0, 0),
    "no columns": pa.table({}),
    "long table": pa.table({"x": np.arange(10_000.0)}),
    "slice": TABLE.slice(1, 1),
    "batch": TABLE.to_batches()[0],
    "array": pa.array([1.5, None]),
    "slice of an array": pa.array(list(range(100))).slice(3, 5),
    "dictionary": pa.array(["a", "b", "a"]).dictionary_encode(),
    "structs": pa.array([{"a": 1, "b": [datetime.date(2020, 1, 1)]}, None]),
    "chunks": pa.chunked_array([[1], [2, 3]]),
    "no chunks": pa.chunked_array([], pa.int8()),
    "scalars": [
        pa.scalar(1),
        pa.scalar("x"),
        pa.scalar(None),
        pa.scalar([1, 2]),
        pa.scalar({"a": 1}),
        pa.scalar(decimal.Decimal("1.5")),
    ],
    "schema": TABLE.schema,
    "types": [
        pa.int8(),
        pa.list_(pa.string()),
        pa.struct([("a", pa.int64())]),
        pa.null(),
        pa.timestamp("ns", BERLIN),
        pa.dictionary(pa.int8(), pa.string()),
    ],
}


@pytest.mark.parametrize("value", ARROW.values(), ids=[f"arrow: {name}" for name in ARROW])
@pytest.mark.parametrize("in_band", [0, 1 << 30], ids=["out of band", "in band"])
def test_pyarrow_data_arrives_as_it_was_sent(
    value: Any, in_band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrives_as_it_was_sent(value, in_band, monkeypatch)


ROWS = 300  # more than a byte of the masks, and more than IN_BAND bytes of some buffers
NUMBERS = [None if n % 7 == 3 else n % 100 for n in range(ROWS)]
WORDS = [None if n is None else "é" * (n % 5) for n in NUMBERS]
MOMENT = datetime.datetime(2020, 1, 2)
COLUMNS: dict[str, Any] = {
    **{str(kind): pa.array(NUMBERS, kind) for kind in (pa.int8(), pa.uint64(), pa.float64())},
    "float16": pa.array([None if n is None else np.float16(n) for n in NUMBERS], pa.float16()),
    "bool": pa.array([None if n is None else n % 3 == 0 for n in NUMBERS]),
    "null": pa.nulls(ROWS),
    "text": pa.array(WORDS),
    "long text": pa.array(WORDS, pa.large_string()),
    "bytes": pa.array(
        [None if word is None else word.encode() for word in WORDS], pa.large_binary()
    ),
    "bytes of one size": pa.array([None, b"abc"] * (ROWS // 2), pa.binary(3)),
    "dates": pa.array([MOMENT.date(), None] * (ROWS // 2), pa.date64()),
    "times": pa.array([MOMENT.time(), None] * (ROWS // 2), pa.time32("ms")),
    "long times": pa.array([MOMENT.time(), None] * (ROWS // 2), pa.time64("ns")),
    "moments": pa.array([MOMENT, None] * (ROWS // 2), pa.timestamp("ms", "+02:30")),
    "durations": pa.array([datetime.timedelta(1), None] * (ROWS // 2), pa.duration("s")),
    "intervals": pa.array([(1, 2, 3), None] * (ROWS // 2), pa.month_day_nano_interval()),
    "decimals": pa.array([decimal.Decimal("1.50"), None] * (ROWS // 2), pa.decimal256(50, 2)),
    "lists": pa.array([None if word is None else [*word] for word in WORDS]),
    "long lists": pa.array(
        [None if word is None else [*word] for word in WORDS], pa.large_list(pa.string())
    ),
    "lists of one size": pa.array([[1, None], None] * (ROWS // 2), pa.list_(pa.int32(), 2)),
    "structures": pa.array([{"a": n, "b": [{"c": "x"}]} for n in NUMBERS]),
    "maps": pa.array(
        [[("a", 1), ("b", None)], None, []] * (ROWS // 3), pa.map_(pa.string(), pa.int8())
    ),
    "dictionary": pa.array(WORDS).dictionary_encode(),
    "ordered": pa.DictionaryArray.from_arrays(
        pa.array([0, None, 1] * (ROWS // 3), pa.int8()), pa.array([1.5, 2.5]), ordered=True
    ),
}


@pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS)
def test_any_part_of_a_column_arrives_as_it_was_sent(column: Any) -> None:
    for part in (
        column,
        column[:0],
        column[3:3],
        column[3:20],
        column[8:],
        column[:9],
        column[-1:],
    ):
        got = sent(part)
        got.validate(full=True)
        assert got.equals(part)
        assert got.to_pylist() == part.to_pylist()
        assert got.type.equals(part.type, check_metadata=True)
        assert sent(pa.table({"x": part})).equals(pa.table({"x": part}))


def test_a_slice_sends_its_own_bytes() -> None:
    table = pa.table({"x": np.arange(1_000_000), "s": ["abc"] * 1_000_000})
    frames = encode_data(table.slice(500_001, 10))
    assert sum(frame.nbytes for frame in frames) < 2000


def test_a_dictionary_that_many_chunks_share_crosses_once() -> None:
    words = pa.array(["x" * 100 + str(n) for n in range(1000)])
    chunks = [pa.DictionaryArray.from_arrays(pa.array([n], pa.int16()), words) for n in range(50)]
    frames = encode_data(pa.chunked_array(chunks))
    assert sum(frame.nbytes for frame in frames) < 2 * words.nbytes
    assert decode_data(frames).to_pylist() == [word.as_py() for word in words[:50]]


def test_large_arrays_are_views_of_the_sent_buffers() -> None:
    array = pa.array(np.arange(100_000.0))
    frame = encode_data(array)[1]
    assert np.shares_memory(np.frombuffer(frame, "u1"), array.to_numpy())


FIELD = ("x", ("int64",), True, [])


def test_field_names_nullability_and_metadata_arrive() -> None:
    fields = [
        pa.field("a", pa.list_(pa.field("it", pa.int8(), False, {"k": "v"})), False, {b"x": b"y"}),
        pa.field("a", pa.struct([pa.field("", pa.null())])),
    ]
    schema = pa.schema(fields, {"who": "me"})
    assert sent(schema).equals(schema, check_metadata=True)
    frame = pd.DataFrame({"a": [1, 2]}, index=pd.Index([3, 4], name="i"))
    assert sent(pa.Table.from_pandas(frame)).to_pandas().equals(frame)


# ---------------------------------------------------------------- what is refused


LEFT_OUT = {
    "an extension type": pa.array([b"x" * 16], pa.uuid()),
    "a view": pa.array(["a"], pa.string_view()),
    "views of lists": pa.array([[1]], pa.list_view(pa.int8())),
    "a union": pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])]),
    "run ends": pa.RunEndEncodedArray.from_arrays([2], ["a"]),
    "a structure without fields": pa.array([{}], pa.struct([])),
    "a dictionary of lists": pa.DictionaryArray.from_arrays([0], pa.array([[1]])),
    "a field of an extension type": pa.struct([("a", pa.uuid())]),
    "rows without columns": pa.table({"a": [1]}).select([]),
}


@pytest.mark.parametrize("value", LEFT_OUT.values(), ids=LEFT_OUT)
def test_arrow_data_that_is_left_out_is_refused_by_name(value: Any) -> None:
    with pytest.raises(WireError, match="pyarrow.* is not data") as caught:
        encode_data([value])
    assert caught.value.kind == "untrusted"


def arrow(kind: str, description: Any, layouts: Any, *buffers: Any) -> bytes:
    pushed = [b"N" if raw is None else data(bytearray(raw)) for raw in buffers]
    return pickled(codec_call("make_arrow", kind, description, layouts, *pushed))


def array_of(description: Any, layout: Any, *buffers: Any) -> bytes:
    return arrow("array", description, [layout], *buffers)


def offsets(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}i", *numbers)


ITEMS = ("list_", ("item", ("int8",), True, []))
KEYS = ("map_", ("key", ("int8",), False, []), ("value", ("int8",), True, []), False)
DEEP: Any = ("int8",)
for _ in range(60):
    DEEP = ("list_", ("item", DEEP, True, []))


def structures(rows: int, depth: int) -> tuple[Any, Any]:
    """Return the description and the layout of nulls in structures in structures."""
    kind: Any = ("null",)
    layout: Any = rows
    for _ in range(depth):
        kind, layout = ("struct", [("a", kind, True, [])]), (rows, layout)
    return kind, layout


EXTENSION = [(b"ARROW:extension:name", b"arrow.uuid")]
HOSTILE: dict[str, bytes] = {
    "a stream in Arrow's format": arrow("table", ([FIELD], []), b"\xff" * 16),
    "nulls that claim rows": array_of(("null",), 1 << 40, None),
    "items of no size": array_of(("binary", 0), 1 << 40, None, b""),
    "lists of no size": array_of(("list_", ITEMS[1], 0), (1 << 40, 0), None, None, b""),
    "a long array of nothing": array_of(("int64",), 1 << 47, None, b""),
    "a length below zero": array_of(("int64",), -1, None, b""),
    "a dictionary that repeats a long text": array_of(
        ("dictionary", ("int8",), ("string",), False),
        (100_000, (1,)),
        *(None, bytes(100_000), None, offsets(0, 100_000), b"a" * 100_000),
    ),
    "a dictionary with many codes of a short text and a long one": array_of(
        ("dictionary", ("int8",), ("string",), False),
        (20_000, (2,)),
        *(None, b"\1" * 20_000, None, offsets(0, 1, 20_001), b"a" * 20_001),
    ),
    "structures in structures over nulls": array_of(*structures(100_000, 20), *[None] * 21),
    "lists of one null": array_of(
        ("list_", ("item", ("list_", ("item", ("null",), True, []), 1), True, []), 1),
        (1_000_000, (1_000_000, 1_000_000)),
        *[None] * 3,
    ),
    "an index beyond a dictionary": array_of(
        ("dictionary", ("int8",), ("int8",), False), (1, (1,)), None, b"\5", None, b"a"
    ),
    "a dictionary that is not there": array_of(
        ("dictionary", ("int8",), ("int8",), False), (1, 0), None, b"\0"
    ),
    "a dictionary of nulls": array_of(
        ("dictionary", ("int8",), ("null",), False), (1, (1,)), None, b"\0", None
    ),
    "a dictionary of a dictionary": arrow(
        "type", ("dictionary", ("int8",), ("dictionary", ("int8",), ("int8",), False), False), []
    ),
    "a short buffer": array_of(("int64",), 2, None, bytes(8)),
    "a long buffer": array_of(("int64",), 1, None, bytes(16)),
    "a short mask": array_of(("int64",), 9, b"\0", bytes(72)),
    "a buffer too many": array_of(("int64",), 1, None, bytes(8), b""),
    "a buffer too few": array_of(("int64",), 1, None),
    "no buffer": array_of(("int64",), 1, None, None),
    "offsets that go back": array_of(("string",), 2, None, offsets(0, 5, 3), b"abc"),
    "offsets beyond the text": array_of(("string",), 2, None, offsets(0, 1 << 30, 3), b"abc"),
    "offsets below zero": array_of(("string",), 1, None, offsets(0, -1), b""),
    "offsets that begin below zero": array_of(("string",), 1, None, offsets(-5, 1), b"a"),
    "text that is not": array_of(("string",), 1, None, offsets(0, 1), b"\xff"),
    "items beyond the list": array_of(ITEMS, (1, 5), None, offsets(0, 3), None, b"abcde"),
    "null keys": array_of(KEYS, (1, (1, 1, 1)), None, offsets(0, 1), None, b"\0", b"a", None, b"a"),
    "null entries": array_of(
        KEYS, (1, (1, 1, 1)), None, offsets(0, 1), b"\0", None, b"a", None, b"a"
    ),
    "keys that may be null": arrow("type", (*KEYS[:1], KEYS[2], *KEYS[2:]), []),
    "a decimal beyond": array_of(("decimal128", 1, 0), 1, None, b"\xff" * 7 + bytes(9)),
    "a decimal of any scale": arrow("type", ("decimal128", 1, 1 << 20), []),
    "a time beyond a day": array_of(("time32", "s"), 1, None, struct.pack("<i", 1 << 30)),
    "a zone of a path": arrow("type", ("timestamp", "s", "../../etc/passwd"), []),
    "a unit of nothing": arrow("type", ("timestamp", "x", None), []),
    "a name of no type": arrow("type", ("__import__",), []),
    "a view by name": arrow("type", ("string_view",), []),
    "a type of a type": arrow("type", (("int8",),), []),
    "types nested too deeply": arrow("type", DEEP, []),
    "columns of another number": arrow("table", ([FIELD], []), []),
    "columns of other lengths": arrow(
        "batch", ([FIELD, FIELD], []), [1, 2], None, bytes(8), None, bytes(16)
    ),
    "chunks that are not": arrow("chunks", ("int64",), ["x"]),
    "two chunks of an array": arrow("array", ("int64",), [0, 0], None, b"", None, b""),
    "two values of a scalar": arrow("scalar", ("int8",), [2], None, b"ab"),
    "fields of other lengths": array_of(
        ("struct", [FIELD, FIELD]), (1, 1, 2), None, None, bytes(8), None, bytes(16)
    ),
}


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE)
def test_hostile_arrow_data_is_refused(raw: bytes) -> None:
    error = refusal_of(raw, 8 << 20)
    assert error.kind in ("protocol", "untrusted")


def in_format(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for batch in table.to_batches():
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def deltas() -> bytes:
    """Return a stream whose dictionary grows by one word with each batch of one row."""
    words = [f"{n:020}" for n in range(1000)]
    sink, writer = pa.BufferOutputStream(), None
    options = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True)
    for count in range(1000, 1050):
        words.append(f"z{count}")
        column = pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), pa.array(words))
        batch = pa.record_batch([column], ["x"])
        writer = writer or pa.ipc.new_stream(sink, batch.schema, options=options)
        writer.write_batch(batch)
    assert writer is not None
    writer.close()
    return sink.getvalue().to_pybytes()


ZEROS = pa.table({"x": np.zeros(1 << 20, "i1")})
STREAMS: dict[str, bytes] = {
    "compressed": in_format(ZEROS, compression="zstd"),
    "compressed in another way": in_format(ZEROS, compression="lz4"),
    "of deltas": deltas(),
    "of views": in_format(pa.table({"x": pa.array(["a" * 20, None], pa.string_view())})),
    "plain": in_format(pa.table({"x": [1]})),
}
PLACES: dict[str, Any] = {
    "the layouts": lambda stream: arrow("table", ([FIELD], []), stream),
    "a buffer": lambda stream: array_of(("int64",), 1, None, stream),
    "texts": lambda stream: array_of(("string",), 1, None, offsets(0, len(stream)), stream),
    "the description": lambda stream: arrow("schema", stream, []),
    "metadata": lambda stream: arrow("schema", ([FIELD], [(b"ARROW:schema", stream)]), []),
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_stream_in_arrows_format_is_never_read(
    stream: bytes, place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row M3: it is refused, or stays the bytes that it is."""
    monkeypatch.setattr(pa.ipc, "open_stream", None)
    monkeypatch.setattr(pa.ipc, "read_schema", None)
    before = pa.total_allocated_bytes()
    try:
        value = decode_data([pickled(place(stream))])
    except WireError as error:
        assert error.kind in ("protocol", "untrusted")  # noqa: PT017 - some are read
    else:
        assert stream[:20] in (value.metadata or {}).get(b"ARROW:schema", b"")
    assert pa.total_allocated_bytes() - before < len(stream) + (1 << 16)


def test_extension_types_are_refused() -> None:
    kind = ("struct", [("a", ("binary", 16), True, EXTENSION)])
    assert refused(arrow("type", kind, [])) == ("untrusted", "a pyarrow extension type")
    assert refused(arrow("schema", ([FIELD], EXTENSION), []))[0] == "untrusted"


def test_two_values_never_share_one_buffer() -> None:
    """M12. Arrow checks the offsets of texts once."""
    call = codec_call("make_arrow", "array", ("string",), [1], b"N", b"h\0", data(b"abcd"))
    shared = data(bytearray(b"\0\0\0\0\4\0\0\0"))
    raw, one, other = decode_data([pickled(shared + b"\x940", b"(h\0", call, call, b"t")])
    raw[:] = b"\xff" * 100
    assert one.to_pylist() == other.to_pylist() == ["abcd"]


def test_rows_of_structures_and_dictionaries_that_a_program_may_have_arrive() -> None:
    rows = 1_000_000
    flags = pa.array(np.arange(rows) % 2 == 0)
    codes = (np.arange(rows) % 50 == 0).astype("i1")
    few = pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(["ab", "x" * 3000]))
    table = pa.table(
        {
            "points": pa.StructArray.from_arrays([flags, pa.array(codes)], ["x", "y"]),
            "pairs": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(2 * rows, "f4")), 2),
            "codes": few,
        }
    )
    assert sent(table).equals(table)


LABELS: list[Any] = [
    *(["a"], [1, 2], [1.5], [True], [b"a"], [None, "a"], [decimal.Decimal(1)]),
    *([datetime.date(2020, 1, 1)], pd.date_range("2020", periods=2, tz=BERLIN)),
    *(pd.date_range("2020", periods=2), pd.timedelta_range(0, periods=2)),
    *(pd.period_range("2020", periods=2, freq="M"), pd.interval_range(0, 2)),
    *(pd.CategoricalIndex(["a"]), pd.MultiIndex.from_tuples([("a", 1)]), []),
]


@pytest.mark.parametrize("labels", LABELS, ids=lambda labels: str(labels)[:40])
def test_what_pandas_adds_to_a_schema_arrives(labels: Any) -> None:
    frame = pd.DataFrame([[1] * len(labels)] * 2, columns=labels)
    frame.index = pd.MultiIndex.from_arrays([[1, 2], ["x", "y"]], names=["n", None])
    frame.attrs["source"] = {"rows": [1, 2]}
    table = pa.Table.from_pandas(frame)
    assert sent(table).schema.equals(table.schema, check_metadata=True)


COLUMN = {"name": "a", "field_name": "a", "pandas_type": "int64", "numpy_type": "int64"}
NESTED: Any = []
for _ in range(30):
    NESTED = [NESTED]
METADATA: dict[str, Any] = {
    "labels of a long type": {"column_indexes": [{**COLUMN, "pandas_type": "S2000000000"}]},
    "labels of another long type": {"column_indexes": [{**COLUMN, "numpy_type": "U500000000"}]},
    "labels of a sparse type": {"column_indexes": [{**COLUMN, "numpy_type": "Sparse[S99999999]"}]},
    "labels of items of 1 GB": {"column_indexes": [{**COLUMN, "numpy_type": "100000000i8"}]},
    "labels of no type": {"column_indexes": [{}]},
    "a column twice": {"columns": [COLUMN, COLUMN]},
    "an index many times": {"index_columns": ["a"] * 50},
    "many ranges": {"index_columns": [{"kind": "range"}] * 2},
    "a zone that is a path": {"columns": [{**COLUMN, "metadata": {"timezone": "../../x"}}]},
    "a type of a long name": {"columns": [{**COLUMN, "numpy_type": "x" * 2000}]},
    "long tuples": {
        "columns": [{**COLUMN, "name": "-" * 5000 + "1"}],
        "column_indexes": [COLUMN, COLUMN],
    },
    "attributes nested deeply": {"attributes": {"a": NESTED}},
}


def metadata(raw: bytes) -> Any:
    return [(b"pandas", raw)]


@pytest.mark.parametrize("parts", METADATA.values(), ids=METADATA)
def test_hostile_metadata_of_pandas_is_refused_at_both_ends(parts: Any) -> None:
    whole = {"columns": [], "index_columns": [], "column_indexes": [], **parts}
    raw = json.dumps(whole).encode()
    with pytest.raises(WireError):
        decode_data([arrow("schema", ([FIELD], metadata(raw)), [])])
    with pytest.raises(WireError, match="metadata of pandas is not data"):
        encode_data(pa.table({"a": [1]}).replace_schema_metadata({b"pandas": raw}))


@pytest.mark.parametrize("raw", [b"[" * 100_000, b"{", b"[]", b"1", b"\xff"])
def test_metadata_of_pandas_that_is_no_object_is_refused_at_both_ends(raw: bytes) -> None:
    with pytest.raises(WireError):
        decode_data([arrow("schema", ([FIELD], metadata(raw)), [])])
    with pytest.raises(WireError, match="metadata of pandas is not data"):
        encode_data(pa.schema([], {b"pandas": raw}))
