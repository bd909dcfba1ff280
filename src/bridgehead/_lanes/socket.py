"""The client's end of the direct lane's socket, in the event loop.

Rule: connections and bytes; what a request means is the lane's. One reader for as long as the
socket is open; replies are matched by their serial number. Sending never waits: what does not fit
into the socket's buffer is sent when there is room again, unless its caller has given up by then.

A turn of the event loop takes a fifth of the time of a small request (measured). So ``ask`` waits
for the reply itself, for a moment, if nothing else is ready in the loop, and if the last reply did
not take longer than that moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import select
import socket
import sys
import tempfile
from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from hmac import compare_digest
from itertools import count
from time import monotonic
from typing import Any

from bridgehead._errors import BridgeError
from bridgehead._protocol.response import HEADER_LIMIT
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
from bridgehead._shipped.wire.socket import SECRET, FrameSocket, UnmappedSegment, peer_user
from bridgehead._transports.dispatch import Dispatcher
from bridgehead._transports.inquiry import BESIDE
from bridgehead._transports.state import KernelState
from bridgehead._transports.timings import Timings

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
BRIEF = 2 << 20  # bytes; a request with more takes longer
BACKLOG = 128  # other processes that connect meanwhile must not keep the kernel out

SocketReply = tuple[ResponseHeader, list[memoryview] | UnmappedSegment]
# Header, sizes of the frames, and the frames or their segment.
QueuedMessage = tuple[Mapping[str, Any], Sequence[int], Sequence[bytes], Segment | None]


class SocketLost(BridgeError):
    """The socket was closed, or what it sent is no message; the lane finds out why."""


class QueuedReply(asyncio.Future[SocketReply]):
    """The reply to a request that waits until the socket has room; it may be given up before."""

    was_sent = False


def has_descriptor_paths() -> bool:
    """Return whether an open file has a path, by which other processes of this user find it."""
    return hasattr(os, "O_PATH") and os.path.isdir("/proc/self/fd")


class SocketListener:
    """The socket that the remote part connects to during one handshake.

    On Linux the socket's name is removed before the handshake is sent: the remote part connects
    through this process's file descriptor, which only processes of this user can open. So no file
    is left, however this process ends, and no other user finds the socket. Elsewhere it stays until
    the end of the handshake, in a folder that only this user can open.

    The process that connects shows the secret that the handshake carried, which Jupyter signed.
    That proves which user's process the kernel is, and on which machine. For a direct lane it is
    then shown a second secret.
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
        self._inode = -1
        self._folder = ""
        try:
            self._folder = tempfile.mkdtemp(prefix="bridgehead-")  # 0700
            self._path = os.path.join(self._folder, "s")
            self._listen()
            if has_descriptor_paths():
                self._inode = os.open(self._path, os.O_PATH)
                self._path = f"/proc/{os.getpid()}/fd/{self._inode}"
                self._remove_folder()
        except BaseException:
            self.close()
            raise

    def _listen(self) -> None:
        descriptor = -1
        try:
            if has_descriptor_paths():
                # By the folder's descriptor: its path may be too long for the address of a socket.
                descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
                self._socket.bind(f"/proc/self/fd/{descriptor}/s")
            else:
                self._socket.bind(self._path)
            os.chmod(self._path, 0o600)
            self._socket.listen(BACKLOG)
            self._socket.setblocking(False)
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _remove_folder(self) -> None:
        folder, self._folder = self._folder, ""
        if folder:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, "s"))
            os.rmdir(folder)

    def offer(self, *, lane: bool = True) -> DirectOffer:
        """Return the fields of the handshake that say where to connect, and with which secret.

        Without ``lane``, the remote part closes the connection when it has shown the secret.
        """
        return {
            "lane": lane,
            "path": self._path,
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
            if peer_user(sock) != os.geteuid():
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
        self._remove_folder()
        if self._inode >= 0:
            os.close(self._inode)
            self._inode = -1


class LoopState:
    """Whether an event loop has something else to do, asked by a task that runs in it.

    asyncio's own loops have a queue of what is ready, and a selector whose descriptor is readable
    when a file of the loop is; both are private. Of another loop nothing is known.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, timings: Timings) -> None:
        self._timings, self._call_soon = timings, loop.call_soon
        self._turn: Any = None  # in the queue until the loop turns
        self._since = 0.0  # when a task first blocked the loop since its last turn
        self._ready: Any = getattr(loop, "_ready", None)
        self._poll: Any = None
        selector: Any = getattr(loop, "_selector", None)
        if self._ready is not None and hasattr(selector, "fileno") and hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(selector.fileno(), select.POLLIN)

    def may_block(self, now: float) -> bool:
        """Return whether a task may block the loop for a moment."""
        ready = self._ready
        if not ready:
            if self._poll is None:
                return False
            self._turn, self._since = self._call_soon(_do_nothing), now
            return True
        held = now - self._since
        return len(ready) == 1 and ready[0] is self._turn and held < self._timings.loop_held

    def block(self) -> bool:
        """Block the loop until one of its files is ready; return false if that takes long."""
        return bool(self._poll.poll(1000 * self._timings.reply_briefly))


def _do_nothing() -> None:
    pass


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
        self.channel = FrameSocket(sock, self.pool, HEADER_LIMIT)
        self.is_lost = False
        self._loop = asyncio.get_running_loop()
        self._serials = count(1)
        self._waiting: dict[int, asyncio.Future[SocketReply]] = {}
        # The rest of the message that did not fit into the socket's buffer, with duplicates of its
        # files, and the requests behind it.
        self._unsent: tuple[memoryview, list[int]] | None = None
        self._queued: dict[int, tuple[QueuedReply, QueuedMessage]] = {}
        self._drainers: dict[asyncio.Future[None], int] = {}  # with the serial that each waits for
        self._ticking: asyncio.TimerHandle | None = None
        self._file = sock.fileno()
        self._loop.add_reader(self._file, self._readable)
        self._loop_state = LoopState(self._loop, life.timings)
        self._is_quick = True  # the last reply arrived within the time that ``ask`` waits
        self._asked = 0.0  # when the last request was sent
        self._next_look: asyncio.TimerHandle | None = None  # for a reply that is missing

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
        future: asyncio.Future[SocketReply]
        if self.is_lost:
            future = asyncio.Future(loop=self._loop)
            future.set_exception(_lost())
            return future
        serial = next(self._serials)
        short = {field: value for field, value in header.items() if field not in COMMON}
        if self._unsent is not None:
            queued = self._waiting[serial] = QueuedReply(loop=self._loop)
            copies = [bytes(frame) for frame in frames]
            self._queued[serial] = queued, (short, header["sizes"], copies, segment)
            queued.add_done_callback(partial(self._give_up, serial))
            return queued
        future = self._waiting[serial] = asyncio.Future(loop=self._loop)
        self._asked = monotonic()
        self._send(serial, short, header["sizes"], frames, segment)
        if (
            self._is_quick
            and self._unsent is None
            and len(self._waiting) == 1
            and (segment is None or sum(header["sizes"]) <= BRIEF)
            and self._loop_state.may_block(self._asked)
        ):
            self._is_quick = self._loop_state.block()
            self._readable()
        if self._next_look is None:
            self._look_later()
        return future

    def _look_later(self) -> None:
        """Look later whether the reply that is due first is missing still."""
        if self._waiting and not self.is_lost:
            first, pause = next(iter(self._waiting)), self._life.timings.inquiry_after
            self._next_look = self._loop.call_later(pause, self._look_for, first)

    def _look_for(self, serial: int) -> None:
        """Have the kernel asked whether it answers, if this reply is missing."""
        self._next_look = None
        if serial in self._waiting:
            self._dispatcher.inquiry.start(BESIDE)
        self._look_later()

    def _give_up(self, serial: int, _: object = None) -> None:
        """Drop a request that was not sent when its caller gave up."""
        if serial not in self._queued:
            return
        _, (*_, segment) = self._queued.pop(serial)
        if segment is not None:
            self.channel.take_back(segment)
        self._waiting.pop(serial, None)
        self._wake_drainers()

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

    def _wake_drainers(self) -> None:
        first = next(iter(self._waiting), sys.maxsize)
        for future, last in self._drainers.items():
            if last < first and not future.done():
                future.set_result(None)

    def close(self) -> None:
        """Close the socket; every waiter gets ``SocketLost``."""
        try:
            if not self.is_lost:
                self._lose()
        finally:
            try:
                self.channel.close()
            finally:
                self.pool.close()

    def _lose(self) -> None:
        self.is_lost = True
        self._loop.remove_reader(self._file)
        if self._unsent is not None:
            self._loop.remove_writer(self._file)
            _close(self._unsent[1])
        for timer in self._ticking, self._next_look:
            if timer is not None:
                timer.cancel()
        self._queued.clear()
        self.fail_waiters(_lost)
        self._waiting.clear()

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
        data, files = self._send_now(data, files)
        if data:  # with duplicates of the files: a segment may be closed before they are sent
            try:
                self._unsent = data, [os.dup(file) for file in files]
                self._loop.add_writer(self._file, self._writable)
            except OSError:  # no descriptor is free, and the kernel would wait for the file
                self.close()
        if segment is not None:
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
        assert self._unsent is not None
        data, files = self._unsent
        data, unsent = self._send_now(data, files)
        if self.is_lost:
            return
        if len(unsent) < len(files):
            _close(files)
        if data:
            self._unsent = data, unsent
            return
        self._unsent = None
        self._loop.remove_writer(self._file)
        while self._queued and self._unsent is None and not self.is_lost:
            serial, (queued, message) = next(iter(self._queued.items()))
            if queued.done():
                self._give_up(serial)
            else:
                queued.was_sent = True
                del self._queued[serial]
                self._send(serial, *message)

    def _readable(self) -> None:
        channel = self.channel
        try:
            alive = channel.receive()
            while channel.unread and (message := channel.next()) is not None:
                serial, header, frames = message
                self._life.note_responsive()  # any message is a sign of life
                future = self._waiting.pop(serial, None)
                if serial and self._drainers:
                    self._wake_drainers()
                if serial and (future is None or future.done()):
                    self._dispatcher.late += 1
                elif future is not None:
                    future.set_result((header, frames))
                    if not self._is_quick:
                        took, timings = monotonic() - self._asked, self._life.timings
                        self._is_quick = took < timings.reply_briefly
        except (BlockingIOError, InterruptedError):
            return
        except (OSError, WireError):
            alive = False
        if not alive:
            self.close()
        elif channel.maps.known or channel.has_updates:
            self._tick_later()

    # ------------------------------------------------------------ memory

    @property
    def _has_memory(self) -> bool:
        # A forwarded segment is not of this pool, and its end wakes no code of this client. So
        # the ticks go on while the kernel has any file of a segment.
        channel = self.channel
        return bool(
            self.pool.slabs or channel.maps.known or channel.has_handed or channel.has_updates
        )

    def _tick(self) -> None:
        """Free segments that were idle for a while; tell the kernel which of its own are free."""
        self._ticking = None
        self.pool.trim()
        if self.channel.has_updates and self._unsent is None:
            self._send(0, {})
        self._tick_later()

    def _tick_later(self) -> None:
        if self._ticking is None and self._has_memory and not self.is_lost:
            self._ticking = self._loop.call_later(self._life.timings.memory_every, self._tick)


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)


def _lost() -> SocketLost:
    return SocketLost("the direct connection to the kernel is broken")
