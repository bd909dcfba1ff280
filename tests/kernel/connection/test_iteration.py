"""Iterations over what a real kernel makes.

Rule: as in ``test_tasks``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from bridgehead import Bridge, BridgeError, KernelDied, KernelRestarted, RemoteError
from kernel.connection.test_tasks import until_is
from support.cuts import cuttable
from support.elsewhere import MAJORS
from support.kit import (
    LANES,
    file_of,
    goes_on,
    kind,
    reported_within,
    stopped,
    until,
    whole,
    wired,
)
from support.promises import occupied
from support.resources import nothing_is_kept

# A kernel can't import test modules, so what they define is pickled by value, as in a script.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(params=LANES)
async def bridge(kernel: Bridge, request: pytest.FixtureRequest) -> AsyncIterator[Bridge]:
    async with Bridge.attach(file_of(kernel), lane=request.param) as attached:
        yield attached
    await nothing_is_kept(kernel)


def numbers(count: int) -> Iterator[int]:
    """Bind ``state`` to "closed" when it is closed."""
    from IPython import get_ipython

    names = get_ipython().user_ns  # type: ignore[no-untyped-call]
    names["state"] = "open"
    try:
        yield from range(count)
    finally:
        names["state"] = "closed"


async def numbers_async(count: int) -> AsyncIterator[int]:
    for n in range(count):
        await asyncio.sleep(0)
        yield n


def stuck(gate: str) -> Iterator[Any]:
    """Yield some items at once, and the last one when a name is bound."""
    import time

    from IPython import get_ipython

    names = get_ipython().user_ns  # type: ignore[no-untyped-call]
    yield 1
    yield [2]
    yield "three"
    while gate not in names:
        time.sleep(0.01)
    yield 4


async def stuck_async(gate: str) -> AsyncIterator[Any]:
    """Yield the same, and hold the event loop up."""
    for item in stuck(gate):
        yield item


async def awaits(gate: str) -> AsyncIterator[Any]:
    """Yield the same, and leave the event loop to others."""
    from IPython import get_ipython

    names = get_ipython().user_ns  # type: ignore[no-untyped-call]
    for item in (1, [2], "three"):
        yield item
    while gate not in names:
        await asyncio.sleep(0.01)
    yield 4


async def test_items_cross_on_every_lane(bridge: Bridge) -> None:
    assert [n async for n in bridge.iterate(numbers, 20_000)] == list(range(20_000))
    await until_is(bridge, "state", "closed")
    assert [n async for n in bridge.iterate(numbers_async, 500)] == list(range(500))

    def arrays() -> Iterator[Any]:
        import numpy

        reused = numpy.zeros(300_000)
        for n in range(5):
            reused[:] = n
            yield reused

    found = [array async for array in bridge.iterate(arrays)]
    assert [float(array[-1]) for array in found] == list(range(5))
    assert all(isinstance(array, np.ndarray) for array in found)


@pytest.mark.slow
async def test_large_items_cross_once_each(bridge: Bridge) -> None:
    def large() -> Iterator[Any]:
        import numpy

        for n in range(3):
            yield numpy.full(40 << 20, n, "u1")

    found = []
    async for item in bridge.iterate(large):
        found.append((item.nbytes, int(item[-1])))
    assert found == [(40 << 20, 0), (40 << 20, 1), (40 << 20, 2)]


def notes(turns: list[Any]) -> Iterator[int]:
    import threading

    for n in range(10**9):
        turns.append(threading.current_thread() is threading.main_thread())
        yield n


def arrays(made: Any) -> Any:
    for n in range(10**9):
        made.append(n)
        yield np.full(1_000_000, n)


async def test_the_kernel_is_few_arrays_ahead_of_the_consumer(bridge: Bridge) -> None:
    """8 MB each: eight of them are more than it may be ahead, and the next one may be begun."""
    await bridge.push(made=[])
    async with bridge.iterate(arrays, bridge.ref("made")) as items:
        for read in range(3):
            assert int((await anext(items))[-1]) == read
            made = -1
            while made != await bridge.pull("len(made)"):  # until it is as far ahead as it may be
                made = await bridge.pull("len(made)")
                await asyncio.sleep(0.05)
            assert read + 1 < made <= read + 1 + 9


async def test_the_steps_of_a_plain_generator_take_their_turns_in_the_main_thread(
    bridge: Bridge, kernel: Bridge
) -> None:
    """The consumer asks for a batch between two calls, and the kernel makes it between them."""
    await bridge.push(turns=[])
    turns = bridge.ref("turns")
    async with bridge.iterate(notes, turns) as items:
        await anext(items)
        made = -1
        while made != await bridge.pull("len(turns)"):  # until it is as far ahead as it may be
            made = await bridge.pull("len(turns)")
            await asyncio.sleep(0.05)
        async with occupied(kernel):
            before = bridge.submit(list.append, turns, "before")
            for n in range(1, made):
                assert await anext(items) == n
            for _ in range(20):  # the loop begins what asks for the next batch
                await asyncio.sleep(0)
            behind = bridge.submit(list.append, turns, "behind")
            assert await bridge.pull("len(turns)", now=True) == made
        await asyncio.gather(before, behind)
    found = await bridge.pull("turns")
    assert found.index("before") == made
    assert found.index("behind") > made + 1
    assert {one for one in found if type(one) is bool} == {True}


@pytest.mark.parametrize("function", [stuck, stuck_async])
async def test_an_item_does_not_wait_for_the_next_one(bridge: Bridge, function: Any) -> None:
    async with bridge.iterate(function, "gate") as items:
        async with reported_within(3):
            assert [await anext(items) for _ in range(3)] == [1, [2], "three"]
        await bridge.push(gate=1, now=True)
        assert [item async for item in items] == [4]
    await bridge.delete("gate")


@pytest.mark.parametrize("function", [stuck, stuck_async])
async def test_an_interrupt_comes_after_the_items_before_it(bridge: Bridge, function: Any) -> None:
    items = bridge.iterate(function, "never")
    async with reported_within(3):
        assert [await anext(items) for _ in range(3)] == [1, [2], "three"]
        await bridge.interrupt()
        with pytest.raises(RemoteError, match="KeyboardInterrupt"):
            await anext(items)
    await goes_on(bridge)


async def test_the_error_of_a_step_is_of_the_class_that_it_is(bridge: Bridge) -> None:
    """Of a builtin class, and of one that can be imported, with what they have."""

    def fails() -> Iterator[int]:
        yield 1
        raise LookupError("no more", 2)

    async def fails_async() -> AsyncIterator[int]:
        import json

        yield 1
        json.loads("{")

    for source in fails, fails_async:
        async with bridge.iterate(source) as items:
            assert await anext(items) == 1
            with pytest.raises(RemoteError) as caught:
                await anext(items)
        cause = caught.value.__cause__
        if source is fails:
            assert type(cause) is LookupError
            assert cause.args == ("no more", 2)
        else:
            assert type(cause) is json.JSONDecodeError
            assert (cause.doc, cause.pos) == ("{", 1)


async def test_a_step_runs_in_the_main_thread_in_its_turn(bridge: Bridge) -> None:
    def steps() -> Iterator[tuple[bool, int]]:
        import threading

        from IPython import get_ipython

        names = get_ipython().user_ns  # type: ignore[no-untyped-call]
        for _ in range(3):
            yield threading.current_thread() is threading.main_thread(), names["turn"]

    await bridge.push(turn=1)
    async with bridge.iterate(steps) as items:
        large = np.zeros(20 << 20, "u1")  # several messages where it goes in messages
        _, first = await asyncio.gather(bridge.push(turn=2, large=large), anext(items))
        assert first == (True, 2)
        assert [is_main async for is_main, _ in items] == [True, True]
    await bridge.delete("large")


async def test_the_kernel_is_free_between_two_batches(bridge: Bridge) -> None:
    async with bridge.iterate(numbers, 10**9) as items:
        for n in range(3):
            await anext(items)
            await bridge.run(f"beside = {n}")
            assert await bridge.pull("beside") == n
    await until_is(bridge, "state", "closed")


def ignores_its_end() -> Iterator[int]:
    n = 0
    while True:
        with contextlib.suppress(GeneratorExit):
            yield n
        n += 1


async def test_what_closing_raises_leaves_no_other_iterator_open(
    kernel: Bridge, bridge: Bridge
) -> None:
    """No caller gets it: Python shows it on the kernel's ``stderr``."""
    await kernel.run("import io, sys\nerrors, sys.stderr = sys.stderr, io.StringIO()")
    async with Bridge.attach(file_of(kernel), lane=bridge.info.lane) as mine:
        ignoring = mine.iterate(ignores_its_end), mine.iterate(ignores_its_end)
        items = [ignoring[0], mine.iterate(numbers, 10**9), ignoring[1]]
        assert [await anext(one) for one in items] == [0, 0, 0]
    await until_is(kernel, "state", "closed")
    await nothing_is_kept(kernel)
    shown = await kernel.pull("(sys.stderr.getvalue(), setattr(sys, 'stderr', errors))[0]")
    # When Python frees such a generator, it closes it once more, and may show that as well.
    assert shown.count("Exception ignored in: <function DroppedError.__del__") == 2
    assert "RuntimeError: generator ignored GeneratorExit" in shown


