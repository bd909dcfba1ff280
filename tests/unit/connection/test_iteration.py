"""Iterations on a loopback: what crosses, in which order, and what is left."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from pickle import PicklingError
from typing import Any

import numpy as np
import pytest

from bridgehead import (
    Bridge,
    BridgeClosed,
    EncodeError,
    KernelRestarted,
    NameNotFound,
    ProtocolError,
    RemoteError,
    ReplyLost,
    SyncBridge,
    UntrustedPayload,
)
from bridgehead._connection.installation import Installation
from bridgehead._connection.iteration import MOST_BYTES, MOST_ITEMS, Items
from bridgehead._connection.mapping import MapRequest
from bridgehead._transports.base import Transport
from bridgehead._transports.timings import Timings
from support.kit import until
from unit.connection.test_tasks import later, nothing_is_left, remote_of


@pytest.fixture
async def loopback() -> AsyncIterator[Bridge]:
    async with Bridge.loopback() as bridge:
        yield bridge
        gc.collect()
        await nothing_is_left(bridge)


CLOSED: list[Any] = []


def counted(count: int) -> Iterator[int]:
    try:
        yield from range(count)
    finally:
        closed().append(count)


def closed() -> list[Any]:
    """Return the list of this process: a function is pickled with a copy of its globals."""
    found: list[Any] = sys.modules[__name__].CLOSED
    return found


async def until_closed(count: object) -> None:
    async with asyncio.timeout(30):
        while count not in CLOSED:
            gc.collect()
            await asyncio.sleep(0.01)
    CLOSED.clear()


OPENED: list[str] = []


async def gated(name: str) -> AsyncIterator[int]:
    while name not in sys.modules[__name__].OPENED:
        await asyncio.sleep(0.001)
    for n in range(3):
        yield n


async def counted_async(count: int) -> AsyncIterator[int]:
    try:
        for n in range(count):
            await asyncio.sleep(0)
            yield n
    finally:
        closed().append(count)


async def test_a_batch_that_is_asked_for_again_is_made_before_it_arrives(loopback: Bridge) -> None:
    """The response that was lost is of a request that may be making the batch still."""
    items = loopback.iterate(gated, "open")
    first = asyncio.ensure_future(anext(items))
    await until(
        lambda: items._items._call is not None and items._items._call.operation == "advance"
    )
    again = asyncio.ensure_future(items._items._ask())
    await asyncio.sleep(0)
    await loopback.push(x=1)  # its turn is behind both requests
    OPENED.append("open")
    response = await again
    assert response.header["groups"]  # else the client would ask for the next batch
    assert [await first, *[n async for n in items]] == [0, 1, 2]


@pytest.mark.parametrize("function", [counted, counted_async])
@pytest.mark.parametrize("count", [0, 1, 25_000])
async def test_every_item_comes_in_order(loopback: Bridge, function: Any, count: int) -> None:
    if function is counted_async:
        count //= 10
    assert [n async for n in loopback.iterate(function, count)] == list(range(count))
    await until_closed(count)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("rows", [1, "a", None, 2.5]),
        ("iter(rows)", [1, "a", None, 2.5]),
        ("(row for row in rows)", [1, "a", None, 2.5]),
        ("'abc'", ["a", "b", "c"]),
        ("{'k': 1}", ["k"]),
        ("zip(rows, rows)", [(1, 1), ("a", "a"), (None, None), (2.5, 2.5)]),
    ],
)
async def test_anything_iterable_is_iterated_over(
    loopback: Bridge, source: str, expected: list[Any]
) -> None:
    await loopback.push(rows=[1, "a", None, 2.5])
    assert [item async for item in loopback.iterate(source)] == expected
    assert [item async for item in loopback.ref(source)] == expected


async def test_a_ref_with_objects_is_iterated_over(loopback: Bridge) -> None:
    await loopback.push(rows=[1, 2])
    rows = loopback.ref("rows")
    assert [item async for item in loopback.ref("list")(np.arange(3))] == [0, 1, 2]
    zipped = loopback.ref("zip")(rows, np.arange(2), [rows])
    assert [item async for item in loopback.iterate(zipped)] == [(1, 0, [1, 2])]
    assert [name.name for name in await loopback.names()] == ["rows"]
    with pytest.raises(EncodeError, match="lock"):
        await anext(loopback.iterate(loopback.ref("list")([threading.Lock()])))


async def test_a_missing_name_is_reported_as_by_pull(loopback: Bridge) -> None:
    await loopback.push(rows=[1, 2])
    for source in ("row", loopback.ref("row")):
        with pytest.raises(NameNotFound, match="rows"):
            await anext(loopback.iterate(source))
    kept = await loopback.call(list, (1,), keep=True)
    assert [item async for item in kept] == [1]


async def test_items_are_as_they_were_when_they_were_yielded(loopback: Bridge) -> None:
    def reuses() -> Iterator[Any]:
        buffer, rows = np.zeros(200_000), [0]
        for n in range(12):
            buffer[:], rows[0] = n, n
            yield buffer if n % 2 else rows

    items = [item async for item in loopback.iterate(reuses)]
    assert [float(item[-1]) for item in items] == list(range(12))


async def test_an_error_comes_after_the_items_before_it(loopback: Bridge) -> None:
    def fails(what: str) -> Iterator[Any]:
        yield 1
        yield [2]
        if what == "raises":
            raise ValueError("no more")
        yield threading.Lock()

    async def fails_async(what: str) -> AsyncIterator[Any]:
        for item in fails(what):
            yield item

    for source, what, cause in (
        (source, what, cause)
        for source in (fails, fails_async)
        for what, cause in (("raises", ValueError), ("pickles", PicklingError))
    ):
        text = {"raises": "ValueError: no more", "pickles": "the item cannot be pickled"}[what]
        items = loopback.iterate(source, what)
        found = []
        with pytest.raises(RemoteError, match=text) as caught:
            async for item in items:
                found.append(item)
        assert (found, type(caught.value.__cause__)) == ([1, [2]], cause)
        await until(lambda: not remote_of(loopback).resources.known)  # though ``items`` is kept
        with pytest.raises(StopAsyncIteration):
            await anext(items)
    for source in ("5", "nowhere + 1", "1 / 0"):
        with pytest.raises(RemoteError):
            await anext(loopback.iterate(source))


async def test_only_data_is_taken_from_a_kernel_that_is_not_trusted() -> None:
    async with Bridge.loopback(trust="data") as bridge:
        await bridge.run("class Own: pass\nrows = [1, [2], Own(), 3]")
        await bridge.run("async def later():\n    for row in rows: yield row")
        for source in ("rows", "later()"):
            items, found = bridge.iterate(source), []
            with pytest.raises(UntrustedPayload):
                async for item in items:
                    found.append(item)
            assert found == [1, [2]]


async def test_an_iteration_that_is_left_is_closed_in_the_kernel(loopback: Bridge) -> None:
    async for n in loopback.iterate(counted, 1_000_001):
        if n == 10:
            break
    await until_closed(1_000_001)
    async with loopback.iterate(counted, 1_000_002) as items:
        assert await anext(items) == 0
    await until_closed(1_000_002)
    assert [n async for n in items] == []
    async with loopback.iterate(counted_async, 1_000_003) as items:
        assert [await anext(items) for _ in range(3)] == [0, 1, 2]
    await until_closed(1_000_003)
    assert "ended" in repr(items)


async def test_closing_the_bridge_closes_the_iterator() -> None:
    async with Bridge.loopback() as bridge:
        items = bridge.iterate(counted, 1_000_004)
        assert await anext(items) == 0
    await until_closed(1_000_004)
    assert await anext(items, None) in (1, None)


async def test_iterations_cells_and_calls_interleave(loopback: Bridge) -> None:
    async with loopback.iterate(counted, 30_000) as one, loopback.iterate(counted, 30_000) as two:
        for n in range(30_000):
            assert (await anext(one), await anext(two)) == (n, n)
            if n % 3000 == 0:
                await loopback.run(f"n = {n}")
                assert await loopback.call(abs, -n) == n
    CLOSED.clear()


MADE: Any = pytest.mark.parametrize("kind", ["def", "async def"])


def made_by(kind: str, item: str = "made") -> str:
    """Return the code of a generator that counts the items that it has made."""
    code = "made = 0\n{} many():\n    global made\n    while True: made += 1; yield {}"
    return code.format(kind, item)


@MADE
async def test_the_kernel_is_not_far_ahead_of_the_consumer(loopback: Bridge, kind: str) -> None:
    await loopback.run(made_by(kind))
    async with loopback.iterate("many()") as items:
        assert await anext(items) == 1
        made = -1
        while made != await loopback.pull("made"):  # until it stops
            made = await loopback.pull("made")
            await asyncio.sleep(0.05)
        assert 1 < made <= MOST_ITEMS + 1
        assert [await anext(items) for _ in range(made)][-1] == made + 1


@MADE
def test_the_kernel_is_not_far_ahead_of_the_consumer_of_a_sync_bridge(kind: str) -> None:
    with SyncBridge.loopback() as kernel:
        kernel.run(made_by(kind))
        with kernel.iterate("many()") as items:
            for consumed in range(1, 25_001):
                assert next(items) == consumed
                if consumed % 4_000 == 1:
                    assert consumed < until_it_stops(kernel) <= MOST_ITEMS + consumed


def until_it_stops(kernel: SyncBridge) -> int:
    made: int = -1
    while made != kernel.pull("made"):
        made = kernel.pull("made")
        time.sleep(0.05)
    return made


@pytest.mark.parametrize("item", ["1 << 160_000", "bytes(20_000)", "bytearray(20_000)"])
@MADE
async def test_the_kernel_is_few_bytes_ahead_of_the_consumer(
    loopback: Bridge, monkeypatch: pytest.MonkeyPatch, kind: str, item: str
) -> None:
    remote_part = sys.modules[type(remote_of(loopback)).__module__]
    monkeypatch.setattr(remote_part, "BATCH_SECONDS", 3600.0)  # bytes alone end a batch
    await loopback.run(made_by(kind, item))
    async with loopback.iterate("many()") as items:
        await anext(items)
        made = 0
        while made * 20_000 < MOST_BYTES // 4 or made != await loopback.pull("made"):
            made = await loopback.pull("made")
            await asyncio.sleep(0.05)
        assert made * 20_000 <= MOST_BYTES


@MADE
def test_the_kernel_is_few_bytes_ahead_of_the_consumer_of_a_sync_bridge(kind: str) -> None:
    size = 24 << 20
    with SyncBridge.loopback() as kernel:
        kernel.run(made_by(kind, f"bytes({size})"))
        with kernel.iterate("many()") as items:
            for consumed in range(1, 7):
                assert len(next(items)) == size
                made = until_it_stops(kernel)
                assert consumed < made
                assert (made - consumed) * size <= MOST_BYTES


async def test_a_batch_may_have_as_many_objects_as_items(
    loopback: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each object has a frame of its own, and the frames of a response are bounded."""
    remote_part = sys.modules[type(remote_of(loopback)).__module__]
    monkeypatch.setattr(remote_part, "BATCH_SECONDS", 3600.0)  # 5,000 items end a batch
    async with loopback.iterate("([n] for n in range(12_000))") as items:
        assert [item async for item in items] == [[n] for n in range(12_000)]


