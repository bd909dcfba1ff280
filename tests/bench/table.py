"""The table of figures: reached, target, met or missed.

Rule: it prints figures, and does not know what they measure.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from tests.bench.targets import Reached


def show(figures: Sequence[Reached]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in ("", "reached", "target", "goal", "", "computed from"):
        table.add_column(column, justify="right" if column in ("reached", "target") else "left")
    for figure in figures:
        target = figure.target
        table.add_row(
            figure.what,
            f"{_shown(figure.value)} {figure.unit or 'x'}",
            f"{target.most:g}" if target else "",
            f"{target.goal:g}" if target and target.goal else "",
            {None: "", True: "met", False: "MISSED"}[figure.met],
            figure.detail,
        )
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 200
    console.print(table)


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
