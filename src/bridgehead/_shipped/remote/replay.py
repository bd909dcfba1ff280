"""What is kept of requests and responses while they are on their way.

Rule: standard library only, Python 3.8 and later; one class owns the three tables: what arrived
of requests, what is left of responses, and which requests were done (the replay window). What a
request asks for is ``operations``'; when it may run is ``server``'s.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from time import monotonic
from typing import Any, Dict, Sequence

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.remote.socket_thread import SocketThread
    from bridgehead._shipped.wire.digest import Buffer, summed
    from bridgehead._shipped.wire.errors import WireError
    from bridgehead._shipped.wire.frames import SHARED, cut, digest, snapshot
    from bridgehead._shipped.wire.header import Header
    from bridgehead._shipped.wire.transfer import CompleteTransfer, Inbox, Outbox

UNFINISHED = 4 << 30  # bytes of unfinished transfers, beyond which the oldest are dropped
IDLE_TRANSFER = 600.0  # seconds after which an unfinished transfer nobody touches is dropped
REPLAY_WINDOW = 4096  # ids of requests that were done: none of them is done again


class Transfers:
    """The unfinished transfers of one namespace, and the ids of the requests that were done."""

    def __init__(self, servers: Dict[str, SocketThread]) -> None:
        self.inboxes: dict[str, Any] = {}  # an Inbox each, or what was Held
        self.outboxes: dict[str, Outbox] = {}
        self.done: OrderedDict[str, None] = OrderedDict()
        self.servers = servers  # of the direct lanes: a response may go into their memory

    # -- requests

    def assemble(self, header: Header, parts: Sequence[Buffer], server: SocketThread | None) -> Any:
        """Add one message to its request's inbox, and take that out of the table."""
        inbox = self.inboxes.pop(header["id"], None)
        if server is not None:
            return CompleteTransfer(header["sizes"], [memoryview(part) for part in parts], server)
        inbox = inbox or Inbox(header["sizes"])
        if inbox.sizes != header["sizes"]:
            raise WireError("integrity", "the pieces are not of one request")
        inbox.write(header["at"], parts, header["digest"])
        return inbox

    def defer(self, header: Header, inbox: Any) -> tuple[Header, Any]:
        """Put a request back as if it was not done; the client asks again, with a message."""
        self.done.pop(header["id"], None)
        self.inboxes[header["id"]] = inbox
        return {"busy": True}, []

    def once(self, identity: str) -> None:
        """A message that somebody recorded and sends again is not done again."""
        if identity in self.done:
            raise WireError("protocol", "this request was made before")
        self.done[identity] = None
        while len(self.done) > REPLAY_WINDOW:
            self.done.popitem(last=False)  # in one step: subshells come here too

    def again(self, header: Header) -> tuple[Header, list[memoryview]]:
        """A message that came before, and comes again because the connection broke meanwhile."""
        if header["op"] == "chunk":
            return {}, []
        outbox = self.outboxes.get(header["id"])
        if outbox is None or outbox.answer is None:
            raise WireError("lost", "it was done, and its answer is not here any more")
        outbox.touched = monotonic()
        return dict(outbox.answer), list(cut(outbox.frames, 0, header["chunk"]))

    # -- responses

    def answer(
        self,
        header: Header,
        answer: Header,
        frames: list[memoryview],
        server: SocketThread | None = None,
    ) -> tuple[Header, Any]:
        """The answer as it crosses, with a snapshot of the frames, which may be live objects.

        Signed, and cut off where the message is full; or in shared memory, for a server: at
        once, or fetched by its near end where the request came as a message.
        """
        sizes = [frame.nbytes for frame in frames]
        way = server or self.servers.get(header.get("via") or "")
        if way is None:
            return self.keep(header, answer, frames, header["chunk"])
        answer.update(sizes=sizes, digest=digest("none", frames))
        if not frames:
            return answer, []
        segment = None
        if sum(sizes) >= SHARED:
            segment = way.copy_to_segment(frames)
            if segment is None:
                return self.keep(header, answer, frames, 0)
        if server is not None:
            return answer, segment or frames
        kept = [] if segment is not None else snapshot(frames)
        self.outboxes[header["id"]] = Outbox(kept, sizes, way, segment)
        return answer, []

    def keep(
        self, header: Header, answer: Header, frames: list[memoryview], limit: int
    ) -> tuple[Header, list[memoryview]]:
        """Cut off what fits into one message, sign it, and keep the rest for later ones."""
        sizes, frames = [frame.nbytes for frame in frames], snapshot(frames)
        total, parts = sum(sizes), frames
        if total > limit:
            parts = list(cut(frames, 0, limit))
        answer.update(sizes=sizes, digest=self.signed(header, total, parts))
        if "numpy" in sys.modules:
            answer["sums"] = True
        if total > limit or header.get("resumable"):
            outbox = self.outboxes[header["id"]] = Outbox(frames, sizes)
            outbox.answer = dict(answer) if header.get("resumable") else None
        return answer, parts

    def signed(self, header: Header, total: int, parts: Sequence[Buffer]) -> str:
        algorithm = header["digest"].partition(":")[0]
        if algorithm == "none":
            algorithm = "crc32"
        return digest(summed(algorithm, total, header.get("sums")), parts)

    def more(self, header: Header, server: SocketThread | None) -> tuple[Header, Any]:
        """Another piece of an answer that was too long for one message; all of it to a server."""
        outbox = self.outboxes.get(header["id"])
        if outbox is None or outbox.owner is not server:
            raise WireError("integrity", "the rest of this answer is gone")
        if server is not None:
            del self.outboxes[header["id"]]
            return {"sizes": outbox.sizes}, outbox.segment or outbox.frames
        outbox.touched = monotonic()
        parts = list(cut(outbox.frames, header["at"], header["at"] + header["chunk"]))
        return {"digest": self.signed(header, outbox.total, parts)}, parts

    # -- what is dropped

    def discard(self, identity: str) -> None:
        """Forget what is here of a request, or of its answer."""
        self.inboxes.pop(identity, None)
        outbox = self.outboxes.pop(identity, None)
        if outbox is not None:
            outbox.drop()

    def drop_those_of(self, server: SocketThread) -> None:
        """Drop what only the client of this server could have asked for."""
        for store in (self.inboxes, self.outboxes):
            for identity, box in [*store.items()]:
                if box.owner is server:
                    store.pop(identity, None)

    def sweep(self) -> None:
        """Drop what a bridge that vanished left half-way: by age, and beyond a total."""
        kept = 0
        boxes: list[tuple[float, str, int]] = []
        # Subshells come here too, in threads of their own: look at copies.
        for key, inbox in [*self.inboxes.items()]:
            boxes.append((inbox.touched, key, inbox.received))
        for key, outbox in [*self.outboxes.items()]:
            boxes.append((outbox.touched, key, outbox.total))
        for touched, key, size in sorted(boxes, key=lambda item: -item[0]):
            kept += size
            if monotonic() - touched > IDLE_TRANSFER or kept > UNFINISHED + size:
                self.discard(key)
