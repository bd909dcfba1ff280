"""The server of one namespace: it receives requests, decides when they run, and responds.

Rule: use the standard library only, run on Python 3.8 and later, and leave no name in the user's
namespace. This file decides when a request may run. ``operations`` does what a request asks for;
``replay`` keeps the requests and responses of which a part is missing. Every lane calls
``Remote.receive`` for each message; when a request is whole, ``Remote.handle`` performs it.
"""

from __future__ import annotations

import atexit
import os
import pickle
import sys
from base64 import b64encode
from json import dumps, loads
from threading import Lock
from typing import Any, Sequence

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.remote.callbacks import CallbackTable
    from bridgehead._shipped.remote.cell_errors import CellErrors
    from bridgehead._shipped.remote.cell_guard import wake_up
    from bridgehead._shipped.remote.inspection import current_folder, versions
    from bridgehead._shipped.remote.iteration import IterationTable
    from bridgehead._shipped.remote.kernel import Kernel
    from bridgehead._shipped.remote.mapping import Maps
    from bridgehead._shipped.remote.namespace import UserNamespace, error_response
    from bridgehead._shipped.remote.operations import CellRunning, Operations
    from bridgehead._shipped.remote.orphans import SubshellTable
    from bridgehead._shipped.remote.replay import TransferTable
    from bridgehead._shipped.remote.resources import ResourceTable
    from bridgehead._shipped.remote.socket_thread import SocketThread, SwitchInterval, join
    from bridgehead._shipped.remote.staging import Staging
    from bridgehead._shipped.remote.tasks import TaskTable
    from bridgehead._shipped.remote.watch import WatchTable
    from bridgehead._shipped.wire.digest import Buffer
    from bridgehead._shipped.wire.errors import WireError
    from bridgehead._shipped.wire.frames import digest, snapshot
    from bridgehead._shipped.wire.header import (
        BATCHABLE,
        BESIDE_CELLS,
        DirectOffer,
        HeaderAndFrames,
        RequestHeader,
        ResponseHeader,
        check,
    )
    from bridgehead._shipped.wire.limits import descriptor_limit
    from bridgehead._shipped.wire.process import own_process
    from bridgehead._shipped.wire.slabs import shared_memory

