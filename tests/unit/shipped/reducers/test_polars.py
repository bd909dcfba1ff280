"""Series and frames of polars, compared with what their own pickles keep."""

from __future__ import annotations

import datetime
import decimal
import gc
import pickle
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest

from bridgehead import Bridge
from bridgehead._shipped.reducers import arrow_memory as _arrow_memory
from bridgehead._shipped.wire import pickling

pytestmark = pytest.mark.objects
COUNT = 3000
DAY, ONE = datetime.datetime(2024, 2, 29), datetime.timedelta(days=1, microseconds=1)
TEXTS = ["", "é☃", "a text that is longer than twelve bytes"] * (COUNT // 3)
NUMBERS = [
    *(pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64),
    *(pl.Float32, pl.Float64, pl.Boolean),
]


def days() -> Any:
    return pl.Series([DAY + n * ONE for n in range(COUNT)])


SERIES: dict[str, Callable[[], Any]] = {
    **{
        str(kind): lambda kind=kind: pl.Series([n % 2 for n in range(COUNT)]).cast(kind)
        for kind in NUMBERS
    },
    "nulls": lambda: pl.Series([None, 1, 2] * COUNT),
    "texts": lambda: pl.Series(TEXTS),
    "texts and nulls": lambda: pl.Series([None, *TEXTS]),
    "binary": lambda: pl.Series([text.encode() for text in TEXTS]),
    "dates": lambda: pl.Series([(DAY + n * ONE).date() for n in range(COUNT)]),
    "datetimes": days,
    "zoned": lambda: days().dt.replace_time_zone("Europe/Berlin"),
    "nanoseconds": lambda: pl.Series([DAY] * COUNT).cast(pl.Datetime("ns")),
    "durations": lambda: pl.Series([ONE * n for n in range(COUNT)]),
    "times": lambda: pl.Series([datetime.time(1, 2, 3)] * COUNT),
    "decimals": lambda: pl.Series([decimal.Decimal("1.50")] * COUNT),
    "lists": lambda: pl.Series([[1, 2], [], None] * COUNT),
    "lists of texts": lambda: pl.Series([["a", None], [TEXTS[2]]] * COUNT),
    "fixed lists": lambda: pl.Series([[1, 2], [3, 4]] * COUNT, dtype=pl.Array(pl.Int8, 2)),
    "structs": lambda: pl.Series([{"a": 1, "b": "x"}, {"a": None, "b": None}] * COUNT),
    "categories": lambda: pl.Series(["a", "b"] * COUNT, dtype=pl.Categorical),
    "enum": lambda: pl.Series(["a", "b"] * COUNT, dtype=pl.Enum(["b", "a"])),
    "128 bits": lambda: pl.Series([1] * COUNT, dtype=pl.Int128),
    "only nulls": lambda: pl.Series([None] * COUNT),
    "nothing": lambda: pl.Series([], dtype=pl.Int8),
    "few": lambda: pl.Series(["x"]),
    "sorted": lambda: pl.Series(range(COUNT, 0, -1)).sort(),
    "sorted down": lambda: pl.Series(range(COUNT)).sort(descending=True),
    "chunks": lambda: pl.concat([pl.Series(range(COUNT)), pl.Series([7] * 9)], rechunk=False),
    "chunks of texts": lambda: pl.concat([pl.Series(TEXTS)] * 3, rechunk=False),
    "a slice": lambda: pl.Series(range(COUNT))[1001:2003],
    "a slice of bools": lambda: pl.Series([True, False, None] * COUNT)[101:2777],
    "a slice of texts": lambda: pl.Series(TEXTS * 10)[5:900],
    "a slice of lists": lambda: pl.Series([[1, 2], [3], None] * COUNT)[101:2777],
    "every second": lambda: pl.Series(range(COUNT)).gather_every(2),
}


def crossed(value: Any) -> tuple[Any, list[memoryview]]:
    frames, _ = pickling.encode(value)
    return pickling.decode([bytearray(frame) for frame in frames]), frames


@pytest.mark.parametrize("name", SERIES)
def test_a_series_keeps_what_its_own_pickle_keeps(name: str) -> None:
    series = SERIES[name]().alias("the name")
    (back,), frames = crossed([series])
    own = pickle.loads(pickle.dumps(series, 5))
    assert (type(back), back.dtype, back.name) == (pl.Series, series.dtype, "the name")
    assert back.equals(series, null_equal=True)
    assert back.null_count() == series.null_count()
    assert back.to_list() == series.to_list()
    ordered = ("SORTED_ASC", "SORTED_DESC")
    assert [back.flags[o] for o in ordered] == [own.flags[o] for o in ordered]
    assert back.append(back).len() == 2 * len(series)
    left = name in ("categories", "enum", "128 bits", "only nulls", "nothing", "few")
    assert left or "slice" in name or len(frames) > 1 or series.estimated_size() < 5000
    assert sum(frame.nbytes for frame in frames) < 2.5 * len(pickle.dumps(series)) + 1000


def test_a_frame_keeps_its_columns() -> None:
    frame = pl.DataFrame(
        {name: make()[:2] for name, make in SERIES.items() if name not in ("nothing", "few")}
    )
    large = pl.DataFrame(
        {"n": range(COUNT), "t": TEXTS, "c": pl.Series(TEXTS, dtype=pl.Categorical)}
    )
    for one in (
        frame,
        large,
        pl.concat([large, large], rechunk=False),
        large[5:900],
        large[:0],
        pl.DataFrame(),
    ):
        back, _ = crossed(one)
        assert type(back) is pl.DataFrame
        assert back.schema == one.schema
        assert back.equals(one, null_equal=True)
    assert crossed([large, large])[0][0].equals(large)
    assert len(crossed(large)[1]) > 3


def test_a_part_of_a_column_sends_itself_alone() -> None:
    texts = pl.Series([f"a text that is longer than twelve bytes {n}" for n in range(50_000)])
    for part in (texts[5:900], pl.Series(range(100_000))[99_000:], texts.cast(pl.Binary)[5:900]):
        back, frames = crossed(part)
        assert back.equals(part)
        assert sum(frame.nbytes for frame in frames) < 100_000


def test_memory_lives_as_long_as_the_series_that_has_it() -> None:
    gc.collect()
    before = len(_arrow_memory._lent)
    for name in ("texts", "lists of texts", "structs", "chunks"):
        back, frames = crossed(SERIES[name]())
        wanted = SERIES[name]().to_list()
        del frames
        part = back[10:20]
        del back
        gc.collect()
        assert part.to_list() == wanted[10:20]
        del part
    gc.collect()
    assert len(_arrow_memory._lent) == before


def test_what_is_lent_and_not_taken_is_given_back() -> None:
    described, chunks = _arrow_memory.arrow_parts(SERIES["structs"]())
    before = len(_arrow_memory._lent)
    memory = _arrow_memory.ArrowMemory(described, chunks[0])
    capsules = memory.__arrow_c_array__()
    assert len(_arrow_memory._lent) > before
    del capsules
    assert len(_arrow_memory._lent) == before


async def test_frames_cross_both_ways(kernel: Bridge) -> None:
    frame = pl.DataFrame({"n": range(COUNT), "t": TEXTS})
    await kernel.push(frame=frame, series=frame["t"])
    back, series = await kernel.pull("frame", "series")
    assert back.equals(frame)
    assert series.equals(frame["t"])
    assert (await kernel.pull("frame.filter(frame['n'] > 2990)")).height == 9
