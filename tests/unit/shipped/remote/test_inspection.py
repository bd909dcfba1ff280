"""Reports of errors in the kernel, under every Python found here.

Rule: another interpreter evaluates the client's expressions; see ``support/bare.py``.
"""

from __future__ import annotations

import pytest

from bridgehead import RemoteError
from support.bare import Space

RAISES = {
    "an expression": "def boom():\n    raise ValueError('bad été')\n",
    "a reducer": (
        "def boom():\n    return Boom()\n"
        "class Boom:\n    def __reduce__(self):\n        raise ValueError('bad été')\n"
    ),
}


@pytest.mark.parametrize("code", RAISES.values(), ids=RAISES.keys())
def test_an_error_is_reported_without_the_frames_of_the_remote_part(
    space: Space, code: str
) -> None:
    space.cell(code)
    before = space.snapshot()
    with pytest.raises(RemoteError, match="bad été") as caught:
        space.fetch("boom()")
    text = "\n".join(caught.value.traceback)
    assert "bad été" in text
    assert "ValueError" in text
    assert "bridgehead remote" not in text
    assert space.snapshot() == before


def test_an_error_names_the_users_line_and_carries_the_exception(space: Space) -> None:
    space.cell("def boom():\n    raise LookupError('bad', 7)\n")
    with pytest.raises(RemoteError) as caught:
        space.fetch("boom()")
    assert (caught.value.ename, caught.value.evalue) == ("LookupError", "('bad', 7)")
    assert '  File "<cell>", line 2, in boom' in caught.value.traceback
    assert type(caught.value.__cause__) is LookupError
    assert caught.value.__cause__.args == ("bad", 7)


def test_an_error_with_a_failing_str_and_reduce_is_reported(space: Space) -> None:
    space.cell(
        "class Silent(Exception):\n"
        "    def __str__(self): raise SystemExit(3)\n"
        "    def __reduce__(self): raise SystemExit(3)\n"
        "def boom(): raise Silent()\n"
    )
    with pytest.raises(RemoteError) as caught:
        space.fetch("boom()")
    assert caught.value.ename in ("Silent", "SystemExit")
    assert caught.value.__cause__ is None or isinstance(caught.value.__cause__, SystemExit)


@pytest.mark.parametrize("kind", ["SystemExit", "KeyboardInterrupt", "GeneratorExit"])
def test_an_exception_that_ends_a_program_does_not_end_the_kernel(space: Space, kind: str) -> None:
    space.cell(f"def leave(): raise {kind}('bye')")
    with pytest.raises(RemoteError, match="bye") as caught:
        space.fetch("leave()")
    assert caught.value.ename == kind


def test_a_syntax_error_is_reported(space: Space) -> None:
    with pytest.raises(RemoteError) as caught:
        space.fetch("1 +")
    assert caught.value.ename == "SyntaxError"


def test_a_value_that_cannot_be_pickled_is_reported_with_the_path_to_it(space: Space) -> None:
    space.cell("import threading\nconfig = {'a': 1, 'lock': threading.Lock()}")
    with pytest.raises(RemoteError, match=r"config\['lock'\] cannot be pickled") as caught:
        space.fetch("config")
    assert "bridgehead remote" not in "\n".join(caught.value.traceback)


DEEP = "deep = []\nfor _ in range(100000): deep = [deep]\n"


def test_a_value_nested_too_deeply_is_reported(space: Space) -> None:
    space.cell(DEEP)
    with pytest.raises(RemoteError, match="recursion"):
        space.fetch("deep")
    space.cell("while deep: deep = deep[0]")


def test_a_value_nested_too_deeply_for_cloudpickle_is_reported(equipped: Space) -> None:
    equipped.cell(DEEP)
    with pytest.raises(RemoteError, match="recursion"):
        equipped.fetch("deep")
    equipped.cell("while deep: deep = deep[0]")
