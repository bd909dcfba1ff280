"""Test ``%%bridge`` in a real notebook kernel and in a real terminal, with a second real kernel.

Rule: the test drives the notebook kernel as a front end does, by cells, completion requests and
interrupts, and the terminal by keys. It checks outputs and the screen. ``notebook`` is the bridge
to the notebook kernel, ``second`` the bridge to the kernel that ``%bridge`` opened.
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
from support.kit import Other, endless_cell, other, reported_within, until
from support.notebook import seen


@pytest.fixture(scope="module")
async def opened() -> AsyncIterator[Bridge]:
    """Start a notebook kernel that has launched a second kernel."""
    async with Bridge.launch() as notebook:
        await notebook.run("%load_ext bridgehead\n%bridge launch")
        yield notebook


@pytest.fixture
async def notebook(opened: Bridge) -> Bridge:
    """Empty the namespaces of both kernels."""
    await opened.run("%reset -f\n%load_ext bridgehead")
    await opened.run("%%bridge\n%reset -f")
    return opened


async def second_kernel(notebook: Bridge) -> str:
    """Return the connection file of the second kernel."""
    magics = "get_ipython().magics_manager.registry['BridgeMagics']"
    file: str = await notebook.pull(f"{magics}.bridges['main'].info.connection_file")
    return file


async def complete(person: Other, line: str) -> list[str]:
    """Return what a front end would offer at the end of a line."""
    request = person.client.complete(line, len(line))
    return list((await person.answer(request))["matches"])


def plain(error: RemoteError) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))


# ---------------------------------------------------------------- in a notebook


async def test_outputs_come_in_order(notebook: Bridge) -> None:
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
    assert await seen(notebook, "\n".join(lines)) == [
        ("stdout", "first\n"),
        ("stderr", "second\n"),
        ("display_data", "<IPython.core.display.HTML object>"),
        ("stdout", "fourth\n"),
        ("execute_result", "'fifth'"),
    ]
    code = "\n".join(
        f"print({n}, file=sys.{name}, flush=True)"
        for n, name in enumerate(["stdout", "stderr"] * 4)
    )
    for _ in range(3):  # whether they arrive together or one by one
        texts = [text for _, text in await seen(notebook, f"%%bridge\nimport sys\n{code}")]
        assert texts == [f"{n}\n" for n in range(8)]
    result = await notebook.run("%%bridge\nfrom IPython.display import HTML\nHTML('<b>rich</b>')")
    assert result.data["text/html"] == "<b>rich</b>"
    assert (await notebook.run("_")).data == result.data
    assert await seen(notebook, "%%bridge\n1;") == []


async def test_outputs_are_shown_while_the_cell_runs(notebook: Bridge) -> None:
    arrived = asyncio.Event()
    cell = "%%bridge\nimport time\nprint('waits', end='')\nwhile True: time.sleep(0.01)"
    running = asyncio.ensure_future(notebook.run(cell, on_output=lambda _: arrived.set()))
    async with reported_within(1):
        await arrived.wait()
    assert not running.done()
    await notebook.interrupt()  # the magic interrupts the second kernel
    with pytest.raises(RemoteError) as caught:
        await running
    traceback = plain(caught.value)
    assert traceback.count("Traceback (most recent call last)") == 1
    assert "while True: time.sleep(0.01)" in traceback
    assert traceback.rstrip().endswith("KeyboardInterrupt:")
    assert "magics/cell.py" not in traceback
    assert await seen(notebook, "%%bridge\nprint('goes on')") == [("stdout", "goes on\n")]


async def test_a_second_interrupt_stops_waiting(notebook: Bridge) -> None:
    arrived: asyncio.Queue[Any] = asyncio.Queue()
    cell = """%%bridge
import signal, time
# A try statement would not do: an interrupt may come before it, or between two turns of the loop.
signal.signal(signal.SIGINT, lambda *_: print('not yet', flush=True))
goes_on = True
print('begun', flush=True)
while goes_on:
    time.sleep(0.01)
