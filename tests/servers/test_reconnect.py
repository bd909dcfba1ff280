"""Connections to a server that break while its kernel is restarted (row J4).

Rule: as in ``test_servers``. What waits for a connection must not run in another process than the
one it was meant for; another bridge, which does not pass ``Wire``, looks into the new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from bridgehead import Bridge, KernelDied, KernelRestarted, KernelUnresponsive, NameNotFound
from bridgehead._transports.timings import Timings
from support.kit import all_of, goes_on, reported_within, until
from support.servers import Other, Wire, on, processes

pytestmark = pytest.mark.servers

CALLS: dict[str, Callable[[Bridge], Any]] = {
    "run": lambda bridge: bridge.run("arrived = True"),
    "push": lambda bridge: bridge.push(arrived=True),
    "call": lambda bridge: bridge.call(str, 1, keep="arrived"),
    "push now": lambda bridge: bridge.push(arrived=True, now=True),
    "run again": lambda bridge: bridge.run("arrived = 2"),
}


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
        assert "arrived" not in names
        await until_it_works(bridge)


async def test_a_kernel_that_is_stopped_behind_a_server_is_unresponsive(
    wired: tuple[Bridge, Wire, str], shorten: Callable[..., None]
) -> None:
    """J13. No heartbeat crosses a server: it is reported when control, too, has not answered."""
    bridge, _, _ = wired
    await bridge.push(x=1)
    shorten(lost_after=1.0)
    os.kill(bridge.info.pid, signal.SIGSTOP)
    try:
        async with reported_within(60):
            outcomes = await all_of(bridge.pull("x"), bridge.exists("x"))
        assert {type(outcome) for outcome in outcomes} == {KernelUnresponsive}
    finally:
        os.kill(bridge.info.pid, signal.SIGCONT)
    shorten(lost_after=Timings().lost_after)
    await until(lambda: not bridge._transport.life.is_unresponsive)
    assert await bridge.pull("x") == 1


async def test_a_kernel_that_is_stopped_when_the_connection_breaks_is_unresponsive(
    wired: tuple[Bridge, Wire, str], shorten: Callable[..., None]
) -> None:
    """J4. It cannot say over the new connection which process answers."""
    bridge, wire, server = wired
    await bridge.push(x=1)
    shorten(lost_after=1.0)
    os.kill(bridge.info.pid, signal.SIGSTOP)
    try:
        wire.cut()
        async with reported_within(60):
            outcomes = await all_of(bridge.run("x = 2"), bridge.pull("x"), bridge.exists("x"))
        assert {type(outcome) for outcome in outcomes} == {KernelUnresponsive}
    finally:
        os.kill(bridge.info.pid, signal.SIGCONT)
    shorten(lost_after=Timings().lost_after)
    await until(lambda: not bridge._transport.life.is_unresponsive)
    assert await bridge.pull("x") == 1
    assert await names_in(server, bridge) == ["x"]


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


@pytest.mark.parametrize("nbytes", [1, 20_000_000])
async def test_an_outcome_that_comes_while_the_connection_is_down_is_not_lost(
    wired: tuple[Bridge, Wire, str], nbytes: int
) -> None:
    """The task ends while the connection is down, or the connection breaks in its outcome."""

    async def waits(names: dict[str, Any], nbytes: int) -> bytes:
        import asyncio

        names["ran"] = names.get("ran", 0) + 1
        while "go" not in names:
            await asyncio.sleep(0.01)
        names["state"] = "done"
        return bytes(nbytes)

    bridge, wire, server = wired
    async with on(server, kernel_id=bridge.info.kernel_id) as second:
        task = bridge.submit(waits, bridge.ref("globals()"), nbytes)
        await goes_on(bridge)
        wire.is_down = True
        wire.cut()
        await second.push(go=True)
        await until_done(second)
        assert not task.done()
        wire.cut_after(nbytes // 2)
        wire.is_down = False
        async with reported_within(10):
            assert await task == bytes(nbytes)
        assert wire.cuts > 1
        assert await second.pull("ran") == 1
    assert bridge.stats.tasks == 0


async def kept_in(bridge: Bridge) -> Any:
    """Return the objects that the kernel keeps for any bridge under no name."""
    return await bridge.call(_kept, by_value=[sys.modules[__name__]])


def _kept() -> tuple[list[Any], int]:
    import sys

    module: Any = next(m for n, m in sys.modules.items() if n.startswith("_bridgehead"))
    (remote,) = module._remotes.values()
    return list(remote.operations.values.kept.values()), len(remote.resources.known)


async def test_a_kept_result_survives_a_connection_that_breaks(
    wired: tuple[Bridge, Wire, str],
) -> None:
    """Also a result whose reply is lost, and a ref that is dropped while the connection is down."""
    bridge, wire, server = wired
    async with on(server, kernel_id=bridge.info.kernel_id) as second:
        ref = await bridge.call(sorted, [2, 1], keep=True)
        other = await bridge.call(sorted, [4, 3], keep=True)
        await second.run("import time")
        cell = asyncio.ensure_future(second.run("time.sleep(0.5)"))
        await asyncio.sleep(0.1)
        call = asyncio.ensure_future(bridge.call(sorted, [6, 5], keep=True))
        await asyncio.sleep(0.1)
        wire.is_down = True
        wire.cut()
        del other
        await cell
        wire.is_down = False
        async with reported_within(10):
            late = await call
            assert await bridge.pull(ref, late[0]) == ([1, 2], 5)
        await until_kept(second, [[1, 2], [5, 6]])
        assert bridge.stats.refs == 2
        await bridge.delete(late)
        async with ref:
            pass
        await until_kept(second, [])


async def test_a_kept_result_is_gone_with_its_process(wired: tuple[Bridge, Wire, str]) -> None:
    bridge, _, server = wired
    ref = await bridge.call(sorted, [2, 1], keep=True)
    await restarted(server, bridge)
    await until_it_works(bridge)
    new = await bridge.call(sorted, [4, 3], keep=True)
    with pytest.raises(NameNotFound, match="not in the kernel any more"):
        await ref.pull()
    assert await new.pull() == [3, 4]
    del ref
    async with on(server, kernel_id=bridge.info.kernel_id) as second:
        await until_kept(second, [[3, 4]])
        theirs = await second.call(sorted, [6, 5], keep=True)
        assert await bridge.pull(theirs) == [5, 6]
    await until_kept(bridge, [[3, 4]])  # the other one was freed with its bridge


async def until_kept(bridge: Bridge, objects: list[Any]) -> None:
    async with asyncio.timeout(30):
        while await kept_in(bridge) != (objects, len(objects)):
            await asyncio.sleep(0.02)


async def test_calls_back_survive_a_broken_connection(wired: Any) -> None:
    """None is lost and none arrives twice, also if they are made while the connection is down."""
    bridge, wire, server = wired
    seen: list[int] = []
    async with on(server, kernel_id=bridge.info.kernel_id) as second:
        with bridge.callback(seen.append) as report:
            await bridge.push(report=report)
            running = asyncio.ensure_future(
                second.run("import time\nfor n in range(1000):\n    report(n); time.sleep(0.001)")
            )
            for _ in range(3):
                before = len(seen)
                async with asyncio.timeout(30):
                    while len(seen) == before and not running.done():
                        await asyncio.sleep(0.01)
                wire.cut()
            await running
            async with asyncio.timeout(60):
                while len(seen) < 1000:
                    await asyncio.sleep(0.01)
        assert seen == [*range(1000)]
        assert wire.cuts


@pytest.mark.parametrize("is_async", [False, True])
async def test_an_iteration_survives_a_broken_connection(
    wired: tuple[Bridge, Wire, str], is_async: bool
) -> None:
    """No item is lost and none comes twice, also if it is made while the connection is down."""

    def rows() -> Any:
        import time

        for n in range(600):
            time.sleep(0.001)
            yield n

    async def rows_async() -> Any:
        for n in range(600):
            await asyncio.sleep(0.001)
            yield n

    bridge, wire, server = wired
    found: list[int] = []
    async with on(server, kernel_id=bridge.info.kernel_id) as second:
        async with bridge.iterate(rows_async if is_async else rows) as items:
            async for item in items:
                found.append(item)
                if item % 100 == 1:
                    wire.cut()
                if item == 301:
                    wire.is_down = True
                    await second.run("import time; time.sleep(0.3)")
                    wire.is_down = False
        assert found == [*range(600)]
        assert wire.cuts
        await until_kept(second, [])


async def until_done(bridge: Bridge) -> None:
    async with asyncio.timeout(30):
        while not await bridge.exists("state"):
            await asyncio.sleep(0.01)


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


async def test_the_outputs_of_a_function_arrive_after_the_connection_broke(
    wired: tuple[Bridge, Wire, str],
) -> None:
    """The function runs once; its request is sent again, and replied to under another id."""
    bridge, wire, _ = wired
    await bridge.push(go=False, runs=[])

    def waits() -> int:
        import time

        runs.append(1)  # type: ignore[name-defined] # noqa: F821
        print("before", flush=True)
        while not go:  # type: ignore[name-defined] # noqa: F821
            time.sleep(0.01)
        print("after")
        return len(runs)  # type: ignore[name-defined] # noqa: F821

    seen: list[str] = []
    running = asyncio.ensure_future(
        bridge.call(waits, namespace=True, on_output=lambda message: seen.append(message.text))
    )
    await until(lambda: seen)
    wire.cut()
    await bridge.push(go=True, now=True)  # it waits until the connection is made again
    assert await running == 1
    assert "".join(seen) == "before\nafter\n"


async def test_the_outputs_of_an_async_function_outlive_a_broken_connection(
    wired: tuple[Bridge, Wire, str],
) -> None:
    bridge, wire, _ = wired
    await bridge.push(go=False)

    async def waits() -> str:
        from asyncio import sleep

        print("before", flush=True)
        while not go:  # type: ignore[name-defined] # noqa: F821
            await sleep(0.01)
        print("after")
        return "done"

    seen: list[str] = []
    task = bridge.submit(waits, namespace=True, on_output=lambda message: seen.append(message.text))
    await until(lambda: seen)
    wire.cut()
    await bridge.push(go=True)
    assert await task == "done"
    assert "".join(seen) == "before\nafter\n"


async def test_a_connection_that_breaks_before_the_server_reads_it_holds_up_no_client(
    wired: tuple[Bridge, Wire, str],
) -> None:
    """The server first waits for the kernel, and takes what it then reads for something else.

    It computed for 23 s for each message that it found on a connection which another one replaced.
    """
    bridge, wire, server = wired
    await bridge.push(x=1)
    os.kill(bridge.info.pid, signal.SIGSTOP)
    try:
        for _ in range(3):
            opened = wire.opened
            wire.cut()
            # One request, and then the websocket; both ends of it work, except for the server.
            await until(lambda: wire.opened == opened + 2)
            await asyncio.sleep(0.2)  # a message would be sent at once
    finally:
        os.kill(bridge.info.pid, signal.SIGCONT)
    async with reported_within(1):
        assert await bridge.pull("x") == 1
        assert await names_in(server, bridge) == ["x"]
