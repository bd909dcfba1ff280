"""The Python in the site's pages runs, and prints what the pages say.

Rule: no test copies text of a page; ``support/pages.py`` says how a block runs.
"""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from markdown_it import MarkdownIt

from support.docstrings import examples, public
from support.pages import (
    PAGES,
    README,
    ROOT,
    SITE,
    Block,
    blocks,
    run_cells,
    run_program,
    run_tests,
)

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


# Each block ``python notest``, by its page and a part of it: why it does not run as it is, and the
# test of what it shows, if there is one.
NOT_RUN = {
    ("explanation/many_machines.md", "numpy.load(where"): (
        "its fleet has hundreds of engines, and storage that all of them see",
        "",
    ),
    ("guides/jupyterhub.md", "start_server=True, timeout=300"): (
        "its Hub is at hub.example.com",
        "servers/test_hub.py::test_the_programs_of_the_guide_print_what_it_says",
    ),
    ("guides/jupyterhub.md", 'for user in ("ada", "bea")'): (
        "its Hub is at hub.example.com",
        "servers/test_hub.py::test_the_programs_of_the_guide_print_what_it_says",
    ),
    ("guides/kernels_and_servers.md", 'url = "http://127.0.0.1:8888'): (
        "its server has a token that varies",
        "servers/test_servers.py::test_the_token_is_in_no_address",
    ),
    ("guides/panel.md", 'SyncBridge.attach("score.ipynb")'): (
        "its two notebooks are open in JupyterLab",
        "servers/test_panel.py::test_names_are_sorted_searched_previewed_moved_and_deleted",
    ),
    ("guides/ssh.md", "kernel-1234.json"): (
        "its kernel is on another machine",
        "elsewhere/test_forwarding.py::test_the_command_of_the_page_forwards_the_kernel",
    ),
}


def test_each_block_that_does_not_run_has_a_reason() -> None:
    found = [
        (str(page.relative_to(SITE)), token.content)
        for page in PAGES
        for token in MarkdownIt().parse(page.read_text())
        if token.type == "fence" and token.info.startswith("python") and token.info != "python"
    ]
    keys = [[key for key in NOT_RUN if key[0] == page and key[1] in code] for page, code in found]
    assert all(len(matching) == 1 for matching in keys), [*zip(found, keys, strict=True)]
    assert sorted(key for [key] in keys) == sorted(NOT_RUN)
    for reason, test in NOT_RUN.values():
        assert reason
        file, _, name = test.partition("::")
        assert not test or f"def {name}(" in (ROOT / "tests" / file).read_text(), test


@pytest.mark.parametrize("block", ALONE.values(), ids=ALONE)
def test_a_program_of_a_page_runs(block: Block, tmp_path: Path) -> None:
    (run_program if block.kind == "program" else run_tests)(block, tmp_path)


@pytest.mark.real_start  # as a reader's notebook
@pytest.mark.parametrize("cells", CELLS.values(), ids=CELLS)
async def test_the_cells_of_a_page_run(cells: list[Block], tmp_path: Path) -> None:
    await run_cells(cells, tmp_path)


def loops_over_what_stays_open(code: str) -> list[str]:
    """Return the loops over an iteration or a watch that no ``with`` closes."""

    def opens(node: ast.AST | None) -> bool:
        return (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("iterate", "watch", "watch_names")
        )

    nodes = list(ast.walk(ast.parse(TransformerManager().transform_cell(code))))
    names = {
        target.id
        for node in nodes
        if isinstance(node, ast.Assign) and opens(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    loops = [
        node.iter for node in nodes if isinstance(node, ast.For | ast.AsyncFor | ast.comprehension)
    ]
    return [
        ast.unparse(loop)
        for loop in loops
        if opens(loop) or (isinstance(loop, ast.Name) and loop.id in names)
    ]


def test_documentation_closes_what_it_iterates_over() -> None:
    code = {
        f"{page}:{block.line}": block.code for page in (README, *PAGES) for block in blocks(page)
    }
    for notebook in SITE.glob("*.ipynb"):
        for number, cell in enumerate(nbformat.read(notebook, 4).cells):
            if cell.cell_type == "code":
                code[f"{notebook}:{number}"] = cell.source
    for name, thing in public():
        code[name] = "".join(example.source for example in examples(thing))
    assert sum("iterate(" in one for one in code.values()) > 5
    found = {
        name: loops for name, one in code.items() if (loops := loops_over_what_stays_open(one))
    }
    assert not found
