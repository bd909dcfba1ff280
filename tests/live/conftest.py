"""What the tests of real kernels share: one kernel, or one server, for all of a file."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from servers import Wire, serving

from bridgehead import Bridge


@pytest.fixture(scope="module")
async def harmless() -> AsyncIterator[Bridge]:
    """One kernel for all tests of a file that leave it as it was."""
    async with Bridge.launch() as bridge:
        yield bridge


@pytest.fixture
async def kernel(harmless: Bridge) -> Bridge:
    """The kernel that is shared, with nothing in its namespace."""
    if harmless.state == "busy":  # a test that failed may have left its cell
        await harmless.interrupt()
        await harmless.run("")  # what it asked for behind that cell has been done
    names = [told.name for told in await harmless.names()]
    if names:
        await harmless.delete(*names)
    return harmless


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[str]:
    """The address of one Jupyter Server for all tests of a file."""
    async with serving() as url:
        yield url


@pytest.fixture
async def wire(server: str) -> AsyncIterator[Wire]:
    """A way to that server which the test can break."""
    async with Wire(server) as wire:
        yield wire
