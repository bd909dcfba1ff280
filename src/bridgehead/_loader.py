"""The far side: what is shipped to the kernel, as source text, and serves requests there.

Rule: standard library only, Python 3.8 and later, and never a name in the user's namespace.
Together with ``_wire.py`` it becomes one module in ``sys.modules``, under a name of its own,
and captures what it needs when it is installed, so that ``%reset -f``, a shadowed ``len`` or
a replaced ``pickle.loads`` don't reach it.

``Far.handle(header, frames) -> (header, frames)`` does every operation, the same whichever
lane brought it; ``enter`` is the far end of the lanes and only carries.
"""

from __future__ import annotations

import builtins
import os
import pickle
import sys
import traceback
from base64 import b64decode, b64encode
from fnmatch import fnmatchcase
from io import BytesIO
from json import dumps, loads
from keyword import iskeyword
from time import monotonic
from typing import Any, Sequence

if __name__ == "bridgehead._loader":  # shipped, it shares a module with the wire format
    from bridgehead._wire import (
        DATA_MESSAGE,
        MIME,
        PROBE,
        Broken,
        Buffer,
        CodeRefused,
        Header,
        Inbox,
        Outbox,
        Unshared,
        check,
        culprit,
        cut,
        decode,
        digest,
        encode,
    )

UNFINISHED = 4 << 30  # bytes of unfinished transfers, beyond which the oldest are dropped
IDLE_TRANSFER = 600.0  # seconds after which an unfinished transfer nobody touches is dropped


# ---------------------------------------------------------------- operations


class _Resolving(pickle.Unpickler):
    """Unpickles a request in which references stand for objects over here."""

    def __init__(self, frames: Sequence[Buffer], resolve: Any) -> None:
        super().__init__(BytesIO(frames[0]), buffers=frames[1:])
        self.resolve = resolve

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("bridgehead._ref", "Ref"):
            return self.resolve
        return super().find_class(module, name)


