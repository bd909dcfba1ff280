"""Rows B of the catalogue of faults: a busy, blocked or stopped kernel, and subshells.

Rule: each test covers a row of the catalogue; its docstring starts with the row's number. A test
asserts how soon the call ends, what the namespace contains afterwards (as seen by a client without
bridgehead), and that the next operation on the same bridge works. Each test injects the real fault.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from bridgehead import (
    Bridge,
    KernelUnresponsive,
    NotSupported,
    RemoteError,
)
from bridgehead._transports.request_table import WINDOW
from support.elsewhere import MAJORS
from support.faults import CallsInKernel
from support.kit import (
    LANES,
    Other,
    all_of,
    at_work,
    file_of,
    goes_on,
    on_its_way,
    other,
    reported_within,
    stopped,
    until,
)
from support.look import look

# A kernel can't import test modules, so what they define is pickled by value, as in a script.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

CELLS = {  # cells that end when a file exists, so that no test has to be faster than its cell
    "sleep": "import os, time\nwhile not os.path.exists({0!r}): time.sleep(0.01)",
    "busy-loop": "import os\nwhile not os.path.exists({0!r}):\n    for _ in range(100_000): pass",
    # A C call that holds the GIL for some seconds. The kernel needs the GIL to say "busy", so the
    # cell sleeps first.
    "C-call": "import time; time.sleep(0.3); _ = sum(range(100_000_000))",
}


def cell_until(gate: Path, cell: str) -> str:
    """Return a cell that keeps the kernel busy until ``gate.touch()``."""
    return CELLS[cell].format(str(gate))


@pytest.mark.parametrize("cell", CELLS)
async def test_a_deadline_holds_behind_a_running_cell(
    kernel: Bridge, cell: str, tmp_path: Path
) -> None:
    """B1. Behind a long cell, TimeoutError comes at the deadline and says if the call was sent."""
    gate = tmp_path / "gate"
    async with Bridge.attach(file_of(kernel)) as bridge:
        await until(lambda: not on_its_way(bridge))
        running = asyncio.ensure_future(kernel.run(cell_until(gate, cell)))
        await until(lambda: at_work(bridge))
        async with reported_within(0.6):
            # Calls that wait together may cross in one message, and the second call is sent as
            # soon as the first one times out. So the second one starts later and ends earlier.
            sent = asyncio.ensure_future(bridge.push(x=1, timeout=0.6))
            await until(lambda: on_its_way(bridge))
            first, second = await all_of(sent, bridge.push(y=CallsInKernel(list), timeout=0.3))
        assert isinstance(first, TimeoutError)
        assert "the kernel is busy, and the request may still run" in str(first)
        assert isinstance(second, TimeoutError)
        assert "the kernel is busy, and the request was not sent" in str(second)
        assert not running.done()
        gate.touch()
        await running
        assert set(await look(file_of(kernel))) - {"_"} == {"x"}
        await goes_on(bridge)


@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
@pytest.mark.slow
async def test_six_thousand_pushes_behind_a_busy_cell_are_all_answered(live: Bridge) -> None:
    """B2. 6,000 pushes wait behind a cell that sleeps: each gets its response; the kernel lives."""
    cell = asyncio.ensure_future(live.run("import time; time.sleep(3)"))
    await until(lambda: at_work(live))
    pushes = [asyncio.ensure_future(live.push({f"x{i}": i})) for i in range(6000)]
    async with reported_within(10):
        await cell
        transfers = await asyncio.gather(*pushes)
    assert [transfer.names for transfer in transfers] == [(f"x{i}",) for i in range(6000)]
    assert await look(file_of(live)) == {f"x{i}": str(i) for i in range(6000)}
    await goes_on(live)


class Ticker:
    """The longest time for which the event loop was blocked."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def __aenter__(self) -> Ticker:
        self._task = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _tick(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.001)
            now = time.monotonic()
            self.longest, last = max(self.longest, now - last), now


