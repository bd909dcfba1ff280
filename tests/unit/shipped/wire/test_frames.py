"""Frames: their memory, and cutting a stream of them."""

from __future__ import annotations

import ctypes
import itertools
import random
import sys

import numpy as np
import pytest

from bridgehead._shipped.wire.frames import (
    COPIED_AT_ONCE,
    HUGE_PAGE,
    OWN_MAPPING,
    allocate,
    copy_into,
    cut,
    use_small_pages,
)
from support.frames import frames_of, joined


def address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


# ---------------------------------------------------------------- memory

SIZES = [0, 1, 7, OWN_MAPPING - 1, OWN_MAPPING, OWN_MAPPING + 1, 3 * OWN_MAPPING]


@pytest.mark.parametrize("size", SIZES)
def test_allocated_memory_has_the_size_asked_for_and_is_zeroed_and_writable(size: int) -> None:
    view = allocate(size)
    assert (view.nbytes, view.format, view.ndim) == (size, "B", 1)
    assert not view.readonly
    assert not any(view[:64])
    view[:] = b"\xff" * size
    assert bytes(view) == b"\xff" * size


@pytest.mark.parametrize("size", [OWN_MAPPING, OWN_MAPPING + 1, 5 * OWN_MAPPING + 13])
def test_large_memory_is_aligned_to_64_bytes(size: int) -> None:
    assert address(allocate(size)) % 64 == 0


@pytest.mark.parametrize("size", [100, OWN_MAPPING])
def test_allocated_memory_lives_as_long_as_the_array_that_uses_it(size: int) -> None:
    array = np.frombuffer(allocate(size), "u1")
    array[:] = 7
    others = [allocate(size) for _ in range(3)]
    for other in others:
        other[:] = bytes(size)
    assert (array == 7).all()


# ---------------------------------------------------------------- cutting


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [
        (0, 9, b"abcdefghi"),
        (0, 3, b"abc"),
        (3, 5, b"de"),
        (2, 6, b"cdef"),
        (4, 4, b""),
        (8, 9, b"i"),
        (8, 100, b"i"),
        (9, 20, b""),
    ],
)
def test_cut_gives_the_bytes_between_two_offsets(start: int, stop: int, expected: bytes) -> None:
    frames = [memoryview(part) for part in (b"abc", b"", b"de", b"fghi")]
    assert joined(cut(frames, start, stop)) == expected


def test_cut_copies_nothing() -> None:
    block = bytearray(b"abcdef")
    (part,) = cut([memoryview(block)], 1, 4)
    block[1:4] = b"XYZ"
    assert bytes(part) == b"XYZ"


@pytest.mark.parametrize("seed", range(20))
def test_chunks_cut_anywhere_join_to_the_whole_stream(seed: int) -> None:
    source = random.Random(seed)
    frames = frames_of([source.choice([0, 1, 5, 100]) for _ in range(source.randrange(1, 8))], seed)
    total = sum(frame.nbytes for frame in frames)
    edges = sorted({0, total, *(source.randrange(total + 1) for _ in range(5))})
    chunks = [joined(cut(frames, a, b)) for a, b in itertools.pairwise(edges)]
    assert joined(chunks) == joined(frames)


@pytest.mark.parametrize("numpy", [True, False])
@pytest.mark.parametrize("size", [0, 1, COPIED_AT_ONCE, HUGE_PAGE + 5, 3 * HUGE_PAGE])
def test_a_copy_in_steps_is_the_same_with_numpy_and_without(
    size: int, numpy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not numpy:
        monkeypatch.delitem(sys.modules, "numpy")
    source, room = memoryview(random.Random(size).randbytes(size)), allocate(size + 2)
    copy_into(room[1 : 1 + size], source)
    assert bytes(room) == b"\0" + bytes(source) + b"\0"


def test_a_mapping_can_go_on_with_small_pages_and_keeps_its_bytes() -> None:
    room = allocate(4 * HUGE_PAGE)
    room[:HUGE_PAGE] = b"x" * HUGE_PAGE
    use_small_pages(room[5:].obj)
    room[HUGE_PAGE:] = b"y" * (3 * HUGE_PAGE)
    assert bytes(room) == b"x" * HUGE_PAGE + b"y" * (3 * HUGE_PAGE)
    use_small_pages(bytearray(5))  # no mapping: there is nothing to do
