"""The direct lane's socket: messages, segments, and malformed input.

Rule: a real socket pair and real descriptors, without a kernel. A malformed message ends the socket
with ``WireError``. A message whose segment cannot be mapped does not.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import struct
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bridgehead._shipped.remote.socket_thread import send_all
from bridgehead._shipped.wire import leases as _leases
from bridgehead._shipped.wire import socket as _socket
from bridgehead._shipped.wire.errors import WireError
from bridgehead._shipped.wire.segments import Pool, Segment
from bridgehead._shipped.wire.slabs import layout
from bridgehead._shipped.wire.socket import FrameSocket, UnmappedSegment, peer_user
from support.channels import Ends, needs_segments
from support.shared import MIB, descriptors

pytestmark = needs_segments

PREFIX = struct.Struct("<QIQQQQQIIIB")
SOME: list[Any] = [{"op": "bind"}, {}, {"op": "ü\n\0", "deep": [[{}]]}]


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.close()


def prefixed(
    text: bytes = b"",
    body: bytes = b"",
    *,
    serial: int = 1,
    nbytes: int | None = None,
    segment: int = 0,
    start: int = 0,
    slab: int = 1,
    capacity: int = 0,
    released: Sequence[int] = (),
    closed: Sequence[int] = (),
    sizes: Sequence[int] = (),
    counts: tuple[int, int, int] | None = None,
    flags: int = 0,
    length: int | None = None,
) -> bytes:
    """Return a message as a foreign program might write it."""
    length = len(text) if length is None else length
    nbytes = len(body) if nbytes is None else nbytes
    counts = counts or (len(released), len(closed), len(sizes))
    prefix = PREFIX.pack(serial, length, nbytes, segment, start, slab, capacity, *counts, flags)
    return prefix + array("q", [*released, *closed, *sizes]).tobytes() + text + body


# ---------------------------------------------------------------- messages


def test_messages_arrive_in_order_with_their_frames(ends: Ends) -> None:
    for serial, header in enumerate(SOME, 1):
        ends.send(serial, header)
    ends.send(9, {"n": 1}, [3, 0, 1000], [b"abc", b"", bytes(1000)])
    *plain, (serial, header, frames) = ends.arrived()
    assert [message[:2] for message in plain] == [
        (n, {**header, "sizes": []}) for n, header in enumerate(SOME, 1)
    ]
    assert (serial, header) == (9, {"n": 1, "sizes": [3, 0, 1000]})
    assert [bytes(frame) for frame in frames] == [b"abc", b"", bytes(1000)]


def test_small_frames_are_copied_and_are_writable_and_aligned(ends: Ends) -> None:
    mine = np.arange(1000.0)
    for serial in (1, 2):
        ends.send(serial, {}, [100, 8000], [bytes(100), memoryview(mine).cast("B")])
    mine[:] = 0
    (_, _, (_, one)), (_, _, (_, two)) = ends.arrived()
    first, second = np.frombuffer(one), np.frombuffer(two)
    first[:] = 1
    assert second.sum() == 499_500
    assert first.ctypes.data % 64 == second.ctypes.data % 64 == 0


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.data())
def test_messages_arrive_however_the_stream_is_split(data: Any) -> None:
    """Messages with and without frames, segments and updates of them, cut anywhere."""
    ends, back, expected = Ends(), [], []
    try:
        kinds = st.lists(st.sampled_from(["header", "frames", "segment", "retry"]), max_size=6)
        segment: Segment | None = None
        for serial, kind in enumerate(data.draw(kinds), 1):
            frames: list[bytes] = []
            leased = None
            if kind == "frames":
                sizes = data.draw(st.lists(st.integers(0, 400), min_size=1, max_size=4))
                frames = [bytes([serial]) * size for size in sizes]
            elif kind != "header":
                if kind == "segment" or segment is None:
                    segment, _ = ends.leased(np.full(70_000, serial, "u1"))
                leased = segment
            held = [70_000] if leased is not None else [len(frame) for frame in frames]
            parts, files = ends.client.pack(serial, {"n": serial}, held, frames, leased)
            expected.append((serial, {"n": serial, "sizes": held}))
            whole = b"".join(parts)
            cuts = sorted(data.draw(st.sets(st.integers(1, len(whole) - 1), max_size=5)))
            for start, stop in zip([0, *cuts], [*cuts, len(whole)], strict=True):
                ends.raw(whole[start:stop], files)
                files = []
                if data.draw(st.booleans()):
                    back += ends.arrived()
        back += ends.arrived()
        assert [message[:2] for message in back] == expected
        for _, header, frames in back:
            assert [len(frame) for frame in frames] == header["sizes"]
            if header["sizes"] != [70_000]:
                for frame in frames:
                    assert bytes(frame) == bytes([header["n"]]) * len(frame)
    finally:
        ends.close()


def test_a_message_may_arrive_one_byte_at_a_time(ends: Ends) -> None:
    segment, sizes = ends.leased(np.arange(100_000))
    parts, files = ends.client.pack(5, {}, sizes, (), segment)
    data, found = b"".join(parts), []
    for at in range(len(data)):
        ends.raw(data[at : at + 1], files if not at else None)
        found += ends.arrived()
        assert not found or at == len(data) - 1
    assert np.frombuffer(found[0][2][0], int).sum() == 4_999_950_000


def test_half_a_message_is_not_returned(ends: Ends) -> None:
    parts, _ = ends.client.pack(1, {}, [10], [bytes(10)])
    ends.raw(b"".join(parts)[:-1])
    assert ends.arrived() == []
    ends.client.socket.close()
    assert not ends.kernel.receive()
    assert ends.kernel.next() is None


def test_a_closed_socket_is_reported_after_its_last_message(ends: Ends) -> None:
    ends.send(1, {"op": "x"})
    ends.client.close()
    assert ends.kernel.receive()
    assert ends.kernel.next() == (1, {"op": "x", "sizes": []}, [])
    assert not ends.kernel.receive()


# ---------------------------------------------------------------- segments


def test_the_file_of_a_slab_is_sent_once(ends: Ends) -> None:
    segment, sizes = ends.leased(np.full(100_000, 1))
    parts, files = ends.client.pack(1, {}, sizes, (), segment)
    assert files == [segment.slab.file]
    send_all(ends.client.socket, parts, files)
    ((_, _, frames),) = ends.arrived()
    view = np.frombuffer(frames[0], int)
    assert (view == 1).all()
    del frames, view
    ends.answer(0)
    ends.arrived(ends.client)
    assert segment.leases == 0
    again, _ = ends.leased(np.full(100_000, 2))
    assert (again.slab, again.start) == (segment.slab, segment.start)
    parts, files = ends.client.pack(2, {}, sizes, (), segment)
    assert files == []
    send_all(ends.client.socket, parts, files)
    ((_, _, frames),) = ends.arrived()
    assert (np.frombuffer(frames[0], int) == 2).all()


def test_a_lease_ends_when_its_release_is_reported(ends: Ends) -> None:
    segment, sizes = ends.leased(np.arange(100_000))
    ends.send(1, {}, sizes, (), segment)
    (message,) = ends.arrived()
    assert not ends.kernel.has_updates
    assert segment.leases == 1
    del message
    assert ends.kernel.has_updates
    assert segment.leases == 1
    ends.answer(0)
    assert ends.arrived(ends.client) == [(0, {"sizes": []}, [])]
    assert segment.leases == 0
    assert not ends.kernel.has_updates


def test_the_peer_forgets_a_closed_segment(ends: Ends) -> None:
    segment, sizes = ends.leased(np.arange(100_000))
    ends.send(1, {}, sizes, (), segment)
    ends.arrived()
    gc.collect()
    ends.answer(0)
    ends.arrived(ends.client)
    before = descriptors()
    ends.client.pool.trim(0)
    assert ends.client.has_updates
    ends.send(0, {})
    ends.arrived()
    assert not ends.kernel.maps.known
    assert descriptors() < before


def test_a_tainted_segment_is_closed(ends: Ends) -> None:
    segment, sizes = ends.leased(np.arange(100_000))
    ends.send(1, {}, sizes, (), segment)
    (message,) = ends.arrived()
    _leases._before_fork()
    del message
    ends.answer(0)
    ends.arrived(ends.client)
    assert not ends.client.pool.slabs


def test_closing_ends_the_leases_and_keeps_the_received_arrays(ends: Ends) -> None:
    segment, sizes = ends.leased(np.arange(100_000))
    ends.send(1, {}, sizes, (), segment)
    ((_, _, frames),) = ends.arrived()
    view = np.frombuffer(frames[0], int)
    ends.close()
    assert segment.leases == 0
    view += 1
    assert view.sum() == 5_000_050_000


def test_closing_closes_files_that_arrived_and_were_not_mapped(ends: Ends) -> None:
    before = descriptors()
    segment, sizes = ends.leased(np.arange(100_000))
    parts, files = ends.client.pack(1, {}, sizes, (), segment)
    ends.raw(b"".join(parts)[:20], files)
    assert ends.arrived() == []
    assert descriptors() == before + 2  # the segment's own, and the one that arrived
    ends.close()
    assert descriptors() == before - 2


def test_without_a_free_descriptor_one_message_has_no_frames(ends: Ends) -> None:
    """EMFILE: that message has no frames; the next one has."""
    first, sizes = ends.leased(np.full(100_000, 1))
    ends.send(1, {}, sizes, (), first)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    filler = os.open("/dev/null", os.O_RDONLY)
    os.close(filler)
    many: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, filler + 64), hard))
        with pytest.raises(OSError):
            while True:
                many.append(os.open("/dev/null", os.O_RDONLY))
        found = ends.arrived()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for file in many:
            os.close(file)
    ((serial, header, frames),) = found
    assert (serial, header, type(frames)) == (1, {"sizes": sizes}, UnmappedSegment)
    frames.number = 0  # it is taken back below
    ends.client.take_back(first, unmapped=True)
    assert first.leases == 0
    again, _ = ends.leased(np.full(100_000, 2))
    assert again.slab is first.slab  # and its file is sent once more
    other, _ = ends.leased(np.full(100_000, 3))
    ends.send(2, {}, sizes, (), again)
    ends.send(3, {}, sizes, (), other)
    values = [int(np.frombuffer(frames[0], int)[0]) for _, _, frames in ends.arrived()]
    assert values == [2, 3]


def test_two_sockets_do_not_mix_up_their_segments(ends: Ends) -> None:
    others = Ends()
    try:
        for both, value in ((ends, 1), (others, 2)):
            segment, sizes = both.leased(np.full(100_000, value))
            both.send(value, {}, sizes, (), segment)
        for both, value in ((ends, 1), (others, 2)):
            ((serial, _, frames),) = both.arrived()
            assert serial == value
            assert (np.frombuffer(frames[0], int) == value).all()
    finally:
        others.close()


# ---------------------------------------------------------------- malformed messages

MANY = (1 << 32) - 1
WRAPPED = [(1 << 63) - 1, (1 << 63) - 1, 6]  # their sum is 4 in 64 bits


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(prefixed(b"{"), id="not JSON"),
        pytest.param(prefixed(b"{}{}"), id="more than JSON"),
        pytest.param(prefixed(b"\xff\xfe{}"), id="not text"),
        pytest.param(prefixed(b"[" * 100_000), id="nested"),
        pytest.param(prefixed(b"{}", b"abcd"), id="no sizes"),
        pytest.param(prefixed(b'{"sizes": [4]}', b"abcd"), id="sizes in the header"),
        pytest.param(prefixed(b"{}", b"abcd", sizes=[0]), id="too many bytes"),
        pytest.param(prefixed(b"{}", b"abcd", sizes=[9]), id="too few bytes"),
        pytest.param(prefixed(b"{}", b"abcd", sizes=[-1, 5]), id="negative"),
        pytest.param(prefixed(b"{}", sizes=[0] * 10_001), id="many frames of nothing"),
        pytest.param(prefixed(b"{}", counts=(0, 0, 5_000_000)), id="many frames to come"),
        pytest.param(prefixed(b"{}", counts=(5_000_000, 0, 0)), id="many segments to come"),
        pytest.param(prefixed(b"{}", b"abcd", sizes=WRAPPED), id="a sum of 64 bits is right"),
        pytest.param(prefixed(b"7"), id="a number"),
        pytest.param(prefixed(b"null"), id="nothing"),
        pytest.param(prefixed(b"[]", b"abcd", sizes=[4]), id="not an object"),
        pytest.param(prefixed(b"", b"abcd"), id="no header"),
        pytest.param(prefixed(length=1 << 31), id="a header of 2 GiB"),
        pytest.param(prefixed(nbytes=1 << 63), id="frames of 8 EiB"),
        pytest.param(prefixed(counts=(MANY, 0, 0)), id="a lot is released"),
        pytest.param(prefixed(counts=(0, MANY, 0)), id="a lot is closed"),
        pytest.param(prefixed(counts=(0, 0, MANY)), id="a lot of frames"),
        pytest.param(bytes([255]) * 80, id="all ones"),
        pytest.param(
            b"GET / HTTP/1.1\r\nHost: localhost:8888\r\nAccept: */*\r\n\r\n" * 2, id="HTTP"
        ),
    ],
)
def test_a_malformed_message_raises_wire_error(ends: Ends, data: bytes) -> None:
    assert len(data) >= PREFIX.size  # a shorter one counts as incomplete
    ends.raw(data)
    with pytest.raises(WireError):
        ends.arrived()


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.binary(max_size=300))
@example(b"")
@example(prefixed(b"{}") * 3)
@example(prefixed(b"{}", sizes=[1], segment=1, capacity=1 << 63, flags=3))
def test_garbage_raises_wire_error_or_counts_as_incomplete(data: bytes) -> None:
    ends = Ends()
    try:
        if data:
            ends.raw(data)
        ends.arrived()
    except WireError:
        pass
    finally:
        ends.close()


NUMBERS = st.integers(-(1 << 63), (1 << 63) - 1)
ANYTHING = st.recursive(st.none() | st.integers() | st.text(), lambda item: st.lists(item))


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(NUMBERS, max_size=4) | st.lists(st.integers(0, 300_000), max_size=9), ANYTHING)
def test_any_sizes_of_a_segment_give_frames_or_wire_error(sizes: list[int], otherwise: Any) -> None:
    """Whatever a message says about a segment, it gives frames in it or ``WireError``."""
    ends = Ends()
    try:
        segment, _ = ends.leased(np.arange(100_000))
        ends.send(1, {"sizes": otherwise}, sizes, (), segment)
        ((_, header, frames),) = ends.arrived()
        assert header == {"sizes": sizes}
        assert [len(frame) for frame in frames] == sizes
        assert layout(sizes)[1] <= segment.slab.capacity
    except WireError:
        assert min(sizes) < 0 or layout(sizes)[1] > segment.slab.capacity
    finally:
        ends.close()


@pytest.mark.parametrize("sizes", [[], [0], [0, 0], [7], [1 << 40]])
def test_sizes_of_frames_that_are_not_sent_arrive(ends: Ends, sizes: list[int]) -> None:
    """The sizes arrive; such frames travel another way. Only empty frames need no bytes."""
    ends.send(1, {}, sizes)
    ((_, header, frames),) = ends.arrived()
    assert header == {"sizes": sizes}
    assert [len(frame) for frame in frames] == ([] if any(sizes) else sizes)


@pytest.mark.parametrize("sizes", [[-64, 64], [-1], [100_000, -50_000]])
def test_negative_sizes_of_a_segment_raise_wire_error(ends: Ends, sizes: list[int]) -> None:
    segment, _ = ends.leased(np.arange(100_000))
    ends.send(1, {}, sizes, (), segment)
    with pytest.raises(WireError):
        ends.arrived()


def test_sizes_beyond_the_segment_raise_wire_error(ends: Ends) -> None:
    segment, _ = ends.leased(np.arange(100_000))
    ends.send(1, {}, [segment.slab.capacity + 1], (), segment)
    with pytest.raises(WireError):
        ends.arrived()


def test_a_segment_that_could_not_be_mapped_is_taken_back(ends: Ends) -> None:
    """Also if no caller waits for its frames any more."""
    segment, sizes = ends.leased(np.arange(100_000))
    ends.client._handed[segment.slab.number] = segment.slab  # so that its file is not sent
    segment.slab.holders.append(ends.client)
    ends.send(1, {}, sizes, (), segment)
    ends.arrived()
    assert ends.kernel.has_updates
    ends.answer(0)
    ends.arrived(ends.client)
    assert segment.leases == 0
    assert not ends.client.has_handed
    again, _ = ends.leased(np.full(100_000, 3))
    ends.send(2, {}, sizes, (), again)
    ((_, _, frames),) = ends.arrived()
    assert (np.frombuffer(frames[0], int) == 3).all()


def test_an_unknown_segment_has_no_frames(ends: Ends) -> None:
    ends.raw(prefixed(sizes=[100], segment=77, capacity=MIB))
    ends.raw(prefixed(sizes=[100], segment=78, capacity=MIB, flags=1))
    assert [type(frames) for _, _, frames in ends.arrived()] == [UnmappedSegment] * 2


def test_a_file_that_is_not_a_segment_has_no_frames(ends: Ends) -> None:
    before = descriptors()
    ends.raw(prefixed(sizes=[100], segment=5, capacity=MIB, flags=1), [0])
    loose = os.memfd_create("loose", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(loose, MIB)
    ends.raw(prefixed(sizes=[100], segment=6, capacity=MIB, flags=1), [loose])
    os.close(loose)
    assert [type(frames) for _, _, frames in ends.arrived()] == [UnmappedSegment] * 2
    assert descriptors() == before


def test_released_numbers_without_a_lease_change_nothing(ends: Ends) -> None:
    segment, _ = ends.leased(np.arange(100_000))
    numbers = [segment.number + 1, -segment.number - 1, 0, 1 << 62, -(1 << 63)]
    ends.kernel.socket.sendall(prefixed(released=numbers, closed=numbers))
    assert len(ends.arrived(ends.client)) == 1
    assert segment.leases == 1


def test_a_lease_released_three_times_ends_once(ends: Ends) -> None:
    segment, _ = ends.leased(np.arange(100_000))
    ends.kernel.socket.sendall(prefixed(released=[segment.number] * 3))
    ends.arrived(ends.client)
    assert segment.leases == 0


def test_surplus_files_are_closed_with_the_socket(ends: Ends) -> None:
    before = descriptors()
    ends.raw(prefixed(b"{}"), [0, 1, 2])
    assert len(ends.arrived()) == 1
    ends.close()
    assert descriptors() == before - 2


def test_a_message_longer_than_the_limit_is_refused(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_socket, "MOST", 2000)
    ends.send(1, {}, [1000], [bytes(1000)])
    assert len(ends.arrived()) == 1
    ends.send(2, {}, [2000], [bytes(2000)])
    with pytest.raises(WireError, match="a message of 20"):
        ends.arrived()


def test_a_header_longer_than_the_receiver_takes_is_refused_before_it_has_arrived(
    ends: Ends,
) -> None:
    channel = FrameSocket(ends.kernel.socket, Pool(0.5), header_limit=1000)
    ends.send(1, {"text": "x" * 900})
    assert len(ends.arrived(channel)) == 1
    parts, _ = ends.client.pack(2, {"text": "x" * 1000})
    ends.raw(bytes(parts[0][: PREFIX.size]))
    with pytest.raises(WireError, match="a header of 1012 bytes is too long"):
        ends.arrived(channel)


def test_the_peer_is_of_this_user(ends: Ends) -> None:
    assert peer_user(ends.client.socket) == os.geteuid()


def test_headers_are_json_and_an_empty_one_takes_no_bytes(ends: Ends) -> None:
    header = {"x": [1, 2.5, None, "ä"]}
    ends.send(1, header)
    assert ends.arrived() == [(1, {**header, "sizes": []}, [])]
    parts, _ = ends.client.pack(2, {"a": 1})
    assert json.loads(bytes(parts[0])[PREFIX.size :]) == {"a": 1}
    parts, _ = ends.client.pack(3, {}, [5])
    assert bytes(parts[0])[PREFIX.size :] == array("q", [5]).tobytes()
