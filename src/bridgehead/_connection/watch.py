"""Values or names in the kernel, followed by the client.

Rule: the remote part looks at what is watched when a cell is done, and sends an event by itself if
the cell changed it. This file is the client's end; it keeps the latest values and nothing
older. How a watch stays in the kernel belongs to ``resources``.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from bridgehead._connection.async_items import AsyncItems
from bridgehead._connection.call import Call
from bridgehead._connection.connection import Connection
from bridgehead._connection.queue import Queue
from bridgehead._connection.resources import Frames, HeldResources, RemoteResource
from bridgehead._errors import BridgeError, OutcomeUnknown, ReplyLost
from bridgehead._protocol.formatting import line
from bridgehead._protocol.response import Response
from bridgehead._shipped.wire.header import HeaderAndFrames, ResponseHeader

T = TypeVar("T")
# Partial, being fetched, or whole.
Latest = Response | asyncio.Task[HeaderAndFrames] | HeaderAndFrames


class Watch(AsyncItems[T]):
    """An async iterator over what ``Bridge.watch`` or ``watch_names`` follows in the kernel.

    First it gives what is there now, then each change. It ends when the kernel ends or is
    restarted, and when the bridge is closed. A slow reader gets the latest values, not those that
    it missed. What evaluating an expression raises, the iterator raises too; the next wait goes on.
    Cancelling a wait loses nothing. ``aclose``, or dropping the iterator, ends the watch in the
    kernel too.

        >>> async with bridge.watch("6 * 7") as watch:
        ...     async for value in watch:
        ...         print(value)
        ...         break
        42
    """

    def __init__(
        self,
        connection: Connection,
        operation: str,
        text: str,
        decode: Callable[[ResponseHeader, Frames], Awaitable[T]],
        *,
        limit: int | None = None,
        **fields: Any,
    ) -> None:
        """Take the operation that begins it, and its fields; ``text`` names what is watched."""
        self._operation, self._text, self._decode = operation, text, decode
        self._connection, self._fields = connection, {"limit": limit, **fields}
        self.source: object = None  # a ref, which keeps its object alive in the kernel
        # Whether no caller waits for it: then a restart that it meets is reported to the next call.
        self.is_unattended = False
        self._latest = LatestValues(connection.resources, connection.queue, limit)
        self._starting = asyncio.Lock()
        connection.resources.enter(self._latest)
        self._finalizer = weakref.finalize(self, connection.resources.leave_soon, self._latest)
        self._finalizer.atexit = False  # at exit, closing the bridge ends it, or its lease

    def __repr__(self) -> str:
        return f"<Watch {line(self._text)}{', ended' if self._latest.ended else ''}>"

    async def __anext__(self) -> T:
        latest = self._latest
        async with self._starting:
            if not (latest.is_known or latest.ended):
                latest.give_back(await self._first())
        while True:
            found = await latest.next()
            if isinstance(found, Response):  # a task fetches it, even if this wait ends
                found = self._connection.transport.spawn(self._whole(found))
            try:
                whole = found if isinstance(found, tuple) else await asyncio.shield(found)
                return await self._decode(*whole)
            except asyncio.CancelledError:
                if isinstance(found, asyncio.Task) and found.cancelled():
                    raise StopAsyncIteration from None  # the bridge was closed
                latest.give_back(found)
                raise
            except ReplyLost:
                # A newer value replaced it in the kernel, and is on its way; or a chunk was lost,
                # and the kernel sends it again.
                continue

    async def aclose(self) -> None:
        """End the watch; the remote part drops it, and a waiting reader gets no more values.

        >>> watch = bridge.watch("6 * 7")
        >>> await watch.aclose()
        >>> watch
        <Watch 6 * 7, ended>
        """
        self._latest.end()
        self._finalizer()

    async def _first(self) -> HeaderAndFrames:
        latest, connection = self._latest, self._connection
        fields = {**self._fields, **connection.resources.fields(latest)}
        try:
            call = Call(self._operation, fields=fields, is_unattended=self.is_unattended)
            first = await connection.within(None, call)
        except (asyncio.CancelledError, OutcomeUnknown):
            # The watch may exist in the kernel, with its first value lost. End that one, and use
            # a new id for the next attempt.
            connection.resources.drop(latest)
            latest.rename()
            connection.resources.enter(latest)
            raise
        except BridgeError:
            if latest.ended:  # closed meanwhile, so the kernel did not begin it
                raise StopAsyncIteration from None
            raise
        connection.resources.made(latest)
        if latest.ended:
            connection.resources.drop(latest)
        return first.header, first.frames

    async def _whole(self, event: Response) -> HeaderAndFrames:
        limit, trusted = self._fields["limit"], not self._connection.trust.data
        try:
            whole = await self._connection.resources.fetch(event, limit, trusted=trusted)
            return whole.header, whole.frames
        except ReplyLost:
            self._latest.note_lost(event)
            raise


class LatestValues(RemoteResource):
    """What the remote part sent last."""

    kind = "watches"

    def __init__(self, resources: HeldResources, queue: Queue, limit: int | None) -> None:
        super().__init__(resources, limit)
        self._queue = queue
        self.ended: bool = False
        self._latest: Latest | BridgeError | None = None
        self._changed = asyncio.Event()

    def take(self, event: Response | BridgeError) -> None:
        self._latest = event
        self._changed.set()

    def give_back(self, latest: Latest) -> None:
        """Put back values that no reader got, unless there are newer ones."""
        if self._latest is None:
            self._latest = latest

    def end(self) -> None:
        super().end()
        self.ended = True
        self._changed.set()

    async def next(self) -> Latest:
        """Wait for the latest values and take them."""
        while True:
            latest, self._latest = self._latest, None
            if isinstance(latest, BridgeError):
                raise latest
            if latest is not None:
                return latest
            if self.ended:
                raise StopAsyncIteration
            self._queue.check_wait()
            self._changed.clear()
            await self._changed.wait()
