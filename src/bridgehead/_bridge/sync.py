"""The blocking ``SyncBridge``, for scripts, threads and notebook cells.

Rule: no logic and no signatures of its own. Each operation is one of ``Bridge``, run on the event
loop that all SyncBridges share, so it works both outside and inside a running event loop. Callbacks
run in the calling thread.
"""

from __future__ import annotations

import atexit
import functools
import inspect
import os
import re
import threading
import warnings
import weakref
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    MutableMapping,
)
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar

from bridgehead._bridge import loop_thread
from bridgehead._bridge.bridge import Bridge
from bridgehead._bridge.loop_thread import CallbackRunner, LoopCall, LoopEnded, LoopThread
from bridgehead._bridge.opening import Opening
from bridgehead._bridge.progress import Report, drawing
from bridgehead._connection.trust import TrustName
from bridgehead._errors import BridgeClosed
from bridgehead._protocol.ref import Ref
from bridgehead._protocol.results import Info, Transfer, bridge_html
from bridgehead._transports.base import Transport
from bridgehead._transports.messages import Message
from bridgehead._transports.tasks import noted_on

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

# Options of ``Bridge``'s operations whose value is called while the operation runs.
CALLBACKS = ("progress", "on_output")

# What the documentation of an operation says in addition to that of ``Bridge``.
CALLBACK_NOTE = "``{}`` is called in the calling thread; an exception that it raises ends the wait."
NOTES = {
    "run": """\
``on_output`` is called in the calling thread, so a notebook shows what it prints in the running
cell. An exception that it raises ends the wait at once; the cell goes on in the kernel.""",
    "ref": "Its ``pull()`` blocks and returns the value.",
    "watch": "The iterator blocks until the next value.",
    "messages": "The iterator blocks until the next message.",
}
EXAMPLES = {"interrupt": ">>> kernel.interrupt()  # the kernel is idle: nothing happens"}

# How code in the documentation of ``Bridge`` is rewritten.
BLOCKING = (
    (r"\basync (with|for)\b", r"\1"),
    (r"\bawait anext\(", "next("),
    (r"\bawait ", ""),
    (r"\bBridge\b", "SyncBridge"),
    (r"\bbridge\b", "kernel"),
    (r"\bother\b", "target"),
)


# ------------------------------------------------------------ methods made from those of Bridge


# mypy and pyright take this name for true. jedi, which completes options in IPython, reads its
# value and so the second branch: it follows functools.wraps, and cannot follow a ParamSpec.
TYPE_CHECKING = False

if TYPE_CHECKING:

    def _opening(make: Callable[P, Opening[Bridge]]) -> classmethod[Any, P, SyncBridge]: ...

    # With a second parameter mypy would lose the overloads of ``call``.
    def _blocking(
        method: Callable[Concatenate[Bridge, P], Coroutine[Any, Any, T]],
    ) -> Callable[Concatenate[SyncBridge, P], T]: ...

    def _iterating(
        method: Callable[Concatenate[Bridge, P], AsyncIterator[T]], item: Any
    ) -> Callable[Concatenate[SyncBridge, P], Iterator[T]]: ...

else:

    def _opening(make):
        """Make a constructor that blocks until the bridge is open."""

        @functools.wraps(make)
        def opening(cls, /, *args, **kwargs):
            return cls(lambda: make(*args, **kwargs))

        _like(make.__func__, opening)
        _returns(opening, "SyncBridge", Self)
        return classmethod(opening)

    def _blocking(method):
        """Make an operation that blocks; its callback, if it takes one, runs in the same thread."""
        name = method.__name__
        takes = inspect.signature(method).parameters
        option = next((option for option in CALLBACKS if option in takes), None)

        @functools.wraps(method)
        def operation(self, /, *args, **kwargs):
            callback = None if option is None else kwargs.get(option)
            if callback is None or callback is False:
                value = self._wait(lambda: method(self._bridge, *args, **kwargs))
                # A ref of this bridge, so that its pull() blocks too.
                return Ref(self, value._expression) if type(value) is Ref else value
            with _runner(name, option, callback) as (wrapped, runner):
                # A copy: jedi loses all options of a function that assigns to its kwargs.
                options = {**kwargs, option: wrapped}
                return self._wait(lambda: method(self._bridge, *args, **options), runner)

        _like(method, operation)
        return operation

    def _iterating(method, item):
        """Make an operation that returns an iterator which blocks until the next item."""

        @functools.wraps(method)
        def operation(self, /, *args, **kwargs):
            async def iterator():  # it has to be made on the loop
                return method(self._bridge, *args, **kwargs)

            return _Blocking(self, self._wait(iterator))

        _like(method, operation)
        _returns(operation, f"Iterator[{item.__name__}]", Iterator[item])
        return operation


