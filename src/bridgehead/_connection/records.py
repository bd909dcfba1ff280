"""Records of operations: what crossed, on which lane, and in which time; and the counts of them.

Rule: one DEBUG record for each operation, on the logger ``bridgehead``. It has the kernel, the
operation, its id, outcome, bytes, lane and milliseconds; never a value, an expression, a name, a
message of an error or a token. Where DEBUG is off, an operation costs one question to the logger,
and neither a task nor a frame.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from bridgehead._connection.call import Call
from bridgehead._transports.base import Transport

T = TypeVar("T")
log = logging.getLogger("bridgehead")


@dataclass(slots=True, eq=False)
class Counters:
    """What a connection counts from its beginning on.

    Attributes:
        operations: requests and cells that were begun.
        sent, received: bytes of the objects of requests that succeeded.
        retries: of requests that had not run; see ``dispatch`` for more of them.
    """

    operations: int = 0
    sent: int = 0
    received: int = 0
    retries: int = 0


def recorded(
    transport: Transport,
    call: Call,
    work: Coroutine[Any, Any, T],
    done: Callable[[T], str],
    failed: Callable[[], str],
) -> Coroutine[Any, Any, T]:
    """Return the work of a call, with a record of it if DEBUG is on.

    ``done`` describes what the work returned. ``failed`` says what crossed if it raised.
    """
    if not log.isEnabledFor(logging.DEBUG):
        return work

    async def recorded_work() -> T:
        started = time.perf_counter()
        text = ""
        try:
            returned = await work
            text = done(returned)
        except BaseException as error:
            # The deadline surrounds this work: it cancels the work, and then raises a TimeoutError.
            is_late = isinstance(error, asyncio.CancelledError) and call.is_late
            text = f"{'TimeoutError' if is_late else type(error).__name__}, {failed()}"
            raise
        else:
            return returned
        finally:
            milliseconds = 1000 * (time.perf_counter() - started)
            identity = call.request or "not sent"
            form = "%s: %s (%s): %s in %.1f ms"
            log.debug(form, transport.life.name, call.public_name, identity, text, milliseconds)

    return recorded_work()


def crossed(sent: int, received: int, lane: str) -> str:
    """Say how many bytes of objects crossed, and how."""
    return f"{sent:,} bytes sent, {received:,} received, lane {lane}"
