"""Objects as frames and back, and the path to what cannot be pickled."""

from __future__ import annotations

import collections
import functools
import math
import operator
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bridgehead._shipped.wire import pickling as _pickling
from bridgehead._shipped.wire.frames import IN_BAND, OWN_MAPPING, digest
from bridgehead._shipped.wire.pickling import find_unpicklable
from bridgehead._shipped.wire.transfer import Inbox

LOCK = threading.Lock()


# ---------------------------------------------------------------- objects as frames


def travel(value: Any) -> Any:
    """Return ``value`` as the receiver gets it."""
    frames, _ = _pickling.encode(value)
    inbox = Inbox([frame.nbytes for frame in frames])
    inbox.write(0, frames, digest("crc32", frames))
    return _pickling.decode(inbox.take())


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"a": [1, (2, {3}), frozenset({4})], ("b", 5): {"c": collections.deque([6], maxlen=3)}},
        [2**100, -0.0, math.inf, 1j, "é☃\ud800", b"\0" * 5000, bytearray(5000)],
        range(3),
        pd.Timestamp("2024-02-29", tz="Europe/Berlin"),
    ],
    ids=["none", "containers", "scalars", "range", "timestamp"],
)
def test_an_object_arrives_equal_to_what_was_sent(value: Any) -> None:
    back = travel(value)
    assert type(back) is type(value)
    assert back == value


def test_large_buffers_are_frames_of_their_own_and_small_ones_are_not() -> None:
    arrays = [np.zeros(IN_BAND - 1, "u1"), np.ones(IN_BAND, "u1"), np.full(10_000, 2, "u1")]
    frames, _ = _pickling.encode(arrays)
    assert [frame.nbytes for frame in frames[1:]] == [IN_BAND, 10_000]
    assert frames[0].nbytes < 2 * IN_BAND


def test_frames_are_views_of_the_live_object() -> None:
    array = np.zeros(100_000)
    frames, _ = _pickling.encode(array)
    assert np.shares_memory(np.frombuffer(frames[1], "f8"), array)


def test_an_object_referenced_twice_arrives_as_one_object() -> None:
    array = np.arange(10_000)
    left, right = travel([array, array])
    assert left is right
    assert len(_pickling.encode([array, array])[0]) == 2


@pytest.mark.parametrize("code", np.typecodes["All"])
@pytest.mark.parametrize("count", [3, 3000], ids=["in-band", "out-of-band"])
def test_arrays_of_every_dtype_cross(code: str, count: int) -> None:
    if code in "Mm":
        array = np.arange(count).astype(code + "8[ns]")
    elif code == "V":
        array = np.arange(count, dtype="i8").view("V8")
    else:
        array = (np.arange(count) % 100).astype(code)
    back = travel(array)
    assert type(back) is np.ndarray
    assert (back.dtype, back.shape, back.strides) == (array.dtype, array.shape, array.strides)
    same = back.tolist() == array.tolist() if code == "O" else back.tobytes() == array.tobytes()
    assert same
    assert back.flags.writeable
    assert not np.shares_memory(back, array)


GRID = np.arange(60_000, dtype="f4").reshape(200, 300)
RECORDS = np.dtype(
    [("id", "<u2"), ("at", ">f8", (2, 2)), ("name", "S5"), ("nested", [("x", "i1")])]
)
ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "C order": GRID,
    "Fortran order": np.asfortranarray(GRID),
    "transposed": GRID.T,
    "every second": GRID[::2],
    "every second column": GRID[:, ::2],
    "backwards": GRID[::-1, ::-1],
    "broadcast": np.broadcast_to(GRID[0], (50, 300)),
    "axes in a third order": np.arange(24_000.0).reshape(20, 30, 40).transpose(1, 2, 0),
    "a window": GRID[10:20, 5:9],
    "big-endian": GRID.astype(">f4"),
    "structured": np.zeros(3000, RECORDS),
    "structured and aligned": np.zeros(3000, np.dtype([("a", "i1"), ("b", "f8")], align=True)),
    "of text": np.array(["é☃", "longer text", ""] * 1000),
    "of text of any length": np.array(["é", "longer"] * 1000, dtype=np.dtypes.StringDType()),
    "of objects": np.array([None, {"a": 1}, "text", [1]] * 1000, dtype=object),
    "zero rows": np.zeros((0, 3), "f4"),
    "zero columns": np.zeros((3, 0), "i8", order="F"),
    "zero dimensions": np.array(3.5),
    "zero bytes an item": np.zeros(5, "V0"),
    "one item": np.array([[7]]),
    "not a time": np.array(["NaT", "2024-01-01"] * 1000, "M8[s]"),
    "a view inside another array": np.zeros(9000, "u1")[1:8001].view("f8"),
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS.keys())
def test_arrays_of_every_layout_cross(array: np.ndarray[Any, Any]) -> None:
    back = travel(array)
    assert type(back) is np.ndarray
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(back, array)
    if array.size and (array.flags.f_contiguous or array.flags.c_contiguous):
        assert back.strides == array.strides
    assert not np.shares_memory(back, array)


