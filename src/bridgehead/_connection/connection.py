"""One kernel's connection: the way of a call from the bridge to its response.

Rule: which callers may use it, how a call becomes a request, and when it is sent again. The remote
part and the lane to it belong to ``remote``, turns to ``queue``, messages to the lanes and the
transports.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from typing import Any

from bridgehead._connection.calls import PUBLIC_NAMES, Call, Deadline
from bridgehead._connection.interrupts import Interrupts
from bridgehead._connection.queue import AtOnce, Queue, Turn
from bridgehead._connection.remote import Installation
from bridgehead._connection.subshell import Subshell
from bridgehead._connection.trust import Trust
from bridgehead._errors import BridgeError, KernelRestarted, NotSupported
from bridgehead._lanes.base import Lane
from bridgehead._lanes.broadcast import Delivery
from bridgehead._lanes.direct import DirectLane
from bridgehead._lanes.handshake import LaneName
from bridgehead._lanes.socket import SocketLost
from bridgehead._protocol import request as _request
from bridgehead._protocol.payload import Payload, PayloadSource, check_payload, empty
from bridgehead._protocol.request import Request
from bridgehead._protocol.response import NotServed, Response, SubshellDeleted
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
        self.process: int = os.getpid()
        self.queue: Queue = Queue(transport)
        self.subshell: Subshell = Subshell(transport)
        self.remote: Installation = Installation(transport, wanted, trust, self.subshell, pool)
        self._interrupts: Interrupts = Interrupts(transport, self.remote, self.subshell)

    def check_caller(self) -> None:
        """Raise ``RuntimeError`` in another process or another event loop."""
        if os.getpid() != self.process:
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
        if os.getpid() != self.process or not self.loop.is_closed():
            self.check_caller()

    def check(self) -> None:
        """Raise unless this caller may use the connection, and a kernel is there."""
        self.check_caller()
        self.transport.life.check()

    async def ask(
        self,
        operation: str,
        timeout: float | None,
        source: PayloadSource | None = None,
        *,
        now: bool = False,
        limit: int | None = None,
        report: Callable[[int, int], object] | None = None,
        payload: Payload | None = None,
        delivery: Delivery | None = None,
        **fields: Any,
    ) -> Response:
        """Do one operation within its deadline, and return the response; see ``Call``."""
        call = Call(operation, source, payload, delivery, fields, now, limit, report)
        async with Deadline(timeout, PUBLIC_NAMES.get(operation, operation), self.transport, call):
            with (AtOnce if now else Turn)(self.queue) as turn:
                return await self.do(call, turn)

    async def do(self, call: Call, turn: Turn) -> Response:
        """Send a call until it is done. This loop alone decides whether it is sent again.

        The floors below say by an exception's class what is known. What was not done, and is
        meant for the same kernel process, is sent again; everything else is raised.
        """
        call.turn, remote, life = turn, self.remote, self.transport.life
        # The call is meant for the kernel process that is known when it begins, if one is.
        process = remote.process if remote.is_current else None
        installed = deleted = False  # for this call: the remote part again; its first subshell
        while True:
            try:
                request = await self._prepare(call, turn)
                # A handshake may find another process behind the same connection.
                if process not in (None, remote.process) or turn.generation != life.generation:
                    raise KernelRestarted("the kernel was restarted; this call was not executed")
                process = remote.process
                lane, info, turn.sent = remote.lane, remote.info, False
                response = await turn.carry(lane, request)
                if not response.is_partial:
                    return await lane.complete(response)
            except NotServed:
                continue
            except SubshellDeleted as error:
                if deleted:
                    raise NotSupported(f"the kernel deletes each subshell: {error}") from None
                deleted = True
                self.subshell.forget(call.shell)
                continue
            except KernelRestarted:
                # On an unbroken connection, a user removed the remote part, or its socket thread
                # ended: nothing was done. Install it again, and send the request again, once. An
                # operation without a turn could take effect after what was asked for later.
                removed = turn.sent and turn.generation == life.generation
                if removed:
                    remote.mark_lost(info)
                if not removed or call.now or installed:
                    remote.restart_reported()
                    raise
                installed = True
                continue
            turn.leave()  # the next operation is sent while this one fetches the rest
            return await lane.complete(response)

    async def _prepare(self, call: Call, turn: Turn) -> Request:
        """Return the request for a call, made for one installation: as it is on return."""
        remote = self.remote
        while True:
            # ``Turn.prepare`` stops waiting when the kernel is lost, but it costs a task. Use it
            # only for what may take long.
            if not remote.is_ready:
                await turn.prepare(remote.ready())
            lane, call.shell = remote.lane, None
            await self._pack(call, turn, lane)
            refs = call.payload is not None and call.payload.refs
            outline = {"op": call.operation, "refs": refs, **call.fields}
            if call.now and not lane.serves_beside_cells(outline):
                call.shell = await self.subshell.ready()
            if call.needs_codec and not remote.has_codec:
                await turn.prepare(remote.load_codec(call.shell, call.now or None))
            # The frames of a broadcast were lost with the remote part that received them.
            delivery = call.delivery
            if delivery is not None and not (
                delivery.epoch == remote.info.epoch and await turn.prepare(delivery.is_complete())
            ):
                call.delivery = None
            if remote.is_ready and remote.lane is lane:
                return self._request(call)

    async def _pack(self, call: Call, turn: Turn, lane: Lane) -> None:
        """Pickle and sign what the call sends, once for all attempts; in a thread if it is long.

        The turn was taken at the call. So a slow pickle delays the operations behind it, and none
        of them overtakes it.
        """
        if call.payload is not None:
            if not call.payload.is_signed(lane.digest):
                work = asyncio.to_thread(call.payload.signed, lane.digest)
                call.payload = await turn.prepare(work)
        elif call.source is not None:
            if call.source.is_small():
                call.payload = call.source.pack(lane.digest, small=True)
            else:
                work = asyncio.to_thread(call.source.pack, lane.digest)
                call.payload = await turn.prepare(work)

    def _request(self, call: Call) -> Request:
        info, lane = self.remote.info, self.remote.lane
        payload = call.payload or empty(lane.digest)
        check_payload(payload, info.python, info.versions, info.executable)
        header = _request.header(
            call.operation,
            payload,
            epoch=info.epoch,
            refs=payload.refs or None,
            code=payload.carries_code or None,
            max_bytes=call.limit,
            now=call.now or None,
            subshell=call.shell,
            # By this id the kernel finds the frames that a broadcast brought.
            id=call.delivery.header["id"] if call.delivery is not None else None,
            **lane.fields(),
            **call.fields,
        )
        request = Request(header, payload, call.limit, unread=call.unread)
        request.trusted = not self.trust.data and call.fields.get("trust") != "data"
        request.delivered = call.delivery is not None
        if call.report is not None:
            request.report = call.report
        return request

    async def run(
        self,
        content: dict[str, Any],
        timeout: float | None,
        on_message: Callable[[Message], None],
        on_sent: Callable[[str], None],
        complete: Callable[[str], Awaitable[None]],
    ) -> Reply:
        """Run a cell in its turn; ``complete`` waits for the outputs after its reply.

        ``on_sent`` gets the id of the cell's message, as ``interrupt_cell`` takes it.
        """
        call = Call("run")
        async with Deadline(timeout, "run", self.transport, call):
            with self.transport.outputs():
                with Turn(self.queue) as turn:
                    call.turn = turn
                    process = self.remote.process if self.remote.is_current else None
                    try:
                        await self.remote.ready()
                        reply = await turn.run(
                            lambda: self._send_cell(content, process, on_message, on_sent)
                        )
                    except KernelRestarted:
                        self.remote.restart_reported()
                        raise
                await complete(reply.id)
                return reply

    async def _send_cell(
        self,
        content: dict[str, Any],
        process: str | None,
        on_message: Callable[[Message], None],
        on_sent: Callable[[str], None],
    ) -> Reply:
        """Send a cell to ``process``, or to any if that is None, and wait for its reply."""
        lane = self.remote.lane
        if process not in (None, self.remote.process):
            raise KernelRestarted("the kernel was restarted; nothing was sent")
        if isinstance(lane, DirectLane):  # what was cancelled takes effect before it
            with contextlib.suppress(SocketLost):
                await lane.client.drained()
        return await self.transport.dispatcher.request(
            content, on_message=on_message, on_sent=on_sent
        )

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
            NotSupported: the signal would end the kernel, or hit the program that contains it.
        """
        self._check_interruptible()
        await self._interrupts.to_kernel()
        lane = self.remote.lane
        if isinstance(lane, DirectLane) and lane.client.at_work:
            await lane.interrupt(self.remote.info.epoch)

    async def interrupt_cell(self, cell: str) -> bool:
        """Interrupt the cell of one message, and nothing else; return whether it ran.

        It does nothing to a cell that has not begun, or has ended. After True, the cell's reply
        arrives; it reports the interrupt, unless the cell handled it or was at its very end. A cell
        that awaits ends with ``CancelledError``. A call into C ends first, and so does a program
        that the cell waits for with ``os.system``: the kernel's main thread alone gets the signal.
        After a cancel the cell may or may not be interrupted.

        Another client's cell is never hit where the remote part answers beside a cell: over the
        direct lane, or by a subshell (ipykernel 7), in a kernel on POSIX. Elsewhere the signal is
        sent if the cell has begun and its reply has not arrived, as far as this process knows. A
        signal that arrives before or after the code of the cell then hits IPython, which may ignore
        it, or the next cell.

        Raises:
            NotSupported: as ``interrupt`` does.
            BridgeError: the kernel or the connection is lost.
        """
        self._check_interruptible()
        return await self._interrupts.to_cell(cell)

    def _check_interruptible(self) -> None:
        info = self.remote.info
        if not self.transport.quirks.interruptible:
            raise NotSupported(
                f"{info.kernel} can't be interrupted: a signal would end it. "
                "Use restart(), which ends it and starts a new one"
            )
        # Python runs signal handlers in the main thread only. In a program that serves a kernel in
        # another thread, the signal ends that program, and the cell goes on (measured).
        if self.transport.signals and not self.remote.in_main_thread:
            raise NotSupported(
                f"{info.kernel} can't be interrupted: its cells run in a thread of process "
                f"{info.pid}, and a signal would hit that program's main thread; nothing was sent. "
                "Let the cell check a variable, and set it with push(…, now=True)"
            )

    async def unwatch(self, watch: str) -> None:
        """Have the remote part drop a watch."""
        # If this fails, the remote part drops it by age, or the kernel has ended.
        with contextlib.suppress(BridgeError):
            await self.remote.request_unordered("unwatch", watch=watch)
