"""What users of ipyparallel do with views, done with bridges and fleets.

Rule: the same cluster for all tests, of four engines. A test here has a counterpart among the cases
of ipyparallel's views; ``README.md`` of the tests lists them. What a bridge promises beyond that is
in ``test_engines``.
"""

from __future__ import annotations

import asyncio
import collections
import math
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bridgehead import Bridge, Fleet, FleetError, NameNotFound, RemoteError, SyncFleet
from servers.test_engines import ENGINES, cluster
from support.kit import until

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Any]:
    async with cluster(tmp_path_factory.mktemp("cluster"), ENGINES) as opened:
        yield opened


@pytest.fixture
async def fleet(client: Any) -> AsyncIterator[Fleet]:
    """Open a fleet of all engines, whose namespaces are empty."""
    client[:].execute("%reset -f", block=True, silent=True)
    async with Fleet.over(client) as opened:
        yield opened


@pytest.fixture
def engine(fleet: Fleet) -> Bridge:
    return fleet[-1]


# ---------------------------------------------------------------- objects and functions


async def test_nested_data_crosses_to_one_engine_and_to_all(fleet: Fleet, engine: Bridge) -> None:
    data = {"whole": 3, "real": 2.5, "rows": [*range(9)], "inner": {"pair": (4, 5), "text": "ha"}}
    await engine.push(data=data)
    assert await engine.pull("data") == data
    await fleet.push(data=data, second=7)
    assert await fleet.pull("data", "second") == [(data, 7)] * ENGINES


async def test_functions_cross_both_ways(fleet: Fleet, engine: Bridge) -> None:
    def half(number: float) -> float:
        return number / 2

    await fleet.push(half=half)
    await engine.run("found = half(9)\ndef square(n):\n    return n * n")
    assert await engine.pull("found") == 4.5
    assert [function(3.0) for function in await fleet.pull("half")] == [1.5] * ENGINES
    halved, squared = await engine.pull("half", "square")
    assert (halved(5), squared(5)) == (2.5, 25)


async def test_global_names_are_those_of_the_engine(fleet: Fleet, engine: Bridge) -> None:
    def offset() -> Any:
        return there  # type: ignore[name-defined] # noqa: F821

    with pytest.raises(RemoteError, match="NameError"):
        await engine.call(offset, namespace=True)
    await fleet.run("there = 'engine'")
    assert await fleet.call(offset, namespace=True) == ["engine"] * ENGINES


async def test_defaults_keep_their_values(engine: Bridge) -> None:
    def word() -> str:
        return "default"

    def say(number: int = 12, function: Callable[[], str] = word) -> tuple[int, str]:
        return number, function()

    await engine.push(say=say)
    assert await engine.pull("say()") == (12, "default")
    assert await engine.call(say) == (12, "default")


async def test_keyword_arguments_have_any_name(engine: Bridge) -> None:
    assert await engine.call(lambda **options: options, f=5, args=6) == {"f": 5, "args": 6}


@pytest.mark.parametrize("kind", ["int32", "uint8", "float32", "float64", "object", "record"])
async def test_arrays_cross_both_ways(engine: Bridge, kind: str) -> None:
    array: Any = np.arange(2500).reshape(50, 50)
    if kind == "object":
        array = np.array([{"a": 1}, (2, [3])], dtype=object)
    elif kind == "record":
        array = np.array([(7, b"ab", 0.5), (-2, b"", 9.25)], "i8,S4,f4")
    else:
        array = array.astype(kind)
    back = await engine.call(lambda given: given, array)
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert np.array_equal(back, array)
    await engine.push(array=array)
    assert await engine.pull("(array.dtype, array.shape)") == (array.dtype, array.shape)


async def test_a_series_stays_a_series(engine: Bridge) -> None:
    series = pd.Series([1, 4, 9], index=["a", "b", "c"])
    await engine.push(series=series)
    pd.testing.assert_series_equal(await engine.pull("series"), series)


Pair = collections.namedtuple("Pair", "left right")


async def test_named_tuples_cross_both_ways(engine: Bridge) -> None:
    import servers.test_engine_views as own

    def swapped(pair: Any) -> Any:
        return type(pair)(pair.right, pair.left)

    assert await engine.call(swapped, Pair(1, 2), by_value=[own]) == Pair(2, 1)


async def test_text_beyond_ascii_crosses_everywhere(engine: Bridge) -> None:
    text = "smørrebrød ∑ 東京 🦆"
    await engine.run(f"text = {text!r}")
    assert await engine.pull("text") == text
    assert await engine.call(lambda given: (given, given.encode()), text) == (text, text.encode())
    assert await engine.call(lambda: "∑") == "∑"


