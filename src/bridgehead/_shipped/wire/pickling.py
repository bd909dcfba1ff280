"""Objects as frames: the pickler, the unpickler, and error paths.

Rule: use the standard library only, and cloudpickle where it is needed and installed. Run on
Python 3.8 and later, the same file at both ends. This file knows no message and no header.
"""

from __future__ import annotations

import collections
import copyreg
import pickle
import sys
from enum import Enum
from io import BytesIO
from typing import Any, ClassVar, Iterator, Mapping, Sequence

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.wire.classes import ArrivedClasses, reduce_class, reduce_member
    from bridgehead._shipped.wire.collector import PausedCollector
    from bridgehead._shipped.wire.digest import Buffer
    from bridgehead._shipped.wire.errors import TooLarge
    from bridgehead._shipped.wire.frames import ALIGN, IN_BAND, MAX_FRAMES
    from bridgehead._shipped.wire.large import PickleOutput
    from bridgehead._shipped.wire.libraries import FINDERS
    from bridgehead._shipped.wire.names import (
        BUILDERS,
        DESCRIPTORS,
        EXTENSION_CODES,
        OWN_REDUCERS,
        check_name,
        has_own_name,
        is_by_value,
        is_single_dispatch,
        make_type_parameter,
        reduce_descriptor,
        reduce_single_dispatch,
        share_cells,
        spelled_out,
    )

_Pickler, _dumps = pickle.Pickler, pickle.dumps  # captured, because a user may replace them


class CodeRefused(Exception):
    """The value carries code objects that the receiver's Python could not run."""


class CloudpickleMissing(Exception):
    """Pickling needs cloudpickle, which this interpreter does not have."""


class _FrameReader:
    """A frame as a file, which the C unpickler reads in steps; other threads run in between."""

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


def _reduce_itself(value: Any) -> Any:
    """Return how an object reduces itself.

    The C pickler would not say that an object asks to be pickled by its name.
    """
    return value.__reduce_ex__(5)


_DEFINITION = object()  # stands for ``Pickler.reduce_definition``
_pickler_type: Any = None


def pickler_type() -> Any:
    """Return the pickler class, made on first use; cloudpickle's, if that is installed.

    It also notes whether code objects are pickled.
    """
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

    tables: Any = (copyreg.dispatch_table,)
    if base is not None:
        tables = getattr(base.dispatch_table, "maps", (base.dispatch_table,))
        # Classes without a name of their own in a module; cloudpickle has one for each.
        special = {*cloudpickle.cloudpickle._BUILTIN_TYPE_NAMES, type(None), type(...)}
        special.add(type(NotImplemented))

    class Pickler(base or _Pickler):  # type: ignore[misc]
        """The pickler; ``carries_code`` says whether it pickled a code object (see ``encode``)."""

        # ``find_reducer`` has looked into the tables; cloudpickle's takes 1 µs for each object.
        dispatch_table: ClassVar[dict[Any, Any]] = {}

        def __init__(self, file: Any, refs: Any = None, shared: Any = None, **options: Any) -> None:
            super().__init__(file, protocol=5, **options)
            self.carries_code = False
            self.shared: dict[str, Any] = shared  # see ``libraries``
            self.reducers: dict[Any, Any] = {function: _DEFINITION, **(refs or {})}  # by type

        def reducer_override(self, value: Any) -> Any:
            kind = type(value)
            try:
                reducer = self.reducers[kind]
            except KeyError:
                reducer = self.reducers[kind] = self.find_reducer(kind)
            if reducer is None:
                return NotImplemented
            if reducer is _DEFINITION:
                return self.reduce_definition(value)
            reduced = reducer(value)
            return reduced if type(reduced) is not str else check_name(value, reduced)

        def find_reducer(self, kind: Any) -> Any:
            """Return the function that reduces objects of a type.

            Return None if the C pickler does it just so.
            """
            if kind is code:
                self.carries_code = True
            if issubclass(kind, type):
                return _DEFINITION
            for table in (OWN_REDUCERS, *tables):
                if kind in table:
                    return table[kind]
            # A builder is pickled by its name, under which a user may have removed this module.
            for find in FINDERS if __name__ in sys.modules else ():
                reducer = find(kind, self.shared)
                if reducer is not None:
                    return reducer
            if kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__:
                return reduce_descriptor if issubclass(kind, tuple(DESCRIPTORS)) else None
            if issubclass(kind, Enum) and kind.__reduce_ex__ is Enum.__reduce_ex__:
                return _reduce_itself if has_own_name(kind) else reduce_member
            return _reduce_itself

        def reduce_definition(self, value: Any) -> Any:
            """Reduce a function or a class, by its name or by value."""
            if has_own_name(value):
                # The pickler writes the name.
                return spelled_out(value.__module__, value.__qualname__) or NotImplemented
            module = value.__module__
            by_value = type(module) is str and is_by_value(module)
            if base is None:
                if by_value:
                    raise CloudpickleMissing(value.__qualname__)
                return NotImplemented
            if issubclass(type(value), type):
                if module is None or value in special:
                    return super().reducer_override(value)
                return reduce_class(value)
            if is_single_dispatch(value):
                return reduce_single_dispatch(value)
            reduced = super().reducer_override(value)
            if reduced is NotImplemented and by_value:
                reduced = self._dynamic_function_reduce(value)
            if type(reduced) is not tuple:
                return reduced
            parameters = getattr(value, "__type_params__", ())  # from Python 3.12 on
            if parameters:
                reduced[2][1]["__type_params__"] = parameters
            return share_cells(reduced, value.__closure__) if value.__closure__ else reduced

    _pickler_type = Pickler
    return Pickler


