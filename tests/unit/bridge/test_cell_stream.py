"""Outputs of a cell as they come, on a loopback."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from typing import Any

import pytest

from bridgehead import Bridge, BridgeClosed, RemoteError, RunTimeout, SyncBridge
from bridgehead._bridge.sync_iterators import BlockingIterator

SLOW = "import time\nprint('begun')\ntime.sleep(0.3)\nended = True"


async def test_outputs_come_while_the_cell_runs(loopback: Bridge) -> None:
    code = "import time\nprint('first')\nwhile not globals().get('go'): time.sleep(0.01)\n6 * 7"
    async with asyncio.timeout(60), loopback.stream(code) as outputs:
        assert (await anext(outputs)).text == "first"
        with pytest.raises(asyncio.InvalidStateError):
            _ = outputs.result
        loopback._transport._cell.user_ns["go"] = True  # type: ignore[attr-defined]
        rest = [message.type async for message in outputs]
    assert rest[-1] == "execute_result"
    assert outputs.result.data["text/plain"] == "42"
    assert outputs.result.stdout == "first\n"
    assert "ended" in repr(outputs)


async def test_the_error_comes_after_the_outputs(loopback: Bridge) -> None:
    outputs = loopback.stream("print('begun')\n1 / 0")
    seen = []
    with pytest.raises(RemoteError, match="ZeroDivisionError"):
        async for message in outputs:
            seen.append(message.type)
    assert seen[0] == "stream"
    assert seen[-1] == "error"
    assert [message async for message in outputs] == []
    with pytest.raises(RemoteError):
        _ = outputs.result


async def test_the_turn_is_taken_at_the_call(loopback: Bridge) -> None:
    outputs = loopback.stream("x = 1")
    assert await loopback.pull("x") == 1  # though no consumer reads
    await outputs.aclose()


async def test_leaving_early_leaves_the_cell_running(loopback: Bridge) -> None:
    async with loopback.stream(SLOW) as outputs:
        async for _ in outputs:
            break
    assert [message async for message in outputs] == []
    assert await loopback.pull("ended")


async def test_a_stream_that_is_dropped_leaves_the_cell_running(loopback: Bridge) -> None:
    outputs: Any = loopback.stream(SLOW + "\n1 / 0")
    await anext(outputs)
    del outputs
    gc.collect()
    assert await loopback.pull("ended")


async def test_a_slow_consumer_is_bounded_by_max_output(loopback: Bridge) -> None:
    outputs = loopback.stream("for n in range(10_000): print(n)", max_output=100)
    assert await loopback.pull("n") == 9999  # the kernel waited for no consumer
    text = "".join([message.text async for message in outputs])
    assert len(text) < 200
    assert text == outputs.result.stdout
    assert outputs.result.dropped > 40_000


async def test_a_deadline_is_raised_at_the_end(loopback: Bridge) -> None:
    outputs = loopback.stream(SLOW, timeout=0.1)
    with pytest.raises(RunTimeout) as caught:
        [message async for message in outputs]
    assert caught.value.result.stdout == "begun\n"


async def test_closing_the_bridge_ends_it() -> None:
    async with Bridge.loopback() as bridge:
        outputs = bridge.stream(SLOW)
        await anext(outputs)
        await anext(outputs)  # the end of the line
    with pytest.raises(BridgeClosed):
        await anext(outputs)


class Interrupting:
    """An async iterator over numbers; the first one interrupts the program as it comes."""

    def __init__(self) -> None:
        self.numbers = iter(range(3))

    def __aiter__(self) -> Interrupting:
        return self

    async def __anext__(self) -> int:
        number = next(self.numbers, None)
        if number is None:
            raise StopAsyncIteration
        if number == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return number


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT to oneself")
def test_an_interrupt_loses_no_item() -> None:
    with SyncBridge.loopback() as kernel:
        for _ in range(10):
            items = BlockingIterator(kernel, Interrupting())
            with pytest.raises(KeyboardInterrupt):
                next(items)
            assert [*items] == [0, 1, 2]


def test_a_blocking_stream() -> None:
    with SyncBridge.loopback() as kernel:
        with kernel.stream("for n in range(3): print(n)") as outputs:
            assert "".join(message.text for message in outputs) == "0\n1\n2\n"
        assert outputs.result.stdout == "0\n1\n2\n"
        assert repr(outputs).startswith("<SyncStream for n in")
        outputs = kernel.stream("1 / 0")
        with pytest.raises(RemoteError):
            list(outputs)
        outputs.close()
