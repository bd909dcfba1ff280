"""What the tests with servers share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from support.servers import GATEWAY, SERVER, serving


@pytest.fixture(scope="module", params=[SERVER, GATEWAY])
async def anyone(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """Start either kind of server, and give its address."""
    async with serving(request.param) as url:
        yield url
