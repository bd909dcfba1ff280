"""Closer looks at values: right for what libraries know, and never by code of the user's."""

from __future__ import annotations

import datetime
import io
import sys
import tracemalloc
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from bridgehead._shipped.remote.detail import HEAD_COLUMNS, HEAD_ROWS, SAMPLE, SIDE, look_at
from bridgehead._shipped.remote.preview import preview


def test_the_head_of_a_table() -> None:
    frame = pd.DataFrame(
        {
            "text": ["<b>", "", "x"],
            "number": [1.23456789, float("nan"), 3],
            "when": pd.to_datetime(["2020-01-02", None, "2020-01-03"]),
            5: [object(), datetime.date(2020, 1, 2), [1]],
        },
        index=["a", "b", "c"],
    )
    look = look_at(frame)
    assert look.columns == ["", "text", "number", "when", "5"]
    assert look.rows == [
        ["a", "<b>", "1.23457", "2020-01-02 00:00:00", "<object>"],
        ["b", "", "nan", "missing", "2020-01-02"],
        ["c", "x", "3", "2020-01-03 00:00:00", "[1]"],
    ]
    assert look_at(frame["text"]).rows[0] == ["a", "<b>"]


@pytest.mark.parametrize("make", [pd.DataFrame, pa.Table.from_pandas, np.asarray])
def test_a_large_table_has_a_small_head(make: Any) -> None:
    look = look_at(make(pd.DataFrame(np.zeros((1000, 40)), columns=[*map(str, range(40))])))
    assert len(look.rows) == HEAD_ROWS
    assert all(len(row) in (HEAD_COLUMNS, HEAD_COLUMNS + 1) for row in [look.columns, *look.rows])


def test_the_statistics_of_an_array() -> None:
    array = np.array([[1.0, 2.0], [np.nan, 6.0]], "float32")
    assert dict(look_at(array).facts) == {  # type: ignore[arg-type]
        "Items": "float32",
        "Minimum": "1",
        "Maximum": "6",
        "Mean": "3",
        "Deviation": "2.16025",
        "Not finite": "1",
    }
    assert look_at(array).rows == [["0", "1", "2"], ["1", "nan", "6"]]
    assert dict(look_at(np.array([True, False])).facts)["True"] == "1 of 2"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(0),
        np.zeros((0, 5)),
        np.array(5),
        np.array([np.nan]),
        np.array([1j]),
        np.array(["a"]),
        np.array(["2020"], "M8[D]"),
        np.array([object()]),
        np.zeros((2, 3, 4, 5)),
        np.zeros(2, [("a", int)]),
        np.array([np.finfo(float).max] * 2),
    ],
    ids=lambda array: f"{array.dtype} {array.shape}",
)
def test_any_array_has_facts(array: Any) -> None:
    assert look_at(array).facts[0] == ["Items", str(array.dtype)]