def closes(how: str) -> Iterator[int]:
    """Bind ``state`` to "closed" at the end of a ``finally`` that takes a moment."""
    import time

    from IPython import get_ipython

    names = get_ipython().user_ns  # type: ignore[no-untyped-call]
    names["state"] = "open"
    try:
        yield 0
        if how == "in a step":
            time.sleep(1000)
        yield from range(1_000_000)
    finally:
        time.sleep(0.2)
        names["state"] = "closed"
        if how != "between":
            raise LookupError("in the finally")


async def closes_async(how: str) -> AsyncIterator[int]:
    from IPython import get_ipython

    names = get_ipython().user_ns  # type: ignore[no-untyped-call]
    names["state"] = "open"
    try:
        yield 0
        if how == "in a step":
            await asyncio.sleep(1000)
        for n in range(1_000_000):
            yield n
    finally:
        await asyncio.sleep(0.2)
        names["state"] = "closed"
        if how != "between":
            raise LookupError("in the finally")


BOTH: Any = pytest.mark.parametrize("function", [closes, closes_async])


@BOTH
@pytest.mark.parametrize("how", ["between", "in a step", "raises"])
async def test_leaving_waits_until_the_iterator_is_closed(
    bridge: Bridge, function: Any, how: str
) -> None:
    raises = how != "between"
    with pytest.raises(RemoteError, match="finally") if raises else contextlib.nullcontext():
        async with bridge.iterate(function, how) as items:
            assert await anext(items) == 0
            assert await bridge.pull("state", now=True) == "open"
    assert await bridge.pull("state") == "closed"


