"""The examples of public docstrings give what they show: those that need a server.

Rule: as ``kernel/test_examples.py``, with a server behind each name.
"""

from __future__ import annotations

import pytest

from support.docstrings import SERVERS, public, run
from support.servers import TOKEN

PUBLIC = dict(public())


@pytest.mark.servers
@pytest.mark.parametrize("name", SERVERS)
async def test_a_docstring_example_with_a_server_gives_what_it_shows(
    name: str, server: str
) -> None:
    await run(PUBLIC[name], {"url": server, "token": TOKEN})
