"""Test ``%bridge`` in an IPython of this process, over a loopback: lines, cells and completion.

Rule: no kernel. ``kernel/tools/test_magics.py`` tests the output of real kernels.
"""

from __future__ import annotations

import atexit
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config

from bridgehead import SyncBridge
from bridgehead._protocol.display import NO_TEXT, WIDGET, without_widget
from bridgehead._tools.magics import cell, completer, several
from bridgehead._tools.magics.bridge_magics import COMMANDS
from bridgehead._tools.magics.parsing import joined, names_in, wanted, words_of
from bridgehead._tools.magics.widget_text import WidgetTexts
from bridgehead._transports.loopback import LoopbackTransport
from bridgehead._transports.messages import Message

pytestmark = pytest.mark.timings(bar_after=3600)  # s; a slow machine would show bars


class Shell:
    """An IPython, its output, and the bridges of its magics."""

    def __init__(self, ip: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
        self.ip, self._capsys = ip, capsys
        self.names = ip.user_ns

    @property
    def bridges(self) -> dict[str, SyncBridge]:
        return self.ip.magics_manager.registry["BridgeMagics"].bridges

    def __call__(self, cell: str) -> str:
        """Run a cell and return its output."""
        self._capsys.readouterr()
        self.ip.run_cell(cell, store_history=True)
        out, err = self._capsys.readouterr()
        return out + err

    def tab(self, line: str) -> list[str]:
        """Return what Tab offers at the end of a line, as terminals and kernels ask for it."""
        with provisionalcompleter():
            return [one.text for one in self.ip.Completer.completions(line, len(line))]


@pytest.fixture
def empty(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """Start an IPython with the magics and no bridge."""
    monkeypatch.setattr(completer, "TAB_WAIT", 60.0)  # these tests do not measure speed
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "nocolor"
    ip = InteractiveShell.instance(config=config)
    ip.run_cell("%load_ext bridgehead")
    yield Shell(ip, capsys)
    ip.run_cell("%unload_ext bridgehead")
    ip.atexit_operations()
    atexit.unregister(ip.atexit_operations)
    ip.restore_sys_module_state()
    InteractiveShell.clear_instance()


@pytest.fixture
def shell(empty: Shell) -> Shell:
    """Open a bridge in the IPython."""
    empty.bridges["main"] = SyncBridge.loopback()
    return empty


def test_a_close_that_fails_can_be_repeated(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """J8. The bridge stays known until it is closed completely."""

    async def fails(self: LoopbackTransport) -> None:
        raise OSError("not now")

    with monkeypatch.context() as patch:
        patch.setattr(LoopbackTransport, "close", fails)
        assert "not now" in shell("%bridge close")
        assert list(shell.bridges) == ["main"]
    assert shell("%bridge close") == ""
    assert not shell.bridges


def test_connect_waits_for_the_server_of_a_hub_and_has_it_started(
    empty: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[bool, float]] = []

    def connect(*_: object, start_server: bool, timeout: float, **options: object) -> Any:
        asked.append((start_server, timeout))
        return SyncBridge.loopback()

    monkeypatch.setattr(SyncBridge, "connect", connect)
    empty("%bridge connect https://hub/user/ada/ --on a --start-server --timeout 300")
    empty("%bridge connect https://hub/user/ada/ --on b")
    assert asked == [(True, 300.0), (False, 60.0)]


def test_a_bridge_that_does_not_open_advises_options(empty: Shell) -> None:
    address = "http://ada:secret@127.0.0.1:1"
    assert "pass --token" in empty(f"%bridge connect {address}")
    with pytest.raises(ValueError, match="pass token="):  # the notebook's own code is Python
        SyncBridge.connect(address)


# ---------------------------------------------------------------- parsing


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x", {"x": "x"}),
        ("x y", {"x": "x", "y": "y"}),
        ("x, y", {"x": "x", "y": "y"}),
        ("x as y", {"y": "x"}),
        ("df.describe() as d", {"d": "df.describe()"}),
        ("x as a, f(y, [1, 2]) as b, c", {"a": "x", "b": "f(y, [1, 2])", "c": "c"}),
        ("d['a  b, c'] as k", {"k": "d['a  b, c']"}),
        ("a + b  as  s", {"s": "a + b"}),
        ("' as ' as s", {"s": "' as '"}),
        ("-x as y", {"y": "-x"}),
        ("{'$a': '{b}'} as s", {"s": "{'$a': '{b}'}"}),
    ],
)
def test_a_pull_gives_each_expression_a_name(text: str, expected: dict[str, str]) -> None:
    assert wanted(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "%bridge pull needs a NAME"),
        ("x + 1", "needs a name.*x \\+ 1 as NAME"),
        ("x as 1", "needs a name"),
        ("x as class", "needs a name"),
        ("x as y, z as y", "bound twice"),
        ("x as y z as w", "separate several with commas"),
        ("f( as y", "not an expression"),
        ("'x as y", "not an expression"),
        ("x y + 1", "not an expression"),
    ],
)
def test_a_pull_that_cannot_be_parsed_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        wanted(text)


