"""The remote part in bare interpreters, of every Python from 3.8 on that is found.

Rule: another interpreter evaluates the client's own expressions, without Jupyter, packages or
``site``. One process serves one Python. Every test has its own namespace in that process, and so
its own state of the remote part.
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
from bridgehead._protocol import bootstrap as _bootstrap
from bridgehead._protocol import payload as _payload
from bridgehead._protocol import response as _response
from bridgehead._protocol.raising import raise_error
from bridgehead._protocol.request import KEY, Request, batch, header
from bridgehead._shipped.wire import frames as _frames
from bridgehead._shipped.wire.frames import cut
from support.elsewhere import Python, pythons

Header = dict[str, Any]
CHUNK = 1 << 16  # bytes; small, so that little data makes many chunks

PYTHONS = pythons()

# What the remote part needs of a kernel: it evaluates an expression in a namespace and returns the
# MIME bundle of the value. This is code for Python 3.8.
BARE = """
import os, sys, traceback
from json import dumps, loads
replies = os.fdopen(os.dup(1), "w", encoding="ascii")
os.dup2(2, 1)
sys.path[:0] = sys.argv[1:]
namespaces = {}
for line in sys.stdin:
    request = loads(line)
    scope = namespaces.setdefault(request["namespace"], {"__name__": "__main__"})
    reply = {"status": "ok"}
    try:
        if "code" in request:
            exec(compile(request["code"], "<cell>", "exec"), scope)
        elif "expression" in request:
            reply["data"] = eval(request["expression"], scope)._repr_mimebundle_()
        else:
            reply["names"] = [
                [repr(name), id(value), "" if name == "__builtins__" else repr(value)]
                for name, value in scope.items()
            ]
    except BaseException as error:
        reply = {"status": "error", "ename": type(error).__name__, "evalue": str(error)}
        reply["traceback"] = traceback.format_exc().splitlines()
    print(dumps(reply), file=replies, flush=True)
"""


class Bare:
    """A process that acts as a kernel, over its stdin and stdout."""

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
        self.installed = False  # whether the remote part is installed
        # If the process hangs, this ends it, and with it the wait for its reply.
        self.watchdog = threading.Timer(600, self.process.kill)
        self.watchdog.daemon = True
        self.watchdog.start()

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            pytest.fail(f"Python {self.python} died: {self.errors.read().decode(errors='replace')}")
        return json.loads(line)

    def end(self) -> None:
        """Have the process exit, and do not wait for that; ``close`` does."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def close(self) -> None:
        assert self.process.stdout is not None
        self.end()
        self.process.stdout.close()
        self.process.wait(60)
        self.watchdog.cancel()
        self.errors.close()


# The header and frames of a response, the exception it raised, or None if it did not run.
Outcome = tuple[Header, list[memoryview]] | BridgeError | None


