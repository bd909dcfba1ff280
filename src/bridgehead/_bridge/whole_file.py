"""A file that is written whole, or stays as it was.

Rule: bytes and one path. What is in them is decided by the caller.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from pathlib import Path

# The folder takes no new file, or the file is a mount of its own, as a container may have.
_IN_PLACE = (errno.EACCES, errno.EPERM, errno.EBUSY)


def check_writable(file: Path) -> None:
    """Check that a file can be written, before the work that it is for.

    Raises:
        OSError: it is a folder, or its folder does not exist, or this user may not write there.
    """
    place = file if file.exists() else file.absolute().parent
    error = 0 if os.access(place, os.W_OK) else errno.EACCES
    if file.is_dir():
        error = errno.EISDIR
    elif not place.exists():
        error = errno.ENOENT
    if error:
        raise OSError(error, os.strerror(error), str(file))


def write_whole(file: Path, data: bytes) -> None:
    """Write a file, or leave it unchanged on failure.

    The new content is written beside the file, and then replaces it. Links lead to the same file as
    before, and the file keeps its mode and its owner. Devices and pipes are written directly, and
    so is a file with several names, and one that can be written but not replaced with the same
    owner.

    Raises:
        OSError: the file can't be written.
    """
    try:
        old = file.stat()  # an error if links lead in a circle
    except FileNotFoundError:
        old = None
    # Before links are resolved: the link of a pipe in /dev leads to no file.
    if old is not None and not stat.S_ISREG(old.st_mode):
        _write_in_place(file, data)
        return
    target = file.resolve()
    if old is not None and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
    if old is not None and old.st_nlink > 1:  # the other names would keep the old content
        _write_in_place(target, data)
        return
    # A short name of its own: with a prefix, a long name might exceed the system's limit.
    new = target.parent / f".new-{secrets.token_hex(8)}"
    try:
        _write_new(new, data)
        if old is not None:
            _keep_owner_and_mode(new, old)
        new.replace(target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            new.unlink()
        if not (old is not None and isinstance(error, OSError) and error.errno in _IN_PLACE):
            raise
        _write_in_place(target, data)


def _write_in_place(file: Path, data: bytes) -> None:
    with file.open("wb") as out:
        out.write(data)


def _write_new(file: Path, data: bytes) -> None:
    # The mode is that of any new file: the process's umask, which all threads share, is not read.
    with file.open("xb") as out:
        out.write(data)


def _keep_owner_and_mode(new: Path, old: os.stat_result) -> None:
    made = new.stat()
    if (made.st_uid, made.st_gid) != (old.st_uid, old.st_gid):
        try:
            os.chown(new, old.st_uid, old.st_gid)
        except OSError as error:  # only root may give a file away
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(new)) from error
    new.chmod(stat.S_IMODE(old.st_mode))
