"""The promises that are no single fault: cancelling, crowds, large objects, watching.

Rule: on real kernels, through the public surface; what is looked inside for is only what must
not be left there. What is random says its seed when it fails. Nothing is timed: what must go
on meanwhile is counted, and what must come is waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import random
import signal
import sys
import threading
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import cloudpickle
import numpy as np
import pytest
from kit import (
    KEPT,
    LANES,
    all_of,
    file_of,
    goes_on,
    kind,
    other,
    sigint,
    told_within,
    until,
    whole,
    wired,
)

from bridgehead import (
    Bridge,
    KernelRestarted,
    NameNotFound,
    PayloadTooLarge,
    RemoteError,
    ReplyLost,
)
from bridgehead._transports.base import WINDOW, Transport
from elsewhere import MAJORS
from look import look

# Test modules aren't importable in a kernel; what they define is shipped like a script's own.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
async def harmless() -> AsyncIterator[Bridge]:
    """One kernel for all that leaves it as it was; it can tell what its loader keeps."""
    async with Bridge.launch() as bridge:
        await bridge.run(KEPT)
        yield bridge


@contextlib.contextmanager
def seeded() -> Iterator[random.Random]:
    """Chance, with its seed told if the block fails."""
    seed = random.randrange(2**32)
    try:
        yield random.Random(seed)
    except BaseException as error:
        error.add_note(f"the seed was {seed}")
        raise


class Sent:
    """What left any bridge: execute requests, bytes of buffers and the most in flight."""

    def __init__(self) -> None:
        self.requests = self.nbytes = self.most = 0


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    count = Sent()
    put = Transport.put

    async def counted(
        self: Transport, channel: str, message: dict[str, Any], buffers: Any = (), *a: Any, **k: Any
    ) -> Any:
        count.requests += message["header"]["msg_type"] == "execute_request"
        count.nbytes += sum(memoryview(buffer).nbytes for buffer in buffers)
        pending = await put(self, channel, message, buffers, *a, **k)
        count.most = max(count.most, self.in_flight)
        return pending

    monkeypatch.setattr(Transport, "put", counted)
    return count


@contextlib.asynccontextmanager
async def occupied(bridge: Bridge) -> AsyncIterator[None]:
    """Somebody else's cell runs for as long as the block lasts."""
    await bridge.push(_go_on=False)
    async with other(bridge) as somebody:
        cell = somebody.submit("import time\nwhile not _go_on: time.sleep(0.01)")
        await until(lambda: bridge.state == "busy")
        try:
            yield
        finally:
            await bridge.push(_go_on=True, now=True)
            await somebody.answer(cell)


# ================================================================ Cancelling


class Failed(Exception):
    """What a sibling raises."""


