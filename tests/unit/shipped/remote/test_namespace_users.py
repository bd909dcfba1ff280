"""Changes of a namespace by its user, under every Python found here.

Rule: another interpreter evaluates the client's expressions; see ``support/bare.py``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest

from bridgehead import KernelRestarted, NameNotFound, RemoteError
from bridgehead._protocol import payload as _payload
from support.bare import Bare, Bomb, Space, megabytes
from support.elsewhere import Python


@pytest.mark.parametrize("installed", ["before", "after"])
def test_every_builtin_may_be_shadowed(space: Space, installed: str) -> None:
    if installed == "after":
        space.remove_remote()
    names = "dict.fromkeys([*dir(__import__('builtins')), 'sys', 'pickle', 'json'])"
    space.cell(f"globals().update({{**{names}, '__builtins__': __import__('builtins')}})")
    shadowed = space.names()
    assert {"len", "eval", "exec", "__import__", "getattr", "globals", "type"} <= shadowed
    assert tuple(space.hello()["python"]) == space.python.version
    space.bind(x=[1, 2, 3], data=megabytes(0.25))
    assert space.fetch("x", "x[1:]", "len") == ([1, 2, 3], [2, 3], None)
    assert space.fetch("data") == megabytes(0.25)
    assert "x" in [entry["name"] for entry in space.ask("names", pattern="x*")[0]["names"]]
    assert space.ask("has", name="x")[0]["has"] is True
    with pytest.raises(NameNotFound):
        space.fetch("nowhere")
    with pytest.raises(RemoteError, match="ZeroDivisionError"):
        space.fetch("1 / 0")
    space.ask("drop", names=["x", "data"])
    assert space.names() == shadowed


@pytest.mark.parametrize("builtins", ["None", "{}", "{'eval': None}"])
def test_the_builtins_themselves_may_be_replaced(space: Space, builtins: str) -> None:
    space.remove_remote()
    space.cell(f"__builtins__ = {builtins}")
    try:
        space.hello()
        space.bind(x=[1, 2, 3])
        assert space.fetch("x") == [1, 2, 3]
    finally:
        space.cell("del __builtins__")


REPLACED = [
    "pickle.loads", "pickle.dumps", "json.loads", "json.dumps", "base64.b64decode",
    "base64.b64encode", "zlib.crc32", "hashlib.sha256", "io.BytesIO", "time.monotonic",
    "fnmatch.fnmatchcase",
]  # fmt: skip


@pytest.mark.parametrize("function", REPLACED)
def test_a_replaced_function_of_the_standard_library_does_not_affect_the_remote_part(
    space: Space, function: str
) -> None:
    module = function.partition(".")[0]
    space.cell(f"import {module}\nkept, {function} = {function}, None")
    try:
        space.bind(x=[1, 2])
        assert space.fetch("x", "x[1]") == ([1, 2], 2)
        assert [entry["name"] for entry in space.ask("names", pattern="x")[0]["names"]] == ["x"]
    finally:
        space.cell(f"{function} = kept")


def test_an_emptied_namespace_keeps_its_remote_part(space: Space) -> None:
    space.bind(x=1)
    space.cell("globals().clear()")
    space.bind(y=2)
    assert space.fetch("y") == 2
    assert "x" not in space.names()


def test_a_removed_remote_part_is_reported_and_the_next_one_has_another_epoch(space: Space) -> None:
    space.bind(x=1)
    before, epoch = space.names(), space.epoch
    space.remove_remote()
    with pytest.raises(KernelRestarted):
        space.bind(x=2)
    assert space.names() == before
    assert space.hello()["epoch"] != epoch
    assert space.fetch("x") == 1
    space.epoch = epoch
    with pytest.raises(KernelRestarted):
        space.bind(x=3)
    space.hello()
    assert space.fetch("x") == 1


def test_only_what_was_pushed_appears_in_the_namespace(
    python: Python, kernels: Callable[..., Bare]
) -> None:
    space = Space(kernels(python, None))
    assert space.names() == {"__name__"}
    space.hello()
    # Python itself adds __builtins__ to any dict that it evaluates in.
    assert space.names() == {"__name__", "__builtins__"}
    space.bind(pushed=megabytes(0.25), größe=2)
    space.fetch("pushed", "größe + 1")
    space.ask("call", _payload.encode((operator.add, (1, 2), {}), {}), keep="kept")
    space.ask("names", pattern="*")
    space.ask("has", name="pushed")
    with pytest.raises(NameNotFound):
        space.fetch("nowhere")
    with pytest.raises(RemoteError):
        space.fetch("1 / 0")
    with pytest.raises(RemoteError):
        space.bind(bomb=Bomb(int, "no number"))
    assert space.names() == {"__name__", "__builtins__", "pushed", "größe", "kept"}
