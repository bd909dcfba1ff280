"""Maps over a fleet of loopbacks: order, laziness, errors, cancels, and what is left.

Rule: no kernel. ``kernel/bridge/test_fleet_map.py`` has kernels that die, and interrupts.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest

from bridgehead import (
    Bridge,
    BridgeClosed,
    EncodeError,
    Fleet,
    FleetMap,
    MissingInKernel,
    NameNotFound,
    ProtocolError,
    RemoteError,
    SyncBridge,
    SyncFleet,
    UntrustedPayload,
)
from bridgehead._bridge.fleet_map import AHEAD
from bridgehead._connection.mapping import MapRequest
from support.kit import until
from unit.connection.test_tasks import remote_of

KERNELS = 3


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with (
        Bridge.loopback() as one,
        Bridge.loopback() as two,
        Bridge.loopback() as three,
        Fleet([one, two, three]) as fleet,
    ):
        yield fleet
        await nothing_is_left(fleet)


async def nothing_is_left(fleet: Fleet) -> None:
    """Wait until the kernels have nothing of the maps, and no call is in a queue."""

    def left() -> list[Any]:
        gc.collect()
        return [
            (bridge.stats, len(bridge._connection.queue.turns))
            for bridge in fleet
            if bridge.state != "closed"
            and (
                bridge.stats.refs
                or bridge.stats.tasks
                or bridge._connection.queue.turns
                or bridge._connection.resources.known
            )
        ]

    await until(lambda: not left())


def double(value: Any) -> Any:
    return 2 * value


# ---------------------------------------------------------------- results


@pytest.mark.parametrize("chunksize", [1, 7, "auto"])
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("window", [1, 3])
async def test_each_item_is_done_once(
    fleet: Fleet, chunksize: Any, ordered: bool, window: int
) -> None:
    options: Any = {"chunksize": chunksize, "ordered": ordered, "window": window}
    async with fleet.map(double, range(100), **options) as results:
        found = [result async for result in results]
    assert (found if ordered else sorted(found)) == [2 * n for n in range(100)]


async def test_a_chunk_may_have_as_many_objects_as_items(fleet: Fleet) -> None:
    """Each object and each error has a frame of its own, and those of a response are bounded."""

    def pair(n: int) -> tuple[int, int]:
        if n % 4 == 0:
            raise ValueError(n)
        return n, n

    mapped = fleet.map(pair, range(12_000), chunksize=12_000, return_exceptions=True)
    for n, outcome in enumerate([outcome async for outcome in mapped]):
        if n % 4 == 0:
            assert isinstance(outcome, RemoteError)
        else:
            assert outcome == (n, n)


async def test_a_chunk_that_is_being_pickled_is_not_taken_by_a_kernel_without_work(
    fleet: Fleet,
) -> None:
    """Of three kernels, those without work took the two chunks from each other for ever."""
    pickled: list[int] = []

    class Slow:
        def __init__(self, number: int) -> None:
            self.number = number

        def __reduce__(self) -> Any:
            pickled.append(self.number)
            time.sleep(0.2)
            return int, (self.number,)

    mapped = fleet.map(abs, [Slow(1), Slow(2)])
    assert [outcome async for outcome in mapped] == [1, 2]
    assert sorted(pickled) == [1, 2]


async def test_several_iterables_end_with_the_shortest(fleet: Fleet) -> None:
    results = fleet.map(pow, itertools.count(), [2, 2, 2])
    assert [result async for result in results] == [0, 1, 4]
    assert [result async for result in fleet.map(abs, [])] == []
    assert [result async for result in results] == []


async def test_an_async_function_runs_on_the_kernels_loops(fleet: Fleet) -> None:
    async with fleet.map(asyncio.sleep, [0] * 20, range(20), chunksize=3) as results:
        assert [result async for result in results] == list(range(20))


async def test_results_of_any_kind_arrive_as_they_were(fleet: Fleet) -> None:
    def same_buffer() -> Any:
        buffer = [0]

        def fill(n: int) -> Any:
            buffer[0] = n
            return buffer

        return fill

    found = [one async for one in fleet.map(same_buffer(), range(30), chunksize=10)]
    assert found == [[n] for n in range(30)]
    mixed = [1, "a", [2], None, np.arange(3), 4.0, {"k": 5}]
    back = [one async for one in fleet.map(lambda value: value, mixed, chunksize=4)]
    assert repr(back) == repr(mixed)


async def test_namespace_reaches_the_kernels(fleet: Fleet) -> None:
    for index, bridge in enumerate(fleet):
        await bridge.push(offset=10 * index)
    found = [n async for n in fleet.map(lambda n: n + offset - offset, range(5), namespace=True)]  # noqa: F821
    assert found == list(range(5))


async def test_the_function_crosses_once_for_all_kernels(fleet: Fleet) -> None:
    counted = Counted()
    Counted.times = 0
    assert [n async for n in fleet.map(counted, range(20))] == list(range(20))
    assert Counted.times == 1


class Counted:
    times = 0

    def __reduce__(self) -> Any:
        type(self).times += 1
        return _identity, ()


def _identity() -> Any:
    return lambda n: n


setattr(Counted, "__call__", lambda self, n: n)


# ---------------------------------------------------------------- laziness


async def test_an_endless_iterable_is_read_as_far_as_needed(fleet: Fleet) -> None:
    numbers = itertools.count()
    async with fleet.map(double, numbers, window=2) as results:
        assert [await anext(results) for _ in range(5)] == [0, 2, 4, 6, 8]
        await asyncio.sleep(0.1)
    read = next(numbers)
    assert 5 <= read <= 5 + AHEAD * 2 * KERNELS


async def test_a_slow_consumer_stops_the_work(fleet: Fleet) -> None:
    calls.clear()
    async with fleet.map(called, itertools.count(), chunksize=2) as results:
        await anext(results)
        most = 1 + 2 * AHEAD * 2 * KERNELS
        await until(lambda: len(calls) >= most - 1)
        await asyncio.sleep(0.1)
        assert len(calls) <= most
        for _ in range(50):
            await anext(results)
    assert len(calls) > most


def test_a_slow_consumer_of_a_sync_fleet_stops_the_work() -> None:
    calls.clear()
    with SyncBridge.loopback() as kernel, SyncFleet([kernel]) as kernels:
        with kernels.map(called, itertools.count(), chunksize=2) as results:
            for consumed in range(1, 101):
                assert next(results) == consumed - 1
                if consumed % 10 == 1:
                    most = consumed + 2 * AHEAD * 2
                    deadline = time.monotonic() + 60
                    while len(calls) < most - 1 and time.monotonic() < deadline:
                        time.sleep(0.01)
                    time.sleep(0.05)
                    assert most - 1 <= len(calls) <= most


calls: list[int] = []


def called(n: int) -> int:
    found: list[int] = sys.modules[__name__].calls
    found.append(n)
    return n


async def test_nothing_is_read_before_the_first_wait(fleet: Fleet) -> None:
    numbers = itertools.count()
    results = fleet.map(double, numbers)
    await asyncio.sleep(0.01)
    assert next(numbers) == 0
    await results.aclose()


async def test_what_the_iterable_raises_comes_after_the_results_before_it(fleet: Fleet) -> None:
    def broken() -> Iterator[int]:
        yield from range(10)
        raise LookupError("the iterable broke")

    for options in ({}, {"ordered": False}, {"return_exceptions": True}, {"chunksize": 4}):
        results = fleet.map(double, broken(), **options)  # type: ignore[arg-type]
        found = []
        with pytest.raises(LookupError, match="the iterable broke"):
            async for result in results:
                found.append(result)
        assert sorted(found) == [2 * n for n in range(10)]
        assert [result async for result in results] == []


class Odd:
    """An iterable with an error in one of its methods."""

    def __init__(self, method: str) -> None:
        self.method = method

    def __iter__(self) -> Iterator[int]:
        if self.method == "iter":
            raise LookupError(self.method)
        return self

    def __next__(self) -> int:
        raise LookupError(self.method) if self.method == "next" else StopIteration

    def __len__(self) -> int:
        raise NotImplementedError if self.method == "len" else TypeError


@pytest.mark.parametrize("chunksize", [1, "auto"])
async def test_an_iterable_that_raises_at_once(fleet: Fleet, chunksize: Any) -> None:
    options: Any = {"chunksize": chunksize, "return_exceptions": True}
    with pytest.raises(LookupError, match="iter"):  # as by the builtin ``map``
        fleet.map(double, Odd("iter"), **options)
    with pytest.raises(LookupError, match="next"):
        await anext(fleet.map(double, Odd("next"), **options))
    # Its length is not needed: many classes have one that raises.
    assert [n async for n in fleet.map(double, Odd("len"), **options)] == []
    with pytest.raises(TypeError, match="not iterable"):
        fleet.map(double, fleet.map(double, [1]), **options)  # type: ignore[arg-type]


async def test_an_iterable_that_raises_the_end_of_an_async_one_is_not_at_its_end(
    fleet: Fleet,
) -> None:
    def broken() -> Iterator[int]:
        yield from range(5)
        raise StopAsyncIteration

    found = []
    with pytest.raises(RuntimeError, match="raised StopAsyncIteration"):
        async for result in fleet.map(double, broken()):
            found.append(result)
    assert found == [0, 2, 4, 6, 8]


async def test_a_map_in_the_loop_of_another(fleet: Fleet) -> None:
    found = []
    async for n in fleet.map(double, range(5)):
        found.append([m async for m in fleet.map(double, range(n), window=1)])
    assert found == [[2 * m for m in range(2 * n)] for n in range(5)]


async def test_a_cancelled_future_in_the_iterable_is_raised_after_the_results(
    fleet: Fleet,
) -> None:
    def broken() -> Iterator[int]:
        yield from range(5)
        raise asyncio.CancelledError

    found = []
    with pytest.raises(asyncio.CancelledError):
        async for result in fleet.map(double, broken()):
            found.append(result)
    assert found == [0, 2, 4, 6, 8]


# ---------------------------------------------------------------- errors


def even(n: int) -> int:
    if n % 2:
        raise ValueError(f"{n} is odd")
    return n


async def test_the_first_error_ends_it_after_the_results_before(fleet: Fleet) -> None:
    results = fleet.map(even, [0, 2, 4, 5, 6, 7, 8], chunksize=2)
    found = []
    with pytest.raises(RemoteError, match="5 is odd") as caught:
        async for result in results:
            found.append(result)
    assert found == [0, 2, 4]
    assert isinstance(caught.value.__cause__, ValueError)
    assert caught.value.__notes__[0].startswith("kernel ")
    with pytest.raises(StopAsyncIteration):
        await anext(results)
    assert "ended" in repr(results)


@pytest.mark.parametrize("chunksize", [1, 3, "auto"])
async def test_exceptions_are_given_in_place_of_results(fleet: Fleet, chunksize: Any) -> None:
    results = fleet.map(even, range(10), chunksize=chunksize, return_exceptions=True)
    found = [result async for result in results]
    assert found[::2] == [0, 2, 4, 6, 8]
    assert [error.evalue for error in found[1::2]] == [f"{n} is odd" for n in (1, 3, 5, 7, 9)]


BEGUN: list[int] = []  # items; a loopback runs functions of this module in this process
DONE: list[int] = []
GATE = threading.Event()


@pytest.fixture
def counted() -> Iterator[None]:
    yield
    BEGUN.clear()
    DONE.clear()
    GATE.clear()


def fail_once_begun(n: int) -> int:
    BEGUN.append(n)
    return 6 // n


async def test_an_item_that_raises_is_tried_once(fleet: Fleet, counted: None) -> None:
    options: Any = {"retries": 3, "return_exceptions": True}
    found = [one async for one in fleet.map(fail_once_begun, [0, 1, 2], **options)]
    assert found[1:] == [6, 3]
    assert type(found[0]) is RemoteError
    assert sorted(BEGUN) == [0, 1, 2]


async def wait_at_the_gate(n: int) -> int:
    BEGUN.append(n)
    while not GATE.is_set():
        await asyncio.sleep(0.001)
    DONE.append(n)
    return n


@pytest.mark.parametrize("window", [1, 3])
async def test_a_kernel_has_as_many_chunks_as_the_window(
    fleet: Fleet, counted: None, window: int
) -> None:
    had: list[int] = []  # items that the kernel had when it took another one

    def items() -> Iterator[int]:
        for n in range(30):
            had.append(n + 1 - len(DONE))
            yield n

    results = fleet[:1].map(wait_at_the_gate, items(), chunksize=2, window=window)
    first = asyncio.ensure_future(anext(results))
    await until(lambda: len(BEGUN) == window)
    GATE.set()
    assert [await first, *[one async for one in results]] == list(range(30))
    assert max(had) == 2 * window


async def test_a_wide_window_costs_no_more_than_its_chunks(fleet: Fleet) -> None:
    results = fleet.map(double, range(5), window=10_000)
    assert await anext(results) == 0
    assert len(asyncio.all_tasks()) < 100
    assert [n async for n in results] == [2, 4, 6, 8]


async def test_the_event_loop_goes_on_while_a_wide_window_is_read(fleet: Fleet) -> None:
    turns, seen = itertools.count(), []

    def items() -> Iterator[int]:
        for n in range(50):
            seen.append(next(turns))
            yield n

    async def take_turns() -> None:
        while True:
            await asyncio.sleep(0)
            next(turns)

    other = asyncio.create_task(take_turns())
    assert len([n async for n in fleet[:1].map(double, items(), window=100)]) == 50
    other.cancel()
    assert all(later - earlier > 1 for earlier, later in itertools.pairwise(seen))


async def test_a_result_that_cannot_be_pickled_fails_alone(fleet: Fleet) -> None:
    def lock(n: int) -> Any:
        return threading.Lock() if n == 2 else [n]

    found = [one async for one in fleet.map(lock, range(4), chunksize=4, return_exceptions=True)]
    assert (found[:2], found[3]) == ([[0], [1]], [3])
    assert "cannot be pickled" in str(found[2])


class Lacking:
    """Its module is not there where it arrives."""

    def __reduce__(self) -> Any:
        return __import__, ("no_such_module",)


async def test_an_item_whose_module_is_missing_fails_alone(fleet: Fleet) -> None:
    items = [1, Lacking(), 3]
    results = fleet.map(double, items, chunksize=3, return_exceptions=True)
    found: list[Any] = [one async for one in results]
    assert (found[0], found[2]) == (2, 6)
    assert type(found[1]) is MissingInKernel


async def test_an_item_that_cannot_be_pickled_fails_alone(fleet: Fleet) -> None:
    items = [1, threading.Lock(), 3]
    results = fleet.map(lambda item: item, items, chunksize=3, return_exceptions=True)
    found = [result async for result in results]
    assert (found[0], found[2]) == (1, 3)
    assert type(found[1]) is EncodeError
    with pytest.raises(EncodeError):
        [one async for one in fleet.map(lambda item: item, items, chunksize=3)]


async def test_a_function_that_cannot_be_pickled_is_an_encode_error(fleet: Fleet) -> None:
    with pytest.raises(EncodeError):
        await anext(fleet.map(threading.Lock().acquire, [1]))


async def test_refs_are_refused(fleet: Fleet) -> None:
    await fleet.push(x=1)
    with pytest.raises(ValueError, match="belongs to one kernel"):
        fleet.map(fleet[0].ref("abs"), [1])
    with pytest.raises(ValueError, match="belongs to one kernel"):
        await anext(fleet.map(double, [fleet[0].ref("x")]))


@pytest.mark.parametrize("chunksize", [1, 4])
async def test_an_item_with_a_ref_fails_alone(fleet: Fleet, chunksize: int) -> None:
    items: list[Any] = [1, 2, [fleet[0].ref("x")], 4]
    options: Any = {"chunksize": chunksize, "return_exceptions": True}
    found = [one async for one in fleet.map(double, items, **options)]
    assert (found[:2], found[3]) == ([2, 4], 8)
    assert type(found[2]) is ValueError
    assert "belongs to one kernel" in str(found[2])


async def test_a_freed_ref_fails_its_item_alone(fleet: Fleet) -> None:
    one = fleet[:1]
    freed, kept = await one[0].call(list, keep=True), await one[0].call(list, keep=True)
    await one[0].delete(freed)
    for chunksize in (1, 3):
        options: Any = {"chunksize": chunksize, "return_exceptions": True}
        found = [n async for n in one.map(len, [kept, freed, kept], **options)]
        assert (found[0], type(found[1]), found[2]) == (0, NameNotFound, 0)


async def test_a_ref_that_only_the_kernel_has_freed_fails_its_item_alone(fleet: Fleet) -> None:
    one = fleet[:1]
    freed, kept = await one[0].call(list, keep=True), await one[0].call(list, keep=True)
    del remote_of(one[0]).operations.values.kept[str(freed)]
    for chunksize in (1, 3):
        options: Any = {"chunksize": chunksize, "return_exceptions": True}
        found = [n async for n in one.map(len, [kept, freed, kept], **options)]
        assert (found[0], type(found[1]), found[2]) == (0, NameNotFound, 0)


async def fail_at_three(n: int) -> int:
    if n == 3:
        raise asyncio.CancelledError("the third")
    return n


async def test_an_item_that_raises_a_cancel_fails_alone(fleet: Fleet) -> None:
    options: Any = {"chunksize": 6, "return_exceptions": True}
    found = [n async for n in fleet.map(fail_at_three, range(6), **options)]
    assert found[:3] + found[4:] == [0, 1, 2, 4, 5]
    assert found[3].ename == "CancelledError"


@pytest.mark.parametrize("goes_on", [True, False])
async def test_a_kernel_that_returns_too_few_results_is_a_protocol_error(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, goes_on: bool
) -> None:
    chunks = type(remote_of(fleet[0]).maps).map.__globals__["MapChunk"]
    run = chunks.run

    def short(chunk: Any) -> None:
        chunk.items = chunk.items[:1]
        run(chunk)

    monkeypatch.setattr(chunks, "run", short)
    results = fleet.map(abs, range(9), chunksize=3, return_exceptions=goes_on)
    if goes_on:
        assert [type(one) async for one in results] == [ProtocolError] * 9
    else:
        with pytest.raises(ProtocolError, match="1 results for 3 items"):
            await anext(results)


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), -1.0])
async def test_a_duration_that_is_not_one_is_a_protocol_error(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    chunks = type(remote_of(fleet[0]).maps).map.__globals__["MapChunk"]
    respond = chunks.response
    monkeypatch.setattr(
        chunks,
        "response",
        lambda chunk: ({**respond(chunk)[0], "seconds": seconds}, respond(chunk)[1]),
    )
    with pytest.raises(ProtocolError, match="duration"):
        await anext(fleet.map(abs, range(50), chunksize="auto"))


async def test_an_automatic_chunk_grows_also_where_each_request_takes_long(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk of one item in each request would have a slow connection take longest."""
    outcomes = MapRequest.outcomes

    async def slow(request: MapRequest) -> Any:
        await asyncio.sleep(0.3)
        return await outcomes(request)

    monkeypatch.setattr(MapRequest, "outcomes", slow)
    async with fleet.map(abs, itertools.count(), chunksize="auto") as results:
        for _ in range(200):
            await anext(results)
        assert results._work._size > 50


