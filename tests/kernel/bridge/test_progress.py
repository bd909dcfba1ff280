"""The bar of ``progress=True``, in a terminal and in the cells of a notebook.

Rule: a real terminal and real kernels. A transfer takes long because the kernel is busy until the
test has seen the bar.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from bridgehead import Bridge
from support.kit import until

PATIENCE = 120  # s; these tests do not measure speed
VIEW = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"
BUSY = """
open("begun", "w").close()
while not __import__("os").path.exists("go"):
    __import__("time").sleep(0.02)
__import__("os").remove("go")
__import__("os").remove("begun")
"""


@pytest.fixture
async def busy_kernel(tmp_path: Path) -> AsyncIterator[Bridge]:
    """Start a kernel in its own folder; a file ``go`` there ends the cell ``BUSY``."""
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


async def test_a_terminal_shows_a_bar_for_a_long_transfer(
    busy_kernel: Bridge, tmp_path: Path
) -> None:
    process = pexpect.spawn(
        sys.executable,
        ["-c", PUSH, str(busy_kernel.info.connection_file)],
        dimensions=(30, 100),
        env={**os.environ, "TERM": "xterm-256color"},
        encoding="utf-8",
        timeout=PATIENCE,
        echo=False,
    )
    try:
        await asyncio.to_thread(process.expect, "attached")
        busy = asyncio.create_task(busy_kernel.run(BUSY))
        await until((tmp_path / "begun").exists, PATIENCE)
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

        busy = asyncio.create_task(busy_kernel.run(BUSY))
        await until((tmp_path / "begun").exists, PATIENCE)
        process.sendline()
        await asyncio.to_thread(process.expect, r"pull: 0\.00B")
        process.sendintr()
        await asyncio.to_thread(process.expect, "pull cancelled: .*\n.*KeyboardInterrupt")
        (tmp_path / "go").touch()
        await busy
    finally:
        await asyncio.to_thread(process.close, force=True)


# ---------------------------------------------------------------- a notebook

# Each transfer waits in the kernel for longer than it takes until the bar is shown.
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
    """Run a notebook of these cells and return it."""
    import nbformat
    from nbclient import NotebookClient

    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    await NotebookClient(notebook, timeout=PATIENCE).async_execute()
    return notebook


def kinds(cell: Any) -> list[str]:
    """List a cell's outputs: streams by name, others by MIME type without plain text."""
    shown = []
    for output in cell.outputs:
        if output.output_type == "stream":
            shown.append(output.name)
        else:
            shown += sorted(set(output.data) - {"text/plain"})
    return shown


def widgets(notebook: Any, cell: Any) -> list[dict[str, Any]]:
    """Return the last known states of the bars in a cell, each with its texts."""
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


@pytest.mark.slow
async def test_a_notebook_shows_a_widget_in_the_cell_that_called() -> None:
    notebook = await run(
        FIRST,
        BLOCKING,
        AWAITED,
        FAILED,
        LAST,
    )
    cells = notebook.cells
    for number, text, style in (
        (1, "pull: ", "success"),
        (2, "pull: ", "success"),
        (3, "pull failed: ", "danger"),
    ):
        (bar,) = widgets(notebook, cells[number])
        assert bar["style"] == style, number
        assert bar["texts"][0].replace("\u2007", " ").startswith(text), bar
    assert "RemoteError" in cells[3].outputs[-1].text
    assert cells[4].outputs[0].text == "[]\n"  # tqdm's monitor thread was not started
    assert not any("stderr" in kinds(cell) for cell in cells)


@pytest.mark.slow
async def test_the_bar_of_a_task_is_shown_in_the_cell_that_made_the_task(live: Bridge) -> None:
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
        assert shown == cells[:1]  # ipykernel 6 publishes only under the running cell
    assert len(shown) == 1


@pytest.mark.slow
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