class Far:
    """What serves one namespace: the state of the loader and every operation."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.epoch = os.urandom(8).hex()
        self.inboxes: dict[str, Inbox] = {}
        self.outboxes: dict[str, Outbox] = {}
        self.operations = {
            "hello": self.hello,
            "bind": self.bind,
            "fetch": self.fetch,
            "call": self.call,
            "drop": self.drop,
            "names": self.names,
            "has": self.has,
        }

    # -- one request, whole or in pieces

    def receive(self, header: Header, parts: Sequence[Buffer]) -> tuple[Header, list[memoryview]]:
        """One message of a request: assemble, and with the last one do it and answer."""
        try:
            check(header)
        except Broken as error:
            return self.refused(error), []
        try:
            self.sweep()
            operation = header["op"]
            if operation != "hello" and header.get("epoch") != self.epoch:
                raise Broken("epoch", "this kernel is not the one that was prepared")
            if operation == "more":
                return self.more(header)
            if operation == "forget":
                self.inboxes.pop(header["id"], None)
                self.outboxes.pop(header["id"], None)
                return {}, []
            inbox = self.inboxes.pop(header["id"], None) or Inbox(header["sizes"])
            inbox.write(header["at"], parts)
            if operation == "piece":
                self.inboxes[header["id"]] = inbox
                return {}, []
            frames = inbox.take(header["digest"])
            answer, out = self.handle(header, frames)
        except BaseException as error:
            answer, out = self.failed(error)
        return self.answer(header, answer, out)

    def answer(
        self, header: Header, answer: Header, frames: list[memoryview]
    ) -> tuple[Header, list[memoryview]]:
        """Sign the answer's frames and cut off what fits into one message."""
        sizes = [frame.nbytes for frame in frames]
        total, limit = sum(sizes), header["piece"]
        algorithm = header["digest"].partition(":")[0]
        answer.update(sizes=sizes, digest=digest(algorithm, frames))
        if total <= limit:
            return answer, frames
        self.outboxes[header["id"]] = Outbox(frames, total)
        return answer, list(cut(frames, 0, limit))

    def more(self, header: Header) -> tuple[Header, list[memoryview]]:
        """Another piece of an answer that was too long for one message."""
        outbox = self.outboxes.get(header["id"])
        if outbox is None:
            raise Broken("integrity", "the rest of this answer is gone")
        outbox.touched = monotonic()
        return {}, list(cut(outbox.frames, header["at"], header["at"] + header["piece"]))

    def sweep(self) -> None:
        """Drop what a bridge that vanished left half-way: by age, and beyond a total."""
        kept = 0
        stores: tuple[Any, ...] = (self.inboxes, self.outboxes)
        boxes = [(box.touched, key, box, store) for store in stores for key, box in store.items()]
        for touched, key, box, store in sorted(boxes, key=lambda item: -item[0]):
            kept += box.total
            if monotonic() - touched > IDLE_TRANSFER or kept > UNFINISHED + box.total:
                del store[key]

    def handle(self, header: Header, frames: Sequence[Buffer]) -> tuple[Header, list[memoryview]]:
        """Every operation, the same whichever lane brought it."""
        operation = self.operations.get(header["op"])
        if operation is None:
            raise Broken("protocol", "unknown operation %r" % (header["op"],))
        return operation(header, frames)

    def refused(self, error: Broken) -> Header:
        """The answer to what is no request: an error, and no frames."""
        answer, _ = self.failed(error)
        return dict(answer, sizes=[], digest=digest("crc32", ()))

    def failed(self, error: BaseException) -> tuple[Header, list[memoryview]]:
        """The answer that tells of an error; its frames are the exception, if it pickles."""
        if isinstance(error, Broken):
            return {"error": dict(error.details, kind=error.kind, message=str(error))}, []
        if isinstance(error, Unshared):
            message = "it is needed to pickle %s" % error
            return self.failed(Broken("missing", message, module="cloudpickle"))
        if isinstance(error, CodeRefused):
            return self.failed(Broken("incompatible", str(error)))
        # What the user should see starts below the loader's own frames, and the pickler's.
        chain = [error]
        for part in chain:
            trace = part.__traceback__
            while trace is not None and _ours(trace.tb_frame):
                trace = trace.tb_next
            part.__traceback__ = trace
            cause = part.__cause__ or part.__context__
            if cause is not None and not any(cause is other for other in chain):
                chain.append(cause)
        try:
            message = str(error)
        except Exception:
            message = "<its str() raised>"
        try:
            lines = traceback.format_exception(type(error), error, error.__traceback__)
        except Exception:
            lines = ["%s\n" % type(error).__name__]
        told: Header = {
            "kind": "remote",
            "ename": type(error).__name__,
            "evalue": message,
            "traceback": "".join(lines).splitlines(),
        }
        try:
            frames, carries_code = encode(error)
            told["code_of"] = list(sys.version_info[:2]) if carries_code else None
            return {"error": told}, [memoryview(bytes(frame)) for frame in frames]
        except Exception:
            return {"error": told}, []

    # -- helpers of the operations

    def decode(self, header: Header, frames: Sequence[Buffer]) -> Any:
        try:
            if header.get("refs"):
                return _Resolving(frames, self.evaluate).load()
            return decode(frames)
        except ImportError as error:
            if not error.name:
                raise
            raise Broken("missing", str(error), module=error.name, where=sys.executable) from error

    def encode(
        self, header: Header, value: Any, paths: Sequence[str], ran: bool
    ) -> list[memoryview]:
        """Frames of a tuple of results, copied: they are sent after this returned.

        ``ran`` says that code of the user's ran to make them: then a refusal is no longer one
        of a request that did nothing.
        """
        try:
            frames, carries_code = encode(value)
            if carries_code and header.get("python") != list(sys.version_info[:2]):
                raise CodeRefused(
                    "the value carries code objects of Python %d.%d" % sys.version_info[:2]
                )
        except (KeyboardInterrupt, SystemExit):
            raise
        except (Unshared, CodeRefused) as error:
            if not ran:
                raise
            raise pickle.PicklingError("the value stays in the kernel: %s" % error) from None
        except BaseException:
            for part, path in zip(value, paths):
                try:
                    encode(part)
                except Exception:
                    where, why = culprit(part, path)
                    message = "%s cannot be pickled: %s: %s" % (where, type(why).__name__, why)
                    raise pickle.PicklingError(message) from None
            raise
        return frames[:1] + [memoryview(bytes(frame)) for frame in frames[1:]]

    def evaluate(self, expression: str) -> Any:
        """The value of an expression, as a cell would see it."""
        expression = expression.strip()
        try:
            return self.kernel.namespace[expression]
        except KeyError:
            pass
        code = compile(expression, "<bridgehead>", "eval")
        return eval(code, self.kernel.globals, self.kernel.namespace)

    def known(self, name: str) -> bool:
        scopes = self.kernel.namespace, self.kernel.globals, vars(builtins)
        return iskeyword(name) or any(name in scope for scope in scopes)

    def visible(self) -> list[tuple[str, Any]]:
        """What a user put into the namespace, and not the shell."""
        hidden, items = self.kernel.hidden, list(self.kernel.namespace.items())
        return [
            (name, value)
            for name, value in items
            if isinstance(name, str) and not (name in hidden and hidden[name] is value)
        ]

    def unknown(self, names: Sequence[str]) -> None:
        from difflib import get_close_matches

        public = [name for name, _ in self.visible() if name[:1] != "_"]
        near = [match for name in names for match in get_close_matches(name, public, 3)]
        raise Broken("name", ", ".join(names), names=list(names), close=near)

    # -- the operations

    def hello(self, header: Header, frames: Sequence[Buffer]) -> tuple[Header, list[memoryview]]:
        """Who and what this kernel is."""
        return {
            "epoch": self.epoch,
            "python": list(sys.version_info[:3]),
            "executable": sys.executable,
            "pickle": pickle.HIGHEST_PROTOCOL,
            "versions": _versions(("cloudpickle", "ipykernel", "numpy", "pandas")),
            "pid": os.getpid(),
            "uid": os.getuid() if hasattr(os, "getuid") else None,
            "cwd": _cwd(),
        }, []

    def bind(self, header: Header, frames: Sequence[Buffer]) -> tuple[Header, list[memoryview]]:
        """All names or none: everything that can fail comes before the one ``update``."""
        names = header["names"]
        values = self.decode(header, frames)
        if type(values) is not dict or list(values) != names:
            raise Broken("protocol", "the names that arrived are not the ones announced")
        # One C call on a dict with str keys: no bytecode boundary inside for a signal.
        self.kernel.namespace.update(values)
        return {}, []

    def fetch(self, header: Header, frames: Sequence[Buffer]) -> tuple[Header, list[memoryview]]:
        """The values of expressions, all read before any is pickled, in one pickle."""
        expressions = header["expressions"]
        # Before anything runs, so that a missing name means that nothing did.
        missing = [e for e in expressions if e.isidentifier() and not self.known(e)]
        if missing:
            self.unknown(missing)
        plain = all(expression.strip() in self.kernel.namespace for expression in expressions)
        values = tuple(self.evaluate(expression) for expression in expressions)
        return {}, self.encode(header, values, expressions, not plain)

    def call(self, header: Header, frames: Sequence[Buffer]) -> tuple[Header, list[memoryview]]:
        """Run a shipped function; give its value back, or keep it here under a name."""
        function, args, kwargs = self.decode(header, frames)
        value = function(*args, **kwargs)
        if header.get("keep"):
            self.kernel.namespace.update({header["keep"]: value})
            return {}, []
        return {}, self.encode(header, (value,), ("the result",), True)

    def drop(self, header: Header, frames: Sequence[Buffer]) -> tuple[Header, list[memoryview]]:
        namespace = self.kernel.namespace
        names = list(dict.fromkeys(header["names"]))
        missing = [name for name in names if name not in namespace]
        if missing:
            self.unknown(missing)
        # One C call as in bind; the values outlive it, so no __del__ runs in between.
        values = list(map(namespace.pop, names))
        values.clear()
        return {}, []

    def names(self, header: Header, frames: Sequence[Buffer]) -> tuple[Header, list[memoryview]]:
        """What ``%who`` would show, of the names that match; no user repr is computed."""
        pattern = header["pattern"]
        found = [
            describe(name, value)
            for name, value in self.visible()
            if fnmatchcase(name, pattern) and (pattern[:1] == "_" or name[:1] != "_")
        ]
        return {"names": sorted(found, key=lambda told: told["name"])}, []

    def has(self, header: Header, frames: Sequence[Buffer]) -> tuple[Header, list[memoryview]]:
        return {"has": header["name"] in self.kernel.namespace}, []


