"""Iterations: what a client iterates over, item by item, in the kernel.

Rule: use the standard library only, and run on Python 3.8 and later. A request makes the items of
one batch: those of a plain iterator in the thread of the cells. All items of an async one are made
by one task, that of a ``Producer``, and a task for each batch asks for them: a generator may hold a
timeout, a task group or a context variable over a ``yield``. An item is pickled when it is made, so
it arrives as it was then. The last batch is kept until the client asks for the next one, because
its response may be lost.

A client that waits until an iterator is closed asks how far that is, again and again. The iteration
stays in the table meanwhile, with what closing raised.
"""

from __future__ import annotations

import builtins
import sys
from time import monotonic
from typing import Any, Callable, Sequence

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.remote.coroutines import Root, StepHandler, cancelled_error
    from bridgehead._shipped.remote.kernel import Kernel
    from bridgehead._shipped.remote.namespace import error_response
    from bridgehead._shipped.remote.operations import Operations
    from bridgehead._shipped.remote.resources import Resource, ResourceTable
    from bridgehead._shipped.remote.tasks import TaskTable
    from bridgehead._shipped.wire.digest import Buffer
    from bridgehead._shipped.wire.errors import WireError
    from bridgehead._shipped.wire.frames import snapshot
    from bridgehead._shipped.wire.header import HeaderAndFrames, RequestHeader, ResponseHeader

BATCH_SECONDS = 0.01  # after this time, an item ends its batch
BATCH_BYTES = 1 << 20  # so does one with which the batch has so many bytes
SCALARS = (int, float, bool, str, bytes, type(None))  # cannot change; pickled with their batch


class Pickled:
    """An item that was pickled when it was made."""

    def __init__(self, frames: list[memoryview]) -> None:
        self.frames = frames


class Producer:
    """The task that makes the items of an async iterator, and closes the iterator.

    An item is made when it is asked for. Each side waits for a future of the other one: ``_item``
    is that of the item which is being made, or was made and not taken.
    """

    def __init__(self, tasks: TaskTable, iterator: Any, close: Any) -> None:
        """``close`` is the function that closes the iterator, or None."""
        self._tasks, self._iterator, self._close = tasks, iterator, close
        self._loop = tasks.require_loop()
        self._root: Root | None = None
        self._item: Any = None
        self._asked: Any = None  # what the task waits for, between two items
        self._error: BaseException | None = None  # that ended the iterator
        self._close_error: BaseException | None = None  # that closing it raised
        self._is_closed = False
        self.is_closing = False  # its last step has ended

    def ask(self) -> Any:
        """Have the next item made, unless it is being made; return a future for ``take``."""
        if self._item is None:
            self._item = self._loop.create_future()
            self._go_on()
        return self._item

    def take(self) -> tuple[Any, ...]:
        """Return the item whose future is done, in a tuple that is empty at the end."""
        item, self._item = self._item, None
        made, error = item.result()
        if error is not None:
            raise error
        found: tuple[Any, ...] = made
        return found

    def close(self, closed: Callable[[BaseException | None], object]) -> None:
        """Have the iterator closed; a step that runs is cancelled.

        ``closed`` is called when that is done, with what closing raised.
        """
        self._is_closed = True
        if self._root is None or self._asked is not None:
            self._go_on()
        elif not self.is_closing:
            self._root.task.cancel()
        if self._root is not None:
            self._root.task.add_done_callback(lambda task: closed(self._close_error))

    def _go_on(self) -> None:
        if self._root is None:
            self._root = self._tasks.start_alone(self._run())
            self._root.task.add_done_callback(self._ended)
        elif self._root.task.done():
            self._ended(self._root.task)
        elif self._asked is not None and not self._asked.done():
            self._asked.set_result(None)

    def _give(self, made: tuple[Any, ...], error: BaseException | None = None) -> None:
        if self._item is None:  # a step that was not asked for: see ``_next_step``
            self._item = self._loop.create_future()
        if not self._item.done():
            self._item.set_result((made, error))

    def _ended(self, task: Any) -> None:
        """Give what ended the task to the batch that waits for an item."""
        if self._item is not None and self._root is not None:
            self._give((), self._root.ended_by or self._error or cancelled_error())

    async def _run(self) -> None:
        try:
            step = None if self._is_closed else self._iterator.__anext__()
            while step is not None:
                try:
                    self._give((await step,))
                except StopAsyncIteration:
                    self._give(())
                    return
                step = await self._next_step()
        except BaseException as error:  # an interrupt and an exit, too, are the iterator's
            self._error = error
            if self._is_closed:
                self._close_error = raised_in_interrupt(error)
        finally:
            self.is_closing = True
            try:
                if self._close is not None:
                    await self._close()
            except BaseException as error:
                self._close_error = error

    async def _next_step(self) -> Any:
        """Wait until an item is asked for; return the step that makes it, or None to close."""
        if self._is_closed:
            return None
        self._asked = self._loop.create_future()
        try:
            await self._asked
        except BaseException as error:
            # An ``asyncio.timeout`` or a task group around the ``yield`` cancels this task.
            throw = getattr(self._iterator, "athrow", None)
            if throw is None or self._root is None or self._root.ended_by is not None:
                raise
            return throw(error)
        finally:
            self._asked = None
        return None if self._is_closed else self._iterator.__anext__()


