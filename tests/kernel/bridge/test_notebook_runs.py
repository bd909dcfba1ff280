"""The same notebook by nbclient and by ``run_notebook``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bridgehead import Bridge, run_notebook

CELLS = [
    ("print('printed')\nimport sys\nprint('err', file=sys.stderr)", []),
    ("x = 6\nx * 7", []),
    (
        "from IPython.display import display, HTML, clear_output\n"
        "h = display(HTML('a'), display_id='d')",
        [],
    ),
    ("h.update(HTML('b'))\ndisplay(HTML('c'), display_id='d')\nprint('behind')", []),
    ("print('cleared')\nclear_output()\nprint('kept')", []),
    ("print('cleared')\nclear_output(wait=True)\nprint('kept')", []),
    ("1 / 0", ["raises-exception"]),
    ("skipped", ["skip-execution"]),
    ("", []),
    ("%lsmagic", []),
    ("await __import__('asyncio').sleep(0, 'slept')", []),
]


WIDGETS: list[tuple[str, list[str]]] = [
    (
        "import ipywidgets as w\nfrom IPython.display import clear_output, display, HTML\n"
        "slider = w.IntSlider(value=3)\nimage = w.Image(value=bytes(range(9)))\n"
        "out, inner = w.Output(), w.Output()\ndisplay(w.VBox([slider, image, out]))\nslider",
        [],
    ),
    ("slider.value = 5\nimage.value = b'other'", []),
    (
        "print('before')\nwith out:\n    print('inside')\n    display(HTML('a'))\nprint('behind')",
        [],
    ),
    ("with out:\n    print('first')\n    with inner: print('deep')\n    print('again')", []),
    (
        "with out:\n    clear_output(wait=True)\n    print('last')\nclear_output()\nprint('cell')",
        [],
    ),
    ("with inner: 1 / 0", ["raises-exception"]),
    ("import tqdm.notebook\nfor n in tqdm.notebook.tqdm(range(1)): pass", []),
]


def made(file: Path, code_cells: list[tuple[str, list[str]]] = CELLS) -> Any:
    import nbformat

    cells = [
        nbformat.v4.new_code_cell(code, metadata={"tags": tags} if tags else {}, id=f"c{number}")
        for number, (code, tags) in enumerate(code_cells)
    ]
    notebook = nbformat.v4.new_notebook(
        cells=[*cells, nbformat.v4.new_markdown_cell("end", id="m")]
    )
    nbformat.write(notebook, file)
    return notebook


def joined(notebook: Any) -> Any:
    """Return the notebook with neighbouring parts of one stream joined."""
    for cell in notebook.cells:
        outputs: list[Any] = []
        for one in cell.get("outputs", []):
            last = outputs[-1] if outputs else None
            if last and last.output_type == one.output_type == "stream" and last.name == one.name:
                last.text += one.text
            else:
                outputs.append(one)
        if "outputs" in cell:
            cell["outputs"] = outputs
    return notebook


def numbered(notebook: Any) -> Any:
    """Return the notebook with the ids of models, and the speed in a bar, replaced."""
    text = re.sub(r"\[[\d:]+(<|&lt;)[^]]*\]", "[speed]", json.dumps(notebook))
    (states,) = notebook.metadata.widgets.values()
    for number, identity in enumerate(states["state"]):
        text = text.replace(identity, f"model {number}")
    return json.loads(text)


async def by_both(tmp_path: Path, code_cells: list[tuple[str, list[str]]]) -> tuple[Any, Any]:
    """Return the notebook as run by ``run_notebook`` and by nbclient."""
    import nbformat
    from jupyter_client import AsyncKernelManager
    from nbclient import NotebookClient

    file = tmp_path / "notebook.ipynb"
    theirs = made(file, code_cells)
    # Two kernels that jupyter_client starts at once may get the same TCP ports.
    manager = AsyncKernelManager(transport="ipc", ip=str(tmp_path / "ipc"))
    client = NotebookClient(theirs, km=manager, record_timing=False)
    client.owns_km = True  # it ends the kernel, and closes its sockets
    await client.async_execute()
    async with Bridge.launch() as bridge:
        ours = await run_notebook(bridge, file)
    nbformat.validate(ours)
    return joined(ours), joined(theirs)


@pytest.mark.slow
async def test_nbclient_gives_the_same_notebook(tmp_path: Path) -> None:
    ours, theirs = await by_both(tmp_path, CELLS)
    for one, other in zip(ours.cells, theirs.cells, strict=True):
        assert one == other
    assert ours == theirs


@pytest.mark.slow
async def test_nbclient_keeps_the_same_widgets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # While nbclient waits for a reply it also sends to the kernel what an ``Output`` took, and then
    # may miss the reply: several runs hung in nbclient.
    monkeypatch.setattr("nbclient.output_widget.OutputWidget.sync_state", lambda widget: None)
    ours, theirs = await by_both(tmp_path, WIDGETS)
    assert numbered(ours) == numbered(theirs)
