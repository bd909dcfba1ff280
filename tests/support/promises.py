"""Helpers for tests of promises that belong to no single fault.

Rule: no promise is checked here. A helper that only one file uses stays in that file.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from collections.abc import AsyncIterator, Iterator

import cloudpickle

from bridgehead import Bridge
from support.kit import other, until

# A kernel cannot import test modules, so their classes and functions are pickled by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@contextlib.contextmanager
def seeded() -> Iterator[random.Random]:
    """Give a random generator; if the block fails, add its seed to the error."""
    seed = random.randrange(2**32)
    try:
        yield random.Random(seed)
    except BaseException as error:
        error.add_note(f"the seed was {seed}")
        raise


class Sent:
    """Counts of what all bridges sent: requests, bytes of buffers, the most in flight."""

    def __init__(self) -> None:
        self.requests = self.nbytes = self.most = 0


class HeldUp:
    """The function of a callback, whose calls wait until they may go on."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()

    async def __call__(self, step: int) -> None:
        self.seen.append(step)
        self.begun.set()
        await self.go_on.wait()


@contextlib.asynccontextmanager
async def occupied(bridge: Bridge) -> AsyncIterator[None]:
    """Run a cell of another client until the block ends."""
    await bridge.push(_go_on=False)
    async with other(bridge) as client:
        cell = client.submit("import time\nwhile not _go_on: time.sleep(0.01)")
        await client.begun(cell)  # the bridge may still have the state of what ran before
        await until(lambda: bridge.state == "busy")
        try:
            yield
        finally:
            await bridge.push(_go_on=True, now=True)
            await client.answer(cell)
