"""The blocking ``SyncBridge``, for scripts, threads and notebook cells.

Rule: no logic and no signatures of its own. Each operation is one of ``Bridge``, run on the event
loop that all SyncBridges share, so it works both outside and inside a running event loop. Callbacks
run in the calling thread.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import inspect
import logging
import os
import re
import textwrap
import threading
import warnings
import weakref
from collections import deque
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import ModuleType, TracebackType
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar, overload

from bridgehead._bridge import loop_thread
from bridgehead._bridge.arguments import (
    OnTimeout,
    WhenFull,
    is_coroutine_function,
    options_of,
    takes_options,
)
from bridgehead._bridge.bridge import Bridge
from bridgehead._bridge.cell_stream import CellStream
from bridgehead._bridge.loop_thread import CallbackRunner, LoopCall, LoopEnded, LoopThread
from bridgehead._bridge.notebook import run_notebook
from bridgehead._bridge.progress import Report, drawing
from bridgehead._bridge.unopened import Opening
from bridgehead._connection.callbacks import Callback
from bridgehead._connection.tasks import RemoteTask
from bridgehead._connection.trust import TrustName
from bridgehead._errors import CLOSED, BridgeClosed
from bridgehead._kernels.discovery import DiscoveredKernel, kernels
from bridgehead._protocol.ref import Ref
from bridgehead._protocol.results import Info, Names, Result, Stats, Transfer, bridge_html
from bridgehead._transports.base import Transport
from bridgehead._transports.messages import Message
from bridgehead._transports.tasks import in_thread, noted_on

log = logging.getLogger("bridgehead")
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
    "Bridge.interrupt": ">>> kernel.interrupt()  # the kernel is idle: nothing happens",
    "WorkMethods.callback": """\
>>> import queue
>>> done = queue.SimpleQueue()
>>> report = kernel.callback(done.put)
>>> def work(report):
...     for step in range(3):
...         report(step)
>>> kernel.call(work, report)
>>> [done.get() for _ in range(3)]  # calls arrive soon
[0, 1, 2]""",
    "FleetWork.executor": ">>> kernels.executor().submit(abs, -1).result()\n1",
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
        _returns(opening, _owner(make.__func__), Self)
        return classmethod(opening)

    def _blocking(method):
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

    def _iterating(method, item):
        """Make an operation that returns an iterator which blocks until the next item."""

        @functools.wraps(method)
        def operation(self, /, *args, **kwargs):
            async def iterator():  # it has to be made on the loop
                return method(self._bridge, *args, **kwargs)

            return BlockingIterator(self, self._wait(iterator))

        _like(method, operation)
        _returns(operation, f"Iterator[{item.__name__}]", Iterator[item])
        return operation


def _like(method: Any, function: Any) -> None:
    """Give a function the name, signature and documentation of a method of ``Bridge``."""
    functools.update_wrapper(function, method)
    function.__qualname__ = f"{_owner(method)}.{method.__name__}"
    function.__module__ = __name__
    function.__doc__ = _documentation(method)


def _owner(method: Any) -> str:
    """Return the name of the class that blocks, for a method of ``Bridge`` or of ``Fleet``."""
    return "SyncFleet" if method.__qualname__.startswith("Fleet") else "SyncBridge"


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
    example = EXAMPLES.get(method.__qualname__)
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


def _own_ref(bridge: SyncBridge, ref: Ref) -> Ref:
    """Return a ref of this bridge, so that its pull() blocks too."""
    return Ref(bridge, ref._expression, ref._objects)


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


# ------------------------------------------------------------ what blocks


class SyncBase:
    """What ``SyncBridge`` and ``SyncFleet`` share: a bridge or a fleet on the shared loop."""

    # No __dict__, so that kernel.x = 1 raises: it would not push x.
    __slots__ = ("__weakref__", "_bridge", "_finalizer", "_process", "_thread")
    _bridge: Any
    _thread: LoopThread

    def _open(self, make: Callable[[], Awaitable[Any]]) -> None:
        """Open a bridge or a fleet, which ``close`` closes."""
        self._finalizer: weakref.finalize[..., Any] | None = None
        self._process = os.getpid()
        self._thread, self._bridge = loop_thread.open_on_shared_loop(make)
        self._finalizer = weakref.finalize(self, _drop, self._thread, self._bridge, self._process)
        _notice_exit()

    def _borrow(self, bridge: Any, thread: LoopThread) -> None:
        """Use a bridge or a fleet that another object closes."""
        self._finalizer, self._process = None, os.getpid()
        self._thread, self._bridge = thread, bridge

    def close(self) -> None:
        """Close it, unless another object does; see ``SyncBridge.close``."""
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

    def _own(self, value: Any) -> Any:
        """Return a result as this object's callers use it."""
        return value

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