def encode(
    value: Any, refs: Any = None, limit: int | None = None, *, stops: bool = False
) -> tuple[list[memoryview], bool]:
    """Pickle ``value`` into frames; return them, and whether they carry code objects.

    ``refs`` has the functions that reduce references, by their types. The out-of-band frames are
    views of the live objects. If they must be a snapshot, copy them
    before any other code may run. Raise ``TooLarge`` if there are more than ``limit`` bytes in all:
    at the end, with their number, or as soon as that is known if it ``stops`` then.
    """
    shared: dict[str, Any] = {}
    while True:
        frames = [memoryview(b"")]

        def keep(buffer: Any, frames: list[memoryview] = frames) -> bool:
            raw = buffer.raw()
            if raw.nbytes < IN_BAND or len(frames) >= MAX_FRAMES:
                return True  # pickle it in-band
            frames.append(raw)
            return False

        output = PickleOutput(limit, frames, stops=stops)
        pickler = pickler_type()(output, refs, shared, buffer_callback=keep)
        pickler.dump(value)
        # What some objects share may be known only when all of them were met.
        if not [one for one in shared.values() if one.pickles_again()]:
            break
    if len(frames) > 1:  # unpicklers ignore bytes after the end of a pickle
        output.write(bytes(-output.total % ALIGN))
    total = output.total + sum(frame.nbytes for frame in frames)
    if limit is not None and total > limit:
        raise TooLarge(total)
    # Not getbuffer(): from Python 3.13 on, a BytesIO that is collected while exported warns.
    frames[0] = memoryview(output.getvalue())
    return frames, pickler.carries_code


_SCALARS = frozenset([int, float, complex, bool, type(None)])
_TEXTS = frozenset([str, bytes, bytearray])
_CONTAINERS = frozenset([list, tuple, dict, set, frozenset])
EXPORTED = frozenset("?bBhHiIlLqQefdgFDG")  # dtypes of which numpy gives the pickler a buffer


def is_small(value: Any, *, summed: bool = True) -> bool:
    """Return whether a value is a few plain objects or a small array.

    Pickling it runs no code of the user's, and is too quick to be worth a thread. Unless frames are
    ``summed`` for a digest, a large array is small, too: only its address is pickled.
    """
    left, budget = [value], 2000
    if EXTENSION_CODES:
        return False  # only our own pickler writes names instead of them
    while left:
        budget -= 1
        item = left.pop()
        kind = type(item)
        if type(kind) is not type:  # the hash of a class may be code of its metaclass
            return False
        if kind in _CONTAINERS:
            budget -= len(item)
            if budget > 0:
                left += item if kind is not dict else (*item, *item.values())
        elif kind in _TEXTS:
            budget -= len(item) >> 10
        elif (kind.__module__, kind.__name__) == ("numpy", "ndarray"):
            special = item.dtype.hasobject or _is_special(item)
            if special or summed or not item.flags.forc or item.dtype.char not in EXPORTED:
                budget -= 2000 if special else item.nbytes >> 10
        elif kind not in _SCALARS:
            return False
        if budget < 0:
            return False
    return True


def _is_special(array: Any) -> bool:
    """Return whether numpy's own pickle of an array would lose something; see ``reducers``."""
    flags, dtype = array.flags, array.dtype
    if flags.writeable:
        swapped = dtype.kind in "mM" and not dtype.isnative  # numpy keeps that of other dtypes
        return swapped or (not flags.forc and 0 in array.strides)
    return not flags.forc or dtype.kind in "mMV"


def encode_small(value: Any) -> list[memoryview]:
    """Return the frames of a value that ``is_small``, without our own pickler."""
    frames = [memoryview(b"")]

    def keep(buffer: Any) -> bool:
        raw = buffer.raw()
        if raw.nbytes < IN_BAND:
            return True
        frames.append(raw)
        return False

    frames[0] = memoryview(_dumps(value, 5, buffer_callback=keep))
    return frames


LARGE = 1 << 18  # bytes; larger pickles are read in steps, so that other threads can run