async def test_refs_are_arguments_at_any_depth(engine: Bridge) -> None:
    await engine.push(rows=[5, 6, 7])
    rows = engine.ref("rows")
    assert await engine.call(lambda given: given, rows[1]) == 6
    assert await engine.call(lambda *given, **more: (given, more), [rows[0]], {"a": rows}) == (
        ([5], {"a": [5, 6, 7]}),
        {},
    )
    assert await engine.call(lambda **more: more, one=[rows[2]], two={"b": rows[0]}) == {
        "one": [7],
        "two": {"b": 5},
    }
    with pytest.raises(RemoteError, match="NameError: name 'nowhere'"):
        await engine.call(lambda given: given, engine.ref("nowhere"))


async def test_each_engine_calls_its_own_function_with_its_own_number(fleet: Fleet) -> None:
    await fleet.scatter("numbers", [*range(ENGINES)])
    await fleet.run("number = numbers[0]\ndef scale(n):\n    return n * number")
    assert await fleet.pull("scale(5)") == [5 * n for n in range(ENGINES)]
    assert await fleet.call(lambda n: scale(n), 2, namespace=True) == [0, 2, 4, 6]  # type: ignore[name-defined] # noqa: F821
    with pytest.raises(ValueError, match="belongs to one kernel"):
        await fleet.call(abs, fleet[0].ref("number"))


async def test_an_attribute_is_pulled_and_set(engine: Bridge) -> None:
    await engine.run("class Box: pass\nbox = Box()\nbox.size = 3")
    assert await engine.pull("box.size") == 3
    assert await engine.call(lambda box: box.size, engine.ref("box")) == 3
    await engine.call(setattr, engine.ref("box"), "size", 4)
    assert await engine.pull("box.size") == 4


async def test_the_clients_names_go_along_or_the_engines_are_used(engine: Bridge) -> None:
    """ipyparallel asks for one or the other by a choice of pickles."""
    where = "client"

    def place() -> Any:
        return where

    await engine.run("where = 'engine'")
    assert await engine.call(place) == "client"  # a closure crosses
    source = compile("def place():\n    return where", "<user>", "exec")
    names: dict[str, Any] = {"where": "client"}
    exec(source, names)
    assert await engine.call(names["place"]) == "client"
    assert await engine.call(names["place"], namespace=True) == "engine"


# ---------------------------------------------------------------- sequences and maps


@pytest.mark.parametrize("count", [64, 16, 3, 0])
async def test_what_was_scattered_is_gathered(fleet: Fleet, count: int) -> None:
    rows = [*range(count)]
    await fleet.scatter("rows", rows)
    assert await fleet.gather("rows") == rows
    array = np.arange(count)
    await fleet.scatter("array", array)
    gathered = await fleet.gather("array")
    assert type(gathered) is np.ndarray
    assert np.array_equal(gathered, array)
    with pytest.raises(FleetError) as caught:
        await fleet.gather("nowhere")
    assert {type(error) for error in caught.value.exceptions} == {NameNotFound}


async def test_scatter_and_gather_need_not_be_awaited_one_by_one(fleet: Fleet) -> None:
    scattering = asyncio.ensure_future(fleet.scatter("rows", [*range(20)]))
    gathering = asyncio.ensure_future(fleet.gather("rows"))
    assert await gathering == [*range(20)]
    assert len(await scattering) == ENGINES


@pytest.mark.parametrize("items", [[], range(101), iter(range(101)), np.arange(101)])
async def test_a_map_takes_any_iterable(fleet: Fleet, items: Any) -> None:
    expected = [n * n for n in range(101)] if len(np.atleast_1d(items)) else []
    assert [n async for n in fleet.map(lambda n: n**2, items, chunksize=7)] == expected


async def test_a_map_takes_several_iterables_and_one_engine(fleet: Fleet) -> None:
    await fleet.run("def times(a, b):\n    return a * b")
    rows = range(10), [*range(10)][::-1]
    products = fleet.map(lambda a, b: times(a, b), *rows, namespace=True)  # type: ignore[name-defined] # noqa: F821
    assert [n async for n in products] == [a * b for a, b in zip(*rows, strict=True)]
    one = fleet[:1]
    await one.run("rank = 3")
    ranks = one.map(lambda rank: rank * 2, [one[0].ref("rank")] * 3)
    assert [n async for n in ranks] == [6, 6, 6]


async def test_a_fleet_has_a_length_and_slices(fleet: Fleet) -> None:
    assert (len(fleet), len(fleet[:2]), len(fleet[1:2])) == (ENGINES, 2, 1)


def test_a_blocking_fleet_waits(client: Any) -> None:
    with SyncFleet.over(client) as engines:
        engines.push(x=3)
        assert engines.pull("x") == [3] * ENGINES
        assert list(engines.map(math.sqrt, [4.0, 9.0])) == [2.0, 3.0]


