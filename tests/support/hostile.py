"""A hostile transport: a loopback whose messages meet harm, on a clock of its own.

Rule: this file does harm and checks that a bridge is as good as new afterwards; what a call may
raise is checked by the tests. A message is named by what it is (``Label``), not by when it passes,
so a harm meets the same message in every run. Nothing runs in a thread and no wait takes time.
"""

from __future__ import annotations

import asyncio
import re
import selectors
import sys
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import pytest

from bridgehead import Bridge, KernelRestarted, TransportError
from bridgehead._bridge.constructors import open_bridge
from bridgehead._bridge.opening import Opening, OpenOptions
from bridgehead._lanes import base as _base
from bridgehead._protocol import request as _request
from bridgehead._protocol.bootstrap import remote_source
from bridgehead._shipped.wire import digest
from bridgehead._transports.base import Transport
from bridgehead._transports.dispatch import Reconnected
from bridgehead._transports.loopback import LoopbackKernel, LoopbackTransport
from bridgehead._transports.tasks import Threads, threads_of

T = TypeVar("T")
WAYS = ("out", "in")
PATIENCE = 600  # s of the virtual clock; a call that takes longer hangs
CHUNK = 4 << 10  # bytes of frames in a message
OPERATION = re.compile(r'"op": "(\w+)"')


