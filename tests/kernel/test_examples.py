"""Examples in public docstrings that need a kernel.

Rule: as in ``unit/test_public_docstrings.py``, with a real object for each name.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest
from jupyter_client.manager import AsyncKernelManager

from bridgehead import Bridge, Fleet, SyncBridge, SyncFleet
from support.docstrings import NEED_MORE, SERVERS, examples, public, run
from support.kit import file_of

PUBLIC = dict(public())
CLUSTER = ("Fleet.over", "SyncFleet.over")  # in servers/test_engines.py, which has one
KERNELS = sorted(NEED_MORE.difference(SERVERS, CLUSTER))


@pytest.mark.parametrize("name", KERNELS)
async def test_an_example_prints_what_it_shows(name: str) -> None:
    source = "".join(example.source for example in examples(PUBLIC[name]))
    names: dict[str, Any] = {"asyncio": asyncio}
    async with AsyncExitStack() as opened:  # objects that the example expects
        if "manager" in source:
            names["manager"] = manager = AsyncKernelManager()
            await manager.start_kernel()
            opened.push_async_callback(manager.shutdown_kernel, now=True)
        if name in ("SyncBridge.interrupt", "SyncBridge.restart"):
            names["kernel"] = opened.enter_context(SyncBridge.launch())
        if name in ("Bridge.interrupt", "Bridge.restart") or "connection_file" in source:
            bridge = await opened.enter_async_context(Bridge.launch(lane="buffers"))
            names |= {"bridge": bridge, "connection_file": file_of(bridge)}
        if name in ("Fleet.interrupt", "Fleet.restart"):
            names["fleet"] = await opened.enter_async_context(Fleet.launch(2))
        if name in ("SyncFleet.interrupt", "SyncFleet.restart"):
            names["kernels"] = opened.enter_context(SyncFleet.launch(2))
        await run(PUBLIC[name], names)
