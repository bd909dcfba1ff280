"""Slabs that many segments share: the stretches, their memory, and the descriptors of all slabs.

Rule: real memory without a kernel. A test that sets a limit runs in a process of its own.
"""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgehead._shipped.wire import segments as _segments
from bridgehead._shipped.wire.leases import SlabCache
from bridgehead._shipped.wire.segments import Pool
from bridgehead._shipped.wire.slabs import ABSENT, MAPPED, WRITTEN, Extents, Slab
from support.channels import needs_segments
from support.shared import KIB, MIB, descriptors, filled, in_a_process, released, sent

pytestmark = needs_segments

STEPS = st.lists(
    st.tuples(st.integers(1, 40), st.sampled_from([ABSENT, WRITTEN, MAPPED]), st.integers(0, 9))
)


@given(STEPS)
def test_stretches_never_overlap_and_none_is_lost(steps: list[tuple[int, int, int]]) -> None:
    """Take and give stretches as the steps say, and compare with a list of all bytes."""
    extents, taken = Extents(100), []
    states = [ABSENT] * 100  # of each byte that is free
    for nbytes, state, which in steps:
        if which < len(taken):
            start, stop = taken.pop(which)
            extents.give(start, stop, state)
            states[start:stop] = [state] * (stop - start)
        found = extents.take(nbytes)
        used = {at for start, stop in taken for at in range(start, stop)}
        free = "".join("-" if at in used else str(states[at]) for at in range(100))
        fits = [state for state in (ABSENT, WRITTEN, MAPPED) if str(state) * nbytes in free]
        assert (found is not None) == bool(fits)
        if found is not None:
            start, pages = found
            assert free[start : start + nbytes] == str(pages) * nbytes
            assert pages != ABSENT or fits == [ABSENT]
            taken.append((start, start + nbytes))
        assert extents.nbytes == 100 - sum(stop - start for start, stop in taken)


def test_thousands_of_segments_share_a_few_slabs(pool: Pool) -> None:
    before, maps, kept = descriptors(), SlabCache(), []
    for n in range(3000):
        kept += sent(pool, maps, np.full(25 * KIB, n % 251, "u1"))[1]
    assert all((array == n % 251).all() for n, array in enumerate(kept))
    assert len(pool.slabs) <= 5
    assert descriptors() <= before + 3 * len(pool.slabs)
    kept.clear()
    released(pool, maps)
    assert [slab.leased for slab in pool.slabs.values()] == [0]


