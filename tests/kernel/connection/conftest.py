"""Fixtures for tests of a connection to a real kernel: a count of what was sent.

Rule: a fixture that only one file needs is in that file; ``tests/conftest.py`` provides kernels.
"""

from __future__ import annotations

from typing import Any

import pytest

from bridgehead._transports.dispatch import Dispatcher
from support.promises import Sent


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    count = Sent()
    put = Dispatcher.put

    async def counted(
        self: Dispatcher,
        channel: str,
        message: dict[str, Any],
        buffers: Any = (),
        *a: Any,
        **k: Any,
    ) -> Any:
        count.requests += message["header"]["msg_type"] == "execute_request"
        count.nbytes += sum(memoryview(buffer).nbytes for buffer in buffers)
        pending = await put(self, channel, message, buffers, *a, **k)
        count.most = max(count.most, self.in_flight)
        return pending

    monkeypatch.setattr(Dispatcher, "put", counted)
    return count
