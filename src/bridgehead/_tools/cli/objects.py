"""``names``, ``push`` and ``pull``: a kernel's objects, and files.

Rule: a problem with a file is reported before a kernel is asked. A file is written when the whole
value has arrived.
"""

from __future__ import annotations

import asyncio
import json
import keyword
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from bridgehead._tools.cli.candidates import files
from bridgehead._tools.cli.candidates import names as complete_names
from bridgehead._tools.cli.ctrl_c import CtrlC, cancelling
from bridgehead._tools.cli.exit import (
    FAILED,
    UNUSABLE,
    fail,
    finish,
    not_installed,
    with_wait_notice,
)
from bridgehead._tools.cli.formats import (
    FORMATS,
    PIP,
    SUFFIXES,
    UTF8,
    Unusable,
    dumped,
    format_of,
    jsonable,
    loaded,
)
from bridgehead._tools.cli.options import as_json, target
from bridgehead._tools.cli.target import Target

as_format = click.option(
    "--format",
    "-f",
    "kind",
    type=click.Choice(FORMATS),
    help="The format, whatever the suffix of a file; needed for -.",
)


@click.command()
@click.argument("pattern", default="*", shell_complete=complete_names)
@target(trust=False)
@as_json
def names(target: Target, pattern: str, as_json: bool) -> None:
    """List the names in a kernel, with types and sizes.

    PATTERN is a shell pattern, such as 'train_*'; put it in quotes. The command computes
    nothing in the kernel.
    """
    found = finish(_names(target, pattern))
    if as_json:
        click.echo(json.dumps([asdict(name) for name in found], indent=1))
        return
    from bridgehead._tools.cli.terminal import console_for, label, new_table, plain, print_table

    if not found:
        click.echo("no names" + ("" if pattern == "*" else f" like {plain(pattern)}"), err=True)
        return
    table = new_table()
    for column in ("name", "type", "size", "bytes"):
        table.add_column(column, justify="right" if column in ("size", "bytes") else "left")
    for name in found:
        table.add_row(
            label(name.name),
            label(name.type),
            name.extent,
            "" if name.bytes is None else f"{name.bytes:,}",
        )
    print_table(console_for(), "", table)


async def _names(target: Target, pattern: str) -> Any:
    async with target.open() as bridge:
        return await with_wait_notice(bridge.names(pattern))


# ---------------------------------------------------------------- push


as_text = [
    click.option(
        "--encoding",
        default=UTF8,
        metavar="NAME",
        help="The encoding of a csv or json file, such as latin-1.  [default: utf-8]",
    ),
    click.option(
        "--sep",
        default=",",
        metavar="CHARACTER",
        help=r"The separator of a csv file, such as ; or \t for a tab.  [default: ,]",
    ),
]


def _with_text(command: Any) -> Any:
    """Add the options of files that are text."""
    for option in reversed(as_text):
        command = option(command)
    return command


def _separator(sep: str) -> str:
    sep = "\t" if sep == r"\t" else sep
    if len(sep) != 1 or sep in '"\r\n':
        raise click.UsageError("--sep takes one character, which is no quote or line break")
    return sep


@click.command()
@click.argument("bindings", metavar="NAME=FILE...", nargs=-1, required=True, shell_complete=files)
@as_format
@_with_text
@target()
@as_json
def push(
    target: Target,
    bindings: tuple[str, ...],
    kind: str | None,
    encoding: str,
    sep: str,
    as_json: bool,
) -> None:
    """Bind the contents of files to names in a kernel: all of them, or none.

    The suffix says how to read a file: .csv, .parquet and .arrow (or .feather) become
    DataFrames, .npy an array, .npz a dict of arrays, .json the value it holds. NAME=- reads
    standard input and needs --format. The objects hold all that the files do, or the command
    says what would be lost: a column of a csv file has numbers only if they are written back
    the same, and a column of a .parquet or .arrow file keeps its Arrow type where pandas has
    none.

    The kernel opens a .pickle; this program does not. Opening a pickle runs the code in it.
    Push only pickles whose origin you know, or use --trust data: then the kernel refuses
    them.
    """
    values = {}
    for binding in bindings:
        name, file = _binding(binding)
        if name in values:
            raise click.UsageError(f"{name} is given twice")
        values[name] = _read(file, _kind(file, kind), encoding, _separator(sep))
    print_moved(finish(_push(target, values)), as_json)


def print_moved(moved: Any, as_json: bool) -> None:
    """Print what crossed, and how."""
    if as_json:
        sent = {"names": moved.names, "bytes": moved.bytes}
        click.echo(json.dumps({**sent, "seconds": moved.seconds, "lane": moved.lane}))
        return
    from bridgehead._tools.cli.terminal import plain

    click.echo(
        f"{plain(', '.join(moved.names))}: {moved.bytes:,} bytes by {moved.lane} "
        f"in {moved.seconds:.3g} s"
    )


async def _push(target: Target, values: dict[str, Any]) -> Any:
    async with target.open() as bridge:
        trust: Any = target.trust or "pickle"
        return await with_wait_notice(bridge.push(values, trust=trust))


