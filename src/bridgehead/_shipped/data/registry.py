"""The table of constructors: all that a stream of data can have called.

Rule: a constructor is told by its name in this table, and trusts none of its arguments. A
name that is not in the table is never looked up, let alone imported.
"""

from __future__ import annotations

import re
from typing import Any, Callable, Dict, Tuple

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.wire.errors import Broken

FUNCTION = type(lambda: None)
NONE = type(None)
# The modules of the constructors here, and the one they make up over there with the loader.
HOME = re.compile(r"bridgehead\._shipped\.data(\.\w+)?|_bridgehead_[0-9a-f]{12}")

CONSTRUCTORS: Dict[str, Tuple[Callable[..., Any], Tuple[Any, ...], int]] = {}


def need(condition: Any, message: str) -> None:
    if not condition:
        raise Broken("protocol", message)


def constructor(*kinds: Any, cost: int = 16) -> Callable[[Any], Any]:
    """Enter a function into the table, with the exact type or types of each argument.

    ``kinds`` are types, tuples of types, or None for an argument the function checks itself.
    ``cost`` is what a call is charged besides the lengths of its arguments.
    """

    def enter_into_table(function: Any) -> Any:
        each = tuple(kind if type(kind) is tuple or kind is None else (kind,) for kind in kinds)
        CONSTRUCTORS[function.__name__] = (function, each, cost)
        return function

    return enter_into_table


def untrusted(name: str, **details: Any) -> Broken:
    return Broken("untrusted", "%s is not data" % name, type=name, **details)


def library(name: str) -> Any:
    """A library a constructor needs; the names are this module's own, never a stream's."""
    try:
        module = __import__(name)
    except ImportError as error:
        raise Broken("missing", "%s is needed: %s" % (name, error), module=name) from None
    for part in name.split(".")[1:]:
        module = getattr(module, part)
    return module
