"""The other operations: names, has, drop and call, under every Python found here.

Rule: another interpreter evaluates the client's expressions; see ``support/bare.py``.
"""

from __future__ import annotations

import operator
import os

import pytest

from bridgehead import NameNotFound
from bridgehead._protocol import payload as _payload
from support.bare import Space


def test_names_reports_name_type_and_size(space: Space) -> None:
    space.bind(numbers=[1, 2, 3], text="abc", _hidden=1)
    space.cell("class Mine:\n    def __repr__(self): 1 / 0\nmine = Mine()")
    response, _ = space.ask("names", pattern="*")
    found = {entry["name"]: entry for entry in response["names"]}
    assert list(found) == ["Mine", "mine", "numbers", "text"]
    assert found["mine"] == {
        "name": "mine", "type": "Mine", "shape": None, "len": None, "bytes": None,
    }  # fmt: skip
    assert (found["numbers"]["type"], found["numbers"]["len"]) == ("list", 3)
    assert found["text"]["bytes"] > 3
    assert [e["name"] for e in space.ask("names", pattern="_h*")[0]["names"]] == ["_hidden"]
    assert space.ask("names", pattern="nothing*")[0]["names"] == []
    space.cell("del mine, Mine")


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


def test_an_unknown_name_is_reported_with_a_similar_one(space: Space) -> None:
    space.bind(temperature=20)
    before = space.snapshot()
    with pytest.raises(NameNotFound, match="did you mean 'temperature'") as caught:
        space.fetch("temperatur")
    assert caught.value.names == ("temperatur",)
    assert space.snapshot() == before
