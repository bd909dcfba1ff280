"""bridgehead with a kernel of its own. Argument: the lane; default: ``auto``."""

from __future__ import annotations

from typing import Any

from bridgehead import Bridge
from bridgehead._tools.bench.peers import LanePeer


def make(lane: Any = "auto") -> LanePeer:
    return LanePeer(lane, Bridge.launch(lane=lane))
