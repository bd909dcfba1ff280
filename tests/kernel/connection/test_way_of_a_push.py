"""The way of one push, which ``_connection/__init__.py`` lists, followed with a profiler.

Rule: the list is the text of that docstring, read here, so that it stays true.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

import bridgehead._connection
from bridgehead import Bridge

STEP = re.compile(r"^\d+\. ``([\w.]+)``", re.MULTILINE)
HERE, IN_KERNEL = (
    STEP.findall(part)
    for part in str(bridgehead._connection.__doc__)
    .split("The way of one push")[1]
    .split("In the kernel:")
)
DIRECT = ["DirectLane.carry_now", "SocketClient.ask", "DirectLane.complete"]


@contextmanager
def followed() -> Iterator[list[str]]:
    """Give the names of all functions that are entered in the block, in any thread."""
    entered: list[str] = []

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            entered.append(getattr(frame.f_code, "co_qualname", frame.f_code.co_name))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield entered
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


def pass_in_order(steps: list[str], entered: list[str]) -> None:
    """Assert that these functions were entered in this order, among others."""
    rest = iter(entered)
    missing = [step for step in steps if step not in rest]
    assert not missing, f"{missing[0]} was not entered, or not after the step before it"


def test_the_way_is_short() -> None:
    assert 5 <= len(HERE) <= 10
    assert 5 <= len(IN_KERNEL) <= 8


async def test_a_push_in_a_message_takes_the_steps_of_the_list() -> None:
    with followed() as entered:
        async with Bridge.loopback(lane="buffers") as bridge:
            await bridge.push(first=1)
            entered.clear()
            await bridge.push(x=[1, 2])
            steps = list(entered)
    pass_in_order(HERE, steps)
    pass_in_order(IN_KERNEL, steps)


async def test_no_other_function_waits_on_the_way_to_the_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What awaits the message as it is sent: in the caller, and in the task of the queue."""
    sending, go_on = asyncio.Event(), asyncio.Event()
    async with Bridge.loopback(lane="buffers") as bridge:
        await bridge.push(first=1)
        queue: Any = bridge._connection.queue
        send = bridge._transport.send

        async def held(*message: Any) -> None:
            sending.set()
            await go_on.wait()
            await send(*message)

        monkeypatch.setattr(bridge._transport, "send", held)
        pushing: Any = bridge.push(x=[1, 2])
        push = asyncio.ensure_future(pushing)
        await sending.wait()
        waiting = [*awaited_by(pushing), *awaited_by(queue._carrying.get_coro())]
        go_on.set()
        await push
    on_the_way = waiting[: waiting.index("RequestTable.put") + 1]
    steps = [step for step in HERE if step in on_the_way]
    assert steps == [*HERE[:3], *HERE[4:9]]  # what prepares the request has ended
    assert [name for name in on_the_way if name not in steps] == [
        *("Turn._outcome", "Queue._send", "RequestTable.put"),
    ]


def awaited_by(coroutine: Any) -> Iterator[str]:
    """Give the names of a coroutine, of that which it awaits, and so on."""
    while inspect.iscoroutine(coroutine):
        yield coroutine.__qualname__
        coroutine = coroutine.cr_await


async def test_a_push_on_the_direct_lane_takes_the_steps_of_the_list(kernel: Bridge) -> None:
    await kernel.push(first=1)
    with followed() as entered:
        await kernel.push(x=[1, 2])
    pass_in_order([*HERE[:5], *DIRECT], entered)
    assert HERE[5] not in entered
