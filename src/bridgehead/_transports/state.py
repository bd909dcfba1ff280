"""The kernel's life, and who waits for it.

Rule: in which state a kernel is, why it is gone or silent, and who hears of that. How a transport
notices that a kernel is gone does not belong here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from bridgehead._errors import BridgeError
from bridgehead._transports.tasks import retrieve_exception, waited

STATES = ("starting", "busy", "idle")  # of those that a bridge is in, what a kernel may say
SILENCE = 5.0  # s without a heartbeat; one missed beat of 1 s is no more than a loaded machine
EXPLAINED_IN = 3.0  # s after which it is known whether a kernel that hung up died or restarted


class Subscriber(Protocol):
    """Who is told what the loader sends by itself."""

    def feed(self, content: dict[str, Any], buffers: list[Any]) -> None: ...

    def renew(self) -> None: ...

    def end(self) -> None: ...


class SideChannel(Protocol):
    """A connection to the kernel beside its messages."""

    @property
    def at_work(self) -> bool: ...

    def tell(self, why: Callable[[], BridgeError]) -> None: ...


class KernelState:
    """The state of one kernel, as far as its messages show it."""

    def __init__(self) -> None:
        self.generation: int = 0  # grows whenever another kernel may be there
        self.state: str = "starting"
        self.shut_down: bool = False  # somebody asked the kernel to end
        self.listeners: dict[str, Subscriber] = {}  # for what comes without being asked, by id
        self.side_channel: SideChannel | None = None
        self._waiters: set[asyncio.Future[Any]] = set()
        self._lost_error: Callable[[], BridgeError] | None = None
        self._unresponsive_error: Callable[[], BridgeError] | None = None
        self._heard = asyncio.Event()

    # ------------------------------------------------------------ for those who wait

    def waiter(self) -> asyncio.Future[Any]:
        """A future that fails when the kernel goes, or the way to it."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        future.add_done_callback(self._kept)
        self._waiters.add(future)
        return future

    def _kept(self, waiter: asyncio.Future[Any]) -> None:
        self._waiters.discard(waiter)
        retrieve_exception(waiter)

    def check(self) -> None:
        """Raise if there is no kernel to send to."""
        if self._lost_error is not None:
            raise self._lost_error()

    async def explained(self) -> None:
        """The connection is down: why is known in a moment, and raised here."""
        async with waited(EXPLAINED_IN):
            await self.waiter()

    async def answering(self) -> None:
        """Wait a while for a kernel that is silent; raise if it stays so, or is gone."""
        self.check()
        if self._unresponsive_error is not None:
            async with waited(SILENCE):
                await self._heard.wait()
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
    def waited_for(self) -> bool:
        """Whether anybody waits for this kernel."""
        side_channel = self.side_channel is not None and self.side_channel.at_work
        return bool(self._waiters) or side_channel

    # ------------------------------------------------------------ for the transport

    def connection_lost(self, why: Callable[[], BridgeError], state: str) -> None:
        """The kernel, or the way to it, is no more: tell everybody who waits."""
        self.generation += 1
        self._lost_error, self._unresponsive_error, self.state = why, None, state
        self._heard.set()
        self._tell(why)
        for listener in list(self.listeners.values()):
            listener.end()

    def connection_made(self) -> None:
        """A kernel answers again."""
        if self.state != "closed":
            self._lost_error, self._unresponsive_error, self.state = None, None, "idle"
            self.shut_down = False

    def unresponsive(self, why: Callable[[], BridgeError]) -> None:
        """The kernel shows no sign of life: fail every waiter; ``responsive`` may follow.

        What is in flight stays in the dispatcher's table: it may run yet, and its reply come late.
        """
        if self._lost_error is None and self._unresponsive_error is None:
            self._unresponsive_error, self.state = why, "unresponsive"
            self._heard.clear()
            self._tell(why)

    def responsive(self) -> None:
        """The kernel, silent for a while, shows a sign of life."""
        if self._unresponsive_error is not None:
            self._unresponsive_error, self.state = None, "busy"  # iopub tells when it is idle
            self._heard.set()

    def _tell(self, why: Callable[[], BridgeError]) -> None:
        for waiter in list(self._waiters):
            if not waiter.done():
                waiter.set_exception(why())
        if self.side_channel is not None:
            self.side_channel.tell(why)
