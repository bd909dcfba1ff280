"""What stays in a real kernel for a bridge: every kind of it goes through the same trials.

Rule: a trial does the same to all kinds, and then nothing may be left in the kernel: no resource,
no task, no generator and no thread. What only one kind promises belongs to a file of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bridgehead import (
    Bridge,
    BridgeClosed,
    KernelRestarted,
    SyncBridge,
)
from support.cuts import Cuts, cuttable
from support.elsewhere import MAJORS
from support.kit import (
    LANES,
    all_of,
    file_of,
    goes_on,
    kept_and_late,
    on_its_way,
    other,
    reported_within,
    until,
)
from support.promises import occupied, seeded
from support.resources import (
    ASKED,
    KINDS,
    OWN,
    asked_while_cut,
    awaited,
    cancelled_at_any_instant,
    ended_by_a_restart,
    goes_on_over_cuts,
    gone_with_its_owner,
    later,
    lease_ends,
    nothing_is_kept,
    nothing_is_left,
    numbers,
    numbers_async,
    of_every_kind,
    running,
    threads_of,
    two,
)


@pytest.fixture
async def threads(kernel: Bridge) -> list[str]:
    """Give the names of the threads that the kernel has."""
    if "threads" not in vars(Begun):
        Begun.threads = await threads_of(kernel)
    return Begun.threads


class Begun:
    """What the kernel of this file had at the beginning."""

    threads: list[str]


# ---------------------------------------------------------------- the trials


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("how", ["dropped", "the bridge is closed", "the bridge vanished"])
async def test_what_has_begun_is_gone_with_its_owner(
    kernel: Bridge, threads: list[str], lane: Any, how: str
) -> None:
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge:
        await gone_with_its_owner(bridge, kernel, how)
    await nothing_is_left(kernel, threads)


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("how", ["cancelled", "the bridge is closed", "the bridge vanished"])
async def test_what_waits_behind_a_cell_and_is_left_leaves_nothing(
    kernel: Bridge, threads: list[str], lane: Any, how: str
) -> None:
    """Each kind over a bridge of its own: one request of a bridge is on its way at a time."""
    async with contextlib.AsyncExitStack() as opened:
        bridges = [
            await opened.enter_async_context(Bridge.attach(file_of(kernel), lane=lane))
            for _ in ASKED
        ]
        async with occupied(kernel):
            asked: Any = [
                asyncio.ensure_future(ask(bridge))
                for ask, bridge in zip(ASKED.values(), bridges, strict=True)
            ]
            await until(lambda: all(map(on_its_way, bridges)))
            if how == "cancelled":
                [one.cancel() for one in asked]
            elif how == "the bridge is closed":
                await asyncio.gather(*(bridge.aclose() for bridge in bridges))
        outcomes = await all_of(*asked)
        if how == "the bridge vanished":
            assert not [one for one in outcomes if isinstance(one, BaseException)], outcomes
            await lease_ends(kernel)
        else:
            ends = (asyncio.CancelledError, BridgeClosed, StopAsyncIteration)
            assert all(isinstance(one, ends) for one in outcomes), outcomes
        del asked, outcomes
    await nothing_is_left(kernel, threads)


@pytest.mark.parametrize("lane", LANES)
async def test_a_cancel_at_any_instant_leaves_nothing(
    kernel: Bridge, threads: list[str], lane: Any
) -> None:
    async with Bridge.attach(file_of(kernel), lane=lane) as bridge:
        await cancelled_at_any_instant(bridge, kernel, 8)
    await nothing_is_left(kernel, threads)


@pytest.mark.parametrize("lane", LANES)
async def test_closing_at_any_instant_ends_what_is_asked(
    kernel: Bridge, threads: list[str], lane: Any
) -> None:
    """It has its outcome, or reports that the bridge was closed, and nothing else."""
    with seeded() as chance:
        for kind, ask in list(ASKED.items()) * 4:
            async with Bridge.attach(file_of(kernel), lane=lane) as bridge:
                held = bridge.submit(later, 1, 1000)  # closing waits until the kernel has ended it
                await bridge.push(x=1)
                asked = asyncio.ensure_future(awaited(ask(bridge)))
                await asyncio.sleep(0.006 * chance.random())
            outcomes = await all_of(asked, held)
            ends = (BridgeClosed, StopAsyncIteration)
            for one in outcomes:
                assert isinstance(one, ends) or not isinstance(one, BaseException), (kind, one)
            del asked, held, outcomes, one
    await nothing_is_left(kernel, threads)


# A kernel that is not back after 2.5 s counts as dead, and a loaded machine takes longer.
@pytest.mark.timings(reconnect_grace=60)
@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_a_restart_ends_what_has_begun_of_every_kind(live: Bridge) -> None:
    """Each handle reports it, the next call may report it once, and all kinds can begin anew."""
    for lane in LANES:
        async with Bridge.attach(file_of(live), lane=lane) as bridge:
            held = await of_every_kind(bridge)
            await live.restart()
            await ended_by_a_restart(held, bridge)
            with contextlib.suppress(KernelRestarted):
                await goes_on(bridge)
            assert await live.call(running, by_value=OWN) is not None
            await nothing_is_kept(live)
            for begin in KINDS.values():
                again = await begin(bridge)
                await again.use(bridge)
            del held, again
        gc.collect()
        await live.run("globals().pop('report', None)")
        await nothing_is_kept(live)


# A kernel that is not back after 2.5 s counts as dead, and a loaded machine takes longer.
@pytest.mark.timings(reconnect_grace=60)
@pytest.mark.parametrize("lane", LANES)
async def test_a_restart_ends_what_waits_behind_a_cell(live: Bridge, lane: Any) -> None:
    async with contextlib.AsyncExitStack() as opened:
        bridges = [
            await opened.enter_async_context(Bridge.attach(file_of(live), lane=lane)) for _ in ASKED
        ]
        cell = asyncio.ensure_future(live.run("import time; time.sleep(60)"))
        await until(lambda: live.state == "busy")
        asked: Any = [
            asyncio.ensure_future(ask(bridge))
            for ask, bridge in zip(ASKED.values(), bridges, strict=True)
        ]
        await until(lambda: all(map(on_its_way, bridges)))
        await live.restart()
        outcomes = dict(zip(("cell", *ASKED), await all_of(cell, *asked), strict=True))
        assert all(isinstance(one, KernelRestarted) for one in outcomes.values()), list(
            map(repr, outcomes.values())
        )
        del asked, outcomes
        for bridge in bridges:
            await goes_on(bridge)
            assert kept_and_late(bridge)[:5] == (0, 0, 0, 0, 0)
    await nothing_is_kept(live)


@asynccontextmanager
async def beside_cuts(folder: Path, lane: Any) -> AsyncIterator[tuple[Bridge, Bridge, Cuts]]:
    """Give a bridge that passes the cuts, and one to the same kernel that does not."""
    async with (
        cuttable(folder, lane=lane) as (bridge, cuts),
        Bridge.attach(cuts.kernel_file) as cells,
    ):
        yield bridge, cells, cuts


@pytest.mark.parametrize("lane", ["direct", "buffers"])
async def test_every_kind_goes_on_over_a_new_connection(tmp_path: Path, lane: Any) -> None:
    """J6. The connection is cut before each kind is used, and while it is; cells do not pass it."""
    async with beside_cuts(tmp_path, lane) as (bridge, cells, cuts):
        await goes_on_over_cuts(bridge, cells, cuts.cut)


@pytest.mark.parametrize("lane", ["direct", "buffers"])
async def test_what_is_asked_while_the_connection_is_cut_leaves_nothing(
    tmp_path: Path, lane: Any
) -> None:
    """J6. Cut at any instant of what makes one of each kind: it is made, or its outcome unknown."""
    async with beside_cuts(tmp_path, lane) as (bridge, cells, cuts):
        await asked_while_cut(bridge, cells, cuts.cut)


@pytest.mark.parametrize("lane", ["direct", "buffers"])
async def test_a_cell_that_waits_for_room_of_a_callback_goes_on_over_new_connections(
    tmp_path: Path, lane: Any
) -> None:
    async with beside_cuts(tmp_path, lane) as (bridge, cells, cuts):
        seen: list[int] = []

        async def note(step: int) -> None:
            """Cut while the cell waits: the next call is in the only place that there is."""
            seen.append(step)
            if step % 10 == 0:
                while step < 40 and await cells.pull("made", now=True) <= step:
                    await asyncio.sleep(0.01)
                cuts.cut()

        with bridge.callback(note, 1, "wait") as report:
            await bridge.push(report=report)
            await asyncio.wait_for(cells.run("for made in range(41): report(made)"), 100)
            await until(lambda: len(seen) == 41)
            assert (seen, report.failed, report.dropped) == ([*range(41)], 0, 0)
        await cells.run("del report")
        await nothing_is_kept(cells)


CLIENT = """
import asyncio, sys
sys.path[:0] = sys.argv[2:]
from bridgehead import Bridge
from support.resources import ASKED, of_every_kind

