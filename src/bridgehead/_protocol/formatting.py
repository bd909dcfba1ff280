"""How objects look to people: on one line, or as a small table of HTML.

Rule: text in, text out. Nothing is asked of anybody; whatever comes from a kernel is escaped,
and no colour or size is set, so that a notebook's theme, light or dark, has its way.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

LONGEST = 60  # characters of one part of a line; a repr has a few short ones beside it
LEFT = " style='text-align:left'"  # notebooks align a table's cells to the right


def line(text: object, longest: int = LONGEST) -> str:
    """``text`` on one line, shortened with an ellipsis; what no terminal should get is ``�``."""
    # So much is looked at, and no more: an expression may have megabytes.
    words = " ".join(str(text)[: 4 * longest].split())
    told = "".join(char if char.isprintable() else "�" for char in words)
    is_whole = len(told) <= longest and len(str(text)) <= 4 * longest
    return told if is_whole else f"{told[: longest - 1]}…"


def listed(words: Sequence[object], longest: int = LONGEST) -> str:
    """As many of the words as fit a line, and how many there are more."""
    told, length = [], 0
    for word in words:
        told.append(line(word, longest // 2))
        length += len(told[-1]) + 2
        if length > longest and len(told) > 1:
            told.pop()
            break
    more = len(words) - len(told)
    return ", ".join(told) + (f" and {more:,} more" if more else "")


def size(nbytes: int) -> str:
    """Bytes as a person reads them: ``"512 bytes"``, ``"1.23 MB"``."""
    if nbytes < 1000:
        return f"{nbytes} bytes"
    number, units = nbytes / 1000, ["kB", "MB", "GB", "TB"]
    while number >= 999.5 and len(units) > 1:
        number /= 1000
        del units[0]
    return f"{number:.3g} {units[0]}" if number < 999.5 else f"{number:,.0f} {units[0]}"


def heading(kind: str, said: object = "") -> str:
    """What it is, and the one thing to say of it."""
    return f"<div><b>{_cell(kind)}</b> {_cell(said)}</div>"


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """A table of what is known, a line each; what is None or empty is left out."""
    rows = (
        f"<tr><th scope='row'{LEFT}>{_cell(key)}</th><td{LEFT}>{_cell(value)}</td></tr>"
        for key, value in pairs
        if value is not None and value != ""
    )
    return f"<table><tbody>{''.join(rows)}</tbody></table>"


def columns(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with a line for each; the first cell of a line is its name."""
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