@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_closing_works_in_both_majors(live: Bridge) -> None:
    for lane in LANES:
        async with Bridge.attach(file_of(live), lane=lane) as bridge:
            for function in closes, closes_async:
                for how in "between", "in a step":
                    error = pytest.raises(RemoteError, match="finally")
                    with error if how == "in a step" else contextlib.nullcontext():
                        async with bridge.iterate(function, how) as items:
                            assert await anext(items) == 0
                    assert await bridge.pull("state") == "closed"
    await nothing_is_kept(live)


@BOTH
async def test_closing_waits_for_no_cell(bridge: Bridge, kernel: Bridge, function: Any) -> None:
    """The kernel closes the iterator when it is free."""
    items = bridge.iterate(function, "between")
    assert await anext(items) == 0
    async with occupied(kernel):
        async with reported_within(1):
            await items.aclose()
        assert await kernel.pull("state", now=True) == "open"
    await until_is(kernel, "state", "closed")


async def test_a_closing_that_has_begun_waits_for_no_cell(bridge: Bridge, kernel: Bridge) -> None:
    """A cell of another client blocks the event loop in the middle of an async ``finally``."""

    async def slowly() -> AsyncIterator[int]:
        from IPython import get_ipython

        names = get_ipython().user_ns  # type: ignore[no-untyped-call]
        try:
            for n in range(1_000_000):
                yield n
        finally:
            names["state"] = "begun"
            while "go" not in names:
                await asyncio.sleep(0.01)
            names["state"] = "closed"

    items = bridge.iterate(slowly)
    await anext(items)
    closing = asyncio.ensure_future(items.aclose())
    await until_is(kernel, "state", "begun")
    assert not closing.done()
    async with occupied(kernel):
        async with reported_within(1):
            await closing
        assert await kernel.pull("state", now=True) == "begun"
        await kernel.push(go=1, now=True)
    await until_is(kernel, "state", "closed")


async def test_an_async_iterator_is_closed_beside_a_cell_that_awaits(bridge: Bridge) -> None:
    items = bridge.iterate(closes_async, "between")
    assert await anext(items) == 0
    cell = asyncio.ensure_future(
        bridge.run("import asyncio\nwhile state != 'closed': await asyncio.sleep(0.01)")
    )
    await until(lambda: bridge.state == "busy")
    async with reported_within(1):
        await items.aclose()
        await cell


async def test_a_step_that_ignores_its_end_holds_closing_up_for_a_while_only(
    bridge: Bridge, shorten: Callable[..., None]
) -> None:
    def stays() -> Iterator[int]:
        import time

        from IPython import get_ipython

        names = get_ipython().user_ns  # type: ignore[no-untyped-call]
        yield 0
        names["state"] = "begun"
        while "go" not in names:
            try:
                time.sleep(0.01)
            except KeyboardInterrupt:
                names["state"] = "ignored"
        names["state"] = "done"
        yield 1

    async def stays_async() -> AsyncIterator[int]:
        from IPython import get_ipython

        names = get_ipython().user_ns  # type: ignore[no-untyped-call]
        yield 0
        names["state"] = "begun"
        while "go" not in names:
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                names["state"] = "ignored"
        names["state"] = "done"
        yield 1

    shorten(closing_begins=1.0)
    for function in stays, stays_async:
        items = bridge.iterate(function)
        assert await anext(items) == 0
        await until_is(bridge, "state", "begun", now=True)  # else it is closed before that step
        async with reported_within(1):
            await items.aclose()
        await until_is(bridge, "state", "ignored", now=True)
        await bridge.push(go=1, now=True)
        await until_is(bridge, "state", "done")
        await bridge.delete("go", "state")


