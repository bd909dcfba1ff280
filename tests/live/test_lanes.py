"""Which lane is taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bridgehead import Bridge, NotSupported
from bridgehead._transports.loopback import LoopbackTransport


async def test_the_fastest_by_default_and_any_other_by_its_name(live: Bridge) -> None:
    assert live.info.lane == "direct"
    assert (await live.push(x=1)).lane == "direct"
    for lane in ("auto", "direct", "buffers", "inline"):
        async with Bridge.attach(live.info.connection_file, lane=lane) as other:
            taken = "direct" if lane == "auto" else lane
            assert other.info.lane == taken
            assert (await other.push(x=2)).lane == taken


async def test_buffers_without_a_process_to_connect_to() -> None:
    async with Bridge.loopback() as bridge:
        assert bridge.info.lane == "buffers"
    with pytest.raises(NotSupported, match="there is no direct way to this kernel: .* process"):
        await Bridge.loopback(lane="direct")


@pytest.fixture
def no_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wire that passes messages and drops their buffers, as some kernels and proxies do."""
    send = LoopbackTransport.send

    async def dropping(self: Any, channel: str, message: Any, buffers: Any) -> None:
        await send(self, channel, message, ())

    monkeypatch.setattr(LoopbackTransport, "send", dropping)


async def test_inline_where_buffers_do_not_arrive(no_buffers: None) -> None:
    async with Bridge.loopback() as bridge:
        assert bridge.info.lane == "inline"
        await bridge.push(x=np.arange(1000.0))
        assert (await bridge.pull("x")).sum() == 499500
    with pytest.raises(NotSupported, match="does not pass message buffers; use lane='inline'"):
        await Bridge.loopback(lane="buffers")
