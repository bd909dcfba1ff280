"""Async functions and tasks on a loopback, whose thread runs an event loop."""

from __future__ import annotations

import asyncio
import builtins
import concurrent.futures
import contextlib
import functools
import gc
import logging
import queue
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bridgehead import (
    Bridge,
    BridgeClosed,
    EncodeError,
    Fleet,
    KernelRestarted,
    NotSupported,
    RemoteError,
    SyncBridge,
    SyncTask,
    UntrustedPayload,
)
from bridgehead._bridge.arguments import awaits
from bridgehead._protocol.bootstrap import remote_source
from support.kit import kept_and_late, set_capabilities, until


@pytest.fixture
async def loopback() -> AsyncIterator[Bridge]:
    async with Bridge.loopback() as bridge:
        yield bridge
        await nothing_is_left(bridge)


def remote_of(bridge: Bridge) -> Any:
    transport: Any = bridge._transport
    return sys.modules[remote_source()[0]]._remotes[id(transport._cell.user_ns)]


def is_driven(task: asyncio.Task[Any]) -> bool:
    return type(task.get_coro()).__name__ == "Driver"


async def nothing_is_left(bridge: Bridge) -> None:
    """Wait until neither end has a task, and the kernel's loop has its own task factory again."""
    remote, transport = remote_of(bridge), bridge._transport
    kernel: Any = transport
    async with asyncio.timeout(30):
        while (
            *remote.resources.known,
            *remote.resources.owners,
            *remote.operations.values.kept,
            *remote.tasks.running,
            *transport.life.listeners,
            *(task for task in asyncio.all_tasks(kernel._cell.loop) if is_driven(task)),
        ):
            await asyncio.sleep(0.01)
    assert kernel._cell.loop.get_task_factory() is None


async def later(value: Any, seconds: float = 0.0) -> Any:
    await asyncio.sleep(seconds)
    return value


async def forever(started: threading.Event, cancelled: threading.Event) -> None:
    try:
        started.set()
        await asyncio.sleep(1000)
    except asyncio.CancelledError:
        cancelled.set()
        raise


class Callable:
    async def __call__(self, value: Any) -> Any:
        return await later(value)


def shared() -> tuple[threading.Event, threading.Event]:
    """Return two events that cross by reference: a loopback's kernel is in this process."""
    EVENTS[:] = threading.Event(), threading.Event()
    return EVENTS[0], EVENTS[1]


EVENTS: list[threading.Event] = []


async def forever_here() -> None:
    await forever(*sys.modules[__name__].EVENTS)


@pytest.mark.parametrize("function", [later, Callable(), functools.partial(later, seconds=0.01)])
async def test_an_async_function_returns_its_value(loopback: Bridge, function: Any) -> None:
    assert await loopback.call(function, [1, "a"]) == [1, "a"]
    assert await loopback.submit(function, 5) == 5


async def test_an_async_function_can_keep_its_value(loopback: Bridge) -> None:
    ref = await loopback.call(later, [1, 2], keep="kept")
    assert await ref.pull() == [1, 2]
    assert await loopback.call(later, ref) == [1, 2]


async def test_what_an_async_function_raises_is_raised(loopback: Bridge) -> None:
    async def fails(error: BaseException) -> None:
        await asyncio.sleep(0)
        raise error

    with pytest.raises(RemoteError, match="ValueError: no") as caught:
        await loopback.call(fails, ValueError("no"))
    assert isinstance(caught.value.__cause__, ValueError)
    for error in SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError():
        with pytest.raises(RemoteError, match=type(error).__name__):
            await loopback.call(fails, error)
    with pytest.raises(RemoteError, match="positional argument"):
        await loopback.call(later)
    assert await loopback.call(later, 1) == 1


async def test_an_expression_with_await_is_pulled(loopback: Bridge) -> None:
    await loopback.push(later=later)
    assert await loopback.pull("await later(5)") == 5
    assert await loopback.pull("[await later(n) for n in range(3)]") == [0, 1, 2]
    with pytest.raises(ValueError, match="pulled alone"):
        await loopback.pull("await later(5)", "1")
    with pytest.raises(ValueError, match="pulled alone"):
        await loopback.pull("await later(5)", now=True)
    with pytest.raises(RemoteError, match="NameError"):
        await loopback.pull("await nowhere()")


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("await f()", True),
        ("g(await f())", True),
        ("[x async for x in y]", True),
        ("lambda: (await f())", False),
        ("(x async for x in y)", False),
        ("'await'", False),
        ("awaited", False),
        ("await", False),
    ],
)
def test_whether_an_expression_awaits(expression: str, expected: bool) -> None:
    assert awaits(expression) == expected


