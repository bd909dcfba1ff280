"""Launching kernels: sockets, files, environment, failures and cancelled launches."""

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

from bridgehead import Bridge, KernelDied, KernelNotFound

RUNTIME = "JUPYTER_RUNTIME_DIR"


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


async def test_a_path_too_long_for_a_socket_falls_back_to_tcp(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    async with Bridge.launch(connection_file=folder / "kernel.json") as bridge:
        assert bridge.info.transport == "tcp"
        assert await bridge.pull("2 * 3") == 6


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
