"""Large objects: memory, progress, limits, and a responsive event loop.

Rule: tests use real kernels and the public API. They read private state only to check that nothing
is left behind. A random test reports its seed when it fails. No test measures speed: it counts the
work that must continue, and waits for the results that must come.
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

# A kernel can't import test modules, so what they define is pickled by value, as in a script.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
async def harmless() -> AsyncIterator[Bridge]:
    """One kernel for all tests that restore its state; ``_kept()`` counts its open transfers."""
    async with Bridge.launch() as bridge:
        await bridge.run(KEPT)
        yield bridge


MB = 1 << 20


def patterned(nbytes: int) -> np.ndarray[Any, Any]:
    """Return an array without two equal blocks."""
    array = np.empty(nbytes, np.uint8)
    block = np.random.default_rng(5).integers(0, 256, MB, np.uint8)
    for number, start in enumerate(range(0, nbytes, MB)):
        array[start : start + MB] = block[: nbytes - start]
        array[start : start + 8] = np.frombuffer(number.to_bytes(8, "little"), np.uint8)
    return array


def check_sum(array: Any) -> int:
    return zlib.crc32(memoryview(array))


def status(pid: int, field: str) -> int:
    """Return a field of ``/proc/<pid>/status`` in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    raise AssertionError(field)


class Peaks:
    """Peak memory of both processes since ``reset``, minus what they had then."""

    def __init__(self, bridge: Bridge) -> None:
        self.pids = {"client": os.getpid(), "kernel": bridge.info.pid}

    def reset(self) -> None:
        gc.collect()
        for pid in self.pids.values():
            Path(f"/proc/{pid}/clear_refs").write_text("5")
        self.before = {side: status(pid, "VmRSS") for side, pid in self.pids.items()}

    def beyond(self) -> dict[str, int]:
        return {side: status(pid, "VmHWM") - self.before[side] for side, pid in self.pids.items()}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no /proc of Linux")
@pytest.mark.slow
async def test_a_transfer_takes_its_own_size_of_memory() -> None:
    """Push and pull 1 GB: each process takes that much memory, and at most 100 MB more."""
    size = 1 << 30
    async with Bridge.launch() as bridge:
        array = patterned(size)
        expected = check_sum(array)
        # Includes all that is imported, mapped or allocated on first use.
        await bridge.push(warm=np.zeros(64 * MB, np.uint8))
        await bridge.pull("warm")
        await bridge.delete("warm")
        peaks = Peaks(bridge)
        peaks.reset()
        await bridge.push(array=array)
        pushed = peaks.beyond()
        assert pushed["client"] <= 100 * MB  # the array itself existed before
        assert pushed["kernel"] <= size + 100 * MB
        del array
        peaks.reset()
        back = await bridge.pull("array")
        pulled = peaks.beyond()
        assert pulled["client"] <= size + 100 * MB
        assert pulled["kernel"] <= size + 100 * MB
        assert check_sum(back) == expected
        del back
        assert await bridge.call(check_sum, bridge.ref("array")) == expected


SIZES: dict[str, int] = {"direct": 100 * MB, "buffers": 100 * MB, "inline": 20 * MB}


@pytest.mark.parametrize("lane", LANES)
async def test_progress_grows_to_the_end(kernel: Bridge, lane: Any) -> None:
    """Progress reports bytes done and in total, in both directions, to the end."""
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge:
        for size in (1, SIZES[lane]):
            for way in ("push", "pull"):
                seen: list[tuple[int, int]] = []

                def record(done: int, total: int, seen: Any = seen) -> None:
                    seen.append((done, total))

                if way == "push":
                    transfer = await bridge.push(array=np.ones(size, np.uint8), progress=record)
                    assert seen[-1] == (transfer.bytes, transfer.bytes)
                else:
                    assert (await bridge.pull("array", progress=record)).nbytes == size
                total = seen[-1][1]
                assert seen[-1] == (total, total)
                assert size < total < size + 1000
                assert {pair[1] for pair in seen} == {total}
                done = [pair[0] for pair in seen]
                assert done == sorted(done)
                assert done[0] > 0
                at_once = size == 1 or (lane == "direct" and way == "pull")
                assert len(set(done)) >= (1 if at_once else 2)  # chunks may arrive together


@pytest.mark.parametrize("lane", LANES)
async def test_progress_of_an_expression_with_await(kernel: Bridge, lane: Any) -> None:
    """Progress reports the bytes that arrived, and an error of the callable ends the transfer."""
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge:
        await bridge.run("import asyncio\nasync def ones(n): return bytes(n)")
        seen: list[tuple[int, int]] = []
        for size in (1, 40 * MB):
            seen.clear()
            value = await bridge.pull(
                f"await ones({size})", progress=lambda done, total: seen.append((done, total))
            )
            assert len(value) == size
            done, totals = [pair[0] for pair in seen], {pair[1] for pair in seen}
            assert size < max(totals) < size + 1000
            assert len(totals) == 1
            assert seen[-1] == (max(totals), max(totals))
            assert done == sorted(done)
            assert len(set(done)) >= (1 if size == 1 else 2)

        def enough(done: int, total: int) -> None:
            raise Enough

        with pytest.raises(Enough):
            await bridge.pull(f"await ones({size})", progress=enough)
        # The request that ends it in the kernel is not waited for.
        while await bridge.pull("_kept()") != [0, 0]:
            await asyncio.sleep(0.01)
        await goes_on(bridge)


