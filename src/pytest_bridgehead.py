"""Pytest fixtures for programs that use bridgehead.

Rule: a fixture imports the library when a test asks for it, and no sooner. pytest finds this file
by its entry point, and imports it at every start wherever bridgehead is installed. So it is beside
the package and not in it: importing the package then would cost time, and would come before a
coverage measurement starts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

try:
    from pytest_asyncio import fixture
except ImportError:  # without pytest-asyncio, anyio's plugin runs a plain fixture
    fixture = pytest.fixture  # type: ignore[assignment]

if TYPE_CHECKING:
    from bridgehead import Bridge


@fixture
async def bridge() -> AsyncIterator[Bridge]:
    """Yield a ``Bridge`` to a kernel of the test's own; the kernel ends with the test.

    The kernel starts in about half a second (two cores of an AMD EPYC). If the event loop of your
    tests lives longer than one test (``loop_scope``), write a fixture of that scope like this one.

    The errors of ``Bridge.launch`` become errors of the fixture.
    """
    from bridgehead import Bridge

    async with Bridge.launch() as bridge:
        yield bridge


@fixture
async def loopback_bridge() -> AsyncIterator[Bridge]:
    """Yield a ``Bridge`` without a kernel, as ``Bridge.loopback`` makes it."""
    from bridgehead import Bridge

    async with Bridge.loopback() as bridge:
        yield bridge
