"""Errors that a kernel reports, as exceptions of this library.

Rule: an error is untrusted like any response; whatever it contains, a ``BridgeError`` is raised.
"""

from __future__ import annotations

import base64
import pickle
import sys
from typing import Any

import pytest

from bridgehead import (
    BridgeError,
    KernelRestarted,
    MissingInKernel,
    NameNotFound,
    ProtocolError,
    RemoteError,
)
from bridgehead._protocol.bootstrap import remote_source
from bridgehead._protocol.raising import cell_error
from bridgehead._shipped.wire.frames import digest
from bridgehead._shipped.wire.header import CELL_ERROR
from bridgehead._shipped.wire.pickling import encode
from support.answers import KINDS, consume, content_of, entry, is_reported, odd

REMOTE_MODULE = remote_source()[0]


# ---------------------------------------------------------------- well-formed errors


def failed(ename: str, evalue: str, traceback: Any = ()) -> dict[str, Any]:
    return entry({"status": "error", "ename": ename, "evalue": evalue, "traceback": traceback})


def error_of(error: Any, *, frames: list[bytes] | None = None) -> dict[str, Any]:
    parts = frames or []
    described = {"sizes": list(map(len, parts)), "digest": digest("crc32", parts)}
    return content_of({"error": error, **described})


@pytest.mark.parametrize(("error", "cls", "text"), KINDS.values(), ids=KINDS.keys())
def test_each_kind_of_error_becomes_its_exception_class(
    error: dict[str, Any], cls: type[BridgeError], text: str
) -> None:
    with pytest.raises(BridgeError, match=text) as caught:
        consume(error_of(error), [])
    assert type(caught.value) is cls


def test_errors_have_their_attributes() -> None:
    with pytest.raises(NameNotFound) as unknown:
        consume(error_of({"kind": "name", "names": ["a", "b"], "close": []}), [])
    assert unknown.value.names == ("a", "b")
    assert str(unknown.value) == "'a', 'b' are not defined in the kernel"
    with pytest.raises(MissingInKernel) as missing:
        consume(error_of({"kind": "missing", "message": "no", "module": "torch"}), [])
    assert missing.value.module == "torch"


REMOTE = {"kind": "remote", "ename": "LookupError", "evalue": "bad", "traceback": ["a"]}


def test_a_remote_error_has_the_original_exception_as_its_cause() -> None:
    frames = [pickle.dumps(LookupError("bad", 7))]
    with pytest.raises(RemoteError) as caught:
        consume(error_of(dict(REMOTE, code_of=None), frames=frames), frames)
    assert type(caught.value.__cause__) is LookupError
    assert caught.value.__cause__.args == ("bad", 7)
    assert (caught.value.ename, caught.value.traceback) == ("LookupError", ["a"])


@pytest.mark.parametrize(
    ("code_of", "frame"),
    [
        pytest.param([2, 7], pickle.dumps(LookupError("bad")), id="code of another Python"),
        pytest.param("3.11", pickle.dumps(LookupError("bad")), id="code of an unknown Python"),
        pytest.param(None, b"no pickle", id="not a pickle"),
        pytest.param(None, b"cno_such_module\nThing\n.", id="an unknown class"),
        pytest.param(None, pickle.dumps("text"), id="not an exception"),
    ],
)
def test_a_cause_that_cannot_be_rebuilt_is_left_out(code_of: Any, frame: bytes) -> None:
    with pytest.raises(RemoteError, match="LookupError: bad") as caught:
        consume(error_of(dict(REMOTE, code_of=code_of), frames=[frame]), [frame])
    assert caught.value.__cause__ is None


def test_a_missing_remote_module_is_a_restart() -> None:
    with pytest.raises(KernelRestarted):
        consume(failed("KeyError", repr(REMOTE_MODULE)), [])


def test_another_error_outside_the_remote_module_is_a_remote_error() -> None:
    with pytest.raises(RemoteError, match="KeyError: 'x'"):
        consume(failed("KeyError", "'x'"), [])
    with pytest.raises(RemoteError) as caught:
        consume(failed("KeyboardInterrupt", "", ["line 1", "line 2"]), [])
    assert caught.value.traceback == ["line 1", "line 2"]
    whole = {"status": "error", "ename": "KeyboardInterrupt", "evalue": "", "traceback": ["t"]}
    with pytest.raises(RemoteError, match="KeyboardInterrupt"):
        consume(whole, [])


# ---------------------------------------------------------------- hostile errors


@odd
def test_any_error_but_null_is_reported(value: Any) -> None:
    if value is None:
        assert consume(error_of(value), []) == []
    else:
        is_reported(error_of(value), [])


@odd
@pytest.mark.parametrize("field", ["kind", "message", "names", "close", "module", "where"])
@pytest.mark.parametrize("kind", ["name", "missing", "incompatible", "integrity", "epoch"])
def test_any_value_in_a_field_of_an_error_is_reported(value: Any, field: str, kind: str) -> None:
    is_reported(error_of({**KINDS[kind][0], field: value}), [])


@odd
@pytest.mark.parametrize("field", ["ename", "evalue", "traceback", "code_of"])
def test_any_value_in_a_field_of_a_remote_error_is_reported(value: Any, field: str) -> None:
    frames = [pickle.dumps(LookupError("bad"))]
    is_reported(error_of({**REMOTE, "code_of": None, field: value}, frames=frames), frames)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_with_nothing_but_its_kind_is_reported(kind: str) -> None:
    with pytest.raises(BridgeError) as caught:
        consume(error_of({"kind": KINDS[kind][0]["kind"]}), [])
    assert type(caught.value) is KINDS[kind][1]


def test_an_empty_error_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        consume(error_of({}), [])


class Exits(Exception):
    def __reduce__(self) -> Any:
        return sys.exit, (3,)


def test_a_cause_that_exits_while_it_is_rebuilt_is_left_out() -> None:
    frames, _ = encode(Exits())
    parts = [base64.b64encode(frame).decode() for frame in frames]
    report = {"source": remote_source()[0] + CELL_ERROR, "frames": parts, "code_of": None}
    content = {"ename": "Exits", "evalue": "", "traceback": [], "payload": [report]}
    assert cell_error(content, trusted=True).__cause__ is None
