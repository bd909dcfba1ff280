"""A hostile transport: it harms each message of each operation in turn, and the bridge goes on.

Rule: the transport between a bridge and a loopback kernel drops, repeats, delays and reorders
messages, breaks its connection, and replaces the kernel. The first part of this file does one
harm to one message at a time; the second part, a state machine, does many. Whatever happens:

- each call ends, with the right value or with an error whose class is true;
- a call that was made before a restart has no effect in the new kernel;
- the next nine operations work;
- nothing stays in the bridge or in the remote part.

A message is named by what it is (``Label``), not by when it passes: so each harm meets the same
message in every run. The waits of the client are short here, because most tests wait for their end.
"""

from __future__ import annotations

import asyncio
import contextlib
import operator
import re
import selectors
import sys
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import pytest

from bridgehead import (
    Bridge,
    BridgeError,
    KernelRestarted,
    NameNotFound,
    NotExecuted,
    NotSent,
    RemoteError,
    ReplyLost,
    TransportError,
)
from bridgehead._bridge.opening import Opening, OpenOptions, open_bridge
from bridgehead._connection.remote import LOST
from bridgehead._protocol import request as _request
from bridgehead._protocol.bootstrap import remote_source
from bridgehead._shipped.wire import digest
from bridgehead._transports.base import Transport
from bridgehead._transports.dispatch import Reconnected
from bridgehead._transports.loopback import LoopbackKernel, LoopbackTransport

T = TypeVar("T")
PATIENCE = 600  # s of the virtual clock; a call that takes longer hangs
WAYS = ("out", "in")
CHUNK = 4 << 10  # bytes of frames in a message
LARGE = bytes(range(256)) * 40  # crosses in three messages
OPERATION = re.compile(r'"op": "(\w+)"')
ABSENT = object()


class Clock(selectors.DefaultSelector):
    """A selector that waits for no timer: the clock jumps to it instead."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        events = super().select(0)
        if not events:
            self.now += timeout or 0
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop with a clock of its own and without threads: each run is like the one before.

    A wait of a minute takes no time.
    """

    def __init__(self) -> None:
        self._clock = Clock()
        super().__init__(self._clock)

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
    """A loopback whose messages pass through ``harm``, and whose kernel can be replaced."""

    def __init__(self, *, resumable: bool) -> None:
        self.resumable = resumable
        self.max_send = self.max_receive = CHUNK
        self.harms: dict[Label, str] = {}
        self.done: list[Label] = []  # the harms that met their message
        self.seen: list[Label] = []
        self.kernels: list[LoopbackKernel] = []  # all processes, the last one is the present one
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._requests_of: dict[str, tuple[str, int]] = {}  # operation and connection, by id
        self._held: dict[str, Callable[[], None] | None] = dict.fromkeys(WAYS)
        self._stalled: dict[str, list[Callable[[], None]] | None] = dict.fromkeys(WAYS)
        self._echoes: list[Callable[[], None]] = []
        self._connection = 0
        self._lost_before = 0  # replies to requests of earlier connections are lost
        self._inbound: deque[Any] = deque()  # requests that the kernel has not served yet
        super().__init__()
        self._received = self.dispatcher.received
        self.dispatcher.received = self.receive  # type: ignore[method-assign]

    async def close(self) -> None:
        await super().close()
        self._end()

    # ------------------------------------------------------------ messages pass

    async def send(self, channel: str, message: dict[str, Any], buffers: Sequence[Any]) -> None:
        identity, kind = message["header"]["msg_id"], message["header"]["msg_type"]
        expressions = message["content"].get("user_expressions", {})
        found = OPERATION.findall(expressions.get(_request.KEY, ""))
        operation = "kernel_info" if kind == "kernel_info_request" else (*found, "run")[0]
        self._requests_of[identity] = operation, self._connection
        copies = [memoryview(bytes(buffer)) for buffer in buffers]
        request = {**message, "buffers": copies}

        def deliver() -> None:
            self._inbound.append((self._cell, request))
            self._loop.call_soon(self._serve_next)

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
        harm = self.harms.pop(label, "")
        if harm:
            self.done.append(label)
            getattr(self, harm)(way, deliver)
        elif (stalled := self._stalled[way]) is not None:
            stalled.append(deliver)
        else:
            deliver()
            held, self._held[way] = self._held[way], None
            if held is not None:
                held()

    def flush(self) -> None:
        """Deliver all that was held back."""
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
        self._stalled[way] = [deliver]
        self._loop.call_later(2 * self.timings.inquiry_after, self._flow, way)

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
        if not self.resumable:  # as over ZeroMQ: the connection is a new one at once
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
                self.dispatcher.inquire()
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
        self._cell = LoopbackKernel(self._emit)
        self.kernels.append(self._cell)
        self.life.connection_made()

    def _serve_next(self) -> None:
        if self._inbound:
            cell, request = self._inbound.popleft()
            self._answer(cell, request)

    def _end(self) -> None:
        """End the kernel's process, with the requests that it has not served."""
        self._inbound.clear()
        self._cell.leave()


