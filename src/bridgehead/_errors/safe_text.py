"""Texts of a kernel or a server, without what controls a terminal.

Rule: text in, text out. Whatever another process has chosen passes through here before a terminal
or a notebook shows it.
"""

from __future__ import annotations

import re

# Patterns are compiled when they are first used: all of them took 3 ms of each import.
# Group 1 is a colour or a weight. Any other sequence could move the cursor, or do worse.
SEQUENCE = r"(\x1b\[[0-9;]*m)|\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b."
# All but tab and line feed, and what reverses the direction of text.
_CONTROL = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"


def harmless(text: str) -> str:
    """Return a text without anything that controls a terminal, colours included.

    Lines stay; a carriage return, which would overwrite the line, begins a new one.
    """
    if text.isprintable():
        return text
    lines = re.sub(SEQUENCE, "", text).replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(_CONTROL, "\N{REPLACEMENT CHARACTER}", lines)


def coloured(text: str) -> str:
    """Return a text as ``harmless`` does, with its colours."""
    parts = re.split(SEQUENCE, text)  # a colour, or None for another sequence, is every second part
    return "".join((part or "") if at % 2 else harmless(part) for at, part in enumerate(parts))
