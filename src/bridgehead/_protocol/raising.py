"""The errors that a response reports, as exceptions of this process.

Rule: the one place where the kernel's word about a failure becomes an exception, and where an
exception that was raised in the kernel is unpickled. A response comes from outside: whatever
stands in a field, nothing but the errors of ``_errors`` is raised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from bridgehead._errors import (
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
    UntrustedPayload,
)
from bridgehead._protocol.request import PYTHON
from bridgehead._shipped.wire import pickling as _codec
from bridgehead._shipped.wire.header import Header


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


def too_large(nbytes: object, limit: int | None) -> PayloadTooLarge:
    """The error for more than ``max_bytes``."""
    size = nbytes if isinstance(nbytes, int) else 0
    return PayloadTooLarge(
        f"it has {size:,} bytes, and max_bytes allows {limit or 0:,}; nothing of it crossed",
        bytes=size,
    )


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
