"""Row C8 of the catalogue of faults: interrupts that hit one cell and no other.

Rule: the cell behind is of a client without bridgehead, and must never be hit. A cell of the bridge
always has its reply. Interrupts come at random moments, and a test goes on until enough of them
hit a cell, so that it proves something.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from bridgehead import Bridge, RemoteError, Result
from bridgehead._connection.outputs import CellObserver
from bridgehead._protocol.bootstrap import remote_source
from support.elsewhere import MAJORS
from support.faults import CallsInKernel
from support.kit import MESSAGES, all_of, file_of, goes_on, other, reported_within, until

# A kernel can't import test modules, so what they define is pickled by value, as in a script.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

WITH_GUARD: list[Any] = ["direct", "buffers"]  # lanes on which the kernel compares the cells

# Cells that would take a minute, and the error by which an interrupt ends each.
CELLS = {
    "sleeps": ("import time; time.sleep(60)", "KeyboardInterrupt"),
    "computes": ("while True: pass", "KeyboardInterrupt"),
    "waits for a lock": ("import threading; threading.Event().wait(60)", "KeyboardInterrupt"),
    "waits for a program": (
        "import subprocess, sys\n"
        "subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])",
        "KeyboardInterrupt",
    ),
    "awaits": ("import asyncio; await asyncio.sleep(60)", "CancelledError"),
    "awaits a thread": (
        "import asyncio, threading\n"
        "loop, waits = asyncio.get_running_loop(), threading.Event()\n"
        "loop.run_in_executor(None, waits.wait, 1)\n"
        "await asyncio.Event().wait()",
        "CancelledError",
    ),
}
CELL_UNTIL = "import os, time\nwhile not os.path.exists({0!r}): time.sleep(0.01)\nended = True"


class Running:
    """A cell of the bridge, and its request."""

    def __init__(self, bridge: Bridge, code: str) -> None:
        self.output = asyncio.Event()
        self.observer = CellObserver(lambda message: self.output.set())
        self.task = asyncio.ensure_future(bridge.run(code, on_output=self.observer))
        self._bridge = bridge

    async def sent(self) -> Running:
        await until(lambda: self.observer.request)
        return self

    async def begun(self) -> Running:
        await until(lambda: self.observer.begun)
        return self

    async def printed(self) -> Running:
        await self.output.wait()
        return self

    async def interrupt(self) -> bool:
        return await self._bridge._connection.interrupt_cell(self.observer.request)

    async def outcome(self) -> str:
        """Return the name of the error by which the cell ended, or an empty string."""
        async with reported_within(1):
            (outcome,) = await all_of(self.task)
        if isinstance(outcome, RemoteError):
            return outcome.ename
        assert isinstance(outcome, Result), outcome
        return ""


async def shows_and_counts(bridge: Bridge) -> None:
    """Check that the kernel still takes cells as a user expects."""
    result = await bridge.run("print('printed')\n6 * 7")
    assert (result.stdout, result.data["text/plain"]) == ("printed\n", "42")
    assert (await bridge.run("")).execution_count is not None
    await goes_on(bridge)


@pytest.mark.parametrize("lane", WITH_GUARD)
@pytest.mark.parametrize("cell", CELLS)
async def test_a_running_cell_is_interrupted_at_once(kernel: Bridge, cell: str, lane: Any) -> None:
    code, error = CELLS[cell]
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge:
        running = await Running(bridge, code).begun()
        async with reported_within(0.5 if lane == "direct" else 1.5):
            assert await running.interrupt()
        assert await running.outcome() == error
        assert not await running.interrupt()  # it has ended
        await shows_and_counts(bridge)


@pytest.mark.parametrize("kernel_name", MAJORS[1:], indirect=True)
@pytest.mark.parametrize("cell", CELLS)
async def test_a_running_cell_of_ipykernel_6_is_interrupted_at_once(
    live: Bridge, cell: str
) -> None:
    code, error = CELLS[cell]
    for lane in ("direct", *MESSAGES):  # in messages, nothing answers beside a cell
        async with Bridge.attach(file_of(live), lane=lane) as bridge:
            # In messages, an interrupt before the code begins may be lost: the code prints first.
            running = await Running(bridge, "print('going')\n" + code).printed()
            async with reported_within(0.5):
                assert await running.interrupt()
            assert await running.outcome() == error
            assert not await running.interrupt()
            await shows_and_counts(bridge)


@pytest.mark.parametrize("lane", WITH_GUARD)
async def test_a_cell_that_has_not_begun_is_not_interrupted(
    kernel: Bridge, lane: Any, tmp_path: Path
) -> None:
    """A cell of another client runs before it, is not hit, and neither is the queued cell."""
    gate = tmp_path / "gate"
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge, other(kernel) as client:
        before = client.submit(CELL_UNTIL.format(str(gate)))
        await until(lambda: bridge.state == "busy")
        queued = await Running(bridge, "mine = 1").sent()
        for _ in range(3):
            async with reported_within(0.5):
                assert not await queued.interrupt()
        assert not queued.task.done()
        gate.touch()
        assert (await client.answer(before))["status"] == "ok"
        assert await queued.outcome() == ""
        assert await bridge.pull("mine, ended") == (1, True)
        await goes_on(bridge)


SLOW_PULL = "[begun.append(1), __import__('time').sleep(60), begun.append(2)]"


@pytest.mark.parametrize("lane", WITH_GUARD)
async def test_a_cancelled_pull_of_the_tools_is_interrupted(kernel: Bridge, lane: Any) -> None:
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge, other(kernel) as client:
        await bridge.push(begun=[])
        pulling = asyncio.ensure_future(bridge._pull_interruptibly(SLOW_PULL, lambda: True))
        while not await kernel.pull("begun", now=True):
            await asyncio.sleep(0.01)
        behind = client.submit("behind = True")
        pulling.cancel()
        async with reported_within(1):  # and not in a minute
            assert (await client.answer(behind))["status"] == "ok"
        assert await bridge.pull("begun, behind") == ([1], True)
        await goes_on(bridge)


@pytest.mark.parametrize("lane", WITH_GUARD)
async def test_a_cancelled_pull_of_the_tools_that_has_not_begun_never_begins(
    kernel: Bridge, lane: Any, tmp_path: Path
) -> None:
    """A cell of another client runs before it, and is not hit; the bridge is closed at once."""
    gate = tmp_path / "gate"
    async with other(kernel) as client:
        async with Bridge.attach(file_of(kernel), lane=lane) as bridge:
            await bridge.push(begun=[])
            before = client.submit(CELL_UNTIL.format(str(gate)))
            await until(lambda: bridge.state == "busy")
            pulling = asyncio.ensure_future(bridge._pull_interruptibly(SLOW_PULL, lambda: True))
            with pytest.raises(TimeoutError):  # it is sent meanwhile
                await asyncio.wait_for(asyncio.shield(pulling), 0.3)
            pulling.cancel()
        gate.touch()
        assert (await client.answer(before))["status"] == "ok"
        async with reported_within(1):
            assert await kernel.pull("begun, ended") == ([], True)


@pytest.mark.parametrize("lane", WITH_GUARD)
async def test_a_cancelled_pull_of_a_caller_goes_on(
    kernel: Bridge, lane: Any, tmp_path: Path
) -> None:
    """Only the tools interrupt; the documentation says that a cancel undoes nothing."""
    gate = tmp_path / "gate"
    wait = f"(begun.append(1), open({str(gate)!r}).read(), begun.append(2))"
    os.mkfifo(gate)
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge:
        await bridge.push(begun=[])
        pulling = asyncio.ensure_future(bridge.pull(wait))
        while not await kernel.pull("begun", now=True):
            await asyncio.sleep(0.01)
        pulling.cancel()
    with open(gate, "w"):
        pass
    assert await kernel.pull("begun") == [1, 2]


@pytest.mark.parametrize("lane", WITH_GUARD)
async def test_a_cell_that_has_ended_is_not_interrupted(
    kernel: Bridge, lane: Any, tmp_path: Path
) -> None:
    """A cell of another client runs after it, and is not hit."""
    gate = tmp_path / "gate"
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge, other(kernel) as client:
        ended = Running(bridge, "mine = 1")
        assert await ended.outcome() == ""
        behind = client.submit(CELL_UNTIL.format(str(gate)))
        await until(lambda: bridge.state == "busy")
        assert not await ended.interrupt()
        assert not await bridge._connection.interrupt_cell("no such cell")
        assert not await bridge._connection.interrupt_cell("")
        gate.touch()
        assert (await client.answer(behind))["status"] == "ok"
        await goes_on(bridge)


@pytest.mark.parametrize("lane", ["direct", "buffers"])
@pytest.mark.parametrize("cell", ["import time; time.sleep(0.001)", "await asyncio.sleep(0.001)"])
async def test_an_interrupt_at_the_end_of_a_cell_never_hits_the_next_one(
    kernel: Bridge, cell: str, lane: Any
) -> None:
    """Of 100 interrupts at random moments, none hits the cell behind, and no reply is lost."""
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge, other(kernel) as client:
        await bridge.run("import asyncio, time")
        usual = math.inf
        for _ in range(3):
            started = time.perf_counter()
            await bridge.run(cell)
            usual = min(usual, time.perf_counter() - started)
        outcomes: Counter[tuple[bool, str]] = Counter()
        for number in range(100):  # how many hit depends on the machine; the attacker below hits
            running = await Running(bridge, cell).sent()
            behind = client.submit(f"time.sleep(0.005); last = {number}")
            await asyncio.sleep(random.uniform(0, 1.2 * usual))
            delivered = await running.interrupt()
            error = await running.outcome()
            assert delivered or not error
            outcomes[delivered, "hit" if error else "missed"] += 1
            assert (await client.answer(behind))["status"] == "ok", outcomes
        await shows_and_counts(bridge)


# A thread in the kernel that interrupts each cell of one session at a random instant, through the
# guard itself. No client comes so close to every instant of a short cell.
ATTACKER = """
import random, sys, threading, time
hits, stop = 0, False
module = next(m for name, m in sys.modules.items() if name.startswith("_bridgehead"))
guard = next(iter(module._remotes.values())).kernel.guard
def attack(session):
    global hits
    while not stop:
        cell = guard.running
        if cell.startswith(session):
            end = time.perf_counter() + random.uniform(0, 0.0013)
            while time.perf_counter() < end and guard.running == cell: time.sleep(0)
            hits += guard.interrupt(cell)
            while guard.running == cell: time.sleep(0)
        time.sleep(0.00001)
