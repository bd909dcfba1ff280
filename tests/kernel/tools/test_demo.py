"""Test ``bridgehead demo``.

Rule: tests check what the command prints, how it exits, and what it leaves behind.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from support.cli import Ran, bridgehead, bridgehead_process, start_command

OBJECTS = ("table", "summarise", "passport", "summary")


def pid_of(ran: Ran) -> int:
    """Return the kernel's pid, as the command printed it."""
    found = re.search(r"pid (\d+), over", ran.out)
    assert found, ran.out
    return int(found[1])


def words_of(ran: Ran) -> str:
    """Return the output without line breaks."""
    return " ".join(ran.out.split())


def crossings_of(ran: Ran) -> list[list[str]]:
    """Return the cells of each row of the table: arrow, bridge, name, type, bytes, lane, ms."""
    return [line.split() for line in ran.out.splitlines() if line[:1] in ("→", "←")]


@pytest.fixture(autouse=True, scope="module")
def nothing_left(jupyter_folders: Path) -> Iterator[None]:
    """Check that Jupyter's runtime folder is unchanged after all of these commands."""
    folder = jupyter_folders / "run"
    before = set(folder.iterdir())
    yield
    assert set(folder.iterdir()) - before == set()


@pytest.fixture(scope="module")
def shipped(nothing_left: None) -> Ran:
    """Run the demonstration once, on the data that ships with bridgehead."""
    return bridgehead_process("demo")


def failed(ran: Ran, code: int = 1) -> str:
    """Return the only sentence of a failed command."""
    assert ran.code == code
    assert "Traceback" not in ran.out + ran.err
    assert ran.err.startswith("bridgehead: ")
    assert ran.err.count("\n") == 1
    return ran.err.removeprefix("bridgehead: ").strip()


@pytest.mark.slow
def test_the_shipped_data_crosses(shipped: Ran) -> None:
    assert (shipped.code, shipped.err) == (0, "")
    assert "Palmer penguins: 344 rows, 8 columns" in shipped.out
    assert "CC0" in shipped.out
    assert re.search(r"^Gentoo +124 ", shipped.out, re.MULTILINE)
    rows = crossings_of(shipped)
    assert [(row[0], row[1], row[2], row[3]) for row in rows] == [
        ("→", "first", "table", "DataFrame"),
        ("→", "first", "summarise", "function"),
        ("→", "first", "passport", "Passport"),
        ("←", "first", "summary", "DataFrame"),
        ("←", "second", "table", "DataFrame"),
        ("←", "first", "passport", "Passport"),
    ]
    assert {row[5] for row in rows} <= {"inline", "buffers", "direct"}
    assert all(int(row[4].replace(",", "")) > 0 and float(row[6]) > 0 for row in rows)


def test_the_second_bridge_sees_the_same_objects(shipped: Ran) -> None:
    pid, words = pid_of(shipped), words_of(shipped)
    assert re.search(rf"the same kernel: pid {pid} and epoch \w+ are equal", words)
    assert "the same objects: their ids are equal" in words
    assert f"the first cell (pid {pid}), the second cell (pid {pid})" in words
    assert "What came back is equal to what was sent." in words


