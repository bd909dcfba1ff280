"""Objects on their way: pickled into a parcel, and opened again.

Rule: sans-IO, in any thread. What an object needs over there is known before it is sent. A
value that comes back is unpickled here alone, an exception in ``raising.raise_error`` alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pickle import loads
from types import ModuleType
from typing import Any

import cloudpickle
from cloudpickle.cloudpickle import list_registry_pickle_by_value

from bridgehead._errors import (
    DecodeError,
    EncodeError,
    IncompatiblePython,
    MissingInKernel,
    ProtocolError,
    UntrustedPayload,
)
from bridgehead._protocol.raising import too_large
from bridgehead._protocol.request import PYTHON
from bridgehead._shipped.wire import frames as _wire
from bridgehead._shipped.wire import pickling as _codec
from bridgehead._shipped.wire.digest import LEAF, Buffer, summed
from bridgehead._shipped.wire.errors import TooLarge, WireError

IN_TWO = 4 * LEAF  # bytes from which on the digest is computed in two threads


@dataclass(frozen=True, slots=True)
class Payload:
    """An object on its way: its frames and what they need over there."""

    frames: list[memoryview]
    carries_code: bool
    refs: bool
    python: Sequence[int] = (*PYTHON,)  # whose the code is

    @property
    def nbytes(self) -> int:
        return sum(frame.nbytes for frame in self.frames)


@dataclass(frozen=True, slots=True)
class RawPickle:
    """A pickle that is opened where it arrives, and not here: a push of it binds what is in it."""

    data: bytes

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[bytes]]:
        return loads, (self.data,)


EMPTY = Payload([], carries_code=False, refs=False)


@dataclass(frozen=True, slots=True)
class PayloadSource:
    """What is to be pickled for one request, and how.

    Attributes:
        values: the object.
        parts: its named pieces, for the error message.
        by_value: modules that are shipped along.
        refs: reduces a reference to an object over there; gives None for anything else.
        limit: bytes that may cross at most; None for any.
        data: whether the kernel is to open nothing but data.
    """

    values: Any
    parts: Mapping[str, Any]
    by_value: Sequence[ModuleType] = ()
    refs: Callable[[Any], Any] | None = None
    limit: int | None = None
    data: bool = False

    def is_small(self) -> bool:
        """Whether pickling it takes no time that is worth a thread.

        Few plain objects, and nothing that runs code of the user's.
        """
        return not self.by_value and _codec.is_small(self.values)

    def pack(self, algorithm: str, sums: bool = False) -> tuple[Payload, str]:
        """The parcel and its digest; in any thread, where an event loop's gets its turns.

        ``sums`` says that the other side has numpy loaded.
        """
        if self.data:
            payload = encode_data(self.values, self.parts)
        elif self.is_small():
            payload = Payload(_codec.encode_small(self.values), carries_code=False, refs=False)
        else:
            payload = encode(
                self.values, self.parts, by_value=self.by_value, refs=self.refs, limit=self.limit
            )
        if self.limit is not None and payload.nbytes > self.limit:
            raise too_large(payload.nbytes, self.limit)
        return payload, signed(payload, algorithm, sums)


def signed(payload: Payload, algorithm: str, sums: bool = False) -> str:
    """A parcel's digest, by sums in place of crc32 if both sides can.

    Of much, in two threads: nothing can cross before, and the other side has nothing to do.
    Sums are no quicker in two.
    """
    algorithm = summed(algorithm, payload.nbytes, sums)
    if payload.nbytes < IN_TWO or algorithm == "sums":
        return _wire.digest(algorithm, payload.frames)
    with ThreadPoolExecutor(2) as pool:
        return _wire.digest(algorithm, payload.frames, pool.map)


class _PicklingLock:
    """Any number may pickle at once, but who ships modules by value alone.

    cloudpickle keeps one registry for the process. One that takes long, or that nobody waits
    for any more, must not keep all the others waiting.
    """

    def __init__(self) -> None:
        self.alone = False
        self._sharing = 0
        self._changed = threading.Condition()

    @contextmanager
    def take(self, *, alone: bool) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self.alone and not (alone and self._sharing))
            self.alone = alone
            self._sharing += not alone
        try:
            yield
        finally:
            with self._changed:
                self.alone = False
                self._sharing -= not alone
                self._changed.notify_all()


_pickling = _PicklingLock()


@contextmanager
def _by_value(modules: Sequence[ModuleType]) -> Iterator[None]:
    """Have cloudpickle ship these modules by value, for as long as the block lasts."""
    if isinstance(modules, ModuleType) or not all(isinstance(m, ModuleType) for m in modules):
        raise TypeError("by_value takes a list of modules, as in by_value=[mymodule]")
    with _pickling.take(alone=bool(modules)):
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
    refs: Callable[[Any], Any] | None = None,
    limit: int | None = None,
) -> Payload:
    """Pickle ``values`` into a parcel; see ``PayloadSource`` for the arguments.

    Raises:
        EncodeError: something in it cannot be pickled; names the path to it.
        PayloadTooLarge: it has more than ``limit`` bytes.
    """
    used = False

    def reduce(value: Any) -> Any:
        nonlocal used
        reduced = refs(value) if refs is not None else None
        used = used or reduced is not None
        return reduced

    with _by_value(by_value):
        try:
            frames, carries_code = _codec.encode(
                values, reduce if refs is not None else None, limit
            )
        except TooLarge as error:
            raise too_large(error.nbytes, limit) from None
        except Exception as error:
            path, why = _find_unpicklable_part(parts, error)
            raise EncodeError(
                f"{path} cannot be pickled: {type(why).__name__}: {why}", path=path
            ) from error
    return Payload(frames, carries_code, used)


def encode_data(values: Any, parts: Mapping[str, Any]) -> Payload:
    """A parcel of nothing but data; the arguments are ``PayloadSource``'s.

    Raises:
        UntrustedPayload: something in it is no data; names it and its type.
        EncodeError: it can't be pickled, be it data.
    """
    from bridgehead._shipped import data as _data

    try:
        return Payload(_data.encode_data(values), carries_code=False, refs=False)
    except WireError as broken:
        path, kind = str(broken.details.get("path", "")), str(broken.details.get("type", ""))
        for name in parts:
            path = path.replace(f"[{name!r}]", name, 1) if path.startswith(f"[{name!r}]") else path
        raise UntrustedPayload(
            f"{path or ', '.join(parts)} is {kind}, which is not data; nothing was sent", type=kind
        ) from None
    except Exception as error:
        raise EncodeError(f"{', '.join(parts)} cannot be pickled: {error!r}") from error


def _find_unpicklable_part(parts: Mapping[str, Any], error: Exception) -> tuple[str, BaseException]:
    for name, part in parts.items():
        try:
            _codec.encode(part)
        except Exception:  # noqa: BLE001 - whatever it raises, it is to blame
            return _codec.find_unpicklable(part, name)
    return ", ".join(parts), error


def check_payload(
    payload: Payload, python: Sequence[int], versions: Mapping[str, str], executable: str = ""
) -> None:
    """Refuse before it is sent what the kernel's interpreter would choke on.

    Raises:
        IncompatiblePython: code objects between two minor versions: of 12 ordered pairs of
            3.11-3.13, 7 segfault the kernel and 3 raise SystemError (measured).
        MissingInKernel: code, but no cloudpickle over there.
    """
    if not payload.carries_code:
        return
    if list(python[:2]) != list(payload.python):
        ours, theirs = (".".join(map(str, one[:2])) for one in (payload.python, python))
        raise IncompatiblePython(
            f"functions and classes defined here are code of Python {ours}, and the kernel runs "
            f"{theirs}; send data, and define the code over there with run()"
        )
    if "cloudpickle" not in versions:
        there = f" ({executable})" if executable else ""
        raise MissingInKernel(
            f"functions and classes defined here need cloudpickle in the kernel{there}; "
            "install it there",
            module="cloudpickle",
        )


def values(opened: Any, count: int) -> tuple[Any, ...]:
    """The values that an answer brought.

    Raises:
        ProtocolError: it brought something else, or not so many.
    """
    if type(opened) is not tuple or len(opened) != count:
        raise ProtocolError("what arrived is not what was asked for")
    return opened


def decode(frames: Sequence[Buffer]) -> Any:
    """The object again. May be called in any thread, as ``encode``.

    Raises:
        DecodeError: it cannot be unpickled here.
    """
    try:
        return _codec.decode(frames)
    except Exception as error:
        hint = ""
        if isinstance(error, ImportError) and error.name:
            hint = f"; {error.name!r} exists in the kernel but not here"
        raise DecodeError(
            f"the value arrived but cannot be unpickled here: {type(error).__name__}: {error}{hint}"
        ) from error


def decode_data(frames: Sequence[Buffer], allow: Mapping[str, type]) -> Any:
    """The object again, if it is data; nobody's code runs, whatever the frames are.

    ``allow`` has the classes beyond data that may be built, by ``module.qualname``.

    Raises:
        UntrustedPayload: it is more than data; it was not opened.
        DecodeError: a library that it needs is not installed here.
        ProtocolError: it is damaged, or forged.
    """
    from bridgehead._shipped import data as _data

    try:
        return _data.decode_data(frames, allow)
    except WireError as broken:
        if broken.kind == "untrusted":
            raise UntrustedPayload(
                f"{broken}; it was not opened: only data is trusted (see allow= and trust=)",
                type=str(broken.details.get("type", "")),
            ) from None
        if broken.kind == "missing":
            raise DecodeError(f"the value arrived, but {broken}") from None
        raise ProtocolError(f"the value is no data: {broken}") from None
