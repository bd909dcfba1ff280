"""Connections to a kernel that break, and processes that end or are replaced meanwhile.

Rule: real kernels on TCP, behind a proxy that cuts their connections. A broken connection is no
death (J6), a death is reported as one however its signs arrive (J12), and nothing that waits for
a connection runs in another process than the one it was meant for (J4).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridgehead import (
    Bridge,
    KernelDied,
    KernelRestarted,
    KernelUnresponsive,
    OutcomeUnknown,
    ReplyLost,
    TransportError,
)
from bridgehead._transports.timings import Timings
from support.cuts import CHANNELS, Cuts, cuttable, managed
from support.kit import MESSAGES, all_of, file_of, goes_on, reported_within, stopped, until
from support.look import look

LANES: list[Any] = ["direct", "buffers"]
TRUE = Timings()
OWN = [sys.modules[__name__]]  # the kernel does not have it


def resources() -> int:
    """Run in the kernel: how many resources the remote part has, of all bridges."""
    remote_module: Any = next(m for n, m in sys.modules.items() if n.startswith("_bridgehead"))
    return sum(len(remote.resources.known) for remote in remote_module._remotes.values())


async def calls_go_on(bridge: Bridge) -> None:
    """Wait until calls work again, over the same or a new connection; none reports a death."""
    async with asyncio.timeout(30):
        while True:
            try:
                await bridge.run("")
                break
            except (KernelUnresponsive, TransportError):  # not back yet; sent as it broke
                pass
    assert (await bridge.run("print('seen')")).stdout == "seen\n"
    await goes_on(bridge)


# ---------------------------------------------------------------- J6: the process lives


@pytest.mark.parametrize("lane", LANES)
async def test_a_broken_connection_is_made_again(tmp_path: Path, lane: Any) -> None:
    """J6. Cut, and possible again at once: what was sent is unknown, what waited is sent."""
    async with cuttable(tmp_path, lane=lane) as (bridge, cuts):
        await bridge.push(x=1)
        for _ in range(3):
            cell = asyncio.ensure_future(bridge.run("import time; time.sleep(0.5); x += 1"))
            await until(lambda: bridge.state == "busy")
            waiting = [asyncio.ensure_future(bridge.pull("x")) for _ in range(3)]
            before = await bridge.pull("x", now=True) if lane == "direct" else None
            cuts.cut()
            with pytest.raises(TransportError, match="broke and was made again; the request may"):
                await cell
            values = await asyncio.gather(*waiting)
            assert len(set(values)) == 1
            assert before in (None, values[0] - 1)
        assert values[0] == 4
        await goes_on(bridge)


@pytest.mark.parametrize("down", [False, True], ids=["at once", "later"])
@pytest.mark.parametrize("lane", LANES)
async def test_a_cell_that_is_lost_with_its_connection_never_runs_after_later_calls(
    tmp_path: Path, shorten: Callable[..., None], lane: Any, down: bool
) -> None:
    """J6. It is on its way for longer than the new connection takes, which later calls use."""
    async with (
        cuttable(tmp_path, lane=lane) as (bridge, cuts),
        Bridge.attach(cuts.kernel_file) as other,
    ):
        await bridge.push(x=0)
        late = cuts.hold_back()
        cell = asyncio.ensure_future(bridge.run("x = 'late'"))
        await until(lambda: bridge._transport.dispatcher.queued)
        await asyncio.sleep(0.2)  # so that the proxy has it
        if down:
            shorten(reconnect_grace=0.3)
            await cuts.stop_listening()
            with pytest.raises(KernelUnresponsive):
                await cell
            shorten(reconnect_grace=TRUE.reconnect_grace)
            await cuts.listen()
        else:
            cuts.cut()
            with pytest.raises(TransportError, match="broke and was made again; the request may"):
                await cell
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(KernelUnresponsive):
                    await bridge.push(x=1)
                    break
                await asyncio.sleep(0.05)
        messages = other.messages()
        await other.run("")  # they arrive from here on
        late.set()
        async with asyncio.timeout(60):
            async for message in messages:
                if message.content.get("code") == "x = 'late'":
                    break
        await other.run("")
        assert await bridge.pull("x") == 1
        await goes_on(bridge)


async def test_a_watch_goes_on_over_a_new_connection(tmp_path: Path) -> None:
    """J6. The kernel knows a client by its connection: a watch is registered again."""
    async with cuttable(tmp_path) as (bridge, cuts):
        await bridge.push(x=1)
        async with bridge.watch("x") as watch:
            assert await anext(watch) == 1
            cuts.cut()
            await calls_go_on(bridge)
            await bridge.run("x = 2")
            async with reported_within(1):
                assert await anext(watch) == 2


async def test_a_cancel_that_is_lost_with_the_connection_comes_over_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """J6. The cancelled task stayed in the kernel, with its outcome, while the bridge lived."""
    async with cuttable(tmp_path, lane="buffers") as (bridge, cuts):
        transport = bridge._transport
        send, lost = transport.send, []

        async def lose(channel: str, *message: Any) -> None:
            if channel == "control" and not lost:
                lost.append(channel)
                cuts.cut()
            else:
                await send(channel, *message)

        task = bridge.submit(asyncio.sleep, 1000)
        await until(lambda: bridge.stats.tasks == 1)
        monkeypatch.setattr(transport, "send", lose)
        task.cancel()
        await until(lambda: bool(lost))
        await calls_go_on(bridge)
        async with asyncio.timeout(30):
            while await bridge.call(resources, by_value=OWN):
                await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_a_long_reply_over_a_slow_connection_is_waited_for(tmp_path: Path) -> None:
    """J3. Its last message takes eight seconds, and the outputs, which say "idle", are there."""
    async with cuttable(tmp_path, lane="buffers") as (bridge, cuts):
        await bridge.push(x=np.arange(1_500_000))
        cuts.rate = 1_500_000
        assert np.array_equal(await bridge.pull("x"), np.arange(1_500_000))


@pytest.mark.parametrize("how", ["aborted", "refused", "held"])
async def test_a_connection_that_stays_down_is_no_death(
    tmp_path: Path, how: str, shorten: Callable[..., None]
) -> None:
    """J6. No connection for seconds, but the process runs: KernelUnresponsive, then all goes on."""
    async with cuttable(tmp_path, lane="buffers") as (bridge, cuts):
        await bridge.push(x=1)
        cuts.is_down, cuts.holds = how == "aborted", CHANNELS if how == "held" else ()
        await (cuts.stop_listening() if how == "refused" else asyncio.sleep(0))
        shorten(reconnect_grace=0.3, silence=1.0)
        cuts.cut()
        calls = [bridge.pull("x"), bridge.run("y = 2"), bridge.push(z=3)]
        async with reported_within(3):
            outcomes = await all_of(*calls)
        assert {type(outcome) for outcome in outcomes} == {KernelUnresponsive}
        assert "the connection to the kernel is broken, and its process runs" in str(outcomes[0])
        assert bridge.state == "unresponsive"
        async with reported_within(5):
            with pytest.raises(KernelUnresponsive):
                await bridge.pull("x")
        shorten(reconnect_grace=TRUE.reconnect_grace, silence=TRUE.silence)
        cuts.is_down, cuts.holds = False, ()
        await (cuts.listen() if how == "refused" else asyncio.sleep(0))
        cuts.cut()
        await calls_go_on(bridge)
        assert await bridge.pull("x") == 1
        assert await look(cuts.kernel_file) == {"x": "1"}  # what failed did not run


@pytest.mark.parametrize(
    "channel",
    [
        "shell",
        pytest.param("iopub", marks=pytest.mark.slow),
        pytest.param("heartbeat", marks=pytest.mark.slow),
        "control",
    ],
)
async def test_a_connection_that_libzmq_gives_up_is_made_again(
    tmp_path: Path, channel: str
) -> None:
    """J6. libzmq has no memory for a message, and closes its connection for good."""
    async with cuttable(tmp_path, lane="buffers") as (bridge, cuts):
        await bridge.push(x=1)
        await until(lambda: bridge._transport.has_pulse)
        cuts.exhaust_memory(channel)
        if channel == "shell":  # the next call finds it down, or is sent and lost with it
            with contextlib.suppress(TransportError):
                await bridge.pull("x")
        elif channel == "heartbeat":  # a cell keeps a caller waiting while there is no beat
            # Answers on control are signs of life, too, unless they are too far apart.
            with contextlib.suppress(KernelUnresponsive):
                await bridge.run("import time; time.sleep(8)")
        elif channel == "iopub":
            for _ in range(3):  # its outputs are lost; their absence is noticed
                await bridge.run("print('lost')")
                await asyncio.sleep(1)
        else:
            cuts.exhaust_memory("shell")
            with contextlib.suppress(TransportError):
                await bridge.pull("x")
        await calls_go_on(bridge)
        assert await bridge.pull("x") == 1
        assert bridge.state == "idle"


@pytest.mark.timings(iopub_silence=0.3)
async def test_opening_makes_a_dead_connection_for_outputs_again(tmp_path: Path) -> None:
    """J6. It is shared with another bridge, which has not noticed."""
    async with cuttable(tmp_path) as (_, cuts):
        cuts.exhaust_memory("iopub")
        await until(lambda: not cuts._to_bridge["iopub"])
        async with Bridge.attach(cuts.connection_file) as bridge:
            assert (await bridge.run("print('first')")).stdout == "first\n"


CLIENT = """
import asyncio, os, resource, sys
from bridgehead import Bridge, KernelUnresponsive, OutcomeUnknown

