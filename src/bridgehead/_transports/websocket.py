"""Messages to a kernel behind a Jupyter server.

Rule: one websocket, connected again for as long as the server has the kernel. Requests to the
server itself belong to ``rest``, the packing of messages to ``subprotocols``.

Facts this file rests on, measured with Jupyter Server 2.21 and Kernel Gateway 3.0:

- The server accepts messages of 10 MiB at most, and closes the connection with 1009 beyond that;
  chunks of 8 MiB pass.
- A kernel may reply while no client is connected. The server keeps these replies for the session
  that was connected last, if that was the only one; otherwise they are lost. So a request that the
  remote part runs once, however often it arrives, is sent again. For a cell, only a later reply
  proves that the cell's own reply is lost.
- A server that passes messages on to another one negotiates no subprotocol, and a binary message
  silently ends its connection to that other server. So another connection tries whether a binary
  message passes.
- The kernel may be restarted while no client is connected, and the server says nothing of it: of
  40 cells that waited for the connection, 40 ran in the new process. So nothing is sent to shell
  over a new connection before the kernel has answered on control.
- The server reads nothing of a new connection until its own question to the kernel is answered. If
  the connection is replaced before that, the server then takes what it reads of the old one for
  messages of the other subprotocol, and computes for 23 s for each, while it serves no client. A
  ping is no message. So nothing else is sent over a new connection before the server has answered
  one, unless no ping was ever answered. (``_passes_binary`` has a connection of its own, with a
  session of its own, which no other one replaces.)
- No heartbeat reaches the client, and no pending request fails when the kernel dies. The control
  channel answers while a cell runs, and each process of a kernel has a session of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import socket as sockets
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI, WebSocketException

from bridgehead._errors import (
    RESTARTED_MEANWHILE,
    BridgeError,
    KernelDied,
    KernelNotFound,
    KernelRestarted,
    PayloadTooLarge,
    TransportError,
)
from bridgehead._transports.base import Transport
from bridgehead._transports.capabilities import Capabilities
from bridgehead._transports.dispatch import Reconnected
from bridgehead._transports.gate import Gate
from bridgehead._transports.request_table import Pending
from bridgehead._transports.rest import Rest, server_away, unreachable
from bridgehead._transports.subprotocols import BINARY, LEGACY, V1, Subprotocol
from bridgehead._transports.tasks import run_all, waited
from bridgehead._transports.timings import Timings

# Bytes of frames in a message, in both directions. A server accepts 10 MiB. In chunks of 8 MiB,
# 256 MB took 1.2 to 1.4 times as long, in chunks of 2 MiB 1.2 times.
CHUNK = 4 << 20
# Bytes of a message from the server, which sends outputs whole. Without a limit, one message of a
# hostile server would take all memory.
MESSAGE = 256 << 20
YIELD_EVERY = 16  # messages after which the reader lets other tasks run
QUICK_ACK: int | None = getattr(sockets, "TCP_QUICKACK", None)
TOO_BIG = 1009  # the close code of a server that refuses a message because of its size


log = logging.getLogger("bridgehead.websocket")
log.setLevel(logging.INFO)  # at DEBUG, websockets logs the token


class _CountingConnection(ClientConnection):
    """Counts arrivals of data: a message that takes a minute is a sign of life all the time."""

    arrivals = 0

    def data_received(self, data: bytes) -> None:
        self.arrivals += 1
        super().data_received(data)


class _ConnectWithoutRedirects(connect):
    """Follows no redirects, as ``rest`` does not: they would take the token elsewhere."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


