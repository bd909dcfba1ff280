"""What the direct lane keeps, on either side: for tests that count it.

Rule: it looks inside bridgehead, so that the tests need not. Over there it looks by ``call``,
which leaves no name; nothing here starts or ends anything.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from typing import Any

from bridgehead import Bridge
from bridgehead._lanes.direct import DirectLane
from bridgehead._lanes.socket import SocketClient

OWN = [sys.modules[__name__]]  # the kernel does not have it


def client(bridge: Bridge) -> SocketClient:
    lane = bridge._connection.remote.lane
    assert isinstance(lane, DirectLane), f"the lane is {lane.name}"
    return lane.client


def here(bridge: Bridge) -> dict[str, int]:
    """Leases given, bytes of segments, segments mapped of the other side's."""
    gc.collect()
    segments = list(client(bridge).pool.segments.values())
    return {
        "leases": sum(segment.leases for segment in segments),
        "bytes": sum(segment.capacity for segment in segments),
        "mapped": len(client(bridge).channel.maps.known),
    }


def _there() -> dict[str, Any]:
    import gc
    import sys

    gc.collect()
    loader: Any = next(m for n, m in sys.modules.items() if n.startswith("_bridgehead"))
    found = {"leases": 0, "bytes": 0, "mapped": 0, "kept": 0}
    for remote in loader._served.values():
        found["kept"] += len(remote.transfers.inboxes) + len(remote.transfers.outboxes)
        for server in list(remote.servers.values()):
            segments = list(server.channel.pool.segments.values())
            found["leases"] += sum(segment.leases for segment in segments)
            found["bytes"] += sum(segment.capacity for segment in segments)
            found["mapped"] += len(server.channel.maps.known)
    return found


async def there(bridge: Bridge) -> dict[str, int]:
    """The same over there, and how many unfinished transfers are kept."""
    found: dict[str, int] = await bridge.call(_there, by_value=OWN)
    return found


async def given_back(bridge: Bridge, seconds: float = 30) -> None:
    """Wait until the kernel has lent nothing: a thread may hold what it opened a moment longer."""
    async with asyncio.timeout(seconds):
        while (await there(bridge))["leases"]:
            await asyncio.sleep(0.05)


async def nothing_is_lent(bridge: Bridge, seconds: float = 30) -> None:
    """Wait until neither side uses a segment of the other's, nor keeps half of anything.

    Every name over there is deleted; the values over here are the caller's to delete.
    """
    names = [told.name for told in await bridge.names()]
    if names:
        await bridge.delete(*names)
    end = time.monotonic() + seconds
    while True:
        near, remote = here(bridge), await there(bridge)
        if not (near["leases"] or remote["leases"] or remote["kept"]):
            return
        assert time.monotonic() < end, (near, remote)
        await asyncio.sleep(0.1)


def _threads() -> list[str]:
    import threading

    return [thread.name for thread in threading.enumerate()]


async def servers(bridge: Bridge) -> int:
    """Threads over there that serve a direct lane."""
    return (await bridge.call(_threads, by_value=OWN)).count("bridgehead-direct")
