"""Refs build expressions, and nothing is sent until they are pulled."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from bridgehead import Bridge, Fleet, Ref
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
    assert eval(render(value, None)) == value
    assert math.isnan(eval(render(math.nan, None)))


@pytest.mark.parametrize("value", [object(), len, set(), [object()], {"a": object()}])
def test_an_argument_that_is_no_literal_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError, match=r"use bridge\.call"):
        render(value, None)


def ways_to_give(bridge: Bridge) -> list[tuple[str, Callable[[Ref], Any]]]:
    """Return all ways to give a ref to a bridge."""
    own = bridge.ref("x")
    return [
        ("pull", lambda ref: bridge.pull(ref)),
        ("pull of two", lambda ref: bridge.pull("x", ref[0])),
        ("watch", lambda ref: bridge.watch(ref)),
        ("ref", lambda ref: bridge.ref(ref)),  # type: ignore[arg-type]
        ("push", lambda ref: bridge.push(y=ref)),
        ("push in a container", lambda ref: bridge.push({"y": {"a": [ref.b]}})),
        ("call", lambda ref: bridge.call(len, ref)),
        ("call with a keyword", lambda ref: bridge.call(sorted, [1], key=ref)),
        ("an index", lambda ref: own[ref]),
        ("a slice", lambda ref: own[ref:2]),
        ("an argument", lambda ref: own.f(1, [ref])),
        ("a keyword", lambda ref: own(key={"a": ref})),
    ]


async def test_a_ref_of_another_kernel_is_a_value_error_everywhere(loopback: Bridge) -> None:
    await loopback.push(x=[1, 2])
    async with Bridge.loopback() as other:
        await other.push(x="another")
        for name, give in ways_to_give(loopback):
            with pytest.raises(ValueError, match="belongs to another bridge"):
                outcome = give(other.ref("x"))
                assert not isinstance(outcome, Ref), name
                await outcome
        assert await loopback.names() == await loopback.names("x")
        fleet = Fleet([loopback, other])
        for ask in (lambda ref: fleet.pull(ref), lambda ref: fleet.call(len, ref)):
            with pytest.raises(ValueError, match="belongs to one kernel"):
                await ask(other.ref("x"))
        with pytest.raises(ValueError, match="belongs to one kernel"):
            await fleet.push(y=other.ref("x"))


async def test_a_ref_of_the_bridge_itself_is_its_object_everywhere(loopback: Bridge) -> None:
    await loopback.push(x=[1, 2], key=1)
    ref, key = loopback.ref("x"), loopback.ref("key")
    await loopback.push(y={"a": [ref]})
    assert await loopback.pull("y['a'][0] is x")
    assert await loopback.pull(ref[key], loopback.ref("sorted")(ref, reverse=key)) == (2, [2, 1])
    assert await loopback.call(len, ref) == 2


async def test_a_ref_cannot_be_compared(loopback: Bridge) -> None:
    ref: Any = loopback.ref("x")
    compare = [
        lambda: ref == 5,
        lambda: ref != 5,
        lambda: 5 == ref,
        lambda: ref in [1, 2],
        lambda: ref == loopback.ref("x"),
        lambda: ref < 5,
    ]
    for wrong in compare:
        with pytest.raises(TypeError, match=r"<Ref x> stays in the kernel|not supported between"):
            wrong()
    assert ref in {ref}


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
