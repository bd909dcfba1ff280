"""Test ``run``, ``watch`` and ``messages``.

Rule: commands against one kernel of this file. Tests wait for output; they never sleep for it.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bridgehead import Bridge
from support.cli import Terminal, bridgehead, bridgehead_process, start_command

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to one process")


@pytest.fixture
def options(kernel: Bridge) -> list[str]:
    """Return the options that choose this kernel."""
    return ["--existing", str(kernel.info.connection_file)]


@contextmanager
def going(*arguments: object, **how: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command; kill it at the end of the block if it still runs."""
    with start_command(*arguments, **how) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


# ---------------------------------------------------------------- run


def test_a_file_runs_and_its_streams_stay_separate(options: list[str], tmp_path: Path) -> None:
    file = tmp_path / "cell.py"
    file.write_text("import sys\nprint('out')\nprint('err', file=sys.stderr)\n6 * 7\n")
    ran = bridgehead_process("run", file, *options)
    assert (ran.code, ran.out, ran.err) == (0, "out\n42\n", "err\n")


async def test_standard_input_runs_and_its_names_stay(kernel: Bridge, options: list[str]) -> None:
    assert bridgehead_process("run", "-", *options, stdin=b"x = 5").code == 0
    assert await kernel.pull("x") == 5


def test_code_of_the_command_line_runs(options: list[str]) -> None:
    ran = bridgehead_process("run", "-c", "print('a')\n6 * 7", *options)
    assert (ran.code, ran.out, ran.err) == (0, "a\n42\n", "")
    for neither_or_both in ([], ["-", "-c", "1"]):
        assert "either a FILE or -c CODE" in bridgehead("run", *neither_or_both).refused(2)


def test_the_traceback_of_a_group_is_printed_once(options: list[str]) -> None:
    """The cell prints it itself."""
    code = "raise ExceptionGroup('both', [ValueError(1), KeyError(2)])"
    ran = bridgehead("run", "-c", code, *options)
    assert (ran.code, ran.err.count("KeyError: 2")) == (1, 1)
    assert ran.err.endswith("\nExceptionGroup: both (2 sub-exceptions)\n")


@posix
def test_output_comes_while_the_cell_runs(options: list[str]) -> None:
    code = b"import os, time\nprint('begun', flush=True)\nwhile 'go' not in dir(): time.sleep(.05)"
    with going("run", "-", *options, stdin=subprocess.PIPE) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdin.write(code)
        running.stdin.close()
        assert running.stdout.readline() == b"begun\n"
        assert running.poll() is None
        running.send_signal(signal.SIGINT)
        assert running.stderr is not None
        assert b"KeyboardInterrupt" in running.stderr.read()
        assert running.wait(60) == 130


def test_an_error_is_code_1_with_the_kernels_traceback(options: list[str]) -> None:
    ran = bridgehead("run", "-", *options, stdin=b"print('before')\n1/0")
    assert (ran.code, ran.out) == (1, "before\n")
    assert "1/0" in ran.err
    assert ran.err.count("ZeroDivisionError: division by zero") == 1
    assert "\x1b" not in ran.err


@pytest.mark.slow
def test_a_terminal_gets_the_traceback_in_colour(options: list[str], tmp_path: Path) -> None:
    (tmp_path / "cell.py").write_text("1/0")
    with Terminal("run", tmp_path / "cell.py", *options) as terminal:
        assert terminal.end() == 1
    assert "ZeroDivisionError" in terminal.text
    assert b"\x1b[3" in terminal.raw or b"\x1b[38" in terminal.raw or b"\x1b[0;31" in terminal.raw
    with Terminal("run", tmp_path / "cell.py", *options, NO_COLOR="1") as terminal:
        assert terminal.end() == 1
    assert b"\x1b[" not in terminal.raw


def test_output_cannot_control_a_terminal_and_is_whole_in_a_pipe(
    options: list[str], tmp_path: Path
) -> None:
    text = "\x1b]0;title\x07\x1b[2J\x1b[31mred\x1b[0m\rback"
    (tmp_path / "cell.py").write_text(f"print({text!r})")
    assert bridgehead("run", tmp_path / "cell.py", *options).out == text + "\n"
    with Terminal("run", tmp_path / "cell.py", *options) as terminal:
        assert terminal.end() == 0
    assert b"\x1b]0" not in terminal.raw
    assert b"\x1b[2J" not in terminal.raw
    assert b"\x1b[31mred\x1b[0m\rback" in terminal.raw


def test_colours_are_reset_at_the_end_of_the_cell(options: list[str], tmp_path: Path) -> None:
    (tmp_path / "cell.py").write_text("print('\\x1b[31mred')")
    with Terminal("run", tmp_path / "cell.py", *options) as terminal:
        assert terminal.end() == 0
    assert terminal.raw.endswith(b"\x1b[31mred\r\n\x1b[0m")


