"""Operations that block, made from those of ``Bridge`` and ``Fleet``.

Rule: signatures and documentation are written once, there. What is made here shows them to
``help()``, Tab and type checkers, with the types and the examples of a caller that blocks.
"""

from __future__ import annotations

import functools
import inspect
import re
import textwrap
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
)
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from bridgehead._bridge.arguments import (
    options_of,
)
from bridgehead._bridge.loop_thread import CallbackRunner
from bridgehead._bridge.progress import drawing
from bridgehead._bridge.sync_iterators import BlockingIterator
from bridgehead._transports.base import Transport

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

# Options of ``Bridge``'s operations whose value is called while the operation runs.
CALLBACKS = ("progress", "on_output", "on_input")

# What the documentation of an operation says in addition to that of ``Bridge``.
CALLBACK_NOTE = "``{}`` is called in the calling thread; an exception that it raises ends the wait."
NOTES = {
    "run": """\
``on_output`` is called in the calling thread, so a notebook shows what it prints in the running
cell. An exception that it raises ends the wait at once; the cell goes on in the kernel.
``on_input`` is called there, too, and is a plain function; what it raises ends the cell.""",
    "call": """\
``on_output`` is called in the calling thread. An exception that it raises ends the wait at once;
the function goes on in the kernel.""",
    "ref": """\
Its ``pull()`` blocks and returns the value. It also takes ``ref[key] = value``,
``ref.name = value``, ``len(ref)`` and ``value in ref``.""",
    "submit": "The handle is a ``concurrent.futures.Future``.",
    "iterate": "The iterator blocks until the next item.",
    "callback": """\
``function`` is plain. It runs in a thread that is not the caller's, and may use the bridge.""",
    "stream": "The iterator blocks until the next output.",
    "watch": "The iterator blocks until the next value.",
    "watch_names": "The iterator blocks until the next change.",
    "messages": "The iterator blocks until the next message.",
}
EXAMPLES = {
    "SyncBridge.interrupt": ">>> kernel.interrupt()  # the kernel is idle: nothing happens",
    "SyncBridge.callback": """\
>>> import queue
>>> done = queue.SimpleQueue()
>>> report = kernel.callback(done.put)
>>> def work(report):
...     for step in range(3):
...         report(step)
>>> kernel.call(work, report)
>>> [done.get() for _ in range(3)]  # calls arrive soon
[0, 1, 2]""",
    "SyncBridge.run_notebook": """\
>>> notebook = kernel.run_notebook(path, parameters={"rows": [1, 2]})
>>> notebook.cells[0].outputs[0].text
'3\\n'""",
    "SyncFleet.executor": ">>> kernels.executor().submit(abs, -1).result()\n1",
}

# How code in the documentation of ``Bridge`` is rewritten.
CODE = re.compile(r"^ *(?:>>>|\.\.\.) .*$|``[^`]+``", re.MULTILINE)
BLOCKING = {
    "async ": "",
    "await anext(": "next(",
    "await items.aclose(": "items.close(",
    "await task": "task.result()",
    "await ": "",
    "Bridge": "SyncBridge",
    "bridge": "kernel",
    "other": "target",
    "Fleet": "SyncFleet",
    "fleet": "kernels",
}
WORD = re.compile(
    r"\b(?:async (?=with\b|for\b)|await anext\(|await items\.aclose\(|await task\b|await |"
    r"(?:[BbFf](?:ridge|leet)|other)\b)"
)


def opening_of(make: Any) -> Any:
    """Make a constructor that blocks until the bridge is open."""

    @functools.wraps(make)
    def opening(cls: Any, /, *args: Any, **kwargs: Any) -> Any:
        return cls(lambda: make(*args, **kwargs))

    _like(make.__func__, opening)
    _returns(opening, Self, _owner(make.__func__))
    return classmethod(opening)


# mypy and pyright take this name for true. jedi, which completes options in IPython, reads its
# value and so the second branch: it follows functools.wraps, and cannot follow a ParamSpec.
TYPE_CHECKING = False

if TYPE_CHECKING:
    # With a second parameter mypy would lose the overloads of ``call``.
    def blocking(
        method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
    ) -> Callable[Concatenate[Any, P], T]: ...

    def making(
        method: Callable[Concatenate[Any, P], Any], kind: Callable[[Any, Any], T]
    ) -> Callable[Concatenate[Any, P], T]: ...

    def iterating(
        method: Callable[Concatenate[Any, P], AsyncIterator[T]], item: Any
    ) -> Callable[Concatenate[Any, P], BlockingIterator[T]]: ...

    def written_as(
        method: Callable[Concatenate[Any, P], Any],
    ) -> Callable[[Callable[..., T]], Callable[Concatenate[Any, P], T]]: ...

