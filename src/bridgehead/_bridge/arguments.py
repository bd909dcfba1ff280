"""Checks of an operation's arguments: names, expressions, sizes, functions.

Rule: an error in an argument is reported here, before anything is sent.
"""

from __future__ import annotations

import ast
import functools
import inspect
import keyword
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from types import FunctionType
from typing import Any, Literal, TypeVar

from bridgehead._protocol.ref import Ref, carried, expression_of
from bridgehead._shipped.wire.functions import with_globals

F = TypeVar("F", bound=Callable[..., Any])

_BY_NAME = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)

OnTimeout = Literal["leave", "interrupt"]
WhenFull = Literal["drop_oldest", "wait"]


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


def check_flags(**flags: object) -> None:
    """Check options that are True or False.

    Raises:
        TypeError: one is not a bool.
    """
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, not {type(value).__name__}")


def check_callbacks(**functions: object) -> None:
    """Check options that are functions of the caller's, or None.

    Raises:
        TypeError: one cannot be called.
    """
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be callable, not {type(function).__name__}")


def check_now(now: object) -> None:
    """Check ``now=`` of a push: an object that is meant for that name would be lost silently.

    Raises:
        TypeError: it is not a bool.
    """
    if not isinstance(now, bool):
        raise TypeError(
            f"now must be True or False, not {type(now).__name__}; "
            "to push an object under that name use push({'now': …})"
        )


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


def deleted_name(name: str | Ref, bridge: object) -> str:
    """Return the name that ``delete`` gets, or that it gets a ref of.

    Raises:
        ValueError: the name is not an identifier, or is a keyword, or the ref is one of another
            kernel or of a part of an object.
        NameNotFound: the object of the ref was freed.
    """
    if type(name) is not Ref:
        return checked_name(name)
    text = expression_of(name, bridge)
    if not text.isidentifier():
        raise ValueError(f"{name!r} is a part of an object; delete() takes names and their refs")
    return checked_name(text)


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


def takes_options(*methods: Any) -> Callable[[F], F]:
    """Have a method that calls a user's function check the options which its caller gives.

    The options are those of the method itself, and those of other methods to which it passes them.
    An option that is given may have its default value, so only the names say what is given.

    Raises, when the method is called:
        TypeError: an option is a parameter of the function, too, so it cannot be known for whom
            the argument is meant. A function whose signature is not known has no parameters.
    """

    def decorate(method: Any) -> Any:
        names = [name for one in (method, *methods) for name in options_of(one)]

        def check(function: Callable[..., Any], given: Mapping[str, Any]) -> None:
            _check_options(function, [name for name in names if name in given])

        if inspect.iscoroutinefunction(method):

            @functools.wraps(method)
            async def checked(self: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
                check(function, kwargs)
                return await method(self, function, *args, **kwargs)

            return checked

        @functools.wraps(method)
        def checked_plain(self: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
            check(function, kwargs)
            return method(self, function, *args, **kwargs)

        return checked_plain

    return decorate


def options_of(method: Any) -> dict[str, Any]:
    """Return the options of a method, with their defaults.

    ``inspect.signature`` would take a millisecond of each import for all methods.
    """
    return inspect.unwrap(method).__kwdefaults__ or {}


def _check_options(function: Callable[..., Any], given: Sequence[str]) -> None:
    if not given:
        return
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return
    bound: set[str] = set()
    inner: Any = function
    while isinstance(inner, functools.partial):
        bound, inner = bound.union(inner.keywords), inner.func
    for name in given:
        parameter = parameters.get(name)
        if parameter is not None and parameter.kind in _BY_NAME and name not in bound:
            shown = getattr(inner, "__name__", type(inner).__name__)
            raise TypeError(
                f"{name}= is an option of call() and a parameter of {shown}(); bind the "
                f"function's own with functools.partial({shown}, {name}=…)"
            )


def plain_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a copy of a function without the global names of this program.

    Raises:
        TypeError: it is another callable, which has no global names of its own to replace.
    """
    if type(function) is not FunctionType:
        raise TypeError(
            "namespace=True takes a plain Python function, as def or lambda make it, not "
            f"{type(function).__name__}; wrap it in a lambda"
        )
    copy: Callable[..., Any] = with_globals(function, {})
    return copy


def expression_text(
    expression: str | Ref, bridge: object, objects: dict[str, Any] | None = None
) -> str:
    """Return the text of an expression or a ref; a single name as Python's parser spells it.

    The objects of a ref go into ``objects``. Without it, the caller must keep the ref itself.

    Raises:
        TypeError: it is neither a string nor a ref, or a ref carries objects and there is no place
            for them.
        ValueError: it is empty, or a ref of another kernel.
        NameNotFound: it is a ref whose object was freed.
    """
    if type(expression) is Ref:
        text = expression_of(expression, bridge)
        if objects is None and carried(expression._objects):
            raise TypeError(
                f"{expression!r} has objects of this program as arguments, which cannot cross "
                "here; push them, and use bridge.ref(name) as the arguments"
            )
        if objects is not None:
            objects.update(expression._objects)
        return text
    if not isinstance(expression, str):
        raise TypeError(f"an expression must be a string or a ref, not {type(expression).__name__}")
    if not expression.strip():
        raise ValueError("the expression is empty; use a name or any Python expression, e.g. 'x'")
    return unicodedata.normalize("NFKC", expression) if expression.isidentifier() else expression


def checked_pattern(pattern: str) -> str:
    """Return a pattern of names.

    Raises:
        TypeError: it is not a string.
    """
    if not isinstance(pattern, str):
        raise TypeError(f"pattern must be a string, not {type(pattern).__name__}")
    return pattern


def checked_types(types: Sequence[str] | None) -> list[str] | None:
    """Return the names of types.

    Raises:
        TypeError: they are not a list of strings.
    """
    if types is None:
        return None
    if isinstance(types, str) or not all(isinstance(name, str) for name in types):
        raise TypeError("types= takes a list of names of types, e.g. types=['DataFrame']")
    return list(types)


def wants_interrupt(word: OnTimeout) -> bool:
    """Return whether ``on_timeout=`` asks for an interrupt.

    Raises:
        ValueError: it is another word.
    """
    if word not in ("leave", "interrupt"):
        raise ValueError(f"on_timeout= must be 'leave' or 'interrupt', not {word!r}")
    return word == "interrupt"


def is_coroutine_function(function: Any) -> bool:
    """Return whether calling it gives a coroutine; also of partials and of callable objects."""
    call = type(function).__call__
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def awaits(expression: str) -> bool:
    """Return whether an expression awaits something itself, outside of a lambda in it."""
    if "await" not in expression and "async" not in expression:
        return False
    try:
        nodes: list[ast.AST] = [ast.parse(expression.strip(), mode="eval").body]
    except SyntaxError:
        return False  # the kernel reports it
    for node in nodes:
        if isinstance(node, ast.Await) or bool(getattr(node, "is_async", False)):
            return True
        if isinstance(node, ast.GeneratorExp):  # only its first iterable is evaluated now
            nodes.append(node.generators[0].iter)
        elif not isinstance(node, ast.Lambda):
            nodes.extend(ast.iter_child_nodes(node))
    return False
