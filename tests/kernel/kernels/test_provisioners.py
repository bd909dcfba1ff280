"""Kernels that an installed provisioner starts, of which bridgehead knows nothing.

Rule: the provisioner is a distribution of its own, a wheel that pip installs and whose entry
point jupyter_client finds. Its kernels are not children of this process: a node starts them, and
the provisioner talks to the node over its standard streams. The node chooses ports and key, new
ones for each start.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import KernelProvisionerFactory

from bridgehead import (
    Bridge,
    InsecureConnection,
    KernelDied,
    KernelNotFound,
    KernelRestarted,
    NotSupported,
    SyncBridge,
    UntrustedPayload,
)
from support.kit import endless_cell, over, restart_beside_a_cell

pytestmark = pytest.mark.real_start

# Stands for another machine, as far as the provisioner knows.
NODE = """
import json, os, secrets, socket, subprocess, sys, tempfile
ip = sys.argv[1]

def bound():
    # Its port is reserved, as by ``reserved_ports``: the kernel binds it a moment later.
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind((ip, 0))
    return one

with tempfile.TemporaryDirectory() as disk:
    for line in sys.stdin:
        wish, *arguments = json.loads(line)
        answer = None
        if wish == "start":
            sockets = [bound() for _ in range(5)]
            names = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")
            info = dict(zip(names, (one.getsockname()[1] for one in sockets)))
            info.update(ip=ip, transport="tcp", key=secrets.token_hex(), kernel_name="")
            info.update(signature_scheme="hmac-sha256")
            file = os.path.join(disk, "connection.json")
            with open(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), "w") as text:
                json.dump(info, text)
            command = [word.replace("{connection_file}", file) for word in arguments[0]]
            nowhere = subprocess.DEVNULL
            kernel = subprocess.Popen(command, stdin=nowhere, stdout=nowhere, stderr=nowhere)
            answer = info
        elif wish == "poll":
            answer = kernel.poll()
        else:
            if kernel.poll() is None:
                kernel.send_signal(arguments[0])
        print(json.dumps(answer), flush=True)
    if kernel.poll() is None:
        kernel.kill()
    kernel.wait()
