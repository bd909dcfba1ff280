"""What identifies a process to others of its machine.

Rule: use the standard library only, run on Python 3.8 and later, the same file at both ends: the
kernel describes itself, and so does a program that launches one.
"""

from __future__ import annotations

import os
from typing import Any

_own: dict[int, list[Any]] = {}  # what ``own_process`` has found, by pid: a fork has another


def own_process() -> list[Any] | None:
    """Return what identifies this process to others of its machine; None if that is not known.

    The machine's boot, the pid namespace, the pid and the time of its start, from /proc (Linux).
    """
    pid = os.getpid()
    if pid in _own:
        return _own[pid]
    try:
        with open("/proc/sys/kernel/random/boot_id") as text:
            boot = text.read().strip()
        with open("/proc/self/stat", "rb") as stat:
            started = int(stat.read().rpartition(b")")[2].split()[19])
        _own[pid] = [boot, os.readlink("/proc/self/ns/pid"), pid, started]
    except (OSError, ValueError, IndexError):
        return None
    return _own[pid]
