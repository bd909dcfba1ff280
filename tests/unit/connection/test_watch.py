"""Watches of values and names of a loopback.

Rule: no kernel. ``kernel/connection/test_watch.py`` has what a watch promises on a real one.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bridgehead import Bridge, Name, NameNotFound, RemoteError


@pytest.mark.parametrize("lane", ["buffers", "inline"])
@pytest.mark.parametrize("trust", ["pickle", "data"])
async def test_names_are_sent_now_and_after_each_cell_that_changed_them(
    lane: Any, trust: Any
) -> None:
    async with Bridge.loopback(lane=lane, trust=trust) as bridge:
        await bridge.push(x=[1, 2], other=1)
        async with bridge.watch_names("x*") as watch:
            assert repr(watch) == "<Watch names x*>"
            first = await anext(watch)
            assert first == await bridge.names("x*")
            assert (first[0].type, first[0].len) == ("list", 2)
            await bridge.run("x1 = 'text'")
            assert [name.name for name in await anext(watch)] == ["x", "x1"]
            await bridge.run("x.append(3)")
            assert (await anext(watch))[0].len == 3
            await bridge.run("class Own: pass\nx1 = Own()")
            assert (await anext(watch))[1] == Name("x1", "Own")
            await bridge.run("x[0] = 5; other = 2; y = 3")  # described as before
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(watch), 0.05)
            await bridge.run("del x, x1")
            assert await anext(watch) == []
        assert [names async for names in watch] == []


async def test_the_names_of_a_kernel_without_any_are_sent_too() -> None:
    async with Bridge.loopback() as bridge, bridge.watch_names() as watch:
        assert await anext(watch) == []
        await bridge.push(x=1)
        await bridge.run("pass")  # a push is noticed with the next cell
        assert [name.name for name in await anext(watch)] == ["x"]


async def test_a_pattern_of_names_is_a_string() -> None:
    async with Bridge.loopback() as bridge:
        with pytest.raises(TypeError, match="pattern must be a string, not int"):
            bridge.watch_names(1)  # type: ignore[arg-type]
        assert not bridge._transport.life.listeners


async def test_several_expressions_are_sent_together() -> None:
    async with Bridge.loopback() as bridge:
        with pytest.raises(ValueError, match="at least one expression"):
            bridge.watch()
        await bridge.push(x=1, y=[2])
        async with bridge.watch("x", bridge.ref("y")[0]) as watch:
            assert repr(watch) == "<Watch x, y[0]>"
            assert await anext(watch) == (1, 2)
            await bridge.run("x = 10")
            assert await anext(watch) == (10, 2)
            await bridge.run("y[0] = 20")
            assert await anext(watch) == (10, 20)
            await bridge.run("z = 1")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(watch), 0.05)


async def test_an_error_in_one_of_several_expressions_is_raised_and_the_watch_goes_on() -> None:
    async with Bridge.loopback() as bridge:
        await bridge.push(x=1, y=[2])
        async with bridge.watch("x", "y[0]") as watch:
            assert await anext(watch) == (1, 2)
            await bridge.run("y.clear()")
            with pytest.raises(RemoteError, match="IndexError"):
                await anext(watch)
            await bridge.run("x = 5")  # the same error: nothing is sent
            await bridge.run("y.append(6)")
            assert await anext(watch) == (5, 6)
            await bridge.run("del x")
            with pytest.raises(NameNotFound, match="'x'"):
                await anext(watch)
        missing = bridge.watch("y[0]", "nowhere")
        with pytest.raises(NameNotFound, match="'nowhere'"):
            await anext(missing)
