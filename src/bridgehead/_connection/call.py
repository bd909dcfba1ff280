"""One call: what it asks for, and its deadline.

Rule: what a user asked for, on its way through the connection. No policy: the order belongs to
``queue``, what a restart means belongs to ``connection``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from bridgehead._connection.queue import Turn
from bridgehead._lanes.broadcast import Delivery
from bridgehead._protocol.payload import Payload, PayloadSource
from bridgehead._protocol.request import OutputHandler
from bridgehead._transports.base import Transport

# The public method for each operation, for messages to the user.
PUBLIC_NAMES = {
    "bind": "push",
    "fetch": "pull",
    "drop": "delete",
    "has": "exists",
    "start": "call",
    "advance": "iterate",
}


def check_seconds(seconds: object) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless ``seconds`` is a number or None."""
    if seconds is not None and not isinstance(seconds, (int, float)):
        raise TypeError(f"timeout= takes a number of seconds or None, not {seconds!r}")
    if seconds != seconds:  # nan: an event loop cannot sort it among its timers
        raise ValueError("timeout= takes a number of seconds or None, not nan")


class Deadline:
    """The deadline of one operation; raises a ``TimeoutError`` that says whether it was sent.

    A ``MemoryError`` of this process gets a note that says the same.

    A class and not an ``asynccontextmanager``: every operation enters one, and a class costs a
    third of the time.
    """

    __slots__ = ("_asked", "_call", "_operation", "_scope", "_transport")

    def __init__(
        self,
        seconds: float | None,
        operation: str,
        transport: Transport,
        call: Call | None = None,
        asked: float | None = None,
    ) -> None:
        """Set the deadline; ``call`` shows whether the request was sent.

        ``asked`` is the caller's timeout, where ``seconds`` is only what is left of it.
        """
        check_seconds(seconds)
        self._operation, self._transport, self._call = operation, transport, call
        self._asked = asked or seconds
        self._scope = None if seconds is None else asyncio.timeout(seconds)
        if call is not None:
            call.scope = self._scope

    async def __aenter__(self) -> None:
        if self._scope is not None:
            await self._scope.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and isinstance(error, MemoryError):
            outcome = "" if self._call is None else f"; {self._outcome()}"
            error.add_note(f"{self._operation}: this process has no memory{outcome}")
        if self._scope is None:
            return
        try:
            await self._scope.__aexit__(kind, error, trace)
        except TimeoutError:
            pass  # the scope's own error has no text; the one below has
        else:
            # A TimeoutError that the block raised itself passes, unless this deadline caused it.
            if not (isinstance(error, TimeoutError) and self._scope.expired()):
                return
        raise TimeoutError(
            f"{self._operation} timed out after {self._asked:g} s: the kernel is "
            f"{self._transport.life.state}, and {self._outcome()}"
        ) from None

    def _outcome(self) -> str:
        call = self._call
        unsent = call is not None and call.turn is not None and not call.turn.sent
        return "the request was not sent" if unsent else "the request may still run"


@dataclass(slots=True, eq=False)
class Call:
    """What a user asked for.

    Attributes:
        source: the object to pickle, if any.
        payload: the object as it is sent, once it is pickled; a fleet and a handoff set it.
        delivery: the broadcast that brings the payload's frames to this kernel, if any.
        fields: of the header.
        now: whether it takes no turn, and is served while a cell runs.
        limit: the most bytes that the response may have; None for any number.
        report: called with bytes done and bytes in all.
        unread: see ``Request``.
        outputs: takes the outputs of the caller's code; see ``Request``.
        turn: its place in the queue.
        shell: the kernel's subshell that serves it, if any.
        interrupts: whether it is interrupted in the kernel when its caller gives up.
        is_unattended: whether no caller waits for it now; what reports a restart does so later.
        any_process: whether it needs nothing that the kernel had, and so may go to a new process
            before a caller knows of the restart; the caller's next other call reports it.
        request: the id of its request, once there is one.
        scope: its deadline, if it has one.
        method: which method the caller used, where ``operation`` does not say it.
    """

    operation: str
    source: PayloadSource | None = None
    payload: Payload | None = None
    delivery: Delivery | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    now: bool = False
    limit: int | None = None
    report: Callable[[int, int], object] | None = None
    unread: bool = False
    outputs: OutputHandler | None = None
    turn: Turn | None = None
    shell: dict[str, Any] | None = None
    interrupts: bool = False
    is_unattended: bool = False
    any_process: bool = False
    request: str = ""
    scope: asyncio.Timeout | None = None
    method: str = ""

    @property
    def public_name(self) -> str:
        """What its caller knows it as."""
        return self.method or PUBLIC_NAMES.get(self.operation, self.operation)

    @property
    def was_sent(self) -> bool:
        """Whether the kernel may have begun it."""
        return self.turn is not None and self.turn.sent

    @property
    def is_late(self) -> bool:
        """Whether its deadline has passed before its end."""
        return self.scope is not None and self.scope.expired()

    @property
    def nbytes(self) -> int:
        """Bytes of the objects that it sends, once they are pickled."""
        return 0 if self.payload is None else self.payload.nbytes
