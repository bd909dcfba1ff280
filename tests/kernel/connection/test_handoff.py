"""Handoff between real kernels: every pair of lanes, whose memory is used, and for how long.

Rule: tests count the segments and the memory of this process; they never measure time.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridgehead import (
    Bridge,
    BridgeError,
    Fleet,
    IncompatiblePython,
    KernelDied,
    KernelRestarted,
    KernelUnresponsive,
    MissingInKernel,
    RemoteError,
    ReplyLost,
    SyncBridge,
)
from support import memory
from support.elsewhere import NEWEST, OLDEST
from support.kit import LANES, all_of, file_of, goes_on, reported_within, stopped, until

MIB = 1 << 20
LARGE = 600_000  # doubles: their segment has a slab of its own, which can be leased on
MODEL = """
import os

class Model:
    opened_by = None
    def __init__(self, n):
        self.n = n
    def __setstate__(self, state):
        self.__dict__ = {**state, "opened_by": os.getpid()}
    def twice(self):
        return 2 * self.n

model = Model(21)
models = [model, model]
"""


@pytest.fixture(scope="module")
async def both() -> AsyncIterator[tuple[Bridge, Bridge]]:
    async with Bridge.launch() as one, Bridge.launch() as other:
        yield one, other


@pytest.fixture
async def pair(both: tuple[Bridge, Bridge]) -> tuple[Bridge, Bridge]:
    """Two kernels with nothing in their namespaces."""
    await wait_until_nothing_is_leased(*both)
    return both


async def wait_until_nothing_is_leased(*bridges: Bridge) -> None:
    """Wait until these kernels and this process have no leases and no open transfers.

    First delete all names in all kernels: a value in one may use the memory of another.
    """
    for bridge in bridges:
        names = [name.name for name in await bridge.names()]
        if names:
            await bridge.delete(*names)
    for bridge in bridges:
        async with asyncio.timeout(30):
            while True:
                remote = await memory.kernel_counts(bridge)
                client_leases = (
                    memory.client_counts(bridge)["leases"] if bridge.info.lane == "direct" else 0
                )
                if not (remote["leases"] or remote["kept"] or client_leases):
                    break
                await asyncio.sleep(0.1)


def own_memory() -> int:
    """Return the resident bytes of this process, mapped segments included (VmRSS)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


