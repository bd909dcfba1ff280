"""Watches of values in a real kernel.

Rule: tests use real kernels and the public API. They read private state only to check that nothing
is left behind. A random test reports its seed when it fails. No test measures speed: it counts the
work that must continue, and waits for the results that must come.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from bridgehead import Bridge, KernelRestarted, NameNotFound, RemoteError, ReplyLost
from support.elsewhere import MAJORS
from support.kit import (
    KEPT,
    LANES,
    file_of,
    goes_on,
    kind,
    other,
    reported_within,
    until,
    whole,
    wired,
)
from support.look import look
from support.promises import occupied, seeded

# A kernel can't import test modules, so what they define is pickled by value, as in a script.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
async def harmless() -> AsyncIterator[Bridge]:
    """One kernel for all tests that restore its state; ``_kept()`` counts its open transfers."""
    async with Bridge.launch() as bridge:
        await bridge.run(KEPT)
        yield bridge


HOOKS = "[f.__qualname__ for f in get_ipython().events.callbacks['post_run_cell']]"


async def until_no_hook(bridge: Bridge) -> None:
    async with reported_within(1):
        while "WatchTable.cell_done" in await bridge.pull(HOOKS):
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_each_cell_that_changes_the_value_sends_it_once(
    live: Bridge, tmp_path: Path, lane: Any
) -> None:
    """Another client queues the cells; each value arrives while the next cell runs.

    Each cell waits until the value of the cell before it has arrived in this process.
    """
    async with Bridge.attach(file_of(live), lane=lane) as bridge, other(bridge) as other_client:
        await bridge.push(x=0)
        values = []
        async with bridge.watch("x") as watch:
            assert "x" in repr(watch)
            values.append(await anext(watch))
            assert "WatchTable.cell_done" in await bridge.pull(HOOKS)
            (tmp_path / "0").touch()
            cells = []
            for i in range(1, 11):
                cells.append(other_client.submit(f"y = {i}"))
                cells.append(
                    other_client.submit(
                        "import os, time\n"
                        f"while not os.path.exists('{tmp_path}/{i - 1}'): time.sleep(0.005)\n"
                        f"x = {i}"
                    )
                )
                cells.append(other_client.submit("x = x"))
            async with reported_within(2):
                while values[-1] != 10:
                    values.append(await anext(watch))
                    (tmp_path / str(values[-1])).touch()
            for cell in cells:
                assert (await other_client.answer(cell))["status"] == "ok"
            with pytest.raises(TimeoutError):  # a cell that changes no value sends none
                await asyncio.wait_for(anext(watch), 0.2)
        assert values == list(range(11))
        await until_no_hook(bridge)
        assert [value async for value in watch] == []
    assert set(await look(file_of(live))) == {"x", "y"}
    await goes_on(live)


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_names_are_sent_after_each_cell_of_any_client_that_changed_them(
    live: Bridge, lane: Any
) -> None:
    """With ``trust="data"`` too: the descriptions are no pickle."""
    async with (
        Bridge.attach(file_of(live), lane=lane, trust="data") as bridge,
        bridge.watch_names() as watch,
    ):
        async with reported_within(2):
            assert await anext(watch) == []
            await live.run("x = [1]")
            assert [repr(name).partition(",")[0] for name in await anext(watch)] == [
                "<x: list of 1"
            ]
            await live.run("x = [2]; _hidden = 1")  # described as before
            await live.run("class Own: pass\nown = Own()")
            assert [name.name for name in await anext(watch)] == ["Own", "own", "x"]
            await live.run("x.append(3); del own")
            found = await anext(watch)
            assert [(name.name, name.len) for name in found] == [("Own", None), ("x", 2)]
            assert found == await bridge.names()
        assert "WatchTable.cell_done" in await live.pull(HOOKS)
        await watch.aclose()
        await until_no_hook(live)
    await goes_on(live)


@pytest.mark.parametrize("lane", LANES)
async def test_several_expressions_are_sent_together(kernel: Bridge, lane: Any) -> None:
    """A change of one of them sends both, and an error of one is that of all."""
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge:
        await kernel.run("x, y = 1, [2]")
        async with bridge.watch("x", "y[0]") as watch, reported_within(2):
            assert await anext(watch) == (1, 2)
            await kernel.run("x = 10")
            assert await anext(watch) == (10, 2)
            await kernel.run("y = [20]")
            assert await anext(watch) == (10, 20)
            await kernel.run("y = []")
            with pytest.raises(RemoteError, match="IndexError"):
                await anext(watch)
            await kernel.run("y = [3]")
            assert await anext(watch) == (10, 3)
    await until_no_hook(kernel)


async def test_a_slow_reader_gets_the_latest_value(kernel: Bridge) -> None:
    await kernel.push(x=0)
    async with kernel.watch("x") as watch:
        assert await anext(watch) == 0
        for i in range(1, 21):
            await kernel.run(f"x = {i}")
        async with reported_within(1):
            while (value := await anext(watch)) != 20:
                assert value == 19  # the last values may come after the replies of their cells
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(watch), 0.2)
        await kernel.run("x = 21")
        async with reported_within(1):
            assert await anext(watch) == 21
    await until_no_hook(kernel)


@pytest.mark.parametrize("lane", LANES)
async def test_a_large_value_is_watched(kernel: Bridge, lane: Any) -> None:
    """The value crosses in chunks; if it changes meanwhile, the newer one arrives."""
    size = 1_500_000 if lane == "inline" else 5_000_000
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge:
        await kernel.run(f"import numpy as np\nx = np.zeros({size})")
        async with bridge.watch("x") as watch:
            assert (await anext(watch) == 0).all()
            await kernel.run(f"x = np.full({size}, 1.0)")
            async with reported_within(2):
                assert (await anext(watch) == 1).all()
            for i in range(2, 7):
                await kernel.run(f"x = np.full({size}, {i}.0)")
            async with reported_within(2):
                while not (value := await anext(watch)).any() or value[0] != 6:
                    assert (value == value[0]).all()
                assert (value == 6).all()
        await until_no_hook(kernel)
        assert await kernel.pull("_kept()") == [0, 0]


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("size", [1, 5_000_000])
async def test_an_update_that_is_outdated_while_it_is_fetched_is_skipped(
    kernel: Bridge, lane: Any, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow reader gets the latest value, and no error about the outdated one."""
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge:
        await kernel.run(f"import numpy as np\nx = np.zeros({size})")
        async with bridge.watch("x") as watch:
            assert (await anext(watch) == 0).all()
            used, late = bridge._connection.remote.lane, []
            complete = used.complete

            async def fetch_too_late(response: Any) -> Any:
                if not late:
                    late.append(response)
                    await kernel.run("x = x + 1")
                return await complete(response)

            monkeypatch.setattr(used, "complete", fetch_too_late)
            await kernel.run("x = x + 1")
            async with reported_within(2):
                while not (value := await anext(watch))[0] == 2:
                    assert (value == 1).all()  # the whole value came with the update
            assert (value == 2).all()
            assert late
        await until_no_hook(kernel)


