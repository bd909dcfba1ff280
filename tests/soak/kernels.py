"""The kernels of the soak, what their actors are, and the faults that each can suffer.

Rule: a kernel is started, harmed and ended here, through its own handle. Each fault is noted in
``Faults`` before it begins and after it has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from jupyter_client.asynchronous.client import AsyncKernelClient

from bridgehead import Bridge
from bridgehead._protocol.bootstrap import FILENAME as REMOTE
from bridgehead._transports.tasks import waited
from support.cuts import Cuts, managed
from support.kit import other
from support.servers import TOKEN, Other, Wire, processes, serving
from tests.soak import left
from tests.soak.cells import LONGEST_CELL
from tests.soak.left import MARK, STACKS
from tests.soak.model import Faults, Wrong
from tests.soak.steps import Steps

LIMITED = "limited"  # the kernelspec of a kernel that may open few descriptors
DESCRIPTORS = 256
LIMIT = f"""
import resource, runpy
resource.setrlimit(resource.RLIMIT_NOFILE, ({DESCRIPTORS}, {DESCRIPTORS}))
runpy.run_module("ipykernel_launcher", run_name="__main__", alter_sys=True)
"""
CONFIG = f"""
import faulthandler, os, signal
import numpy, pandas
file = open(os.path.join(os.environ[{STACKS!r}], str(os.getpid())), "w")
faulthandler.register(signal.SIGUSR1, file, all_threads=True)
"""
Fault = Callable[[], Awaitable[None]]


def install_limited(data: Path) -> None:
    """Write the kernelspec of the limited kernel into a data folder of Jupyter."""
    folder = data / "kernels" / LIMITED
    folder.mkdir(parents=True)
    argv = [sys.executable, "-c", LIMIT, "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": LIMITED, "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec))


def prepare_kernels(ipython: Path) -> None:
    """Have every kernel import numpy and pandas before it answers, and dump stacks on a signal.

    An interrupt in the middle of ``import numpy`` leaves a numpy that cannot be imported again.
    """
    folder = ipython / "profile_default"
    folder.mkdir()
    (folder / "ipython_kernel_config.py").write_text(CONFIG)


class Kernel:
    """One kernel: its actors in this process, and its faults."""

    def __init__(self, name: str, faults: Faults, chance: random.Random) -> None:
        self.name, self.faults, self.chance = name, faults, chance
        self.actors: list[Steps] = []
        self.connection_file = ""
        self.open_another: Callable[[], Any]  # opens a bridge as another program would
        self._checked = time.monotonic()

    def add(self, opening: Callable[[], Any], *, owns: bool = False) -> Steps:
        actor = self.actor(f"{self.name}{len(self.actors)}", opening, owns=owns)
        self.actors.append(actor)
        return actor

    def actor(self, name: str, opening: Callable[[], Any], *, owns: bool = False) -> Steps:
        """Return an actor of this kernel that is not open yet."""
        chance = random.Random(f"{self.chance.random()} {name}")
        served = isinstance(self, Served)
        return Steps(name, self.name, self.faults, chance, opening, owns=owns, served=served)

    def pid(self) -> int:
        """Return the kernel's process now, or 0."""
        raise NotImplementedError

    @property
    def menu(self) -> list[tuple[float, Fault]]:
        """The faults with their weights."""
        return [
            (4, self.stop),
            (1, self.long_stop),
            (3, self.interrupt),
            (3, self.failing_cell),
            (2, self.flood),
            (2, self.kill),
        ]

    async def harm(self, stop: asyncio.Event, pause: float) -> None:
        """Make one fault after the other until the event is set."""
        while not stop.is_set():
            await self.survives()
            weights, faults = zip(*self.menu, strict=True)
            fault = self.chance.choices(faults, weights)[0]
            wait = self.chance.uniform(0.2, 2) * pause
            async with waited(wait):
                await stop.wait()
                return
            await fault()

    async def look_after(self, stop: asyncio.Event) -> None:
        """Kill the kernel if an interrupt of an actor's breaks it, until the event is set."""
        while not stop.is_set():
            await self.survives()
            async with waited(1):
                await stop.wait()

    # ------------------------------------------------------------ faults

    def signal(self, number: int) -> bool:
        """Send a signal to the kernel; return whether there is one."""
        pid = self.pid()
        try:
            if pid and psutil.Process(pid).environ().get(MARK) == os.environ[MARK]:
                os.kill(pid, number)
                return True
        except (psutil.Error, ProcessLookupError):
            pass
        return False

    async def stop(self, longest: float = 1.5) -> None:
        pid = self.pid()
        with self.faults.making(self.name, "stop"):
            if self.signal(signal.SIGSTOP):
                try:
                    await asyncio.sleep(self.chance.uniform(0.05, longest))
                finally:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGCONT)

    async def long_stop(self) -> None:
        await self.stop(9)

    async def interrupt(self) -> None:
        """Send SIGINT at any instant."""
        with self.faults.making(self.name, "interrupt"):
            for _ in range(self.chance.choice((1, 1, 5))):
                self.signal(signal.SIGINT)
                await asyncio.sleep(self.chance.uniform(0, 0.02))

    async def survives(self) -> None:
        """Kill a kernel that an interrupt has left without a reply to any client.

        An interrupt that hits ipykernel 7.4 outside a cell may end it with exit code 0, or divide
        the message that it sends, so that no later message of it is valid. Without bridgehead, a
        kernel that ran short cells survived 69 to 282 interrupts (measured).
        """
        pid = self.pid()
        if not pid:
            with self.faults.making(self.name, "kill"):
                await self.revived()
        since, self._checked = self._checked, time.monotonic()
        if not self.faults.happened(self.name, {"interrupt": 5}, since) or await self.replies():
            return
        stacks = left.stacks(pid)
        print(f"{self.name} replies to no client after an interrupt; it is killed\n{stacks}")
        main_thread = stacks.partition("Current thread")[2].partition("\n\n")[0]
        if REMOTE in main_thread:
            raise Wrong(f"{self.name} hangs in the remote part")
        await self.kill()

    async def replies(self) -> bool:
        """Return whether the kernel replies to a plain client, or has ended.

        A cell of a client that was killed takes a part of the time.
        """
        file = connection_file(self.pid())
        if not file:
            return True
        async with other_client(file) as client:
            request = client.kernel_info()
            for _ in range(round(2 * LONGEST_CELL)):
                # ``ValueError``: a message that is none.
                with contextlib.suppress(queue.Empty, ValueError):
                    reply = await client.get_shell_msg(timeout=1)
                    if reply["parent_header"].get("msg_id") == request:
                        return True
                if connection_file(self.pid()) != file:
                    return True
        return False

    async def kill(self) -> None:
        with self.faults.making(self.name, "kill"):
            if self.signal(signal.SIGKILL):
                await self.revived()

    async def revived(self) -> None:
        """Wait until there is another process, after a kill."""
        raise NotImplementedError

    async def failing_cell(self) -> None:
        """Run a cell of another client that fails, and so aborts what is queued behind it."""
        with self.faults.making(self.name, "failing cell"):
            await self._cells("import time; time.sleep(0.1); 1/0", stop_on_error=True)

    async def flood(self) -> None:
        """Run a cell of another client that prints much."""
        with self.faults.making(self.name, "flood"):
            await self._cells("for i in range(20000): print(i)")

    async def _cells(self, code: str, **options: Any) -> None:
        file = connection_file(self.pid())
        if not file:
            return
        # The kernel may die meanwhile, so no reply is waited for.
        async with other_client(file) as client:
            client.execute(code, **options)
            await asyncio.sleep(1)


