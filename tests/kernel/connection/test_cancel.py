"""Rows C6, D4 and D5 of the catalogue of faults: what was given up disturbs nobody.

Rule: one test a row of the catalogue, its docstring opening with the row's number. A test asserts
how soon the caller is told, what the namespace holds afterwards (looked at by a client that knows
nothing of bridges), and that the next operation on the same bridge is right. The injection is the
real fault.
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

# Test modules aren't importable in a kernel; what they define is shipped like a script's own.
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
async def test_a_cancel_at_any_instant_disturbs_nobody(
    kernel: Bridge, cancel: Any, lane: Any
) -> None:
    """C6. 100 random instants under load, by every kind of cancel; ten operations are right."""
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
        there = await look(file_of(bridge))
        assert there["precious"] == "[1, 2, 3]"
        assert set(there) <= {"big", "pair", "precious"}
        await goes_on(bridge)


# ============================================ D. Dispatch, concurrency, other clients


async def test_cancelling_many_loses_no_one_elses_reply(kernel: Bridge) -> None:
    """D4. Every second of forty is cancelled: the others get their answers."""
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


async def test_short_timeouts_lose_no_messages(kernel: Bridge) -> None:
    """D5. 120 operations given up about when their replies come: every reply is still read.

    A reply that was lost would hold one of the 32 places of the window for good.
    """
    started = time.perf_counter()
    for i in range(20):
        await kernel.push(x=i)
    usual = (time.perf_counter() - started) / 20
    given_up = 0
    for i in range(120):
        try:
            await kernel.push(x=i, timeout=random.uniform(0.2, 1.5) * usual)
        except TimeoutError:
            given_up += 1
    assert given_up > 0
    async with reported_within(2):
        pulled = await asyncio.gather(*(kernel.pull(f"{i}") for i in range(100)))
    assert pulled == list(range(100))
    assert list(await look(file_of(kernel))) == ["x"]
    await goes_on(kernel)