"""
    async with Bridge.attach(await second_kernel(notebook)) as second:
        running = asyncio.ensure_future(notebook.run(cell, on_output=arrived.put_nowait))
        async with reported_within(2):
            await arrived.get()
            await notebook.interrupt()
            assert "not yet" in (await arrived.get()).text
            await notebook.interrupt()
            with pytest.raises(RemoteError) as caught:
                await running
        assert plain(caught.value).startswith("KeyboardInterrupt: stopped waiting; the cell may")
        await second.push(goes_on=False, now=True)
    assert await seen(notebook, "%%bridge\nprint(goes_on)") == [("stdout", "False\n")]


async def test_an_interrupt_before_the_cell_begins_hits_no_other_cell(
    notebook: Bridge, tmp_path: Path
) -> None:
    """The second kernel runs another client's cell: the magic stops waiting, and that cell ends."""
    gate = tmp_path / "gate"
    bridge = "get_ipython().magics_manager.registry['BridgeMagics'].bridges['main']._bridge"
    code = f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)\n'ended'"
    async with Bridge.attach(await second_kernel(notebook)) as second:
        earlier = asyncio.ensure_future(second.run(code))
        await until(lambda: second.state == "busy")
        running = asyncio.ensure_future(notebook.run("%%bridge\nmine = True"))
        async with reported_within(1):
            while not await notebook.pull(f"{bridge}._transport.dispatcher.in_flight", now=True):
                await asyncio.sleep(0.01)
        await notebook.interrupt()
        async with reported_within(1):
            with pytest.raises(RemoteError) as caught:
                await running
        assert plain(caught.value).startswith("KeyboardInterrupt: stopped waiting; the cell may")
        assert not earlier.done()
        gate.touch()
        assert (await earlier).data["text/plain"] == "'ended'"
    assert await seen(notebook, "%%bridge\nprint('goes on')") == [("stdout", "goes on\n")]


async def test_a_figure_is_shown_after_the_value(notebook: Bridge) -> None:
    pytest.importorskip("matplotlib")
    cell = "%%bridge\n%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 2])"
    result = await notebook.run(cell)
    kinds = [output["output_type"] for output in result.outputs]
    assert kinds == ["execute_result", "display_data"]
    assert result.outputs[1]["data"]["image/png"].startswith("iVBORw0KGgo")


async def test_displays_are_updated_and_cleared(notebook: Bridge) -> None:
    cell = """%%bridge
from IPython.display import HTML, clear_output, display
print('gone')
clear_output(wait=True)
handle = display(HTML('<b>1</b>'), display_id=True)
handle.update(HTML('<b>2</b>'))
"""
    result = await notebook.run(cell)
    assert [output["data"]["text/html"] for output in result.outputs] == ["<b>2</b>"]
    later = []
    await notebook.run("%%bridge\nhandle.update(HTML('<b>3</b>'))", on_output=later.append)
    assert [message.type for message in later] == ["update_display_data"]
    assert await seen(notebook, "%%bridge\nprint(1)\nclear_output()\nprint(2)") == [
        ("stdout", "2\n")
    ]


async def test_an_error_is_the_kernels_own_and_is_shown_once(notebook: Bridge) -> None:
    cell = "%%bridge --pull c\nc = 1\nprint('before')\ndef f():\n    return 1/0\nf()"
    with pytest.raises(RemoteError) as caught:
        await notebook.run(cell)
    traceback = plain(caught.value)
    assert traceback.count("ZeroDivisionError: division by zero") == 1
    assert "----> 4     return 1/0" in traceback
    assert "bridgehead" not in traceback
    assert "\x1b[" in "".join(caught.value.traceback)
    kinds = [output["output_type"] for output in caught.value.result.outputs]
    assert kinds == ["stream", "error"]
    assert not await notebook.exists("c")


async def test_a_traceback_that_is_only_shown_is_shown(notebook: Bridge) -> None:
    cell = "%%bridge\ntry:\n    1/0\nexcept ZeroDivisionError:\n    get_ipython().showtraceback()"
    (output,) = await seen(notebook, cell)
    assert output[0] == "stderr"
    assert "division by zero" in output[1]


async def test_objects_are_pushed_and_pulled(notebook: Bridge) -> None:
    await notebook.run("import numpy as np\nsent = np.arange(5.)\nword = '$sent'")
    await notebook.run("%%bridge --push sent,word --pull total\ntotal = sent.sum()")
    await notebook.run("%bridge pull (sent * 2) as double, word + '{sent}' as text")
    total, double, text = await notebook.pull("total", "double", "text")
    assert (total, list(double), text) == (10.0, [0, 2, 4, 6, 8], "$sent{sent}")
    with pytest.raises(RemoteError):
        await notebook.run("%bridge pull nope")
    assert not await notebook.exists("nope")


