"""Datasets as data: what arrives, and what is refused before xarray sees it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from bridgehead import Bridge
from bridgehead._shipped.data import encode_data
from bridgehead._shipped.wire.errors import WireError
from support.data import codec_call, data, pickled, refused, sent

pytestmark = pytest.mark.objects
ARRAY = xr.DataArray(
    np.arange(600.0).reshape(3, 200),
    dims=("x", "t"),
    coords={
        "x": ["a", "b", "c"],
        "t": pd.date_range("2020", periods=200),
        "z": ("x", [1, 2, 3]),
        "s": 5,
    },
    name="n",
    attrs={"unit": "m", "range": np.array([1, 2])},
)
VALUES: dict[str, Any] = {
    "an array": ARRAY,
    "a dataset": xr.Dataset({"a": ARRAY, "b": 3, "c": ("t", np.arange(200))}, attrs={"k": [1]}),
    "a variable": ARRAY.variable,
    "a coordinate": ARRAY.x.variable.to_base_variable(),
    "no coordinates": xr.DataArray(np.zeros((3, 4))),
    "texts": xr.DataArray(np.array(["a", None], dtype=object), dims="x"),
    "a number": xr.DataArray(3.5),
    "nothing": xr.Dataset(),
    "no rows": ARRAY[:0],
}


def labelled(index: Any) -> Any:
    return xr.DataArray(np.zeros(len(index)), dims="x", coords={"x": index})


INDEXES: dict[str, Any] = {
    "categories": pd.CategoricalIndex(["a", "b"], ordered=True),
    "times with a zone": pd.date_range("2020", periods=3, tz="Europe/Berlin"),
    "times with a frequency": pd.date_range("2020", periods=3, freq="MS", unit="s"),
    "timedeltas": pd.timedelta_range(0, periods=3, freq="h"),
    "periods": pd.period_range("2020", periods=3, freq="M"),
    "intervals": pd.interval_range(0, 3),
    "a range": pd.RangeIndex(3),
    "strings": pd.Index(["a", "b"]),
    "objects": pd.Index(["a", None], dtype=object),
    **{kind: np.array([1, 0]).astype(kind) for kind in ("f4", ">i4", "i1", "?", "c16", "U3", "S3")},
}
BESIDE = labelled([1, 2, 3]).assign_coords(z=("x", [5, 6, 7]))
COORDINATES = {
    **{name: labelled(index) for name, index in INDEXES.items()},
    "no index": BESIDE.drop_indexes("x"),
    "another index": BESIDE.set_xindex("z"),
    "another dimension": BESIDE.swap_dims(x="z"),
    "only labels": BESIDE.x.variable,
    "the labels themselves": BESIDE.x,
}


@pytest.mark.parametrize("name", VALUES)
def test_a_value_arrives(name: str) -> None:
    value = VALUES[name]
    back = sent([value])[0]
    assert type(back) is type(value)
    assert back.identical(value)
    assert back.encoding == value.encoding
    if hasattr(value, "xindexes"):
        assert list(back.xindexes) == list(value.xindexes)
        assert list(back.coords) == list(value.coords)


def indexes_of(value: Any) -> Any:
    if type(value) is xr.IndexVariable:
        return value.to_index()
    return [
        (name, one.coord_dtype, type(one.index), one.index.dtype, one.index.name)
        for name, one in value.xindexes.items()
    ] + [(one.index.tolist(), getattr(one.index, "freq", None)) for one in value.xindexes.values()]


@pytest.mark.parametrize("name", COORDINATES)
def test_an_index_arrives_as_it_was(name: str) -> None:
    value = COORDINATES[name]
    for one in (value, value.to_dataset(name="v")) if hasattr(value, "coords") else (value,):
        back = sent([one])[0]
        assert back.identical(one)
        assert type(back) is type(one)
        assert str(indexes_of(back)) == str(indexes_of(one))


def test_what_is_no_plain_array_is_refused_by_the_sender() -> None:
    objects = xr.DataArray(np.array([{}], dtype=object), dims="x")
    for value in (ARRAY.stack(both=("x", "t")), xr.DataArray([1], dims="x", name=(1, 2))):
        with pytest.raises(WireError):
            sent(value)
    with pytest.raises(WireError):
        sent(objects)
    with pytest.raises(WireError):
        encode_data(xr.DataTree())


def numbers(count: int) -> bytes:
    raw = bytearray(8 * count)
    return codec_call("make_array", "<f8", (count,), "C", data(raw))


def variable(
    dims: Any = ("x",), values: Any = None, attrs: Any = b"}", encoding: Any = b"}"
) -> bytes:
    return codec_call("make_variable", dims, values or numbers(3), attrs, encoding)


def mapping(**parts: bytes) -> bytes:
    return b"}(" + b"".join(data(name) + part for name, part in parts.items()) + b"u"


def label_index(items: Any, name: Any = "x") -> bytes:
    column = codec_call("make_objects", (len(items),), "C", items)
    return codec_call("make_index", column, name, None)


def labels(index: bytes, dtype: Any = None) -> bytes:
    kind = codec_call("make_dtype", dtype) if dtype else b"N"
    return codec_call("make_labels", "x", index, kind, b"}", b"}")


HOSTILE = {
    "too many dimensions": variable(("x", "y")),
    "a dimension twice": codec_call(
        "make_variable",
        ("x", "x"),
        codec_call("make_array", "<f8", (1, 1), "C", data(bytearray(8))),
        b"}",
        b"}",
    ),
    "a dimension that is no text": variable((1,)),
    "an attribute that is no text": variable(attrs=data({1: 2})),
    "a variable of a list": variable(values=data([1, 2, 3])),
    "records": variable(
        values=codec_call(
            "make_array",
            ("struct", [("a", "<i8", 0)], 8, False, False),
            (1,),
            "C",
            data(bytearray(8)),
        )
    ),
    "a dataset of numbers": codec_call("make_dataset", mapping(a=numbers(3)), b"}", b"}", b"}"),
    "a dimension of two sizes": codec_call(
        "make_dataset", mapping(a=variable(), b=variable(values=numbers(4))), b"}", b"}", b"}"
    ),
    "a coordinate of no name that is no variable": codec_call(
        "make_data_array",
        variable(("",)),
        b"}" + data("") + label_index([1, 2, 3], None) + b"s",
        None,
    ),
    "a coordinate behind a variable": codec_call(
        "make_dataset", mapping(a=variable()), mapping(a=label_index([1, 2, 3])), b"}", b"}"
    ),
    "a variable that is an index": codec_call("make_dataset", mapping(x=variable()), *[b"}"] * 3),
    "labels of another name": codec_call(
        "make_data_array", variable(), mapping(y=labels(label_index([1, 2, 3]))), None
    ),
    "labels of objects": labels(label_index([[1]])),
    "labels of categories that are objects": labels(
        codec_call(
            "make_index",
            codec_call("make_categorical", "|i1", data(b"\0"), label_index([(1, 2)]), False),
            *(None, None),
        )
    ),
    "labels of two levels": labels(
        codec_call(
            "make_multi_index",
            *(b"]" + label_index(["a"]) + b"a", ["|i1"], [None], None, data(b"\0")),
        )
    ),
    "labels that are no index": labels(numbers(3)),
    "labels that cannot be converted": labels(label_index(["a"]), "<f8"),
    "labels that become long": labels(label_index(["a"]), "<U99999999"),
    "an array of an array": codec_call("make_data_array", numbers(3), b"}", None),
    "a name that is a number": codec_call("make_data_array", variable(), b"}", 5),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_value_is_refused(name: str) -> None:
    assert refused(pickled(HOSTILE[name]))[0] in ("protocol", "untrusted")


def test_the_honest_calls_of_these_tests_are_not_refused() -> None:
    from bridgehead._shipped.data import decode_data

    made = codec_call("make_dataset", mapping(a=variable()), b"}", b"}", b"}")
    assert decode_data([pickled(made)]).sizes == {"x": 3}
    coords = mapping(x=labels(label_index(["a", "b", "c"]), "<U1"))
    made = decode_data([pickled(codec_call("make_data_array", variable(), coords, None))])
    assert made.x.dtype == "U1"


async def test_datasets_cross_as_data(kernel: Bridge) -> None:
    await kernel.push(dataset=VALUES["a dataset"], trust="data")
    back = await kernel.pull("dataset", trust="data")
    assert back.identical(VALUES["a dataset"])
