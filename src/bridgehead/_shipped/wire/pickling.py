"""Objects as frames: the pickler, and what is to blame where it fails.

Rule: standard library only, Python 3.8 and later, cloudpickle where it is needed and there. The
same on both sides: shipped to the kernel together with ``_loader.py`` and imported by the near
side too. No message and no header is known here.
"""

from __future__ import annotations

import collections
import gc
import pickle
from io import BytesIO
from typing import Any, Iterator, Sequence

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.wire.digest import Buffer
    from bridgehead._shipped.wire.errors import TooLarge
    from bridgehead._shipped.wire.frames import ALIGN, IN_BAND

_Pickler, _dumps = pickle.Pickler, pickle.dumps  # captured: a user may replace them


class CodeRefused(Exception):
    """The value carries code objects and the other Python could not run them."""


class CloudpickleMissing(Exception):
    """Pickling needs cloudpickle, which this interpreter does not have."""


class _PickleOutput(BytesIO):
    """What a pickle is written on, up to a limit; beyond it, it is only counted.

    ``write`` is Python's on purpose: the C pickler calls it every 64 KiB, and there another
    thread gets its turn, an event loop's for one.
    """

    def __init__(self, limit: int | None) -> None:
        super().__init__()
        self.limit, self.total = limit, 0

    def write(self, data: Any) -> int:
        self.total += len(data)
        if self.limit is None or self.total <= self.limit:
            super().write(data)
        return len(data)


class _FrameReader:
    """A frame as a file: the C unpickler reads it frame by frame, and others get their turn."""

    def __init__(self, frame: Buffer) -> None:
        self.frame, self.at = memoryview(frame), 0

    def read(self, count: int = -1) -> bytes:
        start = self.at
        self.at = len(self.frame) if count < 0 else start + count
        return bytes(self.frame[start : self.at])

    def readinto(self, target: Any) -> int:
        part = self.frame[self.at : self.at + len(target)]
        target[: len(part)] = part
        self.at += len(part)
        return len(part)

    def readline(self) -> bytes:
        line = BytesIO(bytes(self.frame[self.at : self.at + 65536])).readline()
        self.at += len(line)
        return line


_pickler_type: Any = None


def pickler_type() -> Any:
    """cloudpickle's pickler that also notes what is pickled by value; made on first use."""
    global _pickler_type
    if _pickler_type is not None:
        return _pickler_type
    code = type(pickler_type.__code__)
    function = type(pickler_type)
    replaced, pickle.Pickler = pickle.Pickler, _Pickler  # type: ignore[misc]
    try:
        import cloudpickle
    except ImportError:
        base: Any = None
    else:
        base = cloudpickle.Pickler
    finally:
        pickle.Pickler = replaced  # type: ignore[misc]

    class Pickler(base or _Pickler):  # type: ignore[misc]
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
                raise CloudpickleMissing(value.__qualname__)
            return NotImplemented

    _pickler_type = Pickler
    return Pickler


def encode(value: Any, refs: Any = None, limit: int | None = None) -> tuple[list[memoryview], bool]:
    """Pickle ``value`` into frames; also tells whether they carry code objects.

    The out-of-band frames are views of the live objects: copy them before anything else may
    run if they must be a snapshot. ``TooLarge`` beyond ``limit`` bytes in all.
    """
    frames = [memoryview(b"")]

    def keep(buffer: Any) -> bool:
        raw = buffer.raw()
        if raw.nbytes < IN_BAND:
            return True  # pickle it in-band
        frames.append(raw)
        return False

    paper = _PickleOutput(limit)
    pickler = pickler_type()(paper, refs, buffer_callback=keep)
    pickler.dump(value)
    if len(frames) > 1:  # nobody reads on after a pickle's end
        paper.write(bytes(-paper.total % ALIGN))
    total = paper.total + sum(frame.nbytes for frame in frames)
    if limit is not None and total > limit:
        raise TooLarge(total)
    # Not getbuffer(): from Python 3.13 on a collected BytesIO that is exported complains aloud.
    frames[0] = memoryview(paper.getvalue())
    return frames, pickler.carries_code


_SCALARS = frozenset([int, float, complex, bool, type(None)])
_TEXTS = frozenset([str, bytes, bytearray])
_CONTAINERS = frozenset([list, tuple, dict, set, frozenset])


def is_small(value: Any) -> bool:
    """Whether it is few plain objects or a small array: no code of a user's runs to pickle it,
    and no time passes that would be worth a thread.
    """
    left, budget = [value], 2000
    while left:
        budget -= 1
        item = left.pop()
        kind = type(item)
        if kind in _CONTAINERS:
            budget -= len(item)
            if budget > 0:
                left += item if kind is not dict else (*item, *item.values())
        elif kind in _TEXTS:
            budget -= len(item) >> 10
        elif (kind.__module__, kind.__name__) == ("numpy", "ndarray"):
            budget -= 2000 if item.dtype.hasobject else item.nbytes >> 10
        elif kind not in _SCALARS:
            return False
        if budget < 0:
            return False
    return True


def encode_small(value: Any) -> list[memoryview]:
    """What ``encode`` gives, for what ``is_small``: it needs no pickler of ours."""
    frames = [memoryview(b"")]

    def keep(buffer: Any) -> bool:
        raw = buffer.raw()
        if raw.nbytes < IN_BAND:
            return True
        frames.append(raw)
        return False

    frames[0] = memoryview(_dumps(value, 5, buffer_callback=keep))
    return frames


LARGE = 1 << 18  # bytes; a pickle from here on is read in steps between which others may run


def decode(frames: Sequence[Buffer], unpickler: Any = pickle.Unpickler) -> Any:
    """The object again. Only ever call it on frames whose digest was checked.

    Without the garbage collector meanwhile: nothing that is being built is garbage yet, and
    10,000 small lists take 2.3 ms instead of 3.3.
    """
    nbytes, paused = memoryview(frames[0]).nbytes, False
    leaf = BytesIO(frames[0]) if nbytes < LARGE else _FrameReader(frames[0])
    try:
        if nbytes > IN_BAND and gc.isenabled():
            paused = True
            gc.disable()
        return unpickler(leaf, buffers=frames[1:]).load()
    finally:
        if paused:
            gc.enable()


def find_unpicklable(value: Any, path: str) -> tuple[str, BaseException]:
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
        for suffix, child in children(above[-1]):
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


def children(value: Any) -> Iterator[tuple[str, Any]]:
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
