"""Kernels of other owners: by connection file, by client or manager, and unsupported ones."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ipykernel.inprocess.blocking import BlockingInProcessKernelClient
from ipykernel.inprocess.client import InProcessKernelClient
from ipykernel.inprocess.manager import InProcessKernelManager
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.multikernelmanager import AsyncMultiKernelManager

from bridgehead import Bridge, InsecureConnection, KernelNotFound, NotSupported, UnsupportedKernel
from bridgehead._transports.evidence import is_deserted
from support.kit import file_of, over, reported_within, stopped

pytestmark = pytest.mark.real_start
RUNTIME = "JUPYTER_RUNTIME_DIR"

# ------------------------------------------------------------ attach


async def test_attach_accepts_what_jupyter_console_existing_accepts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Bridge.launch() as bridge:
        await bridge.push(x=[1])
        file = Path(bridge.info.connection_file or "")
        middle = file.stem.removeprefix("kernel-")[2:9]
        for existing in (file, str(file), file.name, middle, f"*{middle}*", None):
            async with Bridge.attach(existing) as other:
                assert await other.pull("x") == [1]
                assert other.info.epoch == bridge.info.epoch
                assert other.info.pid == bridge.info.pid
        monkeypatch.chdir(file.parent)
        other = await Bridge.attach(file.name)
        await other.aclose()
        assert await bridge.pull("x") == [1]  # closing an attached bridge does not end the kernel


# Defined in the kernel: attach to ``file``, and return the error as text.
OF_ITSELF = """
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from bridgehead import Bridge, KernelNotFound, SyncBridge
from bridgehead._kernels.connection_file import own
def blocking():
    try: SyncBridge.attach(file).close()
    except KernelNotFound as error: return str(error)
async def awaited():
    try: await (await Bridge.attach(file)).aclose()
    except KernelNotFound as error: return str(error)
def in_a_fork():
    with ProcessPoolExecutor(1, get_context("fork")) as pool: return pool.submit(own).result()
"""


async def test_a_kernel_does_not_attach_to_itself() -> None:
    """It cannot answer while its own code waits: that took until the timeout."""
    async with Bridge.launch() as kernel, Bridge.launch() as other:
        file = Path(file_of(kernel))
        await kernel.push(file=file.name)
        await kernel.run(OF_ITSELF)
        expected = f"{file.name} is this kernel itself, which can't answer while its code waits; "
        for code in ("blocking()", "await awaited()"):
            assert str(await kernel.pull(code)).startswith(expected)
        # A process that it forked is another one, which the kernel can answer.
        assert await kernel.pull("own(), in_a_fork()") == (str(file.resolve()), None)
        os.utime(file)  # it was used last, and the latest of the others counts
        await kernel.push(bound=1)
        await kernel.run("with SyncBridge.attach() as used_last: used_last.push(bound=2)")
        assert (await kernel.pull("bound"), await other.pull("bound")) == (1, 2)
        await other.aclose()
        await kernel.push(file=None)
        assert "no other kernel is running" in str(await kernel.pull("blocking()"))


@pytest.mark.slow
async def test_a_missing_or_ambiguous_name_lists_the_files_found() -> None:
    with pytest.raises(KernelNotFound, match="no kernel is running"):
        await Bridge.attach()
    async with Bridge.launch() as one, Bridge.launch() as two:
        names = [Path(b.info.connection_file or "").name for b in (one, two)]
        with pytest.raises(KernelNotFound, match="no connection file matches 'nowhere'") as caught:
            await Bridge.attach("nowhere")
        assert all(name in str(caught.value) for name in names)
        with pytest.raises(KernelNotFound, match="'kernel-' matches 2 kernels; pass one") as caught:
            await Bridge.attach("kernel-")
        assert all(name in str(caught.value) for name in names)
        with pytest.raises(KernelNotFound, match="matches 2 kernels"):
            await Bridge.attach("kernel-*.json")


@pytest.mark.slow
async def test_a_stale_connection_file_is_reported_soon(tmp_path: Path) -> None:
    async with Bridge.launch(connection_file=tmp_path / "k.json") as bridge:
        info = Path(bridge.info.connection_file or "").read_text()
    (tmp_path / "k.json").write_text(info)
    with pytest.raises(KernelNotFound, match="no kernel listens.*it has exited"):
        await asyncio.wait_for(Bridge.attach(tmp_path / "k.json").__aenter__(), 15)


@pytest.mark.timings(listen_within=0.05)
async def test_a_kernel_that_is_slow_to_accept_a_connection_is_waited_for(
    live: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its machine is loaded, or it is stopped; only the caller's timeout ends the wait."""
    looks: list[bool] = []

    async def look(*args: Any, **options: Any) -> bool:
        looks.append(await is_deserted(*args, **options))
        return looks[-1]

    monkeypatch.setattr("bridgehead._transports.zmq.is_deserted", look)
    with stopped(live):
        with pytest.raises(KernelNotFound, match="within 0.5 s: no connection to it was made"):
            await Bridge.attach(file_of(live), timeout=0.5)
        looks.clear()
        opening = asyncio.ensure_future(Bridge.attach(file_of(live)).__aenter__())
        while len(looks) < 2 and not opening.done():
            await asyncio.sleep(0.01)
    bridge = await opening
    await bridge.aclose()
    assert not any(looks)


