"""Inspection of this process and its values, without running a user's code.

Rule: use the standard library only, and run on Python 3.8 and later. These are functions without
state. They look at values, processes and installed packages, and neither import nor change
anything of the user's.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Sequence

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.wire.header import NameDescription

# Modules whose types give their shape, len and size without running a user's code.
_KNOWN = {"builtins", "collections", "array", "numpy", "pandas", "torch", "polars", "pyarrow"}


def describe(name: str, value: Any) -> NameDescription:
    """Return name, type, shape or length, and bytes of a value.

    The bytes of a plain container are its own, without its items.
    """
    kind = type(value)
    module = str(kind.__module__).partition(".")[0]
    prefix = "" if module in ("builtins", "__main__") else module + "."
    description: NameDescription = {
        "name": name,
        "type": prefix + kind.__qualname__,
        "shape": None,
        "len": None,
        "bytes": None,
    }
    if module not in _KNOWN or kind in (type(describe), type):
        return description
    try:
        shape = getattr(value, "shape", None)
        if isinstance(shape, tuple):
            description["shape"] = [int(length) for length in shape]
        elif hasattr(value, "__len__"):
            description["len"] = len(value)
        usage = getattr(value, "memory_usage", None)
        if module == "pandas" and usage is not None:
            total = usage(deep=False)
            description["bytes"] = int(total.sum() if hasattr(total, "sum") else total)
        else:
            size = getattr(value, "nbytes", None)
            description["bytes"] = int(size if isinstance(size, int) else sys.getsizeof(value))
    except Exception:  # a half-built object: report its name and type alone
        pass
    return description


def runs(pid: Any) -> bool:
    """Return whether a process runs; true if that cannot be known."""
    if os.name != "posix" or type(pid) is not int:  # on Windows, signal 0 is a real signal
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True


def current_folder() -> str:
    """Return the current working directory, or an empty string if it was deleted."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def installed_version(distribution: Any) -> str:
    """Return a version, without parsing the long description after it (0.2 ms a package)."""
    head = (distribution.read_text("METADATA") or "").partition("\n\n")[0]
    for line in head.split("\n"):
        if line.startswith("Version: "):
            return line[9:].strip()
    return str(distribution.version)


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Return installed versions, without importing anything into the user's kernel."""
    from importlib import metadata

    found: dict[str, str] = {}
    for package in packages:
        module = sys.modules.get(package)
        version = getattr(module, "__version__", None)
        if version is None:
            try:
                version = installed_version(metadata.distribution(package))
            except Exception:  # not installed, or damaged metadata
                continue
        found[package] = str(version)
    return found
