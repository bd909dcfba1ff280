"""The names by which tracebacks, warnings and pickles know what is public.

Rule: none depends on the layout of the files. A public class and its methods say ``bridgehead`` as
their module. Methods that it alone takes from a private base say its name: "coroutine 'Bridge.call'
was never awaited".
"""

from __future__ import annotations

from collections.abc import Iterable
from types import FunctionType
from typing import Any

PACKAGE = "bridgehead"


def name_as_public(names: Iterable[Any]) -> None:
    """Name public classes and functions, and the methods of the classes."""
    public = list(names)
    classes = [one for one in public if isinstance(one, type)]
    for one in public:
        one.__module__ = PACKAGE
    for owner in classes:
        for base in owner.__mro__:
            is_ours = base.__module__.startswith(f"{PACKAGE}.")
            if base is owner or (is_ours and sum(issubclass(one, base) for one in classes) == 1):
                for member in vars(base).values():
                    _name_member(owner, member)


def _name_member(owner: type, member: Any) -> None:
    function = getattr(member, "fget", None) or getattr(member, "__func__", member)
    if isinstance(function, FunctionType) and function.__module__.startswith(f"{PACKAGE}."):
        function.__module__ = PACKAGE
        function.__qualname__ = f"{owner.__qualname__}.{function.__name__}"
