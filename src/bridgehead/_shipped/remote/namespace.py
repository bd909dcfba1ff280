"""The user's namespace: its values as frames and back, and errors as responses.

Rule: use the standard library only, and run on Python 3.8 and later. The user's expressions are
evaluated here, and the user's values are pickled and unpickled here. Requests and their chunks are
in ``server`` and ``replay``.
"""

from __future__ import annotations

import builtins
import pickle
import re
import sys
import traceback
from collections import ChainMap
from inspect import iscoroutine
from keyword import iskeyword
from typing import Any, Sequence

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.remote.kernel import Kernel
    from bridgehead._shipped.remote.snapshot import entries
    from bridgehead._shipped.wire.classes import ArrivedClasses
    from bridgehead._shipped.wire.digest import Buffer
    from bridgehead._shipped.wire.errors import TooLarge, WireError, message_of, reason
    from bridgehead._shipped.wire.frames import check_size
    from bridgehead._shipped.wire.header import (
        KEPT,
        PYTHON,
        ErrorDescription,
        HeaderAndFrames,
        RequestHeader,
    )
    from bridgehead._shipped.wire.pickling import (
        CloudpickleMissing,
        CodeRefused,
        encode,
        encode_small,
        find_unpicklable,
        is_small,
        pickler_type,
        unpickle,
    )

TOP_LEVEL_AWAIT = 0x2000  # ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
find_kept = re.compile(KEPT + r"\w+").findall


