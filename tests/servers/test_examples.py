"""What the public docstrings show is what happens: those that need a server.

Rule: as ``kernel/test_examples.py``, with a server behind each name.
"""

from __future__ import annotations

import pytest

from support.docstrings import SERVERS, public, run
from support.servers import TOKEN

PUBLIC = dict(public())


@pytest.mark.servers
@pytest.mark.parametrize("name", SERVERS)
async def test_its_example_gives_what_it_shows_of_a_server(name: str, server: str) -> None:
    await run(PUBLIC[name], {"url": server, "token": TOKEN})