def test_json_has_everything_of_a_cell(options: list[str]) -> None:
    ran = bridgehead("run", "-", "--json", *options, stdin=b"print('a')\n1/0")
    result = json.loads(ran.out)
    assert ran.code == 1
    assert (result["stdout"], result["error"]["ename"]) == ("a\n", "ZeroDivisionError")
    ran = bridgehead("run", "-", "--json", *options, stdin=b"'b'")
    assert (ran.json["data"]["text/plain"], ran.json["error"]) == ("'b'", None)


@posix
async def test_control_c_interrupts_the_cell_and_the_kernel_goes_on(
    kernel: Bridge, options: list[str], tmp_path: Path
) -> None:
    (tmp_path / "cell.py").write_text("import time\nprint('begun', flush=True)\ntime.sleep(600)")
    with Terminal("run", tmp_path / "cell.py", *options) as terminal:
        terminal.until("begun")
        terminal.press("\x03")
        terminal.until("KeyboardInterrupt")
        assert terminal.end() == 130
    assert await kernel.pull("1 + 1", timeout=60) == 2


@posix
async def test_control_c_interrupts_a_cell_that_awaits(
    kernel: Bridge, options: list[str], tmp_path: Path
) -> None:
    cell = "import asyncio\nprint('begun', flush=True)\nawait asyncio.sleep(600)"
    (tmp_path / "cell.py").write_text(cell)
    with Terminal("run", tmp_path / "cell.py", *options) as terminal:
        terminal.until("begun")
        terminal.press("\x03")
        terminal.until("CancelledError")
        assert terminal.end() == 130
    assert await kernel.pull("1 + 1", timeout=60) == 2


@posix
async def test_a_second_control_c_abandons_a_cell_that_ignores_interrupts(
    kernel: Bridge, options: list[str], tmp_path: Path
) -> None:
    cell = (
        "import time\nprint('begun', flush=True)\nstop = False\nwhile not stop:\n"
        "  try: time.sleep(600)\n"
        "  except KeyboardInterrupt: interrupts += 1; print('no', flush=True)\n"
        "  if may_stop: stop = True"
    )
    await kernel.push(may_stop=False, interrupts=0)
    (tmp_path / "cell.py").write_text(cell)
    with Terminal("run", tmp_path / "cell.py", *options) as terminal:
        terminal.until("begun")
        terminal.press("\x03")
        terminal.until("no")
        terminal.press("\x03")
        terminal.until("stopped waiting; the cell may still run")
        assert terminal.end() == 130
    await kernel.push(may_stop=True, now=True)
    await kernel.interrupt()
    # One interrupt came from the command, and one from this test.
    assert await kernel.pull("stop, interrupts", timeout=60) == (True, 2)


