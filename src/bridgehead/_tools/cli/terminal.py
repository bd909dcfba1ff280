"""What is shown on a terminal, and what a pipe gets instead.

Rule: texts as they are, with neither markup nor anything that would steer the terminal. A pipe
has no width, no colour and no box; colours are the terminal's own, so that they can be read on a
light and on a dark ground.
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

PROSE = 80  # columns that a sentence takes at most
PIPED = 10_000  # columns when nobody's terminal would wrap: tables are as wide as they are
LABEL = 32  # characters of a name or a cell from the file

# A colour or a weight; any other sequence could move the cursor, or worse.
_SEQUENCE = re.compile(
    r"(\x1b\[[0-9;]*m)|\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b."
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # all but tab and line breaks
_STEERING = re.compile(r"[\x00-\x07\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # but backspace, too


class Terminal(Console):
    """A console whose reader may go away: that ends the command, quietly."""

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError


def console_for(*, stderr: bool = False) -> Console:
    """Takes texts as they are: no markup, no highlighting, no emoji codes."""
    console = Terminal(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPED
    return console


def say(console: Console, text: str) -> None:
    """A paragraph."""
    print_wrapped(console, text)
    console.print()


def print_wrapped(console: Console, text: str, style: str = "") -> None:
    """Wrapped here and not by rich, which would leave a space at the end of each line."""
    width = min(console.width, PROSE)
    lines = textwrap.fill(plain(text), width, break_long_words=False, break_on_hyphens=False)
    console.print(Text(lines, style=style), soft_wrap=True)


def print_table(console: Console, title: str, table: Table) -> None:
    """A table below its title, which may be none."""
    if title:
        print_wrapped(console, title, "bold")
    if console.is_terminal:
        console.print(table)
    else:  # rich fills each line up
        with console.capture() as drawn:
            console.print(table)
        lines = (line.rstrip() for line in drawn.get().splitlines())
        write("\n".join(lines) + "\n")
    if title:
        console.print()


def new_table() -> Table:
    """An empty table as all commands have it."""
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)


def count(number: int, noun: str) -> str:
    """The noun in its number."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def label(value: Any) -> Text:
    """A column's name or a cell's text, short enough to leave room for the others."""
    return Text(shortened(plain(value), LABEL))


def shortened(text: str, length: int) -> str:
    """So many characters of it at most."""
    return text if len(text) <= length else text[: length - 1] + "…"


def plain(value: Any) -> str:
    """One line of text from a file or a kernel, without what would steer the terminal."""
    return "".join(
        sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in str(value)
    )


def plain_lines(value: Any) -> str:
    """Several lines of it; tabs and line breaks stay."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(value).replace("\r\n", "\n"))


def output(text: str, *, terminal: bool, colour: bool) -> str:
    """What a cell wrote, for a terminal that it must not steer, or as it is.

    Colours, backspace and carriage return stay, which a progress bar needs; titles, clipboards
    and cursors are nothing that a kernel's text is to have.
    """
    if not terminal:
        return text
    kept = _SEQUENCE.sub(lambda match: (match[1] or "") if colour else "", text)
    parts = re.split(r"(\x1b\[[0-9;]*m)", kept)
    for at in range(0, len(parts), 2):  # the others are colours
        parts[at] = _STEERING.sub("\N{REPLACEMENT CHARACTER}", parts[at])
    return "".join(parts)


def uncoloured(text: str) -> str:
    """Without its colours."""
    return _COLOUR.sub("", text)


def write(data: str | bytes, name: str = "stdout") -> None:
    """All of it, at once, to standard output or error.

    Where Python is unbuffered, its streams write a part of what is long, and say nothing.
    """
    stream = getattr(sys, name)
    stream.flush()
    if isinstance(data, str):
        data = data.encode(stream.encoding, "replace")
    left = memoryview(data)
    while left:
        left = left[stream.buffer.write(left) or 0 :]
    stream.buffer.flush()