async def test_other_operations_go_on_while_a_task_runs(loopback: Bridge) -> None:
    started, cancelled = shared()
    task = loopback.submit(forever_here)
    await loopback.push(x=1)
    assert started.is_set()  # its turn was before that of the push
    await loopback.run("x += 1")
    assert await loopback.pull("x") == 2
    assert not task.done()
    assert task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert not task.cancel()
    await asyncio.to_thread(cancelled.wait, 30)


@pytest.mark.parametrize("how", ["cancel", "timeout"])
async def test_giving_up_a_call_cancels_the_coroutine(loopback: Bridge, how: str) -> None:
    started, cancelled = shared()
    if how == "timeout":
        with pytest.raises(TimeoutError, match="call timed out"):
            await loopback.call(forever_here, timeout=0.2)
        if not started.is_set():  # on a loaded machine, the time is over before it was sent
            return
    else:
        call = asyncio.ensure_future(loopback.call(forever_here))
        await asyncio.to_thread(started.wait, 30)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert await asyncio.to_thread(cancelled.wait, 30)


async def test_closing_the_bridge_cancels_its_tasks() -> None:
    started, cancelled = shared()
    async with Bridge.loopback() as bridge:
        task = bridge.submit(forever_here)
        await asyncio.to_thread(started.wait, 30)
    assert await asyncio.to_thread(cancelled.wait, 30)
    with pytest.raises(BridgeClosed):
        await task


async def test_a_restart_ends_the_tasks(loopback: Bridge) -> None:
    started, _ = shared()
    task = loopback.submit(forever_here)
    await asyncio.to_thread(started.wait, 30)
    await loopback.restart()
    with pytest.raises(KernelRestarted):
        await task


async def test_cancelling_who_awaits_a_task_leaves_the_task(loopback: Bridge) -> None:
    task = loopback.submit(later, 5, 0.1)
    waiting = asyncio.ensure_future(asyncio.wait_for(task, 0.01))
    with pytest.raises(TimeoutError):
        await waiting
    assert await task == 5
    assert await task == 5
    assert (task.result(), task.exception(), task.done()) == (5, None, True)


async def test_a_task_that_was_not_sent_never_runs(loopback: Bridge) -> None:
    await loopback.push(ran=[])
    task = loopback.submit(list.append, loopback.ref("ran"), 1)
    assert task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await loopback.pull("ran") == []


@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
async def test_a_coroutine_that_nothing_awaits_has_a_hint(loopback: Bridge) -> None:
    await loopback.run("async def af(x): return x")
    for work in (
        loopback.call(lambda: later(1)),
        loopback.call(loopback.ref("af"), 1),
        loopback.pull("af(1)"),
    ):
        with pytest.raises(RemoteError, match=r"use call\(\) of an async function, or pull"):
            await work
    gc.collect()  # the warning about each of them comes while it is ignored


async def test_a_task_that_is_done_keeps_no_arguments(loopback: Bridge) -> None:
    array = np.ones(3)
    kept = weakref.ref(array)
    tasks = [loopback.submit(len, array), loopback.submit(later, array)]
    assert [await tasks[0], list(await tasks[1])] == [3, [1, 1, 1]]
    del array
    await until(lambda: gc.collect() >= 0 and kept() is None)


async def test_the_turn_of_a_task_is_taken_when_it_is_submitted(loopback: Bridge) -> None:
    await loopback.push(x=1)
    task = loopback.submit(int.__add__, loopback.ref("x"), 1)
    await loopback.push(x=10)
    assert await task == 2


async def test_a_task_tells_when_it_is_done(loopback: Bridge) -> None:
    done = []
    task = loopback.submit(later, 5)
    task.add_done_callback(done.append)
    assert await task == 5
    await asyncio.sleep(0)
    assert done == [task]
    assert "later, done" in repr(task)


async def test_a_task_gives_its_outcome_as_that_of_asyncio_does(loopback: Bridge) -> None:
    started, _ = shared()
    task = loopback.submit(forever_here)
    await asyncio.to_thread(started.wait, 30)
    for look in task.result, task.exception:
        with pytest.raises(asyncio.InvalidStateError):
            look()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    failed = loopback.submit(divmod, 1, 0)
    error = (await asyncio.gather(failed, return_exceptions=True))[0]
    assert failed.exception() is error
    with pytest.raises(RemoteError, match="ZeroDivisionError"):
        failed.result()
    for look in task.result, task.exception:
        with pytest.raises(asyncio.CancelledError):
            look()
    done: list[object] = []
    for late in task, failed:
        late.add_done_callback(done.append)
        assert late not in done  # it is called soon, not at once
    await until(lambda: done == [task, failed])


