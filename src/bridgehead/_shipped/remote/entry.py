"""The way into a kernel: what an expression of the near side's calls over there.

Rule: standard library only, Python 3.8 and later, and never a name in the user's namespace.
Together with the other files of this floor (``_shipping.SHIPPED``) it becomes one module in
``sys.modules``, under a name of its own, and captures what it needs when it is installed, so that
``%reset -f``, a shadowed ``len`` or a replaced ``pickle.loads`` don't reach it.

``enter`` is the far end of the lanes and only carries; ``Remote.handle`` does every operation.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from json import dumps, loads
from typing import Any

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.remote.kernel import Kernel
    from bridgehead._shipped.remote.server import Remote
    from bridgehead._shipped.wire.errors import WireError
    from bridgehead._shipped.wire.frames import messages
    from bridgehead._shipped.wire.header import MIME, PROBE, Header


class MimeReply:
    """Goes back as a private MIME type, which no formatter of the user's touches."""

    def __init__(self, text: str) -> None:
        self.text = text

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Header:
        return {"text/plain": "", MIME: self.text}


_served: dict[int, Remote] = {}  # by id of the namespace's dict, which its Far keeps alive


def enter(scope: Header, lane: str, header_text: str, data: str = "") -> MimeReply:
    """What the expression of a request calls; ``scope`` is the dict it is evaluated in."""
    remote = _served.get(id(scope))
    if remote is None:
        remote = _served[id(scope)] = Remote(Kernel(scope))
    remote.kernel.between_cells()
    try:
        return cross(remote, lane, header_text, data)
    finally:
        remote.kernel.ignore_interrupts()


def cross(remote: Remote, lane: str, header_text: str, data: str) -> MimeReply:
    """One message of a request there and back, as its lane carries it."""
    parts: list[Any]
    try:
        header = loads(header_text)
        parts = [b64decode(data, validate=True)] if lane == "inline" else []
    except (ValueError, RecursionError) as error:
        refused = remote.refused(WireError("integrity", "the request is damaged: %s" % error))
        return MimeReply(dumps(refused))
    if lane != "inline":
        parts = remote.kernel.buffers()
    if lane == "probe":
        # Judged by what happened: did the buffer arrive, and does one find the way back?
        answer, _ = remote.receive(header, ())
        answer["buffers"] = [bytes(part) for part in parts[:1]] == [PROBE]
        try:
            remote.kernel.send([memoryview(PROBE)])
        except Exception:
            answer["buffers"] = False
        return MimeReply(dumps(answer))
    answer, frames = remote.receive(header, parts)
    if lane == "inline":
        answer["data"] = b64encode(b"".join(frames)).decode("ascii")
    elif frames:
        for message in messages(frames):
            remote.kernel.send(message)
    return MimeReply(dumps(answer))


def leave(scope: Header) -> None:
    """Forget a namespace (loopback's, whose process lives on)."""
    _served.pop(id(scope), None)
