"""Work that a fleet of loopbacks divides: submitted functions, sequences in parts."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from bridgehead import (
    Bridge,
    BridgeClosed,
    EncodeError,
    Fleet,
    FleetError,
    Message,
    NameNotFound,
    RemoteError,
    UntrustedPayload,
)


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with Bridge.loopback() as one, Bridge.loopback() as two, Bridge.loopback() as three:
        async with Fleet([one, two, three]) as fleet:
            yield fleet


# ---------------------------------------------------------------- submit


def which() -> int:
    return number  # type: ignore[name-defined,no-any-return]  # noqa: F821


async def numbered(fleet: Fleet) -> None:
    for index, bridge in enumerate(fleet):
        await bridge.push(number=index)


async def test_tasks_go_to_the_least_loaded_kernels(fleet: Fleet) -> None:
    await numbered(fleet)
    tasks = [fleet.submit(which, namespace=True) for _ in range(9)]
    assert sorted([await task for task in tasks]) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    # A kernel that has an async function at work is loaded, too.
    waiting = fleet[1].submit(asyncio.sleep, 60)
    while not fleet[1].stats.tasks:
        await asyncio.sleep(0.01)
    tasks = [fleet.submit(which, namespace=True) for _ in range(2)]
    assert sorted([await task for task in tasks]) == [0, 2]
    waiting.cancel()


async def test_a_lost_kernel_gets_no_task(fleet: Fleet) -> None:
    await numbered(fleet)
    await fleet[1].aclose()
    tasks = [fleet.submit(which, namespace=True) for _ in range(4)]
    assert sorted([await task for task in tasks]) == [0, 0, 2, 2]
    await fleet[0].aclose()
    await fleet[2].aclose()
    with pytest.raises(BridgeClosed):
        fleet.submit(which)


async def test_a_task_takes_the_options_of_bridges_submit(fleet: Fleet) -> None:
    ref = await fleet.submit(range, 3, keep="rows")
    assert await ref.pull() == range(3)
    assert await fleet.submit(dict, a=1) == {"a": 1}
    assert await fleet.submit(asyncio.sleep, 0, "slept") == "slept"
    with pytest.raises(RemoteError):
        await fleet.submit(abs, "a")
    seen: list[tuple[str, int]] = []

    def note(message: Message, index: int) -> None:
        seen.append((message.text, index))

    await fleet[1:].submit(print, "at work", end="", on_output=note)
    assert seen == [("at work", 0)]


async def test_a_ref_of_one_kernel_is_refused(fleet: Fleet) -> None:
    await fleet.push(x=[1])
    with pytest.raises(ValueError, match="belongs to one kernel"):
        fleet.submit(len, fleet[0].ref("x"))
    with pytest.raises(ValueError, match="belongs to one kernel"):
        await fleet.submit(len, [fleet[0].ref("x")])
    assert await fleet[:1].submit(len, fleet[0].ref("x")) == 1


class Box:
    def __init__(self, value: Any) -> None:
        self.value = value


async def test_a_part_that_cannot_cross_leaves_all_kernels_unchanged(fleet: Fleet) -> None:
    with pytest.raises(EncodeError, match="lock"):
        await fleet.scatter("a", [1, 2, threading.Lock()])
    with pytest.raises(UntrustedPayload):
        await fleet.scatter("a", [1, 2, Box(1)], trust="data")
    assert await fleet.exists("a") == [False] * 3


async def test_a_ref_of_one_kernel_is_refused_before_anything_is_sent(fleet: Fleet) -> None:
    ref = await fleet[0].call(list, keep=True)
    boxed, array = Box(ref), np.array([ref, 1, 2], object)
    options: list[Any] = [{"push": {"a": one}} for one in (ref, [{1: ref}], boxed, array)]
    options.append({"pull": [ref]})
    for given in options:
        with pytest.raises(ValueError, match="belongs to one kernel"):
            await fleet.run("a = 1", **given)
    for sequence in ([ref, 1, 2], (1, 2, [ref]), [boxed, boxed], array):
        with pytest.raises(ValueError, match="belongs to one kernel"):
            await fleet.scatter("a", sequence)
    assert await fleet.exists("a") == [False] * 3
    await fleet[:1].scatter("a", [ref])
    assert await fleet[0].pull("a") == [[]]


# ---------------------------------------------------------------- sequences


class Measured(np.ndarray):
    """An array with an attribute, which it keeps in a pickle."""

    unit: Any = None

    def __array_finalize__(self, of: Any) -> None:
        self.unit = getattr(of, "unit", None)

    def __reduce__(self) -> Any:
        made, args, state = super().__reduce__()[:3]
        return made, args, (state, self.unit)

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state[0])
        self.unit = state[1]

    def __repr__(self) -> str:
        return f"{super().__repr__()} {self.unit}"


class Survey(pd.DataFrame):
    """A frame with an attribute, as pandas documents it for subclasses."""

    _metadata = ["place"]  # noqa: RUF012 - as pandas has it

    @property
    def _constructor(self) -> Any:
        return Survey


def measured() -> Any:
    array = np.arange(7.0).view(Measured)
    array.unit = "m"
    return array


def survey() -> Any:
    frame = Survey({"n": range(7)})
    frame.place = "here"
    return frame


LEVELS = pd.MultiIndex.from_arrays(
    [
        pd.Categorical(list("xyxyxyx"), categories=list("xyz")),
        [1.5, None, 2.5, 2.5, None, 3.0, 4.0],
        pd.date_range("2024-01-01", periods=7, tz="UTC"),
    ],
    names=["kind", None, "when"],
)
SPARSE = pd.DataFrame(
    {
        "zeros": pd.arrays.SparseArray([0, 0, 1, 0, 2, 0, 0]),
        "fives": pd.arrays.SparseArray([5, 5, 1, 5, 2, 5, 5], fill_value=5),
        "none": pd.arrays.SparseArray([np.nan] * 6 + [1.0]),
    }
)
NESTED = np.dtype([("a", "i4"), ("b", [("c", "f8"), ("d", "U3")]), ("o", object)])
FRAME = pd.DataFrame(
    {
        "n": range(7),
        "text": list("abcdefg"),
        "kind": pd.Categorical(list("xyxyxyx"), categories=["x", "y", "z"]),
        "when": pd.date_range("2024-01-01", periods=7, tz="UTC"),
        "maybe": pd.array([1, None, 3, 4, None, 6, 7], dtype="Int64"),
    }
)
SHOWN = FRAME.copy()
SHOWN.attrs = {"weights": np.arange(3), "missing": float("nan")}
PADDED = np.dtype({"names": ["a", "c"], "formats": ["i4", "i2"], "offsets": [0, 12]})
SEQUENCES: dict[str, Any] = {
    "list": [1, "a", None, [2]] * 3,
    "tuple": tuple(range(10)),
    "array": np.arange(24.0).reshape(8, 3),
    "records": np.array([(1, "a"), (2, "b"), (3, "c"), (4, "d")], dtype=[("n", "i4"), ("t", "U1")]),
    "recarray": np.rec.array([(1, 2.0), (3, 4.0), (5, 6.0)], dtype=[("n", int), ("x", float)]),
    "filled": np.ma.masked_array(np.arange(5), mask=[0, 1, 0, 0, 1], fill_value=7),
    "masked": np.ma.masked_array(np.arange(5), mask=[0, 1, 0, 0, 1]),
    "other byte order": np.arange(5, dtype=">i4"),
    "gaps": np.ones(5, PADDED),
    "described": np.ones(5, np.dtype("i4", metadata={"unit": "m"})),
    "strings": np.array(["a", "bb", "", "c"], np.dtypes.StringDType()),
    "masked other byte order": np.ma.masked_array(
        np.arange(5, dtype=">i4"), mask=[0, 1, 0, 0, 1], fill_value=7
    ),
    "masked gaps": np.ma.masked_array(np.ones(3, PADDED), mask=[(0, 1), (0, 0), (1, 1)]),
    "masked recarray": np.ma.masked_array(
        np.rec.array([(1, 2.0), (3, 4.0), (5, 6.0)], dtype=[("n", ">i4"), ("x", float)]),
        mask=[(0, 1), (0, 0), (1, 1)],
    ),
    "unmasked": np.ma.masked_array(np.arange(5)),
    "masked nowhere": np.ma.masked_array(np.arange(5), mask=[0] * 5),
    "hard mask": np.ma.masked_array(np.arange(5), mask=[0, 1, 0, 0, 1], hard_mask=True),
    "frame": FRAME,
    "attributes": SHOWN,
    "series of attributes": SHOWN["n"],
    "nameless": FRAME["n"].rename(float("nan")),
    "indexed": FRAME.set_index("text"),
    "series": FRAME["when"],
    "table": pa.table({"n": [1, 2, 3, 4], "t": ["a", None, "c", "d"]}),
    "chunks": pa.table(
        {
            "n": pa.chunked_array([[1, 2], [], [3], [4, 5, None]]),
            "k": pa.chunked_array(
                [pa.array(["x", "y"]).dictionary_encode(), pa.array([*"zyzy"]).dictionary_encode()]
            ),
        }
    ).replace_schema_metadata({"key": "value"}),
    "nested rows": pa.table({"a": [[1], None, [2, 3]], "b": [{"x": 1}, None, {"x": 2}]}),
    "structures": np.array([(1, (2.0, "a"), None), (3, (4.0, "bcd"), [5])] * 3, NESTED),
    "objects": np.array([1, "a", None, [1], {2}], object),
    "dates": np.arange(7).astype("M8[ns]"),
    "no columns": np.zeros((5, 0)),
    "matrix": np.arange(10).reshape(5, 2).view(np.matrix),
    "columns first": np.asfortranarray(np.arange(20.0).reshape(5, 4)),
    "class of arrays": measured(),
    "class of frames": survey(),
    "multi-index": FRAME.set_axis(LEVELS),
    "multi-index of columns": pd.DataFrame(np.ones((4, 7)), columns=LEVELS),
    "multi-index of a series": FRAME["n"].set_axis(LEVELS),
    "sparse": SPARSE,
    "sparse series": SPARSE["fives"],
    "every hour": FRAME.set_axis(pd.date_range("2024-01-01", periods=7, freq="h")),
    "range": FRAME.set_axis(pd.RangeIndex(3, 17, 2, name="r")),
    "twice the same": pd.DataFrame(np.ones((5, 3)), columns=list("aab"), index=[1, 1, 1, 2, 2]),
    "only an index": pd.DataFrame(index=range(5)),
    "arrow inside": pd.DataFrame({"s": pd.array(["a", None, "c"], dtype="string[pyarrow]")}),
    "rows without columns": pa.table({"n": [1, 2, 3, 4]}).select([]),
}


class Pair(NamedTuple):
    one: int
    other: int


class Rows(list[Any]):
    pass


class Frame(pd.DataFrame):
    pass


def equal(one: Any, other: Any) -> bool:
    assert type(one) is type(other)
    if isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, other, check_flags=True)
        assert type(one.index) is type(other.index)
        if isinstance(one, Survey):
            assert one.place == other.place
        return repr(one.attrs) == repr(other.attrs)
    if isinstance(one, pd.Series):
        pd.testing.assert_series_equal(one, other)
        return repr(one.attrs) == repr(other.attrs)
    if isinstance(one, np.ma.MaskedArray) and one.hardmask != other.hardmask:
        return False
    if isinstance(one, np.ndarray):
        same = one.dtype == other.dtype and one.dtype.metadata == other.dtype.metadata
        return same and repr(one) == repr(other)
    if isinstance(one, pa.Table):
        return one.num_rows == other.num_rows and one.equals(other, check_metadata=True)
    return bool(one == other)


@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize("length", ["whole", "two", "none"])
async def test_gather_gives_what_was_scattered(fleet: Fleet, name: str, length: str) -> None:
    many = {"whole": None, "two": 2, "none": 0}[length]
    await gives_what_was_scattered(fleet, beginning(SEQUENCES[name], many))


def beginning(sequence: Any, many: int | None) -> Any:
    """Return the first items; with None the sequence."""
    if many is None:
        return sequence
    if hasattr(sequence, "slice"):
        return sequence.slice(0, many)
    return (sequence.iloc if hasattr(sequence, "iloc") else sequence)[:many]


async def gives_what_was_scattered(fleet: Fleet, sequence: Any) -> None:
    transfers = await fleet.scatter("part", sequence)
    assert [transfer.names for transfer in transfers] == [("part",)] * len(fleet)
    parts = await fleet.pull("part")
    sizes = [len(part) for part in parts]
    assert sum(sizes) == len(sequence)
    assert max(sizes) - min(sizes) <= 1
    assert {type(part) for part in parts} == {type(sequence)}
    assert equal(await fleet.gather("part"), sequence)


async def sequences_are_gathered(fleet: Fleet) -> None:
    """All of them but those whose class is defined here, where no kernel finds it."""
    for name, sequence in SEQUENCES.items():
        if not name.startswith("class of"):
            for many in (None, 2):
                await gives_what_was_scattered(fleet, beginning(sequence, many))


@pytest.mark.objects
@pytest.mark.parametrize("many", [7, 2, 0])
async def test_gather_gives_the_polars_table_that_was_scattered(fleet: Fleet, many: int) -> None:
    await polars_is_gathered(fleet, many)


async def polars_is_gathered(fleet: Fleet, many: int) -> None:
    import polars as pl

    frame = pl.DataFrame(
        {
            "n": [1, None, 3, 4, 5, 6, 7],
            "text": list("abcdefg"),
            "kind": ["y", "x", None, "z", "y", "x", "w"],
            "level": list("hlhlhlh"),
            "list": [[1], [], None, [2, None], [3], [4], [5]],
            "pair": [{"a": n, "b": str(n)} for n in range(7)],
            "when": [datetime(2024, 1, 1 + n, tzinfo=UTC) for n in range(7)],
            "price": [Decimal(n) / 4 for n in range(7)],
            "nothing": [None] * 7,
        },
        schema={
            "n": pl.Int64,
            "text": pl.String,
            "kind": pl.Categorical,
            "level": pl.Enum(["l", "h"]),
            "list": pl.List(pl.Int8),
            "pair": pl.Struct({"a": pl.Int32, "b": pl.Categorical}),
            "when": pl.Datetime("us", "UTC"),
            "price": pl.Decimal(10, 2),
            "nothing": pl.Null,
        },
    )
    chunks = pl.concat([frame[:1], frame[1:1], frame[1:]], rechunk=False)
    whole = (frame, chunks, frame["text"], frame["kind"], frame["level"], frame.select([]))
    for table in [one[:many] for one in whole]:
        await fleet.scatter("part", table)
        assert {type(part) for part in await fleet.pull("part")} == {type(table)}
        back = await fleet.gather("part")
        assert type(back) is type(table)
        assert repr(back.dtype if isinstance(back, pl.Series) else back.schema) == repr(
            table.dtype if isinstance(table, pl.Series) else table.schema
        )
        assert back.equals(table)


async def test_gather_drops_the_attributes_that_differ(fleet: Fleet) -> None:
    for index, bridge in enumerate(fleet):
        part = FRAME.copy()
        part.attrs = {"weights": np.arange(3) + index}
        await bridge.push(part=part)
    assert (await fleet.gather("part")).attrs == {}


async def test_gather_takes_an_expression(fleet: Fleet) -> None:
    await fleet.scatter("rows", list(range(10)))
    assert await fleet.gather("[2 * n for n in rows]") == [2 * n for n in range(10)]
    assert await fleet.gather("rows", timeout=20) == list(range(10))


async def test_scatter_and_gather_refuse_other_types(fleet: Fleet) -> None:
    others = ("text", b"bytes", {1, 2}, {1: 2}, range(3), iter([1]), (n for n in [1]), None, 1)
    parts_of_others = (Pair(1, 2), Rows([1]), pd.Index([1]), pa.array([1]), pa.record_batch({}))
    for value in (*others, *parts_of_others):
        name = type(value).__name__
        with pytest.raises(TypeError, match=rf"scatter\(\) divides lists, tuples.* not {name}$"):
            await fleet.scatter("x", value)
    for array in (np.array(1), np.ma.masked):
        with pytest.raises(TypeError, match=r"along axis 0, and this \w+ has no axes$"):
            await fleet.scatter("x", array)
    with pytest.raises(TypeError, match="this Frame: a part of it is another type, DataFrame$"):
        await fleet.scatter("x", Frame({"n": range(3)}))
    assert await fleet.exists("x") == [False] * 3
    await fleet.push(x="text")
    with pytest.raises(TypeError, match=r"gather\(\) joins .* not str"):
        await fleet.gather("x")
    await fleet[0].push(x=[1])
    await fleet[1].push(x=(1,))
    with pytest.raises(TypeError, match="not list, tuple, str"):
        await fleet.gather("x")


async def test_errors_of_scatter_and_gather_keep_the_rest(fleet: Fleet) -> None:
    await fleet[1].aclose()
    with pytest.raises(FleetError) as caught:
        await fleet.scatter("rows", [1, 2, 3])
    assert caught.value.results.keys() == {0, 2}
    await fleet[0].delete("rows")
    with pytest.raises(FleetError) as caught:
        await fleet.gather("rows")
    assert caught.value.results == {2: [3]}
    assert {type(one) for one in caught.value.exceptions} == {BridgeClosed, NameNotFound}
    with pytest.raises(TypeError, match="takes no return_exceptions"):
        await fleet.gather("rows", return_exceptions=True)


async def test_progress_of_scatter_counts_all_kernels(fleet: Fleet) -> None:
    seen: list[tuple[int, int]] = []
    await fleet.scatter("x", [bytes(50_000)] * 3, progress=lambda *done: seen.append(done))
    assert seen[-1][0] == seen[-1][1] > 150_000
    await fleet.gather("x", progress=lambda *done: seen.append(done))
    assert seen[-1][0] == seen[-1][1] > 150_000


def test_no_library_is_imported_to_divide_a_list() -> None:
    import subprocess

    code = (
        "import sys, bridgehead._bridge.scatter as s; s.joined(s.divided([1, 2], 2)); "
        "print([name for name in ('numpy', 'pandas', 'pyarrow', 'polars') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout == "[]\n"