async def test_output_can_be_captured(notebook: Bridge) -> None:
    assert await seen(notebook, "%%capture kept\n%%bridge\nprint('captured')") == []
    assert await notebook.pull("kept.stdout") == "captured\n"


async def test_tab_is_answered_while_the_kernel_is_busy(notebook: Bridge) -> None:
    await notebook.run("local_1 = 1")
    await notebook.run("%%bridge\nremote_1 = remote_2 = 1")
    file = await second_kernel(notebook)
    async with other(notebook) as person, Bridge.attach(file) as busy:
        async with reported_within(20):  # on a slow machine, an idle kernel may answer late too
            while await complete(person, "%bridge pull remo") != ["remote_1", "remote_2"]:
                pass
        assert await complete(person, "%%bridge --push loc") == ["local_1"]
        assert await complete(person, "%bridge launch pyth") == ["python3"]
        async with endless_cell(busy):
            async with reported_within(1):
                assert await complete(person, "%bridge pull remo") == ["remote_1", "remote_2"]
            assert busy.state == "busy"
            await busy.interrupt()


async def test_a_dead_kernel_is_reported_and_replaced() -> None:
    async with Bridge.launch() as notebook:
        await notebook.run("%load_ext bridgehead\n%bridge launch")
        printed: list[Any] = []
        with pytest.raises(RemoteError):
            await notebook.run("%%bridge\nimport os; os._exit(3)", on_output=printed.append)
        (message,) = printed
        assert message.text.startswith("UsageError: the kernel's process ended with exit code 3")
        assert "%bridge launch starts a new kernel" in message.text
        await notebook.run("%bridge launch")
        assert await seen(notebook, "%%bridge\nprint('anew')") == [("stdout", "anew\n")]


@pytest.mark.slow
async def test_the_second_kernel_exits_with_the_notebook_kernel(tmp_path: Path) -> None:
    async with Bridge.launch() as notebook:
        await notebook.run("%load_ext bridgehead\n%bridge launch")
        cell = "%%bridge --pull pid\nimport os; pid = os.getpid()"
        await notebook.run(cell)
        second = psutil.Process(await notebook.pull("pid"))
    await until(lambda: not second.is_running() or second.status() == psutil.STATUS_ZOMBIE)


async def test_a_notebook_kernel_does_not_attach_to_itself() -> None:
    async with Bridge.launch() as notebook, Bridge.launch() as second:
        await notebook.run("%load_ext bridgehead")
        printed: list[Any] = []
        own = Path(str(notebook.info.connection_file))
        with pytest.raises(RemoteError):
            await notebook.run(f"%bridge attach {own.name}", on_output=printed.append)
        assert "is this kernel itself" in printed[0].text
        os.utime(own)  # this file was used last
        await notebook.run("%bridge attach")
        await notebook.run("%%bridge\nbound = 1")
        assert await second.pull("bound") == 1
        await notebook.run("%bridge close")
        assert await second.pull("bound") == 1


# ---------------------------------------------------------------- widgets

BAR = "from tqdm.auto import tqdm\nfor _ in tqdm(range(3)): pass"


async def test_a_widget_is_shown_as_its_text(notebook: Bridge) -> None:
    """A front end would look for the widget's model in the notebook's own kernel."""
    pytest.importorskip("ipywidgets")
    messages: list[Any] = []
    result = await notebook.run(f"%%bridge\n{BAR}", on_output=messages.append)
    assert set(messages[0].content["data"]) == {"text/plain"}
    (output,) = result.outputs
    assert set(output["data"]) == {"text/plain"}
    assert output["data"]["text/plain"].startswith("100%|██████████| 3/3 [")
    cell = "%%bridge\nimport ipywidgets\nipywidgets.IntSlider(3)"
    (output,) = (await notebook.run(cell)).outputs
    assert set(output["data"]) == {"text/plain"}
    assert output["data"]["text/plain"].startswith("IntSlider(value=3")


async def test_the_result_of_a_cell_shows_widgets_as_text(notebook: Bridge) -> None:
    pytest.importorskip("ipywidgets")
    bridge = "get_ipython().magics_manager.registry['BridgeMagics'].bridges['main']"
    (output,) = (await notebook.run(f"{bridge}.run({BAR!r})")).outputs
    assert set(output["data"]) == {"text/plain"}


