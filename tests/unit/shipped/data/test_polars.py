"""Frames of polars as data: what arrives, and what is refused before polars sees it."""

from __future__ import annotations

from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from bridgehead import Bridge
from bridgehead._shipped.data import encode_data
from bridgehead._shipped.wire.errors import WireError
from support.data import sent
from unit.shipped.reducers.test_polars import SERIES

pytestmark = pytest.mark.objects
LEFT_OUT = ("fixed lists", "categories", "enum", "128 bits", "only nulls")


@pytest.mark.parametrize("name", [name for name in SERIES if name not in LEFT_OUT])
def test_a_series_arrives(name: str) -> None:
    series = SERIES[name]().alias("the name")
    back = sent([series])[0]
    assert (type(back), back.dtype, back.name) == (pl.Series, series.dtype, "the name")
    assert back.equals(series, null_equal=True)


@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_series_of_another_kind_is_refused_by_the_sender(name: str) -> None:
    with pytest.raises(WireError) as caught:
        encode_data(SERIES[name]())
    assert caught.value.kind == "untrusted"


def test_a_frame_arrives() -> None:
    frame = pl.DataFrame({name: SERIES[name]()[:900] for name in ("texts", "Int8", "lists")})
    for one in (frame, frame[:0], frame[5:7]):
        back = sent({"frame": one})["frame"]
        assert back.schema == one.schema
        assert back.equals(one, null_equal=True)


def column(values: Any, kind: Any) -> Any:
    return pa.chunked_array([pa.array(values, kind)])


HUGE = (1 << 63) - 1
COLUMNS = {
    "a day out of range": column([(1 << 31) - 1], pa.date32()),
    "a day before all": column([-(1 << 31)], pa.date32()),
    "a moment out of range": column([HUGE], pa.timestamp("ms")),
    "a moment before all": column([-HUGE], pa.timestamp("us")),
    "a zoned moment out of range": column([HUGE], pa.timestamp("ms", "UTC")),
    "a unit of seconds": column([1], pa.timestamp("s")),
    "a time after midnight": column([86_400_000_000_000], pa.time64("ns")),
    "a negative time": column([-1], pa.time64("ns")),
    "a time of microseconds": column([1], pa.time64("us")),
    "the least duration": column([-HUGE - 1], pa.duration("ns")),
    "a dictionary": column(["a"], pa.string()).dictionary_encode(),
    "milliseconds whose mean is none": column([1 - HUGE], pa.duration("ms")),
    "a map": column([[(1, 2)]], pa.map_(pa.int8(), pa.int8())),
    "dates in a list": column([[HUGE >> 33]], pa.list_(pa.date32())),
    "nothing but nulls": column([None], pa.null()),
    "lists of no size": column([[]], pa.list_(pa.int8(), 0)),
    "fields of one name": pa.chunked_array(
        [pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])]
    ),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_hostile_column_is_refused(name: str) -> None:
    """The column is valid Arrow; its constructor alone decides that polars does not get it."""
    from bridgehead._shipped.data import polars as _polars
    from bridgehead._shipped.data.budget import Budget

    budget = Budget(1 << 20, 1 << 20)
    with pytest.raises(WireError):
        _polars.make_series_of_polars(budget, COLUMNS[name], "x")
    with pytest.raises(WireError):
        _polars.make_frame_of_polars(budget, pa.table({"x": COLUMNS[name]}))


def test_columns_of_one_name_are_refused() -> None:
    from bridgehead._shipped.data import polars as _polars
    from bridgehead._shipped.data.budget import Budget

    table = pa.table([pa.array([1]), pa.array([2])], names=["a", "a"])
    for wrong in (table, table[:0].select([]), pa.array([1])):
        with pytest.raises(WireError):
            _polars.make_frame_of_polars(Budget(1 << 20, 1 << 20), wrong)


@pytest.mark.parametrize("kind", ["date32", "ms", "us", "ns", "time", "duration"])
def test_values_at_the_limits_can_be_printed_and_compared(kind: str) -> None:
    day = {"ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}
    most = {"date32": 95_000_000, "time": day["ns"] - 1, "duration": HUGE}.get(kind)
    most = most if most is not None else min(95_000_000 * day[kind], HUGE)
    types = {"date32": pa.date32(), "time": pa.time64("ns"), "duration": pa.duration("us")}
    least = 0 if kind == "time" else -most
    values = column([least, most], types.get(kind) or pa.timestamp(kind))
    back = sent(pl.Series("x", values))
    assert repr(back)
    assert back.equals(back)
    assert back.sort().len() == 2
    assert kind == "duration" or repr(back.cast(pl.String))


async def test_frames_cross_as_data(kernel: Bridge) -> None:
    frame = pl.DataFrame({"n": range(3000), "t": ["text"] * 3000})
    await kernel.push(frame=frame, trust="data")
    assert (await kernel.pull("frame", trust="data")).equals(frame)
