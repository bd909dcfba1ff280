"""One call: what it asks for, its deadline and its response.

Rule: values that an operation carries through the connection, and its deadline. No policy: the
order belongs to ``queue``, what a restart means belongs to ``connection``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from bridgehead._connection.queue import Turn
from bridgehead._lanes.base import Request
from bridgehead._lanes.broadcast import Delivery
from bridgehead._protocol import payload as _payload
from bridgehead._shipped.wire.header import Header
from bridgehead._shipped.wire.segments import Segment
from bridgehead._transports.base import Transport

# The public method for each operation, for messages to the user.
PUBLIC_NAMES = {"bind": "push", "fetch": "pull", "drop": "delete", "has": "exists"}


def check_seconds(seconds: object) -> None:
    """Raise ``TypeError`` unless ``seconds`` is a number or None."""
    if seconds is not None and not isinstance(seconds, (int, float)):
        raise TypeError(f"timeout= takes a number of seconds or None, not {seconds!r}")


class Deadline:
    """The deadline of one operation; raises a ``TimeoutError`` that says whether it was sent.

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

    async def __aenter__(self) -> None:
        if self._scope is not None:
            await self._scope.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
        call = self._call
        unsent = call is not None and call.turn is not None and not call.turn.sent
        outcome = "the request was not sent" if unsent else "the request may still run"
        raise TimeoutError(
            f"{self._operation} timed out after {self._asked:g} s: the kernel is "
            f"{self._transport.life.state}, and {outcome}"
        ) from None


@dataclass(frozen=True, slots=True)
class SignedPayload:
    """A payload and its digest.

    Attributes:
        segment: the segment that holds the frames already, if any.
        delivery: the broadcast that brings the frames to this kernel, if any.
    """

    payload: _payload.Payload
    digest: str
    segment: Segment | None = None
    delivery: Delivery | None = None

    @property
    def has_digest(self) -> bool:
        """Whether ``digest`` is a sum over the frames; ``"none:"``, of the direct lane, is not."""
        return self.digest != "none:"


NOTHING = SignedPayload(_payload.EMPTY, "")


@dataclass(slots=True)
class Call:
    """One call of a user, on its way through the connection; ``fields`` go into the header."""

    operation: str
    content: _payload.PayloadSource | None
    report: Callable[[int, int], object] | None
    fields: dict[str, Any]
    packed: SignedPayload | None = None
    turn: Turn | None = None
    unread: bool = False  # see ``Request``

    @property
    def needs_codec(self) -> bool:
        return "data" in (self.fields.get("trust"), self.fields.get("opens"))


@dataclass(slots=True)
class Response:
    """The response to one operation.

    Attributes:
        header: the response's header.
        frames: the response's frames.
        request: the request that it belongs to.
    """

    header: Header
    frames: list[memoryview]
    request: Request
