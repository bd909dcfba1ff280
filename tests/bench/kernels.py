"""A plain ipykernel over TCP, as jupyter_client starts it, without a bridge in it."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from jupyter_client.manager import AsyncKernelManager


@asynccontextmanager
async def plain_kernel() -> AsyncIterator[AsyncKernelManager]:
    """It runs and answers; ended at the end."""
    manager = AsyncKernelManager()
    await manager.start_kernel(stderr=subprocess.DEVNULL)  # its word about plain TCP
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