# The bridge waits until another owner must have restarted the kernel, and here none does.
DEATH = pytest.param("death", marks=pytest.mark.timings(reconnect_grace=0.3))


@pytest.mark.parametrize("end", [DEATH, "restart", "aclose", "bridge"])
async def test_a_watch_ends(live: Bridge, end: str) -> None:
    """It ends when the kernel dies or restarts, or the watch or its bridge is closed."""
    async with Bridge.attach(file_of(live)) as bridge:
        await bridge.push(x=1)
        watch = bridge.watch("x")
        values = []

        async def follow() -> None:
            async for value in watch:
                values.append(value)

        following = asyncio.ensure_future(follow())
        await until(lambda: values == [1])
        if end == "death":
            os.kill(live.info.pid, signal.SIGKILL)
        elif end == "restart":
            await live.restart()
        else:
            await (watch if end == "aclose" else bridge).aclose()
        async with reported_within(3):
            await following
        assert values == [1]
        assert "ended" in repr(watch)
        with pytest.raises(StopAsyncIteration):
            await anext(watch)
        await watch.aclose()
        if end in ("aclose", "bridge"):
            await until_no_hook(live)
            await goes_on(live)
        if end == "restart":
            with contextlib.suppress(KernelRestarted):
                await bridge.exists("x")
            await bridge.push(x=2)
            async with bridge.watch("x") as again:
                assert await anext(again) == 2


