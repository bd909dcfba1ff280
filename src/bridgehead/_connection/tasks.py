"""Work in the kernel that this program waits for, or does not.

Rule: the outcome of a coroutine that runs on the kernel's event loop, and ``RemoteTask``, a handle
on work of any kind. What the kernel runs is in ``_shipped/remote/tasks.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from typing import Any, Generic, TypeVar

from bridgehead._connection.async_items import AsyncItems
from bridgehead._connection.call import Call
from bridgehead._connection.connection import Connection
from bridgehead._connection.outputs import TaskOutputs
from bridgehead._connection.queue import Turn
from bridgehead._connection.resources import SENDINGS, RemoteResource
from bridgehead._errors import (
    CLOSED_MEANWHILE,
    BridgeClosed,
    BridgeError,
    KernelRestarted,
    ReplyLost,
)
from bridgehead._protocol.formatting import line
from bridgehead._protocol.response import Response

T = TypeVar("T")


class Outcome(RemoteResource):
    """The outcome of a coroutine that runs in the kernel."""

    kind = "tasks"

    def __init__(self, connection: Connection, call: Call) -> None:
        super().__init__(connection.resources, call.limit)
        self._report, self._any_process = call.report, call.any_process
        self._outputs = call.outputs if isinstance(call.outputs, TaskOutputs) else None
        self._life = connection.transport.life
        self._event: asyncio.Future[Response] = self._life.waiter()

    def take(self, event: Response | BridgeError) -> None:
        if self._event.done():
            return
        if isinstance(event, BridgeError):
            self._event.set_exception(event)
        else:
            self._event.set_result(event)

    def end(self) -> None:
        # If the remote part is found missing before it has the task, the request is sent again.
        was_known = self.is_known
        super().end()
        if was_known and not self._event.done():
            self._event.set_exception(
                ReplyLost("the kernel does not have this task any more; it may have run")
            )

    def leave(self) -> None:
        """Wait no more."""
        self._event.cancel()

    async def response(self, *, trusted: bool) -> Response:
        """Wait for the outcome, and return it or raise its error."""
        if self._outputs is not None:
            self._outputs.started()
        for attempt in range(SENDINGS):
            event = await self._event
            if self._outputs is not None:
                self._outputs.finished()
            try:
                return await self.resources.fetch(
                    event,
                    self.limit,
                    trusted=trusted,
                    report=self._report,
                    any_process=self._any_process,
                )
            except ReplyLost:
                if attempt == SENDINGS - 1 or not self.is_known:  # a restart ended it meanwhile
                    raise
                self._event = self._life.waiter()
                self.note_lost(event)
        raise AssertionError


async def coroutine_response(
    connection: Connection, call: Call, turn: Turn, kind: type[Outcome] = Outcome
) -> Response:
    """Have the kernel start a coroutine in its turn; wait for its outcome, and return it.

    Whatever ends the wait cancels the coroutine in the kernel. ``kind`` of outcome says how it is
    counted.
    """
    outcome = kind(connection, call)
    connection.resources.enter(outcome)
    call.fields.update(connection.resources.fields(outcome))
    try:
        with connection.reporting_restart(call):
            await connection.do(call, turn)
            turn.leave()
            connection.resources.made(outcome)
            return await outcome.response(trusted=connection.trusts(call))
    finally:
        connection.resources.leave(outcome)


async def _until_closed(work: Callable[[], Awaitable[T]], connection: Connection) -> T:
    """Do work that closing the bridge cancels; raise ``BridgeClosed`` then."""
    try:
        return await work()
    except asyncio.CancelledError:
        if connection.transport.life.state == "closed":
            raise BridgeClosed(CLOSED_MEANWHILE) from None
        raise


class RemoteTask(Generic[T]):
    """Work that the kernel was given, as an ``asyncio.Task`` of this program.

    Await it any number of times, in the event loop of its bridge: it returns what the function
    returned, or raises what ``Bridge.call`` would raise. Cancelling a caller that awaits it does
    nothing to the work; ``cancel`` does. A task that is not kept runs all the same, and asyncio
    logs a failure that nothing ever looked at.

        >>> task = bridge.submit(sum, [1, 2])
        >>> await task
        3
        >>> task
        <RemoteTask sum, done>
    """

    def __init__(
        self,
        connection: Connection,
        call: Call,
        work: Callable[[Turn], Coroutine[Any, Any, T]],
        name: str,
    ) -> None:
        """Take the turn of the call now, and do the ``work`` in it."""
        self._call, self._name, self._connection = call, name, connection
        call.is_unattended = True
        turn = Turn(connection.queue)
        turn.__enter__()
        self._work: asyncio.Task[T] = connection.transport.tasks.start(
            _until_closed(lambda: work(turn), connection)
        )
        # Not in the coroutine: a task that is cancelled before its first step runs none of it.
        self._work.add_done_callback(lambda work: self._ended(turn))

    def _ended(self, turn: Turn) -> None:
        turn.__exit__(None, None, None)
        self._call.source = self._call.payload = None  # a task that is kept keeps no arguments

    def __await__(self) -> Generator[Any, None, T]:
        return self._wait().__await__()

    async def _wait(self) -> T:
        if not self.done():
            self._connection.check_caller()
            self._check_wait()
        try:
            return await asyncio.shield(self._work)
        except KernelRestarted:
            self._note_reported()
            raise

    def _note_reported(self) -> None:
        """Note that a caller gets its ``KernelRestarted``."""
        if self._call.is_unattended:  # this caller is the first to get this error
            self._call.is_unattended = False
            self._connection.remote.restart_reported()

    def _check_wait(self) -> None:
        """Raise ``NotSupported`` in a callback for which the kernel may wait; for any thread."""
        self._connection.queue.check_wait()

    def __repr__(self) -> str:
        state = "cancelled" if self.cancelled() else "done" if self.done() else "running"
        return f"<RemoteTask {line(self._name)}, {state}>"

    def done(self) -> bool:
        """Return whether it has a result or an exception, or was cancelled.

        >>> bridge.submit(sum, [1, 2]).done()
        False
        """
        return self._work.done()

    def cancelled(self) -> bool:
        """Return whether it was cancelled.

        >>> task = bridge.submit(sum, [1, 2])
        >>> task.cancelled()
        False
        """
        return self._work.cancelled()

    def cancel(self) -> bool:
        """Cancel the work; return false if it is done already.

        Work that was not sent, or has not begun in the kernel, never runs, and nothing is
        interrupted. A function that runs is interrupted, and a coroutine is cancelled; nothing else
        is. A function goes on where ``Bridge.interrupt`` is ``NotSupported``. Awaiting the task
        then raises ``CancelledError`` at once.

        >>> task = bridge.submit(sum, [1, 2])
        >>> task.cancel()
        True
        """
        if self._work.done():
            return False
        self._call.interrupts = True
        return self._work.cancel()

    def result(self) -> T:
        """Return the result, or raise the exception.

        Raises:
            asyncio.InvalidStateError: it is not done.
            asyncio.CancelledError: it was cancelled.

        >>> task = bridge.submit(sum, [1, 2])
        >>> await task
        3
        >>> task.result()
        3
        """
        return self._work.result()

    def exception(self) -> BaseException | None:
        """Return the exception, or None if there is a result.

        Raises:
            asyncio.InvalidStateError: it is not done.
            asyncio.CancelledError: it was cancelled.

        >>> task = bridge.submit(sum, [1, 2])
        >>> await task
        3
        >>> task.exception() is None
        True
        """
        return self._work.exception()

    def add_done_callback(self, function: Callable[[RemoteTask[T]], object]) -> None:
        """Have a function called with this task when it is done, soon if it is done already.

        >>> task = bridge.submit(sum, [1, 2])
        >>> task.add_done_callback(lambda task: print("the result is", task.result()))
        >>> await task
        the result is 3
        3
        """
        self._work.add_done_callback(lambda work: function(self))


class CompletedTasks(AsyncItems[RemoteTask[T]]):
    """An async iterator over tasks as they end; see ``as_completed``.

    >>> tasks = [bridge.submit(abs, -1), other.submit(abs, -2)]
    >>> async with as_completed(tasks) as ended:
    ...     print(sorted([task.result() async for task in ended]))
    [1, 2]
    """

    def __init__(self, tasks: Iterable[RemoteTask[T]]) -> None:
        self._ended: asyncio.Queue[RemoteTask[T] | None] = asyncio.Queue()
        # A task that is given twice ends once.
        self._left = dict.fromkeys(tasks)
        for task in self._left:
            task.add_done_callback(self._ended.put_nowait)

    def __repr__(self) -> str:
        return f"<CompletedTasks, {len(self._left)} left>"

    async def __anext__(self) -> RemoteTask[T]:
        if not self._left:
            raise StopAsyncIteration
        task = await self._ended.get()
        if task is not None and self._left.pop(task, self) is not self:
            if not self._left:
                self._ended.put_nowait(None)  # others may wait for the last one
            return task
        self._ended.put_nowait(None)  # it was closed, or that was the last one
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End the iteration; the tasks go on.

        >>> ended = as_completed([bridge.submit(abs, -1)])
        >>> await ended.aclose()
        >>> ended
        <CompletedTasks, 0 left>
        """
        self._left.clear()
        self._ended.put_nowait(None)


def as_completed(tasks: Iterable[RemoteTask[T]]) -> CompletedTasks[T]:
    """Return an async iterator over tasks, of any bridges, in the order in which they end.

    It gives the tasks themselves, those that failed or were cancelled too: their ``result()``
    raises. Cancelling a wait, and leaving the iterator, do nothing to the tasks.

    >>> tasks = [bridge.submit(abs, -1), other.submit(abs, -2)]
    >>> async with as_completed(tasks) as ended:
    ...     async for task in ended:
    ...         assert task.done()
    """
    return CompletedTasks(tasks)
