"""The direct lane: objects arrive as they were, in order, and code runs in the main thread.

Rule: one kernel for all tests that leave it as it was, reached over the direct lane; what the
memory does is ``test_direct_memory``'s, what goes wrong ``test_direct_faults``'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import threading
import time
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bridgehead import Bridge, PayloadTooLarge, RemoteError
from support import memory
from support.elsewhere import MAJORS
from support.kit import Other, other

MIB = 1 << 20
LARGE = 100_000  # doubles: they go through shared memory
OWN = [sys.modules[__name__]]  # the kernel does not have it


@pytest.fixture
def direct(kernel: Bridge) -> Bridge:
    assert kernel.info.lane == "direct"
    return kernel


def flags(array: np.ndarray[Any, Any]) -> list[Any]:
    """What of an array has to arrive."""
    names = ("C_CONTIGUOUS", "F_CONTIGUOUS", "WRITEABLE")
    return [*(bool(array.flags[name]) for name in names), array.dtype, array.shape]


def a_structured_array(count: int) -> np.ndarray[Any, Any]:
    made = np.zeros(count, [("a", "<i4"), ("b", ">f8", (2, 3)), ("c", "S5"), ("d", "M8[us]")])
    made["a"], made["b"] = np.arange(count), np.arange(count * 6).reshape(count, 2, 3)
    return made


def read_only(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array.flags.writeable = False
    return array


def arrays(count: int) -> dict[str, np.ndarray[Any, Any]]:
    doubles = np.random.default_rng(0).random(count)
    square = doubles.reshape(-1, 100)
    return {
        "plain": doubles,
        "fortran": np.asfortranarray(square),
        "read-only": read_only(doubles.copy()),
        "structured": a_structured_array(count // 10),
        "dates": np.arange(count).astype("M8[ns]"),
        "spans": np.arange(count).astype("m8[ms]"),
        "nothing": np.zeros((0, 5), "f4"),
        "zero dimensions": np.array(7.5),
        "every third": doubles[::3],
        "backwards": doubles[::-1],
        "a column": square[:, 3],
        "transposed": square.T,
        "broadcast": np.broadcast_to(doubles[:1], (count // 100, 100)),
        "other byte order": doubles.astype(">f8"),
        "booleans": doubles > 0.5,
        "complex": doubles.astype("c16"),
        "texts": doubles[:1000].astype("U32"),
        "objects": np.array([{"a": 1}, None, "ä"] * 100, object),
        "half": doubles.astype("f2"),
        "five dimensions": doubles.reshape(2, 5, 10, 10, -1),
    }


def look_at(found: dict[str, Any]) -> dict[str, list[Any]]:
    names = ("C_CONTIGUOUS", "F_CONTIGUOUS", "WRITEABLE")
    return {
        name: [*(bool(one.flags[n]) for n in names), one.dtype, one.shape]
        for name, one in found.items()
    }


@pytest.mark.parametrize("count", [1000, LARGE])
async def test_arrays_arrive_as_they_went_in(direct: Bridge, count: int) -> None:
    """Flags as a pickle keeps them: an array in steps becomes one that is whole."""
    sent = arrays(count)
    await direct.push(found=sent)
    there = await direct.call(look_at, direct.ref("found"), by_value=OWN)
    back = await direct.pull("found")
    for name, array in sent.items():
        expected = flags(array)
        if not (expected[0] or expected[1]):  # in steps: a copy is whole, and writable
            expected[:3] = flags(array.copy())[:3] if name != "transposed" else expected[:3]
        assert flags(back[name])[3:] == expected[3:], name
        assert np.array_equal(back[name], array), name
        if expected[0] or expected[1]:
            assert flags(back[name])[:3] == expected[:3], name
            assert there[name] == expected, name


def addresses(found: Any) -> list[int]:
    return [array.ctypes.data % 64 for array in found]


async def test_arrays_are_writable_and_aligned(direct: Bridge) -> None:
    sent = [np.arange(n, dtype=kind) for n in (300, 9_001, LARGE + 1) for kind in "bhdD"]
    large = [array for array in sent if array.nbytes >= 2048]
    await direct.push(found=large)
    assert await direct.call(addresses, direct.ref("found"), by_value=OWN) == [0] * len(large)
    back = await direct.pull("found")
    assert addresses(back) == [0] * len(large)
    for array, copy in zip(large, back, strict=True):
        copy += 1
        assert np.array_equal(copy, array + 1)
    await direct.run("for one in found: one -= 1")
    assert np.array_equal((await direct.pull("found"))[-1], large[-1] - 1)


@pytest.mark.parametrize("count", [1000, LARGE])
async def test_arrays_are_independent_of_the_sender(direct: Bridge, count: int) -> None:
    mine = np.zeros(count)
    await direct.push(x=mine)
    mine[:] = 1
    assert (await direct.pull("x")).sum() == 0
    await direct.run("x[:] = 2")
    assert (mine == 1).all()
    back = await direct.pull("x")
    again = await direct.pull("x")
    back[:] = 3
    assert (again == 2).all()
    assert (await direct.pull("x") == 2).all()
    await direct.run("x[:] = 4")
    assert (back == 3).all()
    assert (again == 2).all()


async def test_what_is_shared_in_an_object_stays_shared(direct: Bridge) -> None:
    one = np.zeros(LARGE)
    await direct.push(pair=(one, one), again=one)
    await direct.run("pair[0][:] = 5; same = pair[1] is again")
    (first, second), same = await direct.pull("pair", "same")
    assert first is second
    assert first.sum() == 5 * LARGE
    assert same


async def test_other_large_objects(direct: Bridge) -> None:
    frame = pd.DataFrame({"a": np.arange(LARGE), "b": np.random.rand(LARGE)})
    values = [b"x" * MIB, bytearray(b"y" * MIB), "ä" * MIB, list(range(LARGE)), {"f": frame}]
    await direct.push(values=values)
    back = await direct.pull("values")
    assert back[:4] == values[:4]
    assert type(back[1]) is bytearray
    pd.testing.assert_frame_equal(back[4]["f"], frame)


@pytest.mark.parametrize("nbytes", [(1 << 16) - 200, (1 << 16) - 1, 1 << 16, (1 << 16) + 1])
async def test_on_either_side_of_the_size_that_shared_memory_begins_at(
    direct: Bridge, nbytes: int
) -> None:
    for value in (b"\x07" * nbytes, np.full(nbytes, 7, "u1"), "\x07" * nbytes):
        await direct.push(x=value)
        back = await direct.pull("x")
        assert bytes(back, "ascii") if isinstance(back, str) else bytes(back) == b"\7" * nbytes
        assert len(back) == nbytes


async def test_calls_and_expressions_take_the_lane_too(direct: Bridge) -> None:
    before = memory.client_counts(direct)["mapped"]
    mine = np.arange(LARGE)
    back = await direct.call(lambda array: array * 2, mine)
    assert back.sum() == mine.sum() * 2
    await direct.push(x=mine)
    assert (await direct.pull("x + 1", "x[:10]"))[0].sum() == mine.sum() + LARGE
    assert memory.client_counts(direct)["mapped"] > before or before
    back += 1
    kept = await direct.call(lambda array: array + 1, mine, keep="y")
    assert (await kept.pull()).sum() == mine.sum() + LARGE


async def test_limits_and_progress(direct: Bridge) -> None:
    mine = np.ones(40 * MIB // 8)
    told: list[tuple[int, int]] = []
    transfer = await direct.push(x=mine, progress=lambda done, total: told.append((done, total)))
    assert transfer.lane == "direct"
    assert told[-1] == (transfer.bytes, transfer.bytes)
    assert len(told) > 1
    assert sorted(told) == told
    told.clear()
    await direct.pull("x", progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] > 40 * MIB
    with pytest.raises(PayloadTooLarge):
        await direct.push(y=mine, max_bytes=MIB)
    for expression in ("x", "x + 1"):
        with pytest.raises(PayloadTooLarge):
            await direct.pull(expression, max_bytes=MIB)
    assert not await direct.exists("y")
    await memory.nothing_is_leased(direct)


async def test_progress_that_raises_ends_a_push(direct: Bridge) -> None:
    def stop(done: int, total: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await direct.push(x=np.ones(80 * MIB // 8), progress=stop)
    await direct.push(y=1)
    assert await direct.pull("y") == 1
    await memory.nothing_is_leased(direct)


async def test_watching_a_large_array(direct: Bridge) -> None:
    await direct.push(x=np.zeros(LARGE))
    seen = []
    watch = direct.watch("x")
    async for value in watch:
        seen.append(value)
        value += 100  # it is ours
        if len(seen) == 4:
            break
        await direct.run(f"x[:] = {len(seen)}")
    assert [int(value[0]) - 100 for value in seen] == [0, 1, 2, 3]
    await watch.aclose()
    del value
    seen.clear()
    await memory.nothing_is_leased(direct)


async def test_errors_with_large_exceptions(direct: Bridge) -> None:
    def fail(array: Any) -> None:
        raise ValueError("here", array * 2)

    with pytest.raises(RemoteError) as caught:
        await direct.call(fail, np.ones(LARGE), by_value=OWN)
    cause = caught.value.__cause__
    assert isinstance(cause, ValueError)
    assert cause.args[1].sum() == 2 * LARGE
    del cause, caught
    await direct.push(y=1)
    await memory.nothing_is_leased(direct)


# ---------------------------------------------------------------- order


async def test_everything_takes_effect_in_the_order_of_its_call(direct: Bridge) -> None:
    """Every mixture of pushes, pulls, calls, cells, expressions, and cells nobody waits for."""
    seed = random.randrange(1 << 30)
    dice = random.Random(seed)
    await direct.push(log=[], x=np.zeros(10))
    expected: list[Any] = []
    tasks: list[tuple[asyncio.Task[Any], Any]] = []
    current: Any = 0

    def start(work: Any, value: Any = None) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(work)
        tasks.append((task, value))
        return task

    for n in range(1, 120):
        size = dice.choice([10, 10, 1000, LARGE])
        kind = dice.choice(["push", "pull", "run", "call", "expression", "cancelled", "wait"])
        if kind == "push":
            current = n
            start(direct.push(x=np.full(size, n)))
        elif kind == "pull":
            start(direct.pull("x"), current)
        elif kind == "run":
            current = n
            start(direct.run(f"import numpy; x = numpy.full({size}, {n}); log.append({n})"))
            expected.append(n)
        elif kind == "call":
            start(direct.call(lambda log, x, n: log.append((n, int(x[0]))),
                              direct.ref("log"), direct.ref("x"), n))  # fmt: skip
            expected.append((n, current))
        elif kind == "expression":
            start(direct.pull("x * 1"), current)
        elif kind == "cancelled":
            gone = asyncio.ensure_future(direct.run("import time; time.sleep(0.02); x = None"))
            await asyncio.sleep(dice.choice([0, 0, 0.005]))
            gone.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await gone
            current = n
            start(direct.push(x=np.full(size, n)))
        elif dice.random() < 0.5:
            await asyncio.gather(*(task for task, _ in tasks))
    for task, value in tasks:
        got = await task
        if value is not None:
            assert int(got[0]) == value, f"seed {seed}"
    assert await direct.pull("log") == expected, f"seed {seed}"


@pytest.mark.parametrize("size", [10, LARGE])
async def test_a_push_comes_after_a_cell_that_nobody_waits_for(direct: Bridge, size: int) -> None:
    for n in range(5):
        cell = asyncio.ensure_future(direct.run(f"import time; time.sleep(0.05); x = y = {-n}"))
        while not direct._transport.dispatcher.in_flight:
            await asyncio.sleep(0)
        cell.cancel()
        await direct.push(x=np.full(size, n))
        x, y = await direct.pull("x", "y")
        assert (x == n).all()
        assert y == -n


async def test_a_push_that_nobody_waits_for_comes_before_the_next_cell(direct: Bridge) -> None:
    """Or not at all; never after it."""
    for n in range(1, 40):
        gone = asyncio.ensure_future(direct.push(x=[n] * (n % 3)))
        for _ in range(n % 5):
            await asyncio.sleep(0)
        gone.cancel()
        await direct.run("x = 0")
        assert await direct.pull("x") == 0


async def running(direct: Bridge, somebody: Other, code: str) -> str:
    """Somebody else's cell, once it runs; it begins with ``begun = 1``."""
    submitted = somebody.submit(code)
    while not await direct.pull("globals().get('begun')", now=True):
        await asyncio.sleep(0.02)
    return submitted


