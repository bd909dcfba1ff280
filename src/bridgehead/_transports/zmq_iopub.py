"""The iopub socket of one kernel, which all bridges of an event loop on that kernel share.

Rule: whose messages arrive, and that each is read, checked and parsed once. What is read says
``subscription``; what a message means, the dispatcher of each bridge.

With a socket for each bridge, every one of them read each status of the kernel: to open the 200th
took four times as long as the tenth, and a cell of another bridge ten times as long (measured).

The socket has an unlimited receive queue: with ZeroMQ's default of 1,000, a slow reader got 7,500
of 20,000 messages. It does without ``ZMQ_IMMEDIATE``, which drops messages that arrived and were
not read: of a flood on a SUB socket, whose connection broke eight times a second, 1,187 messages
were read in 40 s, and 66,128 without the option.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from typing import Any, Protocol
from weakref import WeakValueDictionary

from jupyter_client.asynchronous.client import AsyncKernelClient

from bridgehead._transports.dispatch import Dispatcher
from bridgehead._transports.messages import Message
from bridgehead._transports.signed_messages import SignedMessages, split
from bridgehead._transports.state import KernelState
from bridgehead._transports.subscription import OutputSubscription
from bridgehead._transports.tasks import Tasks
from bridgehead._transports.timings import Timings
from bridgehead._transports.zmq_context import MonitoredContext, connect_anew
from bridgehead._transports.zmq_reader import SocketReader, read_in_turns

FOR_ALL = "status", "shutdown_reply"  # the types of messages that say something of the kernel


class IopubReader(Protocol):
    """A transport, as far as it reads iopub."""

    session: Any
    life: KernelState
    dispatcher: Dispatcher
    unreadable: int

    def take_published(self, message: Message | None, in_subshell: bool) -> None: ...


class IopubSocket:
    """The socket, from its first reader to its last.

    The context of the first reader holds it, and ends when that reader and the socket are closed.
    """

    def __init__(
        self, client: AsyncKernelClient, context: MonitoredContext, timings: Timings
    ) -> None:
        self._context, self._timings = context, timings
        self._loop = asyncio.get_running_loop()
        self._signed = SignedMessages(client.session)
        self._readers: dict[str, IopubReader] = {}  # by session id
        self._streaming: set[IopubReader] = set()  # those with a stream of all messages
        self._silent_since: float | None = None  # when the first reply without iopub arrived
        self._tasks, self._leaving = Tasks(), threading.Lock()
        self._reader: SocketReader | None = None
        self._socket: Any = client.connect_iopub()
        self.subscription = OutputSubscription(timings, lambda: bool(self._with_streams()))
        self.subscription.begin(self._socket)
        try:
            self._reader = SocketReader(self._socket, self._arrived, timings)
        except NotImplementedError:  # asyncio's default loop on Windows watches no sockets
            self._tasks.keep(lambda: read_in_turns(self._socket, self._arrived), timings)
        except BaseException:
            # A context that is dropped with an open socket waits for it without end.
            self._socket.close(linger=0)
            raise
        context.used_by(self)

    @property
    def is_closed(self) -> bool:
        """Whether the last reader has left."""
        return bool(self._socket.closed)

    def add(self, reader: IopubReader) -> None:
        """Have a reader get what arrives from now on."""
        self._readers[reader.session.session] = reader

    async def leave(self, reader: IopubReader) -> None:
        """Have a reader get nothing more; close the socket with the last one."""
        with self._leaving:  # several threads close bridges that were dropped with their loop
            self._streaming.discard(reader)
            self._readers.pop(reader.session.session, None)
            if self._readers:
                return
            if not self.is_closed:  # else this is tried again
                if self._reader is not None:
                    self._reader.close()
                self._socket.disable_monitor()  # first, as in ``ZmqTransport``
                self._socket.close(linger=0)
        await self._tasks.cancel()
        await self._context.left_by(self)

    def stream_to(self, reader: IopubReader) -> None:
        """Have a reader get all messages, for as long as its dispatcher has streams."""
        self._streaming.add(reader)
        self.subscription.widen()

    def note_reply(self) -> None:
        """Note a reply. A kernel publishes the beginning and the end of each request.

        If nothing came for seconds, the connection is gone, which no event reports.
        """
        now = time.monotonic()
        self._silent_since = self._silent_since or now
        if now - self._silent_since > self._timings.iopub_silence:
            self._silent_since = None
            self.connect_anew()

    def connect_anew(self) -> None:
        """Connect to the address again."""
        connect_anew(self._socket)
        self.subscription.again()
        if self._reader is not None:
            self._reader.read()

    def _with_streams(self) -> set[IopubReader]:
        if self._streaming:
            self._streaming = {one for one in self._streaming if one.dispatcher.has_streams}
        return self._streaming

    def _arrived(self, frames: list[Any]) -> None:
        readers = list(self._readers.values())
        try:
            topic, frames = split(frames)
            if not self.subscription.take_topic(topic):
                return
            message = self._signed.read(frames)
            self._silent_since = None
            # The parent of an ``iopub_welcome`` from xeus is null.
            kind, parent = message["header"]["msg_type"], message["parent_header"] or {}
            parsed: dict[str, Message | None] = {}  # by trust
            if kind == "iopub_welcome":
                self.subscription.welcomed(message["content"].get("subscription"))
            else:
                if kind not in FOR_ALL and parent.get("session"):
                    wanting = {self._readers.get(parent["session"]), *self._with_streams()}
                    readers = [one for one in wanting if one is not None]
                trusts = {one.life.trust for one in readers}
                parsed = {trust: Message.parse(message, trust) for trust in trusts}
            in_subshell = bool(parent.get("subshell_id"))
        except Exception:  # noqa: BLE001 - a forged, damaged or unknown message
            for one in readers:
                one.unreadable += 1
            return
        self._give(iter([(one, parsed.get(one.life.trust)) for one in readers]), in_subshell)

    def _give(
        self, shares: Iterator[tuple[IopubReader, Message | None]], in_subshell: bool
    ) -> None:
        """Give each reader its message, even if an interrupt comes while one of them takes it."""
        try:
            for one, message in shares:
                try:
                    one.take_published(message, in_subshell)
                except Exception:  # noqa: BLE001 - it harms only what it belongs to
                    one.unreadable += 1
        except BaseException:
            self._loop.call_soon(self._give, shares, in_subshell)
            raise


_sockets: WeakValueDictionary[object, IopubSocket] = WeakValueDictionary()


def shared_iopub(
    reader: IopubReader, client: AsyncKernelClient, context: MonitoredContext, timings: Timings
) -> IopubSocket:
    """Return the socket for the kernel at a client's address, with this reader.

    Raises:
        zmq.ZMQError: it cannot be made.
    """
    session = client.session
    address = (
        # A forked child has no use for its parent's sockets, nor another loop for those of this.
        *(os.getpid(), id(asyncio.get_running_loop()), client.transport, client.ip),
        *(client.iopub_port, session.key, session.signature_scheme),
        *(client.curve_publickey, client.curve_secretkey),
    )
    socket = _sockets.get(address)
    if socket is None or socket.is_closed:
        socket = _sockets[address] = IopubSocket(client, context, timings)
    socket.add(reader)
    return socket
