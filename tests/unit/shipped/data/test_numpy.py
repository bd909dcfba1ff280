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


LAYOUTS: dict[str, Any] = {
    "contiguous": np.arange(6.0),
    "strided": np.arange(6.0)[::2],
    "long": np.arange(2 * IN_BAND)[::2],
    "backwards": np.arange(6)[::-1],
    "columns": np.asfortranarray(np.arange(12.0).reshape(3, 4))[:, 1:3],
    "axes in another order": np.zeros((2, 3, 4), "M8[s]").transpose(1, 0, 2),
    "none": np.zeros((0, 3)),
    "no dimension": np.array(5),
    "of no size": np.zeros(3, "U0"),
    "objects": np.array([None, [1], "x"], object),
    "strided objects": np.array([[None, "x"], [1, 2]], object)[:, 1],
    "texts": np.array(["a", "b", "c"], np.dtypes.StringDType())[::2],
    "records": np.zeros(6, "i4,f8").view(np.recarray)[::2],
}


@pytest.mark.parametrize("array", LAYOUTS.values(), ids=LAYOUTS)
def test_an_array_of_any_layout_arrives_as_writable_as_it_was_sent(array: Any) -> None:
    """Row L8, with data only."""
    for writeable in (True, False):
        array = array.view()
        array.flags.writeable = writeable
        value = sent({"x": [array, array]})["x"]
        assert value[0] is value[1]
        assert (value[0].flags.writeable, type(value[0])) == (writeable, type(array))
        assert (value[0].dtype, value[0].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(value[0], array)


@pytest.mark.parametrize("kind", ["f8", "O", np.dtypes.StringDType()])
def test_a_broadcast_array_arrives_with_all_its_items_and_read_only(kind: Any) -> None:
    array = np.broadcast_to(np.ones((), kind), (300, 200))
    value = sent(array)
    assert (value.shape, value.flags.writeable) == ((300, 200), False)
    np.testing.assert_array_equal(value, array)
    assert sum(frame.nbytes for frame in encode_data(array)) >= array.size


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
