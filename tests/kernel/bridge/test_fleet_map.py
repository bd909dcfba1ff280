"""Work that a fleet of four real kernels divides: load, interrupts, kernels that die.

Rule: one fleet of four kernels, shared by the tests; a test that ends kernels starts its own.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jupyter_client.manager import AsyncKernelManager

from bridgehead import (
    Bridge,
    Fleet,
    FleetError,
    KernelDied,
    KernelRestarted,
    Message,
    MissingInKernel,
    OutcomeUnknown,
    RemoteError,
    SyncFleet,
    UntrustedPayload,
    as_completed,
)
from support import kit
from support.fleets import a_late_cell_has_its_output, the_first_error_ends_the_others
from support.kit import reported_within, until
from unit.bridge.test_fleet_work import polars_is_gathered, sequences_are_gathered

KERNELS = 4


@pytest.fixture(scope="module")
async def four() -> AsyncIterator[Fleet]:
    async with Fleet.launch(KERNELS) as opened:
        yield opened


@pytest.fixture
async def fleet(four: Fleet) -> AsyncIterator[Fleet]:
    """Give the shared fleet with empty namespaces; check that a test leaves nothing in it."""
    for bridge in four:
        names = [name.name for name in await bridge.names()]
        if names:
            await bridge.delete(*names)
    yield four
    await nothing_is_left(four)


async def nothing_is_left(fleet: Fleet) -> None:
    def left() -> list[Any]:
        gc.collect()
        return [
            bridge.stats
            for bridge in fleet
            if not bridge._transport.life.is_lost
            and (bridge._connection.resources.known or bridge._connection.queue.turns)
        ]

    await until(lambda: not left())


def functions() -> tuple[Callable[[float], int], Callable[..., int]]:
    """Return functions that cross by value: the kernels do not have this module."""

    def nap(seconds: float) -> int:
        time.sleep(seconds)
        return os.getpid()

    def die_at(n: int, which: int, file: str) -> int:
        """Kill this kernel at one item, unless the file says that another kernel did so."""
        if n == which and not (file and Path(file).exists()):
            if file:
                Path(file).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.005)
        return n

    return nap, die_at


nap, die_at = functions()


# ---------------------------------------------------------------- map


@pytest.mark.parametrize("chunksize", [1, "auto"])
async def test_items_are_divided_among_all_kernels(
    fleet: Fleet, chunksize: Any, tmp_path: Path
) -> None:
    def meet(n: int) -> int:
        """Wait until every kernel has begun an item."""
        (tmp_path / str(os.getpid())).touch()
        while len(os.listdir(tmp_path)) < KERNELS:
            time.sleep(0.005)
        return os.getpid()

    def arrived(function: Callable[[int], int]) -> Callable[[int], int]:
        import builtins

        vars(builtins)["arrivals"] = vars(builtins).get("arrivals", 0) + 1
        return function

    class Meeting:
        def __call__(self, n: int) -> int:
            raise AssertionError("the kernels have the function that this one reduces to")

        def __reduce__(self) -> Any:
            return arrived, (meet,)

    async with asyncio.timeout(60):
        pids = [pid async for pid in fleet.map(Meeting(), range(100), chunksize=chunksize)]
    assert set(pids) == {bridge.info.pid for bridge in fleet}
    # The function has crossed once for each kernel.
    pop = "vars(__import__('builtins')).pop('arrivals')"
    assert await fleet.pull(pop) == [1] * KERNELS


async def test_a_long_item_does_not_hold_up_the_others(fleet: Fleet) -> None:
    """What is ahead on the kernel of the long item goes to another one."""
    started = asyncio.get_running_loop().time()
    naps = [30.0] + [0.01] * 30
    async with fleet.map(nap, naps, ordered=False, window=3) as results:
        for _ in range(30):
            await anext(results)
    assert asyncio.get_running_loop().time() - started < 25


async def test_a_busy_kernel_does_not_hold_up_a_map(fleet: Fleet) -> None:
    async with reported_within(3):
        cell = asyncio.ensure_future(
            fleet[0].run("import time; time.sleep(60)", on_timeout="interrupt")
        )
        await until(lambda: fleet[0].state == "busy")
        assert [n async for n in fleet.map(abs, range(50))] == list(range(50))
        assert not cell.done()
        cell.cancel()
        assert await fleet.call(abs, -1) == [1] * KERNELS


async def test_an_automatic_chunk_is_about_50_ms_of_work(fleet: Fleet) -> None:
    def spans(n: int) -> tuple[int, float]:
        time.sleep(0.001)
        return os.getpid(), time.monotonic()

    async with fleet.map(spans, itertools.count(), chunksize="auto") as results:
        for _ in range(2000):
            await anext(results)
        size = results._work._size
    assert 10 <= size <= 100


async def test_async_functions_run_on_the_kernels_loops(fleet: Fleet, tmp_path: Path) -> None:
    async def twice(n: int) -> tuple[int, int]:
        (tmp_path / str(os.getpid())).touch()
        while len(os.listdir(tmp_path)) < KERNELS:  # every kernel begins an item
            await asyncio.sleep(0.001)
        return 2 * n, os.getpid()

    async with asyncio.timeout(60):
        found = [one async for one in fleet.map(twice, range(40), chunksize=2)]
    assert [number for number, _ in found] == [2 * n for n in range(40)]
    assert len({pid for _, pid in found}) == KERNELS


@pytest.mark.parametrize("window", [2, 3])
async def test_leaving_a_map_interrupts_what_runs(
    fleet: Fleet, window: int, tmp_path: Path
) -> None:
    def note(n: int, folder: str) -> int:
        if n:
            Path(folder, str(n)).touch()
            time.sleep(60)
        return n

    async with reported_within(2):
        items = itertools.count(), itertools.repeat(str(tmp_path))
        async with fleet.map(note, *items, window=window) as results:
            assert await anext(results) == 0
            await until(lambda: len(list(tmp_path.iterdir())) == KERNELS)
        assert await fleet.call(abs, -1) == [1] * KERNELS  # behind what was interrupted
    assert len(list(tmp_path.iterdir())) == KERNELS


@pytest.mark.parametrize("ordered", [True, False])
async def test_an_error_ends_the_map_and_interrupts_the_rest(fleet: Fleet, ordered: bool) -> None:
    def fail(n: int) -> int:
        if n == 2:
            raise ValueError("two")
        if n > 2:
            time.sleep(60)
        return n

    async with reported_within(2):
        found = []
        with pytest.raises(RemoteError, match="two"):
            async for n in fleet.map(fail, itertools.count(), ordered=ordered):
                found.append(n)
        assert found == [0, 1] if ordered else {0, 1}.issuperset(found)
        assert await fleet.call(abs, -1) == [1] * KERNELS


async def test_arrays_cross_both_ways(fleet: Fleet) -> None:
    arrays = (np.full(200_000, float(n)) for n in range(12))
    totals = [total async for total in fleet.map(lambda a: a * 2, arrays)]
    assert [float(one[-1]) for one in totals] == [2.0 * n for n in range(12)]


async def test_an_interrupt_by_the_user_fails_one_item(fleet: Fleet, tmp_path: Path) -> None:
    def spin(n: int, folder: str) -> int:
        Path(folder, str(n)).touch()
        while n == 3:
            time.sleep(0.01)
        return n

    folders = itertools.repeat(str(tmp_path))
    results = fleet.map(spin, range(8), folders, return_exceptions=True)
    found = [await anext(results) for _ in range(3)]
    waiting = asyncio.ensure_future(rest(results))
    await until(lambda: len(list(tmp_path.iterdir())) == 8)
    await until(lambda: sum(len(worker.requests) for worker in results._work._workers) == 1)
    await fleet.interrupt()
    found += await waiting
    assert found[:3] + found[4:] == [0, 1, 2, 4, 5, 6, 7]
    assert found[3].ename == "KeyboardInterrupt"


async def rest(results: AsyncIterator[Any]) -> list[Any]:
    return [result async for result in results]


# ---------------------------------------------------------------- kernels that die


@pytest.mark.parametrize("chunksize", [1, 5])
async def test_a_dead_kernel_loses_the_chunk_that_it_had(chunksize: int) -> None:
    count = 60
    async with Fleet.launch(KERNELS) as fleet:
        items = (range(count), itertools.repeat(17), itertools.repeat(""))
        results = fleet.map(die_at, *items, chunksize=chunksize, return_exceptions=True)
        found = [one async for one in results]
        lost = [n for n, one in enumerate(found) if isinstance(one, Exception)]
        assert 17 in lost
        assert len(lost) == chunksize
        assert {type(found[n]) for n in lost} == {KernelDied}
        assert "kernel " in found[17].__notes__[0]
        assert [n for n in found if type(n) is int] == [n for n in range(count) if n not in lost]
        assert sorted(bridge.state for bridge in fleet) == ["dead", "idle", "idle", "idle"]
        # The next map does without that kernel.
        assert [n async for n in fleet.map(abs, range(20))] == list(range(20))
        await nothing_is_left(fleet)


@pytest.mark.parametrize("window", [1, 2])
async def test_the_loss_of_the_last_kernel_with_the_last_item_ends_a_map(window: int) -> None:
    async with Fleet.launch(1) as fleet:
        items = (range(3), itertools.repeat(2), itertools.repeat(""))
        results = fleet.map(die_at, *items, window=window, return_exceptions=True)
        found = [one async for one in results]
        assert found[:2] == [0, 1]
        assert [type(one) for one in found[2:]] == [KernelDied]


INTERRUPTED = """
import sys
module = next(m for name, m in sys.modules.items() if name.startswith("_bridgehead"))
raised = []