def _binding(text: str) -> tuple[str, str]:
    name, equals, file = text.partition("=")
    if not equals or not file:
        raise click.UsageError(f"{text!r} is not NAME=FILE; an example is data=table.csv")
    if not name.isidentifier() or keyword.iskeyword(name):
        raise click.UsageError(f"{name!r} is a keyword, or not a valid Python name")
    return name, file


def _kind(file: str, kind: str | None) -> str:
    found = kind or (None if file == "-" else format_of(file))
    if found is None:
        known = ", ".join(SUFFIXES)
        why = "- has no suffix" if file == "-" else f"{file!r} does not end in one of {known}"
        raise click.UsageError(f"{why}; use --format")
    return found


def _read(file: str, kind: str, encoding: str, sep: str) -> Any:
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return loaded(data, kind, "standard input" if file == "-" else file, encoding, sep)
    except OSError as error:
        fail(f"{file} can't be read: {error.strerror or error}", UNUSABLE)
    except Unusable as error:
        fail(str(error), UNUSABLE)
    except ModuleNotFoundError as error:
        _fail_without(error, kind)


def _fail_without(error: ModuleNotFoundError, kind: str) -> Any:
    module = str(error.name)
    not_installed(module, kind, PIP.get(module, module))


# ---------------------------------------------------------------- pull


@click.command()
@click.argument("expression", metavar="EXPR", shell_complete=complete_names)
@click.option(
    "--output", "-o", metavar="FILE", help="Write the value to FILE; - is standard output."
)
@as_format
@_with_text
@target()
@as_json
def pull(
    target: Target,
    expression: str,
    output: str | None,
    kind: str | None,
    encoding: str,
    sep: str,
    as_json: bool,
) -> None:
    """Show the value of EXPR in a kernel, or write it to a file.

    The suffix of FILE chooses the format: .csv, .parquet or .arrow for a table, .npy for an
    array, .npz for a dict of arrays, .json, or .pickle for any object. The file is written
    whole or not at all. The command refuses a value that the format can't hold. The kernel
    makes a .pickle, and this program does not open it. A program that opens it runs the code
    in it.

    Without -o the command shows the beginning of the value. --json prints the nearest JSON:
    the rows of a table, the numbers of an array, the repr of any other object.

    Ctrl-C ends the command, and interrupts what the kernel evaluates for it, and nothing else.
    On Windows it only ends the command, and the kernel goes on.
    """
    if output is None and kind is not None:
        output = "-"
    wanted = _kind(output, kind) if output is not None else None
    if wanted is not None and as_json:
        raise click.UsageError("--json and -o exclude each other; for a JSON file, use -f json")
    if output not in (None, "-"):
        _check_place(Path(str(output)))
    value = finish(_pull(target, expression, wanted))
    if output is not None:
        _save(value, str(output), str(wanted), encoding, _separator(sep))
    elif as_json:
        from bridgehead._tools.cli.terminal import write

        write(json.dumps(jsonable(value)) + "\n")
    else:
        from bridgehead._tools.cli.preview import show

        show(value)


async def _pull(target: Target, expression: str, kind: str | None) -> Any:
    async with target.open() as bridge:
        if kind == "pickle":
            # cloudpickle includes the classes of a notebook, which only that kernel knows.
            way = "cloudpickle" if bridge.info.versions.get("cloudpickle") else "pickle"
            expression = f"__import__({way!r}).dumps((\n{expression}\n))"
        interrupts = CtrlC()
        work = asyncio.ensure_future(
            bridge._pull_interruptibly(expression, lambda: interrupts.abandoned)
        )
        with cancelling(work, interrupts) as interrupts_kernel:
            ctrl_c = "stops waiting" + " and interrupts the evaluation" * interrupts_kernel
            try:
                return await with_wait_notice(work, ctrl_c)
            except asyncio.CancelledError:
                if interrupts.abandoned:
                    raise click.Abort from None
                raise


def _check_place(file: Path) -> None:
    """Check the file before the value is pulled, because pulling may take a while."""
    if file.is_dir():
        fail(f"{file} is a folder", UNUSABLE)
    if not file.absolute().parent.is_dir():
        fail(f"{file} can't be written: there is no folder {file.absolute().parent}", UNUSABLE)


def _save(value: Any, output: str, kind: str, encoding: str, sep: str) -> None:
    from bridgehead._bridge.whole_file import write_whole
    from bridgehead._tools.cli.terminal import plain, write

    try:
        data = dumped(value, kind, encoding, sep)
        if output == "-":
            write(data)
            return
        write_whole(Path(output), data)
    except BrokenPipeError:
        raise
    except OSError as error:
        fail(f"{output} can't be written: {error.strerror or error}", FAILED)
    except Unusable as error:
        fail(str(error), FAILED)
    except ModuleNotFoundError as error:
        _fail_without(error, kind)
    if Path(output).is_file():  # a pipe may be standard output by another name
        click.echo(f"{plain(output)}: {len(data):,} bytes of {kind}")
