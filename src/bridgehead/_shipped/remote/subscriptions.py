"""Subscriptions: values that a client watches.

Rule: use the standard library only, and run on Python 3.8 and later. After each cell, the watched
expressions are evaluated. What the cell changed is sent at once to the client that watches, and to
no other. Whatever an expression raises, nothing of it shows in the cell.
"""

from __future__ import annotations

from base64 import b64encode
from json import dumps
from time import monotonic
from typing import Any, Sequence

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.remote.kernel import Kernel
    from bridgehead._shipped.remote.namespace import UserNamespace, error_response
    from bridgehead._shipped.remote.replay import TransferTable
    from bridgehead._shipped.wire.digest import Buffer
    from bridgehead._shipped.wire.errors import WireError
    from bridgehead._shipped.wire.frames import MESSAGE, digest
    from bridgehead._shipped.wire.header import (
        UPDATE_MESSAGE,
        HeaderAndFrames,
        RequestHeader,
        ResponseHeader,
    )

# A watch that its client does not renew is dropped after this many seconds and this many cells:
# one cell may run for hours, in which no client can renew.
IDLE_WATCH = 600.0
IDLE_WATCH_CELLS = 10


class Subscription:
    """A watched value: the state sent last, and the client that gets its updates."""

    def __init__(self, header: RequestHeader, address: Any) -> None:
        self.header, self.address = header, address
        self.state: Any = None
        self.sent = 0  # number of updates sent
        self.cells = 0  # number of cells since the client renewed
        self.touched = monotonic()

    def latest(self) -> str:
        """Return the id of the update that was sent last."""
        return "%s:%d" % (self.header["watch"], self.sent)


class SubscriptionTable:
    """All watches of one namespace."""

    def __init__(self, kernel: Kernel, values: UserNamespace, transfers: TransferTable) -> None:
        self.kernel, self.values, self.transfers = kernel, values, transfers
        self.known: dict[str, Subscription] = {}

    def watch(self, header: RequestHeader, frames: Sequence[Buffer]) -> HeaderAndFrames:
        """Return the value, and send it to the client after each cell that changes it.

        If the watch exists already, renew it. Return the value then only if the client has not
        ``seen`` the last update.
        """
        known = self.known.get(header["watch"])
        if known is not None:
            known.touched, known.cells, known.address = monotonic(), 0, self.kernel.address()
            if header.get("seen") in (None, known.sent):
                return {}, []
            known.state = None  # the client has not got the last update: send the value again
            response, out = self.evaluate(known)
            return {**response, "sent": known.sent}, out
        events = getattr(self.kernel.shell, "events", None)
        if events is None:
            raise WireError("unsupported", "this kernel does not report when a cell is done")
        if not self.kernel.can_send:
            raise WireError("unsupported", "this kernel cannot send updates")
        watch = Subscription(header, self.kernel.address())
        response, out = self.evaluate(watch)
        if "error" not in response:
            if not self.known:
                events.register("post_run_cell", self.cell_done)
            self.known[header["watch"]] = watch
        return response, out

    def unwatch(self, header: RequestHeader, frames: Sequence[Buffer]) -> HeaderAndFrames:
        """End a watch."""
        self.forget(header["watch"])
        return {}, []

    def forget(self, identity: str) -> None:
        """Drop a subscription, and the hook after cells with the last one."""
        watch = self.known.pop(identity, None)
        if watch is not None:
            self.transfers.discard(watch.latest())
            if not self.known:
                self.kernel.shell.events.unregister("post_run_cell", self.cell_done)

    def evaluate(self, watch: Subscription) -> HeaderAndFrames:
        """Return a watched value or its error; nothing if it is what was sent last."""
        response: ResponseHeader = {}
        try:
            frames, _ = self.values.evaluate_all(watch.header)
        except BaseException as error:
            response, frames = error_response(error)
        description = response.get("error", {})
        state = (description.get("ename"), description.get("message"), digest("crc32", frames))
        changed, watch.state = state != watch.state, state
        return (response, frames) if changed else ({}, [])

    def cell_done(self, result: Any = None) -> None:
        """Send updates; IPython calls this after each cell."""
        for identity, watch in [*self.known.items()]:
            try:
                watch.cells += 1
                if monotonic() - watch.touched > IDLE_WATCH and watch.cells > IDLE_WATCH_CELLS:
                    self.forget(identity)
                    continue
                response, frames = self.evaluate(watch)
                if response or frames:
                    self.send_update(watch, response, frames)
            except BaseException:  # also an interrupt: nothing may show in the user's cell
                continue

    def send_update(
        self, watch: Subscription, response: ResponseHeader, frames: list[memoryview]
    ) -> None:
        """Send an update, and drop the unfetched rest of the one before."""
        self.transfers.discard(watch.latest())
        watch.sent += 1
        chunk, update = min(watch.header["chunk"], MESSAGE), watch.latest()
        header: RequestHeader = {**watch.header, "id": update, "chunk": chunk, "resumable": False}
        response, parts = self.transfers.respond(header, response, frames)
        content = {"watch": watch.header["watch"], "update": update}
        if watch.header.get("lane") == "inline":
            response = {**response, "data": b64encode(b"".join(parts)).decode("ascii")}
            parts = []
        content["answer"] = dumps(response)
        self.kernel.send(parts, UPDATE_MESSAGE, content, watch.address)
