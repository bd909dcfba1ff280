"""Forked kernels behave like started ones.

Rule: tests of the suite's own tool, ``support/forked_kernels.py``, on which other tests rely.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from bridgehead import Bridge, KernelDied
from support.forked_kernels import ForkedKernel, KernelForker
from support.kit import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux")


def _facts() -> dict[str, Any]:
    import gc
    import os
    import signal
    import sys
    import threading
    import time

    me = os.getpid()
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    main = sys.modules["__main__"]
    return {
        "parent": os.getppid(),
        "leads": (os.getsid(0) == me, os.getpgid(0) == me),
        "folder": os.getcwd(),
        "argv": (os.path.basename(sys.argv[0]), *sys.argv[1:-1]),
        "path": sys.path,
        "flags": str(sys.flags),
        "environment": sorted(os.environ),
        "own": (os.environ.get("OWN"), os.getenv("JPY_PARENT_PID"), time.tzname),
        "files": [(os.readlink(f"/proc/self/fd/{file}")[:5], os.isatty(file)) for file in range(3)],
        "end of input": os.read(0, 1),
        "signals": {
            number: getattr(handler, "__name__", handler) for number, handler in handlers.items()
        },
        "blocked": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "main": sorted(name for name in vars(main) if name.startswith("__")),
        "collects": (gc.isenabled(), gc.get_threshold()),
        "threads": sorted(thread.name.partition("-")[0] for thread in threading.enumerate()),
        "mask": os.umask(os.umask(0o22)),
        "descriptors": len(os.listdir("/proc/self/fd")),
    }


@asynccontextmanager
async def launched(tmp_path: Path) -> AsyncIterator[Bridge]:
    async with Bridge.launch(env={"OWN": "1", "TZ": "Asia/Tokyo"}, cwd=tmp_path) as bridge:
        yield bridge


async def test_a_forked_kernel_has_the_same_environment_as_a_started_one(
    forker: KernelForker, tmp_path: Path
) -> None:
    """Compare parent, session, folder, environment, descriptors, signal handlers and threads."""
    found, modules = [], []
    for forker.enabled in (True, False):
        async with launched(tmp_path) as bridge:
            process = bridge._transport.manager.provisioner.process
            assert isinstance(process, ForkedKernel) == forker.enabled
            found.append(await bridge.call(_facts, by_value=[sys.modules[__name__]]))
            modules.append(await bridge.pull("set(__import__('sys').modules)"))
    forked, started = found
    forked["files"][0] = started["files"][0]  # /dev/null and an empty pipe
    # ZeroMQ opens a few descriptors when it needs them; those of the forking process would be tens.
    assert abs(forked.pop("descriptors") - started.pop("descriptors")) <= 4
    assert forked == started
    assert forked["parent"] == os.getpid()
    assert len(modules[0] ^ modules[1]) <= 3, modules[0] ^ modules[1]


async def test_the_exit_of_a_forked_kernel_is_reported_like_that_of_a_child(tmp_path: Path) -> None:
    """The exit code or signal is known, and no zombie is left."""
    for code, ending in ((7, "import os; os._exit(7)"), (-signal.SIGKILL, None)):
        async with launched(tmp_path) as bridge:
            pid = bridge.info.pid
            assert psutil.Process(pid).ppid() == os.getpid()
            with pytest.raises(KernelDied) as caught:
                if ending is None:
                    os.kill(pid, signal.SIGKILL)
                await bridge.run(ending or "import time; time.sleep(60)")
            assert caught.value.exit_code == code
        await until(lambda: not psutil.pid_exists(pid))
