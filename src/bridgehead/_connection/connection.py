"""One kernel's connection: the policy between an operation and its messages.

Rule: who may call, in which order, until when, and what is tried again. The remote part and the
lane that leads to it are ``remote``'s, turns ``queue``'s, messages the lanes' and transports'.
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
from bridgehead._lanes.direct import DirectLane, served_there
from bridgehead._lanes.handshake import LaneName
from bridgehead._lanes.socket import SocketLost
from bridgehead._protocol import payload as _payload
from bridgehead._protocol import request as _request
from bridgehead._transports.base import Transport
from bridgehead._transports.dispatch import Reply
from bridgehead._transports.messages import Message


class Connection:
    """The loader in the kernel behind one transport, from the event loop that opened it."""

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
        if os.getpid() != self._process:
            raise RuntimeError("this bridge was opened before a fork; open another one here")
        if asyncio.get_running_loop() is not self.loop:
            raise RuntimeError(
                "this bridge belongs to another event loop; open one in this loop, or use "
                "SyncBridge, which may be called from any thread"
            )

    def check(self) -> None:
        """Raise unless this caller may ask this kernel for something now."""
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
        """One operation: its place in the queue, the lane, the deadline, the answer.

        ``content`` is what is pickled for it, ``packed`` what was already; ``now`` has it served
        in the middle of a running cell; ``limit`` bytes of an answer are taken at most;
        ``report`` is told of bytes done and in all; ``fields`` go into the header.
        """
        fields["max_bytes"] = limit
        call = Call(operation, content, report, fields, packed)
        async with Deadline(timeout, PUBLIC_NAMES.get(operation, operation), self.transport, call):
            return await (self._at_once(call) if now else self.in_turn(call))

    async def in_turn(self, call: Call) -> Response:
        """One operation when it is its turn, with the place that it has already, if it has one."""
        # The process in which the remote part was found missing; the request is sent a second
        # time to that process alone.
        first: str | None = None
        number: int | None = None  # its place, kept for a second attempt so that the order holds
        held = call.turn
        # The fast path: no queue, no task, no thread, for a small request on an idle bridge.
        request, generation = (
            self._fast_path(call) if held is None else None,
            self.remote.generation,
        )
        if request is not None:
            kernel, info = self.remote.process, self.remote.info
            try:
                with self.queue.fast_path() as number:
                    opened = await self.remote.lane.carry(request)
                told, frames = await self.remote.lane.rest(request, opened)
                return Response(told, frames, request)
            except KernelRestarted:
                # The transport noticed the restart itself: that is for the caller to hear of.
                if generation != self.transport.life.generation:
                    raise
                first = kernel
                self.remote.mark_lost(info)
        while True:
            again = call.turn.number if call.turn else number
            # A place that the caller brought is the caller's to give up, so this block does not.
            with contextlib.nullcontext(held) if held else self.queue.turn(again) as turn:
                held, call.turn = None, turn
                # prepare() ends the wait when the kernel goes, and costs a task: it is for what
                # may take long. With the remote part in place, ready() returns at once.
                if not self.remote.is_current or self.transport.life.is_unresponsive:
                    await turn.prepare(self.remote.ready())
                lane = await self.remote.ready()
                # The same connection may lead to another process by now. The request was meant
                # for the old one.
                if first not in (None, self.remote.process):
                    raise KernelRestarted("the kernel was restarted; this call was not executed")
                if call.needs_codec:
                    await turn.prepare(self.remote.load_codec())
                await self._pack(call, turn, lane)
                # What a broadcast brought went with the remote part that received it.
                delivery = None if first is not None else await self._delivered(call, turn)
                # No await from here to the send: the request, and what is compared after a
                # failure, are of the same installation.
                request, generation = self._request(call), self.remote.generation
                kernel, info = self.remote.process, self.remote.info
                if delivery is not None and delivery.epoch == info.epoch:
                    # By this id the kernel finds the frames that the broadcast brought.
                    request.header["id"], request.delivered = delivery.header["id"], True
                try:
                    opened = await self.queue.carry(turn, lane, request)
                    told, frames = await lane.rest(request, opened)
                except KernelRestarted:
                    # On an unbroken connection somebody removed the remote part: nothing was
                    # done. Install it again, and if it is the same process send the request
                    # again, once.
                    if first is not None or generation != self.transport.life.generation:
                        raise
                    first = kernel
                    self.remote.mark_lost(info)
                    continue
                return Response(told, frames, request)

    def _fast_path(self, call: Call) -> Request | None:
        """The request, if it needs no queue and no thread: a small one, of which there is no other.

        Half of what a small operation takes would otherwise be the queue's (measured).
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
        return request if lane.is_free(request.header) else None

    async def _at_once(self, call: Call) -> Response:
        """One operation while a cell runs: it takes no place in the queue and waits for none.

        A restart is reported and nothing is sent again: without a place, a second attempt could
        take effect after what the caller asked for later.
        """
        lane = await self.remote.ready()
        if call.content is not None:
            call.packed = await self._thread(call.content, lane)
        # The direct lane's thread in the kernel binds and fetches names beside a running cell, so
        # this needs no subshell. It runs no code: any other operation goes on below.
        if isinstance(lane, DirectLane):
            request = self._request(call)
            if served_there(request.header):
                if call.needs_codec:
                    await self.remote.load_codec(now=True)
                request.header["now"] = True
                told, frames = await lane.rest(request, await lane.carry(request))
                return Response(told, frames, request)
        # Anybody may have deleted our subshell, and then nothing was done: try once with a new one.
        for last in (False, True):
            shell, info = await self.subshell.ready(), self.remote.info
            try:
                if call.needs_codec:  # in the subshell, too: the main shell waits for the cell
                    await self.remote.load_codec(shell)
                request = self._request(call, shell)
                opened = await lane.carry(request)
            except KernelRestarted:
                self.remote.mark_lost(info)
                raise
            except RemoteError as error:
                if last or error.ename != UNKNOWN:
                    raise
                self.subshell.forget(shell["id"])
                continue
            told, frames = await lane.rest(request, opened)
            return Response(told, frames, request)
        raise AssertionError

    async def _pack(self, call: Call, turn: Turn, lane: Lane) -> None:
        """Pickle what the call sends, if it takes long in a thread; once, whatever happens."""
        if call.packed is not None and call.packed.is_signed == (lane.digest == "none"):
            payload, algorithm, sums = call.packed.payload, lane.digest, lane.sums
            work = asyncio.to_thread(_payload.signed, payload, algorithm, sums)
            call.packed = replace(call.packed, digest=await turn.prepare(work))
        if call.content is None or call.packed is not None:
            return
        if call.content.is_small():
            call.packed = self._packed(call.content, lane)
        else:
            call.packed = await turn.prepare(self._thread(call.content, lane))

    async def _delivered(self, call: Call, turn: Turn) -> Delivery | None:
        """What reached this kernel of a message to many, if it is all of what the call sends."""
        delivery = call.packed.delivery if call.packed is not None else None
        if delivery is None or not await turn.prepare(delivery.whole()):
            return None
        return delivery

    async def _thread(self, content: _payload.PayloadSource, lane: Lane) -> SignedPayload:
        return await asyncio.to_thread(self._packed, content, lane)

    def _packed(self, content: _payload.PayloadSource, lane: Lane) -> SignedPayload:
        return SignedPayload(*content.pack(lane.digest, lane.sums))

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
        """A cell, in its turn; ``complete`` waits for what comes beside its reply."""
        call = Call("run", None, None, {})
        async with Deadline(timeout, "run", self.transport, call):
            with self.queue.turn() as turn:
                call.turn = turn
                await self.remote.ready()

                async def cell() -> Reply:
                    lane = self.remote.lane
                    if isinstance(lane, DirectLane):  # what nobody waits for any more goes first
                        with contextlib.suppress(SocketLost):
                            await lane.client.drained()
                    return await self.transport.dispatcher.request(content, on_message=on_message)

                reply = await self.queue.run(turn, cell)
            await complete(reply.id)
            return reply

    async def aclose(self) -> None:
        """Leave, and nothing half-way in the kernel."""
        for watch in list(self.transport.life.listeners):
            self.transport.spawn(self.unwatch(watch))
        await self.remote.lane.leave()
        await self.subshell.aclose()
        await self.transport.aclose()

    async def interrupt(self) -> None:
        """Interrupt the kernel, and what the direct lane's thread is at: no signal reaches that.

        A thread that won't hear, as in a C call, is left to itself, and the lane is made anew.

        Raises:
            NotSupported: the kernel would end instead, or go on.
        """
        if not self.transport.quirks.interruptible:
            raise NotSupported(
                f"{self.remote.info.kernel} can't be interrupted: a signal would end it; "
                "restart() does so and starts another one"
            )
        await self.transport.interrupt()
        lane = self.remote.lane
        if isinstance(lane, DirectLane) and lane.client.at_work:
            await lane.interrupt(self.remote.info.epoch)

    async def unwatch(self, watch: str) -> None:
        """Have the loader forget a watch."""
        with contextlib.suppress(BridgeError):  # then it goes by age, or with the kernel
            await self.remote.request_unordered("unwatch", watch=watch)
