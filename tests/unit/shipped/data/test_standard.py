"""Data of the standard library arrives as it was sent."""

from __future__ import annotations

import array
import decimal
import sys
from typing import Any

import pytest

from bridgehead._shipped.data import decode_data, encode_data
from bridgehead._shipped.wire.errors import WireError
from support.data import PLAIN, arrives_as_it_was_sent, codec_call, data, pickled, refused


@pytest.mark.parametrize("value", PLAIN.values(), ids=[f"plain: {name}" for name in PLAIN])
@pytest.mark.parametrize("in_band", [0, 1 << 30], ids=["out of band", "in band"])
def test_standard_library_data_arrives_as_it_was_sent(
    value: Any, in_band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrives_as_it_was_sent(value, in_band, monkeypatch)


def numbers(code: str = "d", size: int = 8, little: Any = True, raw: Any = bytearray(16)) -> bytes:
    return codec_call("make_flat_numbers", code, size, little, data(raw))


@pytest.mark.parametrize(
    "call",
    [
        numbers("u", 4),
        numbers("w", 4),
        numbers("dd"),
        numbers(""),
        numbers("d", 4),
        numbers("d", 0),
        numbers("d", -8),
        numbers(raw=bytearray(15)),
        numbers(little=1),
        numbers(raw="text"),
    ],
    ids=["text", "wide text", "two", "none", "size", "zero", "minus", "part", "flag", "a str"],
)
def test_hostile_numbers_are_refused(call: bytes) -> None:
    assert refused(pickled(call))[0] == "protocol"


def test_numbers_of_another_machine_arrive() -> None:
    other = sys.byteorder != "little"
    raw = bytearray((5).to_bytes(4, "little" if other else "big") * 2)
    assert decode_data([pickled(numbers("l", 4, other, raw))]) == array.array("i", [5, 5])


def test_an_array_of_characters_is_refused_by_the_sender() -> None:
    with pytest.raises(WireError) as caught:
        encode_data(array.array("u", "ab"))
    assert caught.value.kind == "untrusted"


@pytest.mark.parametrize("exponent", [20_000, 22_000, -22_000, 23_000, -40_000, 1_000_000])
def test_the_writer_refuses_a_decimal_that_the_reader_refuses(exponent: int) -> None:
    value = decimal.Decimal(f"1E{exponent:+}")
    raw = pickled(codec_call("make_decimal", str(value)))
    if abs(exponent) < 23_000:
        assert decode_data(encode_data(value)) == decode_data([raw]) == value
        return
    with pytest.raises(WireError, match="visits"):
        decode_data([raw])
    with pytest.raises(WireError, match=r"a decimal.Decimal of so many digits is not data"):
        encode_data(value)
