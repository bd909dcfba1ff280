"""The kinds of the errors of what arrives: raised, listed and turned into exceptions alike."""

from __future__ import annotations

import re
from pathlib import Path

from bridgehead import BridgeError
from bridgehead._protocol.raising import _ERRORS
from bridgehead._shipped.wire import errors

SHIPPED = Path(errors.__file__).parents[1]
LISTED = dict(re.findall(r"^- ``(\w+)``: .*?``(\w+)``\.$", errors.__doc__ or "", re.M | re.S))


def test_each_kind_is_listed_raised_and_turned_into_its_exception() -> None:
    text = "".join(file.read_text() for file in SHIPPED.rglob("*.py"))
    assert set(re.findall(r'WireError\(\s*"(\w+)"', text)) == set(LISTED) == set(_ERRORS)
    for kind, name in LISTED.items():
        made = _ERRORS[kind]({"kind": kind}, "why", 100)
        assert isinstance(made, BridgeError)
        assert type(made).__name__ == name
