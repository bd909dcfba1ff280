"""Arrays and scalars of numpy arrive as they were sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from bridgehead._shipped.data import decode_data, encode_data
from bridgehead._shipped.wire.errors import WireError
from bridgehead._shipped.wire.frames import IN_BAND
from support.data import NUMPY, arrives_as_it_was_sent, sent


def readonly(array: Any) -> Any:
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("value", NUMPY.values(), ids=[f"numpy: {name}" for name in NUMPY])
@pytest.mark.parametrize("in_band", [0, 1 << 30], ids=["out of band", "in band"])
def test_numpy_data_arrives_as_it_was_sent(
    value: Any, in_band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrives_as_it_was_sent(value, in_band, monkeypatch)


def test_an_array_arrives_as_writable_as_it_was_sent() -> None:
    for size in (3, 3 * IN_BAND):
        array = sent({"a": np.zeros(size)})["a"]
        array[0] = 1
        assert array[0] == 1
        assert not sent(readonly(np.zeros(size))).flags.writeable


def test_large_frames_are_views_of_the_sent_array() -> None:
    array = np.zeros(IN_BAND)
    frames = encode_data([array, pd.DataFrame({"a": array}, copy=False)])
    assert [frame.nbytes for frame in frames[1:]] == [array.nbytes] * 2
    assert all(np.shares_memory(np.frombuffer(frame, "u1"), array) for frame in frames[1:])


def test_a_large_array_that_arrives_is_a_view_of_its_frame() -> None:
    frames = encode_data(np.arange(float(IN_BAND)))
    memory = bytearray(frames[1])
    assert np.shares_memory(decode_data([frames[0], memory]), np.frombuffer(memory, "u1"))


OVERLAP = np.dtype({"names": ["a", "b"], "formats": ["i4", "i4"], "offsets": [0, 2]})


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (np.zeros((1,) * 40), "of more than 32 axes"),
        (np.full((1,) * 40, None), "of more than 32 axes"),
        (np.zeros(2, OVERLAP), "with fields that overlap"),
        (OVERLAP, "with fields that overlap"),
    ],
    ids=["axes", "axes of objects", "an array of overlapping fields", "overlapping fields"],
)
def test_the_writer_names_an_array_that_the_reader_refuses(value: Any, named: str) -> None:
    with pytest.raises(WireError, match=rf"{named} is not data \(at \['x'\]\)") as caught:
        encode_data({"x": value})
    assert caught.value.kind == "untrusted"