async def test_an_interrupt_ends_a_closing_that_hangs(bridge: Bridge) -> None:
    def hangs() -> Iterator[int]:
        import time

        from IPython import get_ipython

        names = get_ipython().user_ns  # type: ignore[no-untyped-call]
        try:
            yield from range(1_000_000)
        finally:
            names["state"] = "hangs"
            time.sleep(1000)

    for _ in range(5):
        items = bridge.iterate(hangs)
        await anext(items)
        closing = asyncio.ensure_future(items.aclose())
        await until_is(bridge, "state", "hangs", now=True)
        async with reported_within(1):
            while not closing.done():  # the first one may come before the sleep has begun
                await bridge.interrupt()
                await asyncio.wait([closing], timeout=0.2)
        with pytest.raises(RemoteError, match="KeyboardInterrupt"):
            await closing
        await goes_on(bridge)
        await bridge.delete("state")


async def test_closing_a_lost_kernels_iterator_returns(
    live: Bridge, shorten: Callable[..., None]
) -> None:
    """Also while the kernel is stopped; what the next call reports is not hidden."""
    shorten(closing_begins=1.0)
    items = live.iterate(numbers, 10**9)
    await anext(items)
    with stopped(live):
        async with reported_within(1):
            await items.aclose()
    await until_is(live, "state", "closed")
    async with Bridge.attach(file_of(live)) as bridge:
        items = bridge.iterate(numbers, 10**9)
        await anext(items)
        await live.restart()
        async with reported_within(1):
            await items.aclose()
        with pytest.raises(KernelRestarted):
            await bridge.push(x=1)
        await goes_on(bridge)


async def test_a_step_that_runs_is_interrupted_by_closing(bridge: Bridge) -> None:
    items = bridge.iterate(stuck, "never")
    assert [await anext(items) for _ in range(3)] == [1, [2], "three"]
    async with reported_within(3):
        await items.aclose()
        await bridge.push(x=1)
        await bridge.run("x")


async def test_an_iteration_that_has_not_begun_never_begins(bridge: Bridge) -> None:
    await bridge.run("state = ''")
    async with occupied(bridge):
        items = bridge.iterate(numbers, 5)
        waiting = asyncio.ensure_future(anext(items, None))
        await asyncio.sleep(0.1)
        await items.aclose()
        await waiting
    assert await bridge.pull("state") == ""


async def test_a_batch_that_is_lost_is_sent_again(kernel: Bridge, tmp_path: Path) -> None:
    async with wired(kernel, tmp_path) as (bridge, wire):
        async with bridge.iterate(numbers, 30_000) as items:
            found = [await anext(items)]
            lost = 0

            def drop(parts: list[bytes]) -> list[list[bytes]]:
                nonlocal lost
                if kind(parts) == "execute_reply" and lost < 2:
                    lost += 1
                    return []
                return [parts]

            wire.incoming = drop
            found += [item async for item in items]
            wire.incoming = whole
        assert found == list(range(30_000))
        assert lost == 2
    await nothing_is_kept(kernel)


@pytest.mark.parametrize("function", [stuck, awaits])
@pytest.mark.parametrize("lane", ["direct", "buffers"])
async def test_an_item_that_takes_long_outlives_many_breaks(
    tmp_path: Path, lane: Any, function: Any
) -> None:
    """J6. The kernel makes one item all the time, and the connection breaks again and again."""
    async with cuttable(tmp_path, lane=lane) as (bridge, cuts):
        items = bridge.iterate(function, "gate")
        assert [await anext(items) for _ in range(3)] == [1, [2], "three"]
        waiting = asyncio.ensure_future(anext(items))
        for _ in range(5):
            cuts.cut()
            async with asyncio.timeout(30):  # until there is another connection
                while True:
                    with contextlib.suppress(BridgeError):
                        await bridge.pull("1 + 1", now=True)
                        break
        assert not waiting.done()
        await bridge.push(gate=1, now=True)
        assert await waiting == 4
        assert await anext(items, None) is None
        await nothing_is_kept(bridge)


# The bridge waits until another owner must have restarted the kernel, and here none does.
@pytest.mark.timings(reconnect_grace=0.3)
@pytest.mark.parametrize("end", ["death", "restart"])
async def test_an_iteration_ends_with_its_kernel(live: Bridge, end: str) -> None:
    items = live.iterate(numbers, 10**9)
    await anext(items)
    if end == "death":
        os.kill(live.info.pid, signal.SIGKILL)
    else:
        await live.restart()
    with pytest.raises(KernelDied if end == "death" else KernelRestarted):
        while True:
            await anext(items)
    with contextlib.suppress(KernelDied):
        await items.aclose()