else:

    def blocking(method):
        """Make an operation that blocks; its callback, if it takes one, runs in the same thread."""
        name, known = method.__name__, _callbacks(method)

        @functools.wraps(method)
        def operation(self, /, *args, **kwargs):
            given = {option: kwargs.get(option) for option in known}
            given = {
                option: one for option, one in given.items() if one is not None and one is not False
            }
            if not given:
                value = self._wait(lambda: method(self._bridge, *args, **kwargs))
            else:
                with _runner(name, given) as (wrapped, runner):
                    # A copy: jedi loses all options of a function that assigns to its kwargs.
                    options = {**kwargs, **wrapped}
                    value = self._wait(lambda: method(self._bridge, *args, **options), runner)
            return self._own(value)

        _like(method, operation)
        return operation

    def making(method, kind):
        """Make an operation that returns at once, with an object of ``kind``, which blocks."""
        return _making(method, kind, kind)

    def iterating(method, item):
        """Make an operation that returns an iterator which blocks until the next item."""
        return _making(method, BlockingIterator, Iterator[item])

    def written_as(method):
        """Decorate an operation that has a body of its own, and takes what another one takes."""

        def decorate(function):
            @functools.wraps(method)
            def operation(self, /, *args, **kwargs):
                return function(self, *args, **kwargs)

            _like(method, operation)
            _takes(operation, function.__annotations__)
            return operation

        return decorate

    def _making(method, kind, returned):
        @functools.wraps(method)
        def operation(self, /, *args, **kwargs):
            async def make():  # a task or an iterator has to be made on the loop
                return kind(self, method(self._bridge, *args, **kwargs))

            return self._wait(make)

        _like(method, operation)
        _returns(operation, returned)
        return operation


def _like(method: Any, function: Any) -> None:
    """Give a function the name, signature and documentation of a method of ``Bridge``."""
    functools.update_wrapper(function, method)
    function.__doc__ = _documentation(method)


def _owner(method: Any) -> str:
    """Return the name of the class that blocks, for a method of ``Bridge`` or of ``Fleet``."""
    return "SyncFleet" if method.__qualname__.startswith("Fleet") else "SyncBridge"


def _returns(function: Any, kind: Any, shown: str | None = None) -> None:
    """Set the return type of a function that returns another type than ``Bridge``'s method."""
    shown = shown or re.sub(r"\b\w+\.", "", inspect.formatannotation(kind))
    signature = inspect.signature(function)
    function.__signature__ = signature.replace(return_annotation=shown)
    function.__annotations__ = {**function.__annotations__, "return": kind}


def _takes(function: Any, kinds: Mapping[str, str]) -> None:
    """Set the types of those parameters that have another type than in ``Bridge``'s method."""
    signature = inspect.signature(function)
    function.__signature__ = signature.replace(
        parameters=[
            one.replace(annotation=kinds.get(name, one.annotation))
            for name, one in signature.parameters.items()
        ]
    )


def documented(method: Any) -> Callable[[F], F]:
    """Decorate a method that is written in full with the documentation of ``Bridge``'s."""

    def documented(function: F) -> F:
        function.__doc__ = _documentation(method)
        return function

    return documented


def _documentation(method: Any) -> str | None:
    """Return a method's documentation with a note behind the summary and blocking examples."""
    text = inspect.getdoc(method)
    if text is None:  # python -OO
        return None
    method = getattr(method, "fget", method)
    name = method.__name__
    example = EXAMPLES.get(f"{_owner(method)}.{name}")
    if example is not None:
        example = textwrap.indent(example, "    ")
        text = f"{text.partition('Example::')[0].rstrip()}\n\nExample::\n\n{example}\n"
    note = NOTES.get(name) or "\n".join(map(CALLBACK_NOTE.format, _callbacks(method)))
    if note:
        summary, _, rest = text.partition("\n\n")
        text = "\n\n".join(filter(None, (summary, note, rest)))
    return CODE.sub(lambda code: WORD.sub(lambda word: BLOCKING[word[0]], code[0]), text)


def _callbacks(method: Any) -> list[str]:
    """Return the options of a method that take a callback."""
    return [option for option in CALLBACKS if option in options_of(method)]


@contextmanager
def _runner(
    name: str, callbacks: dict[str, Any]
) -> Iterator[tuple[dict[str, Callable[..., object]], CallbackRunner]]:
    """Give functions for the loop to call instead of callbacks, and what runs the callbacks."""
    if "progress" not in callbacks:
        runner = CallbackRunner()
        yield (
            {
                option: (runner.ask if option == "on_input" else runner.wrap)(callback)
                for option, callback in callbacks.items()
            },
            runner,
        )
        return
    with drawing(callbacks["progress"], name) as (report, draw):
        runner = CallbackRunner(draw, Transport.timings.bar_every)
        yield {"progress": runner.wrap(report) if draw is None else report}, runner