def tracer(frame, event, arg):
    if frame.f_code is module.MapChunk._add.__code__:
        return at_return

def at_return(frame, event, arg):
    if event == "return" and frame.f_locals["value"] == 20 and not raised:
        raised.append(1)
        raise KeyboardInterrupt
    return at_return

def ten_times(n):
    sys.settrace(tracer)
    return 10 * n
"""


@pytest.mark.parametrize("count", [3, 6])
async def test_an_interrupt_between_two_items_moves_no_value(fleet: Fleet, count: int) -> None:
    """The interrupt comes when the value of the item 2 is noted already."""
    one = fleet[:1]
    await one.run(INTERRUPTED)
    options: Any = {"chunksize": 6, "return_exceptions": True, "namespace": True}
    found = [n async for n in one.map(lambda n: ten_times(n), range(count), **options)]  # noqa: F821
    await one.run("sys.settrace(None)")
    assert found[:3] == [0, 10, 20]
    if count == 6:  # it ends the next item
        assert found[3].ename == "KeyboardInterrupt"
        assert found[4:] == [40, 50]


async def test_retries_give_the_items_of_a_dead_kernel_to_others(tmp_path: Path) -> None:
    async with Fleet.launch(2) as fleet:
        file = itertools.repeat(str(tmp_path / "died"))
        results = fleet.map(die_at, range(40), itertools.repeat(9), file, chunksize=4, retries=1)
        assert [one async for one in results] == list(range(40))
        assert sorted(bridge.state for bridge in fleet) == ["dead", "idle"]


@pytest.mark.parametrize("retries", [2, 1])
async def test_a_further_try_may_end_its_kernel_too(retries: int, tmp_path: Path) -> None:
    def die_twice(n: int, folder: str) -> int:
        if n == 7 and len(list(Path(folder).iterdir())) < 2:
            Path(folder, str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return n

    async with Fleet.launch(3) as fleet:
        items = range(20), itertools.repeat(str(tmp_path))
        results = fleet.map(die_twice, *items, retries=retries, return_exceptions=True)
        found = [one async for one in results]
        assert [n for n in found if n != 7 and type(n) is int] == [*range(7), *range(8, 20)]
        assert found[7] == 7 if retries == 2 else type(found[7]) is KernelDied
        assert sorted(bridge.state for bridge in fleet) == ["dead", "dead", "idle"]


async def test_an_async_function_that_ends_its_kernel_loses_what_was_at_work_there() -> None:
    async def die_at(n: int) -> int:
        import asyncio

        await asyncio.sleep(0.01)
        if n == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return n

    async with Fleet.launch(3) as fleet:
        found = [one async for one in fleet.map(die_at, range(30), return_exceptions=True)]
        lost = [n for n, one in enumerate(found) if type(one) is KernelDied]
        assert 5 in lost
        assert len(lost) <= 2  # both chunks of a kernel are at work
        assert [n for n in found if type(n) is int] == [n for n in range(30) if n not in lost]
        with pytest.raises(KernelDied):
            await rest(fleet.map(die_at, range(30)))


async def test_a_consumer_that_raises_or_is_cancelled_ends_the_work(fleet: Fleet) -> None:
    async def consume(how: str) -> None:
        async with fleet.map(nap, itertools.repeat(0.01)) as results:
            async for _ in results:
                if how == "raises":
                    raise ZeroDivisionError
                started.set()

    with pytest.raises(ZeroDivisionError):
        await consume("raises")
    await nothing_is_left(fleet)
    started = asyncio.Event()
    task = asyncio.create_task(consume("is cancelled"))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async for _ in fleet.map(nap, itertools.repeat(0.01)):
        break
    await nothing_is_left(fleet)
    assert await rest(fleet.map(abs, range(9))) == list(range(9))


async def test_items_of_very_unequal_length_are_done_once(fleet: Fleet) -> None:
    """The first items lead to large chunks, and a long one does not hold up the others."""
    naps = [0.0] * 1000 + [0.6] + [0.0] * 1000 + [0.3] * 4
    results = fleet.map(lambda s: time.sleep(s) or (s, os.getpid()), naps, chunksize="auto")
    found = await rest(results)
    assert [seconds for seconds, _ in found] == naps
    assert {pid for _, pid in found} == {bridge.info.pid for bridge in fleet}


async def test_without_any_kernel_only_an_empty_map_ends_well() -> None:
    async with Fleet.launch(1) as fleet:
        with pytest.raises(FleetError):
            await fleet.run("__import__('os')._exit(1)")
        for items in (range(3), itertools.count()):
            for options in ({}, {"return_exceptions": True}):
                with pytest.raises(KernelDied):
                    await rest(fleet.map(abs, items, **options))
        assert await rest(fleet.map(abs, [])) == []
        await fleet.restart()
        assert await rest(fleet.map(abs, range(3))) == [0, 1, 2]


async def test_the_first_loss_ends_a_map_and_no_kernel_is_left() -> None:
    async with Fleet.launch(2) as fleet:
        found = []
        with pytest.raises(OutcomeUnknown):
            async for n in fleet.map(die_at, range(40), itertools.repeat(5), itertools.repeat("")):
                found.append(n)
        assert found == list(range(5))
        # An item that kills each kernel that gets it.
        async with reported_within(5):
            with pytest.raises(KernelDied):
                async for _ in fleet.map(
                    die_at, range(9), itertools.repeat(3), itertools.repeat(""), retries=9
                ):
                    pass
        with pytest.raises(KernelDied):
            await anext(fleet.map(abs, [1]))
        with pytest.raises(KernelDied):
            fleet.submit(abs, 1)


async def test_a_kernel_that_is_restarted_gets_the_function_again() -> None:
    async with Fleet.launch(2) as fleet:
        async with fleet.map(nap, [0.05] * 40, retries=2) as results:
            await anext(results)
            old = fleet[0].info.pid
            await fleet[0].restart()
            pids = [pid async for pid in results]
        assert len(pids) == 39
        assert fleet[0].info.pid != old
        assert fleet[0].info.pid in pids


@asynccontextmanager
async def restarted_by_another(lane: Any) -> AsyncIterator[tuple[Bridge, Fleet]]:
    """Give a bridge, and a fleet of two kernels; the first of them is also that of the bridge."""
    async with (
        Bridge.launch(lane=lane) as owner,
        Bridge.launch(lane=lane) as other,
        Bridge.attach(str(owner.info.connection_file), lane=lane) as attached,
        Fleet([attached, other]) as fleet,
    ):
        yield owner, fleet


def held_in() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return functions that hang in one process, after they have touched a file."""

    def hold(n: int, pid: int, file: str) -> tuple[int, int]:
        while os.getpid() == pid:
            # jupyter_client interrupts a kernel before it kills it: the next chunk would begin.
            with suppress(KeyboardInterrupt):
                Path(file).touch()
                time.sleep(300)
        time.sleep(0.02)
        return n, os.getpid()

    async def hold_async(n: int, pid: int, file: str) -> tuple[int, int]:
        import asyncio

        if os.getpid() == pid:
            Path(file).touch()
            await asyncio.sleep(300)
        await asyncio.sleep(0.02)
        return n, os.getpid()

    return hold, hold_async


