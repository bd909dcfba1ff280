"""Objects as payloads: pickling before sending, unpickling after receiving.

Rule: sans-I/O, in any thread. What an object needs in the kernel is known before it is sent. Only
this file unpickles values from the kernel; only ``raising.raise_error`` unpickles exceptions.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

from bridgehead._errors import (
    BridgeError,
    DecodeError,
    EncodeError,
    IncompatiblePython,
    MissingInKernel,
    ProtocolError,
    UntrustedPayload,
)
from bridgehead._protocol import ref as _ref
from bridgehead._protocol.raising import too_large
from bridgehead._protocol.spelling import spelled
from bridgehead._shipped import reducers as _reducers  # noqa: F401 - they fill a table
from bridgehead._shipped.wire import pickling
from bridgehead._shipped.wire.digest import Buffer
from bridgehead._shipped.wire.errors import TooLarge, WireError, reason
from bridgehead._shipped.wire.frames import digest
from bridgehead._shipped.wire.header import PYTHON
from bridgehead._shipped.wire.segments import Segment

TWO_THREADS = 16 << 20  # bytes from which on two threads compute the digest


@dataclass(slots=True, eq=False)  # making a frozen one takes five times as long
class Payload:
    """The frames of a pickled object, their digest, and what they need in the kernel; constant.

    Attributes:
        python: the Python version of the code in it.
        digest: see ``_shipped.wire.digest``; empty until it is computed. ``"none:"``, that of the
            direct lane, is no sum over the frames.
        segment: the segment that holds the frames already, when several kernels get the same.
    """

    frames: Sequence[memoryview]
    carries_code: bool = False
    refs: bool = False
    python: Sequence[int] = (*PYTHON,)
    digest: str = ""
    segment: Segment | None = None

    @property
    def nbytes(self) -> int:
        return sum(frame.nbytes for frame in self.frames)

    def is_signed(self, algorithm: str) -> bool:
        """Return whether the digest will do on a lane that signs with this algorithm."""
        return bool(self.digest) and (self.digest == "none:") == (algorithm == "none")

    def signed(self, algorithm: str) -> Payload:
        """Return the payload with its digest.

        Two threads compute that of a large payload: until it is known nothing can be sent, and
        the kernel is idle. Sums are no faster in two threads.
        """
        if self.nbytes < TWO_THREADS or algorithm == "sums":
            return replace(self, digest=digest(algorithm, self.frames))
        with ThreadPoolExecutor(2) as pool:
            return replace(self, digest=digest(algorithm, self.frames, pool.map))


@dataclass(frozen=True, slots=True)
class RawPickle:
    """A pickle that only its receiver opens: a push of it binds the object in the pickle."""

    data: bytes

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[bytes]]:
        return pickling.open_pickle, (self.data,)


EMPTY = Payload(())


@functools.cache
def empty(algorithm: str) -> Payload:
    """Return a payload without frames, signed."""
    return EMPTY.signed(algorithm)


@dataclass(slots=True, eq=False)
class PayloadSource:
    """The object to pickle for one request, and the options; constant.

    Attributes:
        values: the object.
        parts: its parts by name, for the error message.
        by_value: modules that are shipped by value.
        refs: the functions that reduce references to objects in the kernel, by their types.
        limit: the most bytes that may cross; None for no limit.
        data: whether the kernel opens nothing but data.
    """

    values: Any
    parts: Mapping[str, Any]
    by_value: Sequence[ModuleType] = ()
    refs: Mapping[type, Callable[[Any], Any]] | None = None
    limit: int | None = None
    data: bool = False

    def pack_small(self, algorithm: str) -> Payload | None:
        """Return the payload, signed, of a few plain objects; None for all others.

        That is too short to be worth a thread, and runs no code of the user's.
        """
        summed = self.data or algorithm != "none"
        if self.by_value or not pickling.is_small(self.values, summed=summed):
            return None
        if self.data:
            return self.pack(algorithm)
        try:
            frames = pickling.encode_small(self.values)
        except RecursionError:  # ``pack`` reports it, with the path
            return None
        payload = Payload(frames, digest=digest(algorithm, frames))
        self._check(payload)
        return payload

    def pack(self, algorithm: str) -> Payload:
        """Return the payload, signed.

        Any thread may call this; an event loop in another thread keeps running meanwhile.
        """
        if self.data:
            payload = encode_data(self.values, self.parts)
        else:
            payload = encode(
                self.values, self.parts, by_value=self.by_value, refs=self.refs, limit=self.limit
            )
        self._check(payload)
        return payload.signed(algorithm)

    def _check(self, payload: Payload) -> None:
        if self.limit is not None and payload.nbytes > self.limit:
            raise too_large(payload.nbytes, self.limit)


@dataclass(slots=True, eq=False)
class SharedSource(PayloadSource):
    """The object of a request that several kernels get: unless it is small, it is pickled once.

    Attributes:
        error: why it cannot be pickled, for whichever kernel.
    """

    error: Exception | None = None
    _payload: Payload | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def pack(self, algorithm: str) -> Payload:
        with self._lock:
            if self.error is not None:
                raise self.error
            try:
                payload = self._payload or PayloadSource.pack(self, algorithm)
            except Exception as error:
                self.error = error
                raise
            self._payload = payload
        return payload if payload.is_signed(algorithm) else payload.signed(algorithm)


class _PicklingLock:
    """A lock that many threads share to pickle, and one holds alone to ship modules by value.

    cloudpickle has one registry of modules for the process. A plain lock would not do: one thread
    that pickles for long, even for a call that was cancelled, would block all others.
    """

    def __init__(self) -> None:
        self._exclusive = False
        self._sharing = 0
        self._changed = threading.Condition()

    @contextmanager
    def take(self, *, exclusive: bool) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(
                lambda: not self._exclusive and not (exclusive and self._sharing)
            )
            self._exclusive = exclusive
            self._sharing += not exclusive
        try:
            yield
        finally:
            with self._changed:
                self._exclusive = False
                self._sharing -= not exclusive
                self._changed.notify_all()


_registry = _PicklingLock()


@contextmanager
def _by_value(modules: Sequence[ModuleType]) -> Iterator[None]:
    """Let cloudpickle ship these modules by value while the block runs."""
    if isinstance(modules, ModuleType) or not all(isinstance(m, ModuleType) for m in modules):
        raise TypeError("by_value takes a list of modules, as in by_value=[mymodule]")
    with _registry.take(exclusive=bool(modules)):
        if not modules:
            yield
            return
        import cloudpickle  # few programs need it here, and it takes 3 ms
        from cloudpickle.cloudpickle import list_registry_pickle_by_value

        added = [m for m in modules if m.__name__ not in list_registry_pickle_by_value()]
        try:
            for module in added:
                cloudpickle.register_pickle_by_value(module)
            yield
        finally:
            for module in added:
                if module.__name__ in list_registry_pickle_by_value():
                    cloudpickle.unregister_pickle_by_value(module)


def encode(
    values: Any,
    parts: Mapping[str, Any],
    *,
    by_value: Sequence[ModuleType] = (),
    refs: Mapping[type, Callable[[Any], Any]] | None = None,
    limit: int | None = None,
) -> Payload:
    """Pickle ``values`` into a payload; see ``PayloadSource`` for the arguments.

    Raises:
        EncodeError: a part of the object cannot be pickled; ``path`` names it.
        PayloadTooLarge: the payload has more than ``limit`` bytes.
        ValueError: ``refs`` raised it, for a ref of another bridge.
        NameNotFound, BridgeClosed: ``refs`` raised it, for a ref whose object was freed, or for a
            callback while the bridge closes.
    """
    used, wrong = False, None

    def noting(reduce: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def reduce_ref(ref: Any) -> Any:
            nonlocal used, wrong
            used = True
            try:
                return reduce(ref)
            except (ValueError, BridgeError) as error:
                wrong = error
                raise

        return reduce_ref

    reducers = {kind: noting(reduce) for kind, reduce in (refs or {}).items()}
    with _by_value(by_value):
        try:
            frames, carries_code = pickling.encode(values, reducers, limit)
        except TooLarge as error:
            raise too_large(error.nbytes, limit) from None
        except Exception as error:
            if wrong is not None:
                raise wrong from None
            path, why = _find_unpicklable_part(parts, error, refs)
            raise EncodeError(f"{path} cannot be pickled: {reason(why)}", path=path) from error
    return Payload(frames, carries_code, used)


def encode_data(values: Any, parts: Mapping[str, Any]) -> Payload:
    """Pickle ``values`` as data only; see ``PayloadSource`` for the arguments.

    The reader has limits of its own, so what was written is read once before it is sent.

    Raises:
        UntrustedPayload: a part of the object is not data, or beyond what a reader of data takes;
            the message names it.
        EncodeError: the object is data, but cannot be pickled.
    """
    from bridgehead._shipped import data as codec

    try:
        frames = codec.encode_data(values)
        codec.decode_data(frames)
    except WireError as error:
        path, kind = str(error.details.get("path", "")), str(error.details.get("type", ""))
        if error.kind != "untrusted":
            name, why = _find_refused_part(parts, error)
            kind = type(parts.get(name, values)).__qualname__
            raise UntrustedPayload(
                f"{name} cannot cross as data: {why}; nothing was sent", type=kind
            ) from None
        for name in parts:
            path = path.replace(f"[{name!r}]", name, 1) if path.startswith(f"[{name!r}]") else path
        raise UntrustedPayload(
            f"{path or ', '.join(parts)} is {kind}, which is not data; nothing was sent", type=kind
        ) from None
    except Exception as error:
        raise EncodeError(f"{', '.join(parts)} cannot be pickled: {reason(error)}") from error
    return Payload(frames)


def _find_refused_part(parts: Mapping[str, Any], error: WireError) -> tuple[str, WireError]:
    """Return the name of the part that a reader of data refuses, and its error."""
    from bridgehead._shipped import data as codec

    for name, part in parts.items():
        try:
            codec.decode_data(codec.encode_data(part))
        except WireError as refused:
            return name, refused
    return ", ".join(parts), error


def _find_unpicklable_part(
    parts: Mapping[str, Any], error: Exception, refs: Mapping[type, Callable[[Any], Any]] | None
) -> tuple[str, BaseException]:
    for name, part in parts.items():
        try:
            pickling.encode(part, refs)
        except Exception:  # noqa: BLE001 - whatever it raises, this part is the cause
            return pickling.find_unpicklable(part, name, refs, _children)
    return ", ".join(parts), error


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    return _ref.parts(value) if type(value) is _ref.Ref else pickling.children(value)


def check_payload(
    payload: Payload, python: Sequence[int], versions: Mapping[str, str], executable: str = ""
) -> None:
    """Refuse, before it is sent, a payload that the kernel's interpreter could not run.

    Raises:
        IncompatiblePython: code objects between two minor versions: of 12 ordered pairs of
            3.11-3.13, 7 segfault the kernel and 3 raise SystemError (measured).
        MissingInKernel: the payload carries code, and the kernel has no cloudpickle.
    """
    if not payload.carries_code:
        return
    if list(python[:2]) != list(payload.python):
        ours, theirs = (".".join(map(str, one[:2])) for one in (payload.python, python))
        raise IncompatiblePython(
            f"functions and classes defined here are code of Python {ours}, but the kernel runs "
            f"Python {theirs}; nothing was sent. Send data, and define the code in the kernel with "
            "run()"
        )
    if "cloudpickle" not in versions:
        where = f" ({executable})" if executable else ""
        raise MissingInKernel(
            f"functions and classes defined here need cloudpickle in the kernel{where}; "
            "nothing was sent. Install cloudpickle in the kernel's environment",
            module="cloudpickle",
        )


def check_values(unpickled: Any, count: int) -> tuple[Any, ...]:
    """Return the values of a response, checked to be ``count`` values.

    Raises:
        ProtocolError: the response has something else, or another number of values.
    """
    if type(unpickled) is not tuple or len(unpickled) != count:
        raise ProtocolError("the response does not match the request")
    return unpickled


def decode(frames: Sequence[Buffer]) -> Any:
    """Unpickle an object. Any thread may call this, like ``encode``.

    Raises:
        DecodeError: the object cannot be unpickled in this process.
    """
    try:
        return pickling.decode(frames)
    except MemoryError as error:
        raise DecodeError("the request ran, but there is no memory here for its value") from error
    except Exception as error:
        hint = ""
        if isinstance(error, ImportError) and error.name:
            hint = f"; {error.name!r} exists in the kernel but not in this program"
        raise DecodeError(
            f"the value arrived but cannot be unpickled here: {reason(error)}{hint}"
        ) from error


def decode_data(
    frames: Sequence[Buffer], allow: Mapping[str, type], names: Sequence[str] = ()
) -> Any:
    """Unpickle an object that is only data; whatever the frames are, no code of theirs runs.

    ``allow`` has the classes beyond data that may be built, by ``module.qualname``. If the object
    is a tuple, ``names`` says what its values are.

    Raises:
        UntrustedPayload: the object is more than data, or nested too deeply; it was not opened.
        DecodeError: a library that the object needs is not installed in this process.
        ProtocolError: the frames are damaged or forged.
    """
    from bridgehead._shipped import data as codec

    try:
        return codec.decode_data(frames, allow)
    except MemoryError as error:
        raise DecodeError("the request ran, but there is no memory here for its value") from error
    except WireError as error:
        if error.kind == "untrusted":
            raise UntrustedPayload(
                f"{error}; it was not opened, because only data is trusted (see "
                f"{spelled('allow= and trust=')})",
                type=str(error.details.get("type", "")),
            ) from None
        if error.kind == "missing":
            raise DecodeError(f"the value arrived, but {error}") from None
        if str(error) == codec.budget.TOO_DEEP:
            index = str(error.details.get("path", ""))[1:-1]
            is_known = index.isdigit() and int(index) < len(names)
            name = names[int(index)] if is_known else " or ".join(dict.fromkeys(names))
            raise UntrustedPayload(
                f"{name or 'the value'} cannot cross as data: {error}; it was not opened"
            ) from None
        raise ProtocolError(f"the value is not valid data: {error}") from None
