"""The remote part in one kernel: installed by the first operation, and kept installed.

Rule: whether the remote part is installed, which lane leads to it, and the requests to it that take
no turn. At the first call after a restart, this file installs the remote part again and reports
the restart once, so that nothing meant for the old kernel reaches the new one. The other places
that notice a restart are listed in ``_connection/__init__.py``. Turns belong to ``queue``, the
caller's operations to ``connection``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bridgehead._connection.subshell import Subshell
from bridgehead._connection.trust import Trust
from bridgehead._errors import KernelRestarted, ProtocolError
from bridgehead._lanes.base import Lane
from bridgehead._lanes.direct import DirectLane
from bridgehead._lanes.handshake import Handshake, LaneName
from bridgehead._protocol import request as _request
from bridgehead._protocol.bootstrap import codec_sources
from bridgehead._protocol.payload import Payload
from bridgehead._protocol.request import Request
from bridgehead._protocol.response import Response
from bridgehead._protocol.results import Info
from bridgehead._transports.base import Transport

RESTARTED = (
    "the kernel was restarted since the last call, and its namespace is new; this call was not sent"
)
LOST = -1  # the generation of a remote part that is not installed (any more)


class Installation:
    """The remote part behind one transport, as the last handshake found it.

    Attributes:
        generation: the transport's at the time of the handshake, or ``LOST``.
        process: names the kernel process of the handshake; a pid may be used again.
        in_main_thread: whether cells run in that process's main thread, which a signal reaches.
        guards_cells: whether the remote part can interrupt one cell and no other.
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
        self.in_main_thread: bool = True
        self.guards_cells: bool = False
        self._transport, self._trust, self._subshell = transport, trust, subshell
        self._handshake = Handshake(transport, wanted, pool, proof=trust.needs_proof)
        self._lane: Lane | None = None
        self._info: Info | None = None
        self._epoch: str | None = None  # of the kernel that has the caller's names
        self._restart_reported = False  # a caller knows that this kernel is gone
        self._restart_unreported = False  # the installed kernel is a new one, and no caller knows
        self._installing = asyncio.Lock()
        self._codec_epoch = ""  # of the remote part that has the data-only codec

    @property
    def info(self) -> Info:
        """What the last handshake reported."""
        if self._info is None:
            raise ProtocolError("the kernel is not known yet: no handshake has succeeded")
        return self._info

    @property
    def lane(self) -> Lane:
        """The lane of the last handshake."""
        assert self._lane is not None
        return self._lane

    @property
    def is_current(self) -> bool:
        """Whether the connection is still the one of the last handshake."""
        return self.generation == self._transport.life.generation

    @property
    def is_ready(self) -> bool:
        """Whether the remote part is installed and the kernel replies, as far as is known."""
        return (
            self.is_current
            and not self._transport.life.is_unresponsive
            and not self.lane.lost
            and not self._restart_unreported
        )

    async def ready(self) -> Lane:
        """Return the lane; install the remote part first if it is missing.

        Raises:
            KernelRestarted: the kernel was restarted since the last call, and no call has
                reported it yet.
        """
        await self._transport.life.wait_until_responsive()
        if self._lane is not None and self._lane.lost:
            self.generation = LOST
        if not self.is_current:
            epoch, process, lost = self._epoch, self.process, self.generation == LOST
            reported = self._restart_reported
            await self.install()
            if epoch is not None and not self._is_same(epoch, process, lost):
                # The transport ends all watches when a connection breaks. If none broke (``lost``),
                # end them here.
                for listener in self._transport.life.listeners.values() if lost else ():
                    listener.end()
                if not reported:
                    raise KernelRestarted(RESTARTED)
        if self._restart_unreported:  # the caller that was to know it had just given up
            raise KernelRestarted(RESTARTED)
        return self.lane

    async def install(self) -> None:
        """Do the handshake, unless the remote part is known to be installed."""
        async with self._installing:
            if self.is_current:
                return
            generation = self._transport.life.generation
            greeting = await self._handshake.greet()
            if isinstance(self._lane, DirectLane):
                self._lane.client.close()
            trust = self._trust  # another process may answer than at the last handshake
            trust.decide(greeting.proven, greeting.unproven, self._transport.own)
            self._transport.life.trust = trust.name
            self._info = replace(greeting.info, trust=trust.name, why_trust=trust.why)
            process = self.process
            self._lane, self.process = greeting.lane, greeting.process
            self.in_main_thread = greeting.in_main_thread
            self.guards_cells = greeting.guards_cells
            lane = greeting.lane
            self._transport.life.side_channel = (
                lane.client if isinstance(lane, DirectLane) else None
            )
            epoch, lost = self._epoch, self.generation == LOST
            self.generation, self._epoch = generation, self._info.epoch
            if epoch is not None and not self._is_same(epoch, process, lost):
                self._restart_unreported = not self._restart_reported
            self._restart_reported = False
            for orphan in greeting.orphans:
                self._transport.spawn(self._subshell.delete(orphan))

    def _is_same(self, epoch: str, process: str, lost: bool) -> bool:
        """Return whether the installed kernel is the one of an earlier handshake.

        ``lost``: the remote part was missing, but the connection did not break. If the process is
        the same, only the remote part was removed, and the user's names are still there. Over a new
        connection, an equal epoch shows that the kernel is the same.
        """
        return process == self.process if lost else epoch == self._epoch

    def restart_reported(self) -> None:
        """Note that a caller gets ``KernelRestarted``: the next call goes to the new kernel.

        Only what the caller gets counts. The error of a caller that gives up at the same moment,
        by a cancel or a deadline, is lost, and the next call reports the restart.
        """
        self._restart_unreported = False
        if not self.is_current:
            self._restart_reported = True

    def mark_lost(self, info: Info) -> None:
        """Note that the remote part of that handshake is not installed any more."""
        if self.info is info:
            self.generation = LOST

    async def load_codec(
        self, shell: dict[str, Any] | None = None, now: bool | None = None
    ) -> None:
        """Ship the data-only codec to the remote part."""
        epoch = self.info.epoch
        await self.request_unordered("load_codec", codec_sources(), shell=shell, now=now)
        self._codec_epoch = epoch

    @property
    def has_codec(self) -> bool:
        """Whether the remote part has the data-only codec."""
        return self._codec_epoch == self.info.epoch

    async def request_unordered(
        self,
        operation: str,
        frames: Sequence[memoryview] = (),
        *,
        shell: dict[str, Any] | None = None,
        limit: int | None = None,
        **fields: Any,
    ) -> Response:
        """Send a request without a turn, to the remote part of the last handshake alone.

        It is for what no caller waits for. It installs nothing, and it leaves a restart to be
        reported by the caller's next operation.
        """
        lane = self.lane
        payload = Payload(frames).signed(lane.digest)
        fields = {**lane.fields(), "subshell": shell, "max_bytes": limit, **fields}
        header = _request.header(operation, payload, epoch=self.info.epoch, **fields)
        request = Request(header, payload, limit, trusted=not self._trust.data)
        return await lane.complete(await lane.carry(request))