@pytest.mark.parametrize("lane", ["direct", "buffers"])
@pytest.mark.parametrize("function", held_in())
async def test_what_is_at_work_fails_if_another_bridge_restarts_the_kernel(
    function: Any, lane: Any, tmp_path: Path
) -> None:
    file = tmp_path / "at work"
    async with restarted_by_another(lane) as (owner, fleet):
        await fleet.push(x=1)
        old = owner.info.pid
        items = itertools.count(), itertools.repeat(old), itertools.repeat(str(file))
        async with fleet.map(function, *items, return_exceptions=True) as results:
            first = asyncio.ensure_future(anext(results))
            await until(file.exists)
            await owner.restart()
            found = [await first] + [await anext(results) for _ in range(60)]
        lost = [one for one in found if isinstance(one, Exception)]
        # An async function begins with both of the chunks that a kernel has.
        assert 1 <= len(lost) <= (1 if function.__name__ == "hold" else 2)
        assert {type(one) for one in lost} == {KernelRestarted}
        assert all("kernel 0 of 2" in one.__notes__[0] for one in lost)
        done = [one for one in found if not isinstance(one, Exception)]
        assert {pid for _, pid in done} == {owner.info.pid, fleet[1].info.pid}
        assert fleet[0].info.pid == owner.info.pid != old
        assert await fleet.exists("x") == [False, True]  # the map has reported the restart