attacker = threading.Thread(target=attack, args=(session,), daemon=True)
attacker.start()
"""


@pytest.mark.slow
@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
@pytest.mark.parametrize(
    "cell",
    [
        "time.sleep(0.001)",
        pytest.param("await asyncio.sleep(0.001)", marks=pytest.mark.slow),
        pytest.param("1", marks=pytest.mark.slow),
    ],
)
async def test_an_interrupt_at_any_instant_of_a_cell_loses_no_reply(
    live: Bridge, cell: str
) -> None:
    """Also in the first and the last microseconds of its code, and while its value is shown."""
    async with other(live) as client:
        await live.run("import asyncio, sys, time; sys.setswitchinterval(1e-5)")
        await live.push(session=live._transport.session.session)  # type: ignore[attr-defined]
        assert (await client.execute(ATTACKER))["status"] == "ok"  # a cell of another session
        outcomes: Counter[str] = Counter()
        while outcomes.total() < 100 or outcomes.total() == outcomes[""]:
            assert outcomes.total() < 1000, "no interrupt hit a cell, so the test proves nothing"
            running = await Running(live, cell).sent()
            behind = client.submit(f"time.sleep(0.002); last = {outcomes.total()}")
            outcomes[await running.outcome()] += 1
            assert (await client.answer(behind))["status"] == "ok", outcomes
        await client.execute("stop = True; attacker.join(); sys.setswitchinterval(0.005)")
        assert await live.pull("hits") >= outcomes.total() - outcomes[""]
        await shows_and_counts(live)


async def test_an_interrupt_that_a_cell_handles_hits_nothing_else(kernel: Bridge) -> None:
    code = (
        "import time\ntry:\n    print('going')\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    handled = True"
    )
    async with other(kernel) as client:
        running = await Running(kernel, code).printed()
        behind = client.submit("time.sleep(0.05); done = True")
        assert await running.interrupt()
        assert await running.outcome() == ""
        assert (await client.answer(behind))["status"] == "ok"
        assert await kernel.pull("handled, done") == (True, True)


async def test_an_interrupt_that_a_cell_blocks_is_dropped(kernel: Bridge) -> None:
    """It does not wait for the cell of another client that unblocks it."""
    code = (
        "import os, signal, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])\n"
        "print('blocked')\nwhile 'interrupted' not in globals(): time.sleep(0.01)"
    )
    async with other(kernel) as client:
        running = await Running(kernel, code).printed()
        assert await running.interrupt()
        await kernel.push(interrupted=True, now=True)
        assert await running.outcome() == ""
        unblock = "signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT]); time.sleep(0.05)"
        assert (await client.execute(unblock))["status"] == "ok"
    await shows_and_counts(kernel)


async def test_a_cell_is_interrupted_while_the_socket_thread_is_at_work(kernel: Bridge) -> None:
    """The thread unpickles something that waits; the control thread interrupts the cell."""
    await kernel.run("import sys, threading\nsys.gate = threading.Event()")
    running = await Running(kernel, "import time; time.sleep(60)").begun()
    waits = CallsInKernel(eval, "__import__('sys').gate.wait(60)")
    push = asyncio.ensure_future(kernel.push(x=waits, now=True))
    await until(lambda: kernel._transport.life.side_channel.at_work)  # type: ignore[union-attr]
    async with reported_within(1):
        assert await running.interrupt()
    assert await running.outcome() == "KeyboardInterrupt"
    assert not push.done()
    async with other(kernel) as client:  # a cell of the bridge would wait for the thread
        await client.execute("sys.gate.set(); del sys.gate")
    await push
    await goes_on(kernel)


# Python has noted SIGINT, and the system call of the main thread has not been cut: so it is when a
# signal comes after Python's last look at its signals and before ``time.sleep`` sleeps.
NOTED_ONLY = """
import signal, sys, threading, time
remote = sys.modules[%r]
kill = remote._pthread_kill
def note(thread, number):
    if number == signal.SIGINT:
        signal.raise_signal(number)  # here and not in the main thread
    else:
        kill(thread, number)