@pytest.mark.parametrize("count", [3, 3000], ids=["in-band", "out-of-band"])
@pytest.mark.parametrize("writeable", [True, False], ids=["writable", "read-only"])
def test_the_writeable_flag_of_an_array_is_kept(count: int, writeable: bool) -> None:
    array = np.arange(count)
    array.flags.writeable = writeable
    assert travel(array).flags.writeable is writeable


def test_a_masked_array_keeps_its_mask_and_fill_value() -> None:
    array = np.ma.masked_array(np.arange(3000.0), mask=np.arange(3000) % 3 == 0, fill_value=-9)
    back = travel(array)
    assert type(back) is np.ma.MaskedArray
    assert back.fill_value == -9
    np.testing.assert_array_equal(back.mask, array.mask)
    np.testing.assert_array_equal(back.filled(), array.filled())


def test_a_large_array_arrives_aligned_and_writable() -> None:
    back = travel({"x": np.arange(OWN_MAPPING, dtype="f8")})["x"]
    assert back.ctypes.data % 64 == 0
    back += 1
    assert back[-1] == OWN_MAPPING


def test_a_table_crosses_with_its_attributes() -> None:
    table = pd.DataFrame({"n": range(3000), "t": ["é"] * 3000, "c": pd.Categorical(["a"] * 3000)})
    table.attrs["source"] = {"url": "x"}
    back = travel(table)
    pd.testing.assert_frame_equal(back, table)
    assert back.attrs == table.attrs


def test_an_array_in_read_only_memory_is_read_only() -> None:
    frames, _ = _pickling.encode(np.arange(3000))
    assert not _pickling.decode([bytes(frame) for frame in frames]).flags.writeable


def local_function(x: int) -> int:
    return x + 1


def a_class_made_here() -> type:
    class Made:
        def method(self) -> int:
            return 1

    return Made


@pytest.mark.parametrize(
    ("value", "carries"),
    [
        pytest.param([1, "a", {"b": b"c"}], False, id="data"),
        pytest.param(operator.add, False, id="a built-in function"),
        pytest.param(collections.OrderedDict, False, id="a class by its name"),
        pytest.param(functools.partial(operator.add, 1), False, id="a partial of a built-in"),
        pytest.param(np.arange(3000), False, id="an array"),
        pytest.param(lambda x: x, True, id="a lambda"),
        pytest.param({"deep": [(lambda x: x,)]}, True, id="a lambda inside data"),
        pytest.param(functools.partial(lambda x: x, 1), True, id="a partial of a lambda"),
        pytest.param(a_class_made_here(), True, id="a class made here"),
        pytest.param(a_class_made_here()(), True, id="an object of such a class"),
        pytest.param(local_function.__code__, True, id="a code object"),
    ],
)
def test_encode_reports_whether_code_objects_are_carried(value: Any, carries: bool) -> None:
    assert _pickling.encode(value)[1] is carries


def test_references_are_reduced_by_the_given_function() -> None:
    class Handle:
        pass

    def reduce(value: Any) -> Any:
        return operator.add, (20, 22)

    frames, _ = _pickling.encode([1, Handle()], {Handle: reduce})
    assert _pickling.decode(frames) == [1, 42]


# ---------------------------------------------------------------- find_unpicklable


class Holder:
    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


class Slotted:
    __slots__ = ("fine", "lock")

    def __init__(self) -> None:
        self.fine, self.lock = 1, LOCK


class StateWithoutTheLock:
    """A class whose lock is not pickled; its generator is, and fails."""

    def __init__(self) -> None:
        self.lock = LOCK
        self.stream = (i for i in ())

    def __getstate__(self) -> dict[str, Any]:
        return {"stream": self.stream}


class ReducesWithoutTheLock:
    """The same, by ``__reduce__``."""

    def __init__(self) -> None:
        self.lock = LOCK
        self.stream = (i for i in ())

    def __reduce__(self) -> Any:
        return ReducesWithoutTheLock, (self.stream,)


class NewStateAtEachCall:
    """A class whose state is made of new containers at each call."""

    def __getstate__(self) -> dict[str, Any]:
        return {"fine": [[1]], "made": [[0], [[0, LOCK]]]}


def closure() -> Callable[[], Any]:
    captured = {"fine": 1, "lock": LOCK}
    return lambda: captured


def table() -> pd.DataFrame:
    made = pd.DataFrame({"a": [1]})
    made.attrs["lock"] = LOCK
    return made


def itself() -> list[Any]:
    knot: list[Any] = [1]
    knot += [knot, LOCK]
    return knot


def one_another() -> dict[str, Any]:
    left: dict[str, Any] = {"fine": 1}
    right = {"back": left, "lock": LOCK}
    left["right"] = right
    return left


