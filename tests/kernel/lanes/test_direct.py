"""The direct lane: objects arrive unchanged and in order, and code runs in the main thread.

Rule: tests that leave the kernel as it was share one. Shared memory is tested in
``test_direct_memory``, faults in ``test_direct_faults``.
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
from unit.connection.test_connection import check_headers

MIB = 1 << 20
LARGE = 100_000  # doubles: they go through shared memory
OWN = [sys.modules[__name__]]  # the kernel does not have it


@pytest.fixture
def direct(kernel: Bridge) -> Bridge:
    assert kernel.info.lane == "direct"
    return kernel


def flags(array: np.ndarray[Any, Any]) -> list[Any]:
    """Return the properties of an array that must arrive."""
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
async def test_arrays_arrive_unchanged(direct: Bridge, count: int) -> None:
    """An array with gaps between its items becomes a contiguous one."""
    sent = arrays(count)
    await direct.push(found=sent)
    in_kernel = await direct.call(look_at, direct.ref("found"), by_value=OWN)
    pulled = await direct.pull("found")
    for name, array in sent.items():
        expected = flags(array.copy() if name in ("every third", "a column") else array)
        assert flags(pulled[name]) == in_kernel[name] == expected, name
        assert np.array_equal(pulled[name], array), name


def addresses(found: Any) -> list[int]:
    return [array.ctypes.data % 64 for array in found]


async def test_arrays_are_writable_and_aligned(direct: Bridge) -> None:
    sent = [np.arange(n, dtype=kind) for n in (300, 9_001, LARGE + 1) for kind in "bhdD"]
    large = [array for array in sent if array.nbytes >= 2048]
    await direct.push(found=large)
    assert await direct.call(addresses, direct.ref("found"), by_value=OWN) == [0] * len(large)
    pulled = await direct.pull("found")
    assert addresses(pulled) == [0] * len(large)
    for array, copy in zip(large, pulled, strict=True):
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
    pulled = await direct.pull("x")
    again = await direct.pull("x")
    pulled[:] = 3
    assert (again == 2).all()
    assert (await direct.pull("x") == 2).all()
    await direct.run("x[:] = 4")
    assert (pulled == 3).all()
    assert (again == 2).all()


async def test_shared_parts_of_an_object_stay_shared(direct: Bridge) -> None:
    one = np.zeros(LARGE)
    await direct.push(pair=(one, one), again=one)
    await direct.run("pair[0][:] = 5; same = pair[1] is again")
    (first, second), same = await direct.pull("pair", "same")
    assert first is second
    assert first.sum() == 5 * LARGE
    assert same


async def test_other_large_objects_arrive_unchanged(direct: Bridge) -> None:
    frame = pd.DataFrame({"a": np.arange(LARGE), "b": np.random.rand(LARGE)})
    values = [b"x" * MIB, bytearray(b"y" * MIB), "ä" * MIB, list(range(LARGE)), {"f": frame}]
    await direct.push(values=values)
    pulled = await direct.pull("values")
    assert pulled[:4] == values[:4]
    assert type(pulled[1]) is bytearray
    pd.testing.assert_frame_equal(pulled[4]["f"], frame)


@pytest.mark.parametrize("nbytes", [(1 << 16) - 200, (1 << 16) - 1, 1 << 16, (1 << 16) + 1])
async def test_sizes_around_the_shared_memory_limit_arrive_unchanged(
    direct: Bridge, nbytes: int
) -> None:
    for value in (b"\x07" * nbytes, np.full(nbytes, 7, "u1"), "\x07" * nbytes):
        await direct.push(x=value)
        pulled = await direct.pull("x")
        assert (
            bytes(pulled, "ascii") if isinstance(pulled, str) else bytes(pulled) == b"\7" * nbytes
        )
        assert len(pulled) == nbytes


async def test_calls_and_expressions_use_the_direct_lane(direct: Bridge) -> None:
    before = memory.client_counts(direct)["mapped"]
    mine = np.arange(LARGE)
    pulled = await direct.call(lambda array: array * 2, mine)
    assert pulled.sum() == mine.sum() * 2
    await direct.push(x=mine)
    assert (await direct.pull("x + 1", "x[:10]"))[0].sum() == mine.sum() + LARGE
    assert memory.client_counts(direct)["mapped"] > before or before
    pulled += 1
    kept = await direct.call(lambda array: array + 1, mine, keep="y")
    assert (await kept.pull()).sum() == mine.sum() + LARGE


async def test_limits_and_progress_hold_on_the_direct_lane(direct: Bridge) -> None:
    mine = np.ones(40 * MIB // 8)
    reports: list[tuple[int, int]] = []
    transfer = await direct.push(x=mine, progress=lambda done, total: reports.append((done, total)))
    assert transfer.lane == "direct"
    assert reports[-1] == (transfer.bytes, transfer.bytes)
    assert len(reports) > 1
    assert sorted(reports) == reports
    reports.clear()
    await direct.pull("x", progress=lambda done, total: reports.append((done, total)))
    assert reports[-1][0] == reports[-1][1] > 40 * MIB
    with pytest.raises(PayloadTooLarge):
        await direct.push(y=mine, max_bytes=MIB)
    for expression in ("x", "x + 1"):
        with pytest.raises(PayloadTooLarge):
            await direct.pull(expression, max_bytes=MIB)
    assert not await direct.exists("y")
    await memory.nothing_is_leased(direct)


async def test_an_exception_from_progress_ends_a_push(direct: Bridge) -> None:
    def stop(done: int, total: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await direct.push(x=np.ones(80 * MIB // 8), progress=stop)
    await direct.push(y=1)
    assert await direct.pull("y") == 1
    await memory.nothing_is_leased(direct)


async def test_a_watch_of_a_large_array_yields_each_value(direct: Bridge) -> None:
    await direct.push(x=np.zeros(LARGE))
    seen = []
    watch = direct.watch("x")
    async for value in watch:
        seen.append(value)
        value += 100  # the client's own memory
        if len(seen) == 4:
            break
        await direct.run(f"x[:] = {len(seen)}")
    assert [int(value[0]) - 100 for value in seen] == [0, 1, 2, 3]
    await watch.aclose()
    del value
    seen.clear()
    await memory.nothing_is_leased(direct)


async def test_large_exceptions_arrive_whole(direct: Bridge) -> None:
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


async def test_operations_take_effect_in_the_order_of_their_calls(direct: Bridge) -> None:
    """A random mixture of pushes, pulls, calls, cells, expressions and cancelled cells."""
    random_seed = random.randrange(1 << 30)
    dice = random.Random(random_seed)
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
            cancelled = asyncio.ensure_future(direct.run("import time; time.sleep(0.02); x = None"))
            await asyncio.sleep(dice.choice([0, 0, 0.005]))
            cancelled.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await cancelled
            current = n
            start(direct.push(x=np.full(size, n)))
        elif dice.random() < 0.5:
            await asyncio.gather(*(task for task, _ in tasks))
    for task, value in tasks:
        pulled = await task
        if value is not None:
            assert int(pulled[0]) == value, f"seed {random_seed}"
    assert await direct.pull("log") == expected, f"seed {random_seed}"


@pytest.mark.parametrize("size", [10, LARGE])
async def test_a_push_takes_effect_after_a_cancelled_cell(direct: Bridge, size: int) -> None:
    for n in range(5):
        cell = asyncio.ensure_future(direct.run(f"import time; time.sleep(0.05); x = y = {-n}"))
        while not direct._transport.dispatcher.in_flight:
            await asyncio.sleep(0)
        cell.cancel()
        await direct.push(x=np.full(size, n))
        x, y = await direct.pull("x", "y")
        assert (x == n).all()
        assert y == -n


async def test_a_cancelled_push_takes_effect_before_the_next_cell_or_never(direct: Bridge) -> None:
    for n in range(1, 40):
        cancelled = asyncio.ensure_future(direct.push(x=[n] * (n % 3)))
        for _ in range(n % 5):
            await asyncio.sleep(0)
        cancelled.cancel()
        await direct.run("x = 0")
        assert await direct.pull("x") == 0


async def running(direct: Bridge, other_client: Other, code: str) -> str:
    """Submit a cell of another client, which begins with ``begun = 1``; return when it runs."""
    submitted = other_client.submit(code)
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


async def test_operations_wait_for_the_cell_of_another_client(direct: Bridge) -> None:
    """No operation takes effect while the cell runs, and its memory stays leased meanwhile."""
    async with other(direct) as other_client:
        submitted = await running(direct, other_client, SEEN)
        large = np.arange(LARGE)
        await asyncio.gather(
            direct.push(small=1),
            direct.push(large=large),
            direct.call(lambda array: array, large, keep="kept"),
        )
        assert (await other_client.answer(submitted))["status"] == "ok"
    seen, begun = await direct.pull("seen", "begun")
    assert seen == [[]] * 40
    assert not begun
    assert (await direct.pull("large")).sum() == (await direct.pull("kept")).sum() == large.sum()
    await memory.nothing_is_leased(direct)


async def test_a_pull_waits_for_the_cell_of_another_client(direct: Bridge) -> None:
    await direct.push(x=np.zeros(LARGE))
    async with other(direct) as other_client:
        code = "begun = 1\nimport time\nfor n in range(30):\n time.sleep(0.02)\n x[:] = n"
        submitted = await running(direct, other_client, code)
        assert (await direct.pull("x") == 29).all()
        await other_client.answer(submitted)


async def test_operations_that_time_out_behind_a_cell_leave_nothing(direct: Bridge) -> None:
    async with other(direct) as other_client:
        submitted = await running(direct, other_client, SEEN)
        for name, value in (("small", 1), ("large", np.zeros(LARGE))):
            with pytest.raises(TimeoutError):
                await direct.push({name: value}, timeout=0.1)
        with pytest.raises(TimeoutError):
            await direct.pull("x", timeout=0.1)
        await other_client.answer(submitted)
    seen = await direct.pull("seen")
    assert seen == [[]] * 40
    await memory.nothing_is_leased(direct)


async def test_a_pull_returns_one_state_of_an_array(direct: Bridge) -> None:
    """A cell of another client that begins during the copy changes all of it or nothing."""
    await direct.push(x=np.zeros(4 * MIB))
    async with other(direct) as other_client:
        done = 0

        async def cells() -> None:
            nonlocal done
            for n in range(25):
                await other_client.execute(f"x[:] = {n}")
                done = n

        work = asyncio.ensure_future(cells())
        mixed = 0
        while not work.done():
            found = await direct.pull("x")
            mixed += found.min() != found.max()
        await work
        assert not mixed


# ---------------------------------------------------------------- now


LOOPS = {
    "a busy loop": "while not stop: turns += 1",
    "time.sleep": "import time\nwhile not stop: time.sleep(0.01); turns += 1",
}


@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_now_binds_and_fetches_names_while_a_cell_runs(live: Bridge) -> None:
    """It works with every ipykernel: the socket thread needs no subshell."""
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


async def test_now_evaluates_expressions_in_a_subshell(direct: Bridge) -> None:
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


# ---------------------------------------------------------------- threads


class ThreadRecorder:
    """An object that records the thread in which its state is set."""

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
    # A reference to an expression runs it when the object is unpickled: in the main thread too.
    await direct.push(recorder=ThreadRecorder(direct.ref("x"), array), by_value=OWN)
    assert await direct.pull("recorder.thread") == "MainThread"
    assert (
        await direct.call(lambda recorder: recorder.thread, ThreadRecorder(array), by_value=OWN)
    ) == "MainThread"
    assert await direct.pull("recorder.parts[0] is x")


async def test_a_pull_survives_a_blocked_event_loop(direct: Bridge) -> None:
    """What arrives while the client's event loop is blocked is complete."""
    await direct.push(x=np.arange(LARGE))
    task = asyncio.ensure_future(direct.pull("x"))
    await asyncio.sleep(0)
    time.sleep(0.5)
    assert (await task).sum() == np.arange(LARGE).sum()


