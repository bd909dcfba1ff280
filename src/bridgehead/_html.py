"""What results look like where HTML is shown, and in one line of text.

Rule: everything is escaped; no colour, font or script of its own, so that it takes those of the
page around it, light or dark. Nobody is asked for anything.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

LEFT = " style='text-align: left'"
RIGHT = " style='text-align: right'"


def sheet(title: str, rows: Iterable[tuple[str, object]]) -> str:
    """A headline, and a table of what things are called and what they are; empty ones left out."""
    body = "".join(
        f"<tr><th{LEFT}>{_text(name)}</th><td{LEFT}>{_text(value)}</td></tr>"
        for name, value in rows
        if value not in (None, "")
    )
    return f"<div>{_headline(title)}<table>{body}</table></div>"


def grid(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A headline, and a table with a row for each thing; numbers stand right."""
    head = "".join(f"<th{LEFT}>{_text(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td{_side(cell)}>{_text(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div>{_headline(title)}{table}</div>"


def line(title: str, code: str) -> str:
    """A headline, and a piece of code."""
    return f"<div>{_headline(title)} <code>{_text(code)}</code></div>"


def fit(text: str, width: int) -> str:
    """One line of so many characters at most."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def size(nbytes: int) -> str:
    """A number of bytes as people read it: ``"90.1 MB"``, in powers of 1000."""
    value, units = float(nbytes), ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}"


def _headline(title: str) -> str:
    return f"<strong>{_text(title)}</strong>"


def _side(cell: object) -> str:
    return RIGHT if isinstance(cell, int) else LEFT


def _text(value: object) -> str:
    text = f"{value:,}" if isinstance(value, int) else "" if value is None else str(value)
    return html.escape(text)
