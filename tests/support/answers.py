"""Replies of a kernel, made without a kernel, and their results in the client.

Rule: the content of an ``execute_reply`` goes in; frames or a ``BridgeError`` come out.
"""

from __future__ import annotations

import functools
import inspect
import json
import pickle
import sys
from collections.abc import Callable
from typing import Any

import pytest

from bridgehead import (
    BridgeError,
    IncompatiblePython,
    IntegrityError,
    KernelRestarted,
    MissingInKernel,
    NameNotFound,
    ProtocolError,
    RemoteError,
)
from bridgehead._protocol import request as _request
from bridgehead._protocol import response as _response
from bridgehead._protocol.payload import empty
from bridgehead._protocol.raising import raise_error
from bridgehead._protocol.request import KEY
from bridgehead._shipped.wire.header import MIME


def header(**fields: Any) -> dict[str, Any]:
    return _request.header("fetch", empty("crc32"), epoch="e", **fields)


def content_of(response: Any) -> dict[str, Any]:
    """Return the content of an execute_reply that carries this response header."""
    return entry({"status": "ok", "data": {MIME: json.dumps(response), "text/plain": ""}})


def entry(value: Any) -> dict[str, Any]:
    return {"status": "ok", "user_expressions": {KEY: value}}


def consume(content: Any, parts: list[bytes]) -> list[memoryview]:
    """Open a reply as a lane does; return its frames or raise its error."""
    response = _response.response_header(content)
    inbox = _response.open_response(response)
    _response.add_chunk(response, inbox, 0, parts)
    frames = _response.close_response(inbox)
    raise_error(response, frames)
    return frames


KINDS: dict[str, tuple[dict[str, Any], type[BridgeError], str]] = {
    "name": (
        {"kind": "name", "message": "xs", "names": ["xs"], "close": ["x"]},
        NameNotFound,
        r"^'xs' is not defined in the kernel; did you mean 'x'\?$",
    ),
    "missing": (
        {"kind": "missing", "message": "No module named 'a.b'", "module": "a.b", "where": "/py"},
        MissingInKernel,
        r"/py.*cannot import 'a\.b'.*by_value=\[a\]",
    ),
    "incompatible": (
        {"kind": "incompatible", "message": "the value carries code objects of Python 3.8"},
        IncompatiblePython,
        rf"Python 3\.8, but this program runs Python 3\.{sys.version_info[1]}",
    ),
    "integrity": (
        {"kind": "integrity", "message": "3 of 4 bytes arrived"},
        IntegrityError,
        "3 of 4 bytes arrived",
    ),
    "epoch": ({"kind": "epoch", "message": "?"}, KernelRestarted, "restarted"),
    "protocol": (
        {"kind": "protocol", "message": "unknown operation"},
        ProtocolError,
        "unknown operation",
    ),
    "unknown kind": (
        {"kind": "quantum", "message": "entangled"},
        ProtocolError,
        "entangled",
    ),
    "remote": (
        {"kind": "remote", "ename": "ValueError", "evalue": "bad", "traceback": ["a", "b"]},
        RemoteError,
        "^ValueError: bad\n\nin the kernel:\na\nb\n\nTo catch it, use ",
    ),
}

ODD: list[Any] = [
    None, True, False, 0, 1, -1, 7, 1.5, float("nan"), 2**60, 2**63, 2**64, 10**30, -(2**60),
    "", "x", "\ud800", [], [None], [[]], [[[1]]], [1, "a"], {}, {"a": None}, {"": {}},
]  # fmt: skip


def named(value: Any) -> str:
    return repr(value)[:40].encode("ascii", "replace").decode()


def odd(test: Callable[..., Any]) -> Callable[..., Any]:
    """Run a test once for each odd ``value``, as one item: a thousand items cost seconds."""

    @functools.wraps(test)
    def each(**arguments: Any) -> None:
        for value in ODD:
            try:
                test(value=value, **arguments)
            except BaseException as error:
                error.add_note(f"value: {named(value)}")
                raise

    @functools.wraps(test)
    async def each_async(**arguments: Any) -> None:
        for value in ODD:
            try:
                await test(value=value, **arguments)
            except BaseException as error:
                error.add_note(f"value: {named(value)}")
                raise

    looped = each_async if inspect.iscoroutinefunction(test) else each
    signature = inspect.signature(test)
    others = [one for one in signature.parameters.values() if one.name != "value"]
    looped.__signature__ = signature.replace(parameters=others)  # type: ignore[attr-defined]
    return looped


def is_reported(content: Any, parts: list[bytes]) -> None:
    """Check that the content raises a BridgeError that can be printed and pickled."""
    with pytest.raises(BridgeError) as caught:
        consume(content, parts)
    assert isinstance(str(caught.value), str)
    copy = pickle.loads(pickle.dumps(caught.value))
    copy.__cause__ = caught.value.__cause__  # which does not pickle, and the message names it
    assert str(copy) == str(caught.value)
