"""Unfinished transfers, and the replay window.

Rule: use the standard library only, and run on Python 3.8 and later. One class owns three tables:
the inboxes of requests, the outboxes of responses, and the ids of finished requests (the replay
window). What a request does is in ``operations``; when it may run is decided in ``server``.
"""

from __future__ import annotations

import sys
from collections import OrderedDict, deque
from itertools import accumulate
from time import monotonic
from typing import Any, Dict, Sequence

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.remote.kernel import Kernel
    from bridgehead._shipped.remote.snapshot import entries
    from bridgehead._shipped.remote.socket_thread import SocketThread
    from bridgehead._shipped.wire.digest import Buffer
    from bridgehead._shipped.wire.errors import WireError
    from bridgehead._shipped.wire.frames import (
        SHARE_FROM,
        cut,
        digest,
        private_copy,
        raise_mmap_threshold,
        snapshot,
    )
    from bridgehead._shipped.wire.header import HeaderAndFrames, RequestHeader, ResponseHeader
    from bridgehead._shipped.wire.transfer import CompleteTransfer, Inbox, Outbox

UNFINISHED = 4 << 30  # bytes of unfinished transfers; beyond it the oldest are dropped
IDLE_TRANSFER = 600.0  # seconds after which an unused unfinished transfer is dropped
AHEAD_CHUNK = 8 << 20  # bytes in each message that is sent ahead of a reply
AHEAD_IN_FLIGHT = 3  # such messages that the connection has not taken yet
# A request waits for the connection this long at first, and as long as the rest takes at this
# speed: about that of a copy into fresh memory.
AHEAD_PATIENCE = 0.1  # seconds
AHEAD_SPEED = 256 << 20  # bytes a second
REPLAY_WINDOW = 4096  # number of ids of finished requests: none of these runs again