# Types whose shape, len and size can be asked for without running a user's code.
_KNOWN = {"builtins", "collections", "array", "numpy", "pandas", "torch", "polars", "pyarrow"}


def describe(name: str, value: Any) -> Header:
    """Name, type, shape or length, bytes. ``bytes`` of a plain container is its own, shallow."""
    kind = type(value)
    module = str(kind.__module__).partition(".")[0]
    told: Header = {"name": name, "type": kind.__qualname__, "shape": None, "len": None}
    told["bytes"] = None
    if module not in ("builtins", "__main__"):
        told["type"] = module + "." + kind.__qualname__
    if module not in _KNOWN or kind in (type(describe), type):
        return told
    try:
        shape = getattr(value, "shape", None)
        if isinstance(shape, tuple):
            told["shape"] = [int(length) for length in shape]
        elif hasattr(value, "__len__"):
            told["len"] = len(value)
        usage = getattr(value, "memory_usage", None)
        if module == "pandas" and usage is not None:
            total = usage(deep=False)
            told["bytes"] = int(total.sum() if hasattr(total, "sum") else total)
        else:
            size = getattr(value, "nbytes", None)
            told["bytes"] = int(size if isinstance(size, int) else sys.getsizeof(value))
    except Exception:  # a half-built object; its name and type are still worth telling
        pass
    return told


