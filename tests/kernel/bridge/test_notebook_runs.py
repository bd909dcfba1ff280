"""The same notebook by nbclient and by ``run_notebook``."""

from __future__ import annotations

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


def made(file: Path) -> Any:
    import nbformat

    cells = [
        nbformat.v4.new_code_cell(code, metadata={"tags": tags} if tags else {}, id=f"c{number}")
        for number, (code, tags) in enumerate(CELLS)
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


@pytest.mark.slow
async def test_nbclient_gives_the_same_notebook(tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    file = tmp_path / "notebook.ipynb"
    theirs = made(file)
    await NotebookClient(theirs, record_timing=False).async_execute()
    async with Bridge.launch() as bridge:
        ours = await run_notebook(bridge, file)
    for one, other in zip(joined(ours).cells, joined(theirs).cells, strict=True):
        assert one == other
    assert ours == theirs
    nbformat.validate(ours)
