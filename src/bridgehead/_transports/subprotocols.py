"""The two ways to pack a Jupyter message into a websocket message.

Rule: sans-I/O, bytes in and out. Jupyter Server negotiates ``v1`` if both ends know it: a table of
offsets, then the parts as they are. Servers that proxy to others only know ``legacy``: a message
without buffers is JSON text; a message with buffers is a table of offsets, then a JSON part and
the buffers.
"""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bridgehead._errors import ProtocolError

V1 = "v1.kernel.websocket.jupyter.org"
PARTS = ("header", "parent_header", "metadata", "content")

RawMessage = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Subprotocol:
    """How messages are packed.

    Attributes:
        pack: takes a channel, a message and its buffers, and returns the websocket message.
        unpack: returns the channel, and the message with ``buffers`` as memoryviews; raises
            ``ProtocolError`` for data that is not a message.
    """

    pack: Callable[[str, RawMessage, Sequence[Any]], bytes | str]
    unpack: Callable[[bytes | str], tuple[str, RawMessage]]


def _pack_v1(channel: str, message: RawMessage, buffers: Sequence[Any]) -> bytes:
    texts = [channel.encode(), *(json.dumps(message.get(part, {})).encode() for part in PARTS)]
    views = _views([*texts, *buffers])
    offsets = [*_offsets(views, 8 * (len(views) + 2))]
    return b"".join([struct.pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets), *views])


def _unpack_v1(data: bytes | str) -> tuple[str, RawMessage]:
    if isinstance(data, str):
        raise ProtocolError("the message is text, although the server agreed to binary messages")
    try:
        (count,) = struct.unpack_from("<Q", data)
        if not len(PARTS) + 2 <= count <= len(data) // 8:
            raise ProtocolError(f"the message claims to have {count} parts")
        offsets = struct.unpack_from(f"<{count}Q", data, 8)
        channel, *views = _cut(memoryview(data), offsets)
        texts = (bytes(view) for view in views[: len(PARTS)])
        message = dict(zip(PARTS, map(_object, texts), strict=True))
        return str(channel, "utf-8"), {**message, "buffers": views[len(PARTS) :]}
    except (struct.error, ValueError, RecursionError) as error:
        raise ProtocolError(f"this is not a Jupyter message: {error}") from error


def _pack_legacy(channel: str, message: RawMessage, buffers: Sequence[Any]) -> bytes | str:
    text = json.dumps({**message, "channel": channel, "buffers": []})
    if not buffers:
        return text
    views = [memoryview(text.encode()), *_views(buffers)]
    *offsets, _ = _offsets(views, 4 * (len(views) + 1))
    return b"".join([struct.pack(f"!{len(views) + 1}I", len(views), *offsets), *views])


def _unpack_legacy(data: bytes | str) -> tuple[str, RawMessage]:
    try:
        if isinstance(data, str):
            message, views = _object(data), []
        else:
            (count,) = struct.unpack_from("!I", data)
            if not 1 <= count <= len(data) // 4:
                raise ProtocolError(f"the message claims to have {count} parts")
            offsets = struct.unpack_from(f"!{count}I", data, 4)
            text, *views = _cut(memoryview(data), (*offsets, len(data)))
            message = _object(bytes(text))
    except (struct.error, ValueError, RecursionError) as error:
        raise ProtocolError(f"this is not a Jupyter message: {error}") from error
    if not all(isinstance(message.get(part), dict) for part in PARTS):
        raise ProtocolError("the message lacks one of its parts")
    return str(message.get("channel")), {**message, "buffers": views}


def _views(buffers: Sequence[Any]) -> list[memoryview]:
    return [memoryview(buffer).cast("B") for buffer in buffers]


def _offsets(views: Sequence[memoryview], at: int) -> Iterator[int]:
    """Yield where each view begins, the first one at ``at``, and where the last one ends."""
    return itertools.accumulate((view.nbytes for view in views), initial=at)


def _cut(data: memoryview, offsets: Sequence[int]) -> list[memoryview]:
    if list(offsets) != sorted(offsets) or offsets[-1] > data.nbytes:
        raise ProtocolError("the message's offsets lead outside the message")
    return [data[start:stop] for start, stop in itertools.pairwise(offsets)]


def _object(text: str | bytes) -> RawMessage:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ProtocolError("a part of the message is not a JSON object")
    return found


BINARY = Subprotocol(_pack_v1, _unpack_v1)
LEGACY = Subprotocol(_pack_legacy, _unpack_legacy)
