"""A kernel behind ports that SSH forwards with the command of the page on SSH.

Rule: a real sshd listens on loopback; its keys and configuration are in a temporary folder. No test
reads or writes files of the user. The kernel listens at 127.0.0.2, so that the same ports are free
at 127.0.0.1, as on two machines.
"""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridgehead import Bridge, KernelRestarted, OutcomeUnknown, UntrustedPayload
from support.kit import endless_cell
from support.other_user import NOBODY, OTHER_USER, needs_other_user

PAGE = Path(__file__).parents[2] / "notebooks" / "guides" / "ssh.md"
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
SEPARATION = Path("/run/sshd")  # an sshd that runs as root needs this folder

pytestmark = [
    pytest.mark.elsewhere,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8"),
    pytest.mark.skipif(
        not (SSHD and shutil.which("ssh")), reason="no sshd and ssh: apt-get install openssh-server"
    ),
]


def waited(condition: Any, process: subprocess.Popen[str], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "what the test waits for did not happen"
        time.sleep(0.05)


def listens(port: int, ip: str = "127.0.0.1") -> bool:
    try:
        socket.create_connection((ip, port), 1).close()
    except OSError:
        return False
    return True


@contextmanager
def running(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a process, and end it and its children after the block."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, **options
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.communicate()


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Start an sshd as another machine, and return a folder whose ``ssh`` connects to it."""
    folder = tmp_path_factory.mktemp("remote")
    for name in ("host", "user"):
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(keygen, check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nPidFile none\nStrictModes no\n"
        f"AuthorizedKeysFile {folder}/user.pub\nAuthenticationMethods publickey\n"
        "PermitRootLogin prohibit-password\nUsePAM no\n"
    )
    (folder / "known_hosts").write_text(f"remote {(folder / 'host.pub').read_text()}")
    (folder / "ssh_config").write_text(
        f"Host remote\nHostName 127.0.0.1\nPort {port}\nUser {getpass.getuser()}\n"
        "HostKeyAlias remote\n"
        f"IdentityFile {folder}/user\nIdentitiesOnly yes\nBatchMode yes\n"
        f"UserKnownHostsFile {folder}/known_hosts\nExitOnForwardFailure yes\n"
    )
    ssh = folder / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh_config "$@"\n')
    ssh.chmod(0o755)
    created = os.getuid() == 0 and not SEPARATION.exists()
    if created:
        SEPARATION.mkdir(0o755)
    try:
        with running([str(SSHD), "-D", "-e", "-f", str(folder / "sshd_config")]) as sshd:
            waited(lambda: listens(port), sshd)
            yield ssh.parent
    finally:
        if created:
            SEPARATION.rmdir()


@pytest.fixture
def kernel(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Start a kernel, and return its connection file, with the name that the page uses.

    With a parameter it is a program that serves as a kernel.
    """
    file = tmp_path / "kernel-1234.json"
    start = ["-m", "ipykernel_launcher"]
    if hasattr(request, "param"):
        (tmp_path / "program.py").write_text(request.param)
        start = [str(tmp_path / "program.py"), "--HistoryManager.enabled=False"]
    start += ["-f", str(file), "--ip=127.0.0.2"]
    with running([sys.executable, *start]) as process:
        waited(lambda: file.exists() and file.read_text().endswith("}"), process)
        yield file


@contextmanager
def forwarded(remote: Path, kernel: Path) -> Iterator[Path]:
    """Forward the ports by the page's command, and return a connection file for them."""
    found = re.search(r"^ *(ssh -N .* remote)$", PAGE.read_text(), re.MULTILINE)
    assert found, "the page has lost its ssh command"
    environment = {**os.environ, "PATH": f"{remote}:{os.environ['PATH']}"}
    info = json.loads(kernel.read_text())
    forwarded_file = kernel.with_name("forwarded.json")
    forwarded_file.write_text(json.dumps({**info, "ip": "127.0.0.1"}))  # as it is on two machines
    forwarded_file.chmod(0o600)
    command = ["bash", "-c", found[1]]
    with running(command, cwd=kernel.parent, env=environment) as ssh:
        ports = [port for name, port in info.items() if name.endswith("_port")]
        assert len(ports) == 5
        waited(lambda: all(map(listens, ports)), ssh)
        yield forwarded_file


async def test_the_command_of_the_page_forwards_the_kernel(remote: Path, kernel: Path) -> None:
    with forwarded(remote, kernel) as file:
        # Not the direct lane, which would detect that the kernel is on the same machine.
        async with Bridge.attach(file, lane="buffers") as bridge:
            large = np.arange(2_000_000.0)
            await bridge.push(large=large, f=lambda v: v + 1)
            assert await bridge.pull("f(large[1])") == 2
            assert (await bridge.pull("large")).tobytes() == large.tobytes()
            async with endless_cell(bridge):
                await bridge.interrupt()
            assert bridge._transport.has_pulse  # type: ignore[attr-defined]


@needs_other_user
@pytest.mark.parametrize("kernel", [OTHER_USER], indirect=True, ids=["another user's"])
@pytest.mark.parametrize("lane", ["auto", "buffers", "inline"])
async def test_a_kernel_behind_forwarded_ports_that_proves_nothing_is_data_only(
    remote: Path, kernel: Path, lane: Any, tmp_path: Path
) -> None:
    """Row M5: it runs as another user, so it cannot open this user's socket, as one elsewhere."""
    with forwarded(remote, kernel) as file:
        async with Bridge.attach(file, lane=lane) as bridge:
            assert await bridge.pull("__import__('os').getuid()") == NOBODY
            assert bridge.info.trust == "data"
            assert "not proven to be this user's process" in str(bridge.info.why_trust)
            await bridge.run(
                "import os\nclass Evil:\n    def __reduce__(self):\n"
                f"        return os.system, ('touch {tmp_path}/it-ran',)\nevil = Evil()"
            )
            with pytest.raises(UntrustedPayload):
                await bridge.pull("evil")
            assert not (tmp_path / "it-ran").exists()
            array = np.arange(100_000.0)
            await bridge.push(array=array)
            assert (await bridge.pull("array")).tobytes() == array.tobytes()


async def test_a_broken_forwarding_is_reported_and_works_again_later(
    remote: Path, kernel: Path
) -> None:
    with forwarded(remote, kernel) as file:
        bridge = await Bridge.attach(file, lane="buffers")
        await bridge.push(x=[1])
        cell = asyncio.ensure_future(bridge.run("import time; time.sleep(4); x.append(2)"))
        while bridge.state != "busy":
            await asyncio.sleep(0.02)
    try:
        async with asyncio.timeout(20):
            with pytest.raises(OutcomeUnknown):
                await cell
        with forwarded(remote, kernel) as file:
            async with Bridge.attach(file, lane="buffers") as other:
                assert await other.pull("x") == [1, 2]  # the cell continued in the kernel
            async with asyncio.timeout(20):
                while True:
                    try:
                        assert await bridge.pull("x") == [1, 2]
                        break
                    except (OutcomeUnknown, KernelRestarted):
                        await asyncio.sleep(0.1)
    finally:
        await bridge.aclose()
