"""Refs build expressions, and nothing is sent until they are pulled."""

from __future__ import annotations

import copy
import math
import operator
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest

from bridgehead import Bridge, Fleet, Ref, RemoteError, SyncBridge
from bridgehead._protocol.ref import parts, primary, render


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
    carried: dict[str, Any] = {}
    assert eval(render(value, None, carried)) == value
    assert math.isnan(eval(render(math.nan, None, carried)))
    assert not carried


OBJECT = object()


@pytest.mark.parametrize(
    ("value", "pattern"),
    [
        *((OBJECT, "{}"), ([1, OBJECT], r"\[1, {}\]"), ({"a": OBJECT}, r"\{{'a': {}\}}")),
        (slice(OBJECT, 1), r"slice\({}, 1, None\)"),
    ],
    ids=["itself", "list", "dict", "slice"],
)
def test_an_argument_that_is_no_literal_is_carried_under_a_name(value: Any, pattern: str) -> None:
    carried: dict[str, Any] = {}
    text = render(value, None, carried)
    assert re.fullmatch(pattern.format(r"_bridgehead_argument_\d+"), text)
    assert [*carried.values()] == [OBJECT]
    assert eval(text, carried) == value


async def test_a_ref_carries_the_objects_of_the_refs_that_it_is_made_of(loopback: Bridge) -> None:
    first, second = object(), object()
    ref = loopback.ref("f")(first)[second].name
    assert [*ref._objects.values()] == [first, second]
    whole = loopback.ref("g")(ref, loopback.ref("h")[ref], key=len)
    assert [*whole._objects.values()] == [first, second, len]
    assert [*loopback.ref(whole)._objects.values()] == [first, second, len]  # type: ignore[arg-type]
    assert len({*whole._objects}) == 3
    assert not loopback.ref("f")._objects


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda ref: ref({OBJECT}), " (argument 0 of x){…}"),
        (lambda ref: ref({OBJECT: 1}), " (argument 0 of x).keys()"),
        (lambda ref: ref.m(1)[OBJECT:].n, " (key of x.m(1)) (argument 0 of slice)"),
        (lambda ref: ref(ref(OBJECT), 1), " (argument 0 of x) (argument 0 of x)"),
        (lambda ref: ref[0, (1, [OBJECT])], " (key of x)[1][1][0]"),
    ],
)
async def test_an_object_in_a_ref_is_named_by_its_place(
    loopback: Bridge, make: Callable[[Ref], Ref], path: str
) -> None:
    assert [*parts(make(loopback.ref("x")))] == [(path, OBJECT)]
    assert "_bridgehead_" not in repr(make(loopback.ref("x")))
    assert "_bridgehead_" not in repr(loopback.iterate(make(loopback.ref("x"))))


async def test_an_object_in_a_ref_that_is_too_deep_is_not_named(loopback: Bridge) -> None:
    deep: list[object] = [OBJECT]
    for _ in range(300):
        deep = [deep]
    assert [*parts(loopback.ref("x")(deep))] == []


async def test_a_watch_refuses_a_ref_that_carries_objects(loopback: Bridge) -> None:
    ref = loopback.ref("x")(OBJECT)
    with pytest.raises(TypeError, match="has objects of this program as arguments"):
        loopback.watch(ref)


