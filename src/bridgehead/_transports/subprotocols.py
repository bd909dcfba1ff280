"""A Jupyter message as one websocket message, in either of the two ways that servers know.

Rule: sans-IO, bytes in and out. ``v1`` is what Jupyter Server negotiates where both sides can:
offsets and parts as they are. In ``legacy``, what servers that proxy to others are left with,
a message without buffers is JSON text, and one with buffers a JSON part and the buffers behind
a table of offsets.
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

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Subprotocol:
    """How messages are packed.

    Attributes:
        pack: of a channel, a message and its buffers.
        unpack: gives the channel, and the message with ``buffers`` as memoryviews; raises
            ``ProtocolError`` for what is none.
    """

    pack: Callable[[str, Message, Sequence[Any]], bytes | str]
    unpack: Callable[[bytes | str], tuple[str, Message]]


def _pack_v1(channel: str, message: Message, buffers: Sequence[Any]) -> bytes:
    texts = [channel.encode(), *(json.dumps(message.get(part, {})).encode() for part in PARTS)]
    views = _views([*texts, *buffers])
    offsets = [*_offsets(views, 8 * (len(views) + 2))]
    return b"".join([struct.pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets), *views])


def _unpack_v1(data: bytes | str) -> tuple[str, Message]:
    if isinstance(data, str):
        raise ProtocolError("a text message, where the server had agreed on binary ones")
    try:
        (count,) = struct.unpack_from("<Q", data)
        if not len(PARTS) + 2 <= count <= len(data) // 8:
            raise ProtocolError(f"a message of {count} parts")
        offsets = struct.unpack_from(f"<{count}Q", data, 8)
        channel, *views = _cut(memoryview(data), offsets)
        texts = (bytes(view) for view in views[: len(PARTS)])
        message = dict(zip(PARTS, map(_object, texts), strict=True))
        return str(channel, "utf-8"), {**message, "buffers": views[len(PARTS) :]}
    except (struct.error, ValueError, RecursionError) as error:
        raise ProtocolError(f"no Jupyter message: {error}") from error


def _pack_legacy(channel: str, message: Message, buffers: Sequence[Any]) -> bytes | str:
    text = json.dumps({**message, "channel": channel, "buffers": []})
    if not buffers:
        return text
    views = [memoryview(text.encode()), *_views(buffers)]
    *offsets, _ = _offsets(views, 4 * (len(views) + 1))
    return b"".join([struct.pack(f"!{len(views) + 1}I", len(views), *offsets), *views])


def _unpack_legacy(data: bytes | str) -> tuple[str, Message]:
    try:
        if isinstance(data, str):
            message, views = _object(data), []
        else:
            (count,) = struct.unpack_from("!I", data)
            if not 1 <= count <= len(data) // 4:
                raise ProtocolError(f"a message of {count} parts")
            offsets = struct.unpack_from(f"!{count}I", data, 4)
            text, *views = _cut(memoryview(data), (*offsets, len(data)))
            message = _object(bytes(text))
    except (struct.error, ValueError, RecursionError) as error:
        raise ProtocolError(f"no Jupyter message: {error}") from error
    if not all(isinstance(message.get(part), dict) for part in PARTS):
        raise ProtocolError("a message that lacks one of its parts")
    return str(message.get("channel")), {**message, "buffers": views}


def _views(buffers: Sequence[Any]) -> list[memoryview]:
    return [memoryview(buffer).cast("B") for buffer in buffers]


def _offsets(views: Sequence[memoryview], at: int) -> Iterator[int]:
    """Where each begins, the first of them at ``at``, and where the last ends."""
    return itertools.accumulate((view.nbytes for view in views), initial=at)


def _cut(data: memoryview, offsets: Sequence[int]) -> list[memoryview]:
    if list(offsets) != sorted(offsets) or offsets[-1] > data.nbytes:
        raise ProtocolError("a message whose parts are not in it")
    return [data[start:stop] for start, stop in itertools.pairwise(offsets)]


def _object(text: str | bytes) -> Message:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ProtocolError("a part of a message that is no JSON object")
    return found


BINARY = Subprotocol(_pack_v1, _unpack_v1)
LEGACY = Subprotocol(_pack_legacy, _unpack_legacy)
