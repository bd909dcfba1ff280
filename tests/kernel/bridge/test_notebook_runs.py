"""The same notebook by nbclient and by ``run_notebook``."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from bridgehead import Bridge, RemoteError, run_notebook

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


RAISES: dict[str, Any] = {"tags": ["other", "raises-exception"], "name": "fails"}
OLD = [{"output_type": "stream", "name": "stdout", "text": "of an earlier run\n"}]


def code(source: str, metadata: Any = None, **fields: Any) -> dict[str, Any]:
    cell = {"cell_type": "code", "source": source, "metadata": metadata or {}}
    return {**cell, "outputs": [], "execution_count": None, **fields}


# Of format 4.4, whose cells have no ids.
ODD = [
    {"cell_type": "raw", "source": "raw", "metadata": {"format": "text/restructuredtext"}},
    {
        "cell_type": "markdown",
        "source": "![a](attachment:a.txt)",
        "metadata": {},
        "attachments": {"a.txt": {"text/plain": "attached"}},
    },
    code("", outputs=OLD, execution_count=7),
    code(" \n\t\n", {"collapsed": True}, outputs=OLD),
    code("1", {"tags": ["skip-execution"]}, outputs=OLD, execution_count=3),
    code("# only a comment", outputs=OLD, execution_count=7),
    code("2;", {"scrolled": True, "jupyter": {"source_hidden": True}}, outputs=OLD),
    code("from IPython.display import display, HTML, Image, Latex, publish_display_data"),
    code(
        "import sys\nfor n in range(3):\n    print(n, flush=True)\n"
        "    print(n, file=sys.stderr, flush=True)"
    ),
    code("print('one\\rtwo', 'ü\\N{SNOWMAN}\\0\\x1b[31mred', end='')"),
    code("display(1, 'a', Latex('$x$'), HTML('<i>'), {'a': [1]}, metadata={'k': {'of': 1}})"),
    code("Image(bytes(range(99)), format='png', width=5)"),
    code("publish_display_data({'application/json': {'a': [1, None]}, 'text/plain': 'a'})"),
    code("display(1, display_id='a'); display(2, display_id='a')"),
    code("display(3, display_id='a', update=True); display(4, display_id='b', update=True)"),
    code("%%html\n<b>html</b>"),
    code("print?"),
    code("get_ipython().set_next_input('a new cell')"),
    code("get_ipython().run_cell('print(1); 5');"),
    code("get_ipython().run_cell('1/0')\nprint('behind')"),
    code("import threading\nt = threading.Thread(target=print, args=[1]); t.start(); t.join()"),
    code("display('before')\n1 / 0\nprint('never')", RAISES),
    code("try: 1 / 0\nexcept Exception as error: raise KeyError('k') from error", RAISES),
    code("def", RAISES),
    code("input('asked ')", RAISES),
    code("raise KeyboardInterrupt", RAISES),
    code("import sys; sys.exit(3)", RAISES),
    code("%no_such_magic", RAISES),
    code("class E(Exception):\n    def __str__(self): return 1 / 0\nraise E", RAISES),
    code("class R:\n    def __repr__(self): 1 / 0\nR()", RAISES),
    code("await missing()", RAISES),
    code("_, __, In[-1]"),
]
METADATA = {"kernelspec": {"name": "python3", "display_name": "Python 3"}, "own": {"a": [1]}}


def made(code_cells: list[tuple[str, list[str]]]) -> Any:
    import nbformat

    cells = [
        nbformat.v4.new_code_cell(code, metadata={"tags": tags} if tags else {}, id=f"c{number}")
        for number, (code, tags) in enumerate(code_cells)
    ]
    return nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_markdown_cell("end", id="m")])


def odd(cells: list[Any]) -> Any:
    import nbformat

    fields = {"nbformat": 4, "nbformat_minor": 4, "metadata": METADATA, "cells": cells}
    return nbformat.from_dict(json.loads(json.dumps(fields)))


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


async def by_both(tmp_path: Path, theirs: Any) -> tuple[Any, Any]:
    """Return the notebook as run by ``run_notebook`` and by nbclient, as far as each came."""
    import nbformat
    from jupyter_client import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    file = tmp_path / "notebook.ipynb"
    nbformat.write(theirs, file)
    # Two kernels that jupyter_client starts at once may get the same TCP ports.
    manager = AsyncKernelManager(transport="ipc", ip=str(tmp_path / "ipc"))
    client = NotebookClient(theirs, km=manager, record_timing=False)
    client.owns_km = True  # it ends the kernel, and closes its sockets
    with contextlib.suppress(CellExecutionError):
        await client.async_execute()
    async with Bridge.launch() as bridge:
        try:
            ours = await run_notebook(bridge, file)
        except RemoteError as error:
            ours = error.notebook
    nbformat.validate(ours)
    return joined(ours), joined(theirs)


@pytest.mark.slow
async def test_nbclient_gives_the_same_notebook(tmp_path: Path) -> None:
    ours, theirs = await by_both(tmp_path, made(CELLS))
    for one, other in zip(ours.cells, theirs.cells, strict=True):
        assert one == other
    assert ours == theirs


FAILING = [code("1"), code("print('printed')\n1 / 0"), code("2", outputs=OLD)]


@pytest.mark.slow
@pytest.mark.parametrize("cells", [ODD, FAILING], ids=["odd", "failing"])
async def test_nbclient_gives_the_same_odd_notebook(tmp_path: Path, cells: list[Any]) -> None:
    ours, theirs = await by_both(tmp_path, odd(cells))
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
    ours, theirs = await by_both(tmp_path, made(WIDGETS))
    assert numbered(ours) == numbered(theirs)
