"""Operations in flight and random harm, in any order: a state machine.

Rule: each value is pushed once, under a name of its own, so the namespaces show at the end which
calls took effect, in which kernel. See ``test_connection_hostile`` for one harm at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from bridgehead import (
    Bridge,
    BridgeError,
    KernelRestarted,
    Messages,
    NameNotFound,
    NotExecuted,
    NotSent,
    NotSupported,
    OutcomeUnknown,
    ProtocolError,
    TransportError,
)
from support.hostile import (
    CUTS,
    HARMS,
    PATIENCE,
    RESTARTS,
    WAYS,
    HostileTransport,
    VirtualLoop,
    follow_up,
    opened,
    quiet,
    sign_small_chunks,
)
from support.kit import is_public

SIZES = [0, 5000, 10_000]  # bytes: in one message, in two, in three
TRUSTS = ["pickle", "data"]
REPEATS = ("duplicate", "echo")


@dataclass
class Effect:
    """A call that binds a name."""

    name: str
    value: Any
    cell: bool
    kernel: int = -1  # the number of the process that it was meant for
    is_open: bool = False  # the bridge knew no process, or restart() was at work
    task: asyncio.Task[Any] | None = None


class Hostile(RuleBasedStateMachine):
    """A bridge over a hostile transport."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=VirtualLoop)
        self.patch = pytest.MonkeyPatch()
        self.effects: list[Effect] = []
        self.calls: list[tuple[asyncio.Task[Any], Callable[[Any], object]]] = []
        self.restarts: list[asyncio.Task[Any]] = []
        self.streams: list[Messages] = []
        self.harms: set[str] = set()
        self.count = 0

    @initialize(
        lane=st.sampled_from(["buffers", "inline"]),
        resumable=st.booleans(),
        control=st.booleans(),
    )
    def open(self, lane: str, resumable: bool, control: bool = False) -> None:
        sign_small_chunks(self.patch)

        async def enter() -> Bridge:
            return await opened(lane, resumable, control=control)

        self.bridge = self.runner.run(enter())
        self.wire: HostileTransport = self.bridge._transport  # type: ignore[assignment]
        self.resumable = resumable

    def start(self, ask: Callable[[], Awaitable[Any]]) -> asyncio.Task[Any]:
        async def begin() -> asyncio.Task[Any]:
            task = asyncio.ensure_future(ask())
            await asyncio.sleep(0)  # it takes its turn
            return task

        return self.runner.run(begin())

    def binds(self, name: str, value: Any, ask: Callable[[], Awaitable[Any]], cell: bool) -> None:
        knows = self.bridge._connection.remote.is_current
        is_open = not (knows and all(task.done() for task in self.restarts))
        effect = Effect(name, value, cell, is_open=is_open)

        async def bind() -> None:
            effect.kernel = len(self.wire.kernels) - 1
            await ask()

        effect.task = self.start(bind)
        self.effects.append(effect)

    def asks(self, ask: Callable[[], Awaitable[Any]], check: Callable[[Any], object]) -> None:
        self.calls.append((self.start(ask), check))

    # ------------------------------------------------------------ operations

    @rule(size=st.sampled_from(SIZES), now=st.booleans(), trust=st.sampled_from(TRUSTS))
    def push(self, size: int, now: bool, trust: Any) -> None:
        self.count += 1
        name, value = f"x{self.count}", (self.count, bytes(size))
        ask = lambda: self.bridge.push({name: value}, now=now, trust=trust)  # noqa: E731
        self.binds(name, value, ask, cell=False)

    @rule()
    def run(self) -> None:
        self.count += 1
        name, value = f"x{self.count}", self.count
        self.binds(name, value, lambda: self.bridge.run(f"{name} = {value}"), cell=True)

    @precondition(lambda self: self.effects)
    @rule(data=st.data(), now=st.booleans(), trust=st.sampled_from(TRUSTS))
    def pull(self, data: st.DataObject, now: bool, trust: Any) -> None:
        effect = data.draw(st.sampled_from(self.effects))
        ask = lambda: self.bridge.pull(effect.name, now=now, trust=trust)  # noqa: E731
        self.asks(ask, lambda value: value == effect.value)

    @rule(now=st.booleans())
    def pull_large(self, now: bool) -> None:
        ask = lambda: self.bridge.pull("bytes(9000)", now=now)  # noqa: E731
        self.asks(ask, lambda value: value == bytes(9000))

    @rule()
    def call(self) -> None:
        self.asks(lambda: self.bridge.call(divmod, 7, 2), lambda value: value == (3, 1))

    @rule()
    def exists(self) -> None:
        self.asks(lambda: self.bridge.exists("nothing"), lambda value: value is False)

    @rule()
    def names(self) -> None:
        self.asks(lambda: self.bridge.names("nothing*"), lambda value: list(value) == [])

    @rule()
    def delete(self) -> None:
        self.asks(lambda: self.bridge.delete("nothing"), lambda value: False)  # NameNotFound

    @rule()
    def interrupt(self) -> None:
        self.asks(lambda: self.bridge.interrupt(timeout=None), lambda value: value is None)

    @rule()
    def restart(self) -> None:
        self.harms.add("restarted")
        self.asks(lambda: self.bridge.restart(), lambda value: value is None)
        self.restarts.append(self.calls[-1][0])

    @rule()
    def messages(self) -> None:
        async def begin() -> None:
            self.streams.append(self.bridge.messages())

        self.runner.run(begin())

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.calls))[0].cancel()

    # ------------------------------------------------------------ harm

    @rule(
        way=st.sampled_from(WAYS),
        after=st.integers(0, 5),
        harm=st.sampled_from(HARMS),
    )
    def harm(self, way: str, after: int, harm: str) -> None:
        self.wire.harm_later(way, after, harm)
        self.harms.add(harm)

    @rule(seconds=st.sampled_from([0, 0.5, 1, 3]))
    def wait(self, seconds: float) -> None:
        self.runner.run(asyncio.sleep(seconds))

    # ------------------------------------------------------------ the end

    def teardown(self) -> None:
        try:
            if hasattr(self, "bridge"):
                self.runner.run(self.check())
        finally:
            self.patch.undo()
            self.runner.close()

    async def check(self) -> None:
        tasks = [effect.task for effect in self.effects if effect.task is not None]
        tasks += [task for task, _ in self.calls]
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(1)
            self.wire.end()
            await asyncio.sleep(1)
            await follow_up(self.bridge, may_restart=not self.harms.isdisjoint(RESTARTS))
            await self.check_streams()
            lost = not self.harms.isdisjoint({"drop", *CUTS})
            await quiet(self.bridge, lost=lost)
            for effect in self.effects:
                self.check_effect(effect)
            for task, right in self.calls:
                if not task.cancelled():
                    error = task.exception()
                    assert error is not None or right(task.result())
                    is_true = (
                        error is None or isinstance(error, NameNotFound) or self.is_true(error)
                    )
                    assert is_true, repr(error)
            await self.bridge.aclose()

    async def check_streams(self) -> None:
        """Check that a stream that has not ended has the messages of a cell, in their order."""
        for stream in self.streams:
            stream._waiting.clear()
        reply = await self.bridge.run("print('text')")
        assert reply.stdout == "text\n"
        await asyncio.sleep(0)
        for stream in self.streams:
            texts = [(await anext(stream)).text for _ in range(len(stream))]
            assert stream.is_ended or "".join(texts) == "busyprint('text')text\nidle"
            await stream.aclose()
            assert [message async for message in stream] == []

    def check_effect(self, effect: Effect) -> None:
        where = [
            number
            for number, kernel in enumerate(self.wire.kernels)
            if kernel.user_ns.get(effect.name) == effect.value
        ]
        assert effect.task is not None
        error = effect.task.exception()
        # Nothing in the message of a cell says which kernel it is for, see ``replaced``.
        if not (effect.is_open or (effect.cell and "replaced" in self.harms)):
            assert where in ([], [effect.kernel]), f"in another kernel: {error!r}"
        if error is None:
            assert where, "reported as done, and is not"
        elif isinstance(error, (NotSent, NotExecuted)):
            assert not where, f"reported as not done, and is: {error!r}"
        else:
            assert self.is_true(error), repr(error)

    def is_true(self, error: BaseException) -> bool:
        assert is_public(error), type(error)
        if isinstance(error, KernelRestarted):
            return not self.harms.isdisjoint(RESTARTS)
        if isinstance(error, TransportError):
            return not self.resumable and not self.harms.isdisjoint(CUTS)
        if isinstance(error, NotSupported):  # the buffers of a handshake were lost, or came late
            return not self.harms.isdisjoint({"drop", "swap", *REPEATS})
        if isinstance(error, ProtocolError):  # the reply to the first of two messages was lost
            return not self.harms.isdisjoint(REPEATS)
        return isinstance(error, BridgeError) and isinstance(error, OutcomeUnknown)


HOSTILE = settings(
    max_examples=settings.default.max_examples,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestHostile = Hostile.TestCase
TestHostile.settings = HOSTILE


def test_a_cell_runs_in_no_later_kernel_than_the_one_it_was_meant_for() -> None:
    """Two restarts follow one another, and no caller knew the kernel between them."""
    state = Hostile()
    state.open(lane="buffers", resumable=False)
    state.call()
    state.harm(after=0, harm="restarted", way="in")
    state.harm(after=0, harm="restarted", way="out")
    state.call()
    state.run()
    state.teardown()