class RunningIteration(Resource):
    """An iterator, and the batch of items that was made last.

    Attributes:
        number: of the batch that is being made, or was made last.
        items: its items so far; another thread may read them while they are made.
        request: the id of the request that makes it, of a plain iterator.
        is_awaited: whether the client waits until the iterator is closed.
    """

    def __init__(self, header: RequestHeader, iterations: IterationTable, source: Any) -> None:
        super().__init__(header)
        self.iterations = iterations
        self.is_async = hasattr(source, "__aiter__")
        self.iterator: Any = source.__aiter__() if self.is_async else iter(source)
        is_own = source is not self.iterator or not header.get("expressions")
        if self.is_async:
            is_own = is_own or hasattr(self.iterator, "athrow")
            close = getattr(self.iterator, "aclose", None)
        else:
            is_own = is_own or hasattr(self.iterator, "throw")
            close = getattr(self.iterator, "close", None)
        # A file that an expression names, and that is its own iterator, is the user's.
        self._close: Any = close if is_own else None
        self.producer: Producer | None = None  # of an async iterator
        if self.is_async:
            self.producer = Producer(iterations.tasks, self.iterator, self._close)
        self.number = 0
        self.request = ""
        self.is_making = False
        self.items: list[Any] = []
        self.failure: HeaderAndFrames | None = None
        self.is_ended = False
        self.is_awaited = self._is_closing = self._is_closed = False
        self._error: BaseException | None = None  # that ended the iterator
        self._close_error: BaseException | None = None  # that closing raised, if no client has it
        self._close_failure: HeaderAndFrames | None = None  # the same, for the client
        self._until, self._most, self._nbytes, self._taken = 0.0, 0, 0, 0
        self._made: Any = None  # set when the batch of an async iterator is made

    # ------------------------------------------------------------ closing

    def end(self) -> None:
        """Close the iterator; no client waits for that any more."""
        self.is_awaited = False
        error, self._close_error = self._close_error, None
        if error is not None:
            DroppedError(error)
        self.close()

    def close(self) -> None:
        """Close the iterator, which runs the ``finally`` of a generator; once is enough."""
        if self._is_closing:
            return
        self._is_closing = self.is_ended = True
        error: BaseException | None = None
        handler = StepHandler()  # between two requests, ipykernel ignores an interrupt
        try:
            if self.producer is not None:
                self.producer.close(self._closed)
                return
            if self._close is not None:
                handler.run(self._close, ())
        except BaseException as raised:
            error = raised
        finally:
            handler.put_back()
        if error is None and self.is_awaited:  # no batch brings the error of the step that was left
            error = raised_in_interrupt(self._error)
        self._closed(error)

    def _closed(self, error: BaseException | None) -> None:
        try:
            if error is None or is_end(error):
                return
            if self.is_awaited:
                response, frames = error_response(error)
                self._close_error, self._close_failure = error, (response, snapshot(frames))
            else:
                DroppedError(error)
        finally:  # the client waits for this, whatever hits the lines above
            self._error = None
            self._is_closed = True

    def closing(self) -> HeaderAndFrames:
        """Say how far closing is, and what it raised; any thread may ask."""
        if not self._is_closed:
            begun = self._is_closing and (self.producer is None or self.producer.is_closing)
            return {"closing": "begun" if begun else "waits"}, []
        self._close_error = None
        if self._close_failure is None:
            return {"closing": "done"}, []
        failed, frames = self._close_failure
        return {"closing": "done", "failure": failed["error"]}, frames

    # ------------------------------------------------------------ a batch

    def make(self, most: int) -> None:
        """Make the items of the next batch, of a plain iterator."""
        self._begin(most)
        try:
            for value in self.iterator:
                if self._add(value):
                    return
            self.is_ended = True
        except BaseException as error:
            self._error, self.failure = error, error_response(error)

    async def make_async(self, producer: Producer, most: int) -> None:
        """Make the items of the next batch, of an async iterator.

        If this batch is cancelled, the item that is being made comes with a later one.
        """
        self._begin(most)
        self._made = sys.modules["asyncio"].Event()
        try:
            await self._make_async(producer)
        finally:
            self.is_making = False
            self._made.set()

    def has_begun(self, number: int) -> bool:
        """Return whether a batch was made or is being made, or whether none follows."""
        return number <= self.number or self.is_ended

    async def until_made(self) -> None:
        """Wait until no batch of an async iterator is being made."""
        if self.is_making:
            await self._made.wait()

    async def _make_async(self, producer: Producer) -> None:
        wait = sys.modules["asyncio"].wait
        while True:
            item = producer.ask()
            left = max(0.0, self._until - monotonic()) if self.items else None
            await wait([item], timeout=left)
            if not item.done():
                return
            try:
                one = producer.take()
                if not one:
                    self.is_ended = True
                if not one or self._add(one[0]):
                    return
            except BaseException as error:
                self.failure = error_response(error)
                return

    def _begin(self, most: int) -> None:
        """Begin a batch; the first one of an iteration is short."""
        seconds = BATCH_SECONDS if self.number else BATCH_SECONDS / 10
        self._until, self._most, self._nbytes = monotonic() + seconds, most, 0
        self.items, self._taken = [], 0
        self.is_making = True
        self.number += 1

    def _add(self, value: Any) -> bool:
        """Add an item to the batch; return whether that ends the batch."""
        is_scalar = type(value) in SCALARS
        frames = [] if is_scalar else self._encode((value,))
        if is_scalar:
            self._nbytes += scalar_nbytes(value)
        else:
            self._nbytes += sum(frame.nbytes for frame in frames)
        is_last = (
            self._nbytes >= BATCH_BYTES
            or len(self.items) + 1 >= self._most
            or monotonic() >= self._until
        )
        if is_scalar:
            self.items.append(value)
        else:
            # Nothing of the iterator's runs before the response to the last item is made.
            self.items.append(Pickled(frames if is_last else snapshot(frames)))
        return is_last

    def _encode(self, values: tuple[Any, ...]) -> list[memoryview]:
        paths = ["the item"] * len(values)
        return self.iterations.operations.values.encode(self.header, values, paths, True)[0]

    def response(self, have: int, *, is_whole: bool = True) -> HeaderAndFrames:
        """Return the items of the batch from the one at ``have`` on."""
        groups, frames = grouped(self.items[have:], self._encode)
        response: ResponseHeader = {"groups": groups, "first": have, "number": self.number}
        if is_whole and self.failure is not None:
            failed, parts = self.failure
            response = {**response, "failure": failed["error"]}
            frames += parts
        if is_whole:
            response = {**response, "ended": self.is_ended or self.failure is not None}
        return response, frames

    def take(self) -> HeaderAndFrames:
        """Return the items of the batch that were not taken before, while it is being made."""
        taken = self._taken
        self._taken = len(self.items) if self.is_making else taken
        response, frames = self.response(taken, is_whole=False)
        return (response, frames) if self.is_making else ({**response, "groups": []}, [])

    def rest(self) -> HeaderAndFrames:
        """Return the items of the batch that were not taken."""
        return self.response(self._taken)