async def test_an_automatic_chunk_of_large_items_is_small(fleet: Fleet) -> None:
    async with fleet.map(bytes, itertools.repeat(1 << 20), chunksize="auto") as results:
        for _ in range(40):
            await anext(results)
        assert results._work._size <= 8


async def test_trust_data_opens_only_data() -> None:
    async with Bridge.loopback(trust="data") as bridge, Fleet([bridge]) as fleet:
        found = [n async for n in fleet.map(even, range(3), chunksize=3, return_exceptions=True)]
        assert (found[0], found[2]) == (0, 2)
        assert found[1].__cause__ is None
        with pytest.raises((UntrustedPayload, RemoteError)):
            await anext(fleet.map(lambda _: print, [1]))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"chunksize": 0}, ValueError, "chunksize must be at least 1"),
        ({"chunksize": "big"}, TypeError, "chunksize must be a number"),
        ({"window": 0}, ValueError, "window must be at least 1"),
        ({"retries": -1}, ValueError, "retries must be at least 0"),
        ({"ordered": "x"}, TypeError, "ordered must be True or False, not str"),
        ({"return_exceptions": 1}, TypeError, "return_exceptions must be True or False, not int"),
    ],
)
async def test_wrong_arguments(fleet: Fleet, options: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        fleet.map(double, [1], **options)
    with pytest.raises(TypeError, match="takes a function"):
        fleet.map(1, [1])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="at least one iterable"):
        fleet.map(double)
    with pytest.raises(TypeError, match="iter"):
        fleet.map(double, 1)  # type: ignore[arg-type]