def connection_file(pid: int) -> str:
    """Return the connection file of a kernel's process; empty if it has ended."""
    with contextlib.suppress(psutil.Error, StopIteration):
        words = psutil.Process(pid).cmdline() if pid else []
        return next(word for word in words if word.endswith(".json"))
    return ""


@asynccontextmanager
async def other_client(connection_file: str) -> AsyncIterator[Any]:
    """Give a plain client that waits for nothing."""
    client = AsyncKernelClient()
    client.load_connection_file(connection_file)
    client.start_channels(shell=True, iopub=False, stdin=False, hb=False, control=False)
    try:
        yield client
    finally:
        client.stop_channels()
        client.context.destroy(linger=0)


class Launched(Kernel):
    """A kernel of a bridge, with other bridges beside it, on all lanes."""

    @asynccontextmanager
    async def running(self, kernel_name: str = "python3") -> AsyncIterator[Launched]:
        owner = self.owner = self.add(lambda: Bridge.launch(kernel_name), owns=True)
        await owner.open()
        self.connection_file = str(owner.bridge.info.connection_file)
        self.open_another = lambda: Bridge.attach(self.connection_file)
        for lane in ("direct", "buffers", "inline"):
            self.add(lambda lane=lane: Bridge.attach(self.connection_file, lane=lane))
        for actor in self.actors[1:]:
            await actor.open()
        try:
            yield self
        finally:
            await close(self.actors)

    def pid(self) -> int:
        return self.owner.bridge.info.pid if self.owner.bridge.state not in ("dead",) else 0

    async def revived(self) -> None:
        killed = self.owner.bridge.info.pid
        async with asyncio.timeout(150):
            while self.owner.bridge.info.pid == killed:  # its owner restarts it
                await asyncio.sleep(0.05)