"""

PROVISIONER = '''
import asyncio, json, os, signal, sys
from jupyter_client.provisioning import KernelProvisionerBase, LocalProvisioner
from traitlets import Bool, Int, List, Unicode

class Node(KernelProvisionerBase):
    """A kernel on a node."""

    journal = Unicode()
    addresses = List(["127.0.0.1"])  # of the first start, of the second
    tells_codes = Bool(True)
    fails = Unicode()
    node = None

    def note(self, *words):
        with open(self.journal, "a") as text:
            print(*words, file=text)

    async def ask(self, *wish):
        async with self.lock:
            self.node.stdin.write(json.dumps(wish).encode() + b"\\n")
            return json.loads(await self.node.stdout.readline())

    @property
    def has_process(self):
        return self.node is not None

    async def pre_launch(self, **options):
        return {"cmd": self.kernel_spec.argv, **await super().pre_launch(**options)}

    async def launch_kernel(self, cmd, **options):
        # Fails for options that only a child can use: another machine has no open file of ours.
        json.dumps({name: value for name, value in options.items() if name != "kernel_id"})
        self.note("launch", *sorted(set(options) - {"env", "kernel_id"}))
        if self.fails:
            raise RuntimeError(self.fails)
        address = self.addresses[0]
        self.addresses = self.addresses[1:] or self.addresses
        self.lock = asyncio.Lock()
        pipe = asyncio.subprocess.PIPE
        node = os.path.join(os.path.dirname(__file__), "node_of_tests.py")
        self.node = await asyncio.create_subprocess_exec(
            sys.executable, node, address, stdin=pipe, stdout=pipe,
            env=options["env"], cwd=options.get("cwd"),
        )
        info = await self.ask("start", cmd)
        self.connection_info = {**info, "key": info["key"].encode()}
        return self.connection_info

    async def poll(self):
        if os.path.exists(self.journal + ".unreachable"):
            raise ConnectionError("the node is unreachable")
        if self.node is None:
            return 0
        code = await self.ask("poll")
        return code if code is None or self.tells_codes else 0

    async def wait(self):
        while self.node is not None and await self.ask("poll") is None:
            await asyncio.sleep(0.05)
        await self.leave()

    async def leave(self):
        if self.node is not None:
            self.node.stdin.close()
            await self.node.wait()
            self.node = None

    async def send_signal(self, signum):
        self.note("signal", signum)
        await self.ask("signal", signum)

    async def kill(self, restart=False):
        self.note("kill")
        await self.ask("signal", signal.SIGKILL)

    async def terminate(self, restart=False):
        self.note("terminate")
        await self.ask("signal", signal.SIGTERM)

    async def shutdown_requested(self, restart=False):
        self.note("shutdown")

    async def cleanup(self, restart=False):
        self.note("cleanup", *["to restart"] * restart)
        await self.leave()


class Nice(LocalProvisioner):
    """Starts a child of this process, but in another way."""

    last_words = Int(0)  # of the command, the only ones that it takes

    async def launch_kernel(self, cmd, **options):
        cmd = cmd[-self.last_words:]
        return await super().launch_kernel(["nice", "-n", "1", *cmd], **options)
'''


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Installs the distribution with the provisioners where this process finds it."""
    folder = tmp_path_factory.mktemp("provisioners")
    about = "provisioner_of_tests-1.0.dist-info"
    files = {
        "provisioner_of_tests.py": PROVISIONER,
        "node_of_tests.py": NODE,
        f"{about}/METADATA": "Metadata-Version: 2.1\nName: provisioner-of-tests\nVersion: 1.0\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/entry_points.txt": (
            "[jupyter_client.kernel_provisioners]\n"
            "node-of-tests = provisioner_of_tests:Node\n"
            "nice-of-tests = provisioner_of_tests:Nice\n"
        ),
    }
    record = "".join(f"{name},,\n" for name in (*files, f"{about}/RECORD"))
    wheel = folder / "provisioner_of_tests-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in {**files, f"{about}/RECORD": record}.items():
            archive.writestr(name, text)
    site = folder / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target"]
    subprocess.run([*pip, str(site), str(wheel)], check=True)
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(site)
    KernelProvisionerFactory.clear_instance()  # it looks for entry points when it is made
    yield
    patch.undo()
    KernelProvisionerFactory.clear_instance()
    for name in ("node-of-tests", "nice-of-tests"):
        KernelProvisionerFactory.provisioners.pop(name, None)


LINUX = sys.platform == "linux"
ARGV = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
Spec = Callable[..., str]


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def spec(installed: None, kernelspec: Callable[..., str], journal: Path) -> Spec:
    """Make kernelspecs whose kernels run on a node; ``config`` configures the provisioner."""

    def make(name: str = "node", **config: Any) -> str:
        wanted = {"provisioner_name": "node-of-tests"}
        config["journal"] = str(journal)
        metadata = {"kernel_provisioner": {**wanted, "config": config}}
        return kernelspec(f"on-a-{name}", ARGV, metadata=metadata)

    return make


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    files, children = _there()
    yield
    files_now, children_now = _there()
    assert files_now <= files
    assert children_now <= children


def _there() -> tuple[set[str], set[psutil.Process]]:
    """Return connection files and processes; other tests of this session may share some."""
    children = psutil.Process().children(recursive=True)
    return set(os.listdir(os.environ["JUPYTER_RUNTIME_DIR"])), {c for c in children if _runs(c)}


def _runs(child: psutil.Process) -> bool:
    try:  # multiprocessing's helper process is shared by all tests
        return child.status() != psutil.STATUS_ZOMBIE and "_tracker" not in str(child.cmdline())
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
async def on_node(spec: Spec) -> AsyncIterator[Bridge]:
    async with Bridge.launch(spec()) as bridge:
        yield bridge


