"""The kernel's end of the direct lane: a thread that serves one bridge's socket.

Rule: use the standard library only, and run on Python 3.8 and later. The thread only carries
messages. ``Remote`` performs the requests; in this thread, only those that need not run in the
kernel's main thread. The client listens, and the remote part connects while it serves the
handshake: the kernel never listens, so no other process can connect to it, or find a socket of it
later.
"""

from __future__ import annotations

import os
import socket
import sys
from hmac import compare_digest
from struct import pack
from threading import Thread
from time import monotonic
from typing import Any, Sequence

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.remote.cell_guard import Uninterrupted
    from bridgehead._shipped.wire.errors import WireError
    from bridgehead._shipped.wire.header import DirectOffer, ResponseHeader, check
    from bridgehead._shipped.wire.segments import Pool, Segment
    from bridgehead._shipped.wire.slabs import shared_memory
    from bridgehead._shipped.wire.socket import SECRET, FrameSocket, UnmappedSegment, peer_user

CONNECT_TIMEOUT = 1.0  # seconds to wait until the client's socket accepts
TICK = 1.0  # seconds between checks for idle segments, while there are any
SHORT = 0.0005  # seconds; see SwitchInterval
# Captured, because a user may replace them.
_start, _socket = Thread.start, socket.socket
_geteuid: Any = getattr(os, "geteuid", None)


class OwnThread(Thread):
    """A thread of the remote part; every thread that it starts is one of these.

    It has its own ``run``, because a user may replace that of the library.
    """

    # debugpy's marks for threads of a debugger, as ipykernel's threads have them. Without the marks
    # a cell at a breakpoint suspends the thread, and a breakpoint in a user's class could stop it.
    pydev_do_not_trace = is_pydev_daemon_thread = True

    def __init__(self, owner: Any) -> None:
        super().__init__(name="bridgehead-direct", daemon=True)
        self.owner = owner

    def run(self) -> None:
        self.owner.run()


class SwitchInterval:
    """The interpreter's switch interval, short while requests come beside a running cell.

    A cell of plain Python gives the interpreter's lock to another thread only after this time, 5 ms
    by default, for which each such request waits. The user's interval is put back when no such
    request has come for a while.
    """

    def __init__(self) -> None:
        self._users: float | None = None  # the interval to put back
        self._until = 0.0

    @property
    def is_short(self) -> bool:
        return self._users is not None

    def shorten(self) -> None:
        self._until = monotonic() + TICK
        interval = sys.getswitchinterval()
        if interval > 2 * SHORT:
            self._users = interval
            sys.setswitchinterval(SHORT)

    def put_back(self, *, at_once: bool = False) -> None:
        """Put the user's interval back when it is time, unless the user has set another one."""
        if self._users is not None and (at_once or monotonic() > self._until):
            users, self._users = self._users, None
            if sys.getswitchinterval() <= 2 * SHORT:
                sys.setswitchinterval(users)