async def test_half_is_done_when_the_source_has_sent(pair: tuple[Bridge, Bridge]) -> None:
    """Shared memory comes in one piece, and no step of it is seen."""
    one, other = pair
    await one.push(array=np.zeros(LARGE))
    reports: list[tuple[int, int]] = []
    moved = await one.handoff("array", to=other, progress=lambda *two: reports.append(two))
    assert reports == [(moved.bytes // 2, moved.bytes), (moved.bytes, moved.bytes)]


@pytest.mark.parametrize("target_lane", LANES)
@pytest.mark.parametrize("source_lane", LANES)
@pytest.mark.slow
async def test_a_handoff_works_with_every_pair_of_lanes(
    pair: tuple[Bridge, Bridge], source_lane: Any, target_lane: Any
) -> None:
    """The bridge's process does not have the class, so it can't have opened the payload."""
    one, other = pair
    async with (
        Bridge.attach(one.info.connection_file, lane=source_lane) as source,
        Bridge.attach(other.info.connection_file, lane=target_lane) as target,
    ):
        await source.run(MODEL + f"import numpy; x = numpy.arange({LARGE}.0); y = x[:5]")
        transfer = await source.handoff("models", "model", "x", "y", to=target)
        assert transfer.lane == (
            source_lane if source_lane == target_lane else f"{source_lane}, {target_lane}"
        )
        assert await target.pull("models[0] is models[1] is model", "model.twice()") == (True, 42)
        assert await target.pull("model.opened_by") == other.info.pid
        assert await target.pull("float(x.sum())", "y.tolist()") == (
            LARGE * (LARGE - 1) / 2,
            [0, 1, 2, 3, 4],
        )
        assert await target.pull("bool(x.flags.writeable)")
        await target.run("x += 1")
        assert await source.pull("float(x[0])") == 0
        big = np.frombuffer(random.Random(2).randbytes(24 * MIB), "u1")
        await source.push(big=big)
        await source.handoff("big", to=target)
        assert np.array_equal(await target.pull("big"), big)
        del big
    await wait_until_nothing_is_leased(*pair)


async def test_a_handoff_from_and_to_a_loopback(pair: tuple[Bridge, Bridge]) -> None:
    kernel, _ = pair
    async with Bridge.loopback() as loopback:
        await loopback.push(x=np.arange(LARGE))
        await loopback.handoff("x", to=kernel)
        await kernel.run("x += 1")
        await kernel.handoff("x", to=loopback)
        assert np.array_equal(await loopback.pull("x"), np.arange(LARGE) + 1)


async def test_a_handoff_of_a_hundred_megabytes_takes_no_memory_of_the_client(
    pair: tuple[Bridge, Bridge],
) -> None:
    """The client has no segment, no mapped page of the source, and no copy."""
    source, target = pair
    await source.run("import numpy; x = numpy.arange(12_500_000.0)")
    mapped = (await memory.kernel_counts(target))["mapped"]  # by other tests
    before, kept = own_memory(), [memory.client_counts(bridge)["bytes"] for bridge in pair]
    for n in range(4):
        await source.run(f"x[0] = {n}")
        transfer = await source.handoff("x", to=target)
        assert (transfer.lane, transfer.bytes > 100_000_000) == ("direct", True)
        assert own_memory() - before < 10 * MIB
        for bridge, before_it in zip(pair, kept, strict=True):  # segments of other tests, at most
            assert memory.client_counts(bridge)["bytes"] <= before_it
        assert await target.pull("float(x[0])", "float(x[-1])") == (n, 12_499_999)
    # The source reuses two segments: the one in use by the target, and the one before.
    assert (await memory.kernel_counts(source))["bytes"] < 300_000_000
    assert (await memory.kernel_counts(target))["mapped"] <= mapped + 3


async def test_the_source_gets_the_segment_back_after_the_last_array_is_deleted(
    pair: tuple[Bridge, Bridge],
) -> None:
    source, target = pair
    await source.run(f"import numpy; x = numpy.arange({LARGE}.0)")
    await source.handoff("x", to=target)
    await target.run("held = x[50:60]; del x")
    for n in range(10):  # no transfer overwrites memory that is in use
        await source.run(f"x[:] = {n}")
        await source.handoff("x", to=target)
        assert await target.pull("held.tolist()", "float(x.sum())") == (
            list(range(50, 60)),
            n * LARGE,
        )
    assert (await memory.kernel_counts(source))["leases"] >= 2
    await target.run("held[:] = -1; x[:] = -1")
    assert await source.pull("float(x[0])") == 9
    await target.delete("held", "x")
    await memory.kernel_leases_nothing(source)
    await target.push(y=1)
    # No call is needed: the kernels return the segment on their own.
    await source.handoff("x", to=target)
    await target.delete("x")
    async with Bridge.attach(source.info.connection_file, lane="buffers") as aside:
        await memory.kernel_leases_nothing(aside)


@pytest.mark.slow
async def test_idle_segments_are_returned_to_the_system() -> None:
    """Both kernels and the client return them without any call."""

    def shorten_idle_time() -> None:
        import sys

        remote: Any = next(m for n, m in sys.modules.items() if n.startswith("_bridgehead"))
        remote.IDLE = 0.2

    async with Bridge.launch() as source, Bridge.launch() as target:
        await source.call(shorten_idle_time, by_value=[memory])
        await source.run(f"import numpy; x = numpy.arange({LARGE}.0)")
        await source.handoff("x", to=target)
        await target.delete("x")
        async with asyncio.timeout(30):
            while memory.client_counts(source)["mapped"] or Path(
                f"/proc/{target.info.pid}/maps"
            ).read_text().count("memfd:bridgehead"):
                await asyncio.sleep(0.1)
        await source.handoff("x", to=target)
        assert await target.pull("float(x.sum())") == LARGE * (LARGE - 1) / 2


async def test_an_untrusted_kernel_shares_no_memory_with_a_trusted_one(
    pair: tuple[Bridge, Bridge],
) -> None:
    """It could keep writing to a segment from which this process later reads other objects."""
    source, other = pair
    await source.run(f"import numpy; x = numpy.arange({LARGE}.0)")
    async with Bridge.attach(other.info.connection_file, lane="direct", trust="data") as untrusted:
        assert (await source.handoff("x", to=untrusted)).lane == "direct"
        assert memory.client_counts(untrusted)["leases"] == 1  # a segment of this process
        await memory.kernel_leases_nothing(source)
        assert await untrusted.pull("float(x.sum())") == LARGE * (LARGE - 1) / 2
        await wait_until_nothing_is_leased(source, untrusted)
    # A payload from an untrusted kernel is copied before it is opened, so it can't change.
    async with Bridge.attach(source.info.connection_file, lane="direct", trust="data") as untrusted:
        await untrusted.run(f"import numpy; x = numpy.arange({LARGE}.0)")
        assert (await untrusted.handoff("x", to=other)).lane == "direct"
        await memory.kernel_leases_nothing(untrusted)
        assert await other.pull("float(x.sum())") == LARGE * (LARGE - 1) / 2


async def test_an_object_outlives_the_bridges_of_its_handoff(pair: tuple[Bridge, Bridge]) -> None:
    """Close the bridges in either order; the segment of a living object is never reused."""
    one, other = pair
    for first in ("source", "target"):
        source = await Bridge.attach(one.info.connection_file, lane="direct")
        target = await Bridge.attach(other.info.connection_file, lane="direct")
        await source.run(f"import numpy; x = numpy.arange({LARGE}.0)")
        await source.handoff("x", to=target)
        closed, left = (source, target) if first == "source" else (target, source)
        await closed.aclose()
        for n in range(5):
            await goes_on(left)
            if left is source:
                await source.run(f"x[:] = {n}")
                value = await source.pull("x")
                assert (value == n).all()
                del value
        total = LARGE * (LARGE - 1) / 2
        assert await other.pull("float(x.sum())") == total
        await other.run("x += 1")
        assert await other.pull("float(x.sum())") == total + LARGE
        if left is source:  # a lease ends even if its bridge can't end it
            await memory.kernel_leases_nothing(one)
        await left.aclose()
        await other.delete("x")
    await wait_until_nothing_is_leased(*pair)


async def test_an_object_outlives_the_source_of_its_handoff(pair: tuple[Bridge, Bridge]) -> None:
    _, target = pair
    async with Bridge.launch() as source:
        await source.run(f"import numpy; x = numpy.arange({LARGE}.0)")
        await source.handoff("x", to=target)
    assert await target.pull("float(x.sum())") == LARGE * (LARGE - 1) / 2
    await target.run("x += 1")
    await wait_until_nothing_is_leased(target)


async def test_handoffs_around_a_ring_of_three_kernels(pair: tuple[Bridge, Bridge]) -> None:
    one, other = pair
    async with Bridge.launch() as third:
        await one.run(f"import numpy; x = numpy.zeros({LARGE})")
        ring = [one, other, third]
        for n in range(9):
            source, target = ring[n % 3], ring[(n + 1) % 3]
            await source.run("x += 1")
            await source.handoff("x", to=target)
        assert await one.pull("float(x[0])", "float(x[-1])") == (9, 9)
        await wait_until_nothing_is_leased(*ring)


async def test_a_handoff_between_two_bridges_of_one_kernel(pair: tuple[Bridge, Bridge]) -> None:
    kernel, _ = pair
    await kernel.run(f"import numpy; x = numpy.arange({LARGE}.0); held = x")
    async with Bridge.attach(kernel.info.connection_file, lane="direct") as same:
        await kernel.handoff("x", to=same)
        assert await same.pull("x is held", "bool((x == held).all())") == (False, True)
        await wait_until_nothing_is_leased(kernel, same)


async def test_a_fork_of_the_target_does_not_change_its_objects(
    pair: tuple[Bridge, Bridge],
) -> None:
    source, target = pair
    await source.run(f"import numpy; x = numpy.zeros({LARGE})")
    await source.handoff("x", to=target)
    await target.run("""
import os
child = os.fork()
if not child:
    x[:] = 5
    os._exit(0)
os.waitpid(child, 0)
""")
    assert await target.pull("float(x.sum())") == 0
    for n in range(3):
        await source.run(f"x[:] = {n}")
        await source.handoff("x", to=target)
        assert await target.pull("float(x.sum())") == n * LARGE


HANDOFFS = """
import asyncio, os, sys
from bridgehead import Bridge

async def main():
    async with (
        Bridge.attach(sys.argv[1], lane="direct") as source,
        Bridge.attach(sys.argv[2], lane="direct") as target,
    ):
        n = 0
        while sys.argv[3] == "endless" or n < 6:
            await source.run(f"x[:] = {n}")
            await source.handoff("x", to=target)
            if sys.argv[3] == "forking":
                child = os.fork()
                if not child:
                    os._exit(0)
                os.waitpid(child, 0)
                await target.run("x += 1; held.append(x)")
            n += 1
            print(n, flush=True)

asyncio.run(main())
"""


async def program_in_between(one: Bridge, other: Bridge, how: str) -> asyncio.subprocess.Process:
    """Start a program that hands arrays over from one kernel to the other."""
    await one.run(f"import numpy; x = numpy.zeros({LARGE})")
    await other.run("held = []")
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "ignore::DeprecationWarning", "-c", HANDOFFS),
        *(file_of(one), file_of(other), how),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        stdout=asyncio.subprocess.PIPE,
    )


