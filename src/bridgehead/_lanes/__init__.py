"""Lanes carry a request's header and frames to the loader and its answer back.

Rule: a lane knows how bytes travel inside messages, and nothing of what they mean. What all
lanes share is here: a request longer than ``piece`` bytes crosses in several messages, of
which only the last one has the loader do anything; a lane of its own says how one message
carries its part.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, ClassVar

from bridgehead import _protocol
from bridgehead._errors import BridgeClosed, BridgeError, IntegrityError, KernelRestarted, ReplyLost
from bridgehead._protocol import Buffer, Header
from bridgehead._transports import Transport

AT_ONCE = 4  # pieces in flight: enough to hide the round trip, and bounded memory on both sides


class Lane(ABC):
    """One way to carry frames over one transport."""

    name: ClassVar[str]
    piece: ClassVar[int]

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self._under_way: dict[str, Header] = {}
        self._left = False

    @abstractmethod
    async def cross(
        self, header: Header, parts: Sequence[memoryview], **order: Any
    ) -> tuple[Header, list[Buffer]]:
        """One message there and back; ``order`` goes to ``Transport.request``."""

    async def carry(
        self, header: Header, frames: Sequence[memoryview]
    ) -> tuple[Header, list[memoryview]]:
        """One request there and back, in one message if it fits.

        Nothing happens in the kernel before the last piece. Cancelling frees what was sent.

        Raises:
            IntegrityError: what arrived there is not what was signed here; nothing was done.
            ReplyLost: what came back is not what was signed there.
            BridgeError: see ``Transport.request``.
        """
        header["piece"] = self.piece
        self._under_way[header["id"]] = header
        try:
            return await self._carry(header, frames)
        finally:
            self._under_way.pop(header["id"], None)

    async def leave(self) -> None:
        """Have the loader drop what is under way; returns when that is sent."""
        self._left = True
        for header in list(self._under_way.values()):
            self._forget(header)
        await asyncio.sleep(0)

    async def _carry(
        self, header: Header, frames: Sequence[memoryview]
    ) -> tuple[Header, list[memoryview]]:
        total = sum(header["sizes"])
        last = max(0, (total - 1) // self.piece * self.piece)
        final = {**header, "at": last}

        async def pieces() -> None:
            await _in_flight(self._piece(header, frames, at) for at in range(0, last, self.piece))

        try:
            # Inside its turn: whoever was asked later must not take effect earlier.
            parts = list(_protocol.cut(frames, last, total))
            told, back = await self.cross(final, parts, prepare=pieces if last else None)
        except BaseException:
            self._forget(header)  # what was sent, and an answer that nobody will fetch
            raise
        inbox = _protocol.open_answer(told, back)
        if inbox.total > self.piece:
            offsets = range(self.piece, inbox.total, self.piece)
            try:
                await _in_flight(self._more(header, at, inbox) for at in offsets)
            except (KernelRestarted, IntegrityError) as error:
                # It ran: not to be taken for a request that may be made again.
                raise ReplyLost("the kernel lost the rest of its answer") from error
            finally:
                self._forget(header)
        out = _protocol.close_answer(told, inbox)
        _protocol.raise_error(told, out)
        return told, out

    async def _piece(self, header: Header, frames: Sequence[memoryview], at: int) -> None:
        if self._left:  # or it would come after what told the loader to forget it
            raise BridgeClosed("this bridge was closed")
        parts = list(_protocol.cut(frames, at, at + self.piece))
        told, _ = await self.cross({**header, "op": "piece", "at": at}, parts, ordered=False)
        _protocol.raise_error(told, ())

    async def _more(self, header: Header, at: int, inbox: _protocol.Inbox) -> None:
        asked = {**header, "op": "more", "sizes": [], "at": at}
        told, parts = await self.cross(asked, ())
        _protocol.raise_error(told, ())
        _protocol.add_piece(inbox, at, parts)

    def _forget(self, header: Header) -> None:
        """Have the loader drop what it keeps of a request; nobody waits for it."""

        async def tell() -> None:
            with contextlib.suppress(BridgeError):  # then it goes by age, or with the kernel
                forget = {**header, "op": "forget", "sizes": [], "at": 0}
                await self.cross(forget, (), ordered=False)

        self.transport.spawn(tell())


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
