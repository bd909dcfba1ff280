"""A value in the kernel, followed by the client.

Rule: the remote part evaluates the expression when a cell is done, and sends an update by itself if
the cell changed the value. This file is the client's end; it keeps the latest update and nothing
older.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import uuid
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

from bridgehead._connection.connection import Connection
from bridgehead._errors import (
    BridgeError,
    KernelRestarted,
    OutcomeUnknown,
    ProtocolError,
    ReplyLost,
)
from bridgehead._protocol import request as _request
from bridgehead._protocol.formatting import line
from bridgehead._protocol.payload import empty
from bridgehead._protocol.raising import as_text
from bridgehead._protocol.request import Request
from bridgehead._protocol.response import Response, add_chunk, open_response, parse_header
from bridgehead._shipped.wire.header import ResponseHeader
from bridgehead._transports.base import Transport
from bridgehead._transports.tasks import waited

Frames = list[memoryview]
UPDATE = Request({})  # in place of the request that an update has not
Latest = Response | asyncio.Task[Frames] | Frames  # partial, being fetched, or whole


class Watch:
    """An async iterator over an expression's values: first the present one, then each change.

    Ends when the kernel ends or is restarted, and when the bridge is closed. A slow reader gets
    the latest value, not those that it missed. What evaluating the expression raises, the
    iterator raises too; the next wait goes on. Cancelling a wait loses nothing. ``aclose``, or
    dropping the iterator, ends the watch in the kernel too.

        >>> async with bridge.watch("6 * 7") as watch:
        ...     async for value in watch:
        ...         print(value)
        ...         break
        42
    """

    def __init__(
        self,
        connection: Connection,
        expression: str,
        decode: Callable[[Frames], Awaitable[Any]],
        **options: Any,
    ) -> None:
        self._expression, self._connection, self._decode = expression, connection, decode
        self._limit = options.get("limit")
        self._updates = updates = UpdateBuffer(self._limit)
        self._options = {"expressions": [expression], **options}
        self._starting = asyncio.Lock()
        connection.transport.life.listeners[updates.id] = updates
        self._finalizer = weakref.finalize(self, _leave, connection, updates)
        self._finalizer.atexit = False  # at exit, closing the bridge ends it, or its age

    def __repr__(self) -> str:
        return f"<Watch {line(self._expression)}{', ended' if self._updates.ended else ''}>"

    def __aiter__(self) -> Watch:
        return self

    async def __aenter__(self) -> Watch:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def __anext__(self) -> Any:
        updates = self._updates
        async with self._starting:
            if updates.renewing is None and not updates.ended:
                updates.give_back(await self._first())
        while True:
            latest = await updates.next()
            if isinstance(latest, Response):  # a task fetches it, even if this wait ends
                latest = self._connection.transport.spawn(self._whole(latest))
            try:
                whole = latest if isinstance(latest, list) else await asyncio.shield(latest)
                return await self._decode(whole)
            except asyncio.CancelledError:
                if isinstance(latest, asyncio.Task) and latest.cancelled():
                    raise StopAsyncIteration from None  # the bridge was closed
                updates.give_back(latest)
                raise
            except ReplyLost:
                # A newer value replaced it in the kernel, and is on its way; or a chunk was lost.
                updates.lost()

    async def aclose(self) -> None:
        """End the watch; the remote part drops it, and a waiting reader gets no more values.

        >>> watch = bridge.watch("6 * 7")
        >>> await watch.aclose()
        >>> watch
        <Watch 6 * 7, ended>
        """
        self._updates.end()
        self._finalizer()

    async def _first(self) -> Frames:
        updates, connection = self._updates, self._connection
        options = {
            **self._options,
            "watch": updates.id,
            "lane": connection.remote.lane.message_lane,
        }
        try:
            first = await connection.ask("watch", None, **options)
        except (asyncio.CancelledError, OutcomeUnknown):
            # The watch may exist in the kernel, with its first value lost. End that one, and use
            # a new id for the next attempt.
            connection.transport.life.listeners.pop(updates.id, None)
            connection.transport.spawn(connection.unwatch(updates.id))
            updates.id = uuid.uuid4().hex
            connection.transport.life.listeners[updates.id] = updates
            raise
        if updates.ended:
            connection.transport.spawn(connection.unwatch(updates.id))
        else:
            renew = functools.partial(connection.remote.request_unordered, "watch", **options)
            updates.renewing = connection.transport.spawn(_keep_alive(renew, updates))
        return first.frames

    async def _whole(self, latest: Response) -> Frames:
        lane = await self._connection.remote.ready()
        # The kernel keeps the frames of an update under the id of the update.
        fields = {**lane.fields(), "id": latest.header["update"]}
        epoch = self._connection.remote.info.epoch
        header = _request.header("watch", empty(lane.digest), epoch=epoch, **fields)
        trusted = not self._connection.trust.data
        latest.request = Request(header, limit=self._limit, trusted=trusted)
        return (await lane.complete(latest)).frames


class UpdateBuffer:
    """The latest update that the remote part sent."""

    def __init__(self, limit: int | None) -> None:
        self.id = uuid.uuid4().hex
        self.ended = False
        self.renewing: asyncio.Task[None] | None = None
        self.renewal_due = asyncio.Event()
        self.seen = 0  # the number of the latest update, or -1 if it was lost
        self._limit = limit
        self._latest: Latest | None = None
        self._failure: BridgeError | None = None
        self._changed = asyncio.Event()

    def feed(self, content: dict[str, Any], buffers: list[Any]) -> None:
        """Take one message of the remote part."""
        try:
            sent, update = parse_header(content["answer"]), as_text(content["update"])
            parts = buffers or [base64.b64decode(sent.get("data", ""), validate=True)]
            header: ResponseHeader = {**sent, "data": "", "update": update}
            self.seen = int(update.rpartition(":")[2])
            inbox = open_response(header, self._limit)
            add_chunk(header, inbox, 0, parts)
        except BridgeError as error:
            self._latest, self._failure = None, error
        except (KeyError, TypeError, ValueError) as error:
            self._latest = None
            self._failure = ProtocolError(
                f"the kernel sent an update that cannot be read: {error!r}"
            )
        else:
            self._latest, self._failure = Response(header, UPDATE, inbox), None
        self._changed.set()

    def put(self, frames: Frames) -> None:
        """Keep a value that was fetched, as the latest."""
        self._latest = frames
        self._changed.set()

    def give_back(self, latest: Latest) -> None:
        """Put back a value that no reader got, unless there is a newer one."""
        if self._latest is None:
            self._latest = latest

    def renew(self) -> None:
        """Note that the connection is a new one; updates were lost with the old one."""
        self.renewal_due.set()

    def lost(self) -> None:
        """Note that the rest of the latest update did not arrive."""
        self.seen = -1
        self.renewal_due.set()

    def end(self) -> None:
        """End the watch: the kernel is lost, or the bridge or the watch was closed."""
        self.ended = True
        if self.renewing is not None:
            self.renewing.cancel()
        self._changed.set()

    async def next(self) -> Latest:
        """Wait for the latest value and take it."""
        while True:
            failure, self._failure = self._failure, None
            if failure is not None:
                raise failure
            latest, self._latest = self._latest, None
            if latest is not None:
                return latest
            if self.ended:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()


async def _keep_alive(renew: Callable[..., Awaitable[Response]], updates: UpdateBuffer) -> None:
    """Renew the watch in the kernel; get the value again if the last update was lost."""
    while True:
        async with waited(Transport.timings.renew_every):
            await updates.renewal_due.wait()
        updates.renewal_due.clear()
        seen = updates.seen
        try:
            response = await renew(seen=seen)
        except KernelRestarted:  # no update will come; the caller's next operation reports it
            updates.end()
        except BridgeError:
            continue
        else:
            if response.frames and updates.seen == seen:  # else an update has arrived meanwhile
                updates.put(response.frames)
                updates.seen = response.header.get("sent", 0)


def _leave(connection: Connection, updates: UpdateBuffer) -> None:
    """End a watch in the kernel; ``aclose`` calls this, or the garbage collector in any thread."""

    async def unwatch() -> None:
        connection.transport.life.listeners.pop(updates.id, None)
        if updates.renewing is not None:
            updates.renewing.cancel()
            await connection.unwatch(updates.id)

    def leave() -> None:
        if connection.transport.life.state != "closed":
            connection.transport.spawn(unwatch())

    with contextlib.suppress(RuntimeError):  # the loop is closed, and the bridge with it
        connection.loop.call_soon_threadsafe(leave)