async def test_a_fork_of_the_client_does_not_disturb_handoffs(pair: tuple[Bridge, Bridge]) -> None:
    process = await program_in_between(*pair, "forking")
    await process.communicate()
    assert process.returncode == 0
    expected = [[n + 1.0] * 2 for n in range(6)]
    assert await pair[1].pull("[[float(x[0]), float(x[-1])] for x in held]") == expected
    await wait_until_nothing_is_leased(*pair)


@pytest.mark.slow
async def test_a_killed_client_leaves_no_leases_and_no_partial_object(
    pair: tuple[Bridge, Bridge],
) -> None:
    """The kernels free all its resources; an object that arrived is whole and never changes."""
    one, other = pair
    dice = random.Random(4)
    for _ in range(4):
        process = await program_in_between(one, other, "endless")
        assert process.stdout is not None
        await process.stdout.readline()
        await asyncio.sleep(0.1 * dice.random())
        process.kill()
        await process.communicate()
        for bridge in pair:
            async with asyncio.timeout(30):
                while await memory.socket_threads(bridge) > 1:
                    await asyncio.sleep(0.05)
        first = await other.pull("float(x[0])")
        await one.run("x[:] = -1")
        for _ in range(3):
            assert (await one.pull("x") == -1).all()
        assert await other.pull("set(x.tolist())") == {first}
        await wait_until_nothing_is_leased(*pair)


