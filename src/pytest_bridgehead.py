"""Fixtures for the tests of whoever uses bridgehead; pytest finds them by itself.

Rule: nothing of the library is imported before a test asks for it. This stands beside the package
and not in it, because pytest imports it at every start, wherever bridgehead is installed: there
the library's own import would cost time, and escape whoever measures coverage.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

try:
    from pytest_asyncio import fixture
except ImportError:  # then anyio's plugin serves a plain one
    fixture = pytest.fixture  # type: ignore[assignment]

if TYPE_CHECKING:
    from bridgehead import Bridge


@fixture
async def bridge() -> AsyncIterator[Bridge]:
    """A ``Bridge`` to a kernel of the test's own, which ends with the test.

    It starts in about half a second (two cores of an AMD EPYC). For tests whose event loop has a
    longer life than one test (``loop_scope``), write a fixture of that scope like this one.

    Raises what ``Bridge.launch`` does, as an error of the fixture.
    """
    from bridgehead import Bridge

    async with Bridge.launch() as bridge:
        yield bridge


@fixture
async def loopback_bridge() -> AsyncIterator[Bridge]:
    """A ``Bridge`` without a kernel, as ``Bridge.loopback`` gives it."""
    from bridgehead import Bridge

    async with Bridge.loopback() as bridge:
        yield bridge
