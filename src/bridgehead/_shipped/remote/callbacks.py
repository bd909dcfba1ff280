"""Callbacks: functions of a client that code in the kernel calls.

Rule: use the standard library only, and run on Python 3.8 and later. A call returns at once. Its
arguments are pickled in the thread that calls; then the call waits here until the control thread
sends it. That thread belongs to ipykernel, and it sends and receives also while a cell runs. Calls
cross in numbered events, in their order, and each event is one message. A call that is too long for
a message crosses in pieces, one to an event. The client reports which events have arrived, and how
many calls it has begun; what was lost is sent again.
"""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import RLock
from time import monotonic
from typing import Any, NoReturn, Sequence

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.remote.kernel import Kernel
    from bridgehead._shipped.remote.namespace import UserNamespace
    from bridgehead._shipped.remote.resources import LEASE, Resource, ResourceTable
    from bridgehead._shipped.wire.digest import Buffer
    from bridgehead._shipped.wire.errors import WireError
    from bridgehead._shipped.wire.frames import MESSAGE, cut, snapshot
    from bridgehead._shipped.wire.header import (
        CALLS_AHEAD,
        CALLS_TOGETHER,
        HeaderAndFrames,
        RequestHeader,
        ResponseHeader,
    )

BYTES_AHEAD = 64 << 20  # of calls that the client has not begun, and pieces that did not arrive
BYTES_TOGETHER = 1 << 20  # of one event; a longer call has events of its own
OWNERS_KNOWN = 1000
ARGUMENTS = "the arguments", "the keyword arguments"


class Event:
    """Calls that were sent together.

    Attributes:
        last: how many calls were sent whole up to its end.
        frames: None once the client has them.
        place: of a piece: the sizes of all frames of the call, and where in them it belongs.
    """

    def __init__(
        self,
        number: int,
        last: int,
        response: ResponseHeader,
        frames: list[memoryview],
        place: ResponseHeader | None = None,
    ) -> None:
        self.number, self.last, self.response, self.place = number, last, response, place
        self.frames: list[memoryview] | None = frames
        self.nbytes = nbytes_of(frames)