async def main():
    bridge = await Bridge.attach(sys.argv[1])
    held = await of_every_kind(bridge)
    print("begun", flush=True)
    sys.stdin.readline()
    asked = [asyncio.ensure_future(ask(bridge)) for ask in ASKED.values()]
    await asyncio.sleep(0.5)
    print("asked", flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


async def test_a_client_that_is_killed_leaves_nothing_of_any_kind(
    kernel: Bridge, threads: list[str]
) -> None:
    """Of what has begun, of what waits behind a cell, and of what its cell was about to begin."""
    paths = [path for path in sys.path if path]
    client = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CLIENT, file_of(kernel), *paths),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert client.stdin is not None
    assert client.stdout is not None
    try:
        assert await client.stdout.readline() == b"begun\n"
        async with occupied(kernel):
            client.stdin.write(b"\n")
            assert await client.stdout.readline() == b"asked\n"
            client.kill()
            await client.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            client.kill()
        await client.wait()
    await lease_ends(kernel)
    await kernel.delete("x", "watched")
    await nothing_is_left(kernel, threads)


@pytest.mark.timings(renew_every=1000)  # a renewal would be a request
@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_the_kernel_ends_a_lease_by_itself_while_it_gets_no_request(
    live: Bridge, tmp_path: Path
) -> None:
    """Its own look comes twice a minute, and here often; the clock of the leases is set ahead."""
    find_module = (
        "import sys\n"
        "module = next(m for n, m in sys.modules.items() if n.startswith('_bridgehead'))\n"
    )
    set_ahead = (  # after several of its looks, which let the clock stand while a cell runs
        "import asyncio\n"
        "(remote,) = module._remotes.values()\n"
        "for _ in range(3):\n"
        "    looked = remote.resources._looked\n"
        "    while remote.resources._looked == looked: await asyncio.sleep(0.01)\n"
        "remote.resources.clock += 601"
    )

    def writes(path: str) -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            Path(path).write_text("closed")

    await live.call(abs, 1)
    await live.run(find_module + "module.BEAT = 0.05")
    async with other(live) as client:
        for lane in LANES:
            async with Bridge.attach(file_of(live), lane=lane) as bridge:
                items, end = bridge.iterate(writes, str(tmp_path / lane)), tmp_path / lane
                assert await anext(items) == 0
                cell = client.submit(find_module + set_ahead)
                async with reported_within(1):
                    assert (await client.answer(cell))["status"] == "ok"
                await until(end.exists)
                await nothing_is_kept(live)
                del items


