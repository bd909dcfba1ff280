"""Test ``ls`` and ``doctor``.

Rule: kernels in a runtime folder of this file, and the files of dead ones. A kernel's counter and
messages show that the commands do not disturb it.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from jupyter_client.manager import AsyncKernelManager

from bridgehead import Bridge, RemoteError, SyncBridge, kernels
from support.cli import PATIENCE, Terminal, bridgehead, bridgehead_process, start_command
from support.kit import stopped
from support.listing import completed, doctor, listed


@pytest.fixture
def runtime() -> Iterator[Path]:
    """Make an empty runtime folder."""
    with tempfile.TemporaryDirectory(prefix="bh-ls-") as folder:
        yield Path(folder)


@pytest.fixture
async def alone(runtime: Path) -> AsyncIterator[Bridge]:
    """Launch a kernel with its connection file in that folder."""
    async with Bridge.launch(connection_file=runtime / "kernel-alone.json") as bridge:
        yield bridge


async def test_ls_shows_idle_and_busy_kernels(runtime: Path, alone: Bridge) -> None:
    found = (await asyncio.to_thread(listed, runtime))["kernel-alone"]
    assert (found["state"], found["pid"]) == ("idle", alone.info.pid)
    assert found["kernel"].startswith("ipython ")
    assert 10e6 < found["memory"] < 10e9
    cell = asyncio.ensure_future(alone.run("import time\nwhile True: time.sleep(.01)"))
    while alone.state != "busy":
        await asyncio.sleep(0.01)
    assert (await asyncio.to_thread(listed, runtime))["kernel-alone"]["state"] == "busy"
    await alone.interrupt()
    with pytest.raises(RemoteError, match="KeyboardInterrupt"):
        await cell


async def test_kernels_gives_what_ls_shows(
    runtime: Path, alone: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(runtime))
    (runtime / "kernel-odd.json").write_text("{}")
    server = {"pid": os.getpid(), "url": "http://127.0.0.1:1/", "token": "t"}
    (runtime / "jpserver-1.json").write_text(json.dumps(server))
    shown = (await asyncio.to_thread(listed, runtime)).values()
    names = ("where", "state", "kernel", "pid", "purpose", "server", "why")
    for found in await kernels(), await asyncio.to_thread(SyncBridge.kernels):
        assert [[getattr(one, name) for name in names] for one in found] == [
            [one[name] for name in names] for one in shown
        ]
        assert [one.state for one in found] == ["idle", "unknown", "unknown"]


async def test_ls_executes_nothing_in_a_kernel(runtime: Path, alone: Bridge) -> None:
    count = (await alone.run("1")).execution_count
    names = "sorted(globals())"
    before = await alone.pull(names)
    messages = alone.messages()
    await asyncio.to_thread(listed, runtime)
    assert (await alone.run("2")).execution_count == count + 1
    assert set(await alone.pull(names)) - set(before) <= {"_2", "_i2", "_", "__", "_i3", "_3"}
    kinds = {(await anext(messages)).parent_type for _ in range(len(messages))}
    assert kinds <= {"kernel_info_request", "usage_request", "execute_request"}


@pytest.mark.slow
async def test_dead_and_silent_kernels_and_broken_files_do_not_delay_ls(
    runtime: Path, alone: Bridge
) -> None:
    info = json.loads(Path(str(alone.info.connection_file)).read_text())
    names = ("shell_port", "control_port", "iopub_port", "stdin_port", "hb_port")
    with socket.socket() as silent:  # listens, and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for name, port in (("silent", silent.getsockname()[1]), ("dead", 1)):
            tcp = {**info, "transport": "tcp", "ip": "127.0.0.1", **dict.fromkeys(names, port)}
            (runtime / f"kernel-{name}.json").write_text(json.dumps(tcp))
        ended = {**info, "ip": str(runtime / "nowhere")}
        (runtime / "kernel-ended.json").write_text(json.dumps(ended))
        (runtime / "kernel-empty.json").write_text("")
        (runtime / "kernel-odd.json").write_text("[1]")
        (runtime / "kernel-port.json").write_text(json.dumps({**tcp, "control_port": 70000}))
        (runtime / "kernel-deep.json").write_text("[" * 100_000)
        (runtime / "kernel-scheme.json").write_text(json.dumps({**info, "signature_scheme": 7}))
        (runtime / "kernel-folder.json").mkdir()
        os.mkfifo(runtime / "kernel-pipe.json")
        found = await asyncio.to_thread(listed, runtime)
    states = {name.partition("-")[2]: one["state"] for name, one in found.items()}
    assert states == {
        "alone": "idle",
        "silent": "silent",
        "dead": "dead",
        "ended": "dead",
        **dict.fromkeys(("empty", "odd", "port", "deep", "scheme", "folder", "pipe"), "unknown"),
    }
    why = {name.partition("-")[2]: one["why"] for name, one in found.items()}
    for name in ("empty", "odd", "port", "deep", "pipe"):
        assert why[name].startswith("not a connection file: ")
    assert why["folder"].startswith("the file cannot be read: ")
    assert why["scheme"].startswith("asking it failed: ")
    assert next(iter(found)) == "kernel-alone"


@pytest.mark.timings(listed_answer=0.5)
async def test_a_stopped_kernel_is_silent(runtime: Path, alone: Bridge) -> None:
    with stopped(alone):
        assert (await asyncio.to_thread(listed, runtime))["kernel-alone"]["state"] == "silent"


def test_no_kernels_is_no_error(runtime: Path) -> None:
    ran = bridgehead_process("ls", JUPYTER_RUNTIME_DIR=str(runtime))
    assert (ran.code, ran.out, ran.err) == (0, "", "no kernels; bridgehead start starts one\n")


async def test_ls_on_a_small_terminal(runtime: Path, alone: Bridge) -> None:
    with Terminal("ls", JUPYTER_RUNTIME_DIR=str(runtime)) as terminal:
        assert await asyncio.to_thread(terminal.end) == 0
    assert "idle" in terminal.text
    assert " MB " in terminal.text
    assert "kernel-alone.json" in terminal.text


@pytest.mark.skipif(sys.platform != "linux", reason="a local kernel is restarted with /proc")
async def test_ls_shows_the_notebook_and_when_a_client_connected(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a client does after that is not known, as the help says."""
    monkeypatch.setenv("JPY_SESSION_NAME", "/books/train.ipynb")
    file = runtime / "kernel-book.json"

    async def row() -> list[str]:
        ran = await asyncio.to_thread(bridgehead, "ls", JUPYTER_RUNTIME_DIR=str(runtime))
        head, _, one = (re.split(r"\s{2,}", line.strip()) for line in ran.out.splitlines())
        assert head == ["state", "kernel", "pid", "memory", "used", "for", "where"]
        return one

    async with Bridge.launch(connection_file=file) as bridge:
        monkeypatch.delenv("JPY_SESSION_NAME")
        *_, used, book, where = await row()
        assert re.fullmatch(r"\d+ (s|min)", used)
        assert (book, where) == ("/books/train.ipynb", file.name)
        long_ago = time.time() - 3 * 3600
        os.utime(file, (long_ago, long_ago))
        await bridge.pull("1")
        assert (await row())[4] == "3 h"
        begun = time.time()
        async with Bridge.attach(file):
            found = (await asyncio.to_thread(listed, runtime))["kernel-book"]
        assert begun - 1 <= found["used"] <= time.time()


