"""What each name of the work in a kernel does, on whatever bridge: the rows of a matrix.

Rule: one function a name, as short as it can be. The columns are the places in which the tests run
them: a loopback, real kernels on each lane, through a server, engines of a cluster, other kernels.
An operation either works there or is ``NotSupported``. The functions that are sent can be imported
by any Python, so these rows hold for kernels of other versions too; ``namespace=True`` needs code.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from bridgehead import Bridge, RemoteError, SyncBridge, UntrustedPayload
from support.kit import awaited, first, until

LATER = """
import asyncio
async def later(value):
    while not go: await asyncio.sleep(0)
    return value
"""
TICKS = "async def ticks():\n    for n in range(3):\n        yield n"


async def call_of_an_async_function(bridge: Bridge) -> None:
    assert await bridge.call(asyncio.sleep, 0.01, [5]) == [5]
    with pytest.raises(TimeoutError):
        await bridge.call(asyncio.sleep, 1000, timeout=0.05)
    assert bridge.stats.tasks == 0


async def pull_with_await(bridge: Bridge) -> None:
    """Run a cell beside a coroutine that waits for it."""
    await bridge.run(LATER)
    await bridge.push(go=False)
    pulling = asyncio.ensure_future(bridge.pull("await later([5])"))
    await bridge.run("go = True")
    assert await pulling == [5]


async def submit(bridge: Bridge) -> None:
    told: list[Any] = []
    task = bridge.submit(sorted, [2, 1])
    task.add_done_callback(told.append)
    never = bridge.submit(exec, "names['never'] = 1", {"names": bridge.ref("globals()")})
    assert never.cancel()
    fails = bridge.submit(int, "x")
    assert [await task, await task, task.result()] == [[1, 2]] * 3
    with pytest.raises(RemoteError, match="ValueError"):
        await fails
    assert (task.exception(), type(fails.exception())) == (None, RemoteError)
    with pytest.raises(asyncio.CancelledError):
        await never
    assert (told, never.cancelled(), await bridge.exists("never")) == ([task], True, False)


async def submit_of_an_async_function(bridge: Bridge) -> None:
    task, waits = bridge.submit(asyncio.sleep, 0.01, 5), bridge.submit(asyncio.sleep, 1000)
    assert await bridge.pull("1") == 1  # beside both
    assert (await task, waits.done(), bridge.stats.tasks) == (5, False, 1)
    assert waits.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waits
    assert bridge.stats.tasks == 0


async def on_timeout(bridge: Bridge) -> None:
    """``"leave"`` lets a function go on, ``"interrupt"`` ends it; another word is an error."""
    with pytest.raises(ValueError, match="on_timeout"):
        await bridge.call(abs, 1, on_timeout="stop")  # type: ignore[call-overload]
    with pytest.raises(TimeoutError):
        await bridge.call(time.sleep, 0.3, timeout=0.05, on_timeout="leave")
    with pytest.raises(TimeoutError):
        await bridge.call(time.sleep, 1000, timeout=0.5, on_timeout="interrupt")
    assert await bridge.pull("1", timeout=30) == 1


async def on_output(bridge: Bridge) -> None:
    seen: list[str] = []
    await bridge.call(print, "seen", on_output=lambda message: seen.append(message.text))
    assert "".join(seen) == "seen\n"


async def namespace(bridge: Bridge) -> None:
    def counted() -> int:
        global counter
        counter = len(rows)  # type: ignore[name-defined] # noqa: F821
        return counter

    await bridge.push(rows=[1, 2])
    assert await bridge.call(counted, namespace=True) == await bridge.pull("counter") == 2
    assert await bridge.submit(lambda: counter, namespace=True) == 2


async def keep(bridge: Bridge) -> None:
    async with await bridge.call(sorted, [3, 1, 2], keep=True) as kept:
        assert bridge.stats.refs == 1
        assert await bridge.pull(kept[1], kept) == (2, [1, 2, 3])
    dropped = await bridge.submit(sorted, [3, 1], keep=True)
    assert await dropped.pull() == [1, 3]
    await bridge.delete(dropped)
    assert bridge.stats.refs == 0


async def refs(bridge: Bridge) -> None:
    """Values and other refs inside the expression of a ref."""
    await bridge.push(add=3)
    assert await bridge.ref("max")({"any": 1}, [bridge.ref("add")], key=len).pull() == {"any": 1}
    assert await bridge.ref("sum")(range(3), bridge.ref("add")).pull() == 6


async def iterate(bridge: Bridge) -> None:
    async with bridge.iterate("([n] for n in range(12_000))") as items:
        assert [item async for item in items] == [[n] for n in range(12_000)]
    async with bridge.iterate(range, 3) as items:
        assert [item async for item in items] == [0, 1, 2]
    async with bridge.iterate("iter(int, 1)") as items:
        assert await anext(items) == 0
    assert [item async for item in bridge.ref("'abc'")] == ["a", "b", "c"]
    await until(lambda: bridge.stats.iterations == 0)


async def iterate_over_an_async_iterator(bridge: Bridge) -> None:
    await bridge.run(TICKS)
    async with bridge.iterate("ticks()") as items:
        assert [item async for item in items] == [0, 1, 2]


async def callback(bridge: Bridge) -> None:
    seen: list[int] = []
    with bridge.callback(seen.append) as report:
        await bridge.call(list, bridge.ref("map")(report, [1, 2]))
        await bridge.push(deep={"report": [report]})
        await bridge.run("deep['report'][0](3)")
        await until(lambda: len(seen) == 3)
    assert (seen, report.failed, report.dropped) == ([1, 2, 3], 0, 0)


async def callback_that_is_waited_for(bridge: Bridge) -> None:
    """Have a cell wait for room: it calls further than that, and no call is lost."""
    seen: list[int] = []

    async def note(step: int) -> None:
        await asyncio.sleep(0.001)
        seen.append(step)

    with bridge.callback(note, 2, "wait") as report:
        await bridge.push(report=report)
        await bridge.run("for step in range(20): report(step)")
        assert len(seen) >= 20 - 3  # two wait, and one runs
        await until(lambda: len(seen) == 20)
    assert (seen, report.failed, report.dropped) == ([*range(20)], 0, 0)


async def watch(bridge: Bridge) -> None:
    await bridge.push(x=1)
    async with bridge.watch("x", "-x") as values:
        assert await anext(values) == (1, -1)
        await bridge.run("x += 1")
        assert await anext(values) == (2, -2)


async def watch_names(bridge: Bridge) -> None:
    async with bridge.watch_names("new_*") as names:
        assert len(await anext(names)) == 0
        await bridge.run("new_name = 1")
        assert [name.name for name in await anext(names)] == ["new_name"]


WORK: dict[str, Callable[[Bridge], Awaitable[None]]] = {
    work.__name__: work
    for work in (
        *(call_of_an_async_function, pull_with_await, submit, submit_of_an_async_function),
        *(on_timeout, on_output, namespace, keep, refs, iterate, iterate_over_an_async_iterator),
        *(callback, callback_that_is_waited_for, watch, watch_names),
    )
}


# ---------------------------------------------------------------- a SyncBridge


def use_sync(kernel: SyncBridge) -> None:
    """Do all of it with a ``SyncBridge``."""
    use_sync_but_watches(kernel)
    with kernel.watch("rows", "len(rows)") as values, kernel.watch_names("rows") as names:
        assert (next(values), len(next(names))) == (([1, 2], 2), 1)
        kernel.run("rows = [1]")
        assert (next(values), next(names)[0].extent) == (([1], 1), "1")
    assert kernel.stats.watches == 0


def use_sync_but_watches(kernel: SyncBridge) -> None:
    """Do what an engine of a cluster can do, too."""
    assert kernel.call(asyncio.sleep, 0.01, [5]) == [5]
    assert kernel.pull("await __import__('asyncio').sleep(0.01, 5)") == 5
    assert kernel.submit(sorted, [2, 1]).result(60) == [1, 2]
    assert type(kernel.submit(int, "x").exception(60)) is RemoteError
    assert kernel.submit(asyncio.sleep, 1000).cancel()
    for word in "leave", "interrupt":
        with pytest.raises(TimeoutError):
            kernel.call(time.sleep, 0.3, timeout=0.05, on_timeout=word)  # type: ignore[call-overload]
    seen: list[Any] = []
    kernel.call(print, "seen", on_output=lambda message: seen.append(message.text))
    assert "".join(seen) == "seen\n"
    kernel["rows"] = [1, 2]
    assert kernel.call(lambda: len(rows), namespace=True) == 2  # type: ignore[name-defined] # noqa: F821
    with kernel.call(sorted, [3, 1, 2], keep=True) as kept:
        assert (kept[1].pull(), len(kept), 2 in kept, list(kept)) == (2, 3, True, [1, 2, 3])
        kept[0] = 7
        assert kept.pull() == [7, 2, 3]
    with kernel.iterate("(n for n in range(10**9))") as items:
        assert [next(items) for _ in range(3)] == [0, 1, 2]
    kernel.run(TICKS)
    with kernel.iterate("ticks()") as items:
        assert [*items] == [0, 1, 2]
    seen.clear()
    with kernel.callback(seen.append) as report:
        kernel.call(list, kernel.ref("map")(report, [1, 2, 3]))
        end = time.monotonic() + 20
        while len(seen) < 3 and time.monotonic() < end:
            time.sleep(0.005)
    assert seen == [1, 2, 3]
    while kernel.stats.callbacks and time.monotonic() < end:  # the bridge's thread closes it
        time.sleep(0.005)
    stats = kernel.stats
    assert (stats.tasks, stats.refs, stats.iterations, stats.callbacks) == (0,) * 4


# ---------------------------------------------------------------- what is no data


async def _called(bridge: Bridge) -> Any:
    """Return what a callback got; raise if it got nothing, because it could not be opened."""
    seen: list[Any] = []
    with bridge.callback(seen.append) as report:
        await bridge.call(list, bridge.ref("map")(report, [len]))
        await until(lambda: seen or report.failed)
    if not seen:
        raise UntrustedPayload("see the log")
    return seen[0]


async def _kept(bridge: Bridge) -> Any:
    async with await bridge.call(list, [len], keep=True) as kept:
        return await kept[0].pull()


async def _in_a_stream(bridge: Bridge) -> Any:
    async with bridge.iterate("[1, len]") as items:
        assert await anext(items) == 1  # an item that is data comes before the error
        return await anext(items)


# What gives the function ``len``, which is not data.
GIVES_LEN: dict[str, Callable[[Bridge], Awaitable[Any]]] = {
    "call of an async function": lambda bridge: bridge.call(asyncio.sleep, 0, len),
    "pull with await": lambda bridge: bridge.pull("await __import__('asyncio').sleep(0, len)"),
    "submit": lambda bridge: awaited(bridge.submit(next, bridge.ref("iter([len])"))),
    "submit of an async function": lambda bridge: awaited(bridge.submit(asyncio.sleep, 0, len)),
    "namespace": lambda bridge: bridge.call(lambda: len, namespace=True),
    "keep": _kept,
    "refs": lambda bridge: bridge.ref("max")([len], key=id).pull(),
    "iterate": _in_a_stream,
    "callback": _called,
    "watch": lambda bridge: first(bridge.watch("len")),
}