async def test_cancelling_a_wait_loses_no_item(loopback: Bridge) -> None:
    def slow() -> Iterator[int]:
        import time

        for n in range(5):
            time.sleep(0.05)
            yield n

    items, found = loopback.iterate(slow), []
    while len(found) < 5:
        try:
            found.append(await asyncio.wait_for(anext(items), 0.02))
        except TimeoutError:
            continue
    assert found == list(range(5))


async def test_a_restart_ends_an_iteration(loopback: Bridge) -> None:
    items = loopback.iterate("iter(int, 1)")
    assert await anext(items) == 0
    await loopback.restart()
    with pytest.raises(KernelRestarted):
        while True:
            await anext(items)
    assert not remote_of(loopback).resources.known


async def test_a_restart_that_no_caller_heard_of_is_reported_by_the_next_call(
    loopback: Bridge,
) -> None:
    items = loopback.iterate("iter(int, 1)")
    assert await anext(items) == 0
    task = loopback.submit(later, 1, 1000)
    await loopback.push(x=1)
    await loopback.restart()
    await asyncio.sleep(0.1)
    transport: Any = loopback._transport
    await transport.replace(1)  # another client restarts it
    await asyncio.sleep(0.1)
    with pytest.raises(KernelRestarted):
        await loopback.run("x = 1")
    for waits in (task, anext(items)):
        with pytest.raises((KernelRestarted, StopAsyncIteration)):
            while True:
                await waits
                waits = anext(items)
    assert not await loopback.exists("x")


