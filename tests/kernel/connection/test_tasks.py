"""Async functions, tasks and ``on_timeout`` in real kernels.

Rule: as in ``test_watch``. What the kernel must not keep is counted in its remote part.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from bridgehead import Bridge, KernelDied, KernelRestarted, RemoteError, ReplyLost
from support.elsewhere import MAJORS
from support.kit import (
    BUFFERS,
    LANES,
    Parts,
    all_of,
    file_of,
    goes_on,
    kind,
    on_its_way,
    other,
    reported_within,
    sigint,
    until,
    whole,
    wired,
)
from support.promises import occupied
from support.resources import later, nothing_is_kept, spin

# A kernel can't import test modules, so what they define is pickled by value, as in a script.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
OWN = [sys.modules[__name__]]


@pytest.fixture(params=LANES)
async def bridge(kernel: Bridge, request: pytest.FixtureRequest) -> AsyncIterator[Bridge]:
    async with Bridge.attach(file_of(kernel), lane=request.param) as attached:
        yield attached
    await nothing_is_kept(kernel)


async def marks(name: str) -> None:
    """Bind a name to "begun", and to "cancelled" when the task is cancelled."""
    from IPython import get_ipython

    names = get_ipython().user_ns  # type: ignore[no-untyped-call]
    try:
        names[name] = "begun"
        await asyncio.sleep(1000)
    except asyncio.CancelledError:
        names[name] = "cancelled"
        raise


async def until_is(kernel: Bridge, name: str, value: str, *, now: bool = False) -> None:
    """Wait until a name has a value; ``now`` asks beside what the kernel runs."""
    expression = f"globals().get({name!r})" if now else name
    async with asyncio.timeout(30):
        while not (
            (now or await kernel.exists(name)) and await kernel.pull(expression, now=now) == value
        ):
            await asyncio.sleep(0.02)


async def spins(report: Callable[[int], object], number: int) -> None:
    await asyncio.sleep(0)
    report(number)
    spin()


async def child_spins(report: Callable[[int], object], number: int) -> None:
    await asyncio.gather(spins(report, number), asyncio.sleep(1000))


async def test_an_async_function_runs_on_the_kernels_loop(bridge: Bridge) -> None:
    assert await bridge.call(later, 5) == 5
    large = await bridge.call(later, np.arange(3_000_000.0))
    assert float(large[-1]) == 2_999_999
    await bridge.run("import asyncio\nasync def double(x):\n    return 2 * x")
    assert await bridge.pull("await double(4)") == 8
    with pytest.raises(RemoteError, match="ZeroDivisionError") as caught:
        await bridge.pull("await double(1 / 0)")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


async def test_cells_and_calls_go_on_beside_a_task(bridge: Bridge) -> None:
    task = bridge.submit(later, "done", 0.3)
    await bridge.run("beside = 1")
    assert await bridge.call(abs, -2) == 2
    assert not task.done()
    assert await task == "done"


class Delay:
    """An argument that, once it is unpickled, holds the kernel's event loop up for a moment."""

    def __reduce__(self) -> Any:
        return delay, ()


def delay() -> None:
    import time

    asyncio.get_event_loop().call_soon(time.sleep, 0.2)


async def binds(names: dict[str, Any], argument: Any) -> None:
    names["x"] = "by the task"


async def test_a_task_begins_before_later_operations(bridge: Bridge) -> None:
    task = bridge.submit(binds, bridge.ref("globals()"), Delay())
    await bridge.push(x="by the push")
    await task
    assert await bridge.pull("x") == "by the push"


async def test_a_task_runs_while_a_cell_awaits(bridge: Bridge) -> None:
    task = bridge.submit(later, 5, 0.1)
    await bridge.push(x=1)
    cell = asyncio.ensure_future(
        bridge.run("import asyncio\nwhile 'go' not in globals(): await asyncio.sleep(0.01)")
    )
    assert await task == 5
    assert not cell.done()
    await bridge.push(go=True, now=True)
    await cell


async def test_a_cancelled_task_ends_beside_a_cell_that_awaits(bridge: Bridge) -> None:
    task = bridge.submit(marks, "state")
    await until_is(bridge, "state", "begun")
    cell = asyncio.ensure_future(
        bridge.run("import asyncio\nwhile state != 'cancelled': await asyncio.sleep(0.01)")
    )
    await asyncio.sleep(0.1)
    task.cancel()
    async with reported_within(5):
        await cell


