"""The progress of a transfer, and the thread in which an object is pickled.

Rule: the bar is tqdm's own; the tests read what it draws from the stream that it draws on.
"""

from __future__ import annotations

import asyncio
import collections
import functools
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyte
import pytest
import tqdm.auto
from cloudpickle.cloudpickle import list_registry_pickle_by_value

from bridgehead import Bridge, NameNotFound, SyncBridge
from bridgehead._bridge import progress as _progress
from bridgehead._bridge.progress import drawing, reporting
from bridgehead._lanes.inline import InlineLane
from bridgehead._protocol import payload as _payload
from bridgehead._transports.base import Transport

INIT = tqdm.auto.tqdm.__init__

# ---------------------------------------------------------------- reports


def test_a_callable_is_called_directly() -> None:
    def report(done: int, total: int) -> None: ...

    with reporting(report, "push") as given:
        assert given is report


def test_without_progress_reports_are_ignored() -> None:
    with reporting(False, "push") as report:
        assert report(1, 2) is None


@pytest.mark.parametrize("odd", [None, 1, "yes", [], 0.5])
async def test_progress_that_is_neither_a_bool_nor_callable_raises_type_error(
    loopback: Bridge, odd: Any
) -> None:
    with pytest.raises(TypeError, match="progress must be True, False or a callable"):
        await loopback.push(x=1, progress=odd)
    with pytest.raises(TypeError, match="progress must be True, False or a callable"):
        await loopback.pull("x", progress=odd)
    assert not await loopback.exists("x")


async def test_a_transfer_in_chunks_reports_each_chunk_and_the_end() -> None:
    async with Bridge.loopback(lane="inline") as bridge:
        data = b"x" * (3 * InlineLane.chunk + 5)
        for sent in (True, False):
            reports: list[tuple[int, int]] = []

            def report(done: int, total: int, reports: Any = reports) -> None:
                reports.append((done, total))

            if sent:
                assert (await bridge.push(x=data, progress=report)).bytes > len(data)
            else:
                assert await bridge.pull("x", progress=report) == data
            size = reports[-1][1]
            assert size > len(data)
            assert [total for _, total in reports] == [size] * len(reports)
            assert [done for done, _ in reports] == sorted(done for done, _ in reports)
            assert len(reports) > 3
            assert reports[-1] == (size, size)


async def test_an_exception_of_the_callable_ends_the_transfer_and_binds_nothing() -> None:
    async with Bridge.loopback(lane="inline") as bridge:
        data = b"x" * (3 * InlineLane.chunk)

        def stop(done: int, total: int) -> None:
            raise LookupError("that is enough")

        with pytest.raises(LookupError, match="that is enough"):
            await bridge.push(x=data, progress=stop)
        assert not await bridge.exists("x")
        await bridge.push(x=data)
        with pytest.raises(LookupError, match="that is enough"):
            await bridge.pull("x", progress=stop)
        assert await bridge.pull("x") == data


# ---------------------------------------------------------------- the bar


Drawn = pytest.CaptureFixture[str]  # tqdm draws on the standard error


def last_line(text: str) -> str:
    """Return the line that is visible after all drawings, each of which overwrites the last."""
    return text.strip().rpartition("\r")[2]


at_once = pytest.mark.timings(bar_after=0)  # shows the bar at once, even for a short transfer


@at_once
def test_true_draws_a_bar_of_bytes_and_speed(capsys: Drawn) -> None:
    with drawing(True, "push") as (report, draw):
        assert draw is not None
        assert capsys.readouterr().err == ""
        draw()  # the total is not known yet
        assert last_line(capsys.readouterr().err).startswith("push: 0.00B")
        report(1_000_000, 4_000_000)
        draw()
        assert "25%" in last_line(capsys.readouterr().err)
        report(4_000_000, 4_000_000)
    last = last_line(capsys.readouterr().err)
    assert last.startswith("push: 100%")
    assert "4.00M/4.00M" in last
    assert "B/s" in last


