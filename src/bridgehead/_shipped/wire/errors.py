"""The errors of what arrives: damaged, refused or too large.

Rule: use the standard library only, run on Python 3.8 and later, the same file at both ends. Only
exceptions are defined here, and what is said of others. The code that raises them gives the reason;
the client turns them into the errors that a user sees (``_protocol.raising``, and
``_protocol.payload`` for what it decodes).

The kinds of a ``WireError``, and the error of the client:

- ``protocol``: a header, or the state of a transfer, that no sound client makes. ``ProtocolError``.
- ``integrity``: the request arrived damaged. ``IntegrityError``.
- ``epoch``: the request is for another kernel. ``KernelRestarted``.
- ``lost``: what the request asks for was dropped with its connection. ``ReplyLost``.
- ``closed``: the client has withdrawn the request, or closed what it makes. A caller still waits
  for it only while its bridge closes. ``BridgeClosed``.
- ``name``: names that are not defined. ``NameNotFound``.
- ``missing``: a module that cannot be imported here. ``MissingInKernel``.
- ``incompatible``: code for another minor version of Python. ``IncompatiblePython``.
- ``large``: a response of more than ``max_bytes``. ``PayloadTooLarge``.
- ``unsupported``: an operation that this kernel cannot do. ``NotSupported``.
- ``untrusted``: a value that is more than data. ``UntrustedPayload``.

A response reports an exception of any other class as ``remote``: ``RemoteError``. Another kind, of
a kernel that does not keep to the protocol, becomes a ``ProtocolError``.
"""

from __future__ import annotations

from typing import Any


class WireError(Exception):
    """A fault in what arrived; ``kind``, one of those above, selects the error of the client."""

    def __init__(self, kind: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.kind, self.details = kind, details


class TooLarge(Exception):
    """A payload with more bytes than the caller allows; ``nbytes`` is its size."""

    def __init__(self, nbytes: int) -> None:
        super().__init__("%d bytes" % nbytes)
        self.nbytes = nbytes


def message_of(error: BaseException) -> str:
    """Return the message of an exception, whose class may be a user's."""
    try:
        return str(error)
    except Exception:
        return "<its str() raised>"


def reason(error: BaseException) -> str:
    """Return the type and the message of an exception."""
    return "%s: %s" % (type(error).__name__, message_of(error))
