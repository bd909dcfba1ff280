"""One round trip for each operation, and reports of the state of a kernel.

Rule: each test starts its own real kernel.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
from jupyter_client.manager import AsyncKernelManager

from bridgehead import (
    Bridge,
    BridgeClosed,
    BridgeError,
    KernelDied,
    KernelRestarted,
    RemoteError,
    ReplyLost,
)
from bridgehead._lanes.handshake import LaneName
from bridgehead._lanes.socket import SocketClient
from bridgehead._transports.dispatch import Dispatcher
from bridgehead._transports.request_table import WINDOW
from bridgehead._transports.signed_messages import REMEMBERED
from support.faults import CallsInKernel
from support.kit import KEPT, LANES

# An attached bridge waits until another owner must have restarted the kernel, and here none does.
no_restart = pytest.mark.timings(reconnect_grace=0.3)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int]]:
    """Every message that leaves any bridge: channel, type, number of buffers."""
    seen: list[tuple[str, str, int]] = []
    put = Dispatcher.put

    async def counted(
        self: Dispatcher,
        channel: str,
        message: dict[str, Any],
        buffers: Any = (),
        *a: Any,
        **k: Any,
    ) -> Any:
        pending = await put(self, channel, message, buffers, *a, **k)
        seen.append((channel, message["header"]["msg_type"], len(buffers)))
        return pending

    monkeypatch.setattr(Dispatcher, "put", counted)
    return seen


@pytest.mark.timings(unasked=60)
@pytest.mark.parametrize("lane", ["buffers", "inline"])
async def test_each_operation_is_one_message_even_the_first(
    sent: list[tuple[str, str, int]], lane: Any
) -> None:
    async with Bridge.launch(lane=lane) as bridge:
        requests = [m for m in sent if m[1] == "execute_request"]
        assert len(requests) == 1  # the handshake, with the remote part and the probe of buffers
        other = await Bridge.attach(bridge.info.connection_file, lane=lane)
        async with other:
            sent.clear()
            operations = [
                lambda: other.push(x=1, f=lambda: 5, a=np.zeros(100_000)),
                lambda: other.pull("x"),
                lambda: other.pull("x", "f()", "a"),
                lambda: other.call(lambda v: v, other.ref("a")),
                lambda: other.names(),
                lambda: other.exists("x"),
                lambda: other.delete("x"),
                lambda: other.run("y = 1"),
            ]
            for count, operation in enumerate(operations, 1):
                await operation()
                assert len(sent) == count
            assert {m[:2] for m in sent} == {("shell", "execute_request")}


@pytest.mark.timings(unasked=60)
@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("source", ["range(1000)", "(n for n in range(1000))", "ticks()"])
async def test_the_items_of_an_iteration_come_in_batches(
    sent: list[tuple[str, str, int]], monkeypatch: pytest.MonkeyPatch, lane: Any, source: str
) -> None:
    asked: list[Any] = []
    received: list[Any] = []
    ask, receive = SocketClient.ask, Dispatcher.received

    def counted(self: SocketClient, *args: Any, **options: Any) -> Any:
        asked.append(args)
        return ask(self, *args, **options)

    def counts(self: Dispatcher, channel: str, message: Any) -> None:
        if channel != "iopub":
            received.append(message)
        receive(self, channel, message)

    monkeypatch.setattr(SocketClient, "ask", counted)
    monkeypatch.setattr(Dispatcher, "received", counts)
    async with Bridge.launch(lane=lane) as bridge:
        await bridge.run("async def ticks():\n    for n in range(1000): yield n")
        sent.clear()
        asked.clear()
        received.clear()
        async with bridge.iterate(source) as items:
            assert [item async for item in items] == [*range(1000)]
        # A batch ends after some time, so that a slow machine has more of them. Were each item a
        # message, there would be as many requests and as many replies.
        assert len(sent) + len(asked) + len(received) < 500


@pytest.mark.timings(unasked=60)
async def test_opening_on_an_idle_kernel_is_one_message(sent: list[tuple[str, str, int]]) -> None:
    """The response to the handshake says what the kernel is, so it is not asked."""
    async with Bridge.launch() as bridge:
        file, info = bridge.info.connection_file, bridge.info
        sent.clear()
        async with Bridge.attach(file) as other:
            assert [message[:2] for message in sent] == [("shell", "execute_request")]
            assert (other.info.kernel, other.info.features) == (info.kernel, info.features)
            assert other.info.features


async def test_opening_on_a_new_process_at_the_same_address_installs_the_remote_part(
    sent: list[tuple[str, str, int]],
) -> None:
    """The first message brings no code: the process before it had the remote part."""
    manager = AsyncKernelManager()
    await manager.start_kernel()
    try:
        client = manager.client()
        async with Bridge.over(client) as bridge:
            await bridge.push(x=1)
        await _restart(manager)
        sent.clear()
        async with Bridge.over(client) as bridge:
            assert [count for _, kind, count in sent if kind == "execute_request"] == [1, 1]
            assert not await bridge.exists("x")
    finally:
        await manager.shutdown_kernel(now=True)


async def test_at_most_32_requests_are_in_flight_and_all_are_answered(live: Bridge) -> None:
    cell = asyncio.ensure_future(live.run("import time; time.sleep(1)"))
    await asyncio.sleep(0.2)
    pushes = [asyncio.ensure_future(live.push({f"x{i}": i})) for i in range(200)]
    most = 0
    while not all(task.done() for task in pushes):
        most = max(most, live._transport.dispatcher.in_flight)
        await asyncio.sleep(0.005)
    await cell
    assert 0 < most <= WINDOW
    assert await live.pull("x0 + x99 + x199") == 298
    pulls = await asyncio.gather(*(live.pull(f"x{i}") for i in range(200)))
    assert pulls == list(range(200))


async def test_a_restart_gives_an_empty_namespace_and_installs_the_remote_part(
    live: Bridge,
) -> None:
    await live.push(x=1)
    epoch, pid = live.info.epoch, live.info.pid
    pending = asyncio.ensure_future(live.run("import time; time.sleep(30)"))
    await asyncio.sleep(0.3)
    await live.restart()
    with pytest.raises(KernelRestarted):
        await pending
    assert not await live.exists("x")
    assert live.info.epoch != epoch
    assert live.info.pid != pid
    await live.push(x=2)
    assert await live.pull("x") == 2


async def test_a_restart_by_another_client_is_reported_once_and_nothing_is_bound(
    live: Bridge,
) -> None:
    async with Bridge.attach(live.info.connection_file) as other:
        await other.push(x=1)
        await live.restart()
        with pytest.raises(KernelRestarted):
            async with asyncio.timeout(20):
                while True:
                    await other.push(x=2)
        assert not await live.exists("x")
        await other.push(x=3)
        assert await live.pull("x") == 3


@pytest.mark.parametrize("operation", ["push", "run", "handoff", "push-with-now"])
async def test_a_restart_that_a_pending_call_reported_is_not_reported_again(
    live: Bridge, operation: str
) -> None:
    async with Bridge.attach(live.info.connection_file) as other, Bridge.loopback() as target:
        await other.push(x=1)
        begun = asyncio.Event()
        code = "import time; print('begun', flush=True); time.sleep(30)"
        cell = asyncio.ensure_future(live.run(code, on_output=lambda message: begun.set()))
        await begun.wait()
        work = {
            "push": lambda: other.push(x=2),
            "run": lambda: other.run("x = 2"),
            "handoff": lambda: other.handoff("x", to=target),
            "push-with-now": lambda: other.push(x=CallsInKernel(time.sleep, 60), now=True),
        }
        pending = asyncio.ensure_future(work[operation]())
        await asyncio.sleep(0.3)
        await live.restart()
        with pytest.raises(KernelRestarted):
            await pending
        assert not await other.exists("x")
        await other.push(x=3)
        assert await live.pull("x") == 3
        with pytest.raises(KernelRestarted):
            await cell


async def test_a_dead_kernel_fails_all_calls_until_it_is_restarted(live: Bridge) -> None:
    pending = asyncio.ensure_future(live.pull("__import__('time').sleep(30)"))
    await asyncio.sleep(0.2)
    os.kill(live.info.pid, signal.SIGKILL)
    with pytest.raises(KernelDied, match="killed by SIGKILL") as caught:
        await pending
    assert caught.value.exit_code == -signal.SIGKILL
    assert live.state == "dead"
    with pytest.raises(KernelDied):
        await live.push(x=1)
    with pytest.raises(KernelDied):
        live.messages()
    await live.restart()
    await live.push(x=5)
    assert await live.pull("x") == 5


@no_restart
async def test_an_attached_bridge_reports_a_dead_kernel(live: Bridge) -> None:
    async with Bridge.attach(live.info.connection_file) as other:
        pending = asyncio.ensure_future(other.pull("__import__('time').sleep(30)"))
        stream = other.messages()
        await asyncio.sleep(0.2)
        os.kill(live.info.pid, signal.SIGKILL)
        with pytest.raises(KernelDied):
            async with asyncio.timeout(20):
                await pending
        assert other.state == "dead"
        async with asyncio.timeout(10):
            assert [m async for m in stream][-1].type in ("status", "shutdown_reply")


async def test_a_kernel_that_exits_while_unpickling_is_reported(live: Bridge) -> None:
    class Exit:
        def __reduce__(self) -> Any:
            return os._exit, (7,)

    with pytest.raises(KernelDied, match="exit code 7"):
        await live.push(x=Exit())


async def test_an_interrupt_ends_the_cell_and_no_other_call(live: Bridge) -> None:
    await live.push(x=1)
    cell = asyncio.ensure_future(live.run("while True: pass"))
    behind = asyncio.ensure_future(live.pull("x"))
    await asyncio.sleep(0.3)
    assert live.state == "busy"
    await live.interrupt()
    with pytest.raises(RemoteError, match="KeyboardInterrupt"):
        await cell
    assert await behind == 1
    pull = asyncio.ensure_future(live.pull("[i for i in iter(int, 1)]"))
    await asyncio.sleep(0.3)
    await live.interrupt()
    with pytest.raises(RemoteError, match="KeyboardInterrupt"):
        await pull
    assert await live.pull("x") == 1
    await live.interrupt()  # an idle kernel ignores it
    assert await live.pull("x") == 1


async def test_waiting_cells_do_not_run_in_the_next_kernel(live: Bridge) -> None:
    async with Bridge.attach(live.info.connection_file) as other:
        first = asyncio.ensure_future(other.run("import time; time.sleep(30)"))
        cells = [asyncio.ensure_future(other.run(f"ran = {i}")) for i in range(60)]
        await asyncio.sleep(0.5)
        await live.restart()
        results = await asyncio.gather(first, *cells, return_exceptions=True)
        assert {type(result) for result in results} == {KernelRestarted}
        assert not await live.exists("ran")


async def test_a_blocked_event_loop_sends_nothing_to_the_next_kernel() -> None:
    manager = AsyncKernelManager()
    await manager.start_kernel()
    try:
        async with Bridge.over(manager.client()) as bridge:
            # The restart happens while this loop is blocked, so its events are still unread.
            thread = threading.Thread(target=lambda: asyncio.run(_restart(manager)))
            thread.start()
            thread.join()
            with pytest.raises(KernelRestarted):
                await bridge.run("ran = True")
            await bridge.push(x=1)  # one call has reported the restart
            assert not await bridge.exists("ran")
            assert await bridge.pull("x") == 1
    finally:
        await manager.shutdown_kernel(now=True)


async def _restart(manager: AsyncKernelManager) -> None:
    await manager.restart_kernel(now=True)
    client = manager.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=60)
    finally:
        client.stop_channels()


async def test_an_aborted_request_keeps_its_place_in_the_order(live: Bridge) -> None:
    await live.push(seen=[])
    aborted = []
    received = live._transport.dispatcher.received

    def abort_the_first(channel: str, message: Any) -> None:
        if channel == "shell" and message["header"]["msg_type"] == "execute_reply" and not aborted:
            aborted.append(message)
            # Report the reply as aborted, although the request ran.
            message = {**message, "content": {"status": "aborted"}}
        received(channel, message)

    live._transport.dispatcher.received = abort_the_first  # type: ignore[method-assign]
    first = asyncio.ensure_future(live.run("seen.append('first')"))
    await asyncio.sleep(0)  # a coroutine is called when it starts
    await live.run("seen.append('second')")
    await first
    del live._transport.dispatcher.received
    assert await live.pull("seen") == ["first", "first", "second"]


async def test_a_call_never_runs_twice(live: Bridge) -> None:
    """The remote part disappears before the client fetches the rest of the result."""
    await live.push(ran=[])

    def remove_the_remote_part(ran: list[int]) -> bytes:
        import sys

        ran.append(1)
        for name in [name for name in sys.modules if name.startswith("_bridgehead")]:
            del sys.modules[name]
        return bytes(12 << 20)

    async with Bridge.attach(live.info.connection_file, lane="inline") as bridge:
        with pytest.raises(ReplyLost, match="no longer has the rest of its response"):
            await bridge.call(remove_the_remote_part, bridge.ref("ran"))
    assert await live.pull("ran") == [1]


async def test_transfers_that_were_cancelled_are_not_kept_in_the_kernel(live: Bridge) -> None:
    await live.run(KEPT + "import time\nbig = bytes(60_000_000)")
    with pytest.raises(TimeoutError):
        await live.pull("(time.sleep(0.5), big)", timeout=0.2)
    for delay in (0.02, 0.06, 0.1, 0.2):
        for operation in (live.push(x=bytearray(60_000_000)), live.pull("big")):
            task = asyncio.ensure_future(operation)
            await asyncio.sleep(delay)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    # Requests that wait may run before the message that drops the transfers.
    assert await live.exists("big")
    assert await live.pull("_kept()") == [0, 0]
    assert live._transport.dispatcher.in_flight == 0


async def test_transfers_of_a_closed_bridge_are_not_kept_in_the_kernel(live: Bridge) -> None:
    await live.run(KEPT + "big = bytes(60_000_000)")
    for operation in ("push", "pull"):
        for delay in (0.02, 0.08, 0.15):
            other = await Bridge.attach(live.info.connection_file)
            call = other.push(x=bytearray(60_000_000)) if operation == "push" else other.pull("big")
            task = asyncio.ensure_future(call)
            await asyncio.sleep(delay)
            await other.aclose()
            await asyncio.gather(task, return_exceptions=True)
    async with asyncio.timeout(30):
        while await live.pull("_kept()") != [0, 0]:
            await asyncio.sleep(0.05)


async def test_two_restarts_at_once_are_one(live: Bridge) -> None:
    await asyncio.gather(live.restart(), live.restart())
    await live.push(x=1)
    assert await live.pull("x") == 1


@pytest.mark.parametrize("delay", [0, 0.05, 0.4])
async def test_closing_during_a_restart_leaves_nothing(
    delay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A kernel that has just started may miss the polite request to exit.
    monkeypatch.setattr(AsyncKernelManager, "shutdown_wait_time", 1.0)
    bridge = await Bridge.launch()
    restart = asyncio.ensure_future(bridge.restart())
    await asyncio.sleep(delay)
    await bridge.aclose()
    (outcome,) = await asyncio.gather(restart, return_exceptions=True)
    assert outcome is None or isinstance(outcome, BridgeClosed)  # the restart may have ended before
    assert os.listdir(os.environ["JUPYTER_RUNTIME_DIR"]) == []


KILLED_WHILE_CLOSING = """
import asyncio, os, signal, time
from bridgehead._transports.dispatch import Dispatcher
from bridgehead import Bridge

