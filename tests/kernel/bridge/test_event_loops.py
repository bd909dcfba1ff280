"""Bridges under another event loop than asyncio's own, and where none runs.

Rule: a loop and a kernel of the test's own. What a bridge does is tested elsewhere; here the same
things happen over another implementation of sockets, readers and timers.
"""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from bridgehead import Bridge, Fleet, KernelDied, RemoteError, SyncBridge, kernels
from bridgehead._lanes.handshake import LaneName
from support.kit import MESSAGES, under_uvloop


@pytest.mark.parametrize("lane", ["direct", *MESSAGES])
def test_objects_cross_under_uvloop(lane: LaneName) -> None:
    array = np.arange(1_000_000)

    async def main() -> None:
        async with Bridge.launch(lane=lane) as bridge, Bridge.launch() as other:
            await bridge.push(array=array, small={"x": 1})
            assert np.array_equal(await bridge.pull("array"), array)
            assert await bridge.pull("small") == {"x": 1}
            pulled = await asyncio.gather(*(bridge.pull(f"{at} + 1") for at in range(50)))
            assert pulled == list(range(1, 51))
            await bridge.handoff("array", to=other)
            assert await other.pull("int(array.sum())") == array.sum()

    under_uvloop(main)


def test_cells_cancels_and_the_end_of_a_kernel_under_uvloop() -> None:
    async def main() -> None:
        async with Bridge.launch() as bridge:
            assert (await bridge.run("print('out')\n6 * 7")).stdout == "out\n"
            values = bridge.watch("n")
            await bridge.run("n = 1")
            while await anext(values) != 1:
                pass
            await values.aclose()
            messages = bridge.messages()
            cell = asyncio.ensure_future(bridge.run("print('begun')\nwhile True: pass"))
            while (await anext(messages)).type != "stream":
                pass
            behind = asyncio.ensure_future(bridge.pull("n"))
            await asyncio.sleep(0)
            behind.cancel()
            await bridge.interrupt()
            with pytest.raises(RemoteError, match="KeyboardInterrupt"):
                await cell
            with pytest.raises(asyncio.CancelledError):
                await behind
            await bridge.restart()
            assert not await bridge.exists("n")
            with pytest.raises(KernelDied) as died:
                await bridge.run("import os; os._exit(3)")
            assert died.value.exit_code == 3

    under_uvloop(main)


def test_under_trio_the_first_line_says_that_asyncio_is_needed() -> None:
    trio = pytest.importorskip("trio")

    async def main() -> None:
        for make in (Bridge.launch, Bridge.loopback, lambda: Fleet.launch(2)):
            with pytest.raises(RuntimeError, match=r"needs asyncio.*nothing was started.*trio"):
                await make()
            with pytest.raises(RuntimeError, match=r"needs asyncio.*nothing was started.*trio"):
                async with make():
                    pass
        with pytest.raises(RuntimeError, match=r"needs asyncio.*nothing was started.*trio"):
            await kernels()
        assert await trio.to_thread.run_sync(in_a_thread) == 2

    trio.run(main)


def in_a_thread() -> Any:
    with SyncBridge.launch() as bridge:
        bridge.push(x=1)
        return bridge.pull("x + 1")


def test_an_event_loop_that_was_interrupted_goes_on() -> None:
    """Ctrl-C ends whatever the loop runs, in a terminal of IPython, which then uses it again."""
    interrupts = [KeyboardInterrupt()]

    async def opened() -> Bridge:
        bridge = await Bridge.launch(lane="buffers")
        transport: Any = bridge._transport
        arrived = transport._arrived

        def interrupt(channel: str, frames: Any) -> None:
            if channel == "shell" and interrupts:
                raise interrupts.pop()
            arrived(channel, frames)

        transport._arrived = interrupt
        return bridge

    async def repeat(bridge: Bridge) -> None:
        while True:
            await bridge.push(x=1)

    with asyncio.Runner() as runner:
        bridge = runner.run(opened())
        with pytest.raises(KeyboardInterrupt):  # the first message goes to what it waited for
            runner.run(asyncio.wait_for(repeat(bridge), 60))
        assert runner.run(bridge.pull("6 * 7")) == 42
        runner.run(bridge.aclose())
