"""Watches of a fleet of loopbacks: values with the index of their kernel, errors, ends."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator

import pytest

from bridgehead import Bridge, Fleet, FleetWatch, NameNotFound
from support.kit import until


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with Bridge.loopback() as one, Bridge.loopback() as two:
        async with Fleet([one, two]) as fleet:
            yield fleet


async def test_values_come_with_the_index_of_their_kernel(fleet: Fleet) -> None:
    await fleet.push(x=1)
    async with fleet.watch("x", max_bytes=1000) as watch:
        assert sorted([await anext(watch), await anext(watch)]) == [(0, 1), (1, 1)]
        await fleet[1].run("x = 5")
        assert await anext(watch) == (1, 5)
        await fleet[0].run("x = 6")
        assert await anext(watch) == (0, 6)
    assert [bridge.stats.watches for bridge in fleet] == [0, 0]


async def test_an_error_names_its_kernel_and_the_watch_goes_on(fleet: Fleet) -> None:
    async with fleet[:1].watch("x") as alone, fleet.watch("x") as watch:
        with pytest.raises(NameNotFound) as caught:
            await anext(alone)
        assert caught.value.__notes__[0].startswith("kernel 0 of 1")
        await fleet[0].push(x=1)
        assert await anext(alone) == (0, 1)
        await fleet[1].push(x=2)
        assert sorted([await anext(watch), await anext(watch)]) == [(0, 1), (1, 2)]


async def test_a_cancelled_wait_loses_nothing(fleet: Fleet) -> None:
    await fleet.push(x=1)
    async with fleet.watch("x") as watch:
        assert {await anext(watch), await anext(watch)} == {(0, 1), (1, 1)}
        for n in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await anext(watch)
            await fleet[n % 2].run(f"x = {n + 10}")
            assert await anext(watch) == (n % 2, n + 10)


async def test_it_ends_when_all_bridges_are_closed(fleet: Fleet) -> None:
    await fleet.push(x=1)
    watch = fleet.watch("x")
    assert {await anext(watch), await anext(watch)} == {(0, 1), (1, 1)}
    waiting = asyncio.ensure_future(_rest(watch))
    await asyncio.sleep(0)
    await fleet[0].aclose()
    await fleet[1].run("x = 2")
    await fleet[1].aclose()
    assert await waiting in ([], [(1, 2)])


async def _rest(watch: FleetWatch[int]) -> list[tuple[int, int]]:
    return [value async for value in watch]


async def test_closing_it_ends_a_waiting_reader(fleet: Fleet) -> None:
    await fleet.push(x=1)
    watch = fleet.watch("x")
    await anext(watch)
    waiting = asyncio.ensure_future(_rest(watch))
    await asyncio.sleep(0.01)
    await watch.aclose()
    assert len(await waiting) <= 1
    assert [bridge.stats.watches for bridge in fleet] == [0, 0]


async def test_a_dropped_watch_ends_in_all_kernels(fleet: Fleet) -> None:
    await fleet.push(x=1)
    watch = fleet.watch("x")
    await anext(watch)
    await anext(watch)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await anext(watch)
    assert [bridge.stats.watches for bridge in fleet] == [1, 1]
    del watch
    gc.collect()
    await until(lambda: gc.collect() >= 0 and [b.stats.watches for b in fleet] == [0, 0])