def test_a_line_is_split_into_words_and_names() -> None:
    assert words_of("a  b --on gpu") == ["a", "b", "--on", "gpu"]
    assert words_of("a['x  y'] as b --on gpu", whole=True) == [
        *("--on", "gpu", "--", "a['x  y'] as b")
    ]
    assert words_of("--on=gpu a", whole=True) == ["--on", "gpu", "--", "a"]
    assert words_of("--pull 'a + 1 as b'") == ["--pull", "a + 1 as b"]
    with pytest.raises(UsageError, match="quot"):
        words_of("'a")
    assert names_in("a,b", "b c,") == ["a", "b", "c"]
    assert joined(words_of("--pull a, b,c --on d")) == ["--pull", "a,b,c", "--on", "d"]
    assert joined(["--pull", "a,", "--all"]) == ["--pull", "a,", "--all"]


# ---------------------------------------------------------------- lines


def test_without_a_bridge_a_line_says_how_to_open_one(empty: Shell) -> None:
    assert (
        empty("%bridge") == "no bridge is open; use %bridge launch, attach or connect to open one\n"
    )
    for line in ("push x", "pull x", "names", "info", "close"):
        assert empty(f"%bridge {line}").startswith("UsageError: no bridge is open")
    assert "did you mean launch?" in empty("%bridge lanch")
    assert "commands: launch, attach" in empty("%bridge 17")
    assert empty("%bridge close --all") == ""


def test_objects_are_pushed_and_pulled(shell: Shell) -> None:
    shell.names.update(a=[1], b="$a {a}")
    assert shell("%bridge push a b").startswith("main: pushed a, b: ")
    assert shell.bridges["main"].pull("a", "b") == ([1], "$a {a}")
    assert "main: pulled c, d: " in shell("%bridge pull a + [len(b)] as c, b as d")
    assert (shell.names["c"], shell.names["d"]) == ([1, 6], "$a {a}")
    shell("%bridge pull {'$a': '{b}'} as s")  # IPython must not expand variables
    assert shell.names["s"] == {"$a": "{b}"}
    assert "main: pulled a, b: " in shell("%bridge pull a b")
    assert shell.names["a"] == [1]


def test_all_names_are_pushed_or_none(shell: Shell) -> None:
    shell.names.update(a=1)
    assert (
        shell("%bridge push a nope")
        == "UsageError: 'nope' is not defined here; nothing was pushed\n"
    )
    assert "a" not in shell.bridges["main"]
    shell("%bridge push a")
    shell.names["a"] = 2
    assert "'nope' is not defined in the kernel" in shell("%bridge pull a nope")
    assert shell.names["a"] == 2
    assert "UsageError" in shell("%bridge push a a.b")
    shell.names["lock"] = __import__("threading").Lock()
    error = shell("%bridge push a lock")
    assert error.startswith("UsageError: ")
    assert error.count("\n") == 1
    assert shell.bridges["main"].pull("a") == 1


def test_a_bridge_that_trusts_only_data_refuses_other_objects(empty: Shell) -> None:
    empty.bridges["main"] = SyncBridge.loopback(trust="data")
    empty("%%bridge\nimport os; many, call = [1], os.getcwd")
    assert empty("%bridge pull many").startswith("main: pulled many: ")
    error = empty("%bridge pull call")
    assert error.startswith("UsageError: ")
    assert "only data is trusted" in error
    assert "--trust pickle" in error
    assert "call" not in empty.names


