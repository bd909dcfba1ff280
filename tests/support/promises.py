"""What the tests of promises that are no single fault share.

Rule: helpers alone; what only one file needs stays there.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import AsyncIterator, Iterator

import cloudpickle

from bridgehead import Bridge
from support.kit import other, until

# Test modules aren't importable in a kernel; what they define is shipped like a script's own.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@contextlib.contextmanager
def seeded() -> Iterator[random.Random]:
    """Chance, with its seed told if the block fails."""
    seed = random.randrange(2**32)
    try:
        yield random.Random(seed)
    except BaseException as error:
        error.add_note(f"the seed was {seed}")
        raise


class Sent:
    """What left any bridge: execute requests, bytes of buffers and the most in flight."""

    def __init__(self) -> None:
        self.requests = self.nbytes = self.most = 0


@contextlib.asynccontextmanager
async def occupied(bridge: Bridge) -> AsyncIterator[None]:
    """Somebody else's cell runs for as long as the block lasts."""
    await bridge.push(_go_on=False)
    async with other(bridge) as somebody:
        cell = somebody.submit("import time\nwhile not _go_on: time.sleep(0.01)")
        await until(lambda: bridge.state == "busy")
        try:
            yield
        finally:
            await bridge.push(_go_on=True, now=True)
            await somebody.answer(cell)
