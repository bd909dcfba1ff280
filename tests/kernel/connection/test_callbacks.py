"""Calls back from real kernels.

Rule: as in ``test_tasks``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import cloudpickle
import numpy as np
import psutil
import pytest

from bridgehead import Bridge, RemoteError, SyncBridge
from bridgehead._shipped.wire.header import EVENT_MESSAGE
from support.elsewhere import MAJORS
from support.kit import LANES, file_of, goes_on, on_its_way, other, reported_within, until
from support.promises import HeldUp, occupied
from support.resources import nothing_is_kept

# A kernel can't import test modules, so what they define is pickled by value, as in a script.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(params=LANES)
async def bridge(kernel: Bridge, request: pytest.FixtureRequest) -> AsyncIterator[Bridge]:
    async with Bridge.attach(file_of(kernel), lane=request.param) as attached:
        yield attached
        await attached.run("globals().pop('report', None)")
    await nothing_is_kept(kernel)


def call_each(report: Any, count: int) -> None:
    for step in range(count):
        report(step)


async def test_calls_cross_in_order_on_every_lane(bridge: Bridge) -> None:
    seen: list[Any] = []
    with bridge.callback(seen.append) as report:
        await bridge.call(call_each, report, 2_000)
        await until(lambda: len(seen) == 2_000)
        assert seen == [*range(2_000)]

        def arrays(report: Any) -> None:
            import numpy

            reused = numpy.zeros(300_000)
            for n in range(5):
                reused[:] = n
                report(reused)

        seen.clear()
        await bridge.call(arrays, report)
        await until(lambda: len(seen) == 5)
        assert [float(array[-1]) for array in seen] == [0, 1, 2, 3, 4]
        assert all(isinstance(array, np.ndarray) for array in seen)
        seen.clear()
        long = bytes(range(256)) * (80 << 10)  # 20 MiB: longer than a message
        await bridge.call(lambda report: report(bytes(range(256)) * (80 << 10)), report)
        await until(lambda: seen)
        assert seen == [long]
        assert (report.failed, report.dropped) == (0, 0)


@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_calls_arrive_in_the_middle_of_a_cell_and_from_its_threads(live: Bridge) -> None:
    for lane in LANES:
        seen: list[Any] = []
        async with Bridge.attach(file_of(live), lane=lane) as bridge:
            await bridge.push(report=bridge.callback(seen.append))
            running = asyncio.ensure_future(
                bridge.run(
                    "import threading, time\n"
                    "def work(n):\n"
                    "    for step in range(50): report((n, step))\n"
                    "threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]\n"
                    "for thread in threads: thread.start()\n"
                    "while 'go' not in globals(): time.sleep(0.01)\n"
                    "del go"
                )
            )
            await until(lambda: len(seen) == 150)
            for n in range(3):
                assert [step for thread, step in seen if thread == n] == [*range(50)]
            assert not running.done()
            await live.interrupt()
            with pytest.raises(RemoteError, match="KeyboardInterrupt"):
                await running


def ahead() -> tuple[int, int]:
    """Return how many calls were sent and have not begun, and how many wait to be sent."""
    module: Any = next(m for n, m in sys.modules.items() if n.startswith("_bridgehead"))
    (remote,) = module._remotes.values()
    (queue,) = remote.resources.known.values()
    return queue.sent_calls - queue.begun, len(queue.waiting)


async def test_a_thousand_calls_at_most_are_ahead_of_the_client(bridge: Bridge) -> None:
    note = HeldUp()
    with bridge.callback(note) as report:
        await bridge.call(call_each, report, 1)
        await note.begun.wait()
        await bridge.call(call_each, report, 3_000)

        async def counts() -> tuple[int, int]:
            return await bridge.call(ahead, by_value=[sys.modules[__name__]])

        async with asyncio.timeout(30):
            while sum(await counts()) != 3_000 or await counts() != (1_000, 2_000):
                assert (await counts())[0] <= 1_000
                await asyncio.sleep(0.02)
        assert len(note.seen) == 1
        assert report._calls._arrived.queued <= 1_000
        note.go_on.set()
        await until(lambda: len(note.seen) == 3_001)
    assert note.seen == [0, *range(3_000)]


async def test_a_callback_that_a_function_kept_is_called_later(bridge: Bridge) -> None:
    def keeps(report: Any) -> None:
        global kept
        kept = {"report": report}

    seen: list[int] = []
    with bridge.callback(seen.append) as report:
        await bridge.call(keeps, report, namespace=True)
        await bridge.run("kept['report'](1)")
        async with await bridge.call(dict, report=report, keep=True) as ref:
            await ref["report"](2).pull()
        await until(lambda: len(seen) == 2)
    assert seen == [1, 2]
    await bridge.delete("kept")


async def test_a_function_answers_while_its_cell_waits_for_room(bridge: Bridge) -> None:
    seen: list[int] = []

    async def note(step: int) -> None:
        await bridge.push(at=step, now=True)
        seen.append(await bridge.pull("at", now=True))

    report = bridge.callback(note, 2, "wait")
    await bridge.push(report=report)
    await bridge.run("for step in range(20): report(step)")
    await until(lambda: len(seen) == 20)
    assert seen == [*range(20)]


async def test_a_cell_that_waits_for_room_is_interrupted(bridge: Bridge) -> None:
    begun = asyncio.Event()

    async def note(step: int) -> None:
        begun.set()
        await asyncio.sleep(3600)

    await bridge.push(report=bridge.callback(note, 1, "wait"))
    running = asyncio.ensure_future(bridge.run("for step in range(20): report(step)"))
    await begun.wait()
    await asyncio.sleep(0.1)
    assert not running.done()
    async with reported_within(1):
        await bridge.interrupt()
        with pytest.raises(RemoteError, match="KeyboardInterrupt"):
            await running


async def test_closing_the_bridge_frees_a_cell_that_waits_for_room(kernel: Bridge) -> None:
    begun = asyncio.Event()

    async def note(step: int) -> None:
        begun.set()
        await asyncio.sleep(3600)

    async with Bridge.attach(file_of(kernel)) as bridge:
        await bridge.push(report=bridge.callback(note, 1, "wait"))
        running = asyncio.ensure_future(
            kernel.run("for step in range(20): report(step)\nended = True")
        )
        await begun.wait()
    async with reported_within(2):
        await running
    assert await kernel.pull("ended") is True
    await kernel.run("report(1)")  # it does nothing
    await nothing_is_kept(kernel)


async def test_a_callback_that_is_closed_while_it_is_on_its_way_does_nothing(
    kernel: Bridge, bridge: Bridge
) -> None:
    """What it goes with takes effect."""
    seen: list[int] = []
    report = bridge.callback(seen.append)
    async with occupied(kernel):
        pushing = asyncio.ensure_future(bridge.push(report=report, x=1))
        await until(lambda: on_its_way(bridge))
        report.close()
        ending = bridge._connection.resources._ending
        await until(lambda: report._calls.id not in bridge._transport.life.listeners)
        await until(lambda: not ending.waiting)  # the kernel knows
    await pushing
    await bridge.run("report(x)")
    await nothing_is_kept(kernel)
    assert seen == []


@pytest.mark.slow
@pytest.mark.parametrize("maxsize", [None, 2])
async def test_interrupts_of_cells_that_call_leave_the_kernel_as_it_was(
    live: Bridge, maxsize: int | None
) -> None:
    """The control thread goes on, wherever an interrupt hits the call."""
    seen: list[Any] = []
    report = live.callback(seen.append, maxsize, "wait" if maxsize else "drop_oldest")
    await live.push(report=report)
    chance = random.Random(1)
    for n in range(60):
        cell = asyncio.ensure_future(live.run("while True: report(0)"))
        await until(lambda: seen)
        await asyncio.sleep(0.01 * chance.random())
        os.kill(live.info.pid, signal.SIGINT)
        with pytest.raises(RemoteError, match="KeyboardInterrupt"):
            await cell
        async with reported_within(3):
            await live.run(f"report({n + 1})")
            await until(lambda n=n: n + 1 in seen)  # type: ignore[misc]
        seen.clear()


async def test_a_task_calls_back(bridge: Bridge) -> None:
    seen: list[int] = []

    async def work(report: Any) -> str:
        for step in range(5):
            report(step)
            await asyncio.sleep(0.01)
        return "done"

    with bridge.callback(seen.append) as report:
        assert await bridge.call(work, report) == "done"
        await until(lambda: len(seen) == 5)


@pytest.mark.timings(report_every=0.2)
async def test_events_that_are_lost_or_arrive_twice_change_nothing(bridge: Bridge) -> None:
    seen: list[int] = []
    harmed = 0
    dispatcher = bridge._transport.dispatcher
    received = dispatcher.received

    def harm(channel: str, message: Any) -> None:
        nonlocal harmed
        if message["header"]["msg_type"] == EVENT_MESSAGE and harmed < 7:
            harmed += 1
            if harmed % 2:
                return
            received(channel, message)
        received(channel, message)

    with bridge.callback(seen.append) as report:
        await bridge.push(report=report)
        dispatcher.received = harm  # type: ignore[method-assign]
        await bridge.run("import time\nfor n in range(100):\n    report(n); time.sleep(0.002)")
        await bridge.run("for n in range(100, 3000): report(n)")
        await until(lambda: len(seen) >= 3000)
    assert seen == [*range(3000)]
    assert harmed == 7


@pytest.mark.parametrize(
    "code",
    [
        "import atexit; atexit.register(call)",
        "import threading; threading.Thread(target=call).start()",
    ],
    ids=["atexit", "thread"],
)
@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_a_call_that_waits_for_room_does_not_keep_a_kernel_from_ending(
    live: Bridge, code: str
) -> None:
    """What waits for the end of a kernel, or for which a kernel waits that ends, has no room."""
    process = psutil.Process(live.info.pid)
    async with Bridge.attach(file_of(live)) as bridge:
        await bridge.push(report=bridge.callback(lambda step: asyncio.sleep(3600), 1, "wait"))
        await bridge.run(f"def call(): [report(n) for n in range(9)]\n{code}")
        async with other(live) as client:
            client.client.shutdown()
            with contextlib.suppress(psutil.NoSuchProcess):  # it was reaped
                async with reported_within(3):
                    while process.status() != psutil.STATUS_ZOMBIE:
                        await asyncio.sleep(0.05)


async def test_a_client_that_vanished_leaves_nothing(live: Bridge) -> None:
    """Its lease ends. The clock of the leases is set ahead, which takes ten minutes else."""
    seen: list[int] = []
    code = (
        "import asyncio, sys\nfrom bridgehead import Bridge\n"
        "async def main():\n"
        "    bridge = await Bridge.attach(sys.argv[1])\n"
        "    await bridge.push(report=bridge.callback(print))\n"
        "    await bridge.run('report(1)')\n"
        "    await asyncio.sleep(3600)\n"
        "asyncio.run(main())"
    )
    client = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(file_of(live)), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert client.stdout is not None
        assert await client.stdout.readline() == b"1\n"
    finally:
        client.send_signal(signal.SIGKILL)
        await client.wait()
    await live.run("for n in range(3000): report(n)")  # it waits for nothing
    await live.run(
        "import sys\n"
        "module = next(m for n, m in sys.modules.items() if n.startswith('_bridgehead'))\n"
        "(remote,) = module._remotes.values()\nremote.resources.clock += 601"
    )
    await live.call(abs, 1)
    await live.run("report(1)")
    await nothing_is_kept(live)
    assert not seen


async def test_a_sync_bridge_draws_progress(kernel: Bridge) -> None:
    def work(report: Any) -> int:
        for step in range(10):
            report(step, of=10)
        return os.getpid()

    def blocking() -> list[Any]:
        import threading

        seen: list[Any] = []
        done = threading.Event()
        with SyncBridge.attach(file_of(kernel)) as sync:

            def note(step: int, of: int) -> None:
                seen.append((step, of, sync.pull("1 + 1", now=True)))
                if step == of - 1:
                    done.set()

            with sync.callback(note) as report:
                assert sync.call(work, report) == kernel.info.pid
                assert done.wait(30)
        return seen

    assert await asyncio.to_thread(blocking) == [(step, 10, 2) for step in range(10)]
    await goes_on(kernel)
    await nothing_is_kept(kernel)
