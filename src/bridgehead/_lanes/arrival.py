"""The chunks of a long response that arrive ahead of its reply.

Rule: from a message of frames to the inbox of one response. The remote part sends such chunks while
it serves the request, as fast as the connection takes them, and each has a header of its own.
Each is copied and checked while the next ones are on their way. The reply says how many bytes were
sent ahead; what is missing is fetched as usual.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from bridgehead._errors import ReplyLost
from bridgehead._protocol import response as _response
from bridgehead._protocol.request import Request
from bridgehead._shipped.wire.digest import Buffer
from bridgehead._shipped.wire.header import ResponseHeader
from bridgehead._shipped.wire.transfer import Inbox
from bridgehead._transports.tasks import in_thread

OFF_LOOP = 1 << 20  # bytes; more is copied and checked in a thread, so the event loop goes on
COPIED_AT_ONCE = 2  # chunks; more threads were no faster (measured)


async def store_chunk(
    reply: ResponseHeader, inbox: Inbox, at: int, parts: Sequence[Buffer]
) -> None:
    """Copy a chunk to its place in the inbox and check it; in a thread if it is long."""
    if sum(memoryview(part).nbytes for part in parts) > OFF_LOOP:
        await in_thread(_response.add_chunk, reply, inbox, at, parts)
    else:
        _response.add_chunk(reply, inbox, at, parts)


class Arrival:
    """What has arrived of the response to one request, before its reply."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._inbox: Inbox | None = None
        self._jobs: list[asyncio.Task[None]] = []
        self._error: Exception | None = None
        self._free = asyncio.Semaphore(COPIED_AT_ONCE)

    def chunk(self, waiter: asyncio.Future[Any], header: Any, parts: Sequence[Buffer]) -> None:
        """Take a chunk; the reader of the channel calls this.

        If the chunk is damaged, or cannot be stored, ``waiter``, the future of the reply, gets the
        error at once.
        """
        if not waiter.done():  # else its caller has given up, or an earlier chunk failed
            work = self._add(waiter, header, parts)
            self._jobs.append(asyncio.get_running_loop().create_task(work))

    async def _add(self, waiter: asyncio.Future[Any], header: Any, parts: Sequence[Buffer]) -> None:
        try:
            if self._inbox is None:
                self._inbox = _response.open_response(header, self._request.limit)
            inbox = self._inbox
            async with self._free:
                await store_chunk(header, inbox, header.get("at"), parts)
            self._request.report(inbox.received, inbox.total)
        except Exception as error:  # noqa: BLE001 - ``report`` is a function of the user's
            self._error = error
            if not waiter.done():
                waiter.set_exception(error)

    async def inbox(self, reply: ResponseHeader) -> Inbox:
        """Return the inbox of the response, with all in it that was sent ahead.

        Raises:
            ReplyLost: a chunk is missing or damaged.
            BridgeError: see ``open_response``.
        """
        ahead = reply.get("ahead")
        if not ahead:  # sent in the usual way; an error may have replaced what was sent ahead
            return _response.open_response(reply, self._request.limit)
        await asyncio.gather(*self._jobs)
        if self._error is not None:
            raise self._error
        inbox = self._inbox
        if inbox is None or inbox.sizes != reply.get("sizes") or inbox.received != ahead:
            arrived = 0 if inbox is None else inbox.received
            raise ReplyLost(
                f"the kernel's response is damaged: {arrived} of the {ahead} bytes that it sent "
                "ahead arrived"
            )
        return inbox

    def close(self) -> None:
        """Drop what has arrived, and end what is being copied."""
        for job in self._jobs:
            job.cancel()
