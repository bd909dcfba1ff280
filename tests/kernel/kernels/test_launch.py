"""Launching kernels: sockets, files, environment, failures and cancelled launches."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from jupyter_client.connect import port_names
from jupyter_client.provisioning import local_provisioner

import bridgehead
from bridgehead import Bridge, KernelDied, KernelNotFound, NotSupported, RemoteError, SyncBridge
from bridgehead._kernels import started_kernels
from bridgehead._kernels.discovery import kernels
from bridgehead._kernels.launch_folder import STARTER, sweep
from bridgehead._kernels.reserved_ports import CAN_RESERVE
from support.kit import reported_within
from support.listing import listed
from support.other_user import NOBODY, needs_other_user

RUNTIME = "JUPYTER_RUNTIME_DIR"
LIMITS = (  # of the kernel's process
    "[__import__('resource').getrlimit(getattr(__import__('resource'), 'RLIMIT_' + name)) "
    "for name in ('AS', 'CPU')]"
)


TOO_LONG = "k" * 100  # the name of a connection file, for a socket beside it: its kernel gets TCP
needs_reserved_ports = pytest.mark.skipif(not CAN_RESERVE, reason="Linux can reserve ports")


def alive(pid: int) -> bool:
    """Return whether the process runs; a zombie does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


async def test_launch_is_awaitable_and_a_context_manager() -> None:
    bridge = await Bridge.launch()
    pid, file = bridge.info.pid, bridge.info.connection_file
    assert alive(pid)
    await bridge.aclose()
    assert not alive(pid)
    assert file is not None
    assert not Path(file).exists()
    async with Bridge.launch() as bridge:
        assert await bridge.pull("1 + 1") == 2
    async with await Bridge.launch() as bridge:
        pass
    assert bridge.state == "closed"
    await bridge.aclose()
    assert os.listdir(os.environ[RUNTIME]) == []


@pytest.mark.parametrize(
    ("inherit", "has_token"), [(True, True), (False, False), (["NAMED"], False)]
)
async def test_a_kernel_gets_no_more_of_the_environment_than_it_should(
    inherit: Any, has_token: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "secret")
    monkeypatch.setenv("NAMED", "named")
    monkeypatch.setenv("LANG", "C.UTF-8")
    monkeypatch.setenv("TMPDIR", tempfile.gettempdir())
    async with Bridge.launch(inherit_env=inherit, env={"GIVEN": "given"}) as bridge:
        found = await bridge.pull("dict(__import__('os').environ)")
        if sys.platform == "linux" and inherit is not True:  # as it was when the process began
            first = Path(f"/proc/{bridge.info.pid}/environ").read_text().split("\0")
            names = {one.partition("=")[0] for one in first}
            inherited = {"PATH", "HOME", "LANG", "TMPDIR", *(inherit or ())}
            own = {"GIVEN", "PYDEVD_DISABLE_FILE_VALIDATION", "JPY_PARENT_PID", ""}
            assert names - own == inherited
        assert ("SECRET_TOKEN" in found) is has_token
        assert ("NAMED" in found) is (inherit is not False)
        assert (found["GIVEN"], found["PATH"]) == ("given", os.environ["PATH"])
        assert await bridge.pull("1 + 1") == 2


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit is of Linux")
async def test_limits_hold_from_the_first_cell_on_and_after_a_restart() -> None:
    limits = {"memory": 4 << 30, "cpu": 1000}
    async with Bridge.launch(limits=limits) as bridge:
        for _ in range(2):
            assert await bridge.pull(LIMITS) == [(4 << 30, 4 << 30), (1000, 1000)]
            with pytest.raises(RemoteError, match="MemoryError"):
                await bridge.run("large = bytearray(8 << 30)")
            child = "__import__('subprocess').check_output('ulimit -v', shell=True)"
            assert int(await bridge.pull(child)) == 4 << 20
            await bridge.restart()


