"""The far side of the protocol: requests and their pieces, and every operation.

Rule: standard library only, Python 3.8 and later, and never a name in the user's namespace;
shipped together with ``_loader.py``. ``Far.handle(header, frames) -> (header, frames)`` does
every operation, the same whichever lane brought it.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections import OrderedDict
from contextlib import contextmanager
from fnmatch import fnmatchcase
from platform import node
from threading import Lock
from time import monotonic
from typing import Any, Iterator, Sequence

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.remote.kernel import Kernel, current_folder, describe, runs, versions
    from bridgehead._shipped.remote.namespace import Values, failed
    from bridgehead._shipped.remote.socket_thread import Server, join
    from bridgehead._shipped.remote.subscriptions import Watches
    from bridgehead._shipped.wire.digest import summed
    from bridgehead._shipped.wire.frames import (
        JOINS,
        SHARED,
        Broken,
        Buffer,
        Header,
        Held,
        Inbox,
        Outbox,
        check,
        copied,
        cut,
        digest,
    )

UNFINISHED = 4 << 30  # bytes of unfinished transfers, beyond which the oldest are dropped
IDLE_TRANSFER = 600.0  # seconds after which an unfinished transfer nobody touches is dropped
REMEMBERED = 4096  # ids of requests that were done: none of them is done again


_learning = Lock()  # a subshell learns in a thread of its own


class _Overtaken(Exception):
    """A cell runs; what was asked comes after it, in the main thread's queue."""


