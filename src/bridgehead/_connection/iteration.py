"""Items that the kernel makes, one batch after the other.

Rule: when the next batch is asked for, and what becomes of a batch that is lost or cut short. What
the kernel's end does is in ``_shipped/remote/iteration.py``. A batch is a call like any other: it
takes a turn, so cells and other calls come between two batches.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

from bridgehead._connection.async_items import BufferedItems, ItemBuffer
from bridgehead._connection.call import Call
from bridgehead._connection.connection import Connection
from bridgehead._connection.queue import Turn
from bridgehead._connection.resources import Frames, RemoteResource
from bridgehead._connection.tasks import Outcome, coroutine_response
from bridgehead._errors import (
    BridgeError,
    KernelRestarted,
    ProtocolError,
    ReplyLost,
    TransportError,
)
from bridgehead._protocol.formatting import line
from bridgehead._protocol.raising import raise_error
from bridgehead._protocol.response import Response, check_fields, check_groups
from bridgehead._transports.tasks import no_user_call, noted_on, retrieve_exception

MOST_ITEMS = 10_000  # that the kernel may be ahead of the consumer
MOST_BYTES = 64 << 20
GONE = (
    "the kernel no longer has this iteration; the items that arrived are good: call iterate() again"
)
# The kernel keeps a batch, so it is asked for again if its response is lost, or the connection
# breaks. An item may take hours: breaks count that follow one another within seconds.
LOSSES, BREAKS = 3, 10


class Iteration(BufferedItems[Any]):
    """An async iterator over items that the kernel makes, as they are made.

    An error comes after the items before it, and ends the iteration. Cancelling a wait loses
    nothing. Leaving ``async with`` does what ``aclose`` does: the kernel closes the iterator, which
    runs the ``finally`` of a generator. What closing raises is raised there, and becomes a note on
    an error that leaves the block. A block that is cancelled does not wait for the kernel. Dropping
    the iterator and closing the bridge have the kernel close it, too, soon. One task in the kernel
    makes all items of an async iterator, so it may hold an ``asyncio.timeout``, a task group or a
    context variable over a ``yield``.

        >>> async with bridge.iterate("range(3)") as items:
        ...     async for item in items:
        ...         print(item)
        0
        1
        2
    """

    def __init__(
        self,
        connection: Connection,
        call: Call,
        decode: Callable[[Frames, int], Awaitable[tuple[Any, ...]]],
        name: str,
    ) -> None:
        """``decode`` opens the frames of so many items."""
        self._name = name
        self.owner: object = None  # kept from being dropped while this is used
        self.source: object = None  # a ref, which keeps its object alive in the kernel
        self._items = Items(connection, call, decode)
        connection.resources.enter(self._items)
        self._finalizer = weakref.finalize(self, connection.resources.leave_soon, self._items)
        self._finalizer.atexit = False  # at exit, closing the bridge ends it, or its lease

    def __repr__(self) -> str:
        return f"<Iteration {line(self._name)}{', ended' if self._items.is_ended else ''}>"

    @property
    def _buffer(self) -> Items:
        return self._items

    async def __anext__(self) -> Any:
        items = self._items
        if not items.ready:
            await items.wait()
        return items.pop()

    async def take(self) -> list[Any]:
        """Wait for an item, and return all that have arrived; an empty list at the end.

        What it returns counts as consumed: the kernel makes as many more.

        >>> async with bridge.iterate("range(3)") as items:
        ...     await items.take()
        [0, 1, 2]
        """
        with contextlib.suppress(StopAsyncIteration):
            if not self._items.ready:
                await self._items.wait()
        return self._items.pop_all()

    async def __aexit__(self, *exc_info: object) -> None:
        error = exc_info[1] if isinstance(exc_info[1], BaseException) else None
        if isinstance(error, asyncio.CancelledError):
            self._leave()
            return
        with noted_on(error):
            await self.aclose()

    async def aclose(self) -> None:
        """Have the kernel close the iterator, and wait until it has.

        A step that runs is interrupted, or cancelled if it is one of an async iterator. A kernel
        that runs something else is waited for a second only; it closes the iterator when it is
        free. Then, and if this wait is cancelled, the kernel alone sees what closing raises: as an
        error that Python ignores, on its ``stderr``.

        A ``finally`` that hangs holds this up. ``interrupt()`` ends one of a plain generator, and
        a deadline around this ends the wait. With ``trust="data"``, the wait ends after a minute.

        Raises:
            RemoteError: closing raised, as by the ``finally`` of a generator; or a step did so,
                because it was interrupted.

        >>> items = bridge.iterate("range(3)")
        >>> await items.aclose()
        >>> items
        <Iteration range(3), ended>
        """
        try:
            await self._items.close()
        finally:
            self._leave()

    def _leave(self) -> None:
        if self._finalizer.detach() is not None:
            self._items.resources.leave(self._items)


class Batch(Outcome):
    """The items of one batch of an async iterator. No task of the user's gives them."""

    kind = "batches"


