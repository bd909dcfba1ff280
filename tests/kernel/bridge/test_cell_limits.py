"""Deadlines, limits, names, values and input of cells, in real kernels.

Rule: what a loopback cannot show: interrupts, child processes, other clients, every lane.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bridgehead import (
    Bridge,
    KernelRestarted,
    MissingInKernel,
    NotSupported,
    RemoteError,
    RunTimeout,
)
from support.elsewhere import MAJORS
from support.kit import LANES, goes_on, other, reported_within, until
from support.promises import occupied


@pytest.fixture(scope="module", params=LANES)
async def on_lane(request: pytest.FixtureRequest) -> AsyncIterator[Bridge]:
    # ipykernel does not pass on what children print if it finds itself in a test of pytest.
    inherited = os.environ.keys() - {"PYTEST_CURRENT_TEST"}
    async with Bridge.launch(lane=request.param, inherit_env=inherited) as bridge:
        yield bridge


@pytest.fixture
async def bridge(on_lane: Bridge) -> Bridge:
    names = [name.name for name in await on_lane.names(modules=True)]
    if names:
        await on_lane.delete(*names)
    return on_lane


def staged(bridge: Bridge) -> Any:
    """Return an expression of what the remote part keeps for cells that have not begun."""
    return (
        "[[*m.staged] for n, m in __import__('sys').modules.items() if n.startswith('_bridgehead')]"
    )


# ---------------------------------------------------------------- the deadline


async def test_a_cell_is_interrupted_at_its_deadline(bridge: Bridge) -> None:
    async with reported_within(2):
        with pytest.raises(RunTimeout, match="and the cell was interrupted$") as caught:
            await bridge.run(
                "import time\nprint('begun')\ntry: time.sleep(60)\nfinally: print('ended')",
                timeout=0.5,
                on_timeout="interrupt",
            )
    assert caught.value.result.stdout == "begun\nended\n"
    assert caught.value.result.outputs[-1]["output_type"] == "error"
    await goes_on(bridge)


async def test_a_cell_that_ignores_the_interrupt_ends_here(bridge: Bridge) -> None:
    code = (
        "import time\nprint('begun')\nend = time.monotonic() + 3\n"
        "while time.monotonic() < end:\n"
        "    try: time.sleep(60 if 0 else end - time.monotonic())\n"
        "    except KeyboardInterrupt: print('ignored', flush=True)\nended = True"
    )
    async with reported_within(2):
        with pytest.raises(RunTimeout, match="interrupted, but has not ended") as caught:
            await bridge.run(code, timeout=0.5, on_timeout="interrupt")
    assert caught.value.result.stdout == "begun\nignored\n"
    assert await bridge.pull("ended")


RESISTS = {
    "it catches the interrupt": (
        "try: time.sleep(60)\nexcept KeyboardInterrupt: print('caught')\n'value'",
        "was interrupted$",
    ),
    "it raises something else": (
        "try: time.sleep(60)\nexcept KeyboardInterrupt: raise ValueError",
        "was interrupted$",
    ),
    "it has a handler of its own": (
        "import signal\nold = signal.signal(2, lambda *of: None)\n"
        "while not free: time.sleep(0.01)\nsignal.signal(2, old)",
        "has not ended",
    ),
    "it blocks the signal": (
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [2])\n"
        "while not free: time.sleep(0.01)\nsignal.pthread_sigmask(signal.SIG_UNBLOCK, [2])",
        "has not ended",
    ),
    "its end takes long": (
        "try: time.sleep(60)\nfinally:\n    while not free: time.sleep(0.01)",
        "has not ended",
    ),
    "it awaits": (
        "import asyncio\ntry: await asyncio.sleep(60)\n"
        "except asyncio.CancelledError: print('cancelled')",
        "was interrupted$",
    ),
}


@pytest.mark.parametrize("how", RESISTS)
async def test_whatever_a_cell_does_at_the_interrupt_it_ends_here(live: Bridge, how: str) -> None:
    code, words = RESISTS[how]
    await live.run("import time\nfree = False")
    async with reported_within(2):
        with pytest.raises(RunTimeout, match=words) as caught:
            await live.run(code, timeout=0.5, on_timeout="interrupt")
    if how == "it catches the interrupt":
        assert caught.value.result.data["text/plain"] == "'value'"
    await live.push(free=True, now=True)
    await goes_on(live)


async def test_a_value_is_not_interrupted_at_the_deadline(bridge: Bridge) -> None:
    with pytest.raises(RunTimeout, match="or pull= is still being evaluated$"):
        await bridge.run("import time", pull=["time.sleep(3)"], timeout=0.3, on_timeout="interrupt")
    await goes_on(bridge)


async def test_a_cell_that_is_left_goes_on(bridge: Bridge) -> None:
    with pytest.raises(RunTimeout, match="may still run"):
        await bridge.run("import time; time.sleep(0.6); ended = True", timeout=0.2)
    assert await bridge.pull("ended")


async def test_only_its_own_cell_is_interrupted(bridge: Bridge) -> None:
    await bridge.push(ran=[])
    async with occupied(bridge):
        async with reported_within(0.5):
            with pytest.raises(RunTimeout, match="withdrawn before it began"):
                await bridge.run("ran.append(1)", timeout=0.3, on_timeout="interrupt")
        async with reported_within(0.5):
            with pytest.raises(RunTimeout, match="was not sent"):
                await bridge.run(
                    "ran.append(1)", push={"given": 1}, timeout=0.3, on_timeout="interrupt"
                )
    await goes_on(bridge)
    assert await bridge.pull("ran") == []
    assert not await bridge.exists("given")
    assert [one for one in await bridge.pull(staged(bridge)) if one] == []


# ---------------------------------------------------------------- limits


PRINTERS = {
    "print": "for n in range(20_000): print('x' * 99)",
    "child": "import subprocess, sys\nsubprocess.run([sys.executable, '-c', {print!r}])",
    "shell": "!python -c {print!r}",
    "descriptor": "import os\nfor n in range(20_000): os.write(1, b'x' * 99 + b'\\n')",
    "class": (
        "import sys\nclass Text(str): pass\n"
        "for n in range(20_000): sys.stdout.write(Text('x' * 99 + '\\n'))"
    ),
    "await": (
        "import asyncio\nfor n in range(20_000):\n    print('x' * 99)\n"
        "    n % 999 or await asyncio.sleep(0)"
    ),
    "thread": (
        "import threading\nthread = threading.Thread(target=lambda: exec({print!r}))\n"
        "thread.start(); thread.join()"
    ),
}


async def test_a_limit_leaves_the_users_hook_for_errors(bridge: Bridge) -> None:
    """``rich`` sets one on the shell, and not on its class."""
    await bridge.run(
        "shell, seen = get_ipython(), []\n"
        "shell._showtraceback = lambda *error: seen.append(error[0])"
    )
    for _ in range(2):
        with pytest.raises(RemoteError):
            await bridge.run("1/0", max_output=100)
    assert await bridge.pull("len(seen), '_showtraceback' in vars(shell)") == (2, True)
    await bridge.run("del shell._showtraceback")
    with pytest.raises(RemoteError):
        await bridge.run("1/0", max_output=100)
    assert not await bridge.pull("'_showtraceback' in vars(shell)")


FLOODS = {
    "child": (
        "subprocess.run([sys.executable, '-c', 'for n in range(1000): print(\"x\" * 99_999)'])"
    ),
    "threads": (
        "def flood():\n    for n in range(250): print('x' * 99_999)\n"
        "threads = [threading.Thread(target=flood) for n in range(4)]\n"
        "for one in threads: one.start()\nfor one in threads: one.join()"
    ),
    "descriptor": (
        "for n in range(1000):\n    left = memoryview(b'x' * 99_999 + b'\\n')\n"
        "    while left: left = left[os.write(1, left):]"
    ),
    "fork": (
        "child = os.fork()\nif not child:\n"
        "    for n in range(1000): print('x' * 99_999)\n    os._exit(0)\nos.waitpid(child, 0)"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", FLOODS)
async def test_a_hundred_million_characters_take_no_memory(bridge: Bridge, how: str) -> None:
    await bridge.run("import os, resource, subprocess, sys, threading")
    peak = "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10"  # MB
    before = await bridge.pull(peak), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    result = await bridge.run(FLOODS[how], max_output=1000)
    assert len(result.stdout) < 1100
    assert 10**8 - 2100 < result.dropped < 10**8 + 100
    after = await bridge.pull(peak), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    assert max(after[0] - before[0], after[1] - before[1]) < 30
    assert (await bridge.run("print('y' * 5000)")).stdout == "y" * 5000 + "\n"


@pytest.mark.parametrize("how", PRINTERS)
async def test_what_a_cell_prints_is_cut_in_the_kernel(bridge: Bridge, how: str) -> None:
    code = PRINTERS[how].replace("{print!r}", repr(PRINTERS["print"]))
    seen = 0
    messages = bridge.messages()
    # What is written to the descriptor may come after what is printed later.
    end = "" if how in ("child", "descriptor") else "the end\n"
    result = await bridge.run(f"{code}\nprint({end!r}, end='')", max_output=1000)
    for _ in range(len(messages)):
        message = await anext(messages)
        seen += len(message.text) if message.type == "stream" else 0
    await messages.aclose()
    assert seen == len(result.stdout) + len(result.stderr) < 1100
    stdout = result.stdout.replace("\r", "")  # from a terminal that IPython makes for "!"
    assert stdout.startswith("x" * 99 + "\n" + "x" * 99)
    assert stdout.endswith(f"x\n{end}")
    carriage_returns = 20_000 if how == "shell" else 0
    assert result.dropped == 20_000 * 100 + carriage_returns + len(end) - 1000
    assert "characters dropped]" in result.stdout
    following = await bridge.run("print('y' * 5000)")
    assert following.stdout == "y" * 5000 + "\n"


async def test_the_history_keeps_no_more_than_is_sent(bridge: Bridge) -> None:
    await bridge.run("print('x' * 1_000_000)", max_output=100)
    kept = "str(get_ipython().history_manager.outputs)"
    assert await bridge.pull(f"len({kept})") < 1_000_000 or "x" * 1000 not in await bridge.pull(
        kept
    )


async def test_the_output_of_other_cells_is_not_cut(bridge: Bridge) -> None:
    async with other(bridge) as client:
        behind = client.submit("print('z' * 5000)")
        result = await bridge.run("print('x' * 5000)", max_output=10)
        assert (await client.answer(behind))["status"] == "ok"
    assert result.dropped == 4991


async def test_a_limit_holds_until_an_interrupt(bridge: Bridge) -> None:
    with pytest.raises(RunTimeout) as caught:
        await bridge.run(
            "while True: print('x' * 99)", max_output=1000, timeout=0.5, on_timeout="interrupt"
        )
    assert len(caught.value.result.stdout) < 1200
    assert caught.value.result.stdout.endswith("x\n") or "x" in caught.value.result.stdout
    await goes_on(bridge)
    assert (await bridge.run("print('y' * 5000)")).stdout == "y" * 5000 + "\n"


async def test_displays_count_and_are_dropped_as_a_whole(bridge: Bridge) -> None:
    code = "from IPython.display import display, HTML\nfor n in range(50): display(HTML('x' * 99))"
    messages = bridge.messages()
    result = await bridge.run(code, max_output=1000)
    kept = [one for one in result.outputs if one["output_type"] == "display_data"]
    assert 2 <= len(kept) < 10
    assert result.dropped > 3000
    sent = [await anext(messages) for _ in range(len(messages))]
    await messages.aclose()
    assert len([one for one in sent if one.type == "display_data"]) == len(kept)


MANY = "for n in range(500): print(n)"


@pytest.mark.parametrize(
    ("code", "kept"),
    [
        (f"show('end')\n{MANY}", ["display_data", "0 … 499"]),
        (f"{MANY}\nshow('end')", ["0 … 499", "display_data"]),
        (f"{MANY}\nshow('end')\nprint('saved')", ["0 … 499", "display_data", "saved … saved"]),
        (f"{MANY}\nshow('middle')\n{MANY}", ["0 … 499"]),
        (f"{MANY}\nclear_output()\nprint('last')", ["last … last"]),
        ("for n in range(500):\n    clear_output(wait=True)\n    print(n)", ["499 … 499"]),
    ],
)
async def test_the_middle_is_dropped_whatever_it_is(
    bridge: Bridge, code: str, kept: list[str]
) -> None:
    await bridge.run(
        "from IPython.display import clear_output, display, HTML\n"
        "def show(text): display(HTML(text * 20))"
    )
    result = await bridge.run(code, max_output=400)
    shown = []
    for one in result.outputs:
        lines = one.get("text", "").split()
        shown.append(f"{lines[0]} … {lines[-1]}" if lines else one["output_type"])
    assert shown == kept
    assert result.dropped > 1000


async def test_a_display_that_waits_is_what_it_was(bridge: Bridge) -> None:
    code = (
        "from IPython.display import publish_display_data\nprint('x' * 600)\n"
        "data = {'text/plain': 'before'}\npublish_display_data(data)\ndata['text/plain'] = 'after'"
    )
    result = await bridge.run(code, max_output=1000)
    assert result.outputs[-1]["data"] == {"text/plain": "before"}
    with pytest.raises(RemoteError, match="not JSON serializable"):
        await bridge.run(f"{code}\npublish_display_data({{'a/b': object()}})", max_output=1000)


SHOW = "from IPython.display import display, HTML\ndisplay(HTML('x' * 900))"


@pytest.mark.parametrize(
    ("code", "kept"),
    [
        (SHOW, ["display_data"]),
        (f"print(1)\n{SHOW}\nprint(2)", ["stream", "display_data", "stream"]),
        ("'x' * 900", ["execute_result"]),
        ("print('x' * 900)\n'x' * 900", ["stream", "execute_result", "stream"]),
    ],
)
async def test_a_display_or_value_within_the_limit_is_kept(
    bridge: Bridge, code: str, kept: list[str]
) -> None:
    result = await bridge.run(code, max_output=1000)
    assert [one["output_type"] for one in result.outputs] == kept
    assert result.dropped == 0


async def test_a_value_is_kept_behind_any_amount_of_text(bridge: Bridge) -> None:
    result = await bridge.run("for n in range(5000): print(n)\n'v' * 900", max_output=1000)
    assert result.data["text/plain"] == repr("v" * 900)
    whole = "".join(f"{n}\n" for n in range(5000))
    assert result.dropped == len(whole) - 1000
    line = f"\n[{result.dropped:,} characters dropped]\n"
    assert result.stdout == whole[:500] + line + whole[-500:]


@pytest.mark.parametrize("printed", [600, 5000])
@pytest.mark.parametrize("raises", ["1 / 0", "raise SystemExit"])
async def test_an_error_comes_behind_what_the_cell_printed_before_it(
    bridge: Bridge, printed: int, raises: str
) -> None:
    hook = "str(vars(get_ipython()).get('_showtraceback'))"  # ipykernel has set one
    before = await bridge.pull(hook)
    code = f"print('x' * {printed} + 'end')\n{raises}"
    with pytest.raises(RemoteError) as caught:
        await bridge.run(code, max_output=2000)
    result: Any = caught.value.result
    stream, error = result.outputs[:2]  # of SystemExit, IPython prints a warning behind it
    assert (stream["output_type"], error["output_type"]) == ("stream", "error")
    assert stream["text"].endswith("xend\n")
    assert result.dropped >= max(0, printed + 4 - 2000)
    assert "xend" not in "".join(one.get("text", "") for one in result.outputs[2:])
    assert await bridge.pull(hook) == before
    await goes_on(bridge)


async def test_what_a_cell_prints_behind_an_error_that_it_shows_is_printed(bridge: Bridge) -> None:
    code = (
        "print('x' * 11_000)\n"  # more than half of the limit
        "for n in range(3):\n"
        "    try: 1 / 0\n"
        "    except Exception: get_ipython().showtraceback()\n"
        "    print('after', n)"
    )
    result = await bridge.run(code, max_output=20_000)  # with room for three tracebacks
    texts = [one.get("text", "error") for one in result.outputs]
    shown = ["x" * 11_000 + "\n", "error", "after 0\n", "error", "after 1\n", "error", "after 2\n"]
    assert (texts, result.dropped) == (shown, 0)
    result = await bridge.run(code, max_output=1000)
    assert len(result.stdout) < 1000 + 100
    assert result.dropped >= 11_001 + 3 * len("after 0\n") - 1000


async def test_a_limit_holds_where_both_streams_are_one(bridge: Bridge) -> None:
    await bridge.run("import sys\nkept, sys.stderr = sys.stderr, sys.stdout")
    short = await bridge.run("print('x' * 60)", max_output=100)
    long = await bridge.run("print('x' * 500 + 'end')", max_output=100)
    await bridge.run("sys.stderr = kept")
    assert (short.stdout, short.dropped) == ("x" * 60 + "\n", 0)
    assert (long.stdout.endswith("xend\n"), long.dropped) == (True, 404)


async def test_what_forked_children_print_is_cut_in_the_kernel(bridge: Bridge) -> None:
    await bridge.run(
        "import multiprocessing, sys\n"
        "def flood(name):\n"
        "    for n in range(10_000): print(name * 99, file=getattr(sys, name))\n"
        "fork = multiprocessing.get_context('fork')"
    )
    code = (
        "children = [fork.Process(target=flood, args=[name]) for name in ('stdout', 'stderr')]\n"
        "for child in children: child.start()\n"
        "for child in children: child.join()\nprint('end')"
    )
    messages = bridge.messages()
    result = await bridge.run(code, max_output=5000)
    sent = [await anext(messages) for _ in range(len(messages))]
    await messages.aclose()
    # The thread that reads what the children print may still have a piece of each stream in its
    # hands, of 1,000 bytes, when the limit ends.
    assert sum(len(one.text) for one in sent if one.type == "stream") < 3 * 5000 + 2 * 1000 + 200
    assert len(result.stdout) + len(result.stderr) < 5000 + 200
    whole = 10_000 * (len("stdout") + len("stderr")) * 99
    assert whole - 2 * 5000 < result.dropped < whole + 30_000


async def test_what_a_forked_child_prints_is_not_lost(bridge: Bridge) -> None:
    code = (
        "import os\nprint('p' * 399)\nchild = os.fork()\nif not child:\n"
        "    print('q' * 199, flush=True)\n    os._exit(0)\nos.waitpid(child, 0)"
    )
    result = await bridge.run(code, max_output=1000)
    assert "q" * 199 in result.stdout


async def test_an_interrupt_behind_the_code_loses_no_output(bridge: Bridge) -> None:
    await bridge.run(
        "import signal, sys\n"
        "remote = next(m for n, m in sys.modules.items() if n.startswith('_bridgehead'))\n"
        "def interrupted(pipe, drain=remote.drain):\n"
        "    remote.drain = drain\n    signal.raise_signal(signal.SIGINT)\n"
        "remote.drain = interrupted"
    )
    result = await bridge.run("print('x' * 500 + 'end')", max_output=100)
    assert (result.stdout.endswith("xend\n"), result.dropped) == (True, 404)
    await goes_on(bridge)


# ---------------------------------------------------------------- names and values


class Waits:
    """Is True in the kernel, which waits for a file before it makes this."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def __reduce__(self) -> Any:
        code = (
            "[open({0} + '.begun', 'w').close(), [None for _ in iter("
            "lambda: __import__('os').path.exists({0}), True) "
            "if __import__('time').sleep(0.01)]] != None"
        )
        return eval, (code.format(repr(self.file)),)