async def test_limits_are_not_supported_elsewhere_than_on_linux(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(NotSupported, match="on Linux only; nothing was started"):
        await Bridge.launch(limits={"cpu": 5})
    assert os.listdir(os.environ[RUNTIME]) == []


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit is of Linux")
async def test_a_kernel_that_its_command_forks_has_the_limits(
    kernelspec: Callable[..., str],
) -> None:
    command = f'{sys.executable} -m ipykernel_launcher -f "$0" & wait'
    name = kernelspec("forked", ["sh", "-c", command, "{connection_file}"])
    async with Bridge.launch(name, limits={"memory": 4 << 30, "cpu": 1000}) as bridge:
        assert await bridge.pull(LIMITS) == [(4 << 30, 4 << 30), (1000, 1000)]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="prlimit is of Linux")
async def test_the_system_ends_a_kernel_that_computes_too_long() -> None:
    async with Bridge.launch(limits={"cpu": 3}) as bridge:
        with pytest.raises(KernelDied, match="killed by SIGKILL, with limits={'cpu': 3}"):
            await bridge.run("while True: pass", timeout=60)


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit is of Linux")
async def test_a_limit_that_no_kernel_can_live_with_is_named() -> None:
    with pytest.raises(KernelDied, match="was killed by .*, with limits={'memory': 4096}"):
        await Bridge.launch(limits={"memory": 4096})


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit is of Linux")
async def test_a_limit_above_that_of_the_program_starts_nothing() -> None:
    code = """if True:
        import asyncio, resource
        from bridgehead import Bridge
        resource.setrlimit(resource.RLIMIT_CPU, (5000, 5000))
        async def launch(): await Bridge.launch(limits={"cpu": 6000})
        asyncio.run(launch())"""
    ended = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stderr=asyncio.subprocess.PIPE
    )
    _, said = await ended.communicate()
    assert b"ValueError: limits['cpu'] is 6,000, above this process's own limit of 5,000" in said
    with pytest.raises(ValueError, match="nothing was started"):
        await Bridge.launch(limits={"memory": 2**63})


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit is of Linux")
async def test_a_kernel_that_cannot_start_within_its_limit_names_the_limit() -> None:
    with pytest.raises(KernelDied) as caught:
        await Bridge.launch(limits={"memory": 32 << 20})
    (note,) = caught.value.__notes__
    assert note.startswith("it had limits={'memory': 33554432}; a kernel reserves up to a gigabyte")


async def test_a_wrong_folder_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    wrong: Any = 5
    with pytest.raises(TypeError):
        await Bridge.launch(cwd=wrong)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("limits", [{"disk": 1}, {"memory": 0}, {"memory": "1"}, {"cpu": True}])
async def test_a_wrong_limit_starts_nothing(limits: Any) -> None:
    with pytest.raises(ValueError, match="limits"):
        await Bridge.launch(limits=limits)
    with pytest.raises(TypeError, match="limits= takes a mapping such as .* not list"):
        await Bridge.launch(limits=list(limits))  # type: ignore[arg-type]
    wrong: Any = "PATH"
    with pytest.raises(TypeError, match="inherit_env="):
        await Bridge.launch(inherit_env=wrong)
    assert os.listdir(os.environ[RUNTIME]) == []


async def test_the_kernels_that_are_found_can_be_attached() -> None:
    async with Bridge.launch() as bridge:
        await bridge.push(x=1)
        found = await bridgehead.kernels()
        assert [(one.where, one.state) for one in found] == [(bridge.info.connection_file, "idle")]
        async with Bridge.attach(found[0]) as second:
            assert await second.pull("x") == 1
        assert await asyncio.to_thread(SyncBridge.kernels) != []
        assert [one.where for one in SyncBridge.kernels()] == [bridge.info.connection_file]


async def test_a_launched_kernel_uses_unix_sockets_in_a_private_folder() -> None:
    async with Bridge.launch() as bridge:
        assert bridge.info.transport == "ipc"
        assert bridge.info.connection_file is not None
        file = Path(bridge.info.connection_file)
        assert json.loads(file.read_text())["transport"] == "ipc"
        assert file.stat().st_mode & 0o077 == 0
        assert file.parent.stat().st_mode & 0o077 == 0
        assert not list(Path().glob("kernel-ipc*"))


