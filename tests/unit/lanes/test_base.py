"""What a lane leaves in the kernel when it is closed, on a transport without harm."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import pytest

from support.hostile import PATIENCE, opened, quiet, run, sign_small_chunks

LARGE = bytes(range(256)) * 40  # crosses in three messages
LATENCY = 0.1  # s of the virtual clock until a reply arrives


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    sign_small_chunks(monkeypatch)


@pytest.mark.parametrize("window", [1, 32])
@pytest.mark.parametrize("lane", ["buffers", "inline"])
def test_what_has_crossed_is_dropped_in_the_kernel_although_the_bridge_closes(
    lane: str, window: int
) -> None:
    """K9. The requests that say so may wait for a slot of the window when the bridge is closed."""

    async def pull_and_close() -> tuple[int, int]:
        async with asyncio.timeout(PATIENCE), opened(lane, False) as bridge:
            wire: Any = bridge._transport
            wire.dispatcher.window.size = window
            wire.kernels[0].user_ns["large"] = LARGE
            wire.begin({})
            later, received = asyncio.get_running_loop().call_later, wire._received
            arriving: deque[Any] = deque()

            def receive(*message: Any) -> None:
                arriving.append(message)
                later(LATENCY, lambda: received(*arriving.popleft()))

            wire._received = receive
            pulls = [bridge.pull("large + b''") for _ in range(40)]
            assert await asyncio.gather(*pulls) == [LARGE] * 40
        sent = [label for label in wire.seen if label.way == "out"]
        ended = [label for label in sent if label.operation == "forget"]
        return len(ended), len({label for label in sent if label.operation == "fetch"})

    forgotten, fetched = run(pull_and_close())
    assert forgotten == fetched == 40


def test_acks_in_a_message_that_is_lost_and_given_up_come_again() -> None:
    """Else the kernel keeps those responses until they are old."""

    async def push_and_give_up() -> None:
        async with asyncio.timeout(PATIENCE), opened("buffers", True) as bridge:
            wire: Any = bridge._transport
            await bridge.push(x=1)  # its ack comes with the next message
            wire.harm_later("out", 0, "drop")
            given_up = asyncio.ensure_future(bridge.exists("x"))
            await asyncio.sleep(LATENCY)
            given_up.cancel()
            assert await bridge.exists("x")
            await quiet(bridge, lost=False)
            assert len(bridge._connection.remote.lane._to_ack) == 1

    run(push_and_give_up())


def test_acks_do_not_gather_while_only_cells_bring_them() -> None:
    """Else each cell's message would list the responses of all cells before it."""

    async def run_and_pull() -> None:
        async with asyncio.timeout(PATIENCE), opened("buffers", True) as bridge:
            for n in range(5):
                assert (await bridge.run(f"x = {n}", pull=["x"])).values == {"x": n}
            assert len(bridge._connection.remote.lane._to_ack) == 1

    run(run_and_pull())
