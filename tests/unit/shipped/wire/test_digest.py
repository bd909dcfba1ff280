"""Digests: of whole streams, of chunks, and sums."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from bridgehead._shipped.wire.digest import digest_of
from bridgehead._shipped.wire.errors import WireError
from bridgehead._shipped.wire.frames import cut, digest
from bridgehead._shipped.wire.transfer import Inbox
from support.frames import frames_of, joined


def test_digests_are_those_of_zlib_and_hashlib() -> None:
    assert digest("crc32", [b"123456789"]) == "crc32:cbf43926"
    assert digest("crc32", []) == "crc32:00000000"
    assert digest("sha256", [b"abc"]) == (
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


@pytest.mark.parametrize("algorithm", ["crc32", "sums", "sha256"])
def test_a_digest_depends_on_every_byte_and_on_their_order(algorithm: str) -> None:
    frames = [b"abc", b"", b"defg"]
    same = digest(algorithm, frames)
    assert digest(algorithm, [b"abcdefg"]) == same
    assert digest(algorithm, [memoryview(b"ab"), bytearray(b"cdefg")]) == same
    others = [[b"abc", b"defh"], [b"defg", b"abc"], [b"abc"], [b"abcdefg\0"], [b"\0abcdefg"]]
    assert same not in {digest(algorithm, other) for other in others}


@pytest.mark.parametrize("algorithm", ["", "md5", "CRC32", "None"])
def test_an_unknown_digest_is_refused(algorithm: str) -> None:
    with pytest.raises(WireError, match="unknown digest") as caught:
        digest(algorithm, [b"abc"])
    assert caught.value.kind == "protocol"
    inbox = Inbox([])
    with pytest.raises(WireError, match="unknown digest"):
        inbox.write(0, [], algorithm + ":00")


SMALL_LEAF = 1 << 16
LONG = [700, 2 * SMALL_LEAF + 12_345, 40_000]


@pytest.mark.parametrize("algorithm", ["crc32", "sums", "sha256"])
@pytest.mark.parametrize("chunk", [SMALL_LEAF, 2 * SMALL_LEAF, 4 * SMALL_LEAF])
def test_the_digest_of_a_chunk_is_a_part_of_the_streams_digest(
    algorithm: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridgehead._shipped.wire.digest.LEAF", SMALL_LEAF)
    frames = frames_of(LONG)
    whole = digest(algorithm, frames)
    for start in range(0, sum(LONG), chunk):
        parts = list(cut(frames, start, start + chunk))
        assert digest_of(whole, start, start + chunk) == digest(algorithm, parts)
    with ThreadPoolExecutor(3) as pool:
        assert digest(algorithm, frames, pool.map) == whole
    assert digest_of(digest(algorithm, []), 0, chunk) == digest(algorithm, [])


def test_sums_are_the_same_without_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    source = [*frames_of([700, 3 * 8192, 8191, 8192, 50_001]), memoryview(b"\xff" * 20_000)]
    odd = memoryview(joined(source))[3:]  # unaligned: no word starts at a multiple of 8
    expected = digest("sums", [*source, odd])
    for replacement in (None, object()):
        monkeypatch.setitem(sys.modules, "numpy", replacement)
        assert digest("sums", [*source, odd]) == expected


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda data: data[8192:16384] + data[:8192] + data[16384:], id="rows swapped"),
        pytest.param(lambda data: data[8:16] + data[:8] + data[16:], id="words swapped"),
        pytest.param(lambda data: data[:100] + bytes(4096) + data[4196:], id="a page of zeros"),
        pytest.param(lambda data: data[8:] + data[:8], id="shifted by a word"),
        pytest.param(lambda data: data[:-1] + bytes([data[-1] ^ 128]), id="the last bit"),
    ],
)
def test_sums_detect_damage(change: Callable[[bytes], bytes]) -> None:
    data = joined(frames_of([100_001]))
    assert change(data) != data
    assert digest("sums", [change(data)]) != digest("sums", [data])


@pytest.mark.parametrize("algorithm", ["crc32", "sums", "sha256"])
@pytest.mark.parametrize("at", [0, 499, 500, 2_999])
def test_a_flipped_bit_is_reported(algorithm: str, at: int) -> None:
    frames = frames_of([500, 2500])
    signed = digest(algorithm, frames)
    inbox = Inbox([500, 2500])
    damaged = bytearray(joined(frames))
    damaged[at] ^= 16
    with pytest.raises(WireError, match="digest") as caught:
        inbox.write(0, [damaged], signed)
    assert caught.value.kind == "integrity"
    with pytest.raises(WireError, match="0 of 3000 bytes"):
        inbox.take()
