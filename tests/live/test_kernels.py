"""Where a kernel comes from: launched, attached to, lent; and where it goes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import psutil
import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager
from kit import over

from bridgehead import (
    Bridge,
    InsecureConnection,
    KernelDied,
    KernelNotFound,
    NotSupported,
    UnsupportedKernel,
)

pytestmark = pytest.mark.real_start
RUNTIME = "JUPYTER_RUNTIME_DIR"


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie that nobody waited for does not."""
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


async def test_a_launched_kernel_talks_over_unix_sockets_in_a_private_folder() -> None:
    async with Bridge.launch() as bridge:
        assert bridge.info.transport == "ipc"
        assert bridge.info.connection_file is not None
        file = Path(bridge.info.connection_file)
        assert json.loads(file.read_text())["transport"] == "ipc"
        assert file.stat().st_mode & 0o077 == 0
        assert file.parent.stat().st_mode & 0o077 == 0
        assert not list(Path().glob("kernel-ipc*"))


async def test_a_connection_file_of_ones_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with Bridge.launch(connection_file="mykernel.json") as bridge:
        assert (tmp_path / "mykernel.json").exists()
        await bridge.push(x=1)
        async with Bridge.attach("mykernel.json") as other:
            assert await other.pull("x") == 1
    assert os.listdir(tmp_path) == []


async def test_a_path_too_long_for_a_socket_falls_back_to_tcp(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    async with Bridge.launch(connection_file=folder / "kernel.json") as bridge:
        assert bridge.info.transport == "tcp"
        assert await bridge.pull("2 * 3") == 6


async def test_environment_and_folder(tmp_path: Path) -> None:
    async with Bridge.launch(env={"BRIDGE_TEST": "yes"}, cwd=tmp_path) as bridge:
        told = "__import__('os').environ['BRIDGE_TEST'], __import__('os').getcwd()"
        assert await bridge.pull(told) == ("yes", str(tmp_path))
        assert bridge.info.cwd == str(tmp_path)
        assert "PATH" in await bridge.pull("dict(__import__('os').environ)")


async def test_another_kernelspec(kernelspec: Callable[..., str]) -> None:
    argv = [sys.executable, "-Xutf8", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    async with Bridge.launch(kernelspec("other", argv)) as bridge:
        assert await bridge.pull("__import__('sys').flags.utf8_mode") == 1


async def test_a_kernelspec_that_does_not_exist() -> None:
    with pytest.raises(KernelNotFound, match=r"no kernel named 'kobol'.*there is: .*python3"):
        await Bridge.launch("kobol")


async def test_a_kernel_that_ends_at_once_tells_its_last_words(
    kernelspec: Callable[..., str],
) -> None:
    code = "import sys; sys.exit('the licence has expired')"
    with pytest.raises(
        KernelDied, match=r"exit code 1; it last wrote:\nthe licence has expired"
    ) as caught:
        await Bridge.launch(kernelspec("expired", [sys.executable, "-c", code]))
    assert caught.value.exit_code == 1
    assert os.listdir(os.environ[RUNTIME]) == []


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


async def test_a_launch_given_up_by_an_anyio_scope_leaves_nothing() -> None:
    # Such a scope cancels again at every await, also inside the cleaning up.
    for seconds in (0.05, 0.3, 0.5):
        with anyio.move_on_after(seconds):
            async with Bridge.launch() as bridge:
                await bridge.run("import time; time.sleep(30)")
        assert os.listdir(os.environ[RUNTIME]) == []
    assert not [child for child in psutil.Process().children() if child.is_running()]


async def _entered(opening: object) -> None:
    async with opening:  # type: ignore[attr-defined]
        await asyncio.sleep(60)


# ------------------------------------------------------------ attach


async def test_attach_takes_what_existing_takes(monkeypatch: pytest.MonkeyPatch) -> None:
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
        assert await bridge.pull("x") == [1]  # whoever attached never ends the kernel


async def test_a_missing_or_ambiguous_name_says_what_was_found() -> None:
    with pytest.raises(KernelNotFound, match="no kernel is running"):
        await Bridge.attach()
    async with Bridge.launch() as one, Bridge.launch() as two:
        names = [Path(b.info.connection_file or "").name for b in (one, two)]
        with pytest.raises(KernelNotFound, match="no connection file matches 'nowhere'") as caught:
            await Bridge.attach("nowhere")
        assert all(name in str(caught.value) for name in names)
        with pytest.raises(KernelNotFound, match="'kernel-' means 2 kernels; say which") as caught:
            await Bridge.attach("kernel-")
        assert all(name in str(caught.value) for name in names)
        with pytest.raises(KernelNotFound, match="means 2 kernels"):
            await Bridge.attach("kernel-*.json")


async def test_a_stale_connection_file_is_told_soon(tmp_path: Path) -> None:
    async with Bridge.launch(connection_file=tmp_path / "k.json") as bridge:
        info = Path(bridge.info.connection_file or "").read_text()
    (tmp_path / "k.json").write_text(info)
    with pytest.raises(KernelNotFound, match="nothing listens.*that kernel has ended"):
        await asyncio.wait_for(Bridge.attach(tmp_path / "k.json").__aenter__(), 15)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"ip": 5}', '{"key": "k", "ip": "127.0.0.1"}'])
async def test_a_file_that_is_no_connection_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "broken.json").write_text(text)
    with pytest.raises((KernelNotFound, InsecureConnection)):
        await Bridge.attach(tmp_path / "broken.json")