class SyncTargets(SyncBase):
    """Several kernels that a handoff goes to: a ``SyncFleet``."""

    __slots__ = ()


# ------------------------------------------------------------ the bridge


class SyncBridge(SyncBase, MutableMapping[str, Any]):
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

    __slots__ = ()
    _bridge: Bridge

    def __init__(self, make: Callable[[], Awaitable[Bridge]]) -> None:
        self._open(make)

    def __enter__(self) -> Self:  # jedi finds the type of ``with``'s variable here, not in a base
        return self

    # ------------------------------------------------------------ opening

    # Final, because pyright accepts an inferred type of a public attribute only then.
    launch: Final = _opening(Bridge.launch)
    attach: Final = _opening(Bridge.attach)
    connect: Final = _opening(Bridge.connect)
    over: Final = _opening(Bridge.over)
    loopback: Final = _opening(Bridge.loopback)

    @staticmethod
    def kernels() -> list[DiscoveredKernel]:
        """Return the kernels that can be reached; see ``bridgehead.kernels``.

        >>> for found in SyncBridge.kernels():
        ...     print(found.state, found.where)
        """
        # In a thread of its own, because this thread may run an event loop.
        with ThreadPoolExecutor(1) as executor:
            return executor.submit(asyncio.run, kernels()).result()

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
        super().close()

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
    iterate: Final = _iterating(Bridge.iterate, Any)
    watch: Final = _iterating(Bridge.watch, Any)
    watch_names: Final = _iterating(Bridge.watch_names, Names)
    messages: Final = _iterating(Bridge.messages, Message)

    @overload
    def handoff(
        self,
        *names: str,
        to: SyncBridge,
        return_exceptions: bool = False,
        fail_fast: bool = False,
        timeout: float | None = None,
        progress: bool | Report = False,
        max_bytes: int | None = None,
        trust: TrustName | None = None,
    ) -> Transfer: ...

    @overload
    def handoff(
        self,
        *names: str,
        to: SyncTargets,
        return_exceptions: bool = False,
        fail_fast: bool = False,
        timeout: float | None = None,
        progress: bool | Report = False,
        max_bytes: int | None = None,
        trust: TrustName | None = None,
    ) -> list[Transfer]: ...

    @_documented(Bridge.handoff)
    def handoff(
        self,
        *names: str,
        to: SyncBridge | SyncTargets,  # typing cannot replace one parameter's type in a ParamSpec
        return_exceptions: bool = False,
        fail_fast: bool = False,
        timeout: float | None = None,
        progress: bool | Report = False,
        max_bytes: int | None = None,
        trust: TrustName | None = None,
    ) -> Transfer | list[Transfer]:
        if not isinstance(to, (SyncBridge, SyncTargets)):
            raise TypeError(f"to= must be a SyncBridge or a SyncFleet, not {type(to).__name__}")
        self._check()
        to._check()
        return _handoff(
            self,
            *names,
            to=to._bridge,
            return_exceptions=return_exceptions,
            fail_fast=fail_fast,
            timeout=timeout,
            progress=progress,
            max_bytes=max_bytes,
            trust=trust,
        )

    @_documented(Bridge.submit)
    @takes_options()
    def submit(
        self,
        function: Callable[..., Any],
        /,
        *args: Any,
        keep: str | bool | None = None,
        by_value: Sequence[ModuleType] = (),
        namespace: bool = False,
        on_output: Callable[[Message], object] | None = None,
        **kwargs: Any,
    ) -> SyncTask[Any]:
        async def start() -> SyncTask[Any]:
            options: Any = {"keep": keep, "by_value": by_value, "namespace": namespace}
            options["on_output"] = on_output
            work = self._bridge._work(function, args, kwargs, **options)
            return SyncTask(self, self._bridge._task(work))

        return self._wait(start)

    @_documented(Bridge.callback)
    def callback(
        self,
        function: Callable[..., object],
        maxsize: int | None = None,
        when_full: WhenFull = "drop_oldest",
    ) -> Callback:
        if is_coroutine_function(function):
            raise TypeError("the callback of a SyncBridge is a plain function, not an async one")

        async def make() -> Callback:
            called = _in_other_thread(function) if callable(function) else function
            return self._bridge.callback(called, maxsize, when_full)

        return self._wait(make)

    @_documented(Bridge.stream)
    def stream(
        self,
        code: str,
        *,
        max_output: int | None = None,
        store_history: bool = True,
        timeout: float | None = None,
        on_timeout: OnTimeout = "leave",
    ) -> SyncStream:
        options: Any = {"max_output": max_output, "store_history": store_history}

        async def start() -> CellStream:  # it has to be made on the loop
            return self._bridge.stream(code, timeout=timeout, on_timeout=on_timeout, **options)

        return SyncStream(self, self._wait(start))

    @_documented(Bridge.ref)
    def ref(self, expression: str) -> Ref:
        return _own_ref(self, self._bridge.ref(expression))

    def run_notebook(
        self,
        path: str | os.PathLike[str],
        *,
        parameters: Mapping[str, Any] | None = None,
        save: str | os.PathLike[str] | None = None,
        timeout: float | None = None,
    ) -> Any:
        r"""Run the code cells of a notebook, and return it; see ``bridgehead.run_notebook``.

        >>> notebook = kernel.run_notebook(path, parameters={"rows": [1, 2]})
        >>> notebook.cells[0].outputs[0].text
        '3\n'
        """
        options: Any = {"parameters": parameters, "save": save, "timeout": timeout}
        return self._wait(lambda: run_notebook(self._bridge, path, **options))

    @property
    @_documented(Bridge.state)
    def state(self) -> str:
        return self._bridge.state

    @property
    @_documented(Bridge.info)
    def info(self) -> Info:
        return self._bridge.info

    @property
    @_documented(Bridge.stats)
    def stats(self) -> Stats:
        return self._bridge.stats

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

    def _own(self, value: Any) -> Any:
        # One of this bridge, so that its pull() blocks, too.
        return _own_ref(self, value) if type(value) is Ref else value


