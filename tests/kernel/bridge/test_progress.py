"""The bar of ``progress=True`` where people see it: in a terminal, and in a notebook's cells.

Rule: a real terminal and real kernels. A transfer takes long because the other kernel is busy
until it is told that the bar was seen.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nbformat
import pexpect
import pytest
from nbclient import NotebookClient

from bridgehead import Bridge
from support.kit import until

PATIENCE = 120  # s; nothing here measures speed
VIEW = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"
BUSY = """
while not __import__("os").path.exists("go"):
    __import__("time").sleep(0.02)
__import__("os").remove("go")
"""


@pytest.fixture
async def beside(tmp_path: Path) -> AsyncIterator[Bridge]:
    """A kernel in a folder of its own, in which a file ``go`` ends the cell that is busy."""
    async with Bridge.launch(cwd=tmp_path) as bridge:
        yield bridge


# ---------------------------------------------------------------- a terminal

PUSH = """
import sys
from bridgehead import SyncBridge

with SyncBridge.attach(sys.argv[1]) as kernel:
    print("attached", flush=True)
    input()
    kernel.push(slow=b"x" * 3_000_000, progress=True)
    print("pushed", flush=True)
    try:
        kernel.pull("missing", progress=True)
    except LookupError:
        print("missed", flush=True)
    input()
    kernel.pull("slow", progress=True)
"""


async def test_a_terminal_shows_a_bar_of_what_takes_long(beside: Bridge, tmp_path: Path) -> None:
    process = pexpect.spawn(
        sys.executable,
        ["-c", PUSH, str(beside.info.connection_file)],
        dimensions=(30, 100),
        env={**os.environ, "TERM": "xterm-256color"},
        encoding="utf-8",
        timeout=PATIENCE,
        echo=False,
    )
    try:
        await asyncio.to_thread(process.expect, "attached")
        busy = asyncio.create_task(beside.run(BUSY))
        await until(lambda: beside.state == "busy", PATIENCE)
        process.sendline()
        await asyncio.to_thread(process.expect, r"push: [^\r]*3\.00M")
        assert not busy.done()
        (tmp_path / "go").touch()
        await busy
        await asyncio.to_thread(process.expect, "pushed")
        drawn = process.before.rstrip("\r\n").rpartition("\r")[2]
        assert drawn.startswith("push: 100%")
        assert "3.00M/3.00M" in drawn
        assert process.before.endswith("\n")
        await asyncio.to_thread(process.expect, "missed")

        busy = asyncio.create_task(beside.run(BUSY))
        await until(lambda: beside.state == "busy", PATIENCE)
        process.sendline()
        await asyncio.to_thread(process.expect, r"pull: 0\.00B")
        process.sendintr()
        await asyncio.to_thread(process.expect, "pull cancelled: .*\n.*KeyboardInterrupt")
        (tmp_path / "go").touch()
        await busy
    finally:
        await asyncio.to_thread(process.close, force=True)


# ---------------------------------------------------------------- a notebook

# Each cell is held up for longer than a bar takes to be shown; who is held up ends it by itself.
WAIT = "__import__('time').sleep(1)"
FIRST = """
from bridgehead import Bridge, SyncBridge
kernel = SyncBridge.launch()
bridge = await Bridge.launch()
"""
BLOCKING = f"kernel.pull({WAIT!r}, progress=True)"
AWAITED = f"await bridge.pull({WAIT!r}, progress=True)"
FAILED = f"""
try:
    kernel.pull("({WAIT}, 1 / 0)", progress=True)
except Exception as error:
    print(type(error).__name__)
"""
LAST = """
import threading
kernel.close(); await bridge.aclose()
print([thread.name for thread in threading.enumerate() if "onitor" in type(thread).__name__])
"""


async def run(*sources: str) -> Any:
    """The notebook of these cells, as it is when all have run."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    await NotebookClient(notebook, timeout=PATIENCE).async_execute()
    return notebook


def kinds(cell: Any) -> list[str]:
    """What a cell shows: streams by their names, all else by MIME type, plain text aside."""
    shown = []
    for output in cell.outputs:
        if output.output_type == "stream":
            shown.append(output.name)
        else:
            shown += sorted(set(output.data) - {"text/plain"})
    return shown


def widgets(notebook: Any, cell: Any) -> list[dict[str, Any]]:
    """The last known states of the bars that a cell shows, each with its texts."""
    models = notebook.metadata.widgets[STATE]["state"]
    found = []
    for output in cell.outputs:
        if output.output_type == "display_data" and VIEW in output.data:
            box = models[output.data[VIEW]["model_id"]]["state"]
            children = [
                models[child.removeprefix("IPY_MODEL_")]["state"] for child in box["children"]
            ]
            found.append(
                {
                    "style": children[1]["bar_style"],
                    "texts": [children[0]["value"], children[2]["value"]],
                }
            )
    return found


async def test_a_notebook_shows_a_widget_in_the_cell_that_called() -> None:
    notebook = await run(
        FIRST,
        BLOCKING,
        AWAITED,
        FAILED,
        LAST,
    )
    cells = notebook.cells
    for number, said, style in (
        (1, "pull: ", "success"),
        (2, "pull: ", "success"),
        (3, "pull failed: ", "danger"),
    ):
        (bar,) = widgets(notebook, cells[number])
        assert bar["style"] == style, number
        assert bar["texts"][0].replace("\u2007", " ").startswith(said), bar
    assert "RemoteError" in cells[3].outputs[-1].text
    assert cells[4].outputs[0].text == "[]\n"  # no thread that watches bars
    assert not any("stderr" in kinds(cell) for cell in cells)


async def test_the_bar_of_a_task_is_in_the_cell_that_made_it(live: Bridge) -> None:
    await live.run(FIRST)
    messages = live.messages()
    await live.run(
        f"import asyncio; task = asyncio.ensure_future(bridge.pull({WAIT!r}, progress=True))"
    )
    await live.run("'another cell'; await task; await bridge.aclose(); kernel.close()")
    cells, shown = [], []
    async with asyncio.timeout(PATIENCE):
        async for message in messages:
            if message.type == "execute_input":
                cells.append(message.parent)
            elif message.type == "display_data" and VIEW in message.content["data"]:
                shown.append(message.parent)
            elif message.type == "status" and message.text == "idle" and len(cells) == 2:
                if message.parent == cells[1]:
                    break
    if int(live.info.versions["ipykernel"].partition(".")[0]) >= 7:
        assert shown == cells[:1]  # ipykernel 6 knows of one cell at a time, that which runs
    assert len(shown) == 1


async def test_a_notebook_without_ipywidgets_shows_the_bar_as_text() -> None:
    notebook = await run(
        "import sys; sys.modules['ipywidgets'] = None", FIRST, BLOCKING, AWAITED, LAST
    )
    for cell in notebook.cells[2:4]:
        streams = [output for output in cell.outputs if output.output_type == "stream"]
        assert {stream.name for stream in streams} == {"stderr"}
        text = "".join(stream.text for stream in streams)
        assert "Warning" not in text
        assert "IProgress" not in text
        assert text.rpartition("\r")[2].startswith("pull: 100%")
    assert kinds(notebook.cells[4]) == ["stdout"]