class TransferTable:
    """The unfinished transfers of one namespace, and the ids of its finished requests."""

    def __init__(self, socket_threads: Dict[str, SocketThread], kernel: Kernel) -> None:
        self.kernel = kernel
        self.inboxes: dict[str, Any] = {}  # an Inbox or a CompleteTransfer each
        self.outboxes: dict[str, Outbox] = {}
        # By id; true for one that was withdrawn before it ran.
        self.done: OrderedDict[str, bool] = OrderedDict()
        # By name; a large response on a direct lane goes into a segment of its socket thread.
        self.socket_threads = socket_threads

    # ------------------------------------------------------------ requests

    def assemble(
        self, header: RequestHeader, parts: Sequence[Buffer], thread: SocketThread | None
    ) -> Any:
        """Add one message to its request's inbox, and take the inbox out of the table.

        ``thread`` is the socket thread that received the message, if it came over a direct lane.
        """
        inbox = self.inboxes.pop(header["id"], None)
        if thread is not None:
            return CompleteTransfer(header["sizes"], [memoryview(part) for part in parts], thread)
        inbox = inbox or Inbox(header["sizes"])
        if inbox.sizes != header["sizes"]:
            raise WireError("integrity", "the chunks are not of one request")
        inbox.write(header["at"], parts, header["digest"])
        return inbox

    def defer(self, header: RequestHeader, inbox: Any) -> tuple[ResponseHeader, Any]:
        """Put a request back as if it had not run; the client sends it again, as a message."""
        self.done.pop(header["id"], None)
        self.inboxes[header["id"]] = inbox
        return {"busy": True}, []

    def record(self, identity: str) -> None:
        """Enter a request in the replay window; raise ``WireError`` if it is there already.

        A message that an attacker recorded and sends again does not run again.
        """
        self.check_withdrawn(identity)
        if identity in self.done:
            raise WireError("protocol", "this request was made before; it did not run again")
        self.remember(identity)

    def check_withdrawn(self, identity: str) -> None:
        """Raise ``WireError`` if the client has withdrawn a request before it ran."""
        if self.done.get(identity):
            raise WireError("closed", "the client has withdrawn this request; it did not run")

    def remember(self, identity: str, *, withdrawn: bool = False) -> None:
        """Enter a request in the replay window, and drop the oldest ones."""
        self.done.setdefault(identity, withdrawn)
        while len(self.done) > REPLAY_WINDOW:
            self.done.popitem(last=False)  # one step, because subshells call this in other threads

    def repeat_response(self, header: RequestHeader) -> HeaderAndFrames:
        """Respond to a message that comes again because the connection broke meanwhile."""
        if header["op"] == "chunk":
            return {}, []
        self.check_withdrawn(header["id"])
        outbox = self.outboxes.get(header["id"])
        if outbox is None or outbox.response is None:
            raise WireError("lost", "the request has run, and its response is no longer kept")
        outbox.touched = monotonic()
        return outbox.response, list(cut(outbox.frames, 0, header["chunk"]))

    # ------------------------------------------------------------ responses

    def respond(
        self,
        header: RequestHeader,
        response: ResponseHeader,
        frames: list[memoryview],
        thread: SocketThread | None = None,
    ) -> tuple[ResponseHeader, Any]:
        """Complete a response, with a snapshot of its frames, which may be live objects.

        Without a direct lane, the frames get a digest, and the message takes as many of them as
        it can carry. With one, ``SHARE_FROM`` bytes and more are copied into a segment. The socket
        thread sends the response at once; or, if the request came as a message, the frames are
        kept until the client fetches them over the lane.
        """
        sizes = [frame.nbytes for frame in frames]
        way = thread or self.socket_threads.get(header.get("via") or "")
        if way is None:
            return self.cut_response(header, response, frames, header["chunk"])
        response = {**response, "sizes": sizes, "digest": digest("none", frames)}
        if not frames:
            return response, []
        segment = None
        if sum(sizes) >= SHARE_FROM:
            segment = way.copy_to_segment(frames)
            if segment is None:
                # No memory for a segment: the client fetches all frames in messages.
                return self.cut_response(header, response, frames, 0)
        if thread is not None:
            return response, segment or frames
        kept = [] if segment is not None else snapshot(frames)
        self.outboxes[header["id"]] = Outbox(kept, sizes, way, segment)
        return response, []

    def cut_response(
        self, header: RequestHeader, response: ResponseHeader, frames: list[memoryview], limit: int
    ) -> HeaderAndFrames:
        """Return as many bytes as one message takes, with a digest; keep the rest for later ones.

        A resumable response is kept whole: the client may ask for all of it again.
        """
        sizes = [frame.nbytes for frame in frames]
        total = sum(sizes)
        if total > limit and header.get("ahead") and self.kernel.can_send_ahead:
            return self.send_ahead(header, response, frames, sizes), []
        frames = parts = snapshot(frames)
        if total > limit:
            parts = list(cut(frames, 0, limit))
        response = self.signed(header, response, sizes, parts)
        if total > limit or header.get("resumable"):
            outbox = self.outboxes[header["id"]] = Outbox(frames, sizes)
            outbox.response = response if header.get("resumable") else None
        return response, parts

    def send_ahead(
        self,
        header: RequestHeader,
        response: ResponseHeader,
        frames: list[memoryview],
        sizes: list[int],
    ) -> ResponseHeader:
        """Send a long response in chunks, ahead of the reply; return the reply's header.

        Each chunk is copied just before it is sent: that is while the chunks before it are on
        their way, and into memory that those have left. The request is not done before the last
        chunk is copied, so no cell, and nothing else that this thread runs, can come between two
        chunks and change a value. If the connection is slow, the rest is copied at once, and the
        client fetches it.
        """
        raise_mmap_threshold()
        total, at, began = sum(sizes), 0, monotonic()
        on_the_way: Any = deque()
        while at < total:
            if len(on_the_way) >= AHEAD_IN_FLIGHT:
                left = began + AHEAD_PATIENCE + at / AHEAD_SPEED - monotonic()
                if not has_left(on_the_way.popleft(), left):
                    break
            parts = list(cut(frames, at, at + AHEAD_CHUNK))
            copy = memoryview(b"".join(parts))
            ends = accumulate(part.nbytes for part in parts)  # a digest depends on the frames
            copies = [copy[end - part.nbytes : end] for part, end in zip(parts, ends)]
            chunk: ResponseHeader = {"at": at, "digest": self.digest_for(header, copies)}
            if not at:
                chunk["sizes"] = sizes
            on_the_way.append(self.kernel.send([copy], content=chunk, track=True))
            at += copy.nbytes
        if at < total:
            rest = private_copy(list(cut(frames, at, total)))
            self.outboxes[header["id"]] = Outbox(rest, sizes, start=at)
        return {**self.signed(header, response, sizes, ()), "ahead": at}

    def signed(
        self,
        header: RequestHeader,
        response: ResponseHeader,
        sizes: list[int],
        parts: Sequence[Buffer],
    ) -> ResponseHeader:
        """Return the header of a response with the sizes and the digest of these parts of it.

        It also says whether numpy is loaded here, which computes the digest ``sums``.
        """
        response = {**response, "sizes": sizes, "digest": self.digest_for(header, parts)}
        return {**response, "sums": True} if "numpy" in sys.modules else response

    def digest_for(self, header: RequestHeader, parts: Sequence[Buffer]) -> str:
        """Return the digest of parts of a response, by the algorithm of the request."""
        algorithm = header["digest"].partition(":")[0]
        return digest("crc32" if algorithm == "none" else algorithm, parts)

    def next_chunk(
        self, header: RequestHeader, thread: SocketThread | None
    ) -> tuple[ResponseHeader, Any]:
        """Return another chunk of a long response; all frames of it over a direct lane."""
        outbox = self.outboxes.get(header["id"])
        if outbox is None or outbox.owner is not thread:
            raise WireError("integrity", "the rest of this response is no longer kept")
        if thread is not None:
            del self.outboxes[header["id"]]
            return {"sizes": outbox.sizes}, outbox.segment or outbox.frames
        outbox.touched = monotonic()
        at = header["at"] - outbox.start
        if at < 0:
            raise WireError("integrity", "this part of the response is no longer kept")
        parts = list(cut(outbox.frames, at, at + header["chunk"]))
        return {"digest": self.digest_for(header, parts)}, parts

    # ------------------------------------------------------------ dropping

    def forget(self, identity: str) -> None:
        """Drop a request that its client has given up; a late message of it has no effect."""
        self.discard(identity)
        self.remember(identity, withdrawn=True)

    def discard(self, identity: str) -> None:
        """Drop what is kept of a request or of its response."""
        self.inboxes.pop(identity, None)
        outbox = self.outboxes.pop(identity, None)
        if outbox is not None:
            outbox.drop()

    def drop_owned_by(self, thread: SocketThread) -> None:
        """Drop the transfers that only the client of this socket thread could finish."""
        for store in (self.inboxes, self.outboxes):
            for identity, box in entries(store):
                if box.owner is thread:
                    store.pop(identity, None)

    def sweep(self) -> None:
        """Drop the unfinished transfers of vanished bridges, by age and beyond a total size."""
        if not (self.inboxes or self.outboxes):
            return
        kept = 0
        boxes: list[tuple[float, str, int]] = []
        for key, inbox in entries(self.inboxes):
            boxes.append((inbox.touched, key, inbox.received))
        for key, outbox in entries(self.outboxes):
            boxes.append((outbox.touched, key, outbox.total))
        for touched, key, size in sorted(boxes, key=lambda item: -item[0]):
            kept += size
            if monotonic() - touched > IDLE_TRANSFER or kept > UNFINISHED + size:
                self.discard(key)


def has_left(tracker: Any, seconds: float) -> bool:
    """Wait until a message was handed to the system; return whether that took no longer."""
    if tracker is None or tracker.done:
        return True
    try:
        tracker.wait(max(seconds, 0))
    except Exception:  # zmq.NotDone, which is not imported here
        return False
    return True
