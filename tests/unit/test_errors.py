"""The exceptions: one tree; each has a message, and each can be pickled and copied."""

from __future__ import annotations

import atexit
import copy
import pickle
import re
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

import bridgehead
from bridgehead import (
    BridgeClosed,
    BridgeError,
    DecodeError,
    EncodeError,
    KernelDied,
    MissingInKernel,
    NameNotFound,
    NotExecuted,
    NotSent,
    OutcomeUnknown,
    PayloadTooLarge,
    ProtocolError,
    RemoteError,
    Result,
    SyncBridge,
    UntrustedPayload,
    _errors,
)


def subclasses(cls: type[BridgeError]) -> Iterator[type[BridgeError]]:
    yield cls
    for sub in cls.__subclasses__():
        yield from subclasses(sub)


# Tests define subclasses too; the library's own have "bridgehead" as their module.
ALL = [cls for cls in dict.fromkeys(subclasses(BridgeError)) if cls.__module__ == "bridgehead"]


def drawn() -> dict[str, str | None]:
    """Read the tree in the docstring by its indentation: each name with the name of its base."""
    found: dict[str, str | None] = {}
    above: list[tuple[int, str]] = []
    for spaces, name in re.findall(r"^( {4,})(\w+)", _errors.__doc__ or "", re.MULTILINE):
        indent = len(spaces)
        while above and above[-1][0] >= indent:
            above.pop()
        found[name] = above[-1][1] if above else None
        above.append((indent, name))
    return found


# ---------------------------------------------------------------- the tree


def test_the_tree_in_the_docstring_is_the_real_one() -> None:
    real = {cls.__name__: cls.__base__.__name__ for cls in ALL if cls is not BridgeError}
    assert drawn() == {"BridgeError": None, **real}
    assert len(real) > 15


def test_every_exception_of_the_module_is_in_the_tree() -> None:
    defined = {
        value
        for value in vars(_errors).values()
        if isinstance(value, type) and issubclass(value, BaseException)
    }
    others = {_errors.FleetError, _errors.InsecureConnectionWarning, _errors.RunTimeout}
    assert defined == {*ALL, *others}


def test_every_exception_is_public_and_the_public_names_are_sorted() -> None:
    assert {cls.__name__ for cls in ALL} <= set(bridgehead.__all__)
    assert all(getattr(bridgehead, cls.__name__) is cls for cls in ALL)
    assert bridgehead.__all__ == sorted(bridgehead.__all__)
    assert len(set(bridgehead.__all__)) == len(bridgehead.__all__)


OUTCOMES = {NotSent, NotExecuted, RemoteError, OutcomeUnknown}
NO_OUTCOME = {BridgeClosed, BridgeError, DecodeError, UntrustedPayload, ProtocolError}


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_the_base_says_whether_the_request_ran(cls: type[BridgeError]) -> None:
    outcomes = [base for base in OUTCOMES if issubclass(cls, base)]
    assert len(outcomes) == (0 if cls in NO_OUTCOME else 1)


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_every_class_has_a_docstring_of_its_own(cls: type[BridgeError]) -> None:
    assert cls.__dict__["__doc__"].strip().partition("\n")[0].endswith(".")


def test_a_missing_name_is_a_key_error_too() -> None:
    assert issubclass(NameNotFound, KeyError)
    assert [cls for cls in ALL if issubclass(cls, KeyError)] == [NameNotFound]


def test_deadlines_and_wrong_arguments_are_the_builtin_errors() -> None:
    assert not any(issubclass(cls, (TimeoutError, ValueError, TypeError)) for cls in ALL)


# ---------------------------------------------------------------- each class

SENTENCE = "'x' isn't defined in the \"kernel\"; run it again"
WITH_ATTRIBUTES: dict[type[BridgeError], tuple[BridgeError, dict[str, Any]]] = {
    EncodeError: (EncodeError(SENTENCE, path="df.attrs['lock']"), {"path": "df.attrs['lock']"}),
    PayloadTooLarge: (PayloadTooLarge(SENTENCE, bytes=5), {"bytes": 5}),
    UntrustedPayload: (UntrustedPayload(SENTENCE, type="posix.system"), {"type": "posix.system"}),
    MissingInKernel: (MissingInKernel(SENTENCE, module="torch"), {"module": "torch"}),
    NameNotFound: (NameNotFound(SENTENCE, names=["x", "y"]), {"names": ("x", "y")}),
    KernelDied: (KernelDied(SENTENCE, exit_code=-9), {"exit_code": -9}),
    RemoteError: (
        RemoteError("ValueError", SENTENCE, ["Traceback", "  line", "ValueError"]),
        {
            "ename": "ValueError",
            "evalue": SENTENCE,
            "traceback": ["Traceback", "  line", "ValueError"],
            "result": None,
            "notebook": None,
        },
    ),
}
EXAMPLES = [WITH_ATTRIBUTES[cls] if cls in WITH_ATTRIBUTES else (cls(SENTENCE), {}) for cls in ALL]
examples = pytest.mark.parametrize(
    ("error", "attributes"), EXAMPLES, ids=[type(error).__name__ for error, _ in EXAMPLES]
)


