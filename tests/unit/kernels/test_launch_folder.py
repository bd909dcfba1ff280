"""The private folder of a launched kernel, without a kernel."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridgehead._kernels.launch_folder import STARTER, LaunchFolder, is_of_running_kernel, sweep
from bridgehead._shipped.wire.process import own_process


@pytest.fixture
def runtime() -> Iterator[Path]:
    """Make a folder whose path leaves room for the name of a socket."""
    with tempfile.TemporaryDirectory(prefix="bh-") as folder:
        yield Path(folder)


def test_the_folder_is_private_and_gone_after_the_launch(runtime: Path) -> None:
    before = os.umask(0)
    try:
        folder = LaunchFolder(runtime / "kernel-1.json")
        assert folder.takes_sockets()
        assert os.stat(folder.path).st_mode & 0o777 == 0o700
        assert os.listdir(folder.path) == [STARTER]
    finally:
        os.umask(before)
    folder.remove()
    folder.remove()
    assert os.listdir(runtime) == []


def test_a_path_that_is_too_long_takes_no_sockets(tmp_path: Path) -> None:
    folder = LaunchFolder(tmp_path / f"{'k' * 100}.json")
    assert not folder.takes_sockets()
    folder.remove()


@pytest.mark.parametrize("content", ["", '{"transport": "ipc"}'])
def test_a_connection_file_that_a_full_disk_left_empty_is_removed(
    runtime: Path, content: str
) -> None:
    file = runtime / "kernel-1.json"
    folder = LaunchFolder(file)
    file.write_text(content)
    folder.remove()
    assert file.exists() == bool(content)


def ended_process() -> dict[str, Any]:
    """Return what a program of this machine wrote that has ended."""
    facts = own_process()
    return {"process": facts and [*facts[:2], 1 << 30, facts[3]]}


@pytest.mark.parametrize("content", ["", None, "{}", '{"transport": "ipc", "ip": "FOLDER/s"}'])
def test_what_a_killed_program_left_is_removed(runtime: Path, content: str | None) -> None:
    facts = ended_process()
    if facts["process"] is None:
        pytest.skip("this system does not say which process this is")
    file = runtime / "kernel-1.json"
    folder = LaunchFolder(file)
    if content is not None:
        file.write_text(content.replace("FOLDER", folder.path))
    sweep(runtime)
    assert Path(folder.path).exists()
    Path(folder.path, STARTER).write_text(json.dumps(facts))
    sweep(runtime)
    assert not Path(folder.path).exists()
    assert not file.exists()


def test_a_kernel_that_does_not_listen_yet_keeps_its_files(runtime: Path) -> None:
    """``bridgehead restart`` may have ended before the kernel that it started listens."""
    if own_process() is None:
        pytest.skip("this system does not say which process this is")
    file = runtime / "kernel-1.json"
    folder = LaunchFolder(file)
    file.write_text(json.dumps({"transport": "ipc", "ip": folder.ip, "control_port": 1}))
    starter, ended = Path(folder.path, STARTER), ended_process()
    starter.write_text(json.dumps({**ended, "kernel": {"process": own_process()}}))
    sweep(runtime)
    assert file.exists()
    assert starter.exists()
    for record in ({"process": ended["process"]}, {"process": [1]}, {}, [], None):
        folder = LaunchFolder(file)
        Path(folder.path, STARTER).write_text(json.dumps({**ended, "kernel": record}))
        sweep(runtime)
        assert not Path(folder.path).exists()


@pytest.mark.parametrize("harm", ["nothing", "text", "[]", "mode", "link"])
def test_a_folder_that_no_launch_made_is_left_alone(runtime: Path, harm: str) -> None:
    facts = ended_process()
    folder = runtime / "kernel-1-ipc-abcdefgh"
    folder.mkdir(mode=0o755 if harm == "mode" else 0o700)
    if harm == "link":
        folder = folder.rename(runtime / "elsewhere")
        (runtime / "kernel-1-ipc-abcdefgh").symlink_to(folder)
    if harm != "nothing":
        text = json.dumps(facts) if harm in ("mode", "link") else harm
        (folder / STARTER).write_text(text)
    sweep(runtime)
    assert folder.exists()


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_a_kernel_runs_while_a_program_listens_at_its_address(
    runtime: Path, transport: str
) -> None:
    file = runtime / "kernel-1.json"
    assert not is_of_running_kernel(file)
    for text in ("", "[]", "{}", '{"transport": "ipc"}'):
        file.write_text(text)
        assert not is_of_running_kernel(file)
    family = socket.AF_UNIX if transport == "ipc" else socket.AF_INET
    with socket.socket(family) as listener:
        listener.bind(f"{runtime}/s-2" if transport == "ipc" else ("127.0.0.1", 0))
        port = 2 if transport == "ipc" else listener.getsockname()[1]
        ip = f"{runtime}/s" if transport == "ipc" else "127.0.0.1"
        file.write_text(json.dumps({"transport": transport, "ip": ip, "control_port": port}))
        assert not is_of_running_kernel(file)
        listener.listen(1)
        assert is_of_running_kernel(file)
    assert not is_of_running_kernel(file)
