"""One kernel's connection: the way of a call from the bridge to its response.

Rule: which callers may use it, how a call is prepared and sent, and when it is sent again. The
remote part and the lane to it belong to ``remote``, turns to ``queue``, messages to the lanes and
the transports.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from bridgehead._connection.calls import (
    NOTHING,
    PUBLIC_NAMES,
    Call,
    Deadline,
    Response,
    SignedPayload,
)
from bridgehead._connection.queue import Queue, Turn
from bridgehead._connection.remote import Installation
from bridgehead._connection.subshell import UNKNOWN, Subshell
from bridgehead._connection.trust import Trust
from bridgehead._errors import (
    BridgeError,
    KernelRestarted,
    NotSupported,
    RemoteError,
)
from bridgehead._lanes.base import Lane, Request
from bridgehead._lanes.broadcast import Delivery
from bridgehead._lanes.direct import DirectLane, is_for_thread
from bridgehead._lanes.handshake import LaneName
from bridgehead._lanes.socket import SocketLost
from bridgehead._protocol import payload as _payload
from bridgehead._protocol import request as _request
from bridgehead._transports.base import Transport
from bridgehead._transports.dispatch import Reply
from bridgehead._transports.messages import Message
from bridgehead._transports.tasks import run_all


class Connection:
    """The connection to one kernel, used from the event loop that opened it."""

    def __init__(
        self, transport: Transport, wanted: LaneName, trust: Trust, pool: float = 0.5
    ) -> None:
        self.transport = transport
        self.trust = trust
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._process = os.getpid()
        self.queue: Queue = Queue(transport)
        self.subshell: Subshell = Subshell(transport)
        self.remote: Installation = Installation(transport, wanted, trust, self.subshell, pool)

    def check_caller(self) -> None:
        """Raise ``RuntimeError`` in another process or another event loop."""
        if os.getpid() != self._process:
            raise RuntimeError("this bridge was opened before a fork; open another one here")
        if asyncio.get_running_loop() is not self.loop:
            raise RuntimeError(
                "this bridge belongs to another event loop; open one in this loop, or use "
                "SyncBridge, which may be called from any thread"
            )

    def check_closer(self) -> None:
        """Raise as ``check_caller``, but allow another event loop if this one has ended.

        What could not be closed in it can be tried again.
        """
        if os.getpid() != self._process or not self.loop.is_closed():
            self.check_caller()

    def check(self) -> None:
        """Raise unless this caller may use the connection, and a kernel is there."""
        self.check_caller()
        self.transport.life.check()

    async def ask(
        self,
        operation: str,
        timeout: float | None,
        content: _payload.PayloadSource | None = None,
        *,
        now: bool = False,
        limit: int | None = None,
        report: Callable[[int, int], object] | None = None,
        packed: SignedPayload | None = None,
        **fields: Any,
    ) -> Response:
        """Do one operation within its deadline, and return the response.

        ``content`` is pickled for it; ``packed`` was pickled before. ``now`` has it served while a
        cell runs. ``limit`` is the most bytes that the response may have. ``report`` is called
        with bytes done and bytes in all. ``fields`` go into the header.
        """
        fields["max_bytes"] = limit
        call = Call(operation, content, report, fields, packed)
        async with Deadline(timeout, PUBLIC_NAMES.get(operation, operation), self.transport, call):
            return await (self._at_once(call) if now else self.in_turn(call))

    async def in_turn(self, call: Call) -> Response:
        """Do one operation when its turn comes. If ``call.turn`` is set, the call has one."""
        # Set after a first attempt that found no remote part: the kernel process of that attempt.
        # The second attempt goes to the same process only. There is no third.
        process_of_first: str | None = None
        number: int | None = None  # of the turn; a second attempt takes the same place again
        held = call.turn
        # The fast path: a small request on an idle bridge needs no queue, no task and no thread.
        request, generation = (
            self._small_request(call) if held is None else None,
            self.remote.generation,
        )
        if request is not None:
            process, info = self.remote.process, self.remote.info
            try:
                with self.queue.without_task() as number:
                    response = await self.remote.lane.carry(request)
                reply_header, frames = await self.remote.lane.rest(request, response)
                return Response(reply_header, frames, request)
            except KernelRestarted:
                # If the transport noticed a restart itself, the caller must get it. Otherwise the
                # remote part was removed, or its thread ended, and nothing was done: go on below.
                if generation != self.transport.life.generation:
                    raise
                process_of_first = process
                self.remote.mark_lost(info)
        while True:
            turn_number = call.turn.number if call.turn else number
            # A turn that came with the call is given up by its owner, not by this block.
            with contextlib.nullcontext(held) if held else self.queue.turn(turn_number) as turn:
                held, call.turn = None, turn
                # prepare() stops waiting when the kernel is lost, but it costs a task. Use it only
                # when ready() may take long; with the remote part in place it returns at once.
                if not self.remote.is_current or self.transport.life.is_unresponsive:
                    await turn.prepare(self.remote.ready())
                lane = await self.remote.ready()
                # The handshake of a second attempt may find another process behind the same
                # connection. The request was meant for the old one.
                if process_of_first not in (None, self.remote.process):
                    raise KernelRestarted("the kernel was restarted; this call was not executed")
                if call.needs_codec:
                    await turn.prepare(self.remote.load_codec())
                # The turn was taken above, at the call. So a slow pickle delays the operations
                # behind it, and none of them overtakes it.
                await self._pack(call, turn, lane)
                # The frames of a broadcast were lost with the remote part that received them.
                delivery = (
                    None if process_of_first is not None else await self._delivered(call, turn)
                )
                # No await between the next statements: the request, the generation, the process
                # and the info must all belong to the same installation.
                request, generation = self._request(call), self.remote.generation
                process, info = self.remote.process, self.remote.info
                if delivery is not None and delivery.epoch == info.epoch:
                    # By this id the kernel finds the frames that the broadcast brought.
                    request.header["id"], request.delivered = delivery.header["id"], True
                try:
                    response = await self.queue.carry(turn, lane, request)
                    # Outside the queue: the next operation is sent while this one fetches the
                    # rest of its response.
                    reply_header, frames = await lane.rest(request, response)
                except KernelRestarted:
                    # On an unbroken connection, a user removed the remote part: nothing was
                    # done. Install it again, and if it is the same process send the request
                    # again, once.
                    if process_of_first is not None or generation != self.transport.life.generation:
                        raise
                    process_of_first = process
                    self.remote.mark_lost(info)
                    continue
                return Response(reply_header, frames, request)

    def _small_request(self, call: Call) -> Request | None:
        """Return the request if it is small and no other is before it, so it needs no queue.

        The queue would otherwise take half of the time of a small operation (measured).
        """
        lane = self.remote.lane
        if not isinstance(lane, DirectLane) or lane.lost or not self.remote.is_current:
            return None
        if not self.queue.is_empty or self.transport.life.is_unresponsive or call.needs_codec:
            return None
        if call.content is not None:
            if not call.content.is_small():
                return None
            call.packed = self._packed(call.content, lane)
        elif call.packed is not None:
            return None
        request = self._request(call)
        return request if lane.can_send_now(request.header) else None

    async def _at_once(self, call: Call) -> Response:
        """Do one operation while a cell runs: it takes no turn and waits for none.

        A restart is reported and nothing is sent again: without a turn, a second attempt could
        take effect after what the caller asked for later.
        """
        lane = await self.remote.ready()
        if call.content is not None:
            call.packed = await self._pack_in_thread(call.content, lane)
        # The direct lane's thread in the kernel binds and fetches names beside a running cell, so
        # this needs no subshell. It runs no code: any other operation goes on below.
        if isinstance(lane, DirectLane):
            request = self._request(call)
            if is_for_thread(request.header):
                if call.needs_codec:
                    await self.remote.load_codec(now=True)
                request.header["now"] = True
                reply_header, frames = await lane.rest(request, await lane.carry(request))
                return Response(reply_header, frames, request)
        # Any client may have deleted this bridge's subshell. The kernel then refuses the request
        # and nothing was done, so it is sent once more, to a new subshell.
        for is_last in (False, True):
            shell, info = await self.subshell.ready(), self.remote.info
            try:
                if call.needs_codec:  # in the subshell, too: the main shell waits for the cell
                    await self.remote.load_codec(shell)
                request = self._request(call, shell)
                response = await lane.carry(request)
            except KernelRestarted:
                self.remote.mark_lost(info)
                raise
            except RemoteError as error:
                if is_last or error.ename != UNKNOWN:
                    raise
                self.subshell.forget(shell["id"])
                continue
            reply_header, frames = await lane.rest(request, response)
            return Response(reply_header, frames, request)
        raise AssertionError

    async def _pack(self, call: Call, turn: Turn, lane: Lane) -> None:
        """Pickle what the call sends, once for all attempts; in a thread if that takes long."""
        # A payload that was packed before may have a digest although the direct lane uses none, or
        # have none although this lane needs one.
        if call.packed is not None and call.packed.has_digest == (lane.digest == "none"):
            payload, algorithm = call.packed.payload, lane.digest
            work = asyncio.to_thread(_payload.digest_payload, payload, algorithm)
            call.packed = replace(call.packed, digest=await turn.prepare(work))
        if call.content is None or call.packed is not None:
            return
        if call.content.is_small():
            call.packed = self._packed(call.content, lane)
        else:
            call.packed = await turn.prepare(self._pack_in_thread(call.content, lane))

    async def _delivered(self, call: Call, turn: Turn) -> Delivery | None:
        """Return the broadcast that brought the call's frames to this kernel, if all arrived."""
        delivery = call.packed.delivery if call.packed is not None else None
        if delivery is None or not await turn.prepare(delivery.is_complete()):
            return None
        return delivery

    async def _pack_in_thread(self, content: _payload.PayloadSource, lane: Lane) -> SignedPayload:
        return await asyncio.to_thread(self._packed, content, lane)

    def _packed(self, content: _payload.PayloadSource, lane: Lane) -> SignedPayload:
        return SignedPayload(*content.pack(lane.digest))

    def _request(self, call: Call, shell: dict[str, Any] | None = None) -> Request:
        packed, info, lane = call.packed or NOTHING, self.remote.info, self.remote.lane
        payload = packed.payload
        _payload.check_payload(payload, info.python, info.versions, info.executable)
        header = _request.header(
            call.operation,
            payload.frames,
            epoch=info.epoch,
            algorithm=lane.digest,
            digest=packed.digest if payload.frames else None,
            refs=payload.refs or None,
            code=payload.carries_code or None,
            subshell=shell,
            **call.fields,
        )
        request = Request(header, payload.frames, call.fields["max_bytes"])
        request.segment, request.unread = packed.segment, call.unread
        request.trusted = not self.trust.data and call.fields.get("trust") != "data"
        request.subshell = shell["id"] if shell is not None else None
        if call.report is not None:
            request.report = call.report
        return request

    async def run(
        self,
        content: dict[str, Any],
        timeout: float | None,
        on_message: Callable[[Message], None],
        complete: Callable[[str], Awaitable[None]],
    ) -> Reply:
        """Run a cell in its turn; ``complete`` waits for the outputs after its reply."""
        call = Call("run", None, None, {})
        async with Deadline(timeout, "run", self.transport, call):
            with self.queue.turn() as turn:
                call.turn = turn
                await self.remote.ready()

                async def cell() -> Reply:
                    lane = self.remote.lane
                    if isinstance(lane, DirectLane):  # what was cancelled takes effect before it
                        with contextlib.suppress(SocketLost):
                            await lane.client.drained()
                    return await self.transport.dispatcher.request(content, on_message=on_message)

                reply = await self.queue.run(turn, cell)
            await complete(reply.id)
            return reply

    async def aclose(self) -> None:
        """Close the connection, and have the kernel drop what is unfinished."""
        await run_all(self._leave, self.subshell.aclose, self.transport.aclose)

    async def _leave(self) -> None:
        if self.transport.life.state != "closed":
            for watch in list(self.transport.life.listeners):
                self.transport.spawn(self.unwatch(watch))
            await self.remote.lane.leave()

    async def interrupt(self) -> None:
        """Interrupt the kernel, and its socket thread, which no signal reaches.

        A thread that does not stop, as in a call into C, is left alone, and the lane is made anew.

        Raises:
            NotSupported: the kernel would end instead, or go on.
        """
        if not self.transport.quirks.interruptible:
            raise NotSupported(
                f"{self.remote.info.kernel} can't be interrupted: a signal would end it. "
                "Use restart(), which ends it and starts a new one"
            )
        await self.transport.interrupt()
        lane = self.remote.lane
        if isinstance(lane, DirectLane) and lane.client.at_work:
            await lane.interrupt(self.remote.info.epoch)

    async def unwatch(self, watch: str) -> None:
        """Have the remote part drop a watch."""
        # If this fails, the remote part drops it by age, or the kernel has ended.
        with contextlib.suppress(BridgeError):
            await self.remote.request_unordered("unwatch", watch=watch)
