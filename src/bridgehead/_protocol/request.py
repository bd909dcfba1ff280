"""A request: its header, its payload, and the message that carries it.

Rule: this file makes the header of a request and the content of its message. A header is written
once; what differs in a message is in a header of its own, made from it. Sans-I/O: this file uses
no socket, no event loop and no bridge. ``payload`` makes the frames, ``response`` reads the
response.
"""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bridgehead._protocol.payload import EMPTY, Payload
from bridgehead._shipped.wire.header import BATCHABLE, ENTRY, PROTOCOL, PYTHON, RequestHeader

_ID_PREFIX = f"{uuid.uuid4().hex}-"  # makes the ids of requests unique across processes
_numbers = itertools.count()
KEY = ENTRY


class OutputHandler(Protocol):
    """Takes the outputs of a request that runs the caller's code.

    Attributes:
        lasting: whether outputs follow the end of the request, until ``Dispatcher.unlisten``.
    """

    lasting: bool

    def feed(self, message: Any) -> object:
        """Take one iopub message of the request."""

    def reply(self, request: str) -> object:
        """Take the id of the message that was replied to."""


@dataclass(slots=True, eq=False)
class Request:
    """One operation on its way to the kernel.

    Attributes:
        limit: the most bytes that the response may have; None for any number.
        report: called with bytes done and bytes in all, as chunks arrive; an exception from it
            ends the transfer.
        trusted: whether an exception in the response may be unpickled; not by default.
        unread: whether the response goes on to another kernel and is not read in this process.
        delivered: whether the remote part has the frames already, from a broadcast.
        outputs: takes the outputs of the message that has it run; None if no caller wants them.
    """

    header: RequestHeader
    payload: Payload = EMPTY
    limit: int | None = None
    report: Callable[[int, int], object] = lambda done, total: None
    trusted: bool = False
    unread: bool = False
    delivered: bool = False
    outputs: OutputHandler | None = None

    @property
    def frames(self) -> Sequence[memoryview]:
        return self.payload.frames

    @property
    def nbytes(self) -> int:
        return sum(self.header["sizes"])

    @property
    def subshell(self) -> str | None:
        """The subshell of the kernel that serves the request; None for the main thread."""
        shell = self.header.get("subshell")
        return None if shell is None else shell["id"]


def execute_content(expression: str) -> dict[str, Any]:
    """Return the content of the ``execute_request`` that evaluates an expression unseen."""
    return {
        "code": "",
        "silent": True,
        "store_history": False,
        "user_expressions": {KEY: expression},
        "allow_stdin": False,
        "stop_on_error": False,
    }


def header(operation: str, payload: Payload = EMPTY, *, epoch: str, **fields: Any) -> RequestHeader:
    """Return the header of a whole request, whose payload is signed.

    A field that is None is left out. For each message a lane makes a header of its own, with
    ``at`` and the part of the digest that covers the message.
    """
    whole: Any = {
        "protocol": PROTOCOL,
        "op": operation,
        "id": f"{_ID_PREFIX}{os.getpid():x}-{next(_numbers):x}",  # the pid: of a forked child
        "epoch": epoch,
        "python": PYTHON,
        "sizes": [frame.nbytes for frame in payload.frames],
        "digest": payload.digest,
        "at": 0,
        "chunk": 0,
        **{name: value for name, value in fields.items() if value is not None},
    }
    made: RequestHeader = whole
    return made


def may_batch(header: Mapping[str, Any]) -> bool:
    """Return whether a request may cross in a batch: it evaluates no expression of the user.

    An expression may take long, and would delay the responses to the other requests. Pickling and
    unpickling may still run code of the user's classes.
    """
    if header["op"] == "fetch":
        return all(expression.isidentifier() for expression in header["expressions"])
    return header["op"] in BATCHABLE and not header.get("refs")


def batch(requests: Sequence[Request], algorithm: str, **fields: Any) -> Request:
    """Return one request that stands for several small ones; ``fields`` go into its header."""
    frames = [frame for request in requests for frame in request.frames]
    headers = [request.header for request in requests]
    payload = Payload(frames).signed(algorithm)
    whole = header("batch", payload, epoch=headers[0]["epoch"], requests=headers, **fields)
    return Request(whole, payload)
