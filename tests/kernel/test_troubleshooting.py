"""The messages in the table of the troubleshooting page; a test provokes each of them.

Rule: the message identifies the row; an ellipsis in it stands for text that varies.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from bridgehead import Bridge, RemoteError
from support.kit import endless_cell, file_of, until
from support.web import answering, reply

PAGE = Path(__file__).parents[2] / "notebooks" / "guides" / "troubleshooting.md"

Provoke = Callable[[Bridge, Path], Awaitable[object]]


async def no_kernel_runs(bridge: Bridge, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_RUNTIME_DIR", str(folder))
        await Bridge.attach()


async def no_such_kernelspec(bridge: Bridge, folder: Path) -> None:
    await Bridge.launch("pyhton3")


async def a_dead_kernel_left_its_file(bridge: Bridge, folder: Path) -> None:
    file = folder / "kernel-1.json"
    async with Bridge.launch(connection_file=file):
        text = file.read_text()
    file.write_text(text)
    await Bridge.attach(file)


async def a_notebook_without_its_suffix(bridge: Bridge, folder: Path) -> None:
    notebook = json.dumps({"jupyter_session": "/books/train.ipynb"})
    (folder / "kernel-1.json").write_text(notebook)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_RUNTIME_DIR", str(folder))
        await Bridge.attach("train")


async def a_kernel_attaches_to_itself(bridge: Bridge, folder: Path) -> None:
    try:
        await bridge.run(f"from bridgehead import *\nSyncBridge.attach({file_of(bridge)!r})")
    except RemoteError as error:
        raise error.__cause__ or error from None


async def a_server_without_a_kernel(bridge: Bridge, folder: Path) -> None:
    async def answer(path: str, writer: asyncio.StreamWriter) -> None:
        await reply({"version": "2"} if path == "/api" else [])(path, writer)

    async with answering(answer) as url:
        await Bridge.attach(url)


async def an_empty_key(bridge: Bridge, folder: Path) -> None:
    info = json.loads(Path(file_of(bridge)).read_text())
    (folder / "kernel-1.json").write_text(json.dumps({**info, "key": ""}))
    await Bridge.attach(folder / "kernel-1.json")


async def plain_tcp_to_another_machine(bridge: Bridge, folder: Path) -> None:
    info = json.loads(Path(file_of(bridge)).read_text())
    info |= {"transport": "tcp", "ip": "192.0.2.1"}
    (folder / "kernel-1.json").write_text(json.dumps(info))
    await Bridge.attach(folder / "kernel-1.json")


async def a_bridge_that_is_not_open(bridge: Bridge, folder: Path) -> None:
    await Bridge.loopback().push(x=1)  # type: ignore[attr-defined]


async def another_event_loop(bridge: Bridge, folder: Path) -> None:
    def in_another_loop() -> None:
        asyncio.run(bridge.pull("1"))

    await asyncio.to_thread(in_another_loop)


async def a_lock(bridge: Bridge, folder: Path) -> None:
    await bridge.push(config={"lock": threading.Lock()})


async def a_module_that_the_kernel_lacks(bridge: Bridge, folder: Path) -> None:
    (folder / "mymodule.py").write_text("class Model: ...")
    import mymodule  # type: ignore[import-not-found]

    await bridge.push(model=mymodule.Model())


async def no_such_name(bridge: Bridge, folder: Path) -> None:
    await bridge.pull("df")


async def an_error_in_the_kernel(bridge: Bridge, folder: Path) -> None:
    await bridge.pull("1 / 0")


async def more_than_data(bridge: Bridge, folder: Path) -> None:
    await bridge.pull("print", trust="data")


async def too_large(bridge: Bridge, folder: Path) -> None:
    await bridge.pull("bytes(10**7)", max_bytes=10**6)


async def a_busy_kernel(bridge: Bridge, folder: Path) -> None:
    async with endless_cell(bridge):
        try:
            await bridge.pull("df", timeout=0.5)
        except TimeoutError as error:
            timeout = error
        await bridge.interrupt()
    raise timeout


async def no_direct_lane(bridge: Bridge, folder: Path) -> None:
    async with Bridge.loopback(lane="direct"):
        pass


async def a_killed_kernel(bridge: Bridge, folder: Path) -> None:
    async with Bridge.launch() as mine:
        os.kill(mine.info.pid, signal.SIGKILL)
        await mine.run("import time; time.sleep(60)")


async def a_restarted_kernel(bridge: Bridge, folder: Path) -> None:
    async with Bridge.launch() as mine:
        cell = asyncio.ensure_future(mine.run("import time; time.sleep(60)"))
        await until(lambda: mine.state == "busy", 60)
        await mine.restart()
        await cell


CASES: list[Any] = [
    no_kernel_runs,
    no_such_kernelspec,
    pytest.param(a_dead_kernel_left_its_file, marks=pytest.mark.timings(listen_within=0.3)),
    a_notebook_without_its_suffix,
    a_kernel_attaches_to_itself,
    a_server_without_a_kernel,
    an_empty_key,
    plain_tcp_to_another_machine,
    a_bridge_that_is_not_open,
    another_event_loop,
    a_lock,
    a_module_that_the_kernel_lacks,
    no_such_name,
    an_error_in_the_kernel,
    more_than_data,
    too_large,
    a_busy_kernel,
    no_direct_lane,
    a_killed_kernel,
    a_restarted_kernel,
]


def rows() -> list[str]:
    """Return the messages of the table."""
    return re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(), re.MULTILINE)


@pytest.mark.parametrize("provoke", CASES)
async def test_the_message_is_in_the_table(
    provoke: Provoke, kernel: Bridge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mymodule", raising=False)
    with pytest.raises(Exception) as caught:  # the table names the class
        await provoke(kernel, tmp_path)
    message = f"{type(caught.value).__name__}: {caught.value}".partition("\n")[0]
    matching = [
        row for row in rows() if re.fullmatch(".*".join(map(re.escape, row.split("…"))), message)
    ]
    assert len(matching) == 1, message


def test_every_row_has_a_case() -> None:
    assert len(rows()) == len(CASES)
