"""The plot of a benchmark: milliseconds over bytes, both logarithmic.

Rule: only this file imports matplotlib, and draws into a file without a window.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bridgehead._tools.bench.peers import Execute
from bridgehead._tools.bench.session import BenchReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that colour-blind readers can distinguish (Okabe and Ito).
LANES = {"direct": "#0072b2", "buffers": "#d55e00", "inline": "#009e73"}
OTHERS = {"memcpy": "#000000", "pickle": "#cc79a7", "zmq tcp": "#7f7f7f"}
WITHIN = {"memcpy": "memcpy", "pickle": "pickle, dumps + loads"}
DPI = 130
TABLE = "df"
APART = 20  # two names fit side by side if the second size is so many times the first
UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def formats() -> list[str]:
    """Return the suffixes of the file formats that can be drawn."""
    return sorted(Canvas().canvas.get_supported_filetypes())


def draw(report: BenchReport, file: Path) -> None:
    """Draw a report into a file; the suffix chooses the format.

    Raises:
        OSError: the file can't be written.
    """
    canvas = Canvas(figsize=(10.5, 6.5), dpi=DPI, layout="constrained")
    axes = canvas.subplots()
    for peer in report.peers:
        _draw_peer(axes, report, peer)
    _draw_round_trip(axes, report)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("size of the object: its pickle and out-of-band buffers")
    axes.set_ylabel("time until the receiver can use the object (median)")
    axes.xaxis.set_major_formatter(FuncFormatter(_bytes))
    axes.yaxis.set_major_formatter(FuncFormatter(_milliseconds))
    axes.xaxis.set_major_locator(LogLocator(numticks=20))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(which="major", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    _name_payloads(axes, report)
    # The legend stands outside: where the lines leave room differs from machine to machine.
    canvas.legend(loc="outside right upper", frameon=False)
    canvas.suptitle(
        f"bridgehead: push and pull, {report.date[:10]}\n{report.machine}; {report.kernel}",
        fontsize=11,
    )
    canvas.savefig(file)


def _draw_peer(axes: Axes, report: BenchReport, peer: str) -> None:
    color = {**LANES, **OTHERS}.get(peer)
    rows = [row for row in report.figures if row.peer == peer]
    rows.sort(key=lambda row: row.bytes)
    push = [(row.payload, row.bytes, row.push_ms) for row in rows if row.push_ms is not None]
    pull = [(row.payload, row.bytes, row.pull_ms) for row in rows if row.pull_ms is not None]
    if not push or color is None:
        return
    style: dict[str, Any] = {"color": color, "linewidth": 2 if peer in LANES else 1.3}
    if peer in WITHIN:  # these peers stay in one process, so push and pull are the same
        _draw_line(axes, push, WITHIN[peer], style | {"marker": "x"})
        return
    style |= {"marker": "o", "markersize": 5}
    _draw_line(axes, push, f"{peer}, push", style)
    _draw_line(axes, pull, f"{peer}, pull", style | {"markerfacecolor": "w", "linestyle": "--"})


def _draw_line(
    axes: Axes, points: Sequence[tuple[str, int, float]], label: str, style: dict[str, Any]
) -> None:
    """Draw a line, and the DataFrame as separate points.

    On the line, the DataFrame would be a step next to an array of its size.
    """
    line = [(size, ms) for payload, size, ms in points if payload != TABLE]
    separate = [(size, ms) for payload, size, ms in points if payload == TABLE]
    shared = {"label": label, **style}
    if line:
        axes.plot(*zip(*line, strict=True), **shared)
        shared.pop("label")
    if separate:
        axes.plot(*zip(*separate, strict=True), **shared | {"linestyle": ""})


def _draw_round_trip(axes: Axes, report: BenchReport) -> None:
    """Draw the round trip of an empty cell as one horizontal line."""
    trips = [row.push_ms for row in report.figures if row.peer == Execute.name and row.push_ms]
    if trips:
        label = f"{Execute.name}, round trip"
        axes.axhline(statistics.median(trips), color="#999999", linestyle=":", label=label)


def _name_payloads(axes: Axes, report: BenchReport) -> None:
    """Write the name of each payload above its points; stack the names that would overlap."""
    places = sorted({row.bytes: row.title for row in report.figures}.items())
    above, before = 0, 0.0
    for size, title in places:
        above = above + 1 if size < before * APART else 0
        before = size
        axes.annotate(
            title,
            (size, 1),
            (0, 6 + 12 * above),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
        axes.axvline(size, color="#eeeeee", linewidth=0.8, zorder=0)


def _bytes(size: float, _: int) -> str:
    for unit, name in UNITS:
        if size >= unit:
            return f"{size / unit:g} {name}"
    return f"{size:g} B"


def _milliseconds(ms: float, _: int) -> str:
    return f"{ms / 1000:g} s" if ms >= 1000 else f"{ms:g} ms"