def _like(method: Any, function: Any) -> None:
    """Give a function the name, signature and documentation of a method of ``Bridge``."""
    functools.update_wrapper(function, method)
    function.__qualname__ = f"SyncBridge.{method.__name__}"
    function.__module__ = __name__
    function.__doc__ = _documentation(method)


def _returns(function: Any, shown: str, kind: Any) -> None:
    """Set the return type of a function that returns another type than ``Bridge``'s method."""
    signature = inspect.signature(function)
    function.__signature__ = signature.replace(return_annotation=shown)
    function.__annotations__ = {**function.__annotations__, "return": kind}


def _documented(method: Any) -> Callable[[F], F]:
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
    if name in EXAMPLES:
        text = f"{text.partition('Example::')[0].rstrip()}\n\nExample::\n\n    {EXAMPLES[name]}\n"
    options = [option for option in CALLBACKS if option in inspect.signature(method).parameters]
    note = NOTES.get(name) or "\n".join(map(CALLBACK_NOTE.format, options))
    if note:
        summary, _, rest = text.partition("\n\n")
        text = "\n\n".join(filter(None, (summary, note, rest)))
    return re.sub(r"^ *(>>>|\.\.\.) .*$|``[^`]+``", _as_blocking, text, flags=re.MULTILINE)


def _as_blocking(code: re.Match[str]) -> str:
    text = code[0]
    for pattern, instead in BLOCKING:
        text = re.sub(pattern, instead, text)
    return text


@contextmanager
def _runner(
    name: str, option: str, callback: Any
) -> Iterator[tuple[Callable[..., object], CallbackRunner]]:
    """Give a function for the loop to call instead of a callback, and what runs the callback."""
    if option != "progress":
        runner = CallbackRunner()
        yield runner.wrap(callback), runner
        return
    with drawing(callback, name) as (report, draw):
        runner = CallbackRunner(draw, Transport.timings.bar_every)
        yield (runner.wrap(report) if draw is None else report), runner


# ------------------------------------------------------------ the bridge


