"""A segment on its way to a third process, without a kernel: whose it is, and until when.

Rule: one process plays all three, with a real socket for each of the two ways.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from bridgehead._lanes.relay import RELAY_POOL, RelayedSegment
from bridgehead._shipped.wire.segments import Segment
from support.channels import Ends
from support.shared import KIB, MIB, descriptors, needs_segments, resident

pytestmark = needs_segments


class Three:
    """The source is ``one.client``, the target ``two.kernel``; the other two are in between."""

    def __init__(self) -> None:
        self.one, self.two = Ends(), Ends()

    def come(self, *arrays: np.ndarray[Any, Any]) -> tuple[Segment, list[memoryview], list[int]]:
        """The source's segment, and the views in between."""
        segment, sizes = self.one.leased(*arrays)
        self.one.send(1, {}, sizes, (), segment)
        ((_, _, frames),) = self.one.arrived()
        return segment, frames, sizes

    def go(self, relayed: RelayedSegment, sizes: list[int]) -> list[memoryview]:
        """What arrives at the target."""
        RELAY_POOL.lease(relayed)
        self.two.client.lend(relayed)
        self.two.send(1, {}, sizes, (), relayed)
        ((_, _, frames),) = self.two.arrived()
        RELAY_POOL.give_back(relayed)
        return frames

    def told(self) -> None:
        """Everybody tells what there is to tell, from the target back to the source, and there."""
        gc.collect()
        for ends in (self.two, self.one):
            ends.answer(0)
            ends.arrived(ends.client)
        for ends in (self.one, self.two):
            ends.send(0, {})
            ends.arrived()

    def close(self) -> None:
        self.one.close()
        self.two.close()


@pytest.fixture
def three() -> Iterator[Three]:
    three = Three()
    yield three
    three.close()


def passed(frames: list[memoryview]) -> RelayedSegment:
    relayed = RELAY_POOL.pass_on(frames)
    assert relayed is not None
    return relayed


def test_it_is_the_same_memory_and_none_of_it_is_mapped_in_between(three: Three) -> None:
    source, frames, sizes = three.come(np.arange(MIB, dtype="u8"), np.ones(3))
    pages = resident()
    back = three.go(passed(frames), sizes)
    del frames
    assert resident() == pages
    assert not three.two.client.pool.segments
    whole, ones = np.frombuffer(back[0], "u8"), np.frombuffer(back[1])
    assert (int(whole[-1]), ones.tolist()) == (MIB - 1, [1, 1, 1])
    whole[0] = 7
    assert int(np.frombuffer(source.read(sizes)[0], "u8")[0]) == 7


def test_the_source_has_it_back_when_the_last_view_died(three: Three) -> None:
    source, frames, sizes = three.come(np.arange(MIB))
    back = three.go(passed(frames), sizes)
    del frames
    three.told()
    assert source.leases == 1
    part = back[0][8:16]
    del back
    three.told()
    assert source.leases == 1
    del part
    three.told()
    assert (source.leases, source.tainted) == (0, False)
    again, _, _ = three.come(np.zeros(MIB))
    assert again is source


def test_a_segment_that_comes_again_brings_no_file_again(three: Three) -> None:
    for n in range(4):
        source, frames, sizes = three.come(np.full(MIB, n))
        relayed = passed(frames)
        back = three.go(relayed, sizes)
        assert np.frombuffer(back[0], "i8")[-1] == n
        del frames, back
        three.told()
    assert relayed is RELAY_POOL._known[three.one.kernel.maps.known[source.number]]
    assert len(three.two.kernel.maps.known) == 1
    assert relayed.holders == [three.two.client]


def test_what_the_source_drops_is_dropped_everywhere(three: Three) -> None:
    before = descriptors()
    _, frames, sizes = three.come(np.zeros(MIB))
    back = three.go(passed(frames), sizes)
    three.one.client.pool.trim(0)  # it is lent: nothing happens
    assert np.frombuffer(back[0]).sum() == 0
    del frames, back
    three.told()
    three.one.client.pool.trim(0)
    three.told()
    assert not three.two.kernel.maps.known
    assert not three.two.client.has_handed
    assert not len(RELAY_POOL._known)
    assert descriptors() == before


@pytest.mark.parametrize("way", ["a fork in the target", "the link to the target closes"])
def test_memory_of_which_nobody_will_tell_is_not_used_again(three: Three, way: str) -> None:
    source, frames, sizes = three.come(np.full(MIB, 3))
    back = three.go(passed(frames), sizes)
    del frames
    if way == "a fork in the target":
        for mapping in three.two.kernel.maps.known.values():
            mapping.tainted = True
        del back
    else:
        three.two.client.close()
    gc.collect()
    three.one.answer(0)
    if way == "a fork in the target":
        three.told()
    three.one.arrived(three.one.client)
    assert not three.one.client.pool.segments
    if way == "the link to the target closes":
        three.come(np.full(MIB, 4))
        assert (np.frombuffer(back[0], "i8") == 3).all()
    assert source.file == -1


def test_the_target_keeps_it_when_the_link_to_the_source_closes(three: Three) -> None:
    _, frames, sizes = three.come(np.full(MIB, 3))
    back = three.go(passed(frames), sizes)
    del frames
    three.one.close()
    assert (np.frombuffer(back[0], "i8") == 3).all()


def test_a_channel_that_is_closed_takes_no_lease(three: Three) -> None:
    source, frames, _ = three.come(np.zeros(MIB))
    relayed = passed(frames)
    del frames
    three.two.client.close()
    RELAY_POOL.lease(relayed)
    three.two.client.lend(relayed)
    RELAY_POOL.give_back(relayed)
    gc.collect()
    three.one.answer(0)
    three.one.arrived(three.one.client)
    assert (source.leases, source.tainted) == (0, False)


def test_what_is_no_leased_memory_is_not_passed_on(three: Three) -> None:
    assert RELAY_POOL.pass_on([]) is None
    assert RELAY_POOL.pass_on([memoryview(bytes(100 * KIB))]) is None
    _, frames, _ = three.come(np.zeros(MIB))
    for mapping in three.one.kernel.maps.known.values():
        mapping.make_private()  # as before a fork: the file does not show later writes
    assert RELAY_POOL.pass_on(frames) is None
