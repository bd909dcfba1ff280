"""The notebooks run and give their committed outputs.

Rule: each notebook runs in a fresh kernel, in an empty folder, and is compared with its committed
outputs. No process that it started outlives it.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.servers  # one starts a cluster, and all together take a minute

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
PATIENCE = 300  # s for one cell; nothing here measures speed

# Everything that may differ from run to run: all other text of a notebook must be stable.
VARIES = (
    (r"<Transfer (.*): .*>", r"<Transfer \1>"),  # bytes, lane and seconds
    (r"\b0x[0-9a-f]{6,}\b", "0x…"),  # addresses
)

# A path of two parts or more, or a folder with the name of a system folder; no tag, no URL.
ABSOLUTE_PATH = re.compile(
    r"(?<![\w/:.<])/(?:[\w.-]+/[\w.-]+|(?:home|root|tmp|Users)\b)|\b[A-Za-z]:\\\w"
)
SECRET = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-|\b[0-9a-f]{16,}\b")  # a key, an epoch, an id

notebooks = pytest.mark.parametrize(
    "path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem
)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_outputs(cell: Any) -> list[tuple[str, str]]:
    """Return the text outputs of a cell, in order; the parts of one stream are joined."""
    shown: list[tuple[str, str]] = []
    for output in cell.outputs:
        if output.output_type == "stream":
            kind, text = output.name, output.text
            if shown and shown[-1][0] == kind:
                text = shown.pop()[1] + text
        elif output.output_type == "error":
            kind, text = "error", f"{output.ename}: {output.evalue}"
        else:
            kind, text = output.output_type, output.data.get("text/plain", "")
        shown.append((kind, text))
    return [(kind, stable(text)) for kind, text in shown]


def stable(text: str) -> str:
    for pattern, replacement in VARIES:
        text = re.sub(pattern, replacement, text)
    return text


def strings(value: Any) -> Iterator[str]:
    """Yield every string in an output, except pictures in base64."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            if not key.startswith("image/"):
                yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Mark every process that the test starts, and check that all of them have ended.

    Processes that a failing notebook left are killed, so that they disturb no other test.
    """
    mark = uuid.uuid4().hex
    monkeypatch.setenv("BRIDGEHEAD_TESTED_BY", mark)
    yield
    ours = [process for process in psutil.process_iter() if _mark(process) == mark]
    # Processes need a moment to end: a kernel checks once a second whether its parent lives, and
    # an engine's nanny ends after three seconds.
    _, left = psutil.wait_procs(ours, timeout=30)
    names = [str(process) for process in left]
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=10)
    assert not names


def _mark(process: psutil.Process) -> str | None:
    if process.pid == os.getpid():
        return None
    try:
        return process.environ().get("BRIDGEHEAD_TESTED_BY")
    except (psutil.Error, OSError):
        return None  # the process has ended, or belongs to another user


def test_there_are_notebooks() -> None:
    names = [path.stem for path in sorted(NOTEBOOKS.glob("*.ipynb"))]
    assert names == [
        "01_messages",
        "02_handoff",
        "03_watching",
        "04_untrusted_code",
        "05_many_kernels",
        "06_cross_validation",
    ]


@pytest.mark.real_start  # a warm process would count as left behind
@notebooks
async def test_a_notebook_gives_its_committed_outputs(
    path: Path, tmp_path: Path, marked: None
) -> None:
    committed = nbformat.read(path, as_version=4)
    fresh = nbformat.read(path, as_version=4)
    for cell in code_cells(fresh):
        cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        fresh,
        timeout=PATIENCE,
        startup_timeout=PATIENCE,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    await client.async_execute()
    for old, new in zip(code_cells(committed), code_cells(fresh), strict=True):
        assert text_outputs(new) == text_outputs(old), f"of the cell:\n{old.source}"
    assert not list(tmp_path.iterdir())


@notebooks
def test_a_notebook_is_committed_as_executed(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    cells = code_cells(notebook)
    # All cells were executed from top to bottom, in one run.
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert cell.metadata == {}, "the notebook must not contain execution times"


@notebooks
def test_outputs_contain_no_paths_and_no_secrets(path: Path) -> None:
    for cell in code_cells(nbformat.read(path, as_version=4)):
        for text in strings(cell.outputs):
            assert not ABSOLUTE_PATH.search(text), text
            assert not SECRET.search(text), text


@notebooks
def test_outputs_contain_no_warnings_and_no_errors(path: Path) -> None:
    """No warning, no message of the debugger, no colour codes, no standard error, no error."""
    for cell in code_cells(nbformat.read(path, as_version=4)):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
        for text in strings(cell.outputs):
            assert not re.search("warning|\x1b|frozen modules", text, re.IGNORECASE), text


@pytest.mark.parametrize(
    "text",
    [
        "/home/me/x.json",
        "in '/tmp/x'",
        "~ is /root",
        "file:(/usr/lib)",
        "C:\\Users",
        'File "/a/b.py"',
    ],
)
def test_the_check_finds_absolute_paths(text: str) -> None:
    assert ABSOLUTE_PATH.search(text)


@pytest.mark.parametrize(
    "text", ["</th></tr>", "https://example.org/a/b", "text/html", "1/2/3", "a / b", "./x/y"]
)
def test_the_check_ignores_text_that_is_no_absolute_path(text: str) -> None:
    assert not ABSOLUTE_PATH.search(text)