@pytest.mark.timings(listen_within=0.3)
@pytest.mark.parametrize("text", ["", "[]", "{", '{"ip": 5}', '{"key": "k", "ip": "127.0.0.1"}'])
async def test_a_file_that_is_not_a_connection_file_is_reported(tmp_path: Path, text: str) -> None:
    (tmp_path / "broken.json").write_text(text)
    with pytest.raises((KernelNotFound, InsecureConnection)):
        await Bridge.attach(tmp_path / "broken.json")


@pytest.mark.parametrize("field", ["shell_port", "control_port", "iopub_port", "hb_port"])
async def test_an_invalid_address_is_reported_at_once(tmp_path: Path, field: str) -> None:
    ports = ("shell_port", "control_port", "iopub_port", "hb_port", "stdin_port")
    info: dict[str, object] = {"transport": "tcp", "ip": "127.0.0.1", "key": "k"}
    info |= dict.fromkeys(ports, 9) | {field: -1}
    (tmp_path / "damaged.json").write_text(json.dumps(info))
    (tmp_path / "damaged.json").chmod(0o600)
    opening = asyncio.ensure_future(Bridge.attach(tmp_path / "damaged.json").__aenter__())
    done, _ = await asyncio.wait([opening], timeout=15)
    assert done
    with pytest.raises(KernelNotFound, match="the address in .*damaged.json is not valid"):
        await opening


async def test_attaching_to_a_busy_kernel_waits_for_the_cell() -> None:
    async with Bridge.launch() as bridge:
        cell = asyncio.ensure_future(bridge.run("import time; time.sleep(1.5); done = True"))
        await asyncio.sleep(0.3)
        with pytest.raises(TimeoutError, match="opening timed out after 0.5 s: the kernel is busy"):
            await Bridge.attach(bridge.info.connection_file, timeout=0.5)
        async with Bridge.attach(bridge.info.connection_file) as other:
            assert await other.pull("done") is True
        await cell


async def test_an_attached_bridge_cannot_restart_but_can_interrupt() -> None:
    async with Bridge.launch() as owner, Bridge.attach(owner.info.connection_file) as other:
        with pytest.raises(NotSupported, match="cannot restart: this bridge attached to a kernel"):
            await other.restart()
        cell = asyncio.ensure_future(owner.run("import time\nwhile True: time.sleep(0.01)"))
        await asyncio.sleep(0.3)
        await other.interrupt()
        with pytest.raises(Exception, match="KeyboardInterrupt"):
            await cell
        assert await other.pull("1") == 1


# ------------------------------------------------------------ over


async def test_over_a_manager_the_caller_owns() -> None:
    manager = AsyncKernelManager()
    with pytest.raises(KernelNotFound, match=r"not running; await manager\.start_kernel\(\)"):
        await Bridge.over(manager)
    async with over(manager) as bridge:
        assert bridge.info.transport == "tcp"
        await bridge.push(x=1)
        await bridge.restart()
        assert not await bridge.exists("x")


async def test_over_a_client_that_stays_usable() -> None:
    manager = AsyncKernelManager()
    await manager.start_kernel()
    client: AsyncKernelClient = manager.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=60)
        async with Bridge.over(client) as bridge:
            assert bridge._transport.session.session != client.session.session
            await bridge.push(x=20)
            for _ in range(5):
                reply, value = await asyncio.gather(
                    client.execute_interactive("x + 1", output_hook=lambda m: None, timeout=30),
                    bridge.pull("x * 2"),
                )
                assert reply["content"]["status"] == "ok"
                assert value == 40
        reply = await client.execute_interactive("x", output_hook=lambda m: None, timeout=30)
        assert reply["content"]["status"] == "ok"
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(now=True)


async def test_over_rejects_other_objects() -> None:
    with pytest.raises(TypeError, match=r"AsyncKernelManager or an ipyparallel view .* not int"):
        await Bridge.over(5)


