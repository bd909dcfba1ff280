"""The command line: ``bridgehead demo`` and ``bridgehead bench``.

Rule: a face. Arguments in, tables and sentences out; what a command does lives in a file of its
own. click and rich are an extra, so without them there is one sentence and exit code 2, and a
``BridgeError`` is one line and exit code 1.
"""

from __future__ import annotations

import asyncio
import json
import sys
import textwrap
from collections.abc import Coroutine, Sequence
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
    from bridgehead._bench.session import Figure
    from bridgehead._bench.session import Report as Measured
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

    @bridgehead.command()
    @click.option("--existing", metavar="FILE", help="Measure this running kernel.")
    @click.option("--payloads", metavar="NAMES", help="Only these, e.g. int,np1m.")
    @click.option("--large", is_flag=True, help="An array of 1 GB, too.")
    @click.option(
        "--seconds",
        type=click.FloatRange(min=0),
        default=1.0,
        show_default=True,
        help="Measure each way with each object for so long; three rounds at least.",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
    @click.option(
        "--plot",
        metavar="FILE.png",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Draw the figures into a file (needs matplotlib).",
    )
    def bench(
        existing: str | None,
        payloads: str | None,
        large: bool,
        seconds: float,
        as_json: bool,
        plot: Path | None,
    ) -> None:
        """Measure push and pull on this machine.

        Launches a kernel for each lane (or takes a running one), and sends objects there and
        back: an int, dicts, arrays, a DataFrame. Beside them, in the same rounds, it measures
        a copy in memory, pickling, raw ZeroMQ, and the round trip of an empty cell. Shows
        medians. The kernels are ended; of a running one, nothing is left in it.

        Objects for --payloads: int, dict1k, dict10k, list1m, np1m, df, np100m, np1g.
        """
        _bench(existing, payloads, large, seconds, as_json, plot)

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


# ---------------------------------------------------------------- bench


def _bench(
    existing: str | None,
    names: str | None,
    large: bool,
    seconds: float,
    as_json: bool,
    plot: Path | None,
) -> None:
    from bridgehead._bench import session

    wanted = names.split(",") if names else list(session.USUAL)
    try:
        payloads, left_out = session.chosen([*wanted, session.LARGE] if large else wanted)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if not payloads:
        _fail("; ".join(f"{title}: {why}" for title, why in left_out.items()))
    if plot is not None:
        _check_plot(plot)
    with _console(stderr=True).status("a benchmark begins") as status:
        work = session.measure(
            payloads, left_out, existing=existing, seconds=seconds, told=status.update
        )
        report = _finish(work)
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=1))
    else:
        _draw_bench(_console(), report)
    if plot is not None:
        from bridgehead._bench.plot import draw

        try:
            draw(report, plot)
        except OSError as error:
            _fail(f"{plot} can't be written: {error.strerror or error}")
    if not any(row.lane and row.rounds for row in report.figures):
        _fail("nothing crossed")


def _check_plot(file: Path) -> None:
    """Told before anything is measured: it takes a while."""
    try:
        from bridgehead._bench import plot
    except ModuleNotFoundError as error:
        _not_installed(str(error.name), "--plot", "bench")
    if file.suffix.lstrip(".").lower() not in plot.formats():
        _fail(f"{file} can't be drawn: its name ends in none of {', '.join(plot.formats())}")
    if not file.absolute().parent.is_dir():
        _fail(f"{file} can't be written: there is no folder {file.absolute().parent}")


def _draw_bench(console: Console, report: Measured) -> None:
    _say(console, f"{report.machine}. {report.kernel}. {report.date}.")
    table = _table()
    for column in ("object", "bytes", "way", "push ms", "pull ms", "push/zmq", "pull/zmq"):
        table.add_column(
            column, justify="left" if column in ("object", "way") else "right", no_wrap=True
        )
    for payload in dict.fromkeys(row.payload for row in report.figures):
        rows = [row for row in report.figures if row.payload == payload and row.rounds]
        zmq = next((row for row in rows if row.peer == "zmq tcp"), None)
        for row in rows:
            first = row is rows[0]
            table.add_row(
                row.title if first else "",
                f"{row.bytes:,}" if first else "",
                row.peer,
                _ms(row.push_ms),
                _ms(row.pull_ms),
                _times(row.push_ms, zmq.push_ms if zmq else None),
                _times(row.pull_ms, zmq.pull_ms if zmq else None),
                style="bold" if row.lane else "",
                end_section=console.is_terminal and row is rows[-1],
            )
    _print_table(console, "medians, and how many times those of raw ZeroMQ they are", table)
    _say(
        console,
        "Each way took its turn in every round, so the ratios are worth more than the times. "
        "buffers, inline, direct: bridgehead's lanes. memcpy: a copy into memory that is there. "
        "pickle: dumps and loads in one process. zmq tcp: two ZeroMQ sockets, pickle 5 with "
        "buffers, and nothing else. empty cell: one execute_request that carries nothing.",
    )
    for what, why in {**report.left_out, **_left_out(report.figures)}.items():
        _print_wrapped(console, f"Left out: {what}: {why}")


def _left_out(figures: Sequence[Figure]) -> dict[str, str]:
    """What a user would look for in vain: a lane, and what they are compared with."""
    return {
        f"{row.title} by {row.peer}": row.left_out
        for row in figures
        if row.left_out and row.peer not in ("memcpy", "pickle")
    }


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _times(value: float | None, reference: float | None) -> str:
    return f"{value / reference:.2f}" if value is not None and reference else ""


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


def _not_installed(module: str, what: str = "the command line", extra: str = "all") -> NoReturn:
    sys.stderr.write(
        f"bridgehead: {what} needs {module}, which is not installed; "
        f"pip install 'bridgehead[{extra}]'\n"
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
