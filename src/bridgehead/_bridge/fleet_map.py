"""A map over a fleet: which kernel gets which items, and what happens to those of a lost kernel.

Rule: the schedule of one map. How a chunk of items crosses is in ``_connection.mapping``.

Laws:
- A kernel has at most ``window`` chunks. It takes a further one only if no other kernel has fewer.
  One that has none takes a chunk from another, if that one was not sent yet.
- Items are read when a kernel takes them, and not before. At most ``AHEAD`` times the window is
  read and not consumed, so a slow consumer stops the kernels.
- An item settles once. It is given out again if it was not begun, or if its kernel was lost and it
  has tries left.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter, length_hint
from types import ModuleType
from typing import Any, Generic, Literal, TypeVar

from bridgehead._bridge.arguments import is_coroutine_function, plain_function
from bridgehead._bridge.bridge import Bridge
from bridgehead._connection.async_items import BufferedItems, ItemBuffer
from bridgehead._connection.mapping import Failed, MapRequest
from bridgehead._errors import (
    BridgeClosed,
    BridgeError,
    KernelRestarted,
    MissingInKernel,
    NameNotFound,
    NotSent,
    OutcomeUnknown,
)
from bridgehead._protocol.formatting import line
from bridgehead._protocol.payload import SharedSource
from bridgehead._protocol.ref import Ref, expression_of, free
from bridgehead._transports.base import Transport
from bridgehead._transports.tasks import waited

T = TypeVar("T")

AHEAD = 4  # chunks for each kernel that are read and not consumed, in windows
CHUNK_SECONDS = 0.05  # the work that an automatic chunk should have
# The limit of an automatic chunk, of its arguments and of its results. How long it took to cross
# says nothing: if a request takes a second, whatever it brings, small chunks would take longest.
MOST_BYTES = 8 << 20
MOST_ITEMS = 10_000  # the limit of any chunk, because each item has a frame of its own
LAST = 4  # the last chunks are smaller, to end together, but have a fourth of the others' items
GROWTH = 8  # times the items of the last automatic chunk, at most
REPEATS = 3  # times that a kernel is given the function, if it loses it again meanwhile
ChunkSize = int | Literal["auto"]

# Called with (function,): the kernel keeps what it returns, under no name.
_itself = itemgetter(0)


class FleetMap(BufferedItems[T], Generic[T]):
    """An async iterator over the results of ``Fleet.map``.

    The work begins with the first wait for a result. Leaving ``async with``, ``aclose``, an error
    and dropping the iterator end it: what runs is interrupted, and what has not begun never does.
    Cancelling a wait loses nothing.

        >>> async with fleet.map(pow, range(4), [2, 2, 2, 2]) as squares:
        ...     [square async for square in squares]
        [0, 1, 4, 9]
    """

    def __init__(self, work: MapWork, name: str) -> None:
        self._work, self._name = work, name
        loop = asyncio.get_running_loop()
        self._finalizer = weakref.finalize(self, _close_soon, loop, work)
        self._finalizer.atexit = False

    def __repr__(self) -> str:
        return f"<FleetMap {line(self._name)}{', ended' if self._work.is_closed else ''}>"

    @property
    def _buffer(self) -> MapWork:
        return self._work

    async def __anext__(self) -> T:
        await self._work.wait()
        return self._work.pop()  # type: ignore[no-any-return]

    async def take(self) -> list[T]:
        """Wait for a result, and return all that have arrived; an empty list at the end.

        >>> async with fleet.map(abs, [-1]) as results:
        ...     await results.take()
        [1]
        """
        with contextlib.suppress(StopAsyncIteration):
            await self._work.wait()
        return self._work.pop_all()

    async def aclose(self) -> None:
        """End it: interrupt what runs for it, and have nothing more begin.

        >>> results = fleet.map(abs, [-1])
        >>> await results.aclose()
        >>> results
        <FleetMap abs, ended>
        """
        await self._work.aclose()


def _close_soon(loop: asyncio.AbstractEventLoop, work: MapWork) -> None:
    """Close a map that was dropped; the garbage collector calls this in any thread."""
    if not work.is_closed:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the bridges with it
            loop.call_soon_threadsafe(work.close_soon)


class MapItem:
    """The arguments of one call, and how often they may be given out again.

    Attributes:
        retries: after the loss of a kernel that may have begun it.
        repeats: after a kernel did not find what it needs for it.
    """

    __slots__ = ("args", "index", "repeats", "retries")

    def __init__(self, index: int, args: tuple[Any, ...], retries: int) -> None:
        self.index, self.args, self.retries, self.repeats = index, args, retries, REPEATS


class Worker:
    """One kernel of a map.

    Attributes:
        requests: the chunks that it has, and those that are on their way back.
        is_out: whether it is lost; it gets nothing any more.
        is_away: whether it is being restarted.
        had_function: whether it has, or had, the function.
    """

    def __init__(self, bridge: Bridge, source: SharedSource) -> None:
        """``source`` is the call that returns the function."""
        self.bridge, self._source = bridge, source
        self.function: Ref | None = None
        self.requests: list[MapRequest] = []
        self.is_out = self.is_away = self.had_function = False

    @property
    def may_send_now(self) -> bool:
        """Whether a chunk would be sent at once."""
        return not self.bridge._connection.queue.turns

    async def ready(self) -> Ref:
        """Return the function in the kernel; send it if the kernel does not have it."""
        for attempt in range(REPEATS):
            if self.function is not None:
                break
            work = self.bridge._work(
                *(_itself, (), {}), keep=True, by_value=(), namespace=False, source=self._source
            )
            # A map goes on in a kernel that another program restarts.
            work.call.is_unattended = work.call.any_process = self.had_function
            try:
                self.function = await work.do()
            except OutcomeUnknown:
                last = attempt == REPEATS - 1 or not self.had_function
                if last or self.bridge._transport.life.is_lost:
                    raise
        assert self.function is not None
        self.had_function = True
        return self.function

    def forget(self, function: Ref | None) -> None:
        """Have the kernel free the function, behind the chunks that were sent."""
        if self.function is function and function is not None:
            self.function = None
            free(function)


class MapWork(ItemBuffer):
    """The items of one map, and the kernels that work on them."""

    def __init__(
        self,
        bridges: Sequence[Bridge],
        function: Callable[..., Any],
        iterables: Sequence[Iterable[Any]],
        *,
        ordered: bool,
        chunksize: ChunkSize,
        window: int,
        retries: int,
        return_exceptions: bool,
        by_value: Sequence[ModuleType],
        namespace: bool,
        stand_ins: Mapping[type, Callable[[Any], Any]],
        note: Callable[[Exception, int], object],
    ) -> None:
        """Take the arguments of ``Fleet.map``.

        ``stand_ins`` says how to pickle refs and others, or refuses them. ``note`` adds to an
        error the index of its kernel.
        """
        super().__init__()
        self._source: Iterator[tuple[Any, ...]] = zip(*iterables, strict=False)
        hints = [_length(iterable) for iterable in iterables] if chunksize == "auto" else []
        self._total = min((hint for hint in hints if hint >= 0), default=None)
        self._ordered, self._chunksize, self._window = ordered, chunksize, window
        self._retries, self._goes_on, self._note = retries, return_exceptions, note
        self._namespace, self._stand_ins = namespace, stand_ins
        self._is_async = is_coroutine_function(function)
        if namespace:
            function = plain_function(function)
        values = (_itself, ((function,),), dict[str, Any]())
        shared = SharedSource(values, {"the function": function}, by_value, stand_ins)
        self._workers = [Worker(bridge, shared) for bridge in bridges]
        self._tasks: set[asyncio.Task[None]] = set()
        self._again: deque[list[MapItem]] = deque()  # chunks to give out before any other
        self._read = 0
        self._size = 1 if chunksize == "auto" else chunksize
        # As measured; 0 is not yet.
        self._item_seconds = self._item_bytes = 0.0
        # Those behind one that is missing, by the item's index, or in the order of their arrival.
        self._results: dict[int, Any] = {}
        self._next, self._arrived = 0, 0
        self._is_read = False  # nothing more is read
        self._more_after = math.inf  # nothing more is read before so many results are consumed
        self._failed = False  # an item has, and that ends the map
        self._error: BaseException | None = None  # raised after all results
        self._loss: BridgeError | None = None  # of the last kernel
        self._withdrawn: set[MapRequest] = set()
        self._changed = asyncio.Event()
        self._has_begun = False
        self.is_closed: bool = False

    # ------------------------------------------------------------ for the consumer

    async def wait(self) -> None:
        if not self._has_begun and not self.is_closed:
            self._begin()
        while not self.ready:
            if self.is_closed:
                raise StopAsyncIteration
            failed = self._results.get(self._next)
            if type(failed) is Failed:
                self._end()
                raise failed.reported()
            if self._is_done or not self._tasks:
                # If no kernel is left, an item may have been, which nothing has read yet.
                if self._loss is not None and (self._again or self._next_item() is not None):
                    self._error = self._loss
                self._end()
                raise self._error or StopAsyncIteration
            await self._change()

    @property
    def _consumed(self) -> int:
        return self._next - len(self.ready)

    @property
    def wants_more(self) -> bool:
        """Whether a kernel waits for what was consumed."""
        return self._consumed >= self._more_after

    def go_on(self) -> None:
        self._more_after = math.inf
        self._notify()

    def opened(self, item: Any) -> Any:
        return item.reported() if type(item) is Failed else item

    async def aclose(self) -> None:
        """End all work, and wait until no task of it is left here."""
        self._end()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _end(self) -> None:
        """Have the kernels end what they do, and drop the function."""
        self.is_closed = True
        self._notify()
        for task in self._tasks:
            task.cancel()
        self.ready.clear()
        self._results.clear()
        self._again.clear()
        self._source = iter(())  # a generator is closed, though the caller may keep the map
        for worker in self._workers:
            worker.forget(worker.function)

    def close_soon(self) -> None:
        """Do as ``aclose``, and wait for nothing."""
        if not self.is_closed:
            self._end()

    # ------------------------------------------------------------ the kernels

    def _begin(self) -> None:
        self._has_begun = True
        for index, worker in enumerate(self._workers):
            self._start(self._serve(index, worker))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:  # such as a function that cannot be pickled
            self._error, self._failed = error, True
            for other in self._tasks:
                other.cancel()
        self._notify()

    async def _serve(self, index: int, worker: Worker) -> None:
        """Give one kernel a chunk after the other."""
        while not (worker.is_out or self.is_closed or self._is_done):
            try:
                function = await worker.ready()
            except (OutcomeUnknown, BridgeClosed) as error:
                worker.is_away = worker.bridge.state == "restarting"
                if not (worker.is_away or worker.had_function) and type(error) is KernelRestarted:
                    self._note(error, index)
                    raise  # no call has reported it yet: the namespace is new
                if not worker.is_away:
                    self._out(worker, index, error)
                    return
                async with waited(Transport.timings.away_again):
                    await self._change()
                continue
            worker.is_away = False
            items = self._take(worker)
            if items is not None:
                request = self._request(worker, function, items)
                worker.requests.append(request)
                self._start(self._give(index, worker, function, items, request))
                await asyncio.sleep(0)  # it is sent while this reads what comes behind it
                if len(worker.requests) < self._window:
                    self._notify()  # another kernel may have waited for this one to have as many
            elif self._is_done:
                return
            else:
                self._withdraw_for(worker)
                await self._change()

    def _out(self, worker: Worker, index: int, error: BridgeError) -> None:
        """Note that a kernel is lost. With the last one, what is left cannot be done."""
        worker.is_out = True
        if all(other.is_out for other in self._workers):
            self._note(error, index)
            self._loss = error
        self._notify()

    def _request(self, worker: Worker, function: Ref, items: list[MapItem]) -> MapRequest:
        return MapRequest(
            worker.bridge._connection,
            expression_of(function, worker.bridge),
            [item.args for item in items],
            items[0].index,
            is_async=self._is_async,
            goes_on=self._goes_on,
            namespace=self._namespace,
            stand_ins=self._stand_ins,
        )

    async def _give(
        self,
        index: int,
        worker: Worker,
        function: Ref,
        items: list[MapItem],
        request: MapRequest,
    ) -> None:
        """Have a kernel do a chunk, and settle its items."""
        try:
            outcomes, seconds = await request.outcomes()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            if request not in self._withdrawn or task.cancelling():
                raise
            self._again.appendleft(items)
        except (OutcomeUnknown, BridgeClosed) as error:
            self._note(error, index)
            worker.forget(function)  # it is another process, or will be
            failed = Failed(error, worker.bridge._connection)
            self._lost(items, failed, begun=request.call.was_sent)
        except NameNotFound as error:
            if request.call.was_sent:  # the remote part was removed, and the function with it
                worker.forget(function)
            if request.call.was_sent and items[0].repeats:
                items[0].repeats -= 1
                self._again.appendleft(items)
            else:  # an item is a ref that was freed
                self._refused(items, index, error)
        except Exception as error:  # noqa: BLE001 - raised, or given, in place of the results
            # A ref that belongs to another kernel is a ValueError.
            apart = isinstance(error, (NotSent, MissingInKernel, ValueError))
            self._refused(items, index, error, apart=apart)
        else:
            self._measure(seconds, request.nbytes, len(outcomes))
            for item, outcome in zip(items, outcomes, strict=False):
                if type(outcome) is Failed:
                    self._note(outcome.error, index)
                self._settle(item, outcome)
            if self._goes_on and len(outcomes) < len(items):  # an interrupt ended the chunk
                self._again.appendleft(items[len(outcomes) :])
        finally:
            worker.requests.remove(request)
            self._withdrawn.discard(request)
            self._notify()

    # ------------------------------------------------------------ items

    @property
    def _is_done(self) -> bool:
        """Whether no item is left to give out, and none can come back."""
        busy = any(worker.requests for worker in self._workers)
        return (self._is_read or self._failed) and not self._again and not busy

    def _take(self, worker: Worker) -> list[MapItem] | None:
        """Return the next chunk for a kernel, or None if it has to wait."""
        have = len(worker.requests)
        others = (other for other in self._workers if not (other.is_out or other.is_away))
        if have >= self._window or any(len(other.requests) < have for other in others):
            return None
        if self._again:
            return self._again.popleft()
        size = self._chunk_size()
        room = AHEAD * self._window * len(self._workers) * size
        if self._is_read or self._failed:
            return None
        if self._read + size - room > self._consumed:
            self._more_after = self._read + size - room
            return None
        items: list[MapItem] = []
        while len(items) < size:
            item = self._next_item()
            if item is None:
                self._notify()
                break
            items.append(item)
        return items or None

    def _next_item(self) -> MapItem | None:
        """Read an item; None if there is none, or none is wanted."""
        if self._is_read or self._failed:
            return None
        try:
            args = next(self._source)
        except StopIteration:
            self._is_read = True
            return None
        except StopAsyncIteration as error:  # raised as it is, it would be the end of the results
            self._is_read = True
            self._error = RuntimeError("an iterable of map() raised StopAsyncIteration")
            self._error.__cause__ = error
            return None
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - raised after the results
            self._is_read, self._error = True, error
            return None
        self._read += 1
        return MapItem(self._read - 1, args, self._retries)

    def _chunk_size(self) -> int:
        if self._chunksize != "auto":
            return min(self._chunksize, MOST_ITEMS)
        if self._item_seconds:
            fit = CHUNK_SECONDS / self._item_seconds, MOST_BYTES / self._item_bytes
            self._size = max(1, min(*map(int, fit), GROWTH * self._size, MOST_ITEMS))
        if self._total is None:
            return self._size
        # The last chunks are smaller, so that no kernel is at work long after the others.
        left = max(0, self._total - self._read) // (2 * len(self._workers))
        return min(self._size, max(left, self._size // LAST, 1))

    def _measure(self, seconds: float, nbytes: int, count: int) -> None:
        """Note how long an item took in the kernel, and how many bytes crossed for it."""
        share = 0.5 if self._item_seconds else 1.0
        self._item_seconds += share * (max(seconds, 1e-7) / count - self._item_seconds)
        self._item_bytes += share * (max(nbytes, 1) / count - self._item_bytes)

    def _withdraw_for(self, worker: Worker) -> None:
        """Take a chunk that was not sent from another kernel, for one that has nothing to do."""
        if worker.requests or not worker.may_send_now or not (self._is_read or self._failed):
            return
        for other in self._workers:
            for request in reversed(other.requests):
                if other is not worker and request.withdraw():
                    self._withdrawn.add(request)
                    return

    def _lost(self, items: list[MapItem], failed: Failed, *, begun: bool) -> None:
        """Give out again the items of a lost kernel, or fail those that have no tries left.

        Those that were begun go alone: one of them may be what ended the kernel.
        """
        if not begun:
            self._again.appendleft(items)
            return
        for item in reversed(items):
            if item.retries and isinstance(failed.error, OutcomeUnknown):
                item.retries -= 1
                self._again.appendleft([item])
            else:
                self._settle(item, failed)

    def _refused(
        self, items: list[MapItem], index: int, error: Exception, *, apart: bool = True
    ) -> None:
        """Fail the items of a chunk that did not run; first ``apart``, as one may be the cause."""
        if apart and len(items) > 1:
            self._again.extendleft([item] for item in reversed(items))
            return
        self._note(error, index)
        for item in items:
            self._settle(item, Failed(error))

    def _settle(self, item: MapItem, outcome: Any) -> None:
        self._results[item.index if self._ordered else self._arrived] = outcome
        self._arrived += 1
        if type(outcome) is Failed and not self._goes_on:
            self._failed = True
        while self._next in self._results and (
            self._goes_on or type(self._results[self._next]) is not Failed
        ):
            self.ready.append(self._results.pop(self._next))
            self._next += 1

    async def _change(self) -> None:
        await self._changed.wait()

    def _notify(self) -> None:
        """Have all that wait look again."""
        self._changed.set()
        self._changed = asyncio.Event()


def _length(iterable: Iterable[Any]) -> int:
    """Return about how many items there are; -1 if that is not known."""
    try:
        return length_hint(iterable, -1)
    except Exception:  # noqa: BLE001 - many classes have a ``__len__`` that raises
        return -1
