"""Transfers: a stream in chunks, in any order, and what is refused."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from bridgehead._shipped.wire.errors import WireError
from bridgehead._shipped.wire.frames import OWN_MAPPING, cut, digest
from bridgehead._shipped.wire.transfer import Inbox
from support.frames import frames_of, joined


def random_chunks(
    frames: Sequence[memoryview], source: random.Random
) -> list[tuple[int, list[memoryview]]]:
    """Cut the stream at random, each chunk in parts along its frames or in one."""
    total = sum(frame.nbytes for frame in frames)
    edges = sorted({0, total, *(source.randrange(total + 1) for _ in range(source.randrange(9)))})
    chunks = []
    for start, stop in itertools.pairwise(edges):
        parts = list(cut(frames, start, stop))
        if source.random() < 0.5:  # a lane may join or split the parts on the way
            parts = [memoryview(joined(parts))]
        chunks.append((start, parts))
    return chunks


@pytest.mark.parametrize("seed", range(60))
def test_chunks_may_arrive_in_any_order_and_more_than_once(seed: int) -> None:
    source = random.Random(seed)
    choices = [0, 0, 1, 2, 63, 1000, OWN_MAPPING + 5] if seed % 10 == 0 else [0, 0, 1, 2, 63, 1000]
    sizes = [source.choice(choices) for _ in range(source.randrange(1, 7))]
    frames = frames_of(sizes, seed)
    chunks = random_chunks(frames, source)
    chunks += source.sample(chunks, min(2, len(chunks)))
    source.shuffle(chunks)
    inbox = Inbox(sizes)
    assert inbox.total == sum(sizes)
    for at, parts in chunks:
        inbox.write(at, parts, digest("sha256", parts))
    received = inbox.take()
    assert [bytes(frame) for frame in received] == [bytes(frame) for frame in frames]
    assert not any(frame.readonly for frame in received)


@pytest.mark.parametrize("seed", range(30))
def test_a_missing_chunk_is_reported(seed: int) -> None:
    source = random.Random(seed)
    frames = frames_of([100, 0, 30, 999], seed)
    chunks = random_chunks(frames, source)
    chunks.remove(source.choice(chunks))
    inbox = Inbox([100, 0, 30, 999])
    for at, parts in chunks:
        inbox.write(at, parts, digest("crc32", parts))
    with pytest.raises(WireError, match="of 1129 bytes arrived") as caught:
        inbox.take()
    assert caught.value.kind == "integrity"


@pytest.mark.parametrize(
    "spans",
    [
        pytest.param([(0, 6), (4, 10)], id="every byte, some twice"),
        pytest.param([(0, 4), (2, 8)], id="the right count of bytes, but not all"),
        pytest.param([(0, 10), (3, 5)], id="one inside another"),
    ],
)
def test_overlapping_chunks_are_refused(spans: list[tuple[int, int]]) -> None:
    frames = frames_of([3, 7])
    inbox = Inbox([3, 7])
    for start, stop in spans:
        parts = list(cut(frames, start, stop))
        inbox.write(start, parts, digest("crc32", parts))
    with pytest.raises(WireError) as caught:
        inbox.take()
    assert caught.value.kind == "integrity"


@pytest.mark.parametrize(
    ("at", "data"),
    [
        (-1, b"x"),
        (-5, b"12345"),
        (0, b"12345678901"),
        (9, b"12"),
        (10, b"1"),
        (11, b""),
        (2**70, b""),
        (True, b"x"),
        (1.0, b"x"),
        ("1", b"x"),
        (None, b"x"),
    ],
)
def test_a_chunk_that_does_not_fit_is_refused_and_writes_nothing(at: Any, data: bytes) -> None:
    inbox = Inbox([4, 6])
    with pytest.raises(WireError, match="do not fit") as caught:
        inbox.write(at, [data], digest("crc32", [data]))
    assert caught.value.kind == "integrity"
    assert joined(inbox.frames) == bytes(10)
    with pytest.raises(WireError, match="0 of 10 bytes"):
        inbox.take()


@pytest.mark.parametrize("sizes", [[-1], [1, -1], [1.0], ["1"], [None], [True], [[1]], "12"])
def test_sizes_that_are_not_numbers_of_bytes_are_refused(sizes: Any) -> None:
    with pytest.raises(WireError) as caught:
        Inbox(sizes)
    assert caught.value.kind == "protocol"


@pytest.mark.parametrize("size", [2**60, 2**63, 2**64, 10**30])
def test_a_size_beyond_any_memory_is_refused(size: int) -> None:
    with pytest.raises(WireError, match=str(size + 1)):
        Inbox([1, size])


def test_a_stream_without_frames_is_complete_at_once() -> None:
    assert Inbox([]).take() == []


def test_parts_may_be_any_kind_of_buffer() -> None:
    inbox = Inbox([2, 2, 8])
    numbers = np.arange(2, dtype="<i4")
    signed = digest("crc32", [b"abcd" + numbers.tobytes()])
    inbox.write(0, [b"ab", bytearray(b"cd"), memoryview(numbers)], signed)
    assert joined(inbox.frames) == b"abcd" + np.arange(2, dtype="<i4").tobytes()


@pytest.mark.parametrize(
    "sizes",
    [
        [0] * 5_000_000,
        [1] * 50_000,
        [*range(1024)] * 10,
        [1 << 20] * 2000 + [0] * 10_001,
        [2048] * ((1 << 20) + 1),
        [0, "0"],
        [0] * 9000 + [True],
        {},
        None,
    ],
    ids=["empty", "small", "growing", "behind large ones", "too many", "text", "truth", "a", "b"],
)
def test_frames_are_only_many_where_the_bytes_are(sizes: Any) -> None:
    """M7. A size costs its sender two bytes, and the frame its receiver some hundred."""
    with pytest.raises(WireError):
        Inbox(sizes)


def test_many_frames_arrive() -> None:
    sizes = [7] * 10_000 + [2048] * 3000
    inbox = Inbox(sizes)
    source = memoryview(np.random.default_rng(0).bytes(sum(sizes)))
    for at in reversed(range(0, len(source), 1 << 20)):
        part = [source[at : at + (1 << 20)]]
        inbox.write(at, part, digest("crc32", part))
    assert joined(inbox.take()) == source