async def test_launch_with_a_chosen_connection_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with Bridge.launch(connection_file="mykernel.json") as bridge:
        assert (tmp_path / "mykernel.json").exists()
        await bridge.push(x=1)
        async with Bridge.attach("mykernel.json") as other:
            assert await other.pull("x") == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("kernel.json", id="ipc"),
        pytest.param(f"{TOO_LONG}.json", marks=pytest.mark.slow, id="tcp"),
    ],
)
async def test_the_connection_file_of_a_kernel_that_runs_is_not_replaced(
    short_path: Path, name: str
) -> None:
    file = short_path / name
    async with Bridge.launch(connection_file=file) as bridge:
        content = file.read_text()
        with pytest.raises(KernelNotFound, match=f"kernel of the connection file {file} runs"):
            await Bridge.launch(connection_file=file)
        assert file.read_text() == content
        assert len(os.listdir(short_path)) == 2
    assert os.listdir(short_path) == []
    file.write_text(content)
    async with Bridge.launch(connection_file=file) as bridge:
        assert file.read_text() != content
        assert await bridge.pull("1") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="which process runs is known by /proc")
async def test_of_two_kernels_that_start_at_once_one_gets_the_connection_file(
    short_path: Path,
) -> None:
    file = short_path / "k.json"
    opening = [Bridge.launch(connection_file=file).__aenter__() for _ in range(2)]
    bridge, refused = await asyncio.gather(*opening, return_exceptions=True)
    assert isinstance(bridge, Bridge)
    async with bridge:
        assert isinstance(refused, KernelNotFound)
        assert f"{file} runs, or may run" in str(refused)
        assert len(os.listdir(short_path)) == 2
        async with Bridge.attach(file) as other:
            assert other.info.pid == bridge.info.pid
    assert os.listdir(short_path) == []


async def test_a_path_too_long_for_a_socket_falls_back_to_tcp(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    async with Bridge.launch(connection_file=folder / "kernel.json") as bridge:
        assert bridge.info.transport == "tcp"
        assert await bridge.pull("2 * 3") == 6


# ------------------------------------------------------------ J14: folders that cannot be used

# Loaded into a program, it lets no Unix socket be bound below the folder NOBIND.
NO_BIND = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
int bind(int fd, const struct sockaddr *at, socklen_t size) {
  const char *path = ((const struct sockaddr_un *)at)->sun_path, *folder = getenv("NOBIND");
  if (folder && at->sa_family == AF_UNIX && !strncmp(path, folder, strlen(folder))) {
    errno = atoi(getenv("NOBIND_ERRNO"));
    return -1;
  }
  return ((int (*)(int, const struct sockaddr *, socklen_t))dlsym(RTLD_NEXT, "bind"))(fd, at, size);
}
"""
LAUNCH_EACH = """
import asyncio, os, sys
from bridgehead import Bridge

async def main(numbers):
    for number in numbers:
        os.environ["NOBIND_ERRNO"] = number
        async with Bridge.launch() as bridge, Bridge.attach() as attached:
            await bridge.push(x=int(number))
            print(bridge.info.transport, await attached.pull("x"), flush=True)

asyncio.run(main(sys.argv[1:]))
"""


@pytest.mark.slow
async def test_where_no_unix_socket_can_be_bound_launch_uses_tcp(tmp_path: Path) -> None:
    """J14. As on mounts of Docker Desktop, WSL 1, CIFS and some NFS: TCP, and nothing is left."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler and LD_PRELOAD")
    source, library = tmp_path / "nobind.c", tmp_path / "nobind.so"
    source.write_text(NO_BIND)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    errors = [errno.EOPNOTSUPP, errno.EIO, errno.EPERM, errno.EACCES, errno.EINVAL, errno.EROFS]
    numbers = [str(int(error)) for error in errors]
    with tempfile.TemporaryDirectory(prefix="bh-") as folder:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", LAUNCH_EACH, *numbers),
            env={**os.environ, RUNTIME: folder, "NOBIND": folder, "LD_PRELOAD": str(library)},
            stdout=subprocess.PIPE,
        )
        out, _ = await process.communicate()
        assert out.decode().splitlines() == [f"tcp {number}" for number in numbers]
        assert os.listdir(folder) == []


