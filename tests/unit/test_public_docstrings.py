"""The examples in the public docstrings, run on a loopback.

Rule: every public class and method has an example. ``kernel/test_examples.py`` runs those that
need a kernel or a server.
"""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from typing import Any

import pytest

import bridgehead
from bridgehead import Bridge, BridgeError, Fleet, SyncBridge, SyncFleet
from support.docstrings import NEED_MORE, examples, public, run

# Public names without an example: methods that only transports call, and a warning. Errors have
# one only where a loopback can raise them.
WITHOUT = {"Messages.feed", "Messages.end", "InsecureConnectionWarning"}
PUBLIC = dict(public())


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_an_example(name: str) -> None:
    thing = PUBLIC[name]
    assert inspect.getdoc(thing)
    error = isinstance(thing, type) and issubclass(thing, BridgeError)
    assert examples(thing) or error or name in WITHOUT


@pytest.mark.parametrize("name", [name for name in PUBLIC if name not in NEED_MORE])
async def test_an_example_gives_what_it_shows(name: str, tmp_path: Path) -> None:
    import nbformat

    names: dict[str, Any] = {"asyncio": asyncio, "bridgehead": bridgehead}
    names["path"] = path = tmp_path / "notebook.ipynb"
    cells = [nbformat.v4.new_code_cell("print(sum(rows))")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    async with Bridge.loopback() as bridge, Bridge.loopback() as other:
        with SyncBridge.loopback() as kernel, SyncBridge.loopback() as target:
            async with Fleet([bridge, other]) as fleet:
                names |= {"bridge": bridge, "other": other, "fleet": fleet}
                names |= {"kernel": kernel, "target": target}
                names |= {"kernels": SyncFleet([kernel, target])}
                await run(PUBLIC[name], names)