URL = ("--url", "http://127.0.0.1:1")
COMMANDS: dict[str, tuple[str, ...]] = {
    "handoff": ("x", "--to", "other"),
    "interrupt": (),
    "messages": (),
    "names": (),
    "pull": ("1",),
    "push": ("x=x.json",),
    "run": ("-c", "1"),
    "watch": ("1",),
}


REFUSED = {"ended": "no kernel listens", "port": "no kernel listens", "url": "no server answers"}


@pytest.mark.timings(listen_within=0.1)  # no other owner starts these kernels again
@pytest.mark.parametrize("way", REFUSED)
@pytest.mark.parametrize("command", COMMANDS)
async def test_a_refused_connection_is_code_3_and_one_line(
    command: str, way: str, tmp_path: Path, gone: dict[str, Path]
) -> None:
    """The kernel has ended, or nothing listens at the ports of its file, or at the server's."""
    (tmp_path / "x.json").write_text("1")
    arguments = [str(gone["port"]) if one == "other" else one for one in COMMANDS[command]]
    where = URL if way == "url" else ("-e", gone[way])
    ran = await asyncio.to_thread(bridgehead, command, *arguments, *where, cwd=tmp_path)
    assert REFUSED[way] in ran.refused(3)
    assert ran.err.count("\n") == 1, ran.err
    assert ran.out == ""


