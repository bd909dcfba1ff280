"""Values that somebody watches from the near side.

Rule: standard library only, Python 3.8 and later; shipped together with ``_loader.py``. After
each cell the watched expressions are looked at, and what the cell changed is sent to whoever
asked, alone and at once. Nothing of ours shows in the cell, whatever an expression raises.
"""

from __future__ import annotations

from base64 import b64encode
from json import dumps
from time import monotonic
from typing import Any, Sequence

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.remote.kernel import Kernel
    from bridgehead._shipped.remote.namespace import UserNamespace, failed
    from bridgehead._shipped.remote.replay import Transfers
    from bridgehead._shipped.wire.digest import Buffer
    from bridgehead._shipped.wire.errors import WireError
    from bridgehead._shipped.wire.frames import MESSAGE, digest
    from bridgehead._shipped.wire.header import UPDATE_MESSAGE, Header

UNASKED = 600.0  # seconds after which a watch is dropped that nobody asked for again,
UNASKED_CELLS = 10  # and cells: one may run for hours, in which nobody could ask


class Subscription:
    """A value that somebody watches: what was told of it last, and where news of it go."""

    def __init__(self, header: Header, address: Any) -> None:
        self.header, self.address = header, address
        self.state: Any = None
        self.told = self.cells = 0
        self.caught_up: Any = None  # what the requester had seen when it was told the rest
        self.touched = monotonic()

    def updates(self) -> str:
        """The id of the news that was told last."""
        return "%s:%d" % (self.header["watch"], self.told)


class SubscriptionTable:
    """All watches of one namespace."""

    def __init__(self, kernel: Kernel, values: UserNamespace, transfers: Transfers) -> None:
        self.kernel, self.values, self.transfers = kernel, values, transfers
        self.known: dict[str, Subscription] = {}

    def watch(self, header: Header, frames: Sequence[Buffer]) -> tuple[Header, list[memoryview]]:
        """The value now; and after each cell that changed it, sent to the requester by itself.

        Asked for once more, it only lives on; told is what the requester has not ``seen``.
        """
        known = self.known.get(header["watch"])
        if known is not None:
            known.touched, known.cells, known.address = monotonic(), 0, self.kernel.address()
            if header.get("seen") in (None, known.told, known.caught_up):
                return {}, []
            known.caught_up = header["seen"]
            known.state = None  # what was told went with a connection that broke
            return self.look(known)
        events = getattr(self.kernel.shell, "events", None)
        if events is None:
            raise WireError("unsupported", "this kernel tells nobody when a cell is done")
        if not self.kernel.can_send:
            raise WireError("unsupported", "this kernel sends nothing but answers")
        watch = Subscription(header, self.kernel.address())
        answer, out = self.look(watch)
        if "error" not in answer:
            if not self.known:
                events.register("post_run_cell", self.cell_done)
            self.known[header["watch"]] = watch
        return answer, out

    def unwatch(self, header: Header, frames: Sequence[Buffer]) -> tuple[Header, list[memoryview]]:
        self.forget(header["watch"])
        return {}, []

    def forget(self, identity: str) -> None:
        watch = self.known.pop(identity, None)
        if watch is not None:
            self.transfers.discard(watch.updates())
            if not self.known:
                self.kernel.shell.events.unregister("post_run_cell", self.cell_done)

    def look(self, watch: Subscription) -> tuple[Header, list[memoryview]]:
        """What there is to tell of a watched value; nothing if that is what was told last."""
        answer: Header = {}
        try:
            frames, _ = self.values.valued(watch.header)
        except BaseException as error:
            answer, frames = failed(error)
        error_told = answer.get("error", {})
        state = (error_told.get("ename"), error_told.get("message"), digest("crc32", frames))
        changed, watch.state = state != watch.state, state
        return (answer, frames) if changed else ({}, [])

    def cell_done(self, result: Any = None) -> None:
        """IPython calls this when a cell is done."""
        for identity, watch in [*self.known.items()]:
            try:
                watch.cells += 1
                if monotonic() - watch.touched > UNASKED and watch.cells > UNASKED_CELLS:
                    self.forget(identity)
                    continue
                answer, frames = self.look(watch)
                if answer or frames:
                    self.tell(watch, answer, frames)
            except BaseException:
                continue

    def tell(self, watch: Subscription, answer: Header, frames: list[memoryview]) -> None:
        """Send news of a watched value; the rest of the last news, if any, is outdated."""
        self.transfers.discard(watch.updates())
        watch.told += 1
        watch.caught_up = None
        chunk = min(watch.header["chunk"], MESSAGE)
        header = dict(watch.header, id=watch.updates(), chunk=chunk, resumable=False)
        answer, parts = self.transfers.answer(header, answer, frames)
        content = {"watch": watch.header["watch"], "news": watch.updates()}
        if watch.header.get("lane") == "inline":
            answer["data"] = b64encode(b"".join(parts)).decode("ascii")
            parts = []
        content["answer"] = dumps(answer)
        self.kernel.send(parts, UPDATE_MESSAGE, content, watch.address)
