"""Objects as short text, or as small HTML tables.

Rule: text in, text out; nothing asks a kernel. All text is escaped, because it may come from a
kernel. No colour and no size is set, so that the theme of a notebook, light or dark, applies.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

MAX_LENGTH = 60  # characters of one part of a line; a repr has a few short parts more
LEFT = " style='text-align:left'"  # notebooks align the cells of a table to the right


def line(text: object, longest: int = MAX_LENGTH) -> str:
    """Return ``text`` on one line, shortened with an ellipsis.

    Characters that a terminal should not get become ``�``.
    """
    # An expression may have megabytes, so only the beginning is processed.
    words = " ".join(str(text)[: 4 * longest].split())
    printable = "".join(char if char.isprintable() else "�" for char in words)
    is_whole = len(printable) <= longest and len(str(text)) <= 4 * longest
    return printable if is_whole else f"{printable[: longest - 1]}…"


def short_list(words: Sequence[object], longest: int = MAX_LENGTH) -> str:
    """Return as many of the words as fit on a line, and the number of the others."""
    shown, length = [], 0
    for word in words:
        shown.append(line(word, longest // 2))
        length += len(shown[-1]) + 2
        if length > longest and len(shown) > 1:
            shown.pop()
            break
    more = len(words) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "")


def size(nbytes: int) -> str:
    """Return a number of bytes for people: ``"512 bytes"``, ``"1.23 MB"``."""
    if nbytes < 1000:
        return f"{nbytes} bytes"
    number, units = nbytes / 1000, ["kB", "MB", "GB", "TB"]
    while number >= 999.5 and len(units) > 1:
        number /= 1000
        del units[0]
    return f"{number:.3g} {units[0]}" if number < 999.5 else f"{number:,.0f} {units[0]}"


def heading(kind: str, text: object = "") -> str:
    """Return an HTML line with the kind of an object in bold, and a text beside it."""
    return f"<div><b>{_cell(kind)}</b> {_cell(text)}</div>"


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """Return an HTML table with one row for each pair; None and empty values are left out."""
    rows = (
        f"<tr><th scope='row'{LEFT}>{_cell(key)}</th><td{LEFT}>{_cell(value)}</td></tr>"
        for key, value in pairs
        if value is not None and value != ""
    )
    return f"<table><tbody>{''.join(rows)}</tbody></table>"


def columns(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return an HTML table with a header; the first cell of each row names the row."""
    top = "".join(f"<th scope='col'{LEFT}>{_cell(head)}</th>" for head in heads)
    body = "".join(
        f"<tr><th scope='row'{LEFT}>{_cell(row[0])}</th>"
        + "".join(f"<td{LEFT}>{_cell(value)}</td>" for value in row[1:])
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    return "" if value is None else html.escape(line(value, 200))