# ---------------------------------------------------------------- leaving


async def test_a_cancelled_wait_loses_nothing(fleet: Fleet) -> None:
    async with fleet.map(slow, range(30)) as results:
        found: list[int] = []
        while len(found) < 30:
            try:
                async with asyncio.timeout(0.003):
                    found.append(await anext(results))
            except TimeoutError:
                pass
    assert found == list(range(30))


def slow(n: int) -> int:
    time.sleep(0.005)
    return n


async def test_leaving_it_withdraws_what_has_not_begun(fleet: Fleet) -> None:
    calls.clear()
    async with fleet.map(called, range(1000), window=4) as results:
        await anext(results)
    assert await fleet.pull("1") == [1, 1, 1]  # behind what had been sent: nothing interrupts it
    begun = len(calls)
    await nothing_is_left(fleet)
    await asyncio.sleep(0.05)
    assert len(calls) == begun < 200


async def test_leaving_it_closes_the_generator(fleet: Fleet) -> None:
    closed = []

    def items() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            closed.append(True)

    async with fleet.map(double, items()) as results:
        assert await anext(results) == 0
    assert closed == [True]
    assert [one async for one in results] == []


async def test_a_dropped_map_ends(fleet: Fleet) -> None:
    calls.clear()
    async for n in fleet.map(called, itertools.count()):
        if n == 3:
            break
    gc.collect()
    await nothing_is_left(fleet)


