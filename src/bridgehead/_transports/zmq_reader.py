"""Read ZeroMQ sockets; those on which nothing is sent, without a future for each message.

Rule: when messages are there, and that reading them leaves other tasks their turns. What they mean
is not known here.

pyzmq's asyncio sockets make a future and wake a task for each message. That took 28 of the 67 µs
of a status message, and every client of a kernel reads every status (measured).

The descriptor of a socket is edge-triggered: it is readable after something arrived in an empty
socket, until the next ``send``, ``recv``, ``connect``, ``disconnect`` or question for the socket's
events. So ``read`` goes on until the socket is empty, and is called after ``connect`` and
``disconnect``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

import zmq

from bridgehead._transports.timings import Timings

YIELD_EVERY = 16  # messages after which a reader lets other tasks run
log = logging.getLogger("bridgehead")


class SocketReader:
    """The reader of one socket, from now on; each message goes to ``take``."""

    def __init__(
        self, socket: Any, take: Callable[[list[zmq.Frame]], object], timings: Timings
    ) -> None:
        self._take, self._timings = take, timings
        self._loop = asyncio.get_running_loop()
        self._socket: Any = zmq.Socket.shadow(socket.underlying)
        self._next: asyncio.Handle | None = None
        self._loop.add_reader(self._socket.FD, self.read)
        self.read()

    def close(self) -> None:
        """Read no more; to be called before the socket is closed."""
        self._go_on(None)
        if self._socket is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.remove_reader(self._socket.FD)
            self._socket = None

    def read(self) -> None:
        """Read what has arrived; much of it in several turns of the event loop."""
        self._go_on(None)
        try:
            for _ in range(YIELD_EVERY):
                if self._socket is None:  # closed, perhaps by what a message led to
                    return
                try:
                    frames = _received(self._socket)
                except zmq.Again:
                    return
                self._take(frames)
            self._go_on(self._loop.call_soon(self.read))
        except Exception as error:  # noqa: BLE001 - nothing else would read
            # As where this process lacks memory. Messages may wait, and no event will say so.
            log.debug("a reader of messages failed, and goes on: %r", error)
            self._go_on(self._loop.call_later(self._timings.reader_pause, self.read))
        except BaseException:  # an interrupt, after which a program may go on with its event loop
            self._go_on(self._loop.call_soon(self.read))
            raise

    def _go_on(self, handle: asyncio.Handle | None) -> None:
        """Have this handle, or none, be the one that goes on reading."""
        if self._next is not None:
            self._next.cancel()
        self._next = handle


def _received(socket: Any) -> list[zmq.Frame]:
    """Return the next message; ``zmq.Again`` if none is there.

    ``recv_multipart`` asks the socket after each frame whether another one follows: 14 µs for a
    status message, and this takes 6 (measured).
    """
    frames = [socket.recv(zmq.NOBLOCK, copy=False)]
    while frames[-1].more:
        frames.append(socket.recv(zmq.NOBLOCK, copy=False))
    return frames


async def read_in_turns(socket: Any, take: Callable[[list[zmq.Frame]], object]) -> None:
    """Read an asyncio socket for ever, and leave other tasks their turns.

    After each message, another one is asked for at once. libzmq 4.3.5 looks for the end of a
    connection at every 100th frame, counted from the last time that it had none. Where it finds it
    in the middle of a message, on a socket with ``ZMQ_IMMEDIATE``, it ends this process. So it can
    only happen where 100 frames arrive in one go, and the connection breaks as they are read.
    """
    plain: Any = zmq.Socket.shadow(socket.underlying)
    count = 0
    while True:
        # This asks the socket for its events, of which the descriptor may not tell any more.
        take(await socket.recv_multipart(copy=False))
        count += 1
        while count % YIELD_EVERY:
            try:
                frames = _received(plain)
            except zmq.Again:
                break
            take(frames)
            count += 1
        else:
            await asyncio.sleep(0)
