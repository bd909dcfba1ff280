"""A push or delete of all names or none, under every Python found here.

Rule: another interpreter evaluates the client's expressions; see ``support/bare.py``.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from bridgehead import MissingInKernel, RemoteError
from support.bare import INTERRUPT, Bomb, Space, left, stream

WHERE = ("bind", "drop", "take_effect", "handle")


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_push_that_cannot_be_unpickled_changes_nothing(space: Space, place: str) -> None:
    space.bind(a="before")
    before = space.snapshot()
    values: dict[str, Any] = {"a": 1, "b": 2, "c": 3}
    values[{"first": "a", "middle": "b", "last": "c"}[place]] = Bomb(int, "no number")
    with pytest.raises(RemoteError, match="invalid literal for int") as caught:
        space.bind(**values)
    assert type(caught.value.__cause__) is ValueError
    assert "bridgehead remote" not in "\n".join(caught.value.traceback)
    assert space.snapshot() == before


def test_a_push_that_is_not_a_pickle_changes_nothing(space: Space) -> None:
    before = space.snapshot()
    frames = [memoryview(b"this is no pickle")]
    with pytest.raises(RemoteError) as caught:
        space.finish(space.header("bind", frames, names=["a"]), stream(frames))
    assert caught.value.ename == "UnpicklingError"
    assert space.snapshot() == before


def test_a_push_that_raises_systemexit_changes_nothing(space: Space) -> None:
    before = space.snapshot()
    with pytest.raises(RemoteError, match="leaving") as caught:
        space.bind(a=1, b=Bomb(sys.exit, "leaving"))
    assert caught.value.ename == "SystemExit"
    assert space.snapshot() == before


def test_a_push_that_needs_a_module_the_kernel_lacks_changes_nothing(
    space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text("class Thing: pass")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "only_here", raising=False)
    module = importlib.import_module("only_here")
    before = space.snapshot()
    with pytest.raises(MissingInKernel, match="cannot import 'only_here'") as caught:
        space.bind(a=1, b=module.Thing())
    assert caught.value.module == "only_here"
    assert space.snapshot() == before


@pytest.mark.parametrize("operation", ["bind", "drop"])
def test_an_interrupt_at_any_instruction_binds_all_names_or_reports_that_it_binds_none(
    space: Space, operation: str
) -> None:
    tracer = Space(space.bare)
    tracer.cell(INTERRUPT)
    interrupted = late = 0
    while True:
        space.bind(a="before", b="before", c="before")
        before = space.snapshot()
        tracer.cell(f"interrupt = Interrupt({interrupted + 1}, {WHERE})\nsys.settrace(interrupt)")
        failure = None
        try:
            if operation == "bind":
                space.bind(a="after", b="after", c="after")
            else:
                space.ask("drop", names=["a", "b", "c"])
        except RemoteError as error:
            failure = error
        finally:
            tracer.cell("sys.settrace(None)")
        after = space.snapshot()
        if failure is not None:  # it is not reported as failed if it took effect
            assert failure.ename == "KeyboardInterrupt"
            assert after == before
        else:
            values = {text for name, _, text in after if name in ("'a'", "'b'", "'c'")}
            assert values == ({"'after'"} if operation == "bind" else set())
            if left(tracer):
                break
            late += 1
        interrupted += 1
    assert interrupted > 10
    assert late > 0
