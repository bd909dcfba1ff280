"""The gate before a kernel: what opens it."""

from __future__ import annotations

import asyncio

import pytest

from bridgehead import BridgeClosed, KernelUnresponsive
from bridgehead._transports.gate import Gate
from bridgehead._transports.state import KernelState
from bridgehead._transports.timings import Timings


async def test_only_an_answer_to_a_question_since_the_break_counts() -> None:
    """J4. A server keeps the answers of the old process, and gives them to the next connection."""
    gate = Gate(KernelState(Timings()))
    gate.asked("before")
    gate.shut()
    assert not gate.counts("before")
    gate.asked("after")
    assert gate.counts("after")
    assert not gate.counts("after")  # once
    assert not gate.counts(None)
    assert not gate.counts("never asked")


async def test_what_waits_looks_again_at_each_change() -> None:
    gate = Gate(KernelState(Timings()))
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


async def test_what_waits_fails_if_no_question_is_answered() -> None:
    life = KernelState(Timings(lost_after=0.01))
    life.state = "idle"
    gate = Gate(life)
    waiter = life.waiter()
    gate.asked("question")
    with pytest.raises(KernelUnresponsive, match="which of its processes answers"):
        await waiter
    assert life.is_unresponsive
    gate.open("process")
    life.check_responsive()


async def test_a_question_that_is_answered_sets_no_deadline() -> None:
    life = KernelState(Timings(lost_after=0.01))
    life.state = "idle"
    gate = Gate(life)
    gate.asked("question")
    gate.open("process")
    gate.asked("another")
    await asyncio.sleep(0.05)
    assert not life.is_unresponsive


async def test_the_start_of_a_kernel_has_no_deadline_but_its_callers() -> None:
    life = KernelState(Timings(lost_after=0.01))
    gate = Gate(life)
    gate.asked("question")
    await asyncio.sleep(0.05)
    assert life.state == "starting"
    assert not life.is_unresponsive


@pytest.mark.parametrize("asked", ["before", "after"])
async def test_no_deadline_outlives_the_transport(asked: str) -> None:
    life = KernelState(Timings(lost_after=60))
    life.state = "idle"
    gate = Gate(life)
    if asked == "before":
        gate.asked("question")
    life.connection_lost(lambda: BridgeClosed("closed"), "closed")
    gate.lost()
    if asked == "after":
        gate.asked("question")
    assert gate._deadline is None