@pytest.mark.slow
@pytest.mark.parametrize("lane", ["direct", "buffers"])
@pytest.mark.parametrize("function", held_in())
async def test_a_restart_that_a_map_goes_on_after_is_reported_by_the_next_call(
    function: Any, lane: Any, tmp_path: Path
) -> None:
    file = tmp_path / "at work"
    async with restarted_by_another(lane) as (owner, fleet):
        await fleet.push(x=1)
        items = range(60), [owner.info.pid] * 60, [str(file)] * 60
        async with fleet.map(function, *items, retries=1) as results:
            first = asyncio.ensure_future(anext(results))
            await until(file.exists)
            await owner.restart()
            found = [await first, *[one async for one in results]]
        assert [n for n, _ in found] == list(range(60))
        assert owner.info.pid in {pid for _, pid in found}
        with pytest.raises(KernelRestarted, match="namespace is new"):
            await fleet[0].exists("x")
        assert await fleet.exists("x") == [False, True]


async def test_a_restart_between_two_items_is_reported_by_the_next_call() -> None:
    async with restarted_by_another("auto") as (owner, fleet):
        async with fleet.map(nap, itertools.repeat(0.001)) as results:
            await anext(results)
            # The consumer waits, so the kernels have nothing to do.
            await until(lambda: not any(worker.requests for worker in results._work._workers))
            old = owner.info.pid
            await owner.restart()
            pids = [await anext(results) for _ in range(100)]
        assert old in pids
        assert owner.info.pid in pids
        with pytest.raises(KernelRestarted, match="namespace is new"):
            await fleet[0].exists("x")
        assert await fleet[0].exists("x") is False


