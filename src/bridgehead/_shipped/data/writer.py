"""The honest sender: pickles what is data, and refuses the rest by name.

Rule: what is no plain builtin is reduced to a call of a constructor of the table, with
arguments that are data themselves. REDUCE is the only opcode that calls.
"""

from __future__ import annotations

import collections
import pickle
from io import BytesIO
from typing import Any, Collection, Iterable

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.data.instances import reduce_instance
    from bridgehead._shipped.data.registry import CONSTRUCTORS, FUNCTION, find_reducer, untrusted
    from bridgehead._shipped.wire.errors import WireError
    from bridgehead._shipped.wire.frames import IN_BAND
    from bridgehead._shipped.wire.pickling import children


class DataPickler(pickle.Pickler):
    """A pickler that writes only what ``Machine`` reads."""

    def __init__(self, file: Any, allow: Iterable[str], frames: list[memoryview]) -> None:
        super().__init__(file, protocol=5, buffer_callback=self.keep)
        self.allow, self.frames = frozenset(allow), frames
        self.buffers: dict[int, Any] = {}
        self.refused: Any = None

    def buffer(self, view: Any) -> Any:
        made = pickle.PickleBuffer(_bytes_of(view))
        self.buffers[id(made)] = made
        return made

    def keep(self, buffer: Any) -> bool:
        if id(buffer) not in self.buffers:
            self.refused = buffer
            raise untrusted("pickle.PickleBuffer")
        raw = buffer.raw()
        if raw.nbytes < IN_BAND:
            return True  # pickle it in-band
        self.frames.append(raw)
        return False

    def reducer_override(self, value: Any) -> Any:
        kind = type(value)
        if kind is FUNCTION and CONSTRUCTORS.get(value.__name__, (None,))[0] is value:
            return NotImplemented  # pickled by its name
        self.refused = value
        reduce = find_reducer(kind)
        if reduce is not None:
            return reduce(self, value)
        name = "%s.%s" % (kind.__module__, kind.__qualname__)
        if name in self.allow:
            return reduce_instance(value, name)
        raise untrusted(name)


def _bytes_of(view: Any) -> Any:
    """What has a contiguous buffer, or an array of one dimension, as plain bytes."""
    if hasattr(view, "dtype"):  # numpy gives no buffer of moments
        return view.view("u1") if view.nbytes else b""
    return view


def _where(value: Any, wanted: Any) -> str:
    """The way to an object inside plain containers, e.g. ``['jobs'][0]``; else nothing."""
    found, seen = [("", value)], set()
    for path, part in found:
        if part is wanted:
            return path
        if type(part) in _WALKED and id(part) not in seen and len(found) < 100_000:
            seen.add(id(part))
            found.extend((path + suffix, child) for suffix, child in children(part))
    return ""


_WALKED = {dict, list, tuple, set, frozenset, collections.deque, collections.OrderedDict}


def encode_data(value: Any, allow: Collection[str] = ()) -> list[memoryview]:
    """The frames of a value that is data all through; else ``WireError("untrusted")``.

    ``allow`` names further classes, as ``"module.qualname"``, whose instances may be in it.
    The frames after the first are views of the live objects, as ``encode``'s are.
    """
    frames = [memoryview(b"")]
    file = BytesIO()
    pickler = DataPickler(file, allow, frames)
    try:
        pickler.dump(value)
    except WireError as error:
        if error.kind != "untrusted":
            raise
        path = _where(value, pickler.refused)
        message = "%s (at %s)" % (error, path) if path else str(error)
        raise WireError("untrusted", message, **dict(error.details, path=path)) from None
    frames[0] = memoryview(file.getvalue())
    return frames
