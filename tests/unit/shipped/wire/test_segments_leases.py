"""The receiver's leases of segments: how long they last, and what a fork changes.

Rule: real memory and real forks, each in a process of its own, without a kernel.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import mmap
import os
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

from bridgehead._shipped.wire.errors import WireError
from bridgehead._shipped.wire.leases import SlabCache, mapped
from bridgehead._shipped.wire.segments import Pool
from bridgehead._shipped.wire.slabs import Slab, shared_memory
from support.channels import needs_segments
from support.shared import (
    KIB,
    MIB,
    WHOLE,
    descriptors,
    filled,
    handed,
    in_a_process,
    leased,
    released,
    resident,
    sent,
)

pytestmark = needs_segments


def test_views_are_aligned_and_writable_and_hold_what_was_written(pool: Pool) -> None:
    maps = SlabCache()
    arrays = [np.arange(n, dtype=kind) for n in (1, 7, 1000, 99_999) for kind in "bhdD"]
    segment, back = sent(pool, maps, *arrays)
    for array, copy in zip(arrays, back, strict=True):
        assert copy.ctypes.data % 64 == 0
        assert copy.flags.writeable
        assert np.array_equal(copy, array)
        copy[:] = 0
    assert len(pool.slabs) == 1
    assert segment.leases == 1


def test_empty_frames_among_others_arrive(pool: Pool) -> None:
    _, (none, one, last) = sent(pool, SlabCache(), np.zeros(0), np.arange(10_000.0), np.zeros(0))
    assert none.size == last.size == 0
    assert one.sum() == 49_995_000


def test_an_array_lies_at_the_address_of_the_mapping(pool: Pool) -> None:
    maps = SlabCache()
    segment, (array,) = sent(pool, maps, np.ones(MIB, "u1"))
    mapping = maps.known[segment.slab.number]
    start = ctypes.addressof(mapping.exporter.from_buffer(mapping.map))
    assert array.ctypes.data == start
    assert start % mmap.PAGESIZE == 0


def test_a_lease_ends_with_the_last_array_and_not_before(pool: Pool) -> None:
    maps = SlabCache()
    segment, arrays = sent(pool, maps, *[np.full(1000, n) for n in range(50)])
    last = arrays[17][3:5]
    deeper = last.reshape(2, 1).T[0]
    del arrays
    assert released(pool, maps) == []
    del last
    assert released(pool, maps) == []
    assert segment.leases == 1
    assert deeper.tolist() == [17, 17]
    deeper[:] = 4
    del deeper
    assert released(pool, maps) == [segment.number]
    assert segment.leases == 0


def test_a_lease_ends_in_any_thread_in_which_the_last_array_dies(pool: Pool) -> None:
    maps = SlabCache()
    segment, arrays = sent(pool, maps, np.arange(100_000))
    holder = [arrays.pop()]
    thread = threading.Thread(target=holder.clear)
    thread.start()
    thread.join()
    assert released(pool, maps) == [segment.number]


def test_a_cycle_keeps_a_lease_until_it_is_collected(pool: Pool) -> None:
    maps = SlabCache()
    segment, arrays = sent(pool, maps, np.arange(100_000))
    circle: list[Any] = [arrays.pop()]
    circle.append(circle)
    gc.disable()
    try:
        del circle
        assert not maps.released
    finally:
        gc.enable()
    assert released(pool, maps) == [segment.number]


def test_a_leased_segment_is_not_reused(pool: Pool) -> None:
    maps = SlabCache()
    first, (old,) = sent(pool, maps, np.full(WHOLE, 1, "u1"))
    part = old[1000:1010]
    del old
    for n in range(2, 22):
        segment, (new,) = sent(pool, maps, np.full(WHOLE, n, "u1"))
        assert segment is not first
        assert new[0] == n
        del new
        released(pool, maps)
        assert (part == 1).all()
    assert len(pool.slabs) == 2
    del part
    released(pool, maps)
    assert {slab.leased for slab in pool.slabs.values()} == {0}


def test_earlier_content_shows_in_no_later_view(pool: Pool) -> None:
    maps = SlabCache()
    first, (large,) = sent(pool, maps, np.full(2 * WHOLE, 255, "u1"))
    del large
    released(pool, maps)
    again, (small,) = sent(pool, maps, np.zeros(WHOLE, "u1"))
    assert again is first
    assert small.nbytes == WHOLE
    assert not small.any()


def test_each_of_several_receivers_has_its_own_lease() -> None:
    """Several receivers lease one segment; each has a private mapping of it."""
    pool, first, second = Pool(0.5, private=True), SlabCache(), SlabCache()
    segment, _ = filled(pool, np.full(MIB, 7, "u1"))
    pool.lease(segment)
    handed(first, segment)
    handed(second, segment)
    one = np.frombuffer(leased(first, segment, [MIB])[0], "u1")
    two = np.frombuffer(leased(second, segment, [MIB])[0], "u1")
    assert not first.cold  # mapping pages in advance would copy every page for each receiver
    one[:] = 1
    assert (two == 7).all()
    two[:] = 2
    assert (one == 1).all()
    assert bytes(segment.read([MIB])[0]) == b"\7" * MIB
    del one
    released(pool, first)
    assert segment.leases == 1
    # The next lease shows what is in the segment, and not what the last lease wrote.
    again = np.frombuffer(leased(first, segment, [MIB])[0], "u1")
    assert (again == 7).all()
    assert (two == 2).all()
    pool.close()


def test_a_lease_outlives_its_segment_cache(pool: Pool) -> None:
    maps = SlabCache()
    segment, (array,) = sent(pool, maps, np.arange(100_000))
    maps.forget(segment.slab.number)
    pool.close()
    del maps
    gc.collect()
    array += 1
    assert array.sum() == 5_000_050_000


def test_a_view_beyond_the_segment_is_refused(pool: Pool) -> None:
    maps = SlabCache()
    segment = pool.take([MIB])
    assert segment is not None
    handed(maps, segment)
    room = segment.slab.capacity
    for sizes in ([room + 1], [1] * (room // 64 + 1), [1 << 62, 1 << 62]):
        with pytest.raises(ValueError, match="in a slab of"):
            leased(maps, segment, sizes)
    with pytest.raises(KeyError):
        maps.lease(segment.slab.number + 1, segment.number, 0, [1])
    for start in (1, 8, 63):
        with pytest.raises(ValueError, match="not aligned"):
            maps.lease(segment.slab.number, segment.number, start, [1])
    assert not maps.released


# ---------------------------------------------------------------- pages


def test_pages_are_mapped_once_and_before_they_are_accessed(pool: Pool) -> None:
    """Pages are mapped up to the end of the lease, and keep their content."""
    maps, before = SlabCache(), resident()
    pool.give_back(filled(pool, np.ones(8 * MIB, "u1"))[0])
    for mib, cold in ((4, True), (8, True), (8, False), (6, False)):
        nbytes = mib * MIB
        _, (array,) = sent(pool, maps, np.full(nbytes, mib, "u1"))
        assert bool(maps.cold) == cold
        maps.populate()
        assert not maps.cold
        mapped = resident() - before
        array[::4096] += 1
        assert (array[::4096] == mib + 1).all()
        assert (array[1::4096] == mib).all()
        assert resident() - before - mapped < 1 * KIB
        del array
        released(pool, maps)
    assert len(pool.slabs) == 1


def test_the_slab_of_a_leased_view_is_found(pool: Pool) -> None:
    maps = SlabCache()
    views = []
    for size in (10, WHOLE, 100_000):
        segment, sizes = filled(pool, np.full(size, 1, "u1"))
        if segment.slab.number not in maps.known:
            handed(maps, segment)
        (view,) = leased(maps, segment, sizes)
        views.append((view, maps.known[segment.slab.number]))
    for view, slab in views:
        assert mapped(view) is slab
        assert mapped(view[:3]) is slab
    assert mapped(memoryview(bytearray(10))) is None


def test_pages_without_a_lease_are_not_mapped(pool: Pool) -> None:
    """Frames for a cancelled call keep no memory, and cost nothing later."""
    maps, before, files = SlabCache(), resident(), descriptors()
    segment, arrays = sent(pool, maps, np.ones(8 * MIB, "u1"))
    del arrays
    assert released(pool, maps) == [segment.number]
    maps.populate()
    assert resident() - before < 1 * KIB
    _, (array,) = sent(pool, maps, np.full(8 * MIB, 2, "u1"))
    del array
    released(pool, maps)
    pool.trim(0)
    maps.forget(segment.slab.number)
    assert descriptors() == files  # it is closed, though its pages were still to be mapped
    maps.populate()
    _, (array,) = sent(pool, maps, np.full(8 * MIB, 3, "u1"))
    assert maps.cold
    maps.populate()
    assert (array == 3).all()


def unwritten(maps: SlabCache, capacity: int) -> Slab:
    """Return a slab without memory that a receiver has mapped."""
    slab = Slab(capacity)
    maps.add(slab.number, os.dup(slab.file), capacity, False, False)
    return slab


@pytest.mark.skipif(shared_memory() != "sealed", reason="plain memory is of trusted senders")
def test_frames_without_memory_are_refused_before_they_take_any() -> None:
    maps, before = SlabCache(), resident()
    slab = unwritten(maps, 64 * MIB)
    frames = maps.lease(slab.number, 1, 0, [32 * MIB, 16 * MIB])
    with pytest.raises(WireError, match="of which 0 were written"):
        maps.check_memory(frames)
    os.pwrite(slab.file, bytes(MIB), 0)
    with pytest.raises(WireError, match=f"of which {MIB} were written"):
        maps.check_memory(frames)
    maps.check_memory(maps.lease(slab.number, 2, 0, [MIB // 2, MIB // 2]))
    # The first lease of a stretch maps all that is before it.
    frames = maps.lease(slab.number, 3, 63 * MIB, [MIB])
    maps.check_memory(frames)
    maps.populate()
    assert resident() - before < 2 * KIB


def test_frames_that_a_pool_has_filled_have_memory(pool: Pool) -> None:
    maps = SlabCache()
    for size in (1, 4095, 70_000, 3 * MIB, WHOLE, 2 * WHOLE, WHOLE, 70_000):
        segment, sizes = filled(pool, np.full(size, 1, "u1"), np.zeros(0), np.full(9, 1, "u1"))
        if segment.slab.number not in maps.known:
            handed(maps, segment)
        views = leased(maps, segment, sizes)
        maps.check_memory(views)
        del views
        if size % 2:
            released(pool, maps)
            pool.trim(0)  # the pages of free stretches are dropped
    maps.check_memory([memoryview(bytearray(10))])  # in no segment


@pytest.mark.slow
def test_several_threads_can_map_pages(pool: Pool) -> None:
    """Leased memory can be read, and no thread fails because another was quicker."""
    segment, (total,) = filled(pool, np.full(32 * MIB, 5, "u1"))
    current, failures, ended = [SlabCache()], [], threading.Event()

    def populate() -> None:
        try:
            while not ended.is_set():
                current[0].populate()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=populate) for _ in range(3)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for _ in range(8):
            current[0] = maps = SlabCache()
            handed(maps, segment)
            for nbytes in range(mmap.PAGESIZE, total // 8, mmap.PAGESIZE):
                views = [leased(maps, segment, [n * nbytes])[0] for n in (1, 2, 4, 8)]
                assert all(view[-1] == 5 for view in views)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert not failures, failures


# ---------------------------------------------------------------- files that are not segments


@pytest.mark.parametrize("seals", [0, fcntl.F_SEAL_GROW, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL])
def test_a_file_that_could_be_truncated_is_refused(seals: int) -> None:
    """H2: a segment without the seal could lead to SIGBUS."""
    file = os.memfd_create("loose", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(file, MIB)
    if seals:
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
    maps, before = SlabCache(), os.fstat(file).st_ino
    with pytest.raises(OSError, match="could be truncated"):
        maps.add(1, file, MIB, False, False)
    assert not maps.known
    gc.collect()
    with pytest.raises(OSError):  # its file was closed
        assert os.fstat(file).st_ino != before
        raise OSError


def test_a_segment_smaller_than_announced_is_refused(pool: Pool) -> None:
    segment, _ = filled(pool, np.ones(MIB, "u1"))
    with pytest.raises(OSError, match="could be truncated"):
        SlabCache().add(1, os.dup(segment.slab.file), segment.slab.capacity + 1, False, False)


@pytest.mark.parametrize("what", ["a pipe", "a file", "a memfd that refuses seals"])
def test_another_kind_of_file_is_refused(what: str, tmp_path: Any) -> None:
    if what == "a pipe":
        file, other = os.pipe()
        os.close(other)
    elif what == "a file":
        (tmp_path / "f").write_bytes(bytes(MIB))
        file = os.open(tmp_path / "f", os.O_RDWR)
    else:
        file = os.memfd_create("loose", os.MFD_CLOEXEC)
        os.ftruncate(file, MIB)
    with pytest.raises(OSError):
        SlabCache().add(1, file, MIB, False, False)


@pytest.mark.parametrize("capacity", [-1, 1 << 62, (1 << 64) - 1])
def test_a_capacity_beyond_any_machine_is_refused(pool: Pool, capacity: int) -> None:
    maps, (segment, _) = SlabCache(), filled(pool, np.ones(MIB, "u1"))
    with pytest.raises((OSError, ValueError, OverflowError)):
        maps.add(1, os.dup(segment.slab.file), capacity, False, False)
    assert not maps.known


# ---------------------------------------------------------------- forks


# The same memory in a part of a shared slab, and in a slab of its own.
both_kinds = pytest.mark.parametrize("size", [MIB, WHOLE], ids=["shared", "whole"])


@both_kinds
@pytest.mark.parametrize("warm", [False, True])
def test_a_forked_child_writes_into_its_own_copy(warm: bool, size: int) -> None:
    found = in_a_process(f"""
