"""What a caller asked for, until when, and what came back.

Rule: values that an operation carries through the connection, and its deadline. No policy: who
goes next is ``queue``'s, what a restart means is ``connection``'s.
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

# What a user called the operation.
PUBLIC_NAMES = {"bind": "push", "fetch": "pull", "drop": "delete", "has": "exists"}


def check_seconds(seconds: object) -> None:
    """Raise ``TypeError`` unless it is a number of seconds, or None."""
    if seconds is not None and not isinstance(seconds, (int, float)):
        raise TypeError(f"timeout is a number of seconds or None, not {seconds!r}")


class Deadline:
    """The builtin ``TimeoutError`` for an operation that took longer, with what is known.

    A class and no ``asynccontextmanager``: every operation enters one, and this costs a third.
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
        """``call`` knows whether it was sent; ``asked`` is what the caller had given it, where
        some of it was used up before.
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
            pass  # the scope's own says nothing; it is raised with what is known below
        else:
            # A TimeoutError of the block's own passes, unless it came of this deadline.
            if not (isinstance(error, TimeoutError) and self._scope.expired()):
                return
        call = self._call
        waited = call is not None and call.turn is not None and not call.turn.sent
        end = "It was not sent" if waited else "What was sent to it may still run there"
        raise TimeoutError(
            f"{self._operation} got no answer within {self._asked:g} s; the kernel is "
            f"{self._transport.life.state}. {end}"
        ) from None


@dataclass(frozen=True, slots=True)
class SignedPayload:
    """What a request brings, and its digest.

    Attributes:
        segment: the memory that it is in already, if it is.
        landing: how it reaches this kernel by a message to many, if it does.
    """

    payload: _payload.Payload
    digest: str
    segment: Segment | None = None
    delivery: Delivery | None = None

    @property
    def is_signed(self) -> bool:
        return self.digest != "none:"


NOTHING = SignedPayload(_payload.EMPTY, "")


@dataclass(slots=True)
class Call:
    """One call of a user's, on its way through the foothold; ``fields`` go into the header."""

    operation: str
    content: _payload.PayloadSource | None
    report: Callable[[int, int], object] | None
    fields: dict[str, Any]
    packed: SignedPayload | None = None
    turn: Turn | None = None
    unread: bool = False  # here: see Request

    @property
    def needs_codec(self) -> bool:
        return "data" in (self.fields.get("trust"), self.fields.get("opens"))


@dataclass(slots=True)
class Response:
    """What came of an operation.

    Attributes:
        header: of the response.
        frames: the answer's frames.
        request: what was asked.
    """

    header: Header
    frames: list[memoryview]
    request: Request
