"""Test ``start``, ``stop``, ``restart`` and ``interrupt``.

Rule: ``start`` runs in a process of its own, which has ended when a test looks at the kernel. A
test holds each kernel by a descriptor of its process, and ends it by that, whatever else fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import select
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pyarrow.parquet as pq
import pytest

from bridgehead import Bridge, KernelRestarted, RemoteError, SyncBridge
from support.cli import PATIENCE, Ran, bridgehead, bridgehead_process, start_command
from support.listing import listed
from support.pages import README, SITE

linux = pytest.mark.skipif(sys.platform != "linux", reason="stop and restart need /proc")
SLEEPS = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(1000)"


class Held:
    """A process, by a descriptor: a later process with its pid is not meant."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._file = os.pidfd_open(pid)

    def has_ended(self, within: float = 0) -> bool:
        return bool(select.select([self._file], [], [], within)[0])

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._file, signal.SIGKILL)
        self.has_ended(PATIENCE)
        os.close(self._file)


@pytest.fixture
def hold() -> Iterator[Callable[[int], Held]]:
    """Give a function that holds a process, which is killed after the test if it still runs."""
    with contextlib.ExitStack() as stack:

        def hold(pid: int) -> Held:
            held = Held(pid)
            stack.callback(held.end)
            return held

        yield hold


@pytest.fixture
def runtime() -> Iterator[Path]:
    """Make an empty runtime folder."""
    with tempfile.TemporaryDirectory(prefix="bh-life-") as folder:
        yield Path(folder)


@pytest.fixture
def start(runtime: Path, hold: Callable[[int], Held]) -> Callable[..., tuple[str, Held]]:
    """Give a function that starts a kernel and returns its connection file and its process."""

    def start(*arguments: object, **how: Any) -> tuple[str, Held]:
        where = {"JUPYTER_RUNTIME_DIR": str(runtime)}
        found = bridgehead_process("start", "--json", *arguments, **where, **how).json
        return found["connection_file"], hold(found["pid"])

    return start


def restarted(ran: Ran) -> int:
    """Return the pid that ``restart`` printed."""
    assert ran.code == 0, ran.err
    return int(ran.out.rpartition(" pid ")[2])


@linux
def test_a_started_kernel_stays_until_it_is_stopped(
    start: Callable[..., tuple[str, Held]], runtime: Path
) -> None:
    file, process = start()
    assert bridgehead("run", "-c", "x = 41", "-e", file).code == 0
    assert bridgehead_process("pull", "x + 1", "-e", file).out == "42\n"
    (one,) = listed(runtime).values()
    assert (one["where"], one["pid"], one["state"]) == (file, process.pid, "idle")
    ran = bridgehead_process("stop", JUPYTER_RUNTIME_DIR=str(runtime))
    assert (ran.code, ran.out) == (0, f"stopped {Path(file).name}, pid {process.pid}\n")
    assert process.has_ended()
    assert list(runtime.iterdir()) == []


@linux
def test_start_prints_the_connection_file_and_nothing_else(
    runtime: Path, hold: Callable[[int], Held]
) -> None:
    ran = bridgehead_process("start", JUPYTER_RUNTIME_DIR=str(runtime))
    (one,) = listed(runtime).values()
    hold(one["pid"])
    assert (ran.code, ran.out, ran.err) == (0, f"{one['where']}\n", "")
    assert Path(one["where"]).parent == runtime
    assert bridgehead("stop", "-e", one["where"], JUPYTER_RUNTIME_DIR=str(runtime)).code == 0


ENDLESS = {"watch": "--count=1", "messages": "--timeout=0.5"}


@linux
@pytest.mark.parametrize(
    "page", [README, SITE / "guides/command_line.md"], ids=lambda one: one.name
)
def test_the_commands_of_a_page_run_in_their_order(
    page: Path, runtime: Path, hold: Callable[[int], Held], tmp_path: Path
) -> None:
    """In a folder with the files that they name, and with a kernel of that name to hand over to."""
    (tmp_path / "train.csv").write_text("days,mass\n1,3\n2,5\n")
    np.save(tmp_path / "w.npy", np.arange(3))
    code = "result = train.assign(mass=train.mass * w[1:])\nhistory = [1.5]"
    (tmp_path / "fit.py").write_text(code)
    report = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print(len(result))")])
    nbformat.write(report, tmp_path / "report.ipynb")
    (block,) = re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL)
    env = {"JUPYTER_RUNTIME_DIR": str(runtime)}
    printed = {}
    with SyncBridge.launch(connection_file=runtime / "kernel-other.json") as other:
        for line in block.splitlines():
            _, program, name, *rest = shlex.split(line, comments=True)
            assert program == "bridgehead"
            rest += [ENDLESS[name]] if name in ENDLESS else []
            ran = bridgehead_process(name, *rest, cwd=tmp_path, **env)
            assert ran.code in ((0, 124) if name == "messages" else (0,)), (line, ran.err)
            printed[name] = ran.out
            if name == "start":
                hold(listed(runtime)[Path(ran.out.strip()).stem]["pid"])
            if name == "handoff":
                assert other.pull("list(result['mass'])") == [3, 10]
    assert pq.read_table(tmp_path / "result.parquet").column("mass").to_pylist() == [3, 10]
    assert "kernel-other.json" in printed["ls"]
    assert "direct" in printed["doctor"]
    if "stop" in printed:
        assert "1.5" in printed["watch"]
        assert "train" in printed["names"]
        assert "2" in (tmp_path / "out.ipynb").read_text()
        assert printed["stop"].startswith("stopped ")
        assert bridgehead("pull", "1", "-e", printed["start"].strip(), **env).code == 3
    else:
        assert bridgehead_process("stop", **env).code == 0


