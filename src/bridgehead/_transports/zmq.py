"""Messages over the kernel's own ZeroMQ sockets.

Rule: sockets, readers and signs of life. The sockets come from jupyter_client's public
``connect_*`` methods, with a context and a session of our own: a second client with the same
session id would take over the first one's replies for good.

Facts this file rests on, all measured:

- ``Session.send`` on an asyncio socket sends on its shadow and eats the reader's edge-triggered
  wake-up (replies stuck in 11 of 40 rounds), and blocks the loop when the queue is full. A
  serialized message sent through the asyncio socket itself: 0 of 723.
- ``ZMQ_IMMEDIATE`` and a socket monitor: what was queued for a kernel that died is dropped with
  its connection and cannot run in the next one, and a lost connection is an event, not a guess.
- The ``connect_*`` methods give every socket the connection file's CURVE keys. Wrong keys are a
  connection that the kernel closes, tried again for ever. Where one side encrypts and the other
  does not, it is that, or an error in the protocol that is not tried again: whoever is quicker.
- A REQ socket with ``REQ_RELAXED`` and ``REQ_CORRELATE`` is readable when the answer to an
  earlier request arrives, and ``recv`` then raises ``Again``, in pyzmq's asyncio even without
  ``NOBLOCK``.
- iopub with an unlimited receive queue: with ZeroMQ's default of 1,000 a slow reader got 7,500
  of 20,000 messages.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import zmq
import zmq.asyncio
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_core.utils import ensure_async
from zmq.utils.monitor import parse_monitor_message

from bridgehead._errors import (
    BridgeError,
    KernelDied,
    KernelNotFound,
    KernelRestarted,
    KernelUnresponsive,
    NotSupported,
    TransportError,
)
from bridgehead._transports.addresses import stays_here
from bridgehead._transports.base import Transport
from bridgehead._transports.process import KernelProcess
from bridgehead._transports.state import SILENCE
from bridgehead._transports.tasks import waited

RECONNECT_GRACE = 2.5  # s a kernel that others own has to come back after its connection broke
BEAT_EVERY = 1.0  # s between two heartbeats, while somebody waits
ANSWER_EVERY = 0.25  # s between two questions to a kernel that is starting
LOOK_EVERY = 10  # ms between two looks at why there is no connection yet
LAST_WORDS = 1000  # ms that closing waits at most for what was sent last
YIELD_EVERY = 16  # messages after which a reader lets others run
CHANNELS = {
    "shell": "shell_port",
    "control": "control_port",
    "iopub": "iopub_port",
    "heartbeat": "hb_port",
}
# The other side speaks otherwise, or closes the connection half-way.
REFUSED = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
REFUSALS = 10  # handshakes in a row, some 90 ms apart, that must fail before it is final


def _kind(info: dict[str, Any]) -> tuple[bool, ...]:
    """What of a connection decides who can listen in, and who is trusted."""
    here = stays_here(info["transport"], info["ip"])
    return here, info["transport"] == "ipc", bool(info.get("curve_publickey")), bool(info["key"])


class MonitoredContext(zmq.asyncio.Context):
    """Has the connection of its first DEALER, the shell, watched from before it begins.

    Between unlike sides (CURVE and none) a handshake may fail once and for good, some
    microseconds after ``connect``: a monitor that comes later never hears of it.
    """

    monitor: Any = None

    def socket(self, socket_type: int, *args: Any, **kwargs: Any) -> Any:
        socket = super().socket(socket_type, *args, **kwargs)
        if socket_type == zmq.DEALER and self.monitor is None:
            self.monitor = socket.get_monitor_socket(
                zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | REFUSED
            )
        return socket


class ZmqTransport(Transport):
    """A kernel on ZeroMQ sockets, ``tcp`` or ``ipc``, plain or with CURVE.

    ``kernel_process`` has the kernel's AsyncKernelManager, where there is one. With ``owned``,
    closing ends the kernel.
    """

    def __init__(
        self,
        info: dict[str, Any],
        *,
        connection_file: str | None = None,
        kernel_process: KernelProcess | None = None,
        owned: bool = False,
    ) -> None:
        super().__init__()
        self.connection_file = connection_file
        self._kernel_process, self.owned = kernel_process, owned
        self.manager: Any = None if kernel_process is None else kernel_process.manager
        self._context = context = MonitoredContext()
        for option, value in (
            (zmq.RCVHWM, 0),
            (zmq.SNDHWM, 0),
            (zmq.LINGER, 0),
            (zmq.IMMEDIATE, 1),
            (zmq.RECONNECT_IVL, 50),
        ):
            context.setsockopt(option, value)
        self._client = AsyncKernelClient(context=context)
        self._client.load_connection_info(info)  # type: ignore[arg-type]
        self._info = info
        self.session = self._client.session
        self.name = self._client.transport
        self.ours = stays_here(self.name, self._client.ip)
        if self.ours:
            self.digest = "crc32"
        self._sockets: dict[str, Any] = {}
        self.has_pulse = False  # a heart that was heard once can be missed
        self._down = asyncio.Event()  # the shell connection broke and is not back
        self._refused = 0  # handshakes in a row that failed
        self._iopub_seen = asyncio.Event()
        self._restarting = False  # until the new process answers
        self._replacing = False  # until the new process is there to be watched
        self._monitor: Any = None
        self._monitor_owner: Any = None

    # ------------------------------------------------------------ opening and closing

    async def open(self, timeout: float, connect_timeout: float) -> None:
        """Connect and wait until the kernel answers and its iopub is heard.

        Args:
            timeout: seconds for everything.
            connect_timeout: seconds until something must listen at the kernel's address.

        Raises:
            KernelNotFound: nothing listens there, or it refuses the keys, or never answers.
            KernelDied: the process that was launched ended.
            NotSupported: the kernel that was launched does not encrypt.
        """
        try:
            monitor = self._connect()
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)  # the socket that failed too, which nobody holds
            self._sockets.clear()
            where = self.connection_file or "the client"
            raise KernelNotFound(f"{where} has an address that is none: {error}") from error
        # Read through a plain shadow, in one place and until it is empty: its file descriptor
        # is edge-triggered, and ``send`` looks as well.
        self._monitor, self._monitor_owner = zmq.Socket.shadow(monitor.underlying), monitor
        asyncio.get_running_loop().add_reader(self._monitor.FD, self._connection_events)
        self._connection_events()
        heart = self._sockets["heartbeat"]
        for channel, socket in self._sockets.items():
            if socket is not heart:
                self.spawn(self._read(channel, socket))
        self.spawn(self._listen_to(heart))
        if self._kernel_process is not None:
            self.spawn(self._watch_process(self._kernel_process))
        await self._ready(timeout, connect_timeout)

    def _connect(self) -> Any:
        """Have all sockets connect; gives the shell's monitor."""
        connect = self._client
        self._sockets["shell"] = connect.connect_shell()
        self._sockets["control"] = connect.connect_control()
        self._sockets["iopub"] = connect.connect_iopub()
        heart = self._sockets["heartbeat"] = connect.connect_hb()
        heart.setsockopt(zmq.REQ_RELAXED, 1)  # the next beat doesn't wait for one that was lost
        heart.setsockopt(zmq.REQ_CORRELATE, 1)
        return self._context.monitor

    async def _ready(self, timeout: float, connect_timeout: float) -> None:
        where = self.connection_file or "the client's address"
        try:
            async with asyncio.timeout(timeout):
                await self._reached(where, connect_timeout)
                self.kernel_info = await self._kernel_info()
                await self._hear_iopub()
                self.life.state = "busy"  # until it answers on shell, where cells take their turn
        except TimeoutError:
            raise KernelNotFound(
                f"the kernel of {where} did not answer within {timeout:g} s: another key, "
                "or it is stuck"
            ) from None

    async def _reached(self, where: str, connect_timeout: float) -> None:
        """Wait until shell and control are connected: only then do they accept a message."""
        try:
            async with asyncio.timeout(connect_timeout):
                for channel in ("shell", "control"):
                    while not await self._sockets[channel].poll(LOOK_EVERY, zmq.POLLOUT):
                        self.life.check()
                        if self._refused >= REFUSALS:
                            raise self._refusal(where)
        except TimeoutError:
            if self._refused:
                raise self._refusal(where) from None
            raise KernelNotFound(
                f"nothing listens at the address in {where}: that kernel has ended, or the file "
                "is not its own"
            ) from None

    def _refusal(self, where: str) -> BridgeError:
        """Something listens there, and closes the connection; why, is often not told."""
        if getattr(self._client, "curve_publickey", None) is None:
            why = "closes every connection: it encrypts, and the file lacks its CURVE keys,"
        elif self.owned:
            return NotSupported(
                "the kernel does not encrypt, although its kernelspec says that it can; its "
                "environment needs ipykernel 7.3 or later"
            )
        else:
            why = (
                "refuses the CURVE keys in the file: they are another kernel's, or it does not "
                "encrypt,"
            )
        return KernelNotFound(
            f"what listens at the address in {where} {why} or it is a forwarded port that ends "
            "nowhere"
        )

    async def _kernel_info(self) -> dict[str, Any]:
        patience = 0.5  # s; a starting ipykernel 6 loses what control brings it too early
        while True:
            self.life.check()
            with contextlib.suppress(TransportError, TimeoutError):
                return await self.dispatcher.control("kernel_info_request", {}, patience)
            patience = min(2 * patience, 8)
            await asyncio.sleep(0.02)

    async def _hear_iopub(self) -> None:
        """A subscription takes a moment to arrive; cells run before that would seem silent."""
        for _ in range(20):
            if self._iopub_seen.is_set():
                return
            with contextlib.suppress(TransportError, TimeoutError):
                await self.dispatcher.control("kernel_info_request", {}, ANSWER_EVERY)
            async with waited(ANSWER_EVERY):
                await self._iopub_seen.wait()

    async def close(self) -> None:
        await super().close()
        if self._monitor is not None:
            asyncio.get_running_loop().remove_reader(self._monitor.FD)
            self._monitor = None
        for socket in self._sockets.values():
            # Before its other end closes: of an event that nobody takes, such as the end of a
            # kernel just now, libzmq tells for ever, and disabling waits for it with the GIL.
            socket.disable_monitor()
        if self._monitor_owner is not None:
            self._monitor_owner.close(linger=0)
        for socket in self._sockets.values():
            socket.close(linger=LAST_WORDS)
        self._sockets.clear()
        try:
            await asyncio.to_thread(self._context.term)  # it waits for the last words
        except RuntimeError:  # the interpreter is ending, and no thread can be had any more
            self._context.term()
        if self._kernel_process is not None and self.owned:
            await self._kernel_process.end(polite=bool(self.kernel_info))

    # ------------------------------------------------------------ sending and receiving

    def message(self, message_type: str, content: dict[str, Any]) -> dict[str, Any]:
        message: dict[str, Any] = self.session.msg(message_type, content)
        return message

    async def send(self, channel: str, message: dict[str, Any], buffers: Sequence[Any]) -> None:
        if channel == "shell":
            # A loop that was blocked may not have been told that another kernel listens now.
            generation = self.life.generation
            self._connection_events()
            if generation != self.life.generation:
                raise KernelRestarted("the kernel's process was replaced; nothing was sent")
        parts = [*self.session.serialize(message), *buffers]
        try:
            await self._sockets[channel].send_multipart(parts, flags=zmq.NOBLOCK, copy=False)
        except zmq.Again:
            raise TransportError("the connection to the kernel is down") from None

    async def _read(self, channel: str, socket: Any) -> None:
        count = 0
        while True:
            parts = await socket.recv_multipart(copy=False)
            try:
                _, parts = self.session.feed_identities(parts, copy=False)
                message = self.session.deserialize(parts, copy=False)
                if channel == "iopub":
                    self._iopub_seen.set()
                self.life.responsive()  # any message is a sign of life, as a beat is
                self.dispatcher.received(channel, message)
            except Exception:  # noqa: BLE001
                # A forged, damaged or unknown message hurts nobody but its own request.
                self.bad += 1
            count += 1
            if count % YIELD_EVERY == 0:
                await asyncio.sleep(0)

    # ------------------------------------------------------------ signs of life

    def _connection_events(self) -> None:
        """Take note of everything that has happened to the shell connection by now."""
        while self._monitor is not None:
            try:
                event = parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return
            if event["event"] & REFUSED:
                final = event["event"] == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
                self._refused += REFUSALS if final else 1
            elif event["event"] == zmq.EVENT_DISCONNECTED:
                if self._refused:
                    continue  # it never was a connection
                self._down.set()
                # Our own process is looked at; of another's we know only the silence.
                asyncio.get_running_loop().call_later(RECONNECT_GRACE, self._no_reconnect)
            else:
                self._refused = 0
                if not self._down.is_set():
                    continue
                self._down.clear()
                if not self._restarting:
                    self.connection_lost(
                        lambda: KernelRestarted("the kernel's process was replaced"), "restarting"
                    )
                    self.life.connection_made()

    def _no_reconnect(self) -> None:
        if self._down.is_set() and not self.life.is_lost and not self._restarting:
            words = f"the kernel's process is gone{self._by_whom()}"
            self.connection_lost(lambda: KernelDied(words), "dead")

    def _by_whom(self) -> str:
        return "; another client had asked it to shut down" if self.life.shut_down else ""

    async def _listen_to(self, heart: Any) -> None:
        """Tell a kernel that is stopped from one that is busy.

        The heartbeat is served by a thread without Python: it beats through sleep, busy loops
        and C calls that hold the GIL. Missed beats are counted, not seconds: after a pause of
        our own loop, or of the whole machine, there is one. A heart that was never heard, as
        where its port isn't forwarded, tells nothing. Nobody who waits, no beat.
        """
        missed, known = 0, False
        while True:
            if known and not missed:
                await asyncio.sleep(BEAT_EVERY)
            if known and not self.waited_for and not self.life.is_unresponsive:
                missed = 0
                continue
            try:
                await heart.send(b"beat", flags=zmq.NOBLOCK)
            except zmq.Again:  # not connected yet, or down: the monitor tells
                if not known:
                    await asyncio.sleep(0.01)
                    continue
            if await heart.poll(1000 * BEAT_EVERY):
                # libzmq drops the answers to earlier beats, and reports EAGAIN if there is no
                # other. They too are signs of life: of a kernel that was stopped they come first.
                with contextlib.suppress(zmq.Again):
                    await heart.recv(flags=zmq.NOBLOCK)
                missed, known = 0, True
                self.has_pulse = True
                self.life.responsive()
                continue
            missed += 1
            if known and missed * BEAT_EVERY >= SILENCE:
                self.life.unresponsive(self._silence())

    def _silence(self) -> Callable[[], KernelUnresponsive]:
        return lambda: KernelUnresponsive(
            f"the kernel's process shows no sign of life for {SILENCE:g} s: it is stopped, or "
            "the machine is overloaded; the bridge goes on when it answers again"
        )

    async def _watch_process(self, kernel_process: KernelProcess) -> None:
        while True:
            await kernel_process.pause(self._down)
            if self._replacing or self.life.is_lost:
                continue
            if await kernel_process.has_ended() and not self._replacing and not self.life.is_lost:
                words = f"the kernel's process {kernel_process.how()}{self._by_whom()}"
                self.connection_lost(
                    self._death(words + kernel_process.last_words(), kernel_process.exit_code),
                    "dead",
                )

    @staticmethod
    def _death(words: str, code: int | None) -> Callable[[], KernelDied]:
        return lambda: KernelDied(words, exit_code=code)

    # ------------------------------------------------------------ the kernel's life

    async def interrupt(self) -> None:
        """SIGINT through the manager, or an ``interrupt_request`` on the control channel."""
        self.life.check()
        if self.manager is not None:
            await ensure_async(self.manager.interrupt_kernel())
            return
        await self.dispatcher.control("interrupt_request", {})

    async def restart(self, timeout: float) -> None:
        """Replace the process, through the manager that has it.

        Raises:
            NotSupported: this bridge attached to a kernel that somebody else holds.
        """
        if self.manager is None:
            raise NotSupported(
                "only whoever launched a kernel can restart it, and this bridge attached to it"
            )
        await super().restart(timeout)

    async def replace(self, timeout: float) -> None:
        self._restarting = self._replacing = True
        try:
            self.connection_lost(lambda: KernelRestarted("the kernel was restarted"), "restarting")
            down = self._down.is_set()
            await ensure_async(self.manager.restart_kernel(now=True))
            self._follow()
            if not down:  # what is sent before the old connection is seen to break goes with it
                async with waited(1):
                    await self._down.wait()
            self.life.connection_made()
            self.life.state = "starting"
            self._replacing = False
            await self._ready(timeout, timeout)
        finally:
            self._restarting = self._replacing = False

    def _follow(self) -> None:
        """Lead the sockets to where a provisioner started the kernel anew, if that is elsewhere.

        Raises:
            NotSupported: what was agreed to when the bridge was opened does not hold there.
        """
        info = dict(self.manager.get_connection_info())
        if info == self._info:
            return
        if _kind(info) != _kind(self._info):
            raise NotSupported(
                f"the kernel was started anew at {info['ip']}, over another kind of connection; "
                "close this bridge and open another one"
            )
        self._info = info
        for name in CHANNELS.values():
            setattr(self._client, name, 0)  # or the old one would stay
        self._client.load_connection_info(info)  # type: ignore[arg-type]
        for channel, port in CHANNELS.items():
            socket = self._sockets[channel]
            socket.disconnect(socket.get(zmq.LAST_ENDPOINT).rstrip(b"\0").decode())
            if self._client.curve_publickey is not None:
                socket.curve_secretkey = self._client.curve_secretkey
                socket.curve_publickey = self._client.curve_publickey
                socket.curve_serverkey = self._client.curve_publickey
            between = "-" if info["transport"] == "ipc" else ":"
            socket.connect(f"{info['transport']}://{info['ip']}{between}{info[port]}")
