"""What stays in a kernel behind a server for a bridge, through the trials of a real kernel.

Rule: as in ``kernel/connection/test_resources.py``. The second bridge does not pass ``Wire``.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

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
from support.servers import GATEWAY, SERVER, Other, Wire, on, serving

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module", params=[SERVER, GATEWAY])
async def anyone(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """Start either kind of server, and give its address."""
    async with serving(request.param) as url:
        yield url


@pytest.fixture(params=MESSAGES)
async def wired(
    anyone: str, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[Bridge, Bridge, Wire]]:
    """Give a bridge through a proxy, another one to its kernel, and the proxy."""
    async with (
        Wire(anyone) as wire,
        on(anyone) as kernel,
        on(wire.url, kernel_id=kernel.info.kernel_id, lane=request.param) as bridge,
    ):
        yield bridge, kernel, wire


Wired = tuple[Bridge, Bridge, Wire]


@pytest.mark.parametrize("how", ["dropped", "the bridge is closed", "the bridge vanished"])
async def test_what_has_begun_is_gone_with_its_owner(wired: Wired, how: str) -> None:
    bridge, kernel, _ = wired
    await kernel.pull("1", now=True)  # a subshell has a thread, which stays
    threads = (await kernel.call(running))[1]
    await gone_with_its_owner(bridge, kernel, how)
    await bridge.aclose()
    await nothing_is_left(kernel, threads)


async def test_a_cancel_at_any_instant_leaves_nothing(wired: Wired) -> None:
    bridge, kernel, _ = wired
    await cancelled_at_any_instant(bridge, kernel, 2)


async def test_a_restart_ends_what_has_begun_of_every_kind(wired: Wired, anyone: str) -> None:
    bridge, kernel, _ = wired
    held = await of_every_kind(bridge)
    async with Other(anyone) as other:
        await other.restart(str(bridge.info.kernel_id))
    await ended_by_a_restart(held)
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


async def test_every_kind_goes_on_over_a_new_connection(wired: Wired) -> None:
    bridge, kernel, wire = wired
    await goes_on_over_cuts(bridge, kernel, wire.cut)


async def test_what_is_asked_while_the_connection_is_cut_leaves_nothing(wired: Wired) -> None:
    bridge, kernel, wire = wired
    await asked_while_cut(bridge, kernel, wire.cut)
