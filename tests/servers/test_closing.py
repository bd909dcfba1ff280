"""Closing a bridge to a kernel behind a server: the kernel ends, and no error is hidden.

Rule: real servers; what fails is the server or the connection to it. ``kernel/bridge/
test_closing.py`` has the same for kernels that a bridge launched.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator

import pytest

from bridgehead import (
    Bridge,
    BridgeClosed,
    Fleet,
    KernelNotFound,
    KernelRestarted,
    SyncBridge,
    TransportError,
)
from bridgehead._transports import rest
from support.kit import reported_within, until
from support.servers import TOKEN, Other, Wire, on, processes, serving

pytestmark = pytest.mark.servers


@contextlib.asynccontextmanager
async def ending(server: str, *bridges: Bridge | SyncBridge) -> AsyncIterator[None]:
    """Check that after the block neither the server nor this machine has the bridges' kernels."""
    kernels = [str(bridge.info.kernel_id) for bridge in bridges]
    yield
    async with Other(server) as other:
        assert not [kernel for kernel in kernels if await other.has(kernel)]
    await until(lambda: not [pid for kernel in kernels for pid in processes(kernel)])


# ---------------------------------------------------------------- J7: kernels that die before


async def dies(bridge: Bridge, how: str, pause: float) -> None:
    """End the kernel's process and close the bridge after a pause."""
    with contextlib.suppress(KernelRestarted):
        if how == "exit":
            await bridge.run("import os; os._exit(1)")  # raises when the server restarts it
        elif how == "kill":
            os.kill(bridge.info.pid, 9)
        else:
            await bridge.run("import ctypes; ctypes.string_at(0)")
    await asyncio.sleep(pause)
    await bridge.aclose()


@pytest.mark.parametrize("how", ["exit", "kill", "segfault"])
async def test_a_kernel_that_died_a_moment_before_is_gone(anyone: str, how: str) -> None:
    """J7. The server restarts the kernel, and answers a DELETE with 500 meanwhile."""
    pauses = (0, 0, 0, 0.005, 0.01, 0.02, 0.05, 0.2)
    bridges = [await on(anyone) for _ in pauses]
    async with ending(anyone, *bridges):
        await asyncio.gather(
            *(dies(bridge, how, pause) for bridge, pause in zip(bridges, pauses, strict=True))
        )


async def test_a_kernel_that_dies_again_and_again_is_gone(server: str) -> None:
    """J7. The kernel dies, the bridge sees the restart, the next process dies, too."""
    bridge = await on(server)
    async with ending(server, bridge):
        async with bridge:
            for _ in range(3):
                with contextlib.suppress(KernelRestarted):
                    await bridge.run("import os; os._exit(1)")


REFUSED = ["500 Internal Server Error", "503 Service Unavailable", "502 Bad Gateway"]


@pytest.mark.parametrize("refusal", REFUSED)
async def test_a_refused_end_is_tried_again(server: str, wire: Wire, refusal: str) -> None:
    """J7. The server, or a proxy before it, refuses three times: the kernel is gone."""
    bridge = await on(wire.url)
    async with ending(server, bridge):
        wire.refusal, wire.refusals = refusal, 3
        async with reported_within(3):
            await bridge.aclose()
        assert wire.refusals == 0


@pytest.mark.timings(server_end=0.5)
async def test_a_second_close_tries_again(server: str, wire: Wire) -> None:
    """J7. The server refuses until the deadline: TransportError, and the next close ends it."""
    bridge = await on(wire.url)
    async with ending(server, bridge):
        wire.refusals = 1000
        for _ in range(2):
            async with reported_within(3):
                with pytest.raises(TransportError, match="did not end the kernel .*: 500"):
                    await bridge.aclose()
        assert bridge.state == "closed"
        with pytest.raises(BridgeClosed):
            await bridge.pull("1")
        wire.refusals = 0
        await bridge.aclose()
        wire.refusals = 1000
        await bridge.aclose()  # nothing is left to do


