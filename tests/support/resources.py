"""What stays in a kernel for a bridge: one of every kind, and what may be left of it.

Rule: what the trials of a kernel and those of a server share. What the kernel must not keep is
counted in its remote part.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from typing import Any

import cloudpickle
import pytest

from bridgehead import (
    Bridge,
    BridgeError,
    KernelRestarted,
    NameNotFound,
    RemoteError,
    ReplyLost,
    TransportError,
)
from support.kit import all_of, awaited, goes_on, kept_and_late, reported_within, until
from support.promises import seeded

# A kernel can't import test modules, so what they define is pickled by value, as in a script.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
OWN = [sys.modules[__name__]]


async def later(value: Any, seconds: float = 0.0) -> Any:
    await asyncio.sleep(seconds)
    return value


def spin(seconds: float = 60) -> None:
    """Compute in Python code, after a step in which the task has begun."""
    import time

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


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
    watch: Any = bridge.watch_names("watched") if names else bridge.watch("watched", "len(watched)")
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


async def of_every_kind(bridge: Bridge, but: Collection[str] = ()) -> dict[str, Held]:
    return {kind: await begin(bridge) for kind, begin in KINDS.items() if kind not in but}


async def push_callback(bridge: Bridge) -> None:
    with bridge.callback(print) as report:
        await bridge.push(report=report)


async def says(seconds: float) -> None:
    print("at work")
    await asyncio.sleep(seconds)


# What makes one of each kind, as a single request that a caller can give up.
ASKED: dict[str, Callable[[Bridge], Any]] = {
    "function": lambda bridge: bridge.call(spin, 0.05),
    "coroutine": lambda bridge: bridge.call(later, 1, 0.05),
    "expression": lambda bridge: bridge.pull("await __import__('asyncio').sleep(0.05)"),
    "outputs": lambda bridge: bridge.call(print, "at work", on_output=str),
    "async outputs": lambda bridge: bridge.call(says, 0.05, on_output=str),
    "on_timeout": lambda bridge: bridge.call(spin, 0.05, on_timeout="interrupt"),
    "task": lambda bridge: bridge.submit(spin, 0.05),
    "async task": lambda bridge: bridge.submit(later, 1, 0.05),
    "iteration": lambda bridge: anext(bridge.iterate(numbers)),
    "async iteration": lambda bridge: anext(bridge.iterate(numbers_async)),
    "callback": push_callback,
    "ref": lambda bridge: bridge.call(two, 1, keep=True),
    "async ref": lambda bridge: bridge.call(later, 1, keep=True),
    "ref of a task": lambda bridge: bridge.submit(two, 1, keep=True),
    "watch": lambda bridge: anext(bridge.watch("1", "2")),
    "names": lambda bridge: anext(bridge.watch_names()),
}


# ---------------------------------------------------------------- what is left


def _kept() -> list[str]:
    import sys

    module: Any = next(m for n, m in sys.modules.items() if n.startswith("_bridgehead"))
    (remote,) = module._remotes.values()
    resources, objects = remote.resources, remote.operations.values.kept
    found = [*resources.known.values(), *remote.tasks.running]
    found += ["owner " + name for name in resources.owners] + [f"object {name}" for name in objects]
    return [f"{one!r} {getattr(one, '__dict__', '')}" for one in found]


async def nothing_is_kept(kernel: Bridge) -> None:
    kept: list[str] = []
    try:
        async with asyncio.timeout(30):
            while kept := await kernel.call(_kept, by_value=OWN):
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"the kernel keeps {kept}")
    async with asyncio.timeout(30):
        factory = "__import__('asyncio').get_event_loop().get_task_factory()"
        while await kernel.pull(f"{factory} is None") is not True:
            await asyncio.sleep(0.02)


def running() -> tuple[list[str], list[str]]:
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
                left = await kernel.call(running, by_value=OWN)
                if not left[0] and len(left[1]) <= len(threads):
                    return
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail(f"left in the kernel: {left}; threads before: {threads}")


async def threads_of(kernel: Bridge) -> list[str]:
    """Return the names of the threads that a kernel has."""
    await kernel.pull("1", now=True)  # a subshell has a thread, which stays
    _, threads = await kernel.call(running, by_value=OWN)
    return threads


async def lease_ends(kernel: Bridge) -> None:
    """Set the clock of the leases ahead, as if no bridge had been heard of for ten minutes."""
    await kernel.run(
        "import sys\n"
        "module = next(m for n, m in sys.modules.items() if n.startswith('_bridgehead'))\n"
        "for remote in module._remotes.values(): remote.resources.clock += 601\n"
        "del module, remote"
    )
    await kernel.call(abs, 1)  # a request that the thread of the cells serves looks at the leases


# ---------------------------------------------------------------- trials


async def gone_with_its_owner(
    bridge: Bridge, kernel: Bridge, how: str, but: Collection[str] = ()
) -> None:
    """Have one of each kind, and then drop it, or have the bridge vanish, or let it be closed."""
    held = await of_every_kind(bridge, but)
    for one in held.values():
        await one.use(bridge)
    assert kept_and_late(bridge)[:5] == (0 if "watch" in but else 2, 1, 2, 2, 1)
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


async def cancelled_at_any_instant(
    bridge: Bridge, kernel: Bridge, times: int, but: Collection[str] = ()
) -> None:
    with seeded() as chance:
        for kind, ask in list(ASKED.items()) * times:
            if kind in but:
                continue
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


# What a handle raises after a restart. A watch is at its end, and the next call reports why.
AFTER_A_RESTART: dict[str, type[BaseException]] = {
    "task": KernelRestarted,
    "iteration": KernelRestarted,
    "async iteration": KernelRestarted,
    "ref": NameNotFound,
    "async ref": NameNotFound,
    "watch": StopAsyncIteration,
    "names": StopAsyncIteration,
}


async def ended_by_a_restart(held: dict[str, Held], bridge: Bridge) -> None:
    """Check that each handle reports that its kernel was restarted; a callback is pushed again."""
    for kind, error in AFTER_A_RESTART.items():
        with pytest.raises(error):
            async with reported_within(3):
                try:
                    await ended(kind, held[kind])
                except RemoteError as failed:  # a server interrupts a kernel before it restarts it
                    assert failed.ename == "KeyboardInterrupt"  # noqa: PT017
                    raise KernelRestarted("seen as an interrupt") from failed
    await bridge.push(report=held["callback"].handle)
    await held["callback"].use(bridge)
    held["callback"].handle.close()


async def ended(kind: str, one: Held) -> None:
    """Use what a restarted kernel does not have; raise why."""
    if kind == "task":
        await one.handle
    elif "iteration" in kind or kind in ("watch", "names"):
        while True:
            await anext(one.handle)
    else:
        await one.handle.pull()


async def goes_on_over_cuts(bridge: Bridge, cells: Bridge, cut: Callable[[], object]) -> None:
    """Cut the connection before each kind is used, and while it is; ``cells`` does not pass it."""
    threads = await threads_of(cells)
    held = await of_every_kind(bridge)
    chance = random.Random(1)
    for _ in range(2):
        for kind, one in held.items():
            cut()
            using = asyncio.ensure_future(used(one, cells))
            await asyncio.sleep(0.05 * chance.random())
            cut()
            try:
                await asyncio.wait_for(using, 60)
            except TimeoutError:
                pytest.fail(f"{kind} did not go on")
    assert not held["task"].handle.done()
    held["task"].handle.cancel()
    held["callback"].handle.close()
    del held, one, using
    await nothing_is_left(cells, threads)


async def asked_while_cut(bridge: Bridge, cells: Bridge, cut: Callable[[], object]) -> None:
    """Cut at any instant of what makes one of each kind: it is made, or its outcome is unknown."""
    threads = await threads_of(cells)
    with seeded() as chance:
        for kind, ask in list(ASKED.items()) * 3:
            asked: Any = asyncio.ensure_future(awaited(ask(bridge)))
            await asyncio.sleep(chance.choice((0, 0.003, 0.01, 0.06)) * chance.random())
            cut()
            async with reported_within(6):
                (outcome,) = await all_of(asked)
            is_unknown = isinstance(outcome, (TransportError, ReplyLost))
            assert is_unknown or not isinstance(outcome, BaseException), (kind, outcome)
            del asked, outcome
    with contextlib.suppress(TransportError):  # what was cut last may have ended before
        await bridge.exists("goes_on")
    await goes_on(bridge)
    await nothing_is_left(cells, threads)
    assert kept_and_late(bridge)[:5] == (0, 0, 0, 0, 0)


async def used(one: Held, cells: Bridge) -> None:
    """Use it; what was asked as the connection broke is asked again."""
    while True:
        try:
            await one.use(cells)
        except TransportError:
            await asyncio.sleep(0.05)
        else:
            return
