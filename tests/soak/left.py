"""What a process holds, and what it leaves behind: descriptors, threads, tasks, processes, files.

Rule: reads ``/proc`` and this process; ends only processes that carry the mark of this run.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import faulthandler
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bridgehead import Bridge
from tests.bench import proc
from tests.soak.model import Wrong

MARK = "BRIDGEHEAD_SOAK"  # in the environment of all processes that the soak starts
STACKS = "BRIDGEHEAD_SOAK_STACKS"  # in the environment: the folder where kernels dump their stacks
POOLS = "asyncio_", "bridgehead_", "ThreadPoolExecutor"
PATIENCE = 30.0  # s until what ends by itself must have ended


@dataclass
class Held:
    """What this process holds now."""

    descriptors: list[str]
    threads: list[str]
    tasks: list[str]
    resident: int

    @classmethod
    def now(cls) -> Held:
        gc.collect()
        # What is freed and not given back to the system would hide what grows.
        getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)(0)
        threads = [thread.name for thread in threading.enumerate()]
        return cls(
            descriptors(),
            # The pools of asyncio.to_thread, of bridges and of jupyter_client keep their threads.
            [name for name in threads if not name.startswith(POOLS)],
            [repr(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()],
            proc.resident(os.getpid()),
        )

    def more_than(self, before: Held) -> str:
        """Return what this process holds beyond what it held before; empty if nothing."""
        found = []
        for what in ("descriptors", "threads", "tasks"):
            mine, earlier = getattr(self, what), getattr(before, what)
            if len(mine) > len(earlier):
                found.append(f"{len(mine)} {what}, before {len(earlier)}: {mine}")
        return "; ".join(found)


def descriptors() -> list[str]:
    found = []
    for one in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(f"{one.name}:{os.readlink(one)}")
    return found


async def first_use() -> None:
    """Open a bridge and close it, so that what a process keeps for ever exists before."""
    async with Bridge.launch() as bridge:
        await bridge.push(x=bytes(20 << 20))
        await bridge.pull("x")
        async with Bridge.attach(bridge.info.connection_file, lane="buffers") as another:
            await another.pull("len(x)")


async def nothing_more(before: Held) -> None:
    """Wait until this process holds no more than before."""
    await _until(lambda: Held.now().more_than(before), "this process has")


async def no_files(folder: Path) -> None:
    await _until(lambda: sorted(map(str, folder.rglob("*"))), "in the runtime folder are")


async def no_processes() -> None:
    await _until(lambda: [describe(one) for one in marked()], "processes are left:")


async def _until(left: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while found := left():
        if time.monotonic() > end:
            raise Wrong(f"{what} {found}")
        await asyncio.sleep(0.2)


def describe(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return f"{process.pid}: {' '.join(process.cmdline())[:200]}"
    return str(process.pid)


def marked() -> list[psutil.Process]:
    """Return the processes of this run, without this one."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if (
                process.pid != os.getpid()
                and process.environ().get(MARK) == os.environ[MARK]
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                found.append(process)
    return found


def end_all() -> None:
    """End what is left of this run, after a failure."""
    for process in marked():
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)


def dump() -> None:
    """Print where all tasks and all threads of this process are, and the threads of the kernels."""
    for task in asyncio.all_tasks():
        task.print_stack(file=sys.stdout)
    sys.stdout.flush()
    faulthandler.dump_traceback(file=sys.stdout)
    for process in marked():
        with contextlib.suppress(psutil.Error):
            held = f"{process.num_fds()} descriptors, {process.status()}"
            print(f"{describe(process)}: {held}\n{stacks(process.pid)}", flush=True)


def stacks(pid: int) -> str:
    """Return where the threads of a kernel are; empty for another process."""
    file = Path(os.environ[STACKS]) / str(pid)
    if not file.exists():
        return ""
    before = file.stat().st_size
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGUSR1)
    time.sleep(1)  # the kernel's signal handler writes it
    return file.read_text()[before:]