@pytest.mark.slow
@linux
async def test_a_restart_keeps_the_connection_file_the_folder_and_the_clients(
    start: Callable[..., tuple[str, Held]],
    hold: Callable[[int], Held],
    runtime: Path,
    tmp_path: Path,
) -> None:
    folder, moved = tmp_path / "work", tmp_path / "moved"
    folder.mkdir()
    file, old = await asyncio.to_thread(start, "--cwd", folder)
    before = json.loads(Path(file).read_text())
    async with Bridge.attach(file) as bridge:
        await bridge.push(x=1)
        folder.rename(moved)
        ran = await asyncio.to_thread(bridgehead, "restart", "-e", file)
        assert f"the folder {folder}, in which it was started, does not exist" in ran.refused(4)
        assert await bridge.pull("x") == 1
        moved.rename(folder)
        ran = await asyncio.to_thread(bridgehead_process, "restart", "-e", file)
        new = hold(restarted(ran))
        assert old.has_ended()
        with pytest.raises(KernelRestarted):
            await bridge.exists("x")
        assert not await bridge.exists("x")
        assert ran.out == f"restarted {Path(file).name}, pid {bridge.info.pid}\n"
        assert bridge.info.cwd == str(folder)
    after = json.loads(Path(file).read_text())
    assert {**after, "jupyter_session": ""} == {**before, "jupyter_session": ""}
    assert bridgehead("stop", "-e", file).code == 0
    assert new.has_ended()
    assert list(runtime.iterdir()) == []


@linux
@pytest.mark.slow
async def test_an_encrypted_kernel_is_restarted_with_its_keys(
    start: Callable[..., tuple[str, Held]], hold: Callable[[int], Held]
) -> None:
    file, _ = await asyncio.to_thread(start, "--encryption")
    async with Bridge.attach(file) as bridge:
        new = hold(restarted(await asyncio.to_thread(bridgehead_process, "restart", "-e", file)))
        with pytest.raises(KernelRestarted):
            await bridge.pull("1")
        assert await bridge.pull("1") == 1
    assert bridgehead("stop", "-e", file).code == 0
    assert new.has_ended()


@pytest.mark.slow
@linux
@pytest.mark.parametrize("ended_by", ["timeout", "interrupt"])
def test_a_restart_whose_command_ends_early_leaves_a_kernel(
    start: Callable[..., tuple[str, Held]],
    hold: Callable[[int], Held],
    runtime: Path,
    ended_by: str,
) -> None:
    file, old = start()
    if ended_by == "timeout":
        # A process of its own: it leaves a kernel that is its child.
        ended = bridgehead_process("restart", "-e", file, "--timeout", 0.01)
        why = ended.refused(124)
        assert "longer than 0.01 s; the kernel may be starting" in why
    else:
        with start_command("restart", "-e", file) as running:
            assert old.has_ended(PATIENCE)
            running.send_signal(signal.SIGINT)
            _, err = running.communicate(timeout=PATIENCE)
        assert running.returncode == 130, err
    assert old.has_ended()
    until = time.monotonic() + PATIENCE
    while (one := listed(runtime)[Path(file).stem])["state"] != "idle":  # it is starting
        assert time.monotonic() < until, one
    new = hold(one["pid"])
    assert bridgehead("stop", "-e", file).out.endswith(f" pid {new.pid}\n")
    assert new.has_ended()
    assert list(runtime.iterdir()) == []


@pytest.mark.slow
@linux
async def test_a_kernel_that_runs_a_cell_is_stopped(
    start: Callable[..., tuple[str, Held]],
) -> None:
    file, process = await asyncio.to_thread(start)
    async with Bridge.attach(file) as bridge:
        messages = bridge.messages()
        cell = asyncio.ensure_future(bridge.run("print('begun')\nwhile True: pass"))
        while (await anext(messages)).type != "stream":
            pass
        assert (await asyncio.to_thread(bridgehead, "stop", "-e", file)).code == 0
        assert process.has_ended()
        assert isinstance(await asyncio.gather(cell, return_exceptions=True), list)


@linux
@pytest.mark.slow  # jupyter_client waits for five seconds before it kills
def test_a_stopped_process_is_killed(start: Callable[..., tuple[str, Held]]) -> None:
    file, process = start()
    os.kill(process.pid, signal.SIGSTOP)
    assert bridgehead("stop", "-e", file).code == 0
    assert process.has_ended()