@asynccontextmanager
async def sent_behind(
    bridge: Bridge, folder: Path, between: str = ""
) -> AsyncIterator[tuple[Bridge, asyncio.Task[Any]]]:
    """Run ``found = given`` with ``given=True``, and give its task when the kernel has the cell.

    Another client's cell runs before it, with this code, and ends after the block.
    """
    first, second = folder / "first", folder / "second"
    file, lane = bridge.info.connection_file, bridge.info.lane
    async with other(bridge) as client, Bridge.attach(file, lane=lane) as late:
        await bridge.push(given="old")
        cell = asyncio.ensure_future(late.run("found = given", push={"given": Waits(first)}))
        await until((folder / "first.begun").exists)
        wait = f"import os, time\nwhile not os.path.exists({str(second)!r}): time.sleep(0.01)\n"
        running = client.submit(wait + between)
        await asyncio.sleep(0.2)  # until it is in the kernel's queue
        first.touch()
        await until(lambda: any(turn.cell and turn.sent for turn in late._connection.queue.turns))
        yield late, cell
        second.touch()
        assert (await client.answer(running))["status"] == "ok"


@pytest.mark.parametrize("how", ["cancel", "close"])
async def test_a_cell_that_is_left_before_it_begins_has_its_names(
    bridge: Bridge, tmp_path: Path, how: str
) -> None:
    async with sent_behind(bridge, tmp_path) as (late, cell):
        if how == "close":
            await late.aclose()
        cell.cancel()
        await asyncio.wait([cell])
    assert await bridge.pull("[found, given]") == [True, True]
    await until_empty(bridge)


