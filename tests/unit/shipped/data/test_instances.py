"""Values that are not data are refused by name, and instances of allowed classes arrive."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import os
import pickle
import types
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from bridgehead._shipped.data import decode_data, encode_data, standard
from bridgehead._shipped.wire.errors import WireError
from support.data import flagged, objects, sent

# ---------------------------------------------------------------- values that are not data


class Text(str):
    pass


class Mine:
    def __init__(self, x: Any = 0) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return type(other) is Mine and vars(other) == vars(self)

    __hash__ = None  # type: ignore[assignment]


NOT_DATA = {
    "a function": (len, "builtins.builtin_function_or_method"),
    "a lambda": (lambda: 0, "builtins.function"),
    "a class": (int, "builtins.type"),
    "a module": (os, "builtins.module"),
    "a subclass of str": (Text("a"), f"{__name__}.Text"),
    "an instance": (Mine(), f"{__name__}.Mine"),
    "an exception": (ValueError("x"), "builtins.ValueError"),
    "NotImplemented": (NotImplemented, "builtins.NotImplementedType"),
    "a path": (Path("a"), f"{type(Path()).__module__}.{type(Path()).__name__}"),
    "a buffer": (pickle.PickleBuffer(b"x" * 5000), "pickle.PickleBuffer"),
    "a constructor of the codec": (standard.make_deque, "builtins.function"),
    "a default of another kind": (
        collections.defaultdict(Mine),
        f"a collections.defaultdict of {Mine!r}",
    ),
    "an object in an array": (objects(Mine()), f"{__name__}.Mine"),
    "an object in attrs": (flagged(pd.Series([Mine()])), f"{__name__}.Mine"),
    "objects in a structure": (
        np.zeros(1, "O,i4"),
        "a structured numpy.dtype with Python objects in it",
    ),
    "an offset without a name": (pd.DateOffset(months=1), "the pandas offset"),
    "a memory map": (np.zeros(3).view(np.memmap), "numpy.memmap"),
    "an extension type": (pa.uuid(), "a pyarrow extension type"),
}


@pytest.mark.parametrize(("value", "name"), NOT_DATA.values(), ids=NOT_DATA)
def test_a_value_that_is_not_data_is_refused_by_name(value: Any, name: str) -> None:
    if type(value) is types.FunctionType and value.__name__ == "make_deque":
        with pytest.raises(WireError, match="instead of a value"):  # the writer accepts it
            sent([value])
        return
    with pytest.raises(WireError, match="is not data") as caught:
        encode_data({"jobs": [1, value]})
    assert caught.value.kind == "untrusted"
    assert caught.value.details["type"].startswith(name)
    if name not in (f"{__name__}.Mine",) or type(value) is Mine:
        assert caught.value.details["path"] == "['jobs'][1]"
        assert str(caught.value).endswith("(at ['jobs'][1])")


# ---------------------------------------------------------------- allowed classes


@dataclasses.dataclass
class Node:
    name: str
    parent: Node | None = None
    children: list[Node] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    x: int
    y: Any


class Pair(collections.namedtuple("Pair", "left right")):
    __slots__ = ()


class Color(enum.Enum):
    RED = 1
    BLUE = "b"


class Permission(enum.Flag):
    READ = 1
    WRITE = 2


class Slotted:
    __slots__ = ("a", "b")


class Listed(list):
    pass


class Failure(Exception):
    def __init__(self, message: str, code: int) -> None:
        super().__init__(message, code)
        self.code = code


class Weighed:
    def __init__(self) -> None:
        self.kept, self.left = 1, 2

    def __getstate__(self) -> Any:
        return {"kept": self.kept}

    def __setstate__(self, state: Any) -> None:
        self.kept = -state["kept"]


def test_instances_of_allowed_classes_arrive_as_they_were_sent() -> None:
    slotted, listed = Slotted(), Listed([1, 2])
    slotted.a, listed.note = 1, "x"  # type: ignore[attr-defined]
    values = [Mine([1]), Frozen(1, (2,)), Pair(1, [2]), Color.BLUE, Permission.READ]
    values += [Permission.READ | Permission.WRITE]
    got = sent(values, (Mine, Frozen, Pair, Color, Permission))
    assert got == values
    assert [type(value) for value in got] == [type(value) for value in values]
    got = sent([slotted, listed, Weighed()], (Slotted, Listed, Weighed))
    assert (got[0].a, hasattr(got[0], "b")) == (1, False)
    assert (list(got[1]), got[1].note) == ([1, 2], "x")
    assert vars(got[2]) == {"kept": -1}


def test_an_instance_of_an_allowed_class_may_contain_itself() -> None:
    root = Node("root")
    root.children += [Node("a", root), Node("b", root)]
    got = sent(root, (Node,))
    assert [child.name for child in got.children] == ["a", "b"]
    assert all(child.parent is got for child in got.children)


def test_an_allowed_exception_keeps_its_arguments_and_attributes() -> None:
    error = Failure("no", 5)
    error.extra = [1]  # type: ignore[attr-defined]
    got = sent(error, (Failure,))
    assert (got.args, got.code, got.extra) == (("no", 5), 5, [1])


def test_the_contents_of_an_allowed_instance_must_be_data() -> None:
    with pytest.raises(WireError, match="builtins.function is not data"):
        encode_data(Mine(lambda: 0), {f"{__name__}.Mine"})


def test_a_class_must_be_allowed_at_both_ends() -> None:
    frames = encode_data(Mine(), {f"{__name__}.Mine"})
    with pytest.raises(WireError, match="Mine is not data") as caught:
        decode_data(frames)
    assert (caught.value.kind, caught.value.details["type"]) == ("untrusted", f"{__name__}.Mine")


def test_an_error_in_an_allowed_class_is_reported() -> None:
    frames = encode_data(Failure("no", 5), {f"{__name__}.Failure"})
    with pytest.raises(WireError, match="AttributeError") as caught:
        decode_data(frames, {f"{__name__}.Failure": Pair})
    assert caught.value.kind == "protocol"


def test_an_interrupt_is_raised_again() -> None:
    class Interrupting:
        def __setstate__(self, state: Any) -> None:
            raise KeyboardInterrupt

    frames = encode_data(Mine(1), {f"{__name__}.Mine"})
    with pytest.raises(KeyboardInterrupt):
        decode_data(frames, {f"{__name__}.Mine": Interrupting})


# ---------------------------------------------------------------- allowed subclasses of builtins


class Given:
    """Names the class that its reader allows, and what that class is made of."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __reduce__(self) -> Any:
        return Given, self.args


