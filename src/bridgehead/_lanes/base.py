"""How a request's frames travel over one transport.

Rule: a lane knows how bytes travel, and nothing of what they mean. What all lanes share is here,
and how they cross in Jupyter messages: a request longer than ``chunk`` bytes takes several, and the
remote part acts only on the last of them. Each subclass says how one message carries its chunk.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Unpack

from bridgehead._errors import (
    CLOSED,
    BridgeClosed,
    BridgeError,
    IntegrityError,
    KernelRestarted,
    ReplyLost,
)
from bridgehead._lanes.arrival import Arrival, store_chunk
from bridgehead._protocol import request as _request
from bridgehead._protocol import response as _response
from bridgehead._protocol.bootstrap import expression
from bridgehead._protocol.raising import raise_error
from bridgehead._protocol.request import KEY, OutputHandler, Request
from bridgehead._protocol.response import Response, SubshellDeleted
from bridgehead._shipped.wire import frames as _frames
from bridgehead._shipped.wire.digest import LEAF, Buffer, digest_of
from bridgehead._shipped.wire.frames import cut
from bridgehead._shipped.wire.header import RequestHeader, ResponseHeader
from bridgehead._transports.base import Transport
from bridgehead._transports.request_table import Handlers, Reply
from bridgehead._transports.tasks import waited

# Takes each chunk of a response that comes ahead of the reply; see ``Dispatcher.request``.
ChunkHandler = Callable[[asyncio.Future[Reply], Any, list[Any]], object]
CHUNKS_IN_FLIGHT = 3  # enough to hide the round trip; a fourth only took memory (measured)


class Lane(ABC):
    """One way to carry frames over one transport.

    Attributes:
        chunk: the most bytes of frames that one message carries to the kernel, a multiple of the
            digest's leaf.
        reply_chunk: the most bytes of frames in the reply to one message, a multiple of the leaf
            too.
    """

    name: ClassVar[str]
    chunk: int
    reply_chunk: int

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.chunk = min(self.chunk, transport.capabilities.max_send)
        self.reply_chunk = min(self.reply_chunk, transport.capabilities.max_receive)
        # By id, the headers of requests whose responses the kernel need not keep any more.
        self._to_ack: dict[str, RequestHeader] = {}
        self._unfinished: dict[str, RequestHeader] = {}
        self._closing = False

    @property
    @abstractmethod
    def digest(self) -> str:
        """The algorithm with which frames are signed on this lane."""

    @property
    def is_lost(self) -> bool:
        """Whether the handshake must make another lane of this kind."""
        return False

    @property
    @abstractmethod
    def in_messages(self) -> MessageLane:
        """The lane for what crosses in messages, also in that of a cell."""

    @abstractmethod
    def fields(self) -> dict[str, Any]:
        """Return what the kernel has to know for its reply, for the header of a request.

        That is how many bytes one message may bring, and whether the connection may break and be
        made anew: then the kernel keeps the response until the ack.
        """

    def serves_beside_cells(self, header: Mapping[str, Any]) -> bool:
        """Return whether it serves such a request while the kernel's main thread runs a cell."""
        return False

    def can_carry_now(self, header: Mapping[str, Any]) -> bool:
        """Return whether ``carry_now`` may send a request that no other one of its caller precedes.

        Its caller then carries it, and no task of the queue.
        """
        return False

    async def carry_now(self, request: Request) -> Response:
        """Carry a request for which ``can_carry_now`` is true; see ``carry``."""
        return await self.carry(request)

    @abstractmethod
    async def notify(self, header: RequestHeader) -> None:
        """Send one message without frames, whose reply brings nothing; wait for the reply."""

    @abstractmethod
    async def carry(self, request: Request) -> Response:
        """Send one request and return the beginning of its response.

        Nothing takes effect in the kernel before the last chunk. Cancelling has the remote part
        drop what was sent.

        Raises:
            IntegrityError: the frames that arrived are not those that were signed; nothing was
                done.
            PayloadTooLarge: the response is longer than the request's limit.
            BridgeError: see ``Dispatcher.request``.
        """

    @abstractmethod
    async def complete(self, response: Response) -> Response:
        """Fetch what is missing of a response, and check every chunk of it.

        Raises:
            ReplyLost: what arrived is not what the kernel signed, or the kernel does not have the
                rest any more.
            BridgeError: the error that the response reports.
        """

    async def carry_batch(self, requests: Sequence[Request]) -> list[Response | BridgeError]:
        """Send several small requests in one message; see ``split_batch`` for what is returned.

        Raises what ``carry`` does, for all of them.
        """
        batch = _request.batch(requests, self.digest, **self.fields())
        batch.limit = self.reply_chunk
        try:
            response = await self.complete(await self.carry(batch))
            outcomes = _response.split_batch(response.header, response.frames, requests)
        except BaseException:
            # The batch may have run: the remote part need not keep the responses in it.
            self._to_ack |= {request.header["id"]: request.header for request in requests}
            raise
        for outcome in outcomes:
            if isinstance(outcome, Response):
                outcome.lane = response.lane
                self._track(outcome)
        return outcomes

    def forget(self, header: RequestHeader) -> None:
        """Have the remote part drop what it keeps of a request, without waiting for that."""
        self._unfinished.pop(header["id"], None)

        async def send_forget() -> None:
            # If this fails, the remote part drops it by age, or the kernel has ended.
            with contextlib.suppress(BridgeError):
                message = self.message_header(header, 0, op="forget", sizes=[])
                await self.notify(message)

        self.transport.spawn(send_forget())

    async def leave(self) -> None:
        """Have the remote part drop what is unfinished; return when these requests are sent."""
        self._closing = True
        # Each of these messages brings the acks, too.
        for header in list(self._unfinished.values()) or [*self._to_ack.values()][-1:]:
            self.forget(header)
        await asyncio.sleep(0)
        # They, and those of what has just ended, may wait for a slot of the window. A kernel that
        # is busy gives none back.
        async with waited(self.transport.timings.last_messages):
            await self.transport.dispatcher.all_sent()

    def close(self) -> None:  # noqa: B027 - only a lane beside the messages holds anything
        """Release what the lane holds in this process; it may be called again."""

    def message_header(
        self,
        header: RequestHeader,
        at: int,
        stop: int | None = None,
        /,
        **fields: Unpack[RequestHeader],
    ) -> RequestHeader:
        """Return the header of one message of a request, with that message's part of the digest.

        Without ``stop``, the message has a whole chunk, or what is left.
        """
        digest = digest_of(header["digest"], at, at + self.chunk if stop is None else stop)
        acks: RequestHeader = {"acks": [*self._to_ack]} if self._to_ack else {}
        return {**header, "digest": digest, "at": at, **fields, **acks}

    def _note_acked(self, header: RequestHeader) -> None:
        """Note that the kernel has replied to a message, and so has the acks in its header.

        Until then each message brings them: one that is lost, or that its caller gives up, may not
        have arrived.
        """
        for identity in header.get("acks", ()):
            self._to_ack.pop(identity, None)

    def _track(self, response: Response) -> Response:
        """Note what the remote part keeps of a response, to have it dropped later.

        It keeps an incomplete response until ``complete`` has fetched it or ``forget`` drops it.
        Where the connection may break, it keeps every response until the client acknowledges it.
        """
        header = response.request.header
        if response.is_partial:
            self._unfinished[header["id"]] = header
        elif header.get("resumable"):
            self._to_ack[header["id"]] = header
        return response

    @contextlib.contextmanager
    def forgetting_on_error(self, request: Request) -> Iterator[None]:
        """Have the remote part drop what it keeps of a request if the block fails."""
        header = request.header
        self._unfinished[header["id"]] = header
        try:
            yield
        except BaseException:
            self.forget(header)  # the chunks that were sent, and a response that nothing fetches
            raise
        finally:
            self._unfinished.pop(header["id"], None)

    @contextlib.contextmanager
    def fetching_rest(self, request: Request) -> Iterator[None]:
        """Do as ``forgetting_on_error`` while the block fetches the rest of a response.

        The request ran. Errors that say that it may be sent again are replaced. If it was an update
        of a watch, the remote part dropped the rest for a newer one.
        """
        with self.forgetting_on_error(request):
            try:
                yield
            except (KernelRestarted, IntegrityError, SubshellDeleted) as error:
                raise ReplyLost(
                    "the request ran, but the kernel no longer has the rest of its response; pull "
                    "the value again"
                ) from error


