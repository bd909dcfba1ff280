"""The sender's segments and their pool: sizes, shares, seals, and lack of memory.

Rule: real memory and real faults, without a kernel. A test that sets a limit runs in a process of
its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import mmap
import os
import sys
import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridgehead._shipped.wire import segments as _segments
from bridgehead._shipped.wire import slabs as _slabs
from bridgehead._shipped.wire.leases import SlabCache
from bridgehead._shipped.wire.limits import free_memory
from bridgehead._shipped.wire.segments import Pool, Segment
from bridgehead._shipped.wire.slabs import layout
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


@given(st.lists(st.integers(0, 1 << 40), max_size=40))
def test_frames_do_not_overlap_and_are_aligned(sizes: list[int]) -> None:
    offsets, total = layout(sizes)
    end = 0
    for offset, size in zip(offsets, sizes, strict=True):
        assert offset % 64 == 0
        assert offset >= end
        end = offset + size
    assert total >= end
    assert total < sum(sizes) + 64 * len(sizes) + 1


# ---------------------------------------------------------------- the pool


def taken(pool: Pool, *sizes: int) -> list[Segment]:
    found = [pool.take([size]) for size in sizes]
    assert all(found)
    return [segment for segment in found if segment is not None]


def test_the_best_fit_is_reused(pool: Pool) -> None:
    segments = taken(pool, 16 * MIB, 4 * MIB, 8 * MIB)
    for segment in segments:
        pool.give_back(segment)
    assert taken(pool, 6 * MIB) == [segments[2]]
    assert taken(pool, 6 * MIB) == [segments[0]]
    assert taken(pool, 4 * MIB) == [segments[1]]
    assert len(pool.slabs) == 3


def test_a_small_object_does_not_take_a_large_segment(pool: Pool) -> None:
    large = taken(pool, 64 * MIB)
    pool.give_back(large[0])
    small = taken(pool, 64 * KIB)
    assert small[0].capacity < MIB
    assert small != large


def test_a_segment_is_reused_for_nearly_the_same_size(pool: Pool) -> None:
    for nbytes in (10_000_001, 10_000_000, 10_000_002, 10_000_064):
        pool.give_back(taken(pool, nbytes)[0])
    assert len(pool.slabs) == 1


@given(st.integers(1, 1 << 34))
def test_a_segment_wastes_little_memory(nbytes: int) -> None:
    pool = Pool(1.0)
    try:
        segment = pool.take([nbytes])  # memory is taken when it is written to
        if segment is None:
            assert 2 * nbytes > free_memory()  # other processes change the free memory
        else:
            assert nbytes <= segment.capacity <= max(nbytes * 9 // 8, nbytes + mmap.PAGESIZE)
    finally:
        pool.close()


def test_a_pool_takes_no_more_than_its_share_of_the_free_memory() -> None:
    free = free_memory()
    pool = Pool(64 * MIB / free)
    try:
        assert pool.take([2 * free]) is None
        first = taken(pool, 20 * MIB)[0]
        assert pool.take([60 * MIB]) is None
        pool.give_back(first)
        # An unused segment makes room.
        second = taken(pool, 50 * MIB)[0]
        assert list(pool.slabs.values()) == [second.slab]
        assert first.slab.file == -1
    finally:
        pool.close()


def test_a_pool_with_a_share_of_zero_has_no_segment() -> None:
    assert Pool(0).take([1]) is None


def test_idle_segments_are_closed(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    used, idle = taken(pool, WHOLE, WHOLE)
    pool.give_back(idle)
    pool.trim()
    assert len(pool.slabs) == 2
    monkeypatch.setattr(_segments, "IDLE", 0.05)
    time.sleep(0.1)
    pool.trim()
    assert list(pool.slabs.values()) == [used.slab]
    assert idle.slab.file == -1
    pool.give_back(used)  # it was used just now
    assert list(pool.slabs.values()) == [used.slab]
    time.sleep(0.1)
    pool.trim()
    assert pool.nbytes == 0


class Holder:
    def __init__(self) -> None:
        self.numbers: list[int] = []

    def gone(self, number: int) -> None:
        self.numbers.append(number)


def test_the_holders_of_a_segment_are_notified_when_it_is_closed(pool: Pool) -> None:
    segment, holder = taken(pool, MIB)[0], Holder()
    segment.slab.holders.append(holder)
    pool.give_back(segment)
    pool.trim(0)
    assert holder.numbers == [segment.slab.number]


def test_tainted_memory_is_not_used_again(pool: Pool) -> None:
    segment = taken(pool, MIB)[0]
    pool.lease(segment)
    pool.give_back(segment, tainted=True)
    assert pool.slabs  # another receiver still reads it
    pool.give_back(segment)  # once tainted it stays tainted
    assert not pool.slabs
    assert taken(pool, MIB) != [segment]


def test_memory_is_returned_to_the_system(pool: Pool) -> None:
    maps = SlabCache()

    before = resident()
    _, (array,) = sent(pool, maps, np.ones(64 * MIB, "u1"))
    maps.populate()
    assert resident() - before > 60 * KIB
    del array
    released(pool, maps)
    maps.known.clear()
    pool.trim(0)
    gc.collect()
    assert resident() - before < 4 * KIB


def test_no_file_stays_open(pool: Pool) -> None:
    before, maps = descriptors(), SlabCache()
    for n in range(1, 20):
        segment, arrays = sent(pool, maps, np.ones(n * MIB // 4, "u1"))
        del arrays
        released(pool, maps)
        pool.trim(0)
        maps.forget(segment.slab.number)
    assert descriptors() == before


def test_threads_can_take_segments_while_another_trims(pool: Pool) -> None:
    """A segment that is being filled or leased is never closed."""
    failures: list[BaseException] = []
    end = time.monotonic() + 1

    def use(value: int) -> None:
        data = np.full(256 * KIB, value, "u1")
        try:
            while time.monotonic() < end and not failures:
                segment = pool.take([data.nbytes])
                assert segment is not None
                assert segment.slab.file >= 0, "a closed segment was leased"
                for _ in segment.fill([memoryview(data)]):
                    pass
                assert bytes(segment.read([data.nbytes])[0]) == data.tobytes()
                pool.give_back(segment)
        except BaseException as error:
            failures.append(error)

    def trim() -> None:
        while time.monotonic() < end and not failures:
            pool.trim(0)

    threads = [threading.Thread(target=use, args=(n,)) for n in (1, 2, 3)]
    threads.append(threading.Thread(target=trim))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not failures, failures


@pytest.mark.parametrize("warm", [False, True])
def test_a_pool_closed_while_a_segment_is_filled_ends_the_filling(pool: Pool, warm: bool) -> None:
    """The kernel ends while a thread copies: the copy raises OSError, or nothing.

    Another file that then gets the segment's descriptor number is not written to.
    """
    data = [memoryview(np.ones(_segments.PORTION + 1, "u1"))] * 4
    segment = pool.take([frame.nbytes for frame in data])
    assert segment is not None
    if warm:
        for _ in segment.fill(data):
            pass
    steps, number = segment.fill(data), segment.slab.file
    while not next(steps):  # first the pages are mapped
        pass
    pool.close()
    others = [os.memfd_create("another", os.MFD_CLOEXEC)]
    try:
        if others[0] != number:  # the number is free: it was closed, and no other thread runs
            others.append(os.dup2(others[0], number, inheritable=False))
        with contextlib.suppress(OSError):
            for _ in steps:
                pass
        assert os.fstat(number).st_size == 0
    finally:
        for file in others:
            os.close(file)


@pytest.mark.parametrize("warm", [False, True])
def test_a_pool_closed_before_a_segment_is_filled_raises_oserror(pool: Pool, warm: bool) -> None:
    """Nothing is written, neither to the file nor to the memory of the former segment."""
    data = [memoryview(np.ones(MIB, "u1"))]
    segment = pool.take([MIB])
    assert segment is not None
    if warm:
        for _ in segment.fill(data):
            pass
    steps = segment.fill(data)
    pool.close()
    with pytest.raises(OSError):
        while not next(steps):
            pass


def test_a_pool_closed_before_its_file_is_duplicated_harms_no_other_file(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another file gets the number between two lines of the thread that fills the segment."""
    data = [memoryview(np.ones(MIB, "u1"))]
    segment = pool.take([MIB])
    assert segment is not None
    duplicate, number = os.dup, segment.slab.file
    other = os.memfd_create("another", os.MFD_CLOEXEC)

    def late(file: int) -> int:
        pool.close()
        os.dup2(other, number, inheritable=False)
        return duplicate(file)

    monkeypatch.setattr(_slabs, "_dup", late)
    try:
        with pytest.raises(OSError, match="has been closed"):
            for _ in segment.fill(data):
                pass
        assert os.fstat(other).st_size == 0
    finally:
        os.close(other)
        os.close(number)