async def test_many_operations_at_once_return_the_right_values(direct: Bridge) -> None:
    async def one(n: int) -> None:
        size = (10, 1000, LARGE)[n % 3]
        await direct.push({f"v{n}": np.full(size, n)})
        pulled = await direct.pull(f"v{n}")
        assert pulled.size == size
        assert (pulled == n).all()
        await direct.delete(f"v{n}")

    await asyncio.gather(*(one(n) for n in range(150)))
    await memory.nothing_is_leased(direct)


async def test_two_bridges_on_one_kernel_do_not_disturb_each_other(direct: Bridge) -> None:
    async with Bridge.attach(direct.info.connection_file, lane="direct") as second:
        assert await memory.socket_threads(direct) == 2

        async def work(bridge: Bridge, value: int) -> None:
            for n in range(10):
                await bridge.push({f"n{value}": np.full(LARGE, value + n)})
                pulled = await bridge.pull(f"n{value}")
                assert (pulled == value + n).all()
                pulled[:] = -1

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


async def test_a_sync_bridge_works_from_several_threads(live: Bridge) -> None:
    """A SyncBridge is used beside the bridge, from several threads at once."""
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


async def test_a_cell_that_the_kernel_has_announced_comes_first(live: Bridge) -> None:
    """ipykernel announces a cell before IPython begins it; a pull in between waits for it."""
    await live.run(
        "import time\n"
        "kernel = get_ipython().kernel\n"
        "publish = kernel._publish_execute_input\n"
        "def slowly(*args):\n"
        "    publish(*args)\n"
        "    time.sleep(0.5)\n"
        "kernel._publish_execute_input = slowly"
    )
    stream = live.messages()
    async with other(live) as console, asyncio.timeout(60):
        console.submit("late = 1")
        async for message in stream:
            if message.type == "execute_input":
                break
        assert await live.pull("late") == 1


