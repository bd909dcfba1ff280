"""Inspection of this process: classes, processes and installed packages.

Rule: use the standard library only, and run on Python 3.8 and later. These are functions without
state. They run no code of the user's, and neither import nor change anything of the user's.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from stat import S_ISDIR
from typing import Any, Iterable, Sequence


def of_class(kind: Any, attribute: str) -> str:
    """Return an attribute that each class has, whatever its metaclass says."""
    value = type.__dict__[attribute].__get__(kind)
    return value if type(value) is str else ""


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


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Return installed versions, without importing anything into the user's kernel."""
    found: dict[str, str] = {}
    for package in packages:
        version = getattr(sys.modules.get(package), "__version__", None)
        if version is None:
            version = _installed(package)
        if version is not None:
            found[package] = str(version)
    return found


# The versions that the folders of ``sys.path`` name, and how these folders were then.
_seen: tuple[Any, dict[str, str]] = None, {}


def _installed(package: str) -> str | None:
    """Return the version of a package that is not loaded; None if it is not installed.

    A folder beside the package names it. ``importlib.metadata`` reads more: 4 ms at first, and 0.2
    for each package later.
    """
    global _seen
    try:
        folders = [(path, _changed(path)) for path in sys.path]
        if _seen[0] != folders:
            _seen = folders, _named_versions(folders)
        version = _seen[1].get(package)
        if version is None and find_spec(package) is not None:
            from importlib import metadata  # for an egg, or a finder of another kind

            version = metadata.version(package)
    except Exception:  # the metadata is damaged, or a user's sys.path is no list of folders
        return None
    return version


def _changed(path: str) -> int:
    """Return when a folder was last changed; 0 if this is none."""
    try:
        status = os.stat(path or ".")
    except OSError:
        return 0
    return status.st_mtime_ns if S_ISDIR(status.st_mode) else 0


def _named_versions(folders: Iterable[tuple[str, int]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for path, changed in folders:
        for name in os.listdir(path or ".") if changed else ():
            if name.endswith(".dist-info"):
                package, _, version = name[: -len(".dist-info")].partition("-")
                found.setdefault(package, version)
    return found
