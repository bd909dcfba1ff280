"""Tasks that end with their owner, and work in threads in a process that can start no thread.

Rule: real limits, in a process of its own.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading

import pytest

from bridgehead import Bridge, Fleet, SyncBridge
from bridgehead._connection.trust import LARGE
from bridgehead._transports import tasks
from bridgehead._transports.tasks import Tasks, in_thread

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")

# A thread needs address space for its stack.
PROGRAM = """
import asyncio, json, resource, sys, threading
from bridgehead._transports.tasks import in_thread, threads_of

ran = []

def work(name, wait=None):
    ran.append(name)
    if wait is not None:
        wait.wait()
    if name == "fails":
        raise OSError(name)
    return name, threading.current_thread() is threading.main_thread()

async def main():
    loop, busy = asyncio.get_running_loop(), threading.Event()
    with_worker = sys.argv[1] == "a busy worker"
    if with_worker:
        first = in_thread(work, "first", busy)
    most = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + (4 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    outcomes = await asyncio.gather(
        in_thread(work, "one"), in_thread(work, "fails"), return_exceptions=True
    )
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    busy.set()
    if with_worker:
        outcomes.append(await first)
    outcomes.append(await in_thread(work, "last"))
    threads_of.pop(loop).close()  # what it still had has run
    print(json.dumps([list(map(str, outcomes)), ran]))

asyncio.run(main())
"""


@linux
@pytest.mark.parametrize("worker", ["no worker", "a busy worker"])
def test_work_for_a_thread_runs_once_in_a_process_that_can_start_none(worker: str) -> None:
    code = [sys.executable, "-c", PROGRAM, worker]
    ran = subprocess.run(code, capture_output=True, text=True, timeout=60, check=True)
    outcomes, names = json.loads(ran.stdout)
    first = ["first"] if worker == "a busy worker" else []
    assert outcomes == [
        "('one', True)",
        "fails",
        *(f"('{name}', False)" for name in first),
        "('last', False)",
    ]
    assert names == [*first, "one", "fails", "last"]


async def test_a_thread_that_did_not_start_gets_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work after it does not wait for the one thread there is, which may wait for this work."""
    monkeypatch.setattr(tasks, "threads_of", {})  # none is idle
    go_on = threading.Event()
    busy = in_thread(go_on.wait, 60)
    with monkeypatch.context() as patch:

        def start(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        patch.setattr(threading.Thread, "start", start)
        assert await in_thread(threading.get_ident) == threading.get_ident()
    go_on.set()
    await busy
    go_on.clear()
    busy = in_thread(go_on.wait, 60)
    async with asyncio.timeout(30):
        assert await in_thread(threading.get_ident) != threading.get_ident()
    go_on.set()
    assert await busy


async def test_functions_that_take_all_threads_of_asyncio_may_wait_for_a_bridge() -> None:
    threads = 33  # more than asyncio has for its ``to_thread``
    data = bytes(LARGE)
    async with Bridge.loopback() as bridge:
        executor = Fleet([bridge]).executor()
        waiting = [
            asyncio.to_thread(lambda: executor.submit(len, data).result()) for _ in range(threads)
        ]
        async with asyncio.timeout(60):
            assert await asyncio.gather(*waiting) == [LARGE] * threads


async def test_a_task_that_begins_while_its_owner_ends_ends_too() -> None:
    tasks = Tasks()

    async def endless() -> None:
        await asyncio.Event().wait()

    async def followed() -> None:
        try:
            await endless()
        finally:
            tasks.spawn(endless())

    before = asyncio.all_tasks()
    tasks.spawn(followed())
    await asyncio.sleep(0)
    await tasks.cancel()
    tasks.spawn(endless())
    async with asyncio.timeout(10):
        while asyncio.all_tasks() != before:
            await asyncio.sleep(0)


def test_the_threads_end_with_the_event_loop_although_a_closed_bridge_is_kept() -> None:
    async def use() -> Bridge:
        async with Bridge.loopback() as bridge:
            await in_thread(len, "abc")
            return bridge

    before = {*threading.enumerate()}
    kept = asyncio.run(use())
    assert {*threading.enumerate()} - before == set()
    assert kept.state == "closed"


@pytest.mark.parametrize("kind", ["asyncio.run", "a bridge that blocks"])
def test_a_function_that_does_not_end_holds_up_no_end_of_a_loop(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(tasks.Timings, "threads_end", 0.1)
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait(60)
        ended.set()

    async def begin() -> None:
        in_thread(work)
        begun.wait(60)

    if kind == "asyncio.run":
        asyncio.run(begin())
    else:
        with SyncBridge.loopback() as bridge:
            bridge._wait(begin)
    assert not ended.is_set()
    go_on.set()
    assert ended.wait(60)