async def test_constant_now_requests_do_not_delay_other_operations(direct: Bridge) -> None:
    """Such a request is always in flight; cells, calls and interrupts get their turns."""
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


async def test_the_lane_works_after_a_user_replaces_what_it_needs() -> None:
    """The functions are replaced after the install, and before another bridge attaches."""
    array = np.arange(LARGE, dtype=float)
    async with Bridge.launch() as bridge:
        assert await bridge.pull("1") == 1
        await bridge.call(exec, REPLACED, {})
        async with Bridge.attach(bridge.info.connection_file, lane="direct") as second:
            for one in (bridge, second):
                assert (await one.push(array=array)).lane == "direct"
                assert np.array_equal(await one.pull("array"), array)
                assert np.array_equal(await one.pull("array + 1"), array + 1)


async def test_small_pushes_let_other_tasks_run(live: Bridge) -> None:
    """A task that yields in a loop runs at each push, and a timer in time."""
    turns = ticks = 0

    async def spin() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    await live.push(x=0)
    spinning = asyncio.create_task(spin())
    for n in range(500):
        await live.push(x=n)
    spinning.cancel()
    assert turns >= 500
    ticking = asyncio.create_task(tick())
    begun = time.perf_counter()
    while ticks < 20:
        await live.push(x=0)
        assert time.perf_counter() - begun < 60
    ticking.cancel()