async def test_a_cell_whose_names_are_gone_does_not_run(bridge: Bridge, tmp_path: Path) -> None:
    ended = "import sys\n[m.staged.clear() for n, m in [*sys.modules.items()] if n[:4] == '_bri']"
    async with sent_behind(bridge, tmp_path, ended) as (_, cell):
        (tmp_path / "second").touch()
        with pytest.raises(RemoteError, match="the cell did not run"):
            await cell
    assert not await bridge.exists("found")


async def test_a_cell_inside_a_cell_takes_nothing(bridge: Bridge) -> None:
    code = "get_ipython().run_cell('b = a + 1')"
    assert (await bridge.run(code, push={"a": 1}, pull=["b"])).values == {"b": 2}


async def test_a_remote_part_that_is_installed_again_has_its_names(live: Bridge) -> None:
    await live.run("a", push={"a": "old"})
    await live.run("import sys\nfor n in [*sys.modules]:\n  if n[:4] == '_bri': del sys.modules[n]")
    assert not await live.exists("nothing")
    assert (await live.run("a", push={"a": "new"})).data["text/plain"] == "'new'"


async def test_nothing_comes_between_names_cell_and_values(bridge: Bridge) -> None:
    """Another client's cells and pushes change the names all the time."""
    async with Bridge.attach(bridge.info.connection_file) as second, other(bridge) as client:
        stop = False

        async def disturb() -> None:
            while not stop:
                await client.execute("a = b = 'of another client'")
                await second.push(a="pushed", b="pushed")

        disturbing = asyncio.ensure_future(disturb())
        for n in range(20):
            result = await bridge.run("b = a + 1", push={"a": n}, pull=["a", "b"])
            assert result.values == {"a": n, "b": n + 1}
        stop = True
        await disturbing