class Unpickler(pickle.Unpickler):
    """The unpickler; classes that arrive by value are made by ``arrivals``.

    ``stands_for`` has the functions that return what a ref or a callback stands for.
    """

    arrivals: ArrivedClasses | None = None
    stands_for: Mapping[str, Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        if name in _REPLACED or name in BUILDERS:
            if module[:12] == "cloudpickle." and name in _OF_CLOUDPICKLE:
                super().find_class(module, name)  # imports it, or reports that it is missing
                if self.arrivals is None:
                    self.arrivals = ArrivedClasses()
                return getattr(self.arrivals, _OF_CLOUDPICKLE[name])
            if module == "bridgehead" and name in self.stands_for:
                return self.stands_for[name]
            if module[:11] in ("bridgehead.", "_bridgehead"):  # this package, in either process
                if name == make_type_parameter.__name__:
                    pickler_type()  # imports cloudpickle, if it is installed: it knows identities
                return self.open_pickle if name == open_pickle.__name__ else BUILDERS[name]
        return super().find_class(module, name)

    def open_pickle(self, data: bytes) -> Any:
        """Return the object in a pickle that is in this pickle."""
        inner = type(self)(BytesIO(data))
        inner.arrivals = self.arrivals = self.arrivals or ArrivedClasses()
        return inner.load()


def open_pickle(data: bytes) -> Any:
    """Stand, in a pickle, for ``Unpickler.open_pickle``."""
    return decode([data])


_OF_CLOUDPICKLE = {
    "_make_skeleton_class": "make_class",
    "_make_skeleton_enum": "make_enum",
    "_class_setstate": "set_state",
}
_REPLACED = frozenset([*_OF_CLOUDPICKLE, "Ref", "Callback", open_pickle.__name__])


def unpickle(
    frames: Sequence[Buffer], stands_for: Mapping[str, Any] | None = None
) -> tuple[Any, ArrivedClasses | None]:
    """Unpickle an object, and leave the classes alone that exist; see ``ArrivedClasses``.

    Call this only on frames whose digest was checked.
    """
    nbytes = memoryview(frames[0]).nbytes
    leaf = BytesIO(frames[0]) if nbytes < LARGE else _FrameReader(frames[0])
    unpickler = Unpickler(leaf, buffers=frames[1:])
    unpickler.stands_for = stands_for or {}
    try:
        with PausedCollector(nbytes):
            value = unpickler.load()
            if unpickler.arrivals is not None:
                unpickler.arrivals.finish()
    except BaseException:
        if unpickler.arrivals is not None:
            unpickler.arrivals.abandon()
        raise
    return value, unpickler.arrivals


def decode(frames: Sequence[Buffer], stands_for: Mapping[str, Any] | None = None) -> Any:
    """Unpickle an object; see ``unpickle``.

    A class that is sent itself updates the one that arrived before. It does not update the one
    that this process defined.
    """
    value, arrivals = unpickle(frames, stands_for)
    if arrivals is not None:
        with arrivals.updated(value, own=False):
            pass
    return value


def children(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a value that pickling reaches, each with its suffix to the path."""
    try:
        yield from _children(value)
    except Exception:  # code of the value's class, such as a property ``__class__``
        return


def find_unpicklable(
    value: Any, path: str, refs: Any = None, parts_of: Any = children
) -> tuple[str, BaseException]:
    """Return the path to the part of ``value`` that cannot be pickled, and its error.

    The path is an expression such as ``config['lock']``. The search goes into containers,
    attributes and closures, each time into the first child that fails by itself. It does not look
    into a child that can be pickled. ``refs`` is as in ``encode``; ``parts_of`` is ``children``, or
    a function that knows the parts of references, too.
    """

    def fails(part: Any) -> BaseException | None:
        try:
            encode(part, refs)
        except Exception as error:
            return error
        return None

    error = fails(value) or pickle.PicklingError("its parts can be pickled, but not together")
    above = [value]  # kept alive, so that no id is used again
    # A value nested too deeply is reported as a whole (cloudpickle wraps the RecursionError).
    while not isinstance(error.__cause__ or error, RecursionError):
        for suffix, child in parts_of(above[-1]):
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
        except ValueError:  # the closure's cell is still empty
            pass
    wanted = getattr(getattr(value, "__code__", None), "co_names", ())
    scope = getattr(value, "__globals__", {})
    for name in wanted:
        if name in scope:
            yield " (global: %s)" % name, scope[name]
    # Only what would be pickled: an attribute that is left out is not at fault, and pandas's _attrs
    # is reported as the df.attrs that users write.
    kind = type(value)
    try:
        if any(getattr(kind, name) is not getattr(object, name) for name in _REDUCERS):
            state = (*value.__reduce_ex__(5), None, None)[2]
        elif hasattr(value, "__getstate__"):  # every object has it from Python 3.11 on
            state = value.__getstate__()
        else:
            state = getattr(value, "__dict__", None)
    except Exception:
        state = None
    for part in state if isinstance(state, tuple) else (state,):
        if isinstance(part, dict):
            for name, item in part.items():
                yield ".%s" % name, item
