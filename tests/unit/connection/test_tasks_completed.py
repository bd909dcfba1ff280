"""Tasks in the order in which they end, whichever bridges they belong to."""

from __future__ import annotations

import asyncio

import pytest

from bridgehead import Bridge, CompletedTasks, RemoteError, as_completed


async def test_tasks_of_several_bridges_come_as_they_end(loopback: Bridge) -> None:
    async with Bridge.loopback() as other:
        last = loopback.submit(asyncio.sleep, 0.1, "last")
        tasks = [last, other.submit(abs, -1), loopback.submit(abs, "a"), last]
        ended = [task async for task in as_completed(tasks)]
        assert len(ended) == 3
        assert ended[-1] is last
        assert last.result() == "last"
        failed = next(task for task in ended if task is tasks[2])
        with pytest.raises(RemoteError):
            failed.result()


async def test_a_cancelled_task_comes_too(loopback: Bridge) -> None:
    task = loopback.submit(asyncio.sleep, 60)
    task.cancel()
    (ended,) = [one async for one in as_completed([task])]
    assert ended.cancelled()


async def test_a_cancelled_wait_loses_nothing(loopback: Bridge) -> None:
    tasks = [loopback.submit(asyncio.sleep, 0.05, n) for n in range(3)]
    ended = as_completed(tasks)
    found = []
    while len(found) < 3:
        try:
            async with asyncio.timeout(0.01):
                found.append((await anext(ended)).result())
        except TimeoutError:
            pass
    assert sorted(found) == [0, 1, 2]
    with pytest.raises(StopAsyncIteration):
        await anext(ended)


async def test_closing_it_ends_a_waiting_reader_and_no_task(loopback: Bridge) -> None:
    task = loopback.submit(asyncio.sleep, 0.05, 7)
    async with as_completed([task]) as ended:
        waiting = asyncio.ensure_future(read(ended))
        await asyncio.sleep(0)
    assert await waiting == 0
    assert await task == 7


async def read(ended: CompletedTasks[int]) -> int:
    return len([task async for task in ended])