RESTARTS = ("restarted", "restarted_behind", "replaced")
HARMS = ("drop", "duplicate", "echo", "swap", "delay", "cut", "cut_behind", *RESTARTS)

# ---------------------------------------------------------------- operations


@dataclass
class Call:
    """One call of an operation.

    Attributes:
        ask: makes the call; the value is what ``value`` says.
        effects: the values of names afterwards.
        where: the number of the kernel that has the effects.
        needs: the earlier call without which the names are missing.
    """

    ask: Callable[..., Awaitable[Any]]
    value: Any = None
    effects: dict[str, Any] = field(default_factory=dict)
    where: int = 0
    needs: int | None = None
    outcome: Any = None


async def push(bridge: Bridge) -> Any:
    return (await bridge.push(a=2, c=3)).names


async def push_large(bridge: Bridge) -> Any:
    return (await bridge.push(c=LARGE)).names


async def pull(bridge: Bridge) -> Any:
    return await bridge.pull("a", "b")


async def pull_large(bridge: Bridge) -> Any:
    return await bridge.pull("large")


async def run_cell(bridge: Bridge) -> Any:
    result = await bridge.run("c = a + 1\nprint('text')\nc")
    return result.stdout, result.data.get("text/plain")


async def fail(bridge: Bridge) -> Any:
    with pytest.raises(RemoteError) as caught:
        await bridge.run("c = 2\n1 / 0")
    return caught.value.ename


async def call(bridge: Bridge) -> Any:
    return await bridge.call(operator.add, 2, bridge.ref("a"))


async def delete(bridge: Bridge) -> Any:
    return await bridge.delete("a", "b")


async def exists(bridge: Bridge) -> Any:
    return await bridge.exists("a"), await bridge.exists("c")


async def names(bridge: Bridge) -> Any:
    return [name.name for name in await bridge.names()]


async def handoff(bridge: Bridge, other: Bridge) -> Any:
    return (await bridge.handoff("a", "large", to=other)).names


async def watch(bridge: Bridge, name: str = "a", last: str = "7") -> Any:
    """Return the first value and the last one; some values may arrive twice."""
    values: list[Any] = []
    async with bridge.watch(name) as watched:
        async for value in watched:
            if not values:
                await bridge.run(f"{name} = {last}")
            values.append(value)
            if repr(value) == last:
                break
    return list(dict.fromkeys(values))


async def watch_large(bridge: Bridge) -> Any:
    return await watch(bridge, "large", repr(LARGE[:-1]))


async def install(bridge: Bridge) -> Any:
    bridge._connection.remote.generation = LOST
    return await push(bridge)


