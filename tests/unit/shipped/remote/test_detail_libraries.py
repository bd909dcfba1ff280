"""Closer looks at values of polars and torch: right, small, and never by code of the user's."""

from __future__ import annotations

import datetime
import tracemalloc
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from bridgehead._shipped.remote.description import describe
from bridgehead._shipped.remote.detail import HEAD_COLUMNS, HEAD_ROWS, look_at
from bridgehead._shipped.remote.preview import preview

pytestmark = pytest.mark.objects


# ---------------------------------------------------------------- polars


def test_the_head_of_a_frame_of_polars() -> None:
    frame = pl.DataFrame(
        {
            "text": ["<b>", "", None],
            "number": [1.23456789, float("nan"), 3.0],
            "day": [datetime.date(2020, 1, 2), None, datetime.date(2020, 1, 3)],
            "kind": pl.Series(["a", "b", "a"], dtype=pl.Categorical),
        }
    )
    look = look_at(frame)
    assert look.columns == ["text", "number", "day", "kind"]
    assert look.rows == [
        ["<b>", "1.23457", "2020-01-02", "a"],
        ["", "nan", "None", "b"],
        ["None", "3", "2020-01-03", "a"],
    ]
    found = describe("frame", frame)
    assert (found["type"], found["shape"]) == ("polars.DataFrame", [3, 4])
    assert found["bytes"] == frame.estimated_size()
    assert preview(frame) == "columns 'text', 'number', 'day', 'kind'"


def test_a_large_frame_of_polars_has_a_small_head() -> None:
    frame = pl.DataFrame({f"c{n}": range(1000) for n in range(40)})
    look = look_at(frame)
    assert (len(look.columns), len(look.rows)) == (HEAD_COLUMNS, HEAD_ROWS)
    assert describe("frame", frame)["shape"] == [1000, 40]


def test_a_series_of_polars() -> None:
    series = pl.Series("x", [1.5, None, 3.0])
    look = look_at(series)
    assert look.facts == [["Items", "Float64"]]
    assert look.rows == [["0", "1.5"], ["1", "None"], ["2", "3"]]
    assert preview(series) == "[1.5, None, 3.0]"
    assert describe("series", series)["shape"] == [3]
    assert describe("series", series)["bytes"] == series.estimated_size()


def test_an_item_of_polars_that_has_millions_of_items_is_not_converted() -> None:
    lists = pl.Series("lists", [pl.Series(np.arange(5_000_000))])
    assert lists.dtype.is_nested()
    tracemalloc.start()
    try:
        look = look_at(pl.DataFrame({"lists": lists, "n": [1]}))
        assert look_at(lists).rows == [["0", "<List>"]]
        assert preview(lists) is None
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert look.rows == [["<List>", "1"]]


def test_a_query_of_polars_is_not_computed() -> None:
    def refuse(frame: Any) -> Any:
        raise AssertionError("the query was computed")

    query = pl.LazyFrame({"x": [1]}).map_batches(refuse)
    assert look_at(query).rows == []
    assert preview(query) is None
    found = describe("query", query)
    assert (found["type"], found["shape"], found["bytes"]) == ("polars.LazyFrame", None, None)


class OwnItem:
    def __repr__(self) -> str:
        raise AssertionError("code of the user")

    __str__ = __eq__ = __hash__ = __len__ = __repr__  # type: ignore[assignment]


def test_objects_in_a_frame_of_polars_are_named_by_their_class() -> None:
    frame = pl.DataFrame({"own": pl.Series([OwnItem()], dtype=pl.Object)})
    assert look_at(frame).rows == [["<OwnItem>"]]
    assert preview(frame["own"]) == "[<OwnItem>]"
    assert describe("frame", frame)["shape"] == [1, 1]


# ---------------------------------------------------------------- torch


def test_the_statistics_of_a_tensor() -> None:
    tensor = torch.tensor([[1.0, 2.0], [3.0, 6.0]], requires_grad=True)
    look = look_at(tensor)
    assert dict(look.facts) == {  # type: ignore[arg-type]
        "Items": "torch.float32",
        "Device": "cpu",
        "Minimum": "1",
        "Maximum": "6",
        "Mean": "3",
        "Deviation": "1.87083",
    }
    assert look.rows == [["0", "1", "2"], ["1", "3", "6"]]
    found = describe("tensor", tensor)
    assert (found["type"], found["shape"], found["bytes"]) == ("torch.Tensor", [2, 2], 16)
    assert preview(tensor) == "[1.0, 2.0, 3.0, 6.0]"


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(0),
        torch.tensor(5),
        torch.zeros(3, dtype=torch.bfloat16),
        torch.zeros(3, dtype=torch.complex64),
        torch.zeros(3, 3).to_sparse(),
        torch.zeros(3, device="meta"),
        torch.nn.Parameter(torch.zeros(2, 2)),
    ],
    ids=lambda tensor: f"{tensor.dtype} {tensor.layout} {tensor.device}",
)
def test_any_tensor_has_facts(tensor: Any) -> None:
    assert look_at(tensor).facts[0] == ["Items", str(tensor.dtype)]
    assert describe("tensor", tensor)["shape"] == list(tensor.shape)
    assert preview(tensor) in (None, "[]", "5", "[0j, 0j, 0j]", "[0.0, 0.0, 0.0, 0.0]")


def test_a_tensor_of_bytes_is_a_picture() -> None:
    assert look_at(torch.zeros(40, 60, 3, dtype=torch.uint8)).picture


def test_a_module_is_shown_by_its_type() -> None:
    found = describe("model", torch.nn.Linear(2, 2))
    assert found["type"].startswith("torch.")
    assert (found["shape"], found["len"], found["bytes"]) == (None, None, None)
    assert look_at(torch.nn.Linear(2, 2)).rows == []


class OwnTensor(torch.Tensor):
    @classmethod
    def __torch_function__(cls, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("code of the user")


class OwnData(torch.utils.data.Dataset[int]):
    def __len__(self) -> int:
        raise AssertionError("code of the user")


def test_no_code_of_a_users_tensor_or_data_runs() -> None:
    tensor = torch.zeros(3).as_subclass(OwnTensor)
    loader = torch.utils.data.DataLoader.__new__(torch.utils.data.DataLoader)
    loader.__dict__.update(dataset=OwnData(), batch_size=1)
    for value in (tensor, loader):
        found = describe("value", value)
        assert (found["shape"], found["len"], found["bytes"]) == (None, None, None)
        assert (look_at(value).facts, preview(value)) == ([], None)