class WebsocketTransport(Transport):
    """A kernel of a server. With ``owned``, closing ends the kernel."""

    name = "websocket"
    no_proof = "the kernel is behind a server"  # which may run on another machine
    capabilities = Capabilities(direct=False, resumable=True, max_send=CHUNK, max_receive=CHUNK)

    def __init__(self, rest: Rest, kernel_id: str, *, owned: bool) -> None:
        super().__init__()
        self.rest = rest
        self.owned = owned  # until the server has ended the kernel
        self.url: str = rest.url
        self.kernel_id: str = kernel_id
        if rest.stays_here:
            self.capabilities = replace(self.capabilities, digest="crc32")
        self._session = uuid.uuid4().hex
        self._subprotocol = BINARY
        self._socket: _CountingConnection | None = None
        self._is_read = False  # by the server
        self._answers_pings = False  # the server, and what is between
        self._gate = Gate(self.life)  # also shut while the server starts another process
        self._asking: asyncio.Task[None] | None = None
        self._restarting = False

    # ------------------------------------------------------------ opening and closing

    async def open(self, timeout: float, asked: float | None = None) -> None:
        """Connect, and wait until the kernel answers.

        Args:
            timeout: seconds.
            asked: the caller's timeout, which the error names, if ``timeout`` is what is left.

        Raises:
            KernelNotFound: the server has no such kernel, or it does not answer.
            BridgeError: the server, or the connection to it, has a fault.
        """
        try:
            async with asyncio.timeout(timeout):
                self._socket = await self._connect_slowly()
                self._subprotocol = _subprotocol_of(self._socket)
                self.spawn(self._run(self._socket))
                await self._until_it_answers()
                if self._subprotocol is LEGACY:
                    # The kernel answers by now, so no reply means that the message did not pass.
                    passes = await self._passes_binary()
                    self.capabilities = replace(self.capabilities, binary=passes)
                self.life.state = "busy"  # until it answers on shell, behind any running cell
                self.spawn(self._pulse())
        except TimeoutError:
            raise KernelNotFound(
                f"the kernel {self.kernel_id} of {self.url} did not answer within "
                f"{timeout if asked is None else asked:g} s: it is starting, or stuck"
            ) from None

    async def _connect_slowly(self) -> _CountingConnection:
        """Connect, however long the server waits for the kernel."""
        while True:
            try:
                return await self._connect(self._session)
            except TransportError as error:
                if not (error.may_recover and isinstance(error.__cause__, TimeoutError)):
                    raise

    async def _connect(self, session: str) -> _CountingConnection:
        """Connect once; an error has ``may_recover`` if a later attempt may succeed."""
        server = self.url.replace("http", "ws", 1)
        address = f"{server}api/kernels/{quote(self.kernel_id, safe='')}/channels"
        try:
            connection = await _ConnectWithoutRedirects(
                f"{address}?session_id={session}",
                additional_headers=self.rest.headers,
                subprotocols=[V1],  # type: ignore[list-item]
                ssl=self.rest.trusted,
                proxy=None if self.rest.stays_here else True,
                logger=log,
                create_connection=_CountingConnection,
                ping_interval=self.timings.websocket_ping,
                ping_timeout=None,  # see _abort_if_still
                compression=None,  # takes longer than sending uncompressed (measured)
                max_size=MESSAGE,
                open_timeout=self.timings.websocket_open,
                close_timeout=self.timings.websocket_close,
            )
            assert isinstance(connection, _CountingConnection)
            return connection
        except InvalidStatus as error:
            status = error.response.status_code
            if status in (401, 403):
                raise await self.rest.refusal(str(status)) from None
            if status == 404:
                raise self._unknown() from None
            raise server_away(
                f"{address} refuses a websocket with status {status}; try again later"
            ) from None
        except InvalidURI as error:
            raise KernelNotFound(f"{address} is not a valid address: {error}") from error
        except (OSError, EOFError, TimeoutError, WebSocketException) as error:
            raise unreachable(self.url, error) from error

    def _unknown(self) -> KernelNotFound:
        return KernelNotFound(
            f"{self.url} has no kernel {self.kernel_id}: it has ended, or the id is wrong; "
            "`bridgehead ls URL` lists the kernels of a server"
        )

    async def _passes_binary(self) -> bool:
        """Return whether a binary message gets a reply; a separate connection tries it."""
        probe = await self._connect(uuid.uuid4().hex)
        try:
            request = self.message("kernel_info_request", {})
            async with asyncio.timeout(self.timings.binary_reply):
                await probe.send(self._subprotocol.pack("control", request, [b"\0"]))
                while True:
                    _, message = self._subprotocol.unpack(await probe.recv())
                    if message["parent_header"].get("msg_id") == request["header"]["msg_id"]:
                        return True
        except (TimeoutError, ConnectionClosed, BridgeError):
            return False
        finally:
            await _close(probe, self.timings)

    async def nudge(self) -> None:
        """Make another connection, for which the server makes another one to the kernel's shell."""
        with contextlib.suppress(BridgeError):
            await _close(await self._connect(uuid.uuid4().hex), self.timings)

    async def close(self) -> None:
        await run_all(super().close, self._close_socket, self._end_kernel, self.rest.aclose)

    @property
    def is_released(self) -> bool:
        return super().is_released and not self.owned

    async def _close_socket(self) -> None:
        if self._socket is not None:
            await _close(self._socket, self.timings)

    async def _end_kernel(self) -> None:
        if not self.owned:
            return
        try:
            await self.rest.end(self.kernel_id)
        except TransportError as error:
            if not error.may_recover:
                raise
            # The caller can do nothing about a server that has ended before.
            logging.getLogger("bridgehead").warning(
                "the kernel %s may still run: %s; aclose() tries again to end it",
                self.kernel_id,
                error,
            )
        else:
            self.owned = False

    # ------------------------------------------------------------ sending and receiving

    def message(self, message_type: str, content: dict[str, Any]) -> dict[str, Any]:
        message = super().message(message_type, content)
        message["header"] |= {
            "username": "bridgehead",
            "session": self._session,
            "date": datetime.datetime.now(datetime.UTC).isoformat(),
            "version": "5.4",
        }
        return {**message, "parent_header": {}, "metadata": {}}

    async def send(self, channel: str, message: dict[str, Any], buffers: Sequence[Any]) -> None:
        identity, generation = message["header"]["msg_id"], self.life.generation
        gate = self._gate
        asks = channel == "control" and message["header"]["msg_type"] == "kernel_info_request"
        while (socket := self._socket) is None or not (self._is_read and (asks or gate.is_open)):
            if self.life.is_unresponsive and not asks:
                self.life.check_responsive()
            await gate.wait(identity)
            if generation != self.life.generation:
                self.life.check_same(generation)
        if asks:
            gate.asked(identity)
        data = self._subprotocol.pack(channel, message, buffers)
        if identity in self.dispatcher.pending:
            self.dispatcher.pending[identity].nbytes = len(data)
        # If the connection breaks, ``_resume`` repeats or inquires on the next connection.
        with contextlib.suppress(ConnectionClosed):
            await socket.send(data)

    async def _run(self, socket: _CountingConnection) -> None:
        """Read from one connection after another, for as long as the transport lives."""
        while True:
            guard = self.spawn(_abort_if_still(socket, self.timings))
            waiting = self.spawn(self._until_it_is_read(socket))
            await self._read(socket)
            guard.cancel()
            waiting.cancel()
            received = socket.protocol.close_rcvd  # None if this end closed, or no end did
            lost = self._disconnected(None if received is None else int(received.code))
            another = await self._reconnect(_why(socket))
            if another is None:
                return
            self._socket = socket = another
            self._subprotocol = _subprotocol_of(socket)
            self.spawn(self._resume(lost))

    async def _until_it_is_read(self, socket: _CountingConnection) -> None:
        """Let messages pass when the server reads what comes over this connection."""
        self._gate.expect_answer()
        seconds = None if self._answers_pings else self.timings.websocket_open
        with contextlib.suppress(TimeoutError):  # a proxy may answer no ping
            async with asyncio.timeout(seconds):
                try:
                    await (await socket.ping())
                except ConnectionClosed:
                    return
                self._answers_pings = True
        self._is_read = True
        self._gate.wake()

    async def _read(self, socket: _CountingConnection) -> None:
        """Handle the messages that arrive, until the connection is closed."""
        count = 0
        while True:
            try:
                _acknowledge(socket)
                data = await socket.recv()
            except ConnectionClosed:
                return
            except MemoryError:
                self.unreadable += 1
                await asyncio.sleep(0)
                continue
            try:
                self._handle(*self._subprotocol.unpack(data))
            except Exception:  # noqa: BLE001
                # A damaged or unknown message must only harm its own request.
                self.unreadable += 1
            count += 1
            if count % YIELD_EVERY == 0:
                await asyncio.sleep(0)

    def _handle(self, channel: str, message: dict[str, Any]) -> None:
        header, content = message["header"], message["content"]
        if channel == "control" and header["msg_type"] == "kernel_info_reply":
            question = message["parent_header"].get("msg_id")
            self._kernel_answered(question, str(header.get("session")))
        elif channel == "shell" and header["msg_type"].endswith("_reply"):
            self._reply_arrived(str(header.get("session")))
        elif header["msg_type"] == "status" and not self._restarting:
            if content.get("execution_state") == "restarting":
                self._replaced(
                    "the kernel's process died, and the server started another; the request may "
                    "have run in the old one, and the namespace is new"
                )
            elif content.get("execution_state") == "dead":
                self._lost(self._death("it died, and the server does not restart it"), "dead")
        self.dispatcher.received(channel, message)

    # ------------------------------------------------------------ a connection that breaks

    def _disconnected(self, code: int | None) -> list[Pending]:
        """Record that the connection is down, and return the requests that were sent over it."""
        self._socket, self._is_read = None, False
        self._gate.shut()
        unsent = self._gate.waiting
        lost = [one for one in self.dispatcher.pending.values() if one.id not in unsent]
        for pending in lost:
            pending.cut = pending.repeatable
        if code == TOO_BIG and lost:
            # The server does not say its limit. Only the largest message is certain to be over
            # it, and certain not to have run.
            largest = max(lost, key=lambda pending: pending.nbytes)
            self.dispatcher.settle(largest.id, self._too_big(largest.nbytes))
        return lost

    def _too_big(self, nbytes: int) -> PayloadTooLarge:
        return PayloadTooLarge(
            f"{self.url} refused a message of {nbytes:,} bytes and closed the connection; "
            "push data instead of writing it into a cell, use lane='inline', whose messages are "
            "smaller, or have the server started with a larger websocket_max_message_size in its "
            "ServerApp.tornado_settings",
            bytes=nbytes,
        )

    async def _reconnect(self, why: str) -> _CountingConnection | None:
        """Connect again, however long it takes; report to waiters after a while.

        Returns None if the server has no such kernel any more.
        """
        started = asyncio.get_running_loop().time()
        pauses = iter(self.timings.reconnect_pauses)
        while True:
            await asyncio.sleep(next(pauses, self.timings.reconnect_pauses[-1]))
            try:
                if await self.rest.kernel(self.kernel_id) is not None:
                    return await self._connect(self._session)
                self.connection_lost(self._death("the server no longer has it"), "dead")
                return None
            except Exception as error:  # noqa: BLE001 - any error: this task must go on reading
                reason = str(error) or type(error).__name__
            elapsed = asyncio.get_running_loop().time() - started
            if elapsed > self.timings.reconnect_within and not self.life.is_lost:
                self.connection_lost(self._unreachable(why, reason), "unresponsive")

    def _unreachable(self, why: str, reason: str) -> Callable[[], BridgeError]:
        return lambda: TransportError(
            f"the connection to {self.url} {why}, and a new one has failed for "
            f"{self.timings.reconnect_within:g} s: {reason}. The bridge goes on when the server "
            "answers again"
        )

    async def _resume(self, lost: Sequence[Pending]) -> None:
        """Wait until a process answers, then handle the requests of the broken connection."""
        await self._until_it_answers()
        for pending in lost:
            if pending.slot and not pending.repeatable:
                # The reply may still arrive, before the answer to this question.
                self.dispatcher.inquiry.start(pending.route)
            else:
                self.dispatcher.settle(
                    pending.id, Reconnected("the connection broke and was made again")
                )
        for listener in list(self.life.listeners.values()):
            listener.renew()

    # ------------------------------------------------------------ signs of life

    async def _until_it_answers(self) -> None:
        """Ask on the control channel until the kernel answers, even for hours."""
        patience = self.timings.first_reply
        while True:
            with contextlib.suppress(BridgeError, TimeoutError):
                self.kernel_info = await self.dispatcher.control(
                    "kernel_info_request", {}, patience
                )
                if self._gate.is_open:  # else this was the answer to an earlier question
                    return
            await asyncio.sleep(self.timings.ask_again_after)
            patience = min(2 * patience, self.timings.longest_reply)

    @property
    def process(self) -> str | None:
        return self._gate.process or None

    def _kernel_answered(self, question: object, process: str) -> None:
        """Record that the kernel answers, from the process with this session id."""
        gate = self._gate
        if not gate.counts(question):
            return
        if gate.process not in (None, process) and not self._restarting:
            self._replaced(RESTARTED_MEANWHILE)
        if self.life.is_lost and not self._restarting:
            self.life.connection_made()
        if not gate.is_open and self.life.state in ("starting", "restarting"):
            self.life.state = "idle"  # otherwise only the next request's status would say so
        gate.open(process)

    def _reply_arrived(self, process: str) -> None:
        """Fail all calls if another process replied than the one that they were meant for.

        The server keeps messages for a kernel that it is restarting, and gives them to the new
        process. That is known only now.
        """
        gate = self._gate
        if gate.process in (None, process) or process in gate.former or self._restarting:
            return
        self._replaced(RESTARTED_MEANWHILE)

    def _replaced(self, reason: str) -> None:
        """Record that another process runs, or will soon; new requests wait for it."""
        self._lost(lambda: KernelRestarted(reason), "restarting")
        self.life.connection_made()
        self.life.state = "restarting"

    def _lost(self, why: Callable[[], BridgeError], state: str) -> None:
        """Record that the kernel's process has ended, and ask until another one answers."""
        self._gate.shut(forget=True)
        self.connection_lost(why, state)
        if self._asking is None or self._asking.done():
            self._asking = self.spawn(self._until_it_answers())

    def connection_lost(self, why: Callable[[], BridgeError], state: str) -> None:
        super().connection_lost(why, state)
        self._gate.lost()

    def _death(self, reason: str) -> Callable[[], BridgeError]:
        by_client = "; another client had asked it to shut down" if self.life.shut_down else ""
        return lambda: KernelDied(f"the kernel is lost: {reason}{by_client}")

    async def _pulse(self) -> None:
        """Ask for a sign of life while a caller waits: nothing else reports a dead kernel.

        If the kernel answers, the session of its process is compared. If not, the server is asked.
        """
        while True:
            await asyncio.sleep(self.timings.beat_every)
            if not self.has_waiters or self._socket is None or self.life.is_lost:
                continue
            with contextlib.suppress(TimeoutError, BridgeError):
                await self.dispatcher.control("kernel_info_request", {}, self.timings.beat_every)
                continue
            with contextlib.suppress(BridgeError):
                kernel = await self.rest.kernel(self.kernel_id)
                if kernel is None or kernel.get("execution_state") == "dead":
                    reason = "the server no longer has it, or reports it as dead"
                    self._lost(self._death(reason), "dead")

    # ------------------------------------------------------------ interrupt and restart

    async def interrupt(self) -> None:
        """Interrupt through the server, which owns the kernel's process."""
        self.life.check()
        await self.rest.ask_kernel(self.kernel_id, "interrupt")

    async def replace(self, timeout: float) -> None:
        self._restarting = True
        try:
            self._gate.shut()
            self.connection_lost(lambda: KernelRestarted(RESTARTED_MEANWHILE), "restarting")
            try:
                await self.rest.ask_kernel(self.kernel_id, "restart", timeout)
            except BridgeError as error:
                self._lost(self._death(f"it could not be restarted: {error}"), "dead")
                raise
            self.life.connection_made()
            self.life.state = "starting"
            self._gate.shut(forget=True)  # an answer of the old process does not count
            await self._until_it_answers()
        finally:
            self._restarting = False


