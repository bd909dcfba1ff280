"""The link to a kernel: whether its shell socket is connected, and to which process.

Rule: the events of one socket, and what follows from them for the requests in flight and for those
that wait. A broken connection says nothing about the process: the owner of the link says what the
evidence for its end is. Nothing that waits is sent over a new connection before it is known which
process answers. Only the first connection to a running kernel is open from the beginning: nothing
is meant for an earlier process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import zmq
from zmq.utils.monitor import parse_monitor_message

from bridgehead._errors import (
    RESTARTED_MEANWHILE,
    BridgeError,
    KernelDied,
    KernelRestarted,
    KernelUnresponsive,
    TransportError,
)
from bridgehead._transports.dispatch import Dispatcher
from bridgehead._transports.evidence import LocalProcess
from bridgehead._transports.gate import Gate
from bridgehead._transports.state import KernelState
from bridgehead._transports.subscription import OutputSubscription
from bridgehead._transports.timings import Timings

# The kernel uses another protocol, or closes the connection during the handshake.
REFUSED = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
REFUSALS = 10  # failed handshakes in a row, some 90 ms apart, that count as a final refusal

log = logging.getLogger("bridgehead")


class LinkedTransport(Protocol):
    """The transport whose shell socket it is."""

    life: KernelState
    timings: Timings
    dispatcher: Dispatcher
    local_process: LocalProcess | None
    subscription: OutputSubscription

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]: ...

    def connection_lost(self, why: Callable[[], BridgeError], state: str) -> None: ...

    def connect_anew(self, channel: str) -> None: ...

    async def has_ended(self) -> bool: ...

    @property
    def process_is(self) -> str: ...


class Link:
    """The connection of the shell socket, and what waits for it.

    Attributes:
        down: set while the connection is broken and has not been made again.
        gate: shut until it is known which process answers over the connection.
        restarting: the owner replaces the process, until the new one answers.
    """

    def __init__(self, transport: LinkedTransport) -> None:
        self._transport = transport
        self.down = asyncio.Event()
        self.gate = Gate(transport.life)
        self.restarting = False
        self._monitor: Any = None
        self._refused = 0  # failed handshakes in a row
        self._unanswered: set[str] = set()  # requests whose replies were lost with a connection
        self._cause: asyncio.Task[None] | None = None

    @property
    def is_refused(self) -> bool:
        """Whether the program at the address will not accept this connection."""
        return self._refused >= REFUSALS

    @property
    def was_refused(self) -> bool:
        """Whether the last handshake failed."""
        return self._refused > 0

    def watch(self, monitor: Any) -> None:
        """Read the events of the socket with this monitor.

        Through a plain shadow socket, in ``events`` only and until it is empty: its file descriptor
        is edge-triggered, and ``send`` reads it as well.
        """
        self._monitor = zmq.Socket.shadow(monitor.underlying)
        self._loop = asyncio.get_running_loop()
        try:
            self._loop.add_reader(self._monitor.FD, self.events)
        except NotImplementedError:  # asyncio's default loop on Windows watches no sockets
            self._transport.spawn(self._poll())
        self.events()

    async def _poll(self) -> None:
        while self._monitor is not None:
            self.events()
            await asyncio.sleep(self._transport.timings.poll_every)

    def unwatch(self) -> None:
        if self._monitor is not None:
            with contextlib.suppress(RuntimeError):  # closed, or the loop watches no sockets
                self._loop.remove_reader(self._monitor.FD)
            self._monitor = None

    def events(self) -> None:
        """Handle all events of the connection that have happened by now."""
        try:
            self._handle_events()
        except BaseException:  # an interrupt: the rest of the events makes no descriptor readable
            self._loop.call_soon(self.events)
            raise

    def _handle_events(self) -> None:
        while self._monitor is not None:
            try:
                event = parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return
            if event["event"] & REFUSED:
                final = event["event"] == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
                self._refused += REFUSALS if final else 1
            elif event["event"] == zmq.EVENT_DISCONNECTED:
                if not self._refused:  # else the handshake failed, so there was no connection
                    self.broken()
            else:
                self._refused = 0
                if self.down.is_set():
                    self.down.clear()
                    self._transport.subscription.again()
                    self._transport.spawn(self._ask_who_answers())

    async def ready(self, message: str, generation: int) -> None:
        """Return when a message may be sent to the process of this generation of the kernel.

        Raises:
            BridgeError: the kernel is lost or unresponsive, or another process answers.
        """
        life = self._transport.life
        self.events()  # if the event loop was blocked, those of a new connection may be unread
        while not self.gate.is_open and generation == life.generation:
            life.check_responsive()
            await self.gate.wait(message)
        if generation != life.generation:
            life.check_same(generation)

    # ------------------------------------------------------------ broken

    def broken(self, unsent: str | None = None) -> None:
        """Record that the connection is down; a message with the id ``unsent`` was not sent."""
        transport = self._transport
        self.down.set()
        self.gate.shut()
        transport.life.connected = False
        self._unanswered |= set(transport.dispatcher.pending) - self.gate.waiting - {unsent}
        if self._cause is None or self._cause.done():
            self._cause = transport.spawn(self._find_cause())

    async def _find_cause(self) -> None:
        """Find out whether the process has ended, for as long as the connection is down."""
        loop, life = asyncio.get_running_loop(), self._transport.life
        timings = self._transport.timings
        broken, pause = loop.time(), timings.connect_anew
        anew = broken + pause
        while True:
            await asyncio.sleep(timings.lost_every if life.is_lost else timings.cause_every)
            try:
                self.events()
                if not self.down.is_set():
                    return
                if loop.time() >= anew:
                    anew, pause = (
                        loop.time() + pause,
                        min(2 * pause, timings.connect_anew_most),
                    )
                    self._transport.connect_anew("shell")
                if loop.time() >= broken + timings.reconnect_grace and not self.restarting:
                    await self._look()
            except Exception as error:  # noqa: BLE001 - this process may lack memory
                log.debug("finding the cause of a broken connection failed: %r", error)

    async def _look(self) -> None:
        """Report what is known of the process behind a connection that stays broken."""
        transport = self._transport
        if transport.life.is_lost:
            return
        ended = await transport.has_ended()
        if self.restarting or not self.down.is_set():
            return
        if ended:
            self.ended()
        else:
            transport.life.note_unresponsive(self._cut_off)
            self.gate.wake()

    def ended(self) -> None:
        """Report that the process has ended."""
        by = "; another client had asked it to shut down" if self._transport.life.shut_down else ""
        self._transport.connection_lost(
            lambda: KernelDied(f"the kernel's process has ended{by}"), "dead"
        )

    def _cut_off(self) -> KernelUnresponsive:
        return KernelUnresponsive(
            f"the connection to the kernel is broken, and {self._transport.process_is}; the bridge "
            "goes on when the connection is made again"
        )

    # ------------------------------------------------------------ made again

    async def _ask_who_answers(self) -> None:
        """Ask over the new connection until the kernel answers, or the connection breaks again."""
        process = self._transport.local_process
        if process is not None and process.has_ended() and not self.restarting:
            self._replaced()  # without waiting until the new process answers
        loop, timings = asyncio.get_running_loop(), self._transport.timings
        patience, pause = timings.iopub_message, timings.connect_anew
        anew = loop.time() + pause
        while not (self.gate.is_open or self.down.is_set()):
            with contextlib.suppress(Exception):  # this process may lack memory
                await self._transport.dispatcher.control("kernel_info_request", {}, patience)
            patience = min(2 * patience, timings.longest_reply)
            if loop.time() >= anew and not self.gate.is_open:  # as in ``_find_cause``
                anew, pause = (
                    loop.time() + pause,
                    min(2 * pause, timings.connect_anew_most),
                )
                self._transport.connect_anew("control")
            await asyncio.sleep(timings.ask_again_after)

    def answered(self, question: object, process: object) -> None:
        """Handle the reply to ``kernel_info`` of the process with this session id."""
        self.events()
        if self.down.is_set() or not self.gate.counts(question):
            return
        known, was_open = self.gate.process, self.gate.is_open
        self._transport.life.connected = True
        if known is not None and not self.restarting:
            if not process or process != known:
                self._replaced()
            elif not was_open:
                self._made_again()
        self.gate.open(str(process or ""))

    def _replaced(self) -> None:
        """Record that another process answers, or will soon."""
        transport = self._transport
        transport.local_process = None
        self.gate.shut(forget=True)
        transport.connection_lost(lambda: KernelRestarted(RESTARTED_MEANWHILE), "restarting")
        transport.life.connection_made()

    def _made_again(self) -> None:
        """Go on with the same process; what it replied before the break is lost."""
        life, dispatcher = self._transport.life, self._transport.dispatcher
        if life.is_lost:
            life.connection_made()
        life.note_responsive()
        unanswered, self._unanswered = self._unanswered, set()
        for request in unanswered:
            dispatcher.settle(request, _lost_reply())
        for listener in list(life.listeners.values()):
            listener.renew()

    def note_lost(self) -> None:
        """Note that the dispatcher has forgotten all requests."""
        self._unanswered.clear()
        self.gate.lost()


def _lost_reply() -> TransportError:
    return TransportError(
        "the connection to the kernel broke and was made again; the request may or may not have run"
    )