async def test_a_task_that_is_not_kept_runs(loopback: Bridge) -> None:
    async def appends(found: list[str]) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        found.append("async")

    await loopback.push(found=[])
    loopback.submit(appends, loopback.ref("found"))
    loopback.submit(list.append, loopback.ref("found"), "plain")
    gc.collect()
    async with asyncio.timeout(30):
        while {*await loopback.pull("found")} != {"async", "plain"}:
            gc.collect()


async def test_a_failure_that_nothing_looks_at_is_logged(
    loopback: Bridge, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "asyncio")
    task = loopback.submit(divmod, 1, 0)
    while not task.done():
        await asyncio.sleep(0.01)
    del task

    def is_logged() -> bool:  # the event loop may hold the task until its next turn
        gc.collect()
        return "never retrieved" in caplog.text

    await until(is_logged)
    assert "never retrieved" in caplog.text
    assert "division" in caplog.text


def test_a_failure_of_a_sync_task_that_nothing_looks_at_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with SyncBridge.loopback() as kernel:
        for look in ("result", "exception"):
            with contextlib.suppress(RemoteError):
                getattr(kernel.submit(divmod, 1, 0), look)(timeout=30)
        gc.collect()
        assert "never retrieved" not in caplog.text
        kernel.submit(divmod, 1, 0)
        end = time.monotonic() + 30
        while "never retrieved" not in caplog.text:
            assert time.monotonic() < end
            gc.collect()
            time.sleep(0.01)
    assert "<SyncTask divmod, done>" in caplog.text
    assert "division" in caplog.text


def test_a_sync_task_is_not_waited_for_in_a_done_callback() -> None:
    """The callback runs in the event loop, which would bring no result meanwhile."""
    with SyncBridge.loopback() as kernel:
        outcomes: queue.SimpleQueue[Any] = queue.SimpleQueue()
        slow = kernel.submit(later, 1, 1000)

        def ask(done: concurrent.futures.Future[Any]) -> None:
            outcomes.put(done.result())
            for look in (slow.result, slow.exception):
                try:
                    look(timeout=1)
                except Exception as error:
                    outcomes.put(error)

        kernel.submit(abs, -1).add_done_callback(ask)
        assert outcomes.get(timeout=30) == 1
        for _ in range(2):
            error = outcomes.get(timeout=30)
            assert isinstance(error, RuntimeError)
            assert "in the event-loop thread of all SyncBridges" in str(error)
        assert kernel["1 + 1"] == 2
        assert slow.cancel()


async def test_a_wrong_option_is_reported(loopback: Bridge) -> None:
    word: Any = "kill"
    with pytest.raises(ValueError, match="'leave' or 'interrupt'"):
        await loopback.call(abs, 1, on_timeout=word)
    with pytest.raises(ValueError, match="'leave' or 'interrupt'"):
        await loopback.run("1", on_timeout=word)
    not_callable: Any = 5
    with pytest.raises(TypeError, match="takes a function"):
        await loopback.call(not_callable)


def test_a_sync_bridge_gives_futures_of_the_library() -> None:
    with SyncBridge.loopback() as kernel:
        tasks = [kernel.submit(pow, n, 2) for n in range(5)]
        done, _ = concurrent.futures.wait(tasks, timeout=60)
        assert [task.result() for task in tasks] == [0, 1, 4, 9, 16]
        assert done == {*tasks}
        failing = kernel.submit(divmod, 1, 0)
        with pytest.raises(RemoteError, match="ZeroDivisionError"):
            failing.result(timeout=60)
        started, cancelled = shared()
        task: SyncTask[None] = kernel.submit(forever_here)
        assert started.wait(30)
        assert task.running()
        with pytest.raises(TimeoutError):
            task.result(timeout=0.01)
        assert task.cancel()
        assert task.cancelled()
        with pytest.raises(concurrent.futures.CancelledError):
            task.result(timeout=60)
        assert cancelled.wait(30)
        ref = kernel.submit(range, 3, keep="kept").result(timeout=60)
        assert ref.pull() == range(3)
    assert not task.cancel()


