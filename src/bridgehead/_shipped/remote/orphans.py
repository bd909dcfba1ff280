"""Subshells that a bridge left behind.

Rule: use the standard library only, and run on Python 3.8 and later. This file records the
subshells that serve requests. The handshake reports the orphans among them to the client, which
deletes them: only a client can do that.
"""

from __future__ import annotations

from contextlib import contextmanager
from platform import node
from time import monotonic
from typing import Any, Iterator

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.remote.inspection import runs
    from bridgehead._shipped.remote.snapshot import entries
    from bridgehead._shipped.wire.header import SubshellOwner

IDLE_SUBSHELL = 600.0  # seconds after which an unused subshell counts as an orphan


class SubshellTable:
    """The subshells that requests came through: the owner of each, and when it was last used."""

    def __init__(self) -> None:
        # By subshell id: host and pid of the owner, and the time of last use (None while busy).
        self.known: dict[str, tuple[Any, Any, Any]] = {}

    @contextmanager
    def in_use(self, owner: SubshellOwner) -> Iterator[None]:
        """Record a subshell and its owner, and that it is busy inside the ``with`` block."""
        self.known[owner["id"]] = (owner["host"], owner["pid"], None)
        try:
            yield
        finally:
            self.known[owner["id"]] = (owner["host"], owner["pid"], monotonic())

    def orphans(self) -> list[str]:
        """Return the idle subshells whose bridge has ended or is idle for long, each once.

        The client that receives the list deletes them. A bridge that still lives, but was idle for
        ``IDLE_SUBSHELL`` seconds, makes a new subshell when it needs one.
        """
        found = []
        for identity, (host, pid, used) in entries(self.known):
            if used is None:
                continue  # busy: the kernel would wait for it, and could not answer meanwhile
            ended = host == node() and not runs(pid)
            if ended or monotonic() - used > IDLE_SUBSHELL:
                self.known.pop(identity, None)
                found.append(identity)
        return found
