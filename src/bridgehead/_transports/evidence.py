"""Evidence that the process of a kernel has ended, although no program watches over it.

Rule: looks at the processes and the ports of this machine, and changes nothing. A question that
cannot be answered now, because this process has no descriptor or no memory left, is no evidence.
``process`` asks the manager of a kernel instead.

- A pid alone says little: it may belong to another pid namespace or another machine, and a later
  process may have the same one. The remote part reports its machine's boot, its pid namespace and
  when it started. Only if this process sees a process with the same facts, it can look at it.
- A process that has ended stays in the table of processes until its parent asks for its exit code.
  It has one thread left then.
- An SSH client that forwards ports accepts a connection and closes it at once if nothing listens
  at the other end. A program that speaks ZeroMQ sends its greeting at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from pathlib import Path
from typing import Any

from bridgehead._shipped.wire.process import own_process

NO_WAY = (errno.EHOSTUNREACH, errno.ENETUNREACH, socket.EAI_NONAME)
ENDED = b"ZX"  # states of a process in /proc: only its exit code is left


class LocalProcess:
    """A process of this machine, by its pid and when it started."""

    def __init__(self, pid: int, started: int) -> None:
        self.pid: int = pid
        self._started = started

    @classmethod
    def described(cls, facts: Any) -> LocalProcess | None:
        """Return the process with these facts of ``own_process``, which may have ended.

        Return None if it is not known to be of this machine and pid namespace. Another process has
        written the facts, and may write anything.
        """
        mine = own_process()
        try:
            boot, namespace, pid, started = facts
        except (TypeError, ValueError):
            return None
        if mine is None or [boot, namespace] != mine[:2]:
            return None
        if type(pid) is not int or type(started) is not int or pid <= 0:
            return None
        return cls(pid, started)

    @classmethod
    def find(cls, facts: Any) -> LocalProcess | None:
        """Return the process that a remote part describes, if this process can look at it."""
        found = cls.described(facts)
        return found if found is not None and found.has_ended() is False else None

    def has_ended(self) -> bool | None:
        """Return whether the process has ended; None if that cannot be known now."""
        try:
            os.kill(self.pid, 0)  # needs no descriptor
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):  # it is another user's
            pass
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_bytes()
            state, *fields = stat.rpartition(b")")[2].split()
            # The main thread may have ended some milliseconds before the others, which then still
            # have the process's sockets.
            return (state in ENDED and int(fields[16]) <= 1) or int(fields[18]) != self._started
        except (FileNotFoundError, ProcessLookupError):
            return True
        except (OSError, MemoryError, ValueError, IndexError):
            return None


def facts_of(pid: int) -> list[Any] | None:
    """Return what ``own_process`` returns in a child of this process; None if that is not known."""
    mine = own_process()
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        started = int(stat.rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
    return None if mine is None else [*mine[:2], pid, started]


async def is_deserted(
    transport: str, ip: str, port: int, patience: float, *, unreachable: bool = False
) -> bool:
    """Return whether no kernel listens at an address: it refuses or closes every connection.

    ``patience`` is the seconds for a connection, and for the greeting of ZeroMQ over it. Return
    ``unreachable`` if there is no such machine, or no way to it. Return false if it cannot be known
    now, for instance because this process can open no socket, or a loaded machine takes long.
    """
    if transport == "ipc":
        opening = asyncio.open_unix_connection(f"{ip}-{port}")
    else:  # as ZeroMQ: "localhost" is not ::1, whose error would differ from that of 127.0.0.1
        opening = asyncio.open_connection(ip, port, family=0 if ":" in ip else socket.AF_INET)
    try:
        async with asyncio.timeout(patience):
            reader, writer = await opening
    except (ConnectionRefusedError, FileNotFoundError):
        return True
    except (OSError, TimeoutError, MemoryError) as error:
        return unreachable and getattr(error, "errno", None) in NO_WAY
    try:
        async with asyncio.timeout(patience):
            return not await reader.read(1)
    except ConnectionError:
        return True
    except (OSError, TimeoutError, MemoryError):
        return False
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
