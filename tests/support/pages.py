"""The blocks of Python in the README and in the site's pages.

Rule: a page needs nothing from outside. What a block holds says how it runs:

- with ``asyncio.run(``, or ``__name__ == "__main__"``, it is a program, in a file of its own;
- with ``def test_`` it is a file for pytest;
- all others are the cells of one notebook, in order. A comment ``<!-- python`` … ``-->`` is a cell
  that readers do not see.

A block ``text`` behind it has what it prints, with ``...`` for what varies. A fence ``python
notest`` marks what cannot run here, because it needs another machine, for example.
"""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
README, SITE = ROOT / "README.md", ROOT / "notebooks"
PAGES = sorted(SITE.rglob("*.md"))

PATIENCE = 300  # s for one cell; nothing here measures speed
PROGRAM = re.compile(r"asyncio\.run\(|__name__ == .__main__.")
TESTS = re.compile(r"^(async )?def test_", re.MULTILINE)
CHECKER = doctest.OutputChecker()


@dataclass
class Block:
    line: int
    code: str
    printed: str | None = None  # None if the page does not say it

    @property
    def kind(self) -> str:
        if PROGRAM.search(self.code):
            return "program"
        return "tests" if TESTS.search(self.code) else "cell"


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page that run, in order."""
    found: list[Block] = []
    last: Block | None = None  # the block directly before
    for token in MarkdownIt().parse(page.read_text()):
        before, last = last, None
        line = token.map[0] + 1 if token.map else 0
        if token.type == "fence" and token.info.split() == ["python"]:
            last = Block(line, token.content)
            found.append(last)
        elif token.type == "fence" and token.info.strip() == "text" and before is not None:
            before.printed = token.content
        elif token.type == "html_block" and token.content.startswith("<!-- python\n"):
            code = token.content.removeprefix("<!-- python\n").rstrip().removesuffix("-->")
            found.append(Block(line, code))
    return found


def run_program(block: Block, folder: Path) -> None:
    """Run a block as a file in an empty folder, where a warning is an error."""
    ran = _run_file(block, folder / "program.py", "-W", "error", "program.py")
    assert ran.stderr == "", f"line {block.line}: {ran.stderr}"
    check_printed(block, ran.stdout)


def run_tests(block: Block, folder: Path) -> None:
    """Run a block with pytest in an empty folder."""
    _run_file(block, folder / "test_it.py", "-m", "pytest", "-q", "-p", "no:cacheprovider")


def _run_file(block: Block, file: Path, *command: str) -> subprocess.CompletedProcess[str]:
    file.write_text(block.code)
    ran = subprocess.run(
        [sys.executable, *command], cwd=file.parent, capture_output=True, text=True
    )
    assert ran.returncode == 0, f"line {block.line}: {ran.stdout}{ran.stderr}"
    return ran


async def run_cells(cells: list[Block], folder: Path) -> None:
    """Run blocks as the cells of one notebook in an empty folder."""
    import nbformat  # takes seconds, so not when the tests are collected
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(block.code) for block in cells]
    )
    client = NotebookClient(
        notebook,
        timeout=PATIENCE,
        startup_timeout=PATIENCE,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    await client.async_execute()
    for block, cell in zip(cells, notebook.cells, strict=True):
        shown = [
            output.text if output.output_type == "stream" else output.data.get("text/plain", "")
            for output in cell.outputs
        ]
        check_printed(block, "".join(shown))


def check_printed(block: Block, printed: str) -> None:
    """Compare what a block printed with what the page says, as doctest does."""
    if block.printed is None:
        return
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert CHECKER.check_output(block.printed, printed, flags), (
        f"line {block.line} printed\n{printed}instead of\n{block.printed}"
    )
