"""``run``: run a file or a line of code as a cell, and show its output as it comes; or a notebook.

Rule: the arguments become one cell, or a notebook for ``notebook``. What is shown of a cell is in
``cell_output``, what Ctrl-C does to it in ``ctrl_c``.
"""

from __future__ import annotations

import asyncio
import io
import json
import sys
from pathlib import Path
from typing import Any

import click

from bridgehead._tools.cli.cell_output import OutputPrinter
from bridgehead._tools.cli.ctrl_c import BY_INTERRUPT, interrupting
from bridgehead._tools.cli.exit import FAILED, INTERRUPTED, UNUSABLE, fail, finish, warn
from bridgehead._tools.cli.options import as_json, target
from bridgehead._tools.cli.target import Target


@click.command()
@click.argument(
    "file", metavar="[FILE]", required=False, type=click.Path(dir_okay=False, allow_dash=True)
)
@click.option("--code", "-c", metavar="CODE", help="Run this code, in place of a file.")
@click.option(
    "--output",
    "-o",
    metavar="OUT",
    type=click.Path(dir_okay=False),
    help="Of a notebook: the file for the notebook with its outputs; may be FILE itself.",
)
@click.option(
    "--parameter",
    "-p",
    "parameters",
    metavar="NAME=VALUE",
    multiple=True,
    help="Of a notebook: bind NAME to VALUE (JSON, else a text) behind the cell with the tag "
    "parameters, or before all cells if there is none. May be repeated.",
)
@target(trust=False)
@as_json
def run(
    target: Target,
    file: str | None,
    code: str | None,
    output: str | None,
    parameters: tuple[str, ...],
    as_json: bool,
) -> None:
    """Run FILE, or CODE, as a cell of a kernel; - reads standard input.

    The code runs like a cell of a notebook: magics and top-level await work, the cell has a
    number, and other clients see its output. The command prints the output as it comes, and
    errors on standard error. If the cell raises, the exit code is 1. Ctrl-C interrupts the
    cell in the kernel. A second Ctrl-C ends the command, and the cell goes on. On Windows the
    first one ends the command.

    A FILE.ipynb is a notebook: its code cells run in their order, and OUT gets the notebook
    with their outputs. If a cell raises, the rest does not run, OUT has the outputs so far,
    and the exit code is 1.

    --json prints one object when the cell ends: stdout, stderr, outputs as in a notebook
    file, data, execution_count and error. Of a notebook: output, cells (how many), last
    (the number of the last one that ran) and error.

    \b
    Examples:
      bridgehead run -c "print(df.shape)"
      bridgehead run report.ipynb -o out.ipynb -p days=7 -p region=north
    """  # noqa: D301 - \b tells click not to wrap these lines
    if (file is None) == (code is None):
        raise click.UsageError("give either a FILE or -c CODE")
    is_notebook = file is not None and file.endswith(".ipynb")
    if is_notebook and output is None:
        raise click.UsageError("a notebook needs -o OUT, the file for its outputs")
    if not is_notebook and (output is not None or parameters):
        raise click.UsageError("-o and -p are for a notebook, a FILE that ends in .ipynb")
    if is_notebook:
        from bridgehead._tools.cli.notebook import parameters_of, run_file

        values = parameters_of(parameters)
        raise SystemExit(run_file(target, str(file), str(output), values, as_json))
    if code is None:
        code = _content(str(file))
    raise SystemExit(finish(_run(target, code, as_json)))


def _content(file: str) -> str:
    name = "standard input" if file == "-" else file
    try:
        # Read bytes: this process's text streams would accept bytes that are not UTF-8.
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return io.TextIOWrapper(io.BytesIO(data), "utf-8").read()
    except (OSError, UnicodeError) as error:
        fail(f"{name} can't be read: {getattr(error, 'strerror', None) or error}", UNUSABLE)


async def _run(target: Target, code: str, as_json: bool) -> int:
    from bridgehead import RemoteError
    from bridgehead._connection.outputs import CellObserver

    printer = OutputPrinter(quiet=as_json)
    observer = CellObserver(printer.take)
    async with target.open() as bridge:
        cell = asyncio.ensure_future(bridge.run(code, on_output=observer))
        printer.cell = cell
        with interrupting(bridge, cell, observer) as interrupts:
            try:
                result, error = await cell, None
            except RemoteError as raised:
                result, error = raised.result, raised
                if not as_json:
                    printer.error(raised)
            except asyncio.CancelledError:
                if printer.reader_left:
                    raise BrokenPipeError from None
                if not interrupts.abandoned:
                    raise
                warn(
                    "stopped waiting; the cell may still run"
                    + ("" if observer.begun else " when its turn comes")
                )
                return INTERRUPTED
            finally:
                printer.end()
    if as_json:
        _print_json(result, error)
    if error is None:
        return 0
    return INTERRUPTED if interrupts.request and error.ename in BY_INTERRUPT else FAILED


def _print_json(result: Any, error: Any) -> None:
    description = None
    if error is not None:
        description = {"ename": error.ename, "evalue": error.evalue, "traceback": error.traceback}
    fields = ("stdout", "stderr", "outputs", "data", "execution_count")
    values = {name: getattr(result, name, None) for name in fields}
    from bridgehead._tools.cli.terminal import write

    write(json.dumps({**values, "error": description}, default=repr) + "\n")
