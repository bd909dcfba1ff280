"""Output to a terminal or to a pipe.

Rule: texts are printed as they are, without markup and without sequences that would control the
terminal. A pipe gets no colour, no box and no line breaks for width. Colours are the terminal's
own, so they can be read on a light and on a dark background.
"""

from __future__ import annotations

import re
import sys
import textwrap
from typing import Any, NoReturn

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bridgehead._errors import SEQUENCE

PROSE = 80  # columns of a sentence at most
PIPED = 10_000  # columns of a pipe: no table is cut or wrapped
LABEL = 32  # characters of a name or of a table's cell at most

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # all but tab and line breaks
_STEERING = re.compile(r"[\x00-\x07\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # the same without backspace


class Terminal(Console):
    """A console that raises ``BrokenPipeError`` when its reader closes the pipe."""

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError


def console_for(*, stderr: bool = False) -> Console:
    """Return a console that prints texts as they are: no markup, highlighting or emoji codes."""
    console = Terminal(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPED
    return console


def say(console: Console, text: str) -> None:
    """Print a paragraph and an empty line."""
    print_wrapped(console, text)
    console.print()


def print_wrapped(console: Console, text: str, style: str = "") -> None:
    """Print wrapped text; rich's own wrapping leaves a space at the end of each line."""
    width = min(console.width, PROSE)
    lines = textwrap.fill(plain(text), width, break_long_words=False, break_on_hyphens=False)
    console.print(Text(lines, style=style), soft_wrap=True)


def print_table(console: Console, title: str, table: Table) -> None:
    """Print a table below its title; without a title if it is empty."""
    if title:
        print_wrapped(console, title, "bold")
    if console.is_terminal:
        console.print(table)
    else:  # rich pads each line with spaces
        with console.capture() as drawn:
            console.print(table)
        lines = (line.rstrip() for line in drawn.get().splitlines())
        write("\n".join(lines) + "\n")
    if title:
        console.print()


def new_table() -> Table:
    """Return an empty table in the style of all commands."""
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)


def count(number: int, noun: str) -> str:
    """Return a number and its noun, in the plural where needed."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def label(value: Any) -> Text:
    """Return the name of a column or the text of a cell, cut to ``LABEL`` characters."""
    return Text(shortened(plain(value), LABEL))


def shortened(text: str, length: int) -> str:
    """Return a text cut to a number of characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def plain(value: Any) -> str:
    """Return one line of text without characters that would control the terminal."""
    return "".join(
        sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in str(value)
    )


def plain_lines(value: Any) -> str:
    """Return lines of text in the same way; tabs and line breaks stay."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(value).replace("\r\n", "\n"))


def output(text: str, *, terminal: bool, colour: bool) -> str:
    """Return a cell's output: unchanged for a pipe, harmless for a terminal.

    Colours, backspace and carriage return stay, because progress bars need them. Sequences for
    titles, the clipboard and the cursor are removed.
    """
    if not terminal:
        return text
    kept = re.sub(SEQUENCE, lambda match: (match[1] or "") if colour else "", text)
    parts = re.split(r"(\x1b\[[0-9;]*m)", kept)
    for at in range(0, len(parts), 2):  # the parts between are colours
        parts[at] = _STEERING.sub("\N{REPLACEMENT CHARACTER}", parts[at])
    return "".join(parts)


def uncoloured(text: str) -> str:
    """Return a text without its colours."""
    return _COLOUR.sub("", text)


def write(data: str | bytes, name: str = "stdout") -> None:
    """Write all of the data at once to standard output or standard error.

    Unbuffered streams of Python may write only a part of long data, without an error.
    """
    stream = getattr(sys, name)
    stream.flush()
    if isinstance(data, str):
        data = data.encode(stream.encoding, "replace")
    left = memoryview(data)
    while left:
        left = left[stream.buffer.write(left) or 0 :]
    stream.buffer.flush()