# ---------------------------------------------------------------- several kernels, and their life


@pytest.fixture(scope="module")
async def pair() -> AsyncIterator[Bridge]:
    """Start a notebook kernel that has launched two kernels."""
    async with Bridge.launch() as own:
        await own.run("%load_ext bridgehead\n%bridge launch --on a\n%bridge launch --on b")
        yield own


async def test_a_cell_runs_in_two_kernels_at_once(pair: Bridge) -> None:
    """Each waits for the other, so they run at the same time."""
    code = """%%bridge --all --push folder --pull pid
import os, time
mine = [one for one in os.listdir(folder)]
open(os.path.join(folder, str(os.getpid())), 'w').close()
while len(os.listdir(folder)) < 2: time.sleep(0.01)
pid = os.getpid()
print('printed', end='')
print(' whole')
"""
    await pair.run("import tempfile\nfolder = tempfile.mkdtemp()")
    async with reported_within(20):
        shown = await seen(pair, code)
    assert "".join(sorted(shown[0][1].splitlines(True))) == "a | printed whole\nb | printed whole\n"
    pids = await pair.pull("pid")
    assert list(pids) == ["a", "b"]
    assert pids["a"] != pids["b"]


async def test_an_interrupt_reaches_each_of_several_cells(pair: Bridge) -> None:
    begun: list[Any] = []
    loop = "import time\nprint('begun', flush=True)\nwhile True: time.sleep(0.01)"
    cell = f"%%bridge --on a,b\n{loop}"
    running = asyncio.ensure_future(pair.run(cell, on_output=begun.append))
    async with reported_within(20):
        await until(lambda: "".join(one.text for one in begun).count("begun") == 2)
        await pair.interrupt()
        with pytest.raises(RemoteError) as caught:
            await running
    assert caught.value.ename == "UsageError"
    assert caught.value.result is not None
    text = re.sub(r"\x1b\[[0-9;]*m", "", caught.value.result.stderr)
    assert text.count(" | failed\n---") == 2
    assert text.count("KeyboardInterrupt: \n") == 2
    assert "the cell failed in a (KeyboardInterrupt), b (KeyboardInterrupt)" in text
    assert await seen(pair, "%%bridge --on a\nprint('goes on')") == [("stdout", "goes on\n")]


@pytest.mark.slow
async def test_a_kernel_that_dies_is_one_of_several(pair: Bridge) -> None:
    code = "%%bridge --all\nimport os\nif doomed: os._exit(3)\nprint('fine')"
    await pair.run("%%bridge --on a\ndoomed = False")
    await pair.run("%%bridge --on b\ndoomed = True")
    with pytest.raises(RemoteError) as caught:
        await pair.run(code)
    assert caught.value.result is not None
    assert "a | fine\n" in caught.value.result.stdout
    assert "exit code 3" in caught.value.result.stderr
    (output,) = await seen(pair, "%bridge restart --on b")
    assert output[1].startswith("b: restarted; ipython")
    await pair.run("%%bridge --on b\ndoomed = False")
    assert len((await pair.run(code)).stdout.splitlines()) == 2


async def test_a_cell_of_another_client_is_interrupted(notebook: Bridge) -> None:
    async with Bridge.attach(await second_kernel(notebook)) as second:
        cell = asyncio.ensure_future(second.run("import time\nwhile True: time.sleep(0.01)"))
        await until(lambda: second.state == "busy")
        assert await seen(notebook, "%bridge interrupt") == [("stdout", "main: interrupted\n")]
        with pytest.raises(RemoteError, match="KeyboardInterrupt"):
            await cell


async def test_only_a_launched_kernel_is_restarted(notebook: Bridge) -> None:
    await notebook.run(f"%bridge attach {await second_kernel(notebook)} --on guest")
    printed: list[Any] = []
    with pytest.raises(RemoteError):
        await notebook.run("%bridge restart --on guest", on_output=printed.append)
    assert printed[0].text.startswith("UsageError: ")
    assert "cannot restart" in printed[0].text
    await notebook.run("%bridge close guest")


# ---------------------------------------------------------------- in a terminal