def test_names_and_bridges_are_listed(shell: Shell) -> None:
    assert shell("%bridge names") == "main has no names\n"
    shell.bridges["main"].push(text="four", number=1)
    head, *rows = shell("%bridge names").splitlines()
    assert head.split() == ["name", "type", "size", "bytes", "value"]
    assert [row.split()[:2] for row in rows] == [["number", "int"], ["text", "str"]]
    assert shell("%bridge names t*").splitlines()[1].split()[:3] == ["text", "str", "4"]
    assert shell("%bridge names z*") == "main has no names like z*\n"
    assert "buffers over loopback" in shell("%bridge")
    assert "<Info " in shell("%bridge info")


def test_several_bridges_are_used_by_name(shell: Shell) -> None:
    shell.bridges["gpu"] = SyncBridge.loopback()
    shell.names["a"] = 1
    shell("%bridge push a --on gpu")
    assert ("a" in shell.bridges["main"], "a" in shell.bridges["gpu"]) == (False, True)
    assert shell("%%bridge --on gpu\nprint(a)") == "1\n"
    assert shell("%bridge pull --on gpu a + 1 as b").startswith("gpu: pulled b: ")
    assert shell.names["b"] == 2
    assert "no bridge 'cpu' is open; open: main, gpu" in shell("%bridge names --on cpu")
    error = shell("%bridge launch")
    assert error.startswith("UsageError: main is open")
    assert "--on NAME" in error
    assert shell("%bridge close") == ""
    assert shell("%bridge names").splitlines()[1].startswith("a ")  # from the only open bridge
    shell.bridges["two"] = SyncBridge.loopback()
    assert (
        shell("%bridge names") == "UsageError: several bridges are open; use --on gpu or --on two\n"
    )
    assert "no bridge 'three'" in shell("%bridge close gpu three")
    assert set(shell.bridges) == {"gpu", "two"}
    shell("%bridge close gpu two")
    assert not shell.bridges


def test_every_command_has_help(shell: Shell) -> None:
    for command in COMMANDS:
        text = shell(f"%bridge {command} --help")
        assert text.startswith(f"%bridge {command} ")
        assert "--on NAME" in text
    assert "%bridge pull df.mean() as m" in shell("%bridge --help")
    shell("%%bridge\na, h = 3, 1")
    assert shell("%bridge pull a -h as two").startswith("main: pulled two: ")
    assert shell.names["two"] == 2
    assert shell("%%bridge --help\n1").startswith("%%bridge [--push A,B]")


# ---------------------------------------------------------------- cells


def test_a_cell_runs_in_the_kernel(shell: Shell) -> None:
    shell.names.update(a=2, b=3)
    seen = shell("%%bridge --push a,b --pull c,d\nc, d = a * b, '{a} $b'\nprint('printed')\nc + 1")
    assert seen.startswith("printed\nOut[")
    assert seen.rstrip().endswith(": 7")
    assert (shell.names["c"], shell.names["d"]) == (6, "{a} $b")
    assert repr(shell.names["_"]) == "7"
    assert shell.names["_"].data["text/plain"] == "7"


def test_a_failing_cell_pulls_nothing(shell: Shell) -> None:
    seen = shell("%%bridge --pull c\nc = 1\n1/0")
    assert seen.count("ZeroDivisionError: division by zero") == 1
    assert "magics/cell.py" not in seen
    assert "c" not in shell.names
    assert (
        shell("%%bridge --push nope\nd = 1")
        == "UsageError: 'nope' is not defined here; nothing was pushed\n"
    )
    assert "d" not in shell.bridges["main"]


# ---------------------------------------------------------------- several kernels


@pytest.fixture
def two(empty: Shell) -> Shell:
    """Open two bridges."""
    empty.bridges["a"], empty.bridges["big"] = SyncBridge.loopback(), SyncBridge.loopback()
    return empty