@at_once
def test_the_bar_of_a_failed_transfer_stays_where_it_failed(capsys: Drawn) -> None:
    with pytest.raises(LookupError), drawing(True, "pull") as (report, _):
        report(1_000_000, 4_000_000)
        raise LookupError
    drawn = capsys.readouterr().err
    assert last_line(drawn).startswith("pull failed:  25%")
    assert drawn.endswith("\n")


@pytest.mark.timings(bar_after=3600)
def test_a_short_transfer_draws_nothing(capsys: Drawn) -> None:
    with drawing(True, "push") as (report, draw):
        assert draw is not None
        report(5, 10)
        draw()
        report(10, 10)
    assert capsys.readouterr().err == ""


@at_once
async def test_disabled_tqdm_draws_nothing(
    loopback: Bridge, capsys: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tqdm.auto.tqdm, "__init__", functools.partialmethod(INIT, disable=True))
    assert (await loopback.push(x=b"x" * 1_000_000, progress=True)).names == ("x",)
    assert capsys.readouterr().err == ""


@at_once
async def test_a_push_and_a_pull_draw_their_bytes(loopback: Bridge, capsys: Drawn) -> None:
    await loopback.push(x=b"x" * 1_000_000, progress=True)
    assert last_line(capsys.readouterr().err).startswith("push: 100%")
    assert await loopback.pull("x", progress=True) == b"x" * 1_000_000
    last = last_line(capsys.readouterr().err)
    assert last.startswith("pull: 100%")
    assert "1.00M/1.00M" in last


