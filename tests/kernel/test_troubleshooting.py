"""The README's table of what goes wrong: each message in it is provoked here.

Rule: the row is known by its message; an ellipsis there stands for what differs from case to case.
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

import pytest

from bridgehead import Bridge
from support.kit import endless_cell, file_of, until

README = Path(__file__).parents[2] / "README.md"

Provoke = Callable[[Bridge, Path], Awaitable[object]]


async def nobody_is_there(bridge: Bridge, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_RUNTIME_DIR", str(folder))
        await Bridge.attach()


async def no_such_kernelspec(bridge: Bridge, folder: Path) -> None:
    await Bridge.launch("pyhton3")


async def a_file_is_left_of_a_dead_kernel(bridge: Bridge, folder: Path) -> None:
    file = folder / "kernel-1.json"
    async with Bridge.launch(connection_file=file):
        text = file.read_text()
    file.write_text(text)
    await Bridge.attach(file)


async def nothing_is_signed(bridge: Bridge, folder: Path) -> None:
    info = json.loads(Path(file_of(bridge)).read_text())
    (folder / "kernel-1.json").write_text(json.dumps({**info, "key": ""}))
    await Bridge.attach(folder / "kernel-1.json")


async def plain_tcp_elsewhere(bridge: Bridge, folder: Path) -> None:
    info = json.loads(Path(file_of(bridge)).read_text())
    info |= {"transport": "tcp", "ip": "192.0.2.1"}
    (folder / "kernel-1.json").write_text(json.dumps(info))
    await Bridge.attach(folder / "kernel-1.json")


async def not_opened(bridge: Bridge, folder: Path) -> None:
    await Bridge.loopback().push(x=1)  # type: ignore[attr-defined]


async def another_loop(bridge: Bridge, folder: Path) -> None:
    def elsewhere() -> None:
        asyncio.run(bridge.pull("1"))

    await asyncio.to_thread(elsewhere)


async def a_lock(bridge: Bridge, folder: Path) -> None:
    await bridge.push(config={"lock": threading.Lock()})


async def a_module_of_mine(bridge: Bridge, folder: Path) -> None:
    (folder / "mymodule.py").write_text("class Model: ...")
    import mymodule  # type: ignore[import-not-found]

    await bridge.push(model=mymodule.Model())


async def no_such_name(bridge: Bridge, folder: Path) -> None:
    await bridge.pull("df")


async def raised_there(bridge: Bridge, folder: Path) -> None:
    await bridge.pull("1 / 0")


async def more_than_data(bridge: Bridge, folder: Path) -> None:
    await bridge.pull("print", trust="data")


async def too_large(bridge: Bridge, folder: Path) -> None:
    await bridge.pull("bytes(10**7)", max_bytes=10**6)


async def it_is_busy(bridge: Bridge, folder: Path) -> None:
    async with endless_cell(bridge):
        try:
            await bridge.pull("df", timeout=0.5)
        except TimeoutError as error:
            told = error
        await bridge.interrupt()
    raise told


async def no_direct_way(bridge: Bridge, folder: Path) -> None:
    async with Bridge.loopback(lane="direct"):
        pass


async def it_was_killed(bridge: Bridge, folder: Path) -> None:
    async with Bridge.launch() as mine:
        os.kill(mine.info.pid, signal.SIGKILL)
        await mine.run("import time; time.sleep(60)")


async def it_was_restarted(bridge: Bridge, folder: Path) -> None:
    async with Bridge.launch() as mine:
        cell = asyncio.ensure_future(mine.run("import time; time.sleep(60)"))
        await until(lambda: mine.state == "busy", 60)
        await mine.restart()
        await cell


CASES: list[Provoke] = [
    nobody_is_there,
    no_such_kernelspec,
    a_file_is_left_of_a_dead_kernel,
    nothing_is_signed,
    plain_tcp_elsewhere,
    not_opened,
    another_loop,
    a_lock,
    a_module_of_mine,
    no_such_name,
    raised_there,
    more_than_data,
    too_large,
    it_is_busy,
    no_direct_way,
    it_was_killed,
    it_was_restarted,
]


def rows() -> list[str]:
    """The messages in the README's table, as they stand there."""
    section = README.read_text().split("\n### Troubleshooting\n")[1].split("\n#")[0]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


@pytest.mark.parametrize("provoke", CASES)
async def test_the_message_is_in_the_table(
    provoke: Provoke, kernel: Bridge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mymodule", raising=False)
    with pytest.raises(Exception) as caught:  # which one, the table says
        await provoke(kernel, tmp_path)
    told = f"{type(caught.value).__name__}: {caught.value}".partition("\n")[0]
    matching = [
        row for row in rows() if re.fullmatch(".*".join(map(re.escape, row.split("…"))), told)
    ]
    assert len(matching) == 1, told


def test_every_row_has_a_case() -> None:
    assert len(rows()) == len(CASES)