@pytest.mark.parametrize("lane", LANES)
async def test_a_target_that_cannot_map_segments_gets_messages(
    pair: tuple[Bridge, Bridge], lane: Any
) -> None:
    """The client reads the segment of the source and sends it in messages."""
    one, other = pair
    await other.run("""
import sys
remote = next(m for n, m in sys.modules.items() if n.startswith("_bridgehead"))
def refuse(*args, **options):
    raise OSError("no")
kept, remote.MappedSlab = remote.MappedSlab, refuse
""")
    async with (
        Bridge.attach(one.info.connection_file, lane=lane) as source,
        Bridge.attach(other.info.connection_file, lane="direct") as target,
    ):
        try:
            await source.run(f"import numpy; x = numpy.arange({LARGE}.0)")
            transfer = await source.handoff("x", to=target)
            assert transfer.lane.endswith("buffers")
            assert await target.pull("float(x.sum())") == LARGE * (LARGE - 1) / 2
        finally:
            await other.run("remote.MappedSlab = kept")
        await memory.kernel_leases_nothing(source)
        assert (await source.handoff("x", to=target)).lane.endswith("direct")


async def test_a_handoff_without_shared_memory(pair: tuple[Bridge, Bridge]) -> None:
    one, target = pair
    async with Bridge.attach(one.info.connection_file, lane="direct", pool=0) as source:
        await source.run(f"import numpy; x = numpy.arange({LARGE}.0)")
        await source.handoff("x", to=target)
        assert await target.pull("float(x.sum())") == LARGE * (LARGE - 1) / 2


