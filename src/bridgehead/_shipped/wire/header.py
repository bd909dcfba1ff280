"""The header of a request: its fields, their types, and their check.

Rule: use the standard library only, run on Python 3.8 and later, the same file at both ends. This
file says what a header may contain, and has the names that both ends know. What a request does is
in ``remote``.
"""

from __future__ import annotations

from typing import Any, Dict

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.wire.errors import WireError
    from bridgehead._shipped.wire.frames import digest

Header = Dict[str, Any]  # a JSON object

PROTOCOL = 2
MIME = "application/vnd.bridgehead.answer+json"
DATA_MESSAGE = "bridgehead_data"  # msg_type of a response's frames on the buffers lane
UPDATE_MESSAGE = "bridgehead_update"  # msg_type of an update, sent to the client that watches
PROBE = b"bridgehead probe"

FIELDS: Dict[str, type] = {
    "op": str,
    "id": str,
    "digest": str,
    "sizes": list,
    "at": int,
    "chunk": int,
}
OPTIONAL_FIELDS: Dict[str, type] = {  # may be missing or null
    "max_bytes": int,
    "keep": str,
    "allow": list,
    "resumable": bool,
    "acks": list,
    "reader": list,  # Python version of the receiver, if another kernel than the client unpickles
}
OPERATION_FIELDS: Dict[str, Dict[str, type]] = {  # required by one operation
    "bind": {"names": list},
    "fetch": {"expressions": list},
    "watch": {"expressions": list, "watch": str},
    "unwatch": {"watch": str},
    "drop": {"names": list},
    "names": {"pattern": str},
    "has": {"name": str},
    "batch": {"requests": list},
    "interrupt_cell": {"cell": str},
}
BATCHABLE = ("bind", "fetch", "drop", "names", "has")  # the operations that may be in a batch


def check(header: Header) -> None:
    """Raise ``WireError`` for a header that the remote part could misread."""
    if type(header) is not dict:
        raise WireError("protocol", "the header is not a JSON object")
    if header.get("protocol") != PROTOCOL:
        raise WireError("protocol", "unsupported protocol; the remote part speaks %d" % PROTOCOL)
    for field, kind in FIELDS.items():
        _check_type(field, header.get(field), kind)
    for field, kind in OPERATION_FIELDS.get(header["op"], {}).items():
        _check_type(field, header.get(field), kind)
    for field, kind in OPTIONAL_FIELDS.items():
        if header.get(field) is not None:
            _check_type(field, header[field], kind)
    for field in ("names", "expressions", "allow", "acks"):
        items = header.get(field)
        if type(items) is list and not all(type(item) is str for item in items):
            raise WireError("protocol", "the header's %r are not all strings" % field)
    if header["chunk"] < 0:
        raise WireError("protocol", "the header's chunk size is %d bytes" % header["chunk"])
    digest(header["digest"].partition(":")[0], ())  # raises for an unknown algorithm


def _check_type(field: str, value: Any, kind: type) -> None:
    if type(value) is not kind:  # name its type alone: the value may be long or deeply nested
        types = type(value).__name__, kind.__name__
        raise WireError("protocol", "the header's %r is %s, not %s" % (field, *types))