OPERATIONS: dict[str, Callable[[], list[Call]]] = {
    "push": lambda: [Call(push, ("a", "c"), {"a": 2, "c": 3})],
    "push_large": lambda: [Call(push_large, ("c",), {"c": LARGE})],
    "pull": lambda: [Call(pull, (1, [1, 2]))],
    "pull_large": lambda: [Call(pull_large, LARGE)],
    "run": lambda: [Call(run_cell, ("text\n", "2"), {"c": 2})],
    "fail": lambda: [Call(fail, "ZeroDivisionError", {"c": 2})],
    "call": lambda: [Call(call, 3)],
    "delete": lambda: [Call(delete, None, {"a": ABSENT, "b": ABSENT})],
    "exists": lambda: [Call(exists, (True, False))],
    "names": lambda: [Call(names, ["a", "b", "large"])],
    "handoff": lambda: [
        Call(handoff, ("a", "large"), {"a": 1, "large": LARGE}, where=1),
    ],
    "watch": lambda: [Call(watch, [1, 7])],
    "watch_large": lambda: [Call(watch_large, [LARGE, LARGE[:-1]])],
    "install": lambda: [Call(install, ("a", "c"), {"a": 2, "c": 3})],
    "batch": lambda: [
        Call(lambda bridge: bridge.pull("a"), 1),
        Call(push, ("a", "c"), {"a": 2, "c": 3}),
        Call(lambda bridge: bridge.pull("c"), 3, needs=1),
        Call(lambda bridge: bridge.exists("b"), True),
        Call(lambda bridge: bridge.pull("b", "large"), ([1, 2], LARGE)),
        Call(lambda bridge: bridge.delete("b"), None, {"b": ABSENT}),
    ],
}  # fmt: skip


# ---------------------------------------------------------------- one trial


def opened(lane: Any, resumable: bool, harms: dict[Label, str] | None = None) -> Opening[Bridge]:
    async def connect(left: float) -> Transport:
        transport = HostileTransport(resumable=resumable)
        transport.harms = dict(harms or {})
        return transport

    return open_bridge(Bridge, OpenOptions(lane, "pickle", pool=0), PATIENCE, connect)


class Trial:
    """One operation with one harm."""

    def __init__(self, lane: str, resumable: bool, operation: str) -> None:
        self.lane, self.resumable, self.operation = lane, resumable, operation
        self.calls = OPERATIONS[operation]()
        self.bridges: list[Bridge] = []

    async def record(self) -> list[tuple[int, Label]]:
        """Do the operation without harm; return its messages, each with the number of its wire."""
        return await self.run({})

    async def run(self, harms: dict[tuple[int, Label], str]) -> list[tuple[int, Label]]:
        """Do the operation with these harms; return its messages."""
        async with asyncio.timeout(PATIENCE), contextlib.AsyncExitStack() as stack:
            for _ in range(1 + (self.operation == "handoff")):
                bridge = await stack.enter_async_context(opened(self.lane, self.resumable))
                self.bridges.append(bridge)
            for number, wire in enumerate(self.wires):
                known = {"a": 1, "b": [1, 2], "large": LARGE}
                wire.kernels[0].user_ns.update({} if number else known)
                wire.seen.clear()
                wire._counts.clear()
                wire.harms = {label: harm for (at, label), harm in harms.items() if at == number}
            outcomes = await asyncio.gather(
                *(call.ask(*self.bridges) for call in self.calls), return_exceptions=True
            )
            for call, outcome in zip(self.calls, outcomes, strict=True):
                call.outcome = outcome
            await asyncio.sleep(1)  # what the operation left to be sent is sent
            seen = [(at, label) for at, wire in enumerate(self.wires) for label in wire.seen]
            for wire in self.wires:
                wire.harms.clear()
                wire.flush()
            restarted = {*RESTARTS}.intersection(harms.values())
            reported = any(isinstance(outcome, KernelRestarted) for outcome in outcomes)
            for bridge in self.bridges:
                await follow_up(bridge, bool(restarted) and not reported)
                # The remote part drops what a lost message would have dropped, by age.
                lost = any(
                    at.way == "out" and (harm == "drop" or harm == "cut" and not self.resumable)
                    for (_, at), harm in harms.items()
                )
                await quiet(bridge, lost)
            self.judge(harms)
            return seen

    @property
    def wires(self) -> list[HostileTransport]:
        return [bridge._transport for bridge in self.bridges]

    def judge(self, harms: dict[tuple[int, Label], str]) -> None:
        kinds = set(harms.values())
        for call in self.calls:
            wire = self.wires[call.where]
            outcome = call.outcome
            old = wire.kernels[0].user_ns
            matches = [
                name not in old if value is ABSENT else old.get(name, ABSENT) == value
                for name, value in call.effects.items()
            ]
            assert all(matches) or not any(matches), f"half done: {outcome!r}"
            for kernel in wire.kernels[1:]:
                for name in call.effects:
                    assert name not in kernel.user_ns, f"ran in the new kernel: {outcome!r}"
            if not isinstance(outcome, BaseException):
                lossy = self.operation == "run" and any(at.kind != "execute_reply" and at.way == "in" for _, at in harms)
                assert outcome == call.value or lossy or (self.operation.startswith("watch") and kinds & {*RESTARTS, "cut", "cut_behind"}), outcome
                assert all(matches), "reported as done, and is not"
                continue
            assert isinstance(outcome, BridgeError), repr(outcome)
            if call.needs is not None and isinstance(outcome, NameNotFound):
                assert isinstance(self.calls[call.needs].outcome, BaseException)
                continue
            if isinstance(outcome, (NotSent, NotExecuted)):
                assert not any(matches) or not matches, f"reported as not done, and is: {outcome!r}"
            elif isinstance(outcome, KernelRestarted):
                assert kinds & {*RESTARTS}, repr(outcome)
            elif isinstance(outcome, TransportError):
                assert kinds & {"cut", "cut_behind"} and not self.resumable, repr(outcome)
            else:
                assert isinstance(outcome, ReplyLost), repr(outcome)


