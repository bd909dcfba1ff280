"""Rows C6, D4 and D5 of the catalogue of faults: a cancelled call disturbs no other call.

Rule: each test covers a row of the catalogue; its docstring starts with the row's number. A test
asserts how soon the call ends, what the namespace contains afterwards (as seen by a client without
bridgehead), and that the next operation on the same bridge works. Each test injects the real fault.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import time
from typing import Any

import anyio
import cloudpickle
import pytest

from bridgehead import Bridge
from support.kit import LANES, all_of, file_of, goes_on, reported_within
from support.look import look

# A kernel can't import test modules, so what they define is pickled by value, as in a script.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


# ================================================================ C. Interrupts and atomicity


async def cancelled_task(operation: Any, seconds: float) -> None:
    task = asyncio.create_task(operation)
    await asyncio.sleep(seconds)
    task.cancel()
    async with reported_within(0.1):
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()


async def asyncio_timeout(operation: Any, seconds: float) -> None:
    async with reported_within(seconds + 0.1):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await operation


async def anyio_fail_after(operation: Any, seconds: float) -> None:
    async with reported_within(seconds + 0.1):
        with contextlib.suppress(TimeoutError):
            with anyio.fail_after(seconds):
                await operation


async def anyio_move_on_after(operation: Any, seconds: float) -> None:
    async with reported_within(seconds + 0.1):
        with anyio.move_on_after(seconds):
            await operation


async def task_group(operation: Any, seconds: float) -> None:
    async def run() -> None:
        await operation

    async with reported_within(seconds + 0.1), anyio.create_task_group() as group:
        group.start_soon(run)
        await asyncio.sleep(seconds)
        group.cancel_scope.cancel()


CANCELS = [cancelled_task, asyncio_timeout, anyio_fail_after, anyio_move_on_after, task_group]


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("cancel", CANCELS)
async def test_a_cancel_at_any_instant_disturbs_no_other_call(
    kernel: Bridge, cancel: Any, lane: Any
) -> None:
    """C6. 100 random instants under load, each kind of cancel; the next ten operations work."""
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge:
        await bridge.push(big=bytes(2_000_000), precious=[1, 2, 3])
        stop = asyncio.Event()

        async def load(number: int) -> None:
            while not stop.is_set():
                assert await bridge.pull(f"{number} * 7") == number * 7

        crowd = [asyncio.create_task(load(number)) for number in range(3)]
        for number in range(10):
            for operation in (bridge.pull("big"), bridge.push(pair=(number, bytes(2_000_000)))):
                await cancel(operation, random.choice((0.004, 0.04)) * random.random())
        stop.set()
        async with reported_within(1):
            await asyncio.gather(*crowd)
            assert [await bridge.pull(f"precious + [{i}]") for i in range(10)] == [
                [1, 2, 3, i] for i in range(10)
            ]
        namespace = await look(file_of(bridge))
        assert namespace["precious"] == "[1, 2, 3]"
        assert set(namespace) <= {"big", "pair", "precious"}
        await goes_on(bridge)


# ============================================ D. Dispatch, concurrency, other clients


@pytest.mark.slow
async def test_cancelling_many_calls_loses_no_reply_of_the_others(kernel: Bridge) -> None:
    """D4. Every second of forty calls is cancelled: the others get their replies."""
    for _ in range(5):
        tasks = [asyncio.create_task(kernel.pull(f"{i} * 2")) for i in range(40)]
        await asyncio.sleep(random.uniform(0, 0.05))
        for task in tasks[::2]:
            task.cancel()
        async with reported_within(1):
            outcomes = await all_of(*tasks)
        for i, outcome in enumerate(outcomes):
            assert outcome == i * 2 or (i % 2 == 0 and isinstance(outcome, asyncio.CancelledError))
        await goes_on(kernel)
    assert await look(file_of(kernel)) == {}


@pytest.mark.slow
async def test_replies_of_timed_out_calls_are_still_read(kernel: Bridge) -> None:
    """D5. 120 operations time out about when their replies come: every reply is still read.

    A lost reply would occupy one of the 32 places of the window for ever.
    """
    started = time.perf_counter()
    for i in range(20):
        await kernel.push(x=i)
    usual = (time.perf_counter() - started) / 20
    timed_out = 0
    for i in range(120):
        try:
            await kernel.push(x=i, timeout=usual)
            usual *= 0.9
        except TimeoutError:
            timed_out += 1
            usual *= 1.3
    assert timed_out > 0
    async with reported_within(2):
        pulled = await asyncio.gather(*(kernel.pull(f"{i}") for i in range(100)))
    assert pulled == list(range(100))
    assert list(await look(file_of(kernel))) == ["x"]
    await goes_on(kernel)
