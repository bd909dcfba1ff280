"""What the public docstrings show is what happens: those that need a kernel or a server.

Rule: as ``test_docstrings.py``, with the real thing behind each name.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from jupyter_client.manager import AsyncKernelManager
from kit import file_of
from servers import TOKEN

from bridgehead import Bridge, SyncBridge
from docstrings import NEED_MORE, public, run

PUBLIC = dict(public())
SERVERS = ("Bridge.connect", "SyncBridge.connect")
CLUSTER = "Fleet.over"  # in test_engines.py, which has one
KERNELS = sorted(NEED_MORE.difference(SERVERS, [CLUSTER]))


@pytest.mark.parametrize("name", KERNELS)
async def test_its_example_gives_what_it_shows(name: str) -> None:
    manager = AsyncKernelManager()
    await manager.start_kernel()
    names: dict[str, Any] = {"asyncio": asyncio, "manager": manager}
    try:
        async with Bridge.launch(lane="buffers") as bridge:
            names |= {"bridge": bridge, "connection_file": file_of(bridge)}
            with SyncBridge.launch() as kernel:
                await run(PUBLIC[name], {**names, "kernel": kernel})
    finally:
        await manager.shutdown_kernel(now=True)


@pytest.mark.servers
@pytest.mark.parametrize("name", SERVERS)
async def test_its_example_gives_what_it_shows_of_a_server(name: str, server: str) -> None:
    await run(PUBLIC[name], {"url": server, "token": TOKEN})
