"""One end of the direct lane's socket: messages, each a header with frames, both ways.

Rule: standard library only, Python 3.8 and later; the same on both sides, shipped together with
``_loader.py``. It knows bytes, file descriptors and leases of segments, and nothing of what a
message means; whether the socket blocks is for those above to say.

A message is a prefix, some numbers, the header as JSON, and either its frames or the number of
the segment that they are in. The first that names a segment brings its file. Which segments the
receiver does not use any more, and which the sender has given back, goes along.
"""

from __future__ import annotations

import os
import socket
from array import array
from collections import deque
from json import JSONDecoder, dumps
from struct import Struct
from typing import Any, Deque, Sequence, Tuple
from weakref import WeakSet

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.wire.errors import WireError
    from bridgehead._shipped.wire.frames import allocate
    from bridgehead._shipped.wire.header import Header
    from bridgehead._shipped.wire.segments import Pool, Segment, SegmentCache

# serial, bytes of header, bytes of frames, segment, its capacity, and how many numbers follow:
# of segments released, of segments given back, of sizes of frames; flags
_PREFIX = Struct("<QIQQQIIIB")
_HAS_FILE, _PRIVATE = 1, 2
_SPACE = socket.CMSG_SPACE(16) if hasattr(socket, "CMSG_SPACE") else 0
# As plain numbers: an enum's & is Python code.
_CLOEXEC = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))
_TRUNCATED = int(getattr(socket, "MSG_CTRUNC", 0))
_ROOM = 1 << 16  # bytes read at once
MOST = 1 << 28  # bytes of a message; frames of more than 64 KiB go elsewhere
SECRET = 32  # bytes that either end shows the other
UCRED = Struct("iII")  # pid, uid, gid of SO_PEERCRED

_decode = JSONDecoder().raw_decode
SocketMessage = Tuple[int, Any, Any]  # serial, header, frames; None instead of frames not to be had


