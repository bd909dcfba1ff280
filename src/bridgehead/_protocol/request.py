"""The header of a request, and the message that carries it.

Rule: this file makes the header of a request and the content of its message. A lane adds a few
fields for each message. Sans-I/O: this file uses no socket, no event loop and no bridge.
``payload`` makes the frames, and ``response`` reads the response.
"""

from __future__ import annotations

import itertools
import os
import sys
import uuid
from collections.abc import Sequence
from typing import Any

from bridgehead._shipped.wire.frames import digest as digest_frames
from bridgehead._shipped.wire.header import BATCHABLE, PROTOCOL, Header

PYTHON = list(sys.version_info[:2])
_ID_PREFIX = f"{uuid.uuid4().hex}-"  # makes the ids of requests unique across processes
_numbers = itertools.count()
KEY = "bridgehead"  # the name of the one entry in user_expressions


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


def header(
    operation: str,
    frames: Sequence[memoryview],
    *,
    epoch: str,
    algorithm: str,
    digest: str | None = None,
    **fields: Any,
) -> Header:
    """Return the header of a whole request.

    For each message a lane sets ``at`` and ``chunk``, and reduces the digest to the part that
    covers the message. A field that is None is left out. Pass ``digest`` if it is known, so that
    it is not computed again.
    """
    return {
        "protocol": PROTOCOL,
        "op": operation,
        "id": f"{_ID_PREFIX}{os.getpid():x}-{next(_numbers):x}",  # the pid: of a forked child
        "epoch": epoch,
        "python": PYTHON,
        "sizes": [frame.nbytes for frame in frames],
        "digest": digest or digest_frames(algorithm, frames),
        "at": 0,
        "chunk": 0,
        **{name: value for name, value in fields.items() if value is not None},
    }


def may_batch(header: Header) -> bool:
    """Return whether a request may cross in a batch: it evaluates no expression of the user.

    An expression may take long, and would delay the responses to the other requests. Pickling and
    unpickling may still run code of the user's classes.
    """
    if header["op"] == "fetch":
        return all(expression.isidentifier() for expression in header["expressions"])
    return header["op"] in BATCHABLE and not header.get("refs")


def batch_header(headers: Sequence[Header], frames: Sequence[memoryview]) -> Header:
    """Return the header of a batch: several small requests in one message."""
    algorithm = headers[0]["digest"].partition(":")[0]
    return header(
        "batch", frames, epoch=headers[0]["epoch"], algorithm=algorithm, requests=list(headers)
    )
