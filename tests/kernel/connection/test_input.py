"""Row B8 of the catalogue of faults: a cell that waits for input.

Rule: each test covers a row of the catalogue; its docstring starts with the row's number. A test
asserts how soon the call ends, what the namespace contains afterwards (as seen by a client without
bridgehead), and that the next operation on the same bridge works. Each test injects the real fault.
"""

from __future__ import annotations

import sys

import cloudpickle
import pytest

from bridgehead import Bridge
from support.kit import file_of, goes_on, other, reported_within
from support.look import look

# A kernel can't import test modules, so what they define is pickled by value, as in a script.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


async def test_calls_behind_a_cell_that_waits_for_input_time_out(kernel: Bridge) -> None:
    """B8. Another client's cell waits for input: a call behind it times out at its deadline."""
    async with other(kernel) as other_client:
        cell = other_client.submit("line = input()", allow_stdin=True)
        async with reported_within(1):
            request = await other_client.client.get_stdin_msg(timeout=10)
        assert request["msg_type"] == "input_request"
        async with reported_within(0.3):
            with pytest.raises(TimeoutError, match="the kernel is busy"):
                await kernel.push(x=1, timeout=0.3)
        async with reported_within(0.5):
            await kernel.push(y=1, now=True)
        other_client.client.input("a line")
        assert (await other_client.answer(cell))["status"] == "ok"
        assert await look(file_of(kernel)) == {"line": "'a line'", "x": "1", "y": "1"}
        await goes_on(kernel)
