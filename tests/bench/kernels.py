"""A plain ipykernel over TCP, started by jupyter_client, without bridgehead's remote part."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from jupyter_client.manager import AsyncKernelManager


@asynccontextmanager
async def plain_kernel() -> AsyncIterator[AsyncKernelManager]:
    """Start a kernel that answers; shut it down at the end of the block."""
    manager = AsyncKernelManager()
    await manager.start_kernel(stderr=subprocess.DEVNULL)  # it warns of plain TCP
    try:
        client = manager.client()
        client.start_channels()
        try:
            await client.wait_for_ready(timeout=60)
        finally:
            client.stop_channels()
        yield manager
    finally:
        await manager.shutdown_kernel(now=True)
        manager.context.destroy(linger=0)