class FrameSocket:
    """One end. The sender's pool and the leases are its own; so is the socket."""

    def __init__(self, sock: socket.socket, pool: Pool) -> None:
        self.socket, self.pool, self.maps = sock, pool, SegmentCache()
        self._lent: dict[int, Segment] = {}  # to the other end, by number
        self._told: dict[int, Segment] = {}  # that the other end was handed, by number
        self._gone: Deque[int] = deque()
        self._read = bytearray()
        self._room = memoryview(bytearray(_ROOM))
        self._files: Deque[int] = deque()
        _channels.add(self)

    # ------------------------------------------------------------ out

    def lend(self, segment: Segment) -> None:
        """The lease of a segment is the other end's, from the message on that names it."""
        if self.socket.fileno() < 0:  # no message will
            segment.pool.give_back(segment)
        else:
            self._lent[segment.number] = segment

    def take_back(self, segment: Segment, *, unmapped: bool = False) -> None:
        """No message has named it, or it could not be mapped there."""
        if self._lent.pop(segment.number, None) is not None:
            if unmapped and self._told.pop(segment.number, None) is not None:
                segment.holders.remove(self)
            segment.pool.give_back(segment)

    def gone(self, number: int) -> None:
        """A segment was given back to the system; its pool says so."""
        if self._told.pop(number, None) is not None:
            self._gone.append(number)

    def pack(
        self,
        serial: int,
        header: Header,
        sizes: Sequence[int] = (),
        frames: Sequence[Any] = (),
        segment: Segment | None = None,
    ) -> tuple[list[Any], list[int]]:
        """The parts of a message, and the files to go with it; a segment has been lent.

        ``sizes`` are those of the frames, also where these go in a segment, or not at all.
        """
        released, gone = _emptied(self.maps.released), _emptied(self._gone)
        text = dumps(header).encode() if header else b""
        number = capacity = flags = 0
        files: list[int] = []
        if segment is not None:
            number, capacity = segment.number, segment.capacity
            flags = _PRIVATE * segment.pool.private
            if number not in self._told:
                self._told[number] = segment
                segment.holders.append(self)
                files.append(segment.file)
                flags |= _HAS_FILE
        body = sum(sizes) if frames else 0
        prefix = _PREFIX.pack(
            serial, len(text), body, number, capacity, len(released), len(gone), len(sizes), flags
        )
        if released or gone or sizes:
            prefix += array("q", [*released, *gone, *sizes]).tobytes()
        return [prefix + text, *frames], files

    @property
    def has_handed(self) -> bool:
        """Whether the other end has files of segments of this one's."""
        return bool(self._told)

    @property
    def has_updates(self) -> bool:
        """Whether there is something to tell of segments, that no message has told yet."""
        return bool(self.maps.released or self._gone)

    # ------------------------------------------------------------ in

    def receive(self) -> bool:
        """Read once; false where the other end is gone. What ``recvmsg`` raises."""
        count, extra, flags, _ = self.socket.recvmsg_into([self._room], _SPACE, _CLOEXEC)
        for level, kind, data in extra:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self._files.extend(array("i", data[: len(data) // 4 * 4]))
        if len(self._files) > 64:
            raise WireError("protocol", "files that no message has told of")
        if flags & _TRUNCATED:
            self._files.append(-1)  # there was no file descriptor left to receive it with
        self._read += self._room[:count]
        return count > 0

    def next(self) -> SocketMessage | None:
        """The next message that has arrived as a whole; ``WireError`` for what is none."""
        read = self._read
        if len(read) < _PREFIX.size:
            return None
        prefix = _PREFIX.unpack_from(read)
        serial, text, body, number, capacity, released, gone, framed, flags = prefix
        begin = at = _PREFIX.size
        at += 8 * (released + gone + framed)
        end = at + text + body
        if end > MOST:
            raise WireError("protocol", "a message of %d bytes" % end)
        if len(read) < end:
            return None
        sizes: list[int] = []
        if at > begin:
            numbers = array("q", bytes(read[begin:at])).tolist()
            sizes = numbers[released + gone :]
            if released or gone:
                self._noted(numbers[:released], numbers[released : released + gone])
        header = _object(read[at : at + text]) if text else {}
        if flags & _HAS_FILE:
            self._map(number, capacity, bool(flags & _PRIVATE))
        frames: Any = []
        if number:
            frames = self._leased(number, sizes)
        elif body or (sizes and not any(sizes)):
            frames = _split(read, at + text, body, sizes)
        del read[:end]
        header["sizes"] = sizes
        return serial, header, frames

    def _noted(self, released: Sequence[int], gone: Sequence[int]) -> None:
        for number in released:
            segment = self._lent.pop(abs(number), None)
            if segment is not None:
                segment.pool.give_back(segment, tainted=number < 0)
        for number in gone:
            self.maps.forget(number)

    def _map(self, number: int, capacity: int, private: bool) -> None:
        file = self._files.popleft() if self._files else -1
        if file < 0:
            return
        try:
            self.maps.add(number, file, capacity, private)
        except (OSError, ValueError, OverflowError):  # whoever waits for it is told
            pass

    def _leased(self, number: int, sizes: list[int]) -> list[memoryview] | None:
        if number not in self.maps.known:
            return None
        if min(sizes, default=0) < 0:
            raise WireError("protocol", "frames of less than nothing")
        try:
            return self.maps.lease(number, sizes)
        except ValueError as error:
            raise WireError(
                "protocol", "frames that are not in their segment: %s" % error
            ) from None

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        """Close the socket; what is leased lives on, at either end.

        Nobody tells any more when what was lent is free, so that is never used again.
        """
        self.socket.close()
        while self._files:
            file = self._files.popleft()
            if file >= 0:
                os.close(file)
        lent, self._lent = list(self._lent.values()), {}
        told, self._told = list(self._told.values()), {}
        for segment in told:
            segment.holders.remove(self)
        for segment in lent:
            segment.pool.give_back(segment, tainted=True)
        self.maps.known.clear()


def _emptied(numbers: Deque[int]) -> list[int]:
    return [numbers.popleft() for _ in range(len(numbers))]  # others may add to it meanwhile


def _object(text: bytearray) -> Header:
    try:
        told = text.decode()
        header, end = _decode(told)
    except (ValueError, RecursionError) as error:
        raise WireError("protocol", "a header that is no JSON: %s" % error) from None
    if type(header) is not dict or end < len(told):
        raise WireError("protocol", "a header that is no object, or more than one")
    return header


def _split(read: bytearray, at: int, nbytes: int, sizes: list[int]) -> list[memoryview]:
    """Frames out of a message, in memory of their own, writable and aligned."""
    if min(sizes, default=0) < 0 or sum(sizes) != nbytes:
        raise WireError("protocol", "%d bytes of frames do not fit their sizes" % nbytes)
    frames = []
    for size in sizes:
        frame = allocate(size)
        frame[:] = read[at : at + size]
        frames.append(frame)
        at += size
    return frames


def peer(sock: socket.socket) -> tuple[int, int]:
    """The process and the user at the other end, as the system has it."""
    pid, uid, _ = UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))
    return pid, uid


_channels: Any = WeakSet()


def _close_in_child() -> None:
    """A forked child's copy of a socket would keep its other end from seeing ours close."""
    for channel in list(_channels):
        try:
            channel.socket.close()
        except OSError:
            pass


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
