"""The remote part in one kernel: installed by the first operation, and kept installed.

Rule: whether the remote part is there, which lane leads to it, and what is asked of it without a
turn of the caller's. A restart is noticed here, and reported once, so that nothing meant for the
old kernel reaches the new one. Turns and the caller's operations are ``connection``'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from bridgehead._connection.subshell import Subshell
from bridgehead._connection.trust import Trust
from bridgehead._errors import KernelRestarted, ProtocolError
from bridgehead._lanes.base import Lane, Request
from bridgehead._lanes.direct import DirectLane
from bridgehead._lanes.handshake import Handshake, LaneName
from bridgehead._protocol import bootstrap as _shipping
from bridgehead._protocol import request as _request
from bridgehead._protocol.results import Info
from bridgehead._transports.base import Transport

LOST = -1  # the generation of a remote part that is not there (any more)


class Installation:
    """The remote part behind one transport, as the last handshake found it.

    Attributes:
        generation: the transport's, when the remote part was installed; or ``LOST``.
        process: the kernel process that it was installed in; a pid may be used again.
    """

    def __init__(
        self,
        transport: Transport,
        wanted: LaneName,
        trust: Trust,
        subshell: Subshell,
        pool: float,
    ) -> None:
        self.generation: int = LOST
        self.process: str = ""
        self._transport, self._trust, self._subshell = transport, trust, subshell
        self._handshake = Handshake(transport, wanted, pool, trust.name)
        self._lane: Lane | None = None
        self._info: Info | None = None
        self._epoch: str | None = None  # what the caller's names are believed to live in
        self._installing = asyncio.Lock()
        self._codec_epoch = ""  # epoch of the loader that has the data-only codec

    @property
    def info(self) -> Info:
        """What the last handshake learnt."""
        if self._info is None:
            raise ProtocolError("the handshake did not happen yet")
        return self._info

    @property
    def lane(self) -> Lane:
        """The lane of the last handshake."""
        assert self._lane is not None
        return self._lane

    @property
    def is_current(self) -> bool:
        """Whether the connection is still the one over which it was installed."""
        return self.generation == self._transport.life.generation

    @property
    def is_ready(self) -> bool:
        """Whether the loader is there and the kernel answers, as far as is known."""
        return self.is_current and not self._transport.life.is_unresponsive and not self.lane.lost

    async def ready(self) -> Lane:
        """The lane, with the loader in place; plants it again after a restart."""
        await self._transport.life.answering()
        if self._lane is not None and self._lane.lost:
            self.generation = LOST
        if not self.is_current:
            epoch, kernel, lost = self._epoch, self.process, self.generation == LOST
            await self.install()
            same = kernel == self.process if lost else epoch == self._epoch
            if epoch is not None and not same:
                for listener in self._transport.life.listeners.values() if lost else ():
                    listener.end()  # where no connection broke, nobody told them
                raise KernelRestarted(
                    "the kernel was restarted since the last call, and its namespace is new; "
                    "this call was not sent"
                )
        return self.lane

    async def install(self) -> None:
        """The handshake, unless the loader is known to be there."""
        async with self._installing:
            if self.is_current:
                return
            generation = self._transport.life.generation
            greeted = await self._handshake.greet()
            if isinstance(self._lane, DirectLane):
                self._lane.client.close()
            self._lane, self._info, self.process = greeted.lane, greeted.info, greeted.process
            lane = greeted.lane
            self._transport.life.side_channel = (
                lane.client if isinstance(lane, DirectLane) else None
            )
            self.generation, self._epoch = generation, greeted.info.epoch
            for orphan in greeted.orphans:
                self._transport.spawn(self._subshell.delete(orphan))

    def mark_lost(self, info: Info) -> None:
        """The loader of that handshake is not there any more."""
        if self.info is info:
            self.generation = LOST

    async def load_codec(
        self, shell: dict[str, Any] | None = None, now: bool | None = None
    ) -> None:
        """Ship the data-only codec to a loader that does not have it yet."""
        epoch = self.info.epoch
        if self._codec_epoch != epoch:
            await self.request_unordered(
                "load_codec", _shipping.codec_sources(), shell=shell, now=now
            )
            self._codec_epoch = epoch

    async def request_unordered(
        self,
        operation: str,
        frames: Sequence[memoryview] = (),
        *,
        shell: dict[str, Any] | None = None,
        limit: int | None = None,
        **fields: Any,
    ) -> list[memoryview]:
        """What no user waits for: out of turn, and only to the loader that is known.

        A restart is left to be told to the user's next call, and nothing is planted.
        """
        lane = self.lane
        header = _request.header(
            operation,
            frames,
            epoch=self.info.epoch,
            algorithm=lane.digest,
            subshell=shell,
            max_bytes=limit,
            **fields,
        )
        request = Request(header, frames, limit, trusted=not self._trust.data)
        request.subshell = shell["id"] if shell is not None else None
        _, back = await lane.rest(request, await lane.carry(request))
        return back
