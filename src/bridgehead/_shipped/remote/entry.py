"""The entry into the remote part: what the expression of a request calls.

Rule: use the standard library only, run on Python 3.8 and later, and leave no name in the user's
namespace. Together with the other files of ``_protocol.bootstrap.SHIPPED``, this file becomes one
module in ``sys.modules``, under a name of its own. The module captures what it needs when it is
installed, so that ``%reset -f``, a shadowed ``len`` or a replaced ``pickle.loads`` do not affect
it.

``enter`` is the kernel's end of the lanes ``inline`` and ``buffers``: it only carries messages.
``Remote.handle`` performs every operation.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from json import dumps, loads
from typing import Any

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.remote.kernel import Kernel
    from bridgehead._shipped.remote.server import Remote
    from bridgehead._shipped.remote.snapshot import entries
    from bridgehead._shipped.wire.errors import WireError
    from bridgehead._shipped.wire.frames import messages
    from bridgehead._shipped.wire.header import MIME, PROBE


class MimeReply:
    """A response as a private MIME type, which no formatter of the user's handles."""

    def __init__(self, text: str) -> None:
        self.text = text

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {"text/plain": "", MIME: self.text}


LANES = ("inline", "buffers", "probe")  # the last one only finds out whether buffers arrive

_remotes: dict[int, Remote] = {}  # by id of the namespace's dict, which its Remote keeps alive


def enter(scope: dict[str, Any], lane: str, header_text: str, data: str = "") -> MimeReply:
    """Serve one message of a request; ``scope`` is the dict that the expression runs in."""
    remote = _remotes.get(id(scope))
    if remote is None:
        remote = _remotes[id(scope)] = Remote(Kernel(scope))
    remote.kernel.between_cells()
    try:
        return carry_message(remote, lane, header_text, data)
    finally:
        remote.kernel.request_ended()
        remote.kernel.ignore_interrupts()
        remote.kernel.let_reply_pass()


def carry_message(remote: Remote, lane: str, header_text: str, data: str) -> MimeReply:
    """Pass one message to the remote part, and return its response the way its lane does."""
    parts: list[Any]
    try:
        header = loads(header_text)
        parts = [b64decode(data, validate=True)] if lane == "inline" and data else []
    except (ValueError, RecursionError) as error:
        damaged = WireError("integrity", "the request is damaged: %s" % error)
        return MimeReply(dumps(remote.refused(damaged)))
    if lane not in LANES:
        unknown = WireError("protocol", "this remote part knows no lane %r" % (lane,))
        return MimeReply(dumps(remote.refused(unknown)))
    if lane != "inline":
        parts = remote.kernel.buffers()
    if lane == "probe":
        # Buffers are judged by what happens, not by versions: this one must have arrived, and
        # sending one back must work.
        response, _ = remote.receive(header, ())
        arrived = [bytes(part) for part in parts[:1]] == [PROBE]
        try:
            remote.kernel.send([memoryview(PROBE)])
        except Exception:
            arrived = False
        return MimeReply(dumps({**response, "buffers": arrived}))
    response, frames = remote.receive(header, parts)
    if lane == "inline":
        response = {**response, "data": b64encode(b"".join(frames)).decode("ascii")}
    elif frames:
        for message in messages(frames):
            remote.kernel.send(message)
    return MimeReply(dumps(response))


def leave(scope: dict[str, Any]) -> None:
    """Forget a namespace, and free what waits for its client. Any thread may call this.

    Loopback needs this, because its process lives on.
    """
    remote = _remotes.pop(id(scope), None)
    if remote is not None:
        for _, resource in entries(remote.resources.known):
            resource.left()
