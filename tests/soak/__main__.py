"""Use kernels in all ways for a while, harm them in all ways, and check every value.

From the checkout's root:

    python -m tests.soak --minutes 20 --seed 1

Several bridges and client processes, on all lanes, use four kernels: one that bridgehead launches,
one with few descriptors, one on TCP with connections that are cut, one behind a Jupyter server
whose connections are cut. Kernels and clients are killed, stopped, interrupted and restarted, calls
are cancelled and time out at any instant. A model knows which namespaces are possible; each value,
each list of names and each error must agree with it. A call that takes minutes hangs, which is
a failure. At the end nothing may be left: no tasks, threads, descriptors, files or processes.

The plan follows from the seed: which calls each actor makes, which faults each kernel suffers. The
interleaving does not, so a failure may not come again with the same seed.

Rule: the plan of a run and its end. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tests.bench import proc
from tests.soak import leaks, left
from tests.soak.fleets import Pair
from tests.soak.kernels import (
    DESCRIPTORS,
    LIMITED,
    Kernel,
    Launched,
    Managed,
    Served,
    install_limited,
    prepare_kernels,
)
from tests.soak.model import Faults, Wrong
from tests.soak.report import failed, table
from tests.soak.steps import Steps

PHASES = 5
PAUSE = 2.5  # s between two faults of a kernel, about
CLIENTS: dict[str, dict[str, int]] = {
    "p": {},
    "q": {"descriptors": DESCRIPTORS},
    "r": {"memory": 1500 << 20},  # bytes beyond what the process has at its start
}


class Client:
    """A client process, which is killed and started again from time to time."""

    def __init__(self, soak: Soak, name: str) -> None:
        self.soak, self.name, self.limits = soak, name, CLIENTS[name]
        self.chance = random.Random(f"{soak.seed} {name}")
        self.starts = 0
        self.process: asyncio.subprocess.Process | None = None
        self.errors = soak.folder / f"client_{name}.log"  # what it writes to stderr

    async def start(self) -> None:
        self.starts += 1
        wanted = {
            "name": f"{self.name}{self.starts}x",
            "seed": self.soak.seed,
            "faults": str(self.soak.path),
            "limits": self.limits,
            "kernels": {one.name: one.connection_file for one in self.soak.shared},
            "lanes": ["auto", self.chance.choice(["buffers", "inline"])],
        }
        with self.errors.open("w") as errors:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.soak.client", json.dumps(wanted)),
                stdin=asyncio.subprocess.PIPE,
                stderr=errors,
            )

    async def live(self, stop: asyncio.Event) -> None:
        """Run until the event is set; make the faults of this process."""
        try:
            await self.start()
            while not stop.is_set():
                await self._fault(stop)
            self._input().close()
            async with asyncio.timeout(300):
                await self._ended(0)
        finally:
            assert self.process is not None
            if self.process.returncode is None:
                self.process.kill()
                await self.process.wait()
            self._input().close()
            self._show_errors()

    async def _fault(self, stop: asyncio.Event) -> None:
        assert self.process is not None
        ended, pause = (asyncio.ensure_future(one) for one in (self.process.wait(), stop.wait()))
        waited = self.chance.uniform(5, 30)
        await asyncio.wait([ended, pause], timeout=waited, return_when="FIRST_COMPLETED")
        ended.cancel()
        pause.cancel()
        if self.process.returncode is not None and not self._was_ended_by_zmq():
            await self._ended(None)
        if stop.is_set():
            return
        if self.process.returncode is not None:
            self._input().close()
            self._show_errors()
            await self.start()
            return
        if self.chance.random() < 0.5:
            with self.soak.faults.making(self.name, "client killed"):
                self.process.kill()
                await self._ended(-signal.SIGKILL)
                self._input().close()
                self._show_errors()
                await self.start()
        else:
            with self.soak.faults.making(self.name, "client stopped"):
                self.process.send_signal(signal.SIGSTOP)
                await asyncio.sleep(self.chance.uniform(0.1, 3))
                self.process.send_signal(signal.SIGCONT)

    def _show_errors(self) -> None:
        sys.stderr.write(self.errors.read_text())

    def _was_ended_by_zmq(self) -> bool:
        """Return whether libzmq had no memory for a buffer of its own: it ends the process then."""
        assert self.process is not None
        aborted = self.process.returncode == -signal.SIGABRT
        return aborted and "FATAL ERROR: OUT OF MEMORY (src/" in self.errors.read_text()

    async def _ended(self, right: int | None) -> None:
        assert self.process is not None
        code = await self.process.wait()
        if code != right and not (right == 0 and self._was_ended_by_zmq()):
            raise Wrong(f"client {self.name} ended with {code}")

    def _input(self) -> asyncio.StreamWriter:
        assert self.process is not None
        assert self.process.stdin is not None
        return self.process.stdin


class Soak:
    """One run."""

    def __init__(self, minutes: float, seed: int, folder: Path) -> None:
        self.seconds, self.seed, self.folder = minutes * 60, seed, folder
        self.path = folder / "faults"
        self.faults = Faults(self.path)
        make = lambda kind, name: kind(name, self.faults, random.Random(f"{seed} {name}"))  # noqa: E731
        self.launched: Launched = make(Launched, "A")
        self.limited: Launched = make(Launched, "B")
        self.managed: Managed = make(Managed, "C")
        self.served: Served = make(Served, "D")
        self.kernels: list[Kernel] = [self.launched, self.limited, self.managed, self.served]
        self.shared: list[Kernel] = [self.launched, self.limited]  # with other processes
        self.pairs: list[Pair] = []
        self.phases: list[dict[str, Any]] = []

    @property
    def actors(self) -> list[Any]:
        return [actor for kernel in self.kernels for actor in kernel.actors]

    @contextlib.asynccontextmanager
    async def pair(self, kernels: tuple[Kernel, Kernel]) -> AsyncIterator[Pair]:
        """Give a fleet of two kernels, opened."""
        name = "".join(kernel.name for kernel in kernels)
        actors = [kernel.actor(name, kernel.open_another) for kernel in kernels]
        for actor in actors:
            await actor.open()
        try:
            yield Pair(actors, random.Random(f"{self.seed} {name}"))
        finally:
            for actor in actors:
                await actor.close()

    async def run(self) -> None:
        await left.first_use()
        await left.no_processes()
        before = left.Held.now()
        begin = time.monotonic()
        async with contextlib.AsyncExitStack() as stack:
            for opening in (
                self.launched.running(),
                self.limited.running(LIMITED),
                self.managed.running(self.folder),
                self.served.running(),
            ):
                await stack.enter_async_context(opening)
            for actor in self.actors:
                actor.others = self.actors
            for kernels in (self.launched, self.managed), (self.limited, self.served):
                self.pairs.append(await stack.enter_async_context(self.pair(kernels)))
            stop = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                for name in CLIENTS:
                    group.create_task(Client(self, name).live(stop))
                for number in range(PHASES):
                    await self.phase(begin + self.seconds * (number + 1) / PHASES)
                stop.set()
        await left.nothing_more(before)
        held = left.Held.now()
        print(f"this MB: {before.resident >> 20} before, {held.resident >> 20} after", flush=True)
        await left.no_processes()
        await left.no_files(self.folder / "run")

    async def phase(self, end: float) -> None:
        """Let all actors work until the time is over; then check all names, and measure."""
        last_fault, stop = asyncio.Event(), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            harm = [group.create_task(kernel.harm(last_fault, PAUSE)) for kernel in self.kernels]
            for actor in (*self.actors, *self.pairs):
                group.create_task(actor.work(stop))
            await asyncio.sleep(max(5.0, end - time.monotonic()))
            last_fault.set()
            await asyncio.wait(harm)  # an actor restarts the kernel that it owns
            stop.set()
        checked = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for kernel in self.kernels:
                group.create_task(kernel.look_after(checked))
            async with asyncio.TaskGroup() as looks:
                for actor in (*self.actors, *self.pairs):
                    looks.create_task(check(actor))
            checked.set()
        self.measure()

    def measure(self) -> None:
        held = left.Held.now()
        figures = {
            "phase": len(self.phases) + 1,
            "steps": sum(actor.steps for actor in (*self.actors, *self.pairs)),
            "faults": sum(self.faults.counts().values()),
            "this MB": held.resident >> 20,  # it varies with what malloc keeps
            "blocks": sys.getallocatedblocks(),
            "descriptors": len(held.descriptors),
            "threads": len(held.threads),
            "tasks": len(held.tasks),
        }
        for kernel in self.kernels:
            with contextlib.suppress(OSError):
                figures[f"{kernel.name} MB"] = proc.resident(kernel.pid()) >> 20
        self.phases.append(figures)
        table(self.phases[-1:])


async def check(actor: Steps | Pair) -> None:
    """Check all names of an actor, and that its kernel keeps nothing else for it."""
    await actor.look()
    await actor.keeps_nothing()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=None, help="by default a random one")
    parser.add_argument(
        "--leaks",
        action="store_true",
        help="instead, make 20,900 operations without faults, and compare what is left",
    )
    parser.add_argument("--share", type=float, default=1.0, help="of the operations of --leaks")
    return parser.parse_args()


def prepare(folder: Path) -> None:
    """Give this run folders of its own, and mark its processes."""
    os.environ[left.MARK] = uuid.uuid4().hex
    for variable, part in (
        ("JUPYTER_RUNTIME_DIR", "run"),
        ("JUPYTER_DATA_DIR", "data"),
        ("JUPYTER_CONFIG_DIR", "config"),
        ("IPYTHONDIR", "ipython"),
        (left.STACKS, "stacks"),
    ):
        (folder / part).mkdir(mode=0o700)
        os.environ[variable] = str(folder / part)
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    install_limited(folder / "data")
    prepare_kernels(folder / "ipython")


def soaked(minutes: float, seed: int, folder: Path) -> int:
    """Run the soak; return the exit code."""
    print(f"seed {seed}, {minutes:g} minutes", flush=True)
    soak = Soak(minutes, seed, folder)
    try:
        asyncio.run(soak.run())
    except BaseException as error:
        failed(error, soak.faults, [*soak.actors, *soak.pairs])
        print(f"failed, seed {seed}, phase {len(soak.phases) + 1}", flush=True)
        return 1
    table(soak.phases)
    print(f"faults: {soak.faults.counts()}\nclean, seed {seed}", flush=True)
    return 0


def main() -> int:
    wanted = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="bh-", ignore_cleanup_errors=True) as name:
        prepare(Path(name))
        try:
            if wanted.leaks:
                asyncio.run(leaks.run(Path(name), wanted.share))
                return 0
            seed = wanted.seed if wanted.seed is not None else random.randrange(10**6)
            return soaked(wanted.minutes, seed, Path(name))
        finally:
            left.end_all()


if __name__ == "__main__":
    sys.exit(main())
