"""Large bytes and texts become frames of their own, and arrive as what they are."""

from __future__ import annotations

import pickle
from struct import pack
from typing import Any

import pytest

from bridgehead._shipped.wire import large as _large
from bridgehead._shipped.wire import pickling as _pickling
from bridgehead._shipped.wire.errors import TooLarge

EACH = _large.WRITTEN_ALONE
SIZES = [EACH - 1, EACH, EACH + 1, 1 << 20, _large.MAPPED_ALONE + 1]
KINDS = {
    "bytes": bytes,
    "bytearray": bytearray,
    "ASCII": lambda data: data.decode("ascii"),
    "Latin-1": lambda data: data[:-2].decode("ascii") + "é",
    "BMP": lambda data: "☃" + data[:-3].decode("ascii"),
    "beyond": lambda data: data[:-4].decode("ascii") + "𝔘",
    "surrogates": lambda data: data[:-3].decode("ascii") + "\ud800",
}


def travel(value: Any) -> tuple[Any, list[memoryview]]:
    """Return an object as it arrives, and its frames."""
    frames, _ = _pickling.encode(value)
    return _pickling.decode([bytearray(frame) for frame in frames]), frames


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_large_is_a_frame_of_its_own(kind: str, size: int) -> None:
    value = KINDS[kind](bytes(b"0123456789abcdef" * (size // 16 + 1))[:size])
    back, frames = travel({"value": [value], "after": 1})
    assert back == {"value": [value], "after": 1}
    assert type(back["value"][0]) is type(value)
    assert [frame.nbytes for frame in frames[1:]] == ([size] if size >= EACH else [])
    assert frames[0].nbytes < (200 if size >= EACH else size + 200)


def test_bytes_are_not_copied_to_be_sent() -> None:
    for value in (bytes(EACH), bytearray(EACH)):
        assert _pickling.encode([value])[0][1].obj is value


def test_a_bytearray_can_grow_when_its_frames_are_gone() -> None:
    value = bytearray(EACH)
    frames, _ = _pickling.encode([value])
    with pytest.raises(BufferError):
        value.append(1)
    del frames
    value.append(1)


@pytest.mark.parametrize("make", [bytes, bytearray, lambda n: "x" * n])
def test_an_object_twice_crosses_once(make: Any) -> None:
    value = make(EACH)
    back, frames = travel([value, {"again": value}, value[1:]])
    assert back[0] is back[1]["again"]
    assert back[2] == value[1:]
    assert len(frames) == 2


def test_many_kinds_keep_their_order() -> None:
    values: list[Any] = []
    for number in range(40):
        values += [bytes([number]) * EACH, bytearray([number]) * (EACH + number), [number]]
        values += [
            chr(number + 200) * EACH,
            chr(number + 40) * EACH,
            pickle.PickleBuffer(b"a" * EACH),
        ]
    back, frames = travel(values)
    assert len(frames) == 1 + 40 * 5
    assert [bytes(v) if type(v) is bytearray else v for v in back] == [
        bytes(v) if type(v) in (bytearray, pickle.PickleBuffer) else v for v in values
    ]


# ---------------------------------------------------------------- what only looks so


@pytest.mark.parametrize("code", [b"\x8e", b"\x8d", b"\x96", b"B", b"X"])
@pytest.mark.parametrize("size", [EACH, EACH + 9, 3 * EACH])
def test_a_frame_of_the_pickle_is_no_object(code: bytes, size: int) -> None:
    """A number whose bytes look like the opcode and the length of what is written next."""
    width = "<Q" if code in (b"\x8e", b"\x8d", b"\x96") else "<I"
    value = []
    for length in range(size - 30, size + 30):
        number = int.from_bytes(b"\1" * 300 + code + pack(width, length), "little")
        value += [b"x" * (EACH - 400), number, "y" * (size - 30), number]
    assert travel(value)[0] == value


def test_bytes_that_look_like_a_frame_of_the_pickle_arrive() -> None:
    for length in (0, 5, EACH - 9, EACH, 1 << 40):
        value = pickle.FRAME + pack("<Q", length) + bytes(EACH - 9)
        assert travel([value, 1])[0] == [value, 1]


def test_pickling_that_stops_at_its_limit_meets_no_more_objects() -> None:
    met = []

    class Counted:
        def __reduce__(self) -> Any:
            met.append(1)
            return bytes, (b"%01000d" % len(met),)

    value = [Counted() for _ in range(1000)]
    with pytest.raises(TooLarge):
        _pickling.encode(value, limit=EACH, stops=True)
    assert len(met) < 300
    with pytest.raises(TooLarge) as caught:
        _pickling.encode(value, limit=EACH)
    assert caught.value.nbytes > 1_000_000
    assert len(met) > 1000


def test_a_limit_counts_the_frames() -> None:
    for value in (bytes(EACH), "x" * EACH, bytearray(EACH)):
        with pytest.raises(TooLarge):
            _pickling.encode([value], limit=EACH)
        _pickling.encode([value], limit=EACH + 300)


# ---------------------------------------------------------------- where CPython's API is missing


@pytest.mark.parametrize("kind", KINDS)
def test_without_huge_pages_objects_arrive(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_large, "_new_objects", lambda: None)
    monkeypatch.setattr(_large, "MAPPED_ALONE", EACH)
    value = KINDS[kind](b"z" * (2 * EACH))
    assert travel(value)[0] == value


@pytest.mark.parametrize("kind", KINDS)
def test_from_read_only_frames_objects_arrive(kind: str) -> None:
    value = KINDS[kind](b"z" * (_large.MAPPED_ALONE + 1))
    frames, _ = _pickling.encode(value)
    back = _pickling.decode([bytes(frame) for frame in frames])
    assert back == value
    assert hash(back) == hash(value) if kind != "bytearray" else back.append(1) is None
