"""What an operation is given: names, expressions, sizes.

Rule: what is wrong with an argument is told here, before anything is sent.
"""

from __future__ import annotations

import keyword
import unicodedata
from collections.abc import Mapping
from typing import Any

from bridgehead._protocol.ref import Ref


def to_push(mapping: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """What a push is asked for, by names that a cell could use.

    Raises:
        TypeError, ValueError: as ``Bridge.push`` does.
    """
    if mapping is not None and not isinstance(mapping, Mapping):
        raise TypeError(
            f"push() takes names with their objects, not {type(mapping).__name__}; "
            "say push(x=…) or push({'x': …})"
        )
    objects = {name_of(key): item for key, item in {**(mapping or {}), **values}.items()}
    if not objects:
        raise ValueError(
            "there is nothing to push; say push(x=1) or push({'x': 1}), the latter also for a "
            "name that is push's own keyword, as timeout, now and progress"
        )
    return objects


def name_of(name: Any) -> str:
    """A name as Python's parser would know it.

    Raises:
        ValueError: it is no identifier, or a keyword.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"{name!r} is no Python identifier, so no cell could use it as a name")
    if keyword.iskeyword(name):
        raise ValueError(f"{name!r} is a Python keyword, so no cell could use it as a name")
    return unicodedata.normalize("NFKC", str(name))


def size_of(max_bytes: object) -> int | None:
    """Raise unless it is a number of bytes, or None."""
    if max_bytes is None:
        return None
    if type(max_bytes) is not int or max_bytes < 0:
        raise ValueError(f"max_bytes is a number of bytes or None, not {max_bytes!r}")
    return max_bytes


def text_of(expression: str | Ref) -> str:
    if type(expression) is Ref:
        return expression._expression
    if not isinstance(expression, str):
        raise TypeError(f"an expression is a string or a ref, not {type(expression).__name__}")
    if not expression.strip():
        raise ValueError("an empty string is no expression")
    return unicodedata.normalize("NFKC", expression) if expression.isidentifier() else expression
