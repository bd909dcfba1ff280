"""The loader under every Python found here, from 3.8 on, in bare interpreters.

Rule: the near side's own text is evaluated by a foreign interpreter, with nothing in between:
no Jupyter, no packages, not even ``site``. One process serves one Python; every test gets a
namespace of its own in it, and so a loader's state of its own.
"""

from __future__ import annotations

import array
import ast
import base64
import collections
import contextlib
import datetime
import decimal
import fractions
import functools
import hashlib
import json
import marshal
import math
import operator
import os
import pickle
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import types
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from bridgehead import (
    BridgeError,
    IncompatiblePython,
    IntegrityError,
    KernelRestarted,
    MissingInKernel,
    NameNotFound,
    NotSupported,
    PayloadTooLarge,
    ProtocolError,
    RemoteError,
    ReplyLost,
    UntrustedPayload,
)
from bridgehead._protocol import bootstrap as _shipping
from bridgehead._protocol import payload as _parcel
from bridgehead._protocol import response as _protocol
from bridgehead._shipped.remote.kernel import Kernel
from bridgehead._shipped.remote.server import REMEMBERED, Far
from bridgehead._shipped.wire import frames as _wire
from bridgehead._shipped.wire import pickling as _codec
from elsewhere import Python, find_pythons, pythons

Header = dict[str, Any]
PIECE = 1 << 16  # bytes; small, so that little data makes many pieces

PYTHONS = pythons()


def test_the_running_python_is_always_among_those_found() -> None:
    assert find_pythons("", []) == [Python(sys.executable, sys.version_info[:3])]
    assert Python(sys.executable, sys.version_info[:3]) in PYTHONS


def test_a_shim_that_does_not_run_is_no_python(tmp_path: Path) -> None:
    shim = tmp_path / "python3.9"
    shim.write_text("#!/bin/sh\necho 'pyenv: python3.9: command not found' >&2\nexit 127\n")
    shim.chmod(0o755)
    assert shutil.which("python3.9", path=str(tmp_path)) == str(shim)
    assert find_pythons(str(tmp_path), []) == find_pythons("", [])


def test_no_version_is_tested_twice_and_none_is_too_old() -> None:
    versions = [python.version for python in PYTHONS]
    assert len(set(versions)) == len(versions)
    assert min(versions) >= (3, 8)


@pytest.mark.parametrize("source", _shipping.loader_source()[1], ids=_shipping.SHIPPED)
def test_the_source_is_syntax_of_python_3_8(source: str) -> None:
    tree = ast.parse(source, feature_version=(3, 8))
    assert len(tree.body) > 10
    compile(source, "<source>", "exec")


# ---------------------------------------------------------------- a bare kernel

# What a kernel is to the loader: somebody evaluates an expression in a namespace and returns
# the value's MIME bundle. Python 3.8's syntax.
BARE = """
import os, sys, traceback
from json import dumps, loads
replies = os.fdopen(os.dup(1), "w", encoding="ascii")
os.dup2(2, 1)
sys.path[:0] = sys.argv[1:]
namespaces = {}
for line in sys.stdin:
    asked = loads(line)
    scope = namespaces.setdefault(asked["namespace"], {"__name__": "__main__"})
    told = {"status": "ok"}
    try:
        if "code" in asked:
            exec(compile(asked["code"], "<cell>", "exec"), scope)
        elif "expression" in asked:
            told["data"] = eval(asked["expression"], scope)._repr_mimebundle_()
        else:
            told["names"] = [
                [repr(name), id(value), "" if name == "__builtins__" else repr(value)]
                for name, value in scope.items()
            ]
    except BaseException as error:
        told = {"status": "error", "ename": type(error).__name__, "evalue": str(error)}
        told["traceback"] = traceback.format_exc().splitlines()
    print(dumps(told), file=replies, flush=True)
"""