class CallQueue(Resource):
    """The calls of one callback that its client has not begun."""

    def __init__(self, header: RequestHeader, callbacks: CallbackTable) -> None:
        super().__init__(header)
        self.callbacks = callbacks
        self.maxsize, self.waits = header.get("most") or 0, header.get("waits")
        # A signal handler of the user's may call at any line. What locks and what waits is written
        # in C: an interrupt in a ``Condition`` or an ``Event`` leaves its lock taken (measured).
        self.lock = RLock()
        self.room: Any = SimpleQueue()  # has an item when a caller that waits is to look again
        self.is_left = False
        self.waiting: deque[list[memoryview]] = deque()  # the arguments of calls that were not sent
        self.long: list[memoryview] = []  # the arguments of a call that is sent in pieces
        self.long_sent = 0  # bytes of it
        self.ahead: deque[Event] = deque()
        self.sent_calls = self.begun = self.dropped = 0
        self.bytes_ahead = 0
        self.is_due = False  # the control thread is about to send
        self.heard = monotonic()  # when the client reported last

    def left(self) -> None:
        with self.lock:
            self.is_left = True
            self.waiting.clear()
            self.ahead.clear()
            self.long = []
        self.room.put(None)

    def end(self) -> None:
        self.left()

    def repeat(self, seen: int) -> None:
        """Send again what has not arrived."""
        self.callbacks.kernel.call_in_control(lambda: self.send(again=seen))

    # ------------------------------------------------------------ in any thread

    def call(self, args: Any, kwargs: Any) -> None:
        """Queue a call; do nothing if the client has closed the callback.

        Raises what pickling the arguments raises. If there is no room, raises ``TimeoutError`` when
        the client has sent nothing for as long as a lease lasts, and ``RuntimeError`` in a thread
        or a function of ``atexit`` for which a kernel that ends waits.
        """
        if os.getpid() != self.callbacks.process:
            raise RuntimeError("a callback works in its kernel only, and not in a forked process")
        if self.is_left:
            return
        values = self.callbacks.values
        frames = snapshot(values.encode(self.header, (args, kwargs), ARGUMENTS, True)[0])
        while not self._enter(frames):
            if self.callbacks.kernel.control_has_ended:
                raise RuntimeError("the kernel ends and takes no calls of a callback any more")
            if monotonic() - self.heard > LEASE:
                raise TimeoutError("the client of this callback does not answer any more")
            with suppress(Empty):
                self.room.get(timeout=1.0)

    def _enter(self, frames: list[memoryview]) -> bool:
        """Queue a call if there is room; a caller that waits looks whether there is more."""
        with self.lock:
            if not self.is_left:
                if self._is_full:
                    return False
                self.waiting.append(frames)
                if self.maxsize and not self.waits and len(self.waiting) > self.maxsize:
                    self.waiting.popleft()
                    self.dropped += 1
                if not self.is_due:  # in this order: an interrupt may come between the two
                    self.callbacks.kernel.call_in_control(self.send)
                    self.is_due = True
            wakes = self.is_left or (self.waits and not self._is_full)
        if wakes and self.room.empty():
            self.room.put(None)
        return True

    @property
    def _is_full(self) -> bool:
        """Whether a caller has to wait for room."""
        waiting = self.sent_calls + bool(self.long) + len(self.waiting) - self.begun
        return bool(self.waits) and waiting >= self.maxsize

    # ------------------------------------------------------------ in the control thread

    def report(self, seen: int, begun: int, *, again: bool) -> None:
        """Note what the client has, and send what there is room for."""
        with self.lock:
            self.heard = monotonic()
            for event in self.ahead:
                if event.number <= seen:
                    event.frames = None
            self.begun = max(self.begun, begun)
            while self.ahead and self.ahead[0].frames is None and self.ahead[0].last <= self.begun:
                self.bytes_ahead -= self.ahead.popleft().nbytes
        if self.room.empty():
            self.room.put(None)
        self.send(again=seen if again else None)

    def send(self, again: int | None = None) -> None:
        """Send the calls that wait; those after the event ``again``, a second time."""
        with self.lock:
            self.is_due = False
            address = self.callbacks.addresses.get(self.owner)
            if address is None or self.is_left:
                return  # the client's first report sends them
            if again is not None:
                for event in self.ahead:
                    if event.number > again:
                        self._send_event(event, address)
            while (self.long or self.waiting) and self._has_room():
                event = self._next_event()
                self.ahead.append(event)
                self.bytes_ahead += event.nbytes
                self._send_event(event, address)

    def _has_room(self) -> bool:
        first = self._message if self.long else nbytes_of(self.waiting[0])
        return self.sent_calls - self.begun < CALLS_AHEAD and (
            not self.ahead or self.bytes_ahead + min(first, self._message) <= BYTES_AHEAD
        )

    @property
    def _message(self) -> int:
        """The most bytes of one event."""
        return min(self.header["chunk"], MESSAGE)

    def _next_event(self) -> Event:
        """Take calls that wait for one event, or a piece of a long one."""
        self.sent += 1
        if not self.long and nbytes_of(self.waiting[0]) > self._message:
            self.long, self.long_sent = self.waiting.popleft(), 0
        if self.long:
            return self._next_piece()
        frames: list[memoryview] = []
        groups: list[list[int]] = []
        nbytes, most = 0, min(CALLS_TOGETHER, CALLS_AHEAD - (self.sent_calls - self.begun))
        while self.waiting and len(groups) < most:
            nbytes += nbytes_of(self.waiting[0])
            if groups and nbytes > min(BYTES_TOGETHER, self._message):
                break
            call = self.waiting.popleft()
            frames += call
            groups.append([1, len(call)])
        self.sent_calls += len(groups)
        response: ResponseHeader = {"groups": groups, "dropped": self.dropped}
        return Event(self.sent, self.sent_calls, response, frames)

    def _next_piece(self) -> Event:
        """Take the next piece of the long call; the last one counts as the call."""
        start, sizes = self.long_sent, [frame.nbytes for frame in self.long]
        self.long_sent += self._message
        parts = [*cut(self.long, start, self.long_sent)]
        groups = []
        if self.long_sent >= sum(sizes):
            groups, self.long = [[1, len(sizes)]], []
            self.sent_calls += 1
        response: ResponseHeader = {"groups": groups, "dropped": self.dropped}
        return Event(self.sent, self.sent_calls, response, parts, {"sizes": sizes, "at": start})

    def _send_event(self, event: Event, address: Any) -> None:
        if event.frames is not None:
            content, parts = self.callbacks.resources.event_message(
                self, event.number, event.response, event.frames, event.place
            )
            self.callbacks.kernel.send_event_on_control(self.owner, content, parts, address)


