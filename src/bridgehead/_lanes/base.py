"""Lanes carry a request's header and frames to the loader and its answer back.

Rule: a lane knows how bytes travel inside messages, and nothing of what they mean. What all
lanes share is here: a request longer than ``chunk`` bytes crosses in several messages, of
which only the last one has the loader do anything; a lane of its own says how one message
carries its part.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from bridgehead._errors import BridgeClosed, BridgeError, IntegrityError, KernelRestarted, ReplyLost
from bridgehead._protocol import request as _request
from bridgehead._protocol import response as _protocol
from bridgehead._protocol.raising import raise_error
from bridgehead._protocol.response import PartialResponse
from bridgehead._shipped.wire import frames as _wire
from bridgehead._shipped.wire.digest import Buffer, digest_of
from bridgehead._shipped.wire.frames import cut
from bridgehead._shipped.wire.header import Header
from bridgehead._shipped.wire.segments import Segment
from bridgehead._shipped.wire.transfer import Inbox
from bridgehead._transports.base import Transport

OFF_LOOP = 1 << 20  # bytes; more is copied and checked in a thread, the event loop goes on
AT_ONCE = 3  # pieces in flight: enough to hide the round trip; a fourth only took memory (measured)


@dataclass(slots=True)
class Request:
    """One operation as it crosses.

    Attributes:
        header, frames: see ``_protocol.request.header``.
        limit: bytes of an answer that are taken at most; None for any.
        report: called with bytes done and bytes in all, as pieces arrive; what it raises ends
            the transfer.
        subshell: of the kernel, that is to serve it; None for the main thread.
        trusted: whether an exception in the answer may be unpickled; not unless it is said.
        lane: which one carried it; the lane says so.
        segment: where its frames are already, for all the kernels that get the same.
        unread: whether the answer goes on to another kernel, and nobody looks at it here.
        landed: whether the loader has the frames already, from a message to many kernels.
    """

    header: Header
    frames: Sequence[memoryview]
    limit: int | None = None
    report: Callable[[int, int], object] = lambda done, total: None
    subshell: str | None = None
    trusted: bool = False
    lane: str = ""
    segment: Segment | None = None
    unread: bool = False
    delivered: bool = False

    @property
    def nbytes(self) -> int:
        return sum(self.header["sizes"])


class Lane(ABC):
    """One way to carry frames over one transport.

    Attributes:
        piece: bytes that one request carries at most, a multiple of the digest's leaf.
        back: bytes that its answer brings along at most, a multiple of it too.
    """

    name: ClassVar[str]
    chunk: int
    back: int

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.chunk = min(self.chunk, transport.max_send)
        self.back = min(self.back, transport.max_receive)
        self._arrived: list[str] = []  # requests whose answers the loader need not keep any more
        self._last: Header | None = None
        self.sums: bool = False  # whether the kernel has numpy loaded, as it told last
        self._under_way: dict[str, Header] = {}
        self._left = False

    @property
    def digest(self) -> str:
        """The algorithm with which frames are signed on this lane."""
        return self.transport.digest

    @property
    def lost(self) -> bool:
        """Whether the loader must be asked for another one of its kind."""
        return False

    @property
    def message_lane(self) -> str:
        """The lane of what crosses in messages."""
        return self.name

    @abstractmethod
    async def cross(
        self, header: Header, parts: Sequence[memoryview], subshell: str | None
    ) -> tuple[Header, list[Buffer]]:
        """One message there and back."""

    async def carry(self, request: Request) -> PartialResponse:
        """One request there, and the beginning of its answer back.

        Nothing happens in the kernel before the last piece. Cancelling frees what was sent.

        Raises:
            IntegrityError: what arrived there is not what was signed here; nothing was done.
            PayloadTooLarge: the answer is longer than the request's limit.
            BridgeError: see ``Dispatcher.request``.
        """
        header, frames, total = request.header, request.frames, request.nbytes
        header["chunk"], header["sums"] = self.back, "numpy" in sys.modules
        header["resumable"] = self.transport.resumable
        request.lane = self.name
        last = max(0, (total - 1) // self.chunk * self.chunk)
        ends: Header = {}
        if request.delivered:
            last, ends = total, {"digest": _wire.digest(header["digest"].partition(":")[0], ())}
        done = 0

        async def chunk(at: int) -> None:
            nonlocal done
            if self._left:  # or it would come after what told the loader to forget it
                raise BridgeClosed("this bridge was closed")
            told, _ = await self.cross(
                self.part(header, at, op="chunk"),
                list(cut(frames, at, at + self.chunk)),
                request.subshell,
            )
            raise_error(told, ())
            done += self.chunk
            request.report(done, total)

        with self.kept(request):
            if not request.delivered:
                await _in_flight(chunk(at) for at in range(0, last, self.chunk))
            parts = list(cut(frames, last, total))
            told, back = await self.cross(self.part(header, last, **ends), parts, request.subshell)
            self.sums = told.get("sums") is True
            inbox = _protocol.open_response(told, request.limit)
            opened = PartialResponse(told, inbox, list(back))
            if inbox.total <= self.back:
                await _take_in(told, inbox, 0, back)
                opened = PartialResponse(told, inbox)
            if opened.arrived != min(inbox.total, self.back):
                raise ReplyLost(
                    f"the kernel's answer is damaged: {opened.arrived} of its first "
                    f"{min(inbox.total, self.back)} bytes arrived"
                )
        return self._begun(request, opened)

    async def carry_batch(
        self, requests: Sequence[Request]
    ) -> list[PartialResponse | BridgeError | None]:
        """Several small requests in one message; None for one that was not done and may be again.

        Raises what ``carry`` does, for all of them.
        """
        frames = [frame for request in requests for frame in request.frames]
        header = _request.batch_header([request.header for request in requests], frames)
        batch = Request(header, frames, limit=self.back)
        opened = await self.carry(batch)
        _, parts = await self.rest(Request(header, ()), opened)
        limits = [request.limit for request in requests]
        answers = _protocol.part_batch(opened.header, parts, limits)
        for request, answer in zip(requests, answers, strict=True):
            request.lane = batch.lane
            if isinstance(answer, PartialResponse):
                self._begun(request, answer)
        return answers

    async def rest(
        self, request: Request, opened: PartialResponse
    ) -> tuple[Header, list[memoryview]]:
        """The answer as a whole, every piece of it checked; raises the error that it tells of.

        Raises:
            ReplyLost: what came back is not what was signed there.
        """
        told, inbox, header = opened.header, opened.inbox, request.header
        assert isinstance(inbox, Inbox)
        done = inbox.received

        async def first() -> None:
            nonlocal done
            await _take_in(told, inbox, 0, opened.parts)
            opened.parts.clear()  # its memory is free for the next ones
            done = inbox.received
            request.report(done, inbox.total)

        async def more(at: int) -> None:
            nonlocal done
            asked = self.part(header, at, op="next_chunk", sizes=[], chunk=self.back)
            got, parts = await self.cross(asked, (), request.subshell)
            raise_error(got, ())
            if sum(memoryview(part).nbytes for part in parts) != min(self.back, inbox.total - at):
                raise ReplyLost(f"the kernel's answer is damaged: its piece at {at} is not whole")
            await _take_in(got, inbox, at, parts)
            done = inbox.received
            request.report(done, inbox.total)

        if done < inbox.total:
            with self.kept(request):
                try:
                    # What came along is taken in while more is on its way.
                    jobs = [first()] if opened.parts else []
                    rest = (more(at) for at in range(opened.arrived, inbox.total, self.back))
                    await _in_flight(itertools.chain(jobs, rest))
                except (KernelRestarted, IntegrityError) as error:
                    # It ran: not to be taken for a request that may be made again.
                    raise ReplyLost("the kernel lost the rest of its answer") from error
            self.forget(header)
        frames = _protocol.close_response(inbox)
        raise_error(told, frames, request.limit, trusted=request.trusted)
        return told, frames

    def forget(self, header: Header) -> None:
        """Have the loader drop what it keeps of a request; nobody waits for it."""
        self._under_way.pop(header["id"], None)

        async def tell() -> None:
            with contextlib.suppress(BridgeError):  # then it goes by age, or with the kernel
                await self.cross(self.part(header, 0, op="forget", sizes=[]), (), None)

        self.transport.spawn(tell())

    async def leave(self) -> None:
        """Have the loader drop what is under way; returns when that is sent."""
        self._left = True
        for header in list(self._under_way.values()):
            self.forget(header)
        if self._arrived and self._last is not None:
            self.forget(self._last)
        await asyncio.sleep(0)

    def part(self, header: Header, at: int, **fields: Any) -> Header:
        """The header of one message of a request: of the digest, what is that message's."""
        digest = digest_of(header["digest"], at, at + self.chunk)
        if self._arrived:
            fields["acks"], self._arrived = self._arrived, []
        return {**header, "digest": digest, "at": at, **fields}

    def _begun(self, request: Request, opened: PartialResponse) -> PartialResponse:
        """The loader keeps the rest of an answer until ``rest`` has it, or it is forgotten; and
        where the connection may break, all of it until it is told that it arrived.
        """
        if opened.inbox.received < opened.inbox.total:
            self._under_way[request.header["id"]] = request.header
        elif request.header.get("resumable"):
            self._arrived.append(request.header["id"])
            self._last = request.header
        return opened

    @contextlib.contextmanager
    def kept(self, request: Request) -> Iterator[None]:
        """While the loader may keep something of a request: dropped there if this fails."""
        header = request.header
        self._under_way[header["id"]] = header
        try:
            yield
        except BaseException:
            self.forget(header)  # what was sent, and an answer that nobody will fetch
            raise
        finally:
            self._under_way.pop(header["id"], None)


async def _take_in(told: Header, inbox: Inbox, at: int, parts: Sequence[Buffer]) -> None:
    """Copy a piece into its place and check it, while the event loop goes on."""
    if sum(memoryview(part).nbytes for part in parts) > OFF_LOOP:
        await asyncio.to_thread(_protocol.add_chunk, told, inbox, at, parts)
    else:
        _protocol.add_chunk(told, inbox, at, parts)


def _raise_first(done: set[asyncio.Task[None]]) -> None:
    """The first failure of several; the others are taken note of."""
    errors = [error for task in done if (error := task.exception()) is not None]
    if errors:
        raise errors[0]


async def _in_flight(jobs: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run the jobs, ``AT_ONCE`` at a time; the first failure or a cancel ends them all."""
    running: set[asyncio.Task[None]] = set()
    try:
        for job in jobs:
            running.add(asyncio.create_task(job))
            if len(running) >= AT_ONCE:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                _raise_first(done)
        while running:
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            _raise_first(done)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
