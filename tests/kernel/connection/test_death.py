"""Rows A of the catalogue of faults: death, stop and restart.

Rule: each test covers a row of the catalogue; its docstring starts with the row's number. A test
asserts how soon the call ends, what the namespace contains afterwards (as seen by a client without
bridgehead), and that the next operation on the same bridge works. Each test injects the real fault.
A test that stops a kernel lets it continue before it ends the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from jupyter_client.ioloop import AsyncIOLoopKernelManager
from jupyter_client.manager import AsyncKernelManager
from traitlets.config import Config

from bridgehead import Bridge, KernelDied, KernelNotFound, KernelRestarted, KernelUnresponsive
from bridgehead._transports.timings import Timings
from support.cuts import listening
from support.elsewhere import MAJORS
from support.faults import CallsInKernel
from support.kit import (
    all_of,
    at_work,
    file_of,
    goes_on,
    other,
    reported_within,
    stopped,
    until,
    wired,
)
from support.look import look

# A kernel can't import test modules, so what they define is pickled by value, as in a script.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

ATTACHED, LAUNCHED = 3.0, 0.5  # s until a death is reported
# An attached bridge waits until another owner must have restarted the kernel, and here none does.
no_restart = pytest.mark.timings(reconnect_grace=0.3)


@pytest.fixture
async def manager() -> AsyncIterator[AsyncKernelManager]:
    """Start a kernel by a manager outside the bridge, which owns it."""
    manager = AsyncKernelManager()
    await manager.start_kernel()
    try:
        yield manager
    finally:
        await manager.shutdown_kernel(now=True)


def everything(bridge: Bridge) -> list[asyncio.Task[Any]]:
    """Start every kind of operation; the first one keeps the kernel busy for a minute."""
    operations = [
        bridge.push(slow=CallsInKernel(time.sleep, 60), x=1),
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
async def test_a_dead_kernel_is_reported_quickly(
    live: Bridge, attached: bool, shorten: Callable[..., None]
) -> None:
    """A1. SIGKILL with every kind of operation pending: all fail at once, and so do new calls."""
    async with contextlib.AsyncExitStack() as stack:
        bridge = live
        if attached:
            bridge = await stack.enter_async_context(Bridge.attach(file_of(live)))
        await bridge.push(z=0)
        stream = bridge.messages()
        pending = everything(bridge)
        await until(lambda: at_work(bridge))
        os.kill(live.info.pid, signal.SIGKILL)
        async with reported_within(ATTACHED if attached else LAUNCHED):
            outcomes = await all_of(*pending)
            assert {type(outcome) for outcome in outcomes} == {KernelDied}
            assert {message.type async for message in stream} <= {"status"}  # and the stream ends
        assert bridge.state == "dead"
        if not attached:
            assert {outcome.exit_code for outcome in outcomes} == {-signal.SIGKILL}
            assert "was killed by SIGKILL" in str(outcomes[0])
        async with reported_within(0.1):
            assert {type(one) for one in await all_of(*everything(bridge))} == {KernelDied}
        if not attached:
            shorten(listen_within=0.3)
            async with reported_within(ATTACHED):
                with pytest.raises(KernelNotFound):
                    await Bridge.attach(file_of(live))
        await live.restart()
        if attached:  # the bridge still expects the old kernel
            async with reported_within(ATTACHED):
                with pytest.raises((KernelDied, KernelRestarted)):
                    await bridge.push(x=2)
                await until_back(bridge)
        assert await look(file_of(live)) == {}
        await goes_on(bridge)


async def until_back(bridge: Bridge) -> None:
    """Wait until the bridge works with the kernel that replaced the dead one."""
    while True:
        try:
            await bridge.exists("x")
        except (KernelDied, KernelRestarted):
            await asyncio.sleep(0.01)
        else:
            return


ENDS = {
    "os._exit": (CallsInKernel(os._exit, 7), 7, "exit code 7"),
    "segfault": (CallsInKernel(ctypes.string_at, 0), -signal.SIGSEGV, "was killed by SIGSEGV"),
    "abort": (CallsInKernel(os.abort), -signal.SIGABRT, "was killed by SIGABRT"),
    # This is how Linux kills a process that needs too much memory.
    "oom-kill": (
        CallsInKernel(signal.raise_signal, signal.SIGKILL),
        -signal.SIGKILL,
        "killed by SIGKILL",
    ),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_a_kernel_that_dies_while_unpickling_is_reported(live: Bridge, end: str) -> None:
    """A2. The object that is unpickled ends the process: KernelDied says how it ended."""
    killer, code, words = ENDS[end]
    async with reported_within(LAUNCHED):
        with pytest.raises(KernelDied, match=words) as caught:
            await live.push(x=1, killer=killer)
    assert caught.value.exit_code == code
    await live.restart()
    assert await look(file_of(live)) == {}
    await goes_on(live)


async def test_a_stopped_kernel_is_reported_and_recovers(
    live: Bridge, shorten: Callable[..., None]
) -> None:
    """A3. A stopped kernel is reported after a while; when it continues, bridges work."""
    async with Bridge.attach(file_of(live)) as attached:
        bridges = live, attached
        await live.push(x="before")
        await until(lambda: all(bridge._transport.has_pulse for bridge in bridges))
        with stopped(live):
            async with reported_within(0.5):
                outcomes = await all_of(*(bridge.pull("x", timeout=0.5) for bridge in bridges))
            assert {type(outcome) for outcome in outcomes} == {TimeoutError}
            late = [bridge._transport.dispatcher.late for bridge in bridges]
            true = Timings()
            shorten(silence=1.0, beat_every=0.25)
            async with reported_within(5):
                pushes = [bridge.push(x="after") for bridge in bridges]
                pulls = [bridge.pull("x") for bridge in bridges]
                outcomes = await all_of(*pushes, *pulls, *(b.run("z = 1") for b in bridges))
            assert {type(outcome) for outcome in outcomes} == {KernelUnresponsive}
            assert [bridge.state for bridge in bridges] == ["unresponsive"] * 2
            async with reported_within(5):
                outcomes = await all_of(*(bridge.push(y=2) for bridge in bridges))
            assert {type(outcome) for outcome in outcomes} == {KernelUnresponsive}
            shorten(silence=true.silence, beat_every=true.beat_every)
        async with reported_within(1):
            assert [await bridge.pull("x") for bridge in bridges] == ["before"] * 2
        # The replies to the first pulls came late. The calls behind them were never sent.
        now = [bridge._transport.dispatcher.late for bridge in bridges]
        assert all(more > before for more, before in zip(now, late, strict=True))
        assert await look(file_of(live)) == {"x": "'before'"}
        for bridge in bridges:
            await goes_on(bridge)


async def test_calls_beyond_the_window_end_with_a_stopped_kernel(
    live: Bridge, shorten: Callable[..., None]
) -> None:
    """A3. An unresponsive kernel replies to none of the 32 in flight; what waits behind them."""
    async with Bridge.attach(file_of(live), lane="buffers") as bridge:
        assert await bridge.pull("1 + 1", now=True) == 2
        await until(lambda: bridge._transport.has_pulse)
        true = Timings()
        shorten(silence=1.0, beat_every=0.25)
        with stopped(live):
            async with reported_within(20):
                outcomes = await all_of(*(bridge.pull("1 + 1", now=True) for _ in range(40)))
        shorten(silence=true.silence, beat_every=true.beat_every)
        assert {type(outcome) for outcome in outcomes} == {KernelUnresponsive}
        await goes_on(bridge)
        slots = bridge._transport.dispatcher.subshell_window
        await until(lambda: not slots.taken)
    await goes_on(live)


async def test_a_kernel_that_is_stopped_briefly_loses_no_call(live: Bridge) -> None:
    """A3. A kernel is stopped for only three seconds: every waiting call gets its reply."""
    await live.push(x=1)
    with stopped(live):
        pending = [asyncio.ensure_future(live.pull("x")) for _ in range(20)]
        await asyncio.sleep(3)
    async with reported_within(1):
        assert await asyncio.gather(*pending) == [1] * 20
    assert await look(file_of(live)) == {"x": "1"}
    await goes_on(live)


async def test_a_restart_fails_pending_calls_at_once(manager: AsyncKernelManager) -> None:
    """A4. The manager restarts its kernel; pending calls fail and do not run in the new one."""
    async with Bridge.attach(manager.connection_file) as bridge:
        await bridge.push(z=0)
        pending = everything(bridge)
        await until(lambda: at_work(bridge))
        await manager.restart_kernel(now=True)
        async with reported_within(2):
            outcomes = await all_of(*pending)
        assert {type(outcome) for outcome in outcomes} == {KernelRestarted}
        assert await look(manager.connection_file) == {}
        await until_back(bridge)
        await goes_on(bridge)


@pytest.mark.parametrize(
    "noticed", [False, pytest.param(True, marks=no_restart)], ids=["at-once", "noticed"]
)
async def test_calls_to_a_dead_kernel_never_run_in_the_next_one(
    manager: AsyncKernelManager, noticed: bool
) -> None:
    """A5. Calls to a dead kernel, then a restart: none of the calls runs in the next kernel."""
    async with Bridge.attach(manager.connection_file) as bridge:
        for _ in range(1 if noticed else 3):
            await bridge.push(before=1)
            os.kill(bridge.info.pid, signal.SIGKILL)
            if noticed:
                await until(lambda: bridge.state == "dead")
            pending = everything(bridge)
            await asyncio.sleep(0)
            await manager.restart_kernel(now=True)
            async with reported_within(ATTACHED):
                outcomes = await all_of(*pending)
            assert {type(outcome) for outcome in outcomes} <= {KernelDied, KernelRestarted}
            assert await look(manager.connection_file) == {}
            await until_back(bridge)
        await goes_on(bridge)


@pytest.mark.parametrize(
    ("operation", "pause"), [("push", 0), ("run", 0), ("push", 3)], ids=["push", "run", "later"]
)
@pytest.mark.slow
async def test_an_unnoticed_restart_is_reported_by_the_next_call(
    manager: AsyncKernelManager, operation: str, pause: float
) -> None:
    """A6. A restart between two calls, with no call pending: the next call reports it."""
    async with Bridge.attach(manager.connection_file) as bridge:
        await bridge.push(x=1)
        await manager.restart_kernel(now=True)
        await asyncio.sleep(pause)
        async with reported_within(2):
            with pytest.raises(KernelRestarted):
                await (bridge.push(x=2) if operation == "push" else bridge.run("x = 2"))
        assert await look(manager.connection_file) == {}
        await until_back(bridge)
        await goes_on(bridge)


def resources() -> tuple[int, int]:
    """Count the file descriptors and threads of this process."""
    return len(os.listdir("/proc/self/fd")), threading.active_count()


async def test_a_kernel_that_exits_at_once_is_reported_each_time(
    kernelspec: Callable[..., str],
) -> None:
    """A7. A kernelspec whose program exits: KernelDied quotes its output; nothing is left."""
    words = "import sys; sys.exit('no kernel today')"
    kernelspec("exits", [sys.executable, "-c", words])
    before = None
    for _ in range(5):
        async with reported_within(1):
            with pytest.raises(KernelDied, match="exit code 1; it last wrote:\nno kernel today"):
                await Bridge.launch("exits")
        before = before or resources()
    assert resources() <= before


async def test_a_hundred_calls_of_a_dead_kernel_leave_nothing(live: Bridge) -> None:
    """A7. A kernel stays dead: every call fails, without a new descriptor or a busy loop."""
    os.kill(live.info.pid, signal.SIGKILL)
    async with reported_within(LAUNCHED):
        with pytest.raises(KernelDied):
            await live.pull("1")
    before = resources()
    for _ in range(10):
        async with reported_within(0.1):
            outcomes = await all_of(*everything(live))
        assert {type(outcome) for outcome in outcomes} == {KernelDied}
    assert resources() <= before
    busy = time.process_time()
    await asyncio.sleep(1)
    assert time.process_time() - busy < 0.5  # s of CPU time of this process
    await live.restart()
    assert await look(file_of(live)) == {}
    await goes_on(live)


@no_restart
@pytest.mark.slow
async def test_a_kernel_whose_autorestarter_gives_up_is_reported_on_every_call(
    kernelspec: Callable[..., str], tmp_path: Path
) -> None:
    """A7. A kernel starts only once, so restarts fail: every call raises KernelDied."""
    crash = tmp_path / "crash"
    argv = ["sh", "-c", f"test -e {crash} && exit 3; exec {sys.executable} -m ipykernel_launcher"]
    argv[-1] += ' -f "$0"'
    kernelspec("crashes", [*argv, "{connection_file}"])
    config = Config({"KernelRestarter": {"time_to_dead": 0.2, "restart_limit": 3}})
    manager = AsyncIOLoopKernelManager(kernel_name="crashes", autorestart=True, config=config)
    async with listening(manager), Bridge.attach(manager.connection_file) as bridge:
        gave_up = asyncio.Event()
        manager.add_restart_callback(gave_up.set, "dead")
        pending = asyncio.ensure_future(bridge.push(slow=CallsInKernel(time.sleep, 60)))
        await until(lambda: at_work(bridge))
        crash.touch()
        os.kill(bridge.info.pid, signal.SIGKILL)
        async with reported_within(ATTACHED):
            (outcome,) = await all_of(pending)
        assert isinstance(outcome, KernelDied)
        async with reported_within(5):
            await gave_up.wait()
        for _ in range(10):
            async with reported_within(0.1):
                with pytest.raises(KernelDied):
                    await bridge.push(x=1)
        crash.unlink()
        await manager.restart_kernel(now=True)
        await until_back(bridge)
        assert await look(manager.connection_file) == {}
        await goes_on(bridge)


class ExitsWhenReplaced:
    def __del__(self) -> None:
        os._exit(3)


class ExitsWhenPickled:
    def __reduce__(self) -> Any:
        os._exit(3)


def write_once(file: str) -> Any:
    """Write to the file; the result ends the process when it is pickled."""
    with open(file, "a") as text:
        text.write("once\n")
    return ExitsWhenPickled()


HOOK = "get_ipython().events.register('post_execute', lambda: __import__('os')._exit(3))"
EXITS_AFTER_EFFECT: dict[str, Callable[[Bridge, str], Any]] = {
    "run": lambda bridge, file: bridge.run(f"print('once', file=open({file!r}, 'a'))\n{HOOK}"),
    "call": lambda bridge, file: bridge.call(write_once, file),
    "push": lambda bridge, file: bridge.push(x=CallsInKernel(write_once, file)),
}


@no_restart
@pytest.mark.parametrize(
    ("operation", "attached"), [("run", False), ("call", False), ("push", False), ("push", True)]
)
async def test_a_kernel_that_dies_between_execution_and_reply_is_reported(
    live: Bridge, tmp_path: Path, operation: str, attached: bool
) -> None:
    """A8. The operation runs, then the process ends: KernelDied, and it ran exactly once.

    The process ends in the post_execute hook of a cell, when the result of a call is pickled, or
    in the ``__del__`` of a value that a push replaces.
    """
    ran = tmp_path / "ran"
    async with contextlib.AsyncExitStack() as stack:
        bridge = live
        if attached:
            bridge = await stack.enter_async_context(Bridge.attach(file_of(live)))
        if operation == "push":
            await live.call(ExitsWhenReplaced, keep="x")
        async with reported_within(ATTACHED if attached else LAUNCHED):
            with pytest.raises(KernelDied) as caught:
                await EXITS_AFTER_EFFECT[operation](bridge, str(ran))
        assert attached or caught.value.exit_code == 3
        await live.restart()
        if attached:
            await until_back(bridge)
        assert await look(file_of(live)) == {}
        await goes_on(bridge)
    assert ran.read_text() == "once\n"


@pytest.mark.parametrize("attached", [False, True], ids=["launched", "attached"])
@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_a_shutdown_by_another_client_is_reported(live: Bridge, attached: bool) -> None:
    """A9. Another client shuts the kernel down: KernelDied says so; closing twice is fine."""
    async with contextlib.AsyncExitStack() as stack:
        bridge = live
        if attached:
            bridge = await stack.enter_async_context(Bridge.attach(file_of(live)))
        await bridge.push(x=1)
        stream, watch = bridge.messages(), bridge.watch("x")
        assert await anext(watch) == 1
        async with other(live) as other_client:
            other_client.client.shutdown()
            async with reported_within(ATTACHED if attached else LAUNCHED):
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


async def test_a_restart_behind_a_proxy_that_keeps_the_connection_is_reported(
    kernelspec: Callable[..., str], tmp_path: Path
) -> None:
    """A10. As in a container: the new kernel has the same pid, a proxy hides the restart."""
    unshared = ["unshare", "--pid", "--fork", "--kill-child"]
    try:
        subprocess.run([*unshared, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this user can't make a pid namespace: {error}")
    argv = [*unshared, sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    async with Bridge.launch(kernelspec("contained", argv)) as kernel:
        assert kernel.info.pid == 1
        async with wired(kernel, tmp_path) as (bridge, _):
            await bridge.push(x=1)
            await kernel.restart()
            assert kernel.info.pid == 1
            async with reported_within(2):
                with pytest.raises(KernelRestarted):
                    await bridge.push(x=2)
            assert await look(file_of(kernel)) == {}
            await goes_on(bridge)


# While its last objects are deleted, the process lives on, and so does the direct lane's thread.
# Other names may be deleted before.
SLOW_TO_END = """
import pathlib, time
class Slow:
    def __del__(self, begun=pathlib.Path({!r}), sleep=time.sleep):
        begun.touch()
        sleep(2)
slow = Slow()
"""


@pytest.mark.parametrize("now", [False, True], ids=["in turn", "now"])
async def test_a_process_that_ends_says_nothing_of_its_emptied_namespace(
    live: Bridge, tmp_path: Path, now: bool
) -> None:
    """A9. IPython empties the namespace at exit: what was there is not reported as missing."""
    begun = tmp_path / "begun"
    await live.push(x=1)
    await live.run(SLOW_TO_END.format(str(begun)))
    async with other(live) as client:
        client.client.shutdown()
        await until(begun.exists)
        with pytest.raises((KernelDied, KernelRestarted)):
            await live.pull("x", now=now)
    with pytest.raises(KernelDied):
        while True:
            await live.pull("x", now=now)
    await live.restart()
    await goes_on(live)