class Cuttable(Kernel):
    """A kernel behind a ``proxy`` whose connections can be cut."""

    proxy: Cuts | Wire

    async def cut(self) -> None:
        with self.faults.making(self.name, "cut"):
            self.proxy.cut()

    async def down(self) -> None:
        with self.faults.making(self.name, "cut"):
            self.proxy.is_down = True
            self.proxy.cut()
            await asyncio.sleep(self.chance.uniform(0, 4))
            self.proxy.is_down = False


class Managed(Cuttable):
    """A kernel on TCP whose manager is outside."""

    @asynccontextmanager
    async def running(self, folder: Path) -> AsyncIterator[Managed]:
        async with managed() as manager, Cuts(manager, folder) as cuts:
            self.manager, self.proxy = manager, cuts
            self.connection_file = manager.connection_file
            self.open_another = lambda: Bridge.attach(cuts.connection_file)
            self.add(lambda: Bridge.over(manager))
            for lane in ("auto", "buffers", "inline"):
                self.add(lambda lane=lane: Bridge.attach(cuts.connection_file, lane=lane))
            for actor in self.actors:
                await actor.open()
            try:
                yield self
            finally:
                await close(self.actors)

    def pid(self) -> int:
        process = self.manager.provisioner and self.manager.provisioner.process
        return process.pid if process and process.poll() is None else 0

    @property
    def menu(self) -> list[tuple[float, Fault]]:
        return [*super().menu, (8, self.cut), (3, self.down), (1, self.restart)]

    async def restart(self) -> None:
        with self.faults.making(self.name, "restart"):
            await self.manager.restart_kernel(now=self.chance.random() < 0.7)
            await self._answers()

    async def revived(self) -> None:
        await self.manager.restart_kernel(now=True)
        await self._answers()

    async def _answers(self) -> None:
        # It answers behind the cells of all bridges, which are there first.
        async with other(self.connection_file, seconds=300):
            pass


class Served(Cuttable):
    """A kernel of a Jupyter server."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Served]:
        async with serving() as url, Wire(url) as wire, Other(url) as client:
            self.wire = self.proxy = wire
            self.client = client
            first = self.add(lambda: Bridge.connect(wire.url, TOKEN), owns=True)
            await first.open()
            self.id = str(first.bridge.info.kernel_id)
            connect = lambda **how: Bridge.connect(wire.url, TOKEN, kernel_id=self.id, **how)  # noqa: E731
            self.open_another = lambda: connect(trust="pickle")
            self.add(lambda: connect(lane="inline"))
            self.add(self.open_another)
            for actor in self.actors[1:]:
                await actor.open()
            try:
                yield self
            finally:
                wire.is_down = False
                await close(self.actors)

    def pid(self) -> int:
        return next(iter(processes(self.id)), 0)

    @property
    def menu(self) -> list[tuple[float, Fault]]:
        return [
            *super().menu,
            (8, self.cut),
            (3, self.down),
            (4, self.cut_later),
            (1, self.restart),
        ]

    async def cut_later(self) -> None:
        """Cut the connection in the middle of what crosses next."""
        with self.faults.making(self.name, "cut"):
            self.wire.cut_after(self.chance.randrange(1, 3_000_000))
            await asyncio.sleep(self.chance.uniform(0, 3))

    async def restart(self) -> None:
        """Restart it; try again where the server gives up waiting for the new process."""
        with self.faults.making(self.name, "restart"):
            for last in (False, False, True):
                try:
                    await self.client.restart(self.id)
                    return
                except (httpx.HTTPStatusError, httpx.TimeoutException) as error:
                    print(f"the server did not restart {self.name}: {error!r}", flush=True)
                    refused = isinstance(error, httpx.HTTPStatusError)
                    if last or (refused and error.response.status_code != 500):
                        raise

    async def kill(self) -> None:
        await super().kill()
        await asyncio.sleep(15)  # the server gives a kernel up that dies five times in a row

    async def revived(self) -> None:
        killed = self.pid()
        async with asyncio.timeout(150):
            while self.pid() in (0, killed):  # the server restarts it
                await asyncio.sleep(0.2)


async def close(actors: list[Steps]) -> None:
    """Close the bridges, those that own their kernel last."""
    for actor in sorted(actors, key=lambda one: one.owns):
        await actor.close()
