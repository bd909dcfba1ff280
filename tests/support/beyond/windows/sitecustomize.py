"""Hide from bridgehead what Windows has not; put this folder into PYTHONPATH.

The standard library has seen it before. Other libraries can still import the modules, because they
take ``os.name`` at its word.
"""

import asyncio  # noqa: F401 - before anything is hidden
import builtins
import multiprocessing  # noqa: F401
import os
import select
import signal
import socket
import subprocess  # noqa: F401
from typing import Any

HIDDEN: dict[Any, list[str]] = {
    os: [
        *(name for name in dir(os) if name.startswith(("sched_", "posix_", "O_PATH", "memfd"))),
        *("fork", "forkpty", "geteuid", "killpg", "preadv", "pwrite", "register_at_fork"),
    ],
    select: ["poll", "epoll"],
    signal: ["pthread_kill", "pthread_sigmask", "setitimer", "SIGHUP", "SIGUSR1"],
    socket: ["AF_UNIX", "CMSG_SPACE", "SCM_RIGHTS", "SO_PEERCRED", "MSG_CMSG_CLOEXEC"],
}
MISSING = ("_posixshmem", "fcntl", "pwd", "resource", "termios")

_pair, _family = socket.socketpair, socket.AF_UNIX
socket.socketpair = lambda *how: _pair(_family)  # type: ignore[assignment] # asyncio needs one

for module, names in HIDDEN.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)

_import = builtins.__import__


def import_as_on_windows(name: str, globals: Any = None, *args: Any, **kwargs: Any) -> Any:
    importer = str((globals or {}).get("__name__"))
    if name in MISSING and importer.startswith(("bridgehead", "_bridgehead_")):
        raise ImportError(f"No module named {name!r}", name=name)
    return _import(name, globals, *args, **kwargs)


builtins.__import__ = import_as_on_windows
