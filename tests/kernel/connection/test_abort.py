"""Rows D1 and D2 of the catalogue of faults: a failing cell aborts the requests behind it.

Rule: each test covers a row of the catalogue; its docstring starts with the row's number. A test
asserts how soon the call ends, what the namespace contains afterwards (as seen by a client without
bridgehead), and that the next operation on the same bridge works. Each test injects the real fault.
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

# A kernel can't import test modules, so what they define is pickled by value, as in a script.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_requests_behind_another_clients_failing_cell_take_effect(kernel_name: str) -> None:
    """D1. Another client's cell fails while our requests wait behind it: all take effect."""
    async with Bridge.launch(kernel_name) as bridge, other(bridge) as other_client:
        for number in range(3):
            failing = other_client.submit("import time; time.sleep(0.5); 1/0")
            behind = other_client.submit("1")
            await until(lambda: at_work(bridge))
            async with reported_within(2):
                *_, pulled = await asyncio.gather(
                    *(bridge.push({f"x{i}": number}) for i in range(20)),
                    bridge.run(f"ran = {number}"),
                    bridge.pull(f"{number} + 1"),
                )
            assert pulled == number + 1
            assert (await other_client.answer(failing))["ename"] == "ZeroDivisionError"
            assert (await other_client.answer(behind))["status"] == "aborted"
            namespace = await look(file_of(bridge))
            assert namespace.pop("ran") == str(number)
            assert namespace == {f"x{i}": str(number) for i in range(20)}
            await goes_on(bridge)


async def test_a_request_that_is_always_aborted_raises_request_aborted() -> None:
    """D1. The kernel aborts every request: after seven attempts, push raises RequestAborted."""
    async with Bridge.launch(lane="buffers") as bridge, other(bridge) as other_client:
        kernel = "get_ipython().kernel"
        assert (await other_client.execute(f"{kernel}._aborting = True"))["status"] == "ok"
        async with reported_within(1.5):
            with pytest.raises(RequestAborted, match="it was not executed"):
                await bridge.push(x=1)
        assert bridge.stats.retries == 6
        # Only a failing cell sends the message that ends the aborting. None failed, so restart.
        await bridge.restart()
        assert await look(file_of(bridge)) == {}
        await goes_on(bridge)


@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_our_failing_request_aborts_no_other_request(kernel_name: str) -> None:
    """D2. Our push, pull, call and cell fail; the cells of another client behind them run."""
    async with Bridge.launch(kernel_name) as bridge, other(bridge) as other_client:
        failing_operations: list[Callable[[], Any]] = [
            lambda: bridge.push(x=RaisesInKernel()),
            lambda: bridge.pull("1/0"),
            lambda: bridge.call(lambda: 1 / 0),
            lambda: bridge.run("1/0"),
        ]
        for number, operation in enumerate(failing_operations):
            busy = other_client.submit("import time; time.sleep(0.4)")
            await until(lambda: at_work(bridge))
            failing = asyncio.create_task(operation())
            await asyncio.sleep(0.1)
            behind = [other_client.submit(f"y{number} = {i}") for i in range(3)]
            async with reported_within(1):
                (outcome,) = await all_of(failing)
                assert isinstance(outcome, RemoteError)
                for request in (busy, *behind):
                    assert (await other_client.answer(request))["status"] == "ok"
            await goes_on(bridge)
        assert await look(file_of(bridge)) == {f"y{number}": "2" for number in range(4)}