MIB = {size}
pool, maps = Pool(0.5), SlabCache()
segment, (array,) = sent(pool, maps, np.zeros(MIB, "u1"))
if {warm}:
    del array
    gc.collect()
    pool.give_back(segment)
    maps.released.clear()
    segment, (array,) = sent(pool, maps, np.full(MIB, 5, "u1"))
    assert len(pool.slabs) == 1
array[:] = 1

def child():
    seen = int(array.sum())
    array[:] = 9
    return seen, int(array.sum())

seen = in_child(child)
here = int(array.sum())
array[:] = 3
say([*seen, here, int(array.sum()), array.ctypes.data % 64])
""")
    assert found == [size, 9 * size, size, 3 * size, 0]


@both_kinds
def test_a_forked_child_does_not_see_what_the_parent_writes(size: int) -> None:
    found = in_a_process(
        f"MIB = {size}"
        + """
pool, maps = Pool(0.5), SlabCache()
segment, (array,) = sent(pool, maps, np.ones(MIB, "u1"))
go, ready = os.pipe()
began, forked = os.pipe()

def child():
    os.write(forked, b"x")
    assert os.read(go, 1)
    return int(array.sum())

import threading
def write():
    assert os.read(began, 1)
    array[:] = 7
    os.write(ready, b"x")