@pytest.mark.parametrize("field", ["shell_port", "control_port", "iopub_port", "hb_port"])
async def test_an_address_that_is_none_is_told_and_not_waited_for(
    tmp_path: Path, field: str
) -> None:
    ports = ("shell_port", "control_port", "iopub_port", "hb_port", "stdin_port")
    info: dict[str, object] = {"transport": "tcp", "ip": "127.0.0.1", "key": "k"}
    info |= dict.fromkeys(ports, 9) | {field: -1}
    (tmp_path / "damaged.json").write_text(json.dumps(info))
    (tmp_path / "damaged.json").chmod(0o600)
    opening = asyncio.ensure_future(Bridge.attach(tmp_path / "damaged.json").__aenter__())
    done, _ = await asyncio.wait([opening], timeout=15)
    assert done
    with pytest.raises(KernelNotFound, match="damaged.json has an address that is none"):
        await opening


async def test_attaching_to_a_busy_kernel_waits_its_turn() -> None:
    async with Bridge.launch() as bridge:
        cell = asyncio.ensure_future(bridge.run("import time; time.sleep(1.5); done = True"))
        await asyncio.sleep(0.3)
        with pytest.raises(
            TimeoutError, match="opening got no answer within 0.5 s; the kernel is busy"
        ):
            await Bridge.attach(bridge.info.connection_file, timeout=0.5)
        async with Bridge.attach(bridge.info.connection_file) as other:
            assert await other.pull("done") is True
        await cell


async def test_an_attached_bridge_cannot_restart_but_can_interrupt() -> None:
    async with Bridge.launch() as owner, Bridge.attach(owner.info.connection_file) as other:
        with pytest.raises(NotSupported, match="only whoever launched a kernel can restart it"):
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


async def test_over_a_client_that_stays_usable_beside_it() -> None:
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


async def test_over_something_else() -> None:
    with pytest.raises(TypeError, match=r"AsyncKernelManager or an ipyparallel view .* not int"):
        await Bridge.over(5)


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
    ("language", "told"),
    [
        ("echolalia", "echo 1.2 is a kernel for echolalia"),
        ("python", "echo 1.2: the kernel evaluates no user_expressions"),
    ],
)
async def test_an_unsupported_kernel_is_told_by_name(
    kernelspec: Callable[..., str], tmp_path: Path, language: str, told: str
) -> None:
    (tmp_path / "echo.py").write_text(KERNEL.format(language=language))
    argv = [sys.executable, str(tmp_path / "echo.py"), "-f", "{connection_file}"]
    name = kernelspec(f"echo-{language}", argv, language)
    async with asyncio.timeout(10):
        with pytest.raises(UnsupportedKernel, match=told):
            await Bridge.launch(name)
    assert os.listdir(os.environ[RUNTIME]) == []
