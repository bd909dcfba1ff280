"""``array.array`` and memoryviews, compared with what their own pickles keep."""

from __future__ import annotations

import array
import pickle
from typing import Any

import numpy as np
import pytest

from bridgehead._shipped.reducers import standard as _standard
from bridgehead._shipped.wire import pickling

CODES = "bBhHiIlLqQfdu"


class Named(array.array):  # type: ignore[type-arg]
    """A subclass with attributes."""


def crossed(value: Any) -> tuple[Any, list[memoryview]]:
    frames, _ = pickling.encode(value)
    return pickling.decode([bytearray(frame) for frame in frames]), frames


@pytest.mark.parametrize("count", [0, 1, 5000])
@pytest.mark.parametrize("code", CODES)
def test_an_array_of_numbers_crosses(code: str, count: int) -> None:
    numbers = array.array(code, "ab" * count if code == "u" else [n % 100 for n in range(count)])
    back, frames = crossed(numbers)
    own = pickle.loads(pickle.dumps(numbers, 5))
    assert (type(back), back.typecode, back) == (type(own), own.typecode, own)
    back.append("c" if code == "u" else 1)
    assert count < 5000 or code == "u" or frames[0].nbytes < 300


def test_an_array_twice_stays_one_array() -> None:
    numbers = array.array("d", range(5000))
    (left, right), frames = crossed([numbers, numbers])
    assert left is right
    assert len(frames) == 2
    assert np.shares_memory(np.frombuffer(frames[1], "f8"), np.frombuffer(numbers, "f8"))


def test_a_subclass_keeps_its_attributes() -> None:
    numbers = Named("d", range(5000))
    numbers.unit = "m"  # type: ignore[attr-defined]
    back, _ = crossed(numbers)
    assert (type(back), back.unit, back) == (Named, "m", numbers)


def test_numbers_in_the_format_of_another_machine_are_converted() -> None:
    big_endian = 9  # array's number for signed 4-byte integers, most significant byte first
    back = _standard.make_number_array("i", big_endian, (1).to_bytes(4, "big") * 3)
    assert back == array.array("i", [1, 1, 1])


VIEWS = {
    "bytes": memoryview(b"x" * 5000),
    "numbers": memoryview(np.arange(5000.0)),
    "a table": memoryview(np.arange(6000.0).reshape(20, 300)),
    "Fortran order": memoryview(np.asfortranarray(np.arange(6000.0).reshape(20, 300))),
    "every second": memoryview(b"xy" * 5000)[::2],
    "small": memoryview(b"xy"),
    "empty": memoryview(b""),
    "no dimension": memoryview(np.array(3.5)),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_memoryview_arrives_as_bytes(name: str) -> None:
    view = VIEWS[name]
    back, frames = crossed([view])
    assert type(back[0]) is bytes
    assert back[0] == view.tobytes()
    contiguous = view.c_contiguous and view.nbytes >= 5000
    assert len(frames) == 1 + contiguous