SEEN = """
begun = 1
import time
seen = []
for _ in range(40):
    time.sleep(0.02)
    seen.append(sorted(set(globals()) & {"small", "large", "kept"}))
begun = 0
"""


async def test_each_takes_its_turn_behind_anothers_cell(direct: Bridge) -> None:
    """Nothing takes effect in the middle of a cell; the memory isn't given up while it waits."""
    async with other(direct) as somebody:
        submitted = await running(direct, somebody, SEEN)
        large = np.arange(LARGE)
        await asyncio.gather(
            direct.push(small=1),
            direct.push(large=large),
            direct.call(lambda array: array, large, keep="kept"),
        )
        assert (await somebody.answer(submitted))["status"] == "ok"
    seen, begun = await direct.pull("seen", "cells_begun")
    assert seen == [[]] * 40
    assert not begun
    assert (await direct.pull("large")).sum() == (await direct.pull("kept")).sum() == large.sum()
    await memory.nothing_is_leased(direct)


async def test_a_pull_waits_for_anothers_cell(direct: Bridge) -> None:
    await direct.push(x=np.zeros(LARGE))
    async with other(direct) as somebody:
        code = "begun = 1\nimport time\nfor n in range(30):\n time.sleep(0.02)\n x[:] = n"
        submitted = await running(direct, somebody, code)
        assert (await direct.pull("x") == 29).all()
        await somebody.answer(submitted)


