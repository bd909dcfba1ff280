"""What a transport can carry does not change while a bridge is open."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields

import pytest

from bridgehead import Bridge
from bridgehead._transports.capabilities import Capabilities


@pytest.mark.parametrize("name", [field.name for field in fields(Capabilities)])
async def test_a_capability_is_frozen(loopback: Bridge, name: str) -> None:
    capabilities = loopback._transport.capabilities
    with pytest.raises(FrozenInstanceError):
        setattr(capabilities, name, not getattr(capabilities, name))
    assert not hasattr(loopback._transport, name)  # it is said in one place