threading.Thread(target=write).start()
say([in_child(child), int(array.sum())])
"""
    )
    assert found == [size, 7 * size]


def test_a_segment_made_private_by_a_fork_is_not_used_again() -> None:
    """The receiver would not see what the sender writes into the file."""
    found = in_a_process("""
pool, maps = Pool(0.5), SlabCache()
segment, (array,) = sent(pool, maps, np.ones(WHOLE, "u1"))
in_child(lambda: 0)
part = array[5:9]
del array
gc.collect()
quiet = list(maps.released)
del part
gc.collect()
numbers = list(maps.released)
say([quiet, [number + segment.number for number in numbers], list(maps.known)])
""")
    assert found == [[], [0], []]


def test_pages_mapped_after_a_fork_keep_their_content_and_are_private() -> None:
    """Pages of a segment that became private keep their content, and stay private."""
    found = in_a_process("""
pool, maps = Pool(0.5), SlabCache()
segment, (array,) = sent(pool, maps, np.ones(MIB, "u1"))
array[:10] = 5

def child():
    maps.populate()
    array[10:] = 9
    return int(array[:10].sum()), int(array[11])

seen = in_child(child)
maps.populate()
array[:5] = 0
say([*seen, int(array[:10].sum()), int(array[11]), bytes(segment.read([MIB])[0])[:12].hex()])
""")
    assert found == [50, 9, 25, 1, "05" * 10 + "01" * 2]


def test_a_segment_that_arrives_after_a_fork_in_the_same_slab_is_right() -> None:
    """The fork made the slab private; what the sender writes from then on still arrives."""
    found = in_a_process("""
