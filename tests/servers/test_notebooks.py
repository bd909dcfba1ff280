"""The notebooks run, and what is committed is what they give.

Rule: each is executed in a fresh kernel, in an empty folder, and compared with its committed
outputs; no process it started outlives it.
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

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
PATIENCE = 300  # s for one cell; nothing here measures speed

# What differs from run to run, and nothing else: a notebook shows what is stable.
VARIES = (
    (r"<Transfer (.*): .*>", r"<Transfer \1>"),  # bytes, lane and seconds
    (r"\b0x[0-9a-f]{6,}\b", "0x…"),  # addresses
)

# A path of two parts or more, or a folder that is a machine's by its name; no tag, no URL.
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
    """What a cell shows as text, in order, with the pieces of one stream in one."""
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
    """Every string in an output, in whatever form it has; a picture in base64 is none."""
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
    """Every process started from here on inherits a mark; none that has it may stay.

    What a failing notebook did leave is killed, so that it disturbs no other test.
    """
    mark = uuid.uuid4().hex
    monkeypatch.setenv("BRIDGEHEAD_TESTED_BY", mark)
    yield
    ours = [process for process in psutil.process_iter() if _mark(process) == mark]
    # What was told to end needs a moment: a kernel that lost its parent looks once a second, an
    # engine's nanny stays for three.
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
        return None  # it has ended, or is none of ours


def test_there_are_notebooks() -> None:
    names = [path.stem for path in sorted(NOTEBOOKS.glob("*.ipynb"))]
    assert names == [
        "01_messages",
        "02_handoff",
        "03_watching",
        "04_untrusted_code",
        "05_many_kernels",
    ]


@pytest.mark.servers  # one starts a cluster, and all of them together take a minute
@notebooks
async def test_it_runs_and_gives_what_is_committed(
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
def test_it_is_committed_as_it_was_executed(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    cells = code_cells(notebook)
    # From top to bottom in one go, and every cell.
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert cell.metadata == {}, "when a cell ran is nobody's business"


@notebooks
def test_its_outputs_tell_nothing_of_the_machine(path: Path) -> None:
    for cell in code_cells(nbformat.read(path, as_version=4)):
        for text in strings(cell.outputs):
            assert not ABSOLUTE_PATH.search(text), text
            assert not SECRET.search(text), text


@notebooks
def test_its_outputs_are_clean(path: Path) -> None:
    """No warning, no debugger's word, no colour codes, nothing on standard error, no error."""
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
def test_an_absolute_path_would_be_found(text: str) -> None:
    assert ABSOLUTE_PATH.search(text)


@pytest.mark.parametrize(
    "text", ["</th></tr>", "https://example.org/a/b", "text/html", "1/2/3", "a / b", "./x/y"]
)
def test_what_is_no_absolute_path_is_let_through(text: str) -> None:
    assert not ABSOLUTE_PATH.search(text)