@pytest.mark.parametrize("how", ["cancel", "timeout", "close"])
async def test_a_call_that_is_given_up_cancels_its_coroutine(
    kernel: Bridge, bridge: Bridge, how: str
) -> None:
    async with Bridge.attach(file_of(kernel), lane=bridge.info.lane) as mine:
        if how == "timeout":
            with pytest.raises(TimeoutError):
                await mine.call(marks, "state", timeout=0.3)
        else:
            call = asyncio.ensure_future(mine.call(marks, "state"))
            await until_is(kernel, "state", "begun")
            if how == "cancel":
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
            else:
                await mine.aclose()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await call
        await until_is(kernel, "state", "cancelled")
    await kernel.delete("state")


async def test_a_task_that_waits_behind_a_cell_and_is_cancelled_never_begins(
    bridge: Bridge,
) -> None:
    async with occupied(bridge):
        tasks = [bridge.submit(marks, "state"), bridge.submit(exec, "begun = 1", {})]
        await asyncio.sleep(0.1)
        for task in tasks:
            task.cancel()
        for task in tasks:
            with pytest.raises(asyncio.CancelledError):
                await task
        await asyncio.sleep(0.1)
    await goes_on(bridge)
    assert not await bridge.exists("state")


async def test_cancelling_a_task_that_has_not_begun_interrupts_nothing(bridge: Bridge) -> None:
    await bridge.run("import time\nstate, go, ran = '', False, []")
    async with other(bridge) as client:
        cell = client.submit("state = 'runs'\nwhile not go: time.sleep(0.001)\nstate = 'ended'")
        await until_is(bridge, "state", "runs", now=True)
        never = [
            bridge.submit(list.append, bridge.ref("ran"), 1),
            bridge.submit(later, bridge.ref("ran.append(2)")),
        ]
        await until(lambda: on_its_way(bridge))
        for task in never:
            task.cancel()
        for task in never:
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await bridge.pull("state", now=True) == "runs"
        await bridge.push(go=True, now=True)
        assert (await client.answer(cell))["status"] == "ok"
    assert await bridge.pull("state", "ran") == ("ended", [])


async def test_a_function_that_runs_is_interrupted_and_nothing_else(bridge: Bridge) -> None:
    async with other(bridge) as client:
        await bridge.push(state="")
        task = bridge.submit(
            exec,
            "import time\nnames['state'] = 'runs'\ntime.sleep(60)",
            {"names": bridge.ref("globals()")},
        )
        await until_is_now(bridge, "state", "runs")
        behind = client.submit("import time; time.sleep(0.2); state = 'behind'")
        async with reported_within(5):
            task.cancel()
            await until_is(bridge, "state", "behind")
        assert (await client.answer(behind))["status"] == "ok"


async def until_is_now(bridge: Bridge, name: str, value: str) -> None:
    async with asyncio.timeout(30):
        while await bridge.pull(name, now=True) != value:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("what", ["call", "run"])
async def test_on_timeout_interrupts(bridge: Bridge, what: str) -> None:
    async with reported_within(5):
        with pytest.raises(TimeoutError):
            if what == "call":
                await bridge.call(spin, timeout=0.3, on_timeout="interrupt")
            else:
                await bridge.run("import time; time.sleep(60)", timeout=0.3, on_timeout="interrupt")
        await bridge.push(x=1)
        await bridge.run("x")


def spins_and_notes() -> None:
    """Compute until it is interrupted; bind ``state`` to "runs" and then to "interrupted"."""
    from IPython import get_ipython

    names = get_ipython().user_ns  # type: ignore[no-untyped-call]
    try:
        names["state"] = "runs"
        spin()
    except KeyboardInterrupt:
        names["state"] = "interrupted"
        raise


CELL_THAT_NOTES = """
import time
state = "runs"
try: time.sleep(60)
except KeyboardInterrupt:
    state = "interrupted"
    raise
"""


@pytest.mark.parametrize("what", ["call", "run"])
async def test_on_timeout_interrupts_what_runs_for_a_caller_that_is_cancelled(
    bridge: Bridge, what: str
) -> None:
    call: asyncio.Future[Any] = asyncio.ensure_future(
        bridge.call(spins_and_notes, on_timeout="interrupt")
        if what == "call"
        else bridge.run(CELL_THAT_NOTES, on_timeout="interrupt")
    )
    await until_is(bridge, "state", "runs", now=True)
    async with reported_within(5):
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until_is(bridge, "state", "interrupted")
    await bridge.delete("state")