_codec_lock = Lock()  # subshells serve requests in threads of their own
# Not empty once the process is ending. IPython then empties the namespace, while other threads
# still serve requests: a name that is missing now says nothing. Functions that were registered
# later are called earlier, and IPython's was registered before.
_exits: list[bool] = []
atexit.register(_exits.append, True)


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
        self.switch_interval = SwitchInterval()
        self.subshells = SubshellTable()
        self.transfers = TransferTable(self.socket_threads, kernel)
        values = UserNamespace(kernel)
        self.resources = ResourceTable(kernel, self.transfers)
        self.operations = Operations(kernel, values, self.resources)
        self.tasks = TaskTable(kernel, self.operations, self.resources)
        self.iterations = IterationTable(kernel, self.operations, self.resources, self.tasks)
        self.maps = Maps(kernel, self.operations, self.tasks)
        self.watches = WatchTable(kernel, self.operations, self.resources)
        self.callbacks = CallbackTable(kernel, values, self.resources)
        values.stands_for["Callback"] = self.callbacks.resolve
        self.staging = Staging(self.operations, self.resources)
        self.cell_errors = CellErrors(kernel)
        self.table = {
            "hello": self.hello,
            "load_codec": self.load_codec,
            "batch": self.batch,
            "interrupt": self.interrupt,
            "interrupt_cell": self.interrupt_cell,
            "withdraw": self.withdraw,
            "wake": self.wake,
            "bind": self.operations.bind,
            "fetch": self.operations.fetch,
            "call": self.operations.call,
            "drop": self.operations.drop,
            "names": self.operations.names,
            "has": self.operations.has,
            "detail": self.operations.detail,
            "watch": self.watches.watch,
            "watch_names": self.watches.watch,
            "start": self.tasks.start,
            "stage": self.staging.stage,
            "iterate": self.iterations.iterate,
            "advance": self.iterations.advance,
            "take": self.iterations.take,
            "finish": self.iterations.finish,
            "report": self.callbacks.report,
            "map": self.maps.map,
            "cancel": self.cancel,
            "renew": self.resources.renew,
            "close": self.resources.close,
        }

    # ------------------------------------------------------------ one request

    def receive(
        self, fields: Any, parts: Sequence[Buffer], thread: SocketThread | None = None
    ) -> tuple[ResponseHeader, Any]:
        """Receive one message of a request; run the request when it is whole, and respond.

        ``fields`` is its header, not checked yet. ``thread`` is the socket thread that received
        the message, if it came over a direct lane. It knows the fields that are not sent. The
        frames of the response may then be a segment.
        """
        try:
            header = check(fields, None if thread is None else thread.common)
        except WireError as error:
            return self.refused(error), []
        if header.get("subshell") is None:
            served = self.serve(header, parts, thread)
        else:
            with self.subshells.in_use(header["subshell"]):
                served = self.serve(header, parts, thread)
        if _exits:
            return self.refused(WireError("epoch", "the kernel's process is ending")), []
        return served

    def receive_control(self, text: str) -> str:
        """Serve a request that came on the control channel, in the control thread.

        Only operations that need not run in the thread of the cells come this way.
        """
        try:
            fields = loads(text)
            if type(fields) is dict and fields.get("op") not in BESIDE_CELLS:
                raise WireError("protocol", "this operation is not served on the control channel")
        except (ValueError, RecursionError) as error:
            response = self.refused(WireError("integrity", "the request is damaged: %s" % error))
        except WireError as error:
            response = self.refused(error)
        else:
            response, frames = self.receive(fields, ())
            if frames:
                response = {**response, "data": b64encode(b"".join(frames)).decode("ascii")}
        return dumps(response)

    def serve(
        self, header: RequestHeader, parts: Sequence[Buffer], thread: SocketThread | None
    ) -> tuple[ResponseHeader, Any]:
        """Serve one message whose header was checked; see ``receive``."""
        transfers, operation, inbox, recorded = self.transfers, header["op"], None, False
        try:
            early = self.serve_early(header, thread)
            if early is not None:
                return early
            inbox = transfers.assemble(header, parts, thread)
            if operation == "chunk":
                transfers.inboxes[header["id"]] = inbox
                return {}, []
            # The cells' thread serves a message between two cells. A socket thread serves at any
            # time: it notes which cell began last, and an operation checks again before it takes
            # effect. The first step of a task that was started before comes first, too.
            if thread is not None and not header.get("now"):
                header = {**header, "cells_begun": self.kernel.begun}
                is_busy = self.kernel.may_run_cell or bool(self.tasks.starting)
                self.operations.require_no_cell(header, is_busy)
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

    def serve_early(
        self, header: RequestHeader, thread: SocketThread | None
    ) -> tuple[ResponseHeader, Any] | None:
        """Serve a message that needs nothing but what earlier ones left; None if it needs more.

        Such a message is for another kernel, asks for a part of a response, ends a transfer, or
        repeats a request.
        """
        transfers, operation = self.transfers, header["op"]
        # Each message drops what vanished bridges left.
        transfers.sweep()
        if self.resources.known and self.kernel.is_thread_of_cells:
            self.resources.sweep()
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
        return None

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
                self.kernel.follow_cells(self, False)
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
        self.cell_errors.install()
        return {
            "epoch": self.epoch,
            "python": list(sys.version_info[:3]),
            "executable": sys.executable or "",
            "pickle": pickle.HIGHEST_PROTOCOL,
            "versions": versions(("cloudpickle", "ipykernel", "numpy", "pandas")),
            "pid": os.getpid(),
            "kernel_info": self.kernel.info(),
            "process": self.kernel.process(),
            "on_machine": own_process(),
            "uid": os.getuid() if hasattr(os, "getuid") else None,
            "cwd": current_folder(),
            "in_main_thread": self.kernel.in_main_thread,
            "guards_cells": self.kernel.guard is not None,
            "serves_control": self.kernel.serve_control(self.receive_control),
            "orphans": self.subshells.orphans(),
            "direct": self.join(header.get("direct")),
            "files": descriptor_limit(),
            "memory": shared_memory(),
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
                elif not self.kernel.follow_cells(self, True):
                    why = "this kernel does not report when it runs a cell"
            why = join(self, offer, why)
            if not self.socket_threads:
                self.kernel.follow_cells(self, False)
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
                one["ahead"] = False
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
            request["ahead"] = False  # a chunk would take the message of the whole batch
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

    def cancel(self, header: RequestHeader, frames: Sequence[Buffer]) -> HeaderAndFrames:
        """Interrupt a request that runs, or see to it that it never runs."""
        request = header["request"]
        if request not in self.transfers.done:
            self.transfers.forget(request)
        if self.kernel.guard is not None:
            self.kernel.guard.cancel(request)
        return {}, []

    def withdraw(self, header: RequestHeader, frames: Sequence[Buffer]) -> HeaderAndFrames:
        """See to it that a cell never begins, unless it has."""
        if self.kernel.guard is not None:
            self.kernel.guard.withdraw(header["request"])
        return {}, []

    def wake(self, header: RequestHeader, frames: Sequence[Buffer]) -> HeaderAndFrames:
        """See to it that what runs notices an interrupt that was sent."""
        if self.kernel.guard is None:
            self.kernel.call_soon(wake_up)
        else:
            self.kernel.guard.urge()
        return {}, []


FILENAME = Remote.__init__.__code__.co_filename
