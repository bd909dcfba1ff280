"""Calls cancelled at a random instant, and in the queue.

Rule: tests use real kernels and the public API. They read private state only to check that nothing
is left behind. A random test reports its seed when it fails. No test measures speed: it counts the
work that must continue, and waits for the results that must come.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import cloudpickle
import pytest

from bridgehead import Bridge
from support.kit import KEPT, LANES, all_of, file_of, goes_on, reported_within, until
from support.look import look
from support.promises import occupied, seeded

pytestmark = pytest.mark.slow

# A kernel can't import test modules, so what they define is pickled by value, as in a script.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
async def harmless() -> AsyncIterator[Bridge]:
    """One kernel for all tests that restore its state; ``_kept()`` counts its open transfers."""
    async with Bridge.launch() as bridge:
        await bridge.run(KEPT)
        yield bridge


class Failed(Exception):
    """The error that the sibling task raises."""


async def cancelled_task(operation: Awaitable[Any], seconds: float) -> None:
    task = asyncio.ensure_future(operation)
    await asyncio.sleep(seconds)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def asyncio_timeout(operation: Awaitable[Any], seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await operation


async def anyio_move_on_after(operation: Awaitable[Any], seconds: float) -> None:
    with anyio.move_on_after(seconds):
        await operation


async def anyio_fail_after(operation: Awaitable[Any], seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        with anyio.fail_after(seconds):
            await operation


async def failing_sibling(operation: Awaitable[Any], seconds: float) -> None:
    async def run() -> None:
        await operation

    async def fail() -> None:
        await asyncio.sleep(seconds)
        raise Failed

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            group.create_task(run())
    except* Failed:
        pass


CANCELS = [
    cancelled_task,
    asyncio_timeout,
    anyio_move_on_after,
    anyio_fail_after,
    failing_sibling,
]
BIG = 20_000_000  # bytes
OPERATIONS: dict[str, Callable[[Bridge, int], Awaitable[Any]]] = {
    "push": lambda bridge, i: bridge.push(left=i, right=i),
    "push-20-MB": lambda bridge, i: bridge.push(left=i, right=i, blob=bytearray(BIG)),
    "pull": lambda bridge, i: bridge.pull("constant"),
    "pull-20-MB": lambda bridge, i: bridge.pull("big"),
    "call": lambda bridge, i: bridge.call(lambda x: x + 1, i),
    "run": lambda bridge, i: bridge.run(f"left = right = {i}"),
    "names": lambda bridge, i: bridge.names(),
    "delete": lambda bridge, i: bridge.delete("spare", "spare2"),
}

INSTANTS = {"direct": 100, "buffers": 100, "inline": 40}  # inline takes three times as long


@pytest.mark.parametrize("lane", LANES)
async def test_a_cancel_at_a_random_instant_disturbs_no_other_call(
    kernel: Bridge, lane: Any
) -> None:
    """Cancel any operation in any way, at many instants, while other tasks use the bridge."""
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge:
        with seeded() as chance:
            await bridge.push(constant=[1, 2, 3], big=bytes(BIG), left=-1, right=-1, blob=b"")
            stop = False

            async def use_bridge(name: str) -> int:
                for count in itertools.count():
                    if stop:
                        return count
                    await bridge.push({name: count})
                    assert await bridge.pull(name) == count
                    assert await bridge.pull(f"[{name}] * 2") == [count] * 2
                    assert await bridge.call(lambda x: -x, count) == -count
                raise AssertionError

            users = [asyncio.create_task(use_bridge(f"user{i}")) for i in range(3)]
            usual = {}
            for name, operation in OPERATIONS.items():
                await bridge.push(spare=1, spare2=1)
                started = time.perf_counter()
                await operation(bridge, -1)
                usual[name] = time.perf_counter() - started
            held = -1
            for i in range(INSTANTS[lane]):
                name, cancel = chance.choice(list(OPERATIONS)), chance.choice(CANCELS)
                await bridge.push(spare=1, spare2=1)
                await cancel(OPERATIONS[name](bridge, i), chance.uniform(0, 1.2 * usual[name]))
                left, right, *spare = await bridge.pull(
                    "left", "right", "'spare' in globals()", "'spare2' in globals()"
                )
                assert left == right, (i, name, cancel.__name__)
                assert left in (held, i), (i, name, cancel.__name__)
                assert spare in ([True] * 2, [False] * 2), (i, name, cancel.__name__)
                held = left
            stop = True
            async with reported_within(1):
                assert min(await asyncio.gather(*users)) > 0
            for i in range(10):
                await bridge.push(left=i)
                assert await bridge.pull("left", "constant") == (i, [1, 2, 3])
            await until(lambda: not bridge._transport.dispatcher.in_flight)
            assert not bridge._connection.queue.turns
            assert await bridge.pull("_kept()") == [0, 0]
    namespace = await look(file_of(kernel))
    assert set(namespace) - {"spare", "spare2"} == {
        *("constant", "big", "left", "right", "blob", "user0", "user1", "user2")
    }
    assert namespace["constant"] == "[1, 2, 3]"
    await goes_on(kernel)


async def test_a_call_cancelled_in_the_queue_never_runs(kernel: Bridge) -> None:
    """Behind a running cell, every second call is cancelled: only the other calls run."""
    await kernel.push(ran=[])
    async with occupied(kernel):
        sent = asyncio.ensure_future(kernel.push(first=1))
        await until(lambda: kernel._transport.dispatcher.in_flight == 1)
        queued = [
            asyncio.ensure_future(operation)
            for i in range(40)
            for operation in (
                kernel.push({f"x{i}": i}),
                kernel.run(f"ran.append({i})"),
                kernel.call(lambda ran, i: ran.append(-i), kernel.ref("ran"), i),
            )
        ]
        await asyncio.sleep(0.1)
        for task in queued[3::6] + queued[4::6] + queued[5::6]:
            task.cancel()
        await asyncio.sleep(0)
    await sent
    outcomes = await all_of(*queued)
    assert [isinstance(one, asyncio.CancelledError) for one in outcomes] == [
        bool(i // 3 % 2) for i in range(120)
    ]
    namespace = await look(file_of(kernel))
    assert {name for name in namespace if name[0] == "x"} == {f"x{i}" for i in range(0, 40, 2)}
    assert namespace["ran"] == repr([n for i in range(0, 40, 2) for n in (i, -i)])
    await goes_on(kernel)