@pytest.mark.timings(server_end=0.5)
async def test_a_sync_bridge_and_a_fleet_try_again(server: str, wire: Wire) -> None:
    """J7. The same of a SyncBridge, and of each bridge of a fleet."""
    kernel = await asyncio.to_thread(SyncBridge.connect, wire.url, TOKEN)
    fleet = Fleet([await on(wire.url), await on(wire.url)])
    fleet._owns_bridges = True  # as one that opened its bridges
    async with ending(server, kernel, *fleet):
        wire.refusals = 1000
        with pytest.raises(TransportError, match="did not end the kernel"):
            await asyncio.to_thread(kernel.close)
        with pytest.raises(ExceptionGroup, match="2 of 2 kernels failed"):
            await fleet.aclose()

        def divide() -> None:
            with kernel:
                _ = 1 / 0

        with pytest.raises(ZeroDivisionError) as divided:
            async with fleet:
                await asyncio.to_thread(divide)
        assert ["TransportError" in note for note in divided.value.__notes__] == [True, False]
        wire.refusals = 0
        await asyncio.to_thread(kernel.close)
        await fleet.aclose()


# ---------------------------------------------------------------- J8: the block's own error


@pytest.mark.timings(server_end=0.2)
async def test_a_refusal_to_end_the_kernel_hides_no_error(
    server: str, wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    """J8. The block raises, and the server does not end the kernel: a note and a log record."""
    bridge = await on(wire.url)
    async with ending(server, bridge):
        wire.refusals = 1000
        with pytest.raises(ValueError, match="of the block") as caught:
            async with bridge:
                raise ValueError("of the block")
        (note,) = caught.value.__notes__
        assert note.startswith("closing failed, too: TransportError: ")
        assert any("did not end the kernel" in message for message in caplog.messages)
        wire.refusals = 0
        await bridge.aclose()


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
async def test_a_server_that_stops_hides_no_error(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """J8. The server stops in the block: its error is raised, and a warning logged."""
    caplog.set_level(logging.WARNING, "bridgehead")
    with pytest.raises(error, match="of the block"):
        async with contextlib.AsyncExitStack() as stack:
            url = await stack.enter_async_context(serving())
            async with on(url) as bridge:
                await bridge.push(x=1)
                await stack.aclose()
                raise error("of the block")
    assert bridge.state == "closed"
    (message,) = [message for message in caplog.messages if "may still run" in message]
    assert "no server answers at" in message
    async with reported_within(1):
        await bridge.aclose()  # tries again, and there is still no server


async def test_another_server_at_the_address_hides_no_error(wire: Wire) -> None:
    """J8. Another server, with another token, has the address: it answers with 403."""
    async with serving(token="another") as other:
        for body in (ValueError("of the block"), None):
            bridge = await on(wire.url)
            first, wire._server_url = wire._server_url, rest.httpx.URL(other)
            wire.cut()
            try:
                with pytest.raises((ValueError, KernelNotFound)) as caught:
                    async with bridge:
                        if body is not None:
                            raise body
            finally:
                wire._server_url = first
            if body is None:
                assert "refuses the token (403" in str(caught.value)
            else:
                assert caught.value is body
                assert "closing failed, too: KernelNotFound: " in body.__notes__[0]
            wire.cut()
            async with ending(wire.url, bridge):
                await bridge.aclose()


async def test_closing_without_a_connection_can_be_repeated(server: str, wire: Wire) -> None:
    """J8. The server cannot be reached: no error; later, another close ends the kernel."""
    bridge = await on(wire.url)
    async with ending(server, bridge):
        wire.is_down = True
        wire.cut()
        async with reported_within(5):
            await bridge.aclose()
        async with Other(server) as other:
            assert await other.has(str(bridge.info.kernel_id))
        wire.is_down = False
        await bridge.aclose()