class Items(ItemBuffer, RemoteResource):
    """The items that have arrived and were not consumed, and the batch that is on its way."""

    kind = "iterations"

    def __init__(
        self,
        connection: Connection,
        call: Call,
        decode: Callable[[Frames, int], Awaitable[tuple[Any, ...]]],
    ) -> None:
        ItemBuffer.__init__(self)
        RemoteResource.__init__(self, connection.resources)
        self._connection, self._first, self._decode = connection, call, decode
        self.is_ended: bool = False
        self._bytes = 0  # of the batches that are not consumed, more or less
        self._error: BaseException | None = None
        self._is_async = False
        self._is_begun = False  # the kernel has had it
        self._lost: BridgeError = KernelRestarted(GONE)
        self._batch = 0  # the number of the batch that arrived last as a whole
        self._have = 0  # items of the next one that have arrived
        self._call: Call | None = None  # that is on its way
        self._fetching: asyncio.Task[None] | None = None
        self._arrived = asyncio.Event()
        self._is_closing = False  # the consumer waits until the kernel has closed the iterator

    # ------------------------------------------------------------ for the consumer

    async def wait(self) -> None:
        """Wait until there is an item; raise what ended the iteration if there is none."""
        while not self.ready:
            if self._error is not None:
                error, self._error = self._error, None
                if isinstance(error, KernelRestarted):
                    self._connection.remote.restart_reported()
                raise error
            if self.is_ended:
                raise StopAsyncIteration
            self._connection.queue.check_wait()
            self.go_on()
            self._arrived.clear()
            await self._arrived.wait()

    @property
    def wants_more(self) -> bool:
        """Whether the next batch is to be asked for: the consumer is not too far behind."""
        if self._fetching is not None or self.is_ended:
            return False
        return not self.ready or (
            len(self.ready) <= MOST_ITEMS // 2 and self._bytes <= MOST_BYTES // 2
        )

    def go_on(self) -> None:
        if self.wants_more:
            self._fetching = self._connection.transport.spawn(self._next_batch())
            self._fetching.add_done_callback(self._fetched)

    def leave(self) -> None:
        """End the iteration; no consumer waits any more."""
        self.is_ended = True
        self.ready.clear()
        self.interrupt()
        if self._fetching is not None:
            self._fetching.cancel()
        self._arrived.set()

    async def close(self) -> None:
        """End the iteration; wait until the kernel has closed the iterator, or cannot soon."""
        if self.is_ended or not self.is_known:  # it is closed, or no step was taken
            return
        self._is_closing = True
        self.leave()
        closed: Response | None = None
        # If the kernel is lost, it has no iterator; if its reply is, the iterator is closed later.
        with contextlib.suppress(TimeoutError, BridgeError):
            closed = await self._closed()
        if closed is not None:
            failure, trusted = closed.header.get("failure"), not self._connection.trust.data
            raise_error({"error": failure}, closed.frames, trusted=trusted)

    async def _closed(self) -> Response:
        """Wait until the kernel has closed the iterator.

        Raises:
            TimeoutError: it does not, because it runs something else, or it is data only and takes
                long.
            BridgeError: it is lost, or several replies are.
        """
        remote, transport = self._connection.remote, self._connection.transport
        loop, timings = asyncio.get_running_loop(), transport.timings
        started = loop.time()
        soon, busy_until = started + timings.closing_begins, 0.0
        # A kernel that is data only may answer in any order, so ``limit`` may never pass.
        latest = started + timings.closing_data_only if self._connection.trust.data else None
        async with asyncio.timeout_at(latest), asyncio.timeout_at(soon) as limit:

            async def ask() -> Response:
                response = await remote.request_beside("finish", iteration=self.id)
                if response is None:  # this kernel does nothing beside what it runs
                    limit.reschedule(started + timings.closing_begins_busy)
                    response = await remote.request_unordered("finish", iteration=self.id)
                return response

            while True:
                response = await transport.until_replied(ask)  # it keeps what closing raised
                closing, idle = response.header.get("closing"), response.header.get("idle")
                if closing == "done":
                    return response
                has_begun = closing == "begun"
                # A cell that blocks holds up the closing of an async iterator that has begun, too.
                if idle is True:
                    busy_until = 0.0
                    limit.reschedule(None if has_begun else soon)
                elif idle is None and has_begun:
                    limit.reschedule(soon)
                else:
                    busy_until = busy_until or loop.time() + timings.closing_begins_busy
                    limit.reschedule(busy_until)
                pause = max(timings.closed_after, (loop.time() - started) / 4)
                await asyncio.sleep(min(pause, timings.closed_most))

    # ------------------------------------------------------------ for the resources

    def take(self, event: Response | BridgeError) -> None:
        """Ignore events: the items come with responses."""

    def end(self) -> None:
        super().end()
        if not self.is_ended:
            self._lost = self._why_lost()
            if self._fetching is None:
                self._fail(self._lost)

    def interrupt(self) -> None:
        """Interrupt the step that runs: the bridge closes."""
        call, self._call = self._call, None
        if call is not None:
            self._connection.cancel(call)

    def _why_lost(self) -> BridgeError:
        try:
            self._connection.transport.life.check()
        except BridgeError as error:
            return error
        return KernelRestarted(GONE)

    # ------------------------------------------------------------ batches

    def _fetched(self, task: asyncio.Task[None]) -> None:
        self._fetching = None
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._fail(error)
        elif task.cancelled() and not self.is_ended:  # the bridge was closed
            self._fail(self._why_lost())
        if not self.is_ended:
            self.go_on()
        elif not self._is_closing:
            self.resources.drop(self)
        self._arrived.set()

    def _fail(self, error: BaseException) -> None:
        self._error, self.is_ended = error, True
        self._arrived.set()

    async def _next_batch(self) -> None:
        connection = self._connection
        no_user_call()  # a callback that takes an item does not wait for this
        if self._is_begun and not self.is_known:  # it was lost while a batch was on its way
            raise self._lost
        if not self._is_begun:
            self._first.fields.update(connection.resources.fields(self))
            with Turn(connection.queue) as turn:
                self._call, self._first.is_unattended = self._first, True
                response = await connection.do(self._first, turn)
            self._is_async = response.header.get("is_async") is True
            self._first, self._is_begun = Call("iterate"), True  # the arguments are not kept
            connection.resources.made(self)
            if self._is_async:
                connection.require_events("an async iterator")
        losses = breaks = 0
        while True:
            asked = asyncio.get_running_loop().time()
            asking = asyncio.ensure_future(self._ask())
            try:
                await self._take_until(asking)
                if await self._add(await asking):
                    return
                error: BridgeError = ReplyLost(
                    f"the kernel sent no items of batch {self._batch + 1} in {LOSSES} tries"
                )
                losses += 1
            except ReplyLost as lost:
                error = lost
                losses += 1
            except TransportError as broke:
                error = broke
                waited = asyncio.get_running_loop().time() - asked
                is_far = waited > connection.transport.timings.breaks_apart
                breaks = 1 if is_far else breaks + 1
            finally:
                asking.cancel()
                asking.add_done_callback(retrieve_exception)
            if losses == LOSSES or breaks == BREAKS:
                raise error

    async def _ask(self) -> Response:
        connection = self._connection
        fields = {"iteration": self.id, "batch": self._batch + 1, "have": self._have or None}
        call = Call("advance", fields={**fields, "most": MOST_ITEMS // 2})
        call.fields.update(connection.trust.fields())
        call.fields.update(connection.resources.fields(self))
        call.is_unattended = True
        self._call = call
        try:
            with Turn(connection.queue) as turn:
                if self._is_async:
                    return await coroutine_response(connection, call, turn, Batch)
                return await connection.do(call, turn)
        finally:
            self._call = None

    async def _take_until(self, asking: asyncio.Future[Response]) -> None:
        """Take the items that were made, while the kernel works on an item that takes long."""
        timings = self._connection.transport.timings
        pause = timings.take_after
        while True:
            done, _ = await asyncio.wait([asking], timeout=pause)
            if done:
                return
            taking = asyncio.ensure_future(self._take())
            both: list[asyncio.Future[Any]] = [asking, taking]
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                response = taking.result() if taking.done() else None
            finally:
                taking.cancel()
            if response is None:
                return
            if response.header.get("number") == self._batch + 1:
                await self._add(response)
                return  # whatever item ends now, ends the batch
            pause = min(2 * pause, timings.take_most)

    async def _take(self) -> Response | None:
        """Take the items that were made; None if no thread answers beside the cells."""
        with contextlib.suppress(BridgeError):  # the batch itself reports what is wrong
            return await self._connection.remote.request_beside(
                "take", iteration=self.id, batch=self._batch + 1
            )
        return None

    async def _add(self, response: Response) -> bool:
        """Add the items of a response; return whether the batch is whole."""
        header, frames = response.header, response.frames
        check_fields(header, "iterate", "first", "number")
        check_groups(header, "iterate", len(frames))
        if "ended" in header:
            check_fields(header, "iterate", "ended")
        skip = self._have - header["first"]
        if header["number"] != self._batch + 1 or skip < 0:
            return False  # items came by another way, and were lost
        at = 0
        for count, parts in header["groups"]:
            whole = frames[at : at + parts]
            at += parts
            if skip < count <= MOST_ITEMS // 2:
                items = await self._decode(whole, count)
                if not self.ready:
                    self._bytes = 0
                self.ready.extend(items[max(skip, 0) :])
                self._have += count - max(skip, 0)
                self._bytes += sum(frame.nbytes for frame in whole)
                if self._have > MOST_ITEMS // 2:
                    raise ProtocolError("the kernel sent more items than it was asked for")
            elif count > MOST_ITEMS // 2:
                raise ProtocolError("the kernel sent more items than it was asked for")
            skip -= count
        self._arrived.set()
        if "ended" not in header:
            return False
        self._batch, self._have = self._batch + 1, 0
        failure = header.get("failure")
        if failure is not None:
            trusted = not self._connection.trust.data
            raise_error({"error": failure}, frames[at:], trusted=trusted)
        self.is_ended = header["ended"]
        return True