async def test_large_objects_cross_both_ways(bridge: Bridge) -> None:
    large = os.urandom(20 << 20)
    result = await bridge.run("b = a[::-1]", push={"a": large}, pull=["b"])
    assert result.values["b"] == large[::-1]


async def test_magics_and_await_see_the_names(bridge: Bridge) -> None:
    result = await bridge.run(
        "import asyncio\nawait asyncio.sleep(0)\nb = a", push={"a": 1}, pull=["b"]
    )
    assert result.values == {"b": 1}
    assert (await bridge.run("%who int", push={"c": 1})).stdout.split() == ["a", "b", "c"]


async def test_what_fails_to_arrive_keeps_the_cell_from_running(bridge: Bridge) -> None:
    class Fails:
        def __reduce__(self) -> Any:
            return divmod, (1, 0)

    with pytest.raises(RemoteError, match="ZeroDivisionError"):
        await bridge.run("ran = True", push={"a": Fails()})
    assert await bridge.names() == []


async def test_a_module_that_is_missing_keeps_the_cell_from_running(bridge: Bridge) -> None:
    from support import kit

    with pytest.raises(MissingInKernel):
        await bridge.run("ran = True", push={"a": kit.until})
    assert await bridge.names() == []


async def test_a_cell_that_does_not_compile_leaves_nothing(bridge: Bridge) -> None:
    with pytest.raises(RemoteError, match="SyntaxError"):
        await bridge.run("1 +", push={"a": 1})
    assert not await bridge.exists("a")
    await until_empty(bridge)


