"""Rows B of the catalogue of faults: a kernel that is busy, blocked or wedged, and subshells.

Rule: one test a row of the catalogue, its docstring opening with the row's number. A test asserts
how soon the caller is told, what the namespace holds afterwards (looked at by a client that knows
nothing of bridges), and that the next operation on the same bridge is right. The injection is the
real fault.
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
from bridgehead._transports.dispatch import WINDOW
from support.elsewhere import MAJORS
from support.faults import There
from support.kit import (
    LANES,
    Other,
    all_of,
    at_work,
    file_of,
    goes_on,
    on_its_way,
    other,
    stopped,
    told_within,
    until,
)
from support.look import look

# Test modules aren't importable in a kernel; what they define is shipped like a script's own.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

CELLS = {  # what runs until a file is there, so that no test has to be quicker than its cell
    "sleep": "import os, time\nwhile not os.path.exists({0!r}): time.sleep(0.01)",
    "busy-loop": "import os\nwhile not os.path.exists({0!r}):\n    for _ in range(100_000): pass",
    # A C call that holds the GIL, for some seconds; what says "busy" needs the GIL, too.
    "C-call": "import time; time.sleep(0.3); _ = sum(range(100_000_000))",
}


def cell_until(gate: Path, cell: str) -> str:
    """A cell that keeps the kernel busy until ``gate.touch()``."""
    return CELLS[cell].format(str(gate))


@pytest.mark.parametrize("cell", CELLS)
async def test_a_deadline_holds_behind_a_running_cell(
    kernel: Bridge, cell: str, tmp_path: Path
) -> None:
    """B1. A long cell: TimeoutError at the caller's deadline, and what is known of the call."""
    gate = tmp_path / "gate"
    async with Bridge.attach(file_of(kernel)) as bridge:
        await until(lambda: not on_its_way(bridge))
        running = asyncio.ensure_future(kernel.run(cell_until(gate, cell)))
        await until(lambda: at_work(bridge))
        async with told_within(0.6):
            # Two that wait together may cross in one message, and the second one is sent as soon
            # as the first one is given up: so it is called later, and given up earlier.
            sent = asyncio.ensure_future(bridge.push(x=1, timeout=0.6))
            await until(lambda: on_its_way(bridge))
            first, second = await all_of(sent, bridge.push(y=There(list), timeout=0.3))
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
async def test_flood_behind_a_busy_cell_does_not_wedge_the_kernel(live: Bridge) -> None:
    """B2. 6,000 pushes behind a cell that sleeps: each is answered, and the kernel lives."""
    cell = asyncio.ensure_future(live.run("import time; time.sleep(3)"))
    await until(lambda: at_work(live))
    pushes = [asyncio.ensure_future(live.push({f"x{i}": i})) for i in range(6000)]
    async with told_within(10):
        await cell
        transfers = await asyncio.gather(*pushes)
    assert [transfer.names for transfer in transfers] == [(f"x{i}",) for i in range(6000)]
    assert await look(file_of(live)) == {f"x{i}": str(i) for i in range(6000)}
    await goes_on(live)


class Ticker:
    """The longest that the event loop kept anybody waiting."""

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


async def test_flood_of_a_stopped_kernel_never_blocks_the_event_loop(live: Bridge) -> None:
    """B3. 5,000 pushes to a stopped kernel: all are told, and the loop goes on all the while."""
    async with Bridge.attach(file_of(live), lane="inline") as inline:
        await live.push(x=0)
        await inline.push(y=0)
        await until(lambda: live._transport.has_pulse and inline._transport.has_pulse)
        with stopped(live):
            pushes = []
            async with Ticker() as ticker, told_within(5):
                for i in range(2500):
                    pushes.append(asyncio.ensure_future(live.push({f"x{i}": i})))
                    pushes.append(asyncio.ensure_future(inline.push({f"y{i}": i})))
                    if not i % 25:
                        await asyncio.sleep(0)
                outcomes = await all_of(*pushes)
            assert {type(outcome) for outcome in outcomes} == {KernelUnresponsive}
            assert ticker.longest < 2.5  # s; 0.25 without anybody else on the machine
        for bridge in (live, inline):
            async with told_within(1):
                assert await bridge.pull("1") == 1
            await goes_on(bridge)
        # What was at the kernel's door was done as a whole, and all the others never.
        there = await look(file_of(live))
        assert len(there) <= 2 + 2
        assert all(there[name] == name[1:] or name in ("x", "y") for name in there)


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("cell", ["sleep", "busy-loop"])
async def test_subshell_answers_while_the_main_shell_runs(
    kernel: Bridge, cell: str, lane: Any, tmp_path: Path
) -> None:
    """B4. ``now=True`` in the middle of a cell: pushed, pulled, seen by the cell itself."""
    gate = tmp_path / "gate"
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge:
        array = np.arange(3_000_000)
        await bridge.push(x=0)
        code = f"{cell_until(gate, cell)}\nseen = x, len(array)"
        running = asyncio.ensure_future(kernel.run(code))
        await until(lambda: at_work(bridge))
        waits = asyncio.ensure_future(bridge.push(waited=x_of(0)))
        # Beside a busy loop every step of ipykernel's threads waits for the interpreter; on some
        # machines a subshell answers after 37 ms, on some after 15 s (measured).
        async with told_within(0.5 if cell == "sleep" else 6):
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
        there = await look(file_of(kernel))
        assert there["seen"] == "(1, 3000000)"
        assert set(there) - {"_"} == {"x", "array", "seen", "waited"}
        await goes_on(bridge)
        assert await bridge.pull("x", now=True) == 1  # an idle kernel serves it as well