def noted(journal: Path) -> list[str]:
    return journal.read_text().splitlines()


def address(bridge: Bridge) -> dict[str, Any]:
    info: dict[str, Any] = json.loads(Path(bridge.info.connection_file or "").read_text())
    return info


async def test_objects_calls_and_cells_work(on_node: Bridge) -> None:
    assert on_node.info.transport == "tcp"
    assert on_node.info.trust == "pickle"  # the node is this machine

    class Point:
        def __init__(self, x: int) -> None:
            self.x = x

    array = np.arange(500_000.0)
    await on_node.push(x={"a": [1]}, array=array, double=lambda v: 2 * v, point=Point(5))
    assert await on_node.pull("x['a']", "double(4)") == ([1], 8)
    assert (await on_node.pull("array")).tobytes() == array.tobytes()
    assert (await on_node.pull("point")).x == 5
    assert (await on_node.run("print('from the node'); x")).stdout == "from the node\n"
    assert await on_node.call(lambda p: p.x, on_node.ref("point")) == 5
    assert await on_node.pull("x", now=True) == {"a": [1]}
    async with Bridge.attach(on_node.info.connection_file) as other:
        assert other.info.pid == on_node.info.pid
        assert await other.pull("x") == {"a": [1]}


@pytest.mark.parametrize("lane", ["direct", "buffers", "inline"])
async def test_every_lane_works(spec: Spec, lane: Any) -> None:
    async with Bridge.launch(spec(), lane=lane) as bridge:
        transfer = await bridge.push(raw=b"x" * 300_000)
        assert (transfer.lane, await bridge.pull("len(raw)")) == (lane, 300_000)


@pytest.mark.slow
async def test_an_interrupt_goes_through_the_provisioner(on_node: Bridge, journal: Path) -> None:
    async with endless_cell(on_node):
        await on_node.interrupt()
    assert noted(journal) == ["launch", f"signal {signal.SIGINT:d}"]
    assert await on_node.pull("1 + 1") == 2


@pytest.mark.slow
async def test_a_restart_follows_the_kernel_to_its_new_address(
    on_node: Bridge, journal: Path
) -> None:
    for _ in range(2):
        await on_node.push(x=1)
        before, pid = address(on_node), on_node.info.pid
        await restart_beside_a_cell(on_node)
        after = address(on_node)
        assert all(before[f"{name}_port"] != after[f"{name}_port"] for name in ("shell", "hb"))
        assert before["key"] != after["key"]
        assert not await on_node.exists("x")
        assert on_node.info.pid != pid
        assert not psutil.pid_exists(pid)
        assert (await on_node.run("print('heard')")).stdout == "heard\n"
        async with Bridge.attach(on_node.info.connection_file) as other:
            assert other.info.pid == on_node.info.pid
    assert noted(journal)[-3:] == ["kill", "cleanup to restart", "launch"]


