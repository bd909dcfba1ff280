"""The examples in docstrings, run as an asyncio prompt runs them.

Rule: the code after ``>>>`` may await. Its output is compared as doctest compares, with ``...``
for text that differs from run to run.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import doctest
import inspect
import io
import traceback
import types
from collections.abc import Iterator
from typing import Any

import bridgehead

CHECKER = doctest.OutputChecker()

KINDS = ("Bridge", "SyncBridge", "Fleet", "SyncFleet")
# These examples need a real kernel, server or cluster; a loopback cannot replace it.
NEED_MORE = {
    *(
        f"{kind}.{way}"
        for kind in ("Bridge", "SyncBridge")
        for way in ("launch", "attach", "connect", "over")
    ),
    *(f"{kind}.{way}" for kind in KINDS for way in ("interrupt", "restart")),
    *(f"{kind}.{way}" for kind in KINDS[2:] for way in ("launch", "over")),
}
SERVERS = ("Bridge.connect", "SyncBridge.connect")  # these need a server

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def public() -> Iterator[tuple[str, Any]]:
    """Yield every public class and all its own public methods and properties, with their names."""
    for name in bridgehead.__all__:
        kind = getattr(bridgehead, name)
        yield name, kind
        if not isinstance(kind, type):
            continue
        for own in sorted(vars(kind).keys() | _inherited(kind)):
            member = inspect.getattr_static(kind, own)
            if not own.startswith("_") and isinstance(
                member, (types.FunctionType, classmethod, staticmethod, property)
            ):
                yield f"{name}.{own}", getattr(kind, own)


def _inherited(kind: type) -> set[str]:
    """Return the names that a class inherits from private classes of bridgehead."""
    bases = [base for base in kind.__mro__[1:] if base.__module__.startswith("bridgehead.")]
    return {
        name for base in bases if base.__name__ not in bridgehead.__all__ for name in vars(base)
    }


def examples(thing: Any) -> list[doctest.Example]:
    return doctest.DocTestParser().get_examples(inspect.getdoc(thing) or "")


async def run(thing: Any, names: dict[str, Any]) -> None:
    """Run the examples of one docstring in order, with these names.

    Raises:
        AssertionError: an example gave another output than the docstring shows.
    """
    names = {**vars(bridgehead), **names, "__name__": "__main__"}
    for example in examples(thing):
        got = await _output(example.source, names)
        wanted = example.want
        if example.exc_msg is not None:
            # Only the first line: a traceback from a kernel may follow.
            got = got.rpartition("\x00bridgehead.")[2].partition("\n")[0] + "\n"
            wanted = example.exc_msg
        assert CHECKER.check_output(wanted, got, FLAGS), (
            f"{example.source}gave\n{got}instead of\n{wanted}"
        )


async def _output(source: str, names: dict[str, Any]) -> str:
    code = compile(source, "<example>", "single", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            value = eval(code, names)
            if inspect.iscoroutine(value):
                await value
        except Exception as error:
            print("\x00" + "".join(traceback.format_exception_only(error)), end="")
        finally:
            vars(builtins).pop("_", None)  # the display hook of "single" sets it, for all tests
    return printed.getvalue()