async def until_empty(bridge: Bridge) -> None:
    """Wait until the remote part keeps nothing for cells."""
    async with asyncio.timeout(20):
        while any(await bridge.pull(staged(bridge))):
            await asyncio.sleep(0.01)


async def test_a_restart_between_is_reported(live: Bridge) -> None:
    await live.run("1")
    os.kill(live.info.pid, signal.SIGSTOP)
    running = asyncio.ensure_future(live.run("a", push={"a": 1}, pull=["a"]))
    await asyncio.sleep(0.1)
    await live.restart()
    with pytest.raises(KernelRestarted):
        await running
    assert (await live.run("a", push={"a": 1}, pull=["a"])).values == {"a": 1}


async def test_names_come_in_the_middle_of_a_cell(bridge: Bridge) -> None:
    async with occupied(bridge):  # by a cell that waits for this name to be true
        found = await bridge.names("_go*", now=True, preview=True, timeout=20)
        assert [(name.name, name.preview) for name in found] == [("_go_on", "False")]
    assert (await bridge.names("_go*", preview=True))[0].preview == "True"


WAITING = """
import time
begun = gone_on = False
def wait():
    global begun
    begun = True
    while not gone_on:
        time.sleep(0.01)
"""


@pytest.mark.parametrize("whose", ["a bridge's", "another client's"])
async def test_requests_beside_a_cell_leave_its_reply_alone(live: Bridge, whose: str) -> None:
    """IPython keeps what a cell adds to its reply in one place, also for requests in subshells.

    The cell has ended when they come, and its reply is being made.
    """
    await live.run(WAITING)
    async with Bridge.attach(str(live.info.connection_file), lane="buffers") as beside:

        async def go_on() -> None:
            while not await beside.pull("begun", now=True):
                await asyncio.sleep(0.01)
            await beside.push(gone_on=True, now=True)

        if whose == "a bridge's":
            cell = live.run("print('x' * 500)", max_output=100, pull=["wait()"])
            result, _ = await asyncio.gather(cell, go_on())
            assert result.dropped == 401
        else:
            async with other(live) as client:
                code = "get_ipython().set_next_input('x = 1')"
                request = client.submit(code, user_expressions={"waited": "wait()"})
                await go_on()
                (payload,) = (await client.answer(request))["payload"]
                assert payload["text"] == "x = 1"


