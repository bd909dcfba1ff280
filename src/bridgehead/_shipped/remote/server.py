"""The server of one namespace: it receives requests, dispatches them, and responds.

Rule: standard library only, Python 3.8 and later, and never a name in the user's namespace. It
decides when a request may run, and calls downwards: what a request does is ``operations``', what
is kept of it meanwhile is ``replay``'s. ``Remote.handle(header, frames) -> (header, frames)`` does
every operation, the same whichever lane brought it.
"""

from __future__ import annotations

import os
import pickle
import sys
from threading import Lock
from typing import Any, Sequence

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.remote.inspection import current_folder, versions
    from bridgehead._shipped.remote.kernel import Kernel
    from bridgehead._shipped.remote.namespace import UserNamespace, failed
    from bridgehead._shipped.remote.operations import Operations, _CellRunning
    from bridgehead._shipped.remote.orphans import SubshellTable
    from bridgehead._shipped.remote.replay import Transfers
    from bridgehead._shipped.remote.socket_thread import SocketThread, join
    from bridgehead._shipped.remote.subscriptions import SubscriptionTable
    from bridgehead._shipped.wire.digest import Buffer
    from bridgehead._shipped.wire.errors import WireError
    from bridgehead._shipped.wire.frames import digest, snapshot
    from bridgehead._shipped.wire.header import BATCHABLE, Header, check

_loading = Lock()  # a subshell learns in a thread of its own


