"""The loopback: the real remote part without a kernel, for users' own tests."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
from typing import Any

import pytest

from bridgehead import Bridge, KernelRestarted, NotSupported, RemoteError, ReplyLost
from bridgehead._shipped.wire.header import DATA_MESSAGE


async def test_two_loopbacks_share_nothing() -> None:
    async with Bridge.loopback() as one, Bridge.loopback() as two:
        await one.push(x=1)
        await two.push(x=2)
        assert (await one.pull("x"), await two.pull("x")) == (1, 2)
        assert one.info.epoch != two.info.epoch
        await two.restart()
        assert await one.pull("x") == 1
        assert not await two.exists("x")


async def test_a_closed_loopback_leaves_no_thread() -> None:
    before = threading.active_count()
    for _ in range(5):
        async with Bridge.loopback() as bridge:
            await bridge.push(x=1)
    async with asyncio.timeout(20):
        while threading.active_count() > before:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("code", ["input()", "report(1); report(2); report(3)", "gate.wait(60)"])
async def test_a_restart_does_not_wait_for_a_cell(code: str, loopback: Bridge) -> None:
    """For one that asks, that waits for room of a callback, or that runs for long.

    What it asks or waits for ends with the restart, and so does its thread.
    """
    begun = asyncio.Event()

    async def hold(*args: Any) -> str:
        await asyncio.Event().wait()
        return ""

    await loopback.run("import threading; gate = threading.Event()")
    transport: Any = loopback._transport
    gate, thread = transport._cell.user_ns["gate"], transport._thread
    await loopback.push(report=loopback.callback(hold, 1, "wait"))
    cell = loopback.run(
        f"print('begun')\n{code}\nprint('late')", on_input=hold, on_output=lambda _: begun.set()
    )
    pending = asyncio.ensure_future(cell)
    try:
        await begun.wait()
        async with asyncio.timeout(20):
            await loopback.restart()
        with pytest.raises(KernelRestarted):
            await pending
        stream = loopback.messages()
        gate.set()
        assert (await loopback.run("print(1)")).stdout == "1\n"
        async with asyncio.timeout(20):
            texts = [(await anext(stream)).text for _ in range(4)]
        assert "".join(texts) == "busyprint(1)1\n"
        async with asyncio.timeout(20):
            while thread.is_alive():
                await asyncio.sleep(0.01)
    finally:
        gate.set()


async def test_a_restart_fails_pending_requests(loopback: Bridge) -> None:
    pending = asyncio.ensure_future(loopback.run("import time; time.sleep(0.2)"))
    await asyncio.sleep(0.05)
    epoch = loopback.info.epoch
    await loopback.restart()
    with pytest.raises(KernelRestarted):
        await pending
    assert loopback.info.epoch != epoch


async def test_cells_are_plain_python(loopback: Bridge) -> None:
    result = await loopback.run("import sys\nprint('out')\nprint('err', file=sys.stderr)\n6 * 7")
    assert (result.stdout, result.stderr) == ("out\n", "err\n")
    assert result.data["text/plain"] == "42"
    with pytest.raises(RemoteError, match="ZeroDivisionError") as caught:
        await loopback.run("print('before')\n1/0")
    assert caught.value.result.stdout == "before\n"
    stream = loopback.messages()
    await loopback.run("3+2")
    async with asyncio.timeout(20):
        texts = [(await anext(stream)).text for _ in range(4)]
    assert texts == ["busy", "3+2", "5", "idle"]
    with pytest.raises(NotSupported, match="no process to interrupt"):
        await loopback.interrupt()


async def test_a_long_cell_does_not_block_the_event_loop(loopback: Bridge) -> None:
    cell = asyncio.ensure_future(loopback.run("import time; time.sleep(0.5)"))
    ticks = 0
    while not cell.done():
        await asyncio.sleep(0.01)
        ticks += 1
    assert ticks > 5


@pytest.mark.timings(inquiry_after=0.02, lost_after=0.06)
async def test_a_long_cell_is_waited_for(loopback: Bridge) -> None:
    gate = threading.Event()
    loopback._transport._cell.user_ns["gate"] = gate  # type: ignore[attr-defined]
    cell = asyncio.ensure_future(loopback.run("gate.wait(); 'done'"))
    await asyncio.wait([cell], timeout=0.3)
    gate.set()
    assert (await cell).data["text/plain"] == "'done'"


def test_a_bridge_used_after_a_fork_raises_an_error() -> None:
    script = """
        import asyncio, os, warnings
        warnings.simplefilter("ignore")
        from bridgehead import Bridge
        async def main():
            async with Bridge.loopback() as bridge:
                await bridge.push(x=1)
                if os.fork() == 0:
                    try:
                        await bridge.push(x=2)
                    except RuntimeError as error:
                        print(error, flush=True)
                    os._exit(0)
                os.wait()
                print(await bridge.pull("x"))
        asyncio.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    first, second = done.stdout.splitlines()
    assert "opened before a fork" in first
    assert second == "1"


async def test_an_empty_chunk_is_reported_at_once() -> None:
    """Otherwise a kernel that announces data and sends none would be asked for ever."""
    async with Bridge.loopback(lane="buffers") as bridge:
        await bridge.push(large=bytes(40 << 20))
        received, asked = bridge._transport.dispatcher.received, 0

        def empty(channel: str, message: Any) -> None:
            nonlocal asked
            if message["header"]["msg_type"] == DATA_MESSAGE:
                asked += 1
                if asked > 2:  # the response itself arrives in two messages
                    message = {**message, "buffers": []}
            received(channel, message)

        bridge._transport.dispatcher.received = empty  # type: ignore[method-assign]
        with pytest.raises(ReplyLost, match="its chunk at .* is not whole"):
            await bridge.pull("large")
        del bridge._transport.dispatcher.received
        assert len(await bridge.pull("large")) == 40 << 20


async def test_output_of_another_thread_is_not_output_of_the_cell(
    loopback: Bridge, capsys: pytest.CaptureFixture[str]
) -> None:
    """A test, or a program that shows the cell's output, prints while the cell is running."""
    code = """
        import sys, threading, time
        print("by the cell")
        while not hasattr(sys, "go_on"): time.sleep(0.01)
        thread = threading.Thread(target=print, args=["by a thread of the cell"])
        thread.start(); thread.join()
    """

    def show(message: object) -> None:
        print("by-the-test")
        sys.go_on = True  # type: ignore[attr-defined]

    try:
        result = await loopback.run(textwrap.dedent(code), on_output=show)
    finally:
        del sys.go_on  # type: ignore[attr-defined]
    assert result.stdout == "by the cell\nby a thread of the cell\n"
    assert set(capsys.readouterr().out.split()) == {"by-the-test"}


async def test_concurrent_cells_of_two_loopbacks_keep_their_outputs_apart(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = "import time\nfor n in range(20): print(n); time.sleep(0.001)"
    wanted = "".join(f"{n}\n" for n in range(20))
    async with Bridge.loopback() as one, Bridge.loopback() as other:
        for result in await asyncio.gather(*(bridge.run(code) for bridge in (one, other) * 5)):
            assert result.stdout == wanted
    print("after the cells")
    assert capsys.readouterr().out == "after the cells\n"
