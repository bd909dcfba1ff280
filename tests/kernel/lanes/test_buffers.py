"""Long responses as buffers, whose chunks are sent ahead of the reply.

Rule: what crosses on the lane ``buffers`` is seen on a wire between the bridge and its kernel.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridgehead import Bridge, ReplyLost
from support.kit import BUFFERS, CONTENT, HEADER, KEPT, Parts, all_of, goes_on, wired

LONG = 100 << 20  # bytes; more than the messages that may be on their way
# The kernel never finds the connection too slow, or always.
PATIENCE = {"ahead": 1e9, "slow": -1e9}


async def set_patience(kernel: Bridge, seconds: float) -> None:
    """Set how long the remote part, which must be installed, waits for a connection."""
    await kernel.run(f"""
import sys
module = next(m for n, m in sys.modules.items() if n.startswith("_bridgehead"))
module.AHEAD_PATIENCE = {seconds}
del sys, module
""")


def ahead(wire: Any) -> list[Parts]:
    """Return the messages that came in with a chunk and a header of its own."""
    messages = [parts for way, parts in wire.seen if way == "in"]
    chunks = [parts for parts in messages if json.loads(parts[HEADER])["msg_type"].endswith("data")]
    return [parts for parts in chunks if json.loads(parts[CONTENT])]


def fetches(wire: Any) -> int:
    """Return how many chunks the client asked for."""
    return sum(b"next_chunk" in parts[CONTENT] for way, parts in wire.seen if way == "out")


@pytest.mark.slow
async def test_a_long_response_takes_one_request(live: Bridge, tmp_path: Path) -> None:
    await live.run(f"import numpy; a = numpy.arange({LONG // 8}); parts = numpy.split(a, 64)")
    await set_patience(live, PATIENCE["ahead"])
    async with wired(live, tmp_path, lane="buffers") as (bridge, wire):
        wire.seen.clear()
        seen: list[tuple[int, int]] = []
        back = await bridge.pull("a", progress=lambda done, total: seen.append((done, total)))
        assert np.array_equal(back, np.arange(LONG // 8))
        assert len(ahead(wire)) > 5
        assert fetches(wire) == 0
        assert seen[-1][0] == seen[-1][1] > LONG
        many = await bridge.pull("[part + 1 for part in parts]")
        assert np.array_equal(np.concatenate(many), np.arange(LONG // 8) + 1)
        assert np.array_equal(await bridge.call(np.negative, bridge.ref("a")), -back)
        wire.seen.clear()
        assert np.array_equal(await bridge.pull("a", now=True), back)
        assert not ahead(wire)  # a cell may run beside it, so all is copied before the first chunk
        await goes_on(bridge)


@pytest.mark.slow
@pytest.mark.parametrize("how", PATIENCE)
async def test_a_cell_behind_a_long_pull_does_not_change_what_arrives(
    live: Bridge, tmp_path: Path, how: str
) -> None:
    """The values are those of one moment, also where the kernel keeps the rest for later."""
    await live.run(f"import numpy; a = numpy.zeros({LONG}, 'u1'); b = bytearray({LONG // 2})")
    await live.run(KEPT)
    await set_patience(live, PATIENCE[how])
    async with wired(live, tmp_path, lane="buffers") as (bridge, wire):
        wire.seen.clear()
        for number in range(1, 4):
            cell = f"a[:] = {number}; b[:] = b'{number}' * len(b); b.append({number}); del b[-1:]"
            (a, b), _, later = await asyncio.gather(
                bridge.pull("a", "b"), bridge.run(cell), bridge.pull("int(a.min())")
            )
            before = 0 if number == 1 else b"%d" % (number - 1)
            assert (a == number - 1).all()
            assert b.count(before) == len(b) == LONG // 2
            assert later == number
        assert (fetches(wire) > 0) == (how == "slow")
        await until_nothing_is_kept(bridge)


async def until_nothing_is_kept(bridge: Bridge) -> None:
    """Wait until the kernel has dropped all transfers; the request for that is in flight."""
    async with asyncio.timeout(5):
        while any(await bridge.pull("_kept()")):
            await asyncio.sleep(0.01)


def flip_in_third(parts: Parts, count: Any) -> list[Parts]:
    if json.loads(parts[HEADER])["msg_type"].endswith("data") and next(count) == 2:
        damaged = bytearray(parts[BUFFERS])
        damaged[1000] ^= 1
        return [[*parts[:BUFFERS], bytes(damaged)]]
    return [parts]


async def test_a_damaged_chunk_ends_the_pull(kernel: Bridge, tmp_path: Path) -> None:
    await kernel.run(f"import numpy; a = numpy.zeros({LONG}, 'u1')")
    async with wired(kernel, tmp_path, lane="buffers") as (bridge, wire):
        count = iter(range(10**6))
        wire.incoming = lambda parts: flip_in_third(parts, count)
        with pytest.raises(ReplyLost, match="digest"):
            await bridge.pull("a")
        assert (await bridge.pull("a")).nbytes == LONG
        await goes_on(bridge)


async def test_a_missing_chunk_is_reported(kernel: Bridge, tmp_path: Path) -> None:
    await kernel.run(f"import numpy; a = numpy.zeros({LONG}, 'u1')")
    async with wired(kernel, tmp_path, lane="buffers") as (bridge, wire):
        count = iter(range(10**6))

        def drop(parts: Parts) -> list[Parts]:
            is_data = json.loads(parts[HEADER])["msg_type"].endswith("data")
            return [] if is_data and next(count) == 2 else [parts]

        wire.incoming = drop
        with pytest.raises(ReplyLost, match="of the .* bytes that it sent ahead arrived"):
            await bridge.pull("a")
        await goes_on(bridge)


async def test_an_error_from_progress_ends_a_long_pull(kernel: Bridge) -> None:
    await kernel.run(f"import numpy; a = numpy.zeros({LONG}, 'u1')\n{KEPT}")
    async with Bridge.attach(kernel.info.connection_file, lane="buffers") as bridge:

        def fail(done: int, total: int) -> None:
            raise LookupError(f"{done} of {total}")

        with pytest.raises(LookupError):
            await bridge.pull("a", progress=fail)
        await goes_on(bridge)
        await until_nothing_is_kept(bridge)


@pytest.mark.slow
@pytest.mark.parametrize("how", PATIENCE)
async def test_a_long_pull_that_is_cancelled_disturbs_no_other_call(live: Bridge, how: str) -> None:
    await live.run(f"import numpy; a = numpy.zeros({LONG}, 'u1')\n{KEPT}")
    await set_patience(live, PATIENCE[how])
    async with Bridge.attach(live.info.connection_file, lane="buffers") as bridge:
        begun = asyncio.Event()
        pull = asyncio.ensure_future(bridge.pull("a", progress=lambda done, total: begun.set()))
        others = asyncio.gather(*(bridge.pull(f"{number}") for number in range(9)))
        await begun.wait()
        pull.cancel()
        (outcome,) = await all_of(pull)
        assert isinstance(outcome, asyncio.CancelledError)
        assert await others == list(range(9))
        assert (await bridge.pull("a")).nbytes == LONG
        await goes_on(bridge)
        await until_nothing_is_kept(bridge)


@pytest.mark.slow
async def test_pulls_at_once_keep_their_chunks_apart(kernel: Bridge) -> None:
    await kernel.run(f"import numpy; a = numpy.arange({LONG // 8})")
    async with Bridge.attach(kernel.info.connection_file, lane="buffers") as bridge:
        pulls = [bridge.pull(f"a + {number}", now=number == 1) for number in range(3)]
        for number, back in enumerate(await asyncio.gather(*pulls)):
            assert int(back[0]) == number
            assert np.array_equal(back - number, np.arange(LONG // 8))
