"""The loader on its way into a kernel: its files, and the expression that plants and calls it.

Rule: sans-IO, text and frames. What a request says is ``_protocol``'s; here is how it gets to
the loader, and the loader to where it is to answer.
"""

from __future__ import annotations

import hashlib
import json
import marshal
from functools import cache
from importlib import resources
from importlib.abc import InspectLoader
from importlib.util import find_spec
from types import CodeType

from bridgehead._shipped.remote import bootstrap as _seed
from bridgehead._shipped.wire.header import Header

SHIPPED = (  # into one module over there
    "remote/bootstrap.py",
    "wire/digest.py",
    "wire/errors.py",
    "wire/frames.py",
    "wire/transfer.py",
    "wire/header.py",
    "wire/pickling.py",
    "wire/segments.py",
    "wire/socket.py",
    "remote/socket_thread.py",
    "remote/kernel.py",
    "remote/inspection.py",
    "remote/namespace.py",
    "remote/replay.py",
    "remote/orphans.py",
    "remote/operations.py",
    "remote/subscriptions.py",
    "remote/server.py",
    "remote/entry.py",
)
FILENAME = "<bridgehead loader>"  # in its tracebacks


@cache
def loader_source() -> tuple[str, list[str]]:
    """The loader's module name over there, and the sources that make it up.

    The name carries a hash of the source, so that bridges of two versions don't meet in one
    loader.
    """
    sources = [_source(name) for name in SHIPPED]
    return "_bridgehead_" + hashlib.sha256("".join(sources).encode()).hexdigest()[:12], sources


def _source(name: str) -> str:
    return resources.files("bridgehead._shipped").joinpath(name).read_text("utf-8")


@cache
def loader_frames() -> list[bytes]:
    """What crosses beside the first expression: the loader but for its seed.

    As code objects, for a kernel that has the same bytecode (compiling took it 10 ms of the
    first handshake), and as its sources.
    """
    code = tuple(_code(name) for name in SHIPPED[1:])
    return [marshal.dumps(code), *(source.encode() for source in loader_source()[1][1:])]


def _code(name: str) -> CodeType:
    """One file's code as the loader's own; from the file that Python keeps it in, if it does."""
    spec = find_spec(f"bridgehead._shipped.{name.removesuffix('.py').replace('/', '.')}")
    loader = spec.loader if spec is not None else None
    code = loader.get_code(spec.name) if spec and isinstance(loader, InspectLoader) else None
    return _renamed(code or compile(_source(name), FILENAME, "exec", dont_inherit=True))


def _renamed(code: CodeType) -> CodeType:
    inner = (_renamed(one) if isinstance(one, CodeType) else one for one in code.co_consts)
    return code.replace(co_filename=FILENAME, co_consts=tuple(inner))


@cache
def _how(beside: bool) -> tuple[list[str], list[str], str]:
    """How the seed gets at the rest: in the expression, or by the digests of what is beside it."""
    if not beside:
        return loader_source()[1][1:], [], ""
    digests = [hashlib.sha256(frame).hexdigest() for frame in loader_frames()]
    return [], digests, _seed.compiler()


@cache
def codec_sources() -> list[memoryview]:
    """The sources of the data-only codec, as frames."""
    from bridgehead._shipped import data as _data

    files = resources.files(_data)
    return [memoryview(files.joinpath(f"{name}.py").read_bytes()) for name in _data.FILES]


# The way to sys.modules uses no name at all, so nothing that a user shadows or replaces is in
# it: not __import__, not get_ipython, not a builtin. os._wrap_close is defined in every CPython
# from its start on; 36 µs in a kernel with pandas loaded.
SYS = (
    "(c for c in ().__class__.__base__.__subclasses__() if c.__name__ == '_wrap_close')"
    ".__next__().__init__.__globals__['sys']"
)
_INSTALL = (
    "(lambda sys, builtins, name, seed, scope, how: "
    "sys.modules[name] if name in sys.modules else (lambda module: ("
    "module.__setattr__('__builtins__', builtins), "
    f"builtins.exec(builtins.compile(seed, {FILENAME!r}, 'exec'), module.__dict__), "
    "module.install(module, scope, how))[2])(sys.__class__(name)))"
)


def expression(
    lane: str, header: Header, data: str = "", *, install: bool = False, beside: bool = False
) -> str:
    """The Python expression that has the loader serve one message of a request.

    With ``install`` it plants the loader where it isn't yet. All of it is in the expression, or
    ``beside`` it as ``loader_frames``: then it must be ready for the answer that there is none.
    """
    name, sources = loader_source()
    loader = f"{SYS}.modules[{name!r}]"
    if install:
        loader = (
            f"{_INSTALL}({SYS}, {SYS}.modules['builtins'], {name!r}, {sources[0]!r}, "
            f"(lambda: 0).__globals__, {_how(beside)!r})"
        )
    text = json.dumps(header)
    return f"{loader}.enter((lambda: 0).__globals__, {lane!r}, {text!r}, {data!r})"
