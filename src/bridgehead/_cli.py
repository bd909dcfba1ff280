"""The command line: ``bridgehead demo``.

Rule: a face. Arguments in, tables and sentences out; what a command does lives in a file of its
own. click and rich are an extra, so without them there is one sentence and exit code 2, and a
``BridgeError`` is one line and exit code 1.
"""

from __future__ import annotations

import asyncio
import sys
import textwrap
from collections.abc import Coroutine
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from bridgehead._errors import BridgeError, RemoteError

try:
    import click
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text
except ModuleNotFoundError as error:
    _missing: str | None = error.name
else:
    _missing = None

if TYPE_CHECKING:
    from bridgehead._demo import Report

T = TypeVar("T")

PROSE = 80  # columns that a sentence takes at most
PIPED = 10_000  # columns when nobody's terminal would wrap: tables are as wide as they are
LABEL = 32  # characters of a name or a cell from the file
SHOWN_COLUMNS = 4  # of a summary; the table that was pulled has them all


def main() -> None:
    """The console script; ``SystemExit`` 0, 1 (it failed) or 2 (it can't be tried)."""
    if _missing is not None:
        _not_installed(_missing)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file name or a cell may hold what ASCII hasn't
            stream.reconfigure(errors="replace")
    commands().main(prog_name="bridgehead")


def commands() -> click.Group:
    """The click group with every command; built when called, because click may be missing."""

    @click.group(context_settings={"help_option_names": ["-h", "--help"]})
    @click.version_option(package_name="bridgehead", message="%(prog)s %(version)s")
    def bridgehead() -> None:
        """Live Python objects, between an asyncio program and a running Jupyter kernel."""

    @bridgehead.command()
    @click.argument("file", metavar="[FILE.csv]", required=False, type=click.Path(path_type=Path))
    def demo(file: Path | None) -> None:
        """Send a table to a kernel, use it there, fetch the result.

        Launches a kernel, pushes FILE.csv as a DataFrame (without it, a small data set that
        ships with bridgehead) together with a closure and an instance of a class made on the
        spot, runs a cell on them, pulls the results, and attaches a second bridge, which sees
        the same objects. Then shows what crossed, how many bytes, and how fast. The kernel is
        ended, and nothing is left behind.
        """
        _demo(file)

    return bridgehead


# ---------------------------------------------------------------- demo


def _demo(file: Path | None) -> None:
    try:
        from bridgehead import _demo
    except ModuleNotFoundError as error:
        _not_installed(str(error.name))
    try:
        table = _demo.read_table(file or _demo.SHIPPED)
    except _demo.UnusableTable as error:
        _fail(str(error))
    console = _console()
    name, source = (str(file), "") if file else ("Palmer penguins", _demo.SHIPPED_SOURCE)
    rows, columns = table.shape
    _say(console, f"{name}: {_count(rows, 'row')}, {_count(columns, 'column')}. {source}")
    with console.status("a kernel is starting, and the objects cross"):
        report = _finish(_demo.cross(table))
    _draw_report(console, report, _demo.CELL)
    if not report.kept:
        _fail("what was seen is not what bridgehead promises; please report it")


def _draw_report(console: Console, report: Report, cell: str) -> None:
    first = report.first
    python = ".".join(map(str, first.python))
    _say(
        console,
        f"A kernel ({first.kernel}, Python {python}, pid {first.pid}, over {first.transport}) "
        f"started in {report.launch_seconds:.2f} s and imported pandas in "
        f"{report.import_seconds:.2f} s.",
    )
    _say(console, f"The cell it ran: {cell}")
    _draw_summary(console, report)
    _draw_crossings(console, report)
    _say(
        console,
        "bytes: the pickle and its buffers; of a push, as sent; of a pull, of what arrived, "
        "pickled again here. ms: of this one object, from the call to its end.",
    )
    _say(console, _seen(report))


