"""The far end of the direct lane: a thread that serves one bridge's socket.

Rule: standard library only, Python 3.8 and later; shipped together with ``_loader.py``. It only
carries: what a request means is ``Remote``'s, which does here what needs no code of the user's to
run in the main thread. The near end listens and the loader connects, while it answers the
handshake: so nothing has to be left where somebody else could connect, or find it later.
"""

from __future__ import annotations

import os
import socket
from hmac import compare_digest
from struct import pack
from threading import Thread
from typing import Any, Sequence

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.wire.errors import WireError
    from bridgehead._shipped.wire.header import Header
    from bridgehead._shipped.wire.segments import Pool, Segment, possible
    from bridgehead._shipped.wire.socket import SECRET, FrameSocket, peer

KNOCK = 1.0  # s for the near end to be there
TICK = 1.0  # s between two looks at what can be given back, while there is anything
# Captured: a user may replace them.
_start, _socket = Thread.start, socket.socket
_geteuid: Any = getattr(os, "geteuid", None)


class _UntouchedThread(Thread):
    """A thread whose ``run`` is our own: a user may replace the library's."""

    def __init__(self, server: Any) -> None:
        super().__init__(name="bridgehead-direct", daemon=True)
        self.server = server

    def run(self) -> None:
        self.server.run()


class SocketThread:
    """One bridge's: the channel, and the thread that reads it."""

    def __init__(self, remote: Any, channel: FrameSocket, name: str, welcome: bytes) -> None:
        self.remote, self.channel, self.name, self.welcome = remote, channel, name, welcome
        self.last: tuple[str, Segment] | None = None  # answered in shared memory
        self.at_work = False
        self.common: Header = {}  # what is the same in all headers, and not sent
        self.thread = _UntouchedThread(self)

    # ------------------------------------------------------------ the thread

    def run(self) -> None:
        channel = self.channel
        try:
            if compare_digest(channel.socket.recv(SECRET, socket.MSG_WAITALL), self.welcome):
                self.wait_at_most(0)
                while self._round():
                    pass
        except BaseException:  # the near end goes on without it, and says so
            pass
        finally:
            self.remote.part_from(self)
            channel.close()
            channel.pool.close()

    def _round(self) -> bool:
        """Read, and answer what there is; false at the end. No request outlives it here."""
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
                self._answer(serial, header, frames)
            del message, header, frames
        channel.maps.populate()  # whoever waits for the answer has it by now
        self.wait_at_most(TICK if channel.pool.segments or channel.maps.known else 0)
        return True

    def wait_at_most(self, seconds: float) -> None:
        # Not settimeout: it asks the system twice a message, and each time another thread may
        # take the interpreter, 5 ms beside a busy one.
        if seconds != getattr(self, "_waits", None):
            self._waits = seconds
            wait = pack("ll", int(seconds), int(seconds % 1 * 1e6))
            self.channel.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, wait)

    def _answer(self, serial: int, asked: Header, frames: Any) -> None:
        header = {**self.common, **asked}
        if frames is None:
            self._send(serial, {"unmapped": True})
        elif header.get("op") == "unmapped":
            self._send(serial, self._otherwise(header))
        else:
            self.at_work = True
            try:
                answer, out = self.remote.receive(header, frames, self)
            finally:
                self.at_work = False
            if isinstance(out, Segment):
                self.last = header["id"], out
                self._send(serial, answer, (), out)
            else:
                self._send(serial, answer, out)

    def interrupt(self) -> None:
        """Raise ``KeyboardInterrupt`` in what the thread is at; an idle one is left alone."""
        import ctypes  # which may take a while

        if self.at_work:
            raising = ctypes.pythonapi.PyThreadState_SetAsyncExc
            raising(ctypes.c_ulong(self.thread.ident or 0), ctypes.py_object(KeyboardInterrupt))

    def _send(
        self, serial: int, answer: Header, frames: Sequence[Any] = (), segment: Any = None
    ) -> None:
        sizes = answer.pop("sizes", ())
        if answer.get("digest") == "none:":  # which goes without saying
            del answer["digest"]
        parts, files = self.channel.pack(serial, answer, sizes, frames, segment)
        send_all(self.channel.socket, parts, files)

    # ------------------------------------------------------------ answers in shared memory

    def copy_to_segment(self, frames: Sequence[memoryview]) -> Segment | None:
        """Copy frames into a segment that is lent to the near end; None where there is none.

        Called in whatever thread made the answer, so that it is what was there then.
        """
        segment = self.channel.pool.take([frame.nbytes for frame in frames])
        if segment is None:
            return None
        try:
            for _ in segment.fill(frames):
                pass
        except OSError:
            self.channel.pool.give_back(segment, tainted=True)
            return None
        except BaseException:  # interrupted
            self.channel.pool.give_back(segment)
            raise
        self.channel.lend(segment)
        return segment

    def _otherwise(self, header: Header) -> Header:
        """The near end could not map the answer's segment: it comes in messages instead."""
        last = self.last
        if last is None or last[0] != header.get("id"):
            refused: Header = self.remote.refused(WireError("integrity", "that answer is gone"))
            return refused
        self.last, frames = None, last[1].read(header["sizes"])
        self.channel.take_back(last[1], unmapped=True)
        told: Header = self.remote.transfers.keep(header, {}, frames, 0)[0]
        return told


def send_all(sock: socket.socket, parts: Sequence[Any], files: Sequence[int]) -> None:
    """All parts on a blocking socket, and the files with the first byte."""
    extra: Any = []
    if files:
        extra = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, pack("%di" % len(files), *files))]
    left = [memoryview(part) for part in parts if len(part)]
    while left:
        sent = sock.sendmsg(left[:64], extra)
        extra = []
        while left and sent >= left[0].nbytes:
            sent -= left.pop(0).nbytes
        if sent:
            left[0] = left[0][sent:]


def join(remote: Any, offer: Header) -> str:
    """Connect to the near end, where it says that it listens; gives why not, if not."""
    if not possible():
        return "this kernel's system or Python has no memfd with seals"
    sock = server = None
    try:
        sock = _socket(socket.AF_UNIX, socket.SOCK_STREAM)
        secret = bytes.fromhex(offer["secret"])
        sock.settimeout(KNOCK)
        sock.connect(offer["path"])
        if peer(sock)[1] != _geteuid():
            raise OSError("it is another user's")
        sock.sendall(secret[:SECRET])
        sock.setblocking(True)
        channel = FrameSocket(sock, Pool(float(offer["share"])))
        server = SocketThread(remote, channel, offer["name"], secret[SECRET:])
        server.common = {**offer["common"], "epoch": remote.epoch}
        server.wait_at_most(60 * KNOCK)
        remote.servers[server.name] = server
        _start(server.thread)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        if server is not None:
            remote.servers.pop(server.name, None)
        if sock is not None:
            sock.close()
        return "the kernel cannot connect to this process: %s" % error
    return ""
