"""Types and sizes of values: right for what libraries know, and never by code of the user's."""

from __future__ import annotations

import array
import collections
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from bridgehead._shipped.remote.description import describe
from bridgehead._shipped.remote.detail import look_at
from bridgehead._shipped.remote.preview import preview

FRAME = pd.DataFrame({"a": [1, 2, 3], "b": ["x", "y", "z"]})
MEASURED: list[tuple[Any, Any]] = [  # a value, and its shape or its length
    ("text", 4),
    (b"ab", 2),
    ([1, 2], 2),
    ({"a": 1}, 1),
    (range(5), 5),
    (collections.Counter("aab"), 2),
    (collections.deque([1]), 1),
    (array.array("d", [1.0, 2.0]), 2),
    (memoryview(b"abc"), [3]),
    (12, None),
    (np.zeros((2, 3)), [2, 3]),
    (np.float64(1), []),
    (np.ma.masked_array([1, 2], [True, False]), [2]),
    (FRAME, [3, 2]),
    (FRAME["b"], [3]),
    (FRAME.index, [3]),
    (FRAME.set_index(["a", "b"]), [3, 0]),
    (FRAME.astype("category"), [3, 2]),
    (pd.Series([[1], [2]], dtype=pd.ArrowDtype(pa.list_(pa.int64()))), [2]),
    (pd.array([1, None], dtype="Int64"), [2]),
    (pa.table({"a": [1, 2]}), [2, 1]),
    (pa.array([1, 2]), 2),
]


@pytest.mark.parametrize(("value", "length"), MEASURED, ids=lambda one: str(type(one).__name__))
def test_a_value_is_measured(value: Any, length: Any) -> None:
    found = describe("name", value)
    assert (found["len"] if found["shape"] is None else found["shape"]) == length
    assert found["bytes"]
    assert (found["name"], found["preview"]) == ("name", None)


def test_the_bytes_of_tables_and_arrays_are_those_of_their_items() -> None:
    assert describe("x", np.zeros(1000))["bytes"] == 8000
    assert describe("x", FRAME)["bytes"] == FRAME.memory_usage(deep=False).sum()
    wide = pd.DataFrame(np.zeros((5, 2000)))
    assert describe("x", wide)["bytes"] == wide.memory_usage(deep=False).sum()
    assert describe("x", FRAME["a"])["bytes"] == FRAME["a"].memory_usage(deep=False)


def test_a_range_of_rows_is_not_written_out() -> None:
    frame = pd.DataFrame(index=pd.RangeIndex(1 << 40))
    assert describe("x", frame)["shape"] == [1 << 40, 0]


ran: list[str] = []


def noted(name: str) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        ran.append(name)
        raise RuntimeError(name)

    return run


class OwnType(pd.api.extensions.ExtensionDtype):  # type: ignore[misc]
    name = "own"
    type = int

    @classmethod
    def construct_array_type(cls) -> Any:
        return OwnArray


class OwnArray(pd.api.extensions.ExtensionArray):  # type: ignore[misc]
    """A column whose items a class of the user's makes."""

    def __init__(self) -> None:
        self.is_open = True  # false from the moment when no code of the class may run

    def _note(self, name: str) -> None:
        if not self.is_open:
            ran.append(name)

    @property
    def dtype(self) -> Any:
        self._note("dtype")
        return OwnType()

    @property
    def nbytes(self) -> int:
        self._note("nbytes")
        return 16

    @classmethod
    def _from_sequence(cls, scalars: Any, *, dtype: Any = None, copy: bool = False) -> Any:
        return scalars if isinstance(scalars, cls) else cls()

    def __len__(self) -> int:
        self._note("len")
        return 2

    def __getitem__(self, item: Any) -> Any:
        self._note("item")
        return item if isinstance(item, int) else self

    def isna(self) -> Any:
        return np.zeros(2, bool)

    def copy(self) -> Any:
        self._note("copy")
        return self

    def view(self, dtype: object = None) -> Any:
        self._note("view")
        return self

    def take(self, indices: Any, **options: Any) -> Any:
        self._note("take")
        return self

    def factorize(self, use_na_sentinel: bool = True) -> Any:
        return np.arange(2), self


