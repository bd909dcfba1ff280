"""Columns that Arrow keeps cross without a copy, as pandas' own pickle has them."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from bridgehead._shipped.wire import pickling

COUNT = 50_000
CHUNKS = pa.chunked_array([[1, 2, None], [3]])
COLUMNS: dict[str, Any] = {
    "floats": pd.array(np.arange(COUNT, dtype="f8"), dtype="float64[pyarrow]"),
    "texts": pd.array([f"text {n}" for n in range(COUNT)], dtype="string[pyarrow]"),
    "nulls": pd.array([None, 1] * COUNT, dtype="int64[pyarrow]"),
    "dates": pd.array(pd.date_range("2020", periods=COUNT), dtype="timestamp[ns, UTC][pyarrow]"),
    "lists": pd.arrays.ArrowExtensionArray(pa.array([[1], None, []] * COUNT)),
    "a slice": pd.array(range(COUNT), dtype="int64[pyarrow]")[100:-100],
    "chunks": pd.arrays.ArrowExtensionArray(CHUNKS),
    "no chunks": pd.arrays.ArrowExtensionArray(pa.chunked_array([], pa.int8())),
    "nothing": pd.array([], dtype="string[pyarrow]"),
}


class Tagged(pd.arrays.ArrowExtensionArray):  # type: ignore[misc]
    """A subclass with a pickle of its own."""

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "tag": "own"}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_crosses_as_pandas_pickles_it(name: str) -> None:
    column = COLUMNS[name]
    back = pickling.decode(pickling.encode(column)[0])
    theirs = pickle.loads(pickle.dumps(column))
    assert type(back) is type(theirs)
    assert back.dtype == theirs.dtype
    assert vars(back).keys() == vars(theirs).keys()
    assert pa.chunked_array(back.__arrow_array__()).equals(
        pa.chunked_array(theirs.__arrow_array__())
    )
    pd.testing.assert_series_equal(pd.Series(back), pd.Series(column))


@pytest.mark.parametrize("name", ["floats", "texts", "nulls", "dates"])
def test_a_column_is_not_copied(name: str) -> None:
    column = COLUMNS[name]
    (chunk,) = pa.chunked_array(column.__arrow_array__()).chunks
    buffers = {buffer.address for buffer in chunk.buffers() if buffer is not None}
    frames = {pa.py_buffer(frame).address for frame in pickling.encode(column)[0][1:]}
    assert frames
    assert frames <= buffers


def test_a_subclass_with_a_pickle_of_its_own_keeps_it() -> None:
    back = pickling.decode(pickling.encode(Tagged(pa.array(range(COUNT))))[0])
    assert back.tag == "own"