async def _abort_if_still(socket: _CountingConnection, timings: Timings) -> None:
    """Abort a connection on which nothing moves, for instance because a proxy keeps it open.

    Nothing else would end it. Each ping brings a pong, unless the ping waits behind a lot of data
    that is still to be sent; then the size of the send buffer shows that data moves. Checks are
    counted, not seconds: the event loop may have been blocked for seconds.
    """
    still, seen, left = 0, 0, 0
    while still * timings.moving_every < timings.moving_within:
        await asyncio.sleep(timings.moving_every)
        before = seen, left
        seen, left = socket.arrivals, socket.transport.get_write_buffer_size()
        still = still + 1 if seen == before[0] and left >= before[1] else 0
    socket.transport.abort()


async def _close(socket: _CountingConnection, timings: Timings) -> None:
    """Close a connection, even one that accepts no more data."""
    async with waited(timings.websocket_close + timings.websocket_abort):
        await socket.close()
    socket.transport.abort()


def _acknowledge(socket: _CountingConnection) -> None:
    """Acknowledge received data at once, if the system can (Linux).

    The system soon resets this option, so it is set for each message. A server sends a reply only
    when the message before it is acknowledged, and systems delay that by 40 ms: a small push took
    48 ms instead of 8.
    """
    tcp_socket = socket.transport.get_extra_info("socket")
    if QUICK_ACK is not None and tcp_socket is not None:
        with contextlib.suppress(OSError):
            tcp_socket.setsockopt(sockets.IPPROTO_TCP, QUICK_ACK, 1)


def _subprotocol_of(socket: ClientConnection) -> Subprotocol:
    return BINARY if socket.subprotocol == V1 else LEGACY


def _why(socket: _CountingConnection) -> str:
    reason = f" ({socket.close_reason})" if socket.close_reason else ""
    return f"was closed with {socket.close_code}{reason}"
