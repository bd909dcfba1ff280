"""The Python in the site's pages runs, and prints what the pages say.

Rule: no test copies text of a page; ``support/pages.py`` says how a block runs.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from support.pages import PAGES, SITE, Block, blocks, run_cells, run_program, run_tests

pytestmark = pytest.mark.docs

BLOCKS = {str(page.relative_to(SITE)): blocks(page) for page in PAGES}
ALONE = {
    f"{page}:{block.line}": block
    for page, found in BLOCKS.items()
    for block in found
    if block.kind != "cell"
}
CELLS = {
    page: cells
    for page, found in BLOCKS.items()
    if (cells := [block for block in found if block.kind == "cell"])
}


@pytest.mark.parametrize("block", ALONE.values(), ids=ALONE)
def test_a_program_of_a_page_runs(block: Block, tmp_path: Path) -> None:
    (run_program if block.kind == "program" else run_tests)(block, tmp_path)


@pytest.mark.real_start  # as a reader's notebook
@pytest.mark.parametrize("cells", CELLS.values(), ids=CELLS)
async def test_the_cells_of_a_page_run(cells: list[Block], tmp_path: Path) -> None:
    await run_cells(cells, tmp_path)