def test_nothing_is_left_behind(shipped: Ran) -> None:
    assert not psutil.pid_exists(pid_of(shipped))
    assert "its connection file is gone" in words_of(shipped)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "shape", "summary"),
    [
        pytest.param("name\nann\nbob\n", "2 rows, 1 column.", r"all rows +2 +2", id="one-column"),
        pytest.param(
            "x\n3.5\n",
            "1 row, 1 column.",
            r"all rows +1 +3\.5",
            id="one-cell",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "k\na\na\nb\nb\n",
            "4 rows, 1 column.",
            r"a +2$",
            id="only-groups",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "city;km\nUlm;1,5\nUlm;2,5\nBonn;4\nBonn;4\n",
            "4 rows, 2 columns.",
            r"Ulm +2 +2$",
            id="semicolons",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "rows,rows,[red]k\n1,2,a\n3,4,a\n5,6,b\n5,6,\n",
            "4 rows, 3 columns.",
            r"a +2 +2 +3$",
            id="names-of-the-demo",
        ),
        pytest.param(
            "k,n\n\x1b[31ma,1\n\x1b[31ma,2\nb,3\nb,4\n",
            "4 rows, 2 columns.",
            r"\ufffd\[31ma +2 +1\.5$",
            id="escapes",
        ),
    ],
)
def test_any_table_crosses(tmp_path: Path, text: str, shape: str, summary: str) -> None:
    file = tmp_path / "own.csv"
    file.write_text(text, encoding="utf-8")
    ran = bridgehead("demo", file)
    assert (ran.code, ran.err) == (0, "")
    assert f"own.csv: {shape}" in words_of(ran)
    assert re.search(f"^{summary}", ran.out, re.MULTILINE), ran.out
    assert {row[2] for row in crossings_of(ran)} == set(OBJECTS)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        pytest.param(None, "there is no file", id="missing"),
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(b"\n \n", "is empty", id="blank"),
        pytest.param(b"a,b\n", "no row below", id="header-only"),
        pytest.param(b"\x89PNG\r\n\x1a\n", "is not a CSV file", id="picture"),
        pytest.param(b"a\0b,c\n1,2\n", "binary", id="binary"),
        pytest.param(b"a,b\n1,2\n1,2,3,4\n", "is not a CSV file", id="ragged"),
    ],
)
def test_a_file_that_is_no_table_is_refused_in_one_sentence(
    tmp_path: Path, data: bytes | None, why: str
) -> None:
    file = tmp_path / "own.csv"
    if data is not None:
        file.write_bytes(data)
    sentence = failed(bridgehead("demo", file))
    assert why in sentence
    assert str(file) in sentence


def test_a_folder_is_refused_in_one_sentence(tmp_path: Path) -> None:
    assert "can't be read" in failed(bridgehead("demo", tmp_path))


def test_a_kernel_that_does_not_start_is_reported_in_one_sentence(tmp_path: Path) -> None:
    spec = tmp_path / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    argv = [sys.executable, "-c", "raise SystemExit(3)", "{connection_file}"]
    spec.write_text(json.dumps({"argv": argv, "display_name": "no", "language": "python"}))
    assert "exit code 3" in failed(bridgehead("demo", JUPYTER_PATH=str(tmp_path)), 5)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to one process")
def test_control_c_ends_the_kernel_too() -> None:
    files = Path(os.environ["JUPYTER_RUNTIME_DIR"])  # another folder after a failed test
    for _ in range(10):
        before = set(files.iterdir())
        with start_command("demo") as demo:
            while set(files.iterdir()) <= before:
                assert demo.poll() is None
                time.sleep(0.01)
            demo.send_signal(signal.SIGINT)
            _, err = demo.communicate(timeout=60)
        if demo.returncode:
            break  # otherwise the demo ended before the signal came
    assert demo.returncode == 130
    assert b"Traceback" not in err


def test_a_pipe_gets_plain_text() -> None:
    ran = bridgehead("demo", COLUMNS="30")
    assert "\x1b" not in ran.out
    assert not re.search(r" $", ran.out, re.MULTILINE)
    assert re.search(r"^→ +first +table +DataFrame +[\d,]+ +\w+ +[\d.]+$", ran.out, re.MULTILINE)


@pytest.mark.slow
def test_a_terminal_without_unicode_gets_ascii() -> None:
    ran = bridgehead_process("demo", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.isascii()
    assert re.search(r"^-> .*table", ran.out, re.MULTILINE)


@pytest.mark.parametrize("module", ["click", "rich", "pandas"])
def test_without_the_extra_the_command_says_what_to_install(module: str) -> None:
    without = f"import sys; sys.modules[{module!r}] = None; sys.argv = ['bridgehead', 'demo']; "
    done = subprocess.run(
        [sys.executable, "-c", without + "from bridgehead._tools.cli import main; main()"],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert module in done.stderr
    assert "pip install 'bridgehead[all]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_and_version() -> None:
    assert "demo" in bridgehead("--help").out
    assert "FILE.csv" in bridgehead("demo", "--help").out
    assert re.fullmatch(r"bridgehead \d+\.\d+\S*\n", bridgehead("--version").out)
    assert bridgehead_process("nonsense").code == 2