class SyncBridge(MutableMapping[str, Any]):
    """A ``Bridge`` whose operations block, and a mapping of the kernel's names.

    ``with SyncBridge.launch() as kernel: kernel["x"] = 1``. The mapping has the names that
    ``names()`` lists. Getting an item evaluates any expression; a name that does not exist raises
    ``KeyError``. Any thread may use a SyncBridge, including one that runs an event loop. A
    ``KeyboardInterrupt`` ends the wait for an operation; what the kernel runs goes on (see
    ``interrupt``).

    All SyncBridges of a process share one event-loop thread, which ends with the last of them.

    In the examples of the methods, ``kernel`` and ``target`` are open SyncBridges.

    >>> kernel["rows"] = [1, 2]
    >>> kernel["sum(rows)"], "rows" in kernel, list(kernel)
    (3, True, ['rows'])
    """

    # No __dict__, so that kernel.x = 1 raises: it would not push x.
    __slots__ = ("__weakref__", "_bridge", "_finalizer", "_process", "_thread")

    def __init__(self, make: Callable[[], Awaitable[Bridge]]) -> None:
        self._finalizer: weakref.finalize[..., SyncBridge] | None = None
        self._thread: LoopThread
        self._bridge: Bridge
        self._process = os.getpid()
        self._thread, self._bridge = loop_thread.open_on_shared_loop(make)
        self._finalizer = weakref.finalize(self, _drop, self._thread, self._bridge, self._process)
        _notice_exit()

    # ------------------------------------------------------------ opening

    # Final, because pyright accepts an inferred type of a public attribute only then.
    launch: Final = _opening(Bridge.launch)
    attach: Final = _opening(Bridge.attach)
    connect: Final = _opening(Bridge.connect)
    over: Final = _opening(Bridge.over)
    loopback: Final = _opening(Bridge.loopback)

    def close(self) -> None:
        """Close the bridge: end the kernel if this bridge started it, else only the connection.

        Calls that wait in other threads raise ``BridgeClosed``. Everything is released, whatever
        fails; called again, ``close`` tries again what failed. At the end of ``with``, an error of
        the block is raised, and what failed in closing is a note on it. A bridge is also closed
        when it is garbage collected, with a ``ResourceWarning``, and when Python exits.

        Raises:
            TransportError: the server did not end the kernel that this bridge started. If the
                server cannot be reached, a warning is logged instead.

        >>> kernel.close()
        >>> kernel.state
        'closed'
        """
        if self._finalizer is None:
            return
        if self._finalizer.detach() is not None:
            _close(self._thread, self._bridge, self._process)
        elif not self._bridge._is_released:
            _close_again(self._bridge, self._process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with noted_on(error):
            self.close()

    # ------------------------------------------------------------ operations

    push: Final = _blocking(Bridge.push)
    pull: Final = _blocking(Bridge.pull)
    names: Final = _blocking(Bridge.names)
    delete: Final = _blocking(Bridge.delete)
    exists: Final = _blocking(Bridge.exists)
    call: Final = _blocking(Bridge.call)
    run: Final = _blocking(Bridge.run)
    interrupt: Final = _blocking(Bridge.interrupt)
    restart: Final = _blocking(Bridge.restart)
    watch: Final = _iterating(Bridge.watch, Any)
    messages: Final = _iterating(Bridge.messages, Message)

    @_documented(Bridge.handoff)
    def handoff(
        self,
        *names: str,
        to: SyncBridge,  # typing cannot replace one parameter's type in a ParamSpec
        timeout: float | None = None,
        progress: bool | Report = False,
        max_bytes: int | None = None,
        trust: TrustName | None = None,
    ) -> Transfer:
        if not isinstance(to, SyncBridge):
            raise TypeError(f"to= must be a SyncBridge, not {type(to).__name__}")
        self._check()
        to._check()
        return _handoff(
            self,
            *names,
            to=to._bridge,
            timeout=timeout,
            progress=progress,
            max_bytes=max_bytes,
            trust=trust,
        )

    @_documented(Bridge.ref)
    def ref(self, expression: str) -> Ref:
        return Ref(self, self._bridge.ref(expression)._expression)

    @property
    @_documented(Bridge.state)
    def state(self) -> str:
        return self._bridge.state

    @property
    @_documented(Bridge.info)
    def info(self) -> Info:
        return self._bridge.info

    def __reduce__(self) -> Any:
        raise TypeError("a bridge cannot be pickled; open another one in the other process")

    def __repr__(self) -> str:
        return f"<Sync{repr(self._bridge)[1:]}"

    def _repr_html_(self) -> str:
        return bridge_html("SyncBridge", self.state, self.info)

    # ------------------------------------------------------------ a mapping of names

    def __getitem__(self, name: str) -> Any:
        return self.pull(name)

    def __setitem__(self, name: str, value: Any) -> None:
        self.push({name: value})

    def __delitem__(self, name: str) -> None:
        self.delete(name)

    def __iter__(self) -> Iterator[str]:
        return iter([entry.name for entry in self.names()])

    def __len__(self) -> int:
        return len(self.names())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.isidentifier() and self.exists(name)

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        # By identity: two bridges are not equal because their kernels have equal names.
        return True if self is other else NotImplemented

    # ------------------------------------------------------------ calls on the loop

    def _start(
        self, function: Callable[[], Awaitable[T]], on_end: Callable[[], object]
    ) -> LoopCall[T]:
        """Begin a call and return it; the caller waits for it in its own way."""
        self._check()
        try:
            return self._thread.start(LoopCall(function, on_end))
        except LoopEnded:
            raise _closed() from None

    def _wait(
        self, function: Callable[[], Awaitable[T]], callbacks: CallbackRunner | None = None
    ) -> T:
        self._check()
        try:
            return self._thread.wait(function, callbacks)
        except LoopEnded:
            raise _closed() from None

    def _check(self) -> None:
        if self._finalizer is not None and not self._finalizer.alive:
            raise _closed()


_handoff = _blocking(Bridge.handoff)


class _Blocking(Iterator[T]):
    """A blocking iterator over an async one.

    It is not a generator, because a generator ends with its first exception and a watch goes on.
    """

    def __init__(self, bridge: SyncBridge, stream: AsyncIterator[T]) -> None:
        self._bridge, self._stream = bridge, stream

    def __next__(self) -> T:
        try:
            return self._bridge._wait(self._stream.__anext__)
        except (StopAsyncIteration, BridgeClosed):
            raise StopIteration from None

    def __repr__(self) -> str:
        return repr(self._stream)


def _closed() -> BridgeClosed:
    return BridgeClosed("this bridge was closed")


_exits = threading.Event()  # set when Python exits


@functools.cache
def _notice_exit() -> None:
    """Have ``_exits`` set before the finalizers run: what was registered last runs first."""
    atexit.register(_exits.set)


def _drop(thread: LoopThread, bridge: Bridge, process: int) -> None:
    """Close a bridge that was garbage collected, or that is open when Python exits."""
    try:
        if os.getpid() == process and not _exits.is_set():
            warnings.warn(
                f"<Sync{repr(bridge)[1:]} was dropped and not closed; use 'with', or call close()",
                ResourceWarning,
                stacklevel=2,
            )
    finally:  # warnings may be errors
        _close(thread, bridge, process)


def _close(thread: LoopThread, bridge: Bridge, process: int) -> None:
    if os.getpid() == process:  # a forked child has neither the thread nor the kernel
        thread.close(bridge)


def _close_again(bridge: Bridge, process: int) -> None:
    """Close a bridge whose own loop may have ended with the first attempt."""

    async def closing() -> Bridge:
        return bridge

    if os.getpid() == process:
        thread, _ = loop_thread.open_on_shared_loop(closing)
        thread.close(bridge)
