"""The base class of all transports, which carry Jupyter messages.

Rule: a transport knows messages and connections, and nothing of objects or lanes. All transports
are composed of the same parts: what it can carry (``capabilities``), the dispatcher, the kernel's
state (``life``) and their tasks.
Each transport adds how a message is sent. It gives the dispatcher each message that arrives, calls
``connection_lost`` when the kernel is lost, and ``life.connection_made`` when a kernel answers
again.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from bridgehead._errors import (
    CLOSED_MEANWHILE,
    RESTARTED_MEANWHILE,
    BridgeClosed,
    BridgeError,
    KernelRestarted,
    NotSupported,
    ReplyLost,
    TransportError,
)
from bridgehead._shipped.wire.header import PYTHON, ResponseHeader
from bridgehead._transports.capabilities import Capabilities
from bridgehead._transports.dispatch import Dispatcher, Reconnected
from bridgehead._transports.evidence import LocalProcess
from bridgehead._transports.messages import Messages
from bridgehead._transports.quirks import Quirks, quirks_of
from bridgehead._transports.state import KernelState
from bridgehead._transports.tasks import Tasks, finish
from bridgehead._transports.timings import Timings

T = TypeVar("T")
LOSSES = 3  # of a reply, one after the other, after which what does no harm is asked no more


class Broadcaster(Protocol):
    """Sends one message to several kernels."""

    def broadcast(
        self, engines: Sequence[Any], expression: str, parts: Sequence[Any]
    ) -> list[asyncio.Future[ResponseHeader]]: ...


class Transport(ABC):
    """The messages of one kernel. It belongs to the event loop that opened it."""

    timings: Timings = Timings()  # of all transports; tests replace it

    # What it can carry, and its identity. Once the transport is open, nothing of this changes.
    capabilities: Capabilities = Capabilities()
    name: str
    own: str = ""  # why the kernel is this program's own, even without a proof; mostly empty
    no_proof: str = ""  # why the kernel is not asked to prove that it is this user's process here
    connection_file: str | None = None
    url: str | None = None  # of the server
    kernel_id: str | None = None  # on that server
    label: str = ""  # the name that the kernel's owner uses, if there is one
    # One object, shared by all kernels that one of its messages can reach.
    broadcaster: Broadcaster | None = None

    # The kernel's process, if the last handshake found it among those of this machine.
    local_process: LocalProcess | None = None

    def __init__(self) -> None:
        self.kernel_info: dict[str, Any] = {}
        self.unreadable = 0  # messages that could not be read
        self.life: KernelState = KernelState(self.timings)
        self.tasks: Tasks = Tasks()
        has_control = self.capabilities.has_control
        self.dispatcher: Dispatcher = Dispatcher(self.life, self, control=has_control)
        self._closing: asyncio.Future[None] | None = None
        self._restart: asyncio.Task[None] | None = None

    # ------------------------------------------------------------ for the floors above

    @property
    def process(self) -> str | None:
        """The session id of the kernel's process that answered last; None if that is not known."""
        return None

    @property
    def address(self) -> Any:
        """Where the kernel is, which a later process of it may share; None if that is not known."""
        return None

    @property
    def runs_same_python(self) -> bool | None:
        """Whether the kernel has the minor version of this Python; None if that is not known."""
        language = self.kernel_info.get("language_info")
        version = language.get("version") if isinstance(language, dict) else None
        return str(version).split(".")[:2] == list(map(str, PYTHON)) if version else None

    def introduce(self, kernel_info: Any) -> None:  # noqa: B027 - mostly it is known
        """Take the ``kernel_info`` that the response to the handshake has; it may be none."""

    async def introduced(self) -> None:  # noqa: B027 - mostly it is known when this is open
        """Wait until ``kernel_info`` is known.

        Raises:
            KernelNotFound: the kernel never answered.
        """

    @property
    def quirks(self) -> Quirks:
        """Return how this kernel differs from ipykernel."""
        return quirks_of(self.kernel_info)

    @property
    def has_waiters(self) -> bool:
        """Whether a caller waits for this kernel, or a request to it is in flight."""
        return self.life.has_waiters or bool(self.dispatcher.pending)

    def messages(self) -> Messages:
        """Return a stream of all messages on iopub from now on."""
        return self.dispatcher.messages()

    async def open_input(self) -> None:  # noqa: B027 - mostly the channel is there
        """Have the kernel's questions for input arrive, from now on.

        Raises:
            NotSupported: the kernel, or the way to it, has no channel for them.
        """

    def expect_events(self, owner: str, epoch: str) -> None:  # noqa: B027 - mostly they are sent
        """Have the events of this owner arrive from now on, from the remote part of this epoch."""

    def outputs(self) -> contextlib.AbstractContextManager[None]:
        """Have the outputs of cells arrive while the block lasts; mostly they always do."""
        return contextlib.nullcontext()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a coroutine. Closing the transport cancels it."""
        return self.tasks.spawn(work)

    async def wait_for(self, shared: asyncio.Future[None]) -> None:
        """Wait for a task of the transport that callers share; a cancelled one does not stop it."""
        try:
            await asyncio.shield(shared)
        except asyncio.CancelledError:
            if self.life.state == "closed":  # that cancels the transport's tasks
                self.life.check()
            raise

    async def until_replied(self, ask: Callable[[], Awaitable[T]], losses: int = LOSSES) -> T:
        """Ask what does no harm when it is asked twice, and is no call, until there is a reply.

        Raises:
            ReplyLost, TransportError: so many replies were lost; breaks of a connection that was
                made again (``Reconnected``) do not count.
            BridgeError: the kernel is lost, or does not answer.
        """
        while True:
            try:
                return await ask()
            except (ReplyLost, TransportError) as error:
                losses -= not isinstance(error, Reconnected)
                if not losses:
                    raise
            self.life.check_responsive()
            await asyncio.sleep(self.timings.ask_again_after)

    @property
    def no_restart(self) -> str:
        """Why the kernel's process cannot be replaced; empty if it can."""
        return ""

    async def restart(self, timeout: float) -> None:
        """Have the kernel's process replaced. Concurrent calls share one restart.

        Raises:
            NotSupported: it cannot be replaced; says why.
        """
        if self.no_restart:
            raise NotSupported(self.no_restart)
        if self._restart is None or self._restart.done():
            self._restart = self.spawn(self.replace(timeout))
        await self.wait_for(self._restart)

    async def find_cause(self) -> None:
        """Return if the kernel answers, or nothing shows that it does not; else raise why.

        For a connection beside the messages that broke: the process may have ended, or only the
        connection. The control channel answers while a cell runs.
        """
        generation = self.life.generation
        try:
            await self.dispatcher.control(
                "kernel_info_request", {}, self.timings.answers_after_break
            )
        except (TimeoutError, TransportError) as error:
            await self.look_at_process()
            if isinstance(error, TransportError):
                await self.life.wait_for_cause()
        self.life.check()
        if generation != self.life.generation:
            raise KernelRestarted(RESTARTED_MEANWHILE)

    async def look_at_process(self) -> None:  # noqa: B027 - mostly there is nothing to look at
        """Report the end of the process now, where this process can see it."""

    async def aclose(self) -> None:
        """Close completely, even if the caller is cancelled.

        Called again, it tries again what failed.
        """
        if self._closing is None or (self._closing.done() and not self.is_released):
            self._closing = asyncio.ensure_future(self.close())
        await finish(self._closing)

    @property
    def closing_began(self) -> bool:
        """Whether ``aclose`` was called, even if it failed."""
        return self._closing is not None

    @property
    def is_released(self) -> bool:
        """Whether ``aclose`` has released everything that belongs to the transport."""
        closing = self._closing
        if closing is None or not closing.done() or closing.cancelled():
            return False
        return closing.exception() is None

    # ------------------------------------------------------------ for each transport to define

    @abstractmethod
    async def send(self, channel: str, message: dict[str, Any], buffers: Sequence[Any]) -> None:
        """Send one message, without waiting for the kernel."""

    async def nudge(self) -> None:  # noqa: B027 - only some kernels need it
        """Make the kernel read messages that it has missed; see ``quirks``.

        A failure is no matter: this is called again while a reply is missing.
        """

    def message(self, message_type: str, content: dict[str, Any]) -> dict[str, Any]:
        """Make a new message with a unique id. Transports that need a session add it."""
        header = {"msg_id": uuid.uuid4().hex, "msg_type": message_type}
        return {"header": header, "content": content}

    @abstractmethod
    async def interrupt(self) -> None: ...

    @abstractmethod
    async def replace(self, timeout: float) -> None:
        """Replace the process and wait until the new one answers; for ``restart``."""

    async def close(self) -> None:
        """End everything this transport started; for ``aclose``.

        Each step runs whatever an earlier one raised, and may run again.
        """
        self.connection_lost(lambda: BridgeClosed(CLOSED_MEANWHILE), "closed")
        await self.tasks.cancel()

    def connection_lost(self, why: Callable[[], BridgeError], state: str) -> None:
        """Report to all waiters that the kernel, or the connection to it, is lost."""
        if self.life.state != "closed":
            self.life.connection_lost(why, state)
            self.dispatcher.clear()
