"""What stays in the kernel for one bridge: the client's end of it.

Rule: how a remote resource is entered, kept and closed, whatever it is for. The kernel sends
numbered events; each resource says what an event means, in a file of its own. One request renews
the lease of the bridge, and reports for each resource the number of the last event that arrived, so
that the kernel sends again what was lost. The kernel's end is ``_shipped/remote/resources.py``.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import uuid
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, ClassVar

from bridgehead._connection.installation import Installation
from bridgehead._errors import (
    CLOSED,
    BridgeClosed,
    BridgeError,
    KernelDied,
    KernelRestarted,
    ProtocolError,
    ReplyLost,
)
from bridgehead._protocol.raising import as_strings, as_text
from bridgehead._protocol.request import Request
from bridgehead._protocol.response import Response, add_chunk, open_response, parse_header
from bridgehead._shipped.wire.header import ResponseHeader
from bridgehead._shipped.wire.transfer import Inbox
from bridgehead._transports.base import Transport
from bridgehead._transports.tasks import waited

Frames = list[memoryview]
SENDINGS = 3  # times that an event is sent, before it counts as lost
EVENT = Request({})  # what takes the place of a request: an event arrives without one
MOST_ENDED = 1000  # resources that one request ends
MOST_WAITING = 10_000  # resources that wait to be ended; of older ones, the lease runs out


class RemoteResource(ABC):
    """The client's end of something that stays in the kernel.

    Attributes:
        id: names it in the kernel.
        seen: the number of the last event that arrived; 0 before the first one.
    """

    kind: ClassVar[str]  # as ``Stats`` counts it
    in_order: ClassVar[bool] = False  # the kernel ends it behind all requests that were sent before

    def __init__(self, resources: HeldResources, limit: int | None = None) -> None:
        """``limit`` is the most bytes that an event may have."""
        self.resources: HeldResources = resources
        self.limit: int | None = limit
        self.rename()

    def rename(self) -> None:
        """Begin anew: the kernel does not have it, under its new id."""
        self.id: str = uuid.uuid4().hex
        self.seen: int = 0
        self.is_asked: bool = False  # the kernel may have it
        self.is_known: bool = False  # the kernel has it
        self.damaged: int = 0  # times that the next event arrived damaged
        self.is_renewed: bool = False  # an event may have been lost since the kernel was asked

    def feed(self, content: dict[str, Any], buffers: list[Any]) -> None:
        """Take a message that the kernel sent to this resource."""
        event: Response | BridgeError
        try:
            sent, identity = parse_header(content["answer"]), as_text(content["event"])
            whose, _, text = identity.rpartition(":")
            if whose != self.id:  # its number says nothing of the events of this resource
                raise ValueError(f"{identity!r} is the event of another resource")
            number = int(text)
            if not self.is_next(number):
                return
            before, self.seen = self.seen, number
            parts = buffers or [base64.b64decode(sent.get("data", ""), validate=True)]
            header: ResponseHeader = {**sent, "data": "", "event": identity}
            inbox, at = self.inbox(header)
            add_chunk(header, inbox, at, parts)
            event = Response(header, EVENT, inbox)
        except ReplyLost as error:
            self.damaged += 1
            if self.damaged < SENDINGS:
                self.seen = before
                self.ask_again()
                return
            event = error
        except BridgeError as error:
            event = error
        except (KeyError, TypeError, ValueError) as error:
            event = ProtocolError(f"the kernel sent an event that cannot be read: {error!r}")
        self.damaged = 0
        self.take(event)

    def inbox(self, header: ResponseHeader) -> tuple[Inbox, int]:
        """Return where the frames that come with an event are stored, and at which offset."""
        return open_response(header, self.limit), 0

    @property
    def counts(self) -> bool:
        """Whether ``Stats`` counts it."""
        return self.is_known

    def is_next(self, number: int) -> bool:
        """Return whether to take the event of this number; one may be sent again in vain."""
        return number != self.seen

    def ask_again(self) -> None:
        """Have the kernel send an event again, which arrived damaged."""
        self.resources.renew_soon()

    @abstractmethod
    def take(self, event: Response | BridgeError) -> None:
        """Take an event, or why it could not be read. It may have to be fetched; see ``fetch``."""

    def leave(self) -> None:  # noqa: B027 - mostly there is nothing to do
        """Note that no caller waits for it any more."""

    def interrupt(self) -> None:  # noqa: B027 - mostly there is nothing to interrupt
        """Interrupt what the kernel does for it: the bridge closes."""

    def end(self) -> None:
        """Note that the kernel does not have it any more, or that the bridge is closed."""
        self.is_known = False

    def renew(self) -> None:
        """Note that the connection is a new one; events may have been lost with the old one."""
        self.is_renewed = not self.is_known
        self.resources.renew_soon()

    def note_lost(self, event: Response) -> None:
        """Note that the rest of an event cannot be fetched; the kernel sends it again if it can."""
        number = int(event.header["event"].rpartition(":")[2])
        if number == self.seen:
            self.seen = number - 1
            self.resources.renew_soon()


class HeldResources:
    """The remote resources of one bridge."""

    def __init__(self, transport: Transport, remote: Installation) -> None:
        self._transport, self._remote = transport, remote
        self._loop = asyncio.get_running_loop()
        self.owner: str = uuid.uuid4().hex
        self._renewal_due = asyncio.Event()
        self._renewing: asyncio.Task[None] | None = None
        self._is_closing = False
        # Resources that the kernel is to end, beside what it does, or behind all earlier requests.
        self._ending = Ending(transport, self._end_beside)
        self._ending_in_order = Ending(transport, self._end_in_order)

    @property
    def known(self) -> list[RemoteResource]:
        """The resources that have not been dropped."""
        listeners = self._transport.life.listeners.values()
        return [one for one in listeners if isinstance(one, RemoteResource)]

    def count(self) -> Counter[str]:
        """Return how many resources the kernel has for this bridge, by kind."""
        return Counter(resource.kind for resource in self.known if resource.counts)

    def fields(self, resource: RemoteResource) -> dict[str, Any]:
        """Return the fields of the request that makes a resource in the kernel."""
        self._ask(resource)
        lane = self._remote.lane.in_messages
        return {"resource": resource.id, "owner": self.owner, "lane": lane.name}

    def fields_of_kept(self, resource: RemoteResource) -> dict[str, Any]:
        """Return the fields of the request whose result stays in the kernel as a resource."""
        self._ask(resource)
        return {"kept": resource.id, "owner": self.owner}

    def _ask(self, resource: RemoteResource) -> None:
        if self._is_closing:  # it would stay in the kernel until the lease ends
            raise BridgeClosed(CLOSED)
        resource.is_asked = True

    def enter(self, resource: RemoteResource) -> None:
        """Listen to the events of a resource."""
        self._transport.life.listeners[resource.id] = resource

    def made(self, resource: RemoteResource) -> None:
        """Note that the kernel has a resource, and renew the lease from now on."""
        resource.is_known = True
        self.expect_events()
        if resource.damaged or resource.is_renewed:  # before this; only what is known is sent again
            resource.is_renewed = False
            self.renew_soon()
        if self._renewing is None or self._renewing.done():
            self._renewing = self._transport.spawn(self._renew())

    def expect_events(self) -> None:
        """Have the events of this bridge arrive, also where each has to be asked for."""
        self._transport.expect_events(self.owner, self._remote.info.epoch)

    def drop(self, resource: RemoteResource) -> None:
        """Stop listening to a resource, and have the kernel end it; once is enough."""
        if self._transport.life.listeners.pop(resource.id, None) is not None:
            if not self._transport.life.listeners and self._renewing is not None:
                self._renewing.cancel()
                self._renewing = None  # the next resource needs another task
            if not resource.is_asked or self._transport.life.state == "closed":
                return
            (self._ending_in_order if resource.in_order else self._ending).add(resource.id)

    def leave(self, resource: RemoteResource) -> None:
        """Drop a resource, for which no caller waits any more."""
        resource.leave()
        self.drop(resource)

    def leave_soon(self, resource: RemoteResource) -> None:
        """Do as ``leave`` in the event loop; the garbage collector calls this in any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the bridge with it
            self._loop.call_soon_threadsafe(self.leave, resource)

    async def close(self) -> None:
        """Have the kernel end all resources, and wait a moment for that.

        A Jupyter server drops what it has not passed on when the connection to it is closed.
        """
        self._is_closing = True
        for resource in self.known:
            resource.interrupt()
        asked = [resource.id for resource in self.known if resource.is_asked]
        asked += [*self._ending.waiting, *self._ending_in_order.waiting]
        if asked:
            closing = self._transport.spawn(self._end_now(asked))
            async with waited(Transport.timings.last_messages):
                await asyncio.wait([closing])

    async def _end_now(self, identities: list[str]) -> None:
        with contextlib.suppress(BridgeError):  # then the lease ends, or the kernel has ended
            await self._end_beside(identities)

    async def _end_beside(self, identities: list[str]) -> None:
        end = partial(self._remote.request_beside, "close", resources=identities)
        if await self._transport.until_replied(end) is None:
            await self._end_in_order(identities)

    async def _end_in_order(self, identities: list[str]) -> None:
        await self._remote.request_unordered("close", resources=identities)

    def renew_soon(self) -> None:
        """Renew the lease now: events may have been lost."""
        self._renewal_due.set()

    async def _renew(self) -> None:
        """Renew the lease regularly, and have lost events sent again."""
        pause, again = Transport.timings.renew_every, Transport.timings.renew_again
        while True:
            async with waited(pause):
                await self._renewal_due.wait()
            is_early = self._renewal_due.is_set()
            self._renewal_due.clear()
            timings = Transport.timings
            seen = {one.id: one.seen for one in self.known if one.is_known}
            try:
                response = await self._remote.request_unordered(
                    "renew", owner=self.owner, seen=seen
                )
            except KernelRestarted:  # the caller's next operation reports it
                gone = list(seen)
            except BridgeError:
                pause = again
                if not is_early:  # else that was no pause, and says nothing
                    again = min(2 * again, timings.renew_every)
                continue
            else:
                gone = as_strings(response.header.get("gone"))
            pause, again = timings.renew_every, timings.renew_again
            for identity in gone:
                resource = self._transport.life.listeners.get(identity)
                if resource is not None:
                    resource.end()

    async def fetch(
        self,
        event: Response,
        limit: int | None,
        *,
        trusted: bool,
        report: Callable[[int, int], object] | None = None,
        any_process: bool = False,
    ) -> Response:
        """Return a whole event; fetch those of its frames that did not come with it.

        ``report`` is called with bytes done and bytes in all, as they arrive. ``any_process`` is as
        in ``Call``.

        Raises:
            ReplyLost: the kernel does not keep the rest any more.
            BridgeError: the error that the event reports.
        """
        lane = self._remote.lane
        if event.is_partial:
            lane = await self._remote.ready(any_process=any_process)
        # The kernel keeps the frames of an event under the id of the event.
        header = self._remote.header("fetch", lane, id=event.header["event"])
        event.request = Request(header, limit=limit, trusted=trusted)
        if report is not None:
            event.request.report = report
            if event.is_partial and event.inbox is not None:
                report(event.inbox.received, event.inbox.total)
        return await lane.complete(event)


