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


async def test_datasets_cross_as_data(kernel: Bridge) -> None:
    await kernel.push(dataset=VALUES["a dataset"], trust="data")
    back = await kernel.pull("dataset", trust="data")
    assert back.identical(VALUES["a dataset"])
