"""The window: which requests wait for a slot, and what they get if there will be none."""

from __future__ import annotations

import asyncio

import pytest

from bridgehead import KernelRestarted, KernelUnresponsive, TransportError
from bridgehead._transports.request_table import Window
from bridgehead._transports.state import KernelState
from bridgehead._transports.timings import Timings


def window_of(size: int) -> tuple[Window, KernelState]:
    life = KernelState(Timings())
    return Window(life, size), life


async def waiting(window: Window, generation: int = 0) -> asyncio.Task[None]:
    """Return a task that waits for a slot."""
    task = asyncio.ensure_future(window.take(generation))
    await asyncio.sleep(0)
    assert not task.done()
    return task


async def test_a_slot_goes_to_the_request_that_waits_longest() -> None:
    window, _ = window_of(1)
    await window.take(0)
    first, second = await waiting(window), await waiting(window)
    window.release()
    await first
    assert not second.done()
    window.release()
    await second
    window.release()
    assert window.taken == 0


async def test_a_slot_that_is_passed_on_as_its_caller_gives_up_is_not_lost() -> None:
    window, life = window_of(1)
    await window.take(0)
    first, second = await waiting(window), await waiting(window)
    window.release()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await second
    assert window.taken == 1
    assert not life.has_waiters


async def test_a_caller_that_gives_up_leaves_nothing() -> None:
    window, life = window_of(1)
    await window.take(0)
    task = await waiting(window)
    task.cancel()
    await asyncio.wait([task])
    assert not window._waiting
    assert not life.has_waiters
    window.release()
    assert window.taken == 0


async def test_a_narrower_window_gives_no_slot_before_enough_are_back() -> None:
    window, _ = window_of(3)
    for _ in range(3):
        await window.take(0)
    window.size = 1
    task = await waiting(window)
    window.release()
    window.release()
    await asyncio.sleep(0)
    assert not task.done()
    window.release()
    await task
    assert window.taken == 1


@pytest.mark.parametrize("passed_on", [False, True])
async def test_what_waits_when_the_kernel_is_replaced_was_not_executed(passed_on: bool) -> None:
    """The error of what is on its way, which may have run, would be wrong here."""
    window, life = window_of(1)
    await window.take(0)
    task = await waiting(window)
    if passed_on:
        window.release()
    life.connection_lost(lambda: TransportError("it may have run"), "restarting")
    life.connection_made()
    if not passed_on:
        window.release()
    with pytest.raises(KernelRestarted, match="was not executed"):
        await task
    assert window.taken == 0
    with pytest.raises(KernelRestarted, match="was not executed"):
        await window.take(0)
    await window.take(life.generation)


async def test_an_unresponsive_kernel_gives_no_slot_back() -> None:
    window, life = window_of(1)
    await window.take(0)
    task = await waiting(window)
    life.note_unresponsive(lambda: KernelUnresponsive("it is silent"))
    with pytest.raises(KernelUnresponsive, match="silent"):
        await task
    with pytest.raises(KernelUnresponsive, match="silent"):
        await window.take(0)
    assert window.taken == 1  # its reply may arrive late
