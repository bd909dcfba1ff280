"""The sender: it pickles data and refuses everything else by name.

Rule: a plain builtin is pickled as it is. Any other data is reduced to a call of a constructor of
the table, with arguments that are data themselves. REDUCE is the only opcode that calls.
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
    from bridgehead._shipped.wire.frames import IN_BAND, MAX_FRAMES
    from bridgehead._shipped.wire.pickling import children


class DataPickler(pickle.Pickler):
    """A pickler that writes only what ``Machine`` can read."""

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
        if raw.nbytes < IN_BAND or len(self.frames) >= MAX_FRAMES:
            return True  # pickle it in-band
        self.frames.append(raw)
        return False

    def reducer_override(self, value: Any) -> Any:
        kind = type(value)
        if kind is FUNCTION and CONSTRUCTORS.get(value.__name__, (None,))[0] is value:
            return NotImplemented  # pickle it by its name
        self.refused = value
        reduce = find_reducer(kind)
        if reduce is not None:
            return reduce(self, value)
        name = "%s.%s" % (kind.__module__, kind.__qualname__)
        if name in self.allow:
            return reduce_instance(value, name)
        raise untrusted(name)


def _bytes_of(view: Any) -> Any:
    """Return a contiguous buffer, or a one-dimensional array, as plain bytes."""
    if hasattr(view, "dtype"):  # numpy exports no buffer of datetime64 and timedelta64
        return view.view("u1") if view.nbytes else b""
    return view


def _where(value: Any, wanted: Any) -> str:
    """Return the path to an object inside plain containers, e.g. ``['jobs'][0]``, or ""."""
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
    """Return the frames of a value that consists of data alone.

    ``allow`` names further classes, as ``"module.qualname"``, whose instances may be in it.
    As with ``encode``, the frames after the first are views of the live objects.

    Raises:
        WireError: "untrusted": a part of the value is not data.
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
    finally:
        pickler.buffers.clear()  # the pickler is in a cycle, and would keep them
    frames[0] = memoryview(file.getvalue())
    return frames
