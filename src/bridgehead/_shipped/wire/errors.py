"""The errors of what arrives: damaged, refused, or too large.

Rule: standard library only, Python 3.8 and later; the same on both sides. Exceptions alone: who
raises them says why, and the client turns them into the errors that a user sees.
"""

from __future__ import annotations

from typing import Any


class WireError(Exception):
    """Something on the wire is not as it must be; ``kind`` names the near side's error."""

    def __init__(self, kind: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.kind, self.details = kind, details


class TooLarge(Exception):
    """It has more bytes than the caller allows; ``nbytes`` of them."""

    def __init__(self, nbytes: int) -> None:
        super().__init__("%d bytes" % nbytes)
        self.nbytes = nbytes
