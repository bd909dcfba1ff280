"""Connections to a server that break while its kernel is restarted (row J4).

Rule: as in ``test_servers``. What waits for a connection must not run in another process than the
one it was meant for; another bridge, which does not pass ``Wire``, looks into the new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from bridgehead import Bridge, KernelDied, KernelRestarted
from support.kit import all_of, goes_on, reported_within, until
from support.servers import GATEWAY, SERVER, Other, Wire, on, processes, serving

pytestmark = pytest.mark.servers

CALLS: dict[str, Callable[[Bridge], Any]] = {
    "run": lambda bridge: bridge.run("landed = True"),
    "push": lambda bridge: bridge.push(landed=True),
    "call": lambda bridge: bridge.call(str, 1, keep="landed"),
    "push now": lambda bridge: bridge.push(landed=True, now=True),
    "run again": lambda bridge: bridge.run("landed = 2"),
}


@pytest.fixture(scope="module", params=[SERVER, GATEWAY])
async def anyone(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """The address of either kind of server."""
    async with serving(request.param) as url:
        yield url


@pytest.fixture
async def wired(anyone: str) -> AsyncIterator[tuple[Bridge, Wire, str]]:
    async with Wire(anyone) as wire, on(wire.url) as bridge:
        yield bridge, wire, anyone


async def names_in(server: str, bridge: Bridge) -> list[str]:
    """Return the names in the kernel, as a bridge sees them whose connection did not break."""
    async with on(server, kernel_id=bridge.info.kernel_id) as other:
        return [name.name for name in await other.names()]


async def until_it_works(bridge: Bridge) -> None:
    """Wait until a call works; a restart may be reported twice."""
    for _ in range(3):
        with contextlib.suppress(KernelRestarted):
            await goes_on(bridge)
            return
    await goes_on(bridge)


async def died(server: str, bridge: Bridge) -> None:
    """End the kernel's process, and wait until the server has started another one."""
    old = bridge.info.pid
    os.kill(old, signal.SIGKILL)
    await until(lambda: set(processes(bridge.info.kernel_id)) - {old}, 60)


async def restarted(server: str, bridge: Bridge) -> None:
    async with Other(server) as other:
        await other.restart(str(bridge.info.kernel_id))


@pytest.mark.parametrize("how", [restarted, died])
@pytest.mark.parametrize("when", ["before the cut", "while it is down", "when it is up"])
async def test_nothing_that_waits_runs_in_another_process(
    wired: tuple[Bridge, Wire, str], how: Callable[[str, Bridge], Any], when: str
) -> None:
    """J4. The kernel is replaced while the connection is down: no call runs in the new process."""
    bridge, wire, server = wired
    for _ in range(2):
        await bridge.push(old=1)
        calls: list[asyncio.Task[Any]] = []

        def begin(calls: list[asyncio.Task[Any]] = calls) -> None:
            calls += [asyncio.ensure_future(call(bridge)) for call in CALLS.values()]

        wire.is_down = True
        wire.cut()
        if when == "before the cut":  # the bridge does not know yet that the connection is broken
            begin()
        await how(server, bridge)
        if when == "while it is down":
            begin()
            await asyncio.sleep(0.1)
        wire.is_down = False
        if when == "when it is up":
            begin()
        async with reported_within(5):
            outcomes = await all_of(*calls)
        assert {type(outcome) for outcome in outcomes} == {KernelRestarted}
        assert "old" not in (names := await names_in(server, bridge))
        assert "landed" not in names
        await until_it_works(bridge)


async def test_a_kernel_that_is_deleted_meanwhile_is_reported(
    wired: tuple[Bridge, Wire, str],
) -> None:
    """J4. No process answers any more: what waits is not sent, and reports the death."""
    bridge, wire, server = wired
    wire.is_down = True
    wire.cut()
    calls = [asyncio.ensure_future(call(bridge)) for call in CALLS.values()]
    async with Other(server) as other:
        await other.delete(str(bridge.info.kernel_id))
    wire.is_down = False
    async with reported_within(5):
        outcomes = await all_of(*calls)
    assert {type(outcome) for outcome in outcomes} == {KernelDied}


async def test_what_waits_for_the_same_process_is_sent_once(
    wired: tuple[Bridge, Wire, str],
) -> None:
    """J4. The connection breaks again and again, and the process stays: all waiting calls run."""
    bridge, wire, _ = wired
    await bridge.run("ran = []")
    for n in range(6):
        wire.is_down = True
        wire.cut()
        await until(lambda: bridge._transport._socket is None)
        calls = [asyncio.ensure_future(bridge.run(f"ran.append(({n}, {m}))")) for m in range(3)]
        await asyncio.sleep(0.05)
        wire.is_down = False
        if n % 2:  # cut again at about the time when the kernel's answer arrives
            opened = wire.opened
            await until(lambda: wire.opened > opened + 1)
            wire.cut()
        outcomes = await all_of(*calls)
        ran = [m for one, m in await bridge.pull("ran") if one == n]
        assert ran == sorted(set(ran))
        assert [m for m, one in enumerate(outcomes) if not isinstance(one, BaseException)] == ran
        if not n % 2:
            assert ran == [0, 1, 2]


async def test_a_cell_that_another_process_ran_is_reported(server: str) -> None:
    """J4. The connection holds, and the server gives the new process what waits for the old one."""
    async with on(server) as bridge, Other(server) as other:
        for _ in range(4):
            await until_it_works(bridge)
            old = (await bridge.run("import os; print(os.getpid())")).stdout
            restarting = asyncio.ensure_future(other.restart(str(bridge.info.kernel_id)))
            outcomes = []
            while not restarting.done():
                outcomes += await all_of(bridge.run("import os; print(os.getpid())"))
            await restarting
            for outcome in outcomes:
                if isinstance(outcome, KernelRestarted):
                    break  # the caller knows, and what follows goes to the new process
                assert outcome.stdout == old, outcomes


async def test_an_operation_beside_a_cell_works_although_the_connection_breaks(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It breaks while the kernel makes the subshell for the operation."""
    async with Wire(server) as wire, on(wire.url) as bridge:
        control = bridge._transport.dispatcher.control

        async def control_and_cut(*request: Any) -> Any:
            monkeypatch.undo()
            asking = asyncio.ensure_future(control(*request))
            await asyncio.sleep(0)
            wire.cut()
            return await asking

        monkeypatch.setattr(bridge._transport.dispatcher, "control", control_and_cut)
        async with asyncio.timeout(60):
            await bridge.push(x=1, now=True)
        assert await bridge.pull("x") == 1
        assert wire.cuts == 1
