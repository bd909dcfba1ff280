"""The server of one namespace: it receives requests, decides when they run, and responds.

Rule: use the standard library only, run on Python 3.8 and later, and leave no name in the user's
namespace. This file decides when a request may run. ``operations`` does what a request asks for;
``replay`` keeps the requests and responses of which a part is missing. Every lane calls
``Remote.receive`` for each message; when a request is whole, ``Remote.handle`` performs it.
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
    from bridgehead._shipped.remote.namespace import UserNamespace, error_response
    from bridgehead._shipped.remote.operations import CellRunning, Operations
    from bridgehead._shipped.remote.orphans import SubshellTable
    from bridgehead._shipped.remote.replay import TransferTable
    from bridgehead._shipped.remote.socket_thread import SocketThread, join
    from bridgehead._shipped.remote.subscriptions import SubscriptionTable
    from bridgehead._shipped.wire.digest import Buffer
    from bridgehead._shipped.wire.errors import WireError
    from bridgehead._shipped.wire.frames import digest, snapshot
    from bridgehead._shipped.wire.header import (
        BATCHABLE,
        DirectOffer,
        HeaderAndFrames,
        RequestHeader,
        ResponseHeader,
        check,
    )
    from bridgehead._shipped.wire.limits import descriptor_limit
    from bridgehead._shipped.wire.process import own_process

_codec_lock = Lock()  # subshells serve requests in threads of their own


class Remote:
    """The server of one namespace; each of its parts owns some of the state."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.epoch = os.urandom(8).hex()
        self.socket_threads: dict[
            str, SocketThread
        ] = {}  # the socket threads of the direct lanes, by name
        # The cells' thread adds to ``socket_threads``; a socket thread removes itself.
        self.socket_threads_lock = Lock()
        self.subshells = SubshellTable()
        self.transfers = TransferTable(self.socket_threads)
        values = UserNamespace(kernel)
        self.operations = Operations(kernel, values)
        self.subscriptions = SubscriptionTable(kernel, values, self.transfers)
        self.table = {
            "hello": self.hello,
            "load_codec": self.load_codec,
            "batch": self.batch,
            "interrupt": self.interrupt,
            "interrupt_cell": self.interrupt_cell,
            "bind": self.operations.bind,
            "fetch": self.operations.fetch,
            "call": self.operations.call,
            "drop": self.operations.drop,
            "names": self.operations.names,
            "has": self.operations.has,
            "watch": self.subscriptions.watch,
            "unwatch": self.subscriptions.unwatch,
        }

    # ------------------------------------------------------------ one request

    def receive(
        self, fields: Any, parts: Sequence[Buffer], thread: SocketThread | None = None
    ) -> tuple[ResponseHeader, Any]:
        """Receive one message of a request; run the request when it is whole, and respond.

        ``fields`` is its header, not checked yet. ``thread`` is the socket thread that received
        the message, if it came over a direct lane. The frames of the response may then be a
        segment.
        """
        try:
            header = check(fields)
        except WireError as error:
            return self.refused(error), []
        if header.get("subshell") is None:
            return self.serve(header, parts, thread)
        with self.subshells.in_use(header["subshell"]):
            return self.serve(header, parts, thread)

    def serve(
        self, header: RequestHeader, parts: Sequence[Buffer], thread: SocketThread | None
    ) -> tuple[ResponseHeader, Any]:
        """Serve one message whose header was checked; see ``receive``."""
        transfers, operation, inbox, recorded = self.transfers, header["op"], None, False
        try:
            # There is no timer in the kernel: each message drops what vanished bridges left.
            transfers.sweep()
            # Check the epoch before anything is stored: a message for another kernel must change
            # nothing in this one.
            if operation != "hello" and self.epoch not in str(header.get("epoch")).split():
                raise WireError("epoch", "the request is for another kernel")
            for identity in header.get("acks") or ():
                transfers.discard(identity)
            if operation == "next_chunk":
                return transfers.next_chunk(header, thread)
            if operation == "forget":
                transfers.forget(header["id"])
                return {}, []
            # Check for a repeated message before the inbox is looked up: the first message, which
            # ran the request, has taken the inbox out of its table.
            if header["id"] in transfers.done and (header.get("resumable") or operation == "chunk"):
                return transfers.repeat_response(header)
            inbox = transfers.assemble(header, parts, thread)
            if operation == "chunk":
                transfers.inboxes[header["id"]] = inbox
                return {}, []
            # The cells' thread serves a message between two cells. A socket thread serves at any
            # time: it notes which cell began last, and an operation checks again before it takes
            # effect.
            if thread is not None and not header.get("now"):
                header = {**header, "cells_begun": self.kernel.begun}
                self.operations.require_no_cell(header, self.kernel.may_run_cell)
            # Take the frames before the id is recorded: the client may send a request again that
            # arrived damaged.
            frames = inbox.take()
            if operation != "hello":  # a client repeats this after its connection broke
                transfers.record(header["id"])
            recorded = True
            response, out = self.handle(header, frames)
        except CellRunning:
            return transfers.defer(header, inbox)
        except BaseException as error:  # an interrupt, too, is an outcome of the request
            if not recorded:  # nothing ran, and a repeat would be refused again: keep nothing
                return self.refused(error), []
            response, out = self.outcome(header, error)
        if thread is None:
            # From here on, an interrupt could only hide what was done.
            self.kernel.ignore_interrupts()
        try:
            response, out = transfers.respond(header, response, out, thread)
        except BaseException as error:  # interrupted while the frames were copied
            response, out = transfers.respond(header, *self.outcome(header, error), thread)
        begun = header.get("cells_begun")
        if operation == "fetch" and inbox is not None and begun not in (None, self.kernel.begun):
            # A cell began before everything was copied, so the copy may mix values of two moments.
            # A fetch changes nothing and may run again. Other operations check before they take
            # effect.
            if out and thread is not None and not isinstance(out, list):
                thread.channel.take_back(out)  # a segment that no message has named
            transfers.discard(header["id"])
            return transfers.defer(header, inbox)
        return response, out

    def outcome(self, header: RequestHeader, error: BaseException) -> HeaderAndFrames:
        """Return the response to a request that was ended by an error, such as an interrupt.

        An interrupt may come after the request took effect. Then nothing is to be reported.
        """
        return ({}, []) if self.operations.took_effect(header) else error_response(error)

    def forget_thread(self, thread: SocketThread) -> None:
        """Forget a direct lane whose client has closed it, and the transfers that it owned."""
        with self.socket_threads_lock:
            self.socket_threads.pop(thread.name, None)
            if not self.socket_threads:
                self.kernel.follow_cells(False)
        self.transfers.drop_owned_by(thread)

    def handle(self, header: RequestHeader, frames: Sequence[Buffer]) -> HeaderAndFrames:
        """Perform an operation, the same for every lane."""
        operation: Any = self.table.get(header["op"])
        if operation is None:
            raise WireError("protocol", "unknown operation %r" % (header["op"],))
        response, out = operation(header, frames)
        return response, out

    def refused(self, error: BaseException) -> ResponseHeader:
        """Return the response to a request that did not run: an error, and no frames."""
        if isinstance(error, MemoryError):
            error = MemoryError("%s; the request did not run" % (str(error) or "no memory"))
        response, _ = error_response(error)
        return {**response, "sizes": [], "digest": digest("crc32", ())}

    # ------------------------------------------------------------ the operations of the server

    def hello(self, header: RequestHeader, frames: Sequence[Buffer]) -> HeaderAndFrames:
        """Describe this kernel; prove whose process it is, and begin a direct lane, if asked to."""
        self.kernel.note_thread()
        return {
            "epoch": self.epoch,
            "python": list(sys.version_info[:3]),
            "executable": sys.executable or "",
            "pickle": pickle.HIGHEST_PROTOCOL,
            "versions": versions(("cloudpickle", "ipykernel", "numpy", "pandas")),
            "pid": os.getpid(),
            "process": self.kernel.process(),
            "on_machine": own_process(),
            "uid": os.getuid() if hasattr(os, "getuid") else None,
            "cwd": current_folder(),
            "in_main_thread": self.kernel.in_main_thread,
            "guards_cells": self.kernel.guard is not None,
            "orphans": self.subshells.orphans(),
            "direct": self.join(header.get("direct")),
            "files": descriptor_limit(),
        }, []

    def join(self, offer: DirectOffer | None) -> str | None:
        """Connect to the socket that a client offers; return why there is no direct lane on it.

        Return None without an offer, and an empty string if there is one.
        """
        if offer is None:
            return None
        with self.socket_threads_lock:
            why = ""
            if offer.get("lane"):
                if not self.kernel.is_one_thread_at_a_time:
                    why = "this kernel's Python has no global interpreter lock"
                elif not self.kernel.follow_cells(True):
                    why = "this kernel does not report when it runs a cell"
            why = join(self, offer, why)
            if not self.socket_threads:
                self.kernel.follow_cells(False)
        return why

    def load_codec(self, header: RequestHeader, frames: Sequence[Buffer]) -> HeaderAndFrames:
        """Load the data-only codec: its sources are the frames, and run in this module."""
        with _codec_lock:
            if "decode_data" not in globals():
                for frame in frames:
                    exec(compile(str(frame, "utf-8"), FILENAME, "exec"), globals())
        return {}, []

    def batch(self, header: RequestHeader, frames: Sequence[Buffer]) -> HeaderAndFrames:
        """Run small requests that crossed together, in order, each all or nothing by itself.

        Once the responses fill a message, the remaining requests do not run: their responses
        ask the client to send them again.
        """
        requests = header["requests"]
        for request in requests:
            check(request)
            if request["op"] not in BATCHABLE:
                raise WireError("protocol", "%s cannot be in a batch" % request["op"])
        served: list[HeaderAndFrames] = []
        try:
            self.serve_each(header, frames, served)
            self.kernel.ignore_interrupts()
        except CellRunning:
            if not served:
                raise  # nothing ran: the whole batch waits
        except BaseException as error:
            # An interrupt ends one request; those behind it have not run. A second interrupt must
            # not hide what has.
            self.kernel.ignore_interrupts()
            if len(served) < len(requests):
                room = header["chunk"] - sum(part.nbytes for _, parts in served for part in parts)
                one: RequestHeader = {**requests[len(served)], "chunk": max(room, 0)}
                self.transfers.discard(one["id"])
                served.append(self.transfers.respond(one, *self.outcome(one, error)))
        responses: list[ResponseHeader] = [
            {**response, "parts": len(parts)} for response, parts in served
        ]
        responses += [{"retry": True}] * (len(requests) - len(served))
        return {"responses": responses}, [part for _, parts in served for part in parts]

    def serve_each(
        self, header: RequestHeader, frames: Sequence[Buffer], served: list[HeaderAndFrames]
    ) -> None:
        """Run the requests of a batch until their responses fill a message.

        Each response goes into ``served`` in one step, which an interrupt cannot divide.
        """
        at, room = 0, header["chunk"]
        for one in header["requests"]:
            if room <= 0:
                return
            count = len(one["sizes"])
            begun = header.get("cells_begun")
            request: RequestHeader = {**one, "chunk": room, "cells_begun": begun}
            try:
                response, parts = self.handle(request, frames[at : at + count])
                if request["op"] == "fetch":
                    parts = snapshot(parts)
                    # A cell that began meanwhile may have changed a value during the copy.
                    self.operations.require_no_cell(request)
            except (CellRunning, KeyboardInterrupt):
                raise
            except BaseException as error:
                response, parts = error_response(error)
            at += count
            served.append(self.transfers.respond(request, response, parts))
            room -= sum(part.nbytes for part in served[-1][1])

    def interrupt(self, header: RequestHeader, frames: Sequence[Buffer]) -> HeaderAndFrames:
        """Interrupt the request that a socket thread serves; SIGINT does not reach it."""
        thread = self.socket_threads.get(str(header.get("server")))
        if thread is not None:
            thread.interrupt()
        return {}, []

    def interrupt_cell(self, header: RequestHeader, frames: Sequence[Buffer]) -> HeaderAndFrames:
        """Interrupt the cell of one message; return whether it runs. Not in the cells' thread."""
        guard = self.kernel.guard
        return {"delivered": guard is not None and guard.interrupt(header["cell"])}, []


FILENAME = Remote.__init__.__code__.co_filename
