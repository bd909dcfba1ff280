"""What stays in the kernel for a bridge: a table of remote resources.

Rule: use the standard library only, and run on Python 3.8 and later. A resource has an id and an
owner, the bridge that made it. It sends numbered events to its owner and to no other client, and
the owner reports the number of the last one that arrived. What a resource is for belongs to a file
of its own: ``watch`` has what is watched.

A resource ends when its client or its bridge closes it, or when the lease of its bridge ends. A
bridge renews its lease by a request that waits behind the running cell, and behind other clients'.
So the clock of the leases goes on only between cells, and by ``BEAT`` at most each time.
"""

from __future__ import annotations

from base64 import b64encode
from collections import deque
from json import dumps
from time import monotonic
from typing import Any, Sequence

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.remote.kernel import Kernel
    from bridgehead._shipped.remote.replay import TransferTable
    from bridgehead._shipped.remote.snapshot import entries
    from bridgehead._shipped.wire.digest import Buffer
    from bridgehead._shipped.wire.errors import WireError
    from bridgehead._shipped.wire.frames import MESSAGE
    from bridgehead._shipped.wire.header import HeaderAndFrames, RequestHeader, ResponseHeader

LEASE = 600.0  # seconds on the clock of the leases
BEAT = 30.0  # seconds
CLOSED = 1000


class ResourceOwner:
    """A bridge with resources.

    Attributes:
        address: where its events go; see ``Kernel.address``.
        renewed: when it renewed its lease, on the clock of the leases.
    """

    def __init__(self) -> None:
        self.address: Any = None
        self.renewed = 0.0


class Resource:
    """Something that stays in the kernel for a bridge."""

    def __init__(self, header: RequestHeader) -> None:
        """Take the header of the request that makes it."""
        self.header = header
        self.id, self.owner = header["resource"], header["owner"]
        self.sent = 0  # the number of the last event

    def end(self) -> None:
        """Free what it holds; called once, in the thread of the cells."""

    def left(self) -> None:
        """Note that the client has closed it; any thread calls this, and ``end`` follows."""

    def repeat(self, seen: int) -> None:
        """Send again the events after number ``seen``, as far as they still matter."""

    def event_id(self, number: int) -> str:
        """Return the id of an event, by which the client fetches the rest of its frames."""
        return "%s:%d" % (self.id, number)


