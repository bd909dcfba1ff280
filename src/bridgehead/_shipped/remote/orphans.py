"""The subshells that serve requests, and those that a vanished bridge left behind.

Rule: standard library only, Python 3.8 and later. They are noted here and reported in the
handshake; the client that asks deletes them, as only a client can.
"""

from __future__ import annotations

from contextlib import contextmanager
from platform import node
from time import monotonic
from typing import Any, Iterator

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.remote.inspection import runs
    from bridgehead._shipped.remote.replay import IDLE_TRANSFER


class SubshellTable:
    """The subshells that requests came through: whose each is, and when it was last used."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[Any, Any, Any]] = {}  # host, pid; when used, None: it is

    @contextmanager
    def noted(self, told: Any) -> Iterator[None]:
        """Note whose subshell serves a request, and that it is busy with it."""
        if type(told) is not dict or type(told.get("id")) is not str:
            yield
            return
        self.known[told["id"]] = (told.get("host"), told.get("pid"), None)
        try:
            yield
        finally:
            self.known[told["id"]] = (told.get("host"), told.get("pid"), monotonic())

    def orphans(self) -> list[str]:
        """Idle subshells whose bridge went without a word; who asks is to delete them."""
        found = []
        for identity, (host, pid, used) in [*self.known.items()]:
            if used is None:
                continue  # busy: the kernel would wait for it, and answer nobody
            gone = host == node() and not runs(pid)
            if gone or monotonic() - used > IDLE_TRANSFER:
                self.known.pop(identity, None)
                found.append(identity)
        return found