class Remote:
    """What serves one namespace; its parts each own some of the state."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.epoch = os.urandom(8).hex()
        self.servers: dict[str, SocketThread] = {}  # of the direct lanes, by the name of each
        self.door = Lock()  # they come in the main thread, and leave in their own
        self.subshells = SubshellTable()
        self.transfers = Transfers(self.servers)
        values = UserNamespace(kernel)
        self.operations = Operations(kernel, values)
        self.watches = SubscriptionTable(kernel, values, self.transfers)
        self.table = {
            "hello": self.hello,
            "load_codec": self.load_codec,
            "batch": self.batch,
            "interrupt": self.interrupt,
            "bind": self.operations.bind,
            "fetch": self.operations.fetch,
            "call": self.operations.call,
            "drop": self.operations.drop,
            "names": self.operations.names,
            "has": self.operations.has,
            "watch": self.watches.watch,
            "unwatch": self.watches.unwatch,
        }

    # -- one request, whole or in pieces

    def receive(
        self, header: Header, parts: Sequence[Buffer], server: SocketThread | None = None
    ) -> tuple[Header, Any]:
        """One message of a request: assemble, and with the last one do it and answer.

        What came by a direct lane is its ``server``'s; the answer then may be a segment.
        """
        try:
            check(header)
        except WireError as error:
            return self.refused(error), []
        if header.get("subshell") is None:
            return self.served(header, parts, server)
        with self.subshells.noted(header["subshell"]):
            return self.served(header, parts, server)

    def served(
        self, header: Header, parts: Sequence[Buffer], server: SocketThread | None
    ) -> tuple[Header, Any]:
        """Take one message of a checked request; with the last one do it and answer."""
        transfers, operation, inbox = self.transfers, header["op"], None
        try:
            # With each message, as there is no timer: what vanished bridges left goes.
            transfers.sweep()
            # Before anything is stored: what was meant for another kernel does nothing here.
            if operation != "hello" and self.epoch not in str(header.get("epoch")).split():
                raise WireError("epoch", "this kernel is not the one that was prepared")
            for identity in header.get("acks") or ():
                transfers.discard(identity)
            if operation == "next_chunk":
                return transfers.more(header, server)
            if operation == "forget":
                transfers.discard(header["id"])
                return {}, []
            # Before the inbox is looked at: the first of the two messages took it away.
            if header.get("resumable") and header["id"] in transfers.done:
                return transfers.again(header)
            inbox = transfers.assemble(header, parts, server)
            if operation == "chunk":
                transfers.inboxes[header["id"]] = inbox
                return {}, []
            # A message is answered between two cells. A direct lane's thread is at work at any
            # time: it notes which cell began last, and what takes effect looks once more.
            if server is not None and not header.get("now"):
                header["cells_begun"] = self.kernel.begun
                self.operations.behind_cells(header, self.kernel.may_run_cell)
            # Only what is whole is entered as done: a damaged request may be sent again.
            frames = inbox.take()
            if operation != "hello":  # which may come again, where a connection broke
                transfers.once(header["id"])
            answer, out = self.handle(header, frames)
        except _CellRunning:
            return transfers.defer(header, inbox)
        except BaseException as error:  # an interrupt, too, is what the request led to
            answer, out = failed(error)
        try:
            answer, out = transfers.answer(header, answer, out, server)
        except BaseException as error:  # interrupted while it was copied
            answer, out = transfers.answer(header, *failed(error), server)
        begun = header.get("cells_begun")
        if operation == "fetch" and inbox is not None and begun not in (None, self.kernel.begun):
            # A cell began before all of it was copied: not what it was at one moment. A fetch
            # changed nothing and may be done again; other operations look before they take effect.
            if out and server is not None and not isinstance(out, list):
                server.channel.take_back(out)  # a segment that no message has named
            transfers.discard(header["id"])
            return transfers.defer(header, inbox)
        return answer, out

    def part_from(self, server: SocketThread) -> None:
        """Forget a direct lane whose client is gone, and what only that could have asked for."""
        with self.door:
            self.servers.pop(server.name, None)
            if not self.servers:
                self.kernel.follow_cells(False)
        self.transfers.drop_those_of(server)

    def handle(self, header: Header, frames: Sequence[Buffer]) -> tuple[Header, list[memoryview]]:
        """Every operation, the same whichever lane brought it."""
        operation: Any = self.table.get(header["op"])
        if operation is None:
            raise WireError("protocol", "unknown operation %r" % (header["op"],))
        answer, out = operation(header, frames)
        return answer, out

    def refused(self, error: WireError) -> Header:
        """The answer to what is no request: an error, and no frames."""
        answer, _ = failed(error)
        return dict(answer, sizes=[], digest=digest("crc32", ()))

    # -- the operations

    def hello(self, header: Header, frames: Sequence[Buffer]) -> tuple[Header, list[memoryview]]:
        """Who and what this kernel is."""
        return {
            "epoch": self.epoch,
            "python": list(sys.version_info[:3]),
            "executable": sys.executable or "",
            "pickle": pickle.HIGHEST_PROTOCOL,
            "versions": versions(("cloudpickle", "ipykernel", "numpy", "pandas")),
            "pid": os.getpid(),
            "process": self.kernel.process(),
            "uid": os.getuid() if hasattr(os, "getuid") else None,
            "cwd": current_folder(),
            "orphans": self.subshells.orphans(),
            "direct": self.join(header.get("direct")),
        }, []

    def join(self, offer: Any) -> str | None:
        """Connect to the near end's socket, if it offers one; why not, if it can't be."""
        if type(offer) is not dict:
            return None
        with self.door:
            if not self.kernel.follow_cells(True):
                return "this kernel does not tell when it runs a cell"
            why = join(self, offer)
            if not self.servers:
                self.kernel.follow_cells(False)
        return why

    def load_codec(
        self, header: Header, frames: Sequence[Buffer]
    ) -> tuple[Header, list[memoryview]]:
        """More source of the loader's own, as frames; the greeting carries what all need."""
        with _loading:
            if "decode_data" not in globals():
                for frame in frames:
                    exec(compile(str(frame, "utf-8"), FILENAME, "exec"), globals())
        return {}, []

    def batch(self, header: Header, frames: Sequence[Buffer]) -> tuple[Header, list[memoryview]]:
        """Small requests that crossed together, done in order, each all or nothing by itself.

        Once the answers fill a message, the rest is told to come again: it was not done.
        """
        for asked in header["requests"]:
            check(asked)
            if asked["op"] not in BATCHABLE:
                raise WireError("protocol", "%s crosses alone" % asked["op"])
        answers: list[Header] = []
        out: list[memoryview] = []
        at, room = 0, header["chunk"]
        for asked in header["requests"]:
            if room <= 0:
                answers.append({"retry": True})
                continue
            count = len(asked["sizes"])
            asked["cells_begun"] = header.get("cells_begun")
            try:
                answer, parts = self.handle(asked, frames[at : at + count])
                if asked["op"] == "fetch":
                    parts = snapshot(parts)
                    self.operations.behind_cells(asked)  # or it is not what it was at one moment
            except _CellRunning:
                if not answers:
                    raise
                answers.append({"retry": True})
                room = 0
                continue
            except BaseException as error:
                answer, parts = failed(error)
            at += count
            answer, parts = self.transfers.answer(dict(asked, chunk=room), answer, parts)
            answer["parts"] = len(parts)
            answers.append(answer)
            out += parts
            room -= sum(part.nbytes for part in parts)
        return {"answers": answers}, out

    def interrupt(
        self, header: Header, frames: Sequence[Buffer]
    ) -> tuple[Header, list[memoryview]]:
        """Interrupt what a direct lane's thread is at, which SIGINT does not reach."""
        server = self.servers.get(str(header.get("server")))
        if server is not None:
            server.interrupt()
        return {}, []


FILENAME = Remote.__init__.__code__.co_filename