def test_a_cell_runs_in_several_kernels(two: Shell) -> None:
    two.names["x"] = 2
    cell = "--push x --pull y, z\ny = x; z = [x]\nprint('one', end=''); print(' line')\nx + 1"
    for options in ("--all", "--on a,big", "--on big, a"):
        seen = two(f"%%bridge {options} {cell}")
        assert sorted(seen.splitlines()) == [
            *("a   | 3", "a   | one line"),
            *("big | 3", "big | one line"),
        ]
        assert (two.names["y"], two.names["z"]) == ({"a": 2, "big": 2}, {"a": [2], "big": [2]})
    two.bridges["big"].close()
    assert "big: this bridge was closed; the cell ran in no kernel" in two("%%bridge --all\n1")


def test_a_failure_in_one_of_several_kernels(two: Shell) -> None:
    two.bridges["big"].push(bad=1)
    seen = two("%%bridge --all --pull c\nc = 1\nif 'bad' in globals():\n    1 / 0\nprint('fine')")
    assert "a   | fine\n" in seen
    assert "big | failed\nTraceback" in seen
    assert seen.count("Traceback") == 1
    last = seen.splitlines()[-1]
    assert last.startswith("UsageError: the cell failed in big (ZeroDivisionError: ")
    assert last.endswith("it ended in a")
    assert "c" not in two.names


def test_the_bridges_of_a_cell_are_checked_first(two: Shell) -> None:
    assert "no bridge 'nope' is open" in two("%%bridge --on a,nope\nx = 1")
    assert "leave --on out" in two("%%bridge --all --on a\nx = 1")
    assert "use --all or --on a or --on big" in two("%%bridge\nx = 1")
    assert "'y' is not defined here" in two("%%bridge --all --push y\nx = 1")
    for name in ("a", "big"):
        assert "x" not in two.bridges[name]
        two.bridges.pop(name).close()
    assert "no bridge is open" in two("%%bridge --all\nx = 1")


def test_an_error_of_several_kernels_names_the_bridge(two: Shell) -> None:
    two("x = 1")
    two.bridges["big"].close()
    shown = two("%%bridge --all --push x\nprint(x)")
    assert shown == "UsageError: big: this bridge was closed; the cell ran in no kernel\n"
    assert "x" not in two.bridges["a"]  # none was pushed
    two.bridges["big"] = SyncBridge.loopback()
    two.bridges["a"].run("y = 1")
    shown = two("%%bridge --all --pull y\n1")
    assert shown.endswith("UsageError: big: 'y' is not defined in the kernel\n")
    assert "y" not in two.names
    two.bridges["big"].run("y = 0")
    shown = two("%%bridge --all --pull '1/y as z'\n1")
    assert shown.splitlines()[-4:-2] == ["big | failed", "Traceback (most recent call last):"]
    assert "z" not in two.names


def test_displays_of_several_kernels_have_a_label(two: Shell) -> None:
    code = "class Rich:\n def _repr_mimebundle_(self, **_): return {'text/html': '<b>'}\nRich()"
    with capture_output() as captured:
        two.ip.run_cell(f"%%bridge --all\n{code}")
    assert sorted(captured.stdout.splitlines()) == ["a   | ", "big | "]
    assert [one.data for one in captured.outputs] == [{"text/html": "<b>"}] * 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [""]),
        ("a", ["a"]),
        ("a\n", ["a\n", ""]),
        ("a\nb\n\nc", ["a\n", "b\n", "\n", "c"]),
        ("\r 1%\r 2%", ["\r", " 1%\r", " 2%"]),
        ("a\r\nb", ["a\r\n", "b"]),
    ],
)
def test_text_is_cut_into_lines(text: str, expected: list[str]) -> None:
    assert several._lines(text) == expected


def test_a_line_of_many_parts_is_not_split_again_with_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = []
    split = several._lines

    def counted(text: str) -> list[str]:
        lengths.append(len(text))
        return split(text)

    monkeypatch.setattr(several, "_lines", counted)
    shell: Any = None
    display = several._LabelledDisplay(shell, "a | ")
    for part in (*["."] * 100, "x\ny", "z\n"):
        display.write(part, "stdout")
    assert capsys.readouterr().out == f"a | {'.' * 100}x\na | yz\n"
    assert max(lengths) == 3


