"""The remote part's source, and the expression that installs it.

Rule: sans-I/O, text and frames. ``request`` says what a request contains. This file says how the
remote part gets into a kernel, and how a request reaches it there.
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

from bridgehead._shipped.remote.bootstrap import compiler
from bridgehead._shipped.wire.header import RequestHeader

SHIPPED = (  # in this order, they become one module in the kernel
    "remote/bootstrap.py",
    "wire/digest.py",
    "wire/errors.py",
    "wire/frames.py",
    "wire/transfer.py",
    "wire/header.py",
    "wire/names.py",
    "wire/classes.py",
    "wire/libraries.py",
    "wire/large.py",
    "wire/collector.py",
    "wire/pickling.py",
    "wire/functions.py",
    "wire/excerpt.py",
    "reducers/standard.py",
    "reducers/numpy.py",
    "reducers/pandas.py",
    "reducers/jax.py",
    "reducers/arrow_memory.py",
    "reducers/pillow.py",
    "reducers/polars.py",
    "reducers/pyarrow.py",
    "reducers/torch.py",
    "wire/limits.py",
    "wire/process.py",
    "wire/slabs.py",
    "wire/segments.py",
    "wire/leases.py",
    "wire/socket.py",
    "remote/socket_thread.py",
    "remote/cell_guard.py",
    "remote/event_queue.py",
    "remote/kernel.py",
    "remote/cell_errors.py",
    "remote/inspection.py",
    "remote/library_values.py",
    "remote/description.py",
    "remote/preview.py",
    "remote/detail.py",
    "remote/snapshot.py",
    "remote/namespace.py",
    "remote/replay.py",
    "remote/orphans.py",
    "remote/coroutines.py",
    "remote/resources.py",
    "remote/kept_objects.py",
    "remote/tasks.py",
    "remote/iteration.py",
    "remote/mapping.py",
    "remote/operations.py",
    "remote/output_limit.py",
    "remote/staging.py",
    "remote/watch.py",
    "remote/callbacks.py",
    "remote/server.py",
    "remote/entry.py",
)
FILENAME = "<bridgehead remote>"  # the file name in the remote module's tracebacks


@cache
def remote_source() -> tuple[str, list[str]]:
    """Return the name of the remote module, and the sources that make it up.

    The name carries a hash of the source, so that bridges of two versions never share one remote
    module.
    """
    sources = [_source(name) for name in SHIPPED]
    return "_bridgehead_" + hashlib.sha256("".join(sources).encode()).hexdigest()[:12], sources


def _source(name: str) -> str:
    return resources.files("bridgehead._shipped").joinpath(name).read_text("utf-8")


@cache
def remote_code() -> bytes:
    """Return the code objects of the remote module without its bootstrap, as a buffer.

    It is for a kernel with the same bytecode: compiling took 10 ms of the first handshake.
    """
    return marshal.dumps(tuple(_code(name) for name in SHIPPED[1:]))


def _code(name: str) -> CodeType:
    """Return the code object of one file, from Python's bytecode cache where it has one."""
    spec = find_spec(f"bridgehead._shipped.{name.removesuffix('.py').replace('/', '.')}")
    loader = spec.loader if spec is not None else None
    code = loader.get_code(spec.name) if spec and isinstance(loader, InspectLoader) else None
    return _with_filename(code or compile(_source(name), FILENAME, "exec", dont_inherit=True))


def _with_filename(code: CodeType) -> CodeType:
    inner = (_with_filename(one) if isinstance(one, CodeType) else one for one in code.co_consts)
    return code.replace(co_filename=FILENAME, co_consts=tuple(inner))


@cache
def _rest_of_source(in_buffer: bool) -> tuple[list[str], str, str]:
    """Return the arguments with which the bootstrap finds the rest of the remote module.

    They are the sources themselves, or the digest of the buffer that has the code objects.
    """
    if not in_buffer:
        return remote_source()[1][1:], "", ""
    return [], hashlib.sha256(remote_code()).hexdigest(), compiler()


@cache
def codec_sources() -> list[memoryview]:
    """Return the sources of the data-only codec, as frames."""
    from bridgehead._shipped import data

    files = resources.files(data)
    return [memoryview(files.joinpath(f"{name}.py").read_bytes()) for name in data.FILES]


# This expression reaches sys.modules without using any name. A user may shadow or replace
# __import__, get_ipython and every builtin; none of them is used. Every CPython defines
# os._wrap_close when it starts. The search takes 36 µs in a kernel with pandas loaded.
SYS = (
    "(c for c in ().__class__.__base__.__subclasses__() if c.__name__ == '_wrap_close')"
    ".__next__().__init__.__globals__['sys']"
)
_INSTALL = (
    "(lambda sys, builtins, name, source, scope, how: "
    "sys.modules[name] if name in sys.modules else (lambda module: ("
    "module.__setattr__('__builtins__', builtins), "
    f"builtins.exec(builtins.compile(source, {FILENAME!r}, 'exec'), module.__dict__), "
    "module.install(module, scope, how))[2])(sys.__class__(name)))"
)


def expression(
    lane: str,
    header: RequestHeader,
    data: str = "",
    *,
    install: bool = False,
    in_buffer: bool = False,
) -> str:
    """Return the Python expression with which the remote part serves one message of a request.

    With ``install`` the expression first installs the remote module where it is missing. The
    expression carries all of its source. With ``in_buffer`` the buffer ``remote_code`` carries it.
    If that does not arrive, or is the bytecode of another Python, the response reports that the
    remote module is missing.
    """
    name, sources = remote_source()
    remote = f"{SYS}.modules[{name!r}]"
    if install:
        remote = (
            f"{_INSTALL}({SYS}, {SYS}.modules['builtins'], {name!r}, {sources[0]!r}, "
            f"(lambda: 0).__globals__, {_rest_of_source(in_buffer)!r})"
        )
    text = json.dumps(header)
    # Base64 needs no escapes, and looking for some would take a third of the time of its message.
    return f"{remote}.enter((lambda: 0).__globals__, {lane!r}, {text!r}, '{data}')"
