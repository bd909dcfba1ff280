"""A file that is written whole, or stays as it was.

Rule: bytes and one path. What is in them is decided by the caller.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path

# The folder takes no new file, or the file is a mount of its own, as a container may have.
_IN_PLACE = (errno.EACCES, errno.EPERM, errno.EBUSY)


def write_whole(file: Path, data: bytes) -> None:
    """Write a file, or leave it unchanged on failure.

    The new content is written beside the file, and then replaces it. Links lead to the same file as
    before, and the file keeps its mode and its owner. Devices and pipes are written directly, and
    so is a file that can be written but not replaced.

    Raises:
        OSError: the file can't be written.
    """
    # Before links are resolved: the link of a pipe in /dev leads to no file.
    if file.exists() and not file.is_file():
        _write_in_place(file, data)
        return
    target = file.resolve()
    is_there = target.exists()
    if is_there and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
    # A short name of its own: with a prefix, a long name might exceed the system's limit.
    new = target.parent / f".new-{secrets.token_hex(8)}"
    try:
        _write_new(new, data)
        if is_there:
            _keep_owner_and_mode(new, target)
        new.replace(target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            new.unlink()
        if not (is_there and isinstance(error, OSError) and error.errno in _IN_PLACE):
            raise
        _write_in_place(target, data)


def _write_in_place(file: Path, data: bytes) -> None:
    with file.open("wb") as out:
        out.write(data)


def _write_new(file: Path, data: bytes) -> None:
    # The mode is that of any new file: the process's umask, which all threads share, is not read.
    with file.open("xb") as out:
        out.write(data)


def _keep_owner_and_mode(new: Path, old: Path) -> None:
    status = old.stat()
    if hasattr(os, "chown"):
        with contextlib.suppress(OSError):  # only root may give a file away
            os.chown(new, status.st_uid, status.st_gid)
    new.chmod(status.st_mode & 0o7777)
