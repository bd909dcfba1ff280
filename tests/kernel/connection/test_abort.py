"""Rows D1 and D2 of the catalogue of faults: cells that fail abort what is queued behind them.

Rule: one test a row of the catalogue, its docstring opening with the row's number. A test asserts
how soon the caller is told, what the namespace holds afterwards (looked at by a client that knows
nothing of bridges), and that the next operation on the same bridge is right. The injection is the
real fault.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest

from bridgehead import Bridge, RemoteError, RequestAborted
from support.elsewhere import MAJORS
from support.faults import RaisesInKernel
from support.kit import all_of, at_work, file_of, goes_on, other, reported_within, until
from support.look import look

# Test modules aren't importable in a kernel; what they define is shipped like a script's own.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_abort_queue_of_anothers_failing_cell(kernel_name: str) -> None:
    """D1. Somebody's cell fails with our requests queued behind it: all of them take effect."""
    async with Bridge.launch(kernel_name) as bridge, other(bridge) as somebody:
        for number in range(3):
            failing = somebody.submit("import time; time.sleep(0.5); 1/0")
            victim = somebody.submit("1")
            await until(lambda: at_work(bridge))
            async with reported_within(2):
                *_, pulled = await asyncio.gather(
                    *(bridge.push({f"x{i}": number}) for i in range(20)),
                    bridge.run(f"ran = {number}"),
                    bridge.pull(f"{number} + 1"),
                )
            assert pulled == number + 1
            assert (await somebody.answer(failing))["ename"] == "ZeroDivisionError"
            assert (await somebody.answer(victim))["status"] == "aborted"
            there = await look(file_of(bridge))
            assert there.pop("ran") == str(number)
            assert there == {f"x{i}": str(number) for i in range(20)}
            await goes_on(bridge)


async def test_what_is_always_aborted_is_told_as_not_executed() -> None:
    """D1. Failing cells that never end: told as not executed, after seven tries."""
    async with Bridge.launch(lane="buffers") as bridge, other(bridge) as somebody:
        kernel = "get_ipython().kernel"
        assert (await somebody.execute(f"{kernel}._aborting = True"))["status"] == "ok"
        async with reported_within(1.5):
            with pytest.raises(RequestAborted, match="it was not executed"):
                await bridge.push(x=1)
        # What ends the aborting, a message to the kernel itself, is sent by a failing cell.
        await bridge.restart()
        assert await look(file_of(bridge)) == {}
        await goes_on(bridge)


@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_own_failure_aborts_nobody(kernel_name: str) -> None:
    """D2. Our push, pull, call and cell fail with somebody's cells queued behind them."""
    async with Bridge.launch(kernel_name) as bridge, other(bridge) as somebody:
        fails: list[Callable[[], Any]] = [
            lambda: bridge.push(x=RaisesInKernel()),
            lambda: bridge.pull("1/0"),
            lambda: bridge.call(lambda: 1 / 0),
            lambda: bridge.run("1/0"),
        ]
        for number, fail in enumerate(fails):
            busy = somebody.submit("import time; time.sleep(0.4)")
            await until(lambda: at_work(bridge))
            failing = asyncio.create_task(fail())
            await asyncio.sleep(0.1)
            behind = [somebody.submit(f"y{number} = {i}") for i in range(3)]
            async with reported_within(1):
                (outcome,) = await all_of(failing)
                assert isinstance(outcome, RemoteError)
                for request in (busy, *behind):
                    assert (await somebody.answer(request))["status"] == "ok"
            await goes_on(bridge)
        assert await look(file_of(bridge)) == {f"y{number}": "2" for number in range(4)}
