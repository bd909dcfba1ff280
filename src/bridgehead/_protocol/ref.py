"""Handles of objects that stay in the kernel.

Rule: a ``Ref`` only builds expressions; nothing is sent until its ``pull`` is called. It knows
its bridge only to call the bridge's ``pull``.
"""

from __future__ import annotations

import ast
from typing import Any

from bridgehead._protocol.formatting import heading, line

_LITERALS = (bool, int, float, complex, str, bytes, type(None), type(...))


class Ref:
    """An expression in the kernel, as an object of this program.

    Attribute access, indexing and calling give longer expressions::

        ref = bridge.ref("df")
        means = await ref.groupby("species").mean(numeric_only=True).pull()

    Arguments may be literals, containers of literals, slices and other refs; for anything
    else ``bridge.call`` ships the object. As an argument of ``call`` and as a value of
    ``push``, a ref stands for the object in the kernel. Only an attribute named ``pull`` cannot
    be reached through a ref.

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
        inner = ", ".join(map(render, key)) if type(key) is tuple and key else render(key)
        return Ref(self._bridge, f"{self._expression}[{inner}]")

    def __call__(self, *args: Any, **kwargs: Any) -> Ref:
        arguments = [render(arg) for arg in args]
        arguments += [f"{name}={render(value)}" for name, value in kwargs.items()]
        return Ref(self._bridge, f"{self._expression}({', '.join(arguments)})")

    def __iter__(self) -> Any:
        raise TypeError(f"{self!r} stays in the kernel; pull it to iterate over it")

    def __bool__(self) -> bool:
        raise TypeError(f"{self!r} stays in the kernel; pull it to test it")

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


def render(value: Any) -> str:
    """Return source text that gives ``value`` when the kernel evaluates it.

    Raises:
        TypeError: the value is neither a literal, nor made of literals, nor a ``Ref``.
    """
    if type(value) is Ref:
        return value._expression
    if type(value) is float and (value != value or value in (float("inf"), float("-inf"))):
        return f"float({str(value)!r})"
    if type(value) in _LITERALS:
        return repr(value)
    if type(value) is slice:
        return f"slice({render(value.start)}, {render(value.stop)}, {render(value.step)})"
    if type(value) is tuple:
        return "(" + "".join(render(item) + ", " for item in value) + ")"
    if type(value) is list:
        return "[" + ", ".join(map(render, value)) + "]"
    if type(value) is dict:
        return "{" + ", ".join(f"{render(k)}: {render(v)}" for k, v in value.items()) + "}"
    if type(value) is set and value:
        return "{" + ", ".join(map(render, value)) + "}"
    raise TypeError(
        f"an argument of a ref must be a literal or a ref, not {type(value).__name__}; "
        "use bridge.call(function, …) to ship an object"
    )