class IPython(Console):
    """An ``ipython`` process, its keyboard and its screen."""

    def __init__(self) -> None:
        self._start(["-m", "IPython", "--no-banner", "--no-confirm-exit"])


RUN = "\x1b\r"  # Alt-Enter runs a cell, wherever the cursor is in it
LINE = "\x0f\x0e"  # Ctrl-O and Ctrl-N: insert a line and move to it


@pytest.mark.slow
async def test_cells_completion_and_interrupts_in_a_terminal() -> None:
    terminal = IPython()
    try:
        await terminal.prompts(1)
        terminal.type("%load_ext bridgehead\r")
        await terminal.prompts(2)
        terminal.type("%bridge launch\r")
        await terminal.shows("main: ipython")
        await terminal.prompts(3)
        second = psutil.Process(int(re.search(r"pid (\d+)", terminal.screen)[1]))

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
        assert second.is_running()

        terminal.type("exit\r")
        await terminal.wait(lambda: terminal.ended)
        await until(lambda: not second.is_running())
    finally:
        await terminal.close()


# ------------------------------------------------------------ M9: an untrusted kernel

SHOW = r"""
from IPython.display import HTML, Javascript, display
handle = display(Javascript("alert(1)"), display_id="evil")
display(HTML("<script>alert(1)</script>"), metadata={"text/html": {"isolated": False}})
print("\x1b]0;own\x07\x1b[2Jtext")
handle.update(HTML("<b>more</b>"))
HTML("<i>value</i>")
"""


@pytest.mark.slow
async def test_outputs_of_an_untrusted_kernel_are_inert() -> None:
    async with Bridge.launch() as notebook:
        await notebook.run("%load_ext bridgehead\n%bridge launch --trust data")
        result = await notebook.run(f"%%bridge\n{SHOW}")
        shown = [output["data"] for output in result.outputs if "data" in output]
        assert len(shown) == 3
        for data in shown:
            assert set(data) == {"text/plain"}
            assert "not shown" in data["text/plain"]
        assert (
            "application/javascript"
            in (await notebook.run(f"%%bridge\n{SHOW[: SHOW.index('display(HTML')]}")).outputs[0][
                "data"
            ]["text/plain"]
        )
        assert result.stdout == "text\n"
        assert "html" in result.data["text/plain"]
        failing = "raise ValueError('\\x1b]0;own\\x07\\x1b[2J')"
        with pytest.raises(RemoteError) as caught:
            await notebook.run(f"%%bridge\n{failing}")
        assert not {"\x1b]", "\x07", "\x1b[2J"} & set(
            re.findall(r"\x1b\]|\x07|\x1b\[2J", "\n".join(caught.value.traceback))
        )


# ------------------------------------------------------------ the guide

GUIDE = Path(__file__).parents[3] / "notebooks" / "guides" / "magics.md"
BEFORE = {  # what the text says is there before a block
    "%bridge push rows": "%%bridge\nimport pandas\nresult, df = 1, pandas.DataFrame([1, 2])",
    "%%bridge --on a,b": "%bridge launch --on a\n%bridge launch --on b",
    "from bridgehead": "from bridgehead import SyncBridge\nkernel = SyncBridge.loopback()\n"
    "kernel.push(numbers=[1, 2])",
}


@pytest.mark.slow
async def test_the_examples_of_the_guide_run() -> None:
    blocks = re.findall(r"^```(?:python)?\n((?:%|from).*?)^```$", GUIDE.read_text(), re.M | re.S)
    assert len(blocks) == 6
    printed = []
    async with Bridge.launch() as notebook:
        await notebook.run("rows, model = [1, 2, 3], 'model'")
        for block in blocks:
            for start, cell in BEFORE.items():
                if block.startswith(start):
                    await notebook.run(cell)
            printed.append((await notebook.run(block)).stdout)
        assert await notebook.pull("total, n, result") == (6, 2, 1)
    assert re.match(r"main: ipython \S+, Python \S+, pid \d+: direct over ipc\n", printed[1])
    assert re.search(r"main: pushed rows, model: \d+ bytes by direct in \S+ s\n", printed[2])
    assert printed[3].startswith("added 3\n")
    assert sorted(line.partition(" process ")[0] for line in printed[4].splitlines()) == [
        "a |",
        "b |",
    ]
    assert printed[5] == "IndexError('list index out of range')\nIndexError\n"
