"""The ZeroMQ context of a bridge, and what its sockets need to connect.

Rule: contexts and sockets; nothing is read or sent here.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import zmq
import zmq.asyncio

from bridgehead._transports.tasks import in_thread
from bridgehead._transports.zmq_link import REFUSED

# Those that have not ended. The garbage collector must not find a context and its sockets: in a
# cycle, pyzmq finalizes the context first, which then waits for ever for sockets that it has lost.
# A bridge that is dropped closes them (``abandoned_bridge``), so nothing here may lead to a bridge.
_with_sockets: set[MonitoredContext] = set()


class ReadSocket(zmq.asyncio.Socket):
    """A socket whose reader learns of an interrupt in the middle of a message.

    pyzmq takes the reader's future out of its list first. An interrupt then leaves it pending for
    ever, so nothing would read this socket any more.
    """

    def _handle_recv(self) -> None:
        queue: Any = self._recv_futures
        waiting = list(queue)
        try:
            super()._handle_recv()  # type: ignore[misc] # pyzmq has no public place for this
        except BaseException:
            for event in waiting:
                if not event.future.done() and event not in queue:
                    event.future.set_exception(InterruptedError("while it received a message"))
            raise


class MonitoredContext(zmq.asyncio.Context):
    """A context for the sockets of one kernel, each with the options that it needs to connect.

    It monitors its first DEALER, the shell socket, before the socket connects.

    If only one end uses CURVE, a handshake may fail once and for good, some microseconds after
    ``connect``: a monitor that starts later never sees that event.

    Attributes:
        users: the ids of what has sockets here; the context ends when the last one has left.
        kept: its sockets that are not closed.
    """

    _socket_class = ReadSocket
    monitor: Any = None
    users: set[int]
    kept: list[Any]
    _ending: threading.Lock

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.users, self.kept, self._ending = set(), [], threading.Lock()

    def socket(self, socket_type: int, *args: Any, **kwargs: Any) -> Any:
        socket = super().socket(socket_type, *args, **kwargs)
        _with_sockets.add(self)
        self.kept = [one for one in self.kept if not one.closed] + [socket]
        if socket_type == zmq.SUB:
            socket.immediate = 0
        if socket_type == zmq.DEALER and self.monitor is None:
            self.monitor = socket.get_monitor_socket(
                zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | REFUSED
            )
        return socket

    def term(self) -> None:
        super().term()
        self.kept.clear()
        _with_sockets.discard(self)

    def used_by(self, user: object) -> None:
        """Have this user own sockets here, until ``left_by``."""
        self.users.add(id(user))

    async def left_by(self, user: object) -> None:
        """Have no more sockets of this user, all of which are closed.

        With the last one, end, which waits until the last messages are sent. Those of a user that
        leaves before are sent meanwhile, and not waited for.
        """
        self.users.discard(id(user))
        if not (self.users or self.closed):
            await in_thread(self._end)

    def _end(self) -> None:
        with self._ending:  # several threads close bridges that were dropped with their loop
            if not self.closed:
                self.term()


def last_address(socket: Any) -> str:
    """Return the address to which a socket was connected last."""
    return str(socket.get(zmq.LAST_ENDPOINT).rstrip(b"\0").decode())


def connect_anew(socket: Any) -> None:
    """Connect a socket to its address again, in place of a connection that is gone.

    It fails if this process has no descriptor left; then the next attempt may succeed.
    """
    with contextlib.suppress(zmq.ZMQError):
        address = last_address(socket)
        with contextlib.suppress(zmq.ZMQError):
            socket.disconnect(address)
        socket.connect(address)
