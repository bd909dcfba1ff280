"""What stays in a real kernel for a bridge: every kind of it goes through the same trials.

Rule: a trial does the same to all kinds, and then nothing may be left in the kernel: no resource,
no task, no generator and no thread. What only one kind promises belongs to a file of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from bridgehead import (
    Bridge,
    BridgeClosed,
    BridgeError,
    KernelRestarted,
    NameNotFound,
    ReplyLost,
    SyncBridge,
    TransportError,
)
from kernel.connection.test_tasks import later, nothing_is_kept, spin
from support.cuts import cuttable
from support.elsewhere import MAJORS
from support.kit import (
    LANES,
    all_of,
    file_of,
    goes_on,
    kept_and_late,
    on_its_way,
    reported_within,
    until,
)
from support.promises import occupied, seeded

# A kernel can't import test modules, so what they define is pickled by value, as in a script.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
OWN = [sys.modules[__name__]]


def numbers() -> Iterator[int]:
    """Yield without end."""
    n = 0
    while True:
        yield n
        n += 1


async def numbers_async() -> AsyncIterator[int]:
    """Yield, and hold what a generator may hold over a ``yield``."""
    async with asyncio.TaskGroup() as group, asyncio.timeout(1000):
        waiting = group.create_task(asyncio.sleep(1000))
        try:
            for n in range(10**9):
                yield n
                await asyncio.sleep(0)
        finally:
            waiting.cancel()


def two(value: Any) -> list[Any]:
    return [value, value]


# ---------------------------------------------------------------- the kinds


class Held:
    """What a bridge has of one kind in its kernel.

    Attributes:
        handle: what keeps it alive here.
        use: an operation that shows that it is still there; it takes the bridge that runs cells.
    """

    def __init__(self, handle: Any, use: Callable[[Bridge], Awaitable[Any]]) -> None:
        self.handle, self.use = handle, use


async def a_task(bridge: Bridge) -> Held:
    task = bridge.submit(later, "done", 1000)
    await bridge.push(x=1)  # its turn is behind that of the task, which has started
    assert not task.done()

    async def use(cells: Bridge) -> None:
        assert bridge.stats.tasks
        if task.done():
            await task

    return Held(task, use)


async def an_iteration(bridge: Bridge, source: Any = numbers) -> Held:
    items = bridge.iterate(source)
    found = [await anext(items) for _ in range(3)]
    assert found == [0, 1, 2]

    async def use(cells: Bridge) -> None:
        for _ in range(300):
            found.append(await anext(items))
        assert found == [*range(len(found))]

    return Held(items, use)


async def an_async_iteration(bridge: Bridge) -> Held:
    return await an_iteration(bridge, numbers_async)


async def a_callback(bridge: Bridge) -> Held:
    seen: list[int] = []
    report = bridge.callback(seen.append)
    await bridge.push(report=report)

    async def use(cells: Bridge) -> None:
        count = len(seen) + 3
        await cells.run(f"for n in range({len(seen)}, {count}): report(n)")
        await until(lambda: len(seen) == count)
        assert seen == [*range(count)]

    await use(bridge)
    return Held(report, use)


async def a_ref(bridge: Bridge, function: Any = two) -> Held:
    ref = await bridge.call(function, [5], keep=True)

    async def use(cells: Bridge) -> None:
        assert await ref[0].pull() in (5, [5])

    return Held(ref, use)


async def an_async_ref(bridge: Bridge) -> Held:
    return await a_ref(bridge, later)


async def a_watch(bridge: Bridge, names: bool = False) -> Held:
    await bridge.push(watched=[])
    watch: Any = bridge.watch_names("watched") if names else bridge.watch("watched")
    await anext(watch)

    async def use(cells: Bridge) -> None:
        await cells.run("watched = [*watched, 0]")
        value = await anext(watch)
        assert value[0].name == "watched" if names else value

    return Held(watch, use)


async def a_watch_of_names(bridge: Bridge) -> Held:
    return await a_watch(bridge, names=True)


KINDS: dict[str, Callable[[Bridge], Awaitable[Held]]] = {
    "task": a_task,
    "iteration": an_iteration,
    "async iteration": an_async_iteration,
    "callback": a_callback,
    "ref": a_ref,
    "async ref": an_async_ref,
    "watch": a_watch,
    "names": a_watch_of_names,
}


async def of_every_kind(bridge: Bridge) -> dict[str, Held]:
    return {kind: await begin(bridge) for kind, begin in KINDS.items()}


async def push_callback(bridge: Bridge) -> None:
    with bridge.callback(print) as report:
        await bridge.push(report=report)


# What makes one of each kind, as a single request that a caller can give up.
ASKED: dict[str, Callable[[Bridge], Any]] = {
    "function": lambda bridge: bridge.call(spin, 0.05),
    "coroutine": lambda bridge: bridge.call(later, 1, 0.05),
    "expression": lambda bridge: bridge.pull("await __import__('asyncio').sleep(0.05)"),
    "task": lambda bridge: bridge.submit(spin, 0.05),
    "async task": lambda bridge: bridge.submit(later, 1, 0.05),
    "iteration": lambda bridge: anext(bridge.iterate(numbers)),
    "async iteration": lambda bridge: anext(bridge.iterate(numbers_async)),
    "callback": push_callback,
    "ref": lambda bridge: bridge.call(two, 1, keep=True),
    "async ref": lambda bridge: bridge.call(later, 1, keep=True),
    "watch": lambda bridge: anext(bridge.watch("1")),
    "names": lambda bridge: anext(bridge.watch_names()),
}


def _running() -> tuple[list[str], list[str]]:
    """Return what runs in the kernel of what these tests sent, and its threads."""
    import gc
    import threading
    from types import AsyncGeneratorType, CoroutineType, GeneratorType

    gc.collect()
    found = []
    for one in gc.get_objects():
        for kind, letters in (
            (GeneratorType, "gi"),
            (CoroutineType, "cr"),
            (AsyncGeneratorType, "ag"),
        ):
            if type(one) is kind and getattr(one, letters + "_frame") is not None:
                name = getattr(one, letters + "_code").co_filename
                if "/tests/" in name:
                    found.append(repr(one))
    return found, [thread.name for thread in threading.enumerate()]


async def nothing_is_left(kernel: Bridge, threads: list[str]) -> None:
    """Wait until nothing of these tests is left in the kernel; it had these threads before."""
    gc.collect()
    with contextlib.suppress(NameNotFound):
        await kernel.delete("report")
    await nothing_is_kept(kernel)
    left: Any = None
    try:
        async with asyncio.timeout(30):
            while True:
                left = await kernel.call(_running, by_value=OWN)
                if not left[0] and len(left[1]) <= len(threads):
                    return
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail(f"left in the kernel: {left}; threads before: {threads}")


@pytest.fixture
async def threads(kernel: Bridge) -> list[str]:
    """Give the names of the threads that the kernel has."""
    if "threads" not in vars(Begun):
        await kernel.pull("1", now=True)  # a subshell has a thread, which stays
        Begun.threads = (await kernel.call(_running, by_value=OWN))[1]
    return Begun.threads


class Begun:
    """What the kernel of this file had at the beginning."""

    threads: list[str]


async def lease_ends(kernel: Bridge) -> None:
    """Set the clock of the leases ahead, as if no bridge had been heard of for ten minutes."""
    await kernel.run(
        "import sys\n"
        "module = next(m for n, m in sys.modules.items() if n.startswith('_bridgehead'))\n"
        "for remote in module._remotes.values(): remote.resources.clock += 601\n"
        "del module, remote"
    )
    await kernel.call(abs, 1)  # a request that the thread of the cells serves looks at the leases


# ---------------------------------------------------------------- the trials


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("how", ["dropped", "the bridge is closed", "the bridge vanished"])
async def test_what_has_begun_is_gone_with_its_owner(
    kernel: Bridge, threads: list[str], lane: Any, how: str
) -> None:
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge:
        held = await of_every_kind(bridge)
        for one in held.values():
            await one.use(bridge)
        assert kept_and_late(bridge)[:5] == (2, 1, 2, 2, 1)
        if how == "the bridge vanished":
            await lease_ends(kernel)
            await nothing_is_kept(kernel)
        elif how == "dropped":
            held["task"].handle.cancel()
            held["callback"].handle.close()
            del held, one
            gc.collect()
            await nothing_is_kept(kernel)
            assert kept_and_late(bridge)[:5] == (0, 0, 0, 0, 0)
        await goes_on(bridge)
    await nothing_is_left(kernel, threads)


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("how", ["cancelled", "the bridge is closed", "the bridge vanished"])
async def test_what_waits_behind_a_cell_and_is_left_leaves_nothing(
    kernel: Bridge, threads: list[str], lane: Any, how: str
) -> None:
    """Each kind over a bridge of its own: one request of a bridge is on its way at a time."""
    async with contextlib.AsyncExitStack() as opened:
        bridges = [
            await opened.enter_async_context(Bridge.attach(file_of(kernel), lane=lane))
            for _ in ASKED
        ]
        async with occupied(kernel):
            asked: Any = [
                asyncio.ensure_future(ask(bridge))
                for ask, bridge in zip(ASKED.values(), bridges, strict=True)
            ]
            await until(lambda: all(map(on_its_way, bridges)))
            if how == "cancelled":
                [one.cancel() for one in asked]
            elif how == "the bridge is closed":
                await asyncio.gather(*(bridge.aclose() for bridge in bridges))
        outcomes = await all_of(*asked)
        if how == "the bridge vanished":
            assert not [one for one in outcomes if isinstance(one, BaseException)], outcomes
            await lease_ends(kernel)
        else:
            ends = (asyncio.CancelledError, BridgeClosed, StopAsyncIteration)
            assert all(isinstance(one, ends) for one in outcomes), outcomes
        del asked, outcomes
    await nothing_is_left(kernel, threads)


@pytest.mark.parametrize("lane", LANES)
async def test_a_cancel_at_any_instant_leaves_nothing(
    kernel: Bridge, threads: list[str], lane: Any
) -> None:
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge:
        with seeded() as chance:
            for kind, ask in list(ASKED.items()) * 8:
                asked: Any = ask(bridge)
                if not hasattr(asked, "cancel"):
                    asked = asyncio.ensure_future(asked)
                await asyncio.sleep(chance.choice((0, 0.001, 0.003, 0.01, 0.06)) * chance.random())
                asked.cancel()
                (outcome,) = await all_of(asked)
                assert not isinstance(outcome, BridgeError), (kind, outcome)
                del asked, outcome
        await goes_on(bridge)
        gc.collect()
        await kernel.run("globals().pop('report', None)")
        await nothing_is_kept(kernel)
    await nothing_is_left(kernel, threads)


@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_a_restart_ends_what_has_begun_of_every_kind(live: Bridge) -> None:
    """Each handle reports it, the next call may report it once, and all kinds can begin anew."""
    for lane in LANES:
        async with Bridge.attach(file_of(live), lane=lane) as bridge:
            held = await of_every_kind(bridge)
            await live.restart()
            for kind, one in held.items():
                with pytest.raises((KernelRestarted, NameNotFound, StopAsyncIteration)):
                    async with reported_within(3):
                        await ended(kind, one)
            with contextlib.suppress(KernelRestarted):
                await goes_on(bridge)
            assert await live.call(_running, by_value=OWN) is not None
            await nothing_is_kept(live)
            for begin in KINDS.values():
                again = await begin(bridge)
                await again.use(bridge)
            del held, one, again
        gc.collect()
        await live.run("globals().pop('report', None)")
        await nothing_is_kept(live)


# A kernel that is not back after 2.5 s counts as dead, and a loaded machine takes longer.
@pytest.mark.timings(reconnect_grace=60)
@pytest.mark.parametrize("lane", LANES)
async def test_a_restart_ends_what_waits_behind_a_cell(live: Bridge, lane: Any) -> None:
    async with contextlib.AsyncExitStack() as opened:
        bridges = [
            await opened.enter_async_context(Bridge.attach(file_of(live), lane=lane)) for _ in ASKED
        ]
        cell = asyncio.ensure_future(live.run("import time; time.sleep(60)"))
        await until(lambda: live.state == "busy")
        asked: Any = [
            asyncio.ensure_future(ask(bridge))
            for ask, bridge in zip(ASKED.values(), bridges, strict=True)
        ]
        await until(lambda: all(map(on_its_way, bridges)))
        await live.restart()
        outcomes = dict(zip(("cell", *ASKED), await all_of(cell, *asked), strict=True))
        assert all(isinstance(one, KernelRestarted) for one in outcomes.values()), list(
            map(repr, outcomes.values())
        )
        del asked, outcomes
        for bridge in bridges:
            await goes_on(bridge)
            assert kept_and_late(bridge)[:5] == (0, 0, 0, 0, 0)
    await nothing_is_kept(live)


async def ended(kind: str, one: Held) -> None:
    """Use what a restarted kernel does not have; raise why."""
    if kind == "task":
        await one.handle
    elif "iteration" in kind or kind in ("watch", "names"):
        while True:
            await anext(one.handle)
    elif kind == "callback":  # it can be pushed again
        raise NameNotFound("report")
    else:
        await one.handle.pull()


@pytest.mark.parametrize("lane", ["direct", "buffers"])
async def test_every_kind_goes_on_over_a_new_connection(tmp_path: Path, lane: Any) -> None:
    """J6. The connection is cut before each kind is used, and while it is; cells do not pass it."""
    async with (
        cuttable(tmp_path, lane=lane) as (bridge, cuts),
        Bridge.attach(cuts.kernel_file) as cells,
    ):
        held = await of_every_kind(bridge)
        chance = random.Random(1)
        for _ in range(2):
            for kind, one in held.items():
                cuts.cut()
                using = asyncio.ensure_future(used(one, cells))
                await asyncio.sleep(0.05 * chance.random())
                cuts.cut()
                try:
                    await asyncio.wait_for(using, 60)
                except TimeoutError:
                    pytest.fail(f"{kind} did not go on")
        assert not held["task"].handle.done()
        held["task"].handle.cancel()
        held["callback"].handle.close()
        del held, one, using
        gc.collect()
        await cells.run("globals().pop('report', None)")
        await nothing_is_kept(cells)


@pytest.mark.parametrize("lane", ["direct", "buffers"])
async def test_what_is_asked_while_the_connection_is_cut_leaves_nothing(
    tmp_path: Path, lane: Any
) -> None:
    """J6. Cut at any instant of what makes one of each kind: it is made, or its outcome unknown."""
    async with (
        cuttable(tmp_path, lane=lane) as (bridge, cuts),
        Bridge.attach(cuts.kernel_file) as cells,
    ):
        with seeded() as chance:
            for kind, ask in list(ASKED.items()) * 3:
                asked: Any = asyncio.ensure_future(_awaited(ask(bridge)))
                await asyncio.sleep(chance.choice((0, 0.003, 0.01, 0.06)) * chance.random())
                cuts.cut()
                async with reported_within(6):
                    (outcome,) = await all_of(asked)
                is_unknown = isinstance(outcome, (TransportError, ReplyLost))
                assert is_unknown or not isinstance(outcome, BaseException), (kind, outcome)
                del asked, outcome
        await goes_on(bridge)
        gc.collect()
        await cells.run("globals().pop('report', None)")
        await nothing_is_kept(cells)
        assert kept_and_late(bridge)[:5] == (0, 0, 0, 0, 0)


async def _awaited(asked: Any) -> Any:
    return await asked


async def used(one: Held, cells: Bridge) -> None:
    """Use it; what was asked as the connection broke is asked again."""
    while True:
        try:
            await one.use(cells)
        except TransportError:
            await asyncio.sleep(0.05)
        else:
            return


CLIENT = """
import asyncio, sys
sys.path[:0] = sys.argv[2:]
from bridgehead import Bridge
from kernel.connection.test_resources import ASKED, of_every_kind