# ---------------------------------------------------------------- history


async def test_a_cell_may_stay_out_of_the_history(bridge: Bridge) -> None:
    first = await bridge.run("'kept'")
    second = await bridge.run("'not kept'", store_history=False)
    third = await bridge.run("In[-2]")
    assert third.data["text/plain"] == "\"'kept'\""
    assert second.data["text/plain"] == "'not kept'"
    assert third.execution_count == (first.execution_count or 0) + 1


# ---------------------------------------------------------------- input


async def test_input_getpass_and_a_debugger_are_answered(bridge: Bridge) -> None:
    asked: list[Any] = []

    def answer(prompt: str, password: bool) -> str:
        asked.append((prompt, password))
        return {"name? ": "Ada", "key? ": "secret"}.get(prompt, "c")

    result = await bridge.run(
        "import getpass\nname, key = input('name? '), getpass.getpass('key? ')\n"
        "import pdb; pdb.set_trace()\nname + key",
        on_input=answer,
        timeout=60,
    )
    assert result.data["text/plain"] == "'Adasecret'"
    assert asked[:2] == [("name? ", False), ("key? ", True)]
    assert asked[2][1] is False


async def test_without_on_input_it_raises(bridge: Bridge) -> None:
    with pytest.raises(RemoteError, match="StdinNotImplementedError"):
        await bridge.run("input()")


