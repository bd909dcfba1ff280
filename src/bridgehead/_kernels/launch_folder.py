"""The private folder of a launched kernel: its Unix sockets, and which program started it.

Rule: files of kernels that ``launch`` started, and of no others. ZeroMQ makes a socket with the
permissions that the umask leaves, so any user could read a kernel's outputs. In a folder that only
this user can enter, the umask does not matter.

A program that is killed removes nothing. The next one does: if the program that is named in a
folder has surely ended, and no kernel listens, the folder and its connection file are removed. A
folder of another machine that has the same home, or of another container, is left alone.

``bridgehead start`` ends and leaves its kernel. Such a folder also has a record of the kernel, for
``started_kernels``, and what the kernel prints.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import socket
import stat
import tempfile
from pathlib import Path
from typing import Any

from jupyter_core.paths import secure_write

from bridgehead._kernels.connection_file import read
from bridgehead._shipped.wire.process import own_process
from bridgehead._transports.base import Transport
from bridgehead._transports.evidence import LocalProcess

STARTER = "starter.json"  # in the folder
LOG = "kernel.log"  # in the folder of a kernel that ``bridgehead start`` left
SUFFIX = "-ipc-"  # between the name of the connection file and eight letters that mkdtemp chooses
SOCKET_PATH = 103  # bytes that every POSIX allows for a socket's path


class LaunchFolder:
    """The folder beside one connection file; a new one, unless ``path`` is one that exists."""

    def __init__(self, file: Path, path: str | None = None) -> None:
        """Make the folder.

        Raises:
            OSError: nothing can be written there.
            RuntimeError: its file system keeps no permissions.
        """
        self._file = file
        self.path: str = path or tempfile.mkdtemp(prefix=f"{file.stem}{SUFFIX}", dir=file.parent)
        # The kernel appends the number of each socket.
        self.ip: str = os.path.join(self.path, "s")
        if path is not None:
            return
        try:
            self.note()
        except BaseException:
            self.remove()
            raise

    @classmethod
    def all_of(cls, file: Path) -> list[LaunchFolder]:
        """Return the folders of the kernels that had, or have, this connection file."""
        pattern = f"{glob.escape(os.fspath(file.with_suffix('')))}{SUFFIX}????????"
        return [cls(file, path) for path in sorted(glob.glob(pattern))]

    def note(self, **facts: Any) -> None:
        """Write that this program started the kernel, and more facts for ``noted``."""
        with secure_write(os.path.join(self.path, STARTER)) as text:
            json.dump({"process": own_process(), **facts}, text)

    def noted(self) -> dict[str, Any]:
        """Return what was noted; nothing if it cannot be read, or is another user's."""
        with contextlib.suppress(OSError, ValueError):
            found = read(os.path.join(self.path, STARTER), unnoticed=True)
            if found.is_own:
                return found.info
        return {}

    def has_rival(self) -> bool:
        """Return whether a program that runs has another folder beside this connection file.

        Its kernel may not listen yet. Of two programs that start a kernel with one file at the same
        instant, the second to write its folder sees the first one's, or each sees the other's.
        """
        others = [one for one in self.all_of(self._file) if one.path != self.path]
        return any(LocalProcess.find(one.noted().get("process")) for one in others)

    def log(self) -> Any:
        """Return an open file for what a kernel prints that no program watches."""
        return open(os.path.join(self.path, LOG), "ab+")

    def takes_sockets(self) -> bool:
        """Return whether the kernel can bind its Unix sockets here.

        File systems on which it cannot are common (mounts of Docker Desktop, drvfs of WSL 1, CIFS,
        some NFS), each with an error of its own. A kernel ends at once there. So a socket is bound.
        """
        path = f"{self.ip}-0"  # the kernel's own sockets have numbers from 1
        if not hasattr(socket, "AF_UNIX") or len(os.fsencode(path)) > SOCKET_PATH:
            return False
        try:
            with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
                listener.bind(path)
                try:
                    listener.listen(1)
                    client.connect(path)
                finally:
                    os.unlink(path)
        except OSError:
            return False
        return True

    def remove(self) -> None:
        """Remove the folder, and the connection file if a full disk left it empty."""
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):
            if not self._file.stat().st_size:
                self._file.unlink()


def is_of_running_kernel(file: Path) -> bool:
    """Return whether a kernel listens at the address in a connection file, or may do so."""
    try:
        return _answers(read(file, unnoticed=True).info)
    except (OSError, ValueError):  # there is no such file, or it has no address
        return False


def sweep(parent: str | os.PathLike[str]) -> None:
    """Remove what killed programs of this user left in a folder of connection files."""
    pattern = os.path.join(glob.escape(os.fspath(parent)), f"*{SUFFIX}????????", STARTER)
    for starter in glob.glob(pattern):
        with contextlib.suppress(OSError, ValueError):
            _sweep_one(os.path.dirname(starter), starter)


def _sweep_one(folder: str, starter: str) -> None:
    noted = read(starter, unnoticed=True).info
    program = LocalProcess.described(noted.get("process"))
    if program is None or program.has_ended() is not True:
        return
    record = noted.get("kernel")  # of a kernel that may not listen yet
    kernel = LocalProcess.described(record.get("process")) if isinstance(record, dict) else None
    if kernel is not None and kernel.has_ended() is not True:
        return
    status = os.lstat(folder)
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
        return
    files = (STARTER, LOG)
    sockets = [os.path.join(folder, name) for name in os.listdir(folder) if name not in files]
    if any(map(_listens_at, sockets)):
        return
    file = f"{folder[: folder.rindex(SUFFIX)]}.json"
    with contextlib.suppress(OSError, ValueError):
        content = read(file, unnoticed=True)
        if content.is_own and _belongs(content.info, folder):
            if _answers(content.info):
                return
            os.unlink(file)
    with contextlib.suppress(OSError):
        if not os.stat(file).st_size:  # the disk was full
            os.unlink(file)
    shutil.rmtree(folder, ignore_errors=True)


def _belongs(info: dict[str, Any], folder: str) -> bool:
    """Return whether a connection file is of the kernel of this folder."""
    if info.get("transport") == "ipc":
        return os.path.dirname(str(info.get("ip"))) == folder
    # A later kernel, which has the same connection file, has a folder of its own.
    beside = glob.glob(f"{glob.escape(folder[: folder.rindex(SUFFIX)])}{SUFFIX}????????")
    return beside == [folder]


def _answers(info: dict[str, Any]) -> bool:
    """Return whether a program listens at the address in a connection file, or may do so."""
    port = info.get("control_port")
    if info.get("transport") == "ipc":
        return _listens_at(f"{info.get('ip')}-{port}")
    try:
        ip = str(info.get("ip") or "127.0.0.1")
        address = ip, port if type(port) is int else 0
        socket.create_connection(address, Transport.timings.listed_connect).close()
    except (ConnectionRefusedError, OverflowError):
        return False
    except OSError:  # not known
        return True
    return True


def _listens_at(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        try:
            client.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:  # not known, as when the queue of connections is full
            return True
    return True
