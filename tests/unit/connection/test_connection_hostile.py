"""A hostile transport harms each message of each operation in turn, and the bridge goes on.

Rule: one harm to one message at a time (a few tests do two); ``test_connection_hostile_random``
does many at once. Whatever happens:

- each call ends, with the right value or with an error whose class is true;
- a call that was made before a restart has no effect in the new kernel;
- the next nine operations work;
- nothing stays in the bridge or in the remote part.
"""

from __future__ import annotations

import asyncio
import contextlib
import operator
import traceback
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from bridgehead import (
    Bridge,
    BridgeError,
    Fleet,
    KernelRestarted,
    NameNotFound,
    NotExecuted,
    NotSent,
    OutcomeUnknown,
    RemoteError,
    ReplyLost,
    TransportError,
)
from bridgehead._connection.installation import LOST
from bridgehead._transports.tasks import waited
from support.hostile import (
    CHUNK,
    CUTS,
    HARMS,
    PATIENCE,
    RESTARTS,
    HostileTransport,
    Label,
    follow_up,
    opened,
    quiet,
    run,
    sign_small_chunks,
)
from support.kit import is_public

Place = tuple[int, Label]  # the number of a bridge, and one of its messages
LARGE = bytes(range(256)) * 40  # crosses in three messages
WIDE = LARGE[: CHUNK + 1]  # in two
ABSENT = object()
slow = pytest.mark.slow
LESS = ("echo", "cut_behind", "restarted_behind")  # each much like another one
# The lane, whether a broken connection is made again, and the harms. The slow ones are the other
# two pairs of lane and connection.
WORLDS = [
    pytest.param("buffers", False, tuple(harm for harm in HARMS if harm not in LESS), id="buffers"),
    pytest.param("inline", True, ("drop", "cut", "replaced", *LESS), id="inline-resumable"),
    pytest.param("buffers", True, HARMS, id="buffers-resumable-all", marks=slow),
    pytest.param("inline", False, HARMS, id="inline-all", marks=slow),
]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    sign_small_chunks(monkeypatch)


# ---------------------------------------------------------------- operations


