"""Signed messages, as a kernel sends them over ZeroMQ: checked, then parsed.

Rule: frames in, a message out; no sockets. What jupyter_client's ``Session.deserialize`` returns or
refuses, this returns or refuses, too; the tests compare them. There are two differences. Dates stay
the strings that they are: to parse them took 40 of the 65 µs of a status message, and every client
of a kernel reads every status message (measured). And a signature counts as seen only if it is
right: a copy of a message that was damaged does not keep out the message itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from hmac import compare_digest
from typing import Any

import zmq
from jupyter_client.adapter import adapt
from jupyter_client.session import DELIM, Session

from bridgehead._errors import ProtocolError

SIGNED = 4  # parts that are signed: the two headers, the metadata and the content
# Signatures that are remembered, or up to twice as many, so that no message counts twice: a reply
# that is repeated finds no request anyway. With jupyter_client's own 65,536, each bridge took 8 MB.
REMEMBERED = 256
# Bytes of a signature that are remembered: 64 bits distinguish it, and all of it takes more memory.
MARK = 16


def split(frames: list[zmq.Frame]) -> tuple[bytes, list[zmq.Frame]]:
    """Return the topic of a message on iopub, or else nothing, and the frames to read.

    Raises:
        ProtocolError: it is not a Jupyter message.
    """
    for place, frame in enumerate(frames):
        if len(frame) == len(DELIM) and frame.bytes == DELIM:
            return frames[0].bytes if place else b"", frames[place + 1 :]
    raise ProtocolError("this is not a Jupyter message: no frame separates topic and signature")


class SignedMessages:
    """The messages of one kernel, signed with the key of a session; without a key, as they are."""

    def __init__(self, session: Session) -> None:
        self._session = session  # its key may be replaced
        self._recent: set[bytes] = set()
        self._earlier: set[bytes] = set()

    def read(self, frames: Sequence[zmq.Frame]) -> dict[str, Any]:
        """Return the message of these frames, its ``buffers`` as views of the frames.

        Raises:
            ProtocolError: it is not a message, or has a wrong signature, or arrived before.
        """
        if len(frames) <= SIGNED:
            raise ProtocolError(f"a Jupyter message has {1 + SIGNED} frames, not {len(frames)}")
        signature, *parts = [frame.bytes for frame in frames[: 1 + SIGNED]]
        session = self._session
        if session.auth is not None:
            if not compare_digest(signature, session.sign(parts)):
                raise ProtocolError("the signature of a message is wrong")
            self._remember(signature[:MARK])
        try:
            header, parent_header, metadata, content = map(session.unpack, parts)
            message = {
                "header": header,
                "msg_id": header["msg_id"],
                "msg_type": header["msg_type"],
                "parent_header": parent_header,
                "metadata": metadata,
                "content": content,
                "buffers": [frame.buffer for frame in frames[1 + SIGNED :]],
            }
            # Of other versions, only the fourth has an adapter, and a header without one is its.
            return message if header.get("version", "").startswith("5.") else adapt(message)
        except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise ProtocolError(f"this is not a Jupyter message: {error!r}") from error

    def _remember(self, mark: bytes) -> None:
        """Remember a message by a part of its signature; refuse it if it arrived before."""
        if mark in self._recent or mark in self._earlier:
            raise ProtocolError("a message has arrived before")
        if len(self._recent) == REMEMBERED:
            self._earlier, self._recent = self._recent, set()
        self._recent.add(mark)
