"""Rows J1 to J3 of the catalogue of faults: replies that can't come, and how the bridge asks.

Rule: as in ``test_damage``. Each test makes a kernel that runs on without an answer, and checks
that the call ends with a true error or goes on, and that the next operations work.
"""

from __future__ import annotations

import asyncio
import contextlib
import operator
import os
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from bridgehead import Bridge, KernelDied, KernelUnresponsive, RemoteError, ReplyLost
from bridgehead._lanes import direct
from support.elsewhere import MAJORS
from support.kit import (
    LANES,
    Parts,
    all_of,
    file_of,
    goes_on,
    kind,
    reported_within,
    until,
    whole,
    wired,
)

# A kernel can't import test modules, so what they define is pickled by value, as in a script.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

# Each leaves ``sys.stdout`` or ``sys.stderr`` so that ipykernel can't flush it: it sends no reply.
UNFLUSHABLE = {
    "tee": "import sys\nclass Tee:\n    def write(self, text): pass\nsys.stdout = Tee()",
    "closed-log": "import sys\nlog = open('log.txt', 'w')\nsys.stdout = log\nlog.close()",
    "stderr": "import sys\nclass Tee:\n    def write(self, text): pass\nsys.stderr = Tee()",
    "raises": """
import sys
class Full:
    def write(self, text): pass
    def flush(self): raise OSError(28, "No space left on device")
sys.stdout = Full()
""",
    "metaclass": """
import sys
class Odd(type):
    def __getattribute__(cls, name): raise RuntimeError(name)
class Log(metaclass=Odd):
    def write(self, text): pass
sys.stdout = Log()
""",
}
REPAIR = "import sys\nsys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__"


@pytest.mark.parametrize("how", UNFLUSHABLE)
@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_a_cell_that_breaks_the_standard_streams_does_not_hang(
    kernel_name: str, how: str, tmp_path: Path
) -> None:
    """J1. A stream that can't be flushed: its cell is ReplyLost, everything else goes on."""
    async with Bridge.launch(kernel_name, cwd=tmp_path) as bridge:
        await bridge.push(x=1)
        async with reported_within(2):
            with pytest.raises(ReplyLost, match="or its reply was lost"):
                await bridge.run(UNFLUSHABLE[how])
        async with reported_within(2):
            await bridge.push(x=2)
            assert await bridge.pull("x + 1") == 3
            assert await bridge.pull("sys.stdout is sys.__stdout__") is False
        async with reported_within(2), Bridge.attach(file_of(bridge)) as other:
            assert await other.pull("x") == 2
        async with reported_within(2):
            await bridge.run(REPAIR)
        assert (await bridge.run("print(x)")).stdout in ("2\n", "")
        assert bridge.state == "idle"
        await goes_on(bridge)


@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_a_cell_that_deletes_a_standard_stream_stops_no_client(live: Bridge) -> None:
    """J1. ipykernel 7 would serve no request of any client again, and say that it is busy."""
    await live.push(x=1)
    for name in ("stdout", "stderr"):
        async with reported_within(2):
            with contextlib.suppress(RemoteError):  # IPython may miss the stream in the cell itself
                await live.run(f"import sys; del sys.{name}")
            await live.run(f"print(1, file=sys.{name})")
            assert await live.pull("x") == 1
        async with reported_within(2), Bridge.attach(file_of(live), lane="buffers") as other:
            assert await other.pull("x") == 1
    await live.run(REPAIR)
    await goes_on(live)


# Each leaves a stream whose ``write`` IPython 9 can't set, as it does around each cell.
UNWATCHABLE = {
    "none": "sys.stdout = sys.stderr = None",
    "a number": "sys.stderr = 5",
    "no write": "class Mute:\n    def flush(self): pass\nsys.stdout = Mute()",
    "slots": """
class Slots:
    __slots__ = ("taken",)
    def write(self, text): written.append(text)
    def flush(self): pass
written = []
sys.stdout = Slots()
""",
}


@pytest.mark.parametrize("by", ["cell", "call"])
@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_a_stream_that_ipython_cannot_watch_stops_no_client(live: Bridge, by: str) -> None:
    """J1. With IPython 9, no request of any client would run again."""
    await live.run("import sys; streams = sys.stdout, sys.stderr; x = 0")
    for count, code in enumerate(UNWATCHABLE.values()):
        async with reported_within(2):
            try:
                if by == "cell":
                    await live.run(code)
                else:
                    await live.call(exec, code, live.ref("globals()"))
            except ReplyLost:  # IPython 8 leaves the stream, and ipykernel cannot flush it
                pass
            await live.run("x += 1")
            assert await live.pull("x + 0") == count + 1
        async with reported_within(2), Bridge.attach(file_of(live), lane="buffers") as other:
            assert await other.pull("x") == count + 1
        await live.run("if 'written' in globals(): print('seen', end='')")
        await live.run("sys.stdout, sys.stderr = streams")
    assert await live.pull("'seen' in written")
    assert (await live.run("print(x)")).stdout == f"{len(UNWATCHABLE)}\n"
    await goes_on(live)


