"""Short texts of values: right for what Python knows, and never by code of the user's."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from bridgehead._shipped.remote.description import describe
from bridgehead._shipped.remote.preview import LONGEST, preview

SHOWN: list[tuple[Any, str | None]] = [
    (None, "None"),
    (True, "True"),
    (12, "12"),
    (1.5, "1.5"),
    (2j, "2j"),
    (10**500, "<int of 1661 bits>"),
    ("text\n", r"'text\n'"),
    ("x" * 100, f"'{'x' * 60}'…"),
    (b"ab", "b'ab'"),
    ([], "[]"),
    ([1, [2, [3]]], "[1, [2, […]]]"),
    ((1,), "(1,)"),
    ([*range(9)], "[0, 1, 2, 3, 4, …]"),
    ({"a": 1, "b": object()}, "{'a': 1, 'b': <object>}"),
    ({1}, "{1}"),
    (frozenset(), "frozenset()"),
    (frozenset({1}), "frozenset({1})"),
    (np.arange(9), "[0, 1, 2, 3, 4, …]"),
    (np.ones((2, 2)), "[1.0, 1.0, 1.0, 1.0]"),
    (np.array(5), "5"),
    (np.float64(1.5), "1.5"),
    (np.array([object()]), None),
    (pd.DataFrame({"a": [1], "b": [2]}), "columns 'a', 'b'"),
    (pd.Series([1, 2]), "[1, 2]"),
    (pa.table({"a": [1], "b": [2]}), "columns 'a', 'b'"),
    (pd.Series([[1]], dtype=pd.ArrowDtype(pa.list_(pa.int64()))), None),
    (lambda a, b=1: 0, "<lambda>(a, b)"),
    (len, "len(…)"),
    (collections.OrderedDict, "class OrderedDict"),
    (object(), None),
    (collections.OrderedDict(a=1), None),
]


@pytest.mark.parametrize(("value", "shown"), SHOWN, ids=lambda one: str(type(one).__name__))
def test_a_value_is_shown(value: Any, shown: str | None) -> None:
    assert preview(value) == shown


def test_a_long_text_is_cut() -> None:
    text = preview(["x" * 60] * 5)
    assert text is not None
    assert len(text) == LONGEST


def test_a_value_inside_itself_ends() -> None:
    value: list[Any] = []
    value.append(value)
    assert preview(value) == "[[[…]]]"


class Meta(type):
    def __getattribute__(cls, name: str) -> Any:
        raise AssertionError("code of the user")


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("code of the user")


SPECIAL = (
    *("__repr__", "__str__", "__len__", "__iter__", "__getattribute__", "__eq__", "__hash__"),
    *("__bool__", "__format__", "__index__", "__int__", "__getitem__", "items", "tolist"),
)


@pytest.mark.parametrize("base", [object, int, str, list, dict, tuple, np.ndarray, pd.DataFrame])
def test_no_code_of_the_user_runs(base: type) -> None:
    made = type("Hostile", (base,), {"__module__": "numpy"})
    value = made.__new__(made, (2,)) if base is np.ndarray else made()
    for name in SPECIAL:
        setattr(made, name, refuse)
    assert preview(value) is None
    shown = preview([value, {"key": value}])
    assert shown == "[<Hostile>, {'key': <Hostile>}]"


def test_the_name_of_a_function_may_be_of_a_users_class() -> None:
    def add(a: int, b: int) -> int:
        return a + b

    add.__name__ = type("Hostile", (str,), {"__str__": refuse, "__format__": refuse})("add")
    assert preview(add) == "<function>(a, b)"


class MetaEqual(type):
    __eq__ = refuse
    __hash__ = refuse


def test_a_class_is_compared_by_identity() -> None:
    assert preview([object.__new__(MetaEqual("Hostile", (), {}))]) == "[<Hostile>]"


def test_a_class_of_a_hostile_metaclass_is_described() -> None:
    hostile = Meta("Hostile", (), {})
    value = object.__new__(hostile)
    assert preview(value) is None
    assert describe("value", value)["type"].endswith("Hostile")
    assert preview([value]) == "[<Hostile>]"