async def test_closing_the_bridge_is_no_silent_end() -> None:
    async with Bridge.loopback() as bridge:
        items = bridge.iterate("iter(int, 1)")
        assert await anext(items) == 0
    with pytest.raises(BridgeClosed):
        while True:
            await anext(items)


async def test_an_iteration_keeps_its_bridge() -> None:
    async def opened() -> Any:
        return (await Bridge.loopback()).iterate("range(20_000)")

    items = await opened()
    gc.collect()
    assert [n async for n in items] == list(range(20_000))
    await items.owner.aclose()


async def test_what_a_hostile_kernel_announces_is_not_expanded() -> None:
    """A range of any length takes few bytes."""
    async with Bridge.loopback(trust="data") as bridge:
        await bridge.push(x=1)
        (module,) = [remote_of(bridge)]
        iterations = sys.modules[type(module).__module__].RunningIteration
        original = iterations.response

        def lie(self: Any, have: int, *, is_whole: bool = True) -> Any:
            response, frames = original(self, have, is_whole=is_whole)
            frames = self.iterations.operations.values.encode_data(range(10**10), (), ())
            return {**response, "groups": [[10**10, len(frames)]]}, frames

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(iterations, "response", lie)
            with pytest.raises(ProtocolError):
                await anext(bridge.iterate("[1, 2]"))


