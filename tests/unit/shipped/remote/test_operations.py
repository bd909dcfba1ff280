"""The other operations: names, has, drop and call, under every Python found here.

Rule: another interpreter evaluates the client's expressions; see ``support/bare.py``.
"""

from __future__ import annotations

import operator
import os
from typing import Any, NamedTuple

import pytest

from bridgehead import NameNotFound, ProtocolError, Ref, RemoteError
from bridgehead._protocol import payload as _payload
from support.bare import Space


class InKernel(NamedTuple):
    """Stands for an object in the kernel, as a ref does, with the objects that the ref carries."""

    expression: str
    objects: dict[str, Any]


def reduce(ref: InKernel) -> Any:
    return Ref, tuple(ref)


def encode(values: Any) -> _payload.Payload:
    return _payload.encode(values, {}, refs={InKernel: reduce})


def test_names_reports_name_type_and_size(space: Space) -> None:
    space.bind(numbers=[1, 2, 3], text="abc", _hidden=1)
    space.cell("class Mine:\n    def __repr__(self): 1 / 0\nmine = Mine()")
    response, _ = space.ask("names", pattern="*")
    found = {entry["name"]: entry for entry in response["names"]}
    assert list(found) == ["Mine", "mine", "numbers", "text"]
    assert found["mine"] == {
        "name": "mine", "type": "Mine", "shape": None, "len": None, "bytes": None, "preview": None,
    }  # fmt: skip
    assert (found["numbers"]["type"], found["numbers"]["len"]) == ("list", 3)
    assert found["text"]["bytes"] > 3
    assert [e["name"] for e in space.ask("names", pattern="_h*")[0]["names"]] == ["_hidden"]
    assert space.ask("names", pattern="nothing*")[0]["names"] == []
    space.cell("del mine, Mine")


def test_names_while_another_thread_binds_and_deletes_names(space: Space) -> None:
    """Up to Python 3.11, a garbage collection in the middle lets a cell run on."""
    space.cell("""
import gc
names, before = globals(), gc.get_threshold()
names.update({"v%d" % n: [n] for n in range(300)})

def change(phase, info):
    names.pop(next((name for name in list(names) if name[0] == "v"), None), None)

gc.callbacks.append(change)
gc.set_threshold(1)
""")
    try:
        response, _ = space.ask("names", pattern="*")
    finally:
        space.cell("gc.set_threshold(*before); gc.callbacks.remove(change)")
    assert {"before", "change", "names"} <= {entry["name"] for entry in response["names"]}
    space.cell("[names.pop(name) for name in list(names) if name[0] == 'v']")
    space.cell("del before, change, gc, names")


def test_has_reports_whether_a_name_is_bound(space: Space) -> None:
    space.bind(here=None)
    assert space.ask("has", name="here")[0]["has"] is True
    assert space.ask("has", name="nowhere")[0]["has"] is False


def test_drop_deletes_names(space: Space) -> None:
    before = space.snapshot()
    space.bind(a=1, b=2)
    space.ask("drop", names=["a", "b"])
    assert space.snapshot() == before


@pytest.mark.parametrize("names", [["a", "nowhere"], ["nowhere", "a"]])
def test_drop_deletes_all_names_or_none(space: Space, names: list[str]) -> None:
    space.bind(a=1)
    before = space.snapshot()
    with pytest.raises(NameNotFound) as caught:
        space.ask("drop", names=names)
    assert caught.value.names == ("nowhere",)
    assert space.snapshot() == before


def test_drop_of_a_name_given_twice_deletes_it_once(space: Space) -> None:
    space.bind(a=1, b=2)
    space.ask("drop", names=["a", "b", "a"])
    assert not {"a", "b"} & space.names()


def test_call_runs_a_function_in_the_kernel(space: Space) -> None:
    values = (operator.add, (2, 3), {})
    _, frames = space.ask("call", _payload.encode(values, {}))
    assert _payload.decode(frames) == (5,)


def test_call_keeps_the_result_in_the_kernel_under_a_name(space: Space) -> None:
    values = (os.getpid, (), {})
    _, frames = space.ask("call", _payload.encode(values, {}), keep="pid")
    assert frames == []
    assert space.fetch("pid") == space.bare.process.pid


def test_call_gives_a_function_the_global_names_of_the_namespace(space: Space) -> None:
    space.bind(base=7)
    space.cell(
        "other = {'base': 'not this'}\n"
        "exec('''def make(shift):\n"
        "    def down(n, *, step=1):\n"
        "        global seen\n"
        "        seen = n\n"
        "        return base + shift if n == 0 else down(n - step)\n"
        "    down.note = 'kept'\n"
        "    return down''', other)\n"
        "down = other['make'](10)"
    )
    values = (InKernel("down", {}), (2,), {})
    assert _payload.decode(space.ask("call", encode(values), namespace=True)[1]) == (17,)
    assert space.fetch("seen, 'seen' in other") == (0, False)
    with pytest.raises(RemoteError, match="TypeError"):  # without it, base is the text
        _payload.decode(space.ask("call", encode(values))[1])


def test_call_gives_no_names_to_what_is_no_function(space: Space) -> None:
    values = (operator.add, (2, 3), {})
    with pytest.raises(ProtocolError, match="no plain function"):
        space.ask("call", encode(values), namespace=True)


def test_objects_of_a_ref_are_in_its_expression_and_not_in_the_namespace(space: Space) -> None:
    space.bind(rows=[1, 2])
    before = space.names()
    objects = {"_bridgehead_argument_1": {"a": 5}, "_bridgehead_argument_2": InKernel("rows", {})}
    text = "[_bridgehead_argument_1, _bridgehead_argument_2, len(rows)]"
    fields = {"expressions": [text, "rows"]}
    first, rows = _payload.decode(space.ask("fetch", encode(objects), **fields)[1])
    assert first == [{"a": 5}, [1, 2], 2]
    assert first[1] is rows
    values = (operator.getitem, (InKernel(text, objects), 0), {})
    assert _payload.decode(space.ask("call", encode(values))[1]) == ({"a": 5},)
    assert space.names() == before
    space.ask("fetch", encode(objects), expressions=["[(made := i) for i in rows]"])
    assert space.fetch("made") == 2


def test_a_fetch_whose_payload_has_no_names_is_refused(space: Space) -> None:
    with pytest.raises(ProtocolError, match="the payload is not a dict"):
        space.ask("fetch", encode((1,)), expressions=["1"])


def test_an_unknown_name_is_reported_with_a_similar_one(space: Space) -> None:
    space.bind(temperature=20)
    before = space.snapshot()
    with pytest.raises(NameNotFound, match="did you mean 'temperature'") as caught:
        space.fetch("temperatur")
    assert caught.value.names == ("temperatur",)
    assert space.snapshot() == before
