"""A request on its way, and its reply.

Rule: values in the table of a transport; what becomes of them is the transport's.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from bridgehead._errors import TransportError


@dataclass(slots=True)
class Reply:
    """A reply: the request's id, its content, and what was sent to us alone ahead of it."""

    id: str
    content: dict[str, Any]
    buffers: list[Any]


@dataclass(slots=True)
class Pending:
    """A request that was sent and is not answered yet."""

    id: str
    future: asyncio.Future[Reply]
    slot: bool  # of the window; inquiries and control requests take none
    subshell: str | None = None
    repeatable: bool = False  # it may be sent again if the connection breaks
    nbytes: int = 0  # as it was sent, where that matters
    cut: bool = False  # its connection broke: what arrives of it may not be all
    buffers: list[Any] = field(default_factory=list)
    inquired: bool = False


class Reconnected(TransportError):
    """The connection broke and was made anew, to the same kernel: what may be asked again, is."""
