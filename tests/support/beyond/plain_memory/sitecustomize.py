"""Hide from a process what Linux has and macOS has not; put this folder into PYTHONPATH."""

import fcntl
import os
import socket

for module, names in (
    (os, ("memfd_create", "O_PATH", "posix_fallocate")),
    (fcntl, ("F_ADD_SEALS", "F_GET_SEALS")),
    (socket, ("MSG_CMSG_CLOEXEC",)),
):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
        if name in getattr(module, "__all__", ()):
            module.__all__.remove(name)
