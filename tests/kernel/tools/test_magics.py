"""``%%bridge`` in a real notebook kernel and in a real terminal, with a real kernel behind it.

Rule: the near side is driven as a front end drives it, by cells, completion requests and
interrupts, or by keys; what is checked is what its outputs and its screen show.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from bridgehead import Bridge, RemoteError
from support.console import Console
from support.kit import Other, other, reported_within, until
from support.notebook import seen


@pytest.fixture(scope="module")
async def opened() -> AsyncIterator[Bridge]:
    """A notebook's kernel, which has launched another one."""
    async with Bridge.launch() as near:
        await near.run("%load_ext bridgehead\n%bridge launch")
        yield near


@pytest.fixture
async def near(opened: Bridge) -> Bridge:
    """The same one, with nothing in either namespace."""
    await opened.run("%reset -f\n%load_ext bridgehead")
    await opened.run("%%bridge\n%reset -f")
    return opened


async def far_of(near: Bridge) -> str:
    """The connection file of the kernel behind a notebook's."""
    magics = "get_ipython().magics_manager.registry['BridgeMagics']"
    file: str = await near.pull(f"{magics}.bridges['main'].info.connection_file")
    return file


async def complete(person: Other, line: str) -> list[str]:
    """What a front end would offer at the end of a line."""
    request = person.client.complete(line, len(line))
    return list((await person.answer(request))["matches"])


def plain(error: RemoteError) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))


# ---------------------------------------------------------------- in a notebook


async def test_outputs_come_in_their_order(near: Bridge) -> None:
    cell = """
        %%bridge
        import sys
        from IPython.display import HTML, display
        print("first")
        print("second", file=sys.stderr)
        display(HTML("<b>third</b>"))
        print("fourth")
        "fifth"
    """
    lines = [line[8:] for line in cell.strip("\n").splitlines()]
    assert await seen(near, "\n".join(lines)) == [
        ("stdout", "first\n"),
        ("stderr", "second\n"),
        ("display_data", "<IPython.core.display.HTML object>"),
        ("stdout", "fourth\n"),
        ("execute_result", "'fifth'"),
    ]
    result = await near.run("%%bridge\nfrom IPython.display import HTML\nHTML('<b>rich</b>')")
    assert result.data["text/html"] == "<b>rich</b>"
    assert (await near.run("_")).data == result.data
    assert await seen(near, "%%bridge\n1;") == []


async def test_outputs_are_seen_while_the_cell_runs(near: Bridge) -> None:
    arrived = asyncio.Event()
    cell = "%%bridge\nimport time\nprint('waits', end='')\nwhile True: time.sleep(0.01)"
    running = asyncio.ensure_future(near.run(cell, on_output=lambda _: arrived.set()))
    async with reported_within(1):
        await arrived.wait()
    assert not running.done()
    await near.interrupt()  # which is the far kernel's then
    with pytest.raises(RemoteError) as caught:
        await running
    told = plain(caught.value)
    assert told.count("Traceback (most recent call last)") == 1
    assert "while True: time.sleep(0.01)" in told
    assert told.rstrip().endswith("KeyboardInterrupt:")
    assert "_magics/cell.py" not in told
    assert await seen(near, "%%bridge\nprint('goes on')") == [("stdout", "goes on\n")]


async def test_a_second_interrupt_gives_up_waiting(near: Bridge) -> None:
    arrived: asyncio.Queue[Any] = asyncio.Queue()
    cell = """%%bridge
import time
print('begun', flush=True)
goes_on = True
while goes_on:
    try:
        time.sleep(0.01)
    except KeyboardInterrupt:
        print('not yet', flush=True)
"""
    async with Bridge.attach(await far_of(near)) as remote:
        running = asyncio.ensure_future(near.run(cell, on_output=arrived.put_nowait))
        async with reported_within(2):
            await arrived.get()
            await near.interrupt()
            assert "not yet" in (await arrived.get()).text
            await near.interrupt()
            with pytest.raises(RemoteError) as caught:
                await running
        assert plain(caught.value).startswith("KeyboardInterrupt: nobody waits for the cell")
        await remote.push(goes_on=False, now=True)
    assert await seen(near, "%%bridge\nprint(goes_on)") == [("stdout", "False\n")]