async def test_what_on_input_raises_ends_a_cell_that_handles_everything(bridge: Bridge) -> None:
    def fail(prompt: str, password: bool) -> str:
        raise LookupError("no answer")

    code = "while True:\n    try: input()\n    except EOFError: pass"
    async with reported_within(2):
        with pytest.raises(LookupError, match="no answer"):
            await bridge.run(code, on_input=fail)
    await goes_on(bridge)


async def test_an_answer_may_ask_the_same_bridge_with_now(bridge: Bridge) -> None:
    await bridge.push(kept="answer")
    async with asyncio.timeout(60):
        with pytest.raises(NotSupported, match="on_input=.* use now=True"):
            await bridge.run("input()", on_input=lambda prompt, password: bridge.pull("kept"))
        result = await bridge.run(
            "input()", on_input=lambda prompt, password: bridge.pull("kept", now=True)
        )
    assert result.data["text/plain"] == "'answer'"
    await goes_on(bridge)


@pytest.mark.parametrize("half", [0xD83D, 0xDCFF])  # jupyter_client sends the second one
async def test_an_answer_that_no_message_can_carry_ends_the_cell(bridge: Bridge, half: int) -> None:
    with pytest.raises(ValueError, match="on_input= returned .* half of a surrogate pair"):
        await bridge.run("input()", on_input=lambda prompt, password: chr(half), timeout=60)
    await goes_on(bridge)


