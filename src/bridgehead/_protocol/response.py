"""The near side of the protocol, as pure thought: headers and answers.

Rule: sans-IO. This file knows no socket, no event loop and no bridge; it turns an operation
into text, and an answer into frames or an exception. What both sides must agree on (frames,
digests, pieces) is imported from the loader's own ``_wire.py``.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from bridgehead._errors import (
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
    UnsupportedKernel,
    UntrustedPayload,
)
from bridgehead._protocol.bootstrap import loader_source
from bridgehead._shipped.wire import frames as _wire
from bridgehead._shipped.wire import pickling as _codec
from bridgehead._shipped.wire.digest import Buffer, digest_of
from bridgehead._shipped.wire.errors import Broken, TooLarge
from bridgehead._shipped.wire.frames import cut
from bridgehead._shipped.wire.header import JOINS, MIME, PROBE, PROTOCOL, Header
from bridgehead._shipped.wire.transfer import Held, Inbox

__all__ = ["PROBE", "Buffer", "Header", "Inbox", "cut", "digest_of"]

PYTHON = list(sys.version_info[:2])
_OURS = f"{uuid.uuid4().hex}-"  # a request's id is never another's, in whatever process
_requests = itertools.count()
KEY = "bridgehead"  # of the one entry in user_expressions
TOLD = 1 << 20  # bytes that an error may bring along; a caller's limit is for values


# ---------------------------------------------------------------- the request as text


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
        "piece": 0,
        **{name: value for name, value in fields.items() if value is not None},
    }


def joins(header: Header) -> bool:
    """Whether a request may cross together with others: it runs no code of the user's.

    One that may take long would keep the others' answers waiting.
    """
    if header["op"] == "fetch":
        return all(expression.isidentifier() for expression in header["expressions"])
    return header["op"] in JOINS and not header.get("refs")


def batch_header(headers: Sequence[Header], frames: Sequence[memoryview]) -> Header:
    """The header of several small requests that cross together."""
    algorithm = headers[0]["digest"].partition(":")[0]
    return header(
        "batch", frames, epoch=headers[0]["epoch"], algorithm=algorithm, requests=list(headers)
    )


# ---------------------------------------------------------------- the answer


@dataclass(frozen=True, slots=True)
class Opened:
    """An answer of which a first part is here; ``parts`` of it are not in the inbox yet."""

    told: Header
    inbox: Inbox | Held
    parts: list[Buffer] = field(default_factory=list)

    @property
    def arrived(self) -> int:
        """Bytes of the answer that are here."""
        return self.inbox.received + sum(memoryview(part).nbytes for part in self.parts)


def answer(content: Mapping[str, Any]) -> Header:
    """The answer's header out of an ``execute_reply``'s content.

    Raises:
        KernelRestarted: the loader is not there (any more).
        RemoteError: an interrupt struck in the kernel outside the loader.
        UnsupportedKernel: the kernel evaluated nothing.
        ProtocolError: what came back is no answer of the loader's.
    """
    content = as_object(content)
    if content.get("status") == "error":
        raise remote_error(content)
    entry = as_object(content.get("user_expressions")).get(KEY)
    if not isinstance(entry, dict):
        raise UnsupportedKernel("the kernel evaluates no user_expressions")
    if entry.get("status") == "error":
        error = remote_error(entry)
        if error.ename == "KeyError" and loader_source()[0] in error.evalue:
            raise KernelRestarted("the kernel was restarted, or its loader was removed")
        raise error
    text = as_object(entry.get("data")).get(MIME)
    if not isinstance(text, str):
        raise UnsupportedKernel("the kernel returns no value of a user_expression")
    return parse(text)


def parse(text: str) -> Header:
    """An answer's header out of its text.

    Raises:
        ProtocolError: it is none.
    """
    try:
        told = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise ProtocolError(f"the answer's header is no JSON: {error}") from error
    if not isinstance(told, dict):
        raise ProtocolError("the answer's header is no JSON object")
    return told


def remote_error(told: Mapping[str, Any]) -> RemoteError:
    """The error that a kernel tells of."""
    name = as_text(told.get("ename"))
    if name.startswith("<class '"):  # xeus-python tells of the class what Python does
        name = name[8:-2].rpartition(".")[2]
    return RemoteError(name, as_text(told.get("evalue")), as_strings(told.get("traceback")))


def as_object(value: Any) -> Mapping[str, Any]:
    """``value``, or an empty object where something else stands."""
    return value if isinstance(value, Mapping) else {}


def as_text(value: Any) -> str:
    """A string or a number as text; of what may be nested too deeply to be shown, the type."""
    return f"<{type(value).__name__}>" if isinstance(value, (list, tuple, dict)) else str(value)


def as_strings(value: Any) -> list[str]:
    """The items of a list as text; none where something else stands."""
    return [as_text(item) for item in value] if isinstance(value, (list, tuple)) else []


GREETING = {
    "epoch": str,
    "python": [int],
    "executable": str,
    "versions": {str: str},
    "pid": int,
    "cwd": str,
    "orphans": [str],
    "direct": (str, None),
}
NAME = {"name": str, "type": str, "shape": ([int], None), "len": (int, None), "bytes": (int, None)}


def understood(value: Any, kind: Any, operation: str) -> Any:
    """``value``, which an answer tells, if it is of the kind that it must be.

    A kind is a type, None, a tuple of kinds of which one must fit, ``[kind]`` for a list of
    such, ``{str: kind}`` for an object of such, or the fields that an object must have.

    Raises:
        ProtocolError: it is of another.
    """
    if not _fits(value, kind):
        raise ProtocolError(f"the answer to {operation} is not understood")
    return value


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, tuple):
        return any(_fits(value, one) for one in kind)
    if isinstance(kind, list):
        return type(value) is list and all(_fits(item, kind[0]) for item in value)
    if not isinstance(kind, dict):
        return value is None if kind is None else type(value) is kind
    if type(value) is not dict:
        return False
    if str in kind:
        return all(_fits(item, kind[str]) for item in value.values())
    return all(_fits(value.get(field), one) for field, one in kind.items())


def greeting(told: Header) -> Header:
    """The answer to the handshake.

    Raises:
        ProtocolError: it lacks something.
    """
    understood(told, GREETING, "the handshake")
    if len(told["python"]) != len(sys.version_info[:3]):
        raise ProtocolError("the handshake tells no version of Python")
    return told


def open_answer(told: Header, limit: int | None = None) -> Inbox:
    """An inbox for an answer's frames.

    Raises:
        ProtocolError: the header names no frames.
        PayloadTooLarge: it names more than ``limit`` bytes; no memory was taken for them.
    """
    if limit is not None and "error" in told:
        limit = max(limit, TOLD)
    try:
        return Inbox(told["sizes"], limit)
    except TooLarge as error:
        raise too_large(error.nbytes, limit) from None
    except (KeyError, TypeError, Broken) as error:
        raise ProtocolError(f"the answer's header names no frames: {error!r}") from error


def too_large(nbytes: object, limit: int | None) -> PayloadTooLarge:
    """The error for more than ``max_bytes``."""
    size = nbytes if isinstance(nbytes, int) else 0
    return PayloadTooLarge(
        f"it has {size:,} bytes, and max_bytes allows {limit or 0:,}; nothing of it crossed",
        bytes=size,
    )


def add_piece(told: Header, inbox: Inbox, at: int, parts: Iterable[Buffer]) -> None:
    """Take another piece of an answer, checked against the digest that ``told`` has of it.

    May be called in any thread, where an event loop's gets its turns.

    Raises:
        ReplyLost: the piece is not what was signed.
    """
    try:
        inbox.write(at, parts, as_text(told.get("digest")))
    except Broken as broken:
        raise ReplyLost(f"the kernel's answer is damaged: {broken}") from None


def close_answer(inbox: Inbox) -> list[memoryview]:
    """The frames of an answer whose last piece arrived.

    Raises:
        ReplyLost: something is missing.
    """
    try:
        return inbox.take()
    except Broken as broken:
        raise ReplyLost(f"the kernel's answer is damaged: {broken}") from None


def part_batch(
    told: Header, frames: Sequence[memoryview], limits: Sequence[int | None]
) -> list[Opened | BridgeError | None]:
    """The answers of a batch, each with the part of its frames that came along.

    None for a request that was not done, because the answers before filled the message; an
    error for one that is not as it must be.

    Raises:
        ProtocolError: it is no answer to so many requests.
    """
    answers = told.get("answers")
    if not isinstance(answers, list) or len(answers) != len(limits):
        raise ProtocolError(f"the kernel did not answer {len(limits)} requests one by one")
    found: list[Opened | BridgeError | None] = []
    at = 0
    for one, limit in zip(answers, limits, strict=True):
        if not isinstance(one, dict):
            raise ProtocolError("an answer in a batch is no JSON object")
        if one.get("again") and found:  # the first was done: else it would come again for ever
            found.append(None)
            continue
        count = one.get("parts")
        if type(count) is not int or not 0 <= count <= len(frames) - at:
            raise ProtocolError("the answers of a batch do not add up to its frames")
        try:
            inbox = open_answer(one, limit)
            add_piece(one, inbox, 0, frames[at : at + count])
            found.append(Opened(one, inbox))
        except BridgeError as error:
            found.append(error)
        at += count
    return found


def raise_error(
    told: Header,
    frames: Sequence[memoryview],
    limit: int | None = None,
    *,
    trusted: bool = True,
) -> None:
    """Raise what an answer tells of as the exception of this side; return if it tells none.

    ``limit`` is the ``max_bytes`` that was asked for; ``trusted`` says that the exception that
    was raised over there may be unpickled.
    """
    error = told.get("error")
    if error is None:
        return
    if not isinstance(error, dict):
        raise ProtocolError("the answer's error is no JSON object")
    kind, message = error.get("kind"), as_text(error.get("message"))
    if kind == "remote":
        _raise_remote(error, frames if trusted else ())
    if kind == "name":
        names, close = as_strings(error.get("names")), as_strings(error.get("close"))
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
        listed = ", ".join(map(repr, names))
        raise NameNotFound(f"no {listed} in the kernel{hint}", names=names)
    if kind == "missing":
        module, where = as_text(error.get("module")), error.get("where")
        there = f" ({as_text(where)})" if where else ""
        root = module.partition(".")[0]
        ship = f", or ship your own module with by_value=[{root}]" if root != "cloudpickle" else ""
        raise MissingInKernel(
            f"the kernel{there} cannot import {module!r}: {message}. Install it there{ship}",
            module=module,
        )
    if kind == "incompatible":
        raise IncompatiblePython(
            f"{message}, and this is Python {PYTHON[0]}.{PYTHON[1]}; only data crosses"
        )
    if kind == "large":
        raise too_large(error.get("bytes"), limit)
    if kind == "unsupported":
        raise NotSupported(message)
    if kind == "untrusted":
        raise UntrustedPayload(
            f"{message}; only data is trusted: allow= or trust='pickle' would open it",
            type=as_text(error.get("type")),
        )
    if kind == "lost":
        raise ReplyLost(f"the connection broke, and with it the answer: {message}")
    if kind == "integrity":
        raise IntegrityError(f"the kernel refused the request: {message}")
    if kind == "epoch":
        raise KernelRestarted("the kernel was restarted since the last call")
    raise ProtocolError(message)


def _raise_remote(error: Header, frames: Sequence[memoryview]) -> NoReturn:
    remote = remote_error(error)
    cause = None
    if frames and error.get("code_of") in (None, PYTHON):
        try:
            cause = _codec.decode(frames)
        except Exception:  # noqa: BLE001 - its class doesn't exist here: the text must do
            cause = None
    raise remote from cause if isinstance(cause, BaseException) else None
