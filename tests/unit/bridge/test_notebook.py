"""Notebooks that run over a loopback: tags, parameters, failures, display ids."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from bridgehead import Bridge, Fleet, RemoteError, RunTimeout, SyncBridge, run_notebook
from bridgehead._bridge.notebook import NotebookRun

STREAM = {"output_type": "stream", "name": "stdout", "text": ["of an earlier run\n"]}


class Live:
    """A class whose instances cross as they are."""

    def __init__(self, value: int) -> None:
        self.value = value


def written(path: Path, *cells: tuple[str, list[str]]) -> Path:
    """Write a notebook of code cells, each with its tags, and return its path."""
    import nbformat

    made = [
        nbformat.v4.new_code_cell(code, metadata={"tags": tags} if tags else {})
        for code, tags in cells
    ]
    made.insert(0, nbformat.v4.new_markdown_cell("# Title"))
    file = path / "notebook.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=made), file)
    return file


def outputs(notebook: Any) -> list[Any]:
    return [[dict(one) for one in cell.outputs] for cell in notebook.cells[1:]]


async def test_cells_run_in_order_with_live_parameters(loopback: Bridge, tmp_path: Path) -> None:
    import nbformat

    file = written(
        tmp_path,
        ("rows = None\nx = 1", ["parameters"]),
        ("print(rows, x)", []),
        ("", []),
        ("model.value * 2", []),
    )
    before = file.read_text()
    given = {"rows": [1, 2], "model": Live(21)}
    notebook = await run_notebook(loopback, file, parameters=given)
    assert file.read_text() == before
    assert outputs(notebook)[1] == [
        {"output_type": "stream", "name": "stdout", "text": "[1, 2] 1\n"}
    ]
    assert outputs(notebook)[3][0]["data"] == {"text/plain": "42"}
    assert [cell.execution_count for cell in notebook.cells[1:]] == [1, 2, None, 3]
    nbformat.validate(notebook)


async def test_without_a_cell_for_them_parameters_come_first(
    loopback: Bridge, tmp_path: Path
) -> None:
    notebook = await run_notebook(loopback, written(tmp_path, ("x", [])), parameters={"x": 5})
    assert outputs(notebook)[0][0]["data"] == {"text/plain": "5"}


@pytest.mark.parametrize(
    "tags",
    [
        [["parameters"], ["parameters"], []],  # the first one is meant
        [["parameters"], ["injected-parameters"], []],  # papermill has run it before
        [["injected-parameters"], [], ["parameters"]],
        [["parameters", "skip-execution"], ["injected-parameters"], []],
    ],
)
async def test_parameters_win_over_those_of_an_earlier_run(
    loopback: Bridge, tmp_path: Path, tags: list[list[str]]
) -> None:
    first = tags[1] == ["injected-parameters"]
    cells = [("x = y = 1", tags[0]), ("x = 2" if first else "y = 3", tags[1]), ("x", tags[2])]
    notebook = await run_notebook(loopback, written(tmp_path, *cells), parameters={"x": 5})
    assert outputs(notebook)[2][0]["data"] == {"text/plain": "5"}


async def test_the_first_failure_ends_the_run(loopback: Bridge, tmp_path: Path) -> None:
    import nbformat

    file = written(tmp_path, ("print(1)\n1 / 0", []), ("ran = True", []))
    saved = tmp_path / "saved.ipynb"
    with pytest.raises(RemoteError, match="ZeroDivisionError") as caught:
        await run_notebook(loopback, file, save=saved)
    notebook = caught.value.notebook
    assert [one["output_type"] for one in outputs(notebook)[0]] == ["stream", "error"]
    assert notebook.cells[1].execution_count == 1
    assert not await loopback.exists("ran")
    assert nbformat.read(saved, as_version=4).cells[1].outputs[1].ename == "ZeroDivisionError"


async def test_a_file_that_cannot_be_written_does_not_hide_the_failure(
    loopback: Bridge, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    code = f"__import__('os').rmdir({str(folder)!r})\n1 / 0"
    with pytest.raises(RemoteError, match="ZeroDivisionError") as caught:
        await run_notebook(loopback, written(tmp_path, (code, [])), save=folder / "saved.ipynb")
    assert outputs(caught.value.notebook)[0][0]["ename"] == "ZeroDivisionError"
    assert "FileNotFoundError" in caught.value.__notes__[-1]


async def test_a_wrong_argument_is_reported_before_any_cell_runs(
    loopback: Bridge, tmp_path: Path
) -> None:
    file = written(tmp_path, ("ran = True", ["parameters"]))
    wrong: list[tuple[Any, Any, str]] = [
        ({"save": tmp_path / "nowhere" / "saved.ipynb"}, FileNotFoundError, "nowhere/saved.ipynb"),
        ({"save": tmp_path}, IsADirectoryError, str(tmp_path)),
        ({"save": 5}, TypeError, "int"),
        ({"parameters": {"a b": 1}}, ValueError, "'a b' is not a Python identifier"),
        ({"parameters": ["x"]}, TypeError, "takes a mapping of names to objects, not list"),
        ({"timeout": "5"}, TypeError, "seconds or None, not '5'"),
    ]
    for options, error, words in wrong:
        with pytest.raises(error, match=words):
            await run_notebook(loopback, file, **options)
    with pytest.raises(TypeError, match=r"run_notebook\(\) takes an open Bridge, not Fleet"):
        await run_notebook(Fleet([loopback]), file)  # type: ignore[arg-type]
    assert not await loopback.exists("ran")


async def test_without_nbformat_the_extra_is_named(
    loopback: Bridge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, ("ran = True", []))
    monkeypatch.setitem(sys.modules, "nbformat", None)
    with pytest.raises(ImportError, match=r"pip install 'bridgehead\[notebook\]'$") as caught:
        await run_notebook(loopback, file)
    assert caught.value.name == "nbformat"
    assert not await loopback.exists("ran")


async def test_all_but_outputs_is_written_as_it_was(loopback: Bridge, tmp_path: Path) -> None:
    """Format 4.4, whose cells have no ids; nbformat would add some."""
    code: dict[str, Any] = {"cell_type": "code", "outputs": [], "execution_count": None}
    cells = [
        {"cell_type": "raw", "source": ["a\n", "b"], "metadata": {"format": "text/html"}},
        {**code, "source": ["1"], "metadata": {"tags": ["x"], "scrolled": True, "own": [1]}},
        {**code, "source": [], "metadata": {}, "outputs": [STREAM], "execution_count": 7},
        {"cell_type": "markdown", "source": ["# c"], "metadata": {}, "attachments": {"a": {}}},
    ]
    kernelspec = {"name": "python3", "display_name": "Python 3"}
    metadata = {"kernelspec": kernelspec, "own": {"k": [None]}}
    before = {"nbformat": 4, "nbformat_minor": 4, "metadata": metadata, "cells": cells}
    file = tmp_path / "notebook.ipynb"
    file.write_text(json.dumps(before))
    await run_notebook(loopback, file, save=file)
    after = json.loads(file.read_text())
    value = after["cells"][1].pop("outputs")[0]
    assert (value["data"], after["cells"][1].pop("execution_count")) == ({"text/plain": ["1"]}, 1)
    del cells[1]["outputs"], cells[1]["execution_count"]
    assert after["metadata"].pop("language_info")["name"] == "python"
    assert after == before


async def test_a_notebook_of_an_old_format_runs(loopback: Bridge, tmp_path: Path) -> None:
    import nbformat

    old = nbformat.v3.new_notebook(
        worksheets=[
            nbformat.v3.new_worksheet(
                cells=[
                    nbformat.v3.new_heading_cell("Title", level=2),
                    nbformat.v3.new_code_cell("6 * 7", language="python"),
                ]
            )
        ]
    )
    nbformat.write(old, tmp_path / "old.ipynb", version=3)
    notebook = await run_notebook(loopback, tmp_path / "old.ipynb", save=tmp_path / "new.ipynb")
    assert outputs(notebook)[0][0]["data"] == {"text/plain": "42"}
    nbformat.validate(nbformat.read(tmp_path / "new.ipynb", as_version=4))


async def test_half_of_a_surrogate_pair_is_written_and_costs_no_file(
    loopback: Bridge, tmp_path: Path
) -> None:
    import nbformat

    file = written(tmp_path, ("print(chr(0xDC80) + chr(92))", []))
    await run_notebook(loopback, file, save=file)
    assert outputs(nbformat.read(file, as_version=4))[0][0]["text"] == "\udc80\\\n"


async def test_a_notebook_that_cannot_be_written_leaves_the_file_as_it_was(
    loopback: Bridge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, ("1", []))
    before = file.read_text()
    describe = NotebookRun._describe

    async def described(run: NotebookRun) -> None:
        await describe(run)
        run._notebook.metadata["own"] = object()

    monkeypatch.setattr(NotebookRun, "_describe", described)
    with pytest.raises(TypeError):
        await run_notebook(loopback, file, save=file)
    assert file.read_text() == before


async def test_a_notebook_is_replaced_as_a_whole_and_keeps_its_mode(
    loopback: Bridge, tmp_path: Path
) -> None:
    file, link = written(tmp_path, ("1", [])), tmp_path / "link.ipynb"
    link.symlink_to(file)
    file.chmod(0o640)
    with file.open() as before:  # a reader of the old file, such as a notebook's page
        await run_notebook(loopback, file, save=link)
        assert '"outputs": []' in before.read()
    assert link.is_symlink()
    assert '"execution_count": 1' in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert sorted(tmp_path.iterdir()) == [link, file]


async def test_tags_are_honoured(loopback: Bridge, tmp_path: Path) -> None:
    file = written(
        tmp_path, ("skipped = True", ["skip-execution"]), ("1 / 0", ["raises-exception"]), ("7", [])
    )
    notebook = await run_notebook(loopback, file)
    assert not await loopback.exists("skipped")
    assert outputs(notebook)[1][0]["output_type"] == "error"
    assert outputs(notebook)[2][0]["data"] == {"text/plain": "7"}


async def test_a_cell_that_takes_too_long_ends_the_run(loopback: Bridge, tmp_path: Path) -> None:
    file = written(tmp_path, ("import time\nprint(1)\ntime.sleep(0.4)", []))
    with pytest.raises(RunTimeout) as caught:
        await run_notebook(loopback, file, timeout=0.1)
    assert caught.value.notebook.cells[1].outputs[0].text == "1\n"


async def test_outputs_of_an_untrusted_kernel_are_inert(tmp_path: Path) -> None:
    import nbformat

    code = "class H:\n    def _repr_mimebundle_(self): return {'text/html': '<b>'}\nH()"
    async with Bridge.loopback(trust="data") as bridge:
        notebook = await run_notebook(bridge, written(tmp_path, (code, [])))
    assert [*outputs(notebook)[0][0]["data"]] == ["text/plain"]
    nbformat.validate(notebook)


def test_a_blocking_bridge_runs_notebooks(tmp_path: Path) -> None:
    with SyncBridge.loopback() as kernel:
        notebook = kernel.run_notebook(written(tmp_path, ("x + 1", [])), parameters={"x": 1})
    assert outputs(notebook)[0][0]["data"] == {"text/plain": "2"}