async def test_a_map_reports_a_restart_that_no_call_has_reported() -> None:
    manager = AsyncKernelManager()
    async with kit.over(manager) as bridge:
        old, life = bridge.info.pid, bridge._transport.life
        generation = life.generation
        await manager.restart_kernel(now=True)
        # Its process may be seen to have ended before the manager starts another one.
        away = "restarting", "dead"
        await until(lambda: life.generation != generation and life.state not in away)
        with pytest.raises(KernelRestarted, match="namespace is new") as caught:
            await anext(Fleet([bridge]).map(abs, [-1, -2]))
        assert "kernel 0 of 1" in caught.value.__notes__[0]
        assert [n async for n in Fleet([bridge]).map(abs, [-1, -2])] == [1, 2]
        assert bridge.info.pid != old


# ---------------------------------------------------------------- other work


async def test_now_serves_all_kernels_while_each_runs_a_cell(fleet: Fleet) -> None:
    await fleet.push(go_on=False)
    cells = asyncio.ensure_future(fleet.run("import time\nwhile not go_on: time.sleep(0.01)"))
    await until(lambda: all(bridge.state == "busy" for bridge in fleet))
    try:
        await fleet.push(x=[1], now=True)
        await fleet.scatter("part", tuple(range(2 * KERNELS)), now=True)
        assert await fleet.pull("len(x)", now=True) == [1] * KERNELS
        assert [names[0].name for names in await fleet.names("x", now=True)] == ["x"] * KERNELS
        assert await fleet.gather("part", now=True) == tuple(range(2 * KERNELS))
        assert not cells.done()
    finally:
        await fleet.push(go_on=True, now=True)
    await cells