# Each of some items and of some frames of its own: else one frame is decoded again and again.
WRONG_GROUPS = [
    [[1, 1], [0, -1]] * 9,
    [[1, 1], [1, -1], [1, 1]],
    [[1, 1], [0, 1]],
    [[-1, 1]],
    [[1, 0]],
    [[1, 2]],
    [[1, True]],
    [[True, 1]],
    [[1]],
    [[]],
    [[1, 1, 1]],
    [[1, 1.0]],
]


def map_request(bridge: Bridge) -> MapRequest:
    items = [(number,) for number in range(9)]
    options: Any = {"is_async": False, "goes_on": False, "namespace": False, "stand_ins": {}}
    return MapRequest(bridge._connection, "abs", items, 0, **options)


@pytest.mark.parametrize("groups", WRONG_GROUPS)
@pytest.mark.parametrize("what", ["RunningIteration", "MapChunk"])
async def test_no_frame_of_a_hostile_kernel_is_decoded_twice(what: str, groups: Any) -> None:
    async with Bridge.loopback(trust="data") as bridge:
        await bridge.push(x=1)
        maker = getattr(sys.modules[type(remote_of(bridge)).__module__], what)
        original = maker.response

        def lie(self: Any, *args: Any, **options: Any) -> Any:
            response, frames = original(self, *args, **options)
            return {**response, "groups": groups}, frames[:1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(maker, "response", lie)
            with pytest.raises(ProtocolError, match="group|expected fields"):
                if what == "MapChunk":
                    await map_request(bridge).outcomes()
                else:
                    await anext(bridge.iterate("[1, 2]"))


@pytest.mark.parametrize("parts", [-1, 2])
async def test_an_error_of_a_map_has_frames_that_came(parts: int) -> None:
    async with Bridge.loopback(trust="data") as bridge:
        await bridge.push(x=1)
        maker = sys.modules[type(remote_of(bridge)).__module__].MapChunk
        original = maker.response

        def lie(self: Any) -> Any:
            response, frames = original(self)
            failure = {"at": 0, "error": {"name": "ValueError"}, "parts": parts}
            return {**response, "groups": [], "failures": [failure]}, frames[:1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(maker, "response", lie)
            with pytest.raises(ProtocolError, match="an error at an invalid place"):
                await map_request(bridge).outcomes()


@pytest.mark.parametrize("answers", [["begun"], ["begun", "waits"]])
async def test_a_hostile_kernel_that_never_ends_closing_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, answers: list[str]
) -> None:
    monkeypatch.setattr(Transport, "timings", Timings(closing_data_only=0.5))
    async with Bridge.loopback(trust="data") as bridge:
        await bridge.push(x=1)
        said = itertools.cycle(answers)
        iterations = sys.modules[type(remote_of(bridge)).__module__].RunningIteration
        items = bridge.iterate("range(10_000_000)")
        await anext(items)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(iterations, "closing", lambda self: ({"closing": next(said)}, []))
            await asyncio.wait_for(items.aclose(), 10)


async def test_what_cannot_be_iterated_over_is_reported(loopback: Bridge) -> None:
    async def coroutine() -> list[int]:
        return [1]

    with pytest.raises(TypeError, match="not a coroutine function"):
        loopback.iterate(coroutine)
    with pytest.raises(TypeError, match="only for a function"):
        loopback.iterate("rows", 1)
    number: Any = 5
    with pytest.raises(TypeError, match="a string or a ref"):
        loopback.iterate(number)


def test_a_sync_bridge_iterates_with_a_plain_for() -> None:
    with SyncBridge.loopback() as kernel:
        assert list(kernel.iterate(counted, 5000)) == list(range(5000))
        kernel["rows"] = ["a", [1]]
        assert list(kernel.ref("rows")) == ["a", [1]]
        CLOSED.clear()
        with kernel.iterate(counted, 1_000_005) as items:
            assert next(items) == 0
            assert next(items) == 1
        asyncio.run(until_closed(1_000_005))
        assert list(items) == []


def test_an_error_comes_after_the_items_before_it_in_a_plain_for() -> None:
    with SyncBridge.loopback() as kernel:
        kernel.run("def fails():\n    yield from range(20_000)\n    raise LookupError('no more')")
        items, found = kernel.iterate("fails()"), []
        with pytest.raises(RemoteError, match="no more") as caught:
            for item in items:
                found.append(item)
        assert found == [*range(20_000)]
        assert type(caught.value.__cause__) is LookupError
        assert list(items) == []


def test_break_of_a_plain_for_closes_what_it_read_in_the_kernel() -> None:
    with SyncBridge.loopback() as kernel:
        known = remote_of(kernel._bridge).resources.known
        for n in kernel.iterate(counted, 1_000_006):
            if n == 10:
                break
        asyncio.run(until_closed(1_000_006))
        for n in kernel.iterate(counted_async, 1_000_007):
            if n == 10:
                break
        asyncio.run(until_closed(1_000_007))
        kernel["x"] = 5
        for x in kernel.watch("x"):
            assert x == 5
            assert known
            break
        for names in kernel.watch_names():
            assert [name.name for name in names] == ["x"]
            break
        asyncio.run(until(lambda: not known))
        assert (kernel.stats.iterations, kernel.stats.watches) == (0, 0)


async def test_a_batch_does_not_count_as_a_task(loopback: Bridge) -> None:
    """The item that never comes keeps its batch on its way."""

    async def waits() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(1000)

    async with loopback.iterate(waits) as items:
        assert await anext(items) == 1
        waiting = asyncio.ensure_future(anext(items))
        async with asyncio.timeout(30):
            while not loopback._connection.resources.count()["batches"]:
                await asyncio.sleep(0.01)
        assert (loopback.stats.tasks, loopback.stats.iterations) == (0, 1)
        task = loopback.submit(later, 5, 1000)
        await loopback.push(x=1)
        assert (loopback.stats.tasks, loopback.stats.iterations) == (1, 1)
        task.cancel()
        waiting.cancel()


# ---------------------------------------------------------------- one task makes all items


async def found_in(items: Any, error: str = "") -> list[Any]:
    """Return all items; with ``error``, the iteration ends with it."""
    found = []
    with pytest.raises(RemoteError, match=error) if error else contextlib.nullcontext():
        async for item in items:
            found.append(item)
    return found


async def test_a_timeout_around_a_yield_lasts_from_item_to_item(loopback: Bridge) -> None:
    async def timed(seconds: float) -> AsyncIterator[str]:
        try:
            async with asyncio.timeout(seconds):
                yield "in time"
                await asyncio.sleep(0.01)
                yield "in time, too"
                await asyncio.sleep(0.5 if seconds < 1 else 0)
                yield "late"
        finally:
            closed().append(len(asyncio.all_tasks()))

    assert await found_in(loopback.iterate(timed, 60)) == ["in time", "in time, too", "late"]
    found = await found_in(loopback.iterate(timed, 0.2), "TimeoutError")
    assert found == ["in time", "in time, too"]
    assert len(CLOSED) == 2
    CLOSED.clear()


async def test_a_timeout_that_ends_between_two_items_is_the_generators(loopback: Bridge) -> None:
    """The generator is thrown the cancel that its timeout asks for, at the ``yield``."""

    async def timed() -> AsyncIterator[Any]:
        try:
            async with asyncio.timeout(0.3):
                while True:
                    yield bytes(8 << 20)  # the kernel is a few of them ahead, and then waits
        except TimeoutError:
            yield "timed out"
        yield "and goes on"

    items = loopback.iterate(timed)
    assert len(await anext(items)) == 8 << 20
    await asyncio.sleep(0.5)
    rest = [item async for item in items]
    assert rest[-2:] == ["timed out", "and goes on"]


async def test_a_task_group_and_a_context_variable_last_from_item_to_item(
    loopback: Bridge,
) -> None:
    async def grouped(fails: bool) -> AsyncIterator[Any]:
        from contextvars import ContextVar

        async def child() -> None:
            await asyncio.sleep(0.05)
            if fails:
                raise LookupError("in the child")

        variable: ContextVar[int] = ContextVar("variable", default=0)
        one = asyncio.current_task()
        async with asyncio.TaskGroup() as group:
            group.create_task(child())
            for n in range(4):
                variable.set(variable.get() + n)
                yield n, variable.get(), asyncio.current_task() is one
                await asyncio.sleep(0.02)

    expected = [(0, 0, True), (1, 1, True), (2, 3, True), (3, 6, True)]
    assert await found_in(loopback.iterate(grouped, False)) == expected
    found = await found_in(loopback.iterate(grouped, True), "TaskGroup")
    assert found == expected[: len(found)]


async def test_an_async_generator_is_closed_in_its_own_task(loopback: Bridge) -> None:
    """Between two items, while one is made, and before the first one."""

    async def holds(count: int) -> AsyncIterator[int]:
        task = asyncio.current_task()
        try:
            async with asyncio.timeout(60), asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(50))
                yield 1
                await asyncio.sleep(0 if count == 1_000_010 else 1000)
                yield 2
                await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(0)
            if asyncio.current_task() is task:
                closed().append(count)

    async with loopback.iterate(holds, 1_000_010) as items:
        assert [await anext(items), await anext(items)] == [1, 2]
    await until_closed(1_000_010)
    async with loopback.iterate(holds, 1_000_011) as items:
        assert await anext(items) == 1
    await until_closed(1_000_011)
    async with loopback.iterate(holds, 1_000_012):
        pass