async def take(taken):
    while True:  # also what a broken connection gives back
        try:
            taken.append(os.dup(0))
        except OSError:
            await asyncio.sleep(0.001)

async def main(file):
    async with Bridge.attach(file, lane="buffers") as bridge:
        await bridge.push(x=1)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = max(int(name) for name in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, hard))
        taking = asyncio.ensure_future(take([]))
        print("exhausted", flush=True)
        for _ in range(2):
            await asyncio.to_thread(sys.stdin.readline)
            try:
                print(await bridge.pull("x"), flush=True)
            except OutcomeUnknown as error:
                print(type(error).__name__, flush=True)
        taking.cancel()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        while True:
            try:
                print(await bridge.pull("x"), bridge.state != "dead", flush=True)
                break
            except KernelUnresponsive:
                pass
asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.slow
async def test_a_client_without_descriptors_reports_no_death(tmp_path: Path) -> None:
    """J6. The connection breaks, and the client has no descriptor to make another one."""
    async with managed() as manager, Cuts(manager, tmp_path) as cuts:
        pipe = subprocess.PIPE
        command = (sys.executable, "-c", CLIENT, str(cuts.connection_file))
        client = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
        assert client.stdin is not None
        assert client.stdout is not None
        assert await client.stdout.readline() == b"exhausted\n"
        cuts.is_down = True
        cuts.cut()
        client.stdin.write(b"cut\n")
        async with reported_within(5):
            assert await client.stdout.readline() == b"KernelUnresponsive\n"
        cuts.is_down = False  # by now the client has taken the descriptors of the old connections
        async with reported_within(10):
            out, _ = await client.communicate(b"possible again\n")
        assert out.decode().splitlines() == ["KernelUnresponsive", "1 True"]
        assert client.returncode == 0