OWN = [sys.modules[__name__]]


def squared(n: int) -> int:
    return n * n


async def test_by_value_sends_a_module_that_the_kernels_lack(fleet: Fleet) -> None:
    with pytest.raises(FleetError) as caught:
        await fleet.call(squared, 3)
    assert {type(error) for error in caught.value.exceptions} == {MissingInKernel}
    assert await fleet.call(squared, 3, by_value=OWN) == [9] * KERNELS
    assert await fleet.submit(squared, 3, by_value=OWN) == 9
    assert await rest(fleet.map(squared, range(9), by_value=OWN)) == [n * n for n in range(9)]
    await fleet.push(f=squared, by_value=OWN)
    await fleet.scatter("functions", [squared] * KERNELS, by_value=OWN)
    assert await fleet.pull("f(2) + functions[0](3)") == [13] * KERNELS


async def test_tasks_of_all_kernels_come_as_they_end(fleet: Fleet) -> None:
    tasks = [fleet.submit(time.sleep, 0.2 * (n % KERNELS)) for n in range(KERNELS)]
    ended = [task async for task in as_completed(tasks)]
    assert [tasks.index(task) for task in ended] == [0, 1, 2, 3]


async def test_scattered_arrays_are_gathered(fleet: Fleet) -> None:
    array = np.arange(1_000_000.0).reshape(-1, 10)
    await fleet.scatter("part", array)
    assert [len(part) for part in await fleet.pull("part")] == [25_000] * 4
    await fleet.run("part *= 2")
    assert np.array_equal(await fleet.gather("part"), array * 2)


async def test_sequences_are_gathered(fleet: Fleet) -> None:
    await sequences_are_gathered(fleet)


@pytest.mark.objects
@pytest.mark.parametrize("many", [7, 2])
async def test_polars_tables_are_gathered(fleet: Fleet, many: int) -> None:
    await polars_is_gathered(fleet, many)


async def test_the_first_error_ends_the_others(fleet: Fleet, tmp_path: Path) -> None:
    await the_first_error_ends_the_others(fleet, tmp_path)


async def test_a_late_cell_has_its_output(fleet: Fleet) -> None:
    await a_late_cell_has_its_output(fleet)


async def test_a_cell_of_all_gets_names_and_gives_the_values_of_each(fleet: Fleet) -> None:
    await fleet.scatter("part", (1, 2, 3, 4))
    code = "b = a + part[0]"
    results = await fleet.run(code, push={"a": 10}, pull=["b", "a"])
    assert [result.values for result in results] == [{"b": n, "a": 10} for n in (11, 12, 13, 14)]


async def test_only_data_is_pulled_with_trust_data(fleet: Fleet) -> None:
    await fleet.run("n, function = 1, lambda: 1")
    assert await fleet.pull("n", trust="data") == [1] * KERNELS
    with pytest.raises(FleetError, match="4 of 4 kernels failed") as caught:
        await fleet.pull("function", trust="data")
    assert {type(error) for error in caught.value.exceptions} == {UntrustedPayload}