def test_segments_freed_in_any_order_overwrite_no_other(pool: Pool) -> None:
    maps, kept, rng = SlabCache(), {}, random.Random(7)
    for n in range(800):
        size = rng.choice([1, 5 * KIB, 90 * KIB, 400 * KIB, MIB])
        kept[n] = sent(pool, maps, np.full(size, n % 251, "u1"))[1][0]
        for gone in rng.sample(sorted(kept), len(kept) // 9):
            del kept[gone]
        if n % 7 == 0:
            released(pool, maps)
    assert all((array == n % 251).all() for n, array in kept.items())
    for n, array in kept.items():
        array[:] = 250 - n % 251
    assert all((array == 250 - n % 251).all() for n, array in kept.items())


def pages_of(slab: Slab) -> int:
    """Return how many bytes of memory its file takes."""
    return os.fstat(slab.file).st_blocks * 512


def test_memory_is_freed_with_the_segments_in_it(pool: Pool) -> None:
    """Not only when the whole slab is free: one small object must not keep a gigabyte."""
    maps = SlabCache()
    kept = [sent(pool, maps, np.ones(MIB, "u1"))[1][0] for _ in range(120)]
    assert sum(map(pages_of, pool.slabs.values())) >= 120 * MIB
    last = kept.pop(60)
    kept.clear()
    released(pool, maps)
    assert len(pool.slabs) <= 2
    assert sum(map(pages_of, pool.slabs.values())) <= 2 * _segments.WARM + 4 * MIB
    assert pool.nbytes <= 2 * _segments.WARM + 4 * MIB
    assert (last == 1).all()
    again = [sent(pool, maps, np.full(MIB, 2, "u1"))[1][0] for _ in range(60)]
    assert all((array == 2).all() for array in again)
    assert (last == 1).all()


def test_the_memory_of_a_copy_that_was_stopped_is_freed(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_segments, "PORTION", MIB)  # bytes until it can be stopped
    kept, _ = filled(pool, np.ones(MIB, "u1"))
    slab = kept.slab
    for _ in range(6):
        stopped = _segments.Segment(pool, slab, *slab_part(slab, 8 * MIB))
        stopped.leases = 1
        slab.leased += 1
        slab.nbytes += stopped.capacity
        steps = stopped.fill([memoryview(bytes(4 * MIB)), memoryview(bytes(4 * MIB))])
        stopped.slab.touched = 0
        with pytest.raises(KeyboardInterrupt):
            for _ in steps:
                raise KeyboardInterrupt
        steps.close()
        pool.give_back(stopped)
    assert pages_of(slab) <= 2 * MIB
    assert slab.nbytes == kept.capacity


def test_unused_pages_are_freed_after_a_while(pool: Pool) -> None:
    """Also in a slab in which one object lives on."""
    maps = SlabCache()
    kept = [sent(pool, maps, np.full(MIB, n, "u1"))[1][0] for n in range(9)]
    last = kept.pop(4)
    kept.clear()
    released(pool, maps)
    pool.trim()
    assert pool.nbytes == 9 * MIB
    pool.trim(0)
    assert pool.nbytes == MIB
    assert sum(map(pages_of, pool.slabs.values())) <= 2 * MIB
    again = [sent(pool, maps, np.full(MIB, 50 + n, "u1"))[1][0] for n in range(9)]
    assert (last == 4).all()
    assert all((array == 50 + n).all() for n, array in enumerate(again))


def test_a_closed_pool_tells_the_receivers() -> None:
    pool, holder = Pool(0.5, private=True), []
    segment, _ = filled(pool, np.ones(KIB, "u1"))
    segment.slab.holders.append(Holder(holder))
    pool.close()
    assert holder == [segment.slab.number]


class Holder:
    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers

    def gone(self, number: int) -> None:
        self.numbers.append(number)


def slab_part(slab: Slab, nbytes: int) -> tuple[int, int]:
    assert slab.extents is not None
    found = slab.extents.take(nbytes)
    assert found is not None
    return found[0], nbytes


def test_a_large_segment_has_a_slab_of_its_own(pool: Pool) -> None:
    large, _ = filled(pool, np.ones(_segments.SHARED_BELOW, "u1"))
    small, _ = filled(pool, np.ones(_segments.SHARED_BELOW // 2, "u1"))
    assert not large.slab.is_shared
    assert small.slab.is_shared


def test_many_large_segments_share_slabs_too(pool: Pool) -> None:
    size = _segments.SHARED_BELOW
    whole = [filled(pool, np.full(size, n, "u1"))[0] for n in range(_segments.MOST_WHOLE)]
    parts = [filled(pool, np.full(size, 100 + n, "u1"))[0] for n in range(20)]
    assert not any(segment.slab.is_shared for segment in whole)
    assert all(segment.slab.is_shared for segment in parts)
    assert [segment.read([1])[0][0] for segment in parts] == list(range(100, 120))
    pool.give_back(whole[3])
    other = pool.take([64 * size])  # an unused slab gives way to one of another size
    assert other is not None
    assert not other.slab.is_shared
    assert whole[3].slab.number not in pool.slabs


def test_several_receivers_never_have_a_shared_slab() -> None:
    pool = Pool(0.5, private=True)
    try:
        assert not filled(pool, np.ones(KIB, "u1"))[0].slab.is_shared
    finally:
        pool.close()


def test_slabs_take_a_quarter_of_the_descriptors_and_no_more() -> None:
    """The rest is the program's own; when the memory is free again, so are the descriptors."""
    found = in_a_process("""
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
before = descriptors()
pools = [Pool(0.9, private=True) for _ in range(10)]
taken = []
for pool in pools:
    while True:
        segment = pool.take([WHOLE])
        if segment is None:
            break
        taken.append((pool, segment))
most = descriptors() - before
for pool, segment in taken:
    pool.give_back(segment)
    pool.trim(0)
say([len(taken), most, descriptors() - before, pools[9].take([WHOLE]) is not None])
""")
    assert found[0] == 32
    assert found[1] <= 64
    assert found[2:] == [0, True]


def test_a_receiver_maps_no_more_slabs_than_it_has_descriptors_for() -> None:
    found = in_a_process("""
senders = [Pool(0.9, private=True) for _ in range(50)]
segments = [sender.take([WHOLE]) for sender in senders]
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
import bridgehead._shipped.wire.slabs as _slabs
_slabs._held.clear()  # as in a process of its own
maps, refused, before = SlabCache(), 0, descriptors()
for segment in segments:
    try:
        handed(maps, segment)
    except OSError as error:
        refused += "a quarter of the descriptors" in str(error)
say([len(maps.known), refused, descriptors() - before])
""")
    assert found == [32, 18, 32]


@pytest.mark.parametrize(("files", "most"), [(1024, 64), (64, 4), (0, 0), (-5, 0)])
def test_a_pool_has_a_sixteenth_of_the_receivers_descriptors(files: int, most: int) -> None:
    pool = Pool(0.5, private=True, files=files)
    try:
        for _ in range(70):
            slab = pool._make_slab(KIB)
            if slab is not None:
                slab.leased += 1
        assert len(pool.slabs) == most
    finally:
        pool.close()