async def test_a_figure_is_shown_behind_the_value(near: Bridge) -> None:
    pytest.importorskip("matplotlib")
    cell = "%%bridge\n%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 2])"
    result = await near.run(cell)
    kinds = [output["output_type"] for output in result.outputs]
    assert kinds == ["execute_result", "display_data"]
    assert result.outputs[1]["data"]["image/png"].startswith("iVBORw0KGgo")


async def test_displays_are_updated_and_cleared(near: Bridge) -> None:
    cell = """%%bridge
from IPython.display import HTML, clear_output, display
print('gone')
clear_output(wait=True)
handle = display(HTML('<b>1</b>'), display_id=True)
handle.update(HTML('<b>2</b>'))
"""
    result = await near.run(cell)
    assert [output["data"]["text/html"] for output in result.outputs] == ["<b>2</b>"]
    later = []
    await near.run("%%bridge\nhandle.update(HTML('<b>3</b>'))", on_output=later.append)
    assert [message.type for message in later] == ["update_display_data"]
    assert await seen(near, "%%bridge\nprint(1)\nclear_output()\nprint(2)") == [("stdout", "2\n")]


async def test_an_error_is_the_kernels_own_and_told_once(near: Bridge) -> None:
    cell = "%%bridge --pull c\nc = 1\nprint('before')\ndef f():\n    return 1/0\nf()"
    with pytest.raises(RemoteError) as caught:
        await near.run(cell)
    told = plain(caught.value)
    assert told.count("ZeroDivisionError: division by zero") == 1
    assert "----> 4     return 1/0" in told
    assert "bridgehead" not in told
    assert "\x1b[" in "".join(caught.value.traceback)
    kinds = [output["output_type"] for output in caught.value.result.outputs]
    assert kinds == ["stream", "error"]
    assert not await near.exists("c")


async def test_a_traceback_that_is_only_shown_is_shown(near: Bridge) -> None:
    cell = "%%bridge\ntry:\n    1/0\nexcept ZeroDivisionError:\n    get_ipython().showtraceback()"
    (told,) = await seen(near, cell)
    assert told[0] == "stderr"
    assert "division by zero" in told[1]


async def test_objects_go_there_and_back(near: Bridge) -> None:
    await near.run("import numpy as np\nsent = np.arange(5.)\nword = '$sent'")
    await near.run("%%bridge --push sent,word --pull total\ntotal = sent.sum()")
    await near.run("%bridge pull (sent * 2) as double, word + '{sent}' as text")
    total, double, text = await near.pull("total", "double", "text")
    assert (total, list(double), text) == (10.0, [0, 2, 4, 6, 8], "$sent{sent}")
    with pytest.raises(RemoteError):
        await near.run("%bridge pull nope")
    assert not await near.exists("nope")


async def test_output_is_captured_like_any_other(near: Bridge) -> None:
    assert await seen(near, "%%capture kept\n%%bridge\nprint('captured')") == []
    assert await near.pull("kept.stdout") == "captured\n"


async def test_tab_is_answered_beside_a_busy_kernel(near: Bridge) -> None:
    await near.run("here_1 = 1")
    await near.run("%%bridge\nthere_1 = there_2 = 1")
    remote = await far_of(near)
    async with other(near) as person, Bridge.attach(remote) as busy:
        async with reported_within(20):  # on a machine so slow, an idle kernel may be late, too
            while await complete(person, "%bridge pull there") != ["there_1", "there_2"]:
                pass
        assert await complete(person, "%%bridge --push her") == ["here_1"]
        assert await complete(person, "%bridge launch pyth") == ["python3"]
        cell = asyncio.ensure_future(busy.run("import time\nwhile True: time.sleep(0.01)"))
        await until(lambda: busy.state == "busy")
        async with reported_within(1):
            assert await complete(person, "%bridge pull there") == ["there_1", "there_2"]
        assert not cell.done()
        await busy.interrupt()
        with pytest.raises(RemoteError, match="KeyboardInterrupt"):
            await cell