class Raw(bytes):
    pass


class Buffer(bytearray):
    pass


class Row(tuple):
    pass


class Group(set):  # type: ignore[type-arg]
    pass


class Money(decimal.Decimal):
    pass


class Count(int):
    pass


class Window(collections.deque):  # type: ignore[type-arg]
    pass


class Moment(datetime.datetime):
    pass


class Grid(np.ndarray):  # type: ignore[type-arg]
    pass


COLLIDING = [number * (2**61 - 1) for number in range(3000)]
MORE_THAN_CROSSED = {
    "bytes of a number": (Raw, (10**12,)),
    "a bytearray of a number": (Buffer, (10**12,)),
    "a tuple of a range": (Row, (range(10**12),)),
    "a list of a range": (Listed, (range(10**12),)),
    "a set of a range": (Group, (range(10**12),)),
    "a deque of a range": (Window, (range(10**12),)),
    "an integer of text": (Count, ("9" * 4000,)),
    "an array of a number": (Grid, (10**12,)),
    "a decimal of many digits": (Money, ("1E+999999",)),
    "a set of keys that collide": (Group, (COLLIDING * 40,)),
}


@pytest.mark.parametrize("case", MORE_THAN_CROSSED)
def test_an_allowed_class_makes_no_more_of_its_arguments_than_crossed(case: str) -> None:
    kind, args = MORE_THAN_CROSSED[case]
    name = f"{__name__}.Given"
    frames = encode_data(Given(*args), {name})
    with pytest.raises(WireError):
        decode_data(frames, {name: kind})


@pytest.mark.parametrize(
    "value",
    [
        Raw(b"ab"),
        Buffer(b"ab"),
        Row((1, [2])),
        Group([1, "a"]),
        Money("1.50"),
        Count(10**30),
        Window([1, 2], 5),
        Moment(2026, 1, 2, 3, tzinfo=datetime.UTC),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_instance_of_an_allowed_subclass_of_a_builtin_arrives(value: Any) -> None:
    got = sent(value, (type(value),))
    assert type(got) is type(value)
    assert got == value
