"""Test ``bridgehead run notebook.ipynb -o out.ipynb``.

Rule: commands against one kernel of this file. Tests look at the notebook that was written.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from bridgehead import Bridge
from bridgehead._tools.cli.notebook import parameters_of
from support.cli import bridgehead, bridgehead_process, start_command
from support.kit import until

Make = Callable[..., Path]


@pytest.fixture
def options(kernel: Bridge) -> list[str]:
    """Return the options that choose this kernel."""
    return ["--existing", str(kernel.info.connection_file)]


@pytest.fixture
def made(tmp_path: Path) -> Make:
    """Give a function that writes a notebook of these cells; ``tags`` are those of the first."""

    def make(*sources: str, tags: tuple[str, ...] = ()) -> Path:
        import nbformat  # takes seconds, so not when the tests are collected

        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        cells[0].metadata["tags"] = list(tags)
        file = tmp_path / "given.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=cells), file)
        return file

    return make


def written(file: Path) -> list[Any]:
    """Return the outputs of each cell of a notebook."""
    import nbformat

    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    return [cell.outputs for cell in notebook.cells]


def test_parameters_are_json_or_text() -> None:
    texts = ["n=7", "x=0.5", "on=true", "off=False", "none=None", "rows=[1, 2]", "s=north", "e="]
    assert list(parameters_of([*texts, 'quoted="7"', "equals=a=b"]).items()) == [
        *(("n", 7), ("x", 0.5), ("on", True), ("off", False), ("none", None), ("rows", [1, 2])),
        *(("s", "north"), ("e", ""), ("quoted", "7"), ("equals", "a=b")),
    ]
    for bad in ("n", "=7", "a b=7", "7=7"):
        with pytest.raises(click.UsageError, match="takes NAME=VALUE"):
            parameters_of([bad])


def test_a_notebook_runs_with_parameters(options: list[str], made: Make, tmp_path: Path) -> None:
    file, out = (
        made("days = 1", "print(days, region)", "days * 2", tags=("parameters",)),
        tmp_path / "o",
    )
    before = file.read_bytes()
    given = ["-p", "days=7", "-p", "region=north"]
    ran = bridgehead_process("run", file, "-o", out, *given, *options)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == f"ran 3 cells; {out} has their outputs\n"
    first, second, third = written(out)
    assert (first, second[0].text, third[0].data["text/plain"]) == ([], "7 north\n", "14")
    assert file.read_bytes() == before
    assert bridgehead("run", file, "-o", file, *given, *options).code == 0
    assert written(file)[1][0].text == "7 north\n"


@pytest.mark.slow
def test_a_cell_that_fails_is_named(options: list[str], made: Make, tmp_path: Path) -> None:
    file, out = made("print(1)", "", "1 / 0", "print(2)"), tmp_path / "out.ipynb"
    ran = bridgehead_process("run", file, "-o", out, *options)
    assert (ran.code, ran.out) == (1, "")
    assert "----> 1 1 / 0" in ran.err
    sentence = "cell 2 of 3 raised ZeroDivisionError: division by zero;"
    assert f"bridgehead: {sentence} {out} has the notebook so far" in ran.err
    assert ran.err.count("Traceback (most recent call last)") == 1
    first, _, third, last = written(out)
    assert (first[0].text, third[0].ename, last) == ("1\n", "ZeroDivisionError", [])


def test_a_cell_that_raises_a_group_has_its_traceback(
    options: list[str], made: Make, tmp_path: Path
) -> None:
    """The cell prints it, and what cells print is in the notebook only."""
    file = made("raise ExceptionGroup('both', [ValueError(1), KeyError(2)])")
    ran = bridgehead("run", file, "-o", tmp_path / "out.ipynb", *options)
    assert (ran.code, ran.err.count("KeyError: 2")) == (1, 1)


def test_json_says_how_far_it_came(options: list[str], made: Make, tmp_path: Path) -> None:
    file, out = made("print(1)", "1 / 0"), tmp_path / "out.ipynb"
    ran = bridgehead("run", file, "-o", out, "--json", *options)
    assert ran.code == 1
    found = json.loads(ran.out)
    assert found.pop("error")["ename"] == "ZeroDivisionError"
    assert found == {"output": str(out), "cells": 2, "last": 2}


@pytest.mark.slow
async def test_the_time_is_over(
    kernel: Bridge, options: list[str], made: Make, tmp_path: Path
) -> None:
    """The cell is interrupted, and the notebook so far is written."""
    file = made("print('begun')", "import time\nwhile True: time.sleep(0.01)")
    out = tmp_path / "out.ipynb"
    ran = await asyncio.to_thread(
        bridgehead_process, "run", file, "-o", out, "--timeout", 3, *options
    )
    message = ran.refused(124)
    assert "took longer than 3 s" in message
    assert f"cell 2 of 2 was the last one; {out} has the notebook so far" in message
    assert written(out)[0][0].text == "begun\n"
    assert await kernel.pull("1 + 1") == 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to one process")
async def test_control_c_interrupts_the_cell(
    kernel: Bridge, options: list[str], made: Make, tmp_path: Path
) -> None:
    cell = "import time\nat_work = True\nwhile True: time.sleep(0.01)"
    file, out = made("at_work = False", cell, "print('never')"), tmp_path / "out.ipynb"
    await kernel.push(at_work=False)
    with start_command("run", file, "-o", out, *options) as process:
        try:
            while not await kernel.pull("at_work", now=True):
                await asyncio.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, err = await asyncio.to_thread(process.communicate, timeout=60)
        finally:
            if process.poll() is None:
                process.kill()
    assert process.returncode == 130
    assert b"cell 2 of 3 raised KeyboardInterrupt" in err
    assert [len(outputs) for outputs in written(out)] == [0, 1, 0]
    await until(lambda: kernel.state == "idle")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["given.ipynb"], "a notebook needs -o OUT"),
        (["-c", "1", "-o", "out.ipynb"], "-o and -p are for a notebook"),
        (["cell.py", "-p", "x=1"], "-o and -p are for a notebook"),
        (["given.ipynb", "-o", "out.ipynb", "-p", "x"], "-p takes NAME=VALUE"),
        (["missing.ipynb", "-o", "out.ipynb"], "missing.ipynb can't be read: No such file"),
        (["broken.ipynb", "-o", "out.ipynb"], "broken.ipynb is not a notebook"),
        (["given.ipynb", "-o", "no/such/out.ipynb"], "can't be written; nothing ran"),
    ],
)
def test_what_cannot_start_is_code_2(
    arguments: list[str],
    message: str,
    options: list[str],
    made: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    made("1")
    Path("broken.ipynb").write_text("{")
    ran = bridgehead("run", *arguments, *options)
    assert message in ran.refused(2)
    assert not Path("out.ipynb").exists()


@pytest.mark.slow
def test_a_kernel_that_dies_leaves_the_notebook_so_far(made: Make, tmp_path: Path) -> None:
    async def run() -> Any:
        async with Bridge.launch() as doomed:
            options = ["--existing", str(doomed.info.connection_file)]
            return await asyncio.to_thread(bridgehead_process, "run", file, "-o", out, *options)

    file, out = made("print(1)", "import os; os._exit(3)"), tmp_path / "out.ipynb"
    message = asyncio.run(run()).refused(5)
    assert f"cell 2 of 2 was the last one; {out} has the notebook so far" in message
    assert written(out)[0][0].text == "1\n"
