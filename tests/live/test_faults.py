"""The catalogue of faults: each row injected into a real kernel, and its promise kept.

Rule: one test a row, its docstring opening with the row's number. A test asserts how soon the
caller is told, what the namespace holds afterwards (looked at by a client that knows nothing
of bridges), and that the next operation on the same bridge is right. The injection is the
real fault: a signal, another client, a wire that is meddled with, a user who redefines things.
A kernel that is stopped goes on before it is ended.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import ctypes
import io
import json
import math
import os
import pickle
import queue
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
import zlib
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import anyio
import cloudpickle
import numpy as np
import psutil
import pytest
import zmq
import zmq.asyncio
from jupyter_client.ioloop import AsyncIOLoopKernelManager
from jupyter_client.manager import AsyncKernelManager
from kit import (
    BUFFERS,
    CONTENT,
    HEADER,
    LANES,
    MESSAGES,
    PARENT,
    Other,
    Parts,
    Wire,
    all_of,
    at_work,
    file_of,
    goes_on,
    kind,
    on_its_way,
    other,
    sigint,
    stopped,
    told_within,
    until,
    whole,
    wired,
)
from traitlets.config import Config

import bridgehead
from bridgehead import (
    Bridge,
    BridgeError,
    EncodeError,
    IntegrityError,
    KernelDied,
    KernelNotFound,
    KernelRestarted,
    KernelUnresponsive,
    MissingInKernel,
    NotSupported,
    RemoteError,
    ReplyLost,
    RequestAborted,
)
from bridgehead._transports.base import WINDOW
from elsewhere import MAJORS
from look import look

# Test modules aren't importable in a kernel; what they define is shipped like a script's own.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

BIG = {
    "direct": 48 << 20,
    "buffers": 48 << 20,
    "inline": 12 << 20,
}  # bytes; a push of some tenths of a second
ATTACHED, LAUNCHED = 3.0, 0.5  # s until a death is told


@pytest.fixture
async def manager() -> AsyncIterator[AsyncKernelManager]:
    """A kernel that somebody else holds."""
    manager = AsyncKernelManager()
    await manager.start_kernel()
    try:
        yield manager
    finally:
        await manager.shutdown_kernel(now=True)


class There:
    """Unpickled over there, it calls a function of the standard library's."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def everything(bridge: Bridge) -> list[asyncio.Task[Any]]:
    """Every kind of operation at once; the first one keeps the kernel busy for a minute."""
    operations = [
        bridge.push(slow=There(time.sleep, 60), x=1),
        bridge.push(y=2),
        bridge.pull("z"),
        bridge.pull("z + 1"),
        bridge.call(len, [1]),
        bridge.run("ran = True"),
        bridge.names(),
        bridge.exists("z"),
        bridge.delete("z"),
        bridge.push(large=np.zeros(40 << 20, dtype=np.uint8)),
    ]
    return [asyncio.ensure_future(operation) for operation in operations]


# ================================================================ A. Death, stop, restart


@pytest.mark.parametrize("attached", [False, True], ids=["launched", "attached"])
@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_kernel_death_is_told_quickly(live: Bridge, attached: bool) -> None:
    """A1. SIGKILL with every kind of operation pending: all are told at once, and the next too."""
    async with contextlib.AsyncExitStack() as stack:
        bridge = live
        if attached:
            bridge = await stack.enter_async_context(Bridge.attach(file_of(live)))
        await bridge.push(z=0)
        stream = bridge.messages()
        pending = everything(bridge)
        await until(lambda: at_work(bridge))
        os.kill(live.info.pid, signal.SIGKILL)
        async with told_within(ATTACHED if attached else LAUNCHED):
            outcomes = await all_of(*pending)
            assert {type(outcome) for outcome in outcomes} == {KernelDied}
            assert {message.type async for message in stream} <= {"status"}  # and it ends
        assert bridge.state == "dead"
        if not attached:
            assert {outcome.exit_code for outcome in outcomes} == {-signal.SIGKILL}
            assert "was killed by SIGKILL" in str(outcomes[0])
        async with told_within(0.1):
            assert {type(one) for one in await all_of(*everything(bridge))} == {KernelDied}
        if not attached:
            async with told_within(ATTACHED):
                with pytest.raises(KernelNotFound):
                    await Bridge.attach(file_of(live))
        await live.restart()
        if attached:  # the next kernel is not the one that this bridge believes in
            async with told_within(ATTACHED):
                with pytest.raises((KernelDied, KernelRestarted)):
                    await bridge.push(x=2)
                await until_back(bridge)
        assert await look(file_of(live)) == {}
        await goes_on(bridge)


async def until_back(bridge: Bridge) -> None:
    """Wait until the bridge found the kernel that came after the one that died."""
    while True:
        try:
            await bridge.exists("x")
        except (KernelDied, KernelRestarted):
            await asyncio.sleep(0.01)
        else:
            return