async def test_a_removed_remote_part_is_installed_again(pair: tuple[Bridge, Bridge]) -> None:
    source, target = pair
    await source.run(f"import numpy; x = numpy.arange({LARGE}.0)")
    for bridge in pair:
        await source.handoff("x", to=target)
        await bridge.run("""
import sys
for name in [n for n in sys.modules if n.startswith("_bridgehead")]:
    del sys.modules[name]
""")
        await source.handoff("x", to=target)
        assert await target.pull("float(x.sum())") == LARGE * (LARGE - 1) / 2


async def test_a_handoff_waits_for_the_running_cells_of_both_kernels(
    pair: tuple[Bridge, Bridge],
) -> None:
    source, target = pair
    await source.run(f"import time, numpy; x = numpy.zeros({LARGE}); n = 0")
    await target.run("import time; seen = []")
    work = [
        source.run("time.sleep(0.3); x += 1; n += 1"),
        target.run("time.sleep(0.1); seen.append('n' in globals())"),
        source.handoff("x", "n", to=target),
        source.run("x += 1; n += 1"),
        target.run("time.sleep(0.2); seen.append((float(x.sum()), n))"),
        source.handoff("x", "n", to=target),
        target.run("seen.append((float(x.sum()), n)); n = None"),
    ]
    await asyncio.gather(*work)
    assert await target.pull("seen", "n") == ([False, (LARGE, 1), (2 * LARGE, 2)], None)


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.slow
async def test_a_handoff_cancelled_at_any_instant_leaves_nothing(lane: Any) -> None:
    dice = random.Random(3)
    async with Bridge.launch(lane=lane) as source, Bridge.launch() as target:
        await source.run("import numpy; x = numpy.arange(4_000_000.0)")
        await source.handoff("x", to=target)
        started = time.perf_counter()
        await source.handoff("x", to=target)
        takes = time.perf_counter() - started
        await target.push(x=None)
        for n in range(12):
            task = asyncio.ensure_future(source.handoff("x", to=target))
            await asyncio.sleep(takes * 1.5 * dice.random())
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.gather(source.push(y=n), target.push(y=n))
            assert await target.pull("x is None or float(x.sum())") in (True, 7999998000000.0)
        del task
        await wait_until_nothing_is_leased(source, target)


@pytest.mark.parametrize("which", ["source", "target"])
@pytest.mark.parametrize("lane", ["direct", "buffers"])
async def test_a_kernel_that_is_killed_during_a_handoff_is_reported(lane: Any, which: str) -> None:
    async with Bridge.launch(lane=lane) as source, Bridge.launch(lane=lane) as target:
        dying, living = (source, target) if which == "source" else (target, source)
        for n in range(4):
            await source.run("import numpy; x = numpy.ones(10_000_000)")
            await target.push(x=None)
            task = asyncio.ensure_future(source.handoff("x", to=target))
            await asyncio.sleep(0.03 * n)
            os.kill(dying.info.pid, signal.SIGKILL)
            async with reported_within(0.5):
                (outcome,) = await all_of(task)
            if isinstance(outcome, BaseException):
                assert isinstance(outcome, KernelDied), outcome
                assert f"the {which} of a handoff, pid {dying.info.pid}" in outcome.__notes__[0]
            if living is target:
                found = await target.pull("x is None or float(x.sum())")
                assert found in (True, 10_000_000)
            del outcome, task
            await dying.restart()
            await goes_on(source)
            await goes_on(target)
            await wait_until_nothing_is_leased(source, target)


