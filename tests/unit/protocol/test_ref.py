"""Refs build expressions, and nothing is sent until they are pulled."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest

from bridgehead import Bridge, Ref
from bridgehead._protocol.ref import primary, render


async def test_nothing_is_sent_until_a_ref_is_pulled(loopback: Bridge) -> None:
    await loopback.push(data={"a": [1, 2, 3], "b": {"c": 4}})
    sent: list[Any] = []
    put = loopback._transport.dispatcher.put

    async def counted(*args: Any, **options: Any) -> Any:
        sent.append(args)
        return await put(*args, **options)

    loopback._transport.dispatcher.put = counted  # type: ignore[method-assign]
    ref = loopback.ref("data")["a"][1:].copy()
    assert str(ref) == "data['a'][slice(1, None, None)].copy()"
    assert repr(ref) == "<Ref data['a'][slice(1, None, None)].copy()>"
    assert not sent
    assert await ref.pull() == [2, 3]
    assert len(sent) == 1
    assert await loopback.pull(ref, ref[0]) == ([2, 3], 2)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda r: r.a.b, "x.a.b"),
        (lambda r: r["k"], "x['k']"),
        (lambda r: r[1, "two"], "x[1, 'two']"),
        (lambda r: r[::2], "x[slice(None, None, 2)]"),
        (lambda r: r[()], "x[()]"),
        (lambda r: r(1, key=[None, ...]), "x(1, key=[None, Ellipsis])"),
        (lambda r: r(r.y), "x(x.y)"),
        (lambda r: r.push_back, "x.push_back"),
    ],
)
async def test_attributes_items_and_calls_build_expressions(
    loopback: Bridge, build: Any, text: str
) -> None:
    assert str(build(loopback.ref("x"))) == text


@pytest.mark.parametrize(
    ("expression", "text"),
    [("df", "df"), ("a.b[0](1)", "a.b[0](1)"), ("a + b", "(a + b)"), ("5", "(5)"), (" x ", "x")],
)
def test_an_expression_that_is_no_primary_gets_parentheses(expression: str, text: str) -> None:
    assert primary(expression) == text


VALUES = [
    0, -1, 2.5, -0.0, math.inf, -math.inf, 1e300, 3j, True, None, ..., "é'\"\n", b"\x00", (), (1,),
    [1, [2]], {"a": (1, 2)}, {1, 2}, slice(1, None, 2),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_literals_are_rendered_as_source_that_gives_them_back(value: Any) -> None:
    assert eval(render(value)) == value
    assert math.isnan(eval(render(math.nan)))


@pytest.mark.parametrize("value", [object(), len, set(), [object()], {"a": object()}])
def test_an_argument_that_is_no_literal_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError, match=r"use bridge\.call"):
        render(value)


async def test_a_ref_cannot_be_tested_iterated_pickled_or_copied(loopback: Bridge) -> None:
    ref = loopback.ref("x")
    for name in ("__len__", "_repr_png_", "_ipython_display_", "__array__"):
        assert not hasattr(ref, name)
    for wrong in (lambda: bool(ref), lambda: list(ref), lambda: pickle.dumps(ref)):
        with pytest.raises(TypeError, match="<Ref x>"):
            wrong()
    with pytest.raises(TypeError):
        copy.copy(ref)
    assert type(ref.anything_else) is Ref