def test_a_sync_bridge_leaves_nothing_of_any_kind() -> None:
    with SyncBridge.launch() as kernel:
        with SyncBridge.attach(kernel.info.connection_file) as sync:
            task, async_task = sync.submit(two, 1), sync.submit(later, 1, 1000)
            ref, async_ref = sync.call(two, 5, keep=True), sync.call(later, [5], keep=True)
            items, async_items = sync.iterate(numbers), sync.iterate(numbers_async)
            watch, names = sync.watch("1"), sync.watch_names()
            seen: list[int] = []
            sync.call(lambda report: report(1), sync.callback(seen.append))
            assert (task.result(60), ref[0].pull(), async_ref[0].pull()) == ([1, 1], 5, 5)
            assert [next(one) for one in (items, async_items, watch)] == [0, 0, 1]
            next(names)
            stats = sync.stats
            assert (stats.tasks, stats.refs, stats.iterations, stats.watches, stats.callbacks) == (
                *(1, 2, 2, 2),
                1,
            )
            assert async_task.running()
            for one in items, async_items, watch, names:
                one.close()
            assert async_task.cancel()
        asyncio.run(_nothing_is_kept(kernel))


async def _nothing_is_kept(kernel: SyncBridge) -> None:
    async with Bridge.attach(str(kernel.info.connection_file)) as bridge:
        await nothing_is_left(bridge, [""] * 100)