async def main():
    bridge = await Bridge.attach(sys.argv[1])
    held = await of_every_kind(bridge)
    print("begun", flush=True)
    sys.stdin.readline()
    asked = [asyncio.ensure_future(ask(bridge)) for ask in ASKED.values()]
    await asyncio.sleep(0.5)
    print("asked", flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


async def test_a_client_that_is_killed_leaves_nothing_of_any_kind(
    kernel: Bridge, threads: list[str]
) -> None:
    """Of what has begun, of what waits behind a cell, and of what its cell was about to begin."""
    paths = [path for path in sys.path if path]
    client = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CLIENT, file_of(kernel), *paths),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert client.stdin is not None
    assert client.stdout is not None
    try:
        assert await client.stdout.readline() == b"begun\n"
        async with occupied(kernel):
            client.stdin.write(b"\n")
            assert await client.stdout.readline() == b"asked\n"
            client.kill()
            await client.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            client.kill()
        await client.wait()
    await lease_ends(kernel)
    await kernel.delete("x", "watched")
    await nothing_is_left(kernel, threads)


def test_a_sync_bridge_leaves_nothing_of_any_kind() -> None:
    with SyncBridge.launch() as kernel:
        with SyncBridge.attach(kernel.info.connection_file) as sync:
            task, async_task = sync.submit(two, 1), sync.submit(later, 1, 1000)
            ref, async_ref = sync.call(two, 5, keep=True), sync.call(later, [5], keep=True)
            items, async_items = sync.iterate(numbers), sync.iterate(numbers_async)
            watch, names = sync.watch("1"), sync.watch_names()
            seen: list[int] = []
            sync.call(lambda report: report(1), sync.callback(seen.append))
            assert (task.result(60), ref[0].pull(), async_ref[0].pull()) == ([1, 1], 5, 5)
            assert [next(one) for one in (items, async_items, watch)] == [0, 0, 1]
            next(names)
            stats = sync.stats
            assert (stats.tasks, stats.refs, stats.iterations, stats.watches, stats.callbacks) == (
                *(1, 2, 2, 2),
                1,
            )
            assert async_task.running()
            for one in items, async_items, watch, names:
                one.close()
            assert async_task.cancel()
        asyncio.run(_nothing_is_kept(kernel))


async def _nothing_is_kept(kernel: SyncBridge) -> None:
    async with Bridge.attach(str(kernel.info.connection_file)) as bridge:
        await nothing_is_left(bridge, [""] * 100)