def ends() -> None:
    """Bind ``state`` to "begun", and to "ended" when ``go`` is bound."""
    import time

    from IPython import get_ipython

    names = get_ipython().user_ns  # type: ignore[no-untyped-call]
    names["state"] = "begun"
    while "go" not in names:
        time.sleep(0.01)
    names["state"] = "ended"


CELL_THAT_ENDS = """
import time
state = "begun"
while "go" not in globals(): time.sleep(0.01)
state = "ended"
"""


@pytest.mark.parametrize("what", ["call", "run"])
async def test_what_runs_for_a_caller_that_is_cancelled_reaches_its_end(
    bridge: Bridge, what: str
) -> None:
    """The default of ``on_timeout`` is "leave"."""
    call: asyncio.Future[Any] = asyncio.ensure_future(
        bridge.call(ends) if what == "call" else bridge.run(CELL_THAT_ENDS)
    )
    await until_is(bridge, "state", "begun", now=True)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await bridge.pull("state", now=True) == "begun"
    await bridge.push(go=1, now=True)
    await until_is(bridge, "state", "ended")
    await bridge.delete("go", "state")


async def timed_out(bridge: Bridge, work: Callable[[float], Awaitable[object]]) -> None:
    """Have work time out after it has begun, which binds ``state``."""
    for seconds in 0.3, 3.0, 20.0:  # a loaded machine may take long to begin it
        with pytest.raises(TimeoutError, match="timed out after"):
            await work(seconds)
        if await bridge.pull("'state' in globals()", now=True):
            return
    pytest.fail("it has not begun")


async def test_a_function_that_is_left_at_its_deadline_reaches_its_end(bridge: Bridge) -> None:
    await timed_out(bridge, lambda seconds: bridge.call(ends, timeout=seconds))
    assert await bridge.pull("state", now=True) == "begun"
    await bridge.push(go=1, now=True)
    await until_is(bridge, "state", "ended")
    await bridge.delete("go", "state")


async def test_the_deadline_of_a_pull_with_await_cancels_its_coroutine(bridge: Bridge) -> None:
    await bridge.push(marks=marks)
    await timed_out(bridge, lambda seconds: bridge.pull("await marks('state')", timeout=seconds))
    await until_is(bridge, "state", "cancelled")
    await bridge.delete("marks", "state")


async def test_what_has_not_begun_when_its_time_is_over_never_begins(bridge: Bridge) -> None:
    await bridge.push(ran=[])
    async with occupied(bridge):
        for work in (
            bridge.run("ran.append('cell')", timeout=0.2, on_timeout="interrupt"),
            bridge.call(list.append, bridge.ref("ran"), 1, timeout=0.2, on_timeout="interrupt"),
        ):
            with pytest.raises(TimeoutError):
                await work
    await goes_on(bridge)
    assert await bridge.pull("ran") == []


@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
@pytest.mark.parametrize("function", [spins, child_spins])
async def test_an_interrupt_ends_the_task_that_runs_and_not_the_kernel(
    live: Bridge, function: Any
) -> None:
    begun: list[int] = []
    report = live.callback(begun.append)
    for number in range(10):
        waits = live.submit(later, "not hit", 1000)
        task = live.submit(function, report, number)
        # An interrupt that finds a task starting may cost the response to its request.
        await until(lambda: number == len(begun) - 1)
        async with reported_within(5):
            while not task.done():
                await live.interrupt()
                await asyncio.sleep(0.05)
        with pytest.raises(RemoteError, match="KeyboardInterrupt"):
            await task
        assert not waits.done()
        waits.cancel()
    report.close()
    await goes_on(live)
    await nothing_is_kept(live)


async def steps(report: Callable[[int], object], number: int) -> int:
    report(number)
    for _ in range(1_000):
        for _ in range(3_000):  # most signals find a step, and the others the loop between two
            pass
        await asyncio.sleep(0)
    return number


async def steps_between_items(report: Callable[[int], object], number: int) -> AsyncIterator[int]:
    yield -1
    yield await steps(report, number)


async def last_item(bridge: Bridge, report: Any, number: int) -> int:
    async with bridge.iterate(steps_between_items, report, number) as items:
        return [item async for item in items][-1]