async def test_a_kernel_that_died_is_told_and_replaced() -> None:
    async with Bridge.launch() as near:
        await near.run("%load_ext bridgehead\n%bridge launch")
        printed: list[Any] = []
        with pytest.raises(RemoteError):
            await near.run("%%bridge\nimport os; os._exit(3)", on_output=printed.append)
        (told,) = printed
        assert told.text.startswith("UsageError: the kernel's process ended with exit code 3")
        assert "%bridge launch opens another one" in told.text
        await near.run("%bridge launch")
        assert await seen(near, "%%bridge\nprint('anew')") == [("stdout", "anew\n")]


async def test_the_kernel_ends_with_the_notebooks(tmp_path: Path) -> None:
    async with Bridge.launch() as near:
        await near.run("%load_ext bridgehead\n%bridge launch")
        cell = "%%bridge --pull pid\nimport os; pid = os.getpid()"
        await near.run(cell)
        remote = psutil.Process(await near.pull("pid"))
    await until(lambda: not remote.is_running() or remote.status() == psutil.STATUS_ZOMBIE)


async def test_a_notebook_does_not_wait_for_itself() -> None:
    async with Bridge.launch() as near, Bridge.launch() as remote:
        await near.run("%load_ext bridgehead")
        printed: list[Any] = []
        mine, others = Path(str(near.info.connection_file)), str(remote.info.connection_file)
        with pytest.raises(RemoteError):
            await near.run(f"%bridge attach {mine.name}", on_output=printed.append)
        assert "is this kernel itself" in printed[0].text
        os.utime(others)  # used last
        await near.run("%bridge attach")
        await near.run("%%bridge\nhere = 1")
        assert await remote.pull("here") == 1
        await near.run("%bridge close")
        assert await remote.pull("here") == 1


# ---------------------------------------------------------------- in a terminal


class IPython(Console):
    """An ``ipython`` process, its keyboard and its screen."""

    def __init__(self) -> None:
        self._start(["-m", "IPython", "--no-banner", "--no-confirm-exit"])


RUN = "\x1b\r"  # Alt-Enter runs a cell, wherever in it the cursor is
LINE = "\x0f\x0e"  # Ctrl-O and Ctrl-N: a new line, and go there


async def test_a_terminal() -> None:
    terminal = IPython()
    try:
        await terminal.prompts(1)
        terminal.type("%load_ext bridgehead\r")
        await terminal.prompts(2)
        terminal.type("%bridge launch\r")
        await terminal.shows("main: ipython")
        await terminal.prompts(3)
        remote = psutil.Process(int(re.search(r"pid (\d+)", terminal.screen)[1]))

        terminal.type(f"%%bridge{LINE}begun = 'begun'; print(begun){LINE}6 * 7{RUN}")
        await terminal.shows("Out[3]: 42")
        assert "begun\nOut[3]: 42" in terminal.screen
        await terminal.prompts(4)

        terminal.type("%bridge pull beg\t")
        await terminal.shows("%bridge pull begun")
        terminal.type("\r")
        await terminal.prompts(5)
        terminal.type("begun\r")
        await terminal.shows("Out[5]: 'begun'")
        await terminal.prompts(6)

        terminal.type(
            f"%%bridge{LINE}print(begun, 'waiting'){LINE}import time; time.sleep(600){RUN}"
        )
        await terminal.shows("begun waiting")
        terminal.type("\x03")
        await terminal.shows("KeyboardInterrupt:")
        await terminal.prompts(7)
        assert terminal.screen.count("Traceback (most recent call last)") == 1
        assert remote.is_running()

        terminal.type("exit\r")
        await terminal.wait(lambda: terminal.ended)
        await until(lambda: not remote.is_running())
    finally:
        await terminal.close()
