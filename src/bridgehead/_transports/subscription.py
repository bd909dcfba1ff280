"""What bridges read on iopub: all of it only while a cell of one of them or a reader wants it.

Rule: the subscriptions of one iopub socket. Every program would else read and check all that the
kernel prints for others: 200 bridges with a socket each took 3 s of CPU time for a cell of 200
prints (measured).

A kernel that confirms subscriptions with an ``iopub_welcome`` (ipykernel 7) is asked for less: its
own messages have topics that begin with ``kernel.``, and what cells print, display and update has
others. A subscription to a topic that no other client has is confirmed after all that were made
before it, so no first output is lost. From other kernels everything arrives, and outputs are
dropped by their topic before they are checked.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import zmq

from bridgehead._transports.tasks import waited
from bridgehead._transports.timings import Timings

OWN = b"kernel."  # the beginning of the topics of a kernel's own messages
OUTPUTS = b"stream.", b"display_data"  # the beginnings of the topics of outputs
TURNS = 3  # of the event loop, in which a reader that was woken reads
PROBE = "bridgehead."  # the beginning of the topics of which only the confirmation is wanted


class OutputSubscription:
    """The subscriptions of an iopub socket, which has subscribed to everything."""

    def __init__(self, timings: Timings, has_streams: Callable[[], bool]) -> None:
        """``has_streams`` returns whether a stream of all messages is read."""
        self._timings, self._has_streams = timings, has_streams
        self._socket: Any = None
        self._cells = 0  # that run and want their outputs
        self._is_wide = True
        self._confirms = False  # the kernel confirms subscriptions
        self._has_own_topics = False  # the topics of its own messages begin with ``OWN``
        self._probe: str | None = None  # the topic whose confirmation has not arrived
        self._confirmed = asyncio.Event()
        self.is_pending = False  # what is sent now may cause outputs that are lost here
        self._wanted_at = 0.0  # when outputs were last wanted
        self._read = 0  # messages
        self._at_rest = asyncio.Lock()

    def begin(self, socket: Any) -> None:
        """Take the socket. A kernel that confirms subscriptions confirms that to everything."""
        self._socket = socket
        # Not narrowed while the bridge is opened: that would cost the kernel another confirmation.
        self._wanted_at = asyncio.get_running_loop().time()

    async def wait_confirmed(self) -> None:
        """Wait until the kernel has confirmed the subscriptions, or was given time to do so.

        ipykernel overlooks a subscription that arrives while its thread publishes, until the next
        one arrives (seen in 3 of 6 programs that ran a cell after 1.2 s). So ask again. A call into
        C that holds the kernel's interpreter lock delays the confirmation. In both cases the
        subscription has arrived, and takes effect before the next output.
        """
        pause = self._timings.confirm_again
        async with waited(self._timings.confirmation):
            while not self._confirmed.is_set():
                async with waited(pause):
                    await self._confirmed.wait()
                if not self._confirmed.is_set():
                    with contextlib.suppress(zmq.ZMQError):  # the socket was closed
                        self._ask()
                pause *= 2
        if self.is_pending:
            self.is_pending = self._confirms = False

    @contextlib.contextmanager
    def outputs(self) -> Iterator[None]:
        """Have the outputs of a cell arrive while the block lasts."""
        self._cells += 1
        try:
            self.widen()
            yield
        finally:
            self._cells -= 1
            self._wanted_at = asyncio.get_running_loop().time()

    def again(self) -> None:
        """Ask for a confirmation: the connection is made again, perhaps to another process."""
        with contextlib.suppress(zmq.ZMQError):  # the socket was closed
            if self._confirms:
                self._ask()
                self.is_pending = True

    def widen(self) -> None:
        """Subscribe to everything. While ``is_pending``, call ``wait_confirmed`` before sending."""
        if not self._is_wide:
            with contextlib.suppress(zmq.ZMQError):  # the socket was closed
                self._socket.subscribe(b"")
                self._ask()
                self._is_wide, self.is_pending = True, self._confirms

    def take_topic(self, topic: bytes) -> bool:
        """Take the topic of a message; return whether the message is wanted.

        The subscription is narrowed when outputs have not been wanted for a while.
        """
        self._read += 1
        now = asyncio.get_running_loop().time()
        if self._cells or self._has_streams():
            self._wanted_at = now
            return True
        self._has_own_topics = self._has_own_topics or topic.startswith(OWN)
        if now - self._wanted_at > self._timings.outputs_unwanted:
            self._narrow()
        return not topic.startswith(OUTPUTS)

    async def drain(self) -> None:
        """Wait until all messages of a process that has ended are read.

        Its exit may be noticed before its last messages are. The end of the connection, or a failed
        attempt to make it again, is an event that comes after them.
        """
        async with self._at_rest:
            # The socket may be closed, or no descriptor be left for a monitor.
            with contextlib.suppress(zmq.ZMQError):
                monitor = self._socket.get_monitor_socket()
                try:
                    await monitor.poll(round(1000 * self._timings.last_messages))
                finally:
                    self._socket.disable_monitor()
                    monitor.close(linger=0)
        before = None
        while before != self._read:
            before = self._read
            for _ in range(TURNS):
                await asyncio.sleep(0)

    def _narrow(self) -> None:
        if self._is_wide and self._confirms and self._has_own_topics and self._probe is None:
            self._is_wide = False
            self._socket.subscribe(OWN)
            self._socket.unsubscribe(b"")

    def welcomed(self, topic: object) -> None:
        """Take the topic of a confirmation, which may be that of another client.

        When a connection is made again, every subscription is confirmed again.
        """
        self._confirms = True
        if self._probe is not None and topic == self._probe:
            with contextlib.suppress(zmq.ZMQError):
                self._socket.unsubscribe(self._probe.encode())
            self._probe, self.is_pending = None, False
            self._confirmed.set()

    def _ask(self) -> None:
        if self._probe is not None:  # it will never be confirmed
            self._socket.unsubscribe(self._probe.encode())
        self._probe = PROBE + uuid.uuid4().hex
        self._confirmed.clear()
        self._socket.subscribe(self._probe.encode())
