"""Work that others may give up waiting for.

Rule: futures and tasks of asyncio; nothing of kernels is known here.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Any


async def to_the_end(work: asyncio.Future[None]) -> None:
    """Await what must not be left half done, whoever cancels whom meanwhile."""
    cancelled = False
    shield: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if "anyio" in sys.modules:  # else no scope of its is around this, and importing it takes 8 ms
        import anyio

        shield = anyio.CancelScope(shield=True)
    with shield:
        while not work.done():
            try:
                await asyncio.wait([work])
            except asyncio.CancelledError:
                cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    work.result()


def noted(done: asyncio.Future[Any]) -> None:
    """Whoever waits for it is told; nobody has to, or may have given up: not "never retrieved"."""
    if not done.cancelled():
        done.exception()
