"""The state of one kernel, and the futures waiting for it.

Rule: which state a kernel is in, why it is lost or unresponsive, and which waiters get the error.
Who notices that a kernel is lost: see "Where a restart is noticed" in ``_connection``.

A kernel counts as unresponsive, and calls raise ``KernelUnresponsive``:

- after ``timings.silence`` without a heartbeat (``zmq``), or without an answer of a cluster's hub
  (``ipyparallel_client``);
- after ``timings.reconnect_grace`` without a connection, while nothing shows that its process has
  ended (``zmq_link``);
- after ``timings.lost_after``, if it answers nothing while a caller waits, not even on control
  (``inquiry``), or does not say over a new connection which process answers (``gate``). Behind a
  server, which passes no heartbeat, nothing else shows it.

If a server itself cannot be reached for ``timings.reconnect_within``, the state is "unresponsive",
too, and calls raise ``TransportError`` (``websocket``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

from bridgehead._errors import CLOSED, RESTARTED, BridgeClosed, BridgeError, KernelRestarted
from bridgehead._transports.tasks import retrieve_exception, waited
from bridgehead._transports.timings import Timings

log = logging.getLogger("bridgehead")
STATES = ("starting", "busy", "idle")  # states that a kernel may report of itself


class EventListener(Protocol):
    """Receives the events that the remote part sends without a request."""

    def feed(self, content: dict[str, Any], buffers: list[Any]) -> None: ...

    def renew(self) -> None: ...

    def end(self) -> None: ...


class SideChannel(Protocol):
    """A connection to the kernel beside its messages."""

    @property
    def at_work(self) -> bool: ...

    def fail_waiters(self, why: Callable[[], BridgeError]) -> None: ...


class KernelState:
    """The state of one kernel, as far as its messages and connections show it."""

    def __init__(self, timings: Timings) -> None:
        self.timings: Timings = timings
        self.name: str = "kernel"  # in the log
        self.generation: int = 0  # grows whenever the kernel's process may be another one
        self.state: str = "starting"
        self.trust: str = "data"  # of the bridge in the kernel, since the last handshake
        # On iopub, of its main thread, and not busy since, unless that was lost: see ``inquiry``.
        self.said_idle: bool = False
        self._busy_with = ""  # the request for which its main thread is busy, as it says
        self.shut_down: bool = False  # a client asked the kernel to shut down
        # Whether messages can be sent. A side channel may still work when they cannot.
        self.connected: bool = True
        self.signs: int = 0  # signs of life from the kernel, of whatever kind
        self.listeners: dict[str, EventListener] = {}  # for messages without a request, by id
        self.side_channel: SideChannel | None = None
        self._waiters: set[asyncio.Future[Any]] = set()
        self._lost_error: Callable[[], BridgeError] | None = None
        self._unresponsive_error: Callable[[], BridgeError] | None = None
        self._only_beats = False  # an unresponsive kernel whose heartbeat is answered
        self._no_longer_unresponsive = asyncio.Event()

    # ------------------------------------------------------------ for waiters

    def waiter(self) -> asyncio.Future[Any]:
        """Return a future that fails when the kernel or the connection to it is lost."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        future.add_done_callback(self._forget)
        self._waiters.add(future)
        return future

    def _forget(self, waiter: asyncio.Future[Any]) -> None:
        self._waiters.discard(waiter)
        retrieve_exception(waiter)

    def check(self) -> None:
        """Raise if there is no kernel to send to."""
        if self.state == "closed":  # the waiters' error would say that this was on its way, too
            raise BridgeClosed(CLOSED)
        if self._lost_error is not None:
            raise self._lost_error()

    def check_same(self, generation: int) -> None:
        """Raise if there is no kernel to send to, or if it may be another one than then."""
        self.check()
        if generation != self.generation:
            raise KernelRestarted(RESTARTED)

    async def wait_for_cause(self) -> None:
        """Wait until the transport knows why the connection is down, and raise that error."""
        self.check()
        async with waited(self.timings.cause_known):
            await self.waiter()

    async def wait_until_responsive(self) -> None:
        """Wait a while for an unresponsive kernel; raise if it stays unresponsive, or is lost."""
        self.check()
        if self._unresponsive_error is not None:
            async with waited(self.timings.silence):
                await self._no_longer_unresponsive.wait()
        self.check_responsive()

    def check_responsive(self) -> None:
        """Raise if there is no kernel to send to, or if it shows no sign of life."""
        self.check()
        if self._unresponsive_error is not None:
            raise self._unresponsive_error()

    @property
    def is_lost(self) -> bool:
        """Whether there is no kernel to send to."""
        return self._lost_error is not None

    @property
    def is_unresponsive(self) -> bool:
        """Whether the kernel showed no sign of life for a while."""
        return self._unresponsive_error is not None

    @property
    def has_waiters(self) -> bool:
        """Whether a caller waits for this kernel."""
        side_channel = self.side_channel is not None and self.side_channel.at_work
        return bool(self._waiters) or side_channel

    # ------------------------------------------------------------ for the transport

    def connection_lost(self, why: Callable[[], BridgeError], state: str) -> None:
        """Record that the kernel or the connection to it is lost, and fail every waiter."""
        self.generation += 1
        log.info("%s: %s", self.name, state)
        self._lost_error, self._unresponsive_error, self.state = why, None, state
        self._no_longer_unresponsive.set()
        self._fail_waiters(why)
        for listener in list(self.listeners.values()):
            listener.end()

    def connection_made(self) -> None:
        """Record that a kernel answers again."""
        if self.state != "closed":
            log.info("%s: connected", self.name)
            self._lost_error, self._unresponsive_error, self.state = None, None, "idle"
            self.shut_down = False

    def note_unresponsive(
        self, why: Callable[[], BridgeError], *, only_beats: bool = False
    ) -> None:
        """Record that the kernel shows no sign of life, and fail every waiter.

        Requests in flight stay in the dispatcher's table: they may still run, and their replies
        may arrive late. ``note_responsive`` may follow. With ``only_beats``, no message arrived,
        whatever the heartbeat does: a thread without Python answers it.
        """
        if self._lost_error is None and self._unresponsive_error is None:
            log.info("%s: unresponsive", self.name)
            self._unresponsive_error, self.state = why, "unresponsive"
            self._only_beats = only_beats
            self._no_longer_unresponsive.clear()
            self._fail_waiters(why)

    def note_responsive(self, *, beat: bool = False) -> None:
        """Record a sign of life from the kernel: a message, or the answer to a heartbeat."""
        self.signs += 1
        if beat and self._only_beats:
            return
        if self._unresponsive_error is not None and self.connected:
            log.info("%s: responsive again", self.name)
            self._unresponsive_error, self.state = None, "busy"  # iopub reports when it is idle
            self._no_longer_unresponsive.set()

    def note_status(self, status: Any, request: str) -> None:
        """Record what the kernel says of its main thread, about a request that it serves there."""
        self.said_idle = status == "idle"
        if status in STATES and not (self.is_lost or self.is_unresponsive):
            self.state, self._busy_with = status, request

    def note_done(self, request: str) -> None:
        """Record that a request is done, although the kernel has not said that it is idle."""
        if self._busy_with in (request, "") and self.state == "busy":
            self.state = "idle"

    def _fail_waiters(self, why: Callable[[], BridgeError]) -> None:
        for waiter in list(self._waiters):
            if not waiter.done():
                waiter.set_exception(why())
        if self.side_channel is not None:
            self.side_channel.fail_waiters(why)