async def test_an_async_generator_that_suppresses_the_cancel_is_closed(loopback: Bridge) -> None:
    async def stubborn() -> AsyncIterator[int]:
        yield 1
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(1000)
        try:
            yield 2
        finally:
            closed().append(1_000_013)

    async with loopback.iterate(stubborn) as items:
        assert await anext(items) == 1
    await until_closed(1_000_013)


async def test_an_async_iterator_that_is_no_generator_is_closed(loopback: Bridge) -> None:
    class Counts:
        n = 0

        def __aiter__(self) -> Any:
            return self

        async def __anext__(self) -> int:
            self.n += 1
            if self.n == 4:
                raise StopAsyncIteration
            return self.n

        async def aclose(self) -> None:
            await asyncio.sleep(0.01)
            closed().append(1_000_014)

    assert [n async for n in loopback.iterate(Counts)] == [1, 2, 3]
    await until_closed(1_000_014)
    async with loopback.iterate(Counts) as items:
        assert await anext(items) == 1
    await until_closed(1_000_014)


# ---------------------------------------------------------------- the end of a closing


def ends(how: str, seconds: float = 0.0) -> Iterator[int]:
    """Note ``how`` at the end of a ``finally`` that takes so long; some raise there."""
    try:
        yield from range(1_000_000)
    finally:
        time.sleep(seconds)
        closed().append(how)
        if how == "raises":
            raise LookupError("in the finally")