class Far:
    """What serves one namespace: the state of the loader and every operation."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.values = Values(kernel)
        self.epoch = os.urandom(8).hex()
        self.inboxes: dict[str, Any] = {}  # an Inbox each, or what was Held
        self.outboxes: dict[str, Outbox] = {}
        self.done: OrderedDict[str, None] = OrderedDict()
        self.subshells: dict[str, tuple[Any, Any, Any]] = {}  # host, pid; when used, None: it is
        self.servers: dict[str, Server] = {}  # of the direct lanes, by the name of each
        self.door = Lock()  # they come in the main thread, and leave in their own
        self.watches = Watches(self)
        self.operations = {
            "hello": self.hello,
            "learn": self.learn,
            "batch": self.batch,
            "bind": self.bind,
            "fetch": self.fetch,
            "call": self.call,
            "drop": self.drop,
            "names": self.names,
            "has": self.has,
            "strike": self.strike,
            "watch": self.watches.watch,
            "unwatch": self.watches.unwatch,
        }

    # -- one request, whole or in pieces

    def receive(
        self, header: Header, parts: Sequence[Buffer], server: Server | None = None
    ) -> tuple[Header, Any]:
        """One message of a request: assemble, and with the last one do it and answer.

        What came by a direct lane is its ``server``'s; the answer then may be a segment.
        """
        try:
            check(header)
        except Broken as error:
            return self.refused(error), []
        if header.get("subshell") is None:
            return self.served(header, parts, server)
        with self.noted(header["subshell"]):
            return self.served(header, parts, server)

    def served(
        self, header: Header, parts: Sequence[Buffer], server: Server | None
    ) -> tuple[Header, Any]:
        try:
            self.sweep()
            operation = header["op"]
            if operation != "hello" and self.epoch not in str(header.get("epoch")).split():
                raise Broken("epoch", "this kernel is not the one that was prepared")
            for identity in header.get("had") or ():
                self.discard(identity)
            if operation == "more":
                return self.more(header, server)
            if operation == "forget":
                self.discard(header["id"])
                return {}, []
            if header.get("resumes") and header["id"] in self.done:
                return self.again(header)
            inbox = self.inboxes.pop(header["id"], None)
            if server is not None:
                inbox = Held(header["sizes"], [memoryview(part) for part in parts], server)
            else:
                inbox = inbox or Inbox(header["sizes"])
                if inbox.sizes != header["sizes"]:
                    raise Broken("integrity", "the pieces are not of one request")
                inbox.write(header["at"], parts, header["digest"])
            if operation == "piece":
                self.inboxes[header["id"]] = inbox
                return {}, []
            if server is not None and not header.get("now"):
                header["begun"] = self.kernel.begun
                self.behind_cells(header, self.kernel.may_run_cell)
            frames = inbox.take()
            if operation != "hello":  # which may come again, where a connection broke
                self.once(header["id"])
            answer, out = self.handle(header, frames)
        except _Overtaken:
            self.done.pop(header["id"], None)
            self.inboxes[header["id"]] = inbox
            return {"busy": True}, []
        except BaseException as error:
            answer, out = failed(error)
        try:
            answer, out = self.answer(header, answer, out, server)
        except BaseException as error:  # interrupted while it was copied
            answer, out = self.answer(header, *failed(error), server)
        if operation == "fetch" and header.get("begun") not in (None, self.kernel.begun):
            # A cell began before all of it was copied: not what it was at one moment.
            if out and server is not None and not isinstance(out, list):
                server.channel.take_back(out)
            self.discard(header["id"])
            self.done.pop(header["id"], None)
            self.inboxes[header["id"]] = inbox
            return {"busy": True}, []
        return answer, out

    def again(self, header: Header) -> tuple[Header, list[memoryview]]:
        """A message that came before, and comes again because the connection broke meanwhile."""
        if header["op"] == "piece":
            return {}, []
        outbox = self.outboxes.get(header["id"])
        if outbox is None or outbox.answer is None:
            raise Broken("lost", "it was done, and its answer is not here any more")
        outbox.touched = monotonic()
        return dict(outbox.answer), list(cut(outbox.frames, 0, header["piece"]))

    def behind_cells(self, header: Header, runs: bool = False) -> None:
        """Nothing takes effect in the middle of a cell that did not run when it was asked for."""
        if runs or header.get("begun") not in (None, self.kernel.begun):
            raise _Overtaken

    def once(self, identity: str) -> None:
        """A message that somebody recorded and sends again is not done again."""
        if identity in self.done:
            raise Broken("protocol", "this request was made before")
        self.done[identity] = None
        while len(self.done) > REMEMBERED:
            self.done.popitem(last=False)  # in one step: subshells come here too

    def answer(
        self, header: Header, answer: Header, frames: list[memoryview], server: Server | None = None
    ) -> tuple[Header, Any]:
        """The answer as it crosses, with a snapshot of the frames, which may be live objects.

        Signed, and cut off where the message is full; or in shared memory, for a server: at
        once, or fetched by its near end where the request came as a message.
        """
        sizes = [frame.nbytes for frame in frames]
        way = server or self.servers.get(header.get("via") or "")
        if way is None:
            return self.keep(header, answer, frames, header["piece"])
        answer.update(sizes=sizes, digest=digest("none", frames))
        if not frames:
            return answer, []
        segment = None
        if sum(sizes) >= SHARED:
            segment = way.place(frames)
            if segment is None:
                return self.keep(header, answer, frames, 0)
        if server is not None:
            return answer, segment or frames
        kept = [] if segment is not None else copied(frames)
        self.outboxes[header["id"]] = Outbox(kept, sizes, way, segment)
        return answer, []

    def keep(
        self, header: Header, answer: Header, frames: list[memoryview], limit: int
    ) -> tuple[Header, list[memoryview]]:
        """Cut off what fits into one message, sign it, and keep the rest for later ones."""
        sizes, frames = [frame.nbytes for frame in frames], copied(frames)
        total, parts = sum(sizes), frames
        if total > limit:
            parts = list(cut(frames, 0, limit))
        answer.update(sizes=sizes, digest=self.signed(header, total, parts))
        if "numpy" in sys.modules:
            answer["sums"] = True
        if total > limit or header.get("resumes"):
            outbox = self.outboxes[header["id"]] = Outbox(frames, sizes)
            outbox.answer = dict(answer) if header.get("resumes") else None
        return answer, parts

    def signed(self, header: Header, total: int, parts: Sequence[Buffer]) -> str:
        algorithm = header["digest"].partition(":")[0]
        if algorithm == "none":
            algorithm = "crc32"
        return digest(summed(algorithm, total, header.get("sums")), parts)

    def more(self, header: Header, server: Server | None) -> tuple[Header, Any]:
        """Another piece of an answer that was too long for one message; all of it to a server."""
        outbox = self.outboxes.get(header["id"])
        if outbox is None or outbox.owner is not server:
            raise Broken("integrity", "the rest of this answer is gone")
        if server is not None:
            del self.outboxes[header["id"]]
            return {"sizes": outbox.sizes}, outbox.segment or outbox.frames
        outbox.touched = monotonic()
        parts = list(cut(outbox.frames, header["at"], header["at"] + header["piece"]))
        return {"digest": self.signed(header, outbox.total, parts)}, parts

    def discard(self, identity: str) -> None:
        """Forget what is here of a request, or of its answer."""
        self.inboxes.pop(identity, None)
        outbox = self.outboxes.pop(identity, None)
        if outbox is not None:
            outbox.drop()

    def part_from(self, server: Server) -> None:
        """Its near end is gone: drop what only it could have asked for."""
        with self.door:
            self.servers.pop(server.name, None)
            if not self.servers:
                self.kernel.follow_cells(False)
        for store in (self.inboxes, self.outboxes):
            for identity, box in [*store.items()]:
                if box.owner is server:
                    store.pop(identity, None)

    def sweep(self) -> None:
        """Drop what a bridge that vanished left half-way: by age, and beyond a total."""
        kept = 0
        boxes: list[tuple[float, str, int]] = []
        # Subshells come here too, in threads of their own: look at copies.
        for key, inbox in [*self.inboxes.items()]:
            boxes.append((inbox.touched, key, inbox.received))
        for key, outbox in [*self.outboxes.items()]:
            boxes.append((outbox.touched, key, outbox.total))
        for touched, key, size in sorted(boxes, key=lambda item: -item[0]):
            kept += size
            if monotonic() - touched > IDLE_TRANSFER or kept > UNFINISHED + size:
                self.discard(key)

    def handle(self, header: Header, frames: Sequence[Buffer]) -> tuple[Header, list[memoryview]]:
        """Every operation, the same whichever lane brought it."""
        operation: Any = self.operations.get(header["op"])
        if operation is None:
            raise Broken("protocol", "unknown operation %r" % (header["op"],))
        answer, out = operation(header, frames)
        return answer, out

    def refused(self, error: Broken) -> Header:
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
            "orphans": self.orphans(),
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

    def learn(self, header: Header, frames: Sequence[Buffer]) -> tuple[Header, list[memoryview]]:
        """More source of the loader's own, as frames; the greeting carries what all need."""
        with _learning:
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
            if asked["op"] not in JOINS:
                raise Broken("protocol", "%s crosses alone" % asked["op"])
        answers: list[Header] = []
        out: list[memoryview] = []
        at, room = 0, header["piece"]
        for asked in header["requests"]:
            if room <= 0:
                answers.append({"again": True})
                continue
            count = len(asked["sizes"])
            asked["begun"] = header.get("begun")
            try:
                answer, parts = self.handle(asked, frames[at : at + count])
                if asked["op"] == "fetch":
                    parts = copied(parts)
                    self.behind_cells(asked)  # or it is not what it was at one moment
            except _Overtaken:
                if not answers:
                    raise
                answers.append({"again": True})
                room = 0
                continue
            except BaseException as error:
                answer, parts = failed(error)
            at += count
            answer, parts = self.answer(dict(asked, piece=room), answer, parts)
            answer["parts"] = len(parts)
            answers.append(answer)
            out += parts
            room -= sum(part.nbytes for part in parts)
        return {"answers": answers}, out

    def bind(self, header: Header, frames: Sequence[Buffer]) -> tuple[Header, list[memoryview]]:
        """All names or none: everything that can fail comes before the one ``update``."""
        names = header["names"]
        values = self.values.decode(header, frames)
        if type(values) is not dict or list(values) != names:
            raise Broken("protocol", "the names that arrived are not the ones announced")
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
            raise Broken("protocol", "what arrived is no call")
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

    def strike(self, header: Header, frames: Sequence[Buffer]) -> tuple[Header, list[memoryview]]:
        """Interrupt what a direct lane's thread is at, which SIGINT does not reach."""
        server = self.servers.get(str(header.get("server")))
        if server is not None:
            server.interrupt()
        return {}, []

    # -- what vanished bridges left

    @contextmanager
    def noted(self, told: Any) -> Iterator[None]:
        """Note whose subshell serves a request, and that it is busy with it."""
        if type(told) is not dict or type(told.get("id")) is not str:
            yield
            return
        self.subshells[told["id"]] = (told.get("host"), told.get("pid"), None)
        try:
            yield
        finally:
            self.subshells[told["id"]] = (told.get("host"), told.get("pid"), monotonic())

    def orphans(self) -> list[str]:
        """Idle subshells whose bridge went without a word; who asks is to delete them."""
        found = []
        for identity, (host, pid, used) in [*self.subshells.items()]:
            if used is None:
                continue  # busy: the kernel would wait for it, and answer nobody
            gone = host == node() and not runs(pid)
            if gone or monotonic() - used > IDLE_TRANSFER:
                self.subshells.pop(identity, None)
                found.append(identity)
        return found


FILENAME = Far.__init__.__code__.co_filename
