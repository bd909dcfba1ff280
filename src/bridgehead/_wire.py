"""The wire format: frames, digests, pieces and the pickler, the same on both sides.

Rule: standard library only, Python 3.8 and later. Shipped to the kernel together with
``_loader.py`` and imported here by ``_protocol.py``, so the two sides cannot drift.

Words: a *frame* is a run of bytes; frame 0 of an object is its pickle, the others are its
out-of-band buffers (PEP 574). The frames of one request, laid end to end, are its *stream*;
a stream too long for one message crosses in *pieces*, each with its offset.
"""

from __future__ import annotations

import collections
import mmap
import pickle
from hashlib import sha256
from io import BytesIO
from time import monotonic
from typing import Any, Dict, Iterable, Iterator, Sequence, Union
from zlib import crc32

Buffer = Union[bytes, bytearray, memoryview]
Header = Dict[str, Any]  # a JSON object

PROTOCOL = 1
MIME = "application/vnd.bridgehead.answer+json"
DATA_MESSAGE = "bridgehead_data"  # msg_type of the frames of an answer on the buffers lane
PROBE = b"bridgehead probe"

IN_BAND = 2048  # bytes; a smaller out-of-band buffer costs more as a frame than inside the pickle
OWN_MAPPING = 1 << 20  # bytes; from here on a frame gets huge pages of its own

_loads = pickle.loads  # captured: a user may replace it


# ---------------------------------------------------------------- frames, digests, pieces