async def test_a_watch_goes_on_without_a_kernel_that_dies() -> None:
    async with Fleet.launch(KERNELS) as fleet:
        await fleet.push(x=1)
        async with asyncio.timeout(60), fleet.watch("x") as watch:
            assert sorted([await anext(watch) for _ in range(KERNELS)]) == [
                (index, 1) for index in range(KERNELS)
            ]
            os.kill(fleet[2].info.pid, signal.SIGKILL)
            for value, index in enumerate((0, 1, 3), 2):
                await fleet[index].run(f"x = {value}")
                assert await anext(watch) == (index, value)
                await until(lambda: fleet[2].state == "dead")  # at the latest before the next value


async def test_results_of_living_kernels_are_kept_when_one_dies() -> None:
    async with Fleet.launch(KERNELS) as fleet:
        pids = [bridge.info.pid for bridge in fleet]
        await fleet.push(victim=pids[2])
        async with reported_within(2):
            with pytest.raises(FleetError) as caught:
                await fleet.run("import os; os.getpid() == victim and os.kill(victim, 9); 7")
        error = caught.value
        assert error.results.keys() == {0, 1, 3}
        assert {result.data["text/plain"] for result in error.results.values()} == {"7"}
        assert type(error.errors[2]) is KernelDied
        outcomes = await fleet.pull("victim", return_exceptions=True)
        assert outcomes[:2] + outcomes[3:] == [pids[2]] * 3
        await fleet[2].restart()
        assert await fleet.exists("victim") == [True, True, False, True]


@pytest.mark.parametrize("policy", [{}, {"return_exceptions": True}])
async def test_every_operation_keeps_the_results_when_a_kernel_dies(policy: Any) -> None:
    """All of them are on their way to a stopped kernel, which is killed."""
    async with Fleet.launch(3) as fleet, Bridge.launch() as source:
        await fleet.push(old=1)
        await source.push(handed=2)
        operations: dict[str, Any] = {
            "push": fleet.push(x=1, **policy),
            "a large push": fleet.push(y=np.ones(2_000_000), **policy),
            "scatter": fleet.scatter("part", [1, 2, 3], **policy),
            "pull": fleet.pull("old", **policy),
            "run": fleet.run("old + x", push={"z": 3}, pull=["z"], **policy),
            "call": fleet.call(abs, -1, **policy),
            "call, kept": fleet.call(list, keep=True, **policy),
            "call of an async function": fleet.call(asyncio.sleep, 0, 4, **policy),
            "names": fleet.names(**policy),
            "exists": fleet.exists("old", **policy),
            "delete": fleet.delete("old", **policy),
            "handoff": source.handoff("handed", to=fleet, **policy),
        }
        if not policy:
            operations["gather"] = fleet.gather("part")
        os.kill(fleet[1].info.pid, signal.SIGSTOP)
        tasks = {name: asyncio.ensure_future(work) for name, work in operations.items()}
        both = fleet[0], fleet[2]
        await until(lambda: not any(bridge._connection.queue.turns for bridge in both))
        os.kill(fleet[1].info.pid, signal.SIGKILL)
        async with reported_within(5):
            await asyncio.wait(tasks.values())
        for name, task in tasks.items():
            if policy:
                found = task.result()
                assert [type(one) is KernelDied for one in found] == [False, True, False], name
            else:
                error = task.exception()
                assert type(error) is FleetError, (name, error)
                assert error.results.keys() == {0, 2}, name
                assert type(error.errors[1]) is KernelDied, (name, error.errors)
        assert await fleet[0].pull("part", "x", "z", "handed") == ([1], 1, 3, 2)


@pytest.mark.slow
async def test_a_restart_of_all(fleet: Fleet) -> None:
    before = await fleet.call(os.getpid)
    await fleet.restart()
    after = await fleet.call(os.getpid)
    assert not set(before) & set(after)


async def test_an_interrupt_of_all(fleet: Fleet) -> None:
    begun: set[int] = set()

    def note(message: Message, index: int) -> None:
        begun.add(index)

    code = "print('begun')\nwhile True: pass"
    cells = asyncio.ensure_future(fleet.run(code, return_exceptions=True, on_output=note))
    await until(lambda: len(begun) == KERNELS)
    async with reported_within(2):
        await fleet.interrupt()
        assert [repr(error) for error in await cells] == ["<RemoteError KeyboardInterrupt: >"] * 4


