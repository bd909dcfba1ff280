"""The header of a response, and its frames.

Rule: sans-I/O. This file uses no socket, no event loop and no bridge; it turns what a kernel
sent into frames, checked against their digests. ``request`` makes requests, and ``raising``
raises the errors that a response reports. What both ends must agree on (frames, digests, chunks)
is imported from ``_shipped.wire``.
"""

from __future__ import annotations

import base64
import binascii
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from struct import unpack_from
from typing import Any

from bridgehead._errors import (
    BridgeError,
    DecodeError,
    KernelRestarted,
    ProtocolError,
    ReplyLost,
    UnsupportedKernel,
)
from bridgehead._protocol.bootstrap import remote_source
from bridgehead._protocol.formatting import line
from bridgehead._protocol.raising import as_object, as_text, remote_error, too_large
from bridgehead._protocol.request import KEY, Request
from bridgehead._protocol.results import Detail, Name, Names
from bridgehead._shipped.wire.collector import PausedCollector
from bridgehead._shipped.wire.digest import Buffer
from bridgehead._shipped.wire.errors import TooLarge, WireError
from bridgehead._shipped.wire.header import MAX_NAMES, MIME, ResponseHeader, fits, kinds
from bridgehead._shipped.wire.transfer import Inbox

# Characters of a response header. The inline lane puts a chunk in it, 1.4 MB of base64; a list of
# 100,000 names takes 10 MB.
HEADER_LIMIT = 1 << 25
MAX_PREVIEW = 200  # characters
MAX_TEXT = 2000  # characters of the text of a closer look
MAX_TABLE = 1000  # cells of its table
MAX_CELL = 100  # characters
MAX_PICTURE = 1 << 20  # bytes
MAX_SIDE = 1000  # pixels: a picture of few bytes may have billions of them
MAX_COUNT = 1 << 63  # no shape, length or size is larger; Python's arithmetic takes any
MAX_SIDES = 100  # of a shape
PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"  # the width and the height follow
ERROR_LIMIT = 1 << 20  # bytes that an error may have; the caller's max_bytes is for values
NO_SUBSHELL = "UnknownSubshellError"  # the name of ipykernel's error
_RESPONSE = kinds(ResponseHeader)


class NotServed(BridgeError):
    """The kernel did not do a request of a batch; the queue sends it again, with the next one."""


class SubshellDeleted(BridgeError):
    """The kernel has no subshell of the request's id any more; nothing was done."""


@dataclass(slots=True, eq=False)
class Response:
    """The response to a request, or the beginning of it.

    Attributes:
        request: the request as its lane sent it.
        inbox: what has arrived of the frames, and been checked; None if they came whole.
        parts: what has arrived too, but is not in the inbox yet.
        frames: the frames, when all have arrived.
        lane: the name of the lane that carried the request.
    """

    header: ResponseHeader
    request: Request
    inbox: Inbox | None
    parts: list[Buffer] = field(default_factory=list)
    frames: list[memoryview] = field(default_factory=list)
    lane: str = ""

    @property
    def arrived(self) -> int:
        """Bytes of the response that have arrived."""
        if self.inbox is None:
            return sum(frame.nbytes for frame in self.frames)
        return self.inbox.received + sum(memoryview(part).nbytes for part in self.parts)

    @property
    def is_partial(self) -> bool:
        """Whether a part of it is still in the kernel, or not checked yet."""
        return self.inbox is not None and self.inbox.received < self.inbox.total


def check_subshell(content: Mapping[str, Any]) -> None:
    """Raise ``SubshellDeleted`` if the reply says that the subshell of its request is unknown.

    This is for requests to a subshell. A reply that says so of another request makes it up.
    """
    content = as_object(content)
    if content.get("status") == "error" and content.get("ename") == NO_SUBSHELL:
        raise SubshellDeleted(as_text(content.get("evalue")))


def response_header(content: Mapping[str, Any]) -> ResponseHeader:
    """Return the response header from the content of an ``execute_reply``.

    Raises:
        KernelRestarted: the remote module is not in the kernel, or not any more.
        RemoteError: an interrupt arrived in the kernel outside the remote module, or the kernel
            refused the message.
        UnsupportedKernel: the kernel evaluated nothing.
        ProtocolError: the reply is no response of the remote part.
    """
    content = as_object(content)
    if content.get("status") == "error":
        raise remote_error(content)
    entry = as_object(content.get("user_expressions")).get(KEY)
    if not isinstance(entry, dict):
        raise UnsupportedKernel("the kernel does not evaluate user_expressions")
    if entry.get("status") == "error":
        error = remote_error(entry)
        if error.ename == "KeyError" and remote_source()[0] in error.evalue:
            raise KernelRestarted("the kernel was restarted, or the remote part was removed")
        raise error
    text = as_object(entry.get("data")).get(MIME)
    if not isinstance(text, str):
        raise UnsupportedKernel("the kernel does not return the value of a user_expression")
    return parse_header(text)