class MessageLane(Lane):
    """A lane whose frames cross in Jupyter messages; a subclass says how a message has them."""

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport)
        self.sums: bool = False  # whether both ends have numpy loaded

    @property
    def digest(self) -> str:
        if self.sums and self.transport.capabilities.digest == "crc32":
            return "sums"
        return self.transport.capabilities.digest

    def note_sums(self, reply: ResponseHeader) -> None:
        """Note whether both ends have numpy loaded, which computes the digest ``sums``.

        Each response says so again. Once in the handshake was too early: a kernel mostly loads
        numpy later, and 100 MB by buffers then took 106 instead of 72 ms (measured).
        """
        self.sums = reply.get("sums") is True and "numpy" in sys.modules

    @property
    def in_messages(self) -> MessageLane:
        return self

    def fields(self) -> dict[str, Any]:
        resumable = self.transport.capabilities.resumable
        return {"chunk": self.reply_chunk, "resumable": resumable or None}

    @abstractmethod
    def read(self, reply: Reply) -> tuple[ResponseHeader, list[Buffer]]:
        """Return the header and the frames that the reply to a message brings."""

    @abstractmethod
    def write(
        self, header: RequestHeader, parts: Sequence[memoryview]
    ) -> tuple[dict[str, Any], Sequence[memoryview]]:
        """Return the content and the buffers of the message that brings these frames."""

    async def cross(
        self,
        header: RequestHeader,
        parts: Sequence[memoryview],
        subshell: str | None,
        outputs: OutputHandler | None = None,
        arrival: Arrival | None = None,
    ) -> tuple[ResponseHeader, list[Buffer]]:
        """Send one message and return its reply.

        ``outputs`` takes what it prints and displays, ``arrival`` the chunks that come before.
        """
        content, buffers = self.write(header, parts)
        reply = await self.transport.dispatcher.request(
            content,
            buffers,
            subshell=subshell,
            handlers=Handlers(
                None if outputs is None else outputs.feed,
                lasting=outputs is not None and outputs.lasting,
                on_chunk=None if arrival is None else arrival.chunk,
            ),
            repeatable=True,
        )
        if outputs is not None:
            outputs.reply(reply.id)
        if subshell is not None:
            _response.check_subshell(reply.content)
        read = self.read(reply)
        self._note_acked(header)
        return read

    async def notify(self, header: RequestHeader) -> None:
        await self.cross(header, (), None)

    async def carry(self, request: Request) -> Response:
        header, frames, total = request.header, request.frames, request.nbytes
        # The remote part only stores the chunks before ``last``. The message at ``last`` has it
        # act, so an operation is done wholly or not at all, however many messages it takes. It goes
        # when the others are acknowledged, so nothing else is on its way then: it is short.
        last = 0 if total <= self.chunk else (total - 1) // LEAF * LEAF
        last_fields: RequestHeader = {}
        if request.delivered:
            # All frames are in the kernel: only the header crosses, with the digest of no bytes.
            algorithm = header["digest"].partition(":")[0]
            last, last_fields = total, {"digest": _frames.digest(algorithm, ())}
        done = 0

        async def send_chunk(at: int) -> None:
            nonlocal done
            # A chunk sent after ``leave`` would reach the kernel after the request to forget it,
            # and would stay in the kernel's memory.
            if self._closing:
                raise BridgeClosed(CLOSED)
            stop = min(at + self.chunk, last)
            reply, _ = await self.cross(
                self.message_header(header, at, stop, op="chunk"),
                list(cut(frames, at, stop)),
                request.subshell,
            )
            raise_error(reply, ())
            done += stop - at
            request.report(done, total)

        with self.forgetting_on_error(request):
            # The last message goes when every chunk before it is acknowledged: a failed chunk
            # ends the request before anything takes effect.
            if not request.delivered:
                await _in_flight(send_chunk(at) for at in range(0, last, self.chunk))
            parts = list(cut(frames, last, total))
            with contextlib.closing(Arrival(request)) as arrival:
                reply, reply_parts = await self.cross(
                    self.message_header(header, last, **last_fields),
                    parts,
                    request.subshell,
                    request.outputs,
                    arrival,
                )
                response = await self._begin_response(request, arrival, reply, reply_parts)
        return self._track(response)

    async def _begin_response(
        self,
        request: Request,
        arrival: Arrival,
        reply: ResponseHeader,
        reply_parts: Sequence[Buffer],
    ) -> Response:
        """Return a response, with what its first message has brought."""
        self.note_sums(reply)
        inbox = await arrival.inbox(reply)
        response = Response(reply, request, inbox, lane=self.name)
        # A response of one message is copied and checked now. The first chunk of a longer one
        # waits for ``complete``, which copies it while the next chunks are on their way.
        if inbox.total <= self.reply_chunk:
            await store_chunk(reply, inbox, 0, reply_parts)
        else:
            response.parts += reply_parts
        # The signed header says how many bytes belong to it; Jupyter does not sign buffers,
        # and a proxy may have dropped them. ``complete`` fetches from where these end.
        expected = reply.get("ahead") or min(inbox.total, self.reply_chunk)
        if response.arrived != expected:
            raise ReplyLost(
                f"the kernel's response is damaged: {response.arrived} of its first "
                f"{expected} bytes arrived"
            )
        return response

    async def carry_with_cell(
        self,
        request: Request,
        content: dict[str, Any],
        send: Callable[[dict[str, Any], ChunkHandler], Awaitable[Reply]],
    ) -> tuple[Reply, Response | BridgeError | None]:
        """Send a cell whose message brings a request without frames, which is served after it.

        Return the cell's reply, and the beginning of the response, or why it cannot be read; None
        if the cell failed, or did not run.
        """
        header, arriving = request.header, contextlib.closing(Arrival(request))
        with self.forgetting_on_error(request), arriving as arrival:
            message = self.message_header(header, 0)
            text = expression(self.name, message)
            reply = await send({**content, "user_expressions": {KEY: text}}, arrival.chunk)
            if reply.content.get("status") == "error":
                return reply, None
            try:
                read = self.read(reply)
                self._note_acked(message)
                response = await self._begin_response(request, arrival, *read)
            except BridgeError as error:
                self.forget(header)
                return reply, error
        return reply, self._track(response)

    async def complete(self, response: Response) -> Response:
        request, inbox = response.request, response.inbox
        assert inbox is not None

        async def add_first() -> None:
            await store_chunk(response.header, inbox, 0, response.parts)
            response.parts.clear()  # frees their memory for the next chunks
            request.report(inbox.received, inbox.total)

        async def fetch_chunk(at: int) -> None:
            header = self.message_header(
                request.header, at, op="next_chunk", sizes=[], chunk=self.reply_chunk
            )
            reply, parts = await self.cross(header, (), request.subshell)
            raise_error(reply, ())
            nbytes = sum(memoryview(part).nbytes for part in parts)
            if nbytes != min(self.reply_chunk, inbox.total - at):
                raise ReplyLost(f"the kernel's response is damaged: its chunk at {at} is not whole")
            await store_chunk(reply, inbox, at, parts)
            request.report(inbox.received, inbox.total)

        if response.is_partial:
            with self.fetching_rest(request):
                # The first chunk is copied and checked while the next ones are on their way.
                first = [add_first()] if response.parts else []
                starts = range(response.arrived, inbox.total, self.reply_chunk)
                await _in_flight(itertools.chain(first, map(fetch_chunk, starts)))
            self.forget(request.header)
        response.frames = _response.close_response(inbox)
        raise_error(response.header, response.frames, request.limit, trusted=request.trusted)
        return response


async def _finish_one(running: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    """Wait until a task has ended, and return those that have not; raise why a task failed."""
    done, others = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    return others


async def _in_flight(jobs: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run the jobs, ``CHUNKS_IN_FLIGHT`` at a time; the first failure or a cancel ends them all."""
    running: set[asyncio.Task[None]] = set()
    try:
        for job in jobs:
            running.add(asyncio.create_task(job))
            await asyncio.sleep(0)  # the loop takes other turns between the messages of two chunks
            if len(running) >= CHUNKS_IN_FLIGHT:
                running = await _finish_one(running)
        while running:
            running = await _finish_one(running)
    finally:
        for task in running:
            task.cancel()
        # Wait for them all, and retrieve their exceptions: more than one may have failed.
        await asyncio.gather(*running, return_exceptions=True)
