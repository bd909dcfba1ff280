"""Tables and sentences that the magics show.

Rule: text in, text out. A notebook shows a table as HTML, a terminal as columns of text.
"""

from __future__ import annotations

from collections.abc import Sequence

from IPython.display import display

from bridgehead._protocol.formatting import columns, line
from bridgehead._protocol.results import MAX_ROWS

MAX_TEXT = 60  # characters of one cell of a table of text


class Table:
    """A table with a head; the first column names the rows."""

    def __init__(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self._heads, self._rows = heads, rows

    def __repr__(self) -> str:
        rows = [self._heads, *([line(cell, MAX_TEXT) for cell in row] for row in self._rows)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

    def _repr_html_(self) -> str:
        more = len(self._rows) - MAX_ROWS
        rest = f"<div>and {more:,} more</div>" if more > 0 else ""
        return columns(self._heads, self._rows[:MAX_ROWS]) + rest


def show_table(heads: Sequence[str], rows: Sequence[Sequence[str]], nothing: str) -> None:
    """Show a table, or the sentence ``nothing`` if it has no rows."""
    if rows:
        display(Table(heads, rows))
    else:
        say(nothing)


def say(text: str) -> None:
    """Print what a magic has to say."""
    print(text)  # noqa: T201 - a magic's answer