remote._pthread_kill = note
"""


@pytest.mark.slow
@pytest.mark.parametrize("lane", WITH_GUARD)
@pytest.mark.parametrize("cell", ["sleeps", "waits for a lock", "waits for a program"])
async def test_an_interrupt_just_before_a_sleep_is_not_lost(
    live: Bridge, cell: str, lane: Any
) -> None:
    code, error = CELLS[cell]
    async with Bridge.attach(file_of(live), lane=lane) as bridge:
        assert await bridge.pull("1") == 1
        await bridge.run(NOTED_ONLY % remote_source()[0])
        running = await Running(bridge, "print('going')\n" + code).printed()
        await asyncio.sleep(0.2)  # most likely the cell sleeps now; else this proves less
        async with reported_within(1):
            assert await running.interrupt()
        assert await running.outcome() == error
        await shows_and_counts(bridge)


@pytest.mark.slow
async def test_an_interrupt_of_the_kernel_just_before_a_sleep_is_not_lost(live: Bridge) -> None:
    await live.run("import signal, threading, time")
    async with other(live) as client:
        cell = client.submit(
            "threading.Timer(0.2, signal.raise_signal, (signal.SIGINT,)).start(); time.sleep(60)"
        )
        await until(lambda: live.state == "busy")
        await asyncio.sleep(0.4)
        await live._connection._interrupts._wake()  # what follows each interrupt
        async with reported_within(1):
            assert (await client.answer(cell))["ename"] == "KeyboardInterrupt"


@pytest.mark.slow
async def test_a_handler_of_sigurg_stays_and_is_not_called(live: Bridge) -> None:
    await live.run("import signal, time\nurged = []")
    await live.run("_ = signal.signal(signal.SIGURG, lambda *args: urged.append(args))")
    running = await Running(live, "print('going'); time.sleep(60)").printed()
    assert await running.interrupt()
    assert await running.outcome() == "KeyboardInterrupt"
    assert await live.pull("[urged, signal.getsignal(signal.SIGURG).__name__]") == [[], "<lambda>"]


@pytest.mark.slow
async def test_a_cell_is_interrupted_after_its_subshell_was_deleted(kernel: Bridge) -> None:
    async with Bridge.attach(file_of(kernel), lane="buffers") as bridge, other(kernel) as client:
        assert await bridge.pull("1", now=True) == 1
        running = await Running(bridge, "import time; time.sleep(60)").begun()
        message = client.client.session.msg(
            "delete_subshell_request", {"subshell_id": bridge._connection.subshell._id}
        )
        client.client.control_channel.send(message)
        await client.client.get_control_msg(timeout=10)
        async with reported_within(1):
            assert await running.interrupt()
        assert await running.outcome() == "KeyboardInterrupt"
        await goes_on(bridge)


@pytest.mark.slow
async def test_a_cell_that_was_aborted_and_sent_again_is_interrupted(kernel: Bridge) -> None:
    """Each try has an id of its own; the observer has that of the last one."""
    async with other(kernel) as client:
        failing = client.submit("import time; time.sleep(0.3); 1 / 0")
        await until(lambda: kernel.state == "busy")
        running = await Running(kernel, "time.sleep(60)").sent()
        first = running.observer.request
        assert (await client.answer(failing))["status"] == "error"
        await running.begun()
        assert running.observer.request != first
        assert await running.interrupt()
        assert await running.outcome() == "KeyboardInterrupt"
    await goes_on(kernel)