def parse_header(text: str) -> ResponseHeader:
    """Return the response header from its text.

    Raises:
        ProtocolError: the text is no header.
    """
    if len(text) > HEADER_LIMIT:
        raise ProtocolError(
            f"the response header has {len(text):,} characters, more than {HEADER_LIMIT:,}"
        )
    try:
        with PausedCollector(len(text)):
            header: ResponseHeader = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise ProtocolError(f"the response header is not valid JSON: {error}") from error
    if not isinstance(header, dict):
        found = type(header).__name__
        raise ProtocolError(f"the response header is of type {found}, not a JSON object")
    return header


def inline_frames(header: ResponseHeader) -> bytes:
    """Return the bytes of the frames that a response header has as base64.

    Raises:
        ReplyLost: they are damaged.
        ProtocolError: there is something else in their place.
    """
    try:
        return base64.b64decode(header.get("data", ""), validate=True)
    except binascii.Error as error:
        raise ReplyLost(f"the kernel's response is damaged: {error}") from None
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"the data of the kernel's answer is no base64: {error}") from error


def check_fields(header: ResponseHeader, operation: str, *fields: str) -> None:
    """Check that a response has these fields, and that each is of its kind.

    Raises:
        ProtocolError: a field is missing or of another kind.
    """
    if not fits(header, {field: _RESPONSE[field] for field in fields}):
        raise ProtocolError(f"the response to {operation} does not have the expected fields")
    if len(header.get("names", ())) > MAX_NAMES:
        raise ProtocolError(f"the response to {operation} has more than {MAX_NAMES:,} names")


def check_groups(header: ResponseHeader, operation: str, parts: int) -> None:
    """Check that each group of a response is of some items, and of some frames of its own.

    Raises:
        ProtocolError: one is not, or they have more than the ``parts`` frames of the response.
    """
    check_fields(header, operation, "groups")
    for group in header["groups"]:
        if len(group) != 2 or min(group) < 1:
            raise ProtocolError(f"the response to {operation} has an invalid group: {group!r}")
        parts -= group[1]
    if parts < 0:
        raise ProtocolError(f"the response to {operation} has groups of more frames than came")


def names_in(header: ResponseHeader, operation: str) -> Names:
    """Return the names that a response describes.

    Raises:
        ProtocolError: they are missing or malformed.
    """
    check_fields(header, operation, "names")
    for item in header["names"]:
        shape = item["shape"] or ()
        numbers = (item["len"] or 0, item["bytes"] or 0, *shape[:MAX_SIDES])
        if len(shape) > MAX_SIDES or not 0 <= min(numbers) <= max(numbers) < MAX_COUNT:
            raise ProtocolError(f"the response to {operation} has a size that no object has")
    return Names(
        Name(
            item["name"],
            item["type"],
            None if item["shape"] is None else tuple(item["shape"]),
            item["len"],
            item["bytes"],
            _preview(item.get("preview")),
        )
        for item in header["names"]
    )


def _preview(text: str | None) -> str | None:
    """Return a preview as one line that controls no terminal; the kernel may send any text."""
    return None if text is None else line(text, MAX_PREVIEW)


def detail_in(header: ResponseHeader, frames: Sequence[memoryview]) -> Detail:
    """Return a closer look at a value; the kernel may have sent anything as its texts.

    Raises:
        ProtocolError: a part is missing, malformed, or too large to show.
    """
    check_fields(header, "detail", "detail")
    found = header["detail"]
    table = [found["columns"], *found["rows"]]
    picture = frames[0].tobytes() if frames else b""
    if (
        max(len(found["facts"]), sum(map(len, table)), len(table)) > MAX_TABLE
        or any(len(pair) != 2 for pair in found["facts"])
        or len(picture) > MAX_PICTURE
        or not (_is_small_png(picture) or not picture)
    ):
        raise ProtocolError("the response to detail is larger than a closer look, or malformed")
    return Detail(
        tuple((line(label, MAX_CELL), line(text, MAX_CELL)) for label, text in found["facts"]),
        tuple(line(label, MAX_CELL) for label in found["columns"]),
        tuple(tuple(line(cell, MAX_CELL) for cell in row) for row in found["rows"]),
        "\n".join(line(one, MAX_TEXT) for one in found["text"][:MAX_TEXT].splitlines()),
        picture,
    )


