"""How objects of other libraries are pickled: the tables that ``reducers`` fills.

Rule: use the standard library only, run on Python 3.8 and later, the same file at both ends. The
pickler and the unpickler look here, and know no library.
"""

from __future__ import annotations

from typing import Any, Callable

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.wire.names import BUILDERS

# Each takes a type and the table of what belongs to one object that is pickled, by library. It
# returns the function that reduces objects of this type, or None.
FINDERS: list[Callable[[Any, dict[str, Any]], Any]] = []


def finder(function: Any) -> Any:
    """Enter a function into ``FINDERS``."""
    FINDERS.append(function)
    return function


def builder(function: Any) -> Any:
    """Let a pickle call this function; the receiver has it under its own module's name."""
    BUILDERS[function.__name__] = function
    return function
