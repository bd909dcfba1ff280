"""A request as text: the header and the ``execute_request`` that carries it.

Rule: everything that is written before a request is sent, as text. No I/O: this file knows no
socket, no event loop and no bridge. What comes back is ``response``'s; the frames are made by
``payload``.
"""

from __future__ import annotations

import itertools
import os
import sys
import uuid
from collections.abc import Sequence
from typing import Any

from bridgehead._shipped.wire import frames as _wire
from bridgehead._shipped.wire.header import BATCHABLE, PROTOCOL, Header

PYTHON = list(sys.version_info[:2])
_OURS = f"{uuid.uuid4().hex}-"  # a request's id is never another's, in whatever process
_requests = itertools.count()
KEY = "bridgehead"  # of the one entry in user_expressions


def execute_content(expression: str) -> dict[str, Any]:
    """The content of the ``execute_request`` that evaluates an expression, unseen by anyone."""
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
    """The header of a whole request; a lane adds ``at`` and ``piece`` for each message, and
    leaves of the digest what is that message's.

    A field that is None is left out; ``digest`` spares computing it again.
    """
    return {
        "protocol": PROTOCOL,
        "op": operation,
        "id": f"{_OURS}{os.getpid():x}-{next(_requests):x}",
        "epoch": epoch,
        "python": PYTHON,
        "sizes": [frame.nbytes for frame in frames],
        "digest": digest or _wire.digest(algorithm, frames),
        "at": 0,
        "chunk": 0,
        **{name: value for name, value in fields.items() if value is not None},
    }


def may_batch(header: Header) -> bool:
    """Whether a request may cross together with others: it runs no code of the user's.

    One that may take long would keep the others' answers waiting.
    """
    if header["op"] == "fetch":
        return all(expression.isidentifier() for expression in header["expressions"])
    return header["op"] in BATCHABLE and not header.get("refs")


def batch_header(headers: Sequence[Header], frames: Sequence[memoryview]) -> Header:
    """The header of several small requests that cross together."""
    algorithm = headers[0]["digest"].partition(":")[0]
    return header(
        "batch", frames, epoch=headers[0]["epoch"], algorithm=algorithm, requests=list(headers)
    )