@dataclass
class Call:
    """One call of an operation.

    Attributes:
        ask: makes the call.
        value: what it returns.
        effects: the values of names afterwards.
        where: the number of the bridge whose kernel has the effects.
        needs: the number of the earlier call without which the names are missing.
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


async def run_with_values(bridge: Bridge) -> Any:
    result = await bridge.run(
        "c = a + d\nprint('text')", push={"d": 2}, pull=["c", "large"], max_output=100
    )
    return result.stdout, result.values["c"], result.values["large"]


async def fail(bridge: Bridge) -> Any:
    with pytest.raises(RemoteError) as caught:
        await bridge.run("c = 2\n1 / 0")
    return caught.value.ename


async def call(bridge: Bridge) -> Any:
    return await bridge.call(operator.add, 2, bridge.ref("a"))


async def call_keep(bridge: Bridge) -> Any:
    """Use the result, which has no name, and free it while the connection may be broken."""
    async with await bridge.call(sorted, [3, 1, 2], keep=True) as kept:
        return await bridge.pull(kept, kept[0])


async def task_keep(bridge: Bridge) -> Any:
    return await (await bridge.call(later, bridge.ref("a"), keep=True)).pull()


async def delete_kept(bridge: Bridge) -> Any:
    kept = await bridge.call(sorted, [3, 1, 2], keep=True)
    return await bridge.delete("a", kept)


async def delete(bridge: Bridge) -> Any:
    return await bridge.delete("a", "b")


async def exists(bridge: Bridge) -> Any:
    return await bridge.exists("a"), await bridge.exists("c")


async def names(bridge: Bridge) -> Any:
    return [name.name for name in await bridge.names()]


async def handoff(bridge: Bridge, other: Bridge) -> Any:
    return (await bridge.handoff("a", "wide", to=other)).names


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
    return await watch(bridge, "wide", repr(WIDE[::-1]))


async def watch_names(bridge: Bridge) -> Any:
    """Return the names in the first event and in the last one."""
    seen: list[Any] = []
    async with bridge.watch_names("[a-c]") as watched:
        async for names in watched:
            if not seen:
                await bridge.run("c = 7")
            seen.append("".join(name.name for name in names))
            if seen[-1] == "abc":
                break
    return list(dict.fromkeys(seen))


async def later(value: Any) -> Any:
    await asyncio.sleep(0.01)
    return value


async def task(bridge: Bridge) -> Any:
    return await bridge.call(later, bridge.ref("a"))


async def task_large(bridge: Bridge) -> Any:
    return await bridge.pull("await __import__('asyncio').sleep(0.01, wide)")


async def iterate(bridge: Bridge) -> Any:
    return [item async for item in bridge.iterate("iter([a, b, 'text'])")]


async def iterate_large(bridge: Bridge) -> Any:
    return [item async for item in bridge.iterate("(part for part in [wide, 1, wide])")]


async def call_back(bridge: Bridge) -> Any:
    """Return the arguments of the calls."""
    seen: list[Any] = []

    def work(report: Any, last: Any) -> None:
        report(1)
        report([2], key="text")
        report(last)

    done = asyncio.Event()

    def note(*args: Any, **kwargs: Any) -> None:
        seen.append((*args, *kwargs.items()))
        if len(seen) == 3:
            done.set()

    with bridge.callback(note) as report:
        await bridge.call(work, report, LARGE)  # in pieces
        async with waited(200):  # a restarted kernel has forgotten what it had to send
            await done.wait()
    return seen


async def map_items(bridge: Bridge) -> Any:
    async with Fleet([bridge]).map(abs, [-1, -2, -3], chunksize=2, retries=1) as results:
        return [result async for result in results]


async def map_async(bridge: Bridge) -> Any:
    return [result async for result in Fleet([bridge]).map(later, [1, 2, 3], chunksize=2)]


async def push_now(bridge: Bridge) -> Any:
    return (await bridge.push(a=2, c=WIDE, now=True)).names


async def pull_now(bridge: Bridge) -> Any:
    return await bridge.pull("[a + 0, wide]", now=True)


async def push_data(bridge: Bridge) -> Any:
    return (await bridge.push(a=2, c=WIDE, trust="data")).names


async def pull_data(bridge: Bridge) -> Any:
    return await bridge.pull("a", "wide", trust="data")


async def interrupt(bridge: Bridge) -> Any:
    await bridge.interrupt(timeout=None)
    return (await bridge.push(a=2, c=3)).names


async def restart(bridge: Bridge) -> Any:
    await bridge.restart()
    wire: Any = bridge._transport
    wire.meant = len(wire.kernels) - 1
    return (await bridge.push(a=2, c=3)).names


async def messages(bridge: Bridge) -> Any:
    """Return the outputs of a cell, as a stream of all messages has them."""
    stream = bridge.messages()
    try:
        await bridge.run("print('text'); c = 2")
        await asyncio.sleep(5)  # until messages that were delayed have arrived
        count = len(stream)
        return "".join([(await anext(stream)).content.get("text", "") for _ in range(count)])
    finally:
        await stream.aclose()


async def install(bridge: Bridge) -> Any:
    bridge._connection.remote.generation = LOST
    return await push(bridge)


OPERATIONS: dict[str, Callable[[], list[Call]]] = {
    "push": lambda: [Call(push, ("a", "c"), {"a": 2, "c": 3})],
    "push_large": lambda: [Call(push_large, ("c",), {"c": LARGE})],
    "pull": lambda: [Call(pull, (1, [1, 2]))],
    "pull_large": lambda: [Call(pull_large, LARGE)],
    "run": lambda: [Call(run_cell, ("text\n", "2"), {"c": 2})],
    "run_with_values": lambda: [
        Call(run_with_values, ("text\n", 3, LARGE), {"c": 3, "d": 2}),
    ],
    "fail": lambda: [Call(fail, "ZeroDivisionError", {"c": 2})],
    "call": lambda: [Call(call, 3)],
    "call_keep": lambda: [Call(call_keep, ([1, 2, 3], 1))],
    "task_keep": lambda: [Call(task_keep, 1)],
    "delete_kept": lambda: [Call(delete_kept, None, {"a": ABSENT})],
    "delete": lambda: [Call(delete, None, {"a": ABSENT, "b": ABSENT})],
    "exists": lambda: [Call(exists, (True, False))],
    "names": lambda: [Call(names, ["a", "b", "large", "wide"])],
    "handoff": lambda: [
        Call(handoff, ("a", "wide"), {"a": 1, "wide": WIDE}, where=1),
    ],
    "watch": lambda: [Call(watch, [1, 7])],
    "watch_large": lambda: [Call(watch_large, [WIDE, WIDE[::-1]])],
    "watch_names": lambda: [Call(watch_names, ["ab", "abc"])],
    "task": lambda: [Call(task, 1)],
    "task_large": lambda: [Call(task_large, WIDE)],
    "iterate": lambda: [Call(iterate, [1, [1, 2], "text"])],
    "iterate_large": lambda: [Call(iterate_large, [WIDE, 1, WIDE])],
    "call_back": lambda: [Call(call_back, [(1,), ([2], ("key", "text")), (LARGE,)])],
    "map": lambda: [Call(map_items, [1, 2, 3])],
    "map_async": lambda: [Call(map_async, [1, 2, 3])],
    "push_now": lambda: [Call(push_now, ("a", "c"), {"a": 2, "c": WIDE})],
    "pull_now": lambda: [Call(pull_now, [1, WIDE])],
    "push_data": lambda: [Call(push_data, ("a", "c"), {"a": 2, "c": WIDE})],
    "pull_data": lambda: [Call(pull_data, (1, WIDE))],
    "interrupt": lambda: [Call(interrupt, ("a", "c"), {"a": 2, "c": 3})],
    "restart": lambda: [Call(restart, ("a", "c"), {"a": 2, "c": 3})],
    "messages": lambda: [Call(messages, "text\n", {"c": 2})],
    "install": lambda: [Call(install, ("a", "c"), {"a": 2, "c": 3})],
    "queue": lambda: [  # each in a message of its own: a call crosses in no batch
        Call(call, 3),
        Call(call, 3),
        Call(push, ("a", "c"), {"a": 2, "c": 3}),
    ],
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


class Trial:
    """One operation, with harm to some of its messages."""

    def __init__(self, lane: str, resumable: bool, operation: str) -> None:
        self.lane, self.resumable, self.operation = lane, resumable, operation
        self.calls = OPERATIONS[operation]()
        self.bridges: list[Bridge] = []
        self.harms: dict[Place, str] = {}

    @property
    def wires(self) -> list[HostileTransport]:
        return [bridge._transport for bridge in self.bridges]  # type: ignore[misc]

    async def run(self, harms: dict[Place, str]) -> list[Place]:
        """Do the operation with these harms, and check what comes of it; return its messages."""
        self.harms = harms
        async with asyncio.timeout(PATIENCE), contextlib.AsyncExitStack() as stack:
            for _ in range(1 + (self.operation == "handoff")):
                bridge = await stack.enter_async_context(opened(self.lane, self.resumable))
                self.bridges.append(bridge)
            self.wires[0].kernels[0].user_ns.update(a=1, b=[1, 2], large=LARGE, wide=WIDE)
            for number, wire in enumerate(self.wires):
                wire.begin({label: harm for (at, label), harm in harms.items() if at == number})
            outcomes = await asyncio.gather(
                *(call.ask(*self.bridges) for call in self.calls), return_exceptions=True
            )
            for outcome in outcomes:  # a traceback would keep the refs of the operation
                if isinstance(outcome, BaseException):
                    traceback.clear_frames(outcome.__traceback__)
            await asyncio.sleep(1)  # what the operation left to be sent is sent
            seen = [(at, label) for at, wire in enumerate(self.wires) for label in wire.seen]
            for call, outcome in zip(self.calls, outcomes, strict=True):
                call.outcome = outcome
            reported = any(isinstance(outcome, KernelRestarted) for outcome in outcomes)
            restarts = self.has(*RESTARTS) or self.operation == "restart"  # whose end may be lost
            for bridge, wire in zip(self.bridges, self.wires, strict=True):
                wire.end()
                await follow_up(bridge, may_restart=restarts and not reported)
                await quiet(bridge, lost=self.lost_message_to_kernel)
            for call in self.calls:
                self.judge(call, self.wires[call.where], call.outcome)
            return seen

    def has(self, *harms: str) -> bool:
        return not {*harms}.isdisjoint(self.harms.values())

    @property
    def lost_message_to_kernel(self) -> bool:
        """Whether the remote part may keep something until it drops it by age."""
        lossy = {"drop"} if self.resumable else {"drop", "cut"}
        return any(label.way == "out" and harm in lossy for (_, label), harm in self.harms.items())

    def judge(self, call: Call, wire: HostileTransport, outcome: Any) -> None:
        """Check the outcome of a call against the namespaces."""
        before = wire.kernels[wire.meant].user_ns
        effects = [before.get(name, ABSENT) == value for name, value in call.effects.items()]
        assert len({*effects}) < 2, f"half done: {outcome!r}"
        for kernel in wire.kernels[wire.meant + 1 :]:
            assert call.effects.keys().isdisjoint(kernel.user_ns), f"in a new kernel: {outcome!r}"
        if not isinstance(outcome, BaseException):
            assert outcome == call.value or self.may_miss(outcome, call.value), repr(outcome)
            assert all(effects), f"reported as done, and is not: {outcome!r}"
            return
        assert isinstance(outcome, BridgeError), repr(outcome)
        assert is_public(outcome), type(outcome)
        if call.needs is not None and isinstance(outcome, NameNotFound):
            assert isinstance(self.calls[call.needs].outcome, BaseException)
            return
        is_cell = self.operation in (
            "run",
            "run_with_values",
            "fail",
            "watch",
            "watch_large",
            "watch_names",
            "messages",
        )
        if len(self.harms) == 1:
            assert not self.has("delay"), f"late, and not lost: {outcome!r}"
            assert is_cell or not (self.resumable and self.has(*CUTS)), f"not repeated: {outcome!r}"
        if isinstance(outcome, (NotSent, NotExecuted)):
            assert not any(effects), f"reported as not done, and is: {outcome!r}"
            replaced = len(wire.kernels) > 1 and not self.has(*RESTARTS)
            assert not replaced, f"reported as not done, and the kernel is another: {outcome!r}"
        elif isinstance(outcome, KernelRestarted):
            assert self.has(*RESTARTS), repr(outcome)
        elif isinstance(outcome, TransportError):
            assert self.has(*CUTS), repr(outcome)
            assert not self.resumable, repr(outcome)
        else:
            assert isinstance(outcome, ReplyLost), repr(outcome)

    def may_miss(self, outcome: Any, value: Any) -> bool:
        """Return whether a value is right although it lacks something."""
        if self.operation.startswith("run"):  # outputs may be lost, or arrive twice
            harmed = any(label.way == "in" for _, label in self.harms)
            same = outcome[1] in (None, value[1]) and outcome[2:] == value[2:]
            return harmed and {*outcome[0]} <= {*value[0]} and same
        if self.operation == "messages":
            return bool(self.harms) and {*outcome} <= {*value}
        ended = self.has(*RESTARTS, *CUTS)  # a watch ends with its connection, and so do calls back
        follows = self.operation.startswith(("watch", "call_back"))
        return ended and follows and outcome == value[: len(outcome)]


def harms_to(label: Label, harms: tuple[str, ...], *, thorough: bool) -> Iterator[str]:
    """Yield the harms that a message meets; a status meets two of them if time is short."""
    if label.operation == "chunk" and label.number > 3:  # of the data-only codec, like those before
        return
    for harm in harms:
        if label.kind.startswith("status") and harm not in ("drop", "cut") and not thorough:
            continue
        # Nothing in the message of a cell says which kernel it is for: only the transport can know.
        # It follows the reply to what was sent for the cell.
        before_cell = label.operation == "stage" and label.way == "in"
        if harm == "replaced" and (label.operation == "run" or before_cell):
            continue
        yield harm


def is_slow(request: pytest.FixtureRequest) -> bool:
    return request.node.get_closest_marker("slow") is not None


def attempt(trial: Trial, harms: dict[Place, str]) -> None:
    try:
        run(trial.run(harms))
    except BaseException as error:
        harmed = ", ".join(f"{harm} {label} of {at}" for (at, label), harm in harms.items())
        outcomes = ", ".join(f"{call.outcome!r:.80}" for call in trial.calls)
        error.add_note(f"harm: {harmed}; outcomes: {outcomes}")
        raise


# Of many messages each. Only the slow worlds have them; those have all harms, on both lanes.
LONG = (
    *("pull_large", "handoff", "watch_large", "iterate_large", "call_back", "queue", "batch"),
    *("run_with_values", "map_async", "task_large", "task_keep", "delete_kept"),
)


@pytest.mark.parametrize(
    ("operation", "lane", "resumable", "harms"),
    [
        pytest.param(operation, *world.values, id=f"{operation}-{world.id}", marks=world.marks)
        for operation in OPERATIONS
        for world in WORLDS
        if not (operation in LONG and world.id in ("buffers", "inline-resumable"))
    ],
)
def test_one_harm_to_any_message(
    operation: str,
    lane: str,
    resumable: bool,
    harms: tuple[str, ...],
    request: pytest.FixtureRequest,
) -> None:
    for place in run(Trial(lane, resumable, operation).run({})):
        for harm in harms_to(place[1], harms, thorough=is_slow(request)):
            attempt(Trial(lane, resumable, operation), {place: harm})


@pytest.mark.slow
@pytest.mark.parametrize(("lane", "resumable", "harms"), WORLDS)
@pytest.mark.parametrize("operation", ["push", "push_large", "run", "call"])
def test_harm_to_the_question_about_a_lost_reply(
    operation: str, lane: str, resumable: bool, harms: tuple[str, ...]
) -> None:
    seen = run(Trial(lane, resumable, operation).run({}))
    lost = next(place for place in seen if place[1].kind == "execute_reply")
    questions = [
        place
        for place in run(Trial(lane, resumable, operation).run({lost: "drop"}))
        if place[1].operation == "kernel_info"
    ]
    assert len(questions) == 4  # the question, busy, the answer, idle
    for place in questions:
        for harm in harms_to(place[1], harms, thorough=True):
            attempt(Trial(lane, resumable, operation), {lost: "drop", place: harm})


@pytest.mark.parametrize(("lane", "resumable", "harms"), WORLDS)
def test_harm_while_a_bridge_is_opened(lane: str, resumable: bool, harms: tuple[str, ...]) -> None:
    async def open_with(harms: dict[Label, str]) -> list[Label]:
        async with asyncio.timeout(PATIENCE):
            try:
                bridge = await opened(lane, resumable, harms)
            except OutcomeUnknown:
                assert harms
                return []
            async with bridge:
                wire: Any = bridge._transport
                seen: list[Label] = wire.seen.copy()
                wire.end()
                await follow_up(bridge, may_restart=not {*RESTARTS}.isdisjoint(harms.values()))
                await quiet(bridge, lost=False)
        return seen

    for label in run(open_with({})):
        for harm in harms_to(label, harms, thorough=True):
            run(open_with({label: harm}))
