"""Transports carry Jupyter messages to one kernel and back.

Rule: a transport knows messages and connections, and nothing of objects or lanes. What all
transports share they hold as parts: the dispatcher, the kernel's state (``life``), their tasks.
Each transport adds how a message is sent. It calls ``dispatcher.received`` for each message that
arrives, ``connection_lost`` when the kernel is lost, and ``life.connection_made`` when one answers
again.
"""

from __future__ import annotations

import asyncio
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from bridgehead._errors import BridgeClosed, BridgeError
from bridgehead._shipped.wire.header import Header
from bridgehead._transports.dispatch import Dispatcher
from bridgehead._transports.messages import Messages
from bridgehead._transports.quirks import Quirks, quirks_of
from bridgehead._transports.state import KernelState
from bridgehead._transports.tasks import Tasks, finish

T = TypeVar("T")

MAX_SEND = 32 << 20  # bytes of frames in a message, where the wire sets no limit of its own


class Broadcaster(Protocol):
    """What reaches several kernels with one message."""

    def broadcast(
        self, engines: Sequence[Any], expression: str, parts: Sequence[Any]
    ) -> list[asyncio.Future[Header]]: ...


class Transport(ABC):
    """One kernel's messages. Lives in the event loop that opened it."""

    name: str
    digest: str = "sha256"  # where the wire leaves the machine
    ours: bool = True  # the kernel is this user's, on this machine
    connection_file: str | None = None
    url: str | None = None  # of the server, and the kernel's id there
    kernel_id: str | None = None
    direct: bool = True  # a socket may lead to the kernel's process, where it is ours
    binary: bool = True  # messages may carry buffers
    resumable: bool = False  # a connection that broke is made anew, to the same kernel
    max_send: int = MAX_SEND  # bytes of frames that one message may carry to the kernel
    max_receive: int = MAX_SEND  # and those of one request's answer
    called: str = ""  # what its owner knows the kernel by, where it has a name of its own
    pushes: bool = True  # the loader may send what nobody asked for
    broadcaster: Broadcaster | None = (
        None  # the same one for all kernels that a message of it can reach
    )

    def __init__(self) -> None:
        self.kernel_info: dict[str, Any] = {}
        self.bad = 0  # messages that could not be read
        self.life: KernelState = KernelState()
        self.tasks: Tasks = Tasks()
        self.dispatcher: Dispatcher = Dispatcher(
            self.life,
            # Looked up for each message, because a test may replace ``send`` meanwhile.
            send=lambda *message: self.send(*message),
            message=self.message,
            spawn=self.spawn,
        )
        self._closing: asyncio.Future[None] | None = None
        self._restart: asyncio.Task[None] | None = None

    # ------------------------------------------------------------ for those above

    @property
    def quirks(self) -> Quirks:
        """How this kernel differs from ipykernel."""
        return quirks_of(self.kernel_info)

    @property
    def waited_for(self) -> bool:
        """Whether a caller waits for this kernel, or a request to it is in flight."""
        return self.life.waited_for or bool(self.dispatcher.pending)

    def messages(self) -> Messages:
        """Everything on iopub from now on."""
        return self.dispatcher.messages()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a coroutine, at most for as long as the transport lives."""
        return self.tasks.spawn(work)

    async def restart(self, timeout: float) -> None:
        """Have the kernel's process replaced; two at once are one."""
        if self._restart is None or self._restart.done():
            self._restart = self.spawn(self.replace(timeout))
        try:
            # It is the transport's own: whoever gives up waiting leaves no half a restart.
            await asyncio.shield(self._restart)
        except asyncio.CancelledError:
            self.life.check()  # closed meanwhile
            raise

    async def aclose(self) -> None:
        """Close to the end, whoever cancels whom meanwhile; may be called again."""
        self._closing = self._closing or asyncio.ensure_future(self.close())
        await finish(self._closing)

    # ------------------------------------------------------------ for the transport of its own

    @abstractmethod
    async def send(self, channel: str, message: dict[str, Any], buffers: Sequence[Any]) -> None:
        """Hand one message to the wire, without waiting for the kernel."""

    def message(self, message_type: str, content: dict[str, Any]) -> dict[str, Any]:
        """A new message, with an id that is ours alone; a wire of Jupyter's adds a session."""
        header = {"msg_id": uuid.uuid4().hex, "msg_type": message_type}
        return {"header": header, "content": content}

    @abstractmethod
    async def interrupt(self) -> None: ...

    @abstractmethod
    async def replace(self, timeout: float) -> None:
        """Replace the process, and wait until the next one answers; for ``restart``."""

    async def close(self) -> None:
        """End everything this transport started; for ``aclose``."""
        self.connection_lost(lambda: BridgeClosed("this bridge was closed"), "closed")
        await self.tasks.cancel()

    def connection_lost(self, why: Callable[[], BridgeError], state: str) -> None:
        """The kernel, or the way to it, is no more: tell everybody who waits."""
        if self.life.state != "closed":
            self.life.connection_lost(why, state)
            self.dispatcher.clear()