def an_object_that_refers_to_itself() -> Holder:
    holder = Holder(fine=1)
    holder.me, holder.lock = holder, LOCK
    return holder


PATHS: dict[str, tuple[Any, str]] = {
    "the value itself": (LOCK, "x"),
    "a dict's value": ({"fine": 1, "lock": LOCK}, "x['lock']"),
    "a dict's key": ({1: 1, LOCK: 2}, "x.keys()"),
    "a dict's value under a number": ({1: {2.5: LOCK}}, "x[1][2.5]"),
    "a dict's value under an object": ({(1, 2): LOCK}, "x[…]"),
    "a list in a list": ([0, [1, [2, 3, LOCK]]], "x[1][1][2]"),
    "a tuple's item": ((1, (LOCK,)), "x[1][0]"),
    "a set's item": ({LOCK}, "x{…}"),
    "a deque's item": (collections.deque([1, LOCK]), "x[1]"),
    "an attribute": (Holder(fine=1, lock=LOCK), "x.lock"),
    "an attribute of an attribute": (Holder(inner=Holder(items=[LOCK])), "x.inner.items[0]"),
    "a slot": (Slotted(), "x.lock"),
    "a table's attrs": (table(), "x.attrs['lock']"),
    "a value that a function captured": (closure(), "x (closure: captured)['lock']"),
    "a global that a function uses": (lambda: LOCK, "x (global: LOCK)"),
    "a state without the lock": (StateWithoutTheLock(), "x.stream"),
    "a state that is made anew": (NewStateAtEachCall(), "x.made[1][0][1]"),
    "a list that contains itself": (itself(), "x[2]"),
    "dicts that contain one another": (one_another(), "x['right']['lock']"),
    "an object that refers to itself": (an_object_that_refers_to_itself(), "x.lock"),
}


@pytest.mark.parametrize(("value", "path"), PATHS.values(), ids=PATHS.keys())
def test_find_unpicklable_returns_the_path_to_the_part(value: Any, path: str) -> None:
    found, error = find_unpicklable(value, "x")
    assert found == path
    assert "cannot pickle" in str(error)


def test_the_path_starts_with_the_given_name() -> None:
    assert find_unpicklable({"lock": LOCK}, "config")[0] == "config['lock']"
    assert find_unpicklable(table(), "df")[0] == "df.attrs['lock']"


def test_the_search_skips_attributes_that_are_not_pickled() -> None:
    path, error = find_unpicklable(ReducesWithoutTheLock(), "x")
    assert "lock" not in path
    assert "generator" in str(error)


def test_the_error_is_that_of_the_part_itself() -> None:
    class Refuses:
        def __reduce__(self) -> Any:
            raise ValueError("refused on purpose")

    path, error = find_unpicklable({"a": [Refuses()]}, "x")
    assert (path, type(error), str(error)) == ("x['a'][0]", ValueError, "refused on purpose")


def test_the_search_survives_a_getstate_that_raises() -> None:
    class NoState:
        def __getstate__(self) -> Any:
            raise ValueError("no state")

    path, error = find_unpicklable([NoState()], "x")
    assert (path, str(error)) == ("x[0]", "no state")


def test_a_value_that_can_be_pickled_gives_its_own_path() -> None:
    path, error = find_unpicklable([1, 2], "x")
    assert path == "x"
    assert isinstance(error, pickle.PicklingError)


def deep_list(depth: int, inside: Any) -> Any:
    for _ in range(depth):
        inside = [inside]
    return inside


def deep_dict(depth: int, inside: Any) -> Any:
    for _ in range(depth):
        inside = {"k": inside}
    return inside


def deep_object(depth: int, inside: Any) -> Any:
    for _ in range(depth):
        inside = Holder(inner=inside)
    return inside


DEEP = [deep_list, deep_dict, deep_object]


@pytest.mark.parametrize("make", DEEP)
def test_a_value_nested_100_000_deep_raises_and_does_not_crash(make: Callable[..., Any]) -> None:
    value = make(100_000, 1)
    with pytest.raises((RecursionError, pickle.PicklingError), match="recursion"):
        _pickling.encode(value)
    path, error = find_unpicklable(value, "x")
    assert "recursion" in str(error)
    assert len(path) < 200


def test_the_search_goes_50_levels_deep() -> None:
    assert find_unpicklable(deep_list(50, LOCK), "x")[0] == "x" + "[0]" * 50


def test_a_large_array_is_small_where_its_bytes_are_not_read() -> None:
    large = np.zeros((3000, 2000))
    for array in (large, large.T):
        assert _pickling.is_small({"a": array, "b": [1, "two"]}, summed=False)
        assert not _pickling.is_small({"a": array})
    assert not _pickling.is_small(large[:, ::2], summed=False)  # numpy copies it into the pickle
    assert not _pickling.is_small(large.astype("M8[s]"), summed=False)
    assert not _pickling.is_small(np.array([object()] * 3), summed=False)
