"""A fleet of loopbacks as an executor of concurrent.futures: in its own loop, and in threads."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import queue
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator

import numpy as np
import pytest

from bridgehead import (
    Bridge,
    BridgeClosed,
    EncodeError,
    Fleet,
    FleetExecutor,
    RemoteError,
    SyncBridge,
    SyncFleet,
)
from support.kit import until


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with Bridge.loopback() as one, Bridge.loopback() as two, Fleet([one, two]) as fleet:
        yield fleet


@pytest.fixture
async def executor(fleet: Fleet) -> FleetExecutor:
    return fleet.executor()


def boom() -> None:
    raise LookupError("boom")


async def test_run_in_executor_works_in_its_own_loop(executor: FleetExecutor) -> None:
    loop = asyncio.get_running_loop()
    calls = [loop.run_in_executor(executor, pow, n, 2) for n in range(20)]
    assert await asyncio.gather(*calls) == [n * n for n in range(20)]
    assert await loop.run_in_executor(executor, asyncio.sleep, 0, 3) == 3


async def test_other_threads_use_it_as_any_executor(executor: FleetExecutor) -> None:
    def use() -> list[int]:
        with executor:
            futures = [executor.submit(pow, n, 2) for n in range(10)]
            done = [one.result() for one in concurrent.futures.as_completed(futures)]
            assert sorted(done) == [n * n for n in range(10)]
            return list(executor.map(abs, range(-5, 0), timeout=60))

    assert await asyncio.to_thread(use) == [5, 4, 3, 2, 1]


async def test_the_original_exception_is_raised_with_the_remote_one_as_its_cause(
    executor: FleetExecutor,
) -> None:
    future = asyncio.wrap_future(executor.submit(boom))
    with pytest.raises(LookupError, match="boom") as caught:
        await future
    assert type(caught.value.__cause__) is RemoteError
    assert "boom" in caught.value.__cause__.traceback[-1]
    # This one is caught by its class, and not as a ``RemoteError``.
    assert "To catch it" not in str(caught.value.__cause__)


async def test_an_exception_that_cannot_be_rebuilt_is_a_remote_error(
    executor: FleetExecutor,
) -> None:
    def fail(is_pickled: bool) -> None:
        class Odd(Exception):
            def __reduce__(self) -> object:
                return divmod, (1, 0 if is_pickled else threading.Lock())

        raise Odd("odd")

    for is_pickled in (True, False):
        with pytest.raises(RemoteError, match="Odd: odd") as caught:
            await asyncio.wrap_future(executor.submit(fail, is_pickled))
        assert caught.value.__cause__ is None


async def test_a_stop_iteration_ends_the_wait(executor: FleetExecutor) -> None:
    """asyncio cannot raise it where it is awaited, and before Python 3.12 the wait did not end."""
    with pytest.raises(RemoteError, match="StopIteration"):
        await asyncio.get_running_loop().run_in_executor(executor, next, iter([]))


async def test_a_future_that_is_done_keeps_no_arguments(executor: FleetExecutor) -> None:
    array = np.ones(3)
    kept = weakref.ref(array)
    future = executor.submit(len, array)
    assert await asyncio.wrap_future(future) == 3
    del array
    await until(lambda: gc.collect() >= 0 and kept() is None)
    array = np.ones(3)
    kept = weakref.ref(array)
    futures = [executor.submit(len, array) for _ in range(20)]
    assert all(one.cancel() for one in reversed(futures))
    del array
    await until(lambda: gc.collect() >= 0 and kept() is None)


async def test_what_cannot_be_sent_is_in_the_future(fleet: Fleet, executor: FleetExecutor) -> None:
    with pytest.raises(EncodeError):
        await asyncio.wrap_future(executor.submit(threading.Lock().acquire))
    await fleet[0].push(x=1)
    with pytest.raises(ValueError, match="belongs to one kernel"):
        await asyncio.wrap_future(executor.submit(abs, fleet[0].ref("x")))


async def test_keyword_arguments_are_the_functions(executor: FleetExecutor) -> None:
    def options(timeout: int, keep: int) -> int:
        return timeout + keep

    assert await asyncio.wrap_future(executor.submit(options, timeout=1, keep=2)) == 3


GATE = threading.Event()


def wait_for_gate(n: int) -> int:
    gate: threading.Event = sys.modules[__name__].GATE
    gate.wait(60)
    return n


async def test_futures_that_wait_can_be_cancelled(fleet: Fleet, executor: FleetExecutor) -> None:
    GATE.clear()
    try:
        futures = [executor.submit(wait_for_gate, n) for n in range(20)]
        await until(lambda: sum(future.running() for future in futures) == 4)
        assert [future.cancel() for future in futures[4:]] == [True] * 16
        assert all(future.cancelled() for future in futures[4:])
        done, _ = await asyncio.to_thread(concurrent.futures.wait, futures[4:], 10)
        assert len(done) == 16
        assert futures[0].cancel()
        with pytest.raises(concurrent.futures.CancelledError):
            futures[0].result()
    finally:
        GATE.set()
    assert [await asyncio.wrap_future(future) for future in futures[1:4]] == [1, 2, 3]
    assert not futures[1].cancel()
    assert await fleet.pull("1") == [1, 1]


async def test_submit_never_blocks(executor: FleetExecutor) -> None:
    GATE.clear()
    try:
        started = time.monotonic()
        futures = [executor.submit(wait_for_gate, n) for n in range(1000)]
        assert time.monotonic() - started < 30
        assert not any(future.done() for future in futures)
        executor.shutdown(wait=False, cancel_futures=True)
        assert sum(future.cancelled() for future in futures) >= 996
    finally:
        GATE.set()


async def test_a_shutdown_waits_for_all_functions(executor: FleetExecutor) -> None:
    GATE.clear()
    try:
        futures = [executor.submit(wait_for_gate, n) for n in range(6)]
        await until(futures[0].running)

        def shut_down() -> list[bool]:
            executor.shutdown()
            return [future.done() for future in futures]

        shutting = asyncio.ensure_future(asyncio.to_thread(shut_down))
        await until(lambda: executor._is_shut)
        assert not shutting.done()
    finally:
        GATE.set()
    assert await shutting == [True] * 6
    assert [future.result() for future in futures] == list(range(6))


async def test_after_a_shutdown_nothing_is_taken(executor: FleetExecutor) -> None:
    future = executor.submit(abs, -1)
    with pytest.raises(RuntimeError, match="in the event loop of its fleet would never end; await"):
        executor.shutdown()
    assert await asyncio.wrap_future(future) == 1
    executor.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(abs, -1)
    # The error of a block is not hidden.
    with pytest.raises(LookupError, match="the block"), executor:
        raise LookupError("the block")


async def test_a_future_is_not_waited_for_in_the_event_loop(executor: FleetExecutor) -> None:
    slow = executor.submit(asyncio.sleep, 1000)
    for look in (slow.result, slow.exception):
        with pytest.raises(RuntimeError, match=r"never end; await asyncio.wrap_future\(future\)"):
            look(timeout=1)
    slow.cancel()
    done = executor.submit(abs, -1)
    assert await asyncio.wrap_future(done) == 1
    assert done.result() == 1
    assert done.exception() is None


def test_a_future_of_a_sync_fleet_is_not_waited_for_in_a_done_callback() -> None:
    outcomes: queue.SimpleQueue[object] = queue.SimpleQueue()
    with SyncBridge.loopback() as one, SyncFleet([one]) as fleet, fleet.executor() as executor:
        slow = executor.submit(asyncio.sleep, 1000)

        def ask(done: concurrent.futures.Future[int]) -> None:
            outcomes.put(done.result())
            try:
                slow.result(timeout=1)
            except RuntimeError as error:
                outcomes.put(error)

        executor.submit(abs, -1).add_done_callback(ask)
        assert outcomes.get(timeout=30) == 1
        assert "would never end" in str(outcomes.get(timeout=30))
        assert slow.cancel()


async def test_closing_the_bridges_ends_the_futures(fleet: Fleet, executor: FleetExecutor) -> None:
    GATE.clear()
    try:
        futures = [executor.submit(wait_for_gate, n) for n in range(10)]
        await until(lambda: any(future.running() for future in futures))
        for bridge in fleet:
            await bridge.aclose()
        await until(lambda: all(future.done() for future in futures))
        assert {type(future.exception()) for future in futures} == {BridgeClosed}
    finally:
        GATE.set()


async def test_what_a_closed_bridge_had_not_begun_goes_to_the_others(
    fleet: Fleet, executor: FleetExecutor
) -> None:
    GATE.clear()
    try:
        futures = [executor.submit(wait_for_gate, n) for n in range(10)]
        await until(lambda: sum(future.running() for future in futures) == 4)
        await until(lambda: all(bridge.state == "busy" for bridge in fleet))
        await fleet[0].aclose()
    finally:
        GATE.set()
    found = await asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
    assert [type(one) for one in found].count(BridgeClosed) == 1
    assert [one for one in found if type(one) is int] == [
        n for n, one in enumerate(found) if type(one) is int
    ]
    assert len([one for one in found if type(one) is int]) == 9


def test_the_end_of_the_event_loop_ends_the_futures() -> None:
    async def leave() -> list[concurrent.futures.Future[None]]:
        executor = Fleet([await Bridge.loopback()]).executor()
        futures = [executor.submit(time.sleep, 0.2) for _ in range(6)]
        await until(futures[0].running)
        return futures

    def all_are_done() -> bool:
        done = all(future.done() for future in asyncio.run(leave()))
        gc.collect()
        return done

    with pytest.warns(ResourceWarning, match="loopback"):  # nothing closes the bridge
        done = all_are_done()
    assert done


@pytest.mark.parametrize("in_thread", [False, True])
def test_an_error_that_ends_the_event_loop_ends_the_futures(in_thread: bool) -> None:
    """The program fails before the event loop gave any function to a kernel."""
    futures: list[concurrent.futures.Future[int]] = []

    async def fail() -> None:
        executor = Fleet([await Bridge.loopback()]).executor()

        def submit() -> None:
            futures.extend(executor.submit(abs, -1) for _ in range(6))

        if in_thread:
            thread = threading.Thread(target=submit)
            thread.start()
            thread.join()  # the loop runs nothing meanwhile
        else:
            submit()
        raise LookupError

    def all_are_done() -> bool:
        with pytest.raises(LookupError):
            asyncio.run(fail())
        done = not concurrent.futures.wait(futures, 20).not_done
        futures.clear()
        return done

    def run() -> bool:
        done = all_are_done()
        gc.collect()
        return done

    with pytest.warns(ResourceWarning, match="loopback"):  # nothing closes the bridge
        done = run()
    assert done


def test_a_future_that_a_closing_loop_does_not_reach_has_an_error() -> None:
    """Threads submit while the last bridge closes, and its event loop with it."""
    for _ in range(20):
        kernel = SyncBridge.loopback()
        executor = SyncFleet([kernel]).executor()
        futures: list[concurrent.futures.Future[int]] = []

        def submit(
            executor: FleetExecutor = executor,
            futures: list[concurrent.futures.Future[int]] = futures,
        ) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                while True:
                    futures.append(executor.submit(abs, -1))
                    time.sleep(0.00002)

        thread = threading.Thread(target=submit)
        thread.start()
        time.sleep(0.01)
        kernel.close()
        thread.join()
        assert not concurrent.futures.wait(futures, 20).not_done
