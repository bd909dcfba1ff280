"""Calls back: functions of this program that code in the kernel calls.

Rule: which calls have arrived, in which order they run, and what is reported to the kernel. The
reports go on the control channel, which is served while a cell runs. How the calls wait in the
kernel is in ``_shipped/remote/callbacks.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from bridgehead._connection.connection import Connection
from bridgehead._connection.resources import Frames, RemoteResource
from bridgehead._errors import BridgeError, KernelUnresponsive, ProtocolError, ReplyLost
from bridgehead._protocol.formatting import line
from bridgehead._protocol.response import (
    Response,
    check_fields,
    check_groups,
    close_response,
    open_response,
)
from bridgehead._shipped.wire.header import (
    CALLS_AHEAD,
    CALLS_TOGETHER,
    RequestHeader,
    ResponseHeader,
)
from bridgehead._shipped.wire.transfer import Inbox
from bridgehead._transports.tasks import UserCall, user_call, waited

log = logging.getLogger("bridgehead")


class Callback:
    """A function of this program that code in the kernel can call.

    It may be pushed, passed to ``call`` at any depth, and kept in the kernel. Calling it there
    returns None at once, in any thread, also in the middle of a cell. See ``Bridge.callback``.

    Closing it, by ``close`` or by ``with``, and closing its bridge end it: an async call that runs
    is cancelled, unless it is what closes, calls that have not begun are dropped, and later ones do
    nothing. After a restart of the kernel it can be pushed again.

    Attributes:
        failed: how many calls raised here, or could not be opened here; each is logged.
        dropped: how many calls were dropped, as far as the kernel has reported.

    >>> with bridge.callback(print) as report:
    ...     report
    <Callback print, failed=0, dropped=0>
    """

    def __init__(
        self,
        connection: Connection,
        function: Callable[..., object],
        maxsize: int | None,
        waits: bool,
    ) -> None:
        self._name: str = getattr(function, "__qualname__", type(function).__qualname__)
        self._calls = PendingCalls(connection, function, maxsize, waits)

    @property
    def failed(self) -> int:
        """The number of calls that raised.

        >>> bridge.callback(print).failed
        0
        """
        return self._calls.failed

    @property
    def dropped(self) -> int:
        """The number of calls that were dropped.

        >>> bridge.callback(print, maxsize=100).dropped
        0
        """
        return self._calls.dropped + self._calls.dropped_there

    def close(self) -> None:
        """End it: calls that have not begun are dropped, and later ones do nothing.

        An async call that runs is cancelled; a plain one ends by itself. Any thread may call this.

        >>> report = bridge.callback(print)
        >>> report.close()
        >>> report
        <Callback print, closed, failed=0, dropped=0>
        """
        self._calls.is_closed = True
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the bridge with it
            self._calls.loop.call_soon_threadsafe(self._calls.leave)

    def __enter__(self) -> Callback:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        closed = ", closed" if self._calls.is_closed else ""
        counts = f"failed={self.failed:,}, dropped={self.dropped:,}"
        return f"<Callback {line(self._name)}{closed}, {counts}>"

    def _reduce(self, connection: Connection) -> Any:
        """Return how to pickle it for its kernel; any thread may call this.

        Raises:
            ValueError: it is closed, or belongs to another bridge.
        """
        if self._calls.connection is not connection:
            raise ValueError(f"{self!r} belongs to another bridge; make one there")
        if self._calls.is_closed:
            raise ValueError(f"{self!r} is closed; make another one")
        return Callback, (self._calls.fields(), self._name)

    def __reduce__(self) -> Any:
        raise TypeError(f"{self!r} belongs to its bridge; pass it to that bridge's call or push")


class Arrived:
    """The calls that have arrived from one kernel.

    Attributes:
        events: those whose calls have not begun.
        accepted: how many events have arrived in order.
        begun: how many calls have begun, or were dropped here.
        queued: how many have arrived and have not begun.
        skip: how many of the first of these are dropped.
        reported: how many had begun when that was last reported to the kernel.
        long: what has arrived of a call that comes in pieces.
        long_end: how many bytes of it arrived in events that were accepted.
    """

    def __init__(self) -> None:
        self.events: deque[Response] = deque()
        self.long: Inbox | None = None
        self.long_end = 0
        self.accepted = self.begun = self.queued = self.skip = self.reported = 0


class PendingCalls(RemoteResource):
    """The calls of one callback that have arrived and have not begun."""

    kind = "callbacks"

    def __init__(
        self,
        connection: Connection,
        function: Callable[..., object],
        maxsize: int | None,
        waits: bool,
    ) -> None:
        super().__init__(connection.resources)
        self.connection, self._function = connection, function
        self._maxsize, self._waits = maxsize, waits
        # Each report makes room in the kernel, and each event has the calls that there is room for.
        most = maxsize if maxsize is not None and waits else CALLS_AHEAD
        self._report_after = min(CALLS_TOGETHER, max(1, most // 4))
        self.failed: int = 0
        self.dropped: int = 0  # calls that this end dropped
        self.dropped_there: int = 0
        self.is_closed: bool = False
        self.loop = asyncio.get_running_loop()
        self._arrived = Arrived()
        self._epoch = connection.remote.info.epoch  # of the remote part that sends the calls
        self._asked_epoch = ""  # of the remote part that was asked to make the callback
        self._serving: asyncio.Task[None] | None = None
        self._reporting: asyncio.Task[None] | None = None
        self._due = asyncio.Event()
        self._again = False
        # As for other callbacks of asyncio. By it, a notebook knows to which cell a print belongs.
        self._context = contextvars.copy_context()
        connection.resources.enter(self)

    def fields(self) -> RequestHeader:
        """Return what the kernel needs to know of it; any thread may call this."""
        connection = self.connection
        self.loop.call_soon_threadsafe(self._report_soon)  # it tells the kernel where to send
        remote = connection.remote
        self._asked_epoch = remote.info.epoch
        fields = {**connection.trust.fields(), **connection.resources.fields(self)}
        lane, most = remote.lane.in_messages, self._maxsize
        return remote.header("report", lane, most=most, waits=self._waits, **fields)

    # ------------------------------------------------------------ for the resources

    @property
    def counts(self) -> bool:
        return self.is_asked and self._asked_epoch == self.connection.remote.info.epoch

    def is_next(self, number: int) -> bool:
        self._follow_kernel()
        if number > self.seen + 1:
            self._report_soon(again=True)
        return number == self.seen + 1

    def inbox(self, header: ResponseHeader) -> tuple[Inbox, int]:
        inbox, at, arrived = open_response(header), header.get("at", 0), self._arrived
        if not at:
            return inbox, 0
        if arrived.long is None or (inbox.sizes, at) != (arrived.long.sizes, arrived.long_end):
            raise ProtocolError(f"a piece of a call at byte {at} continues no other piece")
        return arrived.long, at

    def take(self, event: Response | BridgeError) -> None:
        count = 0 if isinstance(event, BridgeError) else call_count(event)
        arrived = self._arrived
        if isinstance(event, BridgeError) or not 0 <= count <= CALLS_AHEAD - arrived.queued:
            log.warning("calls of a callback arrived damaged; they are asked for again")
            self.seen = arrived.accepted
            return
        arrived.accepted += 1
        arrived.long = None
        self.connection.resources.made(self)
        if event.is_partial:
            arrived.long, arrived.long_end = event.inbox, event.arrived
            self._report_soon()  # it makes room for the next piece
            return
        self.dropped_there = event.header["dropped"]
        arrived.events.append(event)
        arrived.queued += count
        if self._maxsize is not None and not self._waits:
            excess = arrived.queued - arrived.skip - self._maxsize
            arrived.skip += max(0, excess)
            self.dropped += max(0, excess)
        if self._serving is None or self._serving.done():
            self._serve_soon()

    def leave(self) -> None:
        self.is_closed = True
        call = user_call()
        closer = None if call is None else call.task
        for task in (self._serving, self._reporting):
            if task not in (None, closer):  # a call that closes its callback goes on
                task.cancel()
        self.resources.drop(self)

    def end(self) -> None:
        super().end()
        if self.connection.transport.life.state == "closed":
            self.is_closed = True
        self._report_soon(again=True)  # the remote part may be another one

    def _follow_kernel(self) -> None:
        """Begin anew if the remote part is another one, into which a callback may be pushed."""
        epoch = self.connection.remote.info.epoch
        if epoch != self._epoch:
            self._epoch, self.seen, self._arrived = epoch, 0, Arrived()

    def renew(self) -> None:
        super().renew()
        self._report_soon(again=True)

    def ask_again(self) -> None:
        self._report_soon(again=True)

    # ------------------------------------------------------------ running the calls

    def _serve_soon(self) -> None:
        spawn = self.connection.transport.spawn
        self._serving = self._context.run(lambda: spawn(self._serve()))

    async def _serve(self) -> None:
        """Run the calls that have arrived, one after the other."""
        connection, arrived = self.connection, self._arrived
        blocked = connection.queue if self._waits else None  # a cell may wait for the calls
        while arrived.events:
            event = arrived.events.popleft()
            frames = close_response(cast("Inbox", event.inbox))
            for _, parts in event.header["groups"]:
                if self.is_closed:  # the function may have caught the cancel
                    return
                call, frames = frames[:parts], frames[parts:]
                arrived.queued -= 1
                arrived.begun += 1
                if not arrived.queued or arrived.begun - arrived.reported >= self._report_after:
                    self._report_soon()
                if arrived.skip:
                    arrived.skip -= 1
                    continue
                with UserCall(connection.transport.tasks, blocked):
                    await self._run(call)
                await asyncio.sleep(0)
        if self._arrived.events:  # of a restarted kernel
            self._serve_soon()

    async def _run(self, frames: Frames) -> None:
        """Run one call; what it raises is logged and counted."""
        task = asyncio.current_task()
        try:
            args, kwargs = await self.connection.trust.open_values(frames, ["the value"] * 2)
            if type(args) is not tuple or type(kwargs) is not dict:
                raise ProtocolError("the arguments of a call are not a tuple and a dict")
            outcome = self._function(*args, **kwargs)
            if inspect.isawaitable(outcome):
                await outcome
        except BaseException as error:  # ``pytest.fail`` raises one; the calls behind it go on
            is_dropped = task is not asyncio.current_task(self.loop)  # the loop has ended
            if is_dropped or (task is not None and task.cancelling()):
                raise
            self.failed += 1
            log.exception("a callback raised")
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                # Not from here: the program may run its loop again, and the calls go on then.
                self.loop.call_soon(_end_loop, error)

    # ------------------------------------------------------------ reports

    def _report_soon(self, *, again: bool = False) -> None:
        """Report to the kernel what has arrived and what has begun, now and then regularly."""
        if self.is_closed:
            return
        self._again |= again
        self._due.set()
        if self._reporting is None or self._reporting.done():
            self._reporting = self.connection.transport.spawn(self._report())

    async def _report(self) -> None:
        timings = self.connection.transport.timings
        while True:
            self._due.clear()
            self._follow_kernel()
            again, self._again = self._again, False
            arrived = self._arrived
            arrived.reported = arrived.begun
            self.resources.expect_events()
            try:
                response = await self.connection.remote.request_on_control(
                    "report",
                    resource=self.id,
                    owner=self.resources.owner,
                    number=arrived.accepted,
                    begun=arrived.begun,
                    again=again,
                )
            except (ReplyLost, KernelUnresponsive):
                self._again = True
                await asyncio.sleep(timings.report_again)
                continue
            except BridgeError:
                self._again = True  # over the next connection
            else:
                if response.header.get("has") is True:
                    self.connection.resources.made(self)
            async with waited(timings.report_every):
                await self._due.wait()
            if not self._due.is_set():
                self._again = True


def _end_loop(error: BaseException) -> None:
    """Raise what asyncio lets through wherever it is raised: it ends the running loop."""
    raise error


def call_count(event: Response) -> int:
    """Return how many calls an event completes; 0 for a piece, -1 if the header is malformed."""
    header = event.header
    try:
        check_fields(header, "an event", "dropped")
        check_groups(header, "an event", len(header["sizes"]))
    except ProtocolError:
        return -1
    groups, parts = header["groups"], len(header["sizes"])
    if not 0 <= header["dropped"] < 1 << 63:
        return -1
    if event.is_partial:
        return -1 if groups else 0
    if not 0 < len(groups) <= CALLS_TOGETHER:
        return -1
    if any(calls != 1 for calls, _ in groups):
        return -1
    return len(groups) if sum(count for _, count in groups) == parts else -1
