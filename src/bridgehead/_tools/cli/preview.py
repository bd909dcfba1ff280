"""Previews of values on a terminal.

Rule: short on a terminal, whole lines in a pipe. A value's own text never controls the terminal.
"""

from __future__ import annotations

import sys
from typing import Any

from rich.text import Text

from bridgehead._tools.cli.formats import described, repr_of, text_of
from bridgehead._tools.cli.terminal import (
    console_for,
    label,
    new_table,
    plain,
    plain_lines,
    print_table,
    shortened,
    write,
)

ROWS = 10  # of a table, on a terminal
LINES = 20  # of a text, on a terminal
CELL = 12  # characters that a column of a table needs at least


def show(value: Any) -> None:
    """Print the beginning of a value on a terminal, and its whole text elsewhere."""
    console = console_for()
    if not console.is_terminal:
        write(_whole(value) + "\n")
        return
    table = _as_table(value)
    if table is not None:
        _show_table(console, value, table)
        return
    head = _head(value)
    if head:
        console.print(Text(head, style="bold"), soft_wrap=True)
    lines = plain_lines(value if isinstance(value, str) else _text(value)).splitlines()
    width = max(20, console.width)
    for line in lines[:LINES]:
        console.print(Text(shortened(line, width)), soft_wrap=True)
    if len(lines) > LINES:
        console.print(Text(f"… {len(lines) - LINES:,} more lines", style="dim"))


def one_line(value: Any, width: int) -> str:
    """Return the beginning of a value, as much as fits into one line."""
    table = _as_table(value)
    if table is not None:
        return shortened(_head(value), width)
    if type(value).__name__ == "ndarray":
        return shortened(f"{_head(value)}: {' '.join(_text(value).split())}", width)
    text = repr_of(value)[: 4 * width + 4]
    return shortened(" ".join(plain(sign) for sign in text.split()), width)


def _whole(value: Any) -> str:
    if isinstance(value, str):
        return value
    table = _as_table(value)
    try:
        return str(table.to_string()) if table is not None else _text(value)
    except Exception:  # noqa: BLE001 - the class of a cell may raise anything
        return f"<{described(value)}>"


def _as_table(value: Any) -> Any:
    """Return a table as a DataFrame, and None for any other value."""
    pandas = sys.modules.get("pandas")  # a table has arrived only if pandas is imported
    if pandas is None:
        return None
    if isinstance(value, pandas.Series):
        return value.to_frame()
    return value if isinstance(value, pandas.DataFrame) else None


def _show_table(console: Any, value: Any, frame: Any) -> None:
    rows, columns = frame.shape
    fit = max(1, (console.width - CELL) // CELL)
    shown = frame.iloc[:ROWS, :fit]
    console.print(Text(_head(value), style="bold"), soft_wrap=True)
    table = new_table()
    table.add_column("", style="dim", no_wrap=True)
    for name, kind in zip(shown.columns, shown.dtypes, strict=True):
        table.add_column(
            label(name), justify="right" if kind.kind in "iufc" else "left", no_wrap=True
        )
    for key, *cells in shown.itertuples(name=None):
        table.add_row(label(key), *map(_cell, cells))
    print_table(console, "", table)
    more = [
        f"{count - at:,} more {noun}"
        for count, at, noun in ((rows, ROWS, "rows"), (columns, fit, "columns"))
        if count > at
    ]
    if more:
        console.print(Text(f"… {' and '.join(more)}", style="dim"))


def _cell(value: Any) -> Text:
    return label(f"{value:.6g}" if isinstance(value, float) else text_of(value))


def _head(value: Any) -> str:
    """Return a value's type and size; empty where its text shows them."""
    try:
        shape = getattr(value, "shape", None)
    except Exception:  # noqa: BLE001 - a class's own code may raise anything
        return described(value)
    if isinstance(shape, tuple) and not isinstance(value, type):
        sides = " × ".join(f"{side:,}" for side in shape)
        dtype = f", {value.dtype}" if hasattr(value, "dtype") else ""
        return plain(f"{type(value).__name__} {sides}{dtype}".replace(" ,", ","))
    if isinstance(value, (list, dict, tuple, set, frozenset, bytes)):
        return f"{type(value).__name__} of {len(value):,}"
    return "" if value is None or isinstance(value, (str, int, float)) else described(value)


def _text(value: Any) -> str:
    try:
        if isinstance(value, (dict, list, tuple, set, frozenset)):
            from pprint import pformat

            return pformat(value, width=78, compact=True, sort_dicts=False)
        return str(value) if type(value).__name__ in ("ndarray", "DataFrame") else repr(value)
    except Exception:  # noqa: BLE001 - a class's own code may raise anything
        return f"<{described(value)}>"
