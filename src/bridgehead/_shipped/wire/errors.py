"""The errors of what arrives: damaged, refused or too large.

Rule: use the standard library only, run on Python 3.8 and later, the same file at both ends. Only
exceptions are defined here. The code that raises them gives the reason; the client turns them into
the errors that a user sees.
"""

from __future__ import annotations

from typing import Any


class WireError(Exception):
    """A fault in what arrived; ``kind`` selects the error that the client raises."""

    def __init__(self, kind: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.kind, self.details = kind, details


class TooLarge(Exception):
    """A payload with more bytes than the caller allows; ``nbytes`` is its size."""

    def __init__(self, nbytes: int) -> None:
        super().__init__("%d bytes" % nbytes)
        self.nbytes = nbytes