@posix
@pytest.mark.slow
async def test_control_c_does_not_interrupt_a_cell_of_another_client(
    kernel: Bridge, options: list[str], tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    wait = "import os, time\nwhile not os.path.exists({!r}): time.sleep(.05)\n{!r}"
    async with Bridge.attach(kernel.info.connection_file) as other:
        earlier = asyncio.ensure_future(kernel.run(wait.format(str(first), "first")))
        while kernel.state != "busy":
            await asyncio.sleep(0.01)
        (tmp_path / "cell.py").write_text("mine = True")
        with Terminal("run", tmp_path / "cell.py", *options) as terminal:
            await asyncio.to_thread(terminal.until, "waiting for the kernel")
            between = asyncio.ensure_future(other.run(wait.format(str(second), "second")))
            await asyncio.sleep(0.5)  # the second cell may be queued by then; the command waits
            first.touch()
            await earlier
            await asyncio.sleep(1)  # the command's own cell is queued by then
            terminal.press("\x03")
            assert await asyncio.to_thread(terminal.end) == 130
        second.touch()
        assert (await between).data["text/plain"] == "'second'"


async def test_a_cell_is_abandoned_when_the_reader_closes_the_pipe(
    kernel: Bridge, options: list[str]
) -> None:
    code = b"import time\nfor i in range(600):\n  print(i, flush=True); time.sleep(.05)"
    with going("run", "-", *options, stdin=subprocess.PIPE) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdin.write(code)
        running.stdin.close()
        assert running.stdout.readline() == b"0\n"
        running.stdout.close()
        assert running.stderr.read() == b""
        assert running.wait(20) == 141
    await kernel.interrupt()  # the cell would run for 30 s


@pytest.mark.parametrize(("name", "data"), [("missing.py", None), ("bad.py", b"\xff\xfe\x00")])
def test_a_file_that_cannot_be_read_is_code_2(
    tmp_path: Path, name: str, data: bytes | None
) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    assert "can't be read" in bridgehead("run", tmp_path / name).refused(2)
    if data is not None:
        assert "input can't be read" in bridgehead("run", "-", stdin=data).refused(2)


# ---------------------------------------------------------------- watch


async def test_a_pipe_gets_a_line_for_each_value(kernel: Bridge, options: list[str]) -> None:
    await kernel.push(n=0, text="a\nb\x1b[2J")
    with going("watch", "n", "--count", "4", *options) as watching:
        assert watching.stdout is not None
        read = watching.stdout.readline
        assert await asyncio.to_thread(read) == b"0\n"
        for n in range(1, 4):
            await kernel.run("n += 1")
            assert await asyncio.to_thread(read) == f"{n}\n".encode()
        assert await asyncio.to_thread(watching.wait, 60) == 0
    assert bridgehead("watch", "text", "-n", "1", *options).out == "'a\\nb\\x1b[2J'\n"


async def test_watch_prints_json_lines(kernel: Bridge, options: list[str]) -> None:
    await kernel.push(value={"loss": [0.5]})
    line = json.loads(bridgehead("watch", "value", "-n", "1", "--json", *options).out)
    assert line["value"] == {"loss": [0.5]}
    assert "at" in line


async def test_a_terminal_updates_a_sparkline_in_place(kernel: Bridge, options: list[str]) -> None:
    await kernel.push(n=1.0)
    with Terminal("watch", "n", *options) as terminal:
        await asyncio.to_thread(terminal.until, "1 so far")
        for n in range(2, 9):
            await kernel.run(f"n = {n}.0")
            await asyncio.to_thread(terminal.until, f"{n} so far")
        assert "▁▂▃▄▅▆▇█" in terminal.text
        assert "1 to 8" in terminal.text
        assert terminal.text.splitlines()[:2] == ["n", "8.0"]
        await kernel.run("del n")
        await asyncio.to_thread(terminal.until, "'n'")
        await kernel.run("n = 0")
        await asyncio.to_thread(terminal.until, "9 so far")
        terminal.press("\x03")
        assert await asyncio.to_thread(terminal.end) == 130
    assert b"\x1b[?25h" in terminal.raw  # the cursor is visible again
    assert "Traceback" not in terminal.text


def test_watching_an_undefined_name_is_code_4(options: list[str]) -> None:
    assert "'missing'" in bridgehead("watch", "missing", *options).refused(4)


async def test_a_watch_ends_with_the_kernel() -> None:
    async with Bridge.launch() as bridge:
        await bridge.push(n=1)
        file = str(bridge.info.connection_file)
        with going("watch", "n", "-e", file) as watching:
            assert watching.stdout is not None
            assert await asyncio.to_thread(watching.stdout.readline) == b"1\n"
            await bridge.restart()
            _, err = await asyncio.to_thread(watching.communicate, timeout=60)
    assert b"the kernel has exited or was restarted" in err
    assert watching.returncode == 0


# ---------------------------------------------------------------- messages


@posix
async def test_messages_are_indented_under_their_request(
    kernel: Bridge, options: list[str], tmp_path: Path
) -> None:
    with going("messages", *options) as listening:
        assert listening.stdout is not None
        assert listening.stderr is not None
        assert b"listening" in await asyncio.to_thread(listening.stderr.readline)
        seen = [b""]
        code = "import sys\nprint('hi\\x1b[2J')\nprint('oh', file=sys.stderr)\n7"
        await kernel.run(code)
        while b"execute_result" not in seen[-1]:
            seen.append(await asyncio.to_thread(listening.stdout.readline))
            assert seen[-1], b"".join(seen)
        listening.send_signal(signal.SIGINT)
        _, err = await asyncio.to_thread(listening.communicate, timeout=60)
    assert (listening.returncode, b"Traceback" in err) == (130, False)
    lines = b"".join(seen).decode().splitlines()
    begin = max(at for at, line in enumerate(lines) if line.startswith("execute_request"))
    words = [line.split()[:2] for line in lines[begin + 1 :]]
    assert ["status", "busy"] in words
    assert ["execute_input", "import"] in words
    assert ["stdout", "hi\ufffd[2J"] in words or ["stdout", "hi"] in words
    assert ["stderr", "oh"] in words
    assert ["execute_result", "7"] in words
    assert all(line.startswith("  ") for line in lines[begin + 1 :])


async def test_messages_prints_json_lines(kernel: Bridge, options: list[str]) -> None:
    with going("messages", "--json", *options) as listening:
        assert listening.stdout is not None
        assert listening.stderr is not None
        assert b"listening" in await asyncio.to_thread(listening.stderr.readline)
        seen: list[dict[str, Any]] = [{"type": ""}]
        await kernel.run("print('x' * 1000)")
        while seen[-1]["type"] != "stream":
            seen.append(json.loads(await asyncio.to_thread(listening.stdout.readline)))
    assert seen[-1]["content"] == {"name": "stdout", "text": "x" * 1000 + "\n"}
    assert seen[-1]["parent_type"] == "execute_request"