@pytest.mark.timings(listen_within=0.1)
@pytest.mark.parametrize("way", REFUSED)
async def test_doctor_reports_a_refused_connection(way: str, gone: dict[str, Path]) -> None:
    where = URL if way == "url" else ("-e", str(gone[way]))
    ran, report = await asyncio.to_thread(doctor, *where)
    assert (ran.code, ran.err) == (3, "")
    (lacking,) = [one["what"] for one in report["findings"] if one["kind"] == "lacking"]
    assert REFUSED[way] in lacking


@pytest.fixture(scope="module")
async def gone() -> AsyncIterator[dict[str, Path]]:
    """Give the connection files of kernels that do not run: on Unix sockets, and on ports."""
    with tempfile.TemporaryDirectory(prefix="bh-gone-") as folder:
        ended, port = Path(folder) / "kernel-ended.json", Path(folder) / "kernel-port.json"
        async with Bridge.launch(connection_file=ended):
            text = ended.read_text()
        ports = dict.fromkeys(
            ("shell_port", "control_port", "iopub_port", "stdin_port", "hb_port"), 1
        )
        tcp = {**json.loads(text), "transport": "tcp", "ip": "127.0.0.1", **ports}
        for file, content in ((ended, text), (port, json.dumps(tcp))):
            file.write_text(content)
            file.chmod(0o600)
        yield {"ended": ended, "port": port}


@pytest.mark.parametrize("command", ["ls", "start", "stop", "restart"])
def test_a_server_that_does_not_run_is_reported(command: str) -> None:
    url = URL[1] if command in ("ls", "start") else f"{URL[1]}/api/kernels/{'0' * 32}"
    ran = bridgehead(command, "--url", url)
    assert "no server answers" in ran.refused(3)
    assert ran.err.count("\n") == 1


def test_each_server_that_does_not_answer_has_a_line(runtime: Path) -> None:
    with socket.socket() as first, socket.socket() as second:
        for one in (first, second):
            one.bind(("127.0.0.1", 0))  # bound, but not listening
            url = f"http://127.0.0.1:{one.getsockname()[1]}/"
            info = {"pid": os.getpid(), "url": url, "token": "t"}
            (runtime / f"jpserver-{one.fileno()}.json").write_text(json.dumps(info))
        ran = bridgehead("ls", "--json", JUPYTER_RUNTIME_DIR=str(runtime))
        wanted = {f"http://127.0.0.1:{one.getsockname()[1]}/" for one in (first, second)}
    assert {one["where"] for one in ran.json} == wanted
    assert {one["state"] for one in ran.json} == {"unknown"}


def test_other_system_errors_are_reported_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUPYTER_TOKEN", raising=False)
    file = str(tmp_path / "missing")
    ran = bridgehead("ls", "--url", "http://127.0.0.1:1", JUPYTER_TOKEN_FILE=file)
    assert ran.refused(1) == f"bridgehead: {file}: No such file or directory"