@pytest.mark.parametrize("lane", LANES)
async def test_a_stream_that_is_replaced_for_a_reply_is_put_back(lane: str, tmp_path: Path) -> None:
    """J1. The user's stream is in its place again after each operation."""
    async with Bridge.launch(lane=lane, cwd=tmp_path) as bridge:
        with pytest.raises(ReplyLost):
            await bridge.run(UNFLUSHABLE["tee"] + "\ntee = sys.stdout")
        for _ in range(3):
            assert await bridge.pull("sys.stdout is tee") is True
            await bridge.push(x=1)


MISSED = {
    "push": lambda bridge: bridge.push(x=1),
    "pull": lambda bridge: bridge.pull("1 + 0"),
    "run": lambda bridge: bridge.run("x = 1"),
}


@pytest.mark.parametrize("operation", MISSED)
async def test_a_message_that_the_kernel_does_not_notice_is_followed_by_another(
    kernel: Bridge, tmp_path: Path, operation: str
) -> None:
    """J2. A message lies in the kernel's queue until the next one: the bridge sends one itself."""
    queue: list[Parts] = []

    def until_the_next(parts: Parts) -> list[Parts]:
        queue.append(parts)
        if len(queue) == 1 and kind(parts) == "execute_request":
            return []
        wire.outgoing = whole
        return queue

    async with wired(kernel, tmp_path, lane="buffers") as (bridge, wire):
        await bridge.push(x=0)
        wire.outgoing = until_the_next
        async with reported_within(2):
            await MISSED[operation](bridge)
        assert [kind(parts) for parts in queue] == ["execute_request", "kernel_info_request"]
        await goes_on(bridge)


@pytest.mark.parametrize(("dropped", "deaf"), [(0, True), (1, False), (2, True)])
@pytest.mark.slow
async def test_a_question_that_is_lost_is_asked_again(
    kernel: Bridge, tmp_path: Path, dropped: int, deaf: bool
) -> None:
    """J2. The reply is lost, and so are the first questions about it, and what is on iopub."""
    left = [dropped]

    def lossy(parts: Parts) -> list[Parts]:
        if kind(parts) == "execute_reply":
            return []
        left[0] -= 1
        return [parts] if left[0] < 0 else []

    async with wired(kernel, tmp_path, lane="buffers") as (bridge, wire):
        await bridge.push(x=0)
        wire.incoming, wire.deaf = lossy, deaf
        async with reported_within(2**dropped):
            with pytest.raises(ReplyLost):
                await bridge.push(x=1)
        wire.incoming, wire.deaf = whole, False
        assert await bridge.pull("x") == 1
        await goes_on(bridge)


@pytest.mark.timings(lost_after=3.0)
@pytest.mark.slow
async def test_a_kernel_that_is_idle_and_answers_nothing_is_reported(
    kernel: Bridge, tmp_path: Path
) -> None:
    """J3. The kernel says that it is idle, and answers neither the request nor the question."""
    async with wired(kernel, tmp_path, lane="buffers") as (bridge, wire):
        await bridge.run("x = 0")
        wire.outgoing = lambda parts: []
        async with reported_within(6):
            with pytest.raises(ReplyLost, match="does not say that it is busy"):
                await bridge.push(x=1)
        wire.outgoing = whole
        assert await bridge.pull("x") == 0
        await goes_on(bridge)


# Holds the interpreter lock in a thread until the test writes into the pipe.
HOLDS_LOCK = """
import ctypes, os, threading
pipe = os.open({path!r}, os.O_RDWR)
text = ctypes.create_string_buffer(1)
threading.Timer(0.2, lambda: ctypes.PyDLL(None).read(pipe, text, 1)).start()
"""


@pytest.mark.timings(lost_after=3.0)
@pytest.mark.parametrize("lane", ["auto", "buffers"])
@pytest.mark.slow
async def test_a_kernel_that_holds_the_interpreter_lock_is_reported_to_each_caller(
    lane: str, tmp_path: Path
) -> None:
    """J3. It answers the heartbeat and nothing else; later callers wait less."""
    path = str(tmp_path / "pipe")
    os.mkfifo(path)
    async with Bridge.launch(lane=lane) as bridge:
        pid = bridge.info.pid
        await bridge.run(HOLDS_LOCK.format(path=path))
        await asyncio.sleep(1)
        try:
            async with reported_within(6):
                with pytest.raises(KernelUnresponsive, match="not even on its control channel"):
                    await bridge.push(x=1)
            beats = bridge._transport.life.signs
            await until(lambda: bridge._transport.life.signs > beats + 2)
            assert bridge.state == "unresponsive"
            for ask in (bridge.pull("x"), bridge.run("x = 2"), bridge.push(x=3, now=True)):
                async with reported_within(5):
                    with pytest.raises(KernelUnresponsive):
                        await ask
        finally:
            with open(path, "wb") as pipe:
                pipe.write(b"x")
        await until(lambda: bridge.state != "unresponsive")
        await goes_on(bridge)
        assert bridge.info.pid == pid