async def test_stats_count_what_the_kernel_has_for_this_bridge(loopback: Bridge) -> None:
    assert kept_and_late(loopback) == (0, 0, 0, 0, 0, 0)
    watch, names = loopback.watch("1"), loopback.watch_names()
    assert loopback.stats.watches == 0  # the kernel begins it with the first wait
    await asyncio.gather(anext(watch), anext(names))
    task = loopback.submit(later, 1, 1000)
    await loopback.push(x=1)
    assert kept_and_late(loopback) == (2, 1, 0, 0, 0, 0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await watch.aclose()
    assert kept_and_late(loopback) == (1, 0, 0, 0, 0, 0)
    assert await loopback.submit(later, 5) == 5
    call = asyncio.ensure_future(loopback.call(time.sleep, 0.2))
    async with asyncio.timeout(30):
        while not loopback._transport.dispatcher.pending:
            await asyncio.sleep(0)
        call.cancel()
        while loopback.stats.late == 0:
            await asyncio.sleep(0.01)
    await loopback.restart()
    assert kept_and_late(loopback) == (0, 0, 0, 0, 0, 1)
    await names.aclose()
    with SyncBridge.loopback() as kernel:
        task_there = kernel.submit(later, 1, 1000)
        kernel["x"] = 1
        assert kept_and_late(kernel) == (0, 1, 0, 0, 0, 0)
        assert task_there.cancel()


async def test_only_data_is_opened_of_what_a_coroutine_raises(loopback: Bridge) -> None:
    """Also if the call alone asks for it, on a bridge that trusts its kernel."""
    await loopback.run(
        "import builtins\n"
        "class Trap(Exception):\n"
        "    def __reduce__(self): return exec, ('import builtins; builtins.trapped = 1',)\n"
        "async def fails(): raise Trap('caught')"
    )
    with pytest.raises(RemoteError, match="Trap"):
        await loopback.pull("await fails()", trust="data")
    assert not hasattr(builtins, "trapped")


async def test_a_users_task_factory_stays_in_use(loopback: Bridge) -> None:
    """Also one that wraps ours, while there are tasks, and stays afterwards."""
    started, _ = shared()
    task = loopback.submit(forever_here)
    await asyncio.to_thread(started.wait, 30)
    loop: Any = loopback._transport
    theirs = loop._cell.loop

    def wrap() -> None:
        inner = theirs.get_task_factory()
        theirs.set_task_factory(lambda loop, work, **options: inner(loop, work, **options))

    theirs.call_soon_threadsafe(wrap)
    await loopback.push(x=1)
    task.cancel()
    for n in range(3):
        assert await loopback.call(later, n) == n
    theirs.call_soon_threadsafe(theirs.set_task_factory, None)
    await loopback.push(x=2)


async def test_a_kernel_that_sends_no_events_refuses_what_needs_them(loopback: Bridge) -> None:
    """As an ipyparallel engine whose ipykernel has no thread for its control channel."""
    set_capabilities(loopback, pushes=False)
    remote = loopback._connection.remote
    remote.greeting = replace(remote.greeting, serves_control=False)
    one = Fleet([loopback])
    for refused in (
        lambda: loopback.submit(asyncio.sleep, 0),
        lambda: one.map(asyncio.sleep, [0]),
        lambda: loopback.callback(print),
    ):
        with pytest.raises(NotSupported, match="install ipykernel 6 or later there"):
            refused()
    with pytest.raises(NotSupported, match="an expression with await needs a kernel that sends"):
        await loopback.pull("await nothing")
    assert await loopback.call(abs, -1) == 1


async def test_a_task_is_awaited_in_the_loop_of_its_bridge(loopback: Bridge) -> None:
    """One that is done gives its result to any loop."""
    task = loopback.submit(later, 5, 0.3)

    def elsewhere() -> Any:
        async def wait() -> Any:
            return await task

        return asyncio.run(wait())

    with pytest.raises(RuntimeError, match="belongs to another event loop"):
        await asyncio.to_thread(elsewhere)
    waiting = [asyncio.ensure_future(asyncio.wait_for(task, 30)) for _ in range(3)]
    assert await asyncio.gather(*waiting) == [5, 5, 5]
    assert await asyncio.to_thread(elsewhere) == 5


async def test_closing_ends_thousands_of_tasks() -> None:
    """Those that have begun, and those whose turn has not come."""
    async with Bridge.loopback() as bridge:
        tasks = [bridge.submit(later, n, 0.0 if n < 3 else 1000) for n in range(2000)]
        assert await tasks[0] == 0
    outcomes = await asyncio.gather(*(task._wait() for task in tasks), return_exceptions=True)
    assert outcomes[0] == 0
    assert {type(one) for one in outcomes[3:]} == {BridgeClosed}


async def test_what_cannot_be_sent_or_returned_fails_its_task_alone(loopback: Bridge) -> None:
    lock = threading.Lock()
    unsent, unreturned = loopback.submit(len, [lock]), loopback.submit(threading.Lock)
    last = loopback.submit(len, [1])
    with pytest.raises(EncodeError, match=r"args\[0\]\[0\] cannot be pickled"):
        await unsent
    with pytest.raises(RemoteError, match="the result cannot be pickled"):
        await unreturned
    assert await last == 1
    async with Bridge.loopback(trust="data") as bridge:
        await bridge.run("class Own: pass")
        with pytest.raises(UntrustedPayload, match="the result is __main__.Own"):
            await bridge.submit(lambda: Own(), namespace=True)  # type: ignore[name-defined] # noqa: F821
        assert await bridge.submit(abs, -1) == 1