OUT_OF_MEMORY = """
import asyncio, resource, sys
from bridgehead import Bridge, BridgeError, KernelDied

def size():
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l[:6] == "VmSize")

async def main(options):
    async with Bridge.launch(**options) as bridge:
        await bridge.run("big = bytearray(range(256)) * 800_000; x = 1")
        resource.setrlimit(resource.RLIMIT_AS, (size() + 60_000_000, -1))
        for expression in ("big", "bytes(big)", "[big, 1]"):
            try:
                await bridge.pull(expression, timeout=60)
                print("pulled", flush=True)
            except (BridgeError, MemoryError) as error:
                print(type(error) is KernelDied, bridge.state == "dead", flush=True)
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        while True:
            try:
                print(await bridge.pull("x"), (await bridge.run("print(2)")).stdout)
                break
            except BridgeError as error:
                assert not isinstance(error, KernelDied)
asyncio.run(main({"lane": sys.argv[1]}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("lane", ["direct", *MESSAGES])
async def test_a_client_without_memory_reports_no_death(lane: str) -> None:
    """J6. What the kernel sends does not fit into the memory that this process may use."""
    command = (sys.executable, "-c", OUT_OF_MEMORY, lane)
    client = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    async with reported_within(20):
        out, _ = await client.communicate()
    *failed, last = out.decode().split("\n\n")[0].splitlines()
    assert set(failed) <= {"False False"}
    assert len(failed) == 3
    assert last == "1 2"


# ---------------------------------------------------------------- the process has ended


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_death_while_the_connection_is_down_is_reported(
    tmp_path: Path, restarted: bool, shorten: Callable[..., None]
) -> None:
    """J6. There is evidence: the process of an attached kernel is gone from this machine."""
    async with cuttable(tmp_path, lane="buffers") as (bridge, cuts):
        await bridge.push(x=1)
        shorten(reconnect_grace=0.3)
        cuts.is_down = True
        cuts.cut()
        with pytest.raises(KernelUnresponsive):
            await bridge.pull("x")
        os.kill(bridge.info.pid, signal.SIGKILL)
        if restarted:
            await cuts.manager.restart_kernel(now=True)
        async with reported_within(5):
            with pytest.raises(KernelDied, match="the kernel's process has ended"):
                while True:
                    with contextlib.suppress(KernelUnresponsive):
                        await bridge.pull("x")
        assert bridge.state == "dead"
        if restarted:
            cuts.is_down = False
            async with reported_within(5):
                await until(lambda: bridge.state == "idle")
            with pytest.raises(KernelRestarted):
                await bridge.run("y = 2")
            assert await look(cuts.kernel_file) == {}
            await goes_on(bridge)


@pytest.mark.slow
async def test_a_death_behind_a_proxy_that_keeps_the_connection_is_reported(
    tmp_path: Path,
) -> None:
    """J6. No socket of the bridge breaks; the heartbeat falls silent, and the process is gone."""
    async with cuttable(tmp_path, lane="buffers") as (bridge, cuts):
        await until(lambda: bridge._transport.has_pulse)
        for writer in cuts._to_kernel:  # the proxy no longer passes on what the kernel does
            writer.transport.pause_reading()
        os.kill(bridge.info.pid, signal.SIGKILL)
        async with reported_within(7):
            with pytest.raises(KernelDied, match="the kernel's process has ended"):
                await bridge.run("1")


@pytest.mark.slow
async def test_a_kernel_of_another_pid_namespace_is_not_looked_at(
    kernelspec: Callable[..., str], tmp_path: Path, shorten: Callable[..., None]
) -> None:
    """J6. Its pid, 1, is that of another process here: only its address says that it is gone."""
    unshared = ["unshare", "--pid", "--fork", "--kill-child"]
    try:
        subprocess.run([*unshared, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this user can't make a pid namespace: {error}")
    argv = [*unshared, sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    name = kernelspec("contained", argv)
    async with cuttable(tmp_path, name, lane="buffers") as (bridge, cuts):
        assert bridge.info.pid == 1
        await bridge.push(x=1)
        cuts.holds = CHANNELS
        shorten(reconnect_grace=0.3)
        cuts.cut()
        with pytest.raises(KernelUnresponsive, match="nothing shows that its process has ended"):
            await bridge.pull("x")
        shorten(reconnect_grace=TRUE.reconnect_grace)
        cuts.holds = ()
        cuts.cut()
        await calls_go_on(bridge)
        await cuts.stop_listening()
        async with reported_within(3):
            with pytest.raises(KernelDied):
                await bridge.pull("x")
        await cuts.listen()  # it was only out of reach, and the next call goes to it
        async with reported_within(5):
            await until(lambda: bridge.state == "idle")
        assert await bridge.pull("x") == 1


# ---------------------------------------------------------------- J12: the order of the signs


def everything(bridge: Bridge) -> list[Any]:
    return [
        *(bridge.push(x=2), bridge.pull("x"), bridge.exists("x"), bridge.delete("x")),
        *(bridge.push(y=2, now=True), bridge.pull("x", now=True)),
        *(bridge.run("y = 3"), bridge.call(len, [1]), bridge.names()),
        bridge.push(large=np.zeros(4 << 20, np.uint8)),
    ]


@pytest.mark.parametrize("attached", [False, True], ids=["launched", "attached"])
@pytest.mark.slow
async def test_a_socket_that_is_lost_before_the_death_is_noticed(
    live: Bridge, attached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """J12. The direct lane's socket closes first: every call reports the death of the kernel.

    Under uvloop the events come in this order. Here the process is not looked at, and the events of
    the shell socket are not read, until the calls have found the socket lost.
    """
    async with contextlib.AsyncExitStack() as stack:
        bridge = live
        if attached:
            bridge = await stack.enter_async_context(Bridge.attach(file_of(live)))
        await bridge.push(x=1)
        link = bridge._transport.link
        reading = asyncio.Event()
        events = link.events
        monkeypatch.setattr(link, "events", lambda: events() if reading.is_set() else None)
        asyncio.get_running_loop().remove_reader(link._monitor.FD)
        pause = bridge._transport._kernel_process
        if pause is not None:
            monkeypatch.setattr(pause, "has_ended", _once(reading, pause.has_ended))
        lane = bridge._connection.remote.lane
        os.kill(live.info.pid, signal.SIGKILL)
        await until(lambda: lane.is_lost)
        calls = [asyncio.ensure_future(call) for call in everything(bridge)]
        await asyncio.sleep(0.1)
        reading.set()
        asyncio.get_running_loop().add_reader(link._monitor.FD, events)
        events()
        async with reported_within(3):
            outcomes = await all_of(*calls)
        assert {type(outcome) for outcome in outcomes} == {KernelDied}, outcomes
        await live.restart()


def _once(reading: asyncio.Event, has_ended: Callable[[], Any]) -> Callable[[], Any]:
    async def later() -> bool:
        return reading.is_set() and await has_ended()

    return later


@pytest.mark.slow
async def test_a_death_is_found_although_the_process_is_hardly_watched(
    live: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """J12. The watch of the process comes too late: a lost socket has the process looked at."""
    await live.push(x=1)
    never = asyncio.Event()
    monkeypatch.setattr(live._transport._kernel_process, "pause", lambda sooner: never.wait())
    lane = live._connection.remote.lane
    await asyncio.sleep(0.2)  # the watch waits for good
    os.kill(live.info.pid, signal.SIGKILL)
    await until(lambda: lane.is_lost)
    async with reported_within(3):
        outcomes = await all_of(*everything(live))
    assert {type(outcome) for outcome in outcomes} == {KernelDied}, outcomes
    assert {outcome.exit_code for outcome in outcomes} == {-signal.SIGKILL}


async def test_a_socket_thread_that_ends_alone_is_no_death(live: Bridge) -> None:
    """J12. The other way round: only the socket is lost, and the calls go on over a new one."""
    await live.push(x=1)
    for _ in range(3):
        await live.push(x=1)
        live._connection.remote.lane.client.channel.socket.shutdown(2)
        outcomes = await all_of(*everything(live))
        assert not [one for one in outcomes if isinstance(one, KernelDied)]
        # Of the one that was sent, and of now=True, which is not sent again.
        unknown = [type(one) for one in outcomes if isinstance(one, OutcomeUnknown)]
        assert set(unknown) <= {ReplyLost, KernelRestarted}
        assert len(unknown) < len(outcomes) / 2
        await goes_on(live)


# ---------------------------------------------------------------- J4: another process answers


CELLS: dict[str, Callable[[Bridge], Any]] = {
    "run": lambda bridge: bridge.run("arrived = True"),
    "push": lambda bridge: bridge.push(arrived=True),
    "call": lambda bridge: bridge.call(exec, "globals()['arrived'] = True", keep="arrived"),
    "now": lambda bridge: bridge.push(arrived=True, now=True),
}


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("when", ["before the cut", "while it is down", "when it is up"])
async def test_nothing_that_waits_runs_in_another_process(
    tmp_path: Path, lane: Any, when: str
) -> None:
    """J4. The kernel is restarted while the connection is down: no call runs in the new one."""
    async with cuttable(tmp_path, lane=lane) as (bridge, cuts):
        for _ in range(3):
            await bridge.push(old=1)
            calls: list[asyncio.Task[Any]] = []

            def begin(calls: list[asyncio.Task[Any]] = calls) -> None:
                calls += [asyncio.ensure_future(cell(bridge)) for cell in CELLS.values()]

            cuts.is_down = True
            cuts.cut()
            if when == "before the cut":
                begin()
            await cuts.manager.restart_kernel(now=True)
            if when == "while it is down":
                begin()
                await asyncio.sleep(0.1)
            cuts.is_down = False
            if when == "when it is up":
                begin()
            async with reported_within(5):
                outcomes = await all_of(*calls)
            assert {type(outcome) for outcome in outcomes} <= {KernelRestarted, KernelDied}
            assert await look(cuts.kernel_file) == {}
            async with asyncio.timeout(20):
                while True:
                    with contextlib.suppress(KernelRestarted, KernelDied):
                        await bridge.run("")
                        break
            await goes_on(bridge)


@pytest.mark.parametrize("lane", LANES)
async def test_a_kernel_that_replaces_itself_is_another_process(lane: Any) -> None:
    """J4. By ``exec``: its pid, its beginning and its address are the same; its names are gone."""
    async with managed() as manager, Bridge.attach(manager.connection_file, lane=lane) as bridge:
        await bridge.push(old=1)
        again = [sys.executable, "-m", "ipykernel_launcher", "-f", manager.connection_file]
        code = f"import os, time; print(1); time.sleep(0.5); os.execv({again[0]!r}, {again!r})"
        begun = asyncio.Event()
        calls = [asyncio.ensure_future(bridge.run(code, on_output=lambda message: begun.set()))]
        await begun.wait()
        calls += [asyncio.ensure_future(cell(bridge)) for cell in CELLS.values()]
        async with reported_within(5):
            outcomes = await all_of(*calls)
        now = list(CELLS).index("now") + 1  # it was served before
        # Its connection is broken and its process runs, if it takes long to answer again.
        ends = {KernelRestarted, KernelUnresponsive}
        assert {type(one) for n, one in enumerate(outcomes) if n != now} <= ends
        assert await look(manager.connection_file) == {}
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(*ends):
                    assert await bridge.pull("__import__('os').getpid()") == bridge.info.pid
                    break
        await goes_on(bridge)


@pytest.mark.parametrize("lane", LANES)
async def test_a_stopped_kernel_whose_connection_breaks_goes_on(
    tmp_path: Path, lane: Any, shorten: Callable[..., None]
) -> None:
    """J13. It cannot answer over the new connection before it goes on, which is no death."""
    async with cuttable(tmp_path, lane=lane) as (bridge, cuts):
        await bridge.push(x=1)
        await until(lambda: bridge._transport.has_pulse)
        shorten(reconnect_grace=0.3, silence=1.0)
        with stopped(bridge):
            cuts.cut()
            async with reported_within(3):
                outcomes = await all_of(bridge.run("x = 2"), bridge.pull("x"), bridge.push(x=3))
            assert {type(outcome) for outcome in outcomes} == {KernelUnresponsive}
        shorten(reconnect_grace=TRUE.reconnect_grace, silence=TRUE.silence)
        await calls_go_on(bridge)
        assert await bridge.pull("x") == 1
        assert await look(cuts.kernel_file) == {"x": "1"}


@pytest.mark.slow
async def test_nothing_is_sent_to_a_process_that_does_not_answer(tmp_path: Path) -> None:
    """J4. The connection is back, and the kernel is stopped: nothing waits in its queue."""
    async with cuttable(tmp_path, lane="buffers") as (bridge, cuts):
        await until(lambda: bridge._transport.has_pulse)
        with stopped(bridge):
            opened = cuts.opened["shell"]
            cuts.cut()
            await until(lambda: cuts.opened["shell"] > opened)
            async with reported_within(5):
                outcomes = await all_of(*(bridge.run("arrived = True") for _ in range(3)))
            assert {type(one) for one in outcomes} == {KernelUnresponsive}
        await calls_go_on(bridge)
        assert await look(cuts.kernel_file) == {}


async def test_a_kernel_that_never_says_which_process_answers_is_unresponsive(
    tmp_path: Path, shorten: Callable[..., None]
) -> None:
    """J4. The connection is back, the heartbeat is answered, and the control channel is silent."""
    async with cuttable(tmp_path, lane="buffers") as (bridge, cuts):
        await bridge.push(x=1)
        await until(lambda: bridge._transport.has_pulse)
        shorten(lost_after=0.5)
        cuts.holds = ("control",)
        cuts.cut()
        async with reported_within(20):
            outcomes = await all_of(bridge.run("x = 2"), bridge.pull("x"), bridge.exists("x"))
        assert {type(outcome) for outcome in outcomes} == {KernelUnresponsive}
        shorten(lost_after=TRUE.lost_after)
        cuts.holds = ()
        cuts.cut()
        await calls_go_on(bridge)
        assert await look(cuts.kernel_file) == {"x": "1"}