# ---------------------------------------------------------------- seals


def test_no_process_can_truncate_a_segment(pool: Pool) -> None:
    """H2: the peer tries to truncate."""
    maps = SlabCache()
    segment, (array,) = sent(pool, maps, np.arange(100_000))
    for file in (segment.slab.file, maps.known[segment.slab.number].find_file()):
        for size in (0, segment.slab.capacity - 1, segment.slab.capacity + 1):
            with pytest.raises(PermissionError):
                os.ftruncate(file, size)
        with pytest.raises(PermissionError):
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        with pytest.raises(PermissionError):  # nor through another open file description
            os.truncate(f"/proc/self/fd/{file}", 0)
    assert array.sum() == 4_999_950_000


# ---------------------------------------------------------------- no memory


def test_a_file_size_limit_gives_no_segment_and_leaves_nothing() -> None:
    """H1: the system refuses the pages; nothing is left behind, and smaller segments work."""
    found = in_a_process("""
resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB))
pool = Pool(0.5)
large, files = pool.take([64 * MIB]), descriptors()
again = [pool.take([64 * MIB]) for _ in range(5)]
small = pool.take([MIB // 2])
for _ in small.fill([memoryview(bytes(MIB // 2))]):
    pass
leaked = descriptors() - files
say([large, again, small is not None, leaked, len(pool.slabs)])
""")
    assert found == [None, [None] * 5, True, 1, 1]