def test_every_attribute_that_is_documented_is_tested() -> None:
    documented = {cls for cls in ALL if "Attributes:" in (cls.__doc__ or "")}
    assert documented == set(WITH_ATTRIBUTES)
    for cls, (_, attributes) in WITH_ATTRIBUTES.items():
        section = (cls.__doc__ or "").partition("Attributes:")[2].partition("\n\n")[0]
        names = [line.strip().partition(":")[0] for line in section.splitlines() if ": " in line]
        assert set(names) == set(attributes)


@examples
def test_an_error_has_its_attributes(error: BridgeError, attributes: dict[str, Any]) -> None:
    assert {name: getattr(error, name) for name in attributes} == attributes


@examples
def test_an_error_pickles(error: BridgeError, attributes: dict[str, Any]) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert_same(pickle.loads(pickle.dumps(error, protocol)), error, attributes)


@examples
@pytest.mark.parametrize("copying", [copy.copy, copy.deepcopy])
def test_an_error_copies(error: BridgeError, attributes: dict[str, Any], copying: Any) -> None:
    assert_same(copying(error), error, attributes)


def assert_same(back: BridgeError, error: BridgeError, attributes: dict[str, Any]) -> None:
    assert back is not error
    assert type(back) is type(error)
    assert back.args == error.args
    assert str(back) == str(error)
    assert {name: getattr(back, name) for name in attributes} == attributes


@examples
def test_the_text_of_an_error_is_its_message_and_no_repr(
    error: BridgeError, attributes: Any
) -> None:
    if isinstance(error, RemoteError):
        assert str(error).startswith("ValueError: " + SENTENCE)
    else:
        assert str(error) == SENTENCE
    last = traceback.format_exception_only(error)[0]
    assert last.startswith(f"bridgehead.{type(error).__name__}: {str(error)[:20]}")


@pytest.mark.parametrize(
    "cls",
    [c for c in ALL if c in WITH_ATTRIBUTES and c is not RemoteError],
    ids=lambda c: c.__name__,
)
def test_the_attributes_of_an_error_may_be_left_out(cls: type[BridgeError]) -> None:
    error = cls(SENTENCE)
    assert str(error) == SENTENCE
    for name in WITH_ATTRIBUTES[cls][1]:
        assert getattr(error, name) in ("", (), None)


def test_a_group_of_errors_pickles() -> None:
    group = ExceptionGroup("several", [error for error, _ in EXAMPLES])
    back = pickle.loads(pickle.dumps(group))
    assert list(map(str, back.exceptions)) == list(map(str, group.exceptions))


# ---------------------------------------------------------------- RemoteError


def test_a_remote_error_shows_the_kernels_traceback() -> None:
    error = RemoteError("ValueError", "bad", ["Traceback:", "  in f", "ValueError: bad"])
    text = "ValueError: bad\n\nin the kernel:\nTraceback:\n  in f\nValueError: bad\n\n"
    assert (
        str(error)
        == f"{text}To catch it, use `except RemoteError as error` and look at `error.ename`."
    )


def test_a_remote_error_says_how_to_catch_it() -> None:
    error = RemoteError("ValueError", "bad", ["ValueError: bad"])
    error.__cause__ = ValueError("bad")
    assert str(error).endswith(
        "\n\n`except ValueError` does not catch this. Use `except RemoteError as error`:\n"
        "`error.__cause__` is the ValueError."
    )


def test_a_remote_error_without_a_traceback_is_one_line() -> None:
    assert str(RemoteError("ValueError", "bad")) == "ValueError: bad"
    assert str(RemoteError("KeyboardInterrupt", "")) == "KeyboardInterrupt"
    assert RemoteError("ValueError", "bad")._render_traceback_() == ["ValueError: bad"]


def test_a_remote_error_keeps_its_result_through_pickle() -> None:
    error = RemoteError("ValueError", "bad")
    error.result = Result(stdout="printed before", execution_count=3)
    back = pickle.loads(pickle.dumps(error))
    assert back.result == error.result
    assert RemoteError("ValueError", "bad").result is None