@pytest.mark.parametrize(
    ("tells_codes", "how", "code"),
    [
        (True, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        pytest.param(True, "import os; os._exit(7)", 7, marks=pytest.mark.slow),
        (False, "import os; os._exit(7)", None),
    ],
)
async def test_a_dead_kernel_is_reported_with_its_exit_code(
    spec: Spec, journal: Path, tells_codes: bool, how: str, code: int | None
) -> None:
    async with Bridge.launch(spec(tells_codes=tells_codes)) as bridge:
        words = {None: "process ended", 7: "exit code 7"}.get(code, "was killed by SIGKILL")
        async with asyncio.timeout(20):
            with pytest.raises(KernelDied, match=words) as caught:
                await bridge.run(how)
        assert caught.value.exit_code == code
        assert bridge.state == "dead"
        with pytest.raises(KernelDied):
            await bridge.push(x=1)
        await bridge.restart()
        await bridge.push(x=2)
        assert await bridge.pull("x") == 2
        os.kill(bridge.info.pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            with pytest.raises(KernelDied):
                while True:
                    await bridge.run("pass")
    assert noted(journal)[-1] == "cleanup"


async def test_closing_shuts_the_kernel_down_and_cleans_up(spec: Spec, journal: Path) -> None:
    async with Bridge.launch(spec()) as bridge:
        file, pid = Path(bridge.info.connection_file or ""), bridge.info.pid
        assert file.stat().st_mode & 0o777 == 0o600
    assert noted(journal)[-2:] == ["shutdown", "cleanup"]
    assert not file.exists()
    assert not psutil.pid_exists(pid)


@pytest.mark.timings(provisioner_every=0.2)
async def test_an_unreachable_node_is_not_reported_as_a_dead_kernel(
    on_node: Bridge, journal: Path
) -> None:
    unreachable = journal.with_name("journal.unreachable")
    unreachable.touch()
    result = await on_node.run("import time; time.sleep(1); 1 + 1")
    assert result.data["text/plain"] == "2"
    unreachable.unlink()
    with pytest.raises(KernelDied):
        await on_node.run("import os; os._exit(1)")


async def test_the_error_of_a_failing_provisioner_is_raised_and_it_is_cleaned_up(
    spec: Spec, journal: Path
) -> None:
    with pytest.raises(RuntimeError, match="no node is free"):
        await Bridge.launch(spec(fails="no node is free"))
    assert noted(journal) == ["launch", "cleanup"]


async def test_limits_are_not_supported_where_a_provisioner_starts_the_kernel(
    spec: Spec, journal: Path
) -> None:
    with pytest.raises(NotSupported, match="on this machine, not Node's; nothing was started"):
        await Bridge.launch(spec(), limits={"cpu": 5})
    assert not journal.exists()


async def test_a_kernel_that_never_answers_is_ended(
    spec: Spec, kernelspec: Callable[..., str], journal: Path
) -> None:
    wanted = {"provisioner_name": "node-of-tests", "config": {"journal": str(journal)}}
    argv = [sys.executable, "-c", "import time; time.sleep(600)", "{connection_file}"]
    name = kernelspec("silent", argv, metadata={"kernel_provisioner": wanted})
    with pytest.raises(KernelNotFound, match="did not answer within 1 s"):
        await Bridge.launch(name, timeout=1)
    assert noted(journal)[-2:] == ["kill", "cleanup"]


async def test_a_provisioner_that_is_not_installed_is_named(
    kernelspec: Callable[..., str],
) -> None:
    metadata = {"kernel_provisioner": {"provisioner_name": "slurm-of-tests"}}
    name = kernelspec("orphan", ARGV, metadata=metadata)
    message = "'orphan' needs the provisioner 'slurm-of-tests', which is not installed"
    with pytest.raises(KernelNotFound, match=message):
        await Bridge.launch(name)


async def test_a_default_provisioner_that_is_not_installed_is_named(
    installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_DEFAULT_PROVISIONER_NAME", "default-of-tests")
    KernelProvisionerFactory.clear_instance()  # it reads the variable once
    try:
        with pytest.raises(KernelNotFound, match="the provisioner 'default-of-tests'"):
            await Bridge.launch()
    finally:
        KernelProvisionerFactory.clear_instance()


@pytest.mark.slow
async def test_the_connection_of_a_provisioned_kernel_is_checked(spec: Spec, journal: Path) -> None:
    name = spec(addresses=["0.0.0.0"])  # not loopback, and of this machine
    message = r"the kernel 'on-a-node' leads to 0.0.0.0 over plain TCP.*insecure=\['plain-tcp'\]"
    with pytest.raises(InsecureConnection, match=message):
        await Bridge.launch(name)
    assert noted(journal)[-2:] == ["kill", "cleanup"]
    with pytest.raises(ValueError, match="insecure='everything' is unknown"):
        Bridge.launch(name, insecure="everything")
    async with Bridge.launch(name, insecure="plain-tcp") as bridge:
        assert (bridge.info.trust, bridge.info.lane) == ("data", "buffers")
        await bridge.push(x=[1])
        assert await bridge.pull("x") == [1]
        with pytest.raises(UntrustedPayload):
            await bridge.pull("__import__('fractions').Fraction")
        await bridge.restart()
        assert await bridge.pull("1 + 1") == 2


@pytest.mark.slow
async def test_a_restart_with_a_less_secure_connection_is_refused(spec: Spec) -> None:
    async with Bridge.launch(spec(addresses=["127.0.0.1", "0.0.0.0"])) as bridge:
        with pytest.raises(NotSupported, match=r"restarted at 0\.0\.0\.0, over another kind"):
            await bridge.restart()
        with pytest.raises(KernelRestarted):
            await bridge.push(x=1)


async def test_encryption_is_never_silently_left_out(
    spec: Spec, jupyter_folders: Path, journal: Path
) -> None:
    name = spec()
    file = jupyter_folders / "data" / "kernels" / name / "kernel.json"
    text = json.loads(file.read_text())
    text["metadata"]["supported_encryption"] = ["curve"]
    file.write_text(json.dumps(text))
    with pytest.raises(NotSupported, match="Node started 'on-a-node' without CURVE keys"):
        await Bridge.launch(name, encryption=True)
    assert noted(journal)[-2:] == ["kill", "cleanup"]


@pytest.mark.slow
async def test_over_a_manager_with_a_provisioner(spec: Spec, journal: Path) -> None:
    async with over(AsyncKernelManager(kernel_name=spec())) as bridge:
        await bridge.push(x=1)
        await bridge.restart()
        assert not await bridge.exists("x")
    assert noted(journal)[-1] == "cleanup"


@pytest.mark.slow
async def test_a_blocking_bridge_launches_and_restarts_on_a_node(spec: Spec, journal: Path) -> None:
    def use(name: str) -> None:
        with SyncBridge.launch(name) as kernel:
            kernel["x"] = 5
            kernel.restart()
            assert "x" not in kernel

    await asyncio.to_thread(use, spec())
    assert noted(journal)[-1] == "cleanup"


async def test_a_subclass_of_the_local_provisioner_works(
    installed: None, kernelspec: Callable[..., str]
) -> None:
    wanted = {"provisioner_name": "nice-of-tests"}
    name = kernelspec("nice", ARGV, metadata={"kernel_provisioner": wanted})
    async with Bridge.launch(name, limits={"cpu": 1000} if LINUX else None) as bridge:
        assert (
            bridge.info.transport == "tcp"
        )  # Unix sockets are only used with LocalProvisioner itself
        assert await bridge.pull("__import__('os').nice(0)") == os.nice(0) + 1
        if LINUX:
            limit = "__import__('resource').getrlimit(__import__('resource').RLIMIT_CPU)"
            assert await bridge.pull(limit) == (1000, 1000)
        died = r"exit code 3(, with limits=.*)?; it last wrote:\n(.*\n)*farewell"
        with pytest.raises(KernelDied, match=died):
            await bridge.run("import os; os.write(2, b'farewell'); os._exit(3)")


@pytest.mark.skipif(not LINUX, reason="limits are of Linux")
async def test_limits_that_a_provisioner_does_not_set_are_not_supported(
    installed: None, kernelspec: Callable[..., str], spec: Spec, journal: Path
) -> None:
    with pytest.raises(NotSupported, match="needs a process on this machine, not Node's"):
        await Bridge.launch(spec(), limits={"cpu": 1000})
    assert not journal.exists()
    wanted = {"provisioner_name": "nice-of-tests", "config": {"last_words": len(ARGV)}}
    name = kernelspec("own-command", ARGV, metadata={"kernel_provisioner": wanted})
    with pytest.raises(NotSupported, match="Nice started the kernel by a command of its own"):
        await Bridge.launch(name, limits={"cpu": 1000})
