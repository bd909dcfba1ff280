"""What stays in a kernel behind a server for a bridge, through the trials of a real kernel.

Rule: as in ``kernel/connection/test_resources.py``. What a connection that breaks means for one
kind alone is in ``test_reconnect.py``.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bridgehead import Bridge, KernelRestarted
from support.kit import MESSAGES, goes_on
from support.resources import (
    KINDS,
    asked_while_cut,
    cancelled_at_any_instant,
    ended_by_a_restart,
    goes_on_over_cuts,
    gone_with_its_owner,
    nothing_is_kept,
    nothing_is_left,
    of_every_kind,
    running,
)
from support.servers import Other, Wire, on

pytestmark = pytest.mark.servers


@pytest.fixture(params=MESSAGES)
async def two(anyone: str, request: pytest.FixtureRequest) -> AsyncIterator[tuple[Bridge, Bridge]]:
    """Give a bridge, and another one to its kernel."""
    async with (
        on(anyone) as kernel,
        on(anyone, kernel_id=kernel.info.kernel_id, lane=request.param) as bridge,
    ):
        yield bridge, kernel


Two = tuple[Bridge, Bridge]


@pytest.mark.parametrize("how", ["dropped", "the bridge is closed", "the bridge vanished"])
async def test_what_has_begun_is_gone_with_its_owner(two: Two, how: str) -> None:
    bridge, kernel = two
    await kernel.pull("1", now=True)  # a subshell has a thread, which stays
    threads = (await kernel.call(running))[1]
    await gone_with_its_owner(bridge, kernel, how)
    await bridge.aclose()
    await nothing_is_left(kernel, threads)


async def test_a_cancel_at_any_instant_leaves_nothing(two: Two) -> None:
    bridge, kernel = two
    await cancelled_at_any_instant(bridge, kernel, 2)


@pytest.mark.parametrize("cut", [goes_on_over_cuts, asked_while_cut])
@pytest.mark.parametrize("lane", MESSAGES)
async def test_connections_that_break_end_nothing_and_leave_nothing(
    anyone: str, cut: Any, lane: Any
) -> None:
    async with (
        Wire(anyone) as wire,
        on(wire.url, lane=lane) as bridge,
        on(anyone, kernel_id=bridge.info.kernel_id) as cells,
    ):
        await cut(bridge, cells, wire.cut)


async def test_a_restart_ends_what_has_begun_of_every_kind(two: Two, anyone: str) -> None:
    bridge, kernel = two
    held = await of_every_kind(bridge)
    async with Other(anyone) as other:
        await other.restart(str(bridge.info.kernel_id))
    await ended_by_a_restart(held, bridge)
    for one in bridge, kernel:
        with contextlib.suppress(KernelRestarted):
            await goes_on(one)
    for begin in KINDS.values():
        again = await begin(bridge)
        await again.use(bridge)
        del again
    await bridge.aclose()
    await kernel.run("globals().pop('report', None)")
    await nothing_is_kept(kernel)