# ---------------------------------------------------------------- what crossed, life


def test_push_and_pull_say_what_crossed(shell: Shell) -> None:
    shell.names.update(a=b"x" * 2_000_000, b=1)
    seen = shell("%bridge push a b")
    assert re.fullmatch(r"main: pushed a, b: 2 MB by buffers in [\d.e-]+ s\n", seen)
    seen = shell("%bridge pull len(a) as n, b")
    assert re.fullmatch(r"main: pulled n, b: \d+ bytes by buffers in [\d.e-]+ s\n", seen)
    assert shell.names["n"] == 2_000_000


@pytest.mark.timings(bar_after=0)
def test_a_long_transfer_shows_a_bar(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    shell.names["a"] = b"x" * 2_000_000
    assert "push: 100%|" in shell("%bridge push a")
    assert "pull: 100%|" in shell("%bridge pull a as b")
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert shell("%bridge push a").startswith("main: pushed a: 2 MB")


def test_a_notebook_shows_names_as_a_table(shell: Shell) -> None:
    shell.bridges["main"].push({"text": "<b>four</b>"})
    with capture_output() as captured:
        shell.ip.run_cell("%bridge names\n%bridge")
    names, bridges = (one.data["text/html"] for one in captured.outputs)
    assert "<th scope='row' style='text-align:left'>text</th>" in names
    assert "&lt;b&gt;four" in names
    assert "main</th><td style='text-align:left'>idle</td>" in bridges


def test_a_kernel_is_restarted_or_not(shell: Shell) -> None:
    shell.bridges["main"].push(x=1)
    assert shell("%bridge restart").startswith("main: restarted; loopback")
    assert "x" not in shell.bridges["main"]
    assert shell("%bridge interrupt").startswith("UsageError: a loopback has no process")


# ---------------------------------------------------------------- widgets


def message(kind: str, trust: str = "pickle", **content: Any) -> Message:
    return Message(kind, content, trust=trust)


def model(identity: str, kind: str, trust: str = "pickle", **state: Any) -> Message:
    data = {"state": {"_model_name": kind, **state}}
    return message("comm_open", trust, comm_id=identity, data=data)


def test_the_text_of_a_widget_follows_its_models() -> None:
    texts = WidgetTexts()
    texts.take(model("left", "HTMLModel", value="<b>\u2007\u20070%</b>"))
    texts.take(model("bar", "FloatProgressModel", value=0.0, min=0.0, max=4.0))
    texts.take(model("right", "HTMLModel", value="0/4 &lt;"))
    children = ["IPY_MODEL_left", "IPY_MODEL_bar", "IPY_MODEL_right"]
    texts.take(model("box", "HBoxModel", children=children))
    shown = texts.display_id({WIDGET: {"model_id": "box"}})
    assert list(texts.changes()) == []
    for identity, value in (("left", " 50%"), ("bar", 2.0)):
        texts.take(message("comm_msg", comm_id=identity, data={"state": {"value": value}}))
    assert list(texts.changes()) == [(shown, " 50%|█████     |0/4 <")]
    assert list(texts.changes()) == []


@pytest.mark.parametrize(
    "opened",
    [
        model("box", "SliderModel", value=3),
        model("box", "HBoxModel", children=["IPY_MODEL_box"]),
        model("box", "HBoxModel", children=["IPY_MODEL_other"]),
        model("box", "HBoxModel", children=3),
        model("box", "FloatProgressModel", value="x", min=0, max=1),
        model("box", "FloatProgressModel", value=1, min=0, max=0),
        model("box", "HTMLModel", value=["x"]),
        model("box", "HTMLModel", "data", value="x"),
        message("comm_open", comm_id=["box"], data=None),
        message("comm_open", comm_id="box", data=3),
    ],
)
def test_any_other_widget_keeps_its_text(opened: Message) -> None:
    texts = WidgetTexts()
    texts.take(opened)
    assert texts.display_id({WIDGET: {"model_id": "box"}}) == ""
    assert texts.display_id({WIDGET: 3}) == ""
    assert texts.display_id({}) == ""


def test_a_widget_without_text_is_named() -> None:
    assert without_widget({WIDGET: {}}) == {"text/plain": NO_TEXT}
    assert without_widget({WIDGET: {}, "text/plain": "50%"}) == {"text/plain": "50%"}
    assert without_widget({"image/png": "x"}) == {"image/png": "x"}


def test_unloading_closes_the_bridges(shell: Shell) -> None:
    bridge = shell.bridges["main"]
    shell("%unload_ext bridgehead")
    assert bridge.state == "closed"
    assert "not found" in shell("%bridge")
    assert shell.tab("%bridge pu") != ["pull", "push"]


# ---------------------------------------------------------------- Tab


@pytest.mark.parametrize("jedi", [True, False])
def test_tab_offers_commands_options_and_names(shell: Shell, jedi: bool) -> None:
    shell.ip.Completer.use_jedi = jedi
    shell.bridges["main"].push(kernel_1=1, kernel_2=2)
    shell.names.update(local_1=1, local_2=2)
    assert shell.tab("%bridge pu") == ["pull", "push"]
    assert shell.tab("%bridge pull ke") == ["kernel_1", "kernel_2"]
    assert shell.tab("%bridge pull kernel_1, kernel_") == ["kernel_1", "kernel_2"]
    assert shell.tab("%bridge names ") == ["kernel_1", "kernel_2"]
    assert shell.tab("%bridge push lo") == ["local_1", "local_2"]
    assert shell.tab("%%bridge --push local_1,local") == ["local_1", "local_2"]
    assert shell.tab("%%bridge --push=local_1 --pull ") == ["kernel_1", "kernel_2"]
    assert shell.tab("%%bridge -") == ["--all", "--on", "--pull", "--push"]
    assert shell.tab("%bridge launch pyth") == ["python3"]
    assert shell.tab("%bridge launch --trust ") == ["data", "pickle"]
    shell.bridges["gpu"] = SyncBridge.loopback()
    shell.bridges["gpu"].push(kernel_3=1)
    assert shell.tab("%bridge pull --on ") == ["gpu", "main"]
    assert shell.tab("%%bridge --on gpu,") == ["gpu", "main"]
    assert shell.tab("%%bridge --on gpu -") == ["--all", "--on", "--pull", "--push"]
    assert shell.tab("%bridge pull --on gpu ke") == ["kernel_3"]
    assert shell.tab("%bridge pull --on nope ke") == []
    assert shell.tab("%bridge close ") == ["gpu", "main"]


def test_tab_offers_the_names_of_the_cells_kernel(shell: Shell) -> None:
    shell.bridges["gpu"] = SyncBridge.loopback()
    shell.bridges["gpu"].push(kernel_1=1, kernel_2=2)
    assert {"kernel_1", "kernel_2"} <= set(shell.tab("%%bridge --on gpu\nx = 1\nprint(kern"))
    assert "kernel_1" in shell.tab("%%bridge --on gpu,main\nkern")
    assert "kernel_1" not in shell.tab("%%bridge --on gpu\nx.kern")
    assert "kernel_1" not in shell.tab("%%bridge --on main\nkern")
    assert "print" in shell.tab("%%bridge --on gpu\nprin")


def test_tab_offers_nothing_without_an_open_bridge(empty: Shell) -> None:
    assert empty.tab("%bridge pull zzz") == []
    empty.bridges["main"] = SyncBridge.loopback()
    empty.bridges["main"].close()
    assert empty.tab("%bridge pull zzz") == []
    error: Any = empty("%bridge push In")
    assert "closed" in error


def test_an_interrupt_at_the_very_end_of_a_cell_loses_nothing(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python may raise the interrupt right after the last message was taken from the queue."""
    show, interrupts = cell.CellDisplay.show_next, []

    def show_and_be_interrupted(self: Any, messages: Any) -> bool:
        more = show(self, messages)
        if not more and not interrupts:
            interrupts.append(1)
            raise KeyboardInterrupt
        return more

    monkeypatch.setattr(cell.CellDisplay, "show_next", show_and_be_interrupted)
    assert shell("%%bridge\nprint('done')") == "done\n"
    assert interrupts
