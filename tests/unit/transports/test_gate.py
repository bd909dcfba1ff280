"""The gate before a kernel: what opens it."""

from __future__ import annotations

import asyncio

from bridgehead._transports.gate import Gate


async def test_only_an_answer_to_a_question_since_the_break_counts() -> None:
    """J4. A server keeps the answers of the old process, and gives them to the next connection."""
    gate = Gate()
    gate.asked("before")
    gate.shut()
    assert not gate.counts("before")
    gate.asked("after")
    assert gate.counts("after")
    assert not gate.counts("after")  # once
    assert not gate.counts(None)
    assert not gate.counts("never asked")


async def test_what_waits_looks_again_at_each_change() -> None:
    gate = Gate()
    looked = []

    async def sender() -> None:
        while not gate.is_open:
            await gate.wait("message")
            looked.append(gate.is_open)

    sending = asyncio.ensure_future(sender())
    await asyncio.sleep(0)
    assert gate.waiting == {"message"}
    gate.wake()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    gate.open("process")
    await sending
    assert looked == [False, True]
    assert gate.waiting == set()
    gate.shut()
    assert (gate.is_open, gate.process) == (False, "process")
    gate.shut(forget=True)
    assert gate.process is None