async def test_a_dropped_map_ends_without_its_first_bridge(fleet: Fleet) -> None:
    results = fleet.map(slow, itertools.count(), return_exceptions=True)
    await anext(results)
    await fleet[0].aclose()
    work = results._work
    del results
    gc.collect()
    await until(lambda: work.is_closed and all(task.done() for task in work._tasks))
    await nothing_is_left(fleet)


async def test_closing_the_bridges_ends_a_map(fleet: Fleet) -> None:
    results = fleet.map(slow, itertools.count(), return_exceptions=True)
    await anext(results)
    await fleet[0].aclose()
    found = [await anext(results) for _ in range(60)]
    lost = [one for one in found if isinstance(one, Exception)]
    assert [type(one) for one in lost] in ([], [BridgeClosed])  # the item that it had begun
    for bridge in fleet:
        await bridge.aclose()
    with pytest.raises(BridgeClosed):
        async for _ in results:
            pass


async def test_many_maps_and_other_operations_interleave(fleet: Fleet) -> None:
    async def one(add: int) -> list[int]:
        async with fleet.map(lambda n: n + add, range(40)) as results:
            return [result async for result in results]

    found = await asyncio.gather(*(one(10 * n) for n in range(4)), fleet.pull("6 * 7"))
    assert found == [*([n + 10 * add for n in range(40)] for add in range(4)), [42] * 3]


async def test_one_reader_after_the_other_gets_every_result_once(fleet: Fleet) -> None:
    results: FleetMap[int] = fleet.map(double, range(20))
    first = await results.take()
    rest = [result async for result in results]
    assert first + rest == [2 * n for n in range(20)]
    assert await results.take() == []