def ways_to_give(bridge: Bridge) -> list[tuple[str, Callable[[Ref], Any]]]:
    """Return all ways to give a ref to a bridge."""
    own = bridge.ref("x")
    return [
        ("pull", lambda ref: bridge.pull(ref)),
        ("pull of two", lambda ref: bridge.pull("x", ref[0])),
        ("watch", lambda ref: bridge.watch(ref)),
        ("iterate", lambda ref: anext(bridge.iterate(ref))),
        ("iterate with an argument", lambda ref: anext(bridge.iterate(list, [ref]))),
        ("submit", lambda ref: bridge.submit(len, ref)),
        ("submit with a keyword", lambda ref: bridge.submit(dict, a=[ref])),
        ("delete", lambda ref: bridge.delete(ref)),
        ("push of a cell", lambda ref: bridge.run("1", push={"y": [ref]})),
        ("pull of a cell", lambda ref: bridge.run("1", pull=[ref])),
        ("a closure", lambda ref: bridge.call(lambda: ref)),
        ("ref", lambda ref: bridge.ref(ref)),  # type: ignore[arg-type]
        ("push", lambda ref: bridge.push(y=ref)),
        ("push in a container", lambda ref: bridge.push({"y": {"a": [ref.b]}})),
        ("call", lambda ref: bridge.call(len, ref)),
        ("call of it", lambda ref: bridge.call(ref)),
        ("an argument in an object", lambda ref: bridge.pull(own({1, frozenset([ref])}))),
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
            with pytest.raises(ValueError, match="belongs to another kernel"):
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


async def test_two_refs_of_one_expression_are_two_keys(loopback: Bridge) -> None:
    first, second = loopback.ref("x"), loopback.ref("x")
    assert str(first) == str(second)
    values = {first: 1, second: 2}
    assert (len(values), values[first], values[second]) == (2, 1, 2)


async def test_a_ref_cannot_be_tested_iterated_pickled_or_copied(loopback: Bridge) -> None:
    ref = loopback.ref("x")
    for name in ("_repr_png_", "_ipython_display_", "__array__", "__length_hint__"):
        assert not hasattr(ref, name)
    for wrong in (lambda: bool(ref), lambda: list(ref), lambda: pickle.dumps(ref)):
        with pytest.raises(TypeError, match="<Ref x>"):
            wrong()
    with pytest.raises(TypeError):
        copy.copy(ref)
    assert type(ref.anything_else) is Ref


async def test_only_a_ref_of_a_sync_bridge_can_be_changed_and_measured(loopback: Bridge) -> None:
    await loopback.push(x=[1])
    ref = loopback.ref("x")

    def set_item() -> None:
        ref[0] = 2

    def set_name() -> None:
        ref.name = 2

    ways: list[tuple[str, Callable[[], object]]] = [
        *(("operator.setitem", set_item), ("setattr", set_name), ("len", lambda: len(ref))),
        ("operator.contains", lambda: 1 in ref),
    ]
    for name, way in ways:
        with pytest.raises(TypeError, match=rf"<Ref x> stays in the kernel.*bridge\.call\({name},"):
            way()
    await loopback.call(operator.setitem, ref, 0, 3)
    assert await ref.pull() == [3]


def test_a_ref_of_a_sync_bridge_takes_items_attributes_len_and_in() -> None:
    with SyncBridge.loopback() as kernel:
        kernel["x"] = {"a": [1, 2]}
        kernel["key"] = "b"
        kernel.run("class Box: pass\nbox = Box(); box.inner = Box()")
        ref, key = kernel.ref("x"), kernel.ref("key")
        ref["a"][0] = value = (7, {"deep": [8]})
        ref[key] = ref["a"]
        assert kernel.pull("x['b'] is x['a']", "x['a'][0]") == (True, value)
        ref["a"][1:] = [3, 4]
        assert len(ref["a"]) == 3
        assert 4 in ref["a"]
        assert 5 not in ref["a"]
        assert key in ref
        kernel.ref("box").inner.value = ref["a"]
        assert kernel.pull("box.inner.value is x['a']")
        kept = kernel.call(list, (1, 2), keep="kept")
        kept[0] = 3
        assert (len(kept), kernel["kept"]) == (2, [3, 2])
        for name in ("pull", "_bridge", "__class__", "_repr_html_"):
            with pytest.raises(AttributeError, match=f"cannot set '{name}'"):
                setattr(ref, name, 1)
        with pytest.raises(RemoteError, match="IndexError"):
            ref["a"][10] = 1
        with pytest.raises(TypeError, match="has no len"):
            len(kernel.ref("5"))
        assert kernel.ref("str")(complex("inf")).pull() == str(complex("inf"))
        assert list(kernel.ref("sorted(x)")) == kernel.pull("sorted(x)")
        assert {name.name for name in kernel.names()} == {"x", "key", "Box", "box", "kept"}
