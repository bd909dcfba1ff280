"""``bridgehead demo``: the display of the demonstration.

Rule: ``_tools.demo`` runs the demonstration. This file turns its report into sentences and tables.
"""

from __future__ import annotations

from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from bridgehead._tools.cli.exit import fail, finish, not_installed
from bridgehead._tools.cli.terminal import (
    console_for,
    count,
    label,
    new_table,
    print_table,
    say,
)

if TYPE_CHECKING:
    from bridgehead._tools.demo import DemoReport

SHOWN_COLUMNS = 4  # of the summary; the table that was pulled has all of them


@click.command()
@click.argument("file", metavar="[FILE.csv]", required=False, type=click.Path(path_type=Path))
def demo(file: Path | None) -> None:
    """Send a table to a kernel, use it in a cell, pull the result.

    The command launches a kernel and pushes three objects: FILE.csv as a DataFrame (without
    a file, a small data set that ships with bridgehead), a closure, and an instance of a
    class that the command defines. It runs a cell on them and pulls the results. A second
    bridge attaches to the kernel and sees the same objects. Then the command shows what
    crossed, how many bytes, and how fast. It shuts the kernel down and leaves nothing
    behind.
    """
    try:
        from bridgehead._tools import demo as _demo
    except ModuleNotFoundError as error:
        not_installed(str(error.name))
    try:
        table = _demo.read_table(file or _demo.SHIPPED)
    except _demo.UnusableTable as error:
        fail(str(error))
    console = console_for()
    name, source = (str(file), "") if file else ("Palmer penguins", _demo.SHIPPED_SOURCE)
    rows, columns = table.shape
    say(console, f"{name}: {count(rows, 'row')}, {count(columns, 'column')}. {source}")
    with console.status("starting a kernel and sending the objects"):
        report = finish(_demo.cross(table))
    _draw_report(console, report, _demo.CELL)
    if not report.kept:
        fail("the results are not what bridgehead promises; please report this as a bug")


def _draw_report(console: Console, report: DemoReport, cell: str) -> None:
    first = report.first
    python = ".".join(map(str, first.python))
    say(
        console,
        f"A kernel ({first.kernel}, Python {python}, pid {first.pid}, over {first.transport}) "
        f"started in {report.launch_seconds:.2f} s and imported pandas in "
        f"{report.import_seconds:.2f} s.",
    )
    say(console, f"The kernel ran this cell: {cell}")
    _draw_summary(console, report)
    _draw_crossings(console, report)
    say(
        console,
        "bytes: the size of the pickle and its buffers; for a pull, of the value pickled again "
        "in this process. ms: the time of this one call.",
    )
    say(console, _conclusion(report))


def _draw_summary(console: Console, report: DemoReport) -> None:
    summary = report.summary
    shown = summary.iloc[:, : SHOWN_COLUMNS + 1]  # the first column counts the rows
    hidden = summary.shape[1] - shown.shape[1]
    more = f" ({count(hidden, 'column')} more)" if hidden else ""
    table = new_table()
    table.add_column(label(summary.index.name or ""), overflow="fold")
    for name in shown.columns:
        table.add_column(label(name), justify="right", overflow="fold")
    for key, *values in shown.itertuples(name=None):
        table.add_row(label(key), *map(_number, values))
    print_table(console, f"summary, computed in the kernel and pulled: {report.about}{more}", table)


def _draw_crossings(console: Console, report: DemoReport) -> None:
    pushed, pulled = ("→", "←") if console.encoding.startswith("utf") else ("->", "<-")
    table = new_table()
    table.add_column("")
    table.add_column("bridge")
    table.add_column("name", style="bold")
    table.add_column("type")
    table.add_column("bytes", justify="right")
    table.add_column("lane")
    table.add_column("ms", justify="right")
    for row in report.crossings:
        table.add_row(
            pushed if row.direction == "push" else pulled,
            row.bridge,
            row.name,
            row.type,
            f"{row.bytes:,}",
            row.lane,
            f"{row.seconds * 1000:.1f}",
        )
    print_table(console, f"what crossed: {pushed} pushed, {pulled} pulled", table)


def _conclusion(report: DemoReport) -> str:
    """Return the closing sentences: only what was really found."""
    first, second = report.first, report.second
    kernel = "the same kernel" if report.same_kernel else f"another kernel than pid {first.pid}"
    equal = "equal" if report.same_kernel else "not equal"
    same = "the same" if report.same_objects else "other"
    ids = "equal" if report.same_objects else "not equal"
    seen = "sees" if report.change_seen else "does not see"
    stamps = ", ".join(f"{who} (pid {pid})" for who, pid in report.stamps)
    back = "equal to" if report.intact else "different from"
    file = "is gone" if report.tidy else "still exists"
    return (
        f"The second bridge attached by connection file in {report.attach_seconds:.2f} s, to "
        f"{kernel}: pid {second.pid} and epoch {second.epoch} are {equal}. It reaches {same} "
        f"objects: their ids are {ids}, and the first bridge {seen} what the second bridge's cell "
        f"did to the passport. Stamps in the passport: {stamps}. What came back is {back} what "
        f"was sent. The kernel has exited; its connection file {file}."
    )


def _number(value: Any) -> str:
    """Return a number with four digits; a count in full."""
    if isinstance(value, Integral):
        return f"{value:,}"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"