async def ends_async(how: str, seconds: float = 0.0) -> AsyncIterator[int]:
    try:
        for n in range(1_000_000):
            if how == "in a step" and n == 1:
                await asyncio.sleep(1000)
            yield n
    finally:
        await asyncio.sleep(seconds)
        closed().append(how)
        if how in ("raises", "in a step"):
            raise LookupError("in the finally")


BOTH: Any = pytest.mark.parametrize("function", [ends, ends_async])


@BOTH
@pytest.mark.parametrize("how", ["block", "aclose"])
async def test_closing_is_waited_for(loopback: Bridge, function: Any, how: str) -> None:
    async with loopback.iterate(function, how, 0.2) as items:
        assert await anext(items) == 0
        if how == "aclose":
            await items.aclose()
            assert CLOSED == [how]
    assert CLOSED == [how]
    await items.aclose()
    assert await anext(items, None) is None
    CLOSED.clear()


@BOTH
async def test_what_closing_raises_is_raised(loopback: Bridge, function: Any) -> None:
    items = loopback.iterate(function, "raises")
    assert await anext(items) == 0
    with pytest.raises(RemoteError, match="LookupError: in the finally") as caught:
        await items.aclose()
    assert isinstance(caught.value.__cause__, LookupError)
    await items.aclose()  # once is enough
    with pytest.raises(RemoteError, match="in the finally"):
        async with loopback.iterate(function, "raises", 0.05) as items:
            assert await anext(items) == 0
    CLOSED.clear()


async def test_what_a_step_raises_that_closing_cancels_is_raised(loopback: Bridge) -> None:
    with pytest.raises(RemoteError, match="in the finally"):
        async with loopback.iterate(ends_async, "in a step") as items:
            assert await anext(items) == 0
    CLOSED.clear()


class Own:
    """An iterator that is no generator, and notes that it was closed."""

    n = 0

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> int:
        self.n += 1
        return self.n

    def close(self) -> None:
        closed().append("own")


