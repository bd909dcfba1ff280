"""Coroutines on the kernel's event loop, which an interrupt ends alone.

Rule: use the standard library only, and run on Python 3.8 and later. This file knows coroutines,
signals and the event loop. It knows no request and no client.

Facts this file rests on, measured with ipykernel 6.31 and 7.4:

- ``create_task`` works while a request is served. The task runs between requests, and while a cell
  awaits.
- A ``KeyboardInterrupt`` or ``SystemExit`` that leaves a step of any task ends the kernel: asyncio
  raises it out of the event loop.
- ``signal.signal`` is Python code. A handler that raises at once, whatever line it interrupts,
  ended the kernel after 1 to 167 signals. One that raises only in the user's code survived 500.

So each step of a coroutine has a handler of its own for SIGINT, which raises only in the code of
the coroutine. What would end the kernel, also in a task that this one has started, ends the task.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Coroutine
from contextvars import ContextVar
from typing import Any

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.remote.cell_guard import this_thread

_signal, _getsignal = signal.signal, signal.getsignal
# The root of the task that runs; it is inherited by the tasks that this one starts.
_root: ContextVar[Any] = ContextVar("bridgehead_task", default=None)


class Root:
    """A task that was started for a client.

    Attributes:
        parent: what its outputs name as their request; none if that is not known.
        task: asyncio's task, once it is made.
        ended_by: the ``KeyboardInterrupt`` or ``SystemExit`` that ended it.
    """

    def __init__(self) -> None:
        outer = running_root()
        self.parent: Any = None if outer is None else outer.parent
        self.task: Any = None
        self.ended_by: BaseException | None = None

    def end(self, error: BaseException) -> None:
        """Cancel the task, because of an error in it or in a task that it started."""
        self.ended_by = self.ended_by or error
        self.task.cancel()


def running_root() -> Root | None:
    """Return the root of the task that runs, also in a task that this one has started."""
    root: Root | None = _root.get()
    return root


class Driver(Coroutine):  # type: ignore[type-arg]
    """A coroutine that an interrupt cancels, in place of the kernel."""

    def __init__(self, coroutine: Any, root: Root) -> None:
        self.cr_coroutine, self.root = coroutine, root
        self.__name__ = getattr(coroutine, "__name__", "coroutine")
        self.__qualname__ = getattr(coroutine, "__qualname__", "coroutine")

    def send(self, value: Any) -> Any:
        if self.root.task is None:
            # A user's eager task factory takes the first step inside the request that starts the
            # task. An interrupt has no task to end yet, so the loop takes the step soon after.
            return None
        return self._step(self.cr_coroutine.send, value)

    def throw(self, *error: Any) -> Any:
        return self._step(self.cr_coroutine.throw, *error)

    def close(self) -> None:
        self.cr_coroutine.close()

    def __await__(self) -> Any:
        return self.cr_coroutine.__await__()

    def _step(self, step: Any, *args: Any) -> Any:
        """Take one step; raise what may leave a task's step."""
        handler = StepHandler()
        try:
            return handler.run(step, args)
        except (KeyboardInterrupt, SystemExit) as error:
            self.root.end(error)
            raise cancelled_error() from None
        finally:
            handler.put_back()
            if handler.came and self.root.ended_by is None:  # at the very ends of the step
                self.root.end(KeyboardInterrupt())


class StepHandler:
    """The handler of SIGINT during one step of code that the event loop calls."""

    def __init__(self) -> None:
        self.is_armed = self.came = False
        self._users: Any = None
        if this_thread() == threading.main_thread().ident:
            self._users = _getsignal(signal.SIGINT)  # None: Python cannot put that one back
        if self._users is not None:
            _signal(signal.SIGINT, self._handle)

    def run(self, step: Any, args: Any) -> Any:
        try:
            self.is_armed = True
            return step(*args)
        finally:
            self.is_armed = False

    def put_back(self) -> None:
        if self._users is not None:
            _signal(signal.SIGINT, self._users)

    def _handle(self, number: int, frame: Any) -> None:
        if self.is_armed and frame is not None and frame.f_code is not StepHandler.run.__code__:
            raise KeyboardInterrupt
        self.came = True


def cancelled_error() -> BaseException:
    """Return the error of a task that is cancelled; asyncio is loaded where there are tasks."""
    error: BaseException = sys.modules["asyncio"].CancelledError()
    return error


class TaskFactory:
    """The loop's task factory while there are tasks of ours: what they start is driven, too."""

    def __init__(self) -> None:
        self._loop: Any = None
        self._users: Any = None

    def install(self, loop: Any) -> None:
        """Replace the factory of a loop, which the user may have set."""
        if self._loop is None:
            self._loop, self._users = loop, loop.get_task_factory()
            loop.set_task_factory(self)

    def remove(self) -> None:
        """Put the user's factory back, unless the user has set another one meanwhile."""
        loop, self._loop = self._loop, None
        if loop is not None and loop.get_task_factory() is self:
            loop.set_task_factory(self._users)

    def __call__(self, loop: Any, coroutine: Any, **options: Any) -> Any:
        context = options.get("context")
        root = _root.get() if context is None else context.get(_root)
        if root is not None and not isinstance(coroutine, Driver) and hasattr(coroutine, "send"):
            coroutine = Driver(coroutine, root)
        if self._users is not None:
            return self._users(loop, coroutine, **options)
        return sys.modules["asyncio"].Task(coroutine, loop=loop, **options)

    def start(self, coroutine: Any) -> Root:
        """Start a task for a client."""
        root = Root()
        before = _root.set(root)  # the task copies the context
        try:
            root.task = self._loop.create_task(Driver(coroutine, root))
        finally:
            _root.reset(before)
        return root