class Clock(selectors.DefaultSelector):
    """A selector that waits for no timer: the clock jumps to it instead."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        events = super().select(0)
        if not events:
            self.now += timeout or 0
        return events


class NoThreads(Threads):
    """In place of a loop's threads: the caller does the work. The clock cannot see a thread."""

    def run(self, function: Callable[[], object]) -> None:
        function()


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop with a clock of its own and without threads: each run is like the one before.

    A wait of a minute takes no time.
    """

    def __init__(self) -> None:
        self._clock = Clock()
        super().__init__(self._clock)
        threads_of[self] = NoThreads()

    def time(self) -> float:
        return self._clock.now

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except BaseException as error:
            future.set_exception(error)
        return future


class Label(NamedTuple):
    """What a message is: the n-th of its kind for its operation."""

    way: str  # "out" to the kernel or "in" to the client
    operation: str  # of the remote part, or "run" or "kernel_info"
    kind: str
    number: int

    def __str__(self) -> str:
        return " ".join(map(str, self))


class HostileTransport(LoopbackTransport):
    """A loopback whose messages pass through ``harm``, and whose kernel can be replaced.

    Unlike those of a loopback, its kernels have subshells, and take interrupts.
    """

    def __init__(self, *, resumable: bool, control: bool) -> None:
        """With ``control``, the bridge's inquiry asks on the control channel, too."""
        self.capabilities = replace(
            self.capabilities,
            resumable=resumable,
            max_send=CHUNK,
            max_receive=CHUNK,
            has_control=control,
        )
        self.harms: dict[Label, str] = {}
        self._later: dict[str, list[str]] = {way: [] for way in WAYS}  # harms to the next messages
        self.seen: list[Label] = []
        self.kernels: list[LoopbackKernel] = []  # all processes, the last one is the present one
        self.meant = 0  # the number of the process for which the operation is meant
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._requests_of: dict[str, tuple[str, int]] = {}  # operation and connection, by id
        self._held: dict[str, Callable[[], None] | None] = dict.fromkeys(WAYS)
        self._stalled: dict[str, list[Callable[[], None]] | None] = dict.fromkeys(WAYS)
        self._echoes: list[Callable[[], None]] = []
        self._connection = 0
        self._lost_before = 0  # replies to requests of earlier connections are lost
        # Requests that the kernel has not served yet, by shell; None for the main one.
        self._inbound: dict[str | None, deque[Any]] = {}
        super().__init__()
        self.kernel_info["supported_features"] = ["kernel subshells"]
        self._received = self.dispatcher.received
        self.dispatcher.received = self.receive  # type: ignore[method-assign]

    def _end_thread(self) -> None:  # there is none
        self._end()

    # ------------------------------------------------------------ messages pass

    async def send(self, channel: str, message: dict[str, Any], buffers: Sequence[Any]) -> None:
        identity, kind = message["header"]["msg_id"], message["header"]["msg_type"]
        expressions = message["content"].get("user_expressions", {})
        text = message["content"].get("request") or expressions.get(_request.KEY, "")
        found = OPERATION.findall(text)
        if message["content"].get("code"):  # a cell, which may bring a request
            found = []
        if kind == "execute_request" or found:
            operation = (*found, "run")[0]
        else:
            operation = kind.removesuffix("_request")
        self._requests_of[identity] = operation, self._connection
        copies = [memoryview(bytes(buffer)) for buffer in buffers]
        request = {**message, "buffers": copies}

        def deliver() -> None:
            shell = message["header"].get("subshell_id")
            if channel == "control":
                self._serve_control(request)
            elif shell in self._inbound:
                self._inbound[shell].append((self._cell, request))
                self._loop.call_soon(self._serve_next, shell)
            else:  # as ipykernel does
                error = {"ename": "UnknownSubshellError", "evalue": shell, "traceback": []}
                reply = kind.replace("_request", "_reply")
                self._cell.emit("shell", reply, {"status": "error", **error}, request)

        self._pass("out", operation, "request", deliver)

    def receive(self, channel: str, message: dict[str, Any]) -> None:
        header, parent = message["header"], message["parent_header"].get("msg_id")
        operation, connection = self._requests_of.get(parent, ("none", 0))
        if connection < self._lost_before:
            return
        state = message["content"].get("execution_state", "")
        kind = f"{header['msg_type']} {state}".strip()

        def deliver() -> None:
            try:  # as in the reader of a real kernel's channel
                self._received(channel, message)
            except Exception:
                self.unreadable += 1

        self._pass("in", operation, kind, deliver)

    def _pass(self, way: str, operation: str, kind: str, deliver: Callable[[], None]) -> None:
        """Deliver one message, or do the harm that was asked for."""
        number = self._counts[way, operation, kind]
        self._counts[way, operation, kind] += 1
        label = Label(way, operation, kind, number)
        self.seen.append(label)
        later = self._later[way]
        harm = self.harms.pop(label, "") or (later.pop(0) if later else "")
        if harm:
            getattr(self, harm)(way, deliver)
        elif (stalled := self._stalled[way]) is not None:
            stalled.append(deliver)
        else:
            deliver()
            held, self._held[way] = self._held[way], None
            if held is not None:
                held()

    def begin(self, harms: dict[Label, str]) -> None:
        """Name messages from now on, and do these harms."""
        self.seen.clear()
        self._counts.clear()
        self.harms = harms

    def harm_later(self, way: str, after: int, harm: str) -> None:
        """Do a harm to a message on this way, after that many which pass."""
        later = self._later[way]
        later += [""] * (after + 1 - len(later))
        later[after] = harm

    def end(self) -> None:
        """Do no more harm; deliver all that was held back."""
        self.harms, self._later = {}, {way: [] for way in WAYS}
        for way in WAYS:
            self._flow(way)
            held, self._held[way] = self._held[way], None
            if held is not None:
                held()
        for echo in self._echoes:
            echo()
        self._echoes.clear()

    # ------------------------------------------------------------ harms

    def drop(self, way: str, deliver: Callable[[], None]) -> None:
        """Lose the message."""

    def duplicate(self, way: str, deliver: Callable[[], None]) -> None:
        """Deliver the message twice."""
        deliver()
        deliver()

    def echo(self, way: str, deliver: Callable[[], None]) -> None:
        """Deliver the message, and once more when the operation has ended."""
        deliver()
        self._echoes.append(deliver)

    def swap(self, way: str, deliver: Callable[[], None]) -> None:
        """Deliver the message after the next one on its way, or when the operation has ended."""
        self._held[way] = deliver

    def delay(self, way: str, deliver: Callable[[], None]) -> None:
        """Delay the message and all behind it, until after the client has asked about it."""
        if (stalled := self._stalled[way]) is None:
            stalled = self._stalled[way] = []
            self._loop.call_later(2 * self.timings.inquiry_after, self._flow, way)
        stalled.append(deliver)

    def _flow(self, way: str) -> None:
        stalled, self._stalled[way] = self._stalled[way], None
        for deliver in stalled or ():
            deliver()

    def cut(self, way: str, deliver: Callable[[], None]) -> None:
        """Break the connection, with the message and all others that are on their way."""
        self._connection += 1
        self._lost_before = self._connection
        self._break()

    def cut_behind(self, way: str, deliver: Callable[[], None]) -> None:
        """Break the connection behind the message; nothing is lost."""
        deliver()
        self._connection += 1
        self._break()

    def _break(self) -> None:
        if not self.capabilities.resumable:  # as over ZeroMQ: the connection is a new one at once
            self.connection_lost(lambda: TransportError("the connection broke"), "restarting")
            self.life.connection_made()
            return
        lost = list(self.dispatcher.pending.values())  # from here on as behind a server
        for pending in lost:
            pending.cut = pending.repeatable
        self._loop.call_soon(self._resume, lost)

    def _resume(self, lost: list[Any]) -> None:
        for pending in lost:
            if pending.slot and not pending.repeatable:
                self.dispatcher.inquiry.start(pending.route)
            else:
                self.dispatcher.settle(pending.id, Reconnected("the connection broke"))
        for listener in list(self.life.listeners.values()):
            listener.renew()

    def restarted(self, way: str, deliver: Callable[[], None]) -> None:
        """Replace the kernel, and report it; all messages that are on their way are lost."""
        self._connection += 1
        self._lost_before = self._connection
        self._held, self._stalled = dict.fromkeys(WAYS), dict.fromkeys(WAYS)
        self._echoes.clear()
        self.connection_lost(lambda: KernelRestarted("the kernel was replaced"), "restarting")
        self._end()
        self._start()

    def restarted_behind(self, way: str, deliver: Callable[[], None]) -> None:
        """Replace the kernel behind the message, and report it."""
        deliver()
        self.restarted(way, deliver)

    def replaced(self, way: str, deliver: Callable[[], None]) -> None:
        """Replace the kernel, and do not report it; the message passes."""
        self._end()
        self._start()
        deliver()

    # ------------------------------------------------------------ the kernel

    def _start(self) -> None:
        """Start a kernel, which is served by the event loop and not by a thread."""
        self._cell = cell = LoopbackKernel(
            lambda *message: self._emit(cell, *message), self._loop, self._loop.call_soon
        )
        self.kernels.append(self._cell)
        self._inbound = {None: deque()}
        self.life.connection_made()

    def _serve_next(self, shell: str | None) -> None:
        if self._inbound.get(shell):
            cell, request = self._inbound[shell].popleft()
            self._answer(cell, request)

    def _serve_control(self, message: dict[str, Any]) -> None:
        kind, content = message["header"]["msg_type"], message["content"]
        if kind == "create_subshell_request":
            made = f"subshell {len(self._inbound)} of {len(self.kernels)}"
            self._inbound[made] = deque()
            reply = {"status": "ok", "subshell_id": made}
        elif kind == "delete_subshell_request":
            self._inbound.pop(content["subshell_id"], None)
            reply = {"status": "ok"}
        elif kind == "interrupt_request":  # no cell runs while a message arrives
            reply = {"status": "ok"}
        else:
            super()._serve_control(message)
            return
        self._cell.emit("control", kind.replace("_request", "_reply"), reply, message)
        self._cell.emit("iopub", "status", {"execution_state": "idle"}, message)

    async def interrupt(self) -> None:
        if not self.capabilities.resumable:  # else a server does it, without a message from here
            await self.dispatcher.control("interrupt_request", {})

    async def replace(self, timeout: float) -> None:
        self.restarted("out", lambda: None)

    def _end(self) -> None:
        """End the kernel's process, with the requests that it has not served."""
        self._inbound.clear()
        self._cell.leave()