async def test_what_gives_up_behind_anothers_cell_leaves_nothing(direct: Bridge) -> None:
    async with other(direct) as somebody:
        submitted = await running(direct, somebody, SEEN)
        for name, value in (("small", 1), ("large", np.zeros(LARGE))):
            with pytest.raises(TimeoutError):
                await direct.push({name: value}, timeout=0.1)
        with pytest.raises(TimeoutError):
            await direct.pull("x", timeout=0.1)
        await somebody.answer(submitted)
    seen = await direct.pull("seen")
    assert seen == [[]] * 40
    await memory.nothing_is_leased(direct)


async def test_a_pull_is_of_one_moment(direct: Bridge) -> None:
    """Somebody else's cell that begins while an array is copied does not show in it by half."""
    await direct.push(x=np.zeros(4 * MIB))
    async with other(direct) as somebody:
        done = 0

        async def cells() -> None:
            nonlocal done
            for n in range(25):
                await somebody.execute(f"x[:] = {n}")
                done = n

        work = asyncio.ensure_future(cells())
        torn = 0
        while not work.done():
            found = await direct.pull("x")
            torn += found.min() != found.max()
        await work
        assert not torn


# ---------------------------------------------------------------- now


LOOPS = {
    "a busy loop": "while not stop: turns += 1",
    "time.sleep": "import time\nwhile not stop: time.sleep(0.01); turns += 1",
}


