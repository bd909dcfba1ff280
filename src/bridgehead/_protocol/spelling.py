"""How a message writes what it advises: as an argument in Python, or as an option of a program.

Rule: a message that advises an argument for which a program has an option takes it from
``spelled``, so no program has to look for arguments in finished messages. A program whose users
pass options instead sets ``SPELLING`` before it calls the library; what it does not list stays
Python.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar

SPELLING: ContextVar[Mapping[str, str]] = ContextVar("bridgehead_spelling")  # by the Python


def spelled(python: str) -> str:
    """Return how the reader of a message writes a piece of Python, such as ``timeout=``."""
    return SPELLING.get({}).get(python, python)