def scalar_nbytes(value: Any) -> int:
    """Return how many bytes a scalar has, more or less; an integer may have any number."""
    if type(value) is int:
        return 8 + value.bit_length() // 8
    return len(value) if type(value) in (str, bytes) else 8


def grouped(items: list[Any], encode: Any) -> tuple[list[list[int]], list[memoryview]]:
    """Return the frames of items; neighbouring scalars are pickled together.

    The groups say how many items and frames belong to each pickle.
    """
    at, groups = 0, []
    frames: list[memoryview] = []
    while at < len(items):
        end = at + 1
        if isinstance(items[at], Pickled):
            parts = items[at].frames
        else:
            while end < len(items) and not isinstance(items[end], Pickled):
                end += 1
            parts = encode(tuple(items[at:end]))
        groups.append([end - at, len(parts)])
        frames += parts
        at = end
    return groups, frames


class DroppedError:
    """Has Python report an error and ignore it, as that of a generator which is dropped.

    Only what ``__del__`` raises does that. ``sys.unraisablehook`` takes objects that only the
    interpreter can make.
    """

    def __init__(self, error: BaseException) -> None:
        self.error: BaseException | None = error

    def __del__(self) -> None:
        try:
            if self.error is not None:
                raise self.error
        finally:
            self.error = None  # which refers to this frame


