"""Segments leased on to a third process, without a kernel: who holds them, and until when.

Rule: one process plays all three, with a real socket pair for each of the two connections.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from bridgehead._lanes.forwarding import FORWARDING_POOL, ForwardedSegment
from bridgehead._shipped.wire.segments import Segment
from support.channels import Ends, needs_segments
from support.shared import KIB, MIB, WHOLE, descriptors, resident

pytestmark = needs_segments


class Three:
    """The source is ``one.client``, the target ``two.kernel``; the other two ends are here."""

    def __init__(self) -> None:
        self.one, self.two = Ends(), Ends()

    def receive_from_source(
        self, *arrays: np.ndarray[Any, Any]
    ) -> tuple[Segment, list[memoryview], list[int]]:
        """Return the source's segment, and the forwarder's views of it."""
        segment, sizes = self.one.leased(*arrays)
        self.one.send(1, {}, sizes, (), segment)
        ((_, _, frames),) = self.one.arrived()
        return segment, frames, sizes

    def send_to_target(self, forwarded: ForwardedSegment, sizes: list[int]) -> list[memoryview]:
        """Lease the segment on, and return what arrives at the target."""
        FORWARDING_POOL.lease(forwarded)
        self.two.client.lease_out(forwarded)
        self.two.send(1, {}, sizes, (), forwarded)
        ((_, _, frames),) = self.two.arrived()
        FORWARDING_POOL.give_back(forwarded)
        return frames

    def exchange_updates(self) -> None:
        """Let each end send which segments are free: from the target to the source, and back."""
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


def passed(frames: list[memoryview]) -> ForwardedSegment:
    forwarded = FORWARDING_POOL.pass_on(frames)
    assert forwarded is not None
    return forwarded


def test_the_target_has_the_source_memory_and_who_forwards_maps_none(three: Three) -> None:
    source, frames, sizes = three.receive_from_source(np.arange(MIB, dtype="u8"), np.ones(3))
    pages = resident()
    received = three.send_to_target(passed(frames), sizes)
    del frames
    assert resident() == pages
    assert not three.two.client.pool.slabs
    whole, ones = np.frombuffer(received[0], "u8"), np.frombuffer(received[1])
    assert (int(whole[-1]), ones.tolist()) == (MIB - 1, [1, 1, 1])
    whole[0] = 7
    assert int(np.frombuffer(source.read(sizes)[0], "u8")[0]) == 7


def test_the_source_gets_the_segment_back_when_the_last_view_is_freed(three: Three) -> None:
    source, frames, sizes = three.receive_from_source(np.arange(WHOLE))
    received = three.send_to_target(passed(frames), sizes)
    del frames
    three.exchange_updates()
    assert source.leases == 1
    part = received[0][8:16]
    del received
    three.exchange_updates()
    assert source.leases == 1
    del part
    three.exchange_updates()
    assert (source.leases, source.slab.tainted) == (0, False)
    again, _, _ = three.receive_from_source(np.zeros(WHOLE))
    assert again is source


def test_a_segment_that_is_used_again_sends_no_file_again(three: Three) -> None:
    for n in range(4):
        source, frames, sizes = three.receive_from_source(np.full(WHOLE, n))
        forwarded = passed(frames)
        received = three.send_to_target(forwarded, sizes)
        assert np.frombuffer(received[0], "i8")[-1] == n
        del frames, received
        three.exchange_updates()
    assert forwarded is FORWARDING_POOL._known[three.one.kernel.maps.known[source.slab.number]]
    assert len(three.two.kernel.maps.known) == 1
    assert forwarded.slab.holders == [three.two.client]


def test_a_segment_that_the_source_frees_is_closed_everywhere(three: Three) -> None:
    before = descriptors()
    _, frames, sizes = three.receive_from_source(np.zeros(WHOLE))
    received = three.send_to_target(passed(frames), sizes)
    three.one.client.pool.trim(0)  # it is leased: nothing happens
    assert np.frombuffer(received[0]).sum() == 0
    del frames, received
    three.exchange_updates()
    three.one.client.pool.trim(0)
    three.exchange_updates()
    assert not three.two.kernel.maps.known
    assert not three.two.client.has_handed
    assert not len(FORWARDING_POOL._known)
    assert descriptors() == before


@pytest.mark.parametrize("way", ["a fork in the target", "the socket to the target closes"])
def test_memory_that_is_never_given_back_is_not_used_again(three: Three, way: str) -> None:
    source, frames, sizes = three.receive_from_source(np.full(WHOLE, 3))
    received = three.send_to_target(passed(frames), sizes)
    del frames
    if way == "a fork in the target":
        for mapping in three.two.kernel.maps.known.values():
            mapping.tainted = True
        del received
    else:
        three.two.client.close()
    gc.collect()
    three.one.answer(0)
    if way == "a fork in the target":
        three.exchange_updates()
    three.one.arrived(three.one.client)
    assert not three.one.client.pool.slabs
    if way == "the socket to the target closes":
        three.receive_from_source(np.full(WHOLE, 4))
        assert (np.frombuffer(received[0], "i8") == 3).all()
    assert source.slab.file == -1


def test_the_target_keeps_the_segment_when_the_socket_to_the_source_closes(three: Three) -> None:
    _, frames, sizes = three.receive_from_source(np.full(WHOLE, 3))
    received = three.send_to_target(passed(frames), sizes)
    del frames
    three.one.close()
    assert (np.frombuffer(received[0], "i8") == 3).all()


def test_a_closed_socket_takes_no_lease(three: Three) -> None:
    source, frames, _ = three.receive_from_source(np.zeros(WHOLE))
    forwarded = passed(frames)
    del frames
    three.two.client.close()
    FORWARDING_POOL.lease(forwarded)
    three.two.client.lease_out(forwarded)
    FORWARDING_POOL.give_back(forwarded)
    gc.collect()
    three.one.answer(0)
    three.one.arrived(three.one.client)
    assert (source.leases, source.slab.tainted) == (0, False)


def test_memory_that_is_not_leased_is_not_passed_on(three: Three) -> None:
    assert FORWARDING_POOL.pass_on([]) is None
    assert FORWARDING_POOL.pass_on([memoryview(bytes(100 * KIB))]) is None
    _, frames, _ = three.receive_from_source(np.zeros(WHOLE))
    for mapping in three.one.kernel.maps.known.values():
        mapping.make_private()  # as before a fork: what is written now is not in the file
    assert FORWARDING_POOL.pass_on(frames) is None
