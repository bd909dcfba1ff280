"""The operations on one namespace: what each request does.

Rule: use the standard library only, run on Python 3.8 and later, and leave no name in the user's
namespace. An operation gets a header and whole frames. It knows no lane, no chunk and no other
request.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import partial
from operator import methodcaller
from typing import Any, Callable, Sequence

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.remote.cell_guard import this_thread
    from bridgehead._shipped.remote.inspection import describe
    from bridgehead._shipped.remote.kernel import Kernel
    from bridgehead._shipped.remote.namespace import UserNamespace
    from bridgehead._shipped.wire.digest import Buffer
    from bridgehead._shipped.wire.errors import WireError
    from bridgehead._shipped.wire.header import HeaderAndFrames, RequestHeader


_call: Any = methodcaller("__call__")  # a function in C that calls its argument


class CellRunning(Exception):
    """A cell is running; the request must wait for it, in the main thread's queue."""


class Operations:
    """The operations on a namespace; the server's table maps their names to these methods."""

    def __init__(self, kernel: Kernel, values: UserNamespace) -> None:
        self.kernel, self.values = kernel, values
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
        names = header["names"]
        values, arrivals = self.values.decode(header, frames)
        if type(values) is not dict or list(values) != names:
            raise WireError("protocol", "the names in the payload are not those in the header")
        self.require_no_cell(header)
        update = partial(self.kernel.namespace.update, values)
        if arrivals is None:
            self.take_effect(header, update)
        else:
            with arrivals.updated(values, own=True) as undo:
                self.take_effect(header, update, undo.clear)
        return {}, []

    def fetch(self, header: RequestHeader, frames: Sequence[Buffer]) -> HeaderAndFrames:
        """Return the values of expressions."""
        out, carries_code = self.values.evaluate_all(header)
        return ({"code": True} if carries_code else {}), out

    def call(self, header: RequestHeader, frames: Sequence[Buffer]) -> HeaderAndFrames:
        """Run a shipped function; return its value, or keep it in the kernel under a name."""
        payload, arrivals = self.values.decode(header, frames)
        if type(payload) is not tuple or len(payload) != 3:
            raise WireError("protocol", "the payload is not a call")
        if arrivals is not None:
            with arrivals.updated(payload, own=False):
                pass
        function, args, kwargs = payload
        value = function(*args, **kwargs)
        if header.get("keep"):
            update = partial(self.kernel.namespace.update, {header["keep"]: value})
            self.take_effect(header, update)
            return {}, []
        return {}, self.values.encode(header, (value,), ("the result",), True)[0]

    def drop(self, header: RequestHeader, frames: Sequence[Buffer]) -> HeaderAndFrames:
        """Delete all names or none."""
        namespace = self.kernel.namespace
        names = list(dict.fromkeys(header["names"]))
        missing = [name for name in names if name not in namespace]
        if missing:
            self.values.raise_unknown(missing)
        self.require_no_cell(header)
        # The list keeps the values alive, so no __del__ runs in between.
        values = self.take_effect(header, *(partial(namespace.pop, name) for name in names))
        values.clear()
        return {}, []

    def names(self, header: RequestHeader, frames: Sequence[Buffer]) -> HeaderAndFrames:
        """Describe what ``%who`` shows, of the names that match; run no user's repr."""
        pattern = header["pattern"]
        found = [
            describe(name, value)
            for name, value in self.values.visible()
            if fnmatchcase(name, pattern) and (pattern[:1] == "_" or name[:1] != "_")
        ]
        return {"names": sorted(found, key=lambda description: description["name"])}, []

    def has(self, header: RequestHeader, frames: Sequence[Buffer]) -> HeaderAndFrames:
        """Return whether a name is bound."""
        return {"has": header["name"] in self.kernel.namespace}, []
