"""Tables of Arrow's arrive as they were sent, and its hostile streams are refused."""

from __future__ import annotations

import datetime
import decimal
import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bridgehead._shipped.data import decode_data
from support.data import BERLIN, arrives_as_it_was_sent, data, named, pickled, refused

# ---------------------------------------------------------------- what is data

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
def test_what_is_data_arrives_as_it_was_sent(
    value: Any, in_band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrives_as_it_was_sent(value, in_band, monkeypatch)


# ---------------------------------------------------------------- hostile streams of Arrow's


def stream_of(table: Any, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as out:
        out.write(table)
    return sink.getvalue().to_pybytes()


def arrow_frames(kind: str, raw: bytes) -> list[bytes]:
    opcodes = named("bridgehead._shipped.data", "make_arrow") + b"(" + data(kind) + b"\x97\x98tR"
    return [pickled(opcodes), raw]


ZEROS = pa.table({"x": np.zeros(10**6)})


def test_compressed_batches_are_refused() -> None:
    for codec in ("lz4", "zstd"):
        raw = stream_of(ZEROS, compression=codec)
        assert len(raw) < 100_000
        assert refused(arrow_frames("table", raw)) == ("protocol", None)
    assert decode_data(arrow_frames("table", stream_of(ZEROS))).equals(ZEROS)


def test_extension_types_are_refused() -> None:
    raw = stream_of(pa.table({"x": pa.array([b"x" * 16], pa.uuid())}))
    assert refused(arrow_frames("table", raw)) == ("untrusted", "a pyarrow extension type")


def test_offsets_that_lead_elsewhere_are_refused() -> None:
    raw = stream_of(pa.table({"x": ["abcdefgh", "i"]}))
    place = raw.index(struct.pack("<3i", 0, 8, 9))
    forged = raw[:place] + struct.pack("<3i", 0, 1 << 30, 9) + raw[place + 12 :]
    assert refused(arrow_frames("table", forged))[0] == "protocol"


@pytest.mark.parametrize("kind", ["chunks", "array", "scalar", "type"])
def test_a_stream_of_something_else_is_refused(kind: str) -> None:
    raw = stream_of(pa.table({"x": [1, 2], "y": [1, 2]}).select([] if kind == "type" else [0, 1]))
    assert refused(arrow_frames(kind, raw))[0] == "protocol"