async def main():
    async with Bridge.launch() as bridge:
        other = await Bridge.attach(bridge.info.connection_file)
        owner = other._transport._context.monitor
        close = owner.close

        def slowly(linger):
            close(linger=linger)
            os.kill(bridge.info.pid, signal.SIGKILL)
            time.sleep(0.5)  # an event arrives that is never read

        owner.close = slowly
        await other.aclose()
    print("closed")

asyncio.run(main())
"""


def test_closing_does_not_hang_when_the_kernel_dies_meanwhile() -> None:
    """Runs in another process, because a hang would hold the GIL."""
    how: Any = {"capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_CLOSING], **how)
    assert done.stdout == "closed\n", done.stderr


async def test_a_kernel_that_dies_while_it_restarts_is_reported(jupyter_folders: Any) -> None:
    startup = jupyter_folders / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True, exist_ok=True)
    async with Bridge.launch() as bridge:
        (startup / "dies.py").write_text("import os; os._exit(3)")
        try:
            with pytest.raises(KernelDied, match="exit code 3"):
                await bridge.restart()
        finally:
            (startup / "dies.py").unlink()
        await bridge.restart()
        await bridge.push(x=1)


@no_restart
async def test_an_interrupt_of_a_dead_kernel_is_reported(live: Bridge) -> None:
    async with Bridge.attach(live.info.connection_file) as other:
        os.kill(live.info.pid, signal.SIGKILL)
        with pytest.raises(BridgeError):
            async with asyncio.timeout(20):
                while True:
                    await other.interrupt()


@pytest.mark.slow
@pytest.mark.parametrize("lane", ["direct", "buffers", "inline"])
async def test_many_operations_leave_nothing_in_the_client(lane: LaneName) -> None:
    """Each message leaves a part of its signature, but only the latest messages."""
    async with Bridge.launch(lane=lane) as bridge:

        def blocks() -> int:
            gc.collect()
            return sys.getallocatedblocks()

        async def push_and_pull(count: int) -> None:
            for number in range(count):
                await bridge.push(x=number)
                assert await bridge.pull("x") == number

        await push_and_pull(REMEMBERED)  # each brings three messages or more
        before = blocks()
        # Each of two sockets remembers its latest messages: between REMEMBERED of them, just after
        # half is dropped, and twice as many. Less than one block for each operation is left.
        await push_and_pull(3 * REMEMBERED)
        assert blocks() - before < 4 * REMEMBERED