@pytest.mark.slow
@pytest.mark.parametrize("own", [None, 0.001], ids=["put back", "the user's own"])
async def test_the_switch_interval_is_short_while_requests_come_beside_a_cell(
    live: Bridge, own: float | None
) -> None:
    """A busy cell lets them wait less, and the interval that it sets itself stays."""
    await live.run("import sys; sys.setswitchinterval(0.02); stop, seen = False, set()")
    setting = f"; sys.setswitchinterval({own})" if own else ""
    code = f"while not stop: seen.add(sys.getswitchinterval())\nseen.discard(0.02){setting}"
    cell = asyncio.ensure_future(live.run(code))
    while not cell.done():
        await live.push(other=1, now=True)
        if await live.pull("seen", now=True) - {0.02}:
            await live.push(stop=True, now=True)
    await cell
    assert await live.pull("seen") == {0.0005}
    async with asyncio.timeout(60):
        while await live.pull("sys.getswitchinterval()") < 0.02 and not own:
            await asyncio.sleep(0.1)
    await asyncio.sleep(0)
    assert await live.pull("sys.getswitchinterval()") == (own or 0.02)


async def test_a_header_is_never_changed_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that this process writes, and those that it reads from the socket."""
    await check_headers(monkeypatch, Bridge.launch(lane="direct"))