def _ours(frame: Any) -> bool:
    module = str(frame.f_globals.get("__name__"))
    return module == __name__ or module.partition(".")[0] == "cloudpickle"


def _cwd() -> str:
    try:
        return os.getcwd()
    except OSError:  # somebody deleted it
        return ""


def _versions(packages: Sequence[str]) -> Header:
    """Installed versions, without importing anything into the user's kernel."""
    from importlib import metadata

    found: Header = {}
    for package in packages:
        module = sys.modules.get(package)
        version = getattr(module, "__version__", None)
        if version is None:
            try:
                version = metadata.version(package)
            except Exception:  # not installed, or its metadata is damaged
                continue
        found[package] = str(version)
    return found


# ---------------------------------------------------------------- the far ends of the lanes


class Kernel:
    """The kernel as the loader sees it: a namespace, the request at hand, the way back."""

    def __init__(self, scope: Header) -> None:
        self.globals = scope
        self.shell: Any = None
        ipython: Any = sys.modules.get("IPython")
        for find in (getattr(ipython, "get_ipython", None), scope.get("get_ipython")):
            try:
                shell = find() if callable(find) else None
            except Exception:
                continue
            if shell is not None and getattr(shell, "user_global_ns", None) is scope:
                self.shell = shell
                break

    @property
    def namespace(self) -> Any:
        return self.globals if self.shell is None else self.shell.user_ns

    @property
    def hidden(self) -> Any:
        return getattr(self.shell, "user_ns_hidden", {})

    def buffers(self) -> list[Any]:
        """The buffers of the message that is being answered; none where they don't arrive."""
        kernel: Any = getattr(self.shell, "kernel", None)
        parent = kernel.get_parent("shell") if hasattr(kernel, "get_parent") else {}
        return list(parent.get("buffers") or ())

    def send(self, parts: list[memoryview]) -> None:
        """Frames to the requester alone, on the shell channel, ahead of the reply.

        The same socket as the reply's, so that whoever has the reply has the frames; never
        iopub, which everybody sees and which loses messages.
        """
        kernel: Any = self.shell.kernel
        parent = kernel.get_parent("shell")
        thread = getattr(kernel, "shell_channel_thread", None)
        if thread is not None:  # ipykernel 7: the shell socket belongs to another thread
            subshell = parent["header"].get("subshell_id")
            stream = thread.manager.get_subshell_to_shell_channel_socket(subshell)
        else:
            stream = kernel.shell_stream
        identity = kernel._parent_ident["shell"]
        kernel.session.send(stream, DATA_MESSAGE, {}, parent=parent, ident=identity, buffers=parts)


class Answer:
    """Goes back as a private MIME type, which no formatter of the user's touches."""

    def __init__(self, text: str) -> None:
        self.text = text

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Header:
        return {"text/plain": "", MIME: self.text}


_served: dict[int, Far] = {}  # by id of the namespace's dict, which its Far keeps alive


def enter(scope: Header, lane: str, header_text: str, data: str = "") -> Answer:
    """What the expression of a request calls; ``scope`` is the dict it is evaluated in."""
    far = _served.get(id(scope))
    if far is None:
        far = _served[id(scope)] = Far(Kernel(scope))
    parts: list[Any]
    try:
        header = loads(header_text)
        parts = [b64decode(data, validate=True)] if lane == "inline" else []
    except (ValueError, RecursionError) as error:
        refused = far.refused(Broken("integrity", "the request is damaged: %s" % error))
        return Answer(dumps(refused))
    if lane != "inline":
        parts = far.kernel.buffers()
    if lane == "probe":
        # Judged by what happened: did the buffer arrive, and does one find the way back?
        answer, _ = far.receive(header, ())
        answer["buffers"] = [bytes(part) for part in parts] == [PROBE]
        try:
            far.kernel.send([memoryview(PROBE)])
        except Exception:
            answer["buffers"] = False
        return Answer(dumps(answer))
    answer, frames = far.receive(header, parts)
    if lane == "inline":
        answer["data"] = b64encode(b"".join(frames)).decode("ascii")
    elif frames:
        far.kernel.send(frames)
    return Answer(dumps(answer))


def leave(scope: Header) -> None:
    """Forget a namespace (loopback's, whose process lives on)."""
    _served.pop(id(scope), None)


FILENAME = enter.__code__.co_filename