pool, maps = Pool(0.5), SlabCache()
first, (old,) = sent(pool, maps, np.full(MIB, 1, "u1"))
free, (before,) = sent(pool, maps, np.full(MIB, 2, "u1"))
before[:] = 99
del before
released(pool, maps)
go, ready = os.pipe()
began, forked = os.pipe()

def arrivals():
    found = []
    for n in (3, 4):  # where the freed segment was, and where none was yet
        segment, (new,) = sent(pool, maps, np.full(MIB, n, "u1"))
        assert segment.slab is first.slab
        found.append(int(new[0]))
        new += 10
        found.append(int(new.sum()) // MIB)
        kept.append(new)
    old[:] = 7
    os.write(ready, b"x")
    return found

def child():
    os.write(forked, b"x")
    assert os.read(go, 1)
    return int(old.sum()) // MIB

import threading
kept, results = [], []
def later():
    assert os.read(began, 1)
    results.extend(arrivals())
thread = threading.Thread(target=later)
thread.start()
seen = in_child(child)
thread.join()
del old
kept.clear()
numbers = released(pool, maps)
again, (new,) = sent(pool, maps, np.full(MIB, 5, "u1"))
say([seen, results, all(number < 0 for number in numbers), again.slab is first.slab, int(new[5])])
""")
    assert found == [1, [3, 13, 4, 14], True, False, 5]


def test_frames_that_arrive_after_a_fork_are_shared_and_right() -> None:
    found = in_a_process("""
pool, maps = Pool(0.5), SlabCache()
sums = []
for n in range(1, 9):
    segment, (array,) = sent(pool, maps, np.full(MIB, n, "u1"))
    child = in_child(lambda: int(array.sum())) if n % 2 else None
    array += 1
    sums.append([child, int(array.sum()) // MIB])
    del array
    gc.collect()
    released(pool, maps)
say([sums, len(pool.slabs)])
""")
    assert found[0] == [[n * MIB if n % 2 else None, n + 1] for n in range(1, 9)]
    assert found[1] <= 2


def test_a_fork_does_not_taint_an_idle_mapping() -> None:
    """No array is in it, so parent and child have nothing to share."""
    found = in_a_process("""
pool, maps = Pool(0.5), SlabCache()
segment, (array,) = sent(pool, maps, np.ones(WHOLE, "u1"))
del array
gc.collect()
pool.give_back(segment)
in_child(lambda: 0)
again, (array,) = sent(pool, maps, np.full(WHOLE, 2, "u1"))
say([again is segment, int(array.sum())])
""")
    assert found == [True, 2 * WHOLE]


def test_a_child_that_ends_releases_no_lease() -> None:
    """Its copies of leases do not count: the segment stays leased to the parent."""
    found = in_a_process("""
pool, maps = Pool(0.5), SlabCache()
segment, (array,) = sent(pool, maps, np.ones(MIB, "u1"))

def child():
    global array
    del array
    gc.collect()
    pool.trim(0)
    pool.close()
    return 0

in_child(child)
array += 1
say([segment.leases, list(maps.released), int(array.sum())])
""")
    assert found == [1, [], 2 * MIB]


def test_a_grandchild_and_a_second_child_have_their_own_copies() -> None:
    found = in_a_process("""
pool, maps = Pool(0.5), SlabCache()
segment, (array,) = sent(pool, maps, np.ones(MIB, "u1"))

def child():
    array[:] = 2
    def grandchild():
        array[:] = 3
        return int(array[0])
    return [in_child(grandchild), int(array[0])]

first = in_child(child)
second = in_child(lambda: int(array[0]))
say([first, second, int(array[0])])
""")
    assert found == [[3, 2], 1, 1]


def test_a_hundred_forks_cost_no_mappings_or_files() -> None:
    found = in_a_process("""
pool, maps = Pool(0.5), SlabCache()
segment, (array,) = sent(pool, maps, np.ones(MIB, "u1"))
in_child(lambda: 0)
def counts():
    with open("/proc/self/maps") as lines:
        return len(lines.readlines()), descriptors()
before = counts()
for _ in range(100):
    in_child(lambda: 0)
after = counts()
say([after[0] - before[0] < 10, after[1] - before[1]])
""")
    assert found == [True, 0]


def test_subprocesses_inherit_nothing(pool: Pool) -> None:
    maps = SlabCache()
    sent(pool, maps, np.ones(MIB, "u1"))
    listed = subprocess.run(
        [sys.executable, "-c", "import os\nfor n in range(3, 64):\n"
         " try: print(os.readlink(f'/proc/self/fd/{n}'))\n except OSError: pass"],
        capture_output=True, text=True, close_fds=False, check=True,
    ).stdout  # fmt: skip
    assert "bridgehead" not in listed