async def test_an_executor_runs_in_all_kernels(fleet: Fleet) -> None:
    loop, executor = asyncio.get_running_loop(), fleet.executor()
    calls = [loop.run_in_executor(executor, nap, 0.02) for _ in range(20)]
    assert set(await asyncio.gather(*calls)) == {bridge.info.pid for bridge in fleet}
    future = executor.submit(nap, 60)
    await until(future.running)
    async with reported_within(2):
        future.cancel()  # which interrupts it
        assert await fleet.call(abs, -1) == [1] * KERNELS


async def test_an_executor_loses_what_a_dead_kernel_had_begun() -> None:
    async with Fleet.launch(KERNELS) as fleet:
        executor = fleet.executor()
        futures = [executor.submit(die_at, n, 5, "") for n in range(40)]
        calls = map(asyncio.wrap_future, futures)
        found: list[Any] = await asyncio.gather(*calls, return_exceptions=True)
        assert type(found.pop(5)) is KernelDied
        assert found == [n for n in range(40) if n != 5]
        loop = asyncio.get_running_loop()
        calls = (loop.run_in_executor(executor, nap, 0.02) for _ in range(20))
        pids = {bridge.info.pid for bridge in fleet if bridge.state != "dead"}
        assert len(pids) == KERNELS - 1
        assert set(await asyncio.gather(*calls)) == pids
        await nothing_is_left(fleet)


@pytest.mark.parametrize("lane", ["direct", "buffers"])
async def test_an_executor_goes_on_in_a_kernel_that_another_bridge_restarts(
    lane: Any, tmp_path: Path
) -> None:
    hold, file = held_in()[0], tmp_path / "at work"
    async with restarted_by_another(lane) as (owner, fleet):
        await fleet.push(x=1)
        executor, work = fleet.executor(), (owner.info.pid, str(file))
        futures = [executor.submit(hold, n, *work) for n in range(20)]
        await until(file.exists)
        await owner.restart()
        calls = map(asyncio.wrap_future, futures)
        found = await asyncio.gather(*calls, return_exceptions=True)
        lost = [one for one in found if isinstance(one, Exception)]
        assert [type(error) for error in lost] == [KernelRestarted]
        assert [one[0] for one in found if type(one) is tuple] == [
            n for n, one in enumerate(found) if type(one) is tuple
        ]
        loop, pid = asyncio.get_running_loop(), 0
        async with asyncio.timeout(60):
            while pid != owner.info.pid:
                _, pid = await loop.run_in_executor(executor, hold, 0, *work)
        assert await fleet.exists("x") == [False, True]  # the future has reported the restart


def test_a_blocking_fleet_maps_and_executes() -> None:
    with SyncFleet.launch(2) as kernels:
        assert set(kernels.map(nap, [0.02] * 10)) == {kernel.info.pid for kernel in kernels}
        with kernels.map(abs, itertools.count()) as results:
            assert [next(results) for _ in range(3)] == [0, 1, 2]
        with kernels.executor() as executor:
            futures = [executor.submit(pow, n, 2) for n in range(10)]
            done = concurrent.futures.as_completed(futures, timeout=60)
            assert sorted(future.result() for future in done) == [n * n for n in range(10)]
            assert list(executor.map(abs, range(-3, 0))) == [3, 2, 1]
        kernels[0]["x"] = 1
        assert kernels.exists("x") == [True, False]
        with pytest.raises(FleetError) as caught:
            kernels.pull("x")
        assert caught.value.results == {0: 1}


def test_a_cells_question_is_answered_in_the_calling_thread() -> None:
    threads: set[int] = set()

    def answer(prompt: str, password: bool) -> str:
        threads.add(threading.get_ident())
        return "Ada"

    with SyncFleet.launch(2) as kernels:
        results = kernels.run("input('who? ')", on_input=answer)
    assert [result.data["text/plain"] for result in results] == ["'Ada'"] * 2
    assert threads == {threading.get_ident()}
