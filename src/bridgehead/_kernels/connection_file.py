"""Connection files: which one is meant, and what it says.

Rule: files and names, no connection. A file is opened once: its content, its owner and its times
come from one descriptor, because another user may replace what a path leads to between two looks.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import stat
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jupyter_core.paths import jupyter_runtime_dir

from bridgehead._errors import KernelNotFound

LONGEST = 1 << 16  # bytes; a connection file has about 300, with CURVE keys 500


@dataclass(frozen=True, slots=True)
class ConnectionFile:
    """The content of a connection file.

    Attributes:
        info: its fields.
        is_own: whether it belongs to this user, and so does the symbolic link that led to it.
        used: when it was last read before, in seconds since 1970.
    """

    info: dict[str, Any]
    is_own: bool
    used: float


def read(file: str | os.PathLike[str], *, unnoticed: bool = False) -> ConnectionFile:
    """Read a connection file.

    The time at which a file was last read is by what Jupyter finds the kernel used last. With
    ``unnoticed`` it stays, where the system allows it; otherwise it is now.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no connection file.
    """
    number, is_own_link = _open(os.fspath(file), getattr(os, "O_NOATIME", 0) if unnoticed else 0)
    with os.fdopen(number, "rb") as opened:
        status = os.fstat(number)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        text = opened.read(LONGEST + 1)
        if not unnoticed:
            _note_reading(number, file, status)
    if len(text) > LONGEST:
        raise ValueError(f"it has more than {LONGEST:,} bytes")
    try:
        info = json.loads(text.decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(info, dict):
        raise ValueError("it is not a JSON object")  # noqa: TRY004 - in the file
    return ConnectionFile(info, is_own_link and _is_own(status), status.st_atime)


def _note_reading(number: int, file: str | os.PathLike[str], status: os.stat_result) -> None:
    """Set the time at which a file was last read: the system itself may do so once a day only.

    So it is on most mounts of Linux (``relatime``).
    """
    with contextlib.suppress(OSError):  # another user's file, or a read-only one
        which = number if os.utime in os.supports_fd else file
        os.utime(which, ns=(time.time_ns(), status.st_mtime_ns))


def _open(file: str, no_atime: int) -> tuple[int, bool]:
    """Return a descriptor, and whether this user made the symbolic link, if the path is one."""
    # Opening a pipe must not block.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    is_own_link = True
    try:
        return os.open(file, flags | getattr(os, "O_NOFOLLOW", 0) | no_atime), True
    except PermissionError:  # only the owner of a file may use O_NOATIME
        if not no_atime:
            raise
        return _open(file, 0)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EMLINK):
            raise
        is_own_link = _is_own(os.lstat(file))
    try:
        return os.open(file, flags | no_atime), is_own_link
    except PermissionError:
        if not no_atime:
            raise
        return os.open(file, flags), is_own_link


def _is_own(status: os.stat_result) -> bool:
    return not hasattr(os, "getuid") or status.st_uid == os.getuid()


def own() -> str | None:
    """Return the real path of this process's connection file, if its main thread is a kernel's."""
    kernelapp = sys.modules.get("ipykernel.kernelapp")
    if kernelapp is None or not kernelapp.IPKernelApp.initialized():
        return None
    app = kernelapp.IPKernelApp.instance()
    if app.session.pid != os.getpid():  # a process that the kernel forked
        return None
    loop = getattr(getattr(app, "io_loop", None), "asyncio_loop", None)
    if getattr(loop, "_thread_id", None) not in (None, threading.main_thread().ident):
        return None  # it answers while this program's main thread waits
    return os.path.realpath(str(app.abs_connection_file))


def own_id() -> str | None:
    """Return the id by which a server that started this process as a kernel knows it, if any."""
    file = own()
    return None if file is None else Path(file).stem.removeprefix("kernel-")


def refuse_own(file: str) -> None:
    """Raise ``KernelNotFound`` if the file is that of this process."""
    if os.path.realpath(file) == own():
        raise not_itself(os.path.basename(file))


def not_itself(kernel: str) -> KernelNotFound:
    """Return the error for attaching to the kernel that this process is."""
    return KernelNotFound(
        f"{kernel} is this kernel itself, which can't answer while its code waits; use its names "
        "without a bridge"
    )


def find(existing: str | os.PathLike[str] | None) -> str:
    """Return the connection file for ``existing``: a path, a fragment, a glob, or the latest.

    What names no folder is looked up in the runtime folder, and only then in the current one, into
    which a file may have come with other people's work. The name of a notebook means its kernel.
    The latest is never that of this process.

    Raises:
        KernelNotFound: no file matches, or more than one; the message lists them.
    """
    folder = jupyter_runtime_dir()
    places = [folder, "."]
    if existing is None:
        this = own()
        for place in places:
            files = _matching(place, "kernel-*.json")
            latest = _latest(file for file in files if os.path.realpath(file) != this)
            if latest is not None:
                return latest
        other = "" if this is None else "other "
        raise KernelNotFound(
            f"no {other}kernel is running: there is no {other}connection file in {folder}; start "
            "one with 'bridgehead start', or with Bridge.launch() in a program"
        )
    name = wanted = os.fspath(existing)
    if name.endswith(".ipynb"):
        return _of_notebook(name)
    head, tail = os.path.split(name)
    if head and os.path.isfile(name):
        return os.path.abspath(name)
    if tail and os.path.isdir(head):  # only the rest is a fragment or a glob
        places, wanted = [head], tail
    for place in places:
        exact = os.path.join(place, wanted)
        if os.path.isfile(exact):
            return os.path.abspath(exact)
        pattern = wanted if "*" in wanted else f"*{glob.escape(wanted)}*"
        matches = {match for match in _matching(place, pattern) if match.endswith(".json")}
        if len(matches) == 1:
            return matches.pop()
        if matches:
            raise KernelNotFound(
                f"{name!r} matches {len(matches)} kernels; pass one of: {_listed(sorted(matches))}"
            )
    here = []
    for file in connection_files():
        notebook = os.path.basename(_notebook_in(file))
        here.append(f"{file.name} ({notebook})" if notebook else file.name)
    raise KernelNotFound(
        f"no connection file matches {name!r}; {folder} has: {_joined(here) or 'none'}"
    )


def _of_notebook(name: str) -> str:
    """Return the connection file of the kernel that a Jupyter server started for a notebook.

    The server wrote the notebook's path into it; ``name`` is the path, or its end.
    """
    parts = Path(name).parts
    notebooks: dict[str, list[str]] = {}  # by path: the files of its kernels
    for file in connection_files():
        notebook = _notebook_in(file)
        if notebook:
            notebooks.setdefault(notebook, []).append(str(file))
    found = [notebook for notebook in notebooks if Path(notebook).parts[-len(parts) :] == parts]
    if len(found) > 1:
        raise KernelNotFound(
            f"{name!r} is the name of {len(found)} notebooks with a kernel; pass one of: "
            f"{_joined(sorted(found))}"
        )
    if not found:
        raise KernelNotFound(
            f"no kernel was started here for the notebook {name!r}; open it in Jupyter. There are "
            f"kernels for: {_joined(sorted(notebooks)) or 'no notebook'}"
        )
    # A server that was killed leaves the files of its kernels.
    latest = _latest(notebooks[found[0]], "st_mtime")
    if latest is None:
        raise KernelNotFound(f"the kernel of the notebook {name!r} has just ended")
    return latest


def _notebook_in(file: Path) -> str:
    """Return the path of the notebook that a connection file names; empty if it names none."""
    with contextlib.suppress(OSError, ValueError):
        notebook = read(file, unnoticed=True).info.get("jupyter_session")
        if isinstance(notebook, str) and notebook.endswith(".ipynb"):
            return notebook
    return ""


def _matching(folder: str, pattern: str) -> list[str]:
    """Return the absolute paths that match a pattern in a folder, whose name is literal."""
    return [os.path.abspath(file) for file in glob.glob(os.path.join(glob.escape(folder), pattern))]


def _latest(files: Iterable[str], when: str = "st_atime") -> str | None:
    """Return the file that was read last, as ``jupyter console --existing`` chooses it."""
    times = {}
    for file in files:
        with contextlib.suppress(OSError):  # its kernel has just ended
            times[file] = getattr(os.stat(file), when)
    return max(times, key=times.__getitem__, default=None)


def connection_files() -> list[Path]:
    """Return the connection files in Jupyter's runtime folder, even those of dead kernels."""
    return sorted(Path(jupyter_runtime_dir()).glob("kernel-*.json"))


def _listed(files: list[str]) -> str:
    return _joined([os.path.basename(file) for file in files])


def _joined(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
