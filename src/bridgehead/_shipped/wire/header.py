"""The header of a request: its fields, their types, and the names that both sides know.

Rule: standard library only, Python 3.8 and later; the same on both sides. What a header may say
is here; what it makes the kernel do is not.
"""

from __future__ import annotations

from typing import Any, Dict

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.wire.errors import WireError
    from bridgehead._shipped.wire.frames import digest

Header = Dict[str, Any]  # a JSON object

PROTOCOL = 2
MIME = "application/vnd.bridgehead.answer+json"
DATA_MESSAGE = "bridgehead_data"  # msg_type of the frames of an answer on the buffers lane
UPDATE_MESSAGE = "bridgehead_update"  # msg_type of an answer that comes by itself, to who watches
PROBE = b"bridgehead probe"

FIELDS: Dict[str, type] = {
    "op": str,
    "id": str,
    "digest": str,
    "sizes": list,
    "at": int,
    "chunk": int,
}
MAY: Dict[str, type] = {  # or be null
    "max_bytes": int,
    "keep": str,
    "allow": list,
    "sums": bool,
    "resumable": bool,
    "acks": list,
    "reader": list,  # the Python of who opens the answer, if that is not who asks
}
NEEDS: Dict[str, Dict[str, type]] = {
    "bind": {"names": list},
    "fetch": {"expressions": list},
    "watch": {"expressions": list, "watch": str},
    "unwatch": {"watch": str},
    "drop": {"names": list},
    "names": {"pattern": str},
    "has": {"name": str},
    "batch": {"requests": list},
}
BATCHABLE = ("bind", "fetch", "drop", "names", "has")  # what may cross in a batch


def check(header: Header) -> None:
    """Refuse a header that this loader could misread."""
    if type(header) is not dict:
        raise WireError("protocol", "the header is no JSON object")
    if header.get("protocol") != PROTOCOL:
        raise WireError("protocol", "this loader speaks protocol %d" % PROTOCOL)
    for field, kind in FIELDS.items():
        _check_kind(field, header.get(field), kind)
    for field, kind in NEEDS.get(header["op"], {}).items():
        _check_kind(field, header.get(field), kind)
    for field, kind in MAY.items():
        if header.get(field) is not None:
            _check_kind(field, header[field], kind)
    for field in ("names", "expressions", "allow", "acks"):
        items = header.get(field)
        if type(items) is list and not all(type(item) is str for item in items):
            raise WireError("protocol", "the header's %r are no strings" % field)
    if header["chunk"] < 0:
        raise WireError("protocol", "a message cannot carry %d bytes" % header["chunk"])
    digest(header["digest"].partition(":")[0], ())  # is there such an algorithm?


def _check_kind(field: str, value: Any, kind: type) -> None:
    if type(value) is not kind:  # which may be long, or nested deeply: its type must do
        told = "%s, not %s" % (type(value).__name__, kind.__name__)
        raise WireError("protocol", "the header's %r is %s" % (field, told))