def _draw_summary(console: Console, report: Report) -> None:
    summary = report.summary
    shown = summary.iloc[:, : SHOWN_COLUMNS + 1]  # the first one counts the rows
    hidden = summary.shape[1] - shown.shape[1]
    more = f" ({_count(hidden, 'column')} more)" if hidden else ""
    table = _table()
    table.add_column(_label(summary.index.name or ""), overflow="fold")
    for name in shown.columns:
        table.add_column(_label(name), justify="right", overflow="fold")
    for key, *values in shown.itertuples(name=None):
        table.add_row(_label(key), *map(_number, values))
    _print_table(console, f"summary, computed there and pulled: {report.about}{more}", table)


def _draw_crossings(console: Console, report: Report) -> None:
    pushed, pulled = ("→", "←") if console.encoding.startswith("utf") else ("->", "<-")
    table = _table()
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
    _print_table(console, f"what crossed: {pushed} pushed, {pulled} pulled", table)


def _seen(report: Report) -> str:
    """The closing words: only what was really found."""
    first, second = report.first, report.second
    kernel = "the same kernel" if report.same_kernel else f"another kernel than pid {first.pid}"
    equal = "equal" if report.same_kernel else "not equal"
    same = "the same" if report.same_objects else "other"
    ids = "equal" if report.same_objects else "not equal"
    seen = "sees" if report.change_seen else "does not see"
    stamps = ", ".join(f"{who} (pid {pid})" for who, pid in report.stamps)
    back = "equal to" if report.intact else "other than"
    gone = "gone" if report.tidy else "still there"
    return (
        f"The second bridge, attached by connection file in {report.attach_seconds:.2f} s, is in "
        f"{kernel}: pid {second.pid} and epoch {second.epoch} are {equal}. It reaches {same} "
        f"objects: their ids are {ids}, and the first bridge {seen} what the second one's cell "
        f"did to the passport. Stamps in the passport: {stamps}. What came back is {back} what "
        f"was sent. The kernel has ended; its connection file is {gone}."
    )


# ---------------------------------------------------------------- for every command


def _finish(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's work; what the library raises becomes one line and exit code 1."""
    try:
        return asyncio.run(work)
    except RemoteError as error:
        _fail(f"in the kernel: {error.ename}: {error.evalue}")
    except (BridgeError, TimeoutError) as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    """The first line in red; what a kernel last wrote, if the message has it, below."""
    console = _console(stderr=True)
    line, _, rest = message.partition("\n")
    console.print(Text(f"bridgehead: {_plain(line)}", style="red"), soft_wrap=True)
    for line in rest.splitlines():
        console.print(Text(f"  {_plain(line)}"), soft_wrap=True)
    raise SystemExit(1)


def _not_installed(module: str) -> NoReturn:
    sys.stderr.write(
        f"bridgehead: the command line needs {module}, which is not installed; "
        "pip install 'bridgehead[all]'\n"
    )
    raise SystemExit(2)


def _console(*, stderr: bool = False) -> Console:
    """Takes texts as they are: no markup, no highlighting, no emoji codes."""
    console = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPED
    return console


def _say(console: Console, text: str) -> None:
    _print_wrapped(console, text)
    console.print()


def _print_wrapped(console: Console, text: str, style: str = "") -> None:
    """Wrapped here and not by rich, which would leave a space at the end of each line."""
    width = min(console.width, PROSE)
    lines = textwrap.fill(_plain(text), width, break_long_words=False, break_on_hyphens=False)
    console.print(Text(lines, style=style), soft_wrap=True)


def _print_table(console: Console, title: str, table: Table) -> None:
    _print_wrapped(console, title, "bold")
    console.print(table)
    console.print()


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _number(value: Any) -> str:
    """Four digits are enough to look at; a count is told in full."""
    if isinstance(value, Integral):
        return f"{value:,}"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"


def _label(value: Any) -> Text:
    """A column's name or a cell's text, short enough to leave room for the others."""
    text = _plain(value)
    return Text(text if len(text) <= LABEL else text[: LABEL - 1] + "…")


def _plain(value: Any) -> str:
    """Text from a file, without what would steer the terminal."""
    return "".join(
        sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in str(value)
    )
