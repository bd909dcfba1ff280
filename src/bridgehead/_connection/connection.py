"""One kernel's connection: the way of a call from the bridge to its response.

Rule: which callers may use it, how a call becomes a request, and when it is sent again. The remote
part and the lane to it belong to ``installation``, turns to ``queue``, messages to the lanes and
the transports.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Coroutine, Iterator
from functools import partial
from typing import Any, TypeVar

from bridgehead._connection.call import Call, Deadline
from bridgehead._connection.installation import Installation
from bridgehead._connection.interrupts import Interrupts
from bridgehead._connection.outputs import OutputListener
from bridgehead._connection.queue import AtOnce, Queue, Turn
from bridgehead._connection.records import Counters, crossed, recorded
from bridgehead._connection.resources import HeldResources
from bridgehead._connection.subshell import Subshell
from bridgehead._connection.trust import Trust
from bridgehead._errors import (
    BridgeError,
    KernelRestarted,
    NotSupported,
    RequestAborted,
)
from bridgehead._lanes.direct import DirectLane
from bridgehead._lanes.handshake import LaneName
from bridgehead._protocol.payload import Payload, check_payload, empty
from bridgehead._protocol.request import Request
from bridgehead._protocol.response import NotServed, Response, SubshellDeleted
from bridgehead._transports.base import Transport
from bridgehead._transports.tasks import closing, in_thread, run_all, waited

T = TypeVar("T")
LOSSES = 5  # of the remote part, or of its socket thread, after which a call is given up


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
        self.resources: HeldResources = HeldResources(transport, self.remote)
        self.counters: Counters = Counters()
        self._interrupts: Interrupts = Interrupts(transport, self.remote)
        self._cancelling: set[asyncio.Task[None]] = set()

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

    async def within(self, timeout: float | None, call: Call, turn: Turn | None = None) -> Response:
        """Do a call within its deadline, and return the response.

        The caller may have taken the ``turn`` before.
        """
        async with Deadline(timeout, call.public_name, self.transport, call):
            with turn or self.turn(now=call.now) as taken:
                return await self.do(call, taken)

    def turn(self, *, now: bool = False) -> Turn:
        """Return a turn to take; ``now`` is for an operation that waits for none."""
        return (AtOnce if now else Turn)(self.queue)

    async def listening(self, work: Awaitable[T], outputs: OutputListener) -> T:
        """Do the work of a call while its outputs arrive.

        Return, or raise what the call raised, only after the last output.
        """
        try:
            with self.transport.outputs():
                try:
                    done = await work
                except BridgeError:
                    await outputs.complete(outputs.answered)
                    raise
                await outputs.complete(outputs.answered)
                return done
        finally:
            outputs.leave()
            self.transport.dispatcher.unlisten(outputs.feed)

    def trusts(self, call: Call) -> bool:
        """Return whether an exception in the response of a call may be unpickled."""
        return not self.trust.data and call.fields.get("trust") != "data"

    def cancel(self, call: Call) -> None:
        """Have the kernel interrupt a call, or see to it that it never begins.

        Nothing waits for that, except that the connection is closed later, by a moment at most. A
        call that was not sent is not sent any more when its caller has given up its turn.
        """
        if call.request and self.transport.life.state != "closed":
            cancelling = self.transport.spawn(self._cancel(call.request))
            self._cancelling.add(cancelling)
            cancelling.add_done_callback(self._cancelling.discard)

    async def _cancel(self, request: str) -> None:
        cancel, served = partial(self.remote.request_beside, "cancel", request=request), None
        with contextlib.suppress(BridgeError):
            if self.remote.greeting.guards_cells:
                served = await self.transport.until_replied(cancel)
            if served is None:
                if self.transport.dispatcher.runs(request):
                    await self._interrupts.to_kernel()
                await self.remote.request_unordered("cancel", request=request)

    def do(self, call: Call, turn: Turn) -> Coroutine[Any, Any, Response]:
        """Return the work of a call, from its place in the queue to its whole response."""
        return recorded(
            self.transport,
            call,
            self._do(call, turn),
            lambda response: crossed(call.nbytes, response.arrived, response.lane),
            lambda: crossed(call.nbytes if turn.sent else 0, 0, self.remote.lane.name),
        )

    async def _do(self, call: Call, turn: Turn) -> Response:
        """Send a call until it is done. This loop decides whether it is sent again.

        The floors below say by an exception's class what is known. What was not done, and is
        meant for the same kernel process, is sent again; everything else is raised. The head of
        ``_connection`` names the two cases that the dispatcher repeats itself.
        """
        call.turn, remote, life = turn, self.remote, self.transport.life
        self.counters.operations += 1
        # The call is meant for the kernel process that is known when it begins, if one is.
        process = remote.process if remote.is_current else None
        losses, deleted = 0, False  # for this call: of the remote part, of its first subshell
        while True:
            try:
                request = await self._prepare(call, turn)
                remote.check_same(process, turn.generation)
                greeting, turn.sent = remote.greeting, False
                process, lane = greeting.process, greeting.lane
                response = await turn.carry(lane, request)
                if not response.is_partial:
                    return self._counted(await lane.complete(response))
            except NotServed:
                continue
            except asyncio.CancelledError:
                if call.interrupts:
                    self.cancel(call)
                raise
            except SubshellDeleted as error:
                if deleted:
                    raise NotSupported(f"the kernel deletes each subshell: {error}") from None
                deleted = True
                self.counters.retries += 1
                self.subshell.forget(call.shell)
                continue
            except KernelRestarted:
                # On an unbroken connection, a user removed the remote part, or its socket thread
                # ended: nothing was done. Install it again, and send the request again. An
                # operation without a turn could take effect after what was asked for later.
                removed = turn.sent and turn.generation == life.generation
                if removed:
                    remote.mark_lost(greeting)
                if not removed or call.now:
                    if not call.is_unattended:
                        remote.restart_reported()
                    raise
                losses += 1
                if losses == LOSSES:
                    raise RequestAborted(
                        f"bridgehead's module was removed from the kernel {losses} times, each "
                        "time before it served this call; nothing was done. Leave it in "
                        "sys.modules, and call again"
                    ) from None
                self.counters.retries += 1
                turn.sent = False  # else a restart that is found next would look like another loss
                continue
            turn.leave()  # the next operation is sent while this one fetches the rest
            return self._counted(await lane.complete(response))

    def _counted(self, response: Response) -> Response:
        self.counters.sent += response.request.nbytes
        self.counters.received += response.arrived
        return response

    async def _prepare(self, call: Call, turn: Turn) -> Request:
        """Return the request for a call, made for the remote part that is installed on return."""
        remote = self.remote
        call.shell = None
        while True:
            # Whatever waits is followed by another look at all that may have changed meanwhile.
            # ``Turn.prepare`` stops waiting when the kernel is lost, but it costs a task. Use it
            # only for what may take long.
            if not (remote.is_installed if call.any_process else remote.is_ready):
                await turn.prepare(remote.ready(any_process=call.any_process))
                call.shell = None
            work = self._pack(call, remote.lane.digest)
            if work is not None:
                call.payload = await turn.prepare(work)
            elif call.now and call.shell is None and not self._is_beside_cells(call):
                call.shell = await turn.prepare(self.subshell.ready())
            elif self._needs_codec(call) and not remote.has_codec:
                await turn.prepare(remote.load_codec(call.shell, call.now or None))
            elif call.delivery is not None and not call.delivery.is_in(remote.info.epoch):
                # The frames of a broadcast were lost with the remote part that received them.
                is_lost = call.delivery.epoch != remote.info.epoch
                if is_lost or not await turn.prepare(call.delivery.wait_complete()):
                    call.delivery = None
            else:
                return self._request(call)

    def _needs_codec(self, call: Call) -> bool:
        """Return whether the kernel needs the data-only codec, for a callback that it gets, too."""
        stands_for = call.payload is not None and call.payload.refs
        is_data = "data" in (call.fields.get("trust"), call.fields.get("opens"))
        return is_data or (stands_for and self.trust.data)

    def _is_beside_cells(self, call: Call) -> bool:
        """Return whether the lane serves a call while a cell runs."""
        refs = call.payload is not None and call.payload.refs
        outline = {"op": call.operation, "refs": refs, **call.fields}
        return self.remote.lane.serves_beside_cells(outline)

    def _pack(self, call: Call, digest: str) -> Awaitable[Payload] | None:
        """Pickle and sign what the call sends, once for all attempts, if that is quick.

        Else return the work of a thread. The turn was taken at the call. So a slow pickle delays
        the operations behind it, and none of them overtakes it.
        """
        if call.payload is not None:
            if not call.payload.is_signed(digest):
                return in_thread(call.payload.signed, digest)
        elif call.source is not None:
            call.payload = call.source.pack_small(digest)
            if call.payload is None:
                return in_thread(call.source.pack, digest)
        return None

    def _request(self, call: Call) -> Request:
        info, lane = self.remote.info, self.remote.lane
        payload = call.payload or empty(lane.digest)
        check_payload(payload, info.python, info.versions, info.executable)
        header = self.remote.header(
            call.operation,
            lane,
            payload,
            refs=payload.refs or None,
            code=payload.carries_code or None,
            max_bytes=call.limit,
            now=call.now or None,
            subshell=call.shell,
            # By this id the kernel finds the frames that a broadcast brought.
            id=call.delivery.header["id"] if call.delivery is not None else None,
            **call.fields,
        )
        request = Request(header, payload, call.limit, unread=call.unread, outputs=call.outputs)
        request.trusted = self.trusts(call)
        request.delivered = call.delivery is not None
        call.request = header["id"]
        if call.report is not None:
            request.report = call.report
        return request

    async def aclose(self) -> None:
        """Close the connection, and have the kernel drop what is unfinished."""
        with closing(self.transport.tasks):
            await run_all(
                self._leave,
                lambda: self.remote.lane.close(),
                self.subshell.aclose,
                self.transport.aclose,
            )

    async def _leave(self) -> None:
        """Have the kernel drop what is unfinished; a closed transport can't ask it any more."""
        if self.transport.life.state != "closed":
            if self._cancelling:  # a server drops what it has not passed on
                async with waited(self.transport.timings.last_messages):
                    await asyncio.wait(self._cancelling)
            await run_all(self.resources.close, self.remote.lane.leave)

    @contextlib.contextmanager
    def reporting_restart(self, call: Call | None = None) -> Iterator[None]:
        """Note that the caller gets the ``KernelRestarted`` of the block.

        For a call that is unattended, it is noted when a caller asks for the outcome.
        """
        try:
            yield
        except KernelRestarted:
            if call is None or not call.is_unattended:
                self.remote.restart_reported()
            raise

    async def interrupt(self) -> None:
        """Interrupt the kernel, and its socket thread, which no signal reaches.

        A thread that does not stop, as in a call into C, is left alone, and the lane is made anew.

        Raises:
            NotSupported: the signal would end the kernel, or hit the program that contains it.
        """
        self.check_interruptible("interrupt()")
        call = Call("interrupt", request="no id")
        done, failed = "delivered", "not delivered"
        await recorded(self.transport, call, self._interrupt(), lambda _: done, lambda: failed)

    async def _interrupt(self) -> None:
        with self.reporting_restart():
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
        direct lane, or on the control channel of ipykernel, on POSIX. Elsewhere the signal is
        sent if the cell has begun and its reply has not arrived, as far as this process knows. A
        signal that arrives before or after the code of the cell then hits IPython, which may ignore
        it, or the next cell.

        Raises:
            NotSupported: as ``interrupt`` does.
            BridgeError: the kernel or the connection is lost.
        """
        self.check_interruptible("interrupting a cell")
        return await self._interrupts.to_cell(cell)

    def require_pushes(self, what: str, instead: str) -> None:
        """Raise ``NotSupported`` if the remote part cannot send anything but replies."""
        transport = self.transport
        if not transport.capabilities.pushes:
            raise NotSupported(
                f"{what} does not work over {transport.name}, which only replies to requests; "
                f"{instead}"
            )

    def require_events(self, what: str) -> None:
        """Raise ``NotSupported`` if the events of remote resources do not arrive."""
        if not (self.transport.capabilities.pushes or self.remote.greeting.serves_control):
            raise NotSupported(
                f"{what} needs a kernel that sends events; {self.remote.info.kernel} over "
                f"{self.transport.name} only replies to requests, and has no thread that serves "
                "them while a cell runs (install ipykernel 6 or later there)"
            )

    def require_control(self, what: str) -> None:
        """Raise ``NotSupported`` if the kernel sends nothing while a cell runs."""
        self.require_events(what)
        if not self.remote.greeting.serves_control:
            raise NotSupported(
                f"{what} needs a kernel that sends while a cell runs; {self.remote.info.kernel} "
                "has no thread for that"
            )

    def require_stages(self) -> None:
        """Raise ``NotSupported`` if a cell cannot take what was sent for it before."""
        self.require_pushes("run() with push= or max_output=", "push before, and leave them out")
        signals = self.transport.capabilities.signals
        if signals and not self.remote.greeting.guards_cells:  # a loopback needs no guard
            raise NotSupported(
                f"{self.remote.info.kernel} does not support push= and max_output= in run(): they "
                "need ipykernel on POSIX, with its cells in the main thread; the cell was not sent"
            )

    def require_input(self) -> None:
        """Raise ``NotSupported`` if what a cell asks its client does not arrive."""
        if not (self.transport.capabilities.pushes and self.transport.quirks.asks):
            raise NotSupported(
                f"{self.remote.info.kernel} over {self.transport.name} does not forward input(); "
                "leave on_input= out"
            )

    def require_guard(self) -> None:
        """Raise ``NotSupported`` if one request cannot be interrupted and no other."""
        self.check_interruptible("on_timeout='interrupt'")
        if not self.remote.greeting.guards_cells:
            raise NotSupported(
                f"{self.remote.info.kernel} cannot interrupt one call and nothing else; leave "
                "on_timeout= out"
            )

    def check_interruptible(self, what: str) -> None:
        """Raise ``NotSupported`` if an interrupt would end the kernel, or hit another program.

        ``what`` is the method or the option that needs it.
        """
        info = self.remote.info
        who = f"{what} is not supported, because {info.kernel} can't be interrupted"
        if not self.transport.quirks.interruptible:
            raise NotSupported(
                f"{who}: a signal would end it. Use restart(), which ends it and starts a new one"
            )
        # Python runs signal handlers in the main thread only. In a program that serves a kernel in
        # another thread, the signal ends that program, and the cell goes on (measured).
        if self.transport.capabilities.signals and not self.remote.greeting.in_main_thread:
            raise NotSupported(
                f"{who}: its cells run in a thread of process {info.pid}, and a signal would hit "
                "that program's main thread; nothing was sent. Let the cell check a variable, and "
                "set it with push(…, now=True)"
            )