def test_changing_the_given_traceback_list_changes_no_error() -> None:
    lines = ["one"]
    error = RemoteError("ValueError", "bad", lines)
    lines.append("two")
    assert error.traceback == ["one"]


@pytest.fixture
def shell() -> Iterator[InteractiveShell]:
    """Start an IPython in this process, without a history file and without colours."""
    main = sys.modules["__main__"]
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "nocolor"
    made = InteractiveShell.instance(config=config)
    yield made
    made.atexit_operations()
    atexit.unregister(made.atexit_operations)
    made.restore_sys_module_state()
    InteractiveShell.clear_instance()
    assert sys.modules["__main__"] is main


def test_ipython_shows_the_callers_line_and_then_the_kernels_traceback(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    error = RemoteError(
        "ValueError", "bad", ["Traceback (kernel):", "  kernel frame", "ValueError: bad"]
    )

    def frame_of_the_caller() -> None:
        raise error

    shell.push({"carry": frame_of_the_caller})
    ran = shell.run_cell("carry()")
    assert ran.error_in_exec is error
    shown = capsys.readouterr().out
    assert "----> 1 carry()" in shown
    assert "RemoteError: ValueError: bad\n\nin the kernel:\nTraceback (kernel):" in shown
    assert shown.index("frame_of_the_caller") < shown.index("in the kernel:")
    assert shown.count("kernel frame") == 1
    shell.run_cell("%tb")
    assert capsys.readouterr().out == shown


def test_ipython_shows_none_of_the_librarys_frames(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error itself keeps them, for ``%debug`` and for logs."""
    with SyncBridge.loopback() as kernel:
        shell.push({"kernel": kernel})
        for cell in (
            "import threading\nconfig = {'lock': threading.Lock()}\nkernel.push(config=config)",
            "value = kernel.pull('nothing')",
            "kernel.run('1/0')",
            "kernel.run('import time; time.sleep(0.1)', timeout=0.01)",
        ):
            ran = shell.run_cell(cell)
            shown = capsys.readouterr().out
            assert f"> {cell.count(chr(10)) + 1} {cell.splitlines()[-1]}" in shown
            assert "/_bridge/" not in shown
            assert "/asyncio/" not in shown
            assert "The above exception" not in shown
            assert "/_bridge/" in "".join(traceback.format_exception(ran.error_in_exec))
        assert "config['lock'] cannot be pickled" in str(
            shell.run_cell("kernel.push(config=config)").error_in_exec
        )


def test_ipython_shows_the_users_code_that_the_library_called(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = "class Part:\n    def __reduce__(self):\n        raise ValueError('not me')\n"
    with SyncBridge.loopback() as kernel:
        shell.push({"kernel": kernel})
        shell.run_cell(f"{cell}kernel.push(part=Part())")
    shown = capsys.readouterr().out
    assert "----> 3     raise ValueError('not me')" in shown
    assert "----> 4 kernel.push(part=Part())" in shown
    assert "EncodeError: part cannot be pickled" in shown
    assert "cloudpickle" not in shown


def test_an_error_that_led_to_itself_is_shown(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        try:
            raise KeyError("first")
        except KeyError as first:
            second = NameNotFound(SENTENCE)
            first.__context__ = second
            raise second from first

    shell.push({"fail": fail})
    shell.run_cell("fail()")
    shown = capsys.readouterr().out
    assert shown.index("KeyError: 'first'") < shown.index(f"NameNotFound: {SENTENCE}")


@pytest.mark.parametrize("kind", [RemoteError, NameNotFound, BridgeError])
def test_a_message_controls_no_terminal(kind: Any) -> None:
    evil = "\x1b]0;own\x07\x1b[2J\x1b[31m<b>\x08\x9b1m\u202e"
    error = (
        kind(evil, evil, [evil, "\x1b[32mgreen\x1b[0m\x1b[H"])
        if kind is RemoteError
        else kind(evil)
    )
    for text in (str(error), repr(error)):
        assert "<b>" in text
        assert not set(text) & set("\x1b\x07\x08\x9b\u202e")
    if kind is RemoteError:
        assert error.evalue == evil  # the attributes are as the kernel sent them
        shown = error._render_traceback_()
        assert shown[1] == "\x1b[32mgreen\x1b[0m"
        assert not set("".join(shown)) & set("\x07\x08\x9b\u202e")
        assert "\x1b[2J" not in shown[0]