class UserNamespace:
    """The values of a namespace, to and from frames.

    Attributes:
        kept: objects that clients keep under no name of the user's, by their names in expressions.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.kept: dict[str, Any] = {}
        # What stands in a payload for something in the kernel: the function that returns it.
        self.stands_for: dict[str, Any] = {"Ref": self.evaluate}

    def decode(
        self, header: RequestHeader, frames: Sequence[Buffer]
    ) -> tuple[Any, ArrivedClasses | None]:
        """Unpickle the payload of a request; return the classes that came with it, too."""
        if not frames:
            raise WireError("protocol", "the request has no payload")
        try:
            if header.get("code"):
                # Imports cloudpickle with the captured pickler: a user may have replaced pickle's.
                pickler_type()
            if header.get("opens") == "data":
                return self._decode_data(frames), None
            return unpickle(frames, self.stands_for if header.get("refs") else None)
        except ImportError as error:
            if not error.name:
                raise
            raise WireError(
                "missing", str(error), module=error.name, where=sys.executable
            ) from error

    def _decode_data(self, frames: Sequence[Buffer]) -> Any:
        """Return the values of a request; the error names one that is nested too deeply.

        A client refuses to send such a value. In a handoff it is another kernel that sends it.
        """
        try:
            return codec_function("decode_data")(frames)
        except WireError as error:
            name = str(error.details.get("path", ""))[2:-2]
            if not name:
                raise
            message = "%s cannot cross as data: %s" % (name, error)
            raise WireError("untrusted", message) from None

    def encode(
        self, header: RequestHeader, value: Any, paths: Sequence[str], ran: bool
    ) -> tuple[list[memoryview], bool]:
        """Return the frames of results, still views of live objects, and whether they carry code.

        ``value`` is a tuple of the results, or a dict of them by name. ``ran`` says that code of
        the user's ran to make them. Then an error must not say that the request did not run.
        """
        limit = header.get("max_bytes")
        if header.get("trust") == "data":
            return check_size(
                self.encode_data(value, header.get("allow") or (), paths), limit
            ), False
        try:
            if is_small(value, summed=False):
                return check_size(encode_small(value), limit), False
            frames, carries_code = encode(value, limit=limit)
            reader = header.get("reader") or header.get("python")
            if carries_code and reader != PYTHON:
                raise CodeRefused(
                    "the value carries code objects of Python %d.%d" % sys.version_info[:2]
                )
        except (KeyboardInterrupt, SystemExit, TooLarge):
            raise
        except (CloudpickleMissing, CodeRefused) as error:
            if not ran:
                raise
            raise pickle.PicklingError("the value stays in the kernel: %s" % error) from None
        except BaseException:
            # Find the part that cannot be pickled, so that the error names the path to it.
            for part, path in zip(value.values() if type(value) is dict else value, paths):
                try:
                    encode(part)
                except Exception:
                    where, why = find_unpicklable(part, path)
                    message = "%s cannot be pickled: %s" % (where, reason(why))
                    if iscoroutine(part):
                        message += "; use call() of an async function, or pull('await …')"
                    raise pickle.PicklingError(message) from None
            raise
        return frames, carries_code

    def encode_data(
        self, value: Any, allow: Sequence[str], paths: Sequence[str]
    ) -> list[memoryview]:
        """Return frames that hold only data; the error names the path to what is not data."""
        write = codec_function("encode_data")
        try:
            frames: list[memoryview] = write(value, allow)
        except RecursionError:
            for part, path in zip(value.values() if type(value) is dict else value, paths):
                try:
                    write(part, allow)
                except RecursionError:
                    message = "%s cannot cross as data: it is nested too deeply" % path
                    raise WireError("untrusted", message) from None
            raise
        except WireError as error:
            path, kind = str(error.details.get("path", "")), error.details.get("type")
            index = path[1:].partition("]")[0]
            key = index[1:-1] if index[:1] == "'" else ""
            if not index.isdigit() and key not in paths:
                raise
            where = (key or paths[int(index)]) + path[len(index) + 2 :]
            message = "%s is %s, which is not data" % (where, kind)
            raise WireError(error.kind, message, type=kind) from None
        return frames

    def evaluate(self, expression: str, objects: Any = None) -> Any:
        """Return the value of an expression, as a cell would see it.

        ``objects`` has the values of further names, which are never in the namespace.
        """
        expression = expression.strip()
        try:
            return self.kernel.namespace[expression]
        except KeyError:
            pass
        scope = self.scope_of(expression, objects)
        return eval(compile(expression, "<bridgehead>", "eval"), self.kernel.globals, scope)

    def scope_of(self, expression: str, objects: Any = None) -> Any:
        """Return the mapping in which an expression finds names.

        Raises:
            WireError: it uses a kept object that is not here any more.
        """
        others = [one for one in (objects, self.kept_in(expression)) if one]
        # What the expression itself binds, with ``:=``, goes into the first map.
        return ChainMap(self.kernel.namespace, *others) if others else self.kernel.namespace

    def kept_in(self, expression: str) -> dict[str, Any]:
        """Return the kept objects that an expression uses, by name; raise as ``scope_of``."""
        if KEPT not in expression:
            return {}
        try:  # another thread may free one at any time
            return {name: self.kept[name] for name in find_kept(expression)}
        except KeyError as error:
            (name,) = error.args
            raise WireError("name", name, names=[name]) from None

    def evaluate_async(self, expression: str) -> Any:
        """Return an awaitable of the value of an expression with ``await`` in it."""
        code = compile(expression.strip(), "<bridgehead>", "eval", TOP_LEVEL_AWAIT)
        return eval(code, self.kernel.globals, self.scope_of(expression))

    def is_defined(self, name: str) -> bool:
        """Return whether a cell could use a name."""
        scopes = self.kernel.namespace, self.kernel.globals, vars(builtins)
        return iskeyword(name) or any(name in scope for scope in scopes)

    def visible(self) -> list[tuple[str, Any]]:
        """Return the names and values that the user, and not the shell, put into the namespace."""
        hidden = self.kernel.hidden
        return [
            (name, value)
            for name, value in entries(self.kernel.namespace)
            if isinstance(name, str) and not (name in hidden and hidden[name] is value)
        ]

    def require_names(self, expressions: Sequence[str], others: Any = ()) -> None:
        """Raise the error for missing names if an expression is a name that is not defined.

        ``others`` has the names beside those that a cell could use.
        """
        missing = [
            one
            for one in expressions
            if one.isidentifier() and not (self.is_defined(one) or one in others)
        ]
        if missing:
            self.raise_unknown(missing)

    def raise_unknown(self, names: Sequence[str]) -> None:
        """Raise the error for missing names, with similar names that exist."""
        from difflib import get_close_matches

        public = [name for name, _ in self.visible() if name[:1] != "_"]
        similar = [match for name in names for match in get_close_matches(name, public, 3)]
        raise WireError("name", ", ".join(names), names=list(names), close=similar)

    def evaluate_all(
        self, header: RequestHeader, objects: Any = None
    ) -> tuple[list[memoryview], bool]:
        """Return the values of expressions in one pickle, all evaluated before any is pickled.

        The pickle is of a tuple; or, if the request has names for the values, of a dict, which
        another kernel can bind. ``objects`` are those that the expressions' refs carry, by name.
        """
        expressions, known = header["expressions"], self.kernel.namespace
        # Check before anything runs: a missing name then means that nothing ran.
        kept: dict[str, Any] = {}
        for expression in expressions:
            kept.update(self.kept_in(expression))
        self.require_names(expressions, kept)
        plain = all(e.strip() in known or e.strip() in kept for e in expressions)
        values: Any = [self.evaluate(expression, objects) for expression in expressions]
        # Not a generator's items: Python replaces a ``StopIteration`` that leaves a generator.
        values = tuple(values)
        if header.get("names") is not None:
            values = dict(zip(header["names"], values))
        return self.encode(header, values, expressions, not plain)


def codec_function(name: str) -> Any:
    """Return a function of the data-only codec, which is shipped when it is first needed."""
    function = globals().get(name)
    if function is None:
        raise WireError("protocol", "the data-only codec is not loaded in the kernel")
    return function


def error_response(error: BaseException) -> HeaderAndFrames:
    """Return the response that reports an error; its frames are the exception, if it pickles."""
    if isinstance(error, WireError):
        details: Any = error.details
        description: ErrorDescription = {"kind": error.kind, "message": str(error)}
        return {"error": {**details, **description}}, []
    if isinstance(error, CloudpickleMissing):
        message = "it is needed to pickle %s" % error
        where = sys.executable
        return error_response(WireError("missing", message, module="cloudpickle", where=where))
    if isinstance(error, CodeRefused):
        return error_response(WireError("incompatible", str(error)))
    if isinstance(error, TooLarge):
        return error_response(WireError("large", str(error), bytes=error.nbytes))
    # Cut the remote part's and the pickler's frames off: the user's traceback starts below them.
    chain = [error]
    for part in chain:
        trace = part.__traceback__
        while trace is not None and _is_own(trace.tb_frame):
            trace = trace.tb_next
        part.__traceback__ = trace
        cause = part.__cause__ or part.__context__
        if cause is not None and not any(cause is other for other in chain):
            chain.append(cause)
    try:
        lines = traceback.format_exception(type(error), error, error.__traceback__)
    except Exception:
        lines = ["%s\n" % type(error).__name__]
    description = {
        "kind": "remote",
        "ename": type(error).__name__,
        "evalue": message_of(error),
        "traceback": "".join(lines).splitlines(),
    }
    try:
        frames, carries_code = encode(error)
        return {"error": {**description, "code_of": PYTHON if carries_code else None}}, frames
    except Exception:
        return {"error": description}, []


def _is_own(frame: Any) -> bool:
    module = str(frame.f_globals.get("__name__"))
    return module == __name__ or module.partition(".")[0] == "cloudpickle"
