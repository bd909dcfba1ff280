"""``%%bridge`` in a notebook kernel, with a kernel behind a server.

Rule: the notebook's kernel is driven as a front end drives it, by cells.
"""

from __future__ import annotations

import pytest

from bridgehead import Bridge
from support.notebook import seen
from support.servers import TOKEN


@pytest.mark.servers
async def test_the_magic_uses_a_kernel_behind_a_server(server: str) -> None:
    async with Bridge.launch() as notebook:
        await notebook.run("%load_ext bridgehead")
        (output,) = await seen(notebook, f"%bridge connect {server}/?token={TOKEN} --on remote")
        assert output[1].startswith("remote: ")
        assert "websocket" in output[1]
        assert TOKEN not in output[1]
        await notebook.run("rows = [1, 2, 3]")
        cell = "%%bridge --push rows --pull total\ntotal = sum(rows)\ntotal"
        assert await seen(notebook, cell) == [("execute_result", "6")]
        assert await notebook.pull("total") == 6
        await notebook.run("%bridge close remote")
