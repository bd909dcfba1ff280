"""Connections to a server that are slow or stuck, and messages that a server refuses.

Rule: as in ``test_servers``; ``Wire`` is slow, or stops passing data on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bridgehead import Bridge, BridgeClosed, PayloadTooLarge
from support.kit import goes_on, reported_within, until
from support.servers import Other, Wire, on

pytestmark = pytest.mark.servers

MIB = 1 << 20


async def stuck(wire: Wire, bridge: Bridge) -> asyncio.Task[object]:
    """Begin a push over a wire that stops passing data on: pings wait behind the unsent data."""
    wire.passed = 0
    pushing: asyncio.Task[object] = asyncio.create_task(
        bridge.push(array=np.ones(100 * MIB, np.uint8))
    )
    await until(lambda: wire.passed > 2 * MIB)
    wire.hold()
    return pushing


async def test_a_stuck_connection_is_replaced(wire: Wire, shorten: Callable[..., None]) -> None:
    async with on(wire.url) as bridge:
        shorten(moving_within=3.0)
        await bridge.push(x=1)
        wire.cut()  # the next connection uses the new limit
        await goes_on(bridge)
        pushing = await stuck(wire, bridge)
        async with reported_within(5):
            await pushing
        assert await bridge.pull("int(array.sum())") == 100 * MIB


async def test_a_bridge_closes_while_its_connection_is_stuck(wire: Wire, server: str) -> None:
    async with on(server) as first, Other(server) as other:
        bridge = await on(wire.url, kernel_id=first.info.kernel_id)
        pushing = await stuck(wire, bridge)
        async with reported_within(2):
            await bridge.aclose()
        with pytest.raises(BridgeClosed):
            await pushing
        assert first.info.kernel_id in await other.kernels()
        await goes_on(first)


async def test_a_slow_connection_is_not_replaced(wire: Wire) -> None:
    """Each part of a message counts as data that moves; ``_abort_if_still`` has a unit test."""
    async with on(wire.url) as bridge:
        await bridge.run("data = bytes(2 << 20)")
        await bridge.push(x=1)
        wire.rate, wire.passed = MIB // 4, 0
        transport: Any = bridge._transport
        socket = transport._socket
        pulling = asyncio.create_task(bridge.pull("data"))
        await until(lambda: wire.passed > MIB // 4, 60)  # the rest is behind it
        arrived = socket.arrivals
        await until(lambda: socket.arrivals > arrived + 3, 60)
        assert not pulling.done()
        assert await pulling == bytes(2 * MIB)
        assert transport._socket is socket
        wire.rate = None


async def test_a_message_beyond_the_limit_is_the_only_one_that_fails(server: str) -> None:
    """The server does not say its limit, so the other messages in transfer are sent again."""
    async with on(server) as bridge:
        await bridge.push(x=1, now=True)
        begun = asyncio.Event()
        array = np.ones(60 * MIB, np.uint8)
        pushing = asyncio.create_task(
            bridge.push(array=array, now=True, progress=lambda done, total: begun.set())
        )
        await begun.wait()
        with pytest.raises(PayloadTooLarge):
            await bridge.run(f"x = {'a' * 11 * MIB!r}")
        await pushing
        assert await bridge.pull("int(array.sum())") == 60 * MIB


async def test_an_update_is_reported_once_despite_broken_connections(
    wire: Wire, server: str
) -> None:
    async with on(wire.url) as bridge:
        await bridge.run("x = 1")
        async with bridge.watch("x") as watch:
            assert await anext(watch) == 1
            wire.is_down = True
            wire.cut()
            async with on(server, kernel_id=bridge.info.kernel_id) as second:
                await second.run("x = 2")
            wire.is_down = False
            assert await anext(watch) == 2
            asked = wire.opened
            wire.cut()
            await until(lambda: wire.opened > asked)
            await asyncio.sleep(1)  # a repeated update of the 2 would arrive now, ahead of the 3
            await bridge.run("x = 3")
            assert await anext(watch) == 3
