"""Large objects: memory, progress, limits, and an event loop that goes on.

Rule: on real kernels, through the public surface; what is looked inside for is only what must
not be left there. What is random says its seed when it fails. Nothing is timed: what must go
on meanwhile is counted, and what must come is waited for.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from bridgehead import Bridge, PayloadTooLarge
from support.kit import KEPT, LANES, all_of, file_of, goes_on, until
from support.look import look
from support.promises import Sent

# Test modules aren't importable in a kernel; what they define is shipped like a script's own.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
async def harmless() -> AsyncIterator[Bridge]:
    """One kernel for all that leaves it as it was; it can tell what its loader keeps."""
    async with Bridge.launch() as bridge:
        await bridge.run(KEPT)
        yield bridge


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
        await until(lambda: not bridge._transport.dispatcher.in_flight)
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
                assert "the request was not sent" in str(error), error
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
    received = kernel._transport.dispatcher.received

    def counted(channel: str, message: Any) -> None:
        nonlocal arrived
        arrived += sum(memoryview(buffer).nbytes for buffer in message["buffers"])
        received(channel, message)

    kernel._transport.dispatcher.received = counted  # type: ignore[method-assign]
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
        del kernel._transport.dispatcher.received
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
