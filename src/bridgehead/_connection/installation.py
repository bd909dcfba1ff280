"""The remote part in one kernel: installed by the first operation, and kept installed.

Rule: whether the remote part is installed, which lane leads to it, and the requests to it that take
no turn. At the first call after a restart, this file installs the remote part again and reports
the restart once, so that nothing meant for the old kernel reaches the new one. The other places
that notice a restart are listed in ``_connection/__init__.py``. Turns belong to ``queue``, the
caller's operations to ``connection``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from bridgehead._connection.subshell import Subshell
from bridgehead._connection.trust import Trust
from bridgehead._errors import (
    RESTARTED,
    BridgeError,
    KernelRestarted,
    ReplyLost,
    TransportError,
)
from bridgehead._lanes.base import Lane
from bridgehead._lanes.direct import DirectLane
from bridgehead._lanes.handshake import Greeting, Handshake, LaneName
from bridgehead._protocol import request as _request
from bridgehead._protocol.bootstrap import codec_sources, remote_source
from bridgehead._protocol.formatting import line
from bridgehead._protocol.payload import Payload, empty
from bridgehead._protocol.raising import as_text
from bridgehead._protocol.request import Request
from bridgehead._protocol.response import (
    Response,
    add_chunk,
    inline_frames,
    open_response,
    parse_header,
)
from bridgehead._protocol.results import Info
from bridgehead._shipped.wire.header import CONTROL_REQUEST, RequestHeader
from bridgehead._transports.base import Transport
from bridgehead._transports.inquiry import SIGN

log = logging.getLogger("bridgehead")
LOST = -1  # the generation of a remote part that is not installed (any more)
ATTEMPTS = 3  # to load the codec, while the remote part is removed meanwhile


class Installation:
    """The remote part behind one transport, as the last handshake found it.

    Attributes:
        greeting: what the last handshake found; there is none before the first one.
        lane: the lane of that.
        generation: the transport's at the time of the handshake, or ``LOST``.
    """

    def __init__(
        self,
        transport: Transport,
        wanted: LaneName,
        trust: Trust,
        subshell: Subshell,
        pool: float,
    ) -> None:
        self.greeting: Greeting
        self.lane: Lane
        self.generation: int = LOST
        self._transport, self._trust, self._subshell = transport, trust, subshell
        self._handshake = Handshake(
            *(transport, wanted, pool),
            proof=trust.needs_proof,
            trusts=lambda proven: trust.trusts(proven, transport.own),
        )
        self._restarts = 0  # that handshakes have found
        self._reported = 0  # of which callers know; they may know of one before it is found
        self._installing = asyncio.Lock()
        self._lost_cells: list[str] = []  # to be withdrawn before anything else is sent
        self._withdrawing = asyncio.Lock()
        self._codec_epoch = ""  # of the remote part that has the data-only codec

    @property
    def info(self) -> Info:
        """What a user sees of what the last handshake found."""
        return self.greeting.info

    @property
    def process(self) -> str:
        """Names the kernel process of the last handshake; a pid may be used again."""
        return self.greeting.process

    @property
    def is_current(self) -> bool:
        """Whether the connection is still the one of the last handshake."""
        return self.generation == self._transport.life.generation

    @property
    def is_installed(self) -> bool:
        """Whether the remote part is installed and the kernel replies, as far as is known.

        And no cell of an earlier connection is to be withdrawn.
        """
        life = self._transport.life
        is_reached = self.is_current and not (life.is_unresponsive or self.lane.is_lost)
        return is_reached and not self._lost_cells

    @property
    def is_ready(self) -> bool:
        """Whether it is installed, and no restart is to be reported."""
        return self.is_installed and self._reported == self._restarts

    async def ready(self, *, any_process: bool = False) -> Lane:
        """Return the lane; install the remote part first if it is missing.

        Raises:
            KernelRestarted: the kernel was restarted since the last call, and no call has
                reported it yet; not with ``any_process``.
        """
        life = self._transport.life
        if life.is_unresponsive:  # nothing else may ask it
            self._transport.dispatcher.inquiry.start(SIGN)
        await life.wait_until_responsive()
        if self.is_current and self.lane.is_lost:
            self.generation = LOST
        reported = self._reported  # what is reported meanwhile, other calls report
        if not self.is_current:
            await self.install()
        if reported < self._restarts and not any_process:
            raise KernelRestarted(RESTARTED)
        if self._lost_cells:
            await self._withdraw_cells()
        return self.lane

    def check_same(self, process: str | None, generation: int) -> None:
        """Raise if the kernel is lost, or is another one than when a call or a cell began.

        ``process`` is None if none was known then. A handshake may find another process behind the
        same connection, so of the same ``generation``.
        """
        self._transport.life.check_same(generation)
        if process not in (None, self.greeting.process):
            raise KernelRestarted(RESTARTED)

    async def install(self) -> None:
        """Do the handshake, unless the remote part is known to be installed."""
        life = self._transport.life
        async with self._installing:
            if self.is_current:
                return
            generation = life.generation
            greeting = await self._handshake.greet()
            before, lost = getattr(self, "greeting", None), self.generation == LOST
            if before is not None and isinstance(before.lane, DirectLane):
                before.lane.client.close()
            trust = self._trust  # another process may answer than at the last handshake
            trust.decide(greeting.proven, greeting.unproven, self._transport.own)
            life.trust = trust.name
            info = replace(greeting.info, trust=trust.name, why_trust=trust.why)
            self.greeting = replace(greeting, info=info)
            self.lane = lane = greeting.lane
            life.side_channel = lane.client if isinstance(lane, DirectLane) else None
            self.generation = generation
            self._log(info)
            self._restarts += not self._is_same(before, lost)
            self._reported = min(self._reported, self._restarts)
            if before is not None and before.info.epoch != info.epoch:
                self._lost_cells.clear()  # they were for a remote part that is gone
                # When a connection breaks, the transport ends the listeners of all resources. If
                # none broke, the resources ended with the remote part: end their listeners here.
                if lost:
                    for listener in list(life.listeners.values()):
                        listener.end()
            for orphan in greeting.orphans:
                self._transport.spawn(self._subshell.delete(orphan))

    def _log(self, info: Info) -> None:
        """Record the handshake; the kernel and its server may have sent anything."""
        life, transport = self._transport.life, self._transport
        life.name = line(f"kernel {transport.label or transport.kernel_id or info.pid}", 80)
        log.info("%s: %s, lane %s, %s", life.name, line(info.kernel, 80), info.lane, info.trust)

    def _is_same(self, before: Greeting | None, lost: bool) -> bool:
        """Return whether the installed kernel is the one of an earlier handshake, if there was one.

        ``lost``: the remote part was missing, but the connection did not break. If the process is
        the same, only the remote part was removed, and the user's names are still there. Over a new
        connection, an equal epoch shows that the kernel is the same.
        """
        if before is None:
            return True
        return before.process == self.process if lost else before.info.epoch == self.info.epoch

    def restart_reported(self) -> None:
        """Note that a caller gets ``KernelRestarted``: the next call goes to the new kernel.

        Only what the caller gets counts. The error of a caller that gives up at the same moment,
        by a cancel or a deadline, is lost, and the next call reports the restart.
        """
        self._reported = self._restarts + (not self.is_current)

    def mark_lost(self, greeting: Greeting) -> None:
        """Note that the remote part of that handshake is not installed any more."""
        if self.greeting is greeting:
            self.generation = LOST

    async def load_codec(
        self, shell: dict[str, Any] | None = None, now: bool | None = None
    ) -> None:
        """Ship the data-only codec to the remote part, which is installed again if it is missing.

        Raises:
            KernelRestarted: as ``ready`` does.
        """
        for attempt in range(1, ATTEMPTS + 1):
            greeting, generation = self.greeting, self.generation
            try:
                await self.request_unordered("load_codec", codec_sources(), shell=shell, now=now)
                self._codec_epoch = greeting.info.epoch
                return
            except KernelRestarted:  # nothing was done; whether the kernel is another one, see next
                if generation != self._transport.life.generation or attempt == ATTEMPTS:
                    raise
            self.mark_lost(greeting)
            await self.ready()

    @property
    def has_codec(self) -> bool:
        """Whether the remote part has the data-only codec."""
        return self._codec_epoch == self.info.epoch

    def header(
        self, operation: str, lane: Lane, payload: Payload | None = None, /, **fields: Any
    ) -> RequestHeader:
        """Return the header of a request over a lane, to the remote part of the last handshake."""
        payload, fields = payload or empty(lane.digest), {**lane.fields(), **fields}
        return _request.header(operation, payload, epoch=self.greeting.info.epoch, **fields)

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
        header = self.header(operation, lane, payload, subshell=shell, max_bytes=limit, **fields)
        request = Request(header, payload, limit, trusted=not self._trust.data)
        return await lane.complete(await lane.carry(request))

    async def withdraw(self, cell: str, *, now: bool = True) -> None:
        """See to it that a cell that was sent never begins, unless it has.

        For a cell whose reply was lost with the connection. The cell may be on its way to the
        kernel still, and what is sent over the next connection would overtake it. If the kernel
        does not answer ``now``, ``ready`` asks again.
        """
        if self.greeting.guards_cells:
            self._lost_cells.append(cell)
            if now:
                with contextlib.suppress(BridgeError):
                    await self._withdraw_cells()

    async def _withdraw_cells(self) -> None:
        async with self._withdrawing:
            while self._lost_cells:
                cell = self._lost_cells[0]
                withdraw = partial(self.request_beside, "withdraw", request=cell)
                try:
                    await self._transport.until_replied(withdraw)
                except (ReplyLost, TransportError):
                    self._transport.life.check_responsive()
                with contextlib.suppress(ValueError):  # another process answers, which has no cell
                    self._lost_cells.remove(cell)

    async def request_beside(self, operation: str, **fields: Any) -> Response | None:
        """Send a request that is served while a cell runs; it is one of ``BESIDE_CELLS``.

        The direct lane's thread serves it, or the kernel's control thread if that thread is at
        work. Returns None if neither can; nothing was sent then.
        """
        lane = self.lane
        if isinstance(lane, DirectLane):
            # The next interrupt would take a "wake" for work of the lane's thread, which it has to
            # end. In a stopped kernel it would give the lane up.
            busy = lane.client.at_work or operation == "wake"
            if not (lane.is_lost or (busy and self.greeting.serves_control)):
                # If the thread has ended, nothing was done, and the control thread may answer.
                with contextlib.suppress(KernelRestarted):
                    return await self.request_unordered(operation, now=True, **fields)
        if not (self.greeting.serves_control and self.is_current):
            return None
        return await self.request_on_control(operation, **fields)

    async def request_on_control(self, operation: str, **fields: Any) -> Response:
        """Send a request on the control channel, whose thread serves it at any time."""
        if not self.is_current:  # another process, without the remote part, would not reply
            raise KernelRestarted(
                "the kernel was restarted, or its connection broke; this request was not sent"
            )
        lane = self.lane.in_messages
        # A response that is lost is not asked for again, so the kernel need not keep it.
        header = self.header(operation, lane, resumable=None, **fields)
        message = f"{remote_source()[0]}{CONTROL_REQUEST}", {"request": json.dumps(header)}
        ask = partial(self._transport.dispatcher.control, *message)
        reply = await self._transport.until_replied(ask, losses=1)
        answer = parse_header(as_text(reply.get("answer")))
        inbox = open_response(answer)
        add_chunk(answer, inbox, 0, [inline_frames(answer)])
        return await lane.complete(Response(answer, Request(header), inbox))
