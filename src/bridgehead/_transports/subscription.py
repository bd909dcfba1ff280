"""What a bridge reads on iopub: all of it only while a cell of its own or a reader wants it.

Rule: the subscriptions of one iopub socket. Every bridge of a kernel would else read and check all
that the kernel prints: 200 bridges took 3 s of CPU time for a cell of 200 prints (measured).

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
PROBE = "bridgehead."  # the beginning of the topics of which only the confirmation is wanted


class Subscription:
    """The subscriptions of an iopub socket, which has subscribed to everything."""

    def __init__(self, timings: Timings, has_streams: Callable[[], bool]) -> None:
        """``has_streams`` returns whether a stream of all messages is read."""
        self._timings, self._has_streams = timings, has_streams
        self._socket: Any = None
        self._cells = 0  # that run and want their outputs
        self._is_wide = True
        self._confirms = False  # the kernel confirms subscriptions
        self._probe = ""  # the topic whose confirmation has not arrived
        self.is_pending = False  # what is sent now may cause outputs that are lost here
        self._confirmed = asyncio.Event()
        self._wanted_at = 0.0  # when outputs were last wanted

    def begin(self, socket: Any) -> None:
        """Ask whether the kernel confirms subscriptions."""
        self._socket = socket
        self._ask()

    async def confirmed(self) -> None:
        """Wait until the kernel has confirmed the subscriptions, or was given time to do so.

        A call into C that holds the kernel's interpreter lock delays the confirmation. Then the
        subscription has arrived, and takes effect before the next output.
        """
        async with waited(self._timings.iopub_message):
            await self._confirmed.wait()
        self.is_pending = False

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

    def widen(self) -> None:
        """Subscribe to everything. While ``is_pending``, wait for ``confirmed`` before sending."""
        if not self._is_wide:
            with contextlib.suppress(zmq.ZMQError):  # the socket was closed
                self._socket.subscribe(b"")
                self._ask()
                self._is_wide = self.is_pending = True

    def wants(self, topic: bytes) -> bool:
        """Return whether a message of this topic is wanted; narrow the subscription if not."""
        if self._cells or self._has_streams():
            return True
        if self._is_wide and self._confirms and not self._probe:
            unwanted = asyncio.get_running_loop().time() - self._wanted_at
            if unwanted > self._timings.outputs_unwanted:
                self._is_wide = False
                self._socket.subscribe(OWN)
                self._socket.unsubscribe(b"")
        return not topic.startswith(OUTPUTS)

    def welcomed(self, topic: object) -> None:
        """Take the topic of a confirmation, which may be that of another client."""
        if topic == self._probe:
            self._confirms = True
            with contextlib.suppress(zmq.ZMQError):
                self._socket.unsubscribe(self._probe.encode())
            self._probe, self.is_pending = "", False
            self._confirmed.set()

    def _ask(self) -> None:
        self._probe = PROBE + uuid.uuid4().hex
        self._confirmed.clear()
        self._socket.subscribe(self._probe.encode())