@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_names_in_the_middle_of_a_cell(live: Bridge) -> None:
    """Of every ipykernel: the lane's thread needs no subshell."""
    for loop in LOOPS.values():
        await live.push(stop=False, turns=0, x=np.zeros(LARGE))
        cell = asyncio.ensure_future(live.run(loop + "\nsaw = float(x.sum())"))
        while not await live.pull("turns", now=True):
            await asyncio.sleep(0)
        await live.push(x=np.ones(LARGE), now=True)
        found = await live.pull("x", now=True)
        found += 1
        assert found.sum() == 2 * LARGE
        assert not cell.done()
        await live.push(stop=True, now=True)
        await cell
        assert await live.pull("saw") == LARGE
        del found
    await memory.nothing_is_leased(live)


async def test_expressions_in_the_middle_of_a_cell_are_a_subshells(direct: Bridge) -> None:
    await direct.push(stop=False, x=np.zeros(LARGE))
    cell = asyncio.ensure_future(direct.run("import threading\nwhile not stop: pass"))
    try:
        name = "__import__('threading').current_thread().name"
        thread, array = await direct.pull(name, "x + 1", now=True)
    finally:
        await direct.push(stop=True, now=True)
        await cell
    assert array.sum() == LARGE
    assert thread not in ("bridgehead-direct", "MainThread")


# ---------------------------------------------------------------- whose thread


class Tells:
    """Its state is set in a thread, and it remembers which."""

    def __init__(self, *parts: Any) -> None:
        self.parts, self.thread = parts, ""

    def __getstate__(self) -> Any:
        return self.parts

    def __setstate__(self, parts: Any) -> None:
        import threading

        self.parts, self.thread = parts, threading.current_thread().name


def thread_name(*_: Any) -> str:
    import threading

    return threading.current_thread().name


@pytest.mark.parametrize("size", [10, LARGE])
async def test_code_always_runs_in_the_main_thread(direct: Bridge, size: int) -> None:
    array = np.zeros(size)
    await direct.push(x=array)
    assert await direct.call(thread_name, array, by_value=OWN) == "MainThread"
    assert await direct.call(thread_name, direct.ref("x"), by_value=OWN) == "MainThread"
    await direct.run("import threading; thread = threading.current_thread().name")
    assert await direct.pull("thread") == "MainThread"
    thread, _ = await direct.pull("threading.current_thread().name", "x * 2")
    assert thread == "MainThread"
    # What refers to an expression runs it, and so what is built of it.
    await direct.push(told=Tells(direct.ref("x"), array), by_value=OWN)
    assert await direct.pull("told.thread") == "MainThread"
    assert (
        await direct.call(lambda tells: tells.thread, Tells(array), by_value=OWN)
    ) == "MainThread"
    assert await direct.pull("told.parts[0] is x")