class Enough(Exception):
    """The error that a progress callable raises."""


@pytest.mark.parametrize("lane", LANES)
async def test_an_error_in_a_progress_callable_ends_the_transfer(kernel: Bridge, lane: Any) -> None:
    """The call raises the error, binds no name, and leaves nothing in the kernel."""
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
async def test_a_progress_callable_that_cancels_ends_its_own_call_only(
    kernel: Bridge, lane: Any
) -> None:
    """A CancelledError in the callable cancels its call; the call behind it still works."""
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge:

        def cancelled(done: int, total: int) -> None:
            raise asyncio.CancelledError

        blob = np.ones(SIZES[lane], np.uint8)
        outcomes = await all_of(bridge.push(blob=blob, progress=cancelled), bridge.push(x=1))
        assert isinstance(outcomes[0], asyncio.CancelledError)
        assert outcomes[1].names == ("x",)
        assert await look(file_of(kernel)) == {"x": "1"}
        await goes_on(bridge)


# In another process, because one that ran other tests allocates and frees memory at any time.
TIMED_OUT = """
import asyncio
import ctypes
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
        ctypes.CDLL(None).malloc_trim(0)  # what is free in the allocator is kept by no push
        print(process.memory_info().rss - before)
        await bridge.interrupt()
        try:
            await cell
        except RemoteError as error:
            assert "KeyboardInterrupt" in str(error), error


asyncio.run(main())
"""


@pytest.mark.slow
async def test_pushes_that_time_out_behind_a_cell_keep_no_memory(live: Bridge) -> None:
    """The bytes of a push that times out are freed while the cell still runs."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", TIMED_OUT, file_of(live)), stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await process.communicate()
    assert process.returncode == 0
    assert int(printed) < 150 * MB  # of 400
    await goes_on(live)


@pytest.fixture
async def messages(kernel: Bridge) -> AsyncIterator[Bridge]:
    """Open a bridge that sends frames in messages, where the test can count them."""
    async with Bridge.attach(file_of(kernel), lane="buffers") as bridge:
        yield bridge


async def test_more_than_max_bytes_is_refused_with_its_size_and_not_sent(
    messages: Bridge, sent: Sent
) -> None:
    """In both directions; exactly ``max_bytes`` is allowed."""
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
@pytest.mark.slow
async def test_cancelling_half_way_frees_memory_in_both_processes(way: str) -> None:
    """Cancel 400 MB when half has crossed: neither process keeps any of it."""
    # A pull through shared memory arrives at once, so it can't be cancelled half-way.
    async with Bridge.launch(lane="auto" if way == "push" else "buffers") as bridge:
        await bridge.run(KEPT)
        array = np.ones(400 * MB, np.uint8)
        await bridge.push(array=array[: 64 * MB])  # memory that grows on first use
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

        await until(freed, 120)
        await goes_on(bridge)


class Ticks:
    """A counter of steps of the event loop; a thread can wait for 20 of them."""

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
        """Block this thread until the loop made 20 steps. In the loop's thread, return False."""
        return self._many.wait(20)


seen_in: list[tuple[int, bool]] = []  # thread, and whether the loop continued
waiting: list[Ticks] = []


class Large:
    """A 1 MB object that waits for the event loop while this process pickles or unpickles it."""

    def __init__(self) -> None:
        self.words = [str(i) for i in range(100_000)]

    def __getstate__(self) -> Any:
        note()
        return self.__dict__

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state)
        note()


def note() -> None:
    if waiting:  # in this process, not in the kernel
        seen_in.append((threading.get_ident(), waiting[0].wait()))


@pytest.mark.parametrize("way", ["push", "pull", "call"])
async def test_a_large_object_is_pickled_beside_the_event_loop(
    kernel: Bridge, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The object's own code runs in another thread, and the event loop continues."""
    module = sys.modules[__name__]
    monkeypatch.setattr(module, "seen_in", [])
    cloudpickle.unregister_pickle_by_value(module)  # use the class of this process
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
    for thread, continued in seen_in:
        assert thread != threading.get_ident()
        assert continued
    await goes_on(kernel)


# A module of the same name in the kernel, with its packages and an empty class of the same name.
SAME = """
import importlib.machinery, sys, types
_parts = "{name}".split(".")
for _end in range(1, len(_parts) + 1):
    _name = ".".join(_parts[:_end])
    _module = sys.modules[_name] = types.ModuleType(_name)
    # As if it was imported; else its class would cross by value.
    _module.__spec__ = importlib.machinery.ModuleSpec(_name, None, origin="a file")
exec("class Large: pass", _module.__dict__)
"""


@pytest.mark.parametrize("what", ["words", "array"])
@pytest.mark.slow
async def test_the_event_loop_continues_while_a_large_object_crosses(
    kernel: Bridge, what: str
) -> None:
    """C code that pickles, unpickles, copies and checks does not block the event loop."""
    value = [str(i) for i in range(1_000_000)] if what == "words" else np.ones(200 * MB, np.uint8)
    for operation in (kernel.push(value=value), kernel.pull("value")):
        async with Ticks() as ticks:
            await operation
        assert ticks.count >= 10
