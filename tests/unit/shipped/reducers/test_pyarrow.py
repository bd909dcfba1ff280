"""Slices of Arrow arrays cross without the rest of their buffers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from bridgehead import Bridge
from bridgehead._shipped.wire import pickling

COUNT = 20_000
MIXED = pa.UnionArray.from_dense(
    pa.array([0, 1] * (COUNT // 2), pa.int8()),
    pa.array([n // 2 for n in range(COUNT)], pa.int32()),
    [pa.array(np.arange(COUNT)), pa.array([f"text {n}" for n in range(COUNT)])],
)
ARRAYS: dict[str, Any] = {
    "floats": pa.array(np.arange(COUNT, dtype="f8")),
    "booleans": pa.array([True, False] * (COUNT // 2)),
    "nulls": pa.array([None, 1] * (COUNT // 2)),
    "texts": pa.array([f"text {n}" for n in range(COUNT)]),
    "text views": pa.array([f"a text of some length {n}" for n in range(COUNT)], pa.string_view()),
    "lists": pa.array([[n, n] for n in range(COUNT)]),
    "structs": pa.array([{"a": n} for n in range(COUNT)]),
    "categories": pa.array(["x", "y"] * (COUNT // 2)).dictionary_encode(),
    "unions": MIXED,
    "unions in structs": pa.StructArray.from_arrays([MIXED], ["a"]),
    "decimals": pa.array(range(COUNT), pa.decimal128(10)),
}


def nbytes(value: Any) -> int:
    return sum(frame.nbytes for frame in pickling.encode(value)[0])


@pytest.mark.parametrize("name", ARRAYS)
def test_a_slice_crosses_alone(name: str) -> None:
    array = ARRAYS[name]
    part = array.slice(COUNT // 2, 10)
    assert nbytes(part) < 2000
    back = pickling.decode(pickling.encode(part)[0])
    assert back.equals(part)
    assert back.type == array.type
    back.validate(full=True)
    assert pickling.decode(pickling.encode(array)[0]).equals(array)
    assert nbytes(array) < array.get_total_buffer_size() + 2000


@pytest.mark.parametrize("count", [0, 1, 8, 1001])
def test_a_slice_of_a_union_is_copied_without_a_number_for_each_row(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.delattr(pa, "array")
    part = MIXED.slice(100, count)
    back = pickling.decode(pickling.encode(part)[0])
    assert back.equals(part)
    back.validate(full=True)
    assert nbytes(part) < 2000 + 20 * count


def test_slices_of_tables_batches_and_frames_cross_alone() -> None:
    table = pa.table(ARRAYS)
    slices = [table.slice(n * 100, 10) for n in range(50)]
    batch = table.to_batches()[0]
    frame = pd.DataFrame({"s": pd.array(["abcdefghij"] * COUNT, dtype="string[pyarrow]")})
    for whole, part in [(table, slices), (batch, batch.slice(5, 10)), (frame, frame.head(10))]:
        assert nbytes(part) < nbytes(whole) / 10
        back = pickling.decode(pickling.encode(part)[0])
        if isinstance(part, pd.DataFrame):
            pd.testing.assert_frame_equal(back, part)
        else:
            assert back == part


@pytest.mark.parametrize("metadata", [None, {"unit": "m"}])
def test_rows_without_columns_keep_their_number(metadata: Any) -> None:
    table = pa.table({"n": range(4)}, metadata=metadata).select([])
    batch = pa.record_batch({"n": range(4)}, metadata=metadata).select([])
    assert (table.num_rows, batch.num_rows) == (4, 4)
    for whole in (table, batch, table[:0], pa.table({})):
        back = pickling.decode(pickling.encode(whole)[0])
        assert (type(back), back.num_rows) == (type(whole), whole.num_rows)
        assert back.schema.equals(whole.schema, check_metadata=True)


def test_a_whole_array_is_not_copied() -> None:
    array = ARRAYS["floats"]
    frames, _ = pickling.encode(array)
    address = np.frombuffer(frames[1], "u1").__array_interface__["data"][0]
    assert address == array.buffers()[1].address


async def test_slices_cross_alone_both_ways(kernel: Bridge) -> None:
    """L6."""
    table = pa.table({"c": ARRAYS["floats"]})
    transfer = await kernel.push(parts=[table.slice(n * 100, 10) for n in range(100)], table=table)
    assert transfer.bytes < table.nbytes + 150_000
    back = await kernel.pull("[table.slice(n * 100, 10) for n in range(100)]", max_bytes=150_000)
    assert back[7] == table.slice(700, 10)