@pytest.mark.parametrize("shape", [(3 * SAMPLE,), (3, SAMPLE), (SAMPLE, 3), (2, 2, SAMPLE)])
def test_the_statistics_of_a_large_array_are_of_its_beginning(shape: Any) -> None:
    facts = dict(look_at(np.broadcast_to(np.int8(1), shape)).facts)  # type: ignore[arg-type]
    assert facts["Mean"] == "1"
    items = int(facts["Statistics"].split()[3].replace(",", ""))
    assert SAMPLE // 2 < items <= SAMPLE


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "F"])
def test_a_picture_is_a_small_png(mode: str) -> None:
    look = look_at(Image.new(mode, (2000, 500)))
    with Image.open(io.BytesIO(look.picture)) as shown:
        shown.load()
        assert shown.size == (SIDE, SIDE // 4)
        assert shown.mode == ("RGBA" if mode == "RGBA" else "RGB")


@pytest.mark.parametrize("shape", [(40, 700), (700, 40, 3), (64, 64, 4)])
def test_an_array_of_bytes_is_a_picture(shape: Any) -> None:
    array = np.arange(np.prod(shape)).reshape(shape).astype("uint8")
    with Image.open(io.BytesIO(look_at(array).picture)) as shown:
        step = -(-max(shape[:2]) // SIDE)
        assert np.array_equal(np.asarray(shown), array[::step, ::step])


def test_texts_containers_and_functions() -> None:
    assert look_at("a\nb" * 2000).text == ("a\nb" * 2000)[:2000]
    assert look_at(b"ab").text == "b'ab'"
    assert look_at({"a": [1, [2]], "b": object()}).rows == [
        ["'a'", "[1, […]]"],
        ["'b'", "<object>"],
    ]
    assert look_at([1, "x"]).rows == [["0", "1"], ["1", "'x'"]]
    assert look_at(12).text == "12"
    assert look_at(None).text == "None"
    assert look_at(np.float64(1.5)).text == "1.5"
    assert look_at(len).text.startswith("Return the number of items")
    assert len(look_at([*range(1000)]).rows) == HEAD_ROWS


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("code of the user")


SPECIAL = (
    *("__repr__", "__str__", "__len__", "__iter__", "__getattribute__", "__eq__", "__hash__"),
    *("__bool__", "__format__", "__index__", "__getitem__", "items", "tolist", "shape", "iloc"),
)


@pytest.mark.parametrize(
    "base", [object, int, str, list, dict, np.ndarray, pd.DataFrame, pd.Series, Image.Image]
)
@pytest.mark.parametrize("module", ["__main__", "numpy", "pandas.core.frame", "PIL.Image"])
def test_no_code_of_the_user_runs(base: type, module: str) -> None:
    made = type("DataFrame", (base,), {"__module__": module})
    value = made.__new__(made, (2,)) if base is np.ndarray else made()
    frame = pd.DataFrame({"a": pd.Series([None], dtype=object)})
    if base in (object, int, str):
        frame.iat[0, 0] = value
    for name in SPECIAL:
        setattr(made, name, refuse)
    look = look_at(value)
    assert (look.facts, look.rows, look.text, look.picture) == ([], [], "", b"")
    if base in (object, int, str):
        assert look_at(frame).rows == [["0", "<DataFrame>"]]


def test_a_value_that_breaks_has_no_look() -> None:
    assert look_at(pd.DataFrame.__new__(pd.DataFrame)).detail()["rows"] == []
    assert sys.modules["numpy"] is np


def test_the_head_of_a_table_with_two_levels_of_labels() -> None:
    index = pd.MultiIndex.from_tuples([("a", 1), ("b", 2)])
    look = look_at(pd.DataFrame({"x": [1, 2]}, index=index))
    assert look.rows == [["('a', 1)", "1"], ["('b', 2)", "2"]]


class Copied:
    def __deepcopy__(self, memo: object) -> Any:
        raise AssertionError("a class's own code runs")


def test_attributes_of_a_table_are_not_copied() -> None:
    """pandas copies them with each part of the table, and swallows no error."""
    frame = pd.DataFrame({"x": [1, 2]})
    frame.attrs["own"] = column = Copied()
    assert look_at(frame).rows == [["0", "1"], ["1", "2"]]
    series = pd.Series([1, 2])
    series.attrs["own"] = column
    assert look_at(series).rows == [["0", "1"], ["1", "2"]]
    assert preview(series) == "[1, 2]"


class OwnArray(pd.api.extensions.ExtensionArray):  # type: ignore[misc]
    """A column whose items a class of the user's makes."""

    ran: ClassVar[list[str]] = []

    @property
    def dtype(self) -> Any:
        return OwnType()

    def __len__(self) -> int:
        return 2

    def copy(self) -> Any:
        return self

    def view(self, dtype: object = None) -> Any:
        return self

    def __getitem__(self, item: Any) -> Any:
        if not isinstance(item, int):
            return self
        self.ran.append("item")
        return 1


class OwnType(pd.api.extensions.ExtensionDtype):  # type: ignore[misc]
    name = "own"
    type = int


def test_the_items_of_a_users_column_are_not_looked_at() -> None:
    series = pd.Series(OwnArray())
    OwnArray.ran.clear()
    assert (look_at(series).rows, preview(series)) == ([], None)
    assert look_at(pd.DataFrame({"x": series})).rows == []
    assert OwnArray.ran == []


def test_an_item_of_arrow_that_has_millions_of_items_is_not_converted() -> None:
    lists = pa.ListArray.from_arrays([0, 5_000_000], pa.nulls(5_000_000))
    words = pa.array(["a"]).dictionary_encode()
    tracemalloc.start()
    try:
        look = look_at(pa.table({"lists": lists, "words": words}))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert look.rows == [["<ListType>", "a"]]


def test_an_image_that_was_not_read_stays_so() -> None:
    file = io.BytesIO()
    Image.new("RGB", (40, 30)).save(file, "PNG")
    image = Image.open(file)
    look = look_at(image)
    assert (look.facts[0], look.picture) == (["Size", "40 × 30 pixels"], b"")
    assert image.tile
    image.load()
    assert look_at(image).picture