@pytest.mark.slow
async def test_thousands_of_pushes_to_a_stopped_kernel_do_not_block_the_event_loop(
    live: Bridge,
) -> None:
    """B3. 5,000 pushes to a stopped kernel: all raise an error, and the event loop never blocks."""
    async with Bridge.attach(file_of(live), lane="inline") as inline:
        await live.push(x=0)
        await inline.push(y=0)
        await until(lambda: live._transport.has_pulse and inline._transport.has_pulse)
        with stopped(live):
            pushes = []
            async with Ticker() as ticker, reported_within(5):
                for i in range(2500):
                    pushes.append(asyncio.ensure_future(live.push({f"x{i}": i})))
                    pushes.append(asyncio.ensure_future(inline.push({f"y{i}": i})))
                    if not i % 25:
                        await asyncio.sleep(0)
                outcomes = await all_of(*pushes)
            assert {type(outcome) for outcome in outcomes} == {KernelUnresponsive}
            assert ticker.longest < 2.5  # s; 0.25 on an idle machine
        for bridge in (live, inline):
            async with reported_within(1):
                assert await bridge.pull("1") == 1
            await goes_on(bridge)
        # Requests that had reached the kernel ran completely; the others never ran.
        namespace = await look(file_of(live))
        assert len(namespace) <= 2 + 2
        assert all(namespace[name] == name[1:] or name in ("x", "y") for name in namespace)


@pytest.mark.parametrize(
    ("cell", "lane"),
    [(cell, lane) for cell in ("sleep", "busy-loop") for lane in LANES],
)
async def test_a_subshell_answers_while_the_main_shell_runs(
    kernel: Bridge, cell: str, lane: Any, tmp_path: Path
) -> None:
    """B4. ``now=True`` during a cell: push and pull work, and the cell itself sees the names."""
    gate = tmp_path / "gate"
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge:
        array = np.arange(1_000_000)  # two messages with lane="inline"
        await bridge.push(x=0)
        code = f"{cell_until(gate, cell)}\nseen = x, len(array)"
        running = asyncio.ensure_future(kernel.run(code))
        await until(lambda: at_work(bridge))
        waits = asyncio.ensure_future(bridge.push(waited=x_of(0)))
        # Beside a busy loop, every step of ipykernel's threads waits for the GIL. On some machines
        # a subshell answers after 37 ms, on some after 15 s (measured).
        async with reported_within(0.5 if cell == "sleep" else 6):
            await bridge.push(x=1, now=True)
            assert await bridge.pull("x", "x + 1", now=True) == (1, 2)
            with pytest.raises(RemoteError, match="ZeroDivisionError"):
                await bridge.pull("1 / 0", now=True)
        await bridge.push(array=array, now=True)
        assert (await bridge.pull("array", now=True) == array).all()
        assert not running.done()
        assert not waits.done()
        gate.touch()
        await running
        await waits
        namespace = await look(file_of(kernel))
        assert namespace["seen"] == "(1, 1000000)"
        assert set(namespace) - {"_"} == {"x", "array", "seen", "waited"}
        await goes_on(bridge)
        assert await bridge.pull("x", now=True) == 1  # it works on an idle kernel, too


async def test_the_data_codec_reaches_the_kernel_during_a_cell(
    kernel: Bridge, tmp_path: Path
) -> None:
    """B4. The codec that ``trust="data"`` needs in the kernel does not wait behind the cell."""
    gate = tmp_path / "gate"
    async with Bridge.attach(file_of(kernel), trust="data") as bridge:
        running = asyncio.ensure_future(kernel.run(cell_until(gate, "sleep")))
        await until(lambda: at_work(bridge))
        await bridge.push(x={1}, now=True, trust="data")
        assert await bridge.pull("x", now=True) == {1}
        assert not running.done()
        gate.touch()
        await running
        await goes_on(bridge)


def x_of(value: int) -> dict[str, int]:
    return {"x": value}


async def test_a_deadline_holds_beside_a_c_call_that_holds_the_gil(kernel: Bridge) -> None:
    """B4. Not even a subshell runs beside it: the call ends at its deadline, and the next works."""
    assert await kernel.pull("1", now=True) == 1
    running = asyncio.ensure_future(kernel.run(CELLS["C-call"]))
    await until(lambda: at_work(kernel))
    await asyncio.sleep(0.4)
    async with reported_within(0.3):
        (outcome,) = await all_of(kernel.pull("1", now=True, timeout=0.3))
    assert outcome == 1 or isinstance(outcome, TimeoutError)  # a slow machine
    await running
    assert await kernel.pull("2", now=True) == 2
    assert await look(file_of(kernel)) == {}
    await goes_on(kernel)


