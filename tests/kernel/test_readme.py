"""The README: its programs run, its links lead to files, and it stays short.

Rule: tests read the README itself; they copy nothing from it. ``support/pages.py`` says how a
block of it runs.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from support.pages import README, Block, blocks, run_cells, run_program

BLOCKS = blocks(README)
PROGRAMS = [block for block in BLOCKS if block.kind == "program"]
CELLS = [block for block in BLOCKS if block.kind == "cell"]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda block: f"line {block.line}")
def test_a_program_prints_what_it_says(program: Block, tmp_path: Path) -> None:
    run_program(program, tmp_path)


@pytest.mark.real_start  # as a reader's notebook
async def test_the_cells_print_what_they_say(tmp_path: Path) -> None:
    await run_cells(CELLS, tmp_path)


def test_a_program_has_less_than_ten_lines() -> None:
    assert len(BLOCKS) == len(PROGRAMS) + len(CELLS) >= 3
    for block in BLOCKS:
        assert len([line for line in block.code.splitlines() if line]) < 10, block.line


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 180


def test_every_link_has_a_target() -> None:
    tokens = MarkdownIt().enable("table").parse(README.read_text())
    inline = [child for token in tokens for child in token.children or []]
    links = [child.attrs.get("href") or child.attrs.get("src") for child in inline]
    files = [link for link in links if link and not re.match(r"[a-z]+://", str(link))]
    assert len(files) > 10
    assert [link for link in files if not (README.parent / str(link)).exists()] == []