@pytest.mark.slow
@linux
def test_several_started_kernels_are_not_confused(
    start: Callable[..., tuple[str, Held]], runtime: Path
) -> None:
    (one, first), (_, second) = start(), start()
    for command in ("stop", "restart"):
        why = bridgehead(command, JUPYTER_RUNTIME_DIR=str(runtime)).refused(3)
        assert "2 kernels of 'bridgehead start' are running" in why
        assert Path(one).name in why
    why = bridgehead("start", "--file", one, JUPYTER_RUNTIME_DIR=str(runtime)).refused(3)
    assert f"the kernel of the connection file {one} runs" in why
    assert not first.has_ended()
    assert not second.has_ended()
    assert bridgehead("stop", "-e", one).code == 0
    assert first.has_ended()
    assert bridgehead("stop", JUPYTER_RUNTIME_DIR=str(runtime)).code == 0
    assert second.has_ended()


@linux
async def test_a_kernel_of_another_program_is_neither_stopped_nor_restarted(
    kernel: Bridge, runtime: Path
) -> None:
    for command in ("stop", "restart"):
        ran = await asyncio.to_thread(bridgehead, command, "-e", kernel.info.connection_file)
        assert "only the program that started a kernel ends it" in ran.refused(4)
        ran = await asyncio.to_thread(bridgehead, command, JUPYTER_RUNTIME_DIR=str(runtime))
        where = f"is running with a connection file in {runtime}; choose one with another"
        choice = "file by --existing, one of a server by --url"
        assert f"no kernel of 'bridgehead start' {where} {choice}" in ran.refused(3)
    assert await kernel.pull("1") == 1


@linux
def test_a_record_of_an_earlier_process_is_not_believed(
    start: Callable[..., tuple[str, Held]],
) -> None:
    file, process = start()
    (record,) = Path(file).parent.glob("*-ipc-*/starter.json")
    facts = json.loads(record.read_text())
    facts["kernel"]["process"][3] -= 1  # the process with this pid began later
    record.write_text(json.dumps(facts))
    assert "no running kernel" in bridgehead("stop", "-e", file).refused(4)
    assert not process.has_ended()


@linux
async def test_a_kernel_that_a_cell_starts_does_not_end_with_its_own(
    start: Callable[..., tuple[str, Held]],
) -> None:
    inside = {"JPY_PARENT_PID": "1234567", "JPY_SESSION_NAME": "mine.ipynb"}
    file, _ = await asyncio.to_thread(start, **inside)
    async with Bridge.attach(file) as bridge:
        names = "[name for name in __import__('os').environ if name.startswith('JPY_')]"
        assert await bridge.pull(names) == []


@pytest.mark.slow
@linux
@pytest.mark.parametrize("ended_by", ["timeout", "interrupt"])
def test_a_kernel_that_does_not_answer_is_ended(
    ended_by: str,
    kernelspec: Callable[..., str],
    runtime: Path,
    tmp_path: Path,
    hold: Callable[[int], Held],
) -> None:
    note = tmp_path / "pid"
    note.touch()
    spec = kernelspec("sleeps", [sys.executable, "-c", SLEEPS, str(note)])
    timeout = PATIENCE if ended_by == "interrupt" else 1
    file = runtime / "kernel-none.json"
    with start_command("start", spec, "--file", file, "--timeout", timeout) as running:
        try:
            if ended_by == "interrupt":
                while not note.read_text():
                    assert running.poll() is None
                running.send_signal(signal.SIGINT)
            _, err = running.communicate(timeout=PATIENCE)
        finally:
            running.kill()
    assert running.returncode == (130 if ended_by == "interrupt" else 3), err
    with contextlib.suppress(ProcessLookupError, ValueError):  # it has ended, or never began
        assert hold(int(note.read_text())).has_ended()
    assert list(runtime.iterdir()) == []


# ---------------------------------------------------------------- interrupt


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["while True: pass", "import time\ntime.sleep(100)"])
async def test_the_cell_of_another_client_is_interrupted(kernel: Bridge, cell: str) -> None:
    messages = kernel.messages()
    running = asyncio.ensure_future(kernel.run(f"print('begun')\n{cell}"))
    while (await anext(messages)).type != "stream":
        pass
    ran = await asyncio.to_thread(
        bridgehead_process, "interrupt", "-e", kernel.info.connection_file
    )
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    with pytest.raises(RemoteError, match="KeyboardInterrupt"):
        await running


async def test_a_cell_that_awaits_is_interrupted_at_once(kernel: Bridge) -> None:
    messages = kernel.messages()
    code = "import asyncio\nprint('begun')\nawait asyncio.sleep(1000)"
    running = asyncio.ensure_future(kernel.run(code))
    while (await anext(messages)).type != "stream":
        pass
    file = kernel.info.connection_file
    assert (await asyncio.to_thread(bridgehead, "interrupt", "-e", file)).code == 0
    with pytest.raises(RemoteError, match="CancelledError"):
        await running


def test_without_a_kernel_there_is_nothing_to_interrupt(runtime: Path) -> None:
    why = bridgehead("interrupt", JUPYTER_RUNTIME_DIR=str(runtime)).refused(3)
    assert "start one with 'bridgehead start'" in why
