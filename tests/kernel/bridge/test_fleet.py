"""Fleets of real kernels: one object for all, and an outcome for each.

Rule: one fleet of three kernels, shared by the tests; a test that ends kernels starts its own.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from bridgehead import Bridge, Fleet, KernelDied, RemoteError
from support.kit import reported_within, until

LARGE = np.arange(1_000_000.0)


@pytest.fixture(scope="module")
async def fleet() -> AsyncIterator[Fleet]:
    async with Fleet.launch(3) as opened:
        yield opened


def memory_files(fleet: Fleet) -> int:
    """Count the segments of this process that the kernels have mapped, as /proc shows them."""
    found = set()
    for bridge in fleet:
        for line in Path(f"/proc/{bridge.info.pid}/maps").read_text().splitlines():
            if "memfd:bridgehead" in line:
                found.add(line.split()[4])
    return len(found)


async def test_all_kernels_get_the_same_objects_and_results_are_in_order(fleet: Fleet) -> None:
    transfers = await fleet.push(x=[1, 2], by="name")
    assert [transfer.names for transfer in transfers] == [("x", "by")] * 3
    assert await fleet.pull("x", "by") == [([1, 2], "name")] * 3
    pids = [bridge.info.pid for bridge in fleet]
    assert await fleet.call(os.getpid) == pids
    results = await fleet.run("import os; os.getpid()")
    assert [result.data["text/plain"] for result in results] == [str(pid) for pid in pids]
    assert (len(fleet), fleet[1], list(fleet)) == (3, fleet[1], [fleet[0], fleet[1], fleet[2]])
    assert repr(fleet).startswith("<Fleet of 3: ")


async def test_an_array_is_in_memory_once_and_each_kernel_sees_its_own_changes(
    fleet: Fleet,
) -> None:
    transfers = await fleet.push(a=LARGE)
    assert {transfer.lane for transfer in transfers} == {"direct"}
    assert memory_files(fleet) == 1
    await fleet[0].run("a[:] = -1")
    assert await fleet.pull("float(a.sum())") == [-LARGE.size, LARGE.sum(), LARGE.sum()]
    # Kernel 0 changed its copy only; the arrays of the next pushes are right in every kernel.
    for factor in (2, 3, 4):
        await fleet.push(a=LARGE * factor)
        assert await fleet.pull("bool(a.flags.writeable)") == [True] * 3
        for pulled in await fleet.pull("a"):
            assert np.array_equal(pulled, LARGE * factor)


async def test_memory_that_one_kernel_still_uses_is_not_overwritten(fleet: Fleet) -> None:
    await fleet.push(a=LARGE)
    await fleet[1].run("held = a[10:20]")
    for factor in range(2, 8):
        await fleet.push(a=LARGE * factor)
    assert await fleet[1].pull("held.tolist()") == LARGE[10:20].tolist()
    await fleet[1].delete("held")


async def test_memory_leased_to_a_closed_bridges_kernel_is_not_overwritten() -> None:
    """The fleet can no longer learn whether that kernel, which goes on, still uses the memory."""
    async with Bridge.launch() as owner, Bridge.launch() as other:
        leaving = await Bridge.attach(owner.info.connection_file, lane="direct")
        fleet = Fleet([other, leaving])
        await fleet.push(a=LARGE)
        await leaving.aclose()
        for factor in range(2, 7):
            with pytest.raises(ExceptionGroup, match="1 of 2 kernels failed"):
                await fleet.push(a=LARGE * factor)
            assert await other.pull("float(a.sum())") == LARGE.sum() * factor
        assert await owner.pull("float(a.sum())") == LARGE.sum()
        await fleet.aclose()


async def test_a_kernel_cannot_write_into_the_memory_of_the_others(fleet: Fleet) -> None:
    """Every kernel has the file of the segment, sealed against writing."""
    await fleet.push(a=LARGE)
    await fleet[0].run("""
import mmap, os
tried = []
for number in os.listdir("/proc/self/fd"):
    try:
        if "memfd:bridgehead" in os.readlink(f"/proc/self/fd/{number}"):
            size = os.fstat(int(number)).st_size
            mmap.mmap(int(number), size)[:8] = bytes(8)
            tried.append("written")
    except PermissionError:
        tried.append("refused")
    except OSError:
        pass
