"""``run`` of a notebook: its cells run in a kernel, and their outputs go into another file.

Rule: the notebook is written however its run ends. Which cell failed is said in one sentence, below
the kernel's own traceback.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bridgehead._protocol.formatting import line
from bridgehead._tools.cli.cell_output import OutputPrinter
from bridgehead._tools.cli.ctrl_c import BY_INTERRUPT, interrupting
from bridgehead._tools.cli.exit import (
    FAILED,
    INTERRUPTED,
    UNUSABLE,
    fail,
    finish,
    not_installed,
    warn,
)
from bridgehead._tools.cli.target import Target

if TYPE_CHECKING:
    from bridgehead._bridge.notebook import NotebookRun

_WORDS = {"True": True, "False": False, "None": None}


def parameters_of(texts: Sequence[str]) -> dict[str, Any]:
    """Return the parameters ``NAME=VALUE``; a value that is no JSON is a text.

    Raises:
        click.UsageError: a text has no name, or a name that Python does not take.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise click.UsageError(
                f"-p takes NAME=VALUE, where NAME is a Python name, not {text!r}"
            )
        found[name] = _value(value)
    return found


def _value(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    try:
        return json.loads(text)
    except ValueError:
        return text


def run_file(
    target: Target, file: str, output: str, parameters: Mapping[str, Any], as_json: bool
) -> int:
    """Run a notebook, write it, and return the exit code."""
    from bridgehead._bridge.whole_file import check_writable

    try:
        nbformat: Any = import_module("nbformat")
    except ImportError:
        not_installed("nbformat", "a notebook", "notebook")
    try:
        notebook = nbformat.read(file, as_version=4)
    except OSError as error:
        fail(f"{file} can't be read: {error.strerror or error}", UNUSABLE)
    except Exception as error:  # noqa: BLE001 - nbformat raises errors of many kinds
        why = line(error, 200)
        fail(f"{file} is not a notebook: {why}", UNUSABLE)
    try:
        check_writable(Path(output))
    except OSError:
        fail(f"{output} can't be written; nothing ran", UNUSABLE)
    return finish(_run(target, notebook, output, parameters, as_json))


async def _run(
    target: Target, notebook: Any, output: str, parameters: Mapping[str, Any], as_json: bool
) -> int:
    from bridgehead import RemoteError
    from bridgehead._bridge.notebook import NotebookRun

    error, run, so_far = None, None, f"{output} has the notebook so far"
    try:
        async with target.open() as bridge:
            run = NotebookRun(bridge, notebook, None)
            work = asyncio.ensure_future(run.all(parameters))
            with interrupting(bridge, work, run) as interrupts:
                try:
                    await work
                except RemoteError as raised:
                    error = raised
                except asyncio.CancelledError:
                    if not interrupts.abandoned:
                        raise
                    warn(f"stopped waiting for {run.place}; {so_far}")
                    return INTERRUPTED
                finally:
                    _write(notebook, output)
    except Exception as other:
        if run is not None:
            other.add_note(f"{run.place} was the last one; {so_far}")
        raise
    if as_json:
        _print_json(run, output, error)
    if error is None:
        if not as_json:
            click.echo(f"ran {run.cells} cells; {output} has their outputs")
        return 0
    if not as_json:
        OutputPrinter(quiet=True).error(error)
    warn(f"{run.place} raised {error.ename}: {error.evalue}; {so_far}", "red")
    return INTERRUPTED if interrupts.request and error.ename in BY_INTERRUPT else FAILED


def _write(notebook: Any, output: str) -> None:
    from bridgehead._bridge.notebook import write_notebook

    try:
        write_notebook(notebook, output)
    except OSError as error:
        fail(f"{output} can't be written: {error.strerror or error}", FAILED)


def _print_json(run: NotebookRun, output: str, error: Any) -> None:
    description = None
    if error is not None:
        description = {"ename": error.ename, "evalue": error.evalue, "traceback": error.traceback}
    fields = {"output": output, "cells": run.cells, "last": run.at, "error": description}
    click.echo(json.dumps(fields))
