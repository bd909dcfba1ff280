"""Handles of objects that stay in the kernel.

Rule: a ``Ref`` only builds expressions; nothing is sent until its ``pull`` is called. It knows
its bridge only to call the bridge's ``pull``.
"""

from __future__ import annotations

import ast
from typing import Any, NoReturn

from bridgehead._protocol.formatting import heading, line

_LITERALS = (bool, int, float, complex, str, bytes, type(None), type(...))


class Ref:
    """An expression in the kernel, as an object of this program.

    Attribute access, indexing and calling give longer expressions::

        ref = bridge.ref("df")
        means = await ref.groupby("species").mean(numeric_only=True).pull()

    Arguments may be literals, containers of literals, slices and other refs; for anything
    else ``bridge.call`` ships the object. As an argument of ``call`` and as a value of
    ``push``, a ref stands for the object in the kernel. A ref of another bridge is a ValueError
    everywhere. A ref cannot be compared, tested or iterated over: these would need the object.
    Only an attribute named ``pull`` cannot be reached through a ref.

        >>> await bridge.push(text="penguins")
        <Transfer text: ...>
        >>> bridge.ref("text").upper()
        <Ref text.upper()>
        >>> await bridge.call(len, bridge.ref("text"))
        8
    """

    __slots__ = ("_bridge", "_expression")

    def __init__(self, bridge: Any, expression: str) -> None:
        self._bridge = bridge
        self._expression = expression

    def pull(self, *, timeout: float | None = None) -> Any:
        """Return the object: as an awaitable from a ``Bridge``, as the value from a ``SyncBridge``.

        ``timeout`` is in seconds. The errors, and what cancelling does, are those of the bridge's
        ``pull``.

        >>> await bridge.ref("'penguins'").upper().pull()
        'PENGUINS'
        """
        return self._bridge.pull(self._expression, timeout=timeout)

    def __getattr__(self, name: str) -> Ref:
        # IPython and copy probe for such names, and a ref must not seem to have them.
        if name.startswith(("__", "_repr_", "_ipython_")):
            raise AttributeError(name)
        return Ref(self._bridge, f"{self._expression}.{name}")

    def __getitem__(self, key: Any) -> Ref:
        keys = key if type(key) is tuple and key else (key,)
        inner = ", ".join(render(one, self._bridge) for one in keys)
        return Ref(self._bridge, f"{self._expression}[{inner}]")

    def __call__(self, *args: Any, **kwargs: Any) -> Ref:
        arguments = [render(arg, self._bridge) for arg in args]
        arguments += [f"{name}={render(value, self._bridge)}" for name, value in kwargs.items()]
        return Ref(self._bridge, f"{self._expression}({', '.join(arguments)})")

    def __iter__(self) -> Any:
        raise TypeError(f"{self!r} stays in the kernel; pull it to iterate over it")

    def __bool__(self) -> bool:
        raise TypeError(f"{self!r} stays in the kernel; pull it to test it")

    def __eq__(self, other: object) -> NoReturn:
        raise TypeError(f"{self!r} stays in the kernel; pull it to compare it")

    def __hash__(self) -> int:
        return object.__hash__(self)

    def __reduce__(self) -> Any:
        raise TypeError(f"{self!r} belongs to its bridge; pass it to that bridge's call or push")

    def __str__(self) -> str:
        return self._expression

    def __repr__(self) -> str:
        return f"<Ref {line(self._expression)}>"

    # IPython looks for this on the class, and ``__getattr__`` refuses such names.
    def _repr_html_(self) -> str:
        return heading("Ref", self._expression)


def primary(expression: str) -> str:
    """Return ``expression`` so that ``.name``, ``[…]`` and ``(…)`` can be appended to it.

    Raises:
        SyntaxError: the text is no expression.
    """
    expression = expression.strip()
    tree = ast.parse(expression, mode="eval").body
    bare = isinstance(tree, (ast.Name, ast.Attribute, ast.Subscript, ast.Call))
    return expression if bare else f"({expression})"


def expression_of(ref: Ref, bridge: Any) -> str:
    """Return the expression of a ref, which must be of this bridge.

    Raises:
        ValueError: the ref is of another bridge; in its kernel the text means another object.
    """
    owner = ref._bridge
    if getattr(owner, "_bridge", owner) is not getattr(bridge, "_bridge", bridge):
        raise ValueError(f"{ref!r} belongs to another bridge; pull it there and use its value")
    return ref._expression


def render(value: Any, bridge: Any) -> str:
    """Return source text that gives ``value`` when the kernel of this bridge evaluates it.

    Raises:
        TypeError: the value is neither a literal, nor made of literals, nor a ``Ref``.
        ValueError: it is or has a ``Ref`` of another bridge.
    """
    if type(value) is Ref:
        return expression_of(value, bridge)
    if type(value) is float and (value != value or value in (float("inf"), float("-inf"))):
        return f"float({str(value)!r})"
    if type(value) in _LITERALS:
        return repr(value)

    def part(item: Any) -> str:
        return render(item, bridge)

    if type(value) is slice:
        return f"slice({part(value.start)}, {part(value.stop)}, {part(value.step)})"
    if type(value) is tuple:
        return "(" + "".join(part(item) + ", " for item in value) + ")"
    if type(value) is list:
        return "[" + ", ".join(map(part, value)) + "]"
    if type(value) is dict:
        return "{" + ", ".join(f"{part(k)}: {part(v)}" for k, v in value.items()) + "}"
    if type(value) is set and value:
        return "{" + ", ".join(map(part, value)) + "}"
    raise TypeError(
        f"an argument of a ref must be a literal or a ref, not {type(value).__name__}; "
        "use bridge.call(function, …) to ship an object"
    )
