"""Row B8 of the catalogue of faults: a cell that waits for a line.

Rule: one test a row of the catalogue, its docstring opening with the row's number. A test asserts
how soon the caller is told, what the namespace holds afterwards (looked at by a client that knows
nothing of bridges), and that the next operation on the same bridge is right. The injection is the
real fault.
"""

from __future__ import annotations

import sys

import cloudpickle
import pytest

from bridgehead import Bridge
from support.kit import file_of, goes_on, other, reported_within
from support.look import look

# Test modules aren't importable in a kernel; what they define is shipped like a script's own.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


async def test_input_in_another_clients_cell(kernel: Bridge) -> None:
    """B8. A cell of somebody's waits for a line: the deadline holds until it has one."""
    async with other(kernel) as somebody:
        cell = somebody.submit("line = input()", allow_stdin=True)
        async with reported_within(1):
            asks = await somebody.client.get_stdin_msg(timeout=10)
        assert asks["msg_type"] == "input_request"
        async with reported_within(0.3):
            with pytest.raises(TimeoutError, match="the kernel is busy"):
                await kernel.push(x=1, timeout=0.3)
        async with reported_within(0.5):
            await kernel.push(y=1, now=True)
        somebody.client.input("a line")
        assert (await somebody.answer(cell))["status"] == "ok"
        assert await look(file_of(kernel)) == {"line": "'a line'", "x": "1", "y": "1"}
        await goes_on(kernel)