async def test_a_missing_name_is_reported_and_the_watch_continues(kernel: Bridge) -> None:
    """The first wait raises NameNotFound and adds no hook; after any error, the next wait works."""
    watch = kernel.watch("x")
    for _ in range(2):
        with pytest.raises(NameNotFound):
            await anext(watch)
    assert "WatchTable.cell_done" not in await kernel.pull(HOOKS)
    await kernel.push(x=[1])
    assert await anext(watch) == [1]
    ratio = kernel.watch("100 / len(x)")
    assert await anext(ratio) == 100
    await kernel.run("x = []")
    async with reported_within(1):
        assert await anext(watch) == []
        with pytest.raises(RemoteError, match="ZeroDivisionError"):
            await anext(ratio)
    await kernel.run("x = [1, 2]")
    async with reported_within(1):
        assert await anext(ratio) == 50
        assert await anext(watch) == [1, 2]
    await kernel.run("del x")
    async with reported_within(1):
        with pytest.raises(NameNotFound):
            await anext(watch)
        with pytest.raises(RemoteError, match="NameError"):
            await anext(ratio)
    await kernel.run("x = [1, 2, 3, 4]")
    async with reported_within(1):
        assert await anext(ratio) == 25
        assert await anext(watch) == [1, 2, 3, 4]
    await ratio.aclose()
    assert "WatchTable.cell_done" in await kernel.pull(HOOKS)
    await watch.aclose()
    await until_no_hook(kernel)


async def test_closing_a_watch_does_not_hide_a_restart_from_the_next_call(live: Bridge) -> None:
    """Closing the watch is not a call to the new kernel."""
    async with Bridge.attach(file_of(live)) as bridge:
        watch = bridge.watch("1 + 1")
        assert await anext(watch) == 2
        await live.restart()
        with pytest.raises(StopAsyncIteration):
            await anext(watch)
        await until(lambda: bridge.state != "restarting")
        await watch.aclose()
        await asyncio.sleep(0.5)  # nothing may be reported meanwhile
        with pytest.raises(KernelRestarted):
            await bridge.push(y=1)
        assert not await live.exists("y")
        await goes_on(bridge)


async def test_a_watch_that_is_closed_while_it_starts_leaves_no_hook(kernel: Bridge) -> None:
    """It starts behind a running cell: the first value may arrive, and no other one."""
    await kernel.push(x=1)
    watch = kernel.watch("x")
    async with occupied(kernel):
        first = asyncio.ensure_future(anext(watch, None))
        await asyncio.sleep(0.1)
        await watch.aclose()
    async with reported_within(1):
        assert await first in (1, None)
    await until_no_hook(kernel)
    assert not kernel._transport.life.listeners


async def test_two_tasks_may_wait_for_the_first_value(kernel: Bridge) -> None:
    """One task gets the first value, the other one the next."""
    await kernel.push(x=1)
    async with kernel.watch("x") as watch:
        waiting = {asyncio.ensure_future(anext(watch)) for _ in range(2)}
        async with reported_within(1):
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            assert [task.result() for task in done] == [1]
            await kernel.run("x = 2")
            assert [await task for task in waiting] == [2]
    await until_no_hook(kernel)