async def test_an_iterator_that_is_the_users_stays_open(loopback: Bridge, tmp_path: Path) -> None:
    """A file by its name; what a function returns, and a generator, is closed."""
    file = tmp_path / "lines"
    file.write_text("a\nb\nc\n")
    await loopback.run(
        f"file = open({str(file)!r}); rows = iter([1, 2, 3])\ndef lines(): return file"
    )
    assert [line async for line in loopback.iterate("file")] == ["a\n", "b\n", "c\n"]
    async with loopback.ref("file").__aiter__() as lines:
        assert await anext(lines, None) is None
    assert await loopback.pull("file.closed") is False
    async with loopback.iterate(loopback.ref("lines")()) as lines:
        assert await anext(lines, None) is None
    assert await loopback.pull("file.closed") is False
    await loopback.run("file.close()")
    await loopback.push(own=Own())
    async with loopback.iterate("own") as items:
        assert await anext(items) == 1
    assert not CLOSED
    async with loopback.iterate(Own) as items:
        assert await anext(items) == 1
    assert CLOSED == ["own"]
    CLOSED.clear()


async def test_the_end_of_a_task_group_around_a_yield_is_no_error(loopback: Bridge) -> None:
    """The group raises a group of the ``GeneratorExit`` that closing throws."""

    async def grouped(fails: bool) -> AsyncIterator[int]:
        async with asyncio.TaskGroup() as outer, asyncio.TaskGroup() as inner:
            outer.create_task(asyncio.sleep(1000))
            inner.create_task(asyncio.sleep(1000))
            try:
                for n in range(1_000_000):
                    yield n
            finally:
                if fails:
                    outer.create_task(divide())
                    await asyncio.sleep(0)

    async def divide() -> None:
        raise ZeroDivisionError

    async with loopback.iterate(grouped, False) as items:
        assert await anext(items) == 0
    with pytest.raises(RemoteError, match="unhandled errors"):
        async with loopback.iterate(grouped, True) as items:
            assert await anext(items) == 0


async def test_a_generator_that_ignores_its_end_is_reported(loopback: Bridge) -> None:
    def stays() -> Iterator[int]:
        with contextlib.suppress(GeneratorExit):
            while True:
                yield 1
        yield 2

    async def stays_async() -> AsyncIterator[int]:
        with contextlib.suppress(GeneratorExit):
            while True:
                yield 1
        yield 2

    for function in stays, stays_async:
        with pytest.raises(RemoteError, match="ignored GeneratorExit"):
            async with loopback.iterate(function) as items:
                assert await anext(items) == 1


@BOTH
async def test_an_error_of_the_block_is_not_hidden_by_closing(
    loopback: Bridge, function: Any
) -> None:
    with pytest.raises(KeyError, match="of the block") as caught:
        async with loopback.iterate(function, "raises") as items:
            await anext(items)
            raise KeyError("of the block")
    (note,) = caught.value.__notes__
    assert "closing failed, too: RemoteError: LookupError: in the finally" in note
    CLOSED.clear()


GATE = threading.Event()


def gate() -> threading.Event:
    found: threading.Event = sys.modules[__name__].GATE
    return found


def waits_at_its_end() -> Iterator[int]:
    try:
        yield from range(1_000_000)
    finally:
        gate().wait(30)
        closed().append("late")
        raise LookupError("in the finally")


async def waits_at_its_end_async() -> AsyncIterator[int]:
    try:
        for n in range(1_000_000):
            yield n
    finally:
        while not gate().is_set():
            await asyncio.sleep(0.01)
        closed().append("late")
        raise LookupError("in the finally")


