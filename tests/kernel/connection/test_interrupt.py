"""Rows C of the catalogue of faults: interrupts and atomicity.

Rule: one test a row of the catalogue, its docstring opening with the row's number. A test asserts
how soon the caller is told, what the namespace holds afterwards (looked at by a client that knows
nothing of bridges), and that the next operation on the same bridge is right. The injection is the
real fault.
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
    until,
)
from support.look import look

# Test modules aren't importable in a kernel; what they define is shipped like a script's own.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


async def struck_at_random(
    bridge: Bridge, operation: Callable[[int], Any]
) -> AsyncIterator[tuple[int, Any]]:
    """Start an operation and send SIGINT at a random moment of it; gives what came of it.

    Ten times, and on until three were struck: not every moment is one that an interrupt reaches.
    The moments are of the time after something was sent: before, there is nothing to strike.
    """

    async def sent(number: int) -> asyncio.Task[Any]:
        task = asyncio.create_task(operation(number))
        while not (task.done() or bridge._transport.dispatcher.in_flight):
            await asyncio.sleep(0)
        return task

    usual = math.inf
    for _ in range(2):  # the first one is slow
        task, started = await sent(0), time.perf_counter()
        await task
        usual = min(usual, time.perf_counter() - started)
    struck = number = 0
    while number < 10 or struck < 3:
        number += 1
        assert number < 100, "no interrupt reached the kernel; nothing is proven"
        task = await sent(number)
        await asyncio.sleep(random.uniform(0, 1.2 * usual))
        sigint(bridge)
        async with reported_within(1):
            (outcome,) = await all_of(task)
        struck += told_of_interrupt(outcome)
        yield number, outcome
        await goes_on(bridge)


def told_of_interrupt(outcome: Any) -> bool:
    """Whether an operation says that a SIGINT struck; nothing else may have gone wrong."""
    if not isinstance(outcome, BaseException):
        return False
    assert isinstance(outcome, (RemoteError, ReplyLost)), outcome
    assert not isinstance(outcome, RemoteError) or outcome.ename == "KeyboardInterrupt"
    return True


@pytest.mark.parametrize("lane", MESSAGES)
@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_interrupt_during_a_big_push_is_told(kernel_name: str, lane: Any) -> None:
    """C1. SIGINT at random moments of a big push: told at once, and all or none is there."""
    async with Bridge.launch(kernel_name, lane=lane) as bridge:

        async def push(number: int) -> None:
            # Out of band without numpy, which a kernel need not have; arrives as a memoryview.
            blob = pickle.PickleBuffer(bytes([number]) * BIG[lane])
            await bridge.push(blob=blob, number=number, note={"of": number})

        held = 0
        async for number, outcome in struck_at_random(bridge, push):
            there = await look(file_of(bridge))
            assert sorted(there) == ["blob", "note", "number"]
            assert there["number"] in (str(held), str(number))
            assert isinstance(outcome, BaseException) or there["number"] == str(number)
            held = int(there["number"])
            assert there["note"] == repr({"of": held})
            assert await bridge.pull("blob.nbytes, set(blob[::512])") == (BIG[lane], {held})


@pytest.mark.parametrize("lane", MESSAGES)
@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_interrupt_during_a_big_pull_is_told(kernel_name: str, lane: Any) -> None:
    """C2. SIGINT at random moments while 40 MB are pickled and sent: told, nothing changed."""
    async with Bridge.launch(kernel_name, lane=lane) as bridge:
        await bridge.run("big = [list(range(300_000)), bytes(20_000_000), bytes(20_000_000)]")
        before = await look(file_of(bridge))
        right = await bridge.pull("big")
        async for _, outcome in struck_at_random(bridge, lambda number: bridge.pull("big")):
            assert isinstance(outcome, BaseException) or outcome == right
        assert await look(file_of(bridge)) == before


@pytest.mark.parametrize("at", [0, 1, 2])
async def test_failed_push_leaves_the_namespace_as_it_was(kernel: Bridge, at: int) -> None:
    """C3, G2. One object of several raises in its ``__setstate__``: not one name is set."""
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


async def test_interrupt_while_many_names_are_set_sets_all_or_none() -> None:
    """C3. SIGINT at random moments of a push of 5,000 names: all of one push, never part."""
    async with Bridge.launch(lane="buffers") as bridge:
        names = [f"x{i}" for i in range(5000)]

        async def push(number: int) -> None:
            await bridge.push(dict.fromkeys(names, number))

        held = "0"
        async for number, outcome in struck_at_random(bridge, push):
            there = await look(file_of(bridge))
            assert sorted(there) == sorted(names)
            assert len(set(there.values())) == 1
            assert there["x0"] in (held, str(number))
            assert isinstance(outcome, BaseException) or there["x0"] == str(number)
            held = there["x0"]


async def test_interrupt_right_before_a_push_does_not_reach_it(kernel: Bridge) -> None:
    """C4. SIGINT strikes an idle kernel, 40 times: the push that follows is not affected."""
    async with other(kernel) as somebody:
        for number in range(40):
            # Once its reply and its idle are here, the kernel has left the handler of the last.
            await somebody.client.execute_interactive("", silent=True, timeout=30)
            sigint(kernel)
            async with reported_within(0.1):
                await kernel.push(x=number)
    assert await look(file_of(kernel)) == {"x": "39"}
    await goes_on(kernel)


async def test_interrupt_of_the_main_thread_does_not_reach_a_push_beside_it() -> None:
    """C5. A push in the middle of a running cell, and a SIGINT: the cell has it, the push not."""
    async with Bridge.launch() as bridge:
        cell = asyncio.create_task(bridge.run("import time; time.sleep(60)"))
        await until(lambda: at_work(bridge))
        push = asyncio.create_task(bridge.push(x=SlowThere(), now=True))
        await asyncio.sleep(0.4)
        sigint(bridge)
        async with reported_within(1):
            cell_outcome, push_outcome = await all_of(cell, push)
        assert isinstance(cell_outcome, RemoteError)
        assert cell_outcome.ename == "KeyboardInterrupt"
        assert not isinstance(push_outcome, BaseException), push_outcome
        assert list(await look(file_of(bridge))) == ["x"]
        await goes_on(bridge)


class SlowThere:
    def __reduce__(self) -> Any:
        return slowly, ()


def slowly() -> str:
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        time.sleep(0.01)
    return "unpickled to its end"


async def test_a_replaced_value_that_raises_when_it_goes_stops_no_push(kernel: Bridge) -> None:
    """C7. ``__del__`` and a weakref's callback of the old value raise; the new one is bound."""
    await kernel.run(
        "import weakref\n"
        "class Evil:\n"
        "    def __del__(self): raise RuntimeError\n"
        "x = Evil(); ref = weakref.ref(x, lambda ref: 1 / 0)"
    )
    async with reported_within(0.5):
        await kernel.push(x=1, y=2)
    there = await look(file_of(kernel))
    assert (there["x"], there["y"]) == ("1", "2")
    await goes_on(kernel)
