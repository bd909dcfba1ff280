"""What is sent for a cell before the cell: names that it gets, and a limit on what it prints.

Rule: use the standard library only, and run on Python 3.8 and later. A stage is a remote resource.
The cell's message names it. The code of the cell begins by taking it, so no other client's cell and
no push comes in between. What is never taken ends as each resource does.
"""

from __future__ import annotations

from typing import Any, Sequence

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.remote.cell_guard import Uninterrupted, staged, this_thread
    from bridgehead._shipped.remote.operations import Operations
    from bridgehead._shipped.remote.output_limit import OutputLimit
    from bridgehead._shipped.remote.resources import Resource, ResourceTable
    from bridgehead._shipped.wire.digest import Buffer
    from bridgehead._shipped.wire.errors import WireError
    from bridgehead._shipped.wire.header import HeaderAndFrames, RequestHeader


class Stage(Resource):
    """What one cell takes when its code begins."""

    def __init__(self, header: RequestHeader, staging: Staging, values: Any, arrivals: Any) -> None:
        super().__init__(header)
        self.staging, self.values, self.arrivals = staging, values, arrivals
        self.shell = staging.operations.kernel.shell
        most = header.get("max_output")
        self.limit: Any = None if most is None else OutputLimit(most)
        self.thread: int | None = None  # of the cell
        self.shown: Any = None  # what shows an error of the cell, without a limit
        self.own: Any = None  # the same, if it is the shell's own and not its class's

    def end(self) -> None:
        staged.pop(self.id, None)

    def begin(self, cell: str) -> None:
        """Bind the names, all or none, and limit what is printed and displayed."""
        self.staging.resources.forget(self.id)
        if self.values:
            self.staging.operations.bind_values(self.header, self.values, self.arrivals)
            self.values = self.arrivals = None
        if self.limit is not None:
            self.limit.begin(cell, getattr(self.shell, "display_pub", None))
            self.thread = this_thread()
            # A user may have set one of his own on the shell, as ``rich`` does.
            self.own = vars(self.shell).get("_showtraceback")
            self.shown = getattr(self.shell, "_showtraceback", None)
            if self.shown is not None:
                self.shell._showtraceback = self.show_error

    def show_error(self, *error: Any) -> None:
        """Show an error as the shell does, behind what the cell printed before it."""
        if this_thread() == self.thread:  # else it is no error of this cell
            with Uninterrupted():  # else the end of what it printed is lost
                self.limit.pass_on()
        self.shown(*error)

    def finish(self) -> None:
        """End the limit, and report in the cell's reply what it dropped."""
        if vars(self.shell).get("_showtraceback") == self.show_error:
            if self.own is None:
                del self.shell._showtraceback
            else:
                self.shell._showtraceback = self.own
        dropped = 0 if self.limit is None else self.limit.finish()
        report = {"source": __name__, "dropped": dropped}
        self.shell.payload_manager.write_payload(report)


class Staging:
    """The stages of one namespace."""

    def __init__(self, operations: Operations, resources: ResourceTable) -> None:
        self.operations, self.resources = operations, resources

    def stage(self, header: RequestHeader, frames: Sequence[Buffer]) -> HeaderAndFrames:
        """Keep the names and the limit until the cell takes them."""
        if not self.operations.kernel.stages_cells:
            raise WireError(
                "unsupported", "this kernel does not show what the message of a cell has"
            )
        self.resources.check_closed(header)
        values = arrivals = None
        if header.get("names"):
            values, arrivals = self.operations.decode_names(header, frames)
        stage = Stage(header, self, values, arrivals)
        self.resources.add(stage)
        staged[stage.id] = stage
        return {}, []