class RemoteCallback:
    """What code in the kernel calls; it stays in its kernel."""

    def __init__(self, queue: CallQueue, name: str) -> None:
        self._queue, self.__name__ = queue, name

    def __call__(self, /, *args: Any, **kwargs: Any) -> None:
        self._queue.call(args, kwargs)

    def __repr__(self) -> str:
        return "<callback %s>" % self.__name__

    def __copy__(self) -> RemoteCallback:
        return self

    def __deepcopy__(self, memo: Any) -> RemoteCallback:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("%r stays in its kernel" % self)


class CallbackTable:
    """The callbacks of one namespace.

    Attributes:
        addresses: where the events of a bridge go, by owner; see ``Kernel.control_address``.
    """

    def __init__(self, kernel: Kernel, values: UserNamespace, resources: ResourceTable) -> None:
        self.kernel, self.values, self.resources = kernel, values, resources
        self.addresses: dict[str, Any] = {}
        self.process = os.getpid()

    def resolve(self, fields: RequestHeader, name: str) -> RemoteCallback:
        """Return what stands for a callback that arrived in a payload."""
        queue: Any = self.resources.known.get(fields["resource"])
        if queue is None:
            if not self.kernel.serves_control:
                raise WireError("unsupported", "this kernel has no thread that could send calls")
            queue = CallQueue(fields, self)
            if self.resources.is_closed(queue.id):
                queue.left()  # its calls do nothing
            else:
                self.resources.check(fields)
                self._add(queue)
        elif not isinstance(queue, CallQueue):
            raise WireError("protocol", "this resource is no callback")
        return RemoteCallback(queue, name)

    def _add(self, queue: CallQueue) -> None:
        if self.kernel.is_thread_of_cells:
            self.resources.add(queue)
            return

        def add() -> None:
            if queue.id in self.resources.known:
                self.resources.enter(queue)  # its owner is noted: this is no request of its own

        self.resources.note_owner(queue.header)
        self.resources.known[queue.id] = queue
        self.kernel.call_soon(add)

    def report(self, header: RequestHeader, frames: Sequence[Buffer]) -> HeaderAndFrames:
        """Take a client's report of one callback; return whether the callback is known."""
        owner = header["owner"]
        if owner not in self.addresses and len(self.addresses) >= OWNERS_KNOWN:
            del self.addresses[next(iter(self.addresses))]
        self.addresses[owner] = self.kernel.control_address
        queue: Any = self.resources.known.get(header["resource"])
        if not isinstance(queue, CallQueue):
            return {"has": False}, []
        queue.report(header["number"], header["begun"], again=header.get("again") is True)
        return {"has": True}, []


def nbytes_of(frames: Sequence[memoryview]) -> int:
    return sum(frame.nbytes for frame in frames)