EXHAUSTED = """
import os, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
held = []
try:
    while True:
        held.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
"""
WITHOUT_FILES = {
    "run": lambda bridge: bridge.run("import this"),
    "pull": lambda bridge: bridge.pull("bytes(10**6)"),
    "push": lambda bridge: bridge.push(x=bytes(10**6)),
}


@pytest.mark.parametrize(
    "operation",
    [pytest.param("run", marks=pytest.mark.timings(idle_silence=1.0)), "pull", "push"],
)
@pytest.mark.slow
async def test_a_kernel_without_a_free_descriptor_does_not_hang_a_call(operation: str) -> None:
    """J3. The kernel is at its limit of descriptors: each call ends, with a true error if any."""
    async with Bridge.launch() as bridge:
        for work in (lambda bridge: bridge.run(EXHAUSTED), *[WITHOUT_FILES[operation]] * 2):
            async with reported_within(6):
                (outcome,) = await all_of(work(bridge))
            # ZeroMQ ends the process if it can't accept a connection.
            ends = (ReplyLost, KernelUnresponsive, RemoteError, KernelDied)
            assert not isinstance(outcome, BaseException) or isinstance(outcome, ends), outcome
        if bridge.state == "dead":
            await bridge.restart()
        await goes_on(bridge)


@pytest.mark.timings(lost_after=2.0)
@pytest.mark.parametrize("deaf", [False, True])
@pytest.mark.slow
async def test_a_busy_kernel_is_waited_for(kernel: Bridge, tmp_path: Path, deaf: bool) -> None:
    """J3. While a cell runs the question waits with the request, and no deadline runs.

    Also if iopub is lost, so that the last word of the kernel is an earlier "idle".
    """

    def questions() -> int:
        return sum(kind(parts) == "kernel_info_request" for _, parts in wire.seen)

    gate = tmp_path / "gate"
    code = f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)\nx = 2"
    async with wired(kernel, tmp_path, lane="buffers") as (bridge, wire):
        await bridge.run("x = 1")
        await until(lambda: bridge._transport.life.said_idle)
        wire.deaf = deaf
        wire.seen.clear()
        cell = asyncio.ensure_future(bridge.run(code))
        pull = asyncio.ensure_future(bridge.pull("x + 0"))
        # The third one is sent 4 s after the cell, when the deadline of an idle kernel is over.
        await until(lambda: cell.done() or questions() > 2)
        gate.touch()
        await cell
        assert await pull == 2
        wire.deaf = False
        await until(lambda: not bridge._transport.dispatcher.pending)
        await goes_on(bridge)


@pytest.mark.slow
async def test_a_callback_in_the_event_loop_of_an_idle_kernel_is_waited_for() -> None:
    """J3. A user's callback keeps the main thread, and no status says so."""
    async with Bridge.launch(lane="buffers") as bridge:
        begun = "import asyncio, time\nasyncio.get_running_loop().call_later(0.2, time.sleep, 8)"
        await bridge.run(begun)
        await asyncio.sleep(0.5)
        await bridge.push(x=1)
        assert await bridge.pull("x") == 1


async def test_an_expression_runs_once_if_its_subshell_is_deleted_before_all_is_fetched() -> None:
    async with Bridge.launch(lane="inline") as bridge:
        await bridge.run("evaluated = []; big = b'x' * (9 << 20)")
        lane, control = bridge._connection.remote.lane, bridge._transport.dispatcher.control
        cross, deleted = lane.cross, []

        async def cross_without_subshell(
            header: Any, parts: Any, subshell: Any, *handlers: Any
        ) -> Any:
            if header["op"] == "next_chunk" and not deleted:
                deleted.append(subshell)
                await control("delete_subshell_request", {"subshell_id": subshell}, 20)
            return await cross(header, parts, subshell, *handlers)

        lane.cross = cross_without_subshell  # type: ignore[method-assign]
        with pytest.raises(ReplyLost):
            await bridge.pull("(evaluated.append(1), big)[1]", now=True)
        assert deleted
        assert await bridge.pull("len(evaluated)") == 1


async def test_a_large_call_without_shared_memory_reports_to_its_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def no_segment(*_: object) -> None:
        return None

    monkeypatch.setattr(direct, "copy_to_segment", no_segment)
    seen: list[int] = []
    async with Bridge.launch() as bridge:
        await bridge.push(x=b"x" * (20 << 20), progress=lambda done, total: seen.append(done))
        both = asyncio.gather(
            bridge.call(operator.mul, b"x" * (20 << 20), 2), bridge.call(len, b"x" * (20 << 20))
        )
        assert [len(part) if isinstance(part, bytes) else part for part in await both] == [
            *(40 << 20, 20 << 20)
        ]
        assert seen


async def test_long_responses_in_a_batch_leave_nothing_to_forget() -> None:
    async with Bridge.launch() as bridge:
        await bridge.push(x=1, big=b"x" * (17 << 20))
        lane: Any = bridge._connection.remote.lane
        cell = asyncio.ensure_future(bridge.run("import time; time.sleep(0.5)"))
        pulls = [bridge.pull(name) for name in ("x", "big", "x", "big")]
        await asyncio.gather(cell, *pulls)
        assert (lane._unfinished, lane.messages._unfinished) == ({}, {})
