"""Rows C of the catalogue of faults: interrupts and atomicity.

Rule: each test covers a row of the catalogue; its docstring starts with the row's number. A test
asserts how soon the call ends, what the namespace contains afterwards (as seen by a client without
bridgehead), and that the next operation on the same bridge works. Each test injects the real fault.
"""

from __future__ import annotations

import asyncio
import math
import pickle
import random
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import cloudpickle
import pytest

from bridgehead import Bridge, RemoteError, ReplyLost
from support.elsewhere import MAJORS
from support.faults import BIG, RaisesInKernel
from support.kit import (
    MESSAGES,
    all_of,
    at_work,
    file_of,
    goes_on,
    other,
    reported_within,
    sigint,
    stopped,
    until,
)
from support.look import look

# A kernel can't import test modules, so what they define is pickled by value, as in a script.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


async def interrupted_at_random(
    bridge: Bridge, operation: Callable[[int], Any]
) -> AsyncIterator[tuple[int, Any]]:
    """Start an operation, send SIGINT at a random moment, and yield the outcome.

    Repeat ten times, and until three operations were interrupted: some moments have no effect.
    Each SIGINT comes after the request was sent, because before that nothing runs in the kernel.
    """

    async def sent(number: int) -> asyncio.Task[Any]:
        task = asyncio.create_task(operation(number))
        while not (task.done() or bridge._transport.dispatcher.in_flight):
            await asyncio.sleep(0)
        return task

    usual = math.inf
    for _ in range(2):  # the first call is slow
        task, started = await sent(0), time.perf_counter()
        await task
        usual = min(usual, time.perf_counter() - started)
    interrupted = number = 0
    while number < 10 or interrupted < 3:
        number += 1
        assert number < 100, "no interrupt reached the kernel, so the test proves nothing"
        task, started = await sent(number), time.perf_counter()
        await asyncio.sleep(random.uniform(0, 1.2 * usual))
        sigint(bridge)
        async with reported_within(1):
            (outcome,) = await all_of(task)
        if was_interrupted(outcome):
            interrupted += 1
        else:  # on a loaded machine, an operation may take far longer than the first ones
            usual = time.perf_counter() - started
        yield number, outcome
        await goes_on(bridge)


def was_interrupted(outcome: Any) -> bool:
    """Whether an operation reports an interrupt; any other error fails the test."""
    if not isinstance(outcome, BaseException):
        return False
    assert isinstance(outcome, (RemoteError, ReplyLost)), outcome
    assert not isinstance(outcome, RemoteError) or outcome.ename == "KeyboardInterrupt"
    return True


@pytest.mark.parametrize("lane", MESSAGES)
@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
@pytest.mark.slow
async def test_an_interrupt_during_a_large_push_is_reported(kernel_name: str, lane: Any) -> None:
    """C1. SIGINT at random moments of a large push: reported at once; all names or none."""
    async with Bridge.launch(kernel_name, lane=lane) as bridge:

        async def push(number: int) -> None:
            # An out-of-band buffer without numpy, which a kernel may lack. Arrives as a memoryview.
            blob = pickle.PickleBuffer(bytes([number]) * BIG[lane])
            await bridge.push(blob=blob, number=number, note={"of": number})

        held = 0
        async for number, outcome in interrupted_at_random(bridge, push):
            namespace = await look(file_of(bridge))
            assert sorted(namespace) == ["blob", "note", "number"]
            assert namespace["number"] in (str(held), str(number))
            assert isinstance(outcome, BaseException) or namespace["number"] == str(number)
            held = int(namespace["number"])
            assert namespace["note"] == repr({"of": held})
            assert await bridge.pull("blob.nbytes, set(blob[::512])") == (BIG[lane], {held})


@pytest.mark.parametrize("lane", MESSAGES)
@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
@pytest.mark.slow
async def test_an_interrupt_during_a_large_pull_is_reported(kernel_name: str, lane: Any) -> None:
    """C2. SIGINT at random moments of a large pull: reported, and nothing changed."""
    async with Bridge.launch(kernel_name, lane=lane) as bridge:
        half = BIG[lane] // 2
        await bridge.run(f"big = [list(range(2_000_000)), bytes({half}), bytes({half})]")
        before = await look(file_of(bridge))
        right = await bridge.pull("big")
        async for _, outcome in interrupted_at_random(bridge, lambda number: bridge.pull("big")):
            assert isinstance(outcome, BaseException) or outcome == right
        assert await look(file_of(bridge)) == before


@pytest.mark.parametrize("at", [0, 1, 2])
async def test_a_failed_push_leaves_the_namespace_unchanged(kernel: Bridge, at: int) -> None:
    """C3, G2. One object of several raises in its ``__setstate__``: no name is bound."""
    await kernel.push(a="before", b="before", c="before")
    before = await look(file_of(kernel))
    values: dict[str, Any] = {"a": 1, "b": 2, "c": 3, "new": 4}
    values[list(values)[at]] = RaisesInKernel()
    async with reported_within(0.5):
        with pytest.raises(RemoteError, match="RuntimeError: not in this kernel") as caught:
            await kernel.push(values)
    assert any("__setstate__" in line for line in caught.value.traceback)
    assert await look(file_of(kernel)) == before
    await goes_on(kernel)