OWN_TABLES: dict[str, Callable[[OwnArray], Any]] = {
    "a column of a table": lambda own: pd.DataFrame({"a": [1, 2], "own": own}),
    "a series": pd.Series,
    "an index": pd.Index,
    "rows of a table": lambda own: pd.DataFrame({"a": [1, 2]}, index=pd.Index(own)),
    "rows of a series": lambda own: pd.Series([1, 2], index=pd.Index(own)),
    "a level of rows": lambda own: pd.DataFrame(
        {"a": [1, 2]}, index=pd.MultiIndex([pd.Index(own), ["x"]], [[0, 1], [0, 0]])
    ),
    "columns of a table": lambda own: pd.DataFrame([[1, 2]], columns=pd.Index(own)),
    "categories": lambda own: pd.Series(
        pd.Categorical.from_codes([0, 1], dtype=pd.CategoricalDtype(pd.Index(own)), validate=False)
    ),
}


@pytest.mark.parametrize("make", OWN_TABLES.values(), ids=OWN_TABLES.keys())
def test_a_users_array_in_a_table_is_asked_nothing(make: Callable[[OwnArray], Any]) -> None:
    own = OwnArray()
    value = make(own)
    ran.clear()
    own.is_open = False
    found = describe("value", value)
    look = look_at(value)
    shown = preview(value)
    assert ran == []
    assert (found["shape"], found["len"], found["bytes"]) == (None, None, None)
    assert found["type"].startswith("pandas.")
    assert look.rows == []
    assert shown in (None, "columns 'a', 'own'", "columns 'a'")


class OwnDouble(pd.arrays.IntegerArray):  # type: ignore[misc]
    """A user's class with a dtype of pandas."""

    nbytes = property(noted("nbytes"))


def test_a_users_array_with_a_dtype_of_pandas_is_asked_nothing() -> None:
    series = pd.Series(OwnDouble(np.array([1, 2]), np.array([False, False])))
    assert type(series.array) is OwnDouble
    ran.clear()
    assert describe("value", series)["bytes"] is None
    assert ran == []


class OwnScalar(pa.ExtensionScalar):  # type: ignore[misc]
    def as_py(self, **options: Any) -> Any:
        return noted("as_py")()


class OwnArrow(pa.ExtensionType):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(pa.int64(), "own")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    def __arrow_ext_scalar_class__(self) -> type:
        return OwnScalar


@pytest.mark.parametrize("is_nested", [False, True])
def test_a_users_arrow_type_in_a_table_is_asked_nothing(is_nested: bool) -> None:
    own = pa.ExtensionArray.from_storage(OwnArrow(), pa.array([1, 2]))
    held = pa.StructArray.from_arrays([own], ["own"]) if is_nested else own
    series = pd.Series(pd.arrays.ArrowExtensionArray(held))
    ran.clear()
    assert describe("value", series)["bytes"] is None
    assert preview(series) is None
    assert look_at(series).rows == []
    assert ran == []


class Sized:
    """Whatever is asked of it is noted."""

    __len__ = __iter__ = __getitem__ = __sizeof__ = __hash__ = __eq__ = noted("asked")  # type: ignore[assignment]
    shape = nbytes = property(noted("asked"))
    keys = noted("asked")


class Inner(Sized):
    pass


def passed_on() -> dict[str, Any]:
    user_dict = collections.UserDict[str, int]()
    user_dict.data = Sized()  # type: ignore[assignment]
    user_list = collections.UserList[int]()
    user_list.data = Sized()  # type: ignore[assignment]
    return {
        "UserDict": user_dict,
        "UserList": user_list,
        "ChainMap": collections.ChainMap(Sized()),  # type: ignore[arg-type]
        "super": super(Inner, Inner()),
        "groups of pandas": pd.DataFrame({"a": [1, 2]}).groupby(["a"]),
    }


@pytest.mark.parametrize("which", passed_on())
def test_a_class_that_passes_on_to_a_users_object_is_asked_nothing(which: str) -> None:
    value = passed_on()[which]
    ran.clear()
    found = describe("value", value)
    assert ran == []
    assert (found["shape"], found["len"]) == (None, None)


def test_a_class_that_claims_to_be_of_a_library_is_asked_nothing() -> None:
    for module in ("numpy", "pandas", "torch", "polars", "pyarrow", "builtins"):
        claimed = type("DataFrame", (Sized,), {"__module__": module})
        found = describe("value", claimed())
        assert (found["shape"], found["len"], found["bytes"]) == (None, None, None)
    assert "DataFrame" not in vars(sys.modules["builtins"])
