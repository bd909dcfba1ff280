"""A kernel that runs as another user, which only root can start.

Rule: it writes the connection file as this user, gives up all rights, and serves then.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

NOBODY = 65534
OTHER_USER = """
import os, sys
from ipykernel.kernelapp import IPKernelApp
import cloudpickle, ctypes, hmac, mmap, numpy, platform, uuid
import difflib, fcntl, fnmatch, hashlib, keyword, socket, zlib
from importlib import metadata
app = IPKernelApp.instance()
app.initialize(sys.argv[1:])
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
app.start()
"""


def others_can_read(path: str) -> bool:
    return all(os.stat(folder).st_mode & 0o001 for folder in [path, *map(str, Path(path).parents)])


needs_other_user = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0 or not others_can_read(sys.prefix),
    reason="only root can become another user, who must be able to read this environment",
)
