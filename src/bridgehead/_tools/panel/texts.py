"""Texts of the panel: which names can be used, and why something failed.

Rule: text in, plain text out. What a kernel sent is one line, without control characters.
"""

from __future__ import annotations

import keyword
from typing import Any

from bridgehead._errors import RemoteError
from bridgehead._protocol.formatting import line

LONGEST = 600  # characters of an error


def usable(name: Any) -> bool:
    """Return whether a name can be pulled, pushed, handed over and deleted."""
    return (
        isinstance(name, str)
        and len(name) <= 200
        and name.isidentifier()
        and not keyword.iskeyword(name)
    )


def checked(name: Any, what: str) -> str:
    """Return a name that the page sent, without the blanks around it.

    Raises:
        ValueError: it is no name that a cell could use.
    """
    text = str(name).strip()
    if not usable(text):
        raise ValueError(
            f"{line(text, 60)!r} is no name that a cell can use; choose another {what}, of "
            "letters, digits and underscores"
        )
    return text


def why(error: BaseException) -> str:
    """Return what went wrong as one line: the class, the message, the notes."""
    if isinstance(error, RemoteError):
        return line(f"in the kernel: {error.ename}: {error.evalue}", LONGEST)
    parts = [str(error), *getattr(error, "__notes__", ())]
    return line(f"{type(error).__name__}: {'; '.join(filter(None, parts))}", LONGEST)
