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
- iopub with an unlimited receive queue: with ZeroMQ's default of 1,000 a slow reader got 7,500
  of 20,000 messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Sequence
from typing import Any

import zmq
import zmq.asyncio
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_core.utils import ensure_async
from zmq.utils.monitor import parse_monitor_message

from bridgehead._errors import (
    KernelDied,
    KernelNotFound,
    KernelRestarted,
    NotSupported,
    TransportError,
)
from bridgehead._transports import Transport

RECONNECT_GRACE = 2.5  # s a kernel that others own has to come back after its connection broke
ANSWER_EVERY = 0.25  # s between two questions to a kernel that is starting
PROCESS_EVERY = 0.1  # s between two looks at a process of ours
LAST_WORDS = 1000  # ms that closing waits at most for what was sent last
YIELD_EVERY = 16  # messages after which a reader lets others run


class ZmqTransport(Transport):
    """A kernel on ZeroMQ sockets, ``tcp`` or ``ipc``, plain or with CURVE.

    ``manager`` is the kernel's AsyncKernelManager where there is one; ``owned`` says that
    closing ends the kernel. ``kernel_log`` is a file with what the kernel wrote to its standard
    error, for the message when it dies.
    """

    def __init__(
        self,
        info: dict[str, Any],
        *,
        connection_file: str | None = None,
        manager: Any = None,
        owned: bool = False,
        kernel_log: Any = None,
    ) -> None:
        super().__init__()
        self.connection_file = connection_file
        self.manager, self.owned, self._kernel_log = manager, owned, kernel_log
        self._context = context = zmq.asyncio.Context()
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
        self.session = self._client.session
        self.name = self._client.transport
        if self.name == "ipc" or self._client.ip in ("127.0.0.1", "localhost", "::1"):
            self.digest = "crc32"
        self._sockets: dict[str, Any] = {}
        self._down = asyncio.Event()  # the shell connection broke and is not back
        self._iopub_seen = asyncio.Event()
        self._restarting = False  # until the new process answers
        self._replacing = False  # until the new process is there to be watched
        self._restart: asyncio.Task[None] | None = None
        self._monitor: Any = None
        self._monitor_owner: Any = None

    # ------------------------------------------------------------ opening and closing

    async def open(self, timeout: float, connect_timeout: float) -> None:
        """Connect and wait until the kernel answers and its iopub is heard.

        Args:
            timeout: seconds for everything.
            connect_timeout: seconds until something must listen at the kernel's address.

        Raises:
            KernelNotFound: nothing listens there, or what listens never answers.
            KernelDied: the process that was launched ended.
        """
        connect = self._client
        self._sockets = {
            "shell": connect.connect_shell(),
            "control": connect.connect_control(),
            "iopub": connect.connect_iopub(),
        }
        monitor = self._sockets["shell"].get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        )
        # Read through a plain shadow, in one place and until it is empty: its file descriptor
        # is edge-triggered, and ``send`` looks as well.
        self._monitor, self._monitor_owner = zmq.Socket.shadow(monitor.underlying), monitor
        asyncio.get_running_loop().add_reader(self._monitor.FD, self._connection_events)
        self._connection_events()
        for channel, socket in self._sockets.items():
            self.spawn(self._read(channel, socket))
        if self.manager is not None:
            self.spawn(self._watch_process())
        await self._ready(timeout, connect_timeout)

    async def _ready(self, timeout: float, connect_timeout: float) -> None:
        where = self.connection_file or "the client's address"
        try:
            async with asyncio.timeout(timeout):
                await self._reached(where, connect_timeout)
                self.kernel_info = await self._kernel_info()
                await self._hear_iopub()
                self.state = "busy"  # until it answers on shell, where cells take their turn
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
                    while not await self._accepts(channel):
                        self.check()
                        await asyncio.sleep(0.01)
        except TimeoutError:
            raise KernelNotFound(
                f"nothing listens at the address in {where}: that kernel has ended, or the file "
                "is not its own"
            ) from None

    async def _accepts(self, channel: str) -> bool:
        try:
            asked = await self.put(channel, self.message("kernel_info_request", {}))
        except TransportError:
            return False
        self.forget(asked.id)
        return True

    async def _ask_control(self, message_type: str, patience: float | None) -> dict[str, Any]:
        """Ask on control, which answers even while a cell runs."""
        asked = await self.put("control", self.message(message_type, {}))
        try:
            async with asyncio.timeout(patience):
                return (await asked.future).content
        finally:
            self.forget(asked.id)

    async def _kernel_info(self) -> dict[str, Any]:
        patience = 0.5  # s; a starting ipykernel 6 loses what control brings it too early
        while True:
            self.check()
            with contextlib.suppress(TransportError, TimeoutError):
                return await self._ask_control("kernel_info_request", patience)
            patience = min(2 * patience, 8)
            await asyncio.sleep(0.02)

    async def _hear_iopub(self) -> None:
        """A subscription takes a moment to arrive; cells run before that would seem silent."""
        for _ in range(20):
            if self._iopub_seen.is_set():
                return
            with contextlib.suppress(TransportError, TimeoutError):
                await self._ask_control("kernel_info_request", ANSWER_EVERY)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ANSWER_EVERY):
                    await self._iopub_seen.wait()

    async def close(self) -> None:
        await super().close()
        if self._monitor is not None:
            asyncio.get_running_loop().remove_reader(self._monitor.FD)
            self._monitor = None
            self._monitor_owner.close(linger=0)
        for socket in self._sockets.values():
            socket.disable_monitor()
            socket.close(linger=LAST_WORDS)
        self._sockets.clear()
        try:
            await asyncio.to_thread(self._context.term)  # it waits for the last words
        except RuntimeError:  # the interpreter is ending, and no thread can be had any more
            self._context.term()
        try:
            if self.owned and self.manager.has_kernel:
                await self._end_kernel()
            elif self.owned:  # between the end of one process and the start of the next
                self.manager.cleanup_connection_file()
                self.manager.cleanup_ipc_files()
        finally:
            if self._kernel_log is not None:
                self._kernel_log.close()

    async def _end_kernel(self) -> None:
        manager = self.manager
        try:
            alive = await ensure_async(manager.is_alive())
            await ensure_async(manager.shutdown_kernel(now=not alive))
        except BaseException:
            # Cancelled while it was asked politely, or it would not listen.
            process = getattr(manager.provisioner, "process", None)
            if process is not None:
                process.kill()
            manager.cleanup_connection_file()
            manager.cleanup_ipc_files()
            raise

    # ------------------------------------------------------------ sending and receiving

    def message(self, message_type: str, content: dict[str, Any]) -> dict[str, Any]:
        message: dict[str, Any] = self.session.msg(message_type, content)
        return message

    async def send(self, channel: str, message: dict[str, Any], buffers: Sequence[Any]) -> None:
        if channel == "shell":
            # A loop that was blocked may not have been told that another kernel listens now.
            generation = self.generation
            self._connection_events()
            if generation != self.generation:
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
                self.received(channel, message)
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
            if event["event"] == zmq.EVENT_DISCONNECTED:
                self._down.set()
                # Our own process is looked at; of another's we know only the silence.
                asyncio.get_running_loop().call_later(RECONNECT_GRACE, self._no_reconnect)
            elif self._down.is_set():
                self._down.clear()
                if not self._restarting:
                    self.gone(
                        lambda: KernelRestarted("the kernel's process was replaced"), "restarting"
                    )
                    self.back()

    def _no_reconnect(self) -> None:
        if self._down.is_set() and self._why_gone is None and not self._restarting:
            self.gone(lambda: KernelDied("the kernel's process is gone"), "dead")

    async def _watch_process(self) -> None:
        while True:
            await asyncio.sleep(PROCESS_EVERY)
            self._trim_log()
            if self._replacing or self._why_gone is not None:
                continue
            if not await ensure_async(self.manager.is_alive()) and not self._replacing:
                self.gone(self._death(), "dead")

    def _death(self) -> Any:
        process = getattr(self.manager.provisioner, "process", None)
        code = getattr(process, "returncode", None)
        how = f"ended with exit code {code}" if code is not None else "ended"
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                how = f"was killed by {signal.Signals(-code).name}"
        words = self._last_words()
        return lambda: KernelDied(f"the kernel's process {how}{words}", exit_code=code)

    def _last_words(self) -> str:
        if self._kernel_log is None or self._kernel_log.closed:
            return ""
        self._kernel_log.seek(0, 2)
        self._kernel_log.seek(max(0, self._kernel_log.tell() - 2000))
        text = self._kernel_log.read().decode(errors="replace").strip()
        return f"; it last wrote:\n{text}" if text else ""

    def _trim_log(self) -> None:
        """Append-only, and only its end is ever wanted: keep it from filling the disk."""
        log = self._kernel_log
        if log is not None and log.seek(0, 2) > 1 << 20:
            log.truncate(0)

    # ------------------------------------------------------------ the kernel's life

    async def interrupt(self) -> None:
        """SIGINT through the manager, or an ``interrupt_request`` on the control channel."""
        self.check()
        if self.manager is not None:
            await ensure_async(self.manager.interrupt_kernel())
            return
        await self._ask_control("interrupt_request", None)

    async def restart(self, timeout: float) -> None:
        """Replace the process, through the manager that has it.

        Raises:
            NotSupported: this bridge attached to a kernel that somebody else holds.
        """
        if self.manager is None:
            raise NotSupported(
                "only whoever launched a kernel can restart it, and this bridge attached to it"
            )
        if self._restart is None or self._restart.done():  # two at once are one
            self._restart = self.spawn(self._replace(timeout))
        try:
            # It is the transport's own: whoever gives up waiting leaves no half a restart.
            await asyncio.shield(self._restart)
        except asyncio.CancelledError:
            self.check()  # closed meanwhile
            raise

    async def _replace(self, timeout: float) -> None:
        self._restarting = self._replacing = True
        try:
            self.gone(lambda: KernelRestarted("the kernel was restarted"), "restarting")
            down = self._down.is_set()
            await ensure_async(self.manager.restart_kernel(now=True))
            if not down:  # what is sent before the old connection is seen to break goes with it
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        await self._down.wait()
            self.back()
            self.state = "starting"
            self._replacing = False
            await self._ready(timeout, timeout)
        finally:
            self._restarting = self._replacing = False
