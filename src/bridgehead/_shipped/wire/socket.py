"""One end of the direct lane's socket: messages of a header and frames.

Rule: use the standard library only, run on Python 3.8 and later, the same file at both ends. This
file knows bytes, file descriptors and leases of segments. It does not know what a message means;
the code that makes the socket decides whether it blocks.

A message is a prefix, some numbers, the header as JSON, and either its frames or the number of
the segment that holds them, and where in which slab that is. The first message that names a slab
brings the slab's file. Each message also lists the segments that its sender has released, and
those of its own slabs that it has closed.
"""

from __future__ import annotations

import os
import socket
from array import array
from collections import deque
from json import JSONDecoder, JSONEncoder, encoder
from struct import Struct
from threading import local
from typing import Any, Callable, Deque, Dict, Mapping, Sequence, Tuple
from weakref import WeakSet

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.wire.collector import PausedCollector
    from bridgehead._shipped.wire.errors import WireError
    from bridgehead._shipped.wire.frames import MAX_FRAMES, allocate, check_sizes
    from bridgehead._shipped.wire.leases import SlabCache
    from bridgehead._shipped.wire.segments import Pool, Segment
    from bridgehead._shipped.wire.slabs import Slab

# serial, bytes of header, bytes of frames; segment, its start, slab, capacity of the slab; the
# counts of the numbers that follow (released segments, closed slabs, sizes of frames); flags
_PREFIX = Struct("<QIQQQQQIIIB")
_HAS_FILE, _PRIVATE, _SHARED = 1, 2, 4
_SPACE = socket.CMSG_SPACE(16) if hasattr(socket, "CMSG_SPACE") else 0
# Plain integers, because & on an enum runs Python code.
_CLOEXEC = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))
_TRUNCATED = int(getattr(socket, "MSG_CTRUNC", 0))
_ROOM = 1 << 16  # bytes read at once
# Bytes of a message on the socket. Frames of ``SHARE_FROM`` bytes and more in all are not in the
# message, but in a segment.
MOST = 1 << 28
SECRET = 32  # bytes of the secret that each end sends to the other
UCRED = Struct("iII")  # Linux: pid, uid, gid of SO_PEERCRED
# macOS: version, uid, number of groups and groups of LOCAL_PEERCRED, an option of SOL_LOCAL
XUCRED, LOCAL_PEERCRED, SOL_LOCAL = Struct("IIh2x16I"), 1, 0

_UNMAPPED = 1 << 62  # added to the number of a segment that could not be mapped
# Serial, header and frames; an ``UnmappedSegment`` if their segment could not be mapped.
SocketMessage = Tuple[int, Any, Any]


def _json_encoder() -> Callable[[Any], str]:
    """Return a function that writes JSON, in half the time of ``JSONEncoder.encode``.

    That makes a function in C for each text.
    """
    plain, make = JSONEncoder(), getattr(encoder, "c_make_encoder", None)
    if make is None:
        return plain.encode
    options = (plain.key_separator, plain.item_separator, False, False, True)
    chunks = make(None, plain.default, encoder.encode_basestring_ascii, None, *options)
    return lambda header: "".join(chunks(header, 0))


_decode, _encode = JSONDecoder().raw_decode, _json_encoder()


class UnmappedSegment:
    """Stands for the frames in a segment that could not be mapped.

    The sender gets a report when this is dropped, at the latest, unless ``number`` was set to 0.
    """

    def __init__(self, number: int, released: Deque[int]) -> None:
        self.number, self._released = number, released

    def report(self) -> None:
        """Have the next message report it."""
        if self.number:
            self._released.append(self.number + _UNMAPPED)
            self.number = 0

    __del__ = report


