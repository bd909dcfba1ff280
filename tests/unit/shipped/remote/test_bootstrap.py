"""The remote part in a message buffer: code objects, which another Python refuses.

Rule: another interpreter evaluates the client's expressions; see ``support/bare.py``.
"""

from __future__ import annotations

import base64
import hashlib
import marshal
import sys
import uuid
from collections.abc import Callable, Iterator

import pytest

from bridgehead import KernelRestarted
from bridgehead._protocol import bootstrap as _bootstrap
from bridgehead._shipped.wire.header import MIME, PROBE
from support.bare import REMOTE_MODULE, Bare, Space
from support.elsewhere import Python

BESIDE = """
import base64
class Shell:
    user_global_ns = user_ns = globals()
    user_ns_hidden = {}
    class kernel:
        _parent_ident = {"shell": b"the client"}
        parent = {"buffers": [base64.b64decode(part) for part in PARTS]}
        def get_parent(channel):
            return Shell.kernel.parent
get_ipython = Shell
class Report:
    def _repr_mimebundle_(self):
        report = remote.enter.__code__.co_filename, remote.__dict__.get("marked")
        return {MIME: '{"report": "%s %s"}' % report}
"""


class SideChannel:
    """A namespace whose shell has message buffers, from which the remote part is installed."""

    def __init__(self, bare: Bare) -> None:
        self.space = Space(bare)
        self.before = f"before_{uuid.uuid4().hex}"
        self.space.cell(f"import sys; sys.{self.before} = sys.modules.pop({REMOTE_MODULE!r}, None)")
        self.code = [_bootstrap.remote_code()]
        self.how = _bootstrap._rest_of_source(True)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> str:
        """Install the remote part; return its file name and mark."""
        parts = [base64.b64encode(part).decode() for part in (PROBE, *self.code)]
        self.space.cell(f"MIME, PARTS = {MIME!r}, {parts!r}" + BESIDE)
        monkeypatch.setattr(_bootstrap, "_rest_of_source", lambda in_buffer: self.how)
        header = self.space.header("hello", epoch="", chunk=0)
        text = _bootstrap.expression("inline", header, install=True, in_buffer=True)
        self.space.evaluate(text)
        self.space.cell(f"remote = __import__('sys').modules[{REMOTE_MODULE!r}]")
        return self.space.evaluate("Report()")["report"]

    def close(self) -> None:
        self.space.cell(
            f"import sys; sys.modules.pop({REMOTE_MODULE!r}, None)\n"
            f"if sys.{self.before}: sys.modules[{REMOTE_MODULE!r}] = sys.{self.before}"
        )


@pytest.fixture
def in_buffers(python: Python, kernels: Callable[..., Bare]) -> Iterator[SideChannel]:
    opened = SideChannel(kernels(python, None))
    yield opened
    opened.close()


def test_code_objects_run_if_the_bytecode_is_the_same(
    in_buffers: SideChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = compile("marked = 'from code'", _bootstrap.FILENAME, "exec")
    code = marshal.dumps((*marshal.loads(in_buffers.code[0]), more))
    in_buffers.code = [code]
    in_buffers.how = [], hashlib.sha256(code).hexdigest(), in_buffers.how[2]
    if in_buffers.space.python.version[:2] == sys.version_info[:2]:
        assert in_buffers.install(monkeypatch) == "<bridgehead remote> from code"
    else:
        with pytest.raises(KernelRestarted):
            in_buffers.install(monkeypatch)


@pytest.mark.parametrize("made_by", ["pypy", "bytecode"])
def test_code_objects_of_another_compiler_never_run(
    in_buffers: SideChannel, made_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, magic = in_buffers.how[2].split()
    other = f"pypy {magic}" if made_by == "pypy" else f"{name} {'0' * len(magic)}"
    in_buffers.code = [b"no code at all"]
    in_buffers.how = [], hashlib.sha256(in_buffers.code[0]).hexdigest(), other
    with pytest.raises(KernelRestarted):
        in_buffers.install(monkeypatch)


def test_altered_code_does_not_run(
    in_buffers: SideChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = in_buffers.code[0]
    for buffers in [code[:-1] + bytes([code[-1] ^ 1])], [], [code, code]:
        in_buffers.code = buffers
        with pytest.raises(KernelRestarted):
            in_buffers.install(monkeypatch)
    assert not [name for name in in_buffers.space.names() if "bridgehead" in name]
