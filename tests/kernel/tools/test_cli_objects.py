"""Test ``names``, ``push`` and ``pull`` with files and pipes.

Rule: commands against one kernel of this file. A second bridge checks the kernel's namespace.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import pickle
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bridgehead import Bridge, RemoteError
from support.cli import SCRIPT, Ran, Terminal, bridgehead, bridgehead_process, environment

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no /dev")
TABLE = pd.DataFrame({"n": [1, 2, 3], "x": [0.5, 1.25, -3.0], "t": ["ä", "b,c", 'd"e']})


@pytest.fixture
def options(kernel: Bridge) -> list[str]:
    """Return the options that choose this kernel."""
    return ["--existing", str(kernel.info.connection_file)]


# ---------------------------------------------------------------- files


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "suffix",
    ["csv", "parquet", "pickle", *(pytest.param(one, marks=SLOW) for one in ("pq", "pkl"))],
)
async def test_a_table_is_pushed_and_pulled(
    kernel: Bridge, options: list[str], tmp_path: Path, suffix: str
) -> None:
    first, second = tmp_path / f"first.{suffix}", tmp_path / f"second.{suffix}"
    write = {"csv": lambda file: TABLE.to_csv(file, index=False), "parquet": TABLE.to_parquet}
    write["pq"] = TABLE.to_parquet
    write["pickle"] = write["pkl"] = TABLE.to_pickle
    write[suffix](first)
    command = bridgehead_process if suffix == "csv" else bridgehead
    assert command("push", f"table={first}", *options).code == 0
    pd.testing.assert_frame_equal(await kernel.pull("table"), TABLE)
    assert command("pull", "table", "-o", second, *options).code == 0
    read = {"csv": pd.read_csv, "parquet": pd.read_parquet, "pq": pd.read_parquet}
    back = read.get(suffix, pd.read_pickle)(second)
    pd.testing.assert_frame_equal(back, TABLE)


async def test_an_array_is_pushed_and_pulled(
    kernel: Bridge, options: list[str], tmp_path: Path
) -> None:
    array = np.arange(24.0).reshape(2, 3, 4)
    np.save(tmp_path / "a.npy", array)
    assert bridgehead("push", f"a={tmp_path / 'a.npy'}", *options).code == 0
    assert bridgehead("pull", "a * 2", "-o", tmp_path / "b.npy", *options).code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), array * 2)


async def test_a_csv_has_the_encoding_and_the_separator_that_are_asked_for(
    kernel: Bridge, options: list[str], tmp_path: Path
) -> None:
    form = ["--encoding", "latin-1", "--sep", ";"]
    TABLE.to_csv(tmp_path / "a.csv", index=False, encoding="latin-1", sep=";")
    assert bridgehead("push", f"table={tmp_path / 'a.csv'}", *form, *options).code == 0
    pd.testing.assert_frame_equal(await kernel.pull("table"), TABLE)
    assert bridgehead("pull", "table", "-o", tmp_path / "b.csv", *form, *options).code == 0
    assert (tmp_path / "b.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()


async def test_arrays_and_arrow_files_are_pushed_and_pulled(
    kernel: Bridge, options: list[str], tmp_path: Path
) -> None:
    arrays = {"a": np.arange(3), "b": np.ones((2, 2))}
    np.savez(tmp_path / "a.npz", **arrays)
    TABLE.to_feather(tmp_path / "a.arrow")
    pushed = [f"arrays={tmp_path / 'a.npz'}", f"table={tmp_path / 'a.arrow'}"]
    assert bridgehead("push", *pushed, *options).code == 0
    pd.testing.assert_frame_equal(await kernel.pull("table"), TABLE)
    assert bridgehead("pull", "arrays", "-o", tmp_path / "b.npz", *options).code == 0
    back = np.load(tmp_path / "b.npz")
    assert {name: back[name].tolist() for name in back} == {
        name: array.tolist() for name, array in arrays.items()
    }
    assert bridgehead("pull", "table", "-o", tmp_path / "b.arrow", *options).code == 0
    pd.testing.assert_frame_equal(pd.read_feather(tmp_path / "b.arrow"), TABLE)


async def test_json_is_pushed_and_pulled(
    kernel: Bridge, options: list[str], tmp_path: Path
) -> None:
    value = {"a": [1, 2.5, None, True], "ü": {"deep": ["\u2028"]}}
    (tmp_path / "a.json").write_text(json.dumps(value))
    assert bridgehead("push", f"value={tmp_path / 'a.json'}", *options).code == 0
    assert await kernel.pull("value") == value
    assert bridgehead("pull", "value", "-o", tmp_path / "b.json", *options).code == 0
    assert json.loads((tmp_path / "b.json").read_text()) == value


async def test_a_pickle_is_opened_only_in_the_kernel(
    kernel: Bridge, options: list[str], tmp_path: Path
) -> None:
    class Who:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.getpid, ()

    (tmp_path / "who.pickle").write_bytes(pickle.dumps(Who()))
    assert bridgehead("push", f"who={tmp_path / 'who.pickle'}", *options).code == 0
    assert await kernel.pull("who") == kernel.info.pid
    refused = bridgehead("push", f"x={tmp_path / 'who.pickle'}", "--trust", "data", *options)
    assert "x" in refused.refused(1)
    assert not await kernel.exists("x")


async def test_a_pickle_includes_a_class_of_the_notebook(
    kernel: Bridge, options: list[str], tmp_path: Path
) -> None:
    await kernel.run("class Point:\n    x = 7\npoint = Point()")
    file = tmp_path / "point.pickle"
    # The kernel makes the pickle and pull does not open it, so --trust data suffices.
    assert bridgehead("pull", "point", "-o", file, "--trust", "data", *options).code == 0
    await kernel.run("del Point, point")
    assert bridgehead("push", f"again={file}", *options).code == 0
    assert await kernel.pull("again.x") == 7


async def test_several_files_are_all_bound_or_none(
    kernel: Bridge, options: list[str], tmp_path: Path
) -> None:
    (tmp_path / "good.json").write_text("1")
    (tmp_path / "bad.pickle").write_bytes(b"no pickle")
    both = [f"a={tmp_path / 'good.json'}", f"b={tmp_path / 'bad.pickle'}"]
    assert "UnpicklingError" in bridgehead("push", *both, *options).refused(1)
    assert await kernel.names() == []


async def test_objects_are_handed_to_another_kernel(
    kernel: Bridge, live: Bridge, options: list[str]
) -> None:
    await kernel.push(x=np.arange(5), y="y")
    to = ["--to", str(live.info.connection_file)]
    ran = await asyncio.to_thread(bridgehead_process, "handoff", "x", "y", *to, *options)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("x, y: ")
    assert await live.pull("list(x), y") == ([0, 1, 2, 3, 4], "y")
    refused = (await asyncio.to_thread(bridgehead, "handoff", "x", "z", *to, *options)).refused(4)
    assert "'z' is not defined" in refused
    assert f"pid {kernel.info.pid}" in refused  # a note says which kernel
    ran = await asyncio.to_thread(bridgehead, "handoff", "x", "--to", "nowhere", *options)
    assert "no connection file matches 'nowhere'" in ran.refused(3)


@pytest.mark.timings(bar_after=0.0)  # a bar would be shown at once
async def test_a_handoff_shows_no_bar_where_there_is_no_terminal(
    kernel: Bridge, live: Bridge, options: list[str]
) -> None:
    await kernel.push(x=1)
    to = ["--to", str(live.info.connection_file)]
    ran = await asyncio.to_thread(bridgehead, "handoff", "x", *to, *options)
    assert (ran.code, ran.err) == (0, "")


def test_json_that_is_nested_too_deep_is_refused(options: list[str]) -> None:
    for depth, code in ((900, 3), (100_000, 2)):  # it can be read, but not pickled; not even read
        data = b"[" * depth + b"]" * depth
        bridgehead("push", "deep=-", "-f", "json", *options, stdin=data).refused(code)


@posix
async def test_an_output_file_that_is_a_pipe_gets_only_the_value(
    kernel: Bridge, options: list[str]
) -> None:
    pulled = bridgehead_process("pull", "[1]", "-o", "/dev/stdout", "-f", "json", *options)
    assert pulled.json == [1]


async def test_standard_streams_carry_values(kernel: Bridge, options: list[str]) -> None:
    await kernel.push(table=TABLE)
    pulled = bridgehead("pull", "table", "-o", "-", "--format", "parquet", *options)
    pd.testing.assert_frame_equal(pd.read_parquet(io.BytesIO(pulled.raw)), TABLE)
    assert bridgehead("push", "again=-", "-f", "parquet", *options, stdin=pulled.raw).code == 0
    pd.testing.assert_frame_equal(await kernel.pull("again"), TABLE)


@pytest.mark.parametrize(
    ("value", "suffix", "why"),
    [
        pytest.param(3, "csv", "csv holds tables, not an int; use pickle", id="no-table"),
        pytest.param(TABLE, "npy", "use csv, parquet, arrow or pickle", id="no-array"),
        pytest.param(TABLE, "json", "use csv, parquet, arrow or pickle", id="table-as-json"),
        pytest.param(np.arange(3), "json", "use npy or pickle", id="array-as-json"),
        pytest.param({"a": [float("nan")]}, "json", "can't hold nan at ['a'][0]", id="nan"),
        pytest.param({1: 2}, "json", "only strings as keys, not 1", id="keys"),
        pytest.param(np.array([{}]), "npy", "only as a pickle", id="objects"),
        pytest.param(pd.DataFrame({"a": [{}, 1]}), "parquet", "use pickle", id="mixed"),
    ],
)
async def test_a_value_that_the_format_cannot_hold_is_refused_and_the_file_stays_unchanged(
    kernel: Bridge, options: list[str], tmp_path: Path, value: Any, suffix: str, why: str
) -> None:
    await kernel.push(value=value)
    file = tmp_path / f"out.{suffix}"
    file.write_text("before")
    assert why in bridgehead("pull", "value", "-o", file, *options).refused(1)
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


async def test_a_file_keeps_its_mode_and_a_link_its_target(
    kernel: Bridge, options: list[str], tmp_path: Path
) -> None:
    await kernel.push(n=1)
    file, link = tmp_path / "a.json", tmp_path / "link.json"
    file.touch(0o600)
    link.symlink_to(file)
    assert bridgehead("pull", "n", "-o", link, *options).code == 0
    assert link.is_symlink()
    assert (file.read_text(), stat.S_IMODE(file.stat().st_mode)) == ("1\n", 0o600)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        pytest.param(["push", "x=a.txt"], "--format", id="suffix"),
        pytest.param(["push", "x=-"], "--format", id="stdin"),
        pytest.param(["push", "x"], "NAME=FILE", id="no-file"),
        pytest.param(["push", "a b=c.csv"], "not a valid Python name", id="name"),
        pytest.param(["push", "x=missing.csv"], "No such file", id="missing"),
        pytest.param(["push", "x=broken.json"], "can't be read as json", id="broken"),
        pytest.param(["push", "x=broken.npy"], "can't be read as npy", id="broken-npy"),
        pytest.param(["pull", "x", "-o", "no/where.csv"], "there is no folder", id="folder"),
        pytest.param(["pull", "x", "--existing", "a", "--url", "b"], "one of them", id="two"),
        pytest.param(["pull", "x", "--token", "a"], "--url", id="token"),
        pytest.param(["pul", "x"], "Did you mean pull?", id="typo"),
    ],
)
def test_a_command_that_cannot_start_is_code_2(
    tmp_path: Path, arguments: list[str], why: str
) -> None:
    for broken in ("broken.json", "broken.npy"):
        (tmp_path / broken).write_text("{")
    assert why in bridgehead(*arguments, cwd=tmp_path).refused(2)


# ---------------------------------------------------------------- exit codes


@pytest.mark.slow
async def test_exit_codes_say_what_is_known_of_the_request(
    kernel: Bridge, options: list[str]
) -> None:
    command = bridgehead_process
    assert "ZeroDivisionError" in command("pull", "1/0", *options).refused(1)
    assert "no-such-kernel" in command("names", "-e", "no-such-kernel").refused(3)
    assert "'missing'" in command("pull", "missing", *options).refused(4)
    sleep = "__import__('time').sleep(600)"
    slow = command("pull", sleep, "--timeout", "1", *options)  # opening may take this long too
    assert "longer than 1 s" in slow.refused(124)
    await kernel.interrupt()


@pytest.mark.slow
async def test_a_timeout_includes_opening_the_bridge(kernel: Bridge, options: list[str]) -> None:
    cell = asyncio.ensure_future(kernel.run("while True: __import__('time').sleep(0.01)"))
    while kernel.state != "busy":
        await asyncio.sleep(0.01)
    for words in (["pull", "1"], ["names"], ["watch", "1"], ["run", "-"]):
        command = bridgehead_process if words[0] == "run" else bridgehead  # it handles signals
        ran = await asyncio.to_thread(command, *words, "--timeout", "1", *options)
        assert "longer than 1 s" in ran.refused(124)
    await kernel.interrupt()
    with pytest.raises(RemoteError, match="KeyboardInterrupt"):
        await cell


async def test_a_reader_that_closes_the_pipe_is_no_error(
    kernel: Bridge, options: list[str]
) -> None:
    await kernel.push(text="line\n" * 1_000_000)
    with subprocess.Popen(
        [SCRIPT, "pull", "text", *options],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as pulling:
        assert pulling.stdout is not None
        assert pulling.stdout.readline() == b"line\n"
        pulling.stdout.close()
        assert pulling.stderr is not None
        assert pulling.stderr.read() == b""
    assert pulling.returncode == 141


# ---------------------------------------------------------------- output


async def test_names_in_a_pipe_and_as_json(kernel: Bridge, options: list[str]) -> None:
    await kernel.push(table=TABLE, n=3, other=[1, 2])
    lines = bridgehead_process("names", *options).out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["n", "other", "table"]
    assert all(line == line.rstrip() for line in lines)
    (found,) = bridgehead("names", "t*", "--json", *options).json
    assert (found["name"], found["type"], found["shape"]) == ("table", "pandas.DataFrame", [3, 3])


async def test_a_pipe_gets_the_whole_value(kernel: Bridge, options: list[str]) -> None:
    await kernel.push(table=pd.DataFrame({f"column{i}": range(100) for i in range(40)}))
    out = bridgehead("pull", "table", *options).out.splitlines()
    assert len(out) == 101
    assert "column39" in out[0]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("3", 3),
        ("float('nan')", None),
        ("(1, {2: b'x'})", [1, {"2": "b'x'"}]),
        ("__import__('numpy').eye(2)", [[1, 0], [0, 1]]),
        ("__import__('pandas').DataFrame({'a': [1, 2]})", [{"a": 1}, {"a": 2}]),
        ("__import__('datetime').date(2020, 1, 2)", "2020-01-02"),
    ],
)
def test_json_is_the_nearest_json_value(options: list[str], expression: str, expected: Any) -> None:
    assert bridgehead("pull", expression, "--json", *options).json == expected


@pytest.mark.parametrize(("rows", "columns"), [(24, 80), pytest.param(40, 120, marks=SLOW)])
async def test_a_terminal_shows_the_head_of_a_table(
    kernel: Bridge, options: list[str], rows: int, columns: int
) -> None:
    wide = pd.DataFrame({f"c{i}": np.arange(1000) / 7 for i in range(50)})
    await kernel.push(wide=wide)
    with Terminal("pull", "wide", *options, rows=rows, columns=columns) as terminal:
        assert terminal.end() == 0
    lines = terminal.text.splitlines()
    assert lines[0] == "DataFrame 1,000 × 50"
    assert "990 more rows" in lines[-1]
    assert "more columns" in lines[-1]
    assert len(lines) < rows


@pytest.mark.slow
async def test_a_value_never_controls_the_terminal(kernel: Bridge, options: list[str]) -> None:
    evil = "\x1b]0;title\x07\x1b[2J\x1b[1;1Hgone"
    await kernel.push(text=evil, table=pd.DataFrame({evil: [evil]}), several={evil: evil})
    for name in ("text", "table", "several"):
        with Terminal("pull", name, *options) as terminal:
            assert terminal.end() == 0
        assert b"\x1b]0" not in terminal.raw
        assert b"\x1b[2J" not in terminal.raw
        assert b"\x1b[1;1H" not in terminal.raw


async def test_a_terminal_shows_that_the_command_waits_for_the_kernel(
    kernel: Bridge, options: list[str]
) -> None:
    cell = asyncio.ensure_future(kernel.run("while True: __import__('time').sleep(0.01)"))
    while kernel.state != "busy":
        await asyncio.sleep(0.01)
    with Terminal("pull", "1", *options) as terminal:
        await asyncio.to_thread(terminal.until, "waiting for the kernel")
        terminal.press("\x03")
        assert await asyncio.to_thread(terminal.end) == 130
    assert "waiting" not in terminal.text
    assert "Traceback" not in terminal.text
    await kernel.interrupt()
    with pytest.raises(RemoteError, match="KeyboardInterrupt"):
        await cell


@posix
@pytest.mark.parametrize(
    "expression",
    [
        "[done.append(1), __import__('time').sleep(600), done.append(2)]",
        "[done.append(1), await __import__('asyncio').sleep(600), done.append(2)]",
    ],
)
async def test_control_c_interrupts_what_is_evaluated(
    kernel: Bridge, options: list[str], expression: str
) -> None:
    await kernel.push(done=[])
    with Terminal("pull", expression, *options) as terminal:
        while not await kernel.pull("done", now=True):
            await asyncio.sleep(0.05)
        notice = "waiting for the kernel; Ctrl-C stops waiting and interrupts the evaluation"
        await asyncio.to_thread(terminal.until, notice)
        terminal.press("\x03")
        assert await asyncio.to_thread(terminal.end) == 130
    # In the thread of the cells, which is free at once, and not in ten minutes.
    assert await kernel.pull("len(done)", timeout=60) == 1


@posix
async def test_control_c_interrupts_no_cell_of_another_client(
    kernel: Bridge, options: list[str], tmp_path: Path
) -> None:
    go, done = tmp_path / "go", tmp_path / "done"
    wait = f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(.05)\n'whole'"
    cell = asyncio.ensure_future(kernel.run(wait))
    while kernel.state != "busy":
        await asyncio.sleep(0.01)
    with Terminal("pull", f"open({str(done)!r}, 'w')", *options) as terminal:
        await asyncio.to_thread(terminal.until, "waiting for the kernel")
        terminal.press("\x03")
        assert await asyncio.to_thread(terminal.end) == 130
    go.touch()
    assert (await cell).data["text/plain"] == "'whole'"
    assert await kernel.pull("1 + 1") == 2
    assert not done.exists()  # what had not begun never begins


async def test_no_color_switches_colours_off(kernel: Bridge, options: list[str]) -> None:
    await kernel.push(n=1)
    with Terminal("names", *options, NO_COLOR="1") as terminal:
        assert terminal.end() == 0
    assert b"\x1b[3" not in terminal.raw


def completed(*words: str, typed: str = "", command: Callable[..., Ran] = bridgehead) -> list[str]:
    """Return what bash is offered for the typed word after these words."""
    ran = command(
        _BRIDGEHEAD_COMPLETE="bash_complete",
        COMP_WORDS=" ".join(["bridgehead", *words, typed]),
        COMP_CWORD=str(len(words) + 1),
    )
    assert ran.err == ""
    return [line.partition(",")[2] for line in ran.out.splitlines() if line]


async def test_completion_offers_commands_kernels_and_names(
    kernel: Bridge, options: list[str]
) -> None:
    await kernel.push(alpha=1, alphabet=2, beta=3)
    file = Path(str(kernel.info.connection_file)).name
    assert completed(typed="pu", command=bridgehead_process) == ["push", "pull"]
    assert completed("pull", *options, typed="alp") == ["alpha", "alphabet"]
    assert file in completed("names", "--existing", typed="kernel-")
    assert completed("pull", "--existing", "no-such-kernel", typed="a") == []


async def test_completion_does_not_wait_for_a_busy_kernel(
    kernel: Bridge, options: list[str]
) -> None:
    await kernel.push(alpha=1)
    cell = asyncio.ensure_future(kernel.run("while True: __import__('time').sleep(0.01)"))
    try:
        while kernel.state != "busy":
            await asyncio.sleep(0.01)
        found = await asyncio.to_thread(completed, "pull", *options, typed="alp")
        assert found in ([], ["alpha"])
    finally:
        await kernel.interrupt()
        with pytest.raises(RemoteError, match="KeyboardInterrupt"):
            await cell


@pytest.mark.slow
@pytest.mark.parametrize(
    "shell", ["bash", pytest.param("zsh", marks=SLOW), pytest.param("fish", marks=SLOW)]
)
def test_completion_prints_a_script(shell: str) -> None:
    command = bridgehead_process if shell == "bash" else bridgehead
    assert "_BRIDGEHEAD_COMPLETE" in command("completion", shell).out