class Space:
    """One namespace in a bare kernel, and a client of it on the inline lane."""

    def __init__(self, bare: Bare) -> None:
        self.bare = bare
        self.python = bare.python
        self.id = uuid.uuid4().hex
        self.epoch = ""

    # -- the user of the kernel

    def cell(self, code: str) -> None:
        reply = self.bare.ask(namespace=self.id, code=code)
        assert reply["status"] == "ok", reply

    def remove_remote(self) -> None:
        """Remove the remote module, as a user may do on purpose."""
        self.bare.installed = False
        self.cell(f"__import__('sys').modules.pop({REMOTE_MODULE!r})")

    def snapshot(self) -> list[Any]:
        """Return every name in order, with the identity and the repr of its value."""
        return self.bare.ask(namespace=self.id)["names"]

    def names(self) -> set[str]:
        return {ast.literal_eval(name) for name, _, _ in self.snapshot()}

    # -- one message

    def evaluate(self, expression: str) -> Header:
        reply = self.bare.ask(namespace=self.id, expression=expression)
        return _response.response_header({"status": "ok", "user_expressions": {KEY: reply}})

    def cross(self, header: Header, data: bytes = b"", **how: Any) -> tuple[Header, list[bytes]]:
        text = base64.b64encode(data).decode("ascii")
        response = self.evaluate(_bootstrap.expression("inline", header, text, **how))
        return response, [base64.b64decode(response.pop("data", ""), validate=True)]

    # -- one request

    def header(self, operation: str, frames: Sequence[memoryview] = (), **fields: Any) -> Header:
        algorithm = fields.pop("algorithm", "sha256")
        wanted = {"epoch": self.epoch, "chunk": CHUNK, **fields}
        return header(operation, _payload.Payload(frames).signed(algorithm), **wanted)

    def finish(self, header: Header, data: bytes = b"", **how: Any) -> tuple[Header, list[Any]]:
        """Send the last message of a request; return its whole response or raise its error."""
        response, parts = self.cross(header, data, **how)
        inbox = _response.open_response(response)
        _response.add_chunk(response, inbox, 0, parts)
        if inbox.total > CHUNK:
            offsets = list(range(CHUNK, inbox.total, CHUNK))
            random.Random(header["id"]).shuffle(offsets)
            for at in offsets:
                chunk, parts = self.cross({**header, "op": "next_chunk", "sizes": [], "at": at})
                raise_error(chunk, ())
                _response.add_chunk(chunk, inbox, at, parts)
            self.forget(header)
        frames = _response.close_response(inbox)
        raise_error(response, frames)
        return response, frames

    def ask(
        self, operation: str, payload: _payload.Payload = _payload.EMPTY, **fields: Any
    ) -> tuple[Header, list[memoryview]]:
        """Send a request, in as many chunks as it needs; return its response."""
        header = self.header(operation, payload.frames, refs=payload.refs, **fields)
        last = max(0, (payload.nbytes - 1) // CHUNK * CHUNK)
        offsets = list(range(0, last, CHUNK))
        random.Random(header["id"]).shuffle(offsets)
        for at in offsets:
            self.chunk(header, payload.frames, at)
        return self.finish(*part(header, stream(payload.frames)[last:], at=last))

    def chunk(self, header: Header, frames: Sequence[memoryview], at: int) -> None:
        data = b"".join(cut(frames, at, at + CHUNK))
        response, _ = self.cross(*part(header, data, op="chunk", at=at))
        raise_error(response, ())

    def forget(self, header: Header) -> None:
        response, parts = self.cross({**header, "op": "forget", "sizes": [], "at": 0})
        assert (response, parts) == ({}, [b""])

    # -- operations

    def hello(self, *, install: bool = True) -> Header:
        header = self.header("hello", epoch="", chunk=0)
        response, _ = self.finish(header, install=install)
        self.epoch = response["epoch"]
        return response

    def prepare(self) -> Space:
        """Shake hands; send the source of the remote part only if this kernel lacks it."""
        self.hello(install=not self.bare.installed)
        self.bare.installed = True
        return self

    def bind(self, **values: Any) -> None:
        self.ask("bind", _payload.encode(values, values), names=list(values))

    def fetch(self, *expressions: str) -> Any:
        _, frames = self.ask("fetch", expressions=list(expressions))
        values = _payload.decode(frames)
        return values[0] if len(expressions) == 1 else values

    def batch(self, *requests: tuple[Header, _payload.Payload], **fields: Any) -> list[Outcome]:
        """Send requests in one message; return their outcomes, None for one that did not run."""
        each = [Request(header, payload) for header, payload in requests]
        whole = batch(each, "sha256", chunk=CHUNK, **fields)
        response, parts = self.finish(whole.header, stream(whole.frames))
        responses = _response.split_batch(response, parts, each)
        return [self.outcome(*pair) for pair in zip(requests, responses, strict=True)]

    def outcome(
        self, request: tuple[Header, _payload.Payload], opened: _response.Response | BridgeError
    ) -> Outcome:
        if isinstance(opened, BridgeError):
            return None if isinstance(opened, _response.NotServed) else opened
        response, inbox = opened.header, opened.inbox
        try:
            for at in range(inbox.received, inbox.total, CHUNK):
                next_chunk = {**request[0], "op": "next_chunk", "sizes": [], "at": at}
                chunk, parts = self.cross(next_chunk)
                raise_error(chunk, ())
                _response.add_chunk(chunk, inbox, at, parts)
            frames = _response.close_response(inbox)
            raise_error(response, frames)
        except BridgeError as error:
            return error
        return response, frames

    def kept(self) -> tuple[int, int]:
        """Count the unfinished requests and unfetched responses that the remote part keeps."""
        served = f"__import__('sys').modules[{REMOTE_MODULE!r}]._remotes[id(globals())]"
        return self.fetch(f"len({served}.transfers.inboxes)", f"len({served}.transfers.outboxes)")


def part(header: Header, data: bytes, **fields: Any) -> tuple[Header, bytes]:
    """Return one message of a request, shorter than a lane's."""
    return {**header, "digest": _frames.digest("sha256", [data]), **fields}, data


REMOTE_MODULE = _bootstrap.remote_source()[0]
CLOUDPICKLE = str(Path(cloudpickle.__file__).parents[1])


def stream(frames: Sequence[memoryview]) -> bytes:
    return b"".join(frames)


def megabytes(count: float) -> bytes:
    return random.Random(count).randbytes(int(count * (1 << 20)))


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


class Bomb:
    """An object that pickles in the client and raises when the kernel unpickles it."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.reduced = function, args

    def __reduce__(self) -> Any:
        return self.reduced


# Raises KeyboardInterrupt before one bytecode instruction of the remote module: the nth of the
# functions in ``where``. ``left`` stays positive if they execute fewer instructions.
INTERRUPT = """
import sys
sys._getframe().f_trace_opcodes = True  # Python 3.12 needs this before settrace
class Interrupt:
    def __init__(self, left, where):
        self.left, self.where = left, where
    def __call__(self, frame, event, arg):
        if frame.f_code.co_filename != "<bridgehead remote>":
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and frame.f_code.co_name in self.where:
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self
"""


def left(tracer: Space) -> bool:
    """Return whether the request ended before the interrupt of ``INTERRUPT`` came."""
    tracer.cell("left = interrupt.left > 0")
    return ["'left'", "True"] in [[name, text] for name, _, text in tracer.snapshot()]


def to_bind(space: Space, **values: Any) -> tuple[Header, _payload.Payload]:
    payload = _payload.encode(values, values)
    return space.header("bind", payload.frames, names=list(values)), payload


REMOTE = f"__import__('sys').modules[{REMOTE_MODULE!r}]._remotes[id(globals())]"


@contextlib.contextmanager
def later(space: Space, seconds: float) -> Iterator[None]:
    """Set the clock of the remote module ahead until the block ends."""
    module = f"__import__('sys').modules[{REMOTE_MODULE!r}]"
    clocks = Space(space.bare)
    clocks.cell(f"module = {module}\nkept = module.monotonic")
    clocks.cell(f"module.monotonic = lambda: kept() + {seconds}")
    try:
        yield
    finally:
        clocks.cell("module.monotonic = kept")
