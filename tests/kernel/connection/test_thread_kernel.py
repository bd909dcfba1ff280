"""Row J5 of the catalogue of faults: a kernel that runs in a thread of an application.

Rule: the application is a real one, in a process of its own. Its main thread counts, and ends at
the first SIGINT. The other client is one without bridgehead.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from bridgehead import Bridge, NotSupported
from support.elsewhere import MAJORS, Elsewhere
from support.kit import all_of, goes_on, other, reported_within, until
from support.resources import nothing_is_kept
from support.work import WORK

APPLICATION = """
import _thread, asyncio, sys, threading, time
from ipykernel.embed import embed_kernel
from ipykernel.kernelapp import IPKernelApp
kind, file = sys.argv[1:]
sys.turns = 0

def application():
    asyncio.set_event_loop(asyncio.new_event_loop())
    app = IPKernelApp.instance()
    app.init_signal = lambda: None
    app.initialize(["-f", file])
    app.start()

def embedded():
    asyncio.set_event_loop(asyncio.new_event_loop())
    embed_kernel(connection_file=file)

if kind == "embedded":
    threading.Thread(target=embedded, daemon=True).start()
elif kind == "raw":  # the threading module does not know this thread
    _thread.start_new_thread(application, ())
else:
    threading.Thread(target=application, daemon=True).start()
while True:
    sys.turns += 1
    time.sleep(0.01)
"""
# A cell that shows what happened in its middle. The first file says that it runs; it ends when the
# second file exists.
CELL = """
import os, time
x, y = "begin", "begin"
open({0!r}, "w").close()
while not os.path.exists({1!r}): time.sleep(0.01)
seen = x, y
x = "end"
"""
KINDS = ["application", "embedded", "raw"]


class Application:
    """A process whose kernel runs in a thread."""

    def __init__(self, process: subprocess.Popen[bytes], file: Path) -> None:
        self.process, self.file = process, str(file)

    @property
    def lives(self) -> bool:
        return self.process.poll() is None


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Application]]]:
    """Give a function that starts an application and waits for its connection file."""
    started = []

    async def start_application(kind: str, python: str = sys.executable) -> Application:
        file = tmp_path / "kernel.json"
        command = [python, "-c", APPLICATION, kind, str(file)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        started.append(process)
        await until(lambda: file.exists() and file.read_text().endswith("}"), 60)
        file.chmod(0o600)
        return Application(process, file)

    yield start_application
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def python(kernel_name: str, request: pytest.FixtureRequest) -> str:
    """Give the interpreter of the kernel ``kernel_name``."""
    if kernel_name == "python3":
        return sys.executable
    built: Elsewhere = request.getfixturevalue("elsewhere")
    return built.python(kernel_name)


def waits_in_kernel(bridge: Bridge) -> bool:
    return bridge._transport.dispatcher.queued


OPERATIONS: dict[str, Callable[[Bridge], Awaitable[Any]]] = {
    "push": lambda bridge: bridge.push(x="pushed"),
    "large push": lambda bridge: bridge.push(x="pushed", large=bytes(1_000_000)),
    "batch": lambda bridge: asyncio.gather(*(bridge.push(x="pushed") for _ in range(5))),
    "delete": lambda bridge: bridge.delete("x"),
    "pull": lambda bridge: bridge.pull("x"),
    "exists": lambda bridge: bridge.exists("seen"),
}


async def waits_for_the_cell(app: Application, bridge: Bridge, name: str, folder: Path) -> None:
    """Do an operation in the middle of another client's cell; check that it takes effect after."""
    begun, gate = folder / f"begun {name}", folder / f"gate {name}"
    async with other(app.file) as client:
        cell = client.submit(CELL.format(str(begun), str(gate)))
        await until(begun.exists)
        operation = asyncio.ensure_future(OPERATIONS[name](bridge))
        await until(lambda: operation.done() or waits_in_kernel(bridge))
        assert not operation.done()
        gate.touch()
        async with reported_within(1):
            outcome = await operation
            assert (await client.answer(cell))["status"] == "ok"
    assert await bridge.pull("seen") == ("begin", "begin")
    assert outcome == {"pull": "end", "exists": True}.get(name, outcome)
    assert await bridge.exists("x") == (name != "delete")
    if name != "delete":
        assert await bridge.pull("x") == ("end" if name in ("pull", "exists") else "pushed")


@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_an_operation_waits_for_a_cell_in_a_thread_of_an_application(
    start: Callable[..., Awaitable[Application]], python: str, tmp_path: Path
) -> None:
    """J5. Each operation takes effect behind the other client's cell, and none in its middle."""
    app = await start("application", python)
    async with Bridge.attach(app.file, timeout=60) as bridge:
        assert bridge.info.lane == "direct"
        for name in OPERATIONS:
            await waits_for_the_cell(app, bridge, name, tmp_path)
            await bridge.delete(*[entry.name for entry in await bridge.names()])
        await goes_on(bridge)
        assert app.lives


@pytest.mark.parametrize("lane", ["direct", "buffers"])
async def test_each_name_of_work_works_in_a_thread_of_an_application(
    start: Callable[..., Awaitable[Application]], lane: Any
) -> None:
    app = await start("application")
    async with Bridge.attach(app.file, timeout=60, lane=lane) as bridge:
        for name, work in WORK.items():
            lacks = name == "on_timeout"  # an interrupt would hit the application
            with pytest.raises(NotSupported, match=name) if lacks else contextlib.nullcontext():
                await work(bridge)
            assert await bridge.pull("1") == 1
        await nothing_is_kept(bridge)
        assert app.lives


@pytest.mark.parametrize("kind", KINDS[1:])
async def test_an_operation_waits_for_a_cell_in_any_kind_of_thread(
    start: Callable[..., Awaitable[Application]], kind: str, tmp_path: Path
) -> None:
    """J5. The kernel is embedded, or its thread is not one of the threading module."""
    app = await start(kind)
    async with Bridge.attach(app.file, timeout=60) as bridge:
        await waits_for_the_cell(app, bridge, "push", tmp_path)
        await goes_on(bridge)


@pytest.mark.parametrize("lane", ["direct", "buffers"])
@pytest.mark.parametrize("kind", KINDS)
async def test_an_interrupt_that_would_hit_the_application_is_refused(
    start: Callable[..., Awaitable[Application]], kind: str, lane: Any
) -> None:
    """J5. No signal is sent; the application and the cell go on; a variable ends the cell."""
    app = await start(kind)
    async with Bridge.attach(app.file, lane=lane, timeout=60) as bridge:
        await bridge.push(stop=False)
        begun = asyncio.Event()
        code = "import time\nprint('begun')\nwhile not stop: time.sleep(0.01)"
        cell = asyncio.ensure_future(bridge.run(code, on_output=lambda message: begun.set()))
        await begun.wait()
        for _ in range(3):
            async with reported_within(0.1):
                with pytest.raises(NotSupported, match=f"a thread of process {app.process.pid}"):
                    await bridge.interrupt()
        assert not cell.done()
        assert app.lives
        async with reported_within(1):
            await bridge.push(stop=True, now=True)
            (result,) = await all_of(cell)
        assert result.stdout == "begun\n"
        turns = await bridge.pull("__import__('sys').turns")
        async with reported_within(1):
            while await bridge.pull("__import__('sys').turns") == turns:
                await asyncio.sleep(0.01)
        assert app.lives
        await goes_on(bridge)