@pytest.mark.parametrize("arguments", [["--help"], ["ls", "--help"]])
def test_help_without_a_reader_ends_quietly(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    running = start_command(*arguments, stdout=writing)
    os.close(writing)
    _, err = running.communicate(timeout=PATIENCE)
    assert (running.returncode, err) == (141, b"")


def test_an_interrupt_while_the_command_line_is_imported_is_quiet() -> None:
    code = (
        "import sys; from bridgehead._tools.cli import main\n"
        "class Pressed:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'rich': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Pressed()); main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


# ---------------------------------------------------------------- completion


async def test_completion_offers_only_valid_names(alone: Bridge) -> None:
    await alone.run(
        "odd = type('\x1b[2J\\nplain', (), {})\n"
        "globals().update({'alpha': odd(), 'alpha;ls': 1, 'alpha\\nplain,ls': 2, 'alpha $(ls)': 3})"
    )
    file = str(alone.info.connection_file)
    lines = await asyncio.to_thread(completed, "zsh", "pull", "-e", file, "alph")
    assert lines == ["plain", "alpha", "�[2J plain"]
    lines = await asyncio.to_thread(completed, "fish", "pull", "-e", file, "alph")
    assert lines == ["plain,alpha\t�[2J plain"]


# ---------------------------------------------------------------- doctor


async def test_doctor_finds_no_problem_in_a_healthy_kernel(alone: Bridge) -> None:
    file = alone.info.connection_file
    ran, report = await asyncio.to_thread(doctor, "-e", file)
    assert (ran.code, ran.err) == (0, "")
    assert report["info"]["pid"] == alone.info.pid
    assert report["info"]["why_trust"] == alone.info.why_trust
    assert [one for one in report["findings"] if one["kind"] != "note"] == []
    shown = await asyncio.to_thread(bridgehead_process, "doctor", "-e", file)
    assert f"pid {alone.info.pid}" in shown.out


async def test_a_connection_file_that_others_can_read_is_reported(alone: Bridge) -> None:
    file = Path(str(alone.info.connection_file))
    file.chmod(0o644)
    file.parent.chmod(0o755)
    ran, report = await asyncio.to_thread(doctor, "-e", file)
    (found,) = [one for one in report["findings"] if one["kind"] == "insecure"]
    assert ran.code == 1
    assert "mode 0644" in found["what"]
    assert f"chmod 600 {file}" in found["todo"]
    shown = await asyncio.to_thread(bridgehead, "doctor", "-e", file)
    assert (shown.code, shown.err) == (1, "")
    assert "chmod 600" in shown.out
    # In another process: the library warns of a file once in each process.
    pulled = await asyncio.to_thread(bridgehead_process, "pull", "1", "-e", file)
    assert (pulled.code, pulled.out) == (0, "1\n")
    assert pulled.err.startswith("bridgehead: other users of this machine can read")
    assert pulled.err.count("\n") == 1


async def test_a_kernel_with_an_empty_key_needs_the_option_insecure(runtime: Path) -> None:
    manager = AsyncKernelManager(connection_file=str(runtime / "kernel-open.json"))
    manager.session.key = b""
    await manager.start_kernel()
    try:
        file = manager.connection_file
        ran, report = await asyncio.to_thread(doctor, "-e", file)
        assert (ran.code, report["info"]) == (3, None)
        (found,) = report["findings"]
        assert found["kind"] == "insecure"
        assert "empty key" in found["what"]
        assert "--insecure empty-key" in found["todo"]
        refused = await asyncio.to_thread(bridgehead, "names", "-e", file)
        assert "--insecure empty-key would allow it" in refused.refused(3)
        ran, report = await asyncio.to_thread(doctor, "-e", file, "--insecure", "empty-key")
        assert (ran.code, report["info"]["transport"]) == (1, "tcp")
    finally:
        await manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("encryption", [False, True])
async def test_doctor_says_what_other_users_see_on_loopback(
    runtime: Path, encryption: bool
) -> None:
    manager = AsyncKernelManager(connection_file=str(runtime / "kernel-tcp.json"))
    if encryption:
        manager.transport_encryption = "required"
    await manager.start_kernel()
    try:
        ran, report = await asyncio.to_thread(doctor, "-e", manager.connection_file)
    finally:
        await manager.shutdown_kernel(now=True)
    assert (ran.code, report["info"]["transport"]) == (0, "tcp")
    kinds = [one["kind"] for one in report["findings"] if "every user" in one["what"]]
    assert kinds == ([] if encryption else ["note"])


def test_doctor_without_a_kernel_is_code_3(runtime: Path) -> None:
    ran = bridgehead("doctor", "--json", JUPYTER_RUNTIME_DIR=str(runtime))
    assert ran.code == 3
    assert "no kernel is running" in json.loads(ran.out)["findings"][0]["what"]