def gateway_client() -> Any:
    from jupyter_server.gateway.managers import GatewayKernelClient  # takes a second

    return GatewayKernelClient(kernel_id="1")


WITHOUT_SOCKETS: dict[str, tuple[Callable[[], Any], str]] = {
    "in-process manager": (
        InProcessKernelManager,
        "not InProcessKernelManager, whose kernel runs in this process .* Bridge.launch",
    ),
    "in-process client": (InProcessKernelClient, "not InProcessKernelClient, whose kernel runs in"),
    "blocking in-process client": (
        BlockingInProcessKernelClient,
        "not BlockingInProcessKernelClient, whose kernel runs in this process",
    ),
    "client of a gateway": (
        gateway_client,
        "not GatewayKernelClient without the ports of a kernel; .* Bridge.connect",
    ),
    "client without a file": (
        AsyncKernelClient,
        r"not AsyncKernelClient without the ports .* load_connection_file\(\)",
    ),
    "class": (lambda: AsyncKernelManager, "not the class AsyncKernelManager; pass an instance"),
    "many kernels": (
        AsyncMultiKernelManager,
        r"not AsyncMultiKernelManager, .* pass manager.get_kernel\(kernel_id\)",
    ),
    "path": (lambda: "kernel-1.json", r"not str; Bridge.attach\(\) takes a connection file"),
}


@pytest.mark.parametrize("what", WITHOUT_SOCKETS)
async def test_over_rejects_what_has_no_sockets_of_a_kernel(what: str) -> None:
    """J10. A manager or client that reaches its kernel without sockets: TypeError, not a wait."""
    make, message = WITHOUT_SOCKETS[what]
    client = make()
    async with reported_within(0.1):
        with pytest.raises(TypeError, match=message):
            await Bridge.over(client)
        with pytest.raises(TypeError, match=message):
            async with Bridge.over(client, timeout=60):
                pass


RUNNING_IN_PROCESS = """
import asyncio, os
from bridgehead import Bridge
from ipykernel.inprocess.manager import InProcessKernelManager

async def main(*clients):
    for client in clients:
        try:
            await Bridge.over(client, timeout=600)
        except TypeError as error:
            print("refused:", str(error).partition(" not ")[2].partition(",")[0], flush=True)

manager = InProcessKernelManager()
manager.start_kernel()
client = manager.client()
client.start_channels()
asyncio.run(main(manager, client))
os._exit(0)  # a kernel that ends with its process leaves tasks, which asyncio reports
"""


async def test_over_rejects_a_kernel_that_runs_in_this_process() -> None:
    """J10. The same of a kernel that runs: its manager says that it is alive."""
    async with reported_within(2):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", RUNNING_IN_PROCESS, stdout=subprocess.PIPE
        )
        out, _ = await process.communicate()
    assert out.decode().splitlines() == [
        "refused: InProcessKernelManager",
        "refused: BlockingInProcessKernelClient",
    ]


# ------------------------------------------------------------ unsupported

KERNEL = """
from ipykernel.kernelapp import IPKernelApp
from ipykernel.kernelbase import Kernel

class Echo(Kernel):
    implementation = "echo"
    implementation_version = "1.2"
    banner = "echo"
    language_info = {{"name": {language!r}, "mimetype": "text/plain", "file_extension": ".txt"}}

    def do_execute(self, code, silent, *args, **kwargs):
        return {{"status": "ok", "execution_count": 1, "payload": [], "user_expressions": {{}}}}

IPKernelApp.launch_instance(kernel_class=Echo)
"""


@pytest.mark.parametrize(
    ("language", "message"),
    [
        ("echolalia", "echo 1.2 is a kernel for echolalia"),
        ("python", "echo 1.2: the kernel does not evaluate user_expressions"),
    ],
)
async def test_an_unsupported_kernel_is_reported_by_name(
    kernelspec: Callable[..., str],
    tmp_path: Path,
    language: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A kernel that has just started may miss the polite request to exit.
    monkeypatch.setattr(AsyncKernelManager, "shutdown_wait_time", 1.0)
    (tmp_path / "echo.py").write_text(KERNEL.format(language=language))
    argv = [sys.executable, str(tmp_path / "echo.py"), "-f", "{connection_file}"]
    name = kernelspec(f"echo-{language}", argv, language)
    async with asyncio.timeout(10):
        with pytest.raises(UnsupportedKernel, match=message):
            await Bridge.launch(name)
    assert os.listdir(os.environ[RUNTIME]) == []
