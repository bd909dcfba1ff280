"""The leases and segments of the direct lane at both ends, for tests that count them.

Rule: this file looks inside bridgehead, so that the tests need not. It looks into the kernel with
``call``, which leaves no name there. It starts nothing and ends nothing.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
import tracemalloc
from typing import Any

from bridgehead import Bridge
from bridgehead._lanes.direct import DirectLane
from bridgehead._lanes.socket import SocketClient


def trace_anew() -> None:
    """Trace memory from now on; ``tracemalloc.get_traced_memory`` has what is used, and the peak.

    Tracing goes on until the end of the test. In Python before 3.12, stopping it while another
    thread allocates may crash the process, so it is not stopped more often.
    """
    if not tracemalloc.is_tracing():
        tracemalloc.start()
    tracemalloc.clear_traces()
    tracemalloc.reset_peak()


OWN = [sys.modules[__name__]]  # the kernel cannot import this module


def client(bridge: Bridge) -> SocketClient:
    lane = bridge._connection.remote.lane
    assert isinstance(lane, DirectLane), f"the lane is {lane.name}"
    return lane.client


def client_counts(bridge: Bridge) -> dict[str, int]:
    """Count the client's leases, the bytes of its segments and the kernel's segments it maps."""
    gc.collect()
    slabs = list(client(bridge).pool.slabs.values())
    return {
        "leases": sum(slab.leased for slab in slabs),
        "bytes": sum(slab.nbytes for slab in slabs),
        "mapped": len(client(bridge).channel.maps.known),
    }


def _count_in_kernel() -> dict[str, Any]:
    import gc
    import sys

    gc.collect()
    module: Any = next(m for n, m in sys.modules.items() if n.startswith("_bridgehead"))
    found = {"leases": 0, "bytes": 0, "mapped": 0, "kept": 0}
    for remote in module._remotes.values():
        found["kept"] += len(remote.transfers.inboxes) + len(remote.transfers.outboxes)
        for server in list(remote.socket_threads.values()):
            slabs = list(server.channel.pool.slabs.values())
            found["leases"] += sum(slab.leased for slab in slabs)
            found["bytes"] += sum(slab.nbytes for slab in slabs)
            found["mapped"] += len(server.channel.maps.known)
    return found


async def kernel_counts(bridge: Bridge) -> dict[str, int]:
    """Count the same in the kernel, and the unfinished transfers that it keeps."""
    found: dict[str, int] = await bridge.call(_count_in_kernel, by_value=OWN)
    return found


async def kernel_leases_nothing(bridge: Bridge, seconds: float = 30) -> None:
    """Wait until no segment of the kernel is leased: a thread may hold a value a moment longer."""
    async with asyncio.timeout(seconds):
        while (await kernel_counts(bridge))["leases"]:
            await asyncio.sleep(0.05)


async def nothing_is_leased(bridge: Bridge, seconds: float = 30) -> None:
    """Wait until neither end leases a segment, and the kernel keeps no unfinished transfer.

    All names in the kernel are deleted. The caller deletes the values in the client.
    """
    names = [name.name for name in await bridge.names()]
    if names:
        await bridge.delete(*names)
    end = time.monotonic() + seconds
    while True:
        in_client, in_kernel = client_counts(bridge), await kernel_counts(bridge)
        if not (in_client["leases"] or in_kernel["leases"] or in_kernel["kept"]):
            return
        assert time.monotonic() < end, (in_client, in_kernel)
        await asyncio.sleep(0.1)


def _threads() -> list[str]:
    import threading

    return [thread.name for thread in threading.enumerate()]


async def socket_threads(bridge: Bridge) -> int:
    """Count the threads in the kernel that serve a direct lane."""
    return (await bridge.call(_threads, by_value=OWN)).count("bridgehead-direct")