def _is_small_png(picture: bytes) -> bool:
    """Return whether bytes begin as a PNG that a page can decode in little memory."""
    if not picture.startswith(PNG_START) or len(picture) < len(PNG_START) + 8:
        return False
    width, height = unpack_from(">II", picture, len(PNG_START))
    return bool(max(width, height) <= MAX_SIDE)


def greeting(header: ResponseHeader) -> ResponseHeader:
    """Return the response to the handshake, checked.

    Raises:
        ProtocolError: a field is missing or of the wrong kind.
    """
    fields = "epoch", "python", "executable", "versions", "pid", "cwd", "orphans", "direct"
    check_fields(
        header,
        "the handshake",
        *fields,
        "files",
        "memory",
        "in_main_thread",
        "guards_cells",
        "serves_control",
    )
    if len(header["python"]) != len(sys.version_info[:3]):
        raise ProtocolError("the Python version in the handshake does not have three numbers")
    return header


def open_response(header: ResponseHeader, limit: int | None = None) -> Inbox:
    """Return an inbox for the frames of a response.

    Raises:
        ProtocolError: the header has no valid frame sizes.
        PayloadTooLarge: the frames have more than ``limit`` bytes; no memory was allocated.
    """
    if limit is not None and "error" in header:
        limit = max(limit, ERROR_LIMIT)
    try:
        return Inbox(header["sizes"], limit)
    except TooLarge as error:
        raise too_large(error.nbytes, limit) from None
    except (KeyError, TypeError, WireError) as error:
        raise ProtocolError(f"the response header has no valid frame sizes: {error!r}") from error


def add_chunk(header: ResponseHeader, inbox: Inbox, at: int, parts: Iterable[Buffer]) -> None:
    """Add a chunk of a response to its inbox, and check it against the digest in ``header``.

    Any thread may call this; an event loop in another thread keeps running meanwhile.

    Raises:
        ReplyLost: the digest of the chunk is wrong.
        DecodeError: this process has no memory for the response.
    """
    try:
        inbox.write(at, parts, as_text(header.get("digest")))
    except MemoryError as error:
        raise no_memory(error) from error
    except WireError as error:
        raise ReplyLost(f"the kernel's response is damaged: {error}") from None


def close_response(inbox: Inbox) -> list[memoryview]:
    """Return the frames of a response whose last chunk has arrived.

    Raises:
        ReplyLost: bytes are missing.
        DecodeError: this process has no memory for the response.
    """
    try:
        return inbox.take()
    except MemoryError as error:
        raise no_memory(error) from error
    except WireError as error:
        raise ReplyLost(f"the kernel's response is damaged: {error}") from None


def no_memory(error: MemoryError) -> DecodeError:
    """Return the error for a response for which this process has no memory."""
    return DecodeError(f"the request ran, but {str(error) or 'there is no memory'} in this process")


def split_batch(
    header: ResponseHeader, frames: Sequence[memoryview], requests: Sequence[Request]
) -> list[Response | BridgeError]:
    """Return the responses of a batch, each with those of its frames that came in this message.

    An item is ``NotServed`` for a request that did not run, because the responses before it filled
    the message, and another error for a response that is malformed.

    Raises:
        ProtocolError: the header is no response to a batch of so many requests.
    """
    responses = header.get("responses")
    if not isinstance(responses, list) or len(responses) != len(requests):
        raise ProtocolError(f"the response to a batch does not have {len(requests)} responses")
    found: list[Response | BridgeError] = []
    at = 0
    for one, request in zip(responses, requests, strict=True):
        if not isinstance(one, dict):
            raise ProtocolError("a response in a batch is not a JSON object")
        # The kernel always runs the first request. A first response that asks for a retry is
        # malformed: believing it, the bridge would send the request for ever.
        if one.get("retry") and found:
            found.append(NotServed("the responses before it filled the message"))
            continue
        count = one.get("parts")
        if type(count) is not int or not 0 <= count <= len(frames) - at:
            raise ProtocolError("the responses in a batch do not match its frames")
        try:
            inbox = open_response(one, request.limit)
            add_chunk(one, inbox, 0, frames[at : at + count])
            found.append(Response(one, request, inbox))
        except BridgeError as error:
            found.append(error)
        at += count
    return found
