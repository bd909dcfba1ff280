"""Messages to a kernel behind a Jupyter server, over one websocket.

Rule: the connection, made again for as long as there is a kernel at its other end; what the
server itself is asked is ``rest``'s, and how a message is packed ``subprotocols``'.

Facts this file rests on, measured with Jupyter Server 2.21 and Kernel Gateway 3.0:

- The server takes messages of 10 MiB at most, and closes the connection with 1009 beyond;
  pieces of 8 MiB pass.
- What a kernel answers while nobody is connected is kept and sent later only for the session
  that was there last, alone; else it is lost. So whatever the loader does once, however
  often it comes, is sent again; of a cell only a later reply proves that its own is lost.
- A server that passes messages on to another one negotiates no subprotocol, and a binary message
  silently ends its own connection there: whether one passes is tried on another connection.
- No heartbeat reaches the near side, and nothing pending fails when the kernel dies. The control
  channel answers beside a running cell, and each process of a kernel has a session of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import socket as sockets
import uuid
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI, WebSocketException

from bridgehead._errors import (
    BridgeError,
    KernelDied,
    KernelNotFound,
    KernelRestarted,
    PayloadTooLarge,
    TransportError,
)
from bridgehead._transports.base import Transport
from bridgehead._transports.dispatch import Pending, Reconnected
from bridgehead._transports.rest import Rest, ServerUnreachable, unreachable
from bridgehead._transports.subprotocols import BINARY, LEGACY, V1, Subprotocol
from bridgehead._transports.tasks import waited

CHUNK = 8 << 20  # bytes of frames in a message to the kernel; a server takes 10 MiB
BACK = 4 << 20  # and back: 256 MB took 0.75 s in pieces of 4 MiB, 1.1 s in pieces of 8
PULSE_EVERY = 1.0  # s between two questions to the control channel, while somebody waits
PAUSES = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0)  # s before another connection is tried; then the last
RECONNECT_WITHIN = 30.0  # s after which whoever waits is told; tried it is for ever
ANSWER_EVERY = 0.5  # s between two questions to a kernel that is starting
PROBE_WAIT = 3.0  # s for a binary message to be answered, on a connection of its own
OPEN_WAIT = 60.0  # s; the server waits for a kernel that is starting
CLOSE_WAIT = 2.0  # s for the server to close the connection, too
STILL = 40  # looks, one each second, after which a connection on which no byte moves is broken
YIELD_EVERY = 16  # messages after which the reader lets others run
QUICK: int | None = getattr(sockets, "TCP_QUICKACK", None)
TOO_BIG = 1009  # the code with which a server closes the connection on a message it won't take


log = logging.getLogger("bridgehead.websocket")
log.setLevel(logging.INFO)  # below, websockets writes the token into it


class _CountingConnection(ClientConnection):
    """Counts what arrives: a message that takes a minute is a sign of life all along."""

    arrivals = 0

    def data_received(self, data: bytes) -> None:
        self.arrivals += 1
        super().data_received(data)


class _ConnectWithoutRedirects(connect):
    """As ``rest`` does, it goes nowhere else than it was told to."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