@at_once
async def test_a_bar_is_drawn_while_nothing_arrives(
    loopback: Bridge, capsys: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = asyncio.Event()
    within = loopback._connection.within

    async def held(*args: Any) -> Any:
        await free.wait()
        return await within(*args)

    monkeypatch.setattr(loopback._connection, "within", held)
    push = asyncio.create_task(loopback.push(x=1, progress=True))
    drawn = ""
    while "push: 0.00B" not in drawn:
        await asyncio.sleep(0.01)
        drawn += capsys.readouterr().err
    free.set()
    await push
    assert last_line(capsys.readouterr().err).startswith("push: 100%")


@at_once
async def test_the_bar_of_a_cancelled_pull_says_cancelled_and_is_not_drawn_again(
    loopback: Bridge, capsys: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def forever(*args: Any, **options: Any) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(loopback._connection, "within", forever)
    pull = asyncio.create_task(loopback.pull("x", progress=True))
    drawn = ""
    while "pull: 0.00B" not in drawn:
        await asyncio.sleep(0.01)
        drawn += capsys.readouterr().err
    pull.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pull
    drawn = capsys.readouterr().err
    assert last_line(drawn).startswith("pull cancelled")
    assert drawn.endswith("\n")
    await asyncio.sleep(3 * Transport.timings.bar_every)
    assert capsys.readouterr().err == ""


@at_once
def test_several_bars_leave_one_line_each(capsys: Drawn) -> None:
    bars = [_progress.Bar(operation) for operation in ("push", "pull", "handoff")]
    for bar in bars:
        bar.update(1, 4)
        bar.draw()
    for number in (1, 0, 2):
        bars[number].update(4, 4)
        bars[number].close()
        for bar in bars:
            bar.draw()
    screen = pyte.Screen(100, 10)
    pyte.Stream(screen).feed(capsys.readouterr().err.replace("\n", "\r\n") + "after")
    lines = [line.rstrip() for line in screen.display]
    assert [line.partition("%")[0] for line in lines[:3]] == [
        "pull: 100",
        "push: 100",
        "handoff: 100",
    ]
    assert lines[3:] == ["after", *[""] * 6]


@at_once
def test_a_blocking_call_draws_in_the_calling_thread_and_leaves_no_thread(
    capsys: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawers: set[threading.Thread] = set()
    draw = _progress.Bar.draw

    def noted(bar: Any) -> None:
        drawers.add(threading.current_thread())
        draw(bar)

    monkeypatch.setattr(_progress.Bar, "draw", noted)
    before = set(threading.enumerate())
    with SyncBridge.loopback(lane="inline") as kernel:
        kernel.push(x=b"x" * 3_000_000, progress=True)
        assert last_line(capsys.readouterr().err).startswith("push: 100%")
        assert len(kernel.pull("x", progress=True)) == 3_000_000
        assert last_line(capsys.readouterr().err).startswith("pull: 100%")
        with pytest.raises(NameNotFound):
            kernel.pull("missing", progress=True)
        assert last_line(capsys.readouterr().err).startswith("pull failed")
    assert drawers == {threading.current_thread()}
    assert set(threading.enumerate()) <= before


async def test_a_bar_without_tqdm_raises_import_error_and_nothing_is_sent(
    loopback: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match="pip install tqdm, or pass a callable"):
        await loopback.push(x=1, progress=True)
    assert not await loopback.exists("x")
    reports: list[int] = []
    await loopback.push(x=1, progress=lambda done, total: reports.append(done))
    assert reports


# ---------------------------------------------------------------- which thread pickles


class NotesThreads:
    """Notes in which threads its code runs while it is pickled."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    def __reduce__(self) -> Any:
        self.threads.append(threading.current_thread())
        return str, ("pickled",)


class NotesThreadsOfState:
    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    def __getstate__(self) -> Any:
        self.threads.append(threading.current_thread())
        return {}


class Ints(int):
    threads: list[threading.Thread]

    def __reduce__(self) -> Any:
        self.threads.append(threading.current_thread())
        return int, (int(self),)


class Items(list[Any]):
    threads: list[threading.Thread]

    def __reduce__(self) -> Any:
        self.threads.append(threading.current_thread())
        return list, (list(self),)


class Array(np.ndarray):
    threads: list[threading.Thread]

    def __reduce_ex__(self, protocol: Any) -> Any:
        self.threads.append(threading.current_thread())
        return str, ("pickled",)


def objects(item: Any) -> Any:
    array = np.empty(1, dtype=object)
    array[0] = item
    return array


PLACES = {
    "by itself": lambda item: item,
    "in a list": lambda item: [1, [item]],
    "in a tuple": lambda item: (1, (item,)),
    "in a dict": lambda item: {"a": {"b": item}},
    "as a key": lambda item: {item: 1},
    "in a set": lambda item: {item},
    "in a deque": lambda item: collections.deque([item]),
    "in an array": objects,
    "in a namespace": lambda item: types.SimpleNamespace(item=item),
    "at the end of a long list": lambda item: [*range(1500), item],
}


def subclass(kind: type, *args: Any) -> Any:
    item = kind(*args)
    item.threads = []
    return item


KINDS = {
    "__reduce__": NotesThreads,
    "__getstate__": NotesThreadsOfState,
    "an int's": lambda: subclass(Ints, 7),
    "a list's": lambda: subclass(Items),
    "an array's": lambda: np.zeros(3).view(Array),
}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())
async def test_objects_that_run_user_code_pickle_in_a_thread(
    loopback: Bridge, make: Any, place: Any
) -> None:
    item = make()
    item.threads = []
    try:
        value = place(item)
    except TypeError:  # without a hash it can be neither a key nor in a set
        assert item.__hash__ is None
        value = item
    assert _payload.PayloadSource({"x": value}, {}).pack_small("crc32") is None
    await loopback.push(x=value)
    assert item.threads
    assert threading.current_thread() not in item.threads


SMALL: dict[str, Any] = {
    "scalars": [None, True, 1, 2.5, 1j, 10**40],
    "texts": ["a" * 1000, b"b", bytearray(5)],
    "containers": {"a": [(1, 2), {3}, frozenset({4}), {"b": {}}]},
    "an array": np.arange(1000.0),
    "many": list(range(900)),
}
LARGE: dict[str, Any] = {
    "a long text": "a" * (3 << 20),
    "a large array": np.zeros(3 << 18),
    "very many": list(range(3000)),
    "an array of objects": np.array([None, 1], dtype=object),
    "a function": len,
    "a class": dict,
    "many texts of some length": ["a" * 5000] * 600,
}
knot: list[Any] = []
knot.append(knot)
LARGE["a list in itself"] = knot


class PackingThreads:
    """Notes in which threads ``PayloadSource.pack`` runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[threading.Thread] = []
        pack = _payload.PayloadSource.pack

        def noted(content: Any, *args: Any, **options: Any) -> Any:
            self.seen.append(threading.current_thread())
            return pack(content, *args, **options)

        monkeypatch.setattr(_payload.PayloadSource, "pack", noted)


@pytest.mark.parametrize("value", SMALL.values(), ids=SMALL.keys())
async def test_a_few_plain_values_pickle_in_the_event_loop(
    loopback: Bridge, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _payload.PayloadSource({"x": value}, {}).pack_small("crc32") is not None
    threads = PackingThreads(monkeypatch)
    await loopback.push(x=value, array=np.zeros(1))
    assert not threads.seen


@pytest.mark.parametrize("value", LARGE.values(), ids=LARGE.keys())
async def test_objects_that_may_take_long_pickle_in_a_thread(
    loopback: Bridge, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _payload.PayloadSource({"x": value}, {}).pack_small("crc32") is None
    threads = PackingThreads(monkeypatch)
    await loopback.push(x=value, array=np.zeros(1))
    assert threads.seen
    assert threading.current_thread() not in threads.seen


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """Make a module that only this process can import."""
    (tmp_path / "mine_alone.py").write_text("def seven():\n    return 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    import mine_alone

    yield mine_alone
    del sys.modules["mine_alone"]


async def test_a_push_with_by_value_pickles_in_a_thread(
    loopback: Bridge, own_module: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _payload.PayloadSource({"x": 1}, {}, by_value=[own_module]).pack_small("crc32") is None
    threads = PackingThreads(monkeypatch)
    await loopback.push(seven=own_module.seven, by_value=[own_module])
    assert threading.current_thread() not in threads.seen
    assert await loopback.pull("seven()") == 7


async def test_a_small_push_does_not_wait_for_a_thread_that_pickles_a_module_by_value(
    loopback: Bridge, own_module: types.ModuleType
) -> None:
    begun, end = threading.Event(), threading.Event()

    class Waits:
        def __reduce__(self) -> Any:
            begun.set()
            assert end.wait(60)
            return str, ()

    def ship() -> None:
        _payload.encode(Waits(), {}, by_value=[own_module])

    thread = threading.Thread(target=ship)
    thread.start()
    try:
        assert begun.wait(60)
        await loopback.push(x=1)  # in the event loop, and without cloudpickle's registry
        assert await loopback.pull("x") == 1
    finally:
        end.set()
        thread.join()


def test_pickling_by_value_waits_for_pickling_without_it(own_module: types.ModuleType) -> None:
    begun, end = threading.Event(), threading.Event()
    shipped: list[bool] = []

    class Waits:
        def __reduce__(self) -> Any:
            begun.set()
            assert end.wait(60)
            shipped.append("mine_alone" in list_registry_pickle_by_value())
            return str, ()

    threads = [
        threading.Thread(target=_payload.encode, args=(Waits(), {})),
        threading.Thread(target=_payload.encode, args=(1, {}), kwargs={"by_value": [own_module]}),
        threading.Thread(target=_payload.encode, args=(1, {})),
    ]
    threads[0].start()
    assert begun.wait(60)
    for thread in threads[1:]:
        thread.start()
    threads[2].join(60)
    threads[1].join(0.05)
    assert [thread.is_alive() for thread in threads] == [True, True, False]
    end.set()
    for thread in threads:
        thread.join(60)
    assert shipped == [False]
    assert "mine_alone" not in list_registry_pickle_by_value()
