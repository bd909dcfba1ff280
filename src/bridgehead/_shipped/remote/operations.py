"""The operations on one namespace: what each request does.

Rule: use the standard library only, run on Python 3.8 and later, and leave no name in the user's
namespace. An operation gets a header and whole frames. It knows no lane, no chunk and no other
request.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import partial
from operator import methodcaller
from types import ModuleType
from typing import Any, Callable, Sequence

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.remote.cell_guard import this_thread
    from bridgehead._shipped.remote.description import describe
    from bridgehead._shipped.remote.detail import look_at
    from bridgehead._shipped.remote.kept_objects import keep
    from bridgehead._shipped.remote.kernel import Kernel
    from bridgehead._shipped.remote.namespace import UserNamespace
    from bridgehead._shipped.remote.preview import preview
    from bridgehead._shipped.remote.resources import ResourceTable
    from bridgehead._shipped.wire.digest import Buffer
    from bridgehead._shipped.wire.errors import WireError
    from bridgehead._shipped.wire.functions import with_globals
    from bridgehead._shipped.wire.header import MAX_NAMES, HeaderAndFrames, RequestHeader


_call: Any = methodcaller("__call__")  # a function in C that calls its argument


class CellRunning(Exception):
    """A cell is running; the request must wait for it, in the main thread's queue."""


