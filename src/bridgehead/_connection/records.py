"""Records of operations: what crossed, on which lane, and in which time; and the counts of them.

Rule: one DEBUG record for each operation, on the logger ``bridgehead``. It has the operation, its
id, bytes and milliseconds; never a value, an expression, a name, a message of an error or a token.
Where DEBUG is off, an operation costs one question to the logger, and no task, frame or object.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from bridgehead._connection.calls import PUBLIC_NAMES, Call

T = TypeVar("T")
log = logging.getLogger("bridgehead")


class Counters:
    """What a connection counts from its beginning on.

    Attributes:
        operations: requests and cells that were begun.
        sent, received: bytes of the objects of requests that succeeded.
        retries: of requests that had not run; see ``dispatch`` for more of them.
    """

    __slots__ = ("operations", "received", "retries", "sent")

    def __init__(self) -> None:
        self.operations: int = 0
        self.sent: int = 0
        self.received: int = 0
        self.retries: int = 0


def recorded(
    call: Call, work: Coroutine[Any, Any, T], outcome: Callable[[T], str]
) -> Coroutine[Any, Any, T]:
    """Return the work of a call, with a record of it if DEBUG is on; ``outcome`` describes it."""
    return _recorded(call, work, outcome) if log.isEnabledFor(logging.DEBUG) else work


async def _recorded(call: Call, work: Coroutine[Any, Any, T], outcome: Callable[[T], str]) -> T:
    started = time.perf_counter()
    text = ""
    try:
        done = await work
        text = outcome(done)
    except BaseException as error:
        text = type(error).__name__
        raise
    else:
        return done
    finally:
        milliseconds = 1000 * (time.perf_counter() - started)
        operation = PUBLIC_NAMES.get(call.operation, call.operation)
        identity = call.request or "not sent"
        log.debug("%s (%s): %s in %.1f ms", operation, identity, text, milliseconds)