async def test_data_alone_crosses_in_the_middle_of_a_cell_too(
    kernel: Bridge, tmp_path: Path
) -> None:
    """B4. The codec that ``trust="data"`` needs there is not shipped behind the cell either."""
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


async def test_a_c_call_that_holds_the_gil_answers_nobody(kernel: Bridge) -> None:
    """B4. Not even a subshell is served beside it: the deadline holds, and then it goes on."""
    assert await kernel.pull("1", now=True) == 1
    running = asyncio.ensure_future(kernel.run(CELLS["C-call"]))
    await until(lambda: at_work(kernel))
    await asyncio.sleep(0.4)
    async with told_within(0.3):
        (outcome,) = await all_of(kernel.pull("1", now=True, timeout=0.3))
    assert outcome == 1 or isinstance(outcome, TimeoutError)  # a slow machine
    await running
    assert await kernel.pull("2", now=True) == 2
    assert await look(file_of(kernel)) == {}
    await goes_on(kernel)


async def refuses_now(bridge: Bridge) -> None:
    asked = []
    send = bridge._transport.send

    async def noting(channel: str, message: Any, buffers: Any) -> None:
        asked.append(message["header"]["msg_type"])
        await send(channel, message, buffers)

    bridge._transport.send = noting  # type: ignore[method-assign]
    for operation in (bridge.push(x=1, now=True), bridge.pull("1", now=True)):
        async with told_within(0.1):
            with pytest.raises(NotSupported, match="ipykernel 7 or later"):
                await operation
    assert asked == []
    del bridge._transport.send


@pytest.mark.parametrize("kernel_name", MAJORS[1:], indirect=True)
async def test_ipykernel6_has_no_subshells(live: Bridge) -> None:
    """B5. ipykernel 6 would never answer: it is not asked, and NotSupported is raised."""
    async with Bridge.attach(file_of(live), lane="buffers") as bridge:
        await refuses_now(bridge)  # the direct lane needs none for names
    assert await look(file_of(live)) == {}
    await goes_on(live)


async def test_a_loopback_has_no_subshells(loopback: Bridge) -> None:
    """B5. Neither has a bridge to nowhere."""
    await refuses_now(loopback)
    assert await loopback.names() == []
    await goes_on(loopback)


async def asked(somebody: Other, message_type: str, **content: Any) -> dict[str, Any]:
    """The content of a raw client's reply on the control channel."""
    client = somebody.client
    message = client.session.msg(message_type, content)
    client.control_channel.send(message)
    async with told_within(1):
        while True:
            with contextlib.suppress(queue.Empty):
                reply = await client.get_control_msg(timeout=0.5)
                if reply["parent_header"].get("msg_id") == message["header"]["msg_id"]:
                    told: dict[str, Any] = reply["content"]
                    assert told["status"] == "ok", told
                    return told


async def subshells(somebody: Other) -> list[str]:
    found: list[str] = (await asked(somebody, "list_subshell_request"))["subshell_id"]
    return found


async def until_subshells(somebody: Other, expected: list[str]) -> None:
    async with told_within(1):
        while await subshells(somebody) != expected:
            await asyncio.sleep(0.02)


async def test_a_closed_bridge_leaves_no_subshell(kernel: Bridge) -> None:
    """B6. One is made for a bridge, however much is asked of it at once, and deleted after it."""
    async with other(kernel) as somebody:
        before = await subshells(somebody)  # the shared bridge may have one
        async with Bridge.attach(file_of(kernel)) as bridge:
            assert await asyncio.gather(
                *(bridge.pull(str(i), now=True) for i in range(20))
            ) == list(range(20))
            assert len(await subshells(somebody)) == len(before) + 1
        await until_subshells(somebody, before)
        assert await look(file_of(kernel)) == {}
        await goes_on(kernel)