async def cancelled_task(operation: Awaitable[Any], seconds: float) -> None:
    task = asyncio.ensure_future(operation)
    await asyncio.sleep(seconds)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def asyncio_timeout(operation: Awaitable[Any], seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await operation


async def anyio_move_on_after(operation: Awaitable[Any], seconds: float) -> None:
    with anyio.move_on_after(seconds):
        await operation


async def anyio_fail_after(operation: Awaitable[Any], seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        with anyio.fail_after(seconds):
            await operation


async def failing_sibling(operation: Awaitable[Any], seconds: float) -> None:
    async def run() -> None:
        await operation

    async def fail() -> None:
        await asyncio.sleep(seconds)
        raise Failed

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            group.create_task(run())
    except* Failed:
        pass


CANCELS = [
    cancelled_task,
    asyncio_timeout,
    anyio_move_on_after,
    anyio_fail_after,
    failing_sibling,
]
BIG = 20_000_000  # bytes
OPERATIONS: dict[str, Callable[[Bridge, int], Awaitable[Any]]] = {
    "push": lambda bridge, i: bridge.push(left=i, right=i),
    "push-20-MB": lambda bridge, i: bridge.push(left=i, right=i, blob=bytearray(BIG)),
    "pull": lambda bridge, i: bridge.pull("constant"),
    "pull-20-MB": lambda bridge, i: bridge.pull("big"),
    "call": lambda bridge, i: bridge.call(lambda x: x + 1, i),
    "run": lambda bridge, i: bridge.run(f"left = right = {i}"),
    "names": lambda bridge, i: bridge.names(),
    "delete": lambda bridge, i: bridge.delete("spare", "spare2"),
}


INSTANTS = {"direct": 100, "buffers": 100, "inline": 40}  # inline takes three times as long


@pytest.mark.parametrize("lane", LANES)
async def test_a_cancel_at_a_random_instant_disturbs_nobody(kernel: Bridge, lane: Any) -> None:
    """At many instants of any operation, by every kind of cancel, while others use the bridge."""
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge:
        with seeded() as chance:
            await bridge.push(constant=[1, 2, 3], big=bytes(BIG), left=-1, right=-1, blob=b"")
            stop = False

            async def uses(mine: str) -> int:
                for count in itertools.count():
                    if stop:
                        return count
                    await bridge.push({mine: count})
                    assert await bridge.pull(mine) == count
                    assert await bridge.pull(f"[{mine}] * 2") == [count] * 2
                    assert await bridge.call(lambda x: -x, count) == -count
                raise AssertionError

            users = [asyncio.create_task(uses(f"user{i}")) for i in range(3)]
            usual = {}
            for name, operation in OPERATIONS.items():
                await bridge.push(spare=1, spare2=1)
                started = time.perf_counter()
                await operation(bridge, -1)
                usual[name] = time.perf_counter() - started
            held = -1
            for i in range(INSTANTS[lane]):
                name, cancel = chance.choice(list(OPERATIONS)), chance.choice(CANCELS)
                await bridge.push(spare=1, spare2=1)
                await cancel(OPERATIONS[name](bridge, i), chance.uniform(0, 1.2 * usual[name]))
                left, right, *spare = await bridge.pull(
                    "left", "right", "'spare' in globals()", "'spare2' in globals()"
                )
                assert left == right, (i, name, cancel.__name__)
                assert left in (held, i), (i, name, cancel.__name__)
                assert spare in ([True] * 2, [False] * 2), (i, name, cancel.__name__)
                held = left
            stop = True
            async with told_within(1):
                assert min(await asyncio.gather(*users)) > 0
            for i in range(10):
                await bridge.push(left=i)
                assert await bridge.pull("left", "constant") == (i, [1, 2, 3])
            await until(lambda: not bridge._transport.in_flight)
            assert not bridge._foothold.queue._places
            assert await bridge.pull("_kept()") == [0, 0]
    there = await look(file_of(kernel))
    assert set(there) - {"spare", "spare2"} == {
        *("constant", "big", "left", "right", "blob", "user0", "user1", "user2")
    }
    assert there["constant"] == "[1, 2, 3]"
    await goes_on(kernel)


async def test_what_was_cancelled_in_the_queue_never_runs(kernel: Bridge) -> None:
    """Behind a running cell, every second of many is cancelled: these never run, the others do."""
    await kernel.push(ran=[])
    async with occupied(kernel):
        sent = asyncio.ensure_future(kernel.push(first=1))
        await until(lambda: kernel._transport.in_flight == 1)
        queued = [
            asyncio.ensure_future(operation)
            for i in range(40)
            for operation in (
                kernel.push({f"x{i}": i}),
                kernel.run(f"ran.append({i})"),
                kernel.call(lambda ran, i: ran.append(-i), kernel.ref("ran"), i),
            )
        ]
        await asyncio.sleep(0.1)
        for task in queued[3::6] + queued[4::6] + queued[5::6]:
            task.cancel()
        await asyncio.sleep(0)
    await sent
    outcomes = await all_of(*queued)
    assert [isinstance(one, asyncio.CancelledError) for one in outcomes] == [
        bool(i // 3 % 2) for i in range(120)
    ]
    there = await look(file_of(kernel))
    assert {name for name in there if name[0] == "x"} == {f"x{i}" for i in range(0, 40, 2)}
    assert there["ran"] == repr([n for i in range(0, 40, 2) for n in (i, -i)])
    await goes_on(kernel)


# ================================================================ Crowds


async def test_thousands_at_once_on_three_bridges_beside_a_console(
    kernel: Bridge, sent: Sent
) -> None:
    """2,000 calls through each of three bridges and cells of a raw client: each its own answer."""
    await kernel.push({f"p{i}": [i] for i in range(1000)})
    async with (
        Bridge.attach(file_of(kernel)) as second,
        Bridge.attach(file_of(kernel), lane="inline") as third,
        other(kernel) as console,
    ):
        bridges = {"a": kernel, "b": second, "c": third}

        async def pull(bridge: Bridge, i: int) -> None:
            assert await bridge.pull(f"p{i}") == [i]

        async def push(bridge: Bridge, mine: str, i: int) -> None:
            assert (await bridge.push({f"{mine}{i}": i})).names == (f"{mine}{i}",)

        with seeded() as chance:
            work = [pull(bridge, i) for bridge in bridges.values() for i in range(1000)]
            work += [push(bridge, mine, i) for mine, bridge in bridges.items() for i in range(1000)]
            chance.shuffle(work)
            cells = [console.submit(f"d{i} = {i}\nd{i} / {i % 2}") for i in range(20)]
            await asyncio.gather(*work)
            for i, cell in enumerate(cells):
                # Aborted by the one before it, which fails, it did not run.
                status = (await console.answer(cell))["status"]
                assert status in (("ok", "aborted") if i % 2 else ("error", "aborted"))
        assert 0 < sent.most <= WINDOW
        there = await look(file_of(kernel))
        assert {
            mine + str(i): str(i) for mine in "abc" for i in range(1000)
        }.items() <= there.items()
        assert len([name for name in there if name[0] == "p"]) == 1000
    await goes_on(kernel)


@pytest.mark.parametrize("lane", LANES)
async def test_a_thousand_small_pushes_need_few_messages(
    kernel: Bridge, sent: Sent, lane: Any
) -> None:
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge:
        sent.requests = 0
        await asyncio.gather(*(bridge.push({f"x{i}": i}) for i in range(1000)))
        assert sent.requests <= 40
        assert sent.most <= WINDOW
    assert await look(file_of(kernel)) == {f"x{i}": str(i) for i in range(1000)}


@pytest.mark.parametrize("lane", LANES)
async def test_operations_take_effect_in_the_order_of_their_calls(
    kernel: Bridge, lane: Any
) -> None:
    """Of many pushes of one name the last one wins; what is called between them sees its own."""
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge:
        for _ in range(10):
            await asyncio.gather(*(bridge.push(x=i) for i in range(100)))
            assert await bridge.pull("x") == 99
        with seeded() as chance:
            await bridge.push(x=-1, ran=[])
            ways: list[Callable[[int], Awaitable[Any]]] = [
                lambda i: bridge.push(x=i),
                lambda i: bridge.push(x=i, weight=bytearray(3_000_000)),
                lambda i: bridge.push(x=i, heavy=list(range(5000))),  # pickled in a thread
                lambda i: bridge.run(f"x = {i}"),
                lambda i: bridge.call(lambda: i, keep="x"),
                lambda i: bridge.pull("x"),
                lambda i: bridge.pull("x + 0"),
                lambda i: bridge.call(lambda x: x, bridge.ref("x")),
            ]
            chosen = [chance.randrange(len(ways)) for _ in range(200)]
            expected, last = [], -1
            for i, way in enumerate(chosen):
                last = i if way < 5 else last
                expected.append(last)
            outcomes = await asyncio.gather(*(ways[way](i) for i, way in enumerate(chosen)))
            for i, way in enumerate(chosen):
                if way >= 5:
                    assert outcomes[i] == expected[i], (i, way)
            assert (await look(file_of(kernel)))["x"] == str(last)
    await goes_on(kernel)


class RaisesThere:
    def __getstate__(self) -> dict[str, int]:
        return {"x": 1}

    def __setstate__(self, state: Any) -> None:
        raise RuntimeError("not in this kernel")


async def test_what_fails_in_a_message_of_many_fails_alone(kernel: Bridge, sent: Sent) -> None:
    await kernel.push(there=[5])
    await kernel.run("import threading; unpicklable = threading.Lock()")
    async with occupied(kernel):
        sent.requests = 0
        work: list[Awaitable[Any]] = [kernel.push(first=1)]
        for i in range(20):
            work += [
                kernel.push({f"x{i}": i}),
                kernel.push(bad=RaisesThere(), **{f"y{i}": i}),
                kernel.pull("missing"),
                kernel.pull("there"),
                kernel.pull("there", max_bytes=1),
                kernel.pull("unpicklable", max_bytes=1),
                kernel.delete("there", "missing"),
                kernel.exists("missing"),
            ]
        tasks = [asyncio.ensure_future(one) for one in work]
        await asyncio.sleep(0.3)
    _, *outcomes = await all_of(*tasks)
    assert sent.requests <= 20  # or it would prove nothing
    for i in range(20):
        push, bad, missing, there, large, dumb, delete, exists = outcomes[8 * i : 8 * i + 8]
        assert push.names == (f"x{i}",)
        assert isinstance(bad, RemoteError)
        assert "not in this kernel" in str(bad)
        assert isinstance(missing, NameNotFound)
        assert missing.names == ("missing",)
        assert there == [5]
        assert isinstance(large, PayloadTooLarge)
        assert isinstance(dumb, RemoteError)
        assert isinstance(delete, NameNotFound)
        assert exists is False
    found = await look(file_of(kernel))
    assert set(found) == {"there", "unpicklable", "first", *(f"x{i}" for i in range(20))}
    await goes_on(kernel)


class SlowThere:
    def __init__(self, value: int) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        return slowly, (self.value,)


def slowly(value: int) -> int:
    time.sleep(0.02)
    return value


async def test_an_interrupt_strikes_one_of_those_that_cross_together(
    kernel: Bridge, sent: Sent
) -> None:
    """SIGINT while a message of many is served: who is not told of it has all it asked for."""
    struck = 0
    for _ in range(3):
        async with occupied(kernel):
            sent.requests = 0
            tasks = [
                asyncio.ensure_future(kernel.push({f"l{i}": SlowThere(i), f"r{i}": i}))
                for i in range(40)
            ]
            await asyncio.sleep(0.3)
        await asyncio.sleep(0.3)
        sigint(kernel)
        async with told_within(2):
            outcomes = await all_of(*tasks)
        assert sent.requests <= 10  # or it would prove nothing
        there = await look(file_of(kernel))
        for i, outcome in enumerate(outcomes):
            pair = there.get(f"l{i}"), there.get(f"r{i}")
            if isinstance(outcome, BaseException):
                assert isinstance(outcome, RemoteError)
                assert outcome.ename == "KeyboardInterrupt"
                assert pair in ((None, None), (str(i), str(i)))
                struck += 1
            else:
                assert pair == (str(i), str(i))
        await kernel.delete(*(name for name in there if name[0] in "lr"))
        await goes_on(kernel)
    assert struck


# ================================================================ Large objects

MB = 1 << 20


def patterned(nbytes: int) -> np.ndarray[Any, Any]:
    """An array without two equal blocks, written cheaply."""
    array = np.empty(nbytes, np.uint8)
    block = np.random.default_rng(5).integers(0, 256, MB, np.uint8)
    for number, start in enumerate(range(0, nbytes, MB)):
        array[start : start + MB] = block[: nbytes - start]
        array[start : start + 8] = np.frombuffer(number.to_bytes(8, "little"), np.uint8)
    return array


def check_sum(array: Any) -> int:
    return zlib.crc32(memoryview(array))


def status(pid: int, field: str) -> int:
    """A figure of ``/proc/<pid>/status`` in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    raise AssertionError(field)


class Peaks:
    """The most memory that both processes had since the last look, beyond what they had then."""

    def __init__(self, bridge: Bridge) -> None:
        self.pids = {"near": os.getpid(), "far": bridge.info.pid}

    def reset(self) -> None:
        gc.collect()
        for pid in self.pids.values():
            Path(f"/proc/{pid}/clear_refs").write_text("5")
        self.before = {side: status(pid, "VmRSS") for side, pid in self.pids.items()}

    def beyond(self) -> dict[str, int]:
        return {side: status(pid, "VmHWM") - self.before[side] for side, pid in self.pids.items()}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no /proc of Linux")
async def test_a_transfer_takes_its_own_size_of_memory() -> None:
    """1 GB there and back: each side takes as much, and 100 MB more at most."""
    size = 1 << 30
    async with Bridge.launch() as bridge:
        array = patterned(size)
        expected = check_sum(array)
        # Whatever is imported, mapped or grown on first use.
        await bridge.push(warm=np.zeros(64 * MB, np.uint8))
        await bridge.pull("warm")
        await bridge.delete("warm")
        peaks = Peaks(bridge)
        peaks.reset()
        await bridge.push(array=array)
        pushed = peaks.beyond()
        assert pushed["near"] <= 100 * MB  # the array itself was there before
        assert pushed["far"] <= size + 100 * MB
        del array
        peaks.reset()
        back = await bridge.pull("array")
        pulled = peaks.beyond()
        assert pulled["near"] <= size + 100 * MB
        assert pulled["far"] <= size + 100 * MB
        assert check_sum(back) == expected
        del back
        assert await bridge.call(check_sum, bridge.ref("array")) == expected


SIZES: dict[str, int] = {"direct": 100 * MB, "buffers": 100 * MB, "inline": 20 * MB}


@pytest.mark.parametrize("lane", LANES)
async def test_progress_grows_to_the_end(kernel: Bridge, lane: Any) -> None:
    """Bytes done and in all, both ways; small transfers tell their end as well."""
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge:
        for size in (1, SIZES[lane]):
            for way in ("push", "pull"):
                seen: list[tuple[int, int]] = []

                def tell(done: int, total: int, seen: Any = seen) -> None:
                    seen.append((done, total))

                if way == "push":
                    told = await bridge.push(array=np.ones(size, np.uint8), progress=tell)
                    assert seen[-1] == (told.bytes, told.bytes)
                else:
                    assert (await bridge.pull("array", progress=tell)).nbytes == size
                total = seen[-1][1]
                assert seen[-1] == (total, total)
                assert size < total < size + 1000
                assert {pair[1] for pair in seen} == {total}
                done = [pair[0] for pair in seen]
                assert done == sorted(done)
                assert done[0] > 0
                at_once = size == 1 or (lane == "direct" and way == "pull")
                assert len(set(done)) >= (1 if at_once else 2)  # pieces may arrive together


class Enough(Exception):
    """What a progress callable raises."""


@pytest.mark.parametrize("lane", LANES)
async def test_what_progress_raises_ends_the_transfer(kernel: Bridge, lane: Any) -> None:
    """It is raised from the call itself, nothing is bound, and nothing is kept."""
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge:

        def enough(done: int, total: int) -> None:
            if done > total // 3:
                raise Enough

        blob = np.ones(SIZES[lane], np.uint8)
        with pytest.raises(Enough):
            await bridge.push(blob=blob, x=1, progress=enough)
        assert await look(file_of(kernel)) == {}
        await bridge.push(blob=blob)
        with pytest.raises(Enough):
            await bridge.pull("blob", progress=enough)
        assert await bridge.pull("_kept()") == [0, 0]
        await until(lambda: not bridge._transport.in_flight)
        assert (await bridge.pull("blob")).nbytes == SIZES[lane]
        await goes_on(bridge)


@pytest.mark.parametrize("lane", LANES)
async def test_a_progress_that_cancels_ends_its_own_call_alone(kernel: Bridge, lane: Any) -> None:
    """A CancelledError out of the callable is a cancelled call; whoever waits behind it goes on."""
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge:

        def cancelled(done: int, total: int) -> None:
            raise asyncio.CancelledError

        blob = np.ones(SIZES[lane], np.uint8)
        outcomes = await all_of(bridge.push(blob=blob, progress=cancelled), bridge.push(x=1))
        assert isinstance(outcomes[0], asyncio.CancelledError)
        assert outcomes[1].names == ("x",)
        assert await look(file_of(kernel)) == {"x": "1"}
        await goes_on(bridge)


# In a process of its own: one that has run other tests takes and gives back memory as it likes.
GIVEN_UP = """
import asyncio
import gc
import sys

import numpy as np
import psutil

from bridgehead import Bridge, RemoteError


async def main():
    async with Bridge.attach(sys.argv[1]) as bridge:
        process = psutil.Process()
        cell = asyncio.ensure_future(bridge.run("import time; time.sleep(60)"))
        while bridge.state != "busy":
            await asyncio.sleep(0.005)
        before = process.memory_info().rss
        for number in range(1, 21):
            try:
                await bridge.push(blob=np.full(20_000_000, number, np.uint8).tobytes(), timeout=0.2)
            except TimeoutError as error:
                assert "It was not sent" in str(error), error
            else:
                raise AssertionError("the kernel is not busy")
        gc.collect()
        print(process.memory_info().rss - before)
        await bridge.interrupt()
        try:
            await cell
        except RemoteError as error:
            assert "KeyboardInterrupt" in str(error), error


asyncio.run(main())
"""


async def test_what_was_given_up_behind_a_busy_kernel_takes_no_memory(live: Bridge) -> None:
    """Pushes that time out while a cell runs: their bytes are not kept until it is done."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", GIVEN_UP, file_of(live)), stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await process.communicate()
    assert process.returncode == 0
    assert int(printed) < 150 * MB  # of 400
    await goes_on(live)


@pytest.fixture
async def messages(kernel: Bridge) -> AsyncIterator[Bridge]:
    """A bridge whose frames are in messages, where they can be counted."""
    async with Bridge.attach(file_of(kernel), lane="buffers") as bridge:
        yield bridge


async def test_max_bytes_names_the_size_and_nothing_crosses(messages: Bridge, sent: Sent) -> None:
    """Both ways; exactly as much is allowed."""
    kernel = messages
    array = np.ones(10 * MB, np.uint8)
    sent.nbytes = sent.requests = 0
    with pytest.raises(PayloadTooLarge) as caught:
        await kernel.push(array=array, max_bytes=10 * MB)
    assert (sent.nbytes, sent.requests) == (0, 0)
    exact = (await kernel.push(array=array)).bytes
    assert caught.value.bytes == exact > 10 * MB
    assert f"{exact:,} bytes" in str(caught.value)
    assert sent.nbytes == exact
    assert (await kernel.push(array=array, max_bytes=exact)).bytes == exact

    arrived = 0
    received = kernel._transport.received

    def counted(channel: str, message: Any) -> None:
        nonlocal arrived
        arrived += sum(memoryview(buffer).nbytes for buffer in message["buffers"])
        received(channel, message)

    kernel._transport.received = counted  # type: ignore[method-assign]
    try:
        for expression in ("array", "array + 0"):
            with pytest.raises(PayloadTooLarge) as caught:
                await kernel.pull(expression, max_bytes=10 * MB)
            assert arrived == 0
            assert caught.value.bytes is not None
            assert caught.value.bytes > 10 * MB
            assert f"{caught.value.bytes:,} bytes" in str(caught.value)
            back = await kernel.pull(expression, max_bytes=caught.value.bytes)
            assert (back == array).all()
            assert arrived == caught.value.bytes
            arrived = 0
    finally:
        del kernel._transport.received
    assert set(await look(file_of(kernel))) == {"array"}
    await goes_on(kernel)


@pytest.mark.parametrize("way", ["push", "pull"])
async def test_cancelling_half_way_frees_both_sides(way: str) -> None:
    """400 MB, cancelled when half has crossed: neither side keeps any of it."""
    # Through shared memory a pull arrives at once: there is no half of it.
    async with Bridge.launch(lane="auto" if way == "push" else "buffers") as bridge:
        await bridge.run(KEPT)
        array = np.ones(400 * MB, np.uint8)
        await bridge.push(array=array[: 64 * MB])  # what grows on first use
        await bridge.pull("array")
        if way == "pull":
            await bridge.push(array=array)
        gc.collect()
        pids = os.getpid(), bridge.info.pid
        before = [status(pid, "VmRSS") for pid in pids]
        crossed = asyncio.Event()

        def half(done: int, total: int) -> None:
            if done > total // 2:
                crossed.set()

        operation = (
            bridge.push(array=array, x=1, progress=half)
            if way == "push"
            else bridge.pull("array", progress=half)
        )
        task = asyncio.ensure_future(operation)
        await crossed.wait()
        task.cancel()
        (outcome,) = await all_of(task)
        assert isinstance(outcome, asyncio.CancelledError)
        del operation, task, outcome
        while await bridge.pull("_kept()") != [0, 0]:
            await asyncio.sleep(0.01)
        assert set(await look(file_of(bridge))) == {"array"}

        def freed() -> bool:
            gc.collect()
            after = [status(pid, "VmRSS") for pid in pids]
            return all(now < then + 100 * MB for now, then in zip(after, before, strict=True))

        await until(freed)
        await goes_on(bridge)


class Ticks:
    """An event loop that is counted while it goes on, and can be waited for from a thread."""

    def __init__(self) -> None:
        self.count = 0
        self._many = threading.Event()

    async def __aenter__(self) -> Ticks:
        self._task = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(0.001)
            self.count += 1
            if self.count == 20:
                self._many.set()

    def wait(self) -> bool:
        """Block this thread until the loop went on 20 times; it never does for its own."""
        return self._many.wait(20)


seen_in: list[tuple[int, bool]] = []  # thread, and whether the loop went on
waiting: list[Ticks] = []


class Large:
    """An object of a megabyte, whose pickling and unpickling here wait for the event loop."""

    def __init__(self) -> None:
        self.words = [str(i) for i in range(100_000)]

    def __getstate__(self) -> Any:
        note()
        return self.__dict__

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state)
        note()


def note() -> None:
    if waiting:  # not over there
        seen_in.append((threading.get_ident(), waiting[0].wait()))


@pytest.mark.parametrize("way", ["push", "pull", "call"])
async def test_a_large_object_is_pickled_beside_the_event_loop(
    kernel: Bridge, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own code runs in another thread than the loop's, and the loop goes on meanwhile."""
    module = sys.modules[__name__]
    monkeypatch.setattr(module, "seen_in", [])
    cloudpickle.unregister_pickle_by_value(module)  # it is to be the class of this process
    try:
        await kernel.run(SAME.format(name=__name__))
        if way == "pull":
            await kernel.push(large=Large())
        async with Ticks() as ticks:
            monkeypatch.setattr(module, "waiting", [ticks])
            if way == "push":
                await kernel.push(large=Large())
            elif way == "pull":
                assert len((await kernel.pull("large")).words) == 100_000
            else:
                assert await kernel.call(len, [Large()]) == 1
    finally:
        cloudpickle.register_pickle_by_value(module)
    assert seen_in
    for thread, went_on in seen_in:
        assert thread != threading.get_ident()
        assert went_on
    await goes_on(kernel)


# A module of the same name in the kernel, with a class that only has the same attributes.
SAME = """
import sys, types
_module = sys.modules["{name}"] = types.ModuleType("{name}")
exec("class Large: pass", _module.__dict__)
"""


@pytest.mark.parametrize("what", ["words", "array"])
async def test_the_event_loop_goes_on_while_a_large_object_crosses(
    kernel: Bridge, what: str
) -> None:
    """What C code pickles and unpickles, copies and checks, leaves the loop its turns, too."""
    value = [str(i) for i in range(1_000_000)] if what == "words" else np.ones(200 * MB, np.uint8)
    for operation in (kernel.push(value=value), kernel.pull("value")):
        async with Ticks() as ticks:
            await operation
        assert ticks.count >= 10


# ================================================================ Watching

HOOKS = "[f.__qualname__ for f in get_ipython().events.callbacks['post_run_cell']]"


async def until_no_hook(bridge: Bridge) -> None:
    async with told_within(1):
        while "Watches.cell_done" in await bridge.pull(HOOKS):
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_one_value_for_each_cell_that_changed_it(
    live: Bridge, tmp_path: Path, lane: Any
) -> None:
    """Cells of somebody else, queued back to back; each value comes while the next cell runs.

    Each cell waits until the value of the one before it has arrived here.
    """
    async with Bridge.attach(file_of(live), lane=lane) as bridge, other(bridge) as somebody:
        await bridge.push(x=0)
        values = []
        async with bridge.watch("x") as watch:
            assert "x" in repr(watch)
            values.append(await anext(watch))
            assert "Watches.cell_done" in await bridge.pull(HOOKS)
            (tmp_path / "0").touch()
            cells = []
            for i in range(1, 11):
                cells.append(somebody.submit(f"y = {i}"))
                cells.append(
                    somebody.submit(
                        "import os, time\n"
                        f"while not os.path.exists('{tmp_path}/{i - 1}'): time.sleep(0.005)\n"
                        f"x = {i}"
                    )
                )
                cells.append(somebody.submit("x = x"))
            async with told_within(2):
                while values[-1] != 10:
                    values.append(await anext(watch))
                    (tmp_path / str(values[-1])).touch()
            for cell in cells:
                assert (await somebody.answer(cell))["status"] == "ok"
            with pytest.raises(TimeoutError):  # none of the cells that changed nothing tells any
                await asyncio.wait_for(anext(watch), 0.2)
        assert values == list(range(11))
        await until_no_hook(bridge)
        assert [value async for value in watch] == []
    assert set(await look(file_of(live))) == {"x", "y"}
    await goes_on(live)


async def test_whoever_is_slow_gets_the_latest(kernel: Bridge) -> None:
    await kernel.push(x=0)
    async with kernel.watch("x") as watch:
        assert await anext(watch) == 0
        for i in range(1, 21):
            await kernel.run(f"x = {i}")
        async with told_within(1):
            while (value := await anext(watch)) != 20:
                assert value == 19  # the last ones may come after the replies of their cells
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(watch), 0.2)
        await kernel.run("x = 21")
        async with told_within(1):
            assert await anext(watch) == 21
    await until_no_hook(kernel)


@pytest.mark.parametrize("lane", LANES)
async def test_a_large_value_is_watched(kernel: Bridge, lane: Any) -> None:
    """40 MB cross in pieces; if it changes meanwhile the newer one comes."""
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge:
        await kernel.run("import numpy as np\nx = np.zeros(5_000_000)")
        async with bridge.watch("x") as watch:
            assert (await anext(watch) == 0).all()
            await kernel.run("x = np.full(5_000_000, 1.0)")
            async with told_within(2):
                assert (await anext(watch) == 1).all()
            for i in range(2, 7):
                await kernel.run(f"x = np.full(5_000_000, {i}.0)")
            async with told_within(2):
                while not (value := await anext(watch)).any() or value[0] != 6:
                    assert (value == value[0]).all()
                assert (value == 6).all()
        await until_no_hook(kernel)
        assert await kernel.pull("_kept()") == [0, 0]


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("size", [1, 5_000_000])
async def test_news_that_are_outdated_while_they_are_fetched_are_passed_over(
    kernel: Bridge, lane: Any, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is slow gets the latest, and is told of no error about what came too late."""
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge:
        await kernel.run(f"import numpy as np\nx = np.zeros({size})")
        async with bridge.watch("x") as watch:
            assert (await anext(watch) == 0).all()
            used, late = bridge._foothold.lane, []
            fetch = used.rest

            async def fetch_too_late(request: Any, opened: Any) -> Any:
                if not late:
                    late.append(opened)
                    await kernel.run("x = x + 1")
                return await fetch(request, opened)

            monkeypatch.setattr(used, "rest", fetch_too_late)
            await kernel.run("x = x + 1")
            async with told_within(2):
                while not (value := await anext(watch))[0] == 2:
                    assert (value == 1).all()  # it came as a whole, with the news
            assert (value == 2).all()
            assert late
        await until_no_hook(kernel)


@pytest.mark.parametrize("end", ["death", "restart", "aclose", "bridge"])
async def test_a_watch_ends(live: Bridge, end: str) -> None:
    """With the kernel's death or restart, and with its own or its bridge's end, while awaited."""
    async with Bridge.attach(file_of(live)) as bridge:
        await bridge.push(x=1)
        watch = bridge.watch("x")
        values = []

        async def follow() -> None:
            async for value in watch:
                values.append(value)

        following = asyncio.ensure_future(follow())
        await until(lambda: values == [1])
        if end == "death":
            os.kill(live.info.pid, signal.SIGKILL)
        elif end == "restart":
            await live.restart()
        else:
            await (watch if end == "aclose" else bridge).aclose()
        async with told_within(3):
            await following
        assert values == [1]
        assert "ended" in repr(watch)
        with pytest.raises(StopAsyncIteration):
            await anext(watch)
        await watch.aclose()
        if end in ("aclose", "bridge"):
            await until_no_hook(live)
            await goes_on(live)
        if end == "restart":
            with contextlib.suppress(KernelRestarted):
                await bridge.exists("x")
            await bridge.push(x=2)
            async with bridge.watch("x") as again:
                assert await anext(again) == 2


async def test_what_is_not_there_yet_is_told_and_waited_for(kernel: Bridge) -> None:
    """NameNotFound at first, and no hook; the next wait goes on, as after any error later."""
    watch = kernel.watch("x")
    for _ in range(2):
        with pytest.raises(NameNotFound):
            await anext(watch)
    assert "Watches.cell_done" not in await kernel.pull(HOOKS)
    await kernel.push(x=[1])
    assert await anext(watch) == [1]
    ratio = kernel.watch("100 / len(x)")
    assert await anext(ratio) == 100
    await kernel.run("x = []")
    async with told_within(1):
        assert await anext(watch) == []
        with pytest.raises(RemoteError, match="ZeroDivisionError"):
            await anext(ratio)
    await kernel.run("x = [1, 2]")
    async with told_within(1):
        assert await anext(ratio) == 50
        assert await anext(watch) == [1, 2]
    await kernel.run("del x")
    async with told_within(1):
        with pytest.raises(NameNotFound):
            await anext(watch)
        with pytest.raises(RemoteError, match="NameError"):
            await anext(ratio)
    await kernel.run("x = [1, 2, 3, 4]")
    async with told_within(1):
        assert await anext(ratio) == 25
        assert await anext(watch) == [1, 2, 3, 4]
    await ratio.aclose()
    assert "Watches.cell_done" in await kernel.pull(HOOKS)
    await watch.aclose()
    await until_no_hook(kernel)


async def test_a_restart_is_told_to_the_next_call_though_a_watch_ended_before(live: Bridge) -> None:
    """Ending the watch is nothing that the user asked of the new kernel."""
    async with Bridge.attach(file_of(live)) as bridge:
        watch = bridge.watch("1 + 1")
        assert await anext(watch) == 2
        await live.restart()
        with pytest.raises(StopAsyncIteration):
            await anext(watch)
        await until(lambda: bridge.state != "restarting")
        await watch.aclose()
        await asyncio.sleep(0.5)  # in which nothing may happen
        with pytest.raises(KernelRestarted):
            await bridge.push(y=1)
        assert not await live.exists("y")
        await goes_on(bridge)


async def test_a_watch_that_is_ended_while_it_begins_leaves_no_hook(kernel: Bridge) -> None:
    """Behind a running cell: its first value may come, and nothing after it."""
    await kernel.push(x=1)
    watch = kernel.watch("x")
    async with occupied(kernel):
        first = asyncio.ensure_future(anext(watch, None))
        await asyncio.sleep(0.1)
        await watch.aclose()
    async with told_within(1):
        assert await first in (1, None)
    await until_no_hook(kernel)
    assert not kernel._transport.listeners


async def test_two_may_wait_for_the_first_value(kernel: Bridge) -> None:
    """One gets it, and the other the next one."""
    await kernel.push(x=1)
    async with kernel.watch("x") as watch:
        waiting = {asyncio.ensure_future(anext(watch)) for _ in range(2)}
        async with told_within(1):
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            assert [task.result() for task in done] == [1]
            await kernel.run("x = 2")
            assert [await task for task in waiting] == [2]
    await until_no_hook(kernel)


async def test_a_first_value_that_was_lost_comes_with_the_next_wait(
    kernel: Bridge, tmp_path: Path
) -> None:
    async with wired(kernel, tmp_path) as (bridge, wire):
        await bridge.push(x=1)
        watch = bridge.watch("x")
        wire.incoming = lambda parts: [] if kind(parts) == "execute_reply" else [parts]
        with pytest.raises(ReplyLost):
            await anext(watch)
        wire.incoming = whole
        async with told_within(1):
            assert await anext(watch) == 1
        await kernel.run("x = 2")
        async with told_within(1):
            assert await anext(watch) == 2
        await watch.aclose()
        await until_no_hook(kernel)


async def test_each_watcher_has_its_own_values(kernel: Bridge) -> None:
    """Two of one bridge and one of another; who leaves takes nobody along."""
    async with Bridge.attach(file_of(kernel), lane="inline") as second:
        await kernel.push(x=1, y="a")
        one, two, three = kernel.watch("x"), kernel.watch("y"), second.watch("x")
        assert [await anext(each) for each in (one, two, three)] == [1, "a", 1]
        await kernel.run("x = 2")
        async with told_within(1):
            assert [await anext(each) for each in (one, three)] == [2, 2]
        await one.aclose()
        await kernel.run("x = 3; y = 'b'")
        async with told_within(1):
            assert [await anext(each) for each in (two, three)] == ["b", 3]
    await kernel.run("x = 4; y = 'c'")
    async with told_within(1):
        assert await anext(two) == "c"
    await two.aclose()
    await until_no_hook(kernel)


async def test_an_iterator_that_is_forgotten_leaves_no_hook(kernel: Bridge) -> None:
    await kernel.push(x=1)
    watch = kernel.watch("x")
    assert await anext(watch) == 1
    assert "Watches.cell_done" in await kernel.pull(HOOKS)
    del watch
    gc.collect()
    await until_no_hook(kernel)
    async for value in kernel.watch("x"):
        assert value == 1
        break
    gc.collect()
    await until_no_hook(kernel)
    assert not kernel._transport.listeners


async def test_the_first_wait_may_be_cancelled(kernel: Bridge) -> None:
    """Given up behind a running cell, when it was sent already: the next wait has the value."""
    await kernel.push(x=1)
    watch = kernel.watch("x")
    async with occupied(kernel):
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(watch), 0.2)
    await kernel.run("x = 2")
    async with told_within(1):
        assert await anext(watch) == 2
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(watch), 0.2)
    await watch.aclose()
    await until_no_hook(kernel)


async def test_cancelling_a_wait_for_a_large_value_loses_nothing(kernel: Bridge) -> None:
    """Given up while its pieces cross: the next wait goes on where they are."""
    with seeded() as chance:
        await kernel.run("import numpy as np\nx = np.zeros(10_000_000)")
        async with kernel.watch("x") as watch:
            assert (await anext(watch))[0] == 0
            for i in range(1, 6):
                await kernel.run(f"x = np.full(10_000_000, {i}.0)")
                async with told_within(2):
                    while True:
                        with contextlib.suppress(TimeoutError):
                            async with asyncio.timeout(chance.uniform(0, 0.1)):
                                assert (await anext(watch) == i).all()
                                break
    await until_no_hook(kernel)
    assert await kernel.pull("_kept()") == [0, 0]


async def test_cancelling_a_wait_loses_no_value(kernel: Bridge) -> None:
    """Given up again and again, also while a value is unpickled in a thread: each one comes."""
    with seeded() as chance:
        await kernel.run("x = [0] * 300_000")
        async with kernel.watch("x") as watch:
            assert (await anext(watch))[0] == 0
            for i in range(1, 31):
                await kernel.run(f"x = [{i}] * 300_000")
                async with told_within(1):
                    while True:
                        with contextlib.suppress(TimeoutError):
                            async with asyncio.timeout(chance.uniform(0, 0.03)):
                                assert (await anext(watch))[0] == i
                                break
                        await asyncio.sleep(0)
    await until_no_hook(kernel)
