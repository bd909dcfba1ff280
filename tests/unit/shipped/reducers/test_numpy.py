"""Arrays that numpy's own pickles would change: read-only ones, and ones with shared items."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided, sliding_window_view

from bridgehead import Bridge
from bridgehead._shipped.wire import pickling


def read_only(array: Any) -> Any:
    array.flags.writeable = False
    return array


ROW = np.arange(5000.0)
TIME = np.datetime64("2020-01-01")
SHARED: dict[str, np.ndarray[Any, Any]] = {
    "a number": np.broadcast_to(np.float64(1), (500, 2000)),
    "a row": np.broadcast_to(ROW, (1000, 5000)),
    "a column": np.broadcast_to(ROW[:, None], (5000, 1000)),
    "transposed": np.broadcast_to(ROW, (1000, 5000)).T,
    "backwards": np.broadcast_to(ROW[::-1], (1000, 5000))[::-1, ::2],
    "windows": sliding_window_view(ROW, 1000),
    "windows backwards": sliding_window_view(ROW, 1000)[::-2, ::-3],
    "a time": np.broadcast_to(TIME, (2000, 3000)),
    "a record": np.broadcast_to(np.zeros(1, [("a", "i4"), ("b", "U3")]), (3000, 1000)),
    "small": np.broadcast_to(np.int8(1), (20, 30)),
    "writable": as_strided(np.arange(3), (400, 3), (0, 8)),
}
READ_ONLY: dict[str, np.ndarray[Any, Any]] = {
    "every second": read_only(ROW.copy())[::2],
    "a window": read_only(np.arange(12.0).reshape(3, 4).copy())[:, 1:3],
    "times": read_only(np.arange(3).astype("M8[s]")),
    "large times": read_only(np.zeros(300_000, "m8[s]")),
    "objects": read_only(np.array([1, [2]], dtype=object)),
    "broadcast objects": np.broadcast_to(np.array([1], dtype=object), (3,)),
    "texts": read_only(np.array(["a", "bc"], dtype=np.dtypes.StringDType())),
    "masked": read_only(np.ma.masked_array([1, 2], mask=[0, 1])),
    "records": read_only(np.rec.array([(1, 2.0)], names="a,b")),
    "nothing": np.broadcast_to(1, (0, 3)),
}


def crossed(array: Any) -> Any:
    """Return an array as a bridge sends it, and the number of its bytes."""
    small = pickling.is_small(array)
    frames = pickling.encode_small(array) if small else pickling.encode(array)[0]
    copies = [bytes(one) if one.readonly else bytearray(one) for one in frames]
    return pickling.decode(copies), sum(frame.nbytes for frame in frames)


@pytest.mark.parametrize("name", [*SHARED, *READ_ONLY])
def test_an_array_keeps_its_items_and_its_flag(name: str) -> None:
    array = {**SHARED, **READ_ONLY}[name]
    back, _ = crossed(array)
    assert type(back) is type(array)
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.flags.writeable is array.flags.writeable
    np.testing.assert_array_equal(np.asarray(back), np.asarray(array))
    assert not np.shares_memory(back, array)


@pytest.mark.parametrize("name", SHARED)
def test_items_that_share_memory_cross_once_and_share_it_again(name: str) -> None:
    array = SHARED[name]
    back, nbytes = crossed(array)
    assert nbytes < ROW.nbytes + 500
    assert back.strides == array.strides


async def test_a_broadcast_and_a_read_only_array_cross_both_ways(kernel: Bridge) -> None:
    """L8."""
    array, times = SHARED["a row"], READ_ONLY["times"]
    transfer = await kernel.push(array=array, times=times, strided=READ_ONLY["every second"])
    assert transfer.bytes < 2 * ROW.nbytes
    flags = "[x.flags.writeable for x in (array, times, strided)]"
    assert await kernel.pull(flags) == [False, False, False]
    back, *others = await kernel.pull("array", "times", "strided", max_bytes=2 * ROW.nbytes)
    np.testing.assert_array_equal(back, array)
    assert [one.flags.writeable for one in (back, *others)] == [False, False, False]