class Operations:
    """The operations on a namespace; the server's table maps their names to these methods."""

    def __init__(self, kernel: Kernel, values: UserNamespace, resources: ResourceTable) -> None:
        self.kernel, self.values, self.resources = kernel, values, resources
        self._done: dict[int, str] = {}  # by thread: the request that took effect last

    def take_effect(self, header: RequestHeader, *steps: Callable[[], Any]) -> list[Any]:
        """Change the namespace, and note that this request did; return what the steps return.

        The steps are functions in C, and so is what calls them: an interrupt finds no bytecode
        boundary between them. It takes effect before all of them or after all of them, and
        ``took_effect`` says which.
        """
        done = partial(self._done.__setitem__, this_thread(), header["id"])
        return list(map(_call, (*steps, done)))

    def took_effect(self, header: RequestHeader) -> bool:
        """Return whether this request, the last one of this thread, changed the namespace."""
        return self._done.get(this_thread()) == header["id"]

    def require_no_cell(self, header: RequestHeader, running: bool = False) -> None:
        """Raise ``CellRunning`` if a cell runs, or one began since the request was received.

        No operation may take effect in the middle of a cell.
        """
        if running or header.get("cells_begun") not in (None, self.kernel.begun):
            raise CellRunning

    def bind(self, header: RequestHeader, frames: Sequence[Buffer]) -> HeaderAndFrames:
        """Bind all names or none: everything that can fail comes before the one ``update``."""
        values, arrivals = self.decode_names(header, frames)
        self.require_no_cell(header)
        self.bind_values(header, values, arrivals)
        return {}, []

    def decode_names(self, header: RequestHeader, frames: Sequence[Buffer]) -> tuple[Any, Any]:
        """Return the values of a request that binds names, and the classes that came with them."""
        values, arrivals = self.values.decode(header, frames)
        if type(values) is not dict or list(values) != header["names"]:
            raise WireError("protocol", "the names in the payload are not those in the header")
        return values, arrivals

    def bind_values(self, header: RequestHeader, values: Any, arrivals: Any) -> None:
        """Bind names, and update the classes that came with their values: all or none."""
        update = partial(self.kernel.namespace.update, values)
        if arrivals is None:
            self.take_effect(header, update)
        else:
            with arrivals.updated(values, own=True) as undo:
                self.take_effect(header, update, undo.clear)

    def fetch(self, header: RequestHeader, frames: Sequence[Buffer]) -> HeaderAndFrames:
        """Return the values of expressions; the payload, if any, has objects that they use.

        ``cancel`` may interrupt what is evaluated and pickled.
        """
        objects = self.decode(header, frames, dict) if frames else None
        work = partial(self.values.evaluate_all, header, objects)
        out, carries_code = self.kernel.run_interruptibly(header["id"], work)
        return ({"code": True} if carries_code else {}), out

    def call(self, header: RequestHeader, frames: Sequence[Buffer]) -> HeaderAndFrames:
        """Run a shipped function; return its value, or keep it in the kernel."""
        return self.result(header, self.run_function(header, frames))

    def run_function(self, header: RequestHeader, frames: Sequence[Buffer]) -> Any:
        """Run a shipped function and return its value; ``cancel`` may interrupt it."""
        payload = self.decode(header, frames, tuple)
        if len(payload) != 3:
            raise WireError("protocol", "the payload is not a call")
        function, args, kwargs = payload
        if header.get("namespace"):
            function = with_globals(function, self.kernel.namespace)
        work = partial(function, *args, **kwargs)
        return self.kernel.run_interruptibly(header["id"], work)

    def result(self, header: RequestHeader, value: Any) -> HeaderAndFrames:
        """Return the value of a function, or keep it in the kernel, under a name or under none."""
        if header.get("kept"):
            keep(self.resources, self.values.kept, header, value)
            return {}, []
        if header.get("keep"):
            update = partial(self.kernel.namespace.update, {header["keep"]: value})
            self.take_effect(header, update)
            return {}, []
        return {}, self.values.encode(header, (value,), ("the result",), True)[0]

    def decode(self, header: RequestHeader, frames: Sequence[Buffer], kind: type) -> Any:
        """Return the payload of a request that binds none of it."""
        payload, arrivals = self.values.decode(header, frames)
        if type(payload) is not kind:
            raise WireError("protocol", "the payload is not a %s" % kind.__name__)
        if arrivals is not None:
            with arrivals.updated(payload, own=False):
                pass
        return payload

    def drop(self, header: RequestHeader, frames: Sequence[Buffer]) -> HeaderAndFrames:
        """Delete all names or none; the client closes kept objects that are among them, too."""
        namespace, kept = self.kernel.namespace, self.values.kept
        names = list(dict.fromkeys(header["names"]))
        missing = [name for name in names if name not in namespace and name not in kept]
        if missing:
            self.values.raise_unknown(missing)
        self.require_no_cell(header)
        # The list keeps the values alive, so no __del__ runs in between.
        places = [(kept if name in kept else namespace, name) for name in names]
        values = self.take_effect(header, *(partial(place.pop, name) for place, name in places))
        values.clear()
        return {}, []

    def names(self, header: RequestHeader, frames: Sequence[Buffer]) -> HeaderAndFrames:
        """Describe the user's names that match; run no code of the user's."""
        pattern, types = header["pattern"], header.get("types")
        matching = [
            (name, value)
            for name, value in self.values.visible()
            if fnmatchcase(name, pattern)
            and (pattern[:1] == "_" or name[:1] != "_")
            and (header.get("modules") or type(value) is not ModuleType)
        ]
        if types is None:
            _check_number(matching, pattern)
        found = []
        for name, value in matching:
            description = describe(name, value)
            kind = description["type"]
            if types is not None and kind not in types and kind.rpartition(".")[2] not in types:
                continue
            if header.get("preview"):
                description["preview"] = preview(value)
            found.append(description)
        if types is not None:
            _check_number(found, pattern)
        return {"names": sorted(found, key=lambda description: description["name"])}, []

    def has(self, header: RequestHeader, frames: Sequence[Buffer]) -> HeaderAndFrames:
        """Return whether a name is bound."""
        return {"has": header["name"] in self.kernel.namespace}, []

    def detail(self, header: RequestHeader, frames: Sequence[Buffer]) -> HeaderAndFrames:
        """Return a closer look at one value, and its picture as a frame; run no user's code."""
        name = header["name"]
        if name not in self.kernel.namespace:
            self.values.raise_unknown([name])
        look = look_at(self.kernel.namespace[name])
        return {"detail": look.detail()}, [memoryview(look.picture)] if look.picture else []


def _check_number(found: Sequence[Any], pattern: str) -> None:
    if len(found) > MAX_NAMES:
        raise WireError(
            "unsupported",
            "more than {:,} names match {!r}, and no more are listed at once; give a pattern that "
            "fewer match, such as 'df*'".format(MAX_NAMES, pattern),
        )