_handoff = _blocking(Bridge.handoff)


class SyncTask(Future[T]):
    """A ``RemoteTask`` of a ``SyncBridge``: a ``concurrent.futures.Future``.

    ``concurrent.futures.wait`` and ``as_completed`` take it. ``cancel`` does what the
    ``RemoteTask``'s does. A failure that nothing ever looked at is logged.

    >>> task = kernel.submit(sum, [1, 2])
    >>> task.result(timeout=60)
    3
    """

    def __init__(self, bridge: SyncBase, task: RemoteTask[T]) -> None:
        """Follow a task; called on its loop."""
        super().__init__()
        self._bridge, self._task = bridge, task
        self._unseen: BaseException | None = None
        task.add_done_callback(self._settle)

    def __repr__(self) -> str:
        return repr(self._task).replace("RemoteTask", "SyncTask")

    def _settle(self, task: RemoteTask[T]) -> None:
        if task.cancelled():
            super().cancel()
            self.set_running_or_notify_cancel()
            return
        error = task.exception()
        if error is not None:
            self._unseen = error
            self.set_exception(error)
            return
        self.set_result(self._bridge._own(task.result()))

    def cancel(self) -> bool:
        """Cancel the work; return false if it is done already; see ``RemoteTask.cancel``.

        >>> kernel.submit(asyncio.sleep, 60).cancel()
        True
        """

        async def cancel() -> bool:
            return self._task.cancel()

        with contextlib.suppress(BridgeClosed):
            return self._bridge._wait(cancel)
        return False

    def result(self, timeout: float | None = None) -> T:
        """Wait for the result and return it, or raise the exception.

        Raises:
            TimeoutError: it is not done after so many seconds.
            concurrent.futures.CancelledError: it was cancelled.
            NotSupported: it is not done, and the caller is a callback for which the kernel may
                wait.
            RuntimeError: it is not done, and the caller is a done callback of another task, or
                another function that runs in the event-loop thread of all SyncBridges.

        >>> kernel.submit(sum, [1, 2]).result(timeout=60)
        3
        """
        with self._looked_at():
            return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the exception and return it, or None if there is a result; see ``result``.

        >>> kernel.submit(sum, [1, 2]).exception(timeout=60) is None
        True
        """
        with self._looked_at():
            return super().exception(timeout)

    @contextmanager
    def _looked_at(self) -> Iterator[None]:
        if not self.done():
            self._bridge._thread.check_caller()
            self._task._check_wait()
        try:
            yield
        finally:
            if self.done():
                self._unseen = None

    def __del__(self) -> None:
        if self._unseen is not None:
            log.error("the exception of %r was never retrieved", self, exc_info=self._unseen)

    def running(self) -> bool:
        """Return whether it is not done; it may not have begun in the kernel.

        >>> kernel.submit(asyncio.sleep, 60).running()
        True
        """
        return not self.done()


class BlockingIterator(Iterator[T]):
    """A blocking iterator over an async one.

    It is not a generator, because a generator ends with its first exception and a watch goes on.
    """

    def __init__(self, bridge: SyncBase, stream: AsyncIterator[T]) -> None:
        self._bridge, self._stream = bridge, stream
        self._arrived: deque[T] = deque()  # items that came with an earlier one

    def __next__(self) -> T:
        while True:
            with contextlib.suppress(IndexError):  # another thread may take the last one
                return self._arrived.popleft()
            try:
                is_more = self._bridge._wait(self._take)
            except BridgeClosed:
                if self._takes_all:  # a caller would take the items for all that there are
                    raise
                is_more = False
            if not is_more:
                raise StopIteration

    @property
    def _takes_all(self) -> bool:
        return hasattr(self._stream, "take")

    async def _take(self) -> bool:
        """Wait for the next items; return false if there are no more.

        This is on the loop: an interrupt of the calling thread would lose them.
        """
        stream: Any = self._stream
        try:
            items = await stream.take() if self._takes_all else [await anext(stream)]
        except StopAsyncIteration:
            return False
        self._arrived.extend(items)
        return bool(items)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with noted_on(exc_info[1] if isinstance(exc_info[1], BaseException) else None):
            self.close()

    def close(self) -> None:
        """End the iteration, in the kernel too; for one of ``iterate``, see ``Iteration.aclose``.

        >>> outputs = kernel.stream("6 * 7")
        >>> outputs.close()
        >>> list(outputs)
        []
        """
        close = getattr(self._stream, "aclose", None)
        self._arrived.clear()
        with contextlib.suppress(BridgeClosed):
            if close is not None:
                self._bridge._wait(close)

    def __repr__(self) -> str:
        return repr(self._stream)


def _in_other_thread(function: Callable[..., object]) -> Callable[..., object]:
    """Return a function that runs another one outside the thread of the event loop."""

    def call(*args: Any, **kwargs: Any) -> object:
        outcome = function(*args, **kwargs)
        if inspect.iscoroutine(outcome):
            outcome.close()
            raise TypeError(
                "the callback of a SyncBridge is a plain function, and this one returned a "
                "coroutine, which did not run; pass a function that does the work itself"
            )
        return outcome

    @functools.wraps(function, updated=())
    def run(*args: Any, **kwargs: Any) -> object:
        return in_thread(functools.partial(call, *args, **kwargs))

    return run


class SyncStream(BlockingIterator[Message]):
    """A ``CellStream`` of a ``SyncBridge``: an iterator that blocks until the next output.

    >>> with kernel.stream("print('at work', end='')") as outputs:
    ...     for message in outputs:
    ...         print(message)
    <stream at work>
    >>> outputs.result
    <Result [1] no value, 7 characters printed>
    """

    def __init__(self, bridge: SyncBridge, stream: CellStream) -> None:
        super().__init__(bridge, stream)
        self._cell = stream

    @property
    def result(self) -> Result:
        """The ``Result`` of the cell, as ``SyncBridge.run`` returns it; or its error is raised.

        Raises:
            asyncio.InvalidStateError: the cell has not ended.

        >>> with kernel.stream("6 * 7") as outputs:
        ...     for message in outputs: pass
        >>> outputs.result.data["text/plain"]
        '42'
        """
        return self._cell.result

    def __repr__(self) -> str:
        return repr(self._stream).replace("CellStream", "SyncStream")


def _closed() -> BridgeClosed:
    return BridgeClosed(CLOSED)


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