""")
    assert "refused" in await fleet[0].pull("tried")
    assert await fleet.pull("float(a[1])") == [1.0] * 3
    await fleet[0].delete("tried")


async def test_kernels_on_other_lanes_get_the_objects_too(fleet: Fleet) -> None:
    async with (
        Bridge.attach(fleet[0].info.connection_file, lane="buffers") as buffers,
        Bridge.attach(fleet[1].info.connection_file, lane="inline") as inline,
    ):
        mixed = Fleet([buffers, inline, fleet[2]])
        transfers = await mixed.push(mixed=LARGE)
        assert [transfer.lane for transfer in transfers] == ["buffers", "inline", "direct"]
        assert await fleet.pull("float(mixed.sum())") == [LARGE.sum()] * 3
        await mixed.aclose()
        assert await buffers.pull("1") == 1  # the test passed it in, so it stays open


async def test_an_error_names_its_kernel_and_the_others_are_served(fleet: Fleet) -> None:
    await fleet.push(n=0)
    await fleet[1].run("n = None")
    with pytest.raises(ExceptionGroup, match="1 of 3 kernels failed") as caught:
        await fleet.pull("1 / (n is not None)")
    (error,) = caught.value.exceptions
    assert isinstance(error, RemoteError)
    assert error.__notes__ == [f"kernel 1 of 3, pid {fleet[1].info.pid}"]
    with pytest.raises(ExceptionGroup):
        await fleet.call(abs, "no number")


async def test_a_dead_kernel_does_not_stop_the_others_from_being_served() -> None:
    async with Fleet.launch(2) as fleet:
        os.kill(fleet[0].info.pid, signal.SIGKILL)
        async with reported_within(1):
            with pytest.raises(ExceptionGroup) as caught:
                await fleet.push(a=LARGE, x=1)
        (error,) = caught.value.exceptions
        assert isinstance(error, KernelDied)
        assert "kernel 0 of 2" in error.__notes__[0]
        assert await fleet[1].pull("x", "float(a.sum())") == (1, LARGE.sum())
        await fleet[1].delete("a")
        await fleet[1].exists("a")  # its last message says that the segment is free
        await until(lambda: not any(slab.leased for slab in fleet._fan_out.pool.slabs.values()))


@pytest.mark.slow
async def test_a_cancelled_launch_leaves_no_kernel(
    kernelspec: Callable[..., str], tmp_path: Any
) -> None:
    """The first kernel starts, the other one never answers."""
    first = tmp_path / "first"
    kernel = f'{sys.executable} -m ipykernel_launcher -f "$0"'
    script = f"mkdir {first} 2>/dev/null || exec sleep 60; exec {kernel}"
    name = kernelspec("one-of-two", ["sh", "-c", script, "{connection_file}"])
    before = {child.pid for child in psutil.Process().children(recursive=True)}

    def started() -> set[int]:
        return {child.pid for child in psutil.Process().children(recursive=True)} - before

    opening = asyncio.ensure_future(_opened(Fleet.launch(2, name)))
    await until(lambda: len(started()) >= 2 and first.exists())
    await asyncio.sleep(2)  # by now one of them is open, or almost
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await until(lambda: not started())


async def _opened(opening: Any) -> Fleet:
    fleet: Fleet = await opening
    return fleet


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda bridge: Fleet([]), ValueError, "at least one bridge"),
        (lambda bridge: Fleet([bridge, bridge]), ValueError, "each bridge once"),
        (lambda bridge: Fleet([bridge, 1]), TypeError, "open bridges, not int"),
        (lambda bridge: Fleet.launch(0), ValueError, "at least one kernel, not 0"),
    ],
)
async def test_wrong_arguments_of_a_fleet_raise_errors(
    fleet: Fleet, make: Any, error: Any, words: str
) -> None:
    with pytest.raises(error, match=words):
        make(fleet[0])


async def test_a_push_without_objects_raises_value_error(fleet: Fleet) -> None:
    with pytest.raises(ValueError, match="needs at least one object"):
        await fleet.push()
