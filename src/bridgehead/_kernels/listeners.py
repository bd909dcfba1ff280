"""Which process listens on a port of this machine.

Rule: looks at processes and ports, and opens no connection. Where nothing can be known, the answer
is no.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

LISTEN = "0A"  # the state of a socket in /proc/net/tcp


def listens(pid: object, port: int | None) -> bool:
    """Return whether a process of this user listens on a TCP port of this machine."""
    if type(pid) is not int or pid <= 0 or port is None:
        return False
    return _listens_on_linux(pid, port) if sys.platform == "linux" else _listens(pid, port)


def _listens_on_linux(pid: int, port: int) -> bool:
    sockets = set()
    process = Path(f"/proc/{pid}")
    try:
        if process.stat().st_uid != os.geteuid():
            return False
        for table in ("tcp", "tcp6"):
            # Of this process: another one may be in a network namespace of its own.
            for line in Path(f"/proc/self/net/{table}").read_text("ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    sockets.add(f"socket:[{fields[9]}]")
        return any(_target(file) in sockets for file in (process / "fd").iterdir())
    except (OSError, ValueError, IndexError):
        return False


def _target(file: Path) -> str:
    try:
        return str(file.readlink())
    except OSError:  # closed meanwhile
        return ""


def _listens(pid: int, port: int) -> bool:
    """Ask psutil, which ipykernel brings; this package does not depend on it."""
    try:
        import psutil  # type: ignore[import-untyped]
    except ImportError:
        return False
    try:
        process = psutil.Process(pid)
        if process.username() != psutil.Process().username():
            return False
        return any(
            one.status == psutil.CONN_LISTEN and one.laddr.port == port
            for one in process.net_connections(kind="tcp")
        )
    except (psutil.Error, AttributeError):
        return False
