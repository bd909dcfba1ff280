"""The near side of the protocol, as pure thought: headers, expressions, answers, parcels.

Rule: sans-IO. This file knows no socket, no event loop and no bridge; it turns an operation
into bytes and text, and an answer into a value or an exception. What both sides must agree
on (frames, digests, pieces, the pickler) is imported from the loader itself.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import ModuleType
from typing import Any, NoReturn

import cloudpickle
from cloudpickle.cloudpickle import list_registry_pickle_by_value

from bridgehead import _wire
from bridgehead._errors import (
    DecodeError,
    EncodeError,
    IncompatiblePython,
    IntegrityError,
    KernelRestarted,
    MissingInKernel,
    NameNotFound,
    ProtocolError,
    RemoteError,
    ReplyLost,
    UnsupportedKernel,
)
from bridgehead._wire import MIME, PROBE, Buffer, Header, Inbox, cut

__all__ = ["PROBE", "Buffer", "Header", "Inbox", "cut"]

PYTHON = list(sys.version_info[:2])
KEY = "bridgehead"  # of the one entry in user_expressions


# ---------------------------------------------------------------- the request as text


@cache
def loader_source() -> tuple[str, list[str]]:
    """The loader's module name over there, and the sources that make it up.

    The name carries a hash of the source, so that bridges of two versions don't meet in one
    loader.
    """
    files = resources.files("bridgehead")
    sources = [files.joinpath(name).read_text("utf-8") for name in ("_wire.py", "_loader.py")]
    return "_bridgehead_" + hashlib.sha256("".join(sources).encode()).hexdigest()[:12], sources


# The way to sys.modules uses no name at all, so nothing that a user shadows or replaces is in
# it: not __import__, not get_ipython, not a builtin. os._wrap_close is defined in every CPython
# from its start on; 36 µs in a kernel with pandas loaded.
_SYS = (
    "(c for c in ().__class__.__base__.__subclasses__() if c.__name__ == '_wrap_close')"
    ".__next__().__init__.__globals__['sys']"
)
# The module is filled before it is registered: an interrupt in between leaves nothing.
_INSTALL = (
    "(lambda sys, builtins, name, sources: sys.modules[name] if name in sys.modules else "
    "(lambda module: (module.__setattr__('__builtins__', builtins), "
    "[builtins.exec(builtins.compile(source, '<bridgehead loader>', 'exec'), "
    "module.__dict__) for source in sources], sys.modules.setdefault(name, module))[2])"
    "(sys.__class__(name)))"
)


def expression(lane: str, header: Header, data: str = "", *, install: bool = False) -> str:
    """The Python expression that has the loader serve one message of a request."""
    name, sources = loader_source()
    loader = f"{_SYS}.modules[{name!r}]"
    if install:
        loader = f"{_INSTALL}({_SYS}, {_SYS}.modules['builtins'], {name!r}, {sources!r})"
    text = json.dumps(header)
    return f"{loader}.enter((lambda: 0).__globals__, {lane!r}, {text!r}, {data!r})"


def execute_content(expression: str) -> dict[str, Any]:
    """The content of the ``execute_request`` that evaluates an expression, unseen by anyone."""
    return {
        "code": "",
        "silent": True,
        "store_history": False,
        "user_expressions": {KEY: expression},
        "allow_stdin": False,
        "stop_on_error": False,
    }


def header(
    operation: str, frames: Sequence[memoryview], *, epoch: str, algorithm: str, **fields: Any
) -> Header:
    """The header of a whole request; a lane adds ``at`` and ``piece`` for each message."""
    return {
        "protocol": _wire.PROTOCOL,
        "op": operation,
        "id": uuid.uuid4().hex,
        "epoch": epoch,
        "python": PYTHON,
        "sizes": [frame.nbytes for frame in frames],
        "digest": _wire.digest(algorithm, frames),
        "at": 0,
        "piece": 0,
        **fields,
    }


# ---------------------------------------------------------------- the answer


def answer(content: Mapping[str, Any]) -> Header:
    """The answer's header out of an ``execute_reply``'s content.

    Raises:
        KernelRestarted: the loader is not there (any more).
        RemoteError: an interrupt struck in the kernel outside the loader.
        UnsupportedKernel: the kernel evaluated nothing.
        ProtocolError: what came back is no answer of the loader's.
    """
    content = _object(content)
    if content.get("status") == "error":
        ename, evalue = str(content.get("ename")), str(content.get("evalue"))
        raise RemoteError(ename, evalue, _strings(content.get("traceback")))
    entry = _object(content.get("user_expressions")).get(KEY)
    if not isinstance(entry, dict):
        raise UnsupportedKernel("the kernel evaluates no user_expressions")
    if entry.get("status") == "error":
        ename, evalue = str(entry.get("ename")), str(entry.get("evalue"))
        if ename == "KeyError" and loader_source()[0] in evalue:
            raise KernelRestarted("the kernel was restarted, or its loader was removed")
        raise RemoteError(ename, evalue, _strings(entry.get("traceback")))
    text = _object(entry.get("data")).get(MIME)
    if not isinstance(text, str):
        raise UnsupportedKernel("the kernel returns no value of a user_expression")
    try:
        told = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the answer's header is no JSON: {error}") from error
    if not isinstance(told, dict):
        raise ProtocolError("the answer's header is no JSON object")
    return told


def _object(value: Any) -> Mapping[str, Any]:
    """``value``, or an empty object where something else stands."""
    return value if isinstance(value, Mapping) else {}


def _strings(value: Any) -> list[str]:
    """The items of a list as text; none where something else stands."""
    return [str(item) for item in value] if isinstance(value, (list, tuple)) else []


def open_answer(told: Header, parts: Iterable[Buffer]) -> Inbox:
    """An inbox for an answer's frames, with the first piece in it.

    Raises:
        ProtocolError: the header names no frames.
        ReplyLost: the piece does not fit what was signed.
    """
    try:
        inbox = Inbox(told["sizes"])
    except (KeyError, TypeError, _wire.Broken) as error:
        raise ProtocolError(f"the answer's header names no frames: {error!r}") from error
    add_piece(inbox, 0, parts)
    return inbox


def add_piece(inbox: Inbox, at: int, parts: Iterable[Buffer]) -> None:
    """Take another piece of an answer.

    Raises:
        ReplyLost: the piece does not fit what was signed.
    """
    try:
        inbox.write(at, parts)
    except _wire.Broken as broken:
        raise ReplyLost(f"the kernel's answer is damaged: {broken}") from None


def close_answer(told: Header, inbox: Inbox) -> list[memoryview]:
    """The frames of an answer whose last piece arrived, checked against the signed digest.

    Raises:
        ReplyLost: something is missing or altered.
    """
    try:
        return inbox.take(str(told.get("digest")))
    except _wire.Broken as broken:
        raise ReplyLost(f"the kernel's answer is damaged: {broken}") from None


def raise_error(told: Header, frames: Sequence[memoryview]) -> None:
    """Raise what an answer tells of as the exception of this side; return if it tells none."""
    error = told.get("error")
    if error is None:
        return
    if not isinstance(error, dict):
        raise ProtocolError("the answer's error is no JSON object")
    kind, message = error.get("kind"), str(error.get("message"))
    if kind == "remote":
        _raise_remote(error, frames)
    if kind == "name":
        names, close = _strings(error.get("names")), _strings(error.get("close"))
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
        listed = ", ".join(map(repr, names))
        raise NameNotFound(f"no {listed} in the kernel{hint}", names=names)
    if kind == "missing":
        module, where = str(error.get("module")), error.get("where")
        there = f" ({where})" if where else ""
        root = module.partition(".")[0]
        ship = f", or ship your own module with by_value=[{root}]" if root != "cloudpickle" else ""
        raise MissingInKernel(
            f"the kernel{there} cannot import {module!r}: {message}. Install it there{ship}",
            module=module,
        )
    if kind == "incompatible":
        raise IncompatiblePython(
            f"{message}, and this is Python {PYTHON[0]}.{PYTHON[1]}; only data crosses"
        )
    if kind == "integrity":
        raise IntegrityError(f"the kernel refused the request: {message}")
    if kind == "epoch":
        raise KernelRestarted("the kernel was restarted since the last call")
    raise ProtocolError(message)


def _raise_remote(error: Header, frames: Sequence[memoryview]) -> NoReturn:
    remote = RemoteError(
        str(error.get("ename")),
        str(error.get("evalue")),
        _strings(error.get("traceback")),
    )
    cause = None
    if frames and error.get("code_of") in (None, PYTHON):
        try:
            cause = _wire.decode(frames)
        except Exception:  # noqa: BLE001 - its class doesn't exist here: the text must do
            cause = None
    raise remote from cause if isinstance(cause, BaseException) else None


# ---------------------------------------------------------------- objects


@dataclass(frozen=True, slots=True)
class Parcel:
    """An object on its way: its frames and what they need over there."""

    frames: list[memoryview]
    carries_code: bool
    refs: bool

    @property
    def nbytes(self) -> int:
        return sum(frame.nbytes for frame in self.frames)


EMPTY = Parcel([], carries_code=False, refs=False)

_registry_lock = threading.RLock()


@contextmanager
def _by_value(modules: Sequence[ModuleType]) -> Iterator[None]:
    """Have cloudpickle ship these modules by value, for as long as the block lasts."""
    if isinstance(modules, ModuleType) or not all(isinstance(m, ModuleType) for m in modules):
        raise TypeError("by_value takes a list of modules, as in by_value=[mymodule]")
    # cloudpickle keeps one registry for the process, so encodings take turns.
    with _registry_lock:
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
) -> Parcel:
    """Pickle ``values`` into a parcel; ``parts`` are its named pieces, for the error message.

    ``refs`` reduces a reference to an object over there; it returns None for anything else.

    Raises:
        EncodeError: something in it cannot be pickled; names the path to it.
    """
    used = False

    def reduce(value: Any) -> Any:
        nonlocal used
        reduced = refs(value) if refs is not None else None
        used = used or reduced is not None
        return reduced

    with _by_value(by_value):
        try:
            frames, carries_code = _wire.encode(values, reduce if refs is not None else None)
        except Exception as error:
            path, why = _blame(parts, error)
            raise EncodeError(
                f"{path} cannot be pickled: {type(why).__name__}: {why}", path=path
            ) from error
    return Parcel(frames, carries_code, used)


def _blame(parts: Mapping[str, Any], error: Exception) -> tuple[str, BaseException]:
    for name, part in parts.items():
        try:
            _wire.encode(part)
        except Exception:  # noqa: BLE001 - whatever it raises, it is to blame
            return _wire.culprit(part, name)
    return ", ".join(parts), error


def check_parcel(parcel: Parcel, python: Sequence[int], versions: Mapping[str, str]) -> None:
    """Refuse before it is sent what the kernel's interpreter would choke on.

    Raises:
        IncompatiblePython: code objects between two minor versions: of 12 ordered pairs of
            3.11-3.13, 7 segfault the kernel and 3 raise SystemError (measured).
        MissingInKernel: code, but no cloudpickle over there.
    """
    if not parcel.carries_code:
        return
    if list(python[:2]) != PYTHON:
        raise IncompatiblePython(
            f"functions and classes defined here are code of Python {PYTHON[0]}.{PYTHON[1]}, and "
            f"the kernel runs {python[0]}.{python[1]}; send data, and define the code over there "
            "with run()"
        )
    if "cloudpickle" not in versions:
        raise MissingInKernel(
            "functions and classes defined here need cloudpickle in the kernel; install it there",
            module="cloudpickle",
        )


def decode(frames: Sequence[Buffer]) -> Any:
    """The object again.

    Raises:
        DecodeError: it cannot be unpickled here.
    """
    try:
        return _wire.decode(frames)
    except Exception as error:
        hint = ""
        if isinstance(error, ImportError) and error.name:
            hint = f"; {error.name!r} exists in the kernel but not here"
        raise DecodeError(
            f"the value arrived but cannot be unpickled here: {type(error).__name__}: {error}{hint}"
        ) from error