ENDS = {
    "os._exit": (There(os._exit, 7), 7, "exit code 7"),
    "segfault": (There(ctypes.string_at, 0), -signal.SIGSEGV, "was killed by SIGSEGV"),
    "abort": (There(os.abort), -signal.SIGABRT, "was killed by SIGABRT"),
    # What the kernel of Linux does to a process that needs too much memory.
    "oom-kill": (There(signal.raise_signal, signal.SIGKILL), -signal.SIGKILL, "killed by SIGKILL"),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_a_kernel_that_ends_while_unpickling_is_told(live: Bridge, end: str) -> None:
    """A2. The object that is unpickled ends the process: how it ended is told."""
    killer, code, words = ENDS[end]
    async with told_within(LAUNCHED):
        with pytest.raises(KernelDied, match=words) as caught:
            await live.push(x=1, killer=killer)
    assert caught.value.exit_code == code
    await live.restart()
    assert await look(file_of(live)) == {}
    await goes_on(live)


async def test_sigstop_is_told_and_recovers(live: Bridge) -> None:
    """A3. A stopped kernel: told after five seconds; the bridges go on when the kernel does."""
    async with Bridge.attach(file_of(live)) as attached:
        bridges = live, attached
        await live.push(x="before")
        await until(lambda: all(bridge._transport.has_pulse for bridge in bridges))
        with stopped(live):
            async with told_within(0.5):
                outcomes = await all_of(*(bridge.pull("x", timeout=0.5) for bridge in bridges))
            assert {type(outcome) for outcome in outcomes} == {TimeoutError}
            late = [bridge._transport.late for bridge in bridges]
            async with told_within(5):
                pushes = [bridge.push(x="after") for bridge in bridges]
                pulls = [bridge.pull("x") for bridge in bridges]
                outcomes = await all_of(*pushes, *pulls, *(b.run("z = 1") for b in bridges))
            assert {type(outcome) for outcome in outcomes} == {KernelUnresponsive}
            assert [bridge.state for bridge in bridges] == ["unresponsive"] * 2
            async with told_within(5):
                outcomes = await all_of(*(bridge.push(y=2) for bridge in bridges))
            assert {type(outcome) for outcome in outcomes} == {KernelUnresponsive}
        async with told_within(1):
            assert [await bridge.pull("x") for bridge in bridges] == ["before"] * 2
        # The answers of the first pulls came, to nobody; what waited behind them was never sent.
        now = [bridge._transport.late for bridge in bridges]
        assert all(more > before for more, before in zip(now, late, strict=True))
        assert await look(file_of(live)) == {"x": "'before'"}
        for bridge in bridges:
            await goes_on(bridge)


async def test_a_kernel_that_goes_on_in_time_loses_nothing(live: Bridge) -> None:
    """A3. Stopped for three seconds only: every call that waited gets its answer."""
    await live.push(x=1)
    with stopped(live):
        pending = [asyncio.ensure_future(live.pull("x")) for _ in range(20)]
        await asyncio.sleep(3)
    async with told_within(1):
        assert await asyncio.gather(*pending) == [1] * 20
    assert await look(file_of(live)) == {"x": "1"}
    await goes_on(live)


async def test_restart_fails_what_was_pending_at_once(manager: AsyncKernelManager) -> None:
    """A4. The manager restarts its kernel while everything is pending; nothing of it lands."""
    async with Bridge.attach(manager.connection_file) as bridge:
        await bridge.push(z=0)
        pending = everything(bridge)
        await until(lambda: at_work(bridge))
        await manager.restart_kernel(now=True)
        async with told_within(2):
            outcomes = await all_of(*pending)
        assert {type(outcome) for outcome in outcomes} == {KernelRestarted}
        assert await look(manager.connection_file) == {}
        await until_back(bridge)
        await goes_on(bridge)


@pytest.mark.parametrize("noticed", [False, True], ids=["at-once", "noticed"])
async def test_push_sent_while_dead_never_lands_in_the_next_kernel(
    manager: AsyncKernelManager, noticed: bool
) -> None:
    """A5. Calls to a kernel that is dead, and a restart: none of them runs in the next one."""
    async with Bridge.attach(manager.connection_file) as bridge:
        for _ in range(1 if noticed else 3):
            await bridge.push(before=1)
            os.kill(bridge.info.pid, signal.SIGKILL)
            if noticed:
                await until(lambda: bridge.state == "dead")
            pending = everything(bridge)
            await asyncio.sleep(0)
            await manager.restart_kernel(now=True)
            async with told_within(ATTACHED):
                outcomes = await all_of(*pending)
            assert {type(outcome) for outcome in outcomes} <= {KernelDied, KernelRestarted}
            assert await look(manager.connection_file) == {}
            await until_back(bridge)
        await goes_on(bridge)


@pytest.mark.parametrize(
    ("operation", "pause"), [("push", 0), ("run", 0), ("push", 3)], ids=["push", "run", "later"]
)
async def test_silent_restart_is_noticed_by_the_next_push(
    manager: AsyncKernelManager, operation: str, pause: float
) -> None:
    """A6. A restart between two calls, with nothing pending: the next call tells of it."""
    async with Bridge.attach(manager.connection_file) as bridge:
        await bridge.push(x=1)
        await manager.restart_kernel(now=True)
        await asyncio.sleep(pause)
        async with told_within(2):
            with pytest.raises(KernelRestarted):
                await (bridge.push(x=2) if operation == "push" else bridge.run("x = 2"))
        assert await look(manager.connection_file) == {}
        await until_back(bridge)
        await goes_on(bridge)


def held() -> tuple[int, int]:
    """What this process holds: file descriptors and threads."""
    return len(os.listdir("/proc/self/fd")), threading.active_count()


async def test_a_kernel_that_exits_at_once_is_told_each_time(
    kernelspec: Callable[..., str],
) -> None:
    """A7. A kernelspec whose argv exits: KernelDied with its last words, and nothing is left."""
    words = "import sys; sys.exit('no kernel today')"
    kernelspec("exits", [sys.executable, "-c", words])
    before = None
    for _ in range(5):
        async with told_within(1):
            with pytest.raises(KernelDied, match="exit code 1; it last wrote:\nno kernel today"):
                await Bridge.launch("exits")
        before = before or held()
    assert held() <= before


async def test_a_hundred_calls_of_a_dead_kernel_leave_nothing(live: Bridge) -> None:
    """A7. A kernel that stays dead: told on every call, without a descriptor or a busy loop."""
    os.kill(live.info.pid, signal.SIGKILL)
    async with told_within(LAUNCHED):
        with pytest.raises(KernelDied):
            await live.pull("1")
    before = held()
    for _ in range(10):
        async with told_within(0.1):
            outcomes = await all_of(*everything(live))
        assert {type(outcome) for outcome in outcomes} == {KernelDied}
    assert held() <= before
    busy = time.process_time()
    await asyncio.sleep(1)
    assert time.process_time() - busy < 0.5  # s of this process's own
    await live.restart()
    assert await look(file_of(live)) == {}
    await goes_on(live)


async def test_an_autorestarter_that_gives_up(
    kernelspec: Callable[..., str], tmp_path: Path
) -> None:
    """A7. A kernel that only ever started once is restarted in vain: KernelDied on every call."""
    crash = tmp_path / "crash"
    argv = ["sh", "-c", f"test -e {crash} && exit 3; exec {sys.executable} -m ipykernel_launcher"]
    argv[-1] += ' -f "$0"'
    kernelspec("crashes", [*argv, "{connection_file}"])
    config = Config({"KernelRestarter": {"time_to_dead": 0.2, "restart_limit": 3}})
    manager = AsyncIOLoopKernelManager(kernel_name="crashes", autorestart=True, config=config)
    await manager.start_kernel()
    try:
        async with Bridge.attach(manager.connection_file) as bridge:
            gave_up = asyncio.Event()
            manager.add_restart_callback(gave_up.set, "dead")
            pending = asyncio.ensure_future(bridge.push(slow=There(time.sleep, 60)))
            await until(lambda: at_work(bridge))
            crash.touch()
            os.kill(bridge.info.pid, signal.SIGKILL)
            async with told_within(ATTACHED):
                (outcome,) = await all_of(pending)
            assert isinstance(outcome, KernelDied)
            async with told_within(5):
                await gave_up.wait()
            for _ in range(10):
                async with told_within(0.1):
                    with pytest.raises(KernelDied):
                        await bridge.push(x=1)
            crash.unlink()
            await manager.restart_kernel(now=True)
            await until_back(bridge)
            assert await look(manager.connection_file) == {}
            await goes_on(bridge)
    finally:
        await manager.shutdown_kernel(now=True)


class DiesWhenReplaced:
    def __del__(self) -> None:
        os._exit(3)


class DiesWhenPickled:
    def __reduce__(self) -> Any:
        os._exit(3)


def notes(file: str) -> Any:
    """Takes effect, and gives what ends the process on its way back."""
    with open(file, "a") as text:
        text.write("once\n")
    return DiesWhenPickled()


HOOK = "get_ipython().events.register('post_execute', lambda: __import__('os')._exit(3))"
BETWEEN: dict[str, Callable[[Bridge, str], Any]] = {
    "run": lambda bridge, file: bridge.run(f"print('once', file=open({file!r}, 'a'))\n{HOOK}"),
    "call": lambda bridge, file: bridge.call(notes, file),
    "push": lambda bridge, file: bridge.push(x=There(notes, file)),
}


@pytest.mark.parametrize(
    ("operation", "attached"), [("run", False), ("call", False), ("push", False), ("push", True)]
)
async def test_a_kernel_that_dies_between_execution_and_reply(
    live: Bridge, tmp_path: Path, operation: str, attached: bool
) -> None:
    """A8. What was asked for is done, and the process ends: KernelDied, and it ran exactly once.

    A cell with a post_execute hook, a call whose result ends the process when it is pickled, a
    push over a value whose ``__del__`` does.
    """
    ran = tmp_path / "ran"
    async with contextlib.AsyncExitStack() as stack:
        bridge = live
        if attached:
            bridge = await stack.enter_async_context(Bridge.attach(file_of(live)))
        if operation == "push":
            await live.call(DiesWhenReplaced, keep="x")
        async with told_within(ATTACHED if attached else LAUNCHED):
            with pytest.raises(KernelDied) as caught:
                await BETWEEN[operation](bridge, str(ran))
        assert attached or caught.value.exit_code == 3
        await live.restart()
        if attached:
            await until_back(bridge)
        assert await look(file_of(live)) == {}
        await goes_on(bridge)
    assert ran.read_text() == "once\n"


@pytest.mark.parametrize("attached", [False, True], ids=["launched", "attached"])
@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_a_shutdown_by_somebody_else_is_told(live: Bridge, attached: bool) -> None:
    """A9. Another client shuts the kernel down: KernelDied says so; the bridge closes once."""
    async with contextlib.AsyncExitStack() as stack:
        bridge = live
        if attached:
            bridge = await stack.enter_async_context(Bridge.attach(file_of(live)))
        await bridge.push(x=1)
        stream, watch = bridge.messages(), bridge.watch("x")
        assert await anext(watch) == 1
        async with other(live) as somebody:
            somebody.client.shutdown()
            async with told_within(ATTACHED if attached else LAUNCHED):
                assert "shutdown_reply" in [message.type async for message in stream]
                assert [value async for value in watch] == []
            with pytest.raises(KernelDied, match="another client had asked it to shut down"):
                await bridge.push(x=2)
        await live.restart()
        await until_back(bridge)
        assert await look(file_of(live)) == {}
        await goes_on(bridge)
    await bridge.aclose()
    await bridge.aclose()
    assert bridge.state == "closed"


async def test_a_restart_behind_a_connection_that_never_broke(
    kernelspec: Callable[..., str], tmp_path: Path
) -> None:
    """A10. As in a container: the next kernel has the same pid, and a proxy hides the restart."""
    in_its_own = ["unshare", "--pid", "--fork", "--kill-child"]
    try:
        subprocess.run([*in_its_own, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this user can't make a pid namespace: {error}")
    argv = [*in_its_own, sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    async with Bridge.launch(kernelspec("contained", argv)) as kernel:
        assert kernel.info.pid == 1
        async with wired(kernel, tmp_path) as (bridge, _):
            await bridge.push(x=1)
            await kernel.restart()
            assert kernel.info.pid == 1
            async with told_within(2):
                with pytest.raises(KernelRestarted):
                    await bridge.push(x=2)
            assert await look(file_of(kernel)) == {}
            await goes_on(bridge)


# ================================================================ B. Busy, blocked, wedged

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
        assert "the kernel is busy. What was sent to it may still run there" in str(first)
        assert isinstance(second, TimeoutError)
        assert "the kernel is busy. It was not sent" in str(second)
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
            while not await kernel.exists("begun"):
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
        assert there == {"begun": "True", "ended": "True", "x": "1"}


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


async def test_input_in_another_clients_cell(kernel: Bridge) -> None:
    """B8. A cell of somebody's waits for a line: the deadline holds until it has one."""
    async with other(kernel) as somebody:
        cell = somebody.submit("line = input()", allow_stdin=True)
        async with told_within(1):
            asks = await somebody.client.get_stdin_msg(timeout=10)
        assert asks["msg_type"] == "input_request"
        async with told_within(0.3):
            with pytest.raises(TimeoutError, match="the kernel is busy"):
                await kernel.push(x=1, timeout=0.3)
        async with told_within(0.5):
            await kernel.push(y=1, now=True)
        somebody.client.input("a line")
        assert (await somebody.answer(cell))["status"] == "ok"
        assert await look(file_of(kernel)) == {"line": "'a line'", "x": "1", "y": "1"}
        await goes_on(kernel)


# ================================================================ C. Interrupts and atomicity


async def struck_at_random(
    bridge: Bridge, operation: Callable[[int], Any]
) -> AsyncIterator[tuple[int, Any]]:
    """Start an operation and send SIGINT at a random moment of it; gives what came of it.

    Ten times, and on until three were struck: not every moment is one that an interrupt reaches.
    The moments are of the time after something was sent: before, there is nothing to strike.
    """

    async def sent(number: int) -> asyncio.Task[Any]:
        task = asyncio.create_task(operation(number))
        while not (task.done() or bridge._transport.in_flight):
            await asyncio.sleep(0)
        return task

    usual = math.inf
    for _ in range(2):  # the first one is slow
        task, started = await sent(0), time.perf_counter()
        await task
        usual = min(usual, time.perf_counter() - started)
    struck = number = 0
    while number < 10 or struck < 3:
        number += 1
        assert number < 100, "no interrupt reached the kernel; nothing is proven"
        task = await sent(number)
        await asyncio.sleep(random.uniform(0, 1.2 * usual))
        sigint(bridge)
        async with told_within(1):
            (outcome,) = await all_of(task)
        struck += told_of_interrupt(outcome)
        yield number, outcome
        await goes_on(bridge)


def told_of_interrupt(outcome: Any) -> bool:
    """Whether an operation says that a SIGINT struck; nothing else may have gone wrong."""
    if not isinstance(outcome, BaseException):
        return False
    assert isinstance(outcome, (RemoteError, ReplyLost)), outcome
    assert not isinstance(outcome, RemoteError) or outcome.ename == "KeyboardInterrupt"
    return True


@pytest.mark.parametrize("lane", MESSAGES)
@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_interrupt_during_a_big_push_is_told(kernel_name: str, lane: Any) -> None:
    """C1. SIGINT at random moments of a big push: told at once, and all or none is there."""
    async with Bridge.launch(kernel_name, lane=lane) as bridge:

        async def push(number: int) -> None:
            # Out of band without numpy, which a kernel need not have; arrives as a memoryview.
            blob = pickle.PickleBuffer(bytes([number]) * BIG[lane])
            await bridge.push(blob=blob, number=number, note={"of": number})

        held = 0
        async for number, outcome in struck_at_random(bridge, push):
            there = await look(file_of(bridge))
            assert sorted(there) == ["blob", "note", "number"]
            assert there["number"] in (str(held), str(number))
            assert isinstance(outcome, BaseException) or there["number"] == str(number)
            held = int(there["number"])
            assert there["note"] == repr({"of": held})
            assert await bridge.pull("blob.nbytes, set(blob[::512])") == (BIG[lane], {held})


@pytest.mark.parametrize("lane", MESSAGES)
@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_interrupt_during_a_big_pull_is_told(kernel_name: str, lane: Any) -> None:
    """C2. SIGINT at random moments while 40 MB are pickled and sent: told, nothing changed."""
    async with Bridge.launch(kernel_name, lane=lane) as bridge:
        await bridge.run("big = [list(range(300_000)), bytes(20_000_000), bytes(20_000_000)]")
        before = await look(file_of(bridge))
        right = await bridge.pull("big")
        async for _, outcome in struck_at_random(bridge, lambda number: bridge.pull("big")):
            assert isinstance(outcome, BaseException) or outcome == right
        assert await look(file_of(bridge)) == before


@pytest.mark.parametrize("at", [0, 1, 2])
async def test_failed_push_leaves_the_namespace_as_it_was(kernel: Bridge, at: int) -> None:
    """C3, G2. One object of several raises in its ``__setstate__``: not one name is set."""
    await kernel.push(a="before", b="before", c="before")
    before = await look(file_of(kernel))
    values: dict[str, Any] = {"a": 1, "b": 2, "c": 3, "new": 4}
    values[list(values)[at]] = RaisesThere()
    async with told_within(0.5):
        with pytest.raises(RemoteError, match="RuntimeError: not in this kernel") as caught:
            await kernel.push(values)
    assert any("__setstate__" in line for line in caught.value.traceback)
    assert await look(file_of(kernel)) == before
    await goes_on(kernel)


class RaisesThere:
    def __getstate__(self) -> dict[str, int]:
        return {"x": 1}

    def __setstate__(self, state: Any) -> None:
        raise RuntimeError("not in this kernel")


async def test_interrupt_while_many_names_are_set_sets_all_or_none() -> None:
    """C3. SIGINT at random moments of a push of 5,000 names: all of one push, never part."""
    async with Bridge.launch(lane="buffers") as bridge:
        names = [f"x{i}" for i in range(5000)]

        async def push(number: int) -> None:
            await bridge.push(dict.fromkeys(names, number))

        held = "0"
        async for number, outcome in struck_at_random(bridge, push):
            there = await look(file_of(bridge))
            assert sorted(there) == sorted(names)
            assert len(set(there.values())) == 1
            assert there["x0"] in (held, str(number))
            assert isinstance(outcome, BaseException) or there["x0"] == str(number)
            held = there["x0"]


async def test_interrupt_right_before_a_push_does_not_reach_it(kernel: Bridge) -> None:
    """C4. SIGINT strikes an idle kernel, 40 times: the push that follows is not affected."""
    async with other(kernel) as somebody:
        for number in range(40):
            # Once its reply and its idle are here, the kernel has left the handler of the last.
            await somebody.client.execute_interactive("", silent=True, timeout=30)
            sigint(kernel)
            async with told_within(0.1):
                await kernel.push(x=number)
    assert await look(file_of(kernel)) == {"x": "39"}
    await goes_on(kernel)


async def test_interrupt_of_the_main_thread_does_not_reach_a_push_beside_it() -> None:
    """C5. A push in the middle of a running cell, and a SIGINT: the cell has it, the push not."""
    async with Bridge.launch() as bridge:
        cell = asyncio.create_task(bridge.run("import time; time.sleep(60)"))
        await until(lambda: at_work(bridge))
        push = asyncio.create_task(bridge.push(x=SlowThere(), now=True))
        await asyncio.sleep(0.4)
        sigint(bridge)
        async with told_within(1):
            cell_outcome, push_outcome = await all_of(cell, push)
        assert isinstance(cell_outcome, RemoteError)
        assert cell_outcome.ename == "KeyboardInterrupt"
        assert not isinstance(push_outcome, BaseException), push_outcome
        assert list(await look(file_of(bridge))) == ["x"]
        await goes_on(bridge)


class SlowThere:
    def __reduce__(self) -> Any:
        return slowly, ()


def slowly() -> str:
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        time.sleep(0.01)
    return "unpickled to its end"


async def cancelled_task(operation: Any, seconds: float) -> None:
    task = asyncio.create_task(operation)
    await asyncio.sleep(seconds)
    task.cancel()
    async with told_within(0.1):
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()


async def asyncio_timeout(operation: Any, seconds: float) -> None:
    async with told_within(seconds + 0.1):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await operation


async def anyio_fail_after(operation: Any, seconds: float) -> None:
    async with told_within(seconds + 0.1):
        with contextlib.suppress(TimeoutError):
            with anyio.fail_after(seconds):
                await operation


async def anyio_move_on_after(operation: Any, seconds: float) -> None:
    async with told_within(seconds + 0.1):
        with anyio.move_on_after(seconds):
            await operation


async def task_group(operation: Any, seconds: float) -> None:
    async def run() -> None:
        await operation

    async with told_within(seconds + 0.1), anyio.create_task_group() as group:
        group.start_soon(run)
        await asyncio.sleep(seconds)
        group.cancel_scope.cancel()


CANCELS = [cancelled_task, asyncio_timeout, anyio_fail_after, anyio_move_on_after, task_group]


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("cancel", CANCELS)
async def test_a_cancel_at_any_instant_disturbs_nobody(
    kernel: Bridge, cancel: Any, lane: Any
) -> None:
    """C6. 100 random instants under load, by every kind of cancel; ten operations are right."""
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge:
        await bridge.push(big=bytes(2_000_000), precious=[1, 2, 3])
        stop = asyncio.Event()

        async def load(number: int) -> None:
            while not stop.is_set():
                assert await bridge.pull(f"{number} * 7") == number * 7

        crowd = [asyncio.create_task(load(number)) for number in range(3)]
        for number in range(10):
            for operation in (bridge.pull("big"), bridge.push(pair=(number, bytes(2_000_000)))):
                await cancel(operation, random.choice((0.004, 0.04)) * random.random())
        stop.set()
        async with told_within(1):
            await asyncio.gather(*crowd)
            assert [await bridge.pull(f"precious + [{i}]") for i in range(10)] == [
                [1, 2, 3, i] for i in range(10)
            ]
        there = await look(file_of(bridge))
        assert there["precious"] == "[1, 2, 3]"
        assert set(there) <= {"big", "pair", "precious"}
        await goes_on(bridge)


async def test_a_replaced_value_that_raises_when_it_goes_stops_no_push(kernel: Bridge) -> None:
    """C7. ``__del__`` and a weakref's callback of the old value raise; the new one is bound."""
    await kernel.run(
        "import weakref\n"
        "class Evil:\n"
        "    def __del__(self): raise RuntimeError\n"
        "x = Evil(); ref = weakref.ref(x, lambda ref: 1 / 0)"
    )
    async with told_within(0.5):
        await kernel.push(x=1, y=2)
    there = await look(file_of(kernel))
    assert (there["x"], there["y"]) == ("1", "2")
    await goes_on(kernel)


# ============================================ D. Dispatch, concurrency, other clients


@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_abort_queue_of_anothers_failing_cell(kernel_name: str) -> None:
    """D1. Somebody's cell fails with our requests queued behind it: all of them take effect."""
    async with Bridge.launch(kernel_name) as bridge, other(bridge) as somebody:
        for number in range(3):
            failing = somebody.submit("import time; time.sleep(0.5); 1/0")
            victim = somebody.submit("1")
            await until(lambda: at_work(bridge))
            async with told_within(2):
                *_, pulled = await asyncio.gather(
                    *(bridge.push({f"x{i}": number}) for i in range(20)),
                    bridge.run(f"ran = {number}"),
                    bridge.pull(f"{number} + 1"),
                )
            assert pulled == number + 1
            assert (await somebody.answer(failing))["ename"] == "ZeroDivisionError"
            assert (await somebody.answer(victim))["status"] == "aborted"
            there = await look(file_of(bridge))
            assert there.pop("ran") == str(number)
            assert there == {f"x{i}": str(number) for i in range(20)}
            await goes_on(bridge)


async def test_what_is_always_aborted_is_told_as_not_executed() -> None:
    """D1. Failing cells that never end: told as not executed, after seven tries."""
    async with Bridge.launch(lane="buffers") as bridge, other(bridge) as somebody:
        kernel = "get_ipython().kernel"
        assert (await somebody.execute(f"{kernel}._aborting = True"))["status"] == "ok"
        async with told_within(1.5):
            with pytest.raises(RequestAborted, match="it was not executed"):
                await bridge.push(x=1)
        # What ends the aborting, a message to the kernel itself, is sent by a failing cell.
        await bridge.restart()
        assert await look(file_of(bridge)) == {}
        await goes_on(bridge)


@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_own_failure_aborts_nobody(kernel_name: str) -> None:
    """D2. Our push, pull, call and cell fail with somebody's cells queued behind them."""
    async with Bridge.launch(kernel_name) as bridge, other(bridge) as somebody:
        fails: list[Callable[[], Any]] = [
            lambda: bridge.push(x=RaisesThere()),
            lambda: bridge.pull("1/0"),
            lambda: bridge.call(lambda: 1 / 0),
            lambda: bridge.run("1/0"),
        ]
        for number, fail in enumerate(fails):
            busy = somebody.submit("import time; time.sleep(0.4)")
            await until(lambda: at_work(bridge))
            failing = asyncio.create_task(fail())
            await asyncio.sleep(0.1)
            behind = [somebody.submit(f"y{number} = {i}") for i in range(3)]
            async with told_within(1):
                (outcome,) = await all_of(failing)
                assert isinstance(outcome, RemoteError)
                for request in (busy, *behind):
                    assert (await somebody.answer(request))["status"] == "ok"
            await goes_on(bridge)
        assert await look(file_of(bridge)) == {f"y{number}": "2" for number in range(4)}


@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_many_at_once(kernel_name: str) -> None:
    """D3. Sixty operations at once, ten times over: each gets its own answer."""
    async with Bridge.launch(kernel_name) as bridge:
        for number in range(10):
            async with told_within(1):
                pulled = await asyncio.gather(
                    *(bridge.push({f"x{i}": [number, i]}) for i in range(30)),
                    *(bridge.pull(f"{number} * 1000 + {i}") for i in range(30)),
                )
            assert pulled[30:] == [number * 1000 + i for i in range(30)]
        assert await look(file_of(bridge)) == {f"x{i}": f"[9, {i}]" for i in range(30)}
        await goes_on(bridge)


async def test_cancelling_many_loses_no_one_elses_reply(kernel: Bridge) -> None:
    """D4. Every second of forty is cancelled: the others get their answers."""
    for _ in range(5):
        tasks = [asyncio.create_task(kernel.pull(f"{i} * 2")) for i in range(40)]
        await asyncio.sleep(random.uniform(0, 0.05))
        for task in tasks[::2]:
            task.cancel()
        async with told_within(1):
            outcomes = await all_of(*tasks)
        for i, outcome in enumerate(outcomes):
            assert outcome == i * 2 or (i % 2 == 0 and isinstance(outcome, asyncio.CancelledError))
        await goes_on(kernel)
    assert await look(file_of(kernel)) == {}


async def test_short_timeouts_lose_no_messages(kernel: Bridge) -> None:
    """D5. 120 operations given up about when their replies come: every reply is still read.

    A reply that was lost would hold one of the 32 places of the window for good.
    """
    started = time.perf_counter()
    for i in range(20):
        await kernel.push(x=i)
    usual = (time.perf_counter() - started) / 20
    given_up = 0
    for i in range(120):
        try:
            await kernel.push(x=i, timeout=random.uniform(0.2, 1.5) * usual)
        except TimeoutError:
            given_up += 1
    assert given_up > 0
    async with told_within(2):
        pulled = await asyncio.gather(*(kernel.pull(f"{i}") for i in range(100)))
    assert pulled == list(range(100))
    assert list(await look(file_of(kernel))) == ["x"]
    await goes_on(kernel)


async def test_deadlines_of_several_readers_are_their_own(kernel: Bridge) -> None:
    """D6. Three wait for a kernel that answers none of them: each is told at its deadline."""
    cell = asyncio.create_task(kernel.run("import time; time.sleep(1.5); done = True"))
    await until(lambda: at_work(kernel))
    patient = asyncio.create_task(kernel.pull("done"))
    async with told_within(0.3):
        outcomes = await all_of(*(kernel.pull(f"{i}, done", timeout=0.3) for i in range(3)))
    assert [type(outcome) for outcome in outcomes] == [TimeoutError] * 3
    assert not cell.done()
    assert await patient is True
    await cell
    assert await look(file_of(kernel)) == {"done": "True"}
    await goes_on(kernel)


async def test_late_reply_is_not_taken_for_the_next(kernel: Bridge) -> None:
    """D7. The reply of a request that was given up comes when another one waits."""
    for i in range(5):
        async with told_within(0.1):
            with pytest.raises(TimeoutError):
                await kernel.pull("__import__('time').sleep(0.3) or 'late'", timeout=0.1)
        async with told_within(0.5):
            assert await kernel.pull(f"'next', {i}") == ("next", i)
    assert await look(file_of(kernel)) == {}
    await goes_on(kernel)


TWICE = """
session = get_ipython().kernel.session
def send_twice(stream, kind, *args, send=session.send, **kwargs):
    for _ in range(2):
        message = send(stream, kind, *args, **kwargs)
        if kind != "execute_reply":
            break
    return message
session.send = send_twice
del session, send_twice
"""


async def test_a_reply_that_comes_twice_is_counted_once(tmp_path: Path) -> None:
    """D8. The kernel sends every reply twice, each with an id of its own: the first one wins."""
    async with (
        Bridge.launch() as owner,
        other(owner) as somebody,
        wired(owner, tmp_path) as (bridge, wire),
    ):
        assert (await somebody.execute(TWICE))["status"] == "ok"
        wire.seen.clear()
        for i in range(10):
            async with told_within(0.5):
                await bridge.push(x=[i])
                assert await bridge.pull("x", f"x + [{i}]") == ([i], [i, i])
        await asyncio.gather(*(bridge.push({f"y{i}": i}) for i in range(40)))
        assert await bridge.pull("y39") == 39
        replies = [parts for way, parts in wire.seen if way == "in" and "reply" in kind(parts)]
        parents = collections.Counter(parts[PARENT] for parts in replies)
        assert 2 in parents.values()
        there = await look(file_of(bridge))
        assert there.pop("x") == "[9]"
        assert there == {f"y{i}": str(i) for i in range(40)}
        await goes_on(bridge)


async def test_shared_session_id_steals_replies(kernel: Bridge) -> None:
    """D9. A second client takes over the session id of a first; a bridge's own is never shared."""
    async with other(kernel) as first, Bridge.over(first.client) as bridge:
        async with (
            Bridge.over(first.client) as another,
            other(kernel, first.client.session) as twin,
        ):
            assert (await twin.execute("stolen = 1"))["status"] == "ok"
            # The fault is there: the first one's replies now go to its twin.
            lost = first.submit("1")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await first.answer(lost)
            async with told_within(0.5):
                await bridge.push(x=1)
                assert await another.pull("x", "stolen") == (1, 1)
            assert await look(file_of(kernel)) == {"x": "1", "stolen": "1"}
            await goes_on(another)
        await goes_on(bridge)


# The first reply is the one to the cell itself; the second one is damaged, and no other.
DAMAGED = {
    "badly-signed": """
session, count = get_ipython().kernel.session, iter((1, 2))
def sign(parts, sign=session.sign, count=count):
    struck = b'"execute_reply"' in parts[0] and next(count, None) == 2
    return b"0" * 64 if struck else sign(parts)
session.sign = sign
del session, count, sign
""",
    "not-json": """
session, count = get_ipython().kernel.session, iter((1, 2))
def pack(part, pack=session.pack, count=count):
    struck = "user_expressions" in part and next(count, None) == 2
    return b"{" if struck else pack(part)
session.pack = pack
del session, count, pack
""",
    "not-a-message": """
session, count = get_ipython().kernel.session, iter((1, 2))
def serialize(message, ident=None, serialize=session.serialize, count=count):
    struck = message["header"]["msg_type"] == "execute_reply" and next(count, None) == 2
    return serialize(message, ident)[: 2 if struck else None]
session.serialize = serialize
del session, count, serialize
""",
}


@pytest.mark.parametrize("how", DAMAGED)
@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_bad_frame_hurts_one_request_at_most(kernel_name: str, how: str) -> None:
    """D10. One reply that cannot be verified or read: that request is told, no other one hurt."""
    launched = Bridge.launch(kernel_name, lane="buffers")
    async with launched as bridge, other(bridge) as somebody:
        assert (await somebody.execute(DAMAGED[how]))["status"] == "ok"
        async with told_within(1):
            with pytest.raises(ReplyLost):
                await bridge.push(x=1)
        assert await look(file_of(bridge)) in ({}, {"x": "1"})
        async with told_within(0.5):
            assert await asyncio.gather(*(bridge.pull(f"{i}") for i in range(40))) == list(
                range(40)
            )
        await goes_on(bridge)


async def test_iopub_overflow_changes_no_outcome() -> None:
    """D11. 20,000 messages on iopub, and a subscriber that never reads them."""
    async with Bridge.launch() as bridge, other(bridge) as somebody:
        async with Bridge.attach(file_of(bridge)) as reader:
            never_read = reader.messages()
            flood = somebody.submit(
                "import sys\nfor i in range(20_000): print(i); sys.stdout.flush()"
            )
            await until(lambda: reader.state == "busy")
            async with told_within(10):
                await asyncio.gather(*(reader.push({f"x{i}": i}) for i in range(20)))
                assert await reader.pull("x0 + x19") == 19
            assert (await somebody.answer(flood))["status"] == "ok"
            assert len(never_read) > 0
            there = await look(file_of(bridge))
            assert {name: there[name] for name in there if name[0] == "x"} == {
                f"x{i}": str(i) for i in range(20)
            }
            await goes_on(reader)
        await goes_on(bridge)


async def test_outcomes_do_not_depend_on_iopub(kernel: Bridge, tmp_path: Path) -> None:
    """D11. Nothing on iopub arrives at all any more: operations end as soon as before."""
    async with wired(kernel, tmp_path) as (bridge, wire):
        wire.deaf = True
        async with told_within(0.5):
            await bridge.push(x=1)
            assert await bridge.pull("x") == 1
            with pytest.raises(RemoteError, match="ZeroDivisionError"):
                await bridge.pull("1/0")
        async with told_within(3):  # a cell waits a moment for its outputs, which are lost
            assert (await bridge.run("y = 2\nprint(y)")).execution_count
        assert await look(file_of(kernel)) == {"x": "1", "y": "2"}
        await goes_on(bridge)
    await goes_on(kernel)


async def test_other_clients_see_no_more_than_busy_and_idle(kernel: Bridge) -> None:
    """D12. Somebody listens on iopub while we do everything: no code, no value, no error."""
    secret = "a secret that nobody else may see"
    async with other(kernel) as somebody:
        await kernel.push(secret=secret)
        assert await kernel.pull("secret") == secret
        await operations(kernel)
        await kernel.run("done = True")
        seen = []
        async with told_within(1):
            while not seen or seen[-1]["msg_type"] != "execute_input":
                seen.append(await somebody.client.get_iopub_msg(timeout=20))
    assert {message["msg_type"] for message in seen[:-1]} == {"status"}
    assert seen[-1]["content"]["code"] == "done = True"
    assert secret not in repr([message["content"] for message in seen])
    assert not any(message["buffers"] for message in seen)
    there = await look(file_of(kernel))
    assert there == {"x": "49", "y": "2", "done": "True", "secret": repr(secret)}
    await goes_on(kernel)


UNSENDABLE = {
    "object": "object()",
    "lone-surrogate": "'\\ud800'",
}


@pytest.mark.parametrize("value", UNSENDABLE)
@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_reply_that_cannot_be_serialized_is_told(kernel_name: str, value: str) -> None:
    """D13. The kernel cannot encode its reply, goes idle and never answers: the caller is told."""
    async with Bridge.launch(kernel_name) as bridge:
        cell = (
            "get_ipython().payload_manager.write_payload("
            f"{{'source': 'test', 'value': {UNSENDABLE[value]}}})\nran = 1"
        )
        async with told_within(1):
            (outcome,) = await all_of(bridge.run(cell))
        # A Session that replaces what it cannot encode has sent the reply after all.
        assert isinstance(outcome, ReplyLost) or value == "lone-surrogate"
        assert not isinstance(outcome, BaseException) or isinstance(outcome, ReplyLost)
        assert await look(file_of(bridge)) == {"ran": "1"}
        await bridge.push(text="\ud800")  # our own answers carry it: they are ASCII
        assert await bridge.pull("text") == "\ud800"
        with pytest.raises(RemoteError, match="KeyError"):
            await bridge.pull("{}[text]")
        await goes_on(bridge)


async def test_a_wrong_key_is_told(kernel: Bridge, tmp_path: Path) -> None:
    """D14. Another key than the kernel's: it never answers, and the message says why."""
    info = json.loads(Path(file_of(kernel)).read_text())
    (tmp_path / "wrong.json").write_text(json.dumps({**info, "key": "0" * 32}))
    async with told_within(1):
        with pytest.raises(KernelNotFound, match="did not answer within 1 s: another key"):
            await Bridge.attach(tmp_path / "wrong.json", timeout=1)
    assert await look(file_of(kernel)) == {}
    await goes_on(kernel)


async def test_no_reply_waits_for_a_reader_that_was_not_woken(kernel: Bridge) -> None:
    """D16. Sending while replies come in, 150 rounds: no reply is left lying on the socket."""
    await kernel.push(x=1)
    for number in range(150):
        async with told_within(0.5):
            pulls = []
            for i in range(6):
                pulls.append(asyncio.create_task(kernel.pull(f"x + {i}")))
                await asyncio.sleep(random.choice((0, 0.001, 0.003)))
            assert await asyncio.gather(*pulls) == [1, 2, 3, 4, 5, 6], number
    assert await look(file_of(kernel)) == {"x": "1"}
    await goes_on(kernel)


async def test_one_missed_heartbeat_is_not_death() -> None:
    """D17. A kernel that is stopped for 2 s, and one on a machine that is overloaded, is alive."""
    async with Bridge.launch() as owner, Bridge.attach(file_of(owner)) as bridge:
        os.kill(owner.info.pid, signal.SIGSTOP)
        try:
            pending = asyncio.create_task(bridge.push(x=1))
            await asyncio.sleep(2)
        finally:
            os.kill(owner.info.pid, signal.SIGCONT)
        async with told_within(0.5):
            await pending
        launches = [asyncio.create_task(hello_and_goodbye()) for _ in range(4)]
        while not all(task.done() for task in launches):
            async with told_within(1):
                assert await bridge.pull("x") == 1
                async with Bridge.attach(file_of(owner)) as another:
                    assert await another.pull("x + 1") == 2
        await asyncio.gather(*launches)
        assert await look(file_of(owner)) == {"x": "1"}
        await goes_on(bridge)
        await goes_on(owner)


async def hello_and_goodbye() -> None:
    async with Bridge.launch() as bridge:
        assert await bridge.pull("1") == 1


# ================================================================ E. Integrity and size


def flip(parts: Parts) -> Parts:
    damaged = bytearray(parts[-1])
    damaged[len(damaged) // 2] ^= 1
    return [*parts[:-1], bytes(damaged)]


TAMPERED: dict[str, Callable[[Parts], Parts]] = {
    "one-bit-flipped": flip,
    "a-frame-missing": lambda frames: frames[:-1],
    "frames-reordered": lambda frames: frames[::-1],
    "a-frame-cut": lambda frames: [*frames[:-1], frames[-1][:-1]],
    "nothing-at-all": lambda frames: [],
    "a-frame-added": lambda frames: [*frames, b"more"],
}


def tampering(how: str) -> Callable[[Parts], Iterable[Parts]]:
    """Changes the buffers of every message that has some; they aren't signed."""

    def tamper(parts: Parts) -> list[Parts]:
        frames = parts[BUFFERS:]
        return [parts[:BUFFERS] + (TAMPERED[how](frames) if frames else [])]

    return tamper


@pytest.mark.parametrize("how", TAMPERED)
@pytest.mark.parametrize("digest", ["crc32", "sums", "sha256"])
async def test_tampered_payload_is_refused(
    kernel: Bridge, tmp_path: Path, how: str, digest: str
) -> None:
    """E1, E3, E4. A bit flipped, frames missing, cut, reordered, added: refused, both ways."""
    array = np.arange(700_000.0 if digest == "sums" else 10_000.0)
    await kernel.push(x=1, array=array)
    before = await look(file_of(kernel))
    async with wired(kernel, tmp_path, lane="buffers") as (bridge, wire):
        if digest != "sums":  # which are for much, and a wire that never leaves the machine
            bridge._transport.digest = digest  # as over a wire that leaves it, or not
        wire.outgoing = tampering(how)
        async with told_within(0.5):
            with pytest.raises(IntegrityError, match="the kernel refused the request"):
                await bridge.push(x=array, y=2)
        assert digest.encode() in wire.seen[-2][1][CONTENT]
        assert await look(file_of(kernel)) == before
        await goes_on_again(wire, bridge)

        wire.incoming = tampering(how)
        async with told_within(0.5):
            with pytest.raises(ReplyLost, match="the kernel's answer is damaged"):
                await bridge.pull("array")
        assert await look(file_of(kernel)) == before
        await goes_on_again(wire, bridge)
        assert np.array_equal(await bridge.pull("array"), array)


async def goes_on_again(wire: Any, bridge: Bridge) -> None:
    """With nobody meddling any more, the next operation is right."""
    wire.outgoing = wire.incoming = whole
    await goes_on(bridge)


BASE64 = re.compile(rb"[A-Za-z0-9+/]{5000,}")
CUTS: dict[str, Callable[[bytes], bytes]] = {
    "40-characters-cut": lambda text: text[:2000] + text[2040:],
    "3-characters-cut": lambda text: text[:2000] + text[2003:],
    "characters-of-another-alphabet": lambda text: text[:2000] + b"????" + text[2000:],
    "one-character-changed": lambda text: (
        text[:2000] + (b"B" if text[2000] == 65 else b"A") + text[2001:]
    ),
}


@pytest.mark.parametrize("how", CUTS)
async def test_truncated_base64_is_refused(kernel: Bridge, tmp_path: Path, how: str) -> None:
    """E3. base64 that was damaged before it was signed: refused, both ways."""
    values = random.Random(1).randbytes(30_000)
    await kernel.push(x=1, values=values)
    before = await look(file_of(kernel))
    async with wired(kernel, tmp_path, lane="inline") as (bridge, wire):
        struck = []

        def damage(parts: Parts) -> list[Parts]:
            content, count = BASE64.subn(lambda found: CUTS[how](found[0]), parts[CONTENT])
            struck.append(count)
            return [wire.signed([*parts[:CONTENT], content, *parts[BUFFERS:]])]

        wire.outgoing = damage
        async with told_within(0.5):
            with pytest.raises(IntegrityError, match="the kernel refused the request"):
                await bridge.push(x=values, y=2)
        assert sum(struck) == 1
        assert await look(file_of(kernel)) == before
        await goes_on_again(wire, bridge)

        wire.incoming = damage
        async with told_within(0.5):
            with pytest.raises(ReplyLost, match="the kernel's answer is damaged"):
                await bridge.pull("values")
        assert sum(struck) == 2
        assert await look(file_of(kernel)) == before
        await goes_on_again(wire, bridge)
        assert await bridge.pull("values") == values


@pytest.mark.parametrize("lane", MESSAGES)
async def test_what_changes_during_a_push_is_never_torn(
    kernel: Bridge, tmp_path: Path, lane: Any
) -> None:
    """E2. The array is written to while its pieces are on the wire, and once more afterwards."""
    size = 2 * BIG[lane]
    async with wired(kernel, tmp_path, lane=lane) as (bridge, wire):
        await bridge.push(array=np.full(size, 3, np.uint8), note=3)
        for number in (5, 7, 9):
            array = np.full(size, number, np.uint8)
            to_pass = iter(range(number % 4))

            def meddle(parts: Parts, array: Any = array, to_pass: Any = to_pass) -> list[Parts]:
                if next(to_pass, None) is None:
                    array[:] = 0
                return [parts]

            before = await look(file_of(kernel))
            wire.outgoing = meddle
            async with told_within(2):
                (outcome,) = await all_of(bridge.push(array=array, note=number))
            wire.outgoing = whole
            assert not array.any()
            # Refused, or as it was when push was called.
            if isinstance(outcome, BaseException):
                assert isinstance(outcome, IntegrityError), outcome
                assert await look(file_of(kernel)) == before
                await bridge.push(array=np.full(size, number, np.uint8), note=number)
            array[:] = 0
            held = await bridge.pull("int(array.min())", "int(array.max())", "note")
            assert held == (number, number, number)
            await goes_on(bridge)


@pytest.mark.parametrize("lane", LANES)
async def test_a_large_push_is_no_literal(kernel: Bridge, tmp_path: Path, lane: Any) -> None:
    """E5. 60 MiB take seconds at most, not 38, and no message carries them as source text."""
    array = np.random.default_rng(1).integers(0, 255, 60 << 20, np.uint8)
    async with wired(kernel, tmp_path, lane=lane) as (bridge, wire):
        async with told_within(2):
            await bridge.push(array=array)
        sent = [parts for way, parts in wire.seen if way == "out"]
        assert all(not json.loads(parts[CONTENT]).get("code") for parts in sent)
        # The limit that survives every Jupyter Server; of buffers, only the header is text.
        assert max((len(parts[CONTENT]) for parts in sent[1:]), default=0) < (6 << 20)
        there = await look(file_of(kernel))
        assert there == {"array": repr(array)}
        assert await bridge.pull("int(array.sum())") == int(array.sum())
        await goes_on(bridge)


async def test_three_gigabytes_cross_both_ways() -> None:
    """E6. A frame longer than any signed 32-bit length arrives whole, there and back."""
    free = psutil.virtual_memory().available
    if free < 12 << 30:
        pytest.skip(f"only {free >> 30} GB of memory are free, and this takes 12")
    array = np.arange(375_000_000)  # 8 bytes each, and no two alike
    size, expected = array.nbytes, zlib.crc32(memoryview(array))
    async with Bridge.launch() as bridge:
        async with told_within(10):
            assert (await bridge.push(array=array)).bytes > size
        del array
        assert await bridge.pull("__import__('zlib').crc32(memoryview(array))") == expected
        async with told_within(10):
            back = await bridge.pull("array")
        assert (back.nbytes, back.dtype) == (size, np.int64)
        assert zlib.crc32(memoryview(back)) == expected
        assert list(await look(file_of(bridge))) == ["array"]
        await goes_on(bridge)


@pytest.mark.parametrize("lane", LANES)
async def test_a_push_beyond_max_bytes_is_refused_before_it_is_sent(
    kernel: Bridge, tmp_path: Path, lane: Any
) -> None:
    """E6. More than ``max_bytes``: PayloadTooLarge names the size, and nothing crosses."""
    async with wired(kernel, tmp_path, lane=lane) as (bridge, wire):
        wire.seen.clear()
        async with told_within(0.5):
            with pytest.raises(bridgehead.PayloadTooLarge, match=r"5[ ,_]?000[ ,_]?\d{3}|5\.0 MB"):
                await bridge.push(x=bytes(5_000_000), y=1, max_bytes=1_000_000)
        assert wire.seen == []
        assert await look(file_of(kernel)) == {}
        await bridge.push(y=bytes(1000), max_bytes=1_000_000)
        await goes_on(bridge)


@pytest.mark.parametrize("lane", LANES)
async def test_a_pull_beyond_max_bytes_is_refused_in_the_kernel(
    kernel: Bridge, tmp_path: Path, lane: Any
) -> None:
    """E7. 30 MB where ``max_bytes`` are less: the size is told, and no part of it crosses."""
    await kernel.run("big = bytes(30_000_000)")
    before = await look(file_of(kernel))
    async with wired(kernel, tmp_path, lane=lane) as (bridge, wire):
        wire.seen.clear()
        async with told_within(0.5):
            with pytest.raises(
                bridgehead.PayloadTooLarge, match=r"30[ ,_]?000[ ,_]?\d{3}|30\.0 MB"
            ):
                await bridge.pull("big", max_bytes=1_000_000)
        assert sum(len(part) for _, parts in wire.seen for part in parts) < 1_000_000
        assert await look(file_of(kernel)) == before
        assert await bridge.pull("big[:10]", max_bytes=1_000_000) == bytes(10)
        await goes_on(bridge)


@pytest.mark.parametrize("lane", LANES)
async def test_a_huge_pull_comes_in_messages_of_bounded_size(
    kernel: Bridge, tmp_path: Path, lane: Any
) -> None:
    """E7. 60 MB are never one message, neither of text nor of buffers, and no repr is made."""
    await kernel.run("big = 'x' * 60_000_000")
    async with wired(kernel, tmp_path, lane=lane) as (bridge, wire):
        async with told_within(2):
            assert await bridge.pull("big") == "x" * 60_000_000
        answers = [parts for way, parts in wire.seen if way == "in"]
        assert max(len(parts[CONTENT]) for parts in answers) < (6 << 20)
        assert max(sum(map(len, parts)) for parts in answers) < (32 << 20)
        assert list(await look(file_of(kernel))) == ["big"]
        await goes_on(bridge)


async def test_a_buffer_in_steps_is_refused_and_an_array_in_steps_crosses(kernel: Bridge) -> None:
    """E10. What is not contiguous has no raw buffer; numpy knows how to send it all the same."""
    steps = np.arange(100_000.0)[::2]
    async with told_within(0.5):
        with pytest.raises(EncodeError, match="x cannot be pickled"):
            await kernel.push(x=pickle.PickleBuffer(steps))
        await kernel.push(y=steps, z=np.arange(40_000.0).reshape(200, 200)[:, ::3])
    assert "x" not in await look(file_of(kernel))
    assert await kernel.pull("float(y.sum())", "z.shape") == (float(steps.sum()), (200, 67))
    await goes_on(kernel)


# ====================================== F. The user's namespace and interpreter


STATE = """
import builtins as _b, sys as _s
def _snapshot():
    ip = get_ipython()
    return {
        "In": list(In), "Out": dict(Out), "_": (_ , __, ___), "_i": (_i, _ii),
        "count": ip.execution_count,
        "who": sorted(ip.run_line_magic("who_ls", "")),
        "globals": sorted(globals()),
        "locals": sorted(ip.user_ns),
        "hidden": sorted(ip.user_ns_hidden),
        "builtins": sorted(vars(_b)),
        "excepthook": repr(_s.excepthook), "displayhook": repr(_s.displayhook),
        "stdout": repr(_s.stdout), "path": list(_s.path),
        "main": sorted(vars(_s.modules["__main__"])),
        "history": list(ip.history_manager.input_hist_raw),
    }
"""


async def operations(bridge: Bridge) -> None:
    """Every operation but run, the good and the bad."""
    await bridge.push(x=1, f=lambda v: v + 1, a=list(range(1000)))
    await bridge.push(large=pickle.PickleBuffer(bytes(40 << 20)))
    await bridge.pull("x", "a", "f(x)", "bytes(large)")
    await bridge.pull("[y for y in range(3)]")
    await bridge.call(lambda v: v * 2, bridge.ref("x"))
    await bridge.call(lambda: 5, keep="kept")
    await bridge.names()
    await bridge.exists("x")
    for bad in (
        bridge.pull("1/0"),
        bridge.pull("no_such"),
        bridge.pull("x y"),
        bridge.push(z=RaisesThere()),
        bridge.call(lambda: 1 / 0),
        bridge.delete("no_such"),
    ):
        with pytest.raises(BridgeError):
            await bad
    await asyncio.gather(*(bridge.push(x=i) for i in range(50)))
    await bridge.interrupt()
    await bridge.delete("f", "a", "kept", "large")
    async with Bridge.attach(bridge.info.connection_file, lane="inline") as another:
        await another.push(y=2)
        await another.pull("x", "y")


@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_hygiene(kernel_name: str) -> None:
    """F1. Globals, In, Out, _, the counter, hooks and history: only the names pushed are new."""
    async with Bridge.launch(kernel_name) as bridge:
        await bridge.run(STATE)
        await bridge.run("'something for the underscore'")
        await bridge.run("6 * 7")
        before = await bridge.pull("_snapshot()")
        await operations(bridge)
        after = await bridge.pull("_snapshot()")
        for place in ("who", "globals", "locals", "main"):
            assert sorted(set(after[place]) - set(before[place])) == ["x", "y"], place
            assert set(before[place]) <= set(after[place])
            before[place] = after[place]
        assert after == before
        assert before["_"][0] == 42
        result = await bridge.run("_ + 1")
        assert result.execution_count == before["count"]
        assert result.data["text/plain"] == "43"
        assert await look(file_of(bridge)) == {"x": "49", "y": "2"}
        await goes_on(bridge)


async def test_push_survives_what_users_do() -> None:
    """F2. Every kind of reset, everything deleted, the loader itself removed."""
    resets = [
        "%reset -f",
        "%reset -f in out",
        "%xdel x",
        "for _name in list(globals()):\n    if _name != '_name': del globals()[_name]",
        "import sys\n"
        "for _n in [n for n in sys.modules if n.startswith('_bridgehead')]: del sys.modules[_n]",
    ]
    async with Bridge.launch() as bridge:
        for number, cell in enumerate(resets):
            await bridge.push(x=number)
            await bridge.run(cell)
            async with told_within(0.5):
                await bridge.push(y=[number])
                assert await bridge.pull("y") == [number]
            assert (await look(file_of(bridge)))["y"] == f"[{number}]"
            await goes_on(bridge)


@pytest.mark.parametrize("count", [1, 3])
async def test_what_comes_again_keeps_its_place(count: int) -> None:
    """F2. The loader was removed, by somebody who may have planted it anew: the order holds."""
    removal = (
        "import sys\nfor n in [*sys.modules]:\n    if n[:11] == '_bridgehead': del sys.modules[n]"
    )
    async with Bridge.launch() as bridge, Bridge.attach(file_of(bridge)) as second:
        for planted in (False, True):
            await bridge.push(x=[-1] * count)
            await bridge.run(removal)
            if planted:
                await second.pull("x")
            pushes = (bridge.push({f"x{i}": i}) for i in range(count))
            cell = bridge.run(f"x = [{', '.join(f'x{i}' for i in range(count))}]")
            await asyncio.gather(*pushes, cell, bridge.delete(*(f"x{i}" for i in range(count))))
            assert await bridge.pull("x") == list(range(count))
        await goes_on(bridge)


async def test_a_push_is_enough_after_a_reset_of_everything() -> None:
    """F2. What was there before the reset is gone, and what is pushed after it is all there is."""
    async with Bridge.launch() as bridge:
        await bridge.push(x=1)
        await bridge.run("%reset -f")
        async with told_within(0.5):
            assert not await bridge.exists("x")
            await bridge.push(y=2)
        assert await look(file_of(bridge)) == {"y": "2"}
        await goes_on(bridge)


async def test_pull_is_not_reached_by_what_users_do_to_their_displays() -> None:
    """F3. Formatters for str, int and object, ``%precision``, and no active type but text/plain."""
    async with Bridge.launch() as bridge:
        await bridge.run(
            "%precision 2\n"
            "ip = get_ipython()\n"
            "formatter = ip.display_formatter.formatters['text/plain']\n"
            "for kind in (str, object, int):\n"
            "    formatter.for_type(kind, lambda o, p, c: p.text('HACKED'))\n"
            "ip.display_formatter.active_types = ['text/plain']\n"
            "del ip, formatter, kind\n"
        )
        assert (await bridge.run("'a cell is shown'")).data["text/plain"] == "HACKED"
        async with told_within(0.5):
            await bridge.push(text="plain", number=1 / 3)
            assert await bridge.pull("text", "number", "len(text)") == ("plain", 1 / 3, 5)
            with pytest.raises(RemoteError, match="ZeroDivisionError: division by zero"):
                await bridge.pull("1/0")
        await goes_on(bridge)
        # The one who looks reads a display, so the displays are put right for it.
        await bridge.run(
            "get_ipython().display_formatter.active_types = "
            "get_ipython().display_formatter.format_types"
        )
        assert await look(file_of(bridge)) == {"text": "'plain'", "number": repr(1 / 3)}


SHADOWS = {
    "builtins": "len = eval = __import__ = getattr = exec = get_ipython = object = None",
    "types": "class str: pass\nint = dict = list = tuple = str",
    "scopes": "globals = locals = vars = None",
}


@pytest.mark.parametrize("shadows", SHADOWS)
async def test_shadowed_names_do_not_reach_the_loader(shadows: str) -> None:
    """F4. The user's names hide the builtins: nothing of ours looks there."""
    async with Bridge.launch() as bridge:
        await bridge.push(x=1)
        await bridge.run(SHADOWS[shadows])
        async with told_within(0.5):
            await bridge.push(y=[2])
            assert await bridge.pull("x", "y") == (1, [2])
            assert await bridge.call(lambda v: v + 1, bridge.ref("x")) == 2
        async with Bridge.attach(file_of(bridge)) as late:  # installs nothing, finds the loader
            assert await late.pull("y") == [2]
        there = await look(file_of(bridge))
        assert (there["x"], there["y"]) == ("1", "[2]")
        await goes_on(bridge)


@pytest.mark.parametrize("shadows", SHADOWS)
async def test_shadowed_names_do_not_keep_the_loader_out(shadows: str) -> None:
    """F4. The names were shadowed before any bridge came."""
    manager = AsyncKernelManager(kernel_name="python3")
    await manager.start_kernel()
    try:
        async with other(manager.connection_file) as somebody:
            assert (await somebody.execute(SHADOWS[shadows]))["status"] == "ok"
        async with Bridge.over(manager) as bridge:
            async with told_within(0.5):
                await bridge.push(y=[2])
                assert await bridge.pull("y") == [2]
            assert (await look(manager.connection_file))["y"] == "[2]"
            await goes_on(bridge)
    finally:
        await manager.shutdown_kernel(now=True)


REPLACED = {
    "pickle.loads": "import pickle; pickle.loads = pickle.dumps = lambda *a, **k: 'evil'",
    "pickle.Pickler": "import pickle; pickle.Pickler = pickle.Unpickler = lambda *a, **k: 'evil'",
    "base64": "import base64; base64.b64decode = base64.b64encode = lambda *a, **k: b'evil'",
    "digests": "import zlib, hashlib; zlib.crc32 = hashlib.sha256 = None",
}


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("what", REPLACED)
async def test_replaced_functions_do_not_reach_the_loader(what: str, lane: Any) -> None:
    """F5. What pickles, encodes and digests is replaced in its own module, after we came."""
    async with Bridge.launch(lane=lane) as bridge:
        await bridge.run(REPLACED[what])
        async with told_within(0.5):
            await bridge.push(x=1, y=[2])
            assert await bridge.pull("x", "y") == (1, [2])
            assert await bridge.call(lambda v: v + 1, bridge.ref("x")) == 2
        assert await look(file_of(bridge)) == {"x": "1", "y": "[2]"}
        await goes_on(bridge)


async def test_an_import_that_raises_ends_at_the_deadline() -> None:
    """F5. ``builtins.__import__`` raises: the kernel answers nobody, and the deadline holds."""
    async with Bridge.launch() as bridge, other(bridge) as somebody:
        await bridge.push(x=1)
        somebody.submit(
            "import builtins\n"
            "def refuse(*args, **kwargs): raise ImportError('refused')\n"
            "builtins.__import__ = refuse"
        )
        async with told_within(1):
            # Whether the kernel itself survives this depends on its version.
            (outcome,) = await all_of(bridge.push(y=2, timeout=1))
            assert isinstance(outcome, (TimeoutError, bridgehead.Transfer)), outcome
        await bridge.restart()
        assert await look(file_of(bridge)) == {}
        await goes_on(bridge)


BROKEN_INPUT = """
import ast
from IPython.core.error import InputRejected
def refuse(*args):
    raise InputRejected("broken")
class Refuse(ast.NodeTransformer):
    visit = refuse
ip = get_ipython()
ip.{}.append({})
"""
TRANSFORMERS = {
    "input-cleanup": ("input_transformers_cleanup", "refuse"),
    "input-post": ("input_transformers_post", "refuse"),
    "ast": ("ast_transformers", "Refuse()"),
}


@pytest.mark.parametrize("where", TRANSFORMERS)
async def test_a_broken_transformer_does_not_stop_operations(where: str) -> None:
    """F6. A transformer of the user's raises for every cell; nothing of ours is a cell."""
    async with Bridge.launch() as bridge:
        await bridge.run(BROKEN_INPUT.format(*TRANSFORMERS[where]))
        with pytest.raises(RemoteError, match="broken"):
            await bridge.run("refused = 1")
        async with told_within(0.5):
            await bridge.push(x=[1])
            assert await bridge.pull("x") == [1]
        assert (await look(file_of(bridge)))["x"] == "[1]"
        await goes_on(bridge)


async def test_hooks_cannot_fail_a_push() -> None:
    """F7. All four events have a hook that raises; what it prints is its own business."""
    async with Bridge.launch() as bridge:
        await bridge.run(
            "fired = 0\n"
            "def broken(*args):\n"
            "    global fired\n"
            "    fired += 1\n"
            "    raise RuntimeError('broken')\n"
            "for _event in ('pre_execute', 'post_execute', 'pre_run_cell', 'post_run_cell'):\n"
            "    get_ipython().events.register(_event, broken)\n"
        )
        async with told_within(0.5):
            await bridge.push(x=[1])
            assert await bridge.pull("x") == [1]
        there = await look(file_of(bridge))
        assert there.pop("broken").startswith("<function broken")
        assert int(there.pop("fired")) > 0
        assert there == {"x": "[1]"}
        await goes_on(bridge)


async def test_a_module_that_the_kernel_lacks_is_named(
    kernel: Bridge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F11. An instance of a class in a local file: the module is named, and what to do."""
    (tmp_path / "only_near.py").write_text("class Box:\n    x = 6")
    monkeypatch.syspath_prepend(tmp_path)
    import only_near  # type: ignore[import-not-found]

    async with told_within(0.5):
        with pytest.raises(MissingInKernel, match=r"'only_near'.*by_value=\[only_near\]") as caught:
            await kernel.push(box=only_near.Box(), fine=1)
    assert caught.value.module == "only_near"
    assert await look(file_of(kernel)) == {}
    await kernel.push(box=only_near.Box(), by_value=[only_near])
    assert await kernel.pull("box.x") == 6
    await goes_on(kernel)


async def test_autoreload_leaves_the_loader_alone(kernel: Bridge) -> None:
    """F12. ``%autoreload 2`` looks at every module before each cell; the loader has no file."""
    await kernel.run("%load_ext autoreload\n%autoreload 2")
    async with told_within(0.5):
        await kernel.push(x=[1])
    assert (await kernel.run("x")).data["text/plain"] == "[1]"
    assert (await look(file_of(kernel)))["x"] == "[1]"
    await kernel.run("%autoreload 0")
    await goes_on(kernel)


# ================================================================ G. Objects


class ReduceRaises:
    def __reduce__(self) -> Any:
        raise RuntimeError("not today")


def deep_list() -> list[Any]:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    return deep


UNPICKLABLE: dict[str, Callable[[], Any]] = {
    "lock": threading.Lock,
    "generator": lambda: (i for i in [1]),
    "socket": lambda: socket.socket(),
    "frame": sys._getframe,
    "reduce-raises": ReduceRaises,
    "recursion": deep_list,
}


@pytest.mark.parametrize("what", UNPICKLABLE)
async def test_unpicklable_fails_before_anything_is_sent(
    kernel: Bridge, tmp_path: Path, what: str
) -> None:
    """G1. What cannot be pickled: its place is told, and no message leaves."""
    culprit = UNPICKLABLE[what]()
    async with wired(kernel, tmp_path) as (bridge, wire):
        wire.seen.clear()
        async with told_within(0.5):
            with pytest.raises(EncodeError) as caught:
                await bridge.push(fine=1, config={"bad": culprit})
        assert caught.value.path == ("config" if what == "recursion" else "config['bad']")
        assert wire.seen == []
        assert await look(file_of(kernel)) == {}
        await goes_on(bridge)
    if what == "socket":
        culprit.close()
    while what == "recursion" and culprit:  # or its own deallocation recurses
        culprit = culprit.pop()


class HangsThere:
    def __reduce__(self) -> Any:
        return time.sleep, (600,)


@pytest.mark.parametrize("lane", LANES)
async def test_unpickling_that_hangs_ends_at_the_deadline(kernel: Bridge, lane: Any) -> None:
    """G3. Unpickling sleeps for ten minutes: TimeoutError; an interrupt frees the kernel."""
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge:
        async with told_within(0.5):
            with pytest.raises(TimeoutError, match="may still run there"):
                await bridge.push(x=HangsThere(), y=1, timeout=0.5)
        async with told_within(0.5):
            await bridge.interrupt()
        assert await look(file_of(kernel)) == {}
        await goes_on(bridge)


class ExitsThere:
    def __reduce__(self) -> Any:
        return sys.exit, (3,)


@pytest.mark.parametrize("lane", LANES)
async def test_unpickling_that_exits_does_not_end_the_kernel(kernel: Bridge, lane: Any) -> None:
    """G4. ``sys.exit`` while unpickling is an error like any other; the kernel lives."""
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge:
        pid = bridge.info.pid
        async with told_within(0.5):
            with pytest.raises(RemoteError, match="SystemExit: 3"):
                await bridge.push(fine=1, bad=ExitsThere())
        assert await look(file_of(kernel)) == {}
        await goes_on(bridge)
        assert await bridge.pull("__import__('os').getpid()") == pid


async def test_what_arrives_as_another_type(kernel: Bridge, tmp_path: Path) -> None:
    """G5. An open text file arrives as a StringIO and a memoryview as bytes: push says so."""
    assert "StringIO" in (Bridge.push.__doc__ or "")
    (tmp_path / "notes.txt").write_text("line\n")
    with open(tmp_path / "notes.txt") as notes:
        async with told_within(0.5):
            await kernel.push(notes=notes, view=memoryview(b"abc"))
    assert isinstance(await kernel.pull("notes"), io.StringIO)
    assert await kernel.pull("notes.read(), view") == ("line\n", b"abc")
    there = await look(file_of(kernel))
    assert sorted(there) == ["notes", "view"]
    assert there["view"] == "b'abc'"
    await goes_on(kernel)


BAD_REPR = """
class Bad:
    def __init__(self): self.x = 5
    def refuse(self, *args, **kwargs): raise RuntimeError("no display")
    __repr__ = __str__ = __len__ = __format__ = _repr_html_ = _repr_mimebundle_ = refuse
    _ipython_display_ = refuse
bad = Bad()
"""


async def test_pull_computes_no_display(kernel: Bridge) -> None:
    """G6. ``__repr__``, ``__len__`` and every display hook raise: the object comes all the same."""
    await kernel.run(BAD_REPR)
    async with told_within(0.5):
        assert (await kernel.pull("bad")).x == 5
        assert await kernel.pull("bad.x", "[bad][0].x") == (5, 5)
        assert [name.name for name in await kernel.names()] == ["Bad", "bad"]
    with contextlib.suppress(RemoteError):  # ipykernel 6 only prints it
        await kernel.run("bad")
    assert "raised" in (await look(file_of(kernel)))["bad"]
    await goes_on(kernel)


async def test_what_an_object_prints_and_starts_while_it_is_unpickled_harms_no_reply(
    kernel: Bridge,
) -> None:
    """G7. A hundred thousand lines, and threads, from a ``__setstate__``."""

    class Loud:
        def __getstate__(self) -> Any:
            return {"x": 1}

        def __setstate__(self, state: Any) -> None:
            import threading

            for line in range(100_000):
                print(line)
            threads = [threading.Thread(target=print, args=(n,)) for n in range(10)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.__dict__.update(state)

    async with told_within(3):
        await kernel.push(loud=Loud(), y=1)
    assert await kernel.pull("loud.x", "y") == (1, 1)
    await goes_on(kernel)


# ================================================================ I. Hostile messages


async def replay(bridge: Bridge, frames: list[Parts]) -> None:
    """Send recorded messages to the kernel once more, from a socket of their own."""
    info = json.loads(Path(file_of(bridge)).read_text())
    separator = "-" if info["transport"] == "ipc" else ":"
    with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 1000
        socket.connect(f"{info['transport']}://{info['ip']}{separator}{info['shell_port']}")
        for parts in frames:
            await socket.send_multipart(parts)
        while await socket.poll(500):  # until the kernel has no more to say
            await socket.recv_multipart()


@pytest.mark.parametrize("lane", MESSAGES)
async def test_recorded_messages_do_nothing_when_they_come_again(
    kernel: Bridge, tmp_path: Path, lane: Any
) -> None:
    """I2. All that crossed is sent again, within the kernel's life and after its restart."""
    async with Bridge.launch() as live:
        async with wired(live, tmp_path, lane=lane) as (bridge, wire):
            await bridge.push(count=[0])
            await bridge.push(x=1, large=bytearray(6 << 20))
            await bridge.call(adds_one, bridge.ref("count"))
            await asyncio.gather(*(bridge.push({f"y{i}": i}) for i in range(5)))
            await bridge.delete("large", *(f"y{i}" for i in range(5)))
            await bridge.push(x=2)
            recorded = [parts for way, parts in wire.seen if way == "out"]
            assert len(recorded) > 6
            for _ in range(2):
                await replay(live, recorded)
                assert await look(file_of(live)) == {"count": "[1]", "x": "2"}
            await goes_on(bridge)
        await live.restart()
        async with told_within(2):
            await replay(live, recorded)
        there = await look(file_of(live))
        assert there == {}
        await goes_on(live)


def adds_one(count: list[int]) -> None:
    count[0] += 1


# What a kernel may say instead of an answer; each is well signed.
HOSTILE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "empty": lambda content: {},
    "a-list": lambda content: [1, 2],
    "null": lambda content: None,
    "no-expressions": lambda content: {**content, "user_expressions": None},
    "expressions-a-list": lambda content: {**content, "user_expressions": [1]},
    "entry-a-number": lambda content: {**content, "user_expressions": {"bridgehead": 5}},
    "data-a-string": lambda content: entry(content, {"status": "ok", "data": "x"}),
    "error-of-numbers": lambda content: {"status": "error", "ename": 5, "traceback": 7},
    "many-keys": lambda content: {
        **content,
        "user_expressions": dict.fromkeys(map(str, range(200_000))),
    },
    "no-json": lambda content: answers(content, "{"),
    "a-number": lambda content: answers(content, "5"),
    "deep": lambda content: answers(content, "[" * 100_000),
    "no-sizes": lambda content: answers(content, "{}"),
    "negative-size": lambda content: answers(content, '{"sizes": [-1], "digest": "crc32:0"}'),
    "exabytes": lambda content: answers(content, '{"sizes": [1152921504606846976], "digest": ""}'),
    "sizes-of-text": lambda content: answers(content, '{"sizes": ["1"], "digest": "crc32:0"}'),
    "no-digest": lambda content: answers(content, '{"sizes": []}'),
    "error-a-list": lambda content: answers(
        content, '{"sizes": [], "digest": "crc32:00000000", "error": [1]}'
    ),
    "unknown-error": lambda content: answers(
        content, '{"sizes": [], "digest": "crc32:00000000", "error": {"kind": "new"}}'
    ),
}


def entry(content: dict[str, Any], told: Any) -> dict[str, Any]:
    return {**content, "user_expressions": {"bridgehead": told}}


def answers(content: dict[str, Any], text: str) -> dict[str, Any]:
    told = dict(content["user_expressions"]["bridgehead"])
    (mime,) = (key for key in told["data"] if key != "text/plain")
    return entry(content, {**told, "data": {mime: text}})


def replaced(wire: Wire, parts: Parts, which: int, told: Any) -> Parts:
    """The message with another part in it, well signed."""
    return wire.signed([*parts[:which], json.dumps(told).encode(), *parts[which + 1 :]])


@pytest.mark.parametrize("shape", HOSTILE)
async def test_a_reply_of_any_shape_hurts_one_call_at_most(
    kernel: Bridge, tmp_path: Path, shape: str
) -> None:
    """I7. The kernel answers with something else: a BridgeError, and the bridge goes on."""
    async with wired(kernel, tmp_path, lane="buffers") as (bridge, wire):
        await bridge.push(x=1)

        def once(parts: Parts) -> list[Parts]:
            if kind(parts) != "execute_reply":
                return [parts]
            wire.incoming = whole
            return [replaced(wire, parts, CONTENT, HOSTILE[shape](json.loads(parts[CONTENT])))]

        wire.incoming = once
        async with told_within(1):
            with pytest.raises(BridgeError):
                await bridge.pull("x")
        assert await look(file_of(kernel)) == {"x": "1"}
        await goes_on(bridge)


@pytest.mark.parametrize("spoof", ["bridgehead_data", "bridgehead_news", "stream", ""])
async def test_a_reply_of_another_type(kernel: Bridge, tmp_path: Path, spoof: str) -> None:
    """I7. The reply says that it is something else: the call is told, and the bridge goes on."""
    async with wired(kernel, tmp_path, lane="buffers") as (bridge, wire):
        await bridge.push(x=1)

        def once(parts: Parts) -> list[Parts]:
            if kind(parts) != "execute_reply":
                return [parts]
            wire.incoming = whole
            header = {**json.loads(parts[HEADER]), "msg_type": spoof}
            return [replaced(wire, parts, HEADER, header)]

        wire.incoming = once
        async with told_within(1):
            with pytest.raises(BridgeError):
                await bridge.pull("x")
        assert await look(file_of(kernel)) == {"x": "1"}
        await goes_on(bridge)


async def test_what_crosses_is_not_on_iopub(kernel: Bridge) -> None:
    """I8. A raw subscriber sees no byte of what is pushed, pulled, called or watched."""
    info = json.loads(Path(file_of(kernel)).read_text())
    separator = "-" if info["transport"] == "ipc" else ":"
    secret = uuid.uuid4().hex
    with zmq.asyncio.Context() as context, context.socket(zmq.SUB) as socket:
        socket.subscribe(b"")
        socket.connect(f"{info['transport']}://{info['ip']}{separator}{info['iopub_port']}")
        await until_heard(kernel, socket)
        watch = kernel.watch("x")
        await kernel.push(x=secret, large=secret * 100_000)
        assert await anext(watch) == secret
        assert (await kernel.pull("x", "large"))[0] == secret
        assert await kernel.pull("x", now=True) == secret
        assert await kernel.call(str.upper, kernel.ref("x")) == secret.upper()
        with pytest.raises(RemoteError, match=secret):
            await kernel.call(int, secret)
        await watch.aclose()
        await kernel.run("heard_to_the_end = 1")
        heard = b""
        async with told_within(1):
            while b"heard_to_the_end" not in heard:
                heard += b"".join(await socket.recv_multipart())
    assert b"idle" in heard
    assert secret.encode() not in heard
    assert set(await look(file_of(kernel))) == {"x", "large", "heard_to_the_end"}
    await goes_on(kernel)


async def until_heard(kernel: Bridge, socket: zmq.asyncio.Socket) -> None:
    """Until the subscription has arrived, and what came by then is read."""
    async with told_within(1):
        while not await socket.poll(50):
            await kernel.pull("0")  # no name: it is asked in a message
    while await socket.poll(100):
        await socket.recv_multipart()
