"""Data in both directions, under every Python found here.

Rule: another interpreter evaluates the client's expressions; see ``support/bare.py``.
"""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import fractions
import math
import types
import uuid
from typing import Any

import pytest

from bridgehead import ProtocolError, RemoteError
from bridgehead._protocol import payload as _payload
from support.bare import Space

VALUES: dict[str, Any] = {
    "none": None,
    "booleans": [True, False],
    "big ints": [2**64, -(2**200), 10**400],
    "floats": [0.1, -0.0, 1e308, 5e-324, math.inf],
    "complex": 3 - 4j,
    "text": "naïve ☃ 𝕏 \x00 \ud800 end",
    "bytes": bytes(range(256)),
    "bytearray": bytearray(b"writable"),
    "nested containers": {"a": [1, (2, {3, 4}, frozenset({5}))], (6, "k"): {"b": [[], {}, ()]}},
    "ordered dict": collections.OrderedDict([("z", 1), ("a", 2)]),
    "deque": collections.deque([1, 2, 3], maxlen=5),
    "counter": collections.Counter("abracadabra"),
    "datetime": datetime.datetime(2024, 2, 29, 12, 30, 1, 999_999, tzinfo=datetime.UTC),
    "timedelta": datetime.timedelta(days=-1, microseconds=7),
    "decimal": decimal.Decimal("1.10000000000000000000000000001"),
    "fraction": fractions.Fraction(22, 7),
    "uuid": uuid.UUID(int=2**100 + 1),
    "array": array.array("d", [1.5, 2.5]),
    "range and slice": (range(0, 10, 3), slice(1, None, 2)),
    "namespace": types.SimpleNamespace(a=1, b=[2]),
    "a function by its name": math.hypot,
    "a class by its name": decimal.Decimal,
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
def test_data_crosses_in_both_directions(space: Space, value: Any) -> None:
    space.bind(value=value)
    back = space.fetch("value")
    assert type(back) is type(value)
    assert back == value


def test_the_kernel_receives_the_value_itself(space: Space) -> None:
    space.bind(numbers=[1, 2, 3], text="é☃")
    assert space.fetch("sum(numbers)", "len(text)", "type(numbers).__name__") == (6, 2, "list")


@pytest.mark.parametrize("name", ["größe", "变量", "Ω", "é" * 100])
def test_names_may_be_unicode(space: Space, name: str) -> None:
    space.bind(**{name: name})
    assert space.fetch(name) == name
    assert name in space.names()


def test_an_object_under_two_names_stays_one_object(space: Space) -> None:
    shared: list[Any] = [1]
    space.bind(left=shared, right=[shared, shared])
    left, right = space.fetch("left", "right")
    assert space.fetch("left is right[0]")
    assert left is right[0] is right[1]


def test_an_object_that_contains_itself_crosses(space: Space) -> None:
    knot: list[Any] = []
    knot.append(knot)
    space.bind(knot=knot)
    back = space.fetch("knot")
    assert back[0] is back


def test_several_expressions_are_evaluated_before_any_is_pickled(space: Space) -> None:
    space.cell(
        "class Late:\n"
        "    def __reduce__(self):\n"
        "        global number\n"
        "        number = 'changed by pickling'\n"
        "        return str, ('late',)\n"
        "number, late = 1, Late()\n"
    )
    assert space.fetch("late", "number") == ("late", 1)


def test_the_end_of_an_iterator_is_the_error_of_an_expression(space: Space) -> None:
    with pytest.raises(RemoteError, match="^StopIteration") as caught:
        space.fetch("1", "next(iter([]))")
    assert type(caught.value.__cause__) is StopIteration


def test_a_fetch_for_another_kernel_returns_what_that_kernel_can_bind(space: Space) -> None:
    """The response is a dict; another kernel would refuse to bind a tuple."""
    space.bind(x=[1], y="é")
    response, frames = space.ask("fetch", expressions=["y", "x"], names=["b", "a"])
    assert "code" not in response
    assert list(_payload.decode(frames).items()) == [("b", "é"), ("a", [1])]
    payload = _payload.Payload(frames, carries_code=False, refs=False)
    space.ask("bind", payload, names=["b", "a"])
    assert space.fetch("a", "b") == ([1], "é")
    with pytest.raises(ProtocolError, match="'reader' is str, not list"):
        space.ask("fetch", expressions=["y"], names=["y"], reader="3.8")
