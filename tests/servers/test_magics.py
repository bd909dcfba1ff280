"""``%%bridge`` in a notebook kernel, with a kernel behind a server.

Rule: the near side is driven as a front end drives it, by cells.
"""

from __future__ import annotations

import pytest

from bridgehead import Bridge
from support.notebook import seen
from support.servers import TOKEN


@pytest.mark.servers
async def test_a_kernel_behind_a_server(server: str) -> None:
    async with Bridge.launch() as near:
        await near.run("%load_ext bridgehead")
        (told,) = await seen(near, f"%bridge connect {server}/?token={TOKEN} --on far")
        assert told[1].startswith("far: ")
        assert "websocket" in told[1]
        assert TOKEN not in told[1]
        await near.run("rows = [1, 2, 3]")
        assert await seen(near, "%%bridge --push rows --pull total\ntotal = sum(rows)\ntotal") == [
            ("execute_result", "6")
        ]
        assert await near.pull("total") == 6
        await near.run("%bridge close far")