async def test_a_lost_first_value_arrives_with_the_next_wait(
    kernel: Bridge, tmp_path: Path
) -> None:
    async with wired(kernel, tmp_path) as (bridge, wire):
        await bridge.push(x=1)
        watch = bridge.watch("x")
        wire.incoming = lambda parts: [] if kind(parts) == "execute_reply" else [parts]
        with pytest.raises(ReplyLost):
            await anext(watch)
        wire.incoming = whole
        async with reported_within(1):
            assert await anext(watch) == 1
        await kernel.run("x = 2")
        async with reported_within(1):
            assert await anext(watch) == 2
        await watch.aclose()
        await until_no_hook(kernel)


async def test_each_watch_has_its_own_values(kernel: Bridge) -> None:
    """Two watches of one bridge and one of another; closing one does not end the others."""
    async with Bridge.attach(file_of(kernel), lane="inline") as second:
        await kernel.push(x=1, y="a")
        one, two, three = kernel.watch("x"), kernel.watch("y"), second.watch("x")
        assert [await anext(each) for each in (one, two, three)] == [1, "a", 1]
        await kernel.run("x = 2")
        async with reported_within(1):
            assert [await anext(each) for each in (one, three)] == [2, 2]
        await one.aclose()
        await kernel.run("x = 3; y = 'b'")
        async with reported_within(1):
            assert [await anext(each) for each in (two, three)] == ["b", 3]
    await kernel.run("x = 4; y = 'c'")
    async with reported_within(1):
        assert await anext(two) == "c"
    await two.aclose()
    await until_no_hook(kernel)


async def test_a_watch_that_is_garbage_collected_leaves_no_hook(kernel: Bridge) -> None:
    await kernel.push(x=1)
    watch = kernel.watch("x")
    assert await anext(watch) == 1
    assert "WatchTable.cell_done" in await kernel.pull(HOOKS)
    del watch
    gc.collect()
    await until_no_hook(kernel)
    async for value in kernel.watch("x"):
        assert value == 1
        break
    gc.collect()
    await until_no_hook(kernel)
    assert not kernel._transport.life.listeners


async def test_the_first_wait_may_be_cancelled(kernel: Bridge) -> None:
    """It is cancelled behind a running cell, after it was sent: the next wait gets the value."""
    await kernel.push(x=1)
    watch = kernel.watch("x")
    async with occupied(kernel):
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(watch), 0.2)
    await kernel.run("x = 2")
    async with reported_within(1):
        assert await anext(watch) == 2
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(watch), 0.2)
    await watch.aclose()
    await until_no_hook(kernel)


async def test_cancelling_a_wait_for_a_large_value_loses_nothing(kernel: Bridge) -> None:
    """Waits are cancelled while chunks cross: the next wait continues the transfer."""
    with seeded() as chance:
        await kernel.run("import numpy as np\nx = np.zeros(10_000_000)")
        async with kernel.watch("x") as watch:
            assert (await anext(watch))[0] == 0
            for i in range(1, 6):
                await kernel.run(f"x = np.full(10_000_000, {i}.0)")
                async with reported_within(2):
                    while True:
                        with contextlib.suppress(TimeoutError):
                            async with asyncio.timeout(chance.uniform(0, 0.1)):
                                assert (await anext(watch) == i).all()
                                break
    await until_no_hook(kernel)
    assert await kernel.pull("_kept()") == [0, 0]


async def test_cancelling_a_wait_loses_no_value(kernel: Bridge) -> None:
    """Waits are cancelled repeatedly, also while a thread unpickles: each value arrives."""
    with seeded() as chance:
        await kernel.run("x = [0] * 300_000")
        async with kernel.watch("x") as watch:
            assert (await anext(watch))[0] == 0
            for i in range(1, 31):
                await kernel.run(f"x = [{i}] * 300_000")
                async with reported_within(1):
                    while True:
                        with contextlib.suppress(TimeoutError):
                            async with asyncio.timeout(chance.uniform(0, 0.03)):
                                assert (await anext(watch))[0] == i
                                break
                        await asyncio.sleep(0)
    await until_no_hook(kernel)
