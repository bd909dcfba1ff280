"""Watches: values and names that a client watches.

Rule: use the standard library only, and run on Python 3.8 and later. After each cell, the watched
expressions are evaluated, and the watched names are described as the ``names`` operation does it.
What the cell changed is sent at once to the client that watches, and to no other. Whatever an
expression raises, nothing of it shows in the cell. How a watch is kept and ended belongs to
``resources``.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Sequence

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.remote.kernel import Kernel
    from bridgehead._shipped.remote.namespace import error_response
    from bridgehead._shipped.remote.operations import Operations
    from bridgehead._shipped.remote.resources import Resource, ResourceTable
    from bridgehead._shipped.remote.snapshot import entries
    from bridgehead._shipped.wire.digest import Buffer
    from bridgehead._shipped.wire.errors import WireError
    from bridgehead._shipped.wire.frames import digest
    from bridgehead._shipped.wire.header import HeaderAndFrames, RequestHeader, ResponseHeader


class RunningWatch(Resource):
    """What is watched, and the state of it that was sent last."""

    def __init__(self, header: RequestHeader, watches: WatchTable) -> None:
        super().__init__(header)
        self.watches = watches
        self.state: Any = None

    def end(self) -> None:
        """Remove the hook after cells with the last watch."""
        self.watches.ended()

    def repeat(self, seen: int) -> None:
        """Send the value again, under a new number if it is another one by now."""
        before, self.state = self.state, None
        response, frames = self.watches.evaluate(self)
        resources = self.watches.resources
        (resources.send_again if self.state == before else resources.send)(self, response, frames)


class WatchTable:
    """The watches of one namespace."""

    def __init__(self, kernel: Kernel, operations: Operations, resources: ResourceTable) -> None:
        self.kernel, self.operations, self.resources = kernel, operations, resources

    def watch(self, header: RequestHeader, frames: Sequence[Buffer]) -> HeaderAndFrames:
        """Return the value or the names, and send them after each cell that changes them."""
        events = getattr(self.kernel.shell, "events", None)
        if events is None:
            raise WireError("unsupported", "this kernel does not report when a cell is done")
        self.resources.check(header)
        watch = RunningWatch(header, self)
        response, out = self.evaluate(watch)
        if "error" not in response:
            if not self.known():
                events.register("post_run_cell", self.cell_done)
            self.resources.add(watch)
        return response, out

    def known(self) -> list[RunningWatch]:
        """Return the watches that have not ended."""
        known = entries(self.resources.known)
        return [resource for _, resource in known if isinstance(resource, RunningWatch)]

    def ended(self) -> None:
        """Remove the hook after cells, if the last watch has ended."""
        if not self.known():
            with suppress(ValueError):  # a user has removed all callbacks
                self.kernel.shell.events.unregister("post_run_cell", self.cell_done)

    def evaluate(self, watch: RunningWatch) -> HeaderAndFrames:
        """Return what is watched or its error; nothing if it is what was sent last."""
        response: ResponseHeader = {}
        try:
            if watch.header["op"] == "watch_names":
                response, frames = self.operations.names(watch.header, ())
            else:
                frames, _ = self.operations.values.evaluate_all(watch.header)
        except BaseException as error:
            response, frames = error_response(error)
        description, names = response.get("error", {}), response.get("names")
        shown = description.get("ename"), description.get("message"), names
        state = (*shown, digest("crc32", frames))
        changed, watch.state = state != watch.state, state
        return (response, frames) if changed else ({}, [])

    def cell_done(self, result: Any = None) -> None:
        """Send updates; IPython calls this after each cell."""
        for watch in self.known():
            try:
                response, frames = self.evaluate(watch)
                if response or frames:
                    self.resources.send(watch, response, frames)
            except BaseException:  # also an interrupt: nothing may show in the user's cell
                continue
