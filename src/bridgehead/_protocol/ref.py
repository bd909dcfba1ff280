"""Handles of objects that stay in the kernel.

Rule: a ``Ref`` only builds expressions; nothing is sent until it is pulled, or given to an
operation. It knows its bridge only to call the bridge's operations. Objects that are no literals
stay in the ref, under names of which the expression is made, until a request takes them along. So
does what keeps an object alive that has no name in the kernel.
"""

from __future__ import annotations

import ast
import cmath
import itertools
import operator
import re
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from bridgehead._errors import NameNotFound, RemoteError
from bridgehead._protocol.formatting import heading, line
from bridgehead._shipped.wire.header import KEPT

_LITERALS = (bool, int, float, complex, str, bytes, type(None), type(...))
_numbers = itertools.count(1)  # of the objects in refs: refs of any origin can be combined
_ARGUMENT = "_bridgehead_argument_"  # how the names of these objects in expressions begin
_argument_name = re.compile(_ARGUMENT + r"\d+")
_kept_name = re.compile(KEPT + r"(\w{4})\w*")


class Kept:
    """An object in the kernel that has no name there, and lives as long as this is kept.

    Attributes:
        name: stands for it in expressions, and is unlike that of any other object in any kernel.
    """

    def __init__(self, name: str, free: Callable[[], object]) -> None:
        """``free`` has the kernel free the object; the garbage collector calls it in any thread."""
        self.name = name
        self._finalizer = weakref.finalize(self, free)
        self._finalizer.atexit = False  # at exit, closing the bridge frees it, or the lease

    @property
    def is_freed(self) -> bool:
        return not self._finalizer.alive

    def free(self) -> None:
        """Have the kernel free the object, behind what it was asked before; once is enough."""
        self._finalizer()


