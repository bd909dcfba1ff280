"""Frames beside the messages: a socket to a thread in the kernel, and shared memory.

Rule: which of two ways a request takes. The kernel's socket thread binds and fetches names at
once, if the kernel runs no cell and this bridge has no message in the kernel's queue. Any other
request goes to the main thread in a message; its large frames are sent ahead over the socket, and
the frames of its response are fetched over it. Where no memory can be shared, messages carry all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from bridgehead._errors import (
    BridgeError,
    KernelRestarted,
    ProtocolError,
    RemoteError,
    ReplyLost,
)
from bridgehead._lanes.base import Lane, MessageLane
from bridgehead._lanes.socket import CHUNK, QueuedReply, SocketClient, SocketLost, SocketReply
from bridgehead._protocol import request as _request
from bridgehead._protocol.payload import empty
from bridgehead._protocol.raising import raise_error
from bridgehead._protocol.request import Request
from bridgehead._protocol.response import Response, no_memory, open_response
from bridgehead._shipped.wire import frames as _frames
from bridgehead._shipped.wire.errors import WireError
from bridgehead._shipped.wire.frames import SHARE_FROM
from bridgehead._shipped.wire.header import BESIDE_CELLS, RequestHeader, ResponseHeader
from bridgehead._shipped.wire.segments import Pool, Segment
from bridgehead._shipped.wire.socket import UnmappedSegment
from bridgehead._transports.base import Transport
from bridgehead._transports.tasks import in_thread, retrieve_exception, run_all

FOR_THREAD = ("batch", "load_codec", *BESIDE_CELLS)  # operations, besides those of a batch
COPY_OFF_LOOP = 2 << 20  # bytes; more is copied in a thread, so the event loop goes on
log = logging.getLogger("bridgehead")


class DirectLane(Lane):
    """The lane between two processes of one user on one machine."""

    name = "direct"
    digest = "none"
    chunk = reply_chunk = CHUNK

    def __init__(
        self, transport: Transport, client: SocketClient, messages: MessageLane, name: str
    ) -> None:
        """Make the lane over a connected socket.

        ``messages`` is the lane for everything else. ``name`` is the name by which the remote part
        knows the socket's thread.
        """
        super().__init__(transport)
        self.client, self.messages, self.thread_name = client, messages, name
        self._warned = False

    @property
    def is_lost(self) -> bool:
        return self.client.is_lost

    @property
    def in_messages(self) -> MessageLane:
        return self.messages

    async def notify(self, header: RequestHeader) -> None:
        await self.client.ask(header)
        self._note_acked(header)

    def fields(self) -> dict[str, Any]:
        return {"chunk": self.chunk}

    def serves_beside_cells(self, header: Mapping[str, Any]) -> bool:
        """Return whether the socket thread may serve it: it evaluates no expression of the user."""
        return header["op"] in FOR_THREAD or _request.may_batch(header)

    def can_carry_now(self, header: Mapping[str, Any]) -> bool:
        client = self.client
        return not (
            client.at_work or client.is_lost or self._is_behind_messages
        ) and self.serves_beside_cells(header)

    @property
    def _is_behind_messages(self) -> bool:
        """Whether the socket thread would overtake a message that has to take effect before.

        One of ours is queued, or the kernel has said that it serves one, maybe a cell of another
        client. It says so before the remote part can notice that the cell begins.
        """
        transport = self.transport
        return bool(transport.dispatcher.queued) or transport.life.state == "busy"

    async def carry(self, request: Request) -> Response:
        """Send one request; return its response, or the beginning of it.

        A request that the socket thread would have overtake a message goes behind it, to the main
        thread.

        Raises:
            KernelRestarted: the socket thread had ended before; nothing was done.
            ReplyLost: the socket thread ended while it served the request.
            BridgeError: see ``Lane.carry``.
        """
        header, now = request.header, request.header.get("now")
        if self.is_lost:
            await self._raise_lost("nothing was sent")
        if self.serves_beside_cells(header) and (now or not self._is_behind_messages):
            if not now:
                # One request at a time: a stopped kernel has one to do when it continues, and
                # whatever the caller gave up takes effect before this one.
                await self._drain()
            return await self.carry_now(request)
        # The request runs a user's code, or has to wait behind a message. Large frames go ahead in
        # shared memory; small ones go in the message, which costs no second round trip.
        if request.nbytes < SHARE_FROM:
            return await self._in_main_thread(request, request.frames)
        with self.forgetting_on_error(request):
            try:
                reply = await self._send(request, {**header, "op": "chunk"})
            except SocketLost:
                # A chunk is only stored, so nothing ran and the request may be sent again.
                await self._raise_lost("nothing was done")
            if reply is None:
                return await self._by_messages(request)
            raise_error(reply[0], ())
            return await self._in_main_thread(request, ())

    async def carry_now(self, request: Request) -> Response:
        """Have the socket thread serve a request; see ``carry``."""
        try:
            reply = await self._send(request, request.header)
        except SocketLost:
            await self._raise_lost()
        if reply is None:
            return await self._by_messages(request)
        if "busy" in reply[0]:
            # A cell runs. The thread has stored the frames and done nothing; the main thread
            # binds or fetches the names when the cell is done.
            return await self._in_main_thread(request, ())
        response = await self._open(request, reply)
        return self._track(response) if response.is_partial else response

    async def _in_main_thread(self, request: Request, frames: Sequence[memoryview]) -> Response:
        """Have the main thread serve a request in a message.

        Pass no ``frames`` if the remote part has received them already. If the caller gives up,
        another message has the remote part drop the frames. It arrives after the first message,
        so the request may have run by then.
        """
        with self.messages.forgetting_on_error(request):
            await self._drain()
            # The reply to the message brings no frames (0 bytes): ``complete`` fetches them over
            # the socket. In a batch, the remote part stops when the responses have filled this
            # size, so a batch gets the full size.
            header: RequestHeader = {
                **request.header,
                "via": self.thread_name,
                "chunk": self.chunk if request.header["op"] == "batch" else 0,
                "at": 0 if frames else request.nbytes,
            }
            if frames:  # in a message they need the digest of the wire that carries it
                header = {**header, "digest": _frames.digest(self.messages.digest, frames)}
            reply, _ = await self.messages.cross(header, frames, request.subshell, request.outputs)
            inbox = open_response(reply, request.limit)
        return self._track(Response(reply, request, inbox, lane=self.name))

    async def complete(self, response: Response) -> Response:
        """Return the whole response: fetch what is missing over the socket.

        Raises:
            ReplyLost: the socket thread ended before all was fetched, or the remote part does not
                have the rest any more.
            BridgeError: the error that the response reports.
        """
        request = response.request
        if response.is_partial and response.header.get("digest") == "none:":
            fetch: RequestHeader = {**request.header, "op": "next_chunk", "sizes": []}
            with self.fetching_rest(request):
                reply, parts = await self._ask(fetch)
                raise_error(reply, ())
                if reply.get("sizes") != response.header.get("sizes"):
                    raise ProtocolError("the kernel sent the frames of another request")
                response = await self._open(request, (response.header, parts))
        if response.inbox is not None:
            self._unfinished.pop(request.header["id"], None)
            return await self.messages.complete(response)
        raise_error(response.header, response.frames, request.limit, trusted=request.trusted)
        return response

    async def _drain(self) -> None:
        """Wait until the socket thread has done what no caller waits for any more.

        Raises:
            KernelRestarted: the socket thread has ended; nothing was sent.
            BridgeError: the kernel has ended, too, as the transport reports it.
        """
        try:
            await self.client.drained()
        except SocketLost:
            await self._raise_lost("nothing was sent")

    async def _raise_lost(self, outcome: str = "") -> NoReturn:
        """Raise why the socket thread has ended: with the kernel, or alone.

        A process that is killed closes this socket before any other sign of its end arrives.

        Raises:
            KernelRestarted: the thread ended alone, and nothing was done, as ``outcome`` says.
            ReplyLost: the thread ended alone, when the request was sent.
            BridgeError: the kernel ended, was restarted or was lost, as the transport reports it.
        """
        await self.transport.find_cause()
        if outcome:
            raise KernelRestarted(f"the kernel's socket thread has ended; {outcome}") from None
        raise ReplyLost(
            "the kernel's socket thread ended before it replied; the request may or may not have "
            "run"
        ) from None

    async def interrupt(self, epoch: str) -> None:
        """Interrupt what the socket thread does.

        A call into C does not notice an interrupt before it returns. Such a thread is left
        alone, with the interrupt pending: nothing that it was asked takes effect any more.
        """
        fields = {**self.messages.fields(), "server": self.thread_name}
        header = _request.header("interrupt", empty(self.messages.digest), epoch=epoch, **fields)
        drained = asyncio.ensure_future(self.client.drained())
        interrupted = False
        try:
            async with asyncio.timeout(self.transport.timings.interrupt_wait):
                await self.messages.complete(await self.messages.carry(Request(header)))
                interrupted = True
                await drained
        except (BridgeError, TimeoutError):
            if not drained.done() or drained.cancelled():
                if interrupted:
                    self.client.fail_waiters(
                        lambda: RemoteError("KeyboardInterrupt", "in a call into C")
                    )
                self.client.close()
        finally:
            drained.cancel()

    async def leave(self) -> None:
        await run_all(super().leave, self.messages.leave)

    def close(self) -> None:
        self.client.close()

    # ------------------------------------------------------------ to the kernel

    async def _send(self, request: Request, header: RequestHeader) -> SocketReply | None:
        """Send a request to the socket thread and return its reply.

        The result is None if there is no memory to share, or if the kernel cannot map it.
        """
        if sum(header["sizes"]) < SHARE_FROM:
            asked = self.client.ask(header, request.payload.frames)
        else:
            segment = request.payload.segment
            if segment is not None:
                segment.pool.lease(segment)
            else:
                segment = await copy_to_segment(self.client.pool, request.frames, request.report)
            if segment is None:
                self._warn_once("there is no memory to share; large objects cross as messages")
                return None
            self.client.channel.lease_out(segment)
            asked = self.client.ask(header, (), segment)
        try:
            reply = await asked
        except BaseException:
            is_sent = not isinstance(asked, QueuedReply) or asked.was_sent
            if is_sent and header["op"] != "chunk":  # ``carry`` has one forgotten
                self.forget(header)  # the remote part may have stored it, if a cell runs
            raise
        if reply[0].get("unmapped"):
            self._warn_once("the kernel cannot map shared memory; large objects cross as messages")
            return None
        return reply

    async def _by_messages(self, request: Request) -> Response:
        """Carry the whole request and its response without shared memory."""
        payload = await in_thread(request.payload.signed, self.messages.digest)
        fields: Any = self.messages.fields()
        header: RequestHeader = {**request.header, **fields, "digest": payload.digest}
        limit = request.limit
        if header["op"] == "batch":  # the kernel fills a message of the other lane
            limit = self.messages.reply_chunk
        await self._drain()
        return await self.messages.carry(
            replace(request, header=header, payload=payload, limit=limit)
        )

    # ------------------------------------------------------------ from the kernel

    async def _open(self, request: Request, reply: SocketReply) -> Response:
        header: ResponseHeader = {"digest": "none:", **reply[0]}  # the default is not sent
        frames = reply[1]
        if isinstance(frames, UnmappedSegment):
            self._warn_once("shared memory cannot be mapped; large objects cross as messages")
            # The remote part keeps the frames, and the message lane fetches them.
            unmapped: RequestHeader = {"sizes": header["sizes"], "segment": frames.number}
            frames.number = 0  # the remote part takes the segment back
            kept, _ = await self._ask({**request.header, "op": "unmapped", **unmapped})
            raise_error(kept, ())
            header, frames = {**header, **kept}, []
        are_kept = not frames and bool(header["sizes"])  # in the kernel
        if are_kept or request.limit is not None:
            inbox = open_response(header, request.limit)  # raises if it is longer
            if are_kept:
                return Response(header, request, inbox, lane=self.name)
        response = Response(header, request, None, frames=frames, lane=self.name)
        if not frames:
            return response
        maps = self.client.channel.maps
        if not request.trusted:
            try:
                maps.check_memory(frames)
            except WireError as error:
                raise ProtocolError(f"the kernel sent frames without memory: {error}") from None
        if request.unread:
            maps.cold.clear()
        elif maps.cold:  # a thread maps the pages; the caller need not wait for it
            in_thread(maps.populate)
        if not request.trusted:
            # The kernel can still write to this memory. Data is read from a copy, so that it
            # does not change between its check and its use.
            try:
                response.frames = await in_thread(_frames.private_copy, frames)
            except MemoryError as error:
                raise no_memory(error) from error
        return response

    async def _ask(self, header: RequestHeader) -> SocketReply:
        """Ask the socket thread for something without frames; raise why there is no reply."""
        try:
            return await self.client.ask(header)
        except SocketLost:
            await self._raise_lost()

    def _warn_once(self, warning: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning("%s", warning)


async def copy_to_segment(
    pool: Pool, frames: Sequence[memoryview], report: Callable[[int, int], object]
) -> Segment | None:
    """Copy frames into a segment with one lease; return None where there is no memory for it.

    A long copy runs in a thread, and ``report`` is called with bytes done and bytes in all. The
    segment is given back when the copy is cancelled, and when ``report`` raises.
    """
    sizes = [frame.nbytes for frame in frames]
    segment, total = pool.take(sizes), sum(sizes)
    if segment is None:
        return None
    steps = segment.fill(frames)
    step: asyncio.Future[int | None] | None = None
    try:
        if total <= COPY_OFF_LOOP:
            for _ in steps:
                pass
            return segment
        while True:
            step = in_thread(next, steps, None)
            done = await asyncio.shield(step)
            if done is None:
                return segment
            report(min(done, total), total)
    except OSError:
        pool.give_back(segment)
        return None
    except BaseException:
        if step is None or step.done():
            pool.give_back(segment)
        else:  # a thread still writes into the segment, or fails because the pool is closed
            step.add_done_callback(retrieve_exception)
            step.add_done_callback(lambda _: pool.give_back(segment))
        raise