# ---------------------------------------------------------------- cells


async def test_cells_run_in_all_engines_and_give_what_they_show(fleet: Fleet) -> None:
    await asyncio.gather(fleet.run("c = 30"), fleet.run("d = [0, 1]"))
    assert await fleet.pull("c", "d") == [(30, [0, 1])] * ENGINES
    results = await fleet.run("print('at work')\nc + 1")
    assert {result.stdout for result in results} == {"at work\n"}
    assert {result.data["text/plain"] for result in results} == {"31"}
    quiet = await fleet.run("c;")
    assert {tuple(result.outputs) for result in quiet} == {()}


async def test_rich_values_keep_their_types(engine: Bridge) -> None:
    html = await engine.run("from IPython.display import *\nHTML('<b>bold</b>')")
    assert html.data["text/html"] == "<b>bold</b>"
    image = await engine.run("Image(data=b'no image', format='png', width=10)")
    assert image.data["image/png"].strip() == "bm8gaW1hZ2U="


async def test_magics_run(fleet: Fleet) -> None:
    await fleet.run("a = 5")
    for result in await fleet.run("%whos"):
        assert ["a", "int", "5"] in [line.split() for line in result.stdout.splitlines()]
    figure = "%matplotlib inline\nfrom matplotlib import pyplot\npyplot.plot([1, 3, 2]);"
    (output,) = (await fleet[0].run(figure)).outputs
    assert "image/png" in output["data"]


async def test_displays_arrive_of_cells_and_of_functions(fleet: Fleet) -> None:
    await fleet.run("from IPython.display import display")
    wanted = [{"text/plain": str(n)} for n in range(4)]
    for result in await fleet.run("for n in range(4): display(n)"):
        assert [output["data"] for output in result.outputs] == wanted
    seen: list[list[Any]] = [[] for _ in range(ENGINES)]

    def show() -> None:
        for n in range(4):
            display(n)  # type: ignore[name-defined] # noqa: F821

    await fleet.call(
        show,
        namespace=True,
        on_output=lambda message, index: seen[index].append(message.content["data"]),
    )
    assert seen == [wanted] * ENGINES


async def test_imports_are_made_by_a_cell(engine: Bridge) -> None:
    result = await engine.run("import re")
    assert list(result.outputs) == []
    found = await engine.call(lambda: re.findall("o.", "foo bore"), namespace=True)  # type: ignore[name-defined] # noqa: F821
    assert found == ["oo", "or"]


async def test_a_file_runs_as_a_cell(engine: Bridge, tmp_path: Path) -> None:
    file = tmp_path / "work.py"
    file.write_text("def five():\n    return 5")  # no line feed at its end
    await engine.run(file.read_text())
    assert await engine.pull("five()") == 5


async def test_each_error_names_its_engine(fleet: Fleet, engine: Bridge) -> None:
    with pytest.raises(RemoteError, match="ZeroDivisionError"):
        await engine.run("1 / 0")
    with pytest.raises(FleetError, match=f"{ENGINES} of {ENGINES} kernels failed") as caught:
        await fleet.run("1 / 0")
    for index, error in caught.value.errors.items():
        assert isinstance(error, RemoteError)
        assert "----> 1 1 / 0" in str(error)
        assert f", engine {index}" in error.__notes__[0]


async def test_code_publishes_data_in_the_middle_of_its_work(fleet: Fleet) -> None:
    seen: list[list[int]] = [[] for _ in fleet]
    for bridge, to in zip(fleet, seen, strict=True):
        with bridge.callback(lambda step, to=to: to.append(step)) as publish:
            await bridge.push(publish=publish)
            await bridge.run("for step in range(5): publish(step)")
            await until(lambda to=to: len(to) == 5)
    assert seen == [[*range(5)]] * ENGINES


# ---------------------------------------------------------------- work that is withdrawn


async def test_work_that_has_not_begun_is_withdrawn(engine: Bridge) -> None:
    first = asyncio.ensure_future(engine.run("import time; time.sleep(0.5)"))
    await until(lambda: engine.state == "busy")

    def note(number: int) -> None:
        global done
        done = number  # type: ignore[name-defined]

    tasks = [engine.submit(note, number, namespace=True) for number in range(4)]
    for task in tasks[:-1]:
        assert task.cancel()
    await first
    await tasks[-1]
    assert await engine.pull("done") == 3
    for task in tasks[:-1]:
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_all_work_is_withdrawn_at_once(engine: Bridge) -> None:
    tasks = [engine.submit(time.sleep, 60) for _ in range(10)]
    await until(lambda: engine.state == "busy")
    for task in tasks:
        task.cancel()
    async with asyncio.timeout(10):
        assert await engine.call(abs, -1) == 1
