"""Limits: how much memory and how many descriptors this process may still take.

Rule: use the standard library only, run on Python 3.8 and later, the same file at both ends. This
file only reads what the system says. What it cannot read counts as no limit.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any, Iterator, List, Tuple

try:
    import resource
except ImportError:  # not POSIX
    resource = None  # type: ignore[assignment]

# Captured, because a user may replace it.
_getrlimit: Any = getattr(resource, "getrlimit", None)
# Files of a control group, in version 1 and 2: its limit, its memory, and the field of memory.stat
# that says how much of that memory is file cache, which the system frees first.
_FILES = {
    "cgroup": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    "cgroup2": ("memory.max", "memory.current", "inactive_file"),
}


def descriptor_limit() -> int:
    """Return how many descriptors this process may have open (RLIMIT_NOFILE)."""
    return 1 << 20 if _getrlimit is None else min(_soft_limit("RLIMIT_NOFILE"), 1 << 20)


def free_memory() -> int:
    """Return how many bytes this process can still allocate; 0 if the system does not say.

    Where only the installed memory is known, as on macOS, a quarter of it counts as free. Else the
    least of what the machine has, of what each control group above this process has left, and
    of the rest of its address space (RLIMIT_AS).
    """
    try:
        available = next(
            int(line.split()[1]) * 1024
            for line in _read("/proc/meminfo").splitlines()
            if line.startswith("MemAvailable:")
        )
    except (OSError, ValueError, StopIteration):  # another system
        return _installed_memory() // 4
    left = [available, *map(_left_in_group, _groups())]
    address_space = _soft_limit("RLIMIT_AS")
    if address_space != _UNLIMITED:
        left.append(address_space - int(_read("/proc/self/statm").split()[0]) * _PAGE)
    return max(0, min(left))


def _installed_memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * _PAGE
    except (AttributeError, OSError, ValueError):  # Windows
        return 0


_UNLIMITED = 1 << 63
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def _soft_limit(name: str) -> int:
    soft = _getrlimit(getattr(resource, name))[0]
    return _UNLIMITED if soft == resource.RLIM_INFINITY else int(soft)


def _read(path: str) -> str:
    with open(path, "rb") as file:
        return file.read().decode("utf-8", "surrogateescape")


def _groups() -> List[Tuple[str, str]]:
    """Return the kind and the folder of this process's control group and of those above it."""
    try:
        return list(group_folders(_read("/proc/self/cgroup"), _read("/proc/self/mountinfo")))
    except OSError:
        return []


@lru_cache(maxsize=1)
def group_folders(groups: str, mounts: str) -> Tuple[Tuple[str, str], ...]:
    """Return the same from the texts of /proc/self/cgroup and /proc/self/mountinfo."""
    paths = {}
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            paths["cgroup2"] = path
        elif "memory" in controllers.split(","):
            paths["cgroup"] = path
    found = []
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")[0]
        is_of_memory = kind == "cgroup2" or "memory" in after.split(" ")[-1].split(",")
        if kind in paths and is_of_memory and len(fields) > 4:
            found += [(kind, folder) for folder in _upwards(paths[kind], fields[3], fields[4])]
    return tuple(found)


def _upwards(path: str, root: str, mount: str) -> Iterator[str]:
    """Return the folder of a group, and those above it; ``root`` is the group that is mounted."""
    inside = path.strip("/")
    if root != "/":  # a container's own group is mounted, and the path may be that of the host
        inside = inside[len(root) :] if ("/" + inside + "/").startswith(root + "/") else ""
    parts = [part for part in inside.split("/") if part]
    if ".." in parts:  # the process has left the groups that it sees
        parts = []
    for length in range(len(parts), -1, -1):
        yield "/".join([mount, *parts[:length]])


def _left_in_group(group: Tuple[str, str]) -> int:
    kind, folder = group
    limit, used, cache = _FILES[kind]
    try:
        most = _read(folder + "/" + limit).strip()
        if most == "max" or int(most) >= _UNLIMITED - _PAGE:
            return _UNLIMITED
        left = int(most) - int(_read(folder + "/" + used))
        for line in _read(folder + "/memory.stat").splitlines():
            if line.startswith(cache + " "):
                left += int(line.split()[1])
        return left
    except (OSError, ValueError):
        return _UNLIMITED