def test_without_a_free_descriptor_there_is_no_segment() -> None:
    """H1: EMFILE counts as lack of memory, and raises no error."""
    found = in_a_process("""
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
pool, many = Pool(0.5), []
try:
    while True:
        many.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    assert error.errno == errno.EMFILE
none = pool.take([MIB])
os.close(many.pop())
os.close(many.pop())
say([none, pool.take([MIB]) is not None, len(pool.slabs)])
""")
    assert found == [None, True, 1]


def test_without_address_space_mapping_raises_oserror() -> None:
    """H1: ENOMEM while a reused segment is mapped, and while a received one is mapped."""
    found = in_a_process("""
pool, maps = Pool(0.9), SlabCache()
segment = pool.take([64 * MIB])
data = [memoryview(bytes(64 * MIB))]
for _ in segment.fill(data):
    pass
with open("/proc/self/statm") as text:
    used = int(text.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 16 * MIB, used + 16 * MIB))
found = []
try:
    handed(maps, segment)
except (OSError, ValueError, OverflowError):
    found.append("refused")
gc.collect()
try:
    for _ in segment.fill(data):
        pass
    found.append("filled")
except OSError:
    found.append("OSError")
small = pool.take([MIB])
for _ in small.fill([memoryview(bytes(MIB))]):
    pass
say(found)
""")
    assert found == ["refused", "OSError"]


def test_segments_do_not_use_dev_shm() -> None:
    """H1: memfds live in a mount of the Linux kernel: a full /dev/shm does not matter."""
    found = in_a_process("""
pool, maps = Pool(0.5), SlabCache()
before = sorted(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else []
segment, (array,) = sent(pool, maps, np.ones(8 * MIB, "u1"))
after = sorted(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else []
say([before == after, int(array.sum())])
""")
    assert found == [True, 8 * MIB]


# ---------------------------------------------------------------- sending


@settings(max_examples=3 * settings.default.max_examples // 10)
@given(st.lists(st.integers(0, 3 * KIB), min_size=1, max_size=8).filter(any), st.integers(0, 3))
def test_any_frames_come_back_unchanged(sizes: list[int], times: int) -> None:
    pool, maps = Pool(0.5), SlabCache()
    try:
        for n in range(times + 1):
            frames = [bytes([(n + at) % 256]) * size for at, size in enumerate(sizes)]
            segment, _ = filled(pool, *[np.frombuffer(frame, "u1") for frame in frames])
            if segment.slab.number not in maps.known:
                handed(maps, segment)
            views: Sequence[memoryview] = leased(maps, segment, sizes)
            assert [bytes(view) for view in views] == frames
            assert [bytes(copy) for copy in segment.read(sizes)] == frames
            del views
            released(pool, maps)
    finally:
        pool.close()


def test_a_segment_can_hold_3000_frames(pool: Pool) -> None:
    arrays = [np.full(513 + n % 7, n) for n in range(3000)]
    maps = SlabCache()
    segment, back = sent(pool, maps, *arrays)
    assert all(int(array[0]) == n for n, array in enumerate(back))
    assert len(pool.slabs) == 1
    del back
    assert released(pool, maps) == [segment.number]


def test_sender_and_receiver_do_not_share_an_array(pool: Pool) -> None:
    """The receiver has a copy: a change at one end does not show at the other."""
    mine = np.zeros(MIB, "u1")
    _, (theirs,) = sent(pool, SlabCache(), mine)
    theirs[:] = 1
    assert not mine.any()
    mine[:] = 2
    assert (theirs == 1).all()