@pytest.mark.parametrize("which", ["source", "target"])
async def test_a_kernel_that_dies_before_a_handoff_starts_is_reported(which: str) -> None:
    """The source runs a cell, so nothing was sent to the target yet; its death is reported."""
    async with Bridge.launch() as source, Bridge.launch() as target:
        await source.push(x=1)
        cell = asyncio.ensure_future(source.run("import time; time.sleep(30)"))
        await asyncio.sleep(0.2)
        task = asyncio.ensure_future(source.handoff("x", to=target))
        await asyncio.sleep(0.1)
        dying = source if which == "source" else target
        os.kill(dying.info.pid, signal.SIGKILL)
        async with reported_within(0.5):
            with pytest.raises(KernelDied) as caught:
                await task
        assert f"the {which} of a handoff" in caught.value.__notes__[0]
        if which == "target":
            await source.interrupt()
        with pytest.raises((KernelDied, RemoteError)):
            await cell


@pytest.mark.slow
async def test_a_stopped_target_and_then_a_dead_source_are_reported() -> None:
    async with Bridge.launch() as source, Bridge.launch() as target:
        await source.push(x=1)
        await until(lambda: target._transport.has_pulse)
        with stopped(target):
            async with reported_within(5):
                with pytest.raises(KernelUnresponsive) as unresponsive:
                    await source.handoff("x", to=target)
            assert (
                f"the target of a handoff, pid {target.info.pid}" in unresponsive.value.__notes__[0]
            )
            assert await source.pull("x") == 1  # the failed handoff does not block it
            task = asyncio.ensure_future(source.handoff("x", to=target))
            await asyncio.sleep(0.2)
            os.kill(source.info.pid, signal.SIGKILL)
            async with reported_within(0.5):
                with pytest.raises(KernelDied) as died:
                    await task
            assert f"the source of a handoff, pid {source.info.pid}" in died.value.__notes__[0]
        await source.restart()
        await source.push(x=2)
        await source.handoff("x", to=target)
        assert await target.pull("x") == 2


@pytest.mark.parametrize("which", ["source", "target"])
@pytest.mark.slow
async def test_a_restart_during_a_handoff_is_reported(which: str) -> None:
    dice = random.Random(1)
    async with Bridge.launch() as source, Bridge.launch() as target:
        for _ in range(4):
            await source.run("import numpy; x = numpy.ones(10_000_000)")
            tasks = [asyncio.ensure_future(source.handoff("x", to=target)) for _ in range(2)]
            await asyncio.sleep(dice.random() * 0.1)
            await (source if which == "source" else target).restart()
            for outcome in await all_of(*tasks):
                if isinstance(outcome, BaseException):
                    assert isinstance(outcome, (KernelRestarted, ReplyLost)), outcome
            del outcome, tasks
            await goes_on(source)
            await goes_on(target)
        await wait_until_nothing_is_leased(source, target)


async def test_an_unnoticed_restart_of_the_target_is_reported_before_the_source_is_read(
    pair: tuple[Bridge, Bridge],
) -> None:
    source, _ = pair
    await source.run("""
read = 0
class Counted:
    def __reduce__(self):
        global read
        read += 1
        return int, ()
x = Counted()
""")
    async with Bridge.launch() as owner:
        async with Bridge.attach(owner.info.connection_file) as target:
            await owner.restart()
            with pytest.raises(KernelRestarted) as caught:
                await source.handoff("x", to=target)
            assert "the target of a handoff" in caught.value.__notes__[0]
            assert await source.pull("read") == 0
            await source.handoff("x", to=target)
            assert await owner.pull("x") == 0