async def test_a_busy_event_loop_here_keeps_no_kernel_waiting(direct: Bridge) -> None:
    """What arrived while the loop was held up is right all the same."""
    await direct.push(x=np.arange(LARGE))
    task = asyncio.ensure_future(direct.pull("x"))
    await asyncio.sleep(0)
    time.sleep(0.5)
    assert (await task).sum() == np.arange(LARGE).sum()


async def test_many_at_once(direct: Bridge) -> None:
    async def one(n: int) -> None:
        size = (10, 1000, LARGE)[n % 3]
        await direct.push({f"v{n}": np.full(size, n)})
        back = await direct.pull(f"v{n}")
        assert back.size == size
        assert (back == n).all()
        await direct.delete(f"v{n}")

    await asyncio.gather(*(one(n) for n in range(150)))
    await memory.nothing_is_leased(direct)


async def test_two_bridges_on_one_kernel_at_once(direct: Bridge) -> None:
    async with Bridge.attach(direct.info.connection_file, lane="direct") as second:
        assert await memory.socket_threads(direct) == 2

        async def work(bridge: Bridge, value: int) -> None:
            for n in range(10):
                await bridge.push({f"n{value}": np.full(LARGE, value + n)})
                back = await bridge.pull(f"n{value}")
                assert (back == value + n).all()
                back[:] = -1

        await asyncio.gather(work(direct, 100), work(second, 200), work(direct, 300))
        assert (await direct.pull("n200") == 209).all()
        # Each sees what the other binds.
        await direct.push(x=np.full(LARGE, 1))
        assert (await second.pull("x") == 1).all()
    assert (await direct.pull("n200") == 209).all()
    count = 2
    end = time.monotonic() + 30
    while count != 1:
        assert time.monotonic() < end
        count = await memory.socket_threads(direct)


async def test_from_other_threads(live: Bridge) -> None:
    """A SyncBridge beside the bridge, from several threads at once."""
    from bridgehead import SyncBridge

    failures: list[BaseException] = []

    def work(sync: Any, value: int) -> None:
        try:
            for n in range(10):
                sync.push({f"t{value}": np.full(LARGE, n)})
                assert (sync.pull(f"t{value}") == n).all()
        except BaseException as error:
            failures.append(error)

    def all_of_it() -> None:
        with SyncBridge.attach(live.info.connection_file, lane="direct") as sync:
            threads = [threading.Thread(target=work, args=(sync, n)) for n in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    await asyncio.to_thread(all_of_it)
    assert not failures


async def test_those_who_ask_now_keep_nobody_from_his_turn(direct: Bridge) -> None:
    """There is always one of theirs on its way; a cell, and an interrupt, come all the same."""
    await direct.push(a=np.arange(1000.0))
    stop = False

    async def asks() -> int:
        count = 0
        while not stop:
            assert (await direct.pull("a", now=True)).size == 1000
            count += 1
        return count

    asking = [asyncio.ensure_future(asks()) for _ in range(3)]
    await asyncio.sleep(0.1)
    for number in range(3):
        assert (await direct.run(f"{number}", timeout=30)).data["text/plain"] == str(number)
        assert await direct.call(abs, -number, timeout=30) == number
        await direct.interrupt()
    stop = True
    assert min(await asyncio.gather(*asking)) > 0


REPLACED = """
import mmap, os, socket, threading
for module, names in (
    (mmap, ["mmap"]),
    (os, ["pwrite", "dup", "ftruncate", "memfd_create", "preadv", "fstat"]),
    (socket, ["socket"]),
):
    for name in names:
        setattr(module, name, None)
threading.Thread.run = lambda self: None
"""


async def test_what_a_user_replaces_does_not_reach_the_lane() -> None:
    """What it stands on is replaced after the loader came, and before the next bridge does."""
    array = np.arange(LARGE, dtype=float)
    async with Bridge.launch() as bridge:
        assert await bridge.pull("1") == 1
        await bridge.call(exec, REPLACED, {})
        async with Bridge.attach(bridge.info.connection_file, lane="direct") as second:
            for one in (bridge, second):
                assert (await one.push(array=array)).lane == "direct"
                assert np.array_equal(await one.pull("array"), array)
                assert np.array_equal(await one.pull("array + 1"), array + 1)