async def refuses_now(bridge: Bridge) -> None:
    sent = []
    send = bridge._transport.send

    async def recording(channel: str, message: Any, buffers: Any) -> None:
        sent.append(message["header"]["msg_type"])
        await send(channel, message, buffers)

    bridge._transport.send = recording  # type: ignore[method-assign]
    for operation in (bridge.push(x=1, now=True), bridge.pull("1", now=True)):
        async with reported_within(0.1):
            with pytest.raises(NotSupported, match="ipykernel 7 or later"):
                await operation
    assert sent == []
    del bridge._transport.send


@pytest.mark.parametrize("kernel_name", MAJORS[1:], indirect=True)
async def test_now_is_not_supported_by_ipykernel_6(live: Bridge) -> None:
    """B5. ipykernel 6 would never reply: nothing is sent, and NotSupported is raised."""
    async with Bridge.attach(file_of(live), lane="buffers") as bridge:
        await refuses_now(bridge)  # the direct lane needs no subshell for names
    assert await look(file_of(live)) == {}
    await goes_on(live)


async def test_now_is_not_supported_by_a_loopback(loopback: Bridge) -> None:
    """B5. A bridge without a kernel has no subshells either."""
    await refuses_now(loopback)
    assert await loopback.names() == []
    await goes_on(loopback)


async def control_reply(other_client: Other, message_type: str, **content: Any) -> dict[str, Any]:
    """Send a request on the control channel and return the content of its reply."""
    client = other_client.client
    message = client.session.msg(message_type, content)
    client.control_channel.send(message)
    async with reported_within(1):
        while True:
            with contextlib.suppress(queue.Empty):
                reply = await client.get_control_msg(timeout=0.5)
                if reply["parent_header"].get("msg_id") == message["header"]["msg_id"]:
                    reply_content: dict[str, Any] = reply["content"]
                    assert reply_content["status"] == "ok", reply_content
                    return reply_content


async def subshells(other_client: Other) -> list[str]:
    found: list[str] = (await control_reply(other_client, "list_subshell_request"))["subshell_id"]
    return found


async def until_subshells(other_client: Other, expected: list[str]) -> None:
    async with reported_within(1):
        while await subshells(other_client) != expected:
            await asyncio.sleep(0.02)


async def test_a_closed_bridge_leaves_no_subshell(kernel: Bridge) -> None:
    """B6. A bridge creates one subshell for all its calls, and deletes it when it closes."""
    async with other(kernel) as other_client:
        before = await subshells(other_client)  # the shared bridge may have one
        async with Bridge.attach(file_of(kernel)) as bridge:
            assert await asyncio.gather(
                *(bridge.pull(str(i), now=True) for i in range(20))
            ) == list(range(20))
            assert len(await subshells(other_client)) == len(before) + 1
        await until_subshells(other_client, before)
        assert await look(file_of(kernel)) == {}
        await goes_on(kernel)


async def test_a_cancelled_call_leaves_no_subshell(kernel: Bridge) -> None:
    """B6. A call is cancelled at each step of the creation of its subshell."""
    async with other(kernel) as other_client:
        before = await subshells(other_client)
        for steps in range(1, 12, 2):
            async with Bridge.attach(file_of(kernel)) as bridge:
                call = asyncio.ensure_future(bridge.pull("1", now=True))
                for _ in range(steps):
                    await asyncio.sleep(0)
                call.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await call
            await until_subshells(other_client, before)
            async with Bridge.attach(file_of(kernel)) as bridge:
                call = asyncio.ensure_future(bridge.pull("1", now=True))
                for _ in range(steps):
                    await asyncio.sleep(0)
                call.cancel()
                assert await bridge.pull("2", now=True) == 2
                assert len(await subshells(other_client)) == len(before) + 1
            await until_subshells(other_client, before)


async def test_a_subshell_that_hangs_does_not_block_ordinary_calls(live: Bridge) -> None:
    """B6. As many calls as may be in flight time out in it; the next ordinary call works."""
    await live.run("import threading\ngo_on = threading.Event()")
    hanging = (live.pull("go_on.wait(60)", now=True, timeout=0.5) for _ in range(WINDOW))
    outcomes = await asyncio.gather(*hanging, return_exceptions=True)
    assert all(isinstance(outcome, TimeoutError) for outcome in outcomes)
    await goes_on(live)
    await live.run("go_on.set()")
    async with reported_within(1):
        assert await live.pull("1", now=True) == 1


