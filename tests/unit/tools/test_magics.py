"""Test ``%bridge`` in an IPython of this process, over a loopback: lines, cells and completion.

Rule: no kernel. ``kernel/tools/test_magics.py`` tests the output of real kernels.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from typing import Any

import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from bridgehead import SyncBridge
from bridgehead._tools.magics import cell, complete
from bridgehead._tools.magics.parsing import names_in, wanted, words_of
from bridgehead._transports.loopback import LoopbackTransport


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
    monkeypatch.setattr(complete, "PATIENCE", 60.0)  # these tests do not measure speed
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
    assert shell("%bridge push a b") == ""
    assert shell.bridges["main"].pull("a", "b") == ([1], "$a {a}")
    assert shell("%bridge pull a + [len(b)] as c, b as d") == ""
    assert (shell.names["c"], shell.names["d"]) == ([1, 6], "$a {a}")
    assert shell("%bridge pull {'$a': '{b}'} as s") == ""  # IPython must not expand variables
    assert shell.names["s"] == {"$a": "{b}"}
    assert shell("%bridge pull a b") == ""
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
    assert empty("%bridge pull many") == ""
    error = empty("%bridge pull call")
    assert error.startswith("UsageError: ")
    assert "only data is trusted" in error
    assert "--trust pickle" in error
    assert "call" not in empty.names


def test_names_and_bridges_are_listed(shell: Shell) -> None:
    assert shell("%bridge names") == "main has no names\n"
    shell.bridges["main"].push(text="four", number=1)
    head, *rows = shell("%bridge names").splitlines()
    assert head.split() == ["name", "type", "size", "bytes"]
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
    assert shell("%bridge pull --on gpu a + 1 as b") == ""
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
    for command in ("launch", "attach", "connect", "push", "pull", "names", "info", "close"):
        text = shell(f"%bridge {command} --help")
        assert text.startswith(f"%bridge {command} ")
        assert "--on NAME" in text
    assert "%bridge pull df.mean() as m" in shell("%bridge --help")
    shell("%%bridge\na, h = 3, 1")
    assert shell("%bridge pull a -h as two") == ""
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
    assert shell.tab("%%bridge -") == ["--on", "--pull", "--push"]
    assert shell.tab("%bridge launch pyth") == ["python3"]
    assert shell.tab("%bridge launch --trust ") == ["data", "pickle"]
    shell.bridges["gpu"] = SyncBridge.loopback()
    shell.bridges["gpu"].push(kernel_3=1)
    assert shell.tab("%bridge pull --on ") == ["gpu", "main"]
    assert shell.tab("%bridge pull --on gpu ke") == ["kernel_3"]
    assert shell.tab("%bridge pull --on nope ke") == []
    assert shell.tab("%bridge close ") == ["gpu", "main"]


def test_tab_offers_the_names_of_the_cells_kernel(shell: Shell) -> None:
    shell.bridges["gpu"] = SyncBridge.loopback()
    shell.bridges["gpu"].push(kernel_1=1, kernel_2=2)
    assert {"kernel_1", "kernel_2"} <= set(shell.tab("%%bridge --on gpu\nx = 1\nprint(kern"))
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
    show, interrupts = cell._CellDisplay.show_next, []

    def show_and_be_interrupted(self: Any, messages: Any) -> bool:
        more = show(self, messages)
        if not more and not interrupts:
            interrupts.append(1)
            raise KeyboardInterrupt
        return more

    monkeypatch.setattr(cell._CellDisplay, "show_next", show_and_be_interrupted)
    assert shell("%%bridge\nprint('done')") == "done\n"
    assert interrupts
