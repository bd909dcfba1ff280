"""The operations on one namespace: what a request does once all of it is here.

Rule: standard library only, Python 3.8 and later, and never a name in the user's namespace. An
operation is given a header and whole frames, and knows of no lane, no piece and no other request.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Sequence

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.remote.inspection import describe
    from bridgehead._shipped.remote.kernel import Kernel
    from bridgehead._shipped.remote.namespace import UserNamespace
    from bridgehead._shipped.wire.digest import Buffer
    from bridgehead._shipped.wire.errors import WireError
    from bridgehead._shipped.wire.header import Header


class _CellRunning(Exception):
    """A cell runs; what was asked comes after it, in the main thread's queue."""


class Operations:
    """The operations on a namespace; the server's table names them."""

    def __init__(self, kernel: Kernel, values: UserNamespace) -> None:
        self.kernel, self.values = kernel, values

    def behind_cells(self, header: Header, runs: bool = False) -> None:
        """Nothing takes effect in the middle of a cell that did not run when it was asked for."""
        if runs or header.get("cells_begun") not in (None, self.kernel.begun):
            raise _CellRunning

    def bind(self, header: Header, frames: Sequence[Buffer]) -> tuple[Header, list[memoryview]]:
        """All names or none: everything that can fail comes before the one ``update``."""
        names = header["names"]
        values = self.values.decode(header, frames)
        if type(values) is not dict or list(values) != names:
            raise WireError("protocol", "the names that arrived are not the ones announced")
        self.behind_cells(header)
        # One C call on a dict with str keys: no bytecode boundary inside for a signal.
        self.kernel.namespace.update(values)
        return {}, []

    def fetch(self, header: Header, frames: Sequence[Buffer]) -> tuple[Header, list[memoryview]]:
        out, carries_code = self.values.valued(header)
        return ({"code": True} if carries_code else {}), out

    def call(self, header: Header, frames: Sequence[Buffer]) -> tuple[Header, list[memoryview]]:
        """Run a shipped function; give its value back, or keep it here under a name."""
        asked = self.values.decode(header, frames)
        if type(asked) is not tuple or len(asked) != 3:
            raise WireError("protocol", "what arrived is no call")
        function, args, kwargs = asked
        value = function(*args, **kwargs)
        if header.get("keep"):
            self.kernel.namespace.update({header["keep"]: value})
            return {}, []
        return {}, self.values.encode(header, (value,), ("the result",), True)[0]

    def drop(self, header: Header, frames: Sequence[Buffer]) -> tuple[Header, list[memoryview]]:
        namespace = self.kernel.namespace
        names = list(dict.fromkeys(header["names"]))
        missing = [name for name in names if name not in namespace]
        if missing:
            self.values.unknown(missing)
        self.behind_cells(header)
        # One C call as in bind; the values outlive it, so no __del__ runs in between.
        values = list(map(namespace.pop, names))
        values.clear()
        return {}, []

    def names(self, header: Header, frames: Sequence[Buffer]) -> tuple[Header, list[memoryview]]:
        """What ``%who`` would show, of the names that match; no user repr is computed."""
        pattern = header["pattern"]
        found = [
            describe(name, value)
            for name, value in self.values.visible()
            if fnmatchcase(name, pattern) and (pattern[:1] == "_" or name[:1] != "_")
        ]
        return {"names": sorted(found, key=lambda told: told["name"])}, []

    def has(self, header: Header, frames: Sequence[Buffer]) -> tuple[Header, list[memoryview]]:
        return {"has": header["name"] in self.kernel.namespace}, []
