"""The loader under every Python found here, from 3.8 on, in bare interpreters.

Rule: the near side's own text is evaluated by a foreign interpreter, with nothing in between:
no Jupyter, no packages, not even ``site``. One process serves one Python; every test gets a
namespace of its own in it, and so a loader's state of its own.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import json
import random
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from bridgehead import BridgeError
from bridgehead._protocol import bootstrap as _shipping
from bridgehead._protocol import payload as _payload
from bridgehead._protocol import response as _protocol
from bridgehead._protocol.raising import raise_error
from bridgehead._protocol.request import KEY, batch_header, header
from bridgehead._shipped.wire import frames as _wire
from bridgehead._shipped.wire.frames import cut
from support.elsewhere import Python, pythons

Header = dict[str, Any]
CHUNK = 1 << 16  # bytes; small, so that little data makes many pieces

PYTHONS = pythons()

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
        self.installed = False  # whether the loader was
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

    def remove_remote(self) -> None:
        """Remove the loader, as nobody would by accident."""
        self.bare.installed = False
        self.cell(f"__import__('sys').modules.pop({REMOTE_MODULE!r})")

    def snapshot(self) -> list[Any]:
        """Every name in order, with its value's identity and repr."""
        return self.bare.ask(namespace=self.id)["names"]

    def names(self) -> set[str]:
        return {ast.literal_eval(name) for name, _, _ in self.snapshot()}

    # -- one message

    def evaluate(self, expression: str) -> Header:
        told = self.bare.ask(namespace=self.id, expression=expression)
        return _protocol.answer({"status": "ok", "user_expressions": {KEY: told}})

    def cross(self, header: Header, data: bytes = b"", **how: Any) -> tuple[Header, list[bytes]]:
        text = base64.b64encode(data).decode("ascii")
        told = self.evaluate(_shipping.expression("inline", header, text, **how))
        return told, [base64.b64decode(told.pop("data", ""), validate=True)]

    # -- one request

    def header(self, operation: str, frames: Sequence[memoryview] = (), **fields: Any) -> Header:
        wanted = {"epoch": self.epoch, "algorithm": "sha256", "chunk": CHUNK, **fields}
        return header(operation, frames, **wanted)

    def finish(self, header: Header, data: bytes = b"", **how: Any) -> tuple[Header, list[Any]]:
        """The last message of a request, and its answer: whole, or the exception it tells."""
        told, parts = self.cross(header, data, **how)
        inbox = _protocol.open_response(told)
        _protocol.add_chunk(told, inbox, 0, parts)
        if inbox.total > CHUNK:
            offsets = list(range(CHUNK, inbox.total, CHUNK))
            random.Random(header["id"]).shuffle(offsets)
            for at in offsets:
                more, parts = self.cross({**header, "op": "next_chunk", "sizes": [], "at": at})
                raise_error(more, ())
                _protocol.add_chunk(more, inbox, at, parts)
            self.forget(header)
        frames = _protocol.close_response(inbox)
        raise_error(told, frames)
        return told, frames

    def ask(
        self, operation: str, payload: _payload.Payload = _payload.EMPTY, **fields: Any
    ) -> tuple[Header, list[memoryview]]:
        """A request, in as many pieces as it takes, and its answer."""
        header = self.header(operation, payload.frames, refs=payload.refs, **fields)
        last = max(0, (payload.nbytes - 1) // CHUNK * CHUNK)
        offsets = list(range(0, last, CHUNK))
        random.Random(header["id"]).shuffle(offsets)
        for at in offsets:
            self.chunk(header, payload.frames, at)
        return self.finish(*part(header, stream(payload.frames)[last:], at=last))

    def chunk(self, header: Header, frames: Sequence[memoryview], at: int) -> None:
        data = b"".join(cut(frames, at, at + CHUNK))
        told, _ = self.cross(*part(header, data, op="chunk", at=at))
        raise_error(told, ())

    def forget(self, header: Header) -> None:
        told, parts = self.cross({**header, "op": "forget", "sizes": [], "at": 0})
        assert (told, parts) == ({}, [b""])

    # -- operations

    def hello(self, *, install: bool = True) -> Header:
        header = self.header("hello", epoch="", chunk=0)
        told, _ = self.finish(header, install=install)
        self.epoch = told["epoch"]
        return told

    def prepare(self) -> Space:
        """The handshake, which carries the loader's source only where that is new."""
        self.hello(install=not self.bare.installed)
        self.bare.installed = True
        return self

    def bind(self, **values: Any) -> None:
        self.ask("bind", _payload.encode(values, values), names=list(values))

    def fetch(self, *expressions: str) -> Any:
        _, frames = self.ask("fetch", expressions=list(expressions))
        values = _payload.decode(frames)
        return values[0] if len(expressions) == 1 else values

    def batch(self, *asked: tuple[Header, _payload.Payload], **fields: Any) -> list[Outcome]:
        """Requests that cross together; what came of each, or None where it was not done."""
        frames = [frame for _, payload in asked for frame in payload.frames]
        header = batch_header([header for header, _ in asked], frames)
        told, parts = self.finish({**header, "chunk": CHUNK, **fields}, stream(frames))
        answers = _protocol.part_batch(told, parts, [None] * len(asked))
        return [self.outcome(*pair) for pair in zip(asked, answers, strict=True)]

    def outcome(
        self, asked: tuple[Header, _payload.Payload], opened: _protocol.PartialResponse | None
    ) -> Outcome:
        if opened is None:
            return None
        told, inbox = opened.header, opened.inbox
        try:
            for at in range(inbox.received, inbox.total, CHUNK):
                more, parts = self.cross({**asked[0], "op": "next_chunk", "sizes": [], "at": at})
                raise_error(more, ())
                _protocol.add_chunk(more, inbox, at, parts)
            frames = _protocol.close_response(inbox)
            raise_error(told, frames)
        except BridgeError as error:
            return error
        return told, frames

    def kept(self) -> tuple[int, int]:
        """How many unfinished requests and unfetched answers the loader keeps for us."""
        served = f"__import__('sys').modules[{REMOTE_MODULE!r}]._served[id(globals())]"
        return self.fetch(f"len({served}.transfers.inboxes)", f"len({served}.transfers.outboxes)")


def part(header: Header, data: bytes, **fields: Any) -> tuple[Header, bytes]:
    """One message of a request, shorter than any lane's."""
    return {**header, "digest": _wire.digest("sha256", [data]), **fields}, data


REMOTE_MODULE = _shipping.loader_source()[0]
CLOUDPICKLE = str(Path(cloudpickle.__file__).parents[1])


def stream(frames: Sequence[memoryview]) -> bytes:
    return b"".join(frames)


def megabytes(count: float) -> bytes:
    return random.Random(count).randbytes(int(count * (1 << 20)))


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


class Bomb:
    """Pickles here, and raises when it is unpickled there."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.reduced = function, args

    def __reduce__(self) -> Any:
        return self.reduced


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


def to_bind(space: Space, **values: Any) -> tuple[Header, _payload.Payload]:
    payload = _payload.encode(values, values)
    return space.header("bind", payload.frames, names=list(values)), payload


REMOTE = f"__import__('sys').modules[{REMOTE_MODULE!r}]._served[id(globals())]"


@contextlib.contextmanager
def later(space: Space, seconds: float) -> Iterator[None]:
    """The loader's clock is ahead for as long as the block lasts."""
    clock = f"__import__('sys').modules[{REMOTE_MODULE!r}]"
    clocks = Space(space.bare)
    clocks.cell(f"loader = {clock}\nkept = loader.monotonic")
    clocks.cell(f"loader.monotonic = lambda: kept() + {seconds}")
    try:
        yield
    finally:
        clocks.cell("loader.monotonic = kept")