class WebsocketTransport(Transport):
    """A kernel of a server; ``owned`` says that closing ends it."""

    name = "websocket"
    ours = False  # the server's machine may be another one, and what is behind it as well
    direct = False
    resumable = True
    max_send, max_receive = CHUNK, BACK

    def __init__(self, rest: Rest, kernel_id: str, *, owned: bool) -> None:
        super().__init__()
        self.rest, self.owned = rest, owned
        self.url: str = rest.url
        self.kernel_id: str = kernel_id
        if rest.stays_here:
            self.digest = "crc32"
        self._session = uuid.uuid4().hex
        self._way = BINARY
        self._socket: _CountingConnection | None = None
        self._absent = False  # the process is gone, and another one on its way
        self._changed = asyncio.Event()  # whether a message can be sent; made anew each time
        self._parked: set[str] = set()  # messages that wait for a connection
        self._process: str | None = None  # the session of the kernel's process
        self._asking: asyncio.Task[None] | None = None
        self._restarting = False

    # ------------------------------------------------------------ opening and closing

    async def open(self, timeout: float) -> None:
        """Connect, and wait until the kernel answers.

        Raises:
            KernelNotFound: the server has no such kernel, or it does not answer.
            BridgeError: what is wrong with the server, or the way to it.
        """
        try:
            async with asyncio.timeout(timeout):
                self._socket = await self._connect(self._session)
                self._way = _way_of(self._socket)
                self.spawn(self._live(self._socket))
                await self._until_it_answers()
                if self._way is LEGACY:  # only now is it known that silence means no
                    self.binary = await self._passes_binary()
                self.life.state = "busy"  # until it answers on shell, where cells take their turn
                self.spawn(self._pulse())
        except TimeoutError:
            raise KernelNotFound(
                f"the kernel {self.kernel_id} of {self.url} did not answer within "
                f"{timeout:g} s: it is starting, or stuck"
            ) from None

    async def _connect(self, session: str) -> _CountingConnection:
        """One connection; raises ``ServerUnreachable`` where a later attempt may succeed."""
        where = self.url.replace("http", "ws", 1)
        address = f"{where}api/kernels/{quote(self.kernel_id, safe='')}/channels"
        try:
            made = await _ConnectWithoutRedirects(
                f"{address}?session_id={session}",
                additional_headers=self.rest.headers,
                subprotocols=[V1],  # type: ignore[list-item]
                ssl=self.rest.trusted,
                proxy=None if self.rest.stays_here else True,
                logger=log,
                create_connection=_CountingConnection,
                ping_timeout=None,  # see _break_if_still
                compression=None,  # it takes longer than sending, measured
                max_size=None,
                open_timeout=OPEN_WAIT,
                close_timeout=CLOSE_WAIT,
            )
            assert isinstance(made, _CountingConnection)
            return made
        except InvalidStatus as error:
            status = error.response.status_code
            if status in (401, 403):
                raise self.rest.refused(str(status)) from None
            if status == 404:
                raise self._unknown() from None
            raise ServerUnreachable(f"{address} answers {status} to a websocket") from None
        except InvalidURI as error:
            raise KernelNotFound(f"{address} is no address: {error}") from error
        except (OSError, EOFError, TimeoutError, WebSocketException) as error:
            raise unreachable(self.url, error) from error

    def _unknown(self) -> KernelNotFound:
        return KernelNotFound(f"{self.url} has no kernel {self.kernel_id} (any more)")

    async def _passes_binary(self) -> bool:
        """Whether a binary message is answered, on a connection that nobody else needs."""
        probe = await self._connect(uuid.uuid4().hex)
        try:
            asked = self.message("kernel_info_request", {})
            async with asyncio.timeout(PROBE_WAIT):
                await probe.send(self._way.pack("control", asked, [b"\0"]))
                while True:
                    _, message = self._way.unpack(await probe.recv())
                    if message["parent_header"].get("msg_id") == asked["header"]["msg_id"]:
                        return True
        except (TimeoutError, ConnectionClosed, BridgeError):
            return False
        finally:
            await _closed(probe)

    async def close(self) -> None:
        await super().close()
        try:
            if self._socket is not None:
                await _closed(self._socket)
            if self.owned:
                # Whoever closes can do nothing about a server that went before.
                with contextlib.suppress(ServerUnreachable):
                    await self.rest.end(self.kernel_id)
        finally:
            await self.rest.aclose()

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
        while (socket := self._socket) is None or (self._absent and channel == "shell"):
            self._parked.add(identity)
            try:
                await self._changed.wait()
            finally:
                self._parked.discard(identity)
            if generation != self.life.generation:
                self.life.check()
                raise KernelRestarted("the kernel's process was replaced; nothing was sent")
        data = self._way.pack(channel, message, buffers)
        if identity in self.dispatcher.pending:
            self.dispatcher.pending[identity].nbytes = len(data)
        # What a broken connection took along is told, or sent again, when there is another.
        with contextlib.suppress(ConnectionClosed):
            await socket.send(data)

    async def _live(self, socket: _CountingConnection) -> None:
        """Read for as long as the transport lives, from one connection after the other."""
        while True:
            guard = self.spawn(_break_if_still(socket))
            await self._read(socket)
            guard.cancel()
            lost = self._cut(socket.close_code)
            another = await self._reconnect(_why(socket))
            if another is None:
                return
            self._socket = socket = another
            self._way = _way_of(socket)
            self._tell_change()
            self.spawn(self._resume(lost))

    async def _read(self, socket: _CountingConnection) -> None:
        """Take what arrives, until the connection is closed."""
        count = 0
        while True:
            try:
                _acknowledge(socket)
                data = await socket.recv()
            except ConnectionClosed:
                return
            try:
                self._take(*self._way.unpack(data))
            except Exception:  # noqa: BLE001
                # A damaged or unknown message hurts nobody but its own request.
                self.bad += 1
            count += 1
            if count % YIELD_EVERY == 0:
                await asyncio.sleep(0)

    def _take(self, channel: str, message: dict[str, Any]) -> None:
        header, content = message["header"], message["content"]
        if channel == "control" and header["msg_type"] == "kernel_info_reply":
            self._answers(str(header.get("session")))
        elif channel == "shell" and header["msg_type"].endswith("_reply"):
            self._served(str(header.get("session")), message["parent_header"].get("msg_id"))
        elif header["msg_type"] == "status" and not self._restarting:
            if content.get("execution_state") == "restarting":
                words = "the kernel's process died, and the server started another"
                self._replaced(words)
            elif content.get("execution_state") == "dead":
                self._lost(self._death("it died, and was not to be restarted"), "dead")
        self.dispatcher.received(channel, message)

    # ------------------------------------------------------------ a connection that breaks

    def _cut(self, code: int | None) -> list[Pending]:
        """The connection is down; gives the requests that went with it."""
        self._socket = None
        lost = [one for one in self.dispatcher.pending.values() if one.id not in self._parked]
        for pending in lost:
            pending.cut = pending.repeatable
        if code == TOO_BIG and lost:
            # The limit is the server's secret: only of the largest it is sure that it was beyond,
            # and that it did not run.
            max_send = max(lost, key=lambda pending: pending.nbytes)
            self.dispatcher.settle(max_send.id, self._too_big(max_send.nbytes))
        return lost

    def _too_big(self, nbytes: int) -> PayloadTooLarge:
        return PayloadTooLarge(
            f"{self.url} takes no message of {nbytes:,} bytes, and closed the connection; "
            "push data instead of writing it into a cell, take lane='inline', whose messages are "
            "smaller, or have the server started with a larger websocket_max_message_size in its "
            "ServerApp.tornado_settings",
            bytes=nbytes,
        )

    async def _reconnect(self, why: str) -> _CountingConnection | None:
        """The next connection, however long it takes; whoever waits is told after a while.

        None when there is no kernel any more.
        """
        started = asyncio.get_running_loop().time()
        pauses = iter(PAUSES)
        while True:
            await asyncio.sleep(next(pauses, PAUSES[-1]))
            words = ""
            try:
                if await self.rest.kernel(self.kernel_id) is not None:
                    return await self._connect(self._session)
                self.connection_lost(self._death("the server has it no more"), "dead")
                return None
            except Exception as error:  # noqa: BLE001 - whatever it is: nobody else would read on
                words = str(error) or type(error).__name__
            elapsed = asyncio.get_running_loop().time() - started
            if elapsed > RECONNECT_WITHIN and not self.life.is_lost:
                self.connection_lost(self._unreachable(why, words), "dead")

    def _unreachable(self, why: str, words: str) -> Callable[[], BridgeError]:
        return lambda: TransportError(
            f"the connection to {self.url} {why}, and there is none again for "
            f"{RECONNECT_WITHIN:g} s: {words}. The bridge goes on when there is"
        )

    async def _resume(self, lost: Sequence[Pending]) -> None:
        """Which process answers? Then what the old connection took along is asked again."""
        await self._until_it_answers()
        for pending in lost:
            if pending.slot and not pending.repeatable:
                pending.inquired = False
                # Its reply may come yet, ahead of a later one's.
                self.dispatcher.inquire(pending.id)
            else:
                self.dispatcher.settle(
                    pending.id, Reconnected("the connection broke, and was made anew")
                )
        for listener in list(self.life.listeners.values()):
            listener.renew()

    # ------------------------------------------------------------ signs of life

    async def _until_it_answers(self) -> None:
        """Ask the control channel until the kernel answers, be it for hours."""
        patience = ANSWER_EVERY
        while True:
            with contextlib.suppress(BridgeError, TimeoutError):
                self.kernel_info = await self.dispatcher.control(
                    "kernel_info_request", {}, patience
                )
                return
            await asyncio.sleep(0.02)
            patience = min(2 * patience, 8)

    def _answers(self, process: str) -> None:
        """The kernel answers, out of the process that has this session."""
        if self._process not in (None, process) and not self._restarting:
            self._replaced("the kernel's process was replaced")
        self._process = process
        if self.life.is_lost and not self._restarting:
            self.life.connection_made()
        if self._absent and self.life.state in ("starting", "restarting"):
            self.life.state = "idle"  # else it would be told by the next request's status
        self._absent = False
        self._tell_change()

    def _served(self, process: str, request: Any) -> None:
        """A request is answered; whoever waits for another process than the one that did is told.

        What the answer itself means, whoever asked knows: the loader is not there, or it is.
        """
        known, self._process = self._process, process
        if known in (None, process):
            return
        for identity in list(self.dispatcher.pending):
            if identity != request:
                self.dispatcher.settle(
                    identity, KernelRestarted("the kernel's process was replaced")
                )

    def _replaced(self, words: str) -> None:
        """Another process is there, or will be in a moment: what is asked now waits for it."""
        self._lost(lambda: KernelRestarted(words), "restarting")
        self.life.connection_made()
        self._absent, self.life.state = True, "restarting"

    def _lost(self, why: Callable[[], BridgeError], state: str) -> None:
        """The kernel's process is gone; another one may answer at some time."""
        self.connection_lost(why, state)
        self._process = None
        if self._asking is None or self._asking.done():
            self._asking = self.spawn(self._until_it_answers())

    def connection_lost(self, why: Callable[[], BridgeError], state: str) -> None:
        super().connection_lost(why, state)
        self._tell_change()

    def _tell_change(self) -> None:
        """Whoever waits to send looks again."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _death(self, words: str) -> Callable[[], BridgeError]:
        by_whom = "; another client had asked it to shut down" if self.life.shut_down else ""
        return lambda: KernelDied(f"the kernel is gone: {words}{by_whom}")

    async def _pulse(self) -> None:
        """Look after the kernel while somebody waits for it: nothing else would tell.

        A process that answers has its session compared; of one that does not, the server knows.
        """
        while True:
            await asyncio.sleep(PULSE_EVERY)
            if not self.waited_for or self._socket is None or self.life.is_lost:
                continue
            with contextlib.suppress(TimeoutError, BridgeError):
                await self.dispatcher.control("kernel_info_request", {}, PULSE_EVERY)
                continue
            with contextlib.suppress(BridgeError):
                told = await self.rest.kernel(self.kernel_id)
                if told is None or told.get("execution_state") == "dead":
                    self._lost(self._death("the server has it no more, or as dead"), "dead")

    # ------------------------------------------------------------ the kernel's life

    async def interrupt(self) -> None:
        """Through the server, which has the kernel's process."""
        self.life.check()
        await self.rest.ask_kernel(self.kernel_id, "interrupt")

    async def replace(self, timeout: float) -> None:
        self._restarting = True
        try:
            self.connection_lost(lambda: KernelRestarted("the kernel was restarted"), "restarting")
            try:
                await self.rest.ask_kernel(self.kernel_id, "restart", timeout)
            except BridgeError as error:
                self._lost(self._death(f"it could not be restarted: {error}"), "dead")
                raise
            self.life.connection_made()
            self.life.state = "starting"
            await self._until_it_answers()
        finally:
            self._restarting = False


