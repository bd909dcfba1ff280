"""A response: its header, and the frames that arrive with it.

Rule: sans-I/O. This file knows no socket, no event loop and no bridge; it turns what a kernel
sent into frames, checked against their digests. Requests are ``request``'s, and the errors that
a response reports ``raising``'s. What both ends must agree on (frames, digests, chunks) is
imported from ``_shipped.wire``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bridgehead._errors import (
    BridgeError,
    KernelRestarted,
    ProtocolError,
    ReplyLost,
    UnsupportedKernel,
)
from bridgehead._protocol.bootstrap import loader_source
from bridgehead._protocol.raising import as_object, as_text, remote_error, too_large
from bridgehead._protocol.request import KEY
from bridgehead._shipped.wire.digest import Buffer, digest_of
from bridgehead._shipped.wire.errors import TooLarge, WireError
from bridgehead._shipped.wire.frames import cut
from bridgehead._shipped.wire.header import MIME, PROBE, Header
from bridgehead._shipped.wire.transfer import CompleteTransfer, Inbox

__all__ = ["PROBE", "Buffer", "Header", "Inbox", "cut", "digest_of"]

TOLD = 1 << 20  # bytes that an error may bring along; a caller's limit is for values


@dataclass(frozen=True, slots=True)
class PartialResponse:
    """An answer of which a first part is here; ``parts`` of it are not in the inbox yet."""

    header: Header
    inbox: Inbox | CompleteTransfer
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


def open_response(told: Header, limit: int | None = None) -> Inbox:
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
    except (KeyError, TypeError, WireError) as error:
        raise ProtocolError(f"the answer's header names no frames: {error!r}") from error


def add_chunk(told: Header, inbox: Inbox, at: int, parts: Iterable[Buffer]) -> None:
    """Take another piece of an answer, checked against the digest that ``header`` has of it.

    May be called in any thread, where an event loop's gets its turns.

    Raises:
        ReplyLost: the piece is not what was signed.
    """
    try:
        inbox.write(at, parts, as_text(told.get("digest")))
    except WireError as broken:
        raise ReplyLost(f"the kernel's answer is damaged: {broken}") from None


def close_response(inbox: Inbox) -> list[memoryview]:
    """The frames of an answer whose last piece arrived.

    Raises:
        ReplyLost: something is missing.
    """
    try:
        return inbox.take()
    except WireError as broken:
        raise ReplyLost(f"the kernel's answer is damaged: {broken}") from None


def part_batch(
    told: Header, frames: Sequence[memoryview], limits: Sequence[int | None]
) -> list[PartialResponse | BridgeError | None]:
    """The answers of a batch, each with the part of its frames that came along.

    None for a request that was not done, because the answers before filled the message; an
    error for one that is not as it must be.

    Raises:
        ProtocolError: it is no answer to so many requests.
    """
    answers = told.get("answers")
    if not isinstance(answers, list) or len(answers) != len(limits):
        raise ProtocolError(f"the kernel did not answer {len(limits)} requests one by one")
    found: list[PartialResponse | BridgeError | None] = []
    at = 0
    for one, limit in zip(answers, limits, strict=True):
        if not isinstance(one, dict):
            raise ProtocolError("an answer in a batch is no JSON object")
        if one.get("retry") and found:  # the first was done: else it would come again for ever
            found.append(None)
            continue
        count = one.get("parts")
        if type(count) is not int or not 0 <= count <= len(frames) - at:
            raise ProtocolError("the answers of a batch do not add up to its frames")
        try:
            inbox = open_response(one, limit)
            add_chunk(one, inbox, 0, frames[at : at + count])
            found.append(PartialResponse(one, inbox))
        except BridgeError as error:
            found.append(error)
        at += count
    return found