async def test_an_answer_goes_to_its_own_question(bridge: Bridge) -> None:
    asked: list[str] = []
    second = asyncio.Event()

    async def answer(prompt: str, password: bool) -> str:
        asked.append(prompt)
        if prompt == "first":
            await second.wait()
        else:
            second.set()
            await asyncio.sleep(0.1)  # in which the other one would be sent
        return f"answer to {prompt}"

    code = "try: input('first')\nexcept KeyboardInterrupt: answer = input('second')\nanswer"
    cell = asyncio.ensure_future(bridge.run(code, on_input=answer))
    await until(lambda: asked)
    await bridge.interrupt()
    assert (await cell).data["text/plain"] == "'answer to second'"


async def test_an_interrupt_never_cuts_a_question(bridge: Bridge) -> None:
    # Half a question on the socket would make the next one unreadable, and the cell would wait.
    code = (
        "import signal, zmq\n"
        "asks, send = get_ipython().kernel.stdin_socket, zmq.Socket.send\n"
        "def interrupted(socket, data, *args, **kwargs):\n"
        "    result = send(socket, data, *args, **kwargs)\n"
        "    if socket is asks and data == b'<IDS|MSG>':\n"
        "        zmq.Socket.send = send\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "    return result\n"
        "zmq.Socket.send = interrupted\n"
        "try: input('first')\n"
        "except KeyboardInterrupt: answer = input('second')\n"
        "answer"
    )

    async def answer(prompt: str, password: bool) -> str:
        if prompt == "first":
            await asyncio.sleep(3600)
        return f"answer to {prompt}"

    result = await bridge.run(code, on_input=answer, timeout=60)
    assert result.data["text/plain"] == "'answer to second'"


async def test_after_a_deadline_the_input_has_ended(bridge: Bridge) -> None:
    async def never(prompt: str, password: bool) -> str:
        await asyncio.sleep(3600)
        return ""

    code = "for n in range(2):\n    try: input()\n    except EOFError: ended = n"
    with pytest.raises(RunTimeout):
        await bridge.run(code, on_input=never, timeout=0.5)
    async with reported_within(2):
        assert await bridge.pull("ended") == 1


async def test_input_works_after_a_restart(live: Bridge) -> None:
    for _ in range(2):
        result = await live.run("input()", on_input=lambda prompt, password: "answer", timeout=60)
        assert result.data["text/plain"] == "'answer'"
        await live.restart()


# ---------------------------------------------------------------- streams


async def test_a_stream_comes_while_the_cell_runs(bridge: Bridge) -> None:
    async with asyncio.timeout(60):
        async with bridge.stream(
            "import time\nprint('begun', flush=True)\nwhile True: time.sleep(0.1)",
            on_timeout="interrupt",
        ) as outputs:
            assert (await anext(outputs)).text.startswith("begun")
        await goes_on(bridge)  # the cell was interrupted, because the stream was left


@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_everything_works_on_this_kernel(live: Bridge) -> None:
    result = await live.run(
        "print('x' * 5000)\nb = a + int(input())",
        push={"a": 1},
        pull=["b"],
        max_output=100,
        on_input=lambda prompt, password: "2",
    )
    assert result.values == {"b": 3}
    assert result.dropped == 4901
    with pytest.raises(RunTimeout, match="was interrupted$"):
        await live.run("import time; time.sleep(60)", timeout=0.3, on_timeout="interrupt")
    await until(lambda: live.state == "idle")
