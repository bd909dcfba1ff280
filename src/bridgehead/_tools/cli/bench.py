"""``bridgehead bench``: its options, and the display of its figures.

Rule: ``_tools.bench`` measures. This file turns the figures into a table, JSON or a drawing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from bridgehead._tools.cli.exit import fail, finish, not_installed
from bridgehead._tools.cli.terminal import console_for, new_table, print_table, print_wrapped, say

if TYPE_CHECKING:
    from bridgehead._tools.bench.session import BenchReport as Measured
    from bridgehead._tools.bench.session import Figure


@click.command()
@click.option("--existing", metavar="FILE", help="Measure this running kernel.")
@click.option("--payloads", metavar="NAMES", help="Send only these objects, e.g. int,np1m.")
@click.option("--large", is_flag=True, help="Also send an array of 1 GB.")
@click.option(
    "--seconds",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="How long to measure each way with each object; at least three rounds.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option(
    "--plot",
    metavar="FILE.png",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also draw the figures into this file (needs matplotlib).",
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

    The command launches a kernel for each lane, or uses a running one. It pushes objects to
    the kernel and pulls them: an int, dicts, arrays, a DataFrame. In the same rounds it
    measures a copy in memory, pickling, raw ZeroMQ, and the round trip of an empty cell. It
    shows medians. At the end it shuts down the kernels that it launched. It leaves nothing
    in a running kernel.

    Objects for --payloads: int, dict1k, dict10k, list1m, np1m, df, np100m, np1g.
    """
    from bridgehead._tools.bench import session

    wanted = payloads.split(",") if payloads else list(session.USUAL)
    try:
        chosen, left_out = session.chosen([*wanted, session.LARGE] if large else wanted)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if not chosen:
        fail("; ".join(f"{title}: {why}" for title, why in left_out.items()))
    if plot is not None:
        _check_plot(plot)
    with console_for(stderr=True).status("starting the benchmark") as status:
        work = session.measure(
            chosen, left_out, existing=existing, seconds=seconds, on_progress=status.update
        )
        report = finish(work)
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=1))
    else:
        _draw_bench(console_for(), report)
    if plot is not None:
        from bridgehead._tools.bench.plot import draw

        try:
            draw(report, plot)
        except OSError as error:
            fail(f"{plot} can't be written: {error.strerror or error}")
    if not any(row.lane and row.rounds for row in report.figures):
        fail("no lane carried any object")


def _check_plot(file: Path) -> None:
    """Check the file before anything is measured, because measuring takes a while."""
    try:
        from bridgehead._tools.bench import plot
    except ModuleNotFoundError as error:
        not_installed(str(error.name), "--plot", "bench")
    if file.suffix.lstrip(".").lower() not in plot.formats():
        fail(f"{file} can't be drawn: its name must end in one of {', '.join(plot.formats())}")
    if not file.absolute().parent.is_dir():
        fail(f"{file} can't be written: there is no folder {file.absolute().parent}")


def _draw_bench(console: Console, report: Measured) -> None:
    say(console, f"{report.machine}. {report.kernel}. {report.date}.")
    table = new_table()
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
    print_table(console, "medians, and their ratios to raw ZeroMQ", table)
    say(
        console,
        "All ways took turns in every round, so the ratios mean more than the times. "
        "buffers, inline, direct: bridgehead's lanes. memcpy: a copy into memory that is already "
        "allocated. pickle: dumps and loads in one process. zmq tcp: two ZeroMQ sockets, pickle 5 "
        "with buffers, and nothing else. empty cell: one execute_request that carries nothing.",
    )
    for what, why in {**report.left_out, **_left_out(report.figures)}.items():
        print_wrapped(console, f"Left out: {what}: {why}")


def _left_out(figures: Sequence[Figure]) -> dict[str, str]:
    """Return why lanes and the peers that carry objects were left out, by object and peer."""
    return {
        f"{row.title} by {row.peer}": row.left_out
        for row in figures
        if row.left_out and row.peer not in ("memcpy", "pickle")
    }


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _times(value: float | None, reference: float | None) -> str:
    return f"{value / reference:.2f}" if value is not None and reference else ""
