"""The waits of the client: all in one place, each with its reason, and frozen.

Rule: the source is read, not run. What users choose, as ``timeout=``, is no wait of the client's.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import bridgehead
from bridgehead._transports import timings
from bridgehead._transports.timings import Timings

SOURCE = Path(bridgehead.__file__).parent
WAITING = {"sleep", "timeout", "timeout_at", "wait", "wait_for", "waited", "poll"}
WAITING |= {"call_later", "settimeout", "create_connection", "control"}
WAITS = re.compile("timeout|interval|linger")  # in the names of keywords


def test_a_wait_is_frozen() -> None:
    some = Timings(inquiry_after=2.0)
    assert (some.inquiry_after, Timings().inquiry_after) == (2.0, 1.0)
    with pytest.raises(AttributeError):
        some.inquiry_after = 3.0
    with pytest.raises(TypeError, match="no wait 'inquiry'"):
        Timings(inquiry=1.0)


def test_each_wait_has_its_reason() -> None:
    lines = Path(str(timings.__file__)).read_text().splitlines()
    fields = [n for n, line in enumerate(lines) if line.startswith("    ") and " = " in line]
    waits = [number for number in fields if lines[number].split(":")[0].strip() in vars(Timings)]
    assert len(waits) == len(Timings.__annotations__)
    # Two that follow each other, as a pause and its maximum, may share a reason.
    without = [n for n in waits if not lines[n - 1].startswith("    #") and n - 1 not in waits]
    assert not [lines[number] for number in without]


def waits() -> Iterator[str]:
    """Give each call in the client that waits for a number of seconds written beside it."""
    for path in SOURCE.rglob("*.py"):
        if path.relative_to(SOURCE).parts[0] in ("_shipped", "_tools"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else ast.unparse(function)
            given = [one.value for one in node.keywords if WAITS.search(one.arg or "")]
            for argument in (*given, *(node.args if name in WAITING else ())):
                number = isinstance(argument, ast.Constant) and type(argument.value) in (int, float)
                constant = isinstance(argument, ast.Name) and argument.id.isupper()
                if (number and ast.unparse(argument) != "0") or constant:
                    yield f"{path.name}:{node.lineno}: {ast.unparse(node)}"


def test_no_wait_stands_elsewhere() -> None:
    assert list(waits()) == []


def test_a_websocket_is_aborted_after_two_pings() -> None:
    assert Timings().moving_within == 2 * Timings().websocket_ping