async def _break_if_still(socket: _CountingConnection) -> None:
    """Break a connection on which nothing moves, be it that a proxy holds it: nobody else would.

    Each ping brings a pong, unless so much is to be sent before it that it has no turn; whoever
    waits for its turn to send waits as long. Looks are counted, not seconds, in which the event
    loop may have been busy with something else.
    """
    still, seen, left = 0, 0, 0
    while still < STILL:
        await asyncio.sleep(1)
        before = seen, left
        seen, left = socket.arrivals, socket.transport.get_write_buffer_size()
        still = still + 1 if seen == before[0] and left >= before[1] else 0
    socket.transport.abort()


async def _closed(socket: _CountingConnection) -> None:
    """Close a connection, even one that takes nothing any more."""
    async with waited(CLOSE_WAIT + 1):
        await socket.close()
    socket.transport.abort()


def _acknowledge(socket: _CountingConnection) -> None:
    """Acknowledge at once what was received, where the system can (Linux); it forgets soon.

    A server sends a reply only when the message before it is acknowledged, and systems take 40 ms
    over that: a small push took 48 ms instead of 8.
    """
    wire = socket.transport.get_extra_info("socket")
    if QUICK is not None and wire is not None:
        with contextlib.suppress(OSError):
            wire.setsockopt(sockets.IPPROTO_TCP, QUICK, 1)


def _way_of(socket: ClientConnection) -> Subprotocol:
    return BINARY if socket.subprotocol == V1 else LEGACY


def _why(socket: _CountingConnection) -> str:
    reason = f" ({socket.close_reason})" if socket.close_reason else ""
    return f"was closed with {socket.close_code}{reason}"