@pytest.mark.slow
@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
@pytest.mark.parametrize("what", ["task", "async generator"])
async def test_a_storm_of_interrupts_never_ends_the_kernel(live: Bridge, what: str) -> None:
    """Each signal arrives at another instant of the steps; each ends what steps, or nothing."""
    begun: list[int] = []
    interrupted = 0
    with live.callback(begun.append) as report:
        for number in range(40):
            work: Any = (
                live.submit(steps, report, number)
                if what == "task"
                else asyncio.ensure_future(last_item(live, report, number))
            )
            await until(lambda: number == len(begun) - 1)
            # An interrupt that finds it starting may cost the response to its request, which has
            # come when the one to a later request has.
            await live.call(abs, number)
            # Only three: those that come after the end may cost responses to what is asked then.
            for _ in range(3):
                sigint(live)
                await asyncio.sleep(0.001 * random.random())
            async with reported_within(10):
                (outcome,) = await all_of(work)
            if outcome != number:
                assert isinstance(outcome, RemoteError), outcome
                assert outcome.ename == "KeyboardInterrupt"
                interrupted += 1
    assert interrupted, "no signal found a step, so the test proves nothing"
    await goes_on(live)
    await nothing_is_kept(live)


async def test_an_outcome_that_is_lost_is_sent_again(kernel: Bridge, tmp_path: Path) -> None:
    async with wired(kernel, tmp_path) as (bridge, wire):
        wire.incoming = lambda parts: [] if kind(parts) == "bridgehead_event" else [parts]
        task = bridge.submit(later, 5)
        await bridge.push(x=1)
        await asyncio.sleep(0.2)
        assert not task.done()
        wire.incoming = whole
        bridge._connection.resources.renew_soon()  # as a new connection does
        async with reported_within(5):
            assert await task == 5
    await nothing_is_kept(kernel)


async def test_an_event_that_arrives_damaged_is_sent_again(kernel: Bridge, tmp_path: Path) -> None:
    """J16. Jupyter does not sign buffers. The outcome of a task, and the value of a watch."""
    damaged = 0

    def damage(parts: Parts) -> list[Parts]:
        nonlocal damaged
        if kind(parts) != "bridgehead_event" or damaged == 2:
            return [parts]
        damaged += 1
        flipped = bytes([parts[BUFFERS][0] ^ 1])
        return [[*parts[:BUFFERS], flipped + parts[BUFFERS][1:], *parts[BUFFERS + 1 :]]]

    async with wired(kernel, tmp_path, lane="buffers") as (bridge, wire):
        wire.incoming = damage
        async with reported_within(5):
            assert await bridge.call(later, [5]) == [5]
        assert damaged == 2
        await bridge.push(x=[1])
        async with bridge.watch("x") as watch:
            assert await anext(watch) == [1]
            damaged = 0
            await bridge.run("x = [2]")
            async with reported_within(5):
                assert await anext(watch) == [2]
            assert damaged == 2
    await nothing_is_kept(kernel)


# The bridge waits until another owner must have restarted the kernel, and here none does.
@pytest.mark.timings(reconnect_grace=0.3)
@pytest.mark.parametrize("end", ["death", "restart"])
async def test_a_task_ends_with_its_kernel(live: Bridge, end: str) -> None:
    task = live.submit(later, 5, 1000)
    await live.push(x=1)
    if end == "death":
        os.kill(live.info.pid, signal.SIGKILL)
    else:
        await live.restart()
    with pytest.raises(KernelDied if end == "death" else KernelRestarted):
        await task


@pytest.mark.parametrize("lane", LANES)
async def test_a_task_starts_after_the_remote_part_was_removed(live: Bridge, lane: Any) -> None:
    remove = "import sys; [sys.modules.pop(n) for n in [*sys.modules] if '_bridgehead_' in n]"
    async with Bridge.attach(file_of(live), lane=lane) as bridge:
        for n in range(3):
            assert await bridge.call(later, n) == n
            await bridge.run(remove)


async def test_tasks_of_a_bridge_that_vanished_are_cancelled(live: Bridge) -> None:
    """Its lease ends. The clock of the leases is set ahead, which takes ten minutes else."""
    async with Bridge.attach(file_of(live)) as bridge:
        task = bridge.submit(marks, "state")
        await until_is(live, "state", "begun")
        await live.run(
            "import sys\n"
            "module = next(m for n, m in sys.modules.items() if n.startswith('_bridgehead'))\n"
            "(remote,) = module._remotes.values()\nremote.resources.clock += 601"
        )
        # A request that the thread of the cells serves looks at the leases. The names below are
        # fetched by another thread, and the kernel's own look comes after half a minute.
        await live.call(abs, 1)
        await until_is(live, "state", "cancelled")
        await nothing_is_kept(live)
        bridge._connection.resources.renew_soon()
        with pytest.raises(ReplyLost, match="does not have this task"):
            await task