class Ref:
    """An expression in the kernel, as an object of this program.

    Attribute access, indexing and calling give longer expressions::

        ref = bridge.ref("df")
        means = await ref.groupby("species").mean(numeric_only=True).pull()

    Arguments may be other refs, and any objects that can be pickled. An object that is no literal
    is kept in the ref; each ``pull``, ``call``, ``push`` or ``iterate`` sends it along, as it is
    then, and gives it no name in the kernel. As an argument of ``call`` and as a value of ``push``,
    a ref stands for the object in the kernel. A ref of another kernel is a ValueError everywhere. A
    ref cannot be compared or tested: these would need the object. ``async for item in ref`` is
    ``bridge.iterate(ref)``. Only an attribute named ``pull`` cannot be reached through a ref.

        >>> await bridge.push(text="penguins")
        <Transfer text: ...>
        >>> bridge.ref("text").upper()
        <Ref text.upper()>
        >>> await bridge.call(len, bridge.ref("text"))
        8
        >>> await bridge.ref("sorted")(bridge.ref("text"), key=ord).pull()
        ['e', 'g', 'i', 'n', 'n', 'p', 's', 'u']

    A ref of a ``SyncBridge`` is iterated over by a plain ``for``. It also takes
    ``ref[key] = value``, ``ref.name = value``, ``len(ref)`` and ``value in ref``. Each of these is
    a ``call``, with the errors of one, and blocks until it is done.

    Mostly the expression is evaluated whenever the ref is used. ``call`` and ``submit`` with
    ``keep=True`` return a ref to one object, which has no name in the kernel. It lives until that
    ref and all that are made from it are dropped here; ``async with`` (``with`` for a
    ``SyncBridge``), ``bridge.delete(ref)`` and closing the bridge free it earlier. Then, and after
    a restart, using the ref is ``NameNotFound``: it is never another object.

        >>> async with await bridge.call(sorted, [3, 1, 2], keep=True) as rows:
        ...     await bridge.pull(rows[0], rows[-1])
        (1, 3)
    """

    __slots__ = ("_bridge", "_expression", "_objects")
    _bridge: Any
    _expression: str
    _objects: dict[str, Any]

    def __init__(self, bridge: Any, expression: str, objects: dict[str, Any] | None = None) -> None:
        # Not ``self._bridge = …``: that is an assignment in the kernel.
        object.__setattr__(self, "_bridge", bridge)
        object.__setattr__(self, "_expression", expression)
        object.__setattr__(self, "_objects", objects or {})

    def pull(self, *, timeout: float | None = None) -> Any:
        """Return the object: as an awaitable from a ``Bridge``, as the value from a ``SyncBridge``.

        ``timeout`` is in seconds. The errors, and what cancelling does, are those of the bridge's
        ``pull``.

        >>> await bridge.ref("'penguins'").upper().pull()
        'PENGUINS'
        """
        return self._bridge.pull(self, timeout=timeout)

    def __enter__(self) -> Ref:
        if not hasattr(self._bridge, "_bridge"):
            raise TypeError(f"{self!r} belongs to a Bridge; use async with")
        _kept(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        _kept(self).free()

    async def __aenter__(self) -> Ref:
        if hasattr(self._bridge, "_bridge"):
            raise TypeError(f"{self!r} belongs to a SyncBridge; use a plain with")
        _kept(self)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        _kept(self).free()

    def __getattr__(self, name: str) -> Ref:
        # IPython and copy probe for such names, and a ref must not seem to have them.
        if name.startswith(("__", "_repr_", "_ipython_")):
            raise AttributeError(name)
        return Ref(self._bridge, f"{self._expression}.{name}", self._objects)

    def __getitem__(self, key: Any) -> Ref:
        keys = key if type(key) is tuple and key else (key,)
        objects = dict(self._objects)
        inner = ", ".join(render(one, self._bridge, objects) for one in keys)
        return Ref(self._bridge, f"{self._expression}[{inner}]", objects)

    def __call__(self, *args: Any, **kwargs: Any) -> Ref:
        objects = dict(self._objects)
        arguments = [render(arg, self._bridge, objects) for arg in args]
        for name, value in kwargs.items():
            arguments.append(f"{name}={render(value, self._bridge, objects)}")
        return Ref(self._bridge, f"{self._expression}({', '.join(arguments)})", objects)

    def __setitem__(self, key: Any, value: Any) -> None:
        _call(self, operator.setitem, key, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if hasattr(type(self), name) or name.startswith("__"):
            raise AttributeError(f"cannot set {name!r} through a ref")
        _call(self, setattr, name, value)

    def __len__(self) -> int:
        try:
            return int(_call(self, len))
        except RemoteError as error:
            if error.ename == "TypeError":  # list(ref) asks for a length, and can do without
                raise TypeError(str(error)) from error
            raise

    def __contains__(self, value: Any) -> bool:
        return bool(_call(self, operator.contains, value))

    def __iter__(self) -> Any:
        if not hasattr(self._bridge, "_bridge"):
            raise TypeError(f"{self!r} stays in the kernel; use async for, or pull it")
        return self._bridge.iterate(self)

    def __aiter__(self) -> Any:
        if hasattr(self._bridge, "_bridge"):
            raise TypeError(f"{self!r} belongs to a SyncBridge; use a plain for")
        return self._bridge.iterate(self)

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
        return f"<Ref {line(shown(self._expression))}>"

    # IPython looks for this on the class, and ``__getattr__`` refuses such names.
    def _repr_html_(self) -> str:
        return heading("Ref", shown(self._expression))


def _call(ref: Ref, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function with the object, and wait for what it returns.

    Not a method: that would hide an attribute of the object.
    """
    if not hasattr(ref._bridge, "_bridge"):
        name = function.__name__
        name = name if function.__module__ == "builtins" else f"operator.{name}"
        raise TypeError(f"{ref!r} stays in the kernel; use await bridge.call({name}, ref, …)")
    return ref._bridge.call(function, ref, *args)


def shown(expression: str) -> str:
    """Return an expression, with short names for objects that have none in the kernel."""
    return _argument_name.sub("…", _kept_name.sub(r"kept_\1", expression))


def _kept(ref: Ref) -> Kept:
    """Return the object that a ref stands for, and that has no name in the kernel.

    Raises:
        TypeError: the ref stands for something else.
    """
    kept = ref._objects.get(ref._expression)
    if type(kept) is not Kept:
        raise TypeError(f"{ref!r} holds no object; only a ref that keep=True gave does")
    return kept


def free(ref: Ref) -> None:
    """Free the object of a ref, if it has no name in the kernel."""
    kept = ref._objects.get(ref._expression)
    if type(kept) is Kept:
        kept.free()


def carried(objects: dict[str, Any]) -> dict[str, Any]:
    """Return those of a ref's objects that cross with a request: not what the kernel keeps."""
    return {name: value for name, value in objects.items() if type(value) is not Kept}


def parts(ref: Ref) -> Iterator[tuple[str, Any]]:
    """Yield the objects that cross with a ref, each with what it is in the ref's expression.

    That is a suffix of a path, as those of ``pickling.children``: `` (argument 0 of f)``.
    """
    objects = carried(ref._objects)

    def walk(node: ast.AST, path: str) -> Iterator[tuple[str, Any]]:
        if isinstance(node, ast.Name) and node.id in objects:
            yield path, objects[node.id]
        for suffix, child in _places(node):
            yield from walk(child, path + suffix)

    try:
        yield from walk(ast.parse(ref._expression, mode="eval"), "")
    except (SyntaxError, RecursionError, MemoryError):  # it is nested too deeply for the parser
        return


def _places(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yield the parts of an expression, each with its suffix to the path."""
    if isinstance(node, ast.Call):
        yield "", node.func
        name = line(shown(ast.unparse(node.func)))
        for index, argument in enumerate(node.args):
            yield f" (argument {index} of {name})", argument
        for keyword in node.keywords:
            yield f" (argument {keyword.arg} of {name})", keyword.value
    elif isinstance(node, ast.Subscript):
        yield "", node.value
        yield f" (key of {line(shown(ast.unparse(node.value)))})", node.slice
    elif isinstance(node, (ast.List, ast.Tuple)):
        yield from ((f"[{index}]", item) for index, item in enumerate(node.elts))
    elif isinstance(node, ast.Set):
        yield from (("{…}", item) for item in node.elts)
    elif isinstance(node, ast.Dict):
        for key, item in zip(node.keys, node.values, strict=True):
            if key is not None:
                yield ".keys()", key
                yield f"[{line(shown(ast.unparse(key)))}]", item
    else:
        yield from (("", child) for child in ast.iter_child_nodes(node))


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
    """Return the expression of a ref, which must be of this bridge's kernel.

    Two bridges lead to one kernel if the remote part has the same epoch for both.

    Raises:
        ValueError: the ref is of another kernel, in which the text means another object.
        NameNotFound: an object that it uses, and that has no name in the kernel, was freed.
    """
    owner, user = (getattr(one, "_bridge", one) for one in (ref._bridge, bridge))
    if owner is not user and owner.info.epoch != user.info.epoch:
        raise ValueError(f"{ref!r} belongs to another kernel; pull it there and use its value")
    for kept in ref._objects.values():
        if type(kept) is Kept and kept.is_freed:
            raise NameNotFound(f"the object of {ref!r} was freed; nothing was sent")
    return ref._expression


def render(value: Any, bridge: Any, objects: dict[str, Any]) -> str:
    """Return source text that gives ``value`` when the kernel of this bridge evaluates it.

    What is no literal, and not made of literals and refs, goes into ``objects`` under a name that
    the text has.

    Raises:
        ValueError: it is or has a ``Ref`` of another kernel.
    """
    if type(value) is Ref:
        objects.update(value._objects)
        return expression_of(value, bridge)
    if type(value) is float and (value != value or value in (float("inf"), float("-inf"))):
        return f"float({str(value)!r})"
    if type(value) in _LITERALS and not (type(value) is complex and not cmath.isfinite(value)):
        return repr(value)

    def part(item: Any) -> str:
        return render(item, bridge, objects)

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
    name = f"{_ARGUMENT}{next(_numbers)}"
    objects[name] = value
    return name