class Bare:
    """A process that plays a kernel, over its stdin and stdout."""

    def __init__(self, python: Python, folders: Sequence[str]) -> None:
        self.python = python
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [python.path, "-I", "-S", "-c", BARE, *folders],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            encoding="ascii",
        )
        self.planted = False  # whether the loader was
        # Should it hang, it ends, and so does the wait for its answer.
        self.watchdog = threading.Timer(600, self.process.kill)
        self.watchdog.daemon = True
        self.watchdog.start()

    def ask(self, **asked: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            pytest.fail(f"Python {self.python} died: {self.errors.read().decode(errors='replace')}")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(60)
        self.watchdog.cancel()
        self.errors.close()


# The answer's header and frames, what it raised, or None if it was not done.
Outcome = tuple[Header, list[memoryview]] | BridgeError | None


class Space:
    """One namespace in a bare kernel, and the near side of the protocol on the inline lane."""

    def __init__(self, bare: Bare) -> None:
        self.bare = bare
        self.python = bare.python
        self.id = uuid.uuid4().hex
        self.epoch = ""

    # -- the kernel, as its user sees it

    def cell(self, code: str) -> None:
        told = self.bare.ask(namespace=self.id, code=code)
        assert told["status"] == "ok", told

    def uproot(self) -> None:
        """Remove the loader, as nobody would by accident."""
        self.bare.planted = False
        self.cell(f"__import__('sys').modules.pop({LOADER!r})")

    def snapshot(self) -> list[Any]:
        """Every name in order, with its value's identity and repr."""
        return self.bare.ask(namespace=self.id)["names"]

    def names(self) -> set[str]:
        return {ast.literal_eval(name) for name, _, _ in self.snapshot()}

    # -- one message

    def evaluate(self, expression: str) -> Header:
        told = self.bare.ask(namespace=self.id, expression=expression)
        return _protocol.answer({"status": "ok", "user_expressions": {_protocol.KEY: told}})

    def cross(self, header: Header, data: bytes = b"", **how: Any) -> tuple[Header, list[bytes]]:
        text = base64.b64encode(data).decode("ascii")
        told = self.evaluate(_shipping.expression("inline", header, text, **how))
        return told, [base64.b64decode(told.pop("data", ""), validate=True)]

    # -- one request

    def header(self, operation: str, frames: Sequence[memoryview] = (), **fields: Any) -> Header:
        wanted = {"epoch": self.epoch, "algorithm": "sha256", "piece": PIECE, **fields}
        return _protocol.header(operation, frames, **wanted)

    def finish(self, header: Header, data: bytes = b"", **how: Any) -> tuple[Header, list[Any]]:
        """The last message of a request, and its answer: whole, or the exception it tells."""
        told, parts = self.cross(header, data, **how)
        inbox = _protocol.open_answer(told)
        _protocol.add_piece(told, inbox, 0, parts)
        if inbox.total > PIECE:
            offsets = list(range(PIECE, inbox.total, PIECE))
            random.Random(header["id"]).shuffle(offsets)
            for at in offsets:
                more, parts = self.cross({**header, "op": "more", "sizes": [], "at": at})
                _protocol.raise_error(more, ())
                _protocol.add_piece(more, inbox, at, parts)
            self.forget(header)
        frames = _protocol.close_answer(inbox)
        _protocol.raise_error(told, frames)
        return told, frames

    def ask(
        self, operation: str, parcel: _parcel.Parcel = _parcel.EMPTY, **fields: Any
    ) -> tuple[Header, list[memoryview]]:
        """A request, in as many pieces as it takes, and its answer."""
        header = self.header(operation, parcel.frames, refs=parcel.refs, **fields)
        last = max(0, (parcel.nbytes - 1) // PIECE * PIECE)
        offsets = list(range(0, last, PIECE))
        random.Random(header["id"]).shuffle(offsets)
        for at in offsets:
            self.piece(header, parcel.frames, at)
        return self.finish(*part(header, stream(parcel.frames)[last:], at=last))

    def piece(self, header: Header, frames: Sequence[memoryview], at: int) -> None:
        data = b"".join(_protocol.cut(frames, at, at + PIECE))
        told, _ = self.cross(*part(header, data, op="piece", at=at))
        _protocol.raise_error(told, ())

    def forget(self, header: Header) -> None:
        told, parts = self.cross({**header, "op": "forget", "sizes": [], "at": 0})
        assert (told, parts) == ({}, [b""])

    # -- operations

    def hello(self, *, install: bool = True) -> Header:
        header = self.header("hello", epoch="", piece=0)
        told, _ = self.finish(header, install=install)
        self.epoch = told["epoch"]
        return told

    def prepare(self) -> Space:
        """The handshake, which carries the loader's source only where that is new."""
        self.hello(install=not self.bare.planted)
        self.bare.planted = True
        return self

    def bind(self, **values: Any) -> None:
        self.ask("bind", _parcel.encode(values, values), names=list(values))

    def fetch(self, *expressions: str) -> Any:
        _, frames = self.ask("fetch", expressions=list(expressions))
        values = _parcel.decode(frames)
        return values[0] if len(expressions) == 1 else values

    def batch(self, *asked: tuple[Header, _parcel.Parcel], **fields: Any) -> list[Outcome]:
        """Requests that cross together; what came of each, or None where it was not done."""
        frames = [frame for _, parcel in asked for frame in parcel.frames]
        header = _protocol.batch_header([header for header, _ in asked], frames)
        told, parts = self.finish({**header, "piece": PIECE, **fields}, stream(frames))
        answers = _protocol.part_batch(told, parts, [None] * len(asked))
        return [self.outcome(*pair) for pair in zip(asked, answers, strict=True)]

    def outcome(
        self, asked: tuple[Header, _parcel.Parcel], opened: _protocol.Opened | None
    ) -> Outcome:
        if opened is None:
            return None
        told, inbox = opened.told, opened.inbox
        try:
            for at in range(inbox.received, inbox.total, PIECE):
                more, parts = self.cross({**asked[0], "op": "more", "sizes": [], "at": at})
                _protocol.raise_error(more, ())
                _protocol.add_piece(more, inbox, at, parts)
            frames = _protocol.close_answer(inbox)
            _protocol.raise_error(told, frames)
        except BridgeError as error:
            return error
        return told, frames

    def kept(self) -> tuple[int, int]:
        """How many unfinished requests and unfetched answers the loader keeps for us."""
        served = f"__import__('sys').modules[{LOADER!r}]._served[id(globals())]"
        return self.fetch(f"len({served}.inboxes)", f"len({served}.outboxes)")


def part(header: Header, data: bytes, **fields: Any) -> tuple[Header, bytes]:
    """One message of a request, shorter than any lane's."""
    return {**header, "digest": _wire.digest("sha256", [data]), **fields}, data


LOADER = _shipping.loader_source()[0]
CLOUDPICKLE = str(Path(cloudpickle.__file__).parents[1])


def stream(frames: Sequence[memoryview]) -> bytes:
    return b"".join(frames)


@pytest.fixture(scope="module")
def kernels() -> Iterator[Callable[..., Bare]]:
    """One process for each Python, with and without packages, started when first asked for."""
    started: list[Bare] = []

    @functools.cache
    def start(python: Python, folder: str | None) -> Bare:
        started.append(Bare(python, [folder] if folder else []))
        return started[-1]

    yield start
    for bare in started:
        bare.close()


# Those between the oldest, this one and the newest differ in the handshake, in data and in code.
FEW = {PYTHONS[0], Python(sys.executable, sys.version_info[:3]), PYTHONS[-1]}
IN_ALL = ("test_hello_", "test_data_crosses_", "test_code_")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "python" in metafunc.fixturenames:
        in_all = metafunc.function.__name__.startswith(IN_ALL)
        pythons = [
            python if in_all or python in FEW else pytest.param(python, marks=pytest.mark.elsewhere)
            for python in PYTHONS
        ]
        metafunc.parametrize("python", pythons, ids=str)


@pytest.fixture
def space(python: Python, kernels: Callable[..., Bare]) -> Iterator[Space]:
    """A namespace in a Python without a package, with the loader planted and still at work
    afterwards."""
    opened = Space(kernels(python, None)).prepare()
    yield opened
    opened.bind(still_here=[1, "é"])
    assert opened.fetch("still_here") == [1, "é"]


@pytest.fixture
def equipped(
    python: Python, kernels: Callable[..., Bare], tmp_path_factory: pytest.TempPathFactory
) -> Space:
    """A namespace in a Python that has cloudpickle (it is pure Python) and nothing else."""
    folder = tmp_path_factory.getbasetemp() / "packages"
    if not folder.exists():
        folder.mkdir()
        (folder / "cloudpickle").symlink_to(Path(CLOUDPICKLE) / "cloudpickle")
    return Space(kernels(python, str(folder))).prepare()


# ---------------------------------------------------------------- the handshake


def test_hello_tells_who_answers(space: Space) -> None:
    told = space.hello()
    assert tuple(told["python"]) == space.python.version
    assert told["pid"] == space.bare.process.pid
    assert told["cwd"] == os.getcwd()
    assert told["pickle"] >= 5
    assert told["versions"] == {}
    assert Path(told["executable"]).exists()


def test_hello_tells_the_packages_that_are_there(equipped: Space) -> None:
    equipped.cell("import cloudpickle")
    assert equipped.hello()["versions"] == {"cloudpickle": cloudpickle.__version__}


def test_hello_again_finds_the_same_loader(space: Space) -> None:
    assert space.hello()["epoch"] == space.hello()["epoch"]


def test_two_namespaces_of_one_process_are_served_apart(space: Space) -> None:
    other = Space(space.bare)
    other.hello()
    space.bind(x=1)
    other.bind(x=2)
    assert other.epoch != space.epoch
    assert (space.fetch("x"), other.fetch("x")) == (1, 2)


def test_hello_is_answered_from_a_folder_that_was_deleted(space: Space, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    space.cell(f"import os; home = os.getcwd(); os.chdir({str(gone)!r})")
    gone.rmdir()
    try:
        assert tuple(space.hello()["python"]) == space.python.version
    finally:
        space.cell("os.chdir(home)")


# ---------------------------------------------------------------- what crosses beside it

BESIDE = """
import base64
class Shell:
    user_global_ns = user_ns = globals()
    user_ns_hidden = {}
    class kernel:
        _parent_ident = {"shell": b"whoever asked"}
        parent = {"buffers": [base64.b64decode(part) for part in PARTS]}
        def get_parent(channel):
            return Shell.kernel.parent
get_ipython = Shell
class Told:
    def _repr_mimebundle_(self):
        told = loader.enter.__code__.co_filename, loader.__dict__.get("grown")
        return {MIME: '{"told": "%s %s"}' % told}
"""


class Beside:
    """A namespace whose shell has the buffers of a message; of those, the loader is to be made."""

    def __init__(self, bare: Bare) -> None:
        self.space = Space(bare)
        self.before = f"before_{uuid.uuid4().hex}"
        self.space.cell(f"import sys; sys.{self.before} = sys.modules.pop({LOADER!r}, None)")
        self.frames = list(_shipping.loader_frames())
        self.how = _shipping._how(True)

    def plant(self, monkeypatch: pytest.MonkeyPatch) -> str:
        """Have it planted; tells what its ``enter`` is, and the file that its code names."""
        parts = [base64.b64encode(part).decode() for part in (_wire.PROBE, *self.frames)]
        self.space.cell(f"MIME, PARTS = {_wire.MIME!r}, {parts!r}" + BESIDE)
        monkeypatch.setattr(_shipping, "_how", lambda beside: self.how)
        header = self.space.header("hello", epoch="", piece=0)
        text = _shipping.expression("inline", header, install=True, beside=True)
        self.space.evaluate(text)
        self.space.cell(f"loader = __import__('sys').modules[{LOADER!r}]")
        return self.space.evaluate("Told()")["told"]

    def close(self) -> None:
        self.space.cell(
            f"import sys; sys.modules.pop({LOADER!r}, None)\n"
            f"if sys.{self.before}: sys.modules[{LOADER!r}] = sys.{self.before}"
        )


@pytest.fixture
def beside(python: Python, kernels: Callable[..., Bare]) -> Iterator[Beside]:
    opened = Beside(kernels(python, None))
    yield opened
    opened.close()


def grown(frames: list[bytes]) -> list[bytes]:
    """The frames, whose code objects say that it was they that ran."""
    more = compile("grown = 'from code'", _shipping.FILENAME, "exec")
    return [marshal.dumps((*marshal.loads(frames[0]), more)), *frames[1:]]


def digests(frames: list[bytes]) -> list[str]:
    return [hashlib.sha256(frame).hexdigest() for frame in frames]


def test_code_objects_run_where_the_bytecode_is_the_same_and_the_sources_elsewhere(
    beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside.frames = grown(beside.frames)
    beside.how = ([], digests(beside.frames), beside.how[2])
    same = beside.space.python.version[:2] == sys.version_info[:2]
    told = beside.plant(monkeypatch)
    assert told == f"<bridgehead loader> {'from code' if same else None}"


@pytest.mark.parametrize("made_by", ["pypy", "bytecode"])
def test_code_objects_of_another_compiler_never_run(
    beside: Beside, made_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, magic = beside.how[2].split()
    other = f"pypy {magic}" if made_by == "pypy" else f"{name} {'0' * len(magic)}"
    beside.frames = [b"no code at all", *beside.frames[1:]]
    beside.how = ([], digests(beside.frames), other)
    assert beside.plant(monkeypatch) == "<bridgehead loader> None"


@pytest.mark.parametrize("frame", range(len(_shipping.SHIPPED)))
def test_nothing_runs_of_what_was_altered_on_the_way(
    beside: Beside, frame: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = beside.frames[frame][-1]
    beside.frames[frame] = beside.frames[frame][:-1] + bytes([last ^ 1])
    with pytest.raises(KernelRestarted):
        beside.plant(monkeypatch)
    beside.frames = []
    with pytest.raises(KernelRestarted):
        beside.plant(monkeypatch)
    assert not [name for name in beside.space.names() if "bridgehead" in name]


# ---------------------------------------------------------------- data, there and back

VALUES: dict[str, Any] = {
    "none": None,
    "booleans": [True, False],
    "big ints": [2**64, -(2**200), 10**400],
    "floats": [0.1, -0.0, 1e308, 5e-324, math.inf],
    "complex": 3 - 4j,
    "text": "naïve ☃ 𝕏 \x00 \ud800 end",
    "bytes": bytes(range(256)),
    "bytearray": bytearray(b"writable"),
    "nested containers": {"a": [1, (2, {3, 4}, frozenset({5}))], (6, "k"): {"b": [[], {}, ()]}},
    "ordered dict": collections.OrderedDict([("z", 1), ("a", 2)]),
    "deque": collections.deque([1, 2, 3], maxlen=5),
    "counter": collections.Counter("abracadabra"),
    "datetime": datetime.datetime(2024, 2, 29, 12, 30, 1, 999_999, tzinfo=datetime.UTC),
    "timedelta": datetime.timedelta(days=-1, microseconds=7),
    "decimal": decimal.Decimal("1.10000000000000000000000000001"),
    "fraction": fractions.Fraction(22, 7),
    "uuid": uuid.UUID(int=2**100 + 1),
    "array": array.array("d", [1.5, 2.5]),
    "range and slice": (range(0, 10, 3), slice(1, None, 2)),
    "namespace": types.SimpleNamespace(a=1, b=[2]),
    "a function by its name": math.hypot,
    "a class by its name": decimal.Decimal,
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
def test_data_crosses_there_and_back(space: Space, value: Any) -> None:
    space.bind(value=value)
    back = space.fetch("value")
    assert type(back) is type(value)
    assert back == value


def test_what_arrives_there_is_the_value_itself(space: Space) -> None:
    space.bind(numbers=[1, 2, 3], text="é☃")
    assert space.fetch("sum(numbers)", "len(text)", "type(numbers).__name__") == (6, 2, "list")


@pytest.mark.parametrize("name", ["größe", "变量", "Ω", "é" * 100])
def test_names_may_be_unicode(space: Space, name: str) -> None:
    space.bind(**{name: name})
    assert space.fetch(name) == name
    assert name in space.names()


def test_what_is_one_object_stays_one(space: Space) -> None:
    shared: list[Any] = [1]
    space.bind(left=shared, right=[shared, shared])
    left, right = space.fetch("left", "right")
    assert space.fetch("left is right[0]")
    assert left is right[0] is right[1]


def test_an_object_that_contains_itself_crosses(space: Space) -> None:
    knot: list[Any] = []
    knot.append(knot)
    space.bind(knot=knot)
    back = space.fetch("knot")
    assert back[0] is back


def test_several_expressions_are_read_before_any_is_pickled(space: Space) -> None:
    space.cell(
        "class Late:\n"
        "    def __reduce__(self):\n"
        "        global number\n"
        "        number = 'changed by pickling'\n"
        "        return str, ('late',)\n"
        "number, late = 1, Late()\n"
    )
    assert space.fetch("late", "number") == ("late", 1)


def test_what_is_for_another_kernel_is_what_that_one_can_bind(space: Space) -> None:
    """As it comes; a tuple it would refuse."""
    space.bind(x=[1], y="é")
    told, frames = space.ask("fetch", expressions=["y", "x"], names=["b", "a"])
    assert "code" not in told
    assert list(_parcel.decode(frames).items()) == [("b", "é"), ("a", [1])]
    parcel = _parcel.Parcel(frames, carries_code=False, refs=False)
    space.ask("bind", parcel, names=["b", "a"])
    assert space.fetch("a", "b") == ([1], "é")
    with pytest.raises(ProtocolError, match="'reader' is str, not list"):
        space.ask("fetch", expressions=["y"], names=["y"], reader="3.8")


# ---------------------------------------------------------------- megabytes, and pieces


def megabytes(count: float) -> bytes:
    return random.Random(count).randbytes(int(count * (1 << 20)))


@pytest.mark.parametrize("size", [0, 1, 2047, 2048, PIECE - 1, PIECE, PIECE + 1, 5 * PIECE + 3])
def test_bytes_of_every_size_cross_whole(space: Space, size: int) -> None:
    data = random.Random(size).randbytes(size)
    space.bind(data=data)
    assert space.fetch("data") == data


def test_megabytes_cross_out_of_band(space: Space) -> None:
    data, other = bytearray(megabytes(3)), megabytes(0.7)
    values = {"data": pickle.PickleBuffer(data), "other": pickle.PickleBuffer(other), "small": 1}
    parcel = _parcel.encode(values, values)
    assert [frame.nbytes for frame in parcel.frames[1:]] == [len(data), len(other)]
    space.ask("bind", parcel, names=list(values))
    space.cell("data[0] = data[0] ^ 255\nimport pickle")  # it arrives writable
    header = space.header("fetch", expressions=["pickle.PickleBuffer(data)", "bytes(other)"])
    told, frames = space.finish(header)
    assert len(data) in told["sizes"]
    back, other_back = _parcel.decode(frames)
    data[0] ^= 255
    assert bytes(back) == data
    assert other_back == other


def test_a_long_answer_comes_in_pieces_which_are_freed(space: Space) -> None:
    space.bind(data=megabytes(0.5))
    header = space.header("fetch", expressions=["data"])
    told, parts = space.cross(header)
    inbox = _protocol.open_answer(told)
    _protocol.add_piece(told, inbox, 0, parts)
    assert sum(map(len, parts)) == PIECE < inbox.total
    assert space.kept() == (0, 1)
    for at in range(PIECE, inbox.total, PIECE):
        more, parts = space.cross({**header, "op": "more", "sizes": [], "at": at})
        _protocol.add_piece(more, inbox, at, parts)
    assert _parcel.decode(_protocol.close_answer(inbox)) == (megabytes(0.5),)
    space.forget(header)
    assert space.kept() == (0, 0)
    gone, _ = space.cross({**header, "op": "more", "sizes": [], "at": PIECE})
    with pytest.raises(IntegrityError, match="gone"):
        _protocol.raise_error(gone, ())


def test_a_long_answer_that_lacks_a_piece_is_told(space: Space) -> None:
    space.bind(data=megabytes(0.25))
    header = space.header("fetch", expressions=["data"])
    told, parts = space.cross(header)
    inbox = _protocol.open_answer(told)
    _protocol.add_piece(told, inbox, 0, parts)
    with pytest.raises(ReplyLost, match="arrived"):
        _protocol.close_answer(inbox)
    space.forget(header)


def test_nothing_happens_before_the_last_piece(space: Space) -> None:
    values = {"data": megabytes(0.25)}
    parcel = _parcel.encode(values, values)
    before = space.snapshot()
    header = space.header("bind", parcel.frames, names=["data"])
    space.piece(header, parcel.frames, 0)
    space.piece(header, parcel.frames, 2 * PIECE)
    assert space.snapshot() == before
    assert space.kept() == (1, 0)
    space.forget(header)
    assert space.kept() == (0, 0)
    last = parcel.nbytes // PIECE * PIECE
    with pytest.raises(IntegrityError, match="arrived"):
        space.finish(*part(header, stream(parcel.frames)[last:], at=last))
    assert space.snapshot() == before


def test_a_piece_sent_twice_is_harmless(space: Space) -> None:
    values = {"data": megabytes(0.25)}
    parcel = _parcel.encode(values, values)
    header = space.header("bind", parcel.frames, names=["data"])
    last = parcel.nbytes // PIECE * PIECE
    for at in [*range(0, last, PIECE), *range(0, last, PIECE)]:
        space.piece(header, parcel.frames, at)
    space.finish(*part(header, stream(parcel.frames)[last:], at=last))
    assert space.fetch("data") == values["data"]
    assert space.kept() == (0, 0)


def test_a_piece_that_is_damaged_is_refused_when_it_arrives(space: Space) -> None:
    values = {"data": megabytes(0.25)}
    parcel = _parcel.encode(values, values)
    before = space.snapshot()
    header = space.header("bind", parcel.frames, names=["data"])
    last = parcel.nbytes // PIECE * PIECE
    for at in range(0, last - PIECE, PIECE):
        space.piece(header, parcel.frames, at)
    sent, data = part(header, stream(parcel.frames)[last - PIECE : last], op="piece", at=last)
    for damaged in (flipped(data, PIECE // 2), data[1:] + data[:1], data[:-1], b""):
        told, _ = space.cross({**sent, "at": last - PIECE}, damaged)
        with pytest.raises(IntegrityError, match="digest"):
            _protocol.raise_error(told, ())
    with pytest.raises(IntegrityError, match="arrived"):
        space.finish(*part(header, stream(parcel.frames)[last:], at=last))
    assert space.snapshot() == before
    assert space.kept() == (0, 0)


def test_pieces_of_other_sizes_are_not_of_the_same_request(space: Space) -> None:
    values = {"data": megabytes(0.25)}
    parcel = _parcel.encode(values, values)
    before = space.snapshot()
    header = space.header("bind", parcel.frames, names=["data"])
    space.piece(header, parcel.frames, 0)
    header["sizes"] = [*header["sizes"][:-1], header["sizes"][-1] - 1]
    with pytest.raises(IntegrityError, match="not of one request"):
        space.piece(header, parcel.frames, PIECE)
    assert space.snapshot() == before
    assert space.kept() == (0, 0)


def test_the_pieces_of_two_requests_may_be_mixed(space: Space) -> None:
    parcels = {
        name: _parcel.encode({name: megabytes(n)}, {}) for n, name in [(0.25, "a"), (0.5, "b")]
    }
    headers = {
        name: space.header("bind", parcel.frames, names=[name]) for name, parcel in parcels.items()
    }
    order = [
        (name, at) for name, parcel in parcels.items() for at in range(0, parcel.nbytes, PIECE)
    ]
    lasts = {name: max(at for other, at in order if other == name) for name in parcels}
    random.Random(7).shuffle(order)
    for name, at in order:
        if at != lasts[name]:
            space.piece(headers[name], parcels[name].frames, at)
    for name, at in lasts.items():
        space.finish(*part(headers[name], stream(parcels[name].frames)[at:], at=at))
    assert space.fetch("a", "b") == (megabytes(0.25), megabytes(0.5))


# ---------------------------------------------------------------- the other operations


def test_names_tell_name_type_and_size(space: Space) -> None:
    space.bind(numbers=[1, 2, 3], text="abc", _hidden=1)
    space.cell("class Mine:\n    def __repr__(self): 1 / 0\nmine = Mine()")
    told, _ = space.ask("names", pattern="*")
    found = {entry["name"]: entry for entry in told["names"]}
    assert list(found) == ["Mine", "mine", "numbers", "text"]
    assert found["mine"] == {
        "name": "mine", "type": "Mine", "shape": None, "len": None, "bytes": None,
    }  # fmt: skip
    assert (found["numbers"]["type"], found["numbers"]["len"]) == ("list", 3)
    assert found["text"]["bytes"] > 3
    assert [e["name"] for e in space.ask("names", pattern="_h*")[0]["names"]] == ["_hidden"]
    assert space.ask("names", pattern="nothing*")[0]["names"] == []
    space.cell("del mine, Mine")


def test_has_tells_whether_a_name_is_there(space: Space) -> None:
    space.bind(here=None)
    assert space.ask("has", name="here")[0]["has"] is True
    assert space.ask("has", name="nowhere")[0]["has"] is False


def test_drop_takes_names_away(space: Space) -> None:
    before = space.snapshot()
    space.bind(a=1, b=2)
    space.ask("drop", names=["a", "b"])
    assert space.snapshot() == before


@pytest.mark.parametrize("names", [["a", "nowhere"], ["nowhere", "a"]])
def test_drop_takes_all_names_or_none(space: Space, names: list[str]) -> None:
    space.bind(a=1)
    before = space.snapshot()
    with pytest.raises(NameNotFound) as caught:
        space.ask("drop", names=names)
    assert caught.value.names == ("nowhere",)
    assert space.snapshot() == before


def test_drop_of_a_name_told_twice_drops_it_once(space: Space) -> None:
    space.bind(a=1, b=2)
    space.ask("drop", names=["a", "b", "a"])
    assert not {"a", "b"} & space.names()


def test_call_runs_a_function_there(space: Space) -> None:
    values = (operator.add, (2, 3), {})
    _, frames = space.ask("call", _parcel.encode(values, {}))
    assert _parcel.decode(frames) == (5,)


def test_call_keeps_the_value_there_under_a_name(space: Space) -> None:
    values = (os.getpid, (), {})
    _, frames = space.ask("call", _parcel.encode(values, {}), keep="pid")
    assert frames == []
    assert space.fetch("pid") == space.bare.process.pid


def test_an_unknown_name_is_told_with_one_that_is_close(space: Space) -> None:
    space.bind(temperature=20)
    before = space.snapshot()
    with pytest.raises(NameNotFound, match="did you mean 'temperature'") as caught:
        space.fetch("temperatur")
    assert caught.value.names == ("temperatur",)
    assert space.snapshot() == before


# ---------------------------------------------------------------- errors over there

RAISES = {
    "an expression": "def boom():\n    raise ValueError('bad été')\n",
    "a reducer": (
        "def boom():\n    return Boom()\n"
        "class Boom:\n    def __reduce__(self):\n        raise ValueError('bad été')\n"
    ),
}


@pytest.mark.parametrize("code", RAISES.values(), ids=RAISES.keys())
def test_an_error_is_told_without_the_loaders_frames(space: Space, code: str) -> None:
    space.cell(code)
    before = space.snapshot()
    with pytest.raises(RemoteError, match="bad été") as caught:
        space.fetch("boom()")
    text = "\n".join(caught.value.traceback)
    assert "bad été" in text
    assert "ValueError" in text
    assert "bridgehead loader" not in text
    assert space.snapshot() == before


def test_an_error_names_the_users_line_and_brings_the_exception_itself(space: Space) -> None:
    space.cell("def boom():\n    raise LookupError('bad', 7)\n")
    with pytest.raises(RemoteError) as caught:
        space.fetch("boom()")
    assert (caught.value.ename, caught.value.evalue) == ("LookupError", "('bad', 7)")
    assert '  File "<cell>", line 2, in boom' in caught.value.traceback
    assert type(caught.value.__cause__) is LookupError
    assert caught.value.__cause__.args == ("bad", 7)


def test_an_error_that_cannot_be_told_is_told_all_the_same(space: Space) -> None:
    space.cell(
        "class Silent(Exception):\n"
        "    def __str__(self): raise SystemExit(3)\n"
        "    def __reduce__(self): raise SystemExit(3)\n"
        "def boom(): raise Silent()\n"
    )
    with pytest.raises(RemoteError) as caught:
        space.fetch("boom()")
    assert caught.value.ename in ("Silent", "SystemExit")
    assert caught.value.__cause__ is None or isinstance(caught.value.__cause__, SystemExit)


@pytest.mark.parametrize("kind", ["SystemExit", "KeyboardInterrupt", "GeneratorExit"])
def test_what_ends_a_program_does_not_end_the_kernel(space: Space, kind: str) -> None:
    space.cell(f"def leave(): raise {kind}('bye')")
    with pytest.raises(RemoteError, match="bye") as caught:
        space.fetch("leave()")
    assert caught.value.ename == kind


def test_a_syntax_error_is_told(space: Space) -> None:
    with pytest.raises(RemoteError) as caught:
        space.fetch("1 +")
    assert caught.value.ename == "SyntaxError"


def test_a_value_that_cannot_be_pickled_is_told_with_the_path_to_it(space: Space) -> None:
    space.cell("import threading\nconfig = {'a': 1, 'lock': threading.Lock()}")
    with pytest.raises(RemoteError, match=r"config\['lock'\] cannot be pickled") as caught:
        space.fetch("config")
    assert "bridgehead loader" not in "\n".join(caught.value.traceback)


DEEP = "deep = []\nfor _ in range(100000): deep = [deep]\n"


def test_what_is_nested_too_deeply_is_told(space: Space) -> None:
    space.cell(DEEP)
    with pytest.raises(RemoteError, match="recursion"):
        space.fetch("deep")
    space.cell("while deep: deep = deep[0]")


def test_what_is_nested_too_deeply_for_cloudpickle_is_told(equipped: Space) -> None:
    equipped.cell(DEEP)
    with pytest.raises(RemoteError, match="recursion"):
        equipped.fetch("deep")
    equipped.cell("while deep: deep = deep[0]")


# ---------------------------------------------------------------- damage on the way


@dataclass
class Request:
    """A push of two names as it would be sent, for a test to damage."""

    header: Header
    data: bytes
    text: str = ""  # the expression; made from the two above if empty

    def expression(self) -> str:
        text = base64.b64encode(self.data).decode("ascii")
        return self.text or _shipping.expression("inline", self.header, text)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def damaged_base64(request: Request) -> None:
    text = request.expression()
    request.text = text[:-10] + "!!!!" + text[-10:]  # which a lenient decoder would skip


def truncated_base64(request: Request) -> None:
    text = request.expression()
    request.text = text[:-7] + text[-2:]
    assert request.text.endswith("')")


def damaged_json(request: Request) -> None:
    text = request.expression()
    request.text = text.replace('{"protocol"', '{"protocol', 1)
    assert request.text != text


def with_header(**fields: Any) -> Callable[[Request], None]:
    return lambda request: request.header.update(fields)


def without_header(*fields: str) -> Callable[[Request], None]:
    def damage(request: Request) -> None:
        for field in fields:
            del request.header[field]

    return damage


def header_instead(value: Any) -> Callable[[Request], None]:
    def damage(request: Request) -> None:
        request.header = value

    return damage


def with_data(change: Callable[[bytes], bytes]) -> Callable[[Request], None]:
    def damage(request: Request) -> None:
        changed = change(request.data)
        assert changed != request.data
        request.data = changed

    return damage


DAMAGE: dict[str, tuple[type[BridgeError], Callable[[Request], None]]] = {
    "the first bit is flipped": (IntegrityError, with_data(lambda d: flipped(d, 0))),
    "a bit in the middle is flipped": (IntegrityError, with_data(lambda d: flipped(d, 3000))),
    "the last bit is flipped": (IntegrityError, with_data(lambda d: flipped(d, len(d) - 1))),
    "two bytes are swapped": (IntegrityError, with_data(lambda d: d[1:2] + d[:1] + d[2:])),
    "a byte is missing": (IntegrityError, with_data(lambda d: d[:-1])),
    "everything is missing": (IntegrityError, with_data(lambda d: b"")),
    "a byte too many": (IntegrityError, with_data(lambda d: d + b"\0")),
    "the digest is another's": (IntegrityError, with_header(digest="sha256:" + "0" * 64)),
    "the digest is of another kind": (IntegrityError, with_header(digest="crc32:00000000")),
    "the digest is of no kind": (ProtocolError, with_header(digest="rot13:00")),
    "the digest is none": (ProtocolError, with_header(digest=None)),
    "a frame is one byte longer": (IntegrityError, lambda r: bump(r, 1)),
    "a frame is one byte shorter": (IntegrityError, lambda r: bump(r, -1)),
    "the offset is behind the end": (IntegrityError, with_header(at=10**9)),
    "the offset is negative": (IntegrityError, with_header(at=-1)),
    "the base64 is damaged": (IntegrityError, damaged_base64),
    "the base64 is cut off": (IntegrityError, truncated_base64),
    "the JSON is damaged": (IntegrityError, damaged_json),
    "the header is a list": (ProtocolError, header_instead([])),
    "the header is a number": (ProtocolError, header_instead(7)),
    "the header is null": (ProtocolError, header_instead(None)),
    "the header is empty": (ProtocolError, header_instead({})),
    "the epoch is another kernel's": (KernelRestarted, with_header(epoch="0" * 16)),
    "the epoch is missing": (KernelRestarted, without_header("epoch")),
    "the protocol is newer": (ProtocolError, with_header(protocol=3)),
    "the protocol is missing": (ProtocolError, without_header("protocol")),
    "the operation is unknown": (ProtocolError, with_header(op="explode")),
    "the operation is missing": (ProtocolError, without_header("op")),
    "the id is missing": (ProtocolError, without_header("id")),
    "the sizes are missing": (ProtocolError, without_header("sizes")),
    "the piece is missing": (ProtocolError, without_header("piece")),
    "the piece is text": (ProtocolError, with_header(piece="many")),
    "a size is negative": (ProtocolError, with_header(sizes=[-1, 1])),
    "a size is text": (ProtocolError, with_header(sizes=["1"])),
    "a size is a fraction": (ProtocolError, with_header(sizes=[1.5])),
    "the names are others": (ProtocolError, with_header(names=["a", "c"])),
    "the names are in another order": (ProtocolError, with_header(names=["b", "a"])),
    "the names are fewer": (ProtocolError, with_header(names=["a"])),
    "the names are missing": (ProtocolError, without_header("names")),
}


def bump(request: Request, by: int) -> None:
    request.header["sizes"][-1] += by


@pytest.mark.parametrize(("error", "damage"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_push_is_refused_and_changes_nothing(
    space: Space, error: type[BridgeError], damage: Callable[[Request], None]
) -> None:
    space.bind(a="before", other=[1])
    before = space.snapshot()
    values = {"a": pickle.PickleBuffer(megabytes(0.05)), "b": "after"}
    parcel = _parcel.encode(values, values)
    request = Request(space.header("bind", parcel.frames, names=["a", "b"]), stream(parcel.frames))
    damage(request)
    told = space.evaluate(request.expression())
    parts = [base64.b64decode(told.pop("data", ""))]
    with pytest.raises(BridgeError) as caught:
        inbox = _protocol.open_answer(told)
        _protocol.add_piece(told, inbox, 0, parts)
        frames = _protocol.close_answer(inbox)
        _protocol.raise_error(told, frames)
    assert type(caught.value) is error
    assert space.snapshot() == before
    assert space.kept() == (0, 0)


# ---------------------------------------------------------------- all names or none


class Bomb:
    """Pickles here, and raises when it is unpickled there."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.reduced = function, args

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_push_that_cannot_be_unpickled_changes_nothing(space: Space, place: str) -> None:
    space.bind(a="before")
    before = space.snapshot()
    values: dict[str, Any] = {"a": 1, "b": 2, "c": 3}
    values[{"first": "a", "middle": "b", "last": "c"}[place]] = Bomb(int, "no number")
    with pytest.raises(RemoteError, match="invalid literal for int") as caught:
        space.bind(**values)
    assert type(caught.value.__cause__) is ValueError
    assert "bridgehead loader" not in "\n".join(caught.value.traceback)
    assert space.snapshot() == before


def test_a_push_of_what_is_no_pickle_changes_nothing(space: Space) -> None:
    before = space.snapshot()
    frames = [memoryview(b"this is no pickle")]
    with pytest.raises(RemoteError) as caught:
        space.finish(space.header("bind", frames, names=["a"]), stream(frames))
    assert caught.value.ename == "UnpicklingError"
    assert space.snapshot() == before


def test_a_push_that_exits_changes_nothing(space: Space) -> None:
    before = space.snapshot()
    with pytest.raises(RemoteError, match="leaving") as caught:
        space.bind(a=1, b=Bomb(sys.exit, "leaving"))
    assert caught.value.ename == "SystemExit"
    assert space.snapshot() == before


def test_a_push_that_needs_a_module_the_kernel_lacks_changes_nothing(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("only_here")
    exec("class Thing: pass", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    before = space.snapshot()
    with pytest.raises(MissingInKernel, match="cannot import 'only_here'") as caught:
        space.bind(a=1, b=module.Thing())
    assert caught.value.module == "only_here"
    assert space.snapshot() == before


# Raises KeyboardInterrupt ahead of one bytecode instruction of the loader's, the nth that it
# executes in the operation itself; ``left`` stays positive when there are not so many.
INTERRUPT = """
import sys
sys._getframe().f_trace_opcodes = True  # 3.12 wants it before settrace
class Interrupt:
    def __init__(self, left, where):
        self.left, self.where = left, where
    def __call__(self, frame, event, arg):
        if frame.f_code.co_filename != "<bridgehead loader>":
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and frame.f_code.co_name in self.where:
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self
"""


@pytest.mark.parametrize("operation", ["bind", "drop"])
def test_an_interrupt_at_any_instruction_leaves_all_names_or_none(
    space: Space, operation: str
) -> None:
    tracer = Space(space.bare)
    tracer.cell(INTERRUPT)
    interrupted = 0
    while True:
        space.bind(a="before", b="before", c="before")
        before = space.snapshot()
        tracer.cell(
            f"interrupt = Interrupt({interrupted + 1}, ('bind', 'drop', '<listcomp>'))\n"
            "sys.settrace(interrupt)"
        )
        told = None
        try:
            if operation == "bind":
                space.bind(a="after", b="after", c="after")
            else:
                space.ask("drop", names=["a", "b", "c"])
        except RemoteError as error:
            told = error
        finally:
            tracer.cell("sys.settrace(None)")
        if told is None:
            break
        assert told.ename == "KeyboardInterrupt"
        after = space.snapshot()
        values = {text for name, _, text in after if name in ("'a'", "'b'", "'c'")}
        assert after == before or values == ({"'after'"} if operation == "bind" else set())
        interrupted += 1
    tracer.cell("assert interrupt.left > 0")
    assert interrupted > 10


# ---------------------------------------------------------------- requests that cross together


def to_bind(space: Space, **values: Any) -> tuple[Header, _parcel.Parcel]:
    parcel = _parcel.encode(values, values)
    return space.header("bind", parcel.frames, names=list(values)), parcel


def to_ask(space: Space, operation: str, **fields: Any) -> tuple[Header, _parcel.Parcel]:
    return space.header(operation, **fields), _parcel.EMPTY


def value(outcome: Outcome) -> Any:
    assert isinstance(outcome, tuple)
    return _parcel.decode(outcome[1])


def test_requests_that_cross_together_are_done_in_order(space: Space) -> None:
    outcomes = space.batch(
        to_bind(space, x=1),
        to_ask(space, "fetch", expressions=["x"]),
        to_bind(space, x=2, y=bytearray(5000)),
        to_ask(space, "fetch", expressions=["x", "y"]),
        to_ask(space, "drop", names=["x"]),
        to_ask(space, "has", name="x"),
        to_ask(space, "names", pattern="*"),
    )
    assert value(outcomes[1]) == (1,)
    assert value(outcomes[3]) == (2, bytearray(5000))
    assert outcomes[5][0]["has"] is False
    assert [told["name"] for told in outcomes[6][0]["names"]] == ["y"]


def test_one_that_fails_fails_alone(space: Space) -> None:
    outcomes = space.batch(
        to_bind(space, a=1, b=2),
        to_bind(space, a="no", c=Bomb(int, "no number")),
        to_ask(space, "fetch", expressions=["nowhere"]),
        to_ask(space, "drop", names=["b", "nowhere"]),
        to_bind(space, d=Bomb(sys.exit, "leaving")),
        to_ask(space, "fetch", expressions=["a"]),
    )
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds == [tuple, RemoteError, NameNotFound, NameNotFound, RemoteError, tuple]
    assert type(outcomes[1].__cause__) is ValueError
    assert value(outcomes[5]) == (1,)
    assert space.names() >= {"a", "b"}
    assert not space.names() & {"c", "d"}


@pytest.mark.parametrize("operation", ["call", "hello", "learn", "batch", "watch", "more", "piece"])
def test_a_batch_with_one_that_crosses_alone_is_refused_and_changes_nothing(
    space: Space, operation: str
) -> None:
    before = space.snapshot()
    alone = to_ask(space, operation, expressions=["1"], watch="w", requests=[])
    with pytest.raises(ProtocolError, match="crosses alone"):
        space.batch(to_bind(space, a=1), alone, to_bind(space, b=1))
    assert space.snapshot() == before


@pytest.mark.parametrize("damaged", [{}, None, [], {"op": "bind"}, 7], ids=repr)
def test_a_batch_with_what_is_no_request_is_refused_and_changes_nothing(
    space: Space, damaged: Any
) -> None:
    before = space.snapshot()
    header, parcel = to_bind(space, a=1)
    batch = _protocol.batch_header([header], parcel.frames)
    batch = {**batch, "requests": [header, damaged], "piece": PIECE}
    with pytest.raises(ProtocolError):
        space.finish(batch, stream(parcel.frames))
    assert space.snapshot() == before


def test_a_batch_whose_frames_are_fewer_than_its_requests_need_is_told(space: Space) -> None:
    first, second = to_bind(space, a=1), to_bind(space, b=1)
    batch = {**_protocol.batch_header([first[0], second[0]], first[1].frames), "piece": PIECE}
    told, parts = space.finish(batch, stream(first[1].frames))
    answers = [opened.told for opened in _protocol.part_batch(told, parts, [None, None])]
    assert "error" not in answers[0]
    assert answers[1]["error"]["kind"] == "protocol"
    assert "b" not in space.names()


def test_what_comes_after_the_message_is_full_was_not_done_and_is_told_to_come_again(
    space: Space,
) -> None:
    space.bind(long=megabytes(0.2), other=1)
    asked = [
        to_ask(space, "fetch", expressions=["other"]),
        to_ask(space, "fetch", expressions=["long"]),
        to_bind(space, other=2),
        to_ask(space, "drop", names=["long"]),
    ]
    outcomes = space.batch(*asked)
    assert value(outcomes[0]) == (1,)
    assert value(outcomes[1]) == (megabytes(0.2),)  # the rest of it was fetched by itself
    assert outcomes[2:] == [None, None]
    assert space.fetch("other") == 1
    assert space.kept() == (0, 1)
    space.forget(asked[1][0])
    assert all(isinstance(outcome, tuple) for outcome in space.batch(*asked[2:]))
    assert space.fetch("other") == 2
    assert "long" not in space.names()


def test_an_interrupt_at_any_instruction_leaves_each_of_a_batch_whole(space: Space) -> None:
    tracer = Space(space.bare)
    tracer.cell(INTERRUPT)
    interrupted = alone = 0
    pairs = [("a", "b"), ("c", "d"), ("e", "f")]
    while True:
        space.bind(**dict.fromkeys("abcdef", "before"))
        tracer.cell(
            f"interrupt = Interrupt({interrupted + 1}, ('batch', 'bind', 'drop', '<listcomp>'))\n"
            "sys.settrace(interrupt)"
        )
        asked = [
            to_bind(space, a="after", b="after"),
            to_ask(space, "drop", names=["c", "d"]),
            to_bind(space, e="after", f="after"),
        ]
        outcomes: list[Outcome] = []
        whole = None
        try:
            outcomes = space.batch(*asked)
        except RemoteError as error:
            whole = error
        finally:
            tracer.cell("sys.settrace(None)")
        values = {name: text for name, _, text in space.snapshot()}
        states = [{values.get(repr(name)) for name in pair} for pair in pairs]
        done = [{"'after'"}, {None}, {"'after'"}]
        assert all(
            state in (after, {"'before'"}) for state, after in zip(states, done, strict=True)
        )
        for outcome, state, after in zip(outcomes, states, done, strict=False):
            assert state == after or isinstance(outcome, RemoteError)
        failed = [outcome for outcome in [whole, *outcomes] if isinstance(outcome, RemoteError)]
        if not failed:
            break
        assert [error.ename for error in failed] == ["KeyboardInterrupt"]
        alone += whole is None
        interrupted += 1
    tracer.cell("assert interrupt.left > 0")
    assert alone > 10
    assert interrupted > alone


# ---------------------------------------------------------------- the same message twice


def test_a_request_that_was_made_before_is_not_done_again(space: Space) -> None:
    header, parcel = to_bind(space, a=1)
    data = stream(parcel.frames)
    space.finish(header, data)
    space.bind(a=2)
    before = space.snapshot()
    for _ in range(2):
        with pytest.raises(ProtocolError, match="made before"):
            space.finish(header, data)
    assert space.snapshot() == before


def test_one_that_failed_is_not_done_again_either(space: Space) -> None:
    header, parcel = to_bind(space, a=Bomb(int, "no number"))
    with pytest.raises(RemoteError):
        space.finish(header, stream(parcel.frames))
    with pytest.raises(ProtocolError, match="made before"):
        space.finish(header, stream(parcel.frames))


def test_a_batch_that_was_made_before_is_not_done_again(space: Space) -> None:
    asked = to_bind(space, a=1)
    space.batch(asked, id="twice")
    space.bind(a=2)
    with pytest.raises(ProtocolError, match="made before"):
        space.batch(asked, id="twice")
    assert space.fetch("a") == 2


def test_one_that_arrived_damaged_may_be_made_again(space: Space) -> None:
    header, parcel = to_bind(space, a=1)
    data = stream(parcel.frames)
    with pytest.raises(IntegrityError):
        space.finish(header, flipped(data, 3))
    space.finish(header, data)
    assert space.fetch("a") == 1


# ---------------------------------------------------------------- at most so many bytes

# A value of eight megabytes: inside its pickle, and out of it.
LONG = {
    "in-band": "long = b'x' * (8 << 20)",
    "out-of-band": "import pickle\nlong = pickle.PickleBuffer(bytearray(8 << 20))",
    "in many parts": "long = [b'%d' % n * 100 for n in range(20000)]",
}


@pytest.mark.parametrize("code", LONG.values(), ids=LONG.keys())
def test_more_than_max_bytes_is_told_with_its_size_and_not_copied(space: Space, code: str) -> None:
    space.cell(code)
    size = sum(frame.nbytes for frame in space.ask("fetch", expressions=["long"])[1])
    for limit in (0, 1000, size - 1):
        with pytest.raises(PayloadTooLarge) as caught:
            space.ask("fetch", expressions=["long"], max_bytes=limit)
        assert caught.value.bytes == size
    space.cell("import tracemalloc\ntracemalloc.start()")
    try:
        with pytest.raises(PayloadTooLarge):
            space.ask("fetch", expressions=["long"], max_bytes=1000)
        assert space.fetch("tracemalloc.get_traced_memory()[1]") < 2 << 20
    finally:
        space.cell("tracemalloc.stop()")
    assert space.kept() == (0, 0)


@pytest.mark.parametrize("limit", [0, 5])
def test_the_limit_itself_is_allowed(space: Space, limit: int) -> None:
    space.bind(x=1)
    _, frames = space.ask("fetch", expressions=["x"])
    size = frames[0].nbytes
    assert _parcel.decode(space.ask("fetch", expressions=["x"], max_bytes=size)[1]) == (1,)
    with pytest.raises(PayloadTooLarge):
        space.ask("fetch", expressions=["x"], max_bytes=min(limit, size - 1))


def test_a_call_whose_value_is_too_large_ran_and_tells_its_size(space: Space) -> None:
    code = "__import__('os').environ.update(RAN='1') or b'x' * 5000"
    parcel = _parcel.encode((eval, (code, {}), {}), {})
    with pytest.raises(PayloadTooLarge) as caught:
        space.ask("call", parcel, max_bytes=4000)
    assert 5000 < caught.value.bytes < 5100
    assert space.fetch("__import__('os').environ.pop('RAN')") == "1"
    _, frames = space.ask("call", parcel, max_bytes=6000)
    assert _parcel.decode(frames) == (b"x" * 5000,)
    space.ask("call", parcel, max_bytes=1, keep="kept")  # which brings nothing
    assert space.fetch("len(kept)") == 5000


# ---------------------------------------------------------------- the lesson


@pytest.fixture
def untaught(space: Space) -> Space:
    """A namespace whose loader, new in its process, has no data-only codec yet."""
    space.uproot()
    return space.prepare()


def lesson() -> _parcel.Parcel:
    return _parcel.Parcel(_shipping.lesson(), carries_code=False, refs=False)


def test_what_needs_the_data_only_codec_is_refused_before_it_is_there(untaught: Space) -> None:
    untaught.bind(x=1)
    with pytest.raises(ProtocolError, match="is not here"):
        untaught.ask("fetch", expressions=["x"], trust="data")
    values = {"y": 1}
    with pytest.raises(ProtocolError, match="is not here"):
        untaught.ask("bind", _parcel.encode_data(values, values), names=["y"], opens="data")
    assert "y" not in untaught.names()


def test_a_loader_that_learned_it_sends_and_opens_nothing_but_data(untaught: Space) -> None:
    names = untaught.names()
    for _ in range(2):
        untaught.ask("learn", lesson())
    assert untaught.names() == names
    data = {"a": [1, 2.5, None], "b": datetime.date(2024, 1, 2), ("c", 1): {3, b"x"}}
    values = {"x": data}
    untaught.ask("bind", _parcel.encode_data(values, values), names=["x"], opens="data")
    _, frames = untaught.ask("fetch", expressions=["x"], trust="data")
    assert _parcel.decode_data(frames, {}) == (data,)
    untaught.cell("def code(): pass")
    with pytest.raises(UntrustedPayload, match="code is") as caught:
        untaught.ask("fetch", expressions=["x", "code"], trust="data")
    assert "function" in caught.value.type
    bomb = {"y": Bomb(int, "7")}
    with pytest.raises(UntrustedPayload):
        untaught.ask("bind", _parcel.encode(bomb, bomb), names=["y"], opens="data")
    assert untaught.names() == {*names, "x", "code"}


@pytest.mark.parametrize("source", [b"\xff", b"1 +", b"raise LookupError", b"import nowhere"])
def test_a_lesson_that_cannot_be_learned_is_told(untaught: Space, source: bytes) -> None:
    parcel = _parcel.Parcel([memoryview(source)], carries_code=False, refs=False)
    with pytest.raises(RemoteError):
        untaught.ask("learn", parcel)
    untaught.ask("learn", lesson())


# ---------------------------------------------------------------- values that are watched

# What the loader asks of IPython and of ipykernel 6, for a namespace of its own.
SHELL = """
class Events:
    def __init__(self):
        self.functions = []
    def register(self, event, function):
        assert event == "post_run_cell"
        self.functions.append(function)
    def unregister(self, event, function):
        assert event == "post_run_cell"
        self.functions.remove(function)
class Session:
    def __init__(self):
        self.sent = []
    def send(self, stream, kind, content, parent, ident, buffers):
        buffers = [bytes(buffer) for buffer in buffers]
        self.sent.append((stream, kind, content, parent, ident, buffers))
class Kernel:
    shell_stream = "the shell channel"
    _parent_ident = {"shell": b"whoever asked"}
    def __init__(self):
        self.session = Session()
    def get_parent(self, channel):
        return {"header": {"msg_id": "the request"}}
class Shell:
    def __init__(self, namespace):
        self.user_ns = self.user_global_ns = namespace
        self.user_ns_hidden = dict(namespace)
        self.events, self.kernel = Events(), Kernel()
def get_ipython(shell=Shell(globals())):
    return shell
"""
CELL_DONE = "[function(None) for function in [*get_ipython().events.functions]]"


class Watched(Space):
    """A namespace that IPython serves."""

    def __init__(self, bare: Bare) -> None:
        super().__init__(bare)
        self.cell(SHELL)

    def run(self, code: str) -> list[Any]:
        """A cell of the user's; gives what the loader sent after it by itself."""
        self.cell(code)
        self.cell(CELL_DONE)
        sent = self.fetch("get_ipython().kernel.session.sent")
        self.cell("get_ipython().kernel.session.sent.clear()")
        return sent

    def watch(self, expression: str, identity: str = "w", **fields: Any) -> Any:
        fields = {"lane": "inline", **fields}
        return self.ask("watch", expressions=[expression], watch=identity, **fields)

    def watches(self) -> int:
        return self.fetch(f"len({FAR}.watches.known)")

    def open(self, news: Any) -> tuple[Header, list[memoryview]]:
        """What one of the messages tells, its rest fetched."""
        _, kind, content, _, _, buffers = news
        assert kind == _wire.NEWS_MESSAGE
        told = json.loads(content["answer"])
        parts = buffers or [base64.b64decode(told.pop("data"), validate=True)]
        inbox = _protocol.open_answer(told)
        _protocol.add_piece(told, inbox, 0, parts)
        asked = {**self.header("watch"), "id": content["news"]}, _parcel.EMPTY
        outcome = self.outcome(asked, _protocol.Opened(told, inbox))
        if isinstance(outcome, BridgeError):
            raise outcome
        assert outcome is not None
        return outcome

    def value(self, news: Any) -> Any:
        return _parcel.decode(self.open(news)[1])[0]


FAR = f"__import__('sys').modules[{LOADER!r}]._served[id(globals())]"


@pytest.fixture
def watched(python: Python, kernels: Callable[..., Bare]) -> Watched:
    bare = kernels(python, None)
    Space(bare).prepare()
    opened = Watched(bare)
    opened.hello()
    return opened


def test_a_watched_value_is_told_now_and_when_a_cell_changed_it(watched: Watched) -> None:
    watched.run("x = 1")
    assert _parcel.decode(watched.watch("x")[1]) == (1,)
    (news,) = watched.run("x = 2")
    stream_, kind, content, parent, identity, buffers = news
    assert (stream_, kind) == ("the shell channel", "bridgehead_news")
    assert (parent, identity) == ({"header": {"msg_id": "the request"}}, b"whoever asked")
    assert (content["watch"], buffers) == ("w", [])
    assert watched.value(news) == 2
    assert watched.run("y = 1") == []
    assert watched.run("x = 2") == []
    assert watched.value(watched.run("x = [3]")[0]) == [3]
    assert watched.value(watched.run("x.append(4)")[0]) == [3, 4]


def test_news_come_as_buffers_where_these_arrive(watched: Watched) -> None:
    watched.run("x = 1")
    watched.watch("x", lane="buffers")
    (news,) = watched.run("x = b'long' * 1000")
    assert "data" not in json.loads(news[2]["answer"])
    assert watched.value(news) == b"long" * 1000


def test_what_a_watched_expression_raises_is_news_too_and_hurts_no_cell(watched: Watched) -> None:
    watched.run("d = {'a': 1}")
    watched.watch("d['a']")
    (news,) = watched.run("d.clear()")
    with pytest.raises(RemoteError, match="KeyError: 'a'"):
        watched.open(news)
    assert watched.run("other = 1") == []
    assert watched.value(watched.run("d['a'] = 5")[0]) == 5
    (news,) = watched.run("del d")
    with pytest.raises(RemoteError, match="NameError"):
        watched.open(news)


def test_a_value_that_ends_a_program_when_it_is_looked_at_is_told(watched: Watched) -> None:
    watched.run("def look(): return 1")
    watched.watch("look()")
    (news,) = watched.run("def look(): raise SystemExit('bye')")
    with pytest.raises(RemoteError, match="SystemExit: bye"):
        watched.open(news)


def test_news_beyond_max_bytes_tell_the_size_alone(watched: Watched) -> None:
    watched.run("x = 1")
    watched.watch("x", max_bytes=1000)
    (news,) = watched.run("x = b'x' * 5000")
    with pytest.raises(PayloadTooLarge) as caught:
        watched.open(news)
    assert caught.value.bytes > 5000


def test_what_cannot_be_evaluated_is_not_watched(watched: Watched) -> None:
    with pytest.raises(NameNotFound):
        watched.watch("nowhere")
    with pytest.raises(RemoteError):
        watched.watch("1 / 0")
    assert watched.watches() == 0
    assert watched.fetch("get_ipython().events.functions") == []


def test_a_watch_that_ended_tells_nothing_and_leaves_nothing(watched: Watched) -> None:
    watched.run("x = 1")
    for identity in ("v", "w"):
        watched.watch("x", identity)
    assert len(watched.run("x = 2")) == 2
    watched.ask("unwatch", watch="v")
    (news,) = watched.run("x = 3")
    assert news[2]["watch"] == "w"
    watched.ask("unwatch", watch="w")
    watched.ask("unwatch", watch="w")  # whoever asks twice is not told off
    assert watched.run("x = 4") == []
    assert watched.fetch("get_ipython().events.functions") == []
    assert watched.watches() == 0


def test_long_news_are_fetched_in_pieces_and_go_when_there_are_newer_ones(
    watched: Watched,
) -> None:
    watched.run("x = 1")
    watched.watch("x")
    (old,) = watched.run("x = bytes(range(256)) * 1000")
    assert watched.kept() == (0, 1)
    assert watched.value(old) == bytes(range(256)) * 1000
    (newer,) = watched.run("x = x[::-1]")
    assert watched.kept() == (0, 1)
    with pytest.raises(IntegrityError, match="gone"):
        watched.open(old)
    assert watched.value(newer) == (bytes(range(256)) * 1000)[::-1]
    watched.ask("unwatch", watch="w")
    assert watched.kept() == (0, 0)


def test_a_watch_asked_for_again_goes_on_and_one_forgotten_is_dropped(watched: Watched) -> None:
    watched.run("x = 0")
    for identity in ("kept", "left"):
        watched.watch("x", identity)
    with later(watched, 601):
        assert watched.watch("x", "kept") == ({"sizes": [], "digest": EMPTY_DIGEST}, [])
        # One cell may last for hours, in which nobody can ask: it takes several cells too.
        told = [[news[2]["watch"] for news in watched.run(f"x = {n}")] for n in range(1, 13)]
    assert told == [["kept", "left"]] * 10 + [["kept"]] * 2
    assert watched.watches() == 1


def test_a_kernel_that_tells_nobody_when_a_cell_is_done_cannot_watch(space: Space) -> None:
    space.bind(x=1)
    with pytest.raises(NotSupported, match="tells nobody"):
        space.ask("watch", expressions=["x"], watch="w")
    space.ask("unwatch", watch="w")


EMPTY_DIGEST = _wire.digest("sha256", [])


@contextlib.contextmanager
def later(space: Space, seconds: float) -> Iterator[None]:
    """The loader's clock is ahead for as long as the block lasts."""
    clock = f"__import__('sys').modules[{LOADER!r}]"
    clocks = Space(space.bare)
    clocks.cell(f"loader = {clock}\nkept = loader.monotonic")
    clocks.cell(f"loader.monotonic = lambda: kept() + {seconds}")
    try:
        yield
    finally:
        clocks.cell("loader.monotonic = kept")


# ---------------------------------------------------------------- subshells left behind


@pytest.fixture(scope="module")
def gone() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def note(identity: str, pid: Any, host: str | None = None) -> dict[str, Any]:
    return {"id": identity, "host": platform.node() if host is None else host, "pid": pid}


def orphans(space: Space) -> list[str]:
    return space.hello()["orphans"]


def test_a_subshell_whose_process_is_gone_is_told_once(space: Space, gone: int) -> None:
    space.bind(x=1)
    space.ask("fetch", expressions=["x"], subshell=note("left", gone))
    space.ask("fetch", expressions=["x"], subshell=note("used", os.getpid()))
    assert orphans(space) == ["left"]
    assert orphans(space) == []


def test_a_busy_subshell_is_never_told(space: Space, gone: int) -> None:
    look = f"({FAR}.orphans(), [*{FAR}.subshells])"
    _, frames = space.ask("fetch", expressions=[look], subshell=note("busy", gone))
    assert _parcel.decode(frames) == (([], ["busy"]),)
    with pytest.raises(RemoteError):
        space.ask("fetch", expressions=["1 / 0"], subshell=note("failed", gone))
    assert sorted(orphans(space)) == ["busy", "failed"]


def test_one_of_a_process_that_lives_or_of_another_host_is_told_by_its_age(
    space: Space, gone: int
) -> None:
    space.bind(x=1)
    for identity, pid, host in [
        ("alive", os.getpid(), None),
        ("far", gone, "another host"),
        ("odd", "no pid", None),
    ]:
        space.ask("fetch", expressions=["x"], subshell=note(identity, pid, host))
    assert orphans(space) == []
    with later(space, 601):
        space.ask("fetch", expressions=["x"], subshell=note("alive", os.getpid()))
        assert sorted(orphans(space)) == ["far", "odd"]
    with later(space, 1203):
        assert orphans(space) == ["alive"]


@pytest.mark.parametrize("odd", [None, 5, "s", [], {}, {"id": 5}, {"id": None}], ids=repr)
def test_a_note_that_is_none_is_ignored(space: Space, odd: Any) -> None:
    space.bind(x=1)
    header = space.header("fetch", expressions=["x"])
    space.finish({**header, "subshell": odd})
    with later(space, 601):
        assert orphans(space) == []


# ---------------------------------------------------------------- what users do to a namespace


@pytest.mark.parametrize("planted", ["before", "after"])
def test_every_builtin_may_be_shadowed(space: Space, planted: str) -> None:
    if planted == "after":
        space.uproot()
    names = "dict.fromkeys([*dir(__import__('builtins')), 'sys', 'pickle', 'json'])"
    space.cell(f"globals().update({{**{names}, '__builtins__': __import__('builtins')}})")
    shadowed = space.names()
    assert {"len", "eval", "exec", "__import__", "getattr", "globals", "type"} <= shadowed
    assert tuple(space.hello()["python"]) == space.python.version
    space.bind(x=[1, 2, 3], data=megabytes(0.25))
    assert space.fetch("x", "x[1:]", "len") == ([1, 2, 3], [2, 3], None)
    assert space.fetch("data") == megabytes(0.25)
    assert "x" in [entry["name"] for entry in space.ask("names", pattern="x*")[0]["names"]]
    assert space.ask("has", name="x")[0]["has"] is True
    with pytest.raises(NameNotFound):
        space.fetch("nowhere")
    with pytest.raises(RemoteError, match="ZeroDivisionError"):
        space.fetch("1 / 0")
    space.ask("drop", names=["x", "data"])
    assert space.names() == shadowed


@pytest.mark.parametrize("builtins", ["None", "{}", "{'eval': None}"])
def test_the_builtins_themselves_may_be_replaced(space: Space, builtins: str) -> None:
    space.uproot()
    space.cell(f"__builtins__ = {builtins}")
    try:
        space.hello()
        space.bind(x=[1, 2, 3])
        assert space.fetch("x") == [1, 2, 3]
    finally:
        space.cell("del __builtins__")


REPLACED = [
    "pickle.loads", "pickle.dumps", "json.loads", "json.dumps", "base64.b64decode",
    "base64.b64encode", "zlib.crc32", "hashlib.sha256", "io.BytesIO", "time.monotonic",
    "fnmatch.fnmatchcase",
]  # fmt: skip


@pytest.mark.parametrize("function", REPLACED)
def test_a_replaced_function_of_the_standard_library_does_not_reach_the_loader(
    space: Space, function: str
) -> None:
    module = function.partition(".")[0]
    space.cell(f"import {module}\nkept, {function} = {function}, None")
    try:
        space.bind(x=[1, 2])
        assert space.fetch("x", "x[1]") == ([1, 2], 2)
        assert [told["name"] for told in space.ask("names", pattern="x")[0]["names"]] == ["x"]
    finally:
        space.cell(f"{function} = kept")


def test_an_emptied_namespace_keeps_its_loader(space: Space) -> None:
    space.bind(x=1)
    space.cell("globals().clear()")
    space.bind(y=2)
    assert space.fetch("y") == 2
    assert "x" not in space.names()


def test_a_removed_loader_is_told_and_the_next_one_is_another(space: Space) -> None:
    space.bind(x=1)
    before, epoch = space.names(), space.epoch
    space.uproot()
    with pytest.raises(KernelRestarted):
        space.bind(x=2)
    assert space.names() == before
    assert space.hello()["epoch"] != epoch
    assert space.fetch("x") == 1
    space.epoch = epoch
    with pytest.raises(KernelRestarted):
        space.bind(x=3)
    space.hello()
    assert space.fetch("x") == 1


def test_only_what_was_pushed_appears_in_the_namespace(
    python: Python, kernels: Callable[..., Bare]
) -> None:
    space = Space(kernels(python, None))
    assert space.names() == {"__name__"}
    space.hello()
    # Python itself adds __builtins__ to any dict that it evaluates in.
    assert space.names() == {"__name__", "__builtins__"}
    space.bind(pushed=megabytes(0.25), größe=2)
    space.fetch("pushed", "größe + 1")
    space.ask("call", _parcel.encode((operator.add, (1, 2), {}), {}), keep="kept")
    space.ask("names", pattern="*")
    space.ask("has", name="pushed")
    with pytest.raises(NameNotFound):
        space.fetch("nowhere")
    with pytest.raises(RemoteError):
        space.fetch("1 / 0")
    with pytest.raises(RemoteError):
        space.bind(bomb=Bomb(int, "no number"))
    assert space.names() == {"__name__", "__builtins__", "pushed", "größe", "kept"}


# ---------------------------------------------------------------- code objects

# Each is made over there as ``made``; brought back, it gives 7 here.
CODE: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "a function": ("def made(x): return x + 1", lambda made: made(6)),
    "a lambda": ("made = lambda x: x + 1", lambda made: made(6)),
    "a function inside data": (
        "def f(x): return x + 1\nmade = {'deep': [f]}",
        lambda made: made["deep"][0](6),
    ),
    "a class with a method": (
        "class made:\n    def method(self): return 7",
        lambda made: made().method(),
    ),
    "an object of such a class": (
        "class Model:\n    def method(self): return 7\nmade = Model()",
        lambda made: made.method(),
    ),
}
code = pytest.mark.parametrize(("code", "use"), CODE.values(), ids=CODE.keys())


@code
def test_code_needs_cloudpickle_there_and_its_absence_is_told(
    space: Space, code: str, use: Callable[[Any], Any]
) -> None:
    space.cell(code)
    before = space.snapshot()
    with pytest.raises(MissingInKernel, match="cloudpickle") as caught:
        space.fetch("made")
    assert caught.value.module == "cloudpickle"
    assert space.snapshot() == before


@code
def test_code_comes_back_from_the_same_minor_version_only(
    equipped: Space, code: str, use: Callable[[Any], Any]
) -> None:
    equipped.cell(code)
    before = equipped.snapshot()
    if equipped.python.version[:2] == sys.version_info[:2]:
        assert use(equipped.fetch("made")) == 7
    else:
        with pytest.raises(IncompatiblePython, match=r"Python 3\.\d+, and this is Python 3\.\d+"):
            equipped.fetch("made")
    assert equipped.snapshot() == before


def test_code_for_another_kernel_is_judged_by_that_ones_python(equipped: Space) -> None:
    """Whatever this one's is; and it is told that it is code."""
    equipped.cell("made, data = (lambda: 1), 1")
    asked: dict[str, Any] = {"expressions": ["made"], "names": ["made"]}
    theirs = list(equipped.python.version[:2])
    told, frames = equipped.ask("fetch", **asked, reader=theirs)
    assert told["code"] is True
    assert frames
    with pytest.raises(IncompatiblePython):
        equipped.ask("fetch", **asked, reader=[theirs[0], theirs[1] + 1])
    equipped.ask("fetch", expressions=["data"], names=["data"], reader=[3, 99])


def test_data_crosses_between_all_versions_where_cloudpickle_is(equipped: Space) -> None:
    value = {"a": [1, 2.5, "é"], "b": datetime.date(2024, 1, 2)}
    equipped.bind(value=value)
    assert equipped.fetch("value") == value


def test_an_error_that_carries_code_is_never_unpickled_by_another_version(
    equipped: Space,
) -> None:
    equipped.cell(
        "class Odd(Exception):\n"
        "    def told(self): return 'told by ' + self.args[0]\n"
        "def boom(): raise Odd('me')\n"
    )
    with pytest.raises(RemoteError, match="Odd: me") as caught:
        equipped.fetch("boom()")
    if equipped.python.version[:2] == sys.version_info[:2]:
        assert caught.value.__cause__.told() == "told by me"
    else:
        assert caught.value.__cause__ is None


def test_code_shipped_there_runs_where_the_version_is_the_same(equipped: Space) -> None:
    parcel = _parcel.encode((lambda x: x * 2, (21,), {}), {})
    assert parcel.carries_code
    versions = equipped.hello()["versions"] | {"cloudpickle": cloudpickle.__version__}
    if equipped.python.version[:2] == sys.version_info[:2]:
        _parcel.check_parcel(parcel, equipped.python.version, versions)
        _, frames = equipped.ask("call", parcel)
        assert _codec.decode(frames) == (42,)
    else:
        with pytest.raises(IncompatiblePython):
            _parcel.check_parcel(parcel, equipped.python.version, versions)


def test_threads_that_remember_their_requests_at_once_disturb_nobody() -> None:
    """A subshell and the main thread, each with more requests than are remembered."""
    far, failures = Far(Kernel({})), []

    def ask(thread: int) -> None:
        for number in range(20 * REMEMBERED):
            try:
                far.once(f"{thread} {number}")
            except Exception as error:
                failures.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=ask, args=(thread,)) for thread in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert failures == []
    assert len(far.done) == REMEMBERED
