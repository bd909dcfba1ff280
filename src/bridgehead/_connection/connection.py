"""The foothold: the loader in one kernel, planted and kept planted.

Rule: the policy between an operation and its messages. Who may call, until when, over which
lane, and what a restart means: planted again, and told once, so that nothing meant for the
old kernel lands in the new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bridgehead._connection.queue import Place, Queue
from bridgehead._connection.subshell import UNKNOWN, Subshell
from bridgehead._connection.trust import Trust
from bridgehead._errors import (
    BridgeError,
    KernelRestarted,
    NotSupported,
    ProtocolError,
    RemoteError,
)
from bridgehead._lanes.base import Lane, Request
from bridgehead._lanes.broadcast import Landing
from bridgehead._lanes.direct import DirectLane, served_there
from bridgehead._lanes.handshake import Handshake, LaneName
from bridgehead._lanes.socket import LinkLost
from bridgehead._protocol import bootstrap as _shipping
from bridgehead._protocol import payload as _parcel
from bridgehead._protocol import response as _protocol
from bridgehead._protocol.results import Info
from bridgehead._shipped.wire.segments import Segment
from bridgehead._transports.base import Transport
from bridgehead._transports.dispatch import Reply
from bridgehead._transports.messages import Message

# What a user called the operation.
SAID = {"bind": "push", "fetch": "pull", "drop": "delete", "has": "exists"}
LOST = -1  # the generation of a loader that is not there (any more)


class Foothold:
    """The loader in the kernel behind one transport, from the event loop that opened it."""

    def __init__(
        self, transport: Transport, wanted: LaneName, trust: Trust, pool: float = 0.5
    ) -> None:
        self.transport = transport
        self.trust = trust
        self._handshake = Handshake(transport, wanted, pool, trust.name)
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._process = os.getpid()
        self._lane: Lane | None = None
        self._info: Info | None = None
        self._epoch: str | None = None  # what the caller's names are believed to live in
        self._kernel = ""  # the process that was believed in; a pid may be used again
        self._generation = LOST  # of the transport, when the loader was planted
        self._planting = asyncio.Lock()
        self._taught = ""  # epoch of the loader that has the data-only codec
        self.queue: Queue = Queue(transport)
        self.subshell: Subshell = Subshell(transport)

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

    @property
    def info(self) -> Info:
        """What the last handshake learnt."""
        if self._info is None:
            raise ProtocolError("the handshake did not happen yet")
        return self._info

    async def ask(
        self,
        operation: str,
        timeout: float | None,
        content: _parcel.Content | None = None,
        *,
        now: bool = False,
        limit: int | None = None,
        report: Callable[[int, int], object] | None = None,
        packed: Packed | None = None,
        **fields: Any,
    ) -> Answered:
        """One operation: its place in the queue, the lane, the deadline, the answer.

        ``content`` is what is pickled for it, ``packed`` what was already; ``now`` has it served
        in the middle of a running cell; ``limit`` bytes of an answer are taken at most;
        ``report`` is told of bytes done and in all; ``fields`` go into the header.
        """
        fields["max_bytes"] = limit
        call = Call(operation, content, report, fields, packed)
        if timeout is None:
            return await (self._at_once(call) if now else self.in_turn(call))
        async with deadline(timeout, SAID.get(operation, operation), self.transport, call):
            return await (self._at_once(call) if now else self.in_turn(call))

    @property
    def is_ready(self) -> bool:
        """Whether the loader is there and the kernel answers, as far as is known."""
        planted = self._generation == self.transport.life.generation
        return planted and not self.transport.life.is_silent and not self.lane.lost

    async def in_turn(self, call: Call) -> Answered:
        """One operation when it is its turn, with the place that it has already, if it has one."""
        first: str | None = None
        number: int | None = None
        held = call.place
        request, generation = self._alone(call) if held is None else None, self._generation
        if request is not None:
            kernel, info = self._kernel, self.info
            try:
                with self.queue.alone() as number:
                    opened = await self.lane.carry(request)
                told, frames = await self.lane.rest(request, opened)
                return Answered(told, frames, request)
            except KernelRestarted:
                if generation != self.transport.life.generation:
                    raise
                first = kernel
                self._lost(info)
        while True:
            again = call.place.number if call.place else number
            with contextlib.nullcontext(held) if held else self.queue.place(again) as place:
                held, call.place = None, place
                if (
                    self._generation != self.transport.life.generation
                    or self.transport.life.is_silent
                ):
                    await place.prepare(self.ready())
                lane = await self.ready()
                if first not in (None, self._kernel):
                    raise KernelRestarted("the kernel was restarted; this call was not executed")
                if call.needs_lesson:
                    await place.prepare(self._teach())
                await self._pack(call, place, lane)
                landing = None if first is not None else await self._landed(call, place)
                request, generation, info = self._request(call), self._generation, self.info
                if landing is not None and landing.epoch == info.epoch:
                    request.header["id"], request.landed = landing.header["id"], True
                kernel = self._kernel
                try:
                    opened = await self.queue.carry(place, lane, request)
                    told, frames = await lane.rest(request, opened)
                except KernelRestarted:
                    # On an unbroken connection somebody removed the loader: nothing was done,
                    # so plant it again, and if it is the same process do it now.
                    if first is not None or generation != self.transport.life.generation:
                        raise
                    first = kernel
                    self._lost(info)
                    continue
                return Answered(told, frames, request)

    def _alone(self, call: Call) -> Request | None:
        """The request, if it needs no queue and no thread: a small one, of which there is no other.

        Half of what a small operation takes would otherwise be the queue's (measured).
        """
        lane = self._lane
        if (
            not isinstance(lane, DirectLane)
            or lane.lost
            or self._generation != self.transport.life.generation
        ):
            return None
        if not self.queue.is_empty or self.transport.life.is_silent or call.needs_lesson:
            return None
        if call.content is not None:
            if not call.content.is_light():
                return None
            call.packed = self._packed(call.content, lane)
        elif call.packed is not None:
            return None
        request = self._request(call)
        return request if lane.is_free(request.header) else None

    async def _at_once(self, call: Call) -> Answered:
        lane = await self.ready()
        if call.content is not None:
            call.packed = await self._thread(call.content, lane)
        if isinstance(lane, DirectLane):
            request = self._request(call)
            if served_there(request.header):
                if call.needs_lesson:
                    await self._teach(now=True)
                request.header["now"] = True
                told, frames = await lane.rest(request, await lane.carry(request))
                return Answered(told, frames, request)
        for last in (False, True):
            shell, info = await self.subshell.ready(), self.info
            try:
                if call.needs_lesson:
                    await self._teach(shell)
                request = self._request(call, shell)
                opened = await lane.carry(request)
            except KernelRestarted:
                self._lost(info)
                raise
            except RemoteError as error:
                if last or error.ename != UNKNOWN:
                    raise
                self.subshell.forget(shell["id"])
                continue
            told, frames = await lane.rest(request, opened)
            return Answered(told, frames, request)
        raise AssertionError

    async def _pack(self, call: Call, place: Place, lane: Lane) -> None:
        """Pickle what the call sends, if it takes long in a thread; once, whatever happens."""
        if call.packed is not None and call.packed.is_signed == (lane.digest == "none"):
            parcel, algorithm, sums = call.packed.parcel, lane.digest, lane.sums
            work = asyncio.to_thread(_parcel.signed, parcel, algorithm, sums)
            call.packed = replace(call.packed, digest=await place.prepare(work))
        if call.content is None or call.packed is not None:
            return
        if call.content.is_light():
            call.packed = self._packed(call.content, lane)
        else:
            call.packed = await place.prepare(self._thread(call.content, lane))

    async def _landed(self, call: Call, place: Place) -> Landing | None:
        """What reached this kernel of a message to many, if it is all of what the call sends."""
        landing = call.packed.landing if call.packed is not None else None
        if landing is None or not await place.prepare(landing.whole()):
            return None
        return landing

    async def _thread(self, content: _parcel.Content, lane: Lane) -> Packed:
        return await asyncio.to_thread(self._packed, content, lane)

    def _packed(self, content: _parcel.Content, lane: Lane) -> Packed:
        return Packed(*content.pack(lane.digest, lane.sums))

    async def _teach(self, shell: dict[str, Any] | None = None, now: bool | None = None) -> None:
        """Ship the data-only codec to a loader that does not have it yet."""
        epoch = self.info.epoch
        if self._taught != epoch:
            await self.aside("learn", _shipping.lesson(), shell=shell, now=now)
            self._taught = epoch

    def _request(self, call: Call, shell: dict[str, Any] | None = None) -> Request:
        packed, info, lane = call.packed or NOTHING, self.info, self.lane
        parcel = packed.parcel
        _parcel.check_parcel(parcel, info.python, info.versions, info.executable)
        header = _protocol.header(
            call.operation,
            parcel.frames,
            epoch=self.info.epoch,
            algorithm=lane.digest,
            digest=packed.digest if parcel.frames else None,
            refs=parcel.refs or None,
            code=parcel.carries_code or None,
            subshell=shell,
            **call.fields,
        )
        request = Request(header, parcel.frames, call.fields["max_bytes"])
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
        async with deadline(timeout, "run", self.transport, call):
            with self.queue.place() as place:
                call.place = place
                await self.ready()

                async def cell() -> Reply:
                    lane = self._lane
                    if isinstance(lane, DirectLane):  # what nobody waits for any more goes first
                        with contextlib.suppress(LinkLost):
                            await lane.link.drained()
                    return await self.transport.dispatcher.request(content, on_message=on_message)

                reply = await self.queue.run(place, cell)
            await complete(reply.id)
            return reply

    async def aclose(self) -> None:
        """Leave, and nothing half-way in the kernel."""
        if self._lane is not None and self._info is not None:
            for watch in list(self.transport.life.listeners):
                self.transport.spawn(self.unwatch(watch))
            await self._lane.leave()
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
                f"{self.info.kernel} can't be interrupted: a signal would end it; restart() does "
                "so and starts another one"
            )
        await self.transport.interrupt()
        lane = self._lane
        if isinstance(lane, DirectLane) and lane.link.at_work:
            await lane.strike(self.info.epoch)

    async def unwatch(self, watch: str) -> None:
        """Have the loader forget a watch."""
        with contextlib.suppress(BridgeError):  # then it goes by age, or with the kernel
            await self.aside("unwatch", watch=watch)

    async def aside(
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
        header = _protocol.header(
            operation,
            frames,
            epoch=self.info.epoch,
            algorithm=lane.digest,
            subshell=shell,
            max_bytes=limit,
            **fields,
        )
        request = Request(header, frames, limit, trusted=not self.trust.data)
        request.subshell = shell["id"] if shell is not None else None
        _, back = await lane.rest(request, await lane.carry(request))
        return back

    async def ready(self) -> Lane:
        """The lane, with the loader in place; plants it again after a restart."""
        await self.transport.life.answering()
        if self._lane is not None and self._lane.lost:
            self._generation = LOST
        if self._generation != self.transport.life.generation:
            epoch, kernel, lost = self._epoch, self._kernel, self._generation == LOST
            await self.plant()
            same = kernel == self._kernel if lost else epoch == self._epoch
            if epoch is not None and not same:
                for listener in self.transport.life.listeners.values() if lost else ():
                    listener.end()  # where no connection broke, nobody told them
                raise KernelRestarted(
                    "the kernel was restarted since the last call, and its namespace is new; "
                    "this call was not sent"
                )
        return self.lane

    @property
    def lane(self) -> Lane:
        """The lane of the last handshake."""
        assert self._lane is not None
        return self._lane

    def _lost(self, info: Info) -> None:
        """The loader of that handshake is not there any more."""
        if self.info is info:
            self._generation = LOST

    async def plant(self) -> None:
        """The handshake, unless the loader is known to be there."""
        async with self._planting:
            generation = self.transport.life.generation
            if generation == self._generation:
                return
            greeted = await self._handshake.greet()
            if isinstance(self._lane, DirectLane):
                self._lane.link.close()
            self._lane, self._info, self._kernel = greeted.lane, greeted.info, greeted.process
            lane = greeted.lane
            self.transport.life.beside = lane.link if isinstance(lane, DirectLane) else None
            self._generation, self._epoch = generation, greeted.info.epoch
            for orphan in greeted.orphans:
                self.transport.spawn(self.subshell.delete(orphan))


def check_seconds(seconds: object) -> None:
    """Raise ``TypeError`` unless it is a number of seconds, or None."""
    if seconds is not None and not isinstance(seconds, (int, float)):
        raise TypeError(f"timeout is a number of seconds or None, not {seconds!r}")


@contextlib.asynccontextmanager
async def deadline(
    seconds: float | None,
    operation: str,
    transport: Transport,
    call: Call | None = None,
    asked: float | None = None,
) -> AsyncIterator[None]:
    """The builtin ``TimeoutError`` for an operation that took longer, with what is known.

    ``call`` knows whether it was sent; ``asked`` is what the caller had given it, where some
    of it was used up before.
    """
    check_seconds(seconds)
    try:
        async with asyncio.timeout(seconds) as scope:
            yield
    except TimeoutError:
        if not scope.expired():
            raise
        waited = call is not None and call.place is not None and not call.place.sent
        end = "It was not sent" if waited else "What was sent to it may still run there"
        raise TimeoutError(
            f"{operation} got no answer within {asked or seconds:g} s; the kernel is "
            f"{transport.life.state}. {end}"
        ) from None


@dataclass(frozen=True, slots=True)
class Packed:
    """What a request brings, and its digest.

    Attributes:
        segment: the memory that it is in already, if it is.
        landing: how it reaches this kernel by a message to many, if it does.
    """

    parcel: _parcel.Parcel
    digest: str
    segment: Segment | None = None
    landing: Landing | None = None

    @property
    def is_signed(self) -> bool:
        return self.digest != "none:"


NOTHING = Packed(_parcel.EMPTY, "")


@dataclass(slots=True)
class Call:
    """One call of a user's, on its way through the foothold; ``fields`` go into the header."""

    operation: str
    content: _parcel.Content | None
    report: Callable[[int, int], object] | None
    fields: dict[str, Any]
    packed: Packed | None = None
    place: Place | None = None
    unread: bool = False  # here: see Request

    @property
    def needs_lesson(self) -> bool:
        return "data" in (self.fields.get("trust"), self.fields.get("opens"))


@dataclass(slots=True)
class Answered:
    """What came of an operation.

    Attributes:
        told: the answer's header.
        frames: the answer's frames.
        request: what was asked.
    """

    told: _protocol.Header
    frames: list[memoryview]
    request: Request
