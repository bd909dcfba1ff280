"""Frames beside the messages: a socket to a thread of the loader's, and shared memory.

Rule: which way a request goes, of the two there are. Names are bound and fetched by the thread,
at once, if the kernel runs no cell and nothing of this bridge's is in its queue; everything
that runs a user's code goes to the main thread in a message, with its frames sent ahead and
those of its answer fetched. Where there is no memory to share, the whole goes by messages.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from bridgehead._errors import (
    BridgeError,
    IntegrityError,
    KernelRestarted,
    ProtocolError,
    RemoteError,
    ReplyLost,
)
from bridgehead._lanes.base import Lane, Request
from bridgehead._lanes.socket import CHUNK, SocketClient, SocketLost, SocketReply
from bridgehead._protocol import request as _request
from bridgehead._protocol import response as _protocol
from bridgehead._protocol.raising import raise_error
from bridgehead._protocol.response import PartialResponse
from bridgehead._shipped.wire import frames as _wire
from bridgehead._shipped.wire.digest import Buffer
from bridgehead._shipped.wire.frames import SHARED
from bridgehead._shipped.wire.header import Header
from bridgehead._shipped.wire.segments import Pool, Segment
from bridgehead._shipped.wire.transfer import CompleteTransfer
from bridgehead._transports.base import Transport

INTERRUPT_WAIT = 2.0  # s for an interrupted thread to answer
BRIEF = 2 << 20  # bytes; more is copied in a thread, the event loop goes on
T = TypeVar("T")
log = logging.getLogger("bridgehead")


class DirectLane(Lane):
    """The kernel's process and ours on one machine, of one user."""

    name = "direct"
    chunk = back = CHUNK

    def __init__(
        self, transport: Transport, client: SocketClient, messages: Lane, name: str
    ) -> None:
        """``messages`` is the lane for the rest; ``name`` is what the server knows the link by."""
        super().__init__(transport)
        self.client, self.messages, self.server = client, messages, name
        self._complained = False

    @property
    def digest(self) -> str:
        return "none"

    @property
    def lost(self) -> bool:
        return self.client.lost

    @property
    def message_lane(self) -> str:
        return self.messages.name

    async def cross(
        self, header: Header, parts: Sequence[memoryview], subshell: str | None
    ) -> tuple[Header, list[Buffer]]:
        told, frames = await self.client.ask(header, parts)
        return told, list(frames or ())

    def is_free(self, header: Header) -> bool:
        """Whether a request may cross at once, out of any queue, since nothing is before it."""
        return served_there(header) and not (
            self.transport.dispatcher.queued or self.client.at_work
        )

    async def carry(self, request: Request) -> PartialResponse:
        """One request there, and its answer, or the beginning of it, back.

        Raises:
            KernelRestarted: the thread is not there any more; nothing was done.
            ReplyLost: it went while it was at the request.
            BridgeError: see ``Lane.carry``.
        """
        header = request.header
        if self.lost:
            raise KernelRestarted("the loader's thread is gone; nothing was sent")
        header["chunk"], header["digest"], request.lane = self.chunk, "none:", self.name
        frames = request.frames
        if served_there(header) and (header.get("now") or not self.transport.dispatcher.queued):
            if not header.get("now"):  # a stopped kernel finds one request at its door
                await self._turn()
            try:
                answer = await self._explained(self._sent(request, header))
            except BaseException:
                self.forget(header)  # it may be kept there, if a cell runs
                raise
            if answer is None:
                return await self._by_messages(request)
            if "busy" not in answer[0]:
                return self._begun(request, await self._opened(request, answer))
            return await self._behind_cell(request, ())  # the frames are there
        with self.kept(request):
            if request.nbytes >= SHARED:
                try:
                    answer = await self._sent(request, {**header, "op": "chunk"})
                except SocketLost:
                    raise KernelRestarted("the loader's thread went; nothing was done") from None
                if answer is None:
                    return await self._by_messages(request)
                raise_error(answer[0], ())
                frames = ()
            elif frames:
                header["digest"] = _wire.digest(self.transport.digest, frames)
        return await self._behind_cell(request, frames)

    async def _behind_cell(self, request: Request, frames: Sequence[memoryview]) -> PartialResponse:
        """Have the main thread do it; frames that are not sent with it are there.

        Given up, they are forgotten in a message too: after this one, which may have run by then.
        """
        with self.messages.kept(request):
            await self._turn()
            header = request.header
            # None of the answer's bytes in the message; a batch has room for its answers' all
            # the same, or none of it would be done.
            room = self.chunk if header["op"] == "batch" else 0
            asked = {**header, "via": self.server, "chunk": room}
            asked["at"] = 0 if frames else request.nbytes
            told, _ = await self.messages.cross(asked, frames, request.subshell)
            opened = PartialResponse(told, _protocol.open_response(told, request.limit))
        return self._begun(request, opened)

    async def rest(
        self, request: Request, opened: PartialResponse
    ) -> tuple[Header, list[memoryview]]:
        """The answer as a whole; raises the error that it tells of.

        Raises:
            ReplyLost: the kernel's thread went before it was fetched, or what it kept of it.
        """
        if opened.header.get("digest") == "none:" and opened.inbox.total > opened.arrived:
            asked = {**request.header, "op": "next_chunk", "sizes": [], "at": 0, "digest": "none:"}
            with self.kept(request):
                told, parts = await self._explained(self.client.ask(asked))
                try:
                    raise_error(told, ())
                except (KernelRestarted, IntegrityError) as error:
                    # It ran, as in ``Lane.rest``; of what is watched, there is a newer value.
                    raise ReplyLost("the kernel lost the rest of its answer") from error
                if told.get("sizes") != opened.header.get("sizes"):
                    raise ProtocolError("the kernel sent another answer")
                opened = await self._opened(request, (opened.header, parts))
        if not isinstance(opened.inbox, CompleteTransfer):
            return await self.messages.rest(request, opened)
        frames = opened.inbox.frames
        raise_error(opened.header, frames, request.limit, trusted=request.trusted)
        return opened.header, frames

    async def _turn(self) -> None:
        """Wait until the thread has done what nobody waits for any more: it goes first.

        Raises:
            KernelRestarted: the thread is gone; nothing was sent.
        """
        try:
            await self.client.drained()
        except SocketLost:
            raise KernelRestarted("the loader's thread is gone; nothing was sent") from None

    async def interrupt(self, epoch: str) -> None:
        """Interrupt what the thread is at.

        A call into C does not hear it before it returns. It is left to itself, and to the
        interrupt that waits for it: nothing that it was asked takes effect any more.
        """
        algorithm = self.transport.digest
        header = _request.header(
            "interrupt", (), epoch=epoch, algorithm=algorithm, server=self.server
        )
        request, drained = Request(header, ()), asyncio.ensure_future(self.client.drained())
        interrupted = False
        try:
            async with asyncio.timeout(INTERRUPT_WAIT):
                await self.messages.rest(request, await self.messages.carry(request))
                interrupted = True
                await drained
        except (BridgeError, TimeoutError):
            if not drained.done() or drained.cancelled():
                if interrupted:
                    self.client.tell(lambda: RemoteError("KeyboardInterrupt", "in a call into C"))
                self.client.close()
        finally:
            drained.cancel()

    async def leave(self) -> None:
        await super().leave()
        await self.messages.leave()
        self.client.close()

    # ------------------------------------------------------------ there

    async def _sent(self, request: Request, header: Header) -> SocketReply | None:
        """Have the thread answer; None if there is no memory to share, or it can't be mapped."""
        if request.nbytes < SHARED:
            return await self.client.ask(header, request.frames)
        segment = request.segment
        if segment is not None:
            segment.pool.lease(segment)
        else:
            segment = await copy_to_segment(self.client.pool, request.frames, request.report)
        if segment is None:
            self._complain("there is no memory to share; large objects cross as messages")
            return None
        self.client.channel.lend(segment)
        answer = await self.client.ask(header, (), segment)
        if answer[0].get("unmapped"):
            self.client.channel.take_back(segment, unmapped=True)
            self._complain("the kernel cannot map shared memory; large objects cross as messages")
            return None
        return answer

    async def _by_messages(self, request: Request) -> PartialResponse:
        """The whole request, and its answer, without shared memory."""
        header, algorithm = request.header, self.transport.digest
        header["digest"] = await asyncio.to_thread(_wire.digest, algorithm, request.frames)
        await self._turn()
        return await self.messages.carry(request)

    # ------------------------------------------------------------ and back

    async def _opened(self, request: Request, answer: SocketReply) -> PartialResponse:
        told, frames = answer
        told.setdefault("digest", "none:")
        if frames is None:
            self._complain("shared memory cannot be mapped; large objects cross as messages")
            asked = {**request.header, "op": "unmapped", "sizes": told["sizes"]}
            kept, _ = await self._explained(self.client.ask(asked))
            raise_error(kept, ())
            told, frames = {**told, **kept}, []
        inbox = _protocol.open_response(told, request.limit)
        if not frames:
            return PartialResponse(told, inbox)
        maps = self.client.channel.maps
        if request.unread:
            maps.cold.clear()
        elif maps.cold:  # nobody has to wait for it
            asyncio.get_running_loop().run_in_executor(None, maps.populate)
        if not request.trusted:  # nor is who could write to it yet, while it is read
            frames = await asyncio.to_thread(_wire.private_copy, frames)
        return PartialResponse(told, CompleteTransfer(inbox.sizes, frames))

    async def _explained(self, answer: Awaitable[T]) -> T:
        """What was asked, or why there is no answer: the kernel went, or only the thread."""
        try:
            return await answer
        except SocketLost:
            await self.transport.life.explained()
            raise ReplyLost(
                "the loader's thread in the kernel went before it answered; whether the "
                "request took effect is not known"
            ) from None

    def _complain(self, what: str) -> None:
        if not self._complained:
            self._complained = True
            log.warning("%s", what)