class SocketThread:
    """The socket of one bridge, and the thread that reads it."""

    def __init__(self, remote: Any, channel: FrameSocket, name: str, welcome: bytes) -> None:
        self.remote, self.channel, self.name, self.welcome = remote, channel, name, welcome
        self.at_work = False
        self.common: Any = {}  # the fields that are the same in all headers, checked, not sent
        self.thread = OwnThread(self)

    # ------------------------------------------------------------ the thread

    def run(self) -> None:
        """Serve the socket until the client closes it or breaks the protocol."""
        channel = self.channel
        try:
            if compare_digest(channel.socket.recv(SECRET, socket.MSG_WAITALL), self.welcome):
                self.wait_at_most(0)
                while self._round():
                    pass
        except BaseException:
            # The socket closes. The client then works without the direct lane, and reports that.
            pass
        finally:
            self.remote.forget_thread(self)
            self.remote.switch_interval.put_back(at_once=True)
            channel.close()
            channel.pool.close()

    def _round(self) -> bool:
        """Read once, and respond to all whole messages; return false when the client has closed.

        When it returns, the thread keeps no reference to a request.
        """
        channel = self.channel
        try:
            if not channel.receive():
                return False
        except (BlockingIOError, InterruptedError):
            channel.pool.trim()
            if channel.has_updates:
                self._send(0, {})
        while True:
            message = channel.next()
            if message is None:
                break
            serial, header, frames = message
            if serial:
                self._respond(serial, header, frames)
            del message, header, frames
        channel.maps.populate()  # after responding, so that no client waits for this
        self.remote.switch_interval.put_back()
        busy = channel.pool.slabs or channel.maps.known or self.remote.switch_interval.is_short
        self.wait_at_most(TICK if busy else 0)
        return True

    def wait_at_most(self, seconds: float) -> None:
        """Set how long a read waits; 0 is for ever."""
        # Not settimeout: it makes two system calls a message, and at each of them another thread
        # may take the interpreter's lock, for 5 ms if that thread is busy.
        if seconds != getattr(self, "_waits", None):
            self._waits = seconds
            wait = pack("ll", int(seconds), int(seconds % 1 * 1e6))
            self.channel.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, wait)

    def _respond(self, serial: int, fields: Any, frames: Any) -> None:
        if isinstance(frames, UnmappedSegment):
            frames.report()
            self._send(serial, {"unmapped": True})
        elif fields.get("op") == "unmapped":
            self._send(serial, self._without_segment({**self.common, **fields}))
        else:
            if fields.get("now") and self.remote.kernel.may_run_cell:
                self.remote.switch_interval.shorten()
            self.at_work = True
            try:
                response, out = self.remote.receive(fields, frames, self)
            finally:
                self.at_work = False
            if isinstance(out, Segment):
                self._send(serial, response, (), out)
            else:
                self._send(serial, response, out)

    def interrupt(self) -> None:
        """Raise ``KeyboardInterrupt`` in the request that the thread serves, if there is one."""
        import ctypes  # before the check: importing may take a while

        if self.at_work:
            raising = ctypes.pythonapi.PyThreadState_SetAsyncExc
            raising(ctypes.c_ulong(self.thread.ident or 0), ctypes.py_object(KeyboardInterrupt))

    def _send(
        self, serial: int, response: ResponseHeader, frames: Sequence[Any] = (), segment: Any = None
    ) -> None:
        fields = {**response}
        sizes: Any = fields.pop("sizes", ())  # the prefix of the message has them
        if fields.get("digest") == "none:":  # the default on this lane
            del fields["digest"]
        parts, files = self.channel.pack(serial, fields, sizes, frames, segment)
        send_all(self.channel.socket, parts, files)

    # ------------------------------------------------------------ responses in shared memory

    def copy_to_segment(self, frames: Sequence[memoryview]) -> Segment | None:
        """Copy frames into a segment that the client leases; return None if there is no memory.

        The thread that made the response calls this, so that the copy shows the values at that
        moment.
        """
        segment = None
        try:
            with Uninterrupted():  # so that a segment that is taken is always known
                segment = self.channel.pool.take([frame.nbytes for frame in frames])
                if segment is None:
                    return None
                self.channel.lease_out(segment)
            for _ in segment.fill(frames):
                pass
        except BaseException as error:  # no memory, or interrupted
            with Uninterrupted():
                if segment is not None:
                    self.channel.take_back(segment)
            if not isinstance(error, OSError):
                raise
            return None
        return segment

    def _without_segment(self, header: Any) -> ResponseHeader:
        """Keep a response for another lane's messages: the client could not map its segment."""
        segment = self.channel.leased(header.get("segment") or 0)
        if segment is None:
            error = WireError("integrity", "this response is no longer kept")
            refused: ResponseHeader = self.remote.refused(error)
            return refused
        frames = segment.read(header["sizes"])
        self.channel.take_back(segment, unmapped=True)
        response: ResponseHeader = self.remote.transfers.cut_response(header, {}, frames, 0)[0]
        return response


def send_all(sock: socket.socket, parts: Sequence[Any], files: Sequence[int]) -> None:
    """Send all parts on a blocking socket, and the files with the first byte."""
    data = b"".join(parts)
    if files:
        extra: Any = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, pack("%di" % len(files), *files))]
        data = data[sock.sendmsg([data], extra) :]
    sock.sendall(data)


def join(remote: Any, offer: DirectOffer, why_not: str = "") -> str:
    """Connect to the client's socket and show the secret; start a thread that serves the socket.

    Return why there is no such thread: the socket cannot be reached, the client asks for none, or
    ``why_not``. An empty text stands for success.
    """
    sock = socket_thread = None
    try:
        sock = _socket(socket.AF_UNIX, socket.SOCK_STREAM)
        secret = bytes.fromhex(offer["secret"])
        sock.settimeout(CONNECT_TIMEOUT)
        sock.connect(offer["path"])
        if peer_user(sock) != _geteuid():
            raise OSError("it is another user's")
        sock.sendall(secret[:SECRET])
        if not why_not and not shared_memory():
            why_not = "this kernel's system or Python has no memory to share"
        if why_not or not offer["lane"]:
            sock.close()
            return why_not or "the client asks for no direct lane"
        sock.setblocking(True)
        channel = FrameSocket(sock, Pool(float(offer["share"]), files=offer["files"]))
        socket_thread = SocketThread(remote, channel, offer["name"], secret[SECRET:])
        common = {**offer["common"], "epoch": remote.epoch}
        check({**common, "op": "", "id": ""})
        socket_thread.common = common
        socket_thread.wait_at_most(60 * CONNECT_TIMEOUT)
        remote.socket_threads[socket_thread.name] = socket_thread
        _start(socket_thread.thread)
    # AttributeError: this system has no Unix sockets, or does not tell whose they are.
    except (
        *(OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, WireError),
    ) as error:
        if socket_thread is not None:
            remote.socket_threads.pop(socket_thread.name, None)
        if sock is not None:
            sock.close()
        return "the kernel cannot connect to this process: %s" % error
    return ""