async def follow_up(bridge: Bridge, restart_unreported: bool) -> None:
    """Do nine operations."""
    try:
        await bridge.push(m=[1], n=LARGE)
    except KernelRestarted:
        assert restart_unreported, "the restart was reported before"
        await bridge.push(m=[1], n=LARGE)
    outcomes = await asyncio.gather(
        bridge.pull("m", "n"),
        bridge.exists("m"),
        bridge.run("o = len(n)"),
        bridge.push(m=2),
        bridge.call(len, bridge.ref("n")),
        bridge.pull("m", "o"),
        bridge.names("[m-o]"),
        bridge.delete("m", "n", "o"),
    )
    size = len(LARGE)
    assert [*outcomes[:2], *outcomes[4:6]] == [([1], LARGE), True, size, (2, size)]
    assert [name.name for name in outcomes[6]] == ["m", "n", "o"]


async def quiet(bridge: Bridge, lost: bool) -> None:
    """Wait until nothing is under way; check that nothing stays in the bridge and in the kernel."""
    wire: Any = bridge._transport
    dispatcher, life = wire.dispatcher, wire.life
    await asyncio.sleep(1)
    assert not (dispatcher.pending or life._waiters or wire.tasks._running)
    assert not bridge._connection.queue.turns
    assert not dispatcher._inquiries
    assert not dispatcher._listening
    assert not life.listeners
    assert dispatcher._slots._value == dispatcher.window
    remote = sys.modules[remote_source()[0]]._remotes[id(wire._cell.user_ns)]
    assert lost or not remote.transfers.inboxes
    kept = {*remote.transfers.outboxes} - {*bridge._connection.remote.lane._to_ack}
    assert lost or not kept, (kept, remote.transfers.done)
    assert lost or not remote.subscriptions.known


def run(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have both ends sign, and send, chunks of few bytes."""

    async def install_remote() -> None:
        async with opened("inline", False):
            pass

    run(install_remote())
    for module in digest, sys.modules[remote_source()[0]]:
        monkeypatch.setattr(module, "LEAF", CHUNK)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("resumable", [False, True], ids=["plain", "resumable"])
@pytest.mark.parametrize("lane", ["buffers", "inline"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_one_harm(operation: str, lane: str, resumable: bool) -> None:
    import time
    t = time.perf_counter()
    labels = run(Trial(lane, resumable, operation).run({}))
    failures, count = [], 0

    for at in labels:
        for harm in HARMS:
            if harm == "replaced" and at[1].operation == "run": continue
            count += 1
            trial = Trial(lane, resumable, operation)
            try:
                run(trial.run({at: harm}))
            except BaseException as error:
                tb = error.__traceback__
                while tb.tb_next: tb = tb.tb_next
                failures.append(f"{at[0]} {at[1]} {harm}: {type(error).__name__} {str(error)[:90]} @{tb.tb_lineno} outcomes {[str(call.outcome)[:60] for call in trial.calls]!r:.400}")
    print(count, (time.perf_counter() - t) / count, len(labels))
    assert not failures, "\n" + "\n".join(failures)
