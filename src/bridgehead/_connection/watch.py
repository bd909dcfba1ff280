"""A value in the kernel, followed from here.

Rule: the loader looks at it when a cell is done, and sends it by itself if the cell changed
it; this is the near end, which keeps the latest news and nothing older.
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
from bridgehead._errors import BridgeError, OutcomeUnknown, ProtocolError, ReplyLost
from bridgehead._lanes.base import Request
from bridgehead._protocol import request as _request
from bridgehead._protocol import response as _protocol
from bridgehead._protocol.formatting import line
from bridgehead._protocol.raising import as_text
from bridgehead._protocol.response import PartialResponse
from bridgehead._transports.tasks import waited

ASK_EVERY = 120.0  # s; the loader drops a watch that nobody asked for in ten minutes

Frames = list[memoryview]
Latest = PartialResponse | asyncio.Task[Frames] | Frames  # begun, being fetched, or whole


class Watch:
    """An async iterator over an expression's values: now, then as cells change it.

    Ends when the kernel ends or is restarted, and when the bridge is closed. Whoever is slow
    gets the latest value, not all that were missed. What evaluating it raises is raised here;
    the next wait goes on. Cancelling a wait loses nothing. ``aclose``, or forgetting the
    iterator, ends the watch over there too.

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
        self._beginning = asyncio.Lock()
        connection.transport.life.listeners[updates.id] = updates
        self._finalizer = weakref.finalize(self, _leave, connection, updates)
        self._finalizer.atexit = False  # closing the bridge ends it, or its age

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
        async with self._beginning:
            if updates.asking is None and not updates.ended:
                updates.give_back(await self._first())
        while True:
            latest = await updates.next()
            if isinstance(latest, PartialResponse):  # fetched to its end, whoever gives up waiting
                latest = self._connection.transport.spawn(self._whole(latest))
            try:
                whole = latest if isinstance(latest, list) else await asyncio.shield(latest)
                return await self._decode(whole)
            except asyncio.CancelledError:
                if isinstance(latest, asyncio.Task) and latest.cancelled():
                    raise StopAsyncIteration from None  # with the bridge
                updates.give_back(latest)
                raise
            except ReplyLost:
                continue  # there are newer ones on their way, which made the rest of these go

    async def aclose(self) -> None:
        """End the watch; the loader forgets it, and whoever waits for a value gets none.

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
            # It may be watched by now, and its first value on its way to nobody: begin anew.
            connection.transport.life.listeners.pop(updates.id, None)
            connection.transport.spawn(connection.unwatch(updates.id))
            updates.id = uuid.uuid4().hex
            connection.transport.life.listeners[updates.id] = updates
            raise
        if updates.ended:
            connection.transport.spawn(connection.unwatch(updates.id))
        else:
            ask = functools.partial(connection.remote.request_unordered, "watch", **options)
            updates.asking = connection.transport.spawn(_ask_again(ask, updates))
        return first.frames

    async def _whole(self, latest: PartialResponse) -> Frames:
        lane = await self._connection.remote.ready()
        header = _request.header(
            "watch", (), epoch=self._connection.remote.info.epoch, algorithm=lane.digest
        )
        header["id"] = latest.header["news"]
        request = Request(header, (), self._limit, trusted=not self._connection.trust.data)
        _, frames = await lane.rest(request, latest)
        return frames


class UpdateBuffer:
    """What the loader sent by itself: the latest of it."""

    def __init__(self, limit: int | None) -> None:
        self.id = uuid.uuid4().hex
        self.ended = False
        self.asking: asyncio.Task[None] | None = None
        self.renewed = asyncio.Event()
        self.seen = 0  # the number of the latest
        self._limit = limit
        self._latest: Latest | None = None
        self._failure: BridgeError | None = None
        self._changed = asyncio.Event()

    def feed(self, content: dict[str, Any], buffers: list[Any]) -> None:
        """Take one message of the loader's."""
        try:
            told = _protocol.parse(content["answer"])
            parts = buffers or [base64.b64decode(told.pop("data", ""), validate=True)]
            told["news"] = as_text(content["news"])
            self.seen = int(told["news"].rpartition(":")[2])
            inbox = _protocol.open_response(told, self._limit)
            _protocol.add_chunk(told, inbox, 0, parts)
        except BridgeError as error:
            self._latest, self._failure = None, error
        except (KeyError, TypeError, ValueError) as error:
            self._latest = None
            self._failure = ProtocolError(f"the loader sent no news: {error!r}")
        else:
            self._latest, self._failure = PartialResponse(told, inbox), None
        self._changed.set()

    def put(self, frames: Frames) -> None:
        """A value that was asked for."""
        self._latest = frames
        self._changed.set()

    def give_back(self, latest: Latest) -> None:
        """It was not delivered: unless there is a newer one, it still is the latest."""
        if self._latest is None:
            self._latest = latest

    def renew(self) -> None:
        """Messages come by another connection now, and some were lost with the one before."""
        self.renewed.set()

    def end(self) -> None:
        """The kernel is gone, or the bridge, or nobody wants to know any more."""
        self.ended = True
        if self.asking is not None:
            self.asking.cancel()
        self._changed.set()

    async def next(self) -> Latest:
        """The latest, once there is any."""
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


async def _ask_again(ask: Callable[..., Awaitable[Frames]], updates: UpdateBuffer) -> None:
    """Keep the watch alive over there, and begin it again if it was dropped."""
    while True:
        async with waited(ASK_EVERY):
            await updates.renewed.wait()
        seen = updates.seen if updates.renewed.is_set() else None
        updates.renewed.clear()
        with contextlib.suppress(BridgeError):
            frames = await ask(seen=seen)
            if frames:
                updates.put(frames)


def _leave(connection: Connection, updates: UpdateBuffer) -> None:
    """Nobody follows it any more; called by whoever closes it, or by the garbage collector."""

    async def tell() -> None:
        connection.transport.life.listeners.pop(updates.id, None)
        if updates.asking is not None:
            updates.asking.cancel()
            await connection.unwatch(updates.id)

    def leave() -> None:
        if connection.transport.life.state != "closed":
            connection.transport.spawn(tell())

    with contextlib.suppress(RuntimeError):  # the loop is closed, and the bridge with it
        connection.loop.call_soon_threadsafe(leave)