@pytest.mark.slow
async def test_an_interrupt_of_a_push_of_many_names_binds_all_or_none() -> None:
    """C3. SIGINT at random moments of a push of 5,000 names: all are bound or none."""
    async with Bridge.launch(lane="buffers") as bridge:
        names = [f"x{i}" for i in range(5000)]

        async def push(number: int) -> None:
            await bridge.push(dict.fromkeys(names, number))

        held = "0"
        async for number, outcome in interrupted_at_random(bridge, push):
            namespace = await look(file_of(bridge))
            assert sorted(namespace) == sorted(names)
            assert len(set(namespace.values())) == 1
            assert namespace["x0"] in (held, str(number))
            assert isinstance(outcome, BaseException) or namespace["x0"] == str(number)
            held = namespace["x0"]


async def test_an_interrupt_before_a_push_does_not_affect_it(kernel: Bridge) -> None:
    """C4. SIGINT reaches an idle kernel, 40 times: the push after it works."""
    async with other(kernel) as other_client:
        for number in range(40):
            # After this reply and "idle", the kernel has left its handler of the last SIGINT.
            await other_client.client.execute_interactive("", silent=True, timeout=30)
            sigint(kernel)
            async with reported_within(0.1):
                await kernel.push(x=number)
    assert await look(file_of(kernel)) == {"x": "39"}
    await goes_on(kernel)


async def test_an_interrupt_ends_the_cell_and_not_the_push_beside_it() -> None:
    """C5. SIGINT while a cell and a push with ``now=True`` run: only the cell ends."""
    async with Bridge.launch() as bridge:
        cell = asyncio.create_task(bridge.run("import time; time.sleep(60)"))
        await until(lambda: at_work(bridge))
        push = asyncio.create_task(bridge.push(x=SlowInKernel(), now=True))
        await asyncio.sleep(0.4)
        sigint(bridge)
        async with reported_within(1):
            cell_outcome, push_outcome = await all_of(cell, push)
        assert isinstance(cell_outcome, RemoteError)
        assert cell_outcome.ename == "KeyboardInterrupt"
        assert not isinstance(push_outcome, BaseException), push_outcome
        assert list(await look(file_of(bridge))) == ["x"]
        await goes_on(bridge)


class SlowInKernel:
    def __reduce__(self) -> Any:
        return slowly, ()


def slowly() -> str:
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        time.sleep(0.01)
    return "unpickled to its end"


async def test_interrupts_of_a_stopped_kernel_keep_the_direct_lane() -> None:
    """The second interrupt found the first one's request at work on the lane, and gave it up."""
    async with Bridge.launch() as bridge:
        lane = bridge._connection.remote.lane
        with stopped(bridge):
            for _ in range(3):
                await bridge.interrupt()
                await asyncio.sleep(0.01)  # a task of the bridge sends a request meanwhile
        await goes_on(bridge)
        assert bridge._connection.remote.lane is lane


# Signals at chosen places outside the user's code: where ipykernel reads a cell, while it logs that
# an interrupt came there, and in the hooks around a request.
TWICE = """
import os, signal
from IPython import get_ipython
def read(lines):
    get_ipython().input_transformers_cleanup.remove(read)
    get_ipython().kernel.log.addFilter(log)
    os.kill(os.getpid(), signal.SIGINT)
    return lines
def log(record):
    get_ipython().kernel.log.removeFilter(log)
    os.kill(os.getpid(), signal.SIGINT)
    return True
"""
BEHIND = """
import os, signal
from IPython import get_ipython
def end(original=get_ipython().kernel.post_handler_hook):
    del get_ipython().kernel.post_handler_hook
    os.kill(os.getpid(), signal.SIGINT)
    original()
"""
BEFORE = """
import os, signal
from IPython import get_ipython
def begin(original=get_ipython().kernel.pre_handler_hook):
    get_ipython().kernel.pre_handler_hook = original
    original()
    os.kill(os.getpid(), signal.SIGINT)
"""
AT = {
    "before": (BEFORE, "get_ipython().kernel.pre_handler_hook = begin"),
    "twice": (TWICE, "get_ipython().input_transformers_cleanup.append(read)"),
    "behind": (BEHIND, "get_ipython().kernel.post_handler_hook = end"),
}


async def later(value: int) -> int:
    await asyncio.sleep(0)
    return value


@pytest.mark.parametrize("at", AT)
@pytest.mark.parametrize("lane", ["direct", "buffers"])
@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_no_number_of_interrupts_ends_the_kernel(live: Bridge, lane: Any, at: str) -> None:
    """C9. ipykernel catches an interrupt outside the user's code; a second one ended the kernel."""
    defined, armed = AT[at]
    async with Bridge.attach(file_of(live), lane=lane) as bridge:
        await bridge.run(defined)
        works: list[Callable[[], Any]] = [
            lambda: bridge.run("x = 1"),
            lambda: bridge.call(abs, -1),
            lambda: bridge.call(later, 1),
            lambda: bridge.submit(abs, -1),
            lambda: anext(bridge.iterate("range(3)")),
        ]
        for work in works:
            await bridge.run(armed)  # the request of the work is the next one
            (outcome,) = await asyncio.gather(work(), return_exceptions=True)
            assert not isinstance(outcome, BaseException) or was_interrupted(outcome)
            await goes_on(bridge)
    await goes_on(live)


async def test_a_replaced_value_whose_finalizer_raises_stops_no_push(kernel: Bridge) -> None:
    """C7. ``__del__`` and a weakref callback of the old value raise; the new value is bound."""
    await kernel.run(
        "import weakref\n"
        "class Evil:\n"
        "    def __del__(self): raise RuntimeError\n"
        "x = Evil(); ref = weakref.ref(x, lambda ref: 1 / 0)"
    )
    async with reported_within(0.5):
        await kernel.push(x=1, y=2)
    namespace = await look(file_of(kernel))
    assert (namespace["x"], namespace["y"]) == ("1", "2")
    await goes_on(kernel)
