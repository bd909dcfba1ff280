"""Results that stay in the kernel under no name: how they are found, freed and lost."""

from __future__ import annotations

import operator
from typing import Any

import pytest

from bridgehead import BridgeClosed, NameNotFound, ProtocolError, RemoteError
from bridgehead._protocol import payload as _payload
from bridgehead._shipped.wire.header import KEPT
from support.bare import Space

NAME = f"{KEPT}k1"


def keep(space: Space, identity: str = "k1", owner: str = "o", value: Any = None) -> None:
    function = (operator.concat, ([1, 2], value or []), {})
    _, frames = space.ask("call", _payload.encode(function, {}), kept=identity, owner=owner)
    assert frames == []


def left(space: Space) -> Any:
    """Return the ids in the table, the owners, and the names of the objects."""
    return space.fetch(
        "(lambda remote: ([*remote.resources.known], [*remote.resources.owners], "
        "[*remote.operations.values.kept]))"
        "([m for n, m in __import__('sys').modules.items() if n.startswith('_bridgehead')][0]"
        "._remotes[id(globals())])"
    )


def test_a_kept_result_is_in_expressions_and_has_no_name(space: Space) -> None:
    before = space.names()
    keep(space)
    assert space.names() == before
    assert space.fetch(NAME) == [1, 2]
    assert space.fetch(f"[{NAME}[1], len({NAME})]") == [2, 2]
    assert left(space) == (["k1"], ["o"], [NAME])
    space.ask("close", resources=["k1"])
    assert left(space) == ([], [], [])


@pytest.mark.parametrize("expression", [NAME, f"{NAME}.x", f"[seen.append(1), {NAME}]"])
def test_nothing_is_evaluated_with_an_object_that_is_gone(space: Space, expression: str) -> None:
    space.bind(seen=[])
    with pytest.raises(NameNotFound, match="not in the kernel any more") as caught:
        space.ask("fetch", expressions=["seen.append(1)", expression])
    assert caught.value.names == (NAME,)
    assert space.fetch("seen") == []


def test_drop_deletes_kept_objects_and_names_or_none(space: Space) -> None:
    space.bind(a=1)
    keep(space)
    for names in (["a", NAME, "nowhere"], [NAME, f"{KEPT}k2", "a"]):
        with pytest.raises(NameNotFound):
            space.ask("drop", names=names)
        assert space.fetch(f"(a, {NAME})") == (1, [1, 2])
    space.ask("drop", names=[NAME, "a", NAME])
    assert "a" not in space.names()
    with pytest.raises(NameNotFound):
        space.fetch(NAME)
    space.ask("close", resources=["k1"])
    assert left(space) == ([], [], [])


def test_a_result_that_its_client_has_closed_is_not_kept(space: Space) -> None:
    space.ask("close", resources=["k1"])
    with pytest.raises(BridgeClosed, match="on its way"):
        keep(space)
    assert left(space) == ([], [], [])


def test_a_result_without_an_owner_is_not_kept(space: Space) -> None:
    payload = _payload.encode((operator.add, (2, 3), {}), {})
    with pytest.raises(ProtocolError, match="no 'owner'"):
        space.ask("call", payload, kept="k1")
    with pytest.raises(RemoteError, match="TypeError"):
        space.ask("call", _payload.encode((operator.add, (2, "a"), {}), {}), kept="k1", owner="o")
    assert left(space) == ([], [], [])


def test_the_objects_of_a_client_whose_lease_ended_are_freed(space: Space) -> None:
    keep(space)
    keep(space, "k2", "lives")
    space.cell(
        "import sys\n"
        "module = [m for n, m in sys.modules.items() if n.startswith('_bridgehead')][0]\n"
        "table = module._remotes[id(globals())].resources\n"
        "table.clock += 601\n"
        "table.owners['lives'].renewed = table.clock"
    )
    assert space.fetch(f"{KEPT}k2") == [1, 2]
    assert left(space) == (["k2"], ["lives"], [f"{KEPT}k2"])
    space.ask("close", resources=["k2"])
