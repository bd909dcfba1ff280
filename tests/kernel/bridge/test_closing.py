"""Closing a bridge when something fails meanwhile: everything is released, and no error hidden.

Rule: real kernels; what fails is a method of jupyter_client's provisioner, which ends the kernel.
``servers/test_closing.py`` has the same for kernels behind servers.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import operator
import os
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from bridgehead import Bridge, BridgeClosed, Fleet, KernelDied, SyncBridge
from support.kit import file_of, reported_within, stopped, until

# What a manager calls, one after the other, to end a kernel.
STEPS = ["poll", "shutdown_requested", "wait", "cleanup"]
Failing = Callable[[str], contextlib.AbstractContextManager[None]]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Failing:
    """Give a context manager in which a step of ending a kernel fails."""

    @contextlib.contextmanager
    def fails(step: str) -> Any:
        async def fail(self: LocalProvisioner, *args: Any, **options: Any) -> None:
            raise OSError(f"{step} fails")

        with monkeypatch.context() as patch:
            patch.setattr(LocalProvisioner, step, fail)
            yield

    return fails


def resources() -> tuple[int, int]:
    """Count the descriptors and threads of this process."""
    return len(os.listdir("/proc/self/fd")), threading.active_count()


def is_gone(pid: int) -> bool:
    """Return whether the process has ended, and its parent knows it."""
    return not psutil.pid_exists(pid)


@contextlib.asynccontextmanager
async def released(*bridges: Bridge | SyncBridge) -> AsyncIterator[None]:
    """Check that the block leaves neither processes nor files of these bridges' kernels."""
    pids = [bridge.info.pid for bridge in bridges]
    files = [str(bridge.info.connection_file) for bridge in bridges]
    yield
    assert all(map(is_gone, pids))
    assert not any(map(os.path.exists, files))


@pytest.mark.parametrize("step", STEPS)
async def test_all_is_released_whatever_fails(failing: Failing, step: str) -> None:
    """J8. A step of closing fails: it is reported, all others are done, and closing works again."""
    async with Bridge.launch():  # starts threads that stay
        pass
    before = resources()
    bridge = await Bridge.launch()
    async with released(bridge):
        with failing(step):
            async with reported_within(3):
                with pytest.raises(OSError, match=f"{step} fails"):
                    await bridge.aclose()
            with contextlib.suppress(OSError):  # it tries again, and may fail again
                await bridge.aclose()
    assert bridge.state == "closed"
    with pytest.raises(BridgeClosed):
        await bridge.pull("1")
    async with reported_within(0.5):
        await bridge.aclose()
        await bridge.aclose()
    # ZeroMQ tries for 0.1 s to send the manager's last message to a kernel that was killed.
    await until(lambda: resources() <= before)


# The steps of closing a connection, as attributes of it.
OWN_STEPS = [
    "resources.close",
    "remote.lane.messages.leave",
    "remote.lane.client.fail_waiters",
    "remote.lane.client.channel.close",
    "remote.lane.client.pool.close",
    "subshell.aclose",
    "transport.close",
]


@pytest.mark.parametrize("step", OWN_STEPS)
async def test_a_second_close_releases_what_the_first_did_not(kernel: Bridge, step: str) -> None:
    """J8. A step of the bridge's own fails once: it is reported, and nothing is left."""
    patch = pytest.MonkeyPatch()

    def fail(*_: object) -> None:
        patch.undo()
        raise OSError(f"{step} fails")

    async def fail_later() -> None:
        fail()

    async def used() -> Bridge:
        bridge = await Bridge.attach(file_of(kernel))
        await bridge.push(x=bytes(10**6))
        assert await bridge.pull("x[:2] + bytes(1)", now=True) == bytes(3)  # in a subshell
        return bridge

    await (await used()).aclose()  # it has started threads that stay
    before = resources()
    bridge = await used()
    owner, _, name = step.rpartition(".")
    is_async = inspect.iscoroutinefunction(operator.attrgetter(step)(bridge._connection))
    owning = operator.attrgetter(owner)(bridge._connection)
    patch.setattr(owning, name, fail_later if is_async else fail)
    async with reported_within(3):
        with pytest.raises(OSError, match=f"{step} fails"):
            await bridge.aclose()
        await bridge.aclose()
    assert bridge.state == "closed"
    await until(lambda: resources() <= before)
    assert await kernel.pull("len(x)") == 10**6


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError, KeyboardInterrupt])
@pytest.mark.parametrize("step", STEPS)
async def test_the_error_of_the_block_is_raised(
    failing: Failing, caplog: pytest.LogCaptureFixture, step: str, error: type[BaseException]
) -> None:
    """J8. The block raised first: its error gets a note, and the failure is logged."""
    opening = Bridge.launch()
    own = error("of the block")
    with pytest.raises(error, match="of the block") as caught:
        async with opening as bridge:
            file = file_of(bridge)
            with failing(step):
                async with bridge:
                    raise own
    assert caught.value is own
    assert f"closing failed, too: OSError: {step} fails" in own.__notes__
    assert f"closing failed: OSError: {step} fails" in caplog.messages
    assert not Path(file).exists()


