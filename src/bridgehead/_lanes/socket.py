"""The client's end of the direct lane's socket, in the event loop.

Rule: connections and bytes; what a request means is the lane's. One reader for as long as the
socket is open; replies are matched by their serial number. Sending never waits: bytes that do not
fit into the socket's buffer are sent when there is room again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import tempfile
from array import array
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from hmac import compare_digest
from itertools import count
from typing import Any

from bridgehead._errors import BridgeError
from bridgehead._shipped.wire.errors import WireError
from bridgehead._shipped.wire.header import (
    PROTOCOL,
    PYTHON,
    DirectOffer,
    RequestHeader,
    ResponseHeader,
)
from bridgehead._shipped.wire.limits import descriptor_limit
from bridgehead._shipped.wire.segments import Pool, Segment
from bridgehead._shipped.wire.socket import SECRET, FrameSocket, UnmappedSegment, peer
from bridgehead._transports.dispatch import Dispatcher
from bridgehead._transports.state import KernelState

CHUNK = 16 << 20  # bytes of small requests that cross together
# Fields that are the same in every request: the socket thread adds them, and they are not sent.
COMMON: RequestHeader = {
    "protocol": PROTOCOL,
    "python": PYTHON,
    "digest": "none:",
    "at": 0,
    "chunk": CHUNK,
    "epoch": "",
    "sizes": [],
}
BACKLOG = 128  # other processes that connect meanwhile must not keep the kernel out

SocketReply = tuple[ResponseHeader, list[memoryview] | UnmappedSegment]


class SocketLost(BridgeError):
    """The socket was closed, or what it sent is no message; the lane finds out why."""


class SocketListener:
    """The socket that the remote part connects to during one handshake.

    The socket's name is removed before the handshake is sent: the remote part connects through
    this process's file descriptor, which only processes of this user can open. So no file is left,
    however this process ends, and no other user finds the socket. The process that connects shows
    the secret that the handshake carried, which Jupyter signed. That proves which user's process
    the kernel is, and on which machine. For a direct lane it is then shown a second secret.
    """

    def __init__(self, share: float) -> None:
        """Listen; ``share`` is the share of the free memory that a segment pool may take.

        Raises:
            OSError: this process can make no such socket.
            AttributeError: this system knows no such socket.
        """
        self._secret = secrets.token_bytes(2 * SECRET)
        self._share = share
        self.name = secrets.token_hex(8)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._inode = descriptor = -1
        try:
            directory = tempfile.mkdtemp(prefix="bridgehead-")  # 0700
        except BaseException:
            self._socket.close()
            raise
        path = os.path.join(directory, "s")
        try:
            # By the directory's descriptor: its path may be too long for the address of a socket.
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            self._socket.bind(f"/proc/self/fd/{descriptor}/s")
            os.chmod(path, 0o600)
            self._socket.listen(BACKLOG)
            self._socket.setblocking(False)
            self._inode = os.open(path, os.O_PATH)
        except BaseException:
            self.close()
            raise
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            os.rmdir(directory)
            if descriptor >= 0:
                os.close(descriptor)

    def offer(self, *, lane: bool = True) -> DirectOffer:
        """Return the fields of the handshake that say where to connect, and with which secret.

        Without ``lane``, the remote part closes the connection when it has shown the secret.
        """
        return {
            "lane": lane,
            "path": f"/proc/{os.getpid()}/fd/{self._inode}",
            "secret": self._secret.hex(),
            "name": self.name,
            "share": float(self._share),
            "files": descriptor_limit(),
            "common": {**COMMON},
        }

    def accept(self) -> socket.socket | None:
        """Return the connection that showed the secret, or None; close those of other processes.

        The remote part connects before it replies to the handshake.
        """
        while True:
            try:
                sock, _ = self._socket.accept()
            except BlockingIOError:
                return None
            sock.setblocking(False)
            if self._is_remote_part(sock):
                return sock
            sock.close()

    def _is_remote_part(self, sock: socket.socket) -> bool:
        try:
            if peer(sock)[1] != os.geteuid():
                return False
            # The remote part sends the secret before its reply to the handshake. So what has
            # not arrived by now will not come.
            return compare_digest(sock.recv(SECRET), self._secret[:SECRET])
        except OSError:
            return False

    def welcome(self, sock: socket.socket) -> bool:
        """Show the remote part the second secret, so that it serves; return whether that worked."""
        try:
            return sock.send(self._secret[SECRET:]) == SECRET
        except OSError:
            return False

    def close(self) -> None:
        self._socket.close()
        if self._inode >= 0:
            os.close(self._inode)
            self._inode = -1


class SocketClient:
    """The connection to one kernel's socket thread."""

    def __init__(
        self,
        sock: socket.socket,
        share: float,
        files: int,
        dispatcher: Dispatcher,
        life: KernelState,
    ) -> None:
        """``files`` is how many descriptors the kernel may have open."""
        self._dispatcher = dispatcher  # counts late replies
        self._life = life
        self.pool = Pool(share, files=files)
        self.channel = FrameSocket(sock, self.pool)
        self.lost = False
        self._loop = asyncio.get_running_loop()
        self._serials = count(1)
        self._waiting: dict[int, asyncio.Future[SocketReply]] = {}
        self._unsent: deque[tuple[memoryview, list[int]]] = deque()
        self._drainers: dict[asyncio.Future[None], int] = {}  # with the serial that each waits for
        self._ticking: asyncio.TimerHandle | None = None
        self._file = sock.fileno()
        self._loop.add_reader(self._file, self._readable)

    @property
    def at_work(self) -> bool:
        """Whether a request has no reply yet, even one that no caller waits for any more."""
        return bool(self._waiting)

    def ask(
        self, header: RequestHeader, frames: Sequence[Any] = (), segment: Segment | None = None
    ) -> asyncio.Future[SocketReply]:
        """Send a request; return a future of its reply, or of ``SocketLost``.

        Cancelling the future disturbs no other request. Frames are copied before this returns;
        a segment must have been leased to the kernel before.
        """
        future: asyncio.Future[SocketReply] = self._loop.create_future()
        if self.lost:
            future.set_exception(_lost())
            return future
        serial = next(self._serials)
        self._waiting[serial] = future
        short = {field: value for field, value in header.items() if field not in COMMON}
        self._send(serial, short, header["sizes"], frames, segment)
        return future

    def fail_waiters(self, why: Callable[[], BridgeError]) -> None:
        """Fail every waiter, because the kernel is lost or silent; replies may still come."""
        waiting: list[asyncio.Future[Any]] = [*self._waiting.values(), *self._drainers]
        for future in waiting:
            if not future.done():
                future.set_exception(why())
                future.exception()  # or asyncio would log that it was never retrieved

    async def drained(self) -> None:
        """Wait until every earlier request has its reply.

        The thread replies in order, so this waits for the reply to the last one.

        Raises:
            BridgeError: what ``fail_waiters`` was called with.
        """
        if not self._waiting:
            return
        drained: asyncio.Future[None] = self._loop.create_future()
        self._drainers[drained] = next(reversed(self._waiting))
        try:
            await drained
        finally:
            self._drainers.pop(drained, None)

    def _wake_drainers(self, serial: int) -> None:
        for future, last in self._drainers.items():
            if last <= serial and not future.done():
                future.set_result(None)

    def close(self) -> None:
        """Close the socket; every waiter gets ``SocketLost``."""
        if self.lost:
            return
        self.lost = True
        self._loop.remove_reader(self._file)
        if self._unsent:
            self._loop.remove_writer(self._file)
        if self._ticking is not None:
            self._ticking.cancel()
        for _, files in self._unsent:
            _close(files)
        self.fail_waiters(_lost)
        self._waiting.clear()
        self.channel.close()
        self.pool.close()

    # ------------------------------------------------------------ the socket

    def _send(
        self,
        serial: int,
        header: Mapping[str, Any],
        sizes: Sequence[int] = (),
        frames: Sequence[Any] = (),
        segment: Segment | None = None,
    ) -> None:
        parts, files = self.channel.pack(serial, header, sizes, frames, segment)
        data = memoryview(parts[0] if len(parts) == 1 else b"".join(parts))
        if not self._unsent:
            data, files = self._send_now(data, files)
            if data:
                self._loop.add_writer(self._file, self._writable)
        if data:  # with duplicates of the files: a segment may be closed before they are sent
            try:
                self._unsent.append((data, [os.dup(file) for file in files]))
            except OSError:  # no descriptor is free, and the kernel would wait for the file
                self.close()
        self._tick_later()

    def _send_now(self, data: memoryview, files: list[int]) -> tuple[memoryview, list[int]]:
        """Send what fits into the socket's buffer; return what is left."""
        extra = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", files))] if files else ()
        try:
            return data[self.channel.socket.sendmsg([data], extra) :], []
        except (BlockingIOError, InterruptedError):
            return data, files
        except OSError:
            self.close()
            return data[:0], []

    def _writable(self) -> None:
        while self._unsent:
            data, files = self._send_now(*self._unsent[0])
            if self.lost:
                return
            if len(files) < len(self._unsent[0][1]):
                _close(self._unsent[0][1])
            if data:
                self._unsent[0] = data, files
                return
            self._unsent.popleft()
        self._loop.remove_writer(self._file)

    def _readable(self) -> None:
        channel = self.channel
        try:
            alive = channel.receive()
            while (message := channel.next()) is not None:
                serial, header, frames = message
                self._life.responsive()  # any message is a sign of life, as a heartbeat is
                future = self._waiting.pop(serial, None)
                if serial and self._drainers:
                    self._wake_drainers(serial)
                if serial and (future is None or future.done()):
                    self._dispatcher.late += 1
                elif future is not None:
                    future.set_result((header, frames))
        except (BlockingIOError, InterruptedError):
            return
        except (OSError, WireError):
            alive = False
        if not alive:
            self.close()
        else:
            self._tick_later()

    # ------------------------------------------------------------ memory

    @property
    def _has_memory(self) -> bool:
        # A relayed segment is not of this pool, and its end wakes no code of this client. So
        # the ticks go on while the kernel has any file of a segment.
        channel = self.channel
        return bool(
            self.pool.slabs or channel.maps.known or channel.has_handed or channel.has_updates
        )

    def _tick(self) -> None:
        """Free segments that were idle for a while; tell the kernel which of its own are free."""
        self._ticking = None
        self.pool.trim()
        if self.channel.has_updates:
            self._send(0, {})
        else:
            self._tick_later()

    def _tick_later(self) -> None:
        if self._ticking is None and self._has_memory and not self.lost:
            self._ticking = self._loop.call_later(self._life.timings.memory_every, self._tick)


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)


def _lost() -> SocketLost:
    return SocketLost("the direct connection to the kernel is broken")