async def copy_to_segment(
    pool: Pool, frames: Sequence[memoryview], report: Callable[[int, int], object]
) -> Segment | None:
    """The frames, copied into a segment with one lease; None where there is no memory for it.

    In a thread if it takes long. Cancelling gives the segment back, and so does what ``report``
    raises, which is told of bytes done and in all.
    """
    sizes = [frame.nbytes for frame in frames]
    segment, total = pool.take(sizes), sum(sizes)
    if segment is None:
        return None
    steps = segment.fill(frames)
    step: asyncio.Future[int | None] | None = None
    try:
        if total <= BRIEF:
            for _ in steps:
                pass
            return segment
        loop = asyncio.get_running_loop()
        while True:
            step = loop.run_in_executor(None, next, steps, None)
            done = await asyncio.shield(step)
            if done is None:
                return segment
            report(min(done, total), total)
    except OSError:
        pool.give_back(segment, tainted=True)
        return None
    except BaseException:
        if step is None or step.done():
            pool.give_back(segment)
        else:  # a thread is still writing into it
            step.add_done_callback(lambda _: pool.give_back(segment))
        raise


def served_there(header: Header) -> bool:
    """Whether the loader's thread may do it: it runs no code of the user's but unpickling."""
    return header["op"] in ("batch", "load_codec") or _request.may_batch(header)
