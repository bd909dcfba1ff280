"""Test the parts of the command line that need no kernel: help, formats, terminal output.

Rule: functions, and a process only where the test is about starting it; no kernel.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import shlex
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgehead import Bridge, BridgeClosed, BridgeError
from bridgehead._errors import CLOSED, CLOSED_MEANWHILE
from bridgehead._tools.cli import formats
from bridgehead._tools.cli.ctrl_c import CtrlC, cancelling
from bridgehead._tools.cli.exit import code_of
from bridgehead._tools.cli.group import COMMANDS
from bridgehead._tools.cli.group import bridgehead as commands
from bridgehead._tools.cli.preview import one_line, show
from bridgehead._tools.cli.terminal import output, plain
from bridgehead._tools.cli.watch import as_number, sparkline
from support.cli import bridgehead, bridgehead_process
from support.pages import PAGES, README

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def test_help_names_every_command_and_every_exit_code() -> None:
    ran = bridgehead_process("--help")
    assert ran.code == 0
    for name in COMMANDS:
        assert f"\n  {name} " in ran.out
    for code in ("0", "1", "2", "3", "4", "5", "124", "130", "141"):
        assert f"\n    {code} " in ran.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    ran = bridgehead(command, "--help")
    assert ran.code == 0
    assert ran.out.startswith(f"Usage: bridgehead {command}")


def test_the_commands_and_options_in_the_documentation_exist() -> None:
    seen = set()
    for page in (README, *PAGES):
        for line in re.findall(r"(?:^\$ |`)bridgehead ([^`\n]+)", page.read_text(), re.MULTILINE):
            name, *rest = shlex.split(line, comments=True)
            if name not in COMMANDS:  # "bridgehead COMMAND --help"
                assert name.isupper() or name.startswith(("-", "…")), f"{page.name}: {line}"
                continue
            command = commands.get_command(click.Context(commands), name)
            assert command is not None
            context = click.Context(command, info_name=name)
            _, left, _ = command.make_parser(context).parse_args(rest)  # raises for an option
            assert left == [], f"{page.name}: {line}"
            seen.add(name)
    assert seen > {"start", "ls", "push", "pull", "run", "handoff", "stop", "doctor"}


def test_help_imports_no_heavy_modules() -> None:
    code = (
        "import sys; sys.argv = ['bridgehead', '--help']; from bridgehead._tools.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print({'rich', 'pandas', 'numpy', 'httpx'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "set()\n"


@given(JSON)
def test_json_is_read_back_unchanged(value: object) -> None:
    assert formats.loaded(formats.dumped(value, "json"), "json", "it") == value


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_an_index_that_does_more_than_number_the_rows_is_kept(kind: str) -> None:
    table = pd.DataFrame({"x": [1, 2]}, index=pd.Index(["a", "b"], name="key"))
    back = formats.loaded(formats.dumped(table, kind), kind, "it")
    pd.testing.assert_frame_equal(back.set_index("key") if kind == "csv" else back, table)


@pytest.mark.parametrize("kind", ["csv", "parquet", "npy", "json"])
def test_a_file_of_another_format_is_refused(kind: str) -> None:
    for data in (b"", b"\x89PNG\r\n\x1a\n\0\0\0", b'"\n"x'):
        with pytest.raises(formats.Unusable, match=f"it can't be read as {kind}"):
            formats.loaded(data, kind, "it")
        if kind == "csv":
            break  # csv accepts nearly any text


def test_an_array_with_a_pickle_in_it_is_not_opened() -> None:
    file = io.BytesIO()
    np.save(file, np.array([{}]), allow_pickle=True)
    with pytest.raises(formats.Unusable, match="can't be read as npy"):
        formats.loaded(file.getvalue(), "npy", "it")


@given(st.text(), st.booleans())
def test_no_output_controls_a_terminal(text: str, colour: bool) -> None:
    shown = output(text, terminal=True, colour=colour)
    for sequence in (part for part in shown.split("\x1b")[1:]):
        assert colour
        assert sequence.startswith("[")
        assert sequence.lstrip("[0123456789;").startswith("m")
    assert output(text, terminal=False, colour=colour) == text
    assert plain(text).isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m"),
        ("\x1b[2Ja\x1b]0;t\x07b\x1b]52;c;x\x1b\\c", "abc"),
        ("10%\r20%\b", "10%\r20%\b"),
        ("\x1b", "\ufffd"),
        ("a\x9b2Jb", "a\ufffd2Jb"),
    ],
)
def test_colours_and_progress_bars_reach_the_terminal(text: str, shown: str) -> None:
    assert output(text, terminal=True, colour=True) == shown


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_a_sparkline_has_a_bar_for_each_number(numbers: list[float]) -> None:
    bars = sparkline(numbers)
    assert len(bars) == len(numbers)
    if min(numbers) < max(numbers):
        assert bars[numbers.index(max(numbers))] == "█"
        assert bars[numbers.index(min(numbers))] == "▁"


def test_only_finite_numbers_are_numbers() -> None:
    assert as_number(np.float32(2)) == 2
    assert [as_number(value) for value in (True, "1", None, [], float("nan"), 10**400)] == [
        None
    ] * 6


def test_a_value_that_contains_itself_is_refused() -> None:
    value: list[object] = []
    value.append(value)
    with pytest.raises(formats.Unusable, match="contains itself"):
        formats.dumped(value, "json")
    assert formats.jsonable(value) == "[[...]]"


def test_a_lone_surrogate_is_escaped_or_refused() -> None:
    data = formats.dumped("\ud800", "json")
    assert data.isascii()
    assert formats.loaded(data, "json", "it") == "\ud800"
    for kind in ("csv", "parquet"):
        with pytest.raises(formats.Unusable):
            formats.dumped(pd.DataFrame({"a": ["\ud800"]}, dtype=object), kind)


def test_every_value_has_a_json_form_for_scripts() -> None:
    values = [object(), {1}, np.float64("nan"), pd.Timestamp("2020"), pd.DataFrame(), int, 1j, b"x"]
    json.dumps([formats.jsonable(value) for value in values], allow_nan=False)


class Broken:
    __module__ = "test_cli"  # messages show the first part of a module's name

    def __repr__(self) -> str:
        raise RuntimeError("no")

    __str__ = __float__ = __repr__  # type: ignore[assignment]

    @property
    def shape(self) -> tuple[int, ...]:
        raise RuntimeError("no")

    tolist = shape


@pytest.mark.parametrize("terminal", [True, False])
def test_a_value_whose_repr_fails_is_shown_by_its_type(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    values = [Broken(), 10**5000, [Broken()], pd.DataFrame({"a": [Broken()]}), {Broken(): 1}, deep]
    for value in values:
        show(value)
        one_line(value, 80)
        json.dumps(formats.jsonable(value))
    assert b"an int" in capfdbinary.readouterr().out
    assert as_number(Broken()) is None
    assert formats.jsonable([1, Broken()]) == [1, "<a test_cli.Broken>"]
    with pytest.raises(formats.Unusable, match="digits"):
        formats.dumped(10**5000, "json")


def test_a_file_that_is_nested_too_deep_is_refused() -> None:
    with pytest.raises(formats.Unusable, match="recursion"):
        formats.loaded(b"[" * 200_000, "json", "it")


def test_no_column_or_key_is_lost_when_names_collide() -> None:
    kept = pd.DataFrame({"a": [1, 2], "b": [3, 4]}).set_index("a", drop=False)
    same = pd.DataFrame([[1, 2]], columns=["a", "a"])
    for table in (kept, same, pd.DataFrame([[1, 2]], columns=[1, "1"])):
        assert formats.jsonable(table) == table.to_string()
        with pytest.raises(formats.Unusable, match="twice"):
            formats.dumped(table, "csv")
    assert formats.jsonable({1: 2, "1": 3}) == "{1: 2, '1': 3}"


@pytest.mark.parametrize("cell", [[1], {"a": 1}, (1,), {1}, b"x", np.arange(2)])
def test_csv_refuses_cells_that_it_would_write_as_text(cell: object) -> None:
    with pytest.raises(formats.Unusable, match="csv holds numbers and texts"):
        formats.dumped(pd.DataFrame({"a": [cell, "x"]}), "csv")


def test_csv_refuses_columns_with_several_names() -> None:
    with pytest.raises(formats.Unusable, match="several"):
        formats.dumped(pd.DataFrame({("a", "b"): [1]}), "csv")
    several = pd.DataFrame({"x": [1]}, index=pd.MultiIndex.from_tuples([("a", 1)]))
    assert formats.dumped(several, "csv") == b",,x\na,1,1\n"


def test_an_archive_of_arrays_is_refused() -> None:
    file = io.BytesIO()
    np.savez(file, np.arange(3))
    with pytest.raises(formats.Unusable, match="name the file .npz"):
        formats.loaded(file.getvalue(), "npy", "it")


async def test_info_says_why_the_lane_is_no_better() -> None:
    async with Bridge.loopback() as bridge:
        assert bridge.info.lane == "buffers"
        assert list(bridge.info.why_not) == ["direct"]
    async with Bridge.loopback(lane="inline") as bridge:
        assert bridge.info.why_not == {}


@pytest.mark.parametrize(("module", "suffix"), [("pyarrow", "parquet"), ("numpy", "npy")])
def test_a_missing_module_is_reported_with_the_command_that_installs_it(
    tmp_path: Path, module: str, suffix: str
) -> None:
    (tmp_path / f"x.{suffix}").write_bytes(b"x")
    code = (
        f"import sys; sys.modules[{module!r}] = None; sys.argv[0] = 'bridgehead'; "
        "from bridgehead._tools.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "push", f"x={tmp_path}/x.{suffix}"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f"{suffix} needs {module}" in done.stderr
    assert "pip install '" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["push", "class=x.json"], "keyword"),
        (["names", "--url", "ftp://x"], "http://"),
        (["names", "--url", "http://127.0.0.1:1", "--token", "a\nb"], "token"),
    ],
)
def test_a_refusal_of_the_library_is_one_sentence(
    tmp_path: Path, arguments: list[str], why: str
) -> None:
    (tmp_path / "x.json").write_text("1")
    assert why in bridgehead(*arguments, cwd=tmp_path).refused(2)


@pytest.mark.parametrize(
    ("error", "code"),
    [(BridgeClosed(CLOSED), 3), (BridgeClosed(CLOSED_MEANWHILE), 5), (BridgeError("x"), 1)],
)
def test_the_exit_code_of_a_closed_bridge_says_whether_the_request_was_sent(
    error: BridgeError, code: int
) -> None:
    assert code_of(error) == code


def test_ctrl_c_cancels_the_command_again_when_there_is_no_work_to_cancel() -> None:
    ended = []

    async def command() -> None:
        work: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with cancelling(work, CtrlC()):
            pass
        try:
            signal.raise_signal(signal.SIGINT)
            await asyncio.sleep(60)
        except BaseException as error:
            ended.append(type(error))
            raise

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(command())
    assert ended == [asyncio.CancelledError]


def test_whether_ctrl_c_can_be_handled_is_known() -> None:
    async def is_handled() -> bool:
        work: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with cancelling(work, CtrlC()) as handled:
            return handled

    with ThreadPoolExecutor(1) as pool:  # signals reach the main thread only
        assert not pool.submit(asyncio.run, is_handled()).result()
    if sys.platform != "win32":
        assert asyncio.run(is_handled())