class Ending:
    """Resources that no caller waits for, until the kernel has ended them."""

    def __init__(
        self, transport: Transport, end: Callable[[list[str]], Coroutine[Any, Any, None]]
    ) -> None:
        """``end`` sends the request that ends resources."""
        self._transport, self._end = transport, end
        self.waiting: dict[str, None] = {}
        self._is_more = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def add(self, identity: str) -> None:
        """Have the kernel end a resource, soon."""
        self.waiting[identity] = None
        if len(self.waiting) > MOST_WAITING:
            del self.waiting[next(iter(self.waiting))]
        self._is_more.set()
        if self._task is None or self._task.done():
            self._task = self._transport.spawn(self._end_all())

    async def _end_all(self) -> None:
        """End all that waits; what waits at one moment ends by one request.

        A request may be lost with its connection. To end a resource again does no harm.
        """
        timings = self._transport.timings
        pause = timings.end_again
        while self.waiting:
            self._is_more.clear()
            identities = [*itertools.islice(self.waiting, MOST_ENDED)]
            try:
                await self._end(identities)
            except (KernelRestarted, KernelDied):  # they have ended with the kernel
                pass
            except BridgeError:
                async with waited(pause):
                    await self._is_more.wait()
                if not self._is_more.is_set():  # see ``_renew``
                    pause = min(2 * pause, timings.end_again_most)
                continue
            pause = timings.end_again
            for identity in identities:
                self.waiting.pop(identity, None)