@pytest.mark.slow
async def test_many_handoffs_among_three_kernels_while_some_are_cancelled() -> None:
    dice = random.Random(9)
    async with Fleet.launch(3) as ring:
        await ring.run(f"import numpy; x = numpy.ones({LARGE})")
        for _ in range(8):
            tasks = []
            for _ in range(10):
                source, target = dice.sample(list(ring), 2)
                tasks.append(asyncio.ensure_future(source.handoff("x", to=target)))
            await asyncio.sleep(dice.random() * 0.02)
            for task in dice.sample(tasks, 3):
                task.cancel()
            async with asyncio.timeout(60):
                for outcome in await all_of(*tasks):
                    assert not isinstance(outcome, Exception), outcome
            del tasks, task
        assert await ring.pull("float(x.sum())") == [LARGE] * 3
        await wait_until_nothing_is_leased(*ring)


async def test_a_module_that_the_target_lacks_is_named(
    pair: tuple[Bridge, Bridge], tmp_path: Path
) -> None:
    source, target = pair
    (tmp_path / "only_in_source.py").write_text("class Thing:\n    pass\n")
    await source.run(f"import sys; sys.path.insert(0, {str(tmp_path)!r})")
    await source.run("import only_in_source; thing, good = only_in_source.Thing(), 1")
    with pytest.raises(MissingInKernel, match="only_in_source") as caught:
        await source.handoff("good", "thing", to=target)
    assert caught.value.module == "only_in_source"
    assert target.info.executable in str(caught.value)
    assert not await target.exists("good")


async def test_an_interrupt_while_the_source_pickles_is_reported(
    pair: tuple[Bridge, Bridge],
) -> None:
    source, target = pair
    await source.run("""
class Slow:
    def __reduce__(self):
        import time
        end = time.monotonic() + 30
        while time.monotonic() < end:
            time.sleep(0.01)
        return int, ()
slow = Slow()
""")
    task = asyncio.ensure_future(source.handoff("slow", to=target))
    await asyncio.sleep(0.3)
    await source.interrupt()
    async with reported_within(1):
        with pytest.raises(BridgeError, match="KeyboardInterrupt"):
            await task
    assert not await target.exists("slow")
    await goes_on(source)
    await goes_on(target)


# ---------------------------------------------------------------- SyncBridge, and other Pythons


@pytest.mark.slow
def test_a_handoff_of_sync_bridges_shares_the_segment() -> None:
    with SyncBridge.launch() as source, SyncBridge.launch() as target:
        source.run(MODEL + f"import numpy; x = numpy.arange({LARGE}.0)")
        before = own_memory()
        for _ in range(5):
            assert source.handoff("x", "model", to=target).lane == "direct"
        assert own_memory() - before < 10 * MIB
        assert target.pull("float(x.sum())", "model.twice()") == (LARGE * (LARGE - 1) / 2, 42)
        del target["x"]
        end = time.monotonic() + 30
        while source.call(memory._count_in_kernel, by_value=[memory])["leases"]:
            assert time.monotonic() < end
            time.sleep(0.05)


@pytest.mark.elsewhere
@pytest.mark.parametrize("name", [NEWEST, OLDEST])
async def test_a_handoff_between_python_versions(
    pair: tuple[Bridge, Bridge], elsewhere: Callable[..., str], name: str
) -> None:
    """Data crosses. Code is refused before any name is bound, and the error names both versions.

    Code crosses between two kernels of the same version, whatever version the client runs.
    """
    one, _ = pair
    async with Bridge.launch(elsewhere(name)) as other, Bridge.launch(elsewhere(name)) as same:
        assert other.info.python[:2] != one.info.python[:2]
        for source, target in ((one, other), (other, one)):
            versions = [".".join(map(str, bridge.info.python[:2])) for bridge in (source, target)]
            await source.run(MODEL + "data = {'a': [1]}")
            await target.push(model=None)
            await source.handoff("data", to=target)
            assert await target.pull("data") == {"a": [1]}
            message = (
                rf"carries code of Python {versions[0]}, and the target runs Python {versions[1]}"
            )
            with pytest.raises(IncompatiblePython, match=message):
                await source.handoff("data", "model", to=target)
            assert await target.pull("model") is None
        await other.run(MODEL + f"import numpy; x = numpy.arange({LARGE}.0)")
        await other.handoff("model", "x", to=same)
        assert await same.pull("model.twice()", "float(x[-1])") == (42, LARGE - 1)