RESTARTS = ("restarted", "restarted_behind", "replaced")
CUTS = ("cut", "cut_behind")
HARMS = ("drop", "duplicate", "echo", "swap", "delay", *CUTS, *RESTARTS)


# ---------------------------------------------------------------- bridges


def opened(
    lane: Any, resumable: bool, harms: dict[Label, str] | None = None, *, control: bool = False
) -> Opening[Bridge]:
    async def connect(left: float) -> Transport:
        transport = HostileTransport(resumable=resumable, control=control)
        transport.harms = dict(harms or {})
        return transport

    return open_bridge(Bridge, OpenOptions(lane, "pickle", pool=0), PATIENCE, connect)


async def follow_up(bridge: Bridge, *, may_restart: bool) -> None:
    """Do nine operations; the first one may report a restart that nothing has reported."""
    try:
        await bridge.push(m=[1], n="text")
    except KernelRestarted:
        assert may_restart, "there was no restart, or it was reported before"
        await bridge.push(m=[1], n="text")
    outcomes = await asyncio.gather(  # in three messages
        bridge.pull("m", "n"),
        bridge.exists("m"),
        bridge.push(m=2),
        bridge.pull("m"),
        bridge.names("[m-o]"),
        bridge.delete("n"),
        bridge.call(divmod, 7, bridge.ref("m")),
        bridge.run("del m"),
    )
    assert [outcomes[index] for index in (0, 1, 3, 6)] == [([1], "text"), True, 2, (3, 1)]
    assert [name.name for name in outcomes[4]] == ["m", "n"]


async def quiet(bridge: Bridge, *, lost: bool) -> None:
    """Wait, then check that nothing stays in the bridge, nor in the remote part unless ``lost``."""
    await asyncio.sleep(3)  # until the kernel was asked about requests that are not replied to
    wire: Any = bridge._transport
    dispatcher = wire.dispatcher
    for left in dispatcher.pending, dispatcher.inquiry._open, dispatcher._listening:
        assert not left
    for left in wire.life._waiters, wire.life.listeners, wire.tasks._running:
        assert not left
    assert not bridge._connection.queue.turns
    assert dispatcher.in_flight == 0
    assert not dispatcher.has_streams
    remote = sys.modules[remote_source()[0]]._remotes[id(wire._cell.user_ns)]
    kept = {*remote.transfers.outboxes} - {*bridge._connection.remote.lane._to_ack}
    kept |= {*remote.resources.known, *remote.operations.values.kept}
    assert lost or not (kept or remote.transfers.inboxes)


def run(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


def sign_small_chunks(patch: pytest.MonkeyPatch) -> None:
    """Have both ends sign, and so send, chunks of few bytes."""

    async def install() -> None:
        async with opened("inline", False):
            pass

    run(install())  # it installs the remote module in this process
    for module in digest, _base, sys.modules[remote_source()[0]]:
        patch.setattr(module, "LEAF", CHUNK)
