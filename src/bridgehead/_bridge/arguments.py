"""Checks of an operation's arguments: names, expressions, sizes.

Rule: an error in an argument is reported here, before anything is sent.
"""

from __future__ import annotations

import keyword
import unicodedata
from collections.abc import Mapping
from typing import Any

from bridgehead._protocol.ref import Ref, expression_of


def checked_objects(mapping: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the objects of a push by their names, as Python's parser spells the names.

    Raises:
        TypeError, ValueError: as ``Bridge.push`` does.
    """
    if mapping is not None and not isinstance(mapping, Mapping):
        raise TypeError(
            f"push() takes a mapping of names to objects, not {type(mapping).__name__}; "
            "use push(x=…) or push({'x': …})"
        )
    objects = {checked_name(key): item for key, item in {**(mapping or {}), **values}.items()}
    if not objects:
        raise ValueError(
            "push() needs at least one object, e.g. push(x=1); for a name that is also an option "
            "(timeout, now, progress) use push({'now': 1})"
        )
    return objects


def checked_name(name: Any) -> str:
    """Return a name as Python's parser spells it.

    Raises:
        ValueError: the name is not an identifier, or is a keyword.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"{name!r} is not a Python identifier; choose a name that a cell can use")
    if keyword.iskeyword(name):
        raise ValueError(f"{name!r} is a Python keyword; choose a name that a cell can use")
    return unicodedata.normalize("NFKC", str(name))


def checked_size(max_bytes: object) -> int | None:
    """Return ``max_bytes``.

    Raises:
        ValueError: it is neither a number of bytes nor None.
    """
    if max_bytes is None:
        return None
    if type(max_bytes) is not int or max_bytes < 0:
        raise ValueError(f"max_bytes must be a number of bytes or None, not {max_bytes!r}")
    return max_bytes


def expression_text(expression: str | Ref, bridge: object) -> str:
    """Return the text of an expression or a ref; a single name as Python's parser spells it.

    Raises:
        TypeError: it is neither a string nor a ref.
        ValueError: it is empty, or a ref of another bridge.
    """
    if type(expression) is Ref:
        return expression_of(expression, bridge)
    if not isinstance(expression, str):
        raise TypeError(f"an expression must be a string or a ref, not {type(expression).__name__}")
    if not expression.strip():
        raise ValueError("the expression is empty; use a name or any Python expression, e.g. 'x'")
    return unicodedata.normalize("NFKC", expression) if expression.isidentifier() else expression
