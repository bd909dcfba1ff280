"""Arrays of every dtype, layout and subclass, compared with what numpy's own pickles keep."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided, sliding_window_view

from bridgehead import Bridge
from bridgehead._shipped.wire import pickling
from bridgehead._shipped.wire.frames import IN_BAND


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


@pytest.mark.parametrize("dtype", [">M8[s]", ">m8[h]", ">i4", [("at", ">M8[s]")]])
def test_a_few_items_keep_their_byte_order(dtype: Any) -> None:
    """Dates arrive in this machine's if numpy itself pickles them."""
    array = np.arange(3).astype(dtype)
    back, _ = crossed(array)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("name", SHARED)
def test_items_that_share_memory_cross_once_and_share_it_again(name: str) -> None:
    array = SHARED[name]
    back, nbytes = crossed(array)
    assert nbytes < ROW.nbytes + 500
    assert back.strides == array.strides


# ---------------------------------------------------------------- compared with numpy's own pickle

TIMES = ["M8[ns]", ">M8[s]", "M8[25us]", "M8[D]", "M8", "m8[ms]", ">m8[h]", "m8"]
DTYPES: dict[str, Any] = {
    **{code: code for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?"},
    **{code: code for code in (">i4", ">f8", ">c16", ">u2", "S3", "U3", ">U3", "V5", "S0", "c")},
    **{code: code for code in TIMES},
    "record": [("a", "i1"), ("b", ">f8")],
    "record of times": [("at", "M8[ns]"), ("for", "m8[s]"), ("text", "U3")],
    "nested record": [("in", [("at", "M8[s]", (2, 2)), ("n", "u2")]), ("x", "f4")],
    "aligned record": np.dtype([("a", "i1"), ("b", "f8")], align=True),
    "gaps": np.dtype({"names": ["a"], "formats": ["M8[s]"], "offsets": [8], "itemsize": 24}),
    "titles": np.dtype({"names": ["a"], "formats": ["f8"], "titles": ["the title"]}),
    "metadata": np.dtype("M8[s]", metadata={"unit": "m"}),
    "numpy.record": np.dtype((np.record, [("at", "M8[s]"), ("n", "i4")])),
}
LAYOUTS: dict[str, Any] = {
    "C": lambda flat: flat.reshape(4, 300),
    "Fortran": lambda flat: np.asfortranarray(flat.reshape(4, 300)),
    "flat": lambda flat: flat,
    "every second": lambda flat: flat.reshape(6, 200)[::2, ::3],
    "backwards": lambda flat: flat[::-1],
    "third order": lambda flat: flat.reshape(5, 12, 20).transpose(1, 2, 0),
    "strided third order": lambda flat: flat.reshape(5, 12, 20).transpose(1, 2, 0)[:, ::-2, 1:],
    "few": lambda flat: flat[:3],
    "one": lambda flat: flat[:1].reshape(1, 1, 1),
    "no dimension": lambda flat: flat[0:1].reshape(()),
    "no items": lambda flat: flat[:0].reshape(3, 0, 2),
    "read-only": lambda flat: read_only(flat.reshape(4, 300).copy()),
    "read-only, strided": lambda flat: read_only(flat.copy())[1::2],
}


def filled(dtype: Any) -> Any:
    """Return 1200 items of a dtype."""
    wanted = np.dtype(dtype)
    flat = np.zeros(1200, wanted)
    if wanted.kind in "SUc":
        return np.array([str(n) for n in range(1200)]).astype(wanted)
    if wanted.names is None and wanted.kind not in "V":
        return (np.arange(1200) % 100).astype("i8").astype(wanted)
    for name in wanted.names or ():
        column = flat[name]
        numbers = np.arange(column.size).reshape(column.shape)
        if column.dtype.names is None:
            column[...] = numbers.astype(column.dtype)
    return flat


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_array_keeps_what_its_own_pickle_keeps(dtype: str, layout: str) -> None:
    array = LAYOUTS[layout](filled(DTYPES[dtype]))
    own = pickle.loads(pickle.dumps(array, 5))
    frames, _ = pickling.encode([array])
    back = pickling.decode([bytes(one) if one.readonly else bytearray(one) for one in frames])[0]
    small, _ = crossed([array])
    assert (type(back), back.shape) == (np.ndarray, array.shape)
    assert back.dtype.str == (array.dtype if array.size else own.dtype).str
    assert back.dtype.metadata == own.dtype.metadata
    assert back.dtype.fields == own.dtype.fields
    assert repr(back.tolist()) == repr(small[0].tolist()) == repr(array.tolist())
    if array.flags.forc:
        assert back.strides == own.strides
    for one in (back, small[0]):
        assert (one.flags.writeable, one.flags.aligned) == (array.flags.writeable, True)
    assert sum(frame.nbytes for frame in frames) < array.nbytes + 1500
    assert len(frames) == 1 + (array.nbytes >= IN_BAND)


class Plain(np.ndarray[Any, Any]):
    """A subclass without a pickle of its own."""


class Tagged(np.ndarray[Any, Any]):
    """A subclass that pickles an attribute, as numpy's documentation has it."""

    tag = ""

    def __reduce__(self) -> Any:
        make, arguments, state = super().__reduce__()  # type: ignore[misc]
        return make, arguments, (*state, self.tag)

    def __setstate__(self, state: Any) -> None:
        self.tag = state[-1]
        super().__setstate__(state[:-1])


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.parametrize("kind", [Plain, Tagged, np.matrix, np.recarray, np.memmap])
@pytest.mark.parametrize("dtype", ["f8", "M8[s]", "record of times", "object"])
def test_a_subclass_keeps_what_its_own_pickle_keeps(kind: Any, dtype: str) -> None:
    array = filled(DTYPES.get(dtype, dtype)).reshape(4, 300)[:, ::2].view(kind)
    array.tag = "mine"
    back, _ = crossed([array])
    back, own = back[0], pickle.loads(pickle.dumps(array, 5))
    assert (type(back), back.dtype, back.shape) == (type(own), own.dtype, own.shape)
    assert back.tolist() == array.tolist()
    assert back.flags.writeable
    assert getattr(back, "tag", None) == getattr(own, "tag", None)
    assert vars(back) == vars(own)


def test_strided_items_are_copied_once_and_nothing_else_crosses() -> None:
    array = np.arange(200_000.0)[::2]
    back, nbytes = crossed([array])
    assert nbytes < array.nbytes + 500
    np.testing.assert_array_equal(back[0], array)


# ---------------------------------------------------------------- masked arrays

MASKS: dict[str, Any] = {
    "none": np.ma.nomask,
    "some": np.arange(1200) % 3 == 0,
    "all": np.ones(1200, bool),
}


@pytest.mark.parametrize("dtype", ["f8", "M8[s]", "S3", ">i4", "record of times", "object"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("layout", ["flat", "Fortran", "every second", "no items"])
def test_a_masked_array_keeps_what_its_own_pickle_keeps(dtype: str, mask: str, layout: str) -> None:
    data = filled(DTYPES.get(dtype, dtype))
    array = np.ma.masked_array(data)
    if mask != "none":
        array[MASKS[mask]] = np.ma.masked
    array = LAYOUTS[layout](array) if layout != "Fortran" else array.reshape(4, 300, order="F")
    if dtype == "f8":
        array.fill_value = -9
    back, _ = crossed([array])
    back, own = back[0], pickle.loads(pickle.dumps(array, 5))
    assert (type(back), back.dtype, back.shape) == (type(own), array.dtype, own.shape)
    assert back._baseclass is own._baseclass
    np.testing.assert_array_equal(np.ma.getmaskarray(back), np.ma.getmaskarray(own))
    assert back.fill_value == own.fill_value or back.fill_value != back.fill_value
    assert back.tolist() == array.tolist()
    assert back.flags.writeable
    back.mask = np.ma.nomask  # what is below the mask crosses, too
    assert back.data.tobytes() == array.data.tobytes() or dtype == "object"


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_a_masked_array_keeps_its_kind_of_mask() -> None:
    hard = np.ma.masked_array(np.arange(3000), np.arange(3000) % 2, hard_mask=True)
    shared = hard[:]
    constant, own = np.ma.masked, np.ma.masked_array(np.matrix([[1, 2]]), [[0, 1]])
    (back, view, still, matrix), _ = crossed([hard, shared, constant, own])
    assert back.hardmask
    assert (back.sharedmask, view.sharedmask) == (hard.sharedmask, shared.sharedmask)
    assert still is np.ma.masked
    assert type(matrix.data) is np.matrix
    back[1] = 5
    assert back[1] is np.ma.masked


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
