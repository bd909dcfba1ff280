"""The errors that a response reports, as exceptions of this process.

Rule: this is the one place where an error in a response becomes an exception, and where an
exception that was raised in the kernel is unpickled. A response is untrusted: whatever its
fields contain, only the errors of ``_errors`` are raised. For that, ``as_object``, ``as_text`` and
``as_strings`` read fields that may hold anything; every reader of a kernel's messages uses them.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bridgehead._errors import (
    CLOSED_MEANWHILE,
    RESTARTED,
    BridgeClosed,
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
from bridgehead._protocol.bootstrap import remote_source
from bridgehead._protocol.spelling import spelled
from bridgehead._shipped.wire.header import CELL_ERROR, KEPT, PYTHON
from bridgehead._shipped.wire.pickling import decode

MOST_MISSING = 1000  # names in the error for names that are not defined


def remote_error(fields: Mapping[str, Any]) -> RemoteError:
    """Return the error that a kernel reports in Jupyter's fields."""
    name = as_text(fields.get("ename"))
    if name.startswith("<class '"):  # xeus-python sends the repr of the class
        name = name[8:-2].rpartition(".")[2]
    return RemoteError(name, as_text(fields.get("evalue")), as_strings(fields.get("traceback")))


def cell_error(
    content: Mapping[str, Any], published: Mapping[str, Any] | None = None, *, trusted: bool
) -> RemoteError:
    """Return the error that the reply to a cell reports; its cause is the cell's exception.

    The cause is None if the exception cannot be rebuilt here, or if the kernel is not ``trusted``.
    The traceback of an exception group is in the payload, and among the outputs of the cell.
    If the cell ran and its value could not be shown, ipykernel replies that a ``NoneType`` was
    raised; what was raised is in the error that the cell ``published``.
    """
    unnamed = content.get("ename") == "NoneType"
    error = remote_error(published if unnamed and published is not None else content)
    payload = content.get("payload")
    for report in payload if isinstance(payload, list) else ():
        if isinstance(report, dict) and report.get("source") == remote_source()[0] + CELL_ERROR:
            printed = as_strings(report.get("traceback"))
            if printed and not error.traceback:
                error = RemoteError(error.ename, error.evalue, printed)
                error._is_printed = True  # noqa: SLF001
            if not trusted:
                continue
            try:
                frames = [memoryview(base64.b64decode(part)) for part in report["frames"]]
            except (KeyError, TypeError, ValueError):
                continue
            error.__cause__ = _rebuilt(report, frames)
    return error


def as_object(value: Any) -> Mapping[str, Any]:
    """Return ``value`` if it is a JSON object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def as_text(value: Any) -> str:
    """Return ``value`` as text; of a container, which may be nested too deeply, only the type."""
    return f"<{type(value).__name__}>" if isinstance(value, (list, tuple, dict)) else str(value)


def as_strings(value: Any) -> list[str]:
    """Return the items of a list as text; an empty list if ``value`` is no list."""
    return [as_text(item) for item in value] if isinstance(value, (list, tuple)) else []


def too_large(nbytes: object, limit: int | None) -> PayloadTooLarge:
    """Return the error for a payload of more than ``max_bytes``."""
    size = nbytes if isinstance(nbytes, int) else 0
    return PayloadTooLarge(
        f"payload is {size:,} bytes, more than max_bytes={limit or 0:,}; nothing was sent",
        bytes=size,
    )


def raise_error(
    header: Mapping[str, Any],
    frames: Sequence[memoryview],
    limit: int | None = None,
    *,
    trusted: bool = True,
) -> None:
    """Raise the error that a response reports; return if it reports none.

    ``limit`` is the ``max_bytes`` of the request. ``trusted`` says that an exception that was
    raised in the kernel may be unpickled in this process.
    """
    error = header.get("error")
    if error is None:
        return
    if not isinstance(error, dict):
        found = type(error).__name__
        raise ProtocolError(f"the error in the response is of type {found}, not a JSON object")
    kind, message = error.get("kind"), as_text(error.get("message"))
    if kind == "remote":
        raise remote_error(error) from _rebuilt(error, frames if trusted else ())
    make = _ERRORS.get(kind) if isinstance(kind, str) else None
    raise ProtocolError(message) if make is None else make(error, message, limit)


def _not_found(error: Mapping[str, Any], message: str, limit: int | None) -> NameNotFound:
    names = as_strings(error.get("names"))[:MOST_MISSING]
    close = as_strings(error.get("close"))[:MOST_MISSING]
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
    if names and names[0].startswith(KEPT):
        return NameNotFound(
            "the object of a ref is not in the kernel any more: it was freed, or the kernel "
            "was restarted",
            names=names,
        )
    listed, verb = ", ".join(map(repr, names)), "is" if len(names) == 1 else "are"
    return NameNotFound(f"{listed} {verb} not defined in the kernel{hint}", names=names)


def _missing(error: Mapping[str, Any], message: str, limit: int | None) -> MissingInKernel:
    module, executable = as_text(error.get("module")), error.get("where")
    where = f" ({as_text(executable)})" if executable else ""
    root = module.partition(".")[0]
    # cloudpickle itself cannot be shipped by value: it is what unpickles such modules.
    ship = f", or ship your own module with by_value=[{root}]" if root != "cloudpickle" else ""
    return MissingInKernel(
        f"the kernel{where} cannot import {module!r}: {message}. "
        f"Install it in the kernel's environment{ship}",
        module=module,
    )


def _incompatible(error: Mapping[str, Any], message: str, limit: int | None) -> IncompatiblePython:
    return IncompatiblePython(
        f"{message}, but this program runs Python {PYTHON[0]}.{PYTHON[1]}; "
        "only data can cross between Python minor versions"
    )


def _untrusted(error: Mapping[str, Any], message: str, limit: int | None) -> UntrustedPayload:
    kind = as_text(error.get("type"))
    if not kind:  # it is data, but nested too deeply
        return UntrustedPayload(f"{message}; it was not opened")
    return UntrustedPayload(
        f"{message}; it was not opened, because only data is trusted. "
        "Pass " + spelled("allow= or trust='pickle'") + " to open it",
        type=kind,
    )


# The kinds of ``wire.errors``. Each function takes the fields of the error, its message, and the
# ``max_bytes`` of the request.
_ERRORS: dict[str, Callable[[Mapping[str, Any], str, int | None], Exception]] = {
    "protocol": lambda error, message, limit: ProtocolError(message),
    "integrity": lambda error, message, limit: IntegrityError(
        f"the kernel refused the request: {message}"
    ),
    "epoch": lambda error, message, limit: KernelRestarted(RESTARTED),
    "lost": lambda error, message, limit: ReplyLost(
        f"the connection was lost before the response arrived: {message}"
    ),
    "closed": lambda error, message, limit: BridgeClosed(CLOSED_MEANWHILE),
    "name": _not_found,
    "missing": _missing,
    "incompatible": _incompatible,
    "large": lambda error, message, limit: too_large(error.get("bytes"), limit),
    "unsupported": lambda error, message, limit: NotSupported(message),
    "untrusted": _untrusted,
}


def _rebuilt(fields: Mapping[str, Any], frames: Sequence[memoryview]) -> BaseException | None:
    """Return an exception of the kernel from its frames; None if that is not possible here."""
    cause = None
    if frames and fields.get("code_of") in (None, PYTHON):
        # Its class is missing here, or raises: only text is left. SystemExit would end the program.
        with contextlib.suppress(Exception, SystemExit):
            cause = decode(frames)
    return cause if isinstance(cause, BaseException) else None
