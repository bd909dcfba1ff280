"""The descriptors that this process may still open.

Rule: asked before a connection is made. Once libzmq gets no descriptor for its own threads, it ends
the whole process, and other libraries report whatever failed in consequence.
"""

from __future__ import annotations

import contextlib
import os

from bridgehead._errors import NotSent
from bridgehead._shipped.wire.limits import descriptor_limit

ATTACHED, LAUNCHED = 20, 33  # what a connection to a kernel takes, with some in reserve (measured)


def check_descriptors(needed: int) -> None:
    """Raise ``NotSent`` if this process may not open so many descriptors more."""
    limit = descriptor_limit()
    with contextlib.suppress(OSError):
        # Linux has their number here from 6.2 on, and 0 before. To list 3,000 took 3 ms (measured).
        if 0 < os.stat("/proc/self/fd").st_size <= limit - needed:  # noqa: PTH116 - as below
            return
    try:
        used = len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208 - names are enough
    except FileNotFoundError:  # not Linux
        return
    except OSError:  # not even this can be opened
        used = limit
    if limit - used < needed:
        raise NotSent(
            f"this process may open {limit:,} descriptors (RLIMIT_NOFILE) and has {used:,} open, "
            f"but a connection to a kernel takes {needed}; nothing was started. Close other "
            "bridges, or raise the limit (ulimit -n)"
        )