# A program that has a subshell. The test kills it.
CLIENT_WITH_SUBSHELL = """
import asyncio, sys
from bridgehead import Bridge

async def main(file, expression):
    bridge = await Bridge.attach(file)
    print(await bridge.pull("1", now=True), flush=True)
    if expression:
        await bridge.pull(expression, now=True)
    await asyncio.sleep(60)

asyncio.run(main(*sys.argv[1:]))
"""


async def client_with_subshell(kernel: Bridge, expression: str = "") -> asyncio.subprocess.Process:
    """Start a client that has a subshell and evaluates the expression; the caller kills it."""
    command = [sys.executable, "-c", CLIENT_WITH_SUBSHELL, file_of(kernel), expression]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"1\n"
    if expression:
        async with reported_within(1):
            while not await kernel.exists("begun"):
                await asyncio.sleep(0.02)
    return process


async def kill(process: asyncio.subprocess.Process) -> None:
    process.kill()
    await process.wait()


@pytest.mark.slow
async def test_an_orphaned_subshell_is_deleted_by_the_next_bridge(live: Bridge) -> None:
    """B6. Three clients with a subshell each are killed; the next bridge deletes all three."""
    async with other(live) as other_client:
        assert await live.pull("1", now=True) == 1
        (own,) = await subshells(other_client)
        clients = await asyncio.gather(*(client_with_subshell(live) for _ in range(3)))
        await asyncio.gather(*map(kill, clients))
        assert len(await subshells(other_client)) == 4
        async with Bridge.attach(file_of(live)) as bridge:
            await until_subshells(other_client, [own])  # the subshell of an open bridge stays
            assert await live.pull("2", now=True) == 2
            assert await look(file_of(live)) == {}
            await goes_on(bridge)


@pytest.mark.slow
async def test_a_busy_orphan_is_left_alone_until_it_is_idle(live: Bridge) -> None:
    """B6. A kernel that deletes a busy subshell would answer no requests until it has ended."""
    await live.run(
        "import time\n"
        "def busy():\n"
        "    globals()['begun'] = True\n"
        "    while 'go_on' not in globals(): time.sleep(0.01)\n"
        "    globals()['ended'] = True"
    )
    async with other(live) as other_client:
        await kill(await client_with_subshell(live, "busy()"))
        async with reported_within(0.5), Bridge.attach(file_of(live)) as bridge:
            await bridge.push(x=1)
            assert await bridge.pull("x", now=True) == 1
        (orphan,) = await subshells(other_client)
        assert not await live.exists("ended")
        await live.push(go_on=1)
        async with reported_within(1):
            while not await live.exists("ended"):
                await asyncio.sleep(0.05)
        async with Bridge.attach(file_of(live)) as bridge:
            await until_subshells(other_client, [])
            await goes_on(bridge)
        assert orphan
        namespace = await look(file_of(live))
        assert namespace.pop("busy").startswith("<function busy")
        assert namespace == {"begun": "True", "go_on": "1", "ended": "True", "x": "1"}


@pytest.mark.slow
async def test_a_subshell_that_another_client_deleted_is_created_again(kernel: Bridge) -> None:
    """B7. The subshell is deleted before one call and before many at once: no call fails."""
    opening = Bridge.attach(file_of(kernel), lane="buffers")
    async with opening as bridge, other(kernel) as other_client:
        before = await subshells(other_client)
        await bridge.push(x=0, now=True)
        for number in range(1, 4):
            (own,) = set(await subshells(other_client)) - set(before)
            await control_reply(other_client, "delete_subshell_request", subshell_id=own)
            async with reported_within(0.5):
                if number == 1:
                    await bridge.push(x=number, now=True)
                else:
                    pulls = (bridge.pull(f"x + {i}", now=True) for i in range(10))
                    assert await asyncio.gather(*pulls) == list(range(1, 11))
        assert len(await subshells(other_client)) == len(before) + 1
        assert await look(file_of(kernel)) == {"x": "1"}
        await goes_on(bridge)