class IterationTable:
    """The iterations of one namespace."""

    def __init__(
        self,
        kernel: Kernel,
        operations: Operations,
        resources: ResourceTable,
        tasks: TaskTable,
    ) -> None:
        self.kernel, self.operations, self.resources = kernel, operations, resources
        self.tasks = tasks

    def iterate(self, header: RequestHeader, frames: Sequence[Buffer]) -> HeaderAndFrames:
        """Begin to iterate over what an expression or a function gives."""
        self.resources.check_closed(header)
        if header.get("expressions"):
            objects = self.operations.decode(header, frames, dict) if frames else None
            values, expression = self.operations.values, header["expressions"][0]
            values.require_names([expression], values.kept_in(expression))
            source = values.evaluate(expression, objects)
        else:
            source = self.operations.run_function(header, frames)
        if hasattr(source, "__aiter__"):
            self.resources.check(header)
        iteration = RunningIteration(header, self, source)
        self.resources.add(iteration)
        return {"is_async": iteration.is_async}, []

    def _find(self, header: RequestHeader) -> RunningIteration:
        found = self.resources.known.get(header["iteration"])
        if not isinstance(found, RunningIteration):
            raise WireError("lost", "the kernel does not have this iteration any more")
        return found

    def advance(self, header: RequestHeader, frames: Sequence[Buffer]) -> HeaderAndFrames:
        """Make a batch of items, unless it was made before; respond with them."""
        iteration, number = self._find(header), header["batch"]
        self.resources.note_owner(header)
        have = header.get("have") or 0
        producer = iteration.producer
        if producer is not None:

            async def make() -> HeaderAndFrames:
                if iteration.has_begun(number):
                    # The request whose response was lost may be making it still.
                    await iteration.until_made()
                    return iteration.response(have)
                await iteration.make_async(producer, header["most"])
                return iteration.rest()

            return self.tasks.start_with(header, make(), lambda made: made)
        if iteration.has_begun(number):
            return iteration.response(have)
        iteration.request = header["id"]
        try:
            self.kernel.run_interruptibly(header["id"], lambda: iteration.make(header["most"]))
        finally:
            iteration.is_making = False
        return iteration.rest()

    def take(self, header: RequestHeader, frames: Sequence[Buffer]) -> HeaderAndFrames:
        """Respond with the items of a batch that is being made; any thread serves this."""
        iteration = self._find(header)
        if iteration.number != header["batch"]:
            return {"groups": [], "first": 0, "number": iteration.number}, []
        return iteration.take()

    def finish(self, header: RequestHeader, frames: Sequence[Buffer]) -> HeaderAndFrames:
        """Have an iterator closed; say how far that is. Any thread serves this."""
        iteration, kernel = self._find(header), self.kernel
        if not iteration.is_awaited:
            iteration.is_awaited = True
            if kernel.is_thread_of_cells or not kernel.call_soon(iteration.close):
                iteration.close()
        response, out = iteration.closing()
        guard, idle = kernel.guard, None
        if response["closing"] == "begun" and iteration.producer is None:
            idle = True  # it is what runs
        elif guard is not None:
            idle = not kernel.may_run_cell and guard.running in ("", iteration.request)
        return {**response, "idle": idle}, out


def is_end(error: BaseException) -> bool:
    """Return whether an error is nothing but the end of a generator or of a task.

    A task group around a ``yield`` raises a group of what closing throws.
    """
    group = getattr(builtins, "BaseExceptionGroup", ())  # of Python 3.11
    if isinstance(error, group):
        parts: Any = error
        return all(map(is_end, parts.exceptions))
    cancel = is_interrupt(error) and not isinstance(error, KeyboardInterrupt)
    return cancel or isinstance(error, GeneratorExit)


def is_interrupt(error: BaseException | None) -> bool:
    """Return whether an error is what an interrupt or a cancel raises."""
    asyncio = sys.modules.get("asyncio")  # loaded where there are tasks
    return isinstance(error, (KeyboardInterrupt, getattr(asyncio, "CancelledError", ())))


def raised_in_interrupt(error: BaseException | None) -> BaseException | None:
    """Return an error that code raised because it was interrupted or cancelled, else None.

    The interrupt itself is none: a step that runs is ended by it.
    """
    chain = [error]
    for part in chain:
        if is_interrupt(part):
            return None if part is error else error
        context = None if part is None else part.__context__
        if context is not None and context not in chain:
            chain.append(context)
    return None
