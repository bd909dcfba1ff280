"""Code objects, between equal and different versions of Python.

Rule: another interpreter evaluates the client's expressions; see ``support/bare.py``.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest

from bridgehead import IncompatiblePython, MissingInKernel, RemoteError
from bridgehead._protocol import payload as _payload
from bridgehead._shipped.wire import pickling as _pickling
from support.bare import Space

# The kernel makes each of them as ``made``; pulled, it gives 7 in the client.
CODE: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "a function": ("def made(x): return x + 1", lambda made: made(6)),
    "a lambda": ("made = lambda x: x + 1", lambda made: made(6)),
    "a function inside data": (
        "def f(x): return x + 1\nmade = {'deep': [f]}",
        lambda made: made["deep"][0](6),
    ),
    "a class with a method": (
        "class made:\n    def method(self): return 7",
        lambda made: made().method(),
    ),
    "an object of such a class": (
        "class Model:\n    def method(self): return 7\nmade = Model()",
        lambda made: made.method(),
    ),
    "an object with slots": (
        "class Model:\n    __slots__ = '__x', 'y'\n    def method(self): return 7\nmade = Model()",
        lambda made: made.method() if not hasattr(made, "__dict__") else None,
    ),
    "a member of an enum": (
        "import enum\nclass E(enum.IntEnum):\n    A = 6\n    B = 6\n"
        "    def method(self): return self + 1\nmade = E.B",
        lambda made: made.method() if type(made).B is made else None,
    ),
    "a function with a cache": (
        "import functools\n@functools.lru_cache(maxsize=2)\ndef made(x): return x + 1",
        lambda made: made(6) if made.cache_info().maxsize == 2 else None,
    ),
}
code = pytest.mark.parametrize(("code", "use"), CODE.values(), ids=CODE.keys())


@code
def test_code_needs_cloudpickle_in_the_kernel_and_its_absence_is_reported(
    space: Space, code: str, use: Callable[[Any], Any]
) -> None:
    space.cell(code)
    before = space.snapshot()
    with pytest.raises(MissingInKernel, match="cloudpickle") as caught:
        space.fetch("made")
    assert caught.value.module == "cloudpickle"
    assert space.snapshot() == before


@code
def test_code_comes_back_from_the_same_minor_version_only(
    equipped: Space, code: str, use: Callable[[Any], Any]
) -> None:
    equipped.cell(code)
    before = equipped.snapshot()
    if equipped.python.version[:2] == sys.version_info[:2]:
        assert use(equipped.fetch("made")) == 7
    else:
        with pytest.raises(
            IncompatiblePython, match=r"Python 3\.\d+, but this program runs Python 3\.\d+"
        ):
            equipped.fetch("made")
    assert equipped.snapshot() == before


def test_code_for_another_kernel_is_judged_by_the_python_of_that_kernel(equipped: Space) -> None:
    """The Python of the sending kernel does not matter; the response says that it carries code."""
    equipped.cell("made, data = (lambda: 1), 1")
    asked: dict[str, Any] = {"expressions": ["made"], "names": ["made"]}
    theirs = list(equipped.python.version[:2])
    response, frames = equipped.ask("fetch", **asked, reader=theirs)
    assert response["code"] is True
    assert frames
    with pytest.raises(IncompatiblePython):
        equipped.ask("fetch", **asked, reader=[theirs[0], theirs[1] + 1])
    equipped.ask("fetch", expressions=["data"], names=["data"], reader=[3, 99])


def test_data_crosses_between_all_versions_with_cloudpickle(equipped: Space) -> None:
    value = {"a": [1, 2.5, "é"], "b": datetime.date(2024, 1, 2)}
    equipped.bind(value=value)
    assert equipped.fetch("value") == value


def test_an_error_that_carries_code_is_never_unpickled_by_another_version(
    equipped: Space,
) -> None:
    equipped.cell(
        "class Odd(Exception):\n"
        "    def text(self): return 'raised by ' + self.args[0]\n"
        "def boom(): raise Odd('me')\n"
    )
    with pytest.raises(RemoteError, match="Odd: me") as caught:
        equipped.fetch("boom()")
    if equipped.python.version[:2] == sys.version_info[:2]:
        assert caught.value.__cause__.text() == "raised by me"
    else:
        assert caught.value.__cause__ is None


def test_code_sent_to_the_kernel_runs_if_the_version_is_the_same(equipped: Space) -> None:
    payload = _payload.encode((lambda x: x * 2, (21,), {}), {})
    assert payload.carries_code
    versions = equipped.hello()["versions"] | {"cloudpickle": cloudpickle.__version__}
    if equipped.python.version[:2] == sys.version_info[:2]:
        _payload.check_payload(payload, equipped.python.version, versions)
        _, frames = equipped.ask("call", payload)
        assert _pickling.decode(frames) == (42,)
    else:
        with pytest.raises(IncompatiblePython):
            _payload.check_payload(payload, equipped.python.version, versions)