class ResourceTable:
    """The resources of one namespace. It is used in the thread of the cells."""

    def __init__(self, kernel: Kernel, transfers: TransferTable) -> None:
        self.kernel, self.transfers = kernel, transfers
        self.known: dict[str, Resource] = {}
        self.owners: dict[str, ResourceOwner] = {}
        self.clock, self._looked = 0.0, monotonic()
        self._is_beating = False
        self._closed: deque[str] = deque(maxlen=CLOSED)  # ids of resources that were not known

    # ------------------------------------------------------------ operations

    def renew(self, header: RequestHeader, frames: Sequence[Buffer]) -> HeaderAndFrames:
        """Renew a bridge's lease, and send again what did not arrive; say what is not known."""
        if header["owner"] in self.owners:
            self.note_owner(header)
        gone = []
        for identity, seen in header["seen"].items():
            resource = self.known.get(identity)
            if resource is None:
                gone.append(identity)
            elif seen < resource.sent:
                resource.repeat(seen)
        return {"gone": gone}, []

    def close(self, header: RequestHeader, frames: Sequence[Buffer]) -> HeaderAndFrames:
        """End resources; one that is not known has ended, or is never made.

        A thread beside the cells serves this, so the request that makes it may come later.
        """
        for identity in header["resources"]:
            resource = self.known.get(identity)
            if resource is not None:
                resource.left()

        def end() -> None:
            for identity in header["resources"]:
                if identity not in self.known:
                    self._closed.append(identity)
                self.forget(identity)

        if self.kernel.is_thread_of_cells or not self.kernel.call_soon(end):
            end()
        return {}, []

    # ------------------------------------------------------------ the table

    def check(self, header: RequestHeader) -> None:
        """Raise ``WireError`` if a resource cannot send events, or its client has closed it."""
        if not self.kernel.can_send:
            what = "%s() needs a kernel that sends events; this one only answers requests"
            raise WireError("unsupported", what % header["op"])
        self.check_closed(header)

    def check_closed(self, header: RequestHeader) -> None:
        """Raise ``WireError`` if the client of a resource has closed it."""
        if self.is_closed(header["resource"]):
            raise WireError("closed", "the client closed this before it was made")

    def is_closed(self, identity: str) -> bool:
        """Return whether the client has closed a resource before it was made."""
        return identity in self._closed

    def note_owner(self, header: RequestHeader) -> None:
        """Note where the sender of this request is, and that it lives."""
        owner = self.owners.setdefault(header["owner"], ResourceOwner())
        owner.address, owner.renewed = self.kernel.address(), self.clock

    def add(self, resource: Resource) -> None:
        """Enter a resource, which stays until it is forgotten."""
        self.note_owner(resource.header)
        self.enter(resource)

    def enter(self, resource: Resource) -> None:
        """Do as ``add`` for an owner that is known; this needs no request of that owner."""
        self.known[resource.id] = resource
        self.kernel.follow_cells(self, True)
        if not self._is_beating:
            self._is_beating = self.kernel.call_later(BEAT, self._beat)

    def forget(self, identity: str) -> None:
        """End a resource, and forget its bridge with the last one."""
        resource = self.known.pop(identity, None)
        if resource is None:
            return
        self.transfers.discard(resource.event_id(resource.sent))
        if not any(other.owner == resource.owner for _, other in entries(self.known)):
            self.owners.pop(resource.owner, None)
            self.kernel.drop_events(resource.owner)
        if not self.known:
            self.kernel.follow_cells(self, False)
        resource.end()

    def send(self, resource: Resource, response: ResponseHeader, frames: list[memoryview]) -> None:
        """Send an event, and drop the unfetched rest of the one before."""
        self.transfers.discard(resource.event_id(resource.sent))
        resource.sent += 1
        self.send_again(resource, response, frames)

    def send_again(
        self, resource: Resource, response: ResponseHeader, frames: list[memoryview]
    ) -> None:
        """Send an event under the number of the last one."""
        content, parts = self.event_message(resource, resource.sent, response, frames)
        address = self.owners[resource.owner].address
        self.kernel.send_event(resource.owner, content, parts, address)

    def event_message(
        self,
        resource: Resource,
        number: int,
        response: ResponseHeader,
        frames: list[memoryview],
        place: ResponseHeader | None = None,
    ) -> tuple[dict[str, str], list[memoryview]]:
        """Return the content and the buffers of an event's message.

        ``place`` says where the frames belong, if they are a piece of others.
        """
        made, event = resource.header, resource.event_id(number)
        self.transfers.discard(event)
        chunk = min(made["chunk"], MESSAGE)
        header: RequestHeader = {**made, "id": event, "chunk": chunk}
        header = {**header, "resumable": False, "ahead": False}
        response, parts = self.transfers.respond(header, response, frames)
        response = {**response, **(place or {})}
        if made.get("lane") == "inline":
            response = {**response, "data": b64encode(b"".join(parts)).decode("ascii")}
            parts = []
        return {"resource": resource.id, "event": event, "answer": dumps(response)}, parts

    # ------------------------------------------------------------ leases

    def sweep(self) -> None:
        """Let the clock go on, and end what bridges left that do not renew their leases."""
        now = monotonic()
        self.clock += min(now - self._looked, BEAT)
        self._looked = now
        owners = entries(self.owners)
        late = [key for key, one in owners if self.clock - one.renewed > LEASE]
        for identity, resource in entries(self.known) if late else ():
            if resource.owner in late:
                self.forget(identity)

    def _beat(self) -> None:
        """Sweep while no request comes; the kernel's event loop calls this."""
        self._is_beating = False
        if self.kernel.may_run_cell:
            self._looked = monotonic()
        else:
            self.sweep()
        if self.known:
            self._is_beating = self.kernel.call_later(BEAT, self._beat)