class _Room(local):
    """Where a thread reads to, whichever socket it reads: one for each took 64 KiB of each."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(_ROOM))


_room = _Room()


class FrameSocket:
    """One end of the socket, with the pool it sends from and the slabs it has mapped."""

    def __init__(self, sock: socket.socket, pool: Pool, header_limit: int = MOST) -> None:
        """``header_limit`` is the most bytes that a header from the peer may have."""
        self.socket, self.pool, self.maps = sock, pool, SlabCache()
        self._header_limit = header_limit
        self._leased: dict[int, Segment] = {}  # segments that the peer leases, by number
        self._handed: dict[int, Slab] = {}  # slabs whose file the peer has, by number
        self._closed_numbers: Deque[int] = deque()  # closed slabs that no message has listed yet
        self.unread = bytearray()  # what was received and is not a whole message yet
        self._files: Deque[int] = deque()
        _open_sockets.add(self)

    # ------------------------------------------------------------ sending

    def lease_out(self, segment: Segment) -> None:
        """Lease a segment to the peer; the next message that names it hands it over."""
        if self.socket.fileno() < 0:  # closed: no message will name it
            segment.pool.give_back(segment)
        else:
            self._leased[segment.number] = segment

    def leased(self, number: int) -> Segment | None:
        """Return the segment of this number, if the peer leases it."""
        return self._leased.get(number)

    def take_back(self, segment: Segment, *, unmapped: bool = False) -> None:
        """End the lease of a segment that no message has named, or that the peer could not map."""
        if self._leased.pop(segment.number, None) is not None:
            if unmapped and self._handed.pop(segment.slab.number, None) is not None:
                segment.slab.holders.remove(self)
            segment.pool.give_back(segment)

    def gone(self, number: int) -> None:
        """Note that the pool has closed a slab; the next message lists it."""
        if self._handed.pop(number, None) is not None:
            self._closed_numbers.append(number)

    def pack(
        self,
        serial: int,
        header: Mapping[str, Any],
        sizes: Sequence[int] = (),
        frames: Sequence[Any] = (),
        segment: Segment | None = None,
    ) -> tuple[list[Any], list[int]]:
        """Return the parts of a message, and the files to send with it.

        The caller has leased the segment to the peer before. ``sizes`` are the sizes of the
        frames, also if the frames are in a segment, or are not sent.
        """
        released: Sequence[int] = ()
        closed: Sequence[int] = ()
        if self.maps.released or self._closed_numbers:
            released, closed = _drain(self.maps.released), _drain(self._closed_numbers)
        text = _encode(header).encode() if header else b""
        number = start = within = capacity = flags = 0
        files: list[int] = []
        if segment is not None:
            slab = segment.slab
            number, start = segment.number, segment.start
            within, capacity = slab.number, slab.capacity
            flags = _PRIVATE * slab.private + _SHARED * slab.is_shared
            if within not in self._handed:
                self._handed[within] = slab
                slab.holders.append(self)
                files.append(slab.file)
                flags |= _HAS_FILE
        body = sum(sizes) if frames else 0
        counts = len(released), len(closed), len(sizes)
        prefix = _PREFIX.pack(
            serial, len(text), body, number, start, within, capacity, *counts, flags
        )
        if released or closed or sizes:
            prefix += array("q", [*released, *closed, *sizes]).tobytes()
        return [prefix + text, *frames], files

    @property
    def has_handed(self) -> bool:
        """Whether the peer has files of slabs of this end's pool."""
        return bool(self._handed)

    @property
    def has_updates(self) -> bool:
        """Whether segments were released or slabs closed that no message has listed yet."""
        return bool(self.maps.released or self._closed_numbers)

    # ------------------------------------------------------------ receiving

    def receive(self) -> bool:
        """Read once; return false if the peer has closed. Raise what ``recvmsg`` raises."""
        room = _room.view
        count, extra, flags, _ = self.socket.recvmsg_into([room], _SPACE, _CLOEXEC)
        for level, kind, data in extra:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                files = array("i", data[: len(data) // 4 * 4])
                self._files.extend(files)
                if not _CLOEXEC:  # macOS: a program that starts meanwhile may inherit it
                    for file in files:
                        os.set_inheritable(file, False)
        if len(self._files) > 64:
            raise WireError("protocol", "the peer sent files that belong to no message")
        if flags & _TRUNCATED:
            self._files.append(-1)  # this process had no file descriptor left to receive the file
        self.unread += room[:count]
        return count > 0

    def next(self) -> SocketMessage | None:
        """Return the next whole message, or None; raise ``WireError`` if it is malformed."""
        read = self.unread
        if len(read) < _PREFIX.size:
            return None
        prefix = _PREFIX.unpack_from(read)
        serial, text, body, number, start, slab, capacity, released, closed, framed, flags = prefix
        begin = at = _PREFIX.size
        at += 8 * (released + closed + framed)
        end = at + text + body
        if end > MOST:
            raise WireError("protocol", "a message of %d bytes is too long" % end)
        if text > self._header_limit:
            raise WireError("protocol", "a header of %d bytes is too long" % text)
        if max(released, closed, framed) > MAX_FRAMES:
            raise WireError("protocol", "a message of too many numbers")
        if len(read) < end:
            return None
        sizes: list[int] = []
        if at > begin:
            numbers = array("q", bytes(read[begin:at])).tolist()
            sizes = numbers[released + closed :]
            check_sizes(sizes)
            if released or closed:
                self._update_segments(numbers[:released], numbers[released : released + closed])
        fields = _parse_header(read[at : at + text]) if text else {}
        if flags & _HAS_FILE:
            self._map(slab, capacity, bool(flags & _PRIVATE), bool(flags & _SHARED))
        frames: Any = []
        if number:
            frames = self._lease(slab, number, start, sizes)
        elif body or (sizes and not any(sizes)):
            frames = _split(read, at + text, body, sizes)
        del read[:end]
        return serial, {**fields, "sizes": sizes}, frames

    def _update_segments(self, released: Sequence[int], closed: Sequence[int]) -> None:
        for number in released:
            if number >= _UNMAPPED:
                unmapped = self._leased.get(number - _UNMAPPED)
                if unmapped is not None:
                    self.take_back(unmapped, unmapped=True)
                continue
            segment = self._leased.pop(abs(number), None)
            if segment is not None:
                segment.pool.give_back(segment, tainted=number < 0)
        for number in closed:
            self.maps.forget(number)

    def _map(self, slab: int, capacity: int, private: bool, shared: bool) -> None:
        file = self._files.popleft() if self._files else -1
        if file < 0:
            return
        try:
            self.maps.add(slab, file, capacity, private, shared)
        except (OSError, ValueError, OverflowError):  # reported with the message's frames, as None
            pass

    def _lease(self, slab: int, segment: int, start: int, sizes: list[int]) -> Any:
        if slab not in self.maps.known:
            return UnmappedSegment(segment, self.maps.released)
        try:
            return self.maps.lease(slab, segment, start, sizes)
        except ValueError as error:
            raise WireError("protocol", "the frames do not fit their slab: %s" % error) from None

    # ------------------------------------------------------------ closing

    def close(self) -> None:
        """Close the socket; leased memory stays valid at both ends.

        The peer can no longer report when its leases end, so those segments are never used again.
        """
        self.socket.close()
        while self._files:
            file = self._files.popleft()
            if file >= 0:
                os.close(file)
        leased, self._leased = list(self._leased.values()), {}
        handed, self._handed = list(self._handed.values()), {}
        for slab in handed:
            slab.holders.remove(self)
        for segment in leased:
            segment.pool.give_back(segment, tainted=True)
        self.maps.known.clear()


def _drain(numbers: Deque[int]) -> Sequence[int]:
    return [numbers.popleft() for _ in range(len(numbers))]  # other threads may append meanwhile


def _parse_header(text: bytearray) -> Dict[str, Any]:
    try:
        decoded = text.decode()
        with PausedCollector(len(decoded)):
            header, end = _decode(decoded)
    except (ValueError, RecursionError) as error:
        raise WireError("protocol", "the header is not JSON: %s" % error) from None
    if type(header) is not dict or end < len(decoded):
        raise WireError("protocol", "the header is not one JSON object")
    return header


def _split(read: bytearray, at: int, nbytes: int, sizes: list[int]) -> list[memoryview]:
    """Copy frames out of a message into memory of their own, writable and aligned."""
    if sum(sizes) != nbytes:
        raise WireError("protocol", "%d bytes of frames do not match their sizes" % nbytes)
    frames = []
    for size in sizes:
        frame = allocate(size)
        frame[:] = read[at : at + size]
        frames.append(frame)
        at += size
    return frames


def peer_user(sock: socket.socket) -> int:
    """Return the uid of the peer, as the operating system reports it."""
    if hasattr(socket, "SO_PEERCRED"):
        peer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
        return int(UCRED.unpack(peer)[1])
    return int(XUCRED.unpack(sock.getsockopt(SOL_LOCAL, LOCAL_PEERCRED, XUCRED.size))[1])


_open_sockets: Any = WeakSet()


def _close_in_child() -> None:
    """Close the sockets in a forked child: its copies would hide from the peer that ours closed."""
    for channel in list(_open_sockets):
        try:
            channel.socket.close()
        except OSError:
            pass


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
