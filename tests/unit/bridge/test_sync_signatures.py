"""The signatures and docstrings of SyncBridge, as help(), Tab and inspect see them.

Rule: no kernel. ``typing/api.py`` tests what type checkers see, and
``unit/test_public_docstrings.py`` runs the examples.
"""

from __future__ import annotations

import atexit
import inspect
import pydoc
import re
import typing
from collections.abc import Iterator
from typing import Any

import jedi
import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from bridgehead import Bridge, SyncBridge

OPENING = ("launch", "attach", "connect", "over", "loopback")
OPERATIONS = (
    *("push", "pull", "names", "delete", "exists", "handoff", "ref", "call", "submit", "iterate"),
    "callback",
    *("run", "stream", "watch", "watch_names", "messages", "interrupt", "restart"),
)
# The types that differ: a SyncBridge instead of a Bridge, a plain iterator instead of an async one.
TYPES = {
    "Opening[B]": "SyncBridge",
    "Bridge": "SyncBridge",
    "RemoteTask[Any]": "SyncTask[Any]",
    "Watch[Any]": "Iterator[Any]",
    "Watch[Names]": "Iterator[Names]",
    "Iteration": "Iterator[Any]",
    "Messages": "Iterator[Message]",
    "CellStream": "SyncStream",
    "Bridge | HandoffTargets": "SyncBridge | SyncTargets",
}


@pytest.fixture(autouse=True, scope="module")
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have jedi keep what it parsed in a folder of this process: its writes are not atomic."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jedi.settings, "cache_directory", str(tmp_path_factory.mktemp("jedi")))
        yield


def test_every_operation_of_bridge_exists() -> None:
    public = {name for name in dir(Bridge) if not name.startswith("_")}
    assert public - {"aclose", "state", "info", "stats"} == {*OPENING, *OPERATIONS}
    assert public - {"aclose"} <= set(dir(SyncBridge))


@pytest.mark.parametrize("name", [*OPENING, *OPERATIONS])
def test_each_signature_equals_that_of_bridge(name: str) -> None:
    theirs = inspect.signature(getattr(Bridge, name))
    parameters = [
        one.replace(annotation=TYPES.get(one.annotation, one.annotation))
        for one in theirs.parameters.values()
    ]
    returned = TYPES.get(theirs.return_annotation, theirs.return_annotation)
    wanted = theirs.replace(parameters=parameters, return_annotation=returned)
    assert inspect.signature(getattr(SyncBridge, name)) == wanted


@pytest.mark.parametrize("name", [*OPENING, *OPERATIONS, "state", "info", "stats"])
def test_each_docstring_has_every_line_of_bridges(name: str) -> None:
    """The examples differ: they must not await."""
    text = inspect.getdoc(getattr(SyncBridge, name))
    assert text is not None
    theirs = inspect.getdoc(getattr(Bridge, name)) or ""
    prose = theirs.partition(">>>")[0].partition("Example")[0]
    assert plain(prose) <= plain(text)
    examples = "\n".join(re.findall(r"^ *(?:>>>|\.\.\.) .*$", text, re.MULTILINE))
    assert ">>>" in examples
    assert not re.search(r"\b(await|async|bridge|Bridge|other)\b", examples)


def plain(text: str) -> set[str]:
    """Return the lines, without the text of literals."""
    return {re.sub(r"``[^`]*``", "", line).strip() for line in text.splitlines()}


@pytest.mark.parametrize("name", [*OPENING, *OPERATIONS])
def test_help_and_type_hints_show_the_operation(name: str) -> None:
    method = getattr(SyncBridge, name)
    shown = pydoc.render_doc(method, renderer=pydoc.plaintext)
    assert (inspect.getdoc(method) or "").splitlines()[0] in shown
    assert f"{name}(" in shown
    assert method.__qualname__ == f"SyncBridge.{name}"
    assert not inspect.iscoroutinefunction(method)
    assert "return" in typing.get_type_hints(method)


# ---------------------------------------------------------------- IPython


@pytest.fixture
def shell() -> Iterator[InteractiveShell]:
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "nocolor"
    shell = InteractiveShell.instance(config=config)
    with SyncBridge.loopback() as kernel:
        shell.user_ns |= {"kernel": kernel, "SyncBridge": SyncBridge}
        yield shell
    shell.atexit_operations()
    atexit.unregister(shell.atexit_operations)
    shell.restore_sys_module_state()
    InteractiveShell.clear_instance()


TYPED = [
    ("kernel.push(max_", "max_bytes="),
    ("kernel.push(x=1, prog", "progress="),
    ("kernel.handoff('x', time", "timeout="),
    ("kernel.run('1', on_", "on_output="),
    ("kernel.call(len, by_", "by_value="),
    ("kernel.attach(ins", "insecure="),
]


def completions(shell: InteractiveShell, typed: str) -> set[str]:
    assert shell.Completer is not None
    with provisionalcompleter():
        return {one.text for one in shell.Completer.completions(typed, len(typed))}


@pytest.mark.parametrize(
    ("typed", "offered"), [*TYPED, ("type(kernel).launch(encr", "encryption=")]
)
@pytest.mark.slow
def test_tab_completes_options(shell: InteractiveShell, typed: str, offered: str) -> None:
    """jedi completes, which IPython uses if it is installed."""
    assert shell.Completer is not None
    assert shell.Completer.use_jedi
    assert offered in completions(shell, typed)


@pytest.mark.parametrize(("typed", "offered"), [*TYPED, ("SyncBridge.launch(encr", "encryption=")])
def test_tab_completes_options_without_jedi(
    shell: InteractiveShell, typed: str, offered: str
) -> None:
    assert shell.Completer is not None
    shell.Completer.use_jedi = False
    assert offered in completions(shell, typed)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("SyncBridge.launch(encr", "encryption="),
        ("with SyncBridge.launch() as kernel:\n    kernel.pu", "push"),
        ("with SyncBridge.launch() as kernel:\n    kernel.push(max_", "max_bytes="),
        ("kernel = SyncBridge.attach()\nkernel.run('1', on_", "on_output="),
    ],
)
@pytest.mark.slow
def test_an_editor_completes_operations_and_options(typed: str, offered: str) -> None:
    """An editor has jedi read the source without running it."""
    source = f"from bridgehead import SyncBridge\n{typed}"
    assert offered in {one.name for one in jedi.Script(source).complete()}


def test_a_question_mark_shows_signature_and_docstring(shell: InteractiveShell) -> None:
    shown: Any = shell.object_inspect_mime("kernel.push")["text/plain"]
    shown = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert "max_bytes: 'int | None' = None" in shown
    assert "by_value:" in shown
    assert "PayloadTooLarge" in shown
    assert "kernel.push(" in shown
