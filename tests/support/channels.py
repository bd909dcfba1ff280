"""Both ends of a socket, for tests of messages and of the segments sent with them.

Rule: a real socket pair; no kernel.
"""

from __future__ import annotations

import socket
from array import array
from typing import Any

import numpy as np
import pytest

from bridgehead._shipped.remote.socket_thread import send_all
from bridgehead._shipped.wire.segments import Pool, Segment
from bridgehead._shipped.wire.slabs import shared_memory
from bridgehead._shipped.wire.socket import FrameSocket
from support.shared import filled

needs_segments = pytest.mark.skipif(
    not shared_memory(), reason="this system or this Python has no memory to share"
)


class Ends:
    """Both ends of a socket; ``client`` sends, ``kernel`` receives."""

    def __init__(self) -> None:
        one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        one.setblocking(False)
        two.setblocking(False)
        self.client, self.kernel = FrameSocket(one, Pool(0.5)), FrameSocket(two, Pool(0.5))

    def send(self, serial: int, header: Any, *what: Any) -> None:
        """Send a message with sizes, frames and segment, as ``pack`` takes them."""
        parts, files = self.client.pack(serial, header, *what)
        send_all(self.client.socket, parts, files)

    def answer(self, serial: int) -> None:
        parts, files = self.kernel.pack(serial, {})
        send_all(self.kernel.socket, parts, files)

    def raw(self, data: bytes, files: list[int] | None = None) -> None:
        extra = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", files))] if files else ()
        assert self.client.socket.sendmsg([data], extra) == len(data)

    def leased(self, *arrays: np.ndarray[Any, Any]) -> tuple[Segment, list[int]]:
        """Return a segment that contains arrays and is leased to the kernel's end, and sizes."""
        segment, sizes = filled(self.client.pool, *arrays)
        self.client.lease_out(segment)
        return segment, sizes

    def arrived(self, channel: FrameSocket | None = None) -> list[Any]:
        """Return every message that has arrived at the kernel's end, or at ``channel``."""
        channel, found = channel or self.kernel, []
        try:
            while channel.receive():
                while (message := channel.next()) is not None:
                    found.append(message)
        except BlockingIOError:
            pass
        return found

    def close(self) -> None:
        for channel in (self.client, self.kernel):
            channel.close()
            channel.pool.close()