async def test_a_timeout_of_the_block_stays_a_timeout(failing: Failing) -> None:
    """J8. A deadline of the caller cancels the block, and closing fails: it is a TimeoutError."""
    async with Bridge.launch() as bridge:
        with failing("shutdown_requested"), pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2), bridge:
                await bridge.run("import time; time.sleep(60)")
        assert is_gone(bridge.info.pid)


async def test_a_failed_opening_is_raised_though_closing_fails(failing: Failing) -> None:
    """J8. Opening fails, and so does closing what was opened."""
    with failing("cleanup"), pytest.raises(KernelDied, match="ended with exit code") as caught:
        await Bridge.launch(env={"PYTHONHOME": "/nowhere"})
    assert "closing failed, too: OSError: cleanup fails" in caught.value.__notes__


async def test_a_fleet_closes_all_its_bridges(failing: Failing) -> None:
    """J8. Closing fails for each kernel: a group of errors, and no kernel is left."""
    fleet = await Fleet.launch(2)
    async with released(*fleet):
        with failing("wait"):
            with pytest.raises(ExceptionGroup, match="2 of 2 kernels failed") as caught:
                await fleet.aclose()
            assert [str(error) for error in caught.value.exceptions] == ["wait fails"] * 2
            with pytest.raises(ZeroDivisionError) as divided:
                async with fleet:
                    _ = 1 / 0
            assert "closing failed, too: FleetError: 2 of 2" in divided.value.__notes__[0]
    assert [bridge.state for bridge in fleet] == ["closed"] * 2
    await fleet.aclose()


async def test_a_sync_bridge_closes_again(
    failing: Failing, caplog: pytest.LogCaptureFixture
) -> None:
    """J8. The same for a SyncBridge, whose thread ends with the first attempt."""
    caplog.set_level(logging.WARNING, "bridgehead")
    kernel = await asyncio.to_thread(SyncBridge.launch)
    async with released(kernel):
        with failing("wait"):
            with pytest.raises(OSError, match="wait fails"):
                await asyncio.to_thread(kernel.close)
            with pytest.raises(OSError, match="wait fails"):
                await asyncio.to_thread(kernel.close)
            with pytest.raises(ZeroDivisionError) as divided:
                with kernel:
                    _ = 1 / 0
            assert "closing failed, too: OSError: wait fails" in divided.value.__notes__
    assert not [thread for thread in threading.enumerate() if thread.name == "bridgehead"]
    assert kernel.state == "closed"
    await asyncio.to_thread(kernel.close)
    with pytest.raises(BridgeClosed):
        kernel.pull("1")
    assert not [thread for thread in threading.enumerate() if thread.name == "bridgehead"]


async def test_calls_that_wait_for_the_handshake_report_that_the_bridge_was_closed() -> None:
    async with Bridge.launch() as kernel, Bridge.attach(file_of(kernel)) as bridge:
        remote = bridge._connection.remote
        remote.mark_lost(remote.greeting)
        with stopped(kernel):
            calls = [asyncio.ensure_future(call) for call in (bridge.run("1"), bridge.push(x=1))]
            await until(lambda: bool(bridge._transport.dispatcher.pending))
            await bridge.aclose()
            for call in calls:
                with pytest.raises(BridgeClosed):
                    await call