async def test_a_cancelled_call_leaves_no_subshell(kernel: Bridge) -> None:
    """B6. Given up while the kernel makes it, at every moment of that."""
    async with other(kernel) as somebody:
        before = await subshells(somebody)
        for steps in range(1, 12, 2):
            async with Bridge.attach(file_of(kernel)) as bridge:
                call = asyncio.ensure_future(bridge.pull("1", now=True))
                for _ in range(steps):
                    await asyncio.sleep(0)
                call.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await call
            await until_subshells(somebody, before)
            async with Bridge.attach(file_of(kernel)) as bridge:
                call = asyncio.ensure_future(bridge.pull("1", now=True))
                for _ in range(steps):
                    await asyncio.sleep(0)
                call.cancel()
                assert await bridge.pull("2", now=True) == 2
                assert len(await subshells(somebody)) == len(before) + 1
            await until_subshells(somebody, before)


async def test_a_subshell_that_hangs_does_not_keep_the_main_thread_waiting(live: Bridge) -> None:
    """B6. As many calls as may be in flight are given up in it; the next in turn is served."""
    await live.run("import threading\ngo_on = threading.Event()")
    stuck = (live.pull("go_on.wait(60)", now=True, timeout=0.5) for _ in range(WINDOW))
    outcomes = await asyncio.gather(*stuck, return_exceptions=True)
    assert all(isinstance(outcome, TimeoutError) for outcome in outcomes)
    await goes_on(live)
    await live.run("go_on.set()")
    async with told_within(1):
        assert await live.pull("1", now=True) == 1


# A program that has a subshell, and is killed.
VANISHES = """
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


async def vanishing(kernel: Bridge, expression: str = "") -> asyncio.subprocess.Process:
    """A client that has a subshell, and is in the middle of the expression; to be killed."""
    command = [sys.executable, "-c", VANISHES, file_of(kernel), expression]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"1\n"
    if expression:
        async with told_within(1):
            while not await kernel.exists("cells_begun"):
                await asyncio.sleep(0.02)
    return process


async def killed(process: asyncio.subprocess.Process) -> None:
    process.kill()
    await process.wait()


async def test_an_orphaned_subshell_is_deleted_by_the_next_bridge(live: Bridge) -> None:
    """B6. Three clients are killed with a subshell each; the next to attach deletes them all."""
    async with other(live) as somebody:
        assert await live.pull("1", now=True) == 1
        (own,) = await subshells(somebody)
        clients = await asyncio.gather(*(vanishing(live) for _ in range(3)))
        await asyncio.gather(*map(killed, clients))
        assert len(await subshells(somebody)) == 4
        async with Bridge.attach(file_of(live)) as bridge:
            await until_subshells(somebody, [own])  # a living bridge's stays
            assert await live.pull("2", now=True) == 2
            assert await look(file_of(live)) == {}
            await goes_on(bridge)


async def test_a_busy_orphan_is_left_alone_until_it_is_idle(live: Bridge) -> None:
    """B6. A kernel asked to delete a busy subshell would answer nobody meanwhile."""
    await live.run(
        "import time\n"
        "def busy():\n"
        "    globals()['begun'] = True\n"
        "    end = time.monotonic() + 4\n"
        "    while time.monotonic() < end: time.sleep(0.01)\n"
        "    globals()['ended'] = True"
    )
    async with other(live) as somebody:
        await killed(await vanishing(live, "busy()"))
        async with told_within(0.5), Bridge.attach(file_of(live)) as bridge:
            await bridge.push(x=1)
            assert await bridge.pull("x", now=True) == 1
        (orphan,) = await subshells(somebody)
        assert not await live.exists("ended")
        async with told_within(4):
            while not await live.exists("ended"):
                await asyncio.sleep(0.05)
        async with Bridge.attach(file_of(live)) as bridge:
            await until_subshells(somebody, [])
            await goes_on(bridge)
        assert orphan
        there = await look(file_of(live))
        assert there.pop("busy").startswith("<function busy")
        assert there == {"cells_begun": "True", "ended": "True", "x": "1"}


async def test_a_subshell_that_somebody_deleted_is_made_again(kernel: Bridge) -> None:
    """B7. Its subshell is deleted between two calls, and before many at once: none fails."""
    opening = Bridge.attach(file_of(kernel), lane="buffers")
    async with opening as bridge, other(kernel) as somebody:
        before = await subshells(somebody)
        await bridge.push(x=0, now=True)
        for number in range(1, 4):
            (own,) = set(await subshells(somebody)) - set(before)
            await asked(somebody, "delete_subshell_request", subshell_id=own)
            async with told_within(0.5):
                if number == 1:
                    await bridge.push(x=number, now=True)
                else:
                    pulls = (bridge.pull(f"x + {i}", now=True) for i in range(10))
                    assert await asyncio.gather(*pulls) == list(range(1, 11))
        assert len(await subshells(somebody)) == len(before) + 1
        assert await look(file_of(kernel)) == {"x": "1"}
        await goes_on(bridge)