@pytest.mark.parametrize("function", [waits_at_its_end, waits_at_its_end_async])
@pytest.mark.parametrize("how", ["block", "aclose"])
async def test_a_cancel_leaves_closing_to_the_kernel(
    loopback: Bridge, function: Any, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel alone sees what closing raises then."""
    ignored: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: ignored.append(found.exc_value))
    GATE.clear()
    items = loopback.iterate(function)
    await anext(items)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            if how == "block":
                async with items:
                    await asyncio.sleep(60)
            else:
                await items.aclose()
    assert not CLOSED
    GATE.set()
    await until_closed("late")
    await nothing_is_left(loopback)
    assert [type(error) for error in ignored] == [LookupError]


async def test_closing_the_bridge_ends_a_wait_for_closing() -> None:
    async with Bridge.loopback() as bridge:
        items = bridge.iterate(ends_async, "never", 1000)
        await anext(items)
        closing = asyncio.ensure_future(items.aclose())
        await asyncio.sleep(0.1)
    async with asyncio.timeout(10):
        await closing


def slow() -> Iterator[int]:
    for n in range(2):
        time.sleep(0.5)
        yield n


async def test_closing_ends_the_question_for_items_of_a_long_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, ended = asyncio.Event(), asyncio.Event()

    async def never(self: Items) -> None:
        asked.set()
        try:
            await asyncio.Event().wait()  # the kernel does not answer
        finally:
            ended.set()

    monkeypatch.setattr(Items, "_take", never)
    async with Bridge.loopback() as bridge:
        items = bridge.iterate(slow)
        waiting = asyncio.ensure_future(anext(items))
        await asyncio.wait_for(asked.wait(), 30)
        waiting.cancel()
        await items.aclose()
        await asyncio.wait_for(ended.wait(), 30)


async def test_what_closing_raises_is_raised_although_a_reply_is_lost(
    loopback: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: list[Any] = []
    ask = Installation.request_beside

    async def lose_two(self: Installation, operation: str, **fields: Any) -> Any:
        response = await ask(self, operation, **fields)
        if operation == "finish" and response and response.header.get("closing") == "done":
            answered.append(response)
            if len(answered) < 3:
                raise ReplyLost("the reply was lost")
        return response

    monkeypatch.setattr(Installation, "request_beside", lose_two)
    items = loopback.iterate(ends, "raises")
    await anext(items)
    with pytest.raises(RemoteError, match="in the finally"):
        await items.aclose()
    CLOSED.clear()


async def test_closing_twice_at_once_runs_it_once(loopback: Bridge) -> None:
    items = loopback.iterate(ends, "once", 0.1)
    await anext(items)
    await asyncio.gather(*(items.aclose() for _ in range(3)))
    assert CLOSED == ["once"]
    CLOSED.clear()


async def test_a_restart_ends_a_wait_for_closing(loopback: Bridge) -> None:
    items = loopback.iterate(ends_async, "never", 1000)
    await anext(items)
    closing = asyncio.ensure_future(items.aclose())
    await asyncio.sleep(0.1)
    await loopback.restart()
    async with asyncio.timeout(10):
        await closing
    await loopback.push(x=1)


def test_a_sync_bridge_waits_for_closing_and_raises_what_it_raises() -> None:
    with SyncBridge.loopback() as kernel:
        with kernel.iterate(ends, "block", 0.1) as items:
            assert next(items) == 0
        assert CLOSED == ["block"]
        with kernel.iterate(ends, "raises"):
            pass  # it has not begun
        items = kernel.iterate(ends_async, "raises")
        assert next(items) == 0
        with pytest.raises(RemoteError, match="in the finally"):
            items.close()
        with (
            pytest.raises(KeyError, match="of the block") as caught,
            kernel.iterate(ends, "raises") as items,
        ):
            assert next(items) == 0
            raise KeyError("of the block")
        assert "in the finally" in caught.value.__notes__[0]
        CLOSED.clear()


@pytest.mark.parametrize(
    ("code", "source", "error"),
    [
        ("def g():\n    yield 1\n    yield next(me)\nme = g()", "me", "already executing"),
        ("def g():\n    yield 1\n    yield me\nme = g()", "me", "cannot pickle 'generator'"),
        (
            "async def g():\n    yield 1\n    yield await me.__anext__()\nme = g()",
            *("me", "already running"),
        ),
        (
            "d = {1: 1}\ndef g():\n    for k in d:\n        d[k + 1] = 1\n        yield k",
            *("g()", "changed size during iteration"),
        ),
        ("def g():\n    yield 1\n    raise SystemExit(3)", "g()", "SystemExit"),
        ("def g():\n    yield 1\n    raise StopIteration", "g()", "generator raised StopIteration"),
    ],
)
async def test_odd_generators_end_with_their_error(
    loopback: Bridge, code: str, source: str, error: str
) -> None:
    await loopback.run(code)
    assert await found_in(loopback.iterate(source), error) == [1]
    assert await loopback.pull("1 + 1") == 2


async def test_two_iterations_share_a_generator(loopback: Bridge) -> None:
    """Each item comes once; closing one closes the generator of both."""
    await loopback.run("shared = (n for n in range(100_000))")
    async with loopback.iterate("shared") as one, loopback.iterate("shared") as two:
        found = [await anext(items) for _ in range(300) for items in (one, two)]
        assert len({*found}) == len(found)
    assert await loopback.pull("next(shared, None)") is None