class Broken(Exception):
    """Something on the wire is not as it must be; ``kind`` names the near side's error."""

    def __init__(self, kind: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.kind, self.details = kind, details


def allocate(size: int) -> memoryview:
    """Writable memory for one received frame.

    Large frames get an anonymous mapping: page-aligned, on huge pages where the system has
    them (100 MB touched in 16-19 ms instead of 62), given back when the last array dies.
    """
    if size < OWN_MAPPING:
        return memoryview(bytearray(size))
    if hasattr(mmap, "MAP_PRIVATE"):  # the default is shared: a forked child would write into it
        block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    else:
        block = mmap.mmap(-1, size)
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is not None:
        try:
            block.madvise(advice)
        except OSError:  # a kernel without transparent huge pages
            pass
    return memoryview(block)


def digest(algorithm: str, frames: Iterable[Buffer]) -> str:
    """``"crc32:…"`` or ``"sha256:…"`` over all frames in order."""
    if algorithm == "crc32":
        value = 0
        for frame in frames:
            value = crc32(frame, value)
        return "crc32:%08x" % value
    if algorithm == "sha256":
        sha = sha256()
        for frame in frames:
            sha.update(frame)
        return "sha256:" + sha.hexdigest()
    raise Broken("protocol", "unknown digest %r" % (algorithm,))


def cut(frames: Sequence[memoryview], start: int, stop: int) -> Iterator[memoryview]:
    """The parts of the stream between two offsets, as views: nothing is copied."""
    at = 0
    for frame in frames:
        end = at + frame.nbytes
        if end > start and at < stop:
            yield frame[max(start - at, 0) : stop - at]
        at = end


class Inbox:
    """One stream being received into frames of known sizes, piece by piece, in any order."""

    def __init__(self, sizes: Sequence[int]) -> None:
        if not all(type(size) is int and size >= 0 for size in sizes):
            raise Broken("protocol", "frame sizes must be whole numbers of bytes")
        self.total = sum(sizes)
        try:
            self.frames = [allocate(size) for size in sizes]
        except (MemoryError, OSError, OverflowError) as error:
            raise Broken("protocol", "no memory for %d bytes" % self.total) from error
        self.pieces: dict[int, int] = {}
        self.touched = monotonic()

    def write(self, at: int, parts: Iterable[Buffer]) -> None:
        views = [memoryview(part).cast("B") for part in parts]
        length = sum(view.nbytes for view in views)
        if type(at) is not int or at < 0 or at + length > self.total:
            raise Broken(
                "integrity", "%d bytes at offset %r do not fit %d" % (length, at, self.total)
            )
        targets = cut(self.frames, at, at + length)
        target = next(targets, None)
        for view in views:
            while view.nbytes and target is not None:
                count = min(view.nbytes, target.nbytes)
                target[:count] = view[:count]
                view, target = view[count:], target[count:]
                if not target.nbytes:
                    target = next(targets, None)
        self.pieces[at] = length
        self.touched = monotonic()

    def take(self, expected: str) -> list[memoryview]:
        """The frames, once they are all there and their digest is right; else ``Broken``."""
        got = sum(self.pieces.values())
        if got != self.total:
            raise Broken("integrity", "%d of %d bytes arrived" % (got, self.total))
        algorithm = str(expected).partition(":")[0]
        if digest(algorithm, self.frames) != expected:
            raise Broken("integrity", "the digest of the frames is not the one that was signed")
        return self.frames


class Outbox:
    """An answer too long for one message, until the last piece of it was fetched."""

    def __init__(self, frames: list[memoryview], total: int) -> None:
        self.frames, self.total, self.touched = frames, total, monotonic()


# ---------------------------------------------------------------- headers


NEEDS = {
    "bind": ("names",),
    "fetch": ("expressions",),
    "drop": ("names",),
    "names": ("pattern",),
    "has": ("name",),
}


def check(header: Header) -> None:
    """Refuse a header that this loader could misread."""
    if type(header) is not dict:
        raise Broken("protocol", "the header is no JSON object")
    if header.get("protocol") != PROTOCOL:
        raise Broken("protocol", "this loader speaks protocol %d" % PROTOCOL)
    kinds = {"op": str, "id": str, "digest": str, "sizes": list, "at": int, "piece": int}
    for field, kind in kinds.items():
        if type(header.get(field)) is not kind:
            raise Broken("protocol", "the header's %r is %r" % (field, header.get(field)))
    digest(header["digest"].partition(":")[0], ())  # is there such an algorithm?
    for field in NEEDS.get(header["op"], ()):
        if field not in header:
            raise Broken("protocol", "%s without %r" % (header["op"], field))


# ---------------------------------------------------------------- codec: object <-> frames


class CodeRefused(Exception):
    """The value carries code objects and the other Python could not run them."""


class Unshared(Exception):
    """Pickling needs cloudpickle, which this interpreter does not have."""


_pickler_type: Any = None


def pickler_type() -> Any:
    """cloudpickle's pickler that also notes what is pickled by value; made on first use."""
    global _pickler_type
    if _pickler_type is not None:
        return _pickler_type
    code = type(pickler_type.__code__)
    function = type(pickler_type)
    try:
        import cloudpickle
    except ImportError:
        base: Any = None
    else:
        base = cloudpickle.Pickler

    class Pickler(base or pickle.Pickler):  # type: ignore[misc]
        """``carries_code`` tells whether a code object was pickled; see ``encode``."""

        def __init__(self, file: Any, refs: Any = None, **options: Any) -> None:
            super().__init__(file, protocol=5, **options)
            self.carries_code = False
            self.refs = refs

        def reducer_override(self, value: Any) -> Any:
            kind = type(value)
            if kind is code:
                self.carries_code = True
            if self.refs is not None:
                reduced = self.refs(value)
                if reduced is not None:
                    return reduced
            if base is not None:
                if kind is type and value.__module__ == "types":
                    return NotImplemented  # cloudpickle would need itself to find SimpleNamespace
                return super().reducer_override(value)
            if (kind is function or isinstance(value, type)) and value.__module__ == "__main__":
                raise Unshared(value.__qualname__)
            return NotImplemented

    _pickler_type = Pickler
    return Pickler


def encode(value: Any, refs: Any = None) -> tuple[list[memoryview], bool]:
    """Pickle ``value`` into frames; also tells whether they carry code objects.

    The out-of-band frames are views of the live objects: copy them before anything else may
    run if they must be a snapshot.
    """
    frames = [memoryview(b"")]

    def keep(buffer: Any) -> bool:
        raw = buffer.raw()
        if raw.nbytes < IN_BAND:
            return True  # pickle it in-band
        frames.append(raw)
        return False

    file = BytesIO()
    pickler = pickler_type()(file, refs, buffer_callback=keep)
    pickler.dump(value)
    # Not getbuffer(): from Python 3.13 on a collected BytesIO that is exported complains aloud.
    frames[0] = memoryview(file.getvalue())
    return frames, pickler.carries_code


def decode(frames: Sequence[Buffer]) -> Any:
    """The object again. Only ever call it on frames whose digest was checked."""
    return _loads(frames[0], buffers=frames[1:])


def culprit(value: Any, path: str) -> tuple[str, BaseException]:
    """Where in ``value`` the part sits that cannot be pickled, e.g. ``config['lock']``.

    Walks into containers, attributes and closures along the first child that fails by
    itself; a child that pickles is not looked into.
    """

    def fails(part: Any) -> BaseException | None:
        try:
            encode(part)
        except Exception as error:
            return error
        return None

    error = fails(value) or pickle.PicklingError("it can be pickled alone, but not together")
    above = [value]  # held, so that no id is used again
    # Nested too deeply, it is to blame as a whole (cloudpickle wraps the RecursionError).
    while not isinstance(error.__cause__ or error, RecursionError):
        for suffix, child in _children(above[-1]):
            if any(child is part for part in above):
                continue
            found = fails(child)
            if found is not None:
                path, error = path + suffix, found
                above.append(child)
                break
        else:
            break
    return path, error


_REDUCERS = ("__reduce__", "__reduce_ex__")


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield "[%s]" % (repr(key) if type(key) in (str, int, float, bool) else "…"), item
            yield ".keys()", key
    elif isinstance(value, (list, tuple, set, frozenset, collections.deque)):
        for index, item in enumerate(value):
            yield ("[%d]" % index) if hasattr(value, "__getitem__") else "{…}", item
    names = getattr(getattr(value, "__code__", None), "co_freevars", ())
    for name, cell in zip(names, getattr(value, "__closure__", None) or ()):
        try:
            yield " (closure: %s)" % name, cell.cell_contents
        except ValueError:  # a cell that is not filled yet
            pass
    wanted = getattr(getattr(value, "__code__", None), "co_names", ())
    scope = getattr(value, "__globals__", {})
    for name in wanted:
        if name in scope:
            yield " (global: %s)" % name, scope[name]
    # Only what would be pickled, so that an attribute that is left out is not blamed (and
    # pandas's _attrs is told as the df.attrs people write).
    kind = type(value)
    try:
        if any(getattr(kind, name) is not getattr(object, name) for name in _REDUCERS):
            state = (*value.__reduce_ex__(5), None, None)[2]
        elif hasattr(value, "__getstate__"):  # from Python 3.11 on, every object
            state = value.__getstate__()
        else:
            state = getattr(value, "__dict__", None)
    except Exception:
        state = None
    for part in state if isinstance(state, tuple) else (state,):
        if isinstance(part, dict):
            for name, item in part.items():
                yield ".%s" % name, item