UNUSABLE = {  # folders in which no user can make a file
    "below a file": lambda tmp_path: tmp_path / "file" / "run",
    "a file": lambda tmp_path: tmp_path / "file",
    "in /proc": lambda tmp_path: Path("/proc/bridgehead"),
    "in /sys": lambda tmp_path: Path("/sys/kernel"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and /sys")
@pytest.mark.parametrize("folder", UNUSABLE)
async def test_a_folder_without_write_access_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    """J14. The runtime folder, or that of the chosen file, takes no connection file."""
    (tmp_path / "file").touch()
    unusable = UNUSABLE[folder](tmp_path)
    said = f"cannot be written in {unusable} .*; "
    monkeypatch.setenv(RUNTIME, str(unusable))
    async with reported_within(0.5):
        with pytest.raises(KernelNotFound, match=said + "set JUPYTER_RUNTIME_DIR to a folder"):
            await Bridge.launch()
        with pytest.raises(KernelNotFound, match=said + "pass connection_file= in a folder"):
            await Bridge.launch(connection_file=unusable / "kernel.json")
        with pytest.raises(KernelNotFound, match=f"no connection file in {unusable}"):
            await Bridge.attach()
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
async def test_a_home_without_write_access_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """J14. Not even the folder of IPython can be made, where jupyter_client looks for kernels."""
    for name in ("IPYTHONDIR", RUNTIME):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/proc")
    with pytest.raises(
        KernelNotFound, match="no kernel was started, because .*JUPYTER_RUNTIME_DIR"
    ):
        await Bridge.launch()


MOUNTED = """
set -e
mount -t tmpfs -o size=64k tmpfs "$1"
mkdir "$1/home" "$1/run"
export HOME="$1/home"
unset JUPYTER_RUNTIME_DIR JUPYTER_DATA_DIR
mount -o remount,ro "$1"
"$2" -c "$3"
mount -o remount,rw "$1"
dd if=/dev/zero of="$1/zeros" bs=1k count=64 2> /dev/null || true
export JUPYTER_RUNTIME_DIR="$1/run"
"$2" -c "$3"
ls -A "$1/run"
"""
LAUNCH_ONCE = """
import asyncio
from bridgehead import Bridge, BridgeError
async def main():
    try:
        await Bridge.launch()
    except BridgeError as error:
        print(error, flush=True)
asyncio.run(main())
"""


async def test_a_read_only_home_or_a_full_disk_is_reported(tmp_path: Path) -> None:
    """J14. The same on a real file system that is mounted read-only, and on one that is full."""
    unshared = ["unshare", "--mount"]
    try:
        subprocess.run([*unshared, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this user can't make a mount namespace: {error}")
    process = await asyncio.create_subprocess_exec(
        *unshared, "sh", "-c", MOUNTED, "sh", str(tmp_path), sys.executable, LAUNCH_ONCE,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate()
    advice = "; set JUPYTER_RUNTIME_DIR to a folder where this user can write"
    failed = "no kernel was started, because its connection file cannot be written in "
    home = f"{tmp_path}/home/.local/share/jupyter/runtime (Read-only file system)"
    full = f"{tmp_path}/run (No space left on device)"
    assert out.decode().splitlines() == [failed + home + advice, failed + full + advice]


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Make an empty folder whose path leaves room for the name of a socket."""
    with tempfile.TemporaryDirectory(prefix="bh-") as folder:
        yield Path(folder)


@pytest.mark.parametrize("name", ["[x]", "a*", "?", "[!a]{connection_file}", "$HOME ~"])
async def test_the_name_of_the_runtime_folder_is_literal(
    short_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """J14. Characters that a glob would interpret; the folders that it would match are decoys."""
    runtime = short_path / name
    for folder in (runtime, short_path / "x", short_path / "ab"):
        folder.mkdir()
        (folder / "kernel-decoy.json").write_text("{}")
    (runtime / "kernel-decoy.json").unlink()
    monkeypatch.setenv(RUNTIME, str(runtime))
    async with Bridge.launch() as bridge:
        assert bridge.info.transport == "ipc"
        file = Path(bridge.info.connection_file or "")
        assert file.parent == runtime
        part = file.stem.removeprefix("kernel-")[1:8]
        for existing in (
            *(None, file, file.name, part, f"*{part}*", "kernel-*"),
            *(f"{runtime}/kernel-*", f"{runtime}/{part}"),
        ):
            async with Bridge.attach(existing) as other:
                assert other.info.epoch == bridge.info.epoch
        assert list(await asyncio.to_thread(listed, runtime)) == [file.stem]
    assert os.listdir(runtime) == []


# ------------------------------------------------------------ how a kernel is started


async def test_launch_with_environment_and_folder(tmp_path: Path) -> None:
    async with Bridge.launch(env={"BRIDGE_TEST": "yes"}, cwd=tmp_path) as bridge:
        expression = "__import__('os').environ['BRIDGE_TEST'], __import__('os').getcwd()"
        assert await bridge.pull(expression) == ("yes", str(tmp_path))
        assert bridge.info.cwd == str(tmp_path)
        assert "PATH" in await bridge.pull("dict(__import__('os').environ)")


async def test_launch_with_another_kernelspec(kernelspec: Callable[..., str]) -> None:
    argv = [sys.executable, "-Xutf8", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    async with Bridge.launch(kernelspec("other", argv)) as bridge:
        assert await bridge.pull("__import__('sys').flags.utf8_mode") == 1


async def test_an_unknown_kernelspec_is_reported_with_the_known_ones() -> None:
    with pytest.raises(KernelNotFound, match=r"no kernel named 'kobol'.*installed are: .*python3"):
        await Bridge.launch("kobol")


async def test_the_error_of_a_kernel_that_exits_at_once_quotes_its_log(
    kernelspec: Callable[..., str],
) -> None:
    code = "import sys; sys.exit('the licence has expired')"
    with pytest.raises(
        KernelDied, match=r"exit code 1; it last wrote:\nthe licence has expired"
    ) as caught:
        await Bridge.launch(kernelspec("expired", [sys.executable, "-c", code]))
    assert caught.value.exit_code == 1
    assert os.listdir(os.environ[RUNTIME]) == []


@pytest.fixture
def ports_taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Have another program ask for the ports of a kernel before it starts; give those it got."""
    launch_kernel: Callable[..., subprocess.Popen[bytes]] = local_provisioner.launch_kernel
    got: list[str] = []
    with contextlib.ExitStack() as stack:

        def launch_late(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
            info = json.loads(Path(command[-1]).read_text())
            for name in port_names:
                other = stack.enter_context(socket.socket())
                with contextlib.suppress(OSError):
                    other.bind((info["ip"], info[name]))
                    other.listen()
                    got.append(name)
            kernel = launch_kernel(command, **options)
            stack.callback(kernel.wait, 60)
            return kernel

        monkeypatch.setattr(local_provisioner, "launch_kernel", launch_late)
        yield got


@needs_reserved_ports
async def test_no_program_takes_a_port_before_the_kernel_has_it(
    short_path: Path, ports_taken: list[str]
) -> None:
    async with Bridge.launch(connection_file=short_path / TOO_LONG) as bridge:
        assert bridge.info.transport == "tcp"
        assert (await bridge.run("print('first')")).stdout == "first\n"
        await bridge.restart()
        assert (await bridge.run("print('second')")).stdout == "second\n"
        assert ports_taken == []
    assert os.listdir(short_path) == []


@needs_reserved_ports
async def test_a_kernel_that_is_left_running_has_its_ports(
    short_path: Path, ports_taken: list[str]
) -> None:
    file, pid = await started_kernels.start(
        "python3",
        connection_file=str(short_path / TOO_LONG),
        cwd=None,
        encryption=False,
        timeout=60,
    )
    kernel = started_kernels.started(file)
    try:
        assert (kernel.process.pid, ports_taken) == (pid, [])
    finally:
        await started_kernels.stop(kernel)
    assert os.listdir(short_path) == []


async def test_cancelling_a_launch_leaves_nothing(kernelspec: Callable[..., str]) -> None:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    name = kernelspec("sleeper", [sys.executable, "-c", code])
    for opening in (Bridge.launch(name), Bridge.launch()):
        task = asyncio.ensure_future(_entered(opening))
        await asyncio.sleep(0.4)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert os.listdir(os.environ[RUNTIME]) == []
    with pytest.raises(KernelNotFound, match="did not answer within 0.5 s"):
        await Bridge.launch(name, timeout=0.5)


async def test_a_launch_cancelled_by_an_anyio_scope_leaves_nothing() -> None:
    # An anyio scope cancels again at every await, also during the cleanup.
    before = psutil.Process().children()  # the process that forks kernels for other tests
    for seconds in (0.05, 0.3, 0.5):
        with anyio.move_on_after(seconds):
            async with Bridge.launch() as bridge:
                await bridge.run("import time; time.sleep(30)")
        assert os.listdir(os.environ[RUNTIME]) == []
    assert [child for child in psutil.Process().children() if child not in before] == []


async def _entered(opening: object) -> None:
    async with opening:  # type: ignore[attr-defined]
        await asyncio.sleep(60)


# ------------------------------------------------------------ M10, K7: sockets and what is left

READER = """
import json, sys, zmq
info = json.loads(sys.argv[1])
socket = zmq.Context().socket(zmq.SUB)
socket.setsockopt(zmq.SUBSCRIBE, b"")
socket.connect("ipc://%s-%d" % (info["ip"], info["iopub_port"]))
print("ready", flush=True)
sys.stdin.readline()
print(socket.poll(500), flush=True)
"""


@needs_other_user
@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022])
async def test_no_other_user_reads_the_outputs_whatever_the_umask(
    short_path: Path, umask: int
) -> None:
    short_path.chmod(0o755)
    before = os.umask(umask)
    try:
        async with Bridge.launch(connection_file=short_path / "k.json") as bridge:
            info = json.loads((short_path / "k.json").read_text())
            (folder,) = (path for path in short_path.iterdir() if path.is_dir())
            assert (bridge.info.transport, folder.stat().st_mode & 0o777) == ("ipc", 0o700)
            assert info["ip"] == str(folder / "s")
            assert len(list(folder.glob("s-*"))) == 5
            reader = await asyncio.create_subprocess_exec(
                *("setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"),
                *(sys.executable, "-c", READER, json.dumps(info)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            assert reader.stdin is not None
            assert reader.stdout is not None
            assert await reader.stdout.readline() == b"ready\n"
            await bridge.run("print('secret')")
            reader.stdin.write(b"\n")
            assert await reader.stdout.readline() == b"0\n"
            await reader.wait()
            await bridge.restart()
            assert await bridge.pull("1 + 1") == 2
    finally:
        os.umask(before)
    assert os.listdir(short_path) == []


LAUNCH_AND_WAIT = """
import asyncio, sys
from bridgehead import Bridge
async def main():
    async with Bridge.launch(encryption=sys.argv[1] == "tcp") as bridge:
        print(bridge.info.pid, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("transport", ["ipc", "tcp"])
@pytest.mark.parametrize("how", ["launch", "discover"])
async def test_what_a_killed_program_left_is_removed(
    short_path: Path, monkeypatch: pytest.MonkeyPatch, transport: str, how: str
) -> None:
    monkeypatch.setenv(RUNTIME, str(short_path))
    foreign = short_path / "kernel-foreign.json"  # not launched by this package
    foreign.write_text("{}")
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LAUNCH_AND_WAIT, transport, stdout=subprocess.PIPE
    )
    assert program.stdout is not None
    pid = int(await program.stdout.readline())
    (file,) = set(short_path.glob("*.json")) - {foreign}
    sweep(short_path)
    assert file.exists()  # its program runs
    os.kill(pid, signal.SIGSTOP)
    program.kill()
    await program.wait()
    sweep(short_path)
    assert file.exists()  # the kernel exists
    os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(OSError):  # its main thread may end before the others
        while alive(pid) or len(os.listdir(f"/proc/{pid}/task")) > 1:
            await asyncio.sleep(0.01)
    assert len(os.listdir(short_path)) == 3
    if how == "launch":
        async with Bridge.launch():
            assert not file.exists()
    else:
        assert [one.where for one in await kernels()] == [str(foreign)]
    assert os.listdir(short_path) == [foreign.name]


async def test_a_folder_of_another_machine_or_a_later_kernel_is_left_alone(
    short_path: Path,
) -> None:
    async with Bridge.launch(connection_file=short_path / "k.json"):
        (folder,) = (path for path in short_path.iterdir() if path.is_dir())
        boot, namespace, _, started = json.loads((folder / STARTER).read_text())["process"]
    gone = [boot, namespace, 1 << 30, started]
    for index, other in enumerate([["other", *gone[1:]], [boot, "pid:[1]", *gone[2:]]]):
        left = short_path / f"k-ipc-abcdefg{index}"
        left.mkdir(mode=0o700)
        (left / STARTER).write_text(json.dumps({"process": other}))
    sweep(short_path)
    assert len(os.listdir(short_path)) == 2
    (short_path / "k-ipc-abcdefg1" / STARTER).write_text(json.dumps({"process": gone}))
    (short_path / "k.json").write_text(json.dumps({"transport": "ipc", "ip": "elsewhere/s"}))
    sweep(short_path)
    assert sorted(os.listdir(short_path)) == ["k-ipc-abcdefg0", "k.json"]


# ------------------------------------------------------------ K6: too few descriptors

LAUNCH_MANY = """
import asyncio, os, resource, sys
from bridgehead import Bridge, NotSent
limit = len(os.listdir("/proc/self/fd")) + int(sys.argv[1])

async def main():
    async with Bridge.launch():  # opens what all bridges share
        pass
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    opened = []
    try:
        while len(opened) < 20:
            opened.append(await Bridge.launch())
    except NotSent as error:
        print(f"may open {limit:,} descriptors (RLIMIT_NOFILE)" in str(error), flush=True)
    for bridge in opened:
        assert await bridge.pull("1 + 1") == 2
        await bridge.aclose()
    async with Bridge.launch() as bridge, Bridge.attach(bridge.info.connection_file) as other:
        print(await other.pull("1 + 1"), flush=True)

asyncio.run(main())
"""


LAUNCH_ANOTHER = """
import asyncio, os
from bridgehead import Bridge

def counted():
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

async def settled(bridge):
    # ZeroMQ connects and closes sockets a moment later.
    await bridge.push(x=1)
    looks = [None]
    while len(looks) < 10 or len({*looks[-10:]}) > 1:
        await asyncio.sleep(0.05)
        looks.append(counted())
    return looks[-1]

async def main():
    async with Bridge.launch() as one:
        before = await settled(one)
        async with Bridge.launch() as two:
            print(*(now - then for now, then in zip(await settled(two), before)))

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
async def test_a_kernel_takes_few_descriptors_and_threads() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", LAUNCH_ANOTHER), stdout=subprocess.PIPE
    )
    out, _ = await process.communicate()
    descriptors, threads = map(int, out.split())
    assert descriptors <= 19
    assert threads <= 2


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("more", [70, 81])
@pytest.mark.slow
async def test_a_launch_without_enough_descriptors_names_the_limit(more: int) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", LAUNCH_MANY, str(more)), stdout=subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert (process.returncode, out.decode().split()) == (0, ["True", "2"])
    assert os.listdir(os.environ[RUNTIME]) == []
