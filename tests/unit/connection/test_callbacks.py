"""Calls back, on a loopback: what crosses, what is dropped, and what ends it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import functools
import itertools
import json
import logging
import pickle
import sys
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from bridgehead import Bridge, BridgeClosed, NotSupported, RemoteError, SyncBridge
from bridgehead._protocol.bootstrap import remote_source
from bridgehead._shipped.wire.header import CALLS_AHEAD, CALLS_TOGETHER
from support.promises import HeldUp
from unit.connection.test_tasks import remote_of


@pytest.fixture
async def loopback() -> AsyncIterator[Bridge]:
    async with Bridge.loopback() as bridge:
        yield bridge


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


def shorten_messages(monkeypatch: pytest.MonkeyPatch, nbytes: int, *, ahead: int) -> None:
    """Have the remote part of loopbacks send short events, and ``ahead`` bytes of them at once."""
    remote_part = sys.modules[remote_source()[0]]
    monkeypatch.setattr(remote_part, "MESSAGE", nbytes)
    monkeypatch.setattr(remote_part, "BYTES_AHEAD", ahead)


def call_each(report: Any, values: Any) -> None:
    for value in values:
        report(value)


async def test_calls_arrive_in_order_with_what_they_had(loopback: Bridge) -> None:
    seen: list[Any] = []

    def work(reports: Any) -> Any:
        shared = []
        for step in range(3):
            shared.append(step)
            returned = reports["deep"][0](shared, step=step)
        return returned

    with loopback.callback(lambda *args, **kwargs: seen.append((args, kwargs))) as report:
        assert await loopback.call(work, {"deep": [report]}) is None
        await until(lambda: len(seen) == 3)
    assert seen == [(([*range(n + 1)],), {"step": n}) for n in range(3)]


class Bar:
    """What shows progress here."""

    def __init__(self) -> None:
        self.done = 0

    def update(self, step: int) -> None:
        self.done += step


@pytest.mark.parametrize("lane", ["buffers", "inline"])
async def test_a_bound_method_that_is_pushed_works_on_a_copy_and_its_callback_does_not(
    lane: Any,
) -> None:
    async with Bridge.loopback(lane=lane) as bridge:
        bar = Bar()
        await bridge.push(update=bar.update)
        await bridge.run("update(1)\nupdate(2)")
        assert await bridge.pull("update.__self__.done") == 3
        assert bar.done == 0
        with bridge.callback(bar.update) as report:
            await bridge.push(update=report)
            await bridge.run("update(1)\nupdate(2)")
            await until(lambda: bar.done == 3)


@pytest.mark.parametrize("lane", ["buffers", "inline"])
async def test_more_calls_than_may_be_on_their_way(lane: Any) -> None:
    seen: list[int] = []
    async with Bridge.loopback(lane=lane) as bridge:
        report = bridge.callback(seen.append)
        await bridge.call(call_each, report, range(3 * CALLS_AHEAD))
        await until(lambda: len(seen) == 3 * CALLS_AHEAD)
        assert seen == [*range(3 * CALLS_AHEAD)]
        assert (report.failed, report.dropped) == (0, 0)


@pytest.mark.parametrize("lane", ["buffers", "inline"])
async def test_arguments_longer_than_a_message_arrive_in_order(
    lane: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long call crosses in pieces, between the calls before it and behind it."""
    seen: list[Any] = []
    values = [b"", bytes(range(256)) * 40, 1, [bytearray(1500), b"x" * 999, bytearray(b"y" * 9000)]]
    async with Bridge.loopback(lane=lane) as bridge:
        shorten_messages(monkeypatch, 1000, ahead=3000)
        report = bridge.callback(seen.append)
        await bridge.call(call_each, report, values)
        await until(lambda: len(seen) == len(values))
        assert seen == values
        assert report.failed == 0


@pytest.mark.parametrize("when_full", ["wait", "drop_oldest"])
async def test_a_long_call_that_is_on_its_way_is_not_dropped(
    when_full: Any, loopback: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_messages(monkeypatch, 1000, ahead=2000)
    seen: list[Any] = []
    report = loopback.callback(seen.append, 1, when_full)

    def work(report: Any) -> None:
        import threading

        def calls() -> None:
            for step in range(4):
                report(bytes([step]) * 10_000)

        threading.Thread(target=calls).start()

    await loopback.call(work, report)
    await until(lambda: len(seen) + report.dropped == 4)
    assert all(value == value[:1] * 10_000 for value in seen)
    assert seen == sorted(seen)
    assert seen[-1][0] == 3
    if when_full == "wait":
        assert len(seen) == 4


async def test_calls_run_one_at_a_time_and_may_use_the_bridge(loopback: Bridge) -> None:
    running = most = 0
    seen: list[int] = []

    async def note(step: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        seen.append(await loopback.pull(f"{step} * 2"))
        running -= 1

    await loopback.call(call_each, loopback.callback(note), range(5))
    await until(lambda: len(seen) == 5)
    assert (seen, most) == ([0, 2, 4, 6, 8], 1)


async def test_a_call_that_raises_is_logged_and_counted(
    loopback: Bridge, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []

    async def note(step: int) -> None:
        seen.append(step)
        if step == 1:
            raise ValueError("step 1")
        if step == 2:
            raise asyncio.CancelledError

    report = loopback.callback(note)
    with caplog.at_level(logging.ERROR, "bridgehead"):
        await loopback.call(call_each, report, range(4))
        await until(lambda: len(seen) == 4)
    assert report.failed == 2
    assert "ValueError: step 1" in caplog.text
    assert repr(report).endswith("note, failed=2, dropped=0>")


class Stop(BaseException):
    """What ``pytest.fail`` raises is no ``Exception`` either."""


@pytest.mark.parametrize("options", [(), (3, "wait")])
@pytest.mark.parametrize("kind", [Stop, GeneratorExit])
async def test_the_calls_go_on_whatever_one_raises(
    loopback: Bridge, caplog: pytest.LogCaptureFixture, options: Any, kind: type[BaseException]
) -> None:
    seen: list[int] = []

    def note(step: int) -> None:
        seen.append(step)
        if step % 2:
            raise kind(f"step {step}")

    report = loopback.callback(note, *options)
    async with asyncio.timeout(30):
        await loopback.call(call_each, report, range(20))
    await until(lambda: len(seen) == 20)
    await until(lambda: report.failed == 10)
    assert f"{kind.__name__}: step 19" in caplog.text


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_a_callback_ends_the_loop_and_no_later_call(
    error: type[BaseException],
) -> None:
    seen: list[int] = []

    async def note(step: int) -> None:
        seen.append(step)
        if step == 1:
            raise error

    async def called() -> None:
        await bridge.call(call_each, report, range(5))
        await until(lambda: len(seen) == 5)

    async def opened() -> tuple[Bridge, Any]:
        bridge = await Bridge.loopback()
        return bridge, bridge.callback(note)

    loop = asyncio.new_event_loop()
    try:
        bridge, report = loop.run_until_complete(opened())
        calling = loop.create_task(called())
        with pytest.raises(error):
            loop.run_until_complete(calling)
        loop.run_until_complete(calling)  # as a notebook runs its loop again
        assert (seen, report.failed) == ([0, 1, 2, 3, 4], 1)
        loop.run_until_complete(bridge.aclose())
    finally:
        loop.close()


async def test_the_oldest_calls_are_dropped(loopback: Bridge) -> None:
    note = HeldUp()
    report = loopback.callback(note, 10)
    await loopback.call(call_each, report, range(5 * CALLS_AHEAD))
    await until(lambda: report.dropped == 5 * CALLS_AHEAD - 11)  # one runs, and ten wait
    note.go_on.set()
    await until(lambda: note.seen[-1] == 5 * CALLS_AHEAD - 1)
    assert note.seen[1:] == [*range(5 * CALLS_AHEAD - 10, 5 * CALLS_AHEAD)]


async def test_as_many_calls_wait_in_the_kernel_as_here(
    loopback: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel keeps the newest calls, while those on their way are as many as there may be."""
    monkeypatch.setattr(sys.modules[remote_source()[0]], "CALLS_AHEAD", 30)
    note = HeldUp()
    report = loopback.callback(note, 10)
    for step in range(100):
        await loopback.call(call_each, report, [step])
        await note.begun.wait()
    queue = remote_of(loopback).resources.known[report._calls.id]
    await until(lambda: (report.dropped, queue.dropped, len(queue.waiting)) == (20, 59, 10))
    note.go_on.set()
    await until(lambda: len(note.seen) + report.dropped == 100)
    assert note.seen == sorted(note.seen)
    assert note.seen[-10:] == [*range(90, 100)]


async def test_a_call_waits_for_room(loopback: Bridge) -> None:
    seen: list[int] = []
    waiting: list[int] = []

    def work(report: Any, count: int, at: list[int]) -> None:
        for step in range(count):
            report(step, at[-1] if at else None)

    async def note(step: int, _: object) -> None:
        queue = remote_of(loopback).resources.known[report._calls.id]
        waiting.append(queue.sent_calls + len(queue.waiting) - queue.begun)
        seen.append(step)
        await asyncio.sleep(0)

    report = loopback.callback(note, 3, "wait")
    await loopback.call(work, report, 50, [])
    await until(lambda: len(seen) == 50)
    assert seen == [*range(50)]
    assert max(waiting) <= 3 + 1  # the one that runs may not be reported yet
    assert report.dropped == 0


# What waits for the kernel, which may wait for the callback.
ASKS: dict[str, Callable[[Bridge], Any]] = {
    "pull": lambda bridge: bridge.pull("1"),
    "pull with await": lambda bridge: bridge.pull("await __import__('asyncio').sleep(0)"),
    "run": lambda bridge: bridge.run("1"),
    "call": lambda bridge: bridge.call(abs, 1),
    "push": lambda bridge: bridge.push(y=1),
    "names": lambda bridge: bridge.names(),
    "exists": lambda bridge: bridge.exists("x"),
    "delete": lambda bridge: bridge.delete("x"),
    "ref": lambda bridge: bridge.ref("x").pull(),
    "submit": lambda bridge: bridge.submit(abs, 1),
    "submit of an async function": lambda bridge: bridge.submit(asyncio.sleep, 0),
    "iteration": lambda bridge: anext(bridge.iterate("[1]")),
    "watch": lambda bridge: anext(bridge.watch("x")),
    "names of a watch": lambda bridge: anext(bridge.watch_names()),
}


async def test_a_callback_for_which_a_cell_may_wait_asks_with_now_only(loopback: Bridge) -> None:
    outcomes: dict[str, Any] = {}

    async def note() -> None:
        for name, ask in ASKS.items():
            try:
                outcomes[name] = await ask(loopback)
            except Exception as error:
                outcomes[name] = error

    await loopback.run("x = 1")
    await loopback.call(lambda report: report(), loopback.callback(note, 1, "wait"))
    await until(lambda: len(outcomes) == len(ASKS))
    refused = {name: type(outcome) for name, outcome in outcomes.items()}
    assert refused == dict.fromkeys(ASKS, NotSupported)
    assert "use now=True" in str(outcomes["pull"])
    assert await loopback.pull("x") == 1  # outside, nothing changed
    assert not await loopback.exists("y")


async def test_a_caller_that_waits_for_room_ends_with_the_lease_of_a_vanished_client(
    loopback: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = HeldUp()
    report = loopback.callback(note, 1, "wait")
    await loopback.push(report=report)
    await loopback.run("report(0)")
    await note.begun.wait()
    queue = remote_of(loopback).resources.known[report._calls.id]
    with monkeypatch.context() as patch:
        patch.setattr(queue, "report", lambda *args, **options: None)  # nothing more arrives
        patch.setattr(sys.modules[remote_source()[0]], "LEASE", 0.3)
        with pytest.raises(RemoteError, match="TimeoutError: the client of this callback does not"):
            await loopback.run("for n in range(1, 9): report(n)")
    note.go_on.set()
    report.close()
    await until(lambda: not remote_of(loopback).resources.known)


async def test_what_cannot_be_pickled_raises_in_the_kernel(loopback: Bridge) -> None:
    seen: list[Any] = []
    await loopback.push(report=loopback.callback(seen.append))
    with pytest.raises(RemoteError, match="cannot be pickled"):
        await loopback.run("import threading\nreport(1); report(threading.Lock())")
    await loopback.run("report(2)")
    await until(lambda: len(seen) == 2)
    assert seen == [1, 2]


async def test_arguments_may_have_any_names(loopback: Bridge) -> None:
    seen: list[Any] = []
    await loopback.push(report=loopback.callback(lambda **named: seen.append(named)))
    await loopback.run("report(self=1, args=2, kwargs=3, function=4)")
    await until(lambda: seen)
    assert seen == [{"self": 1, "args": 2, "kwargs": 3, "function": 4}]


async def test_with_trust_data_only_data_crosses() -> None:
    seen: list[Any] = []
    async with Bridge.loopback(trust="data") as bridge:
        await bridge.push(report=bridge.callback(seen.append))
        with pytest.raises(RemoteError, match="not data"):
            await bridge.run("report({'a': [1, 2.5]}); report(print)")
        await until(lambda: seen)
        assert seen == [{"a": [1, 2.5]}]


async def test_a_callback_is_copied_as_itself_and_stays_in_its_kernel(loopback: Bridge) -> None:
    seen: list[Any] = []
    report = loopback.callback(seen.append)
    await loopback.push(report=report)
    await loopback.run("import copy, pickle\ncopy.copy(report)(1); copy.deepcopy([report])[0](2)")
    await until(lambda: seen == [1, 2])
    with pytest.raises(RemoteError, match="cannot be pickled"):
        await loopback.pull("report")
    assert await loopback.pull("repr(report)") == "<callback list.append>"
    with pytest.raises(TypeError, match="belongs to its bridge"):
        pickle.dumps(report)
    with pytest.raises(TypeError, match="belongs to its bridge"):
        copy.copy(report)
    async with Bridge.loopback() as other:
        with pytest.raises(ValueError, match="belongs to another bridge"):
            await other.push(report=report)


async def test_closing_ends_it_here_and_in_the_kernel(loopback: Bridge) -> None:
    seen: list[int] = []
    report = loopback.callback(seen.append)
    await loopback.push(report=report)
    assert loopback.stats.callbacks == 1
    report.close()
    report.close()
    await until(lambda: not remote_of(loopback).resources.known)
    await loopback.run("report(1)")  # it does nothing
    with pytest.raises(ValueError, match="closed; make another one"):
        await loopback.push(report=report)
    assert (seen, loopback.stats.callbacks) == ([], 0)
    assert repr(report).endswith("append, closed, failed=0, dropped=0>")


async def test_a_cell_that_waits_for_room_goes_on_when_the_bridge_closes() -> None:
    begun = asyncio.Event()

    async def note(step: int) -> None:
        begun.set()
        await asyncio.sleep(3600)

    async with Bridge.loopback() as bridge:
        names = bridge._transport._cell.user_ns  # type: ignore[attr-defined]
        await bridge.push(report=bridge.callback(note, 2, "wait"))
        code = "for step in range(100): report(step)\nended = True"
        running = asyncio.ensure_future(bridge.run(code))
        await begun.wait()
        assert "ended" not in names
    await until(lambda: "ended" in names)
    await asyncio.gather(running, return_exceptions=True)  # its reply may come before the close
    with pytest.raises(BridgeClosed):
        bridge.callback(print)


async def test_after_a_restart_it_can_be_pushed_again(loopback: Bridge) -> None:
    seen: list[int] = []
    report = loopback.callback(seen.append)
    await loopback.push(report=report)
    await loopback.run("report(1)")
    await until(lambda: seen == [1])
    await loopback.restart()
    assert loopback.stats.callbacks == 0
    await loopback.push(report=report)
    await loopback.run("report(2)")
    await until(lambda: seen == [1, 2])


@pytest.mark.timings(report_every=0.02)
async def test_what_is_lost_unnoticed_is_sent_again(loopback: Bridge) -> None:
    seen: list[int] = []
    report = loopback.callback(seen.append)
    await loopback.push(report=report)
    kernel = remote_of(loopback).kernel
    send, lost = kernel.send_event_on_control, []
    kernel.send_event_on_control = lambda *args: lost.append(args)
    await loopback.run("report(1)")
    await until(lambda: lost)
    kernel.send_event_on_control = send
    await until(lambda: seen == [1])
    await loopback.run("report(2)")
    await until(lambda: seen == [1, 2])


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ((3,), TypeError, "takes a function, not int"),
        ((print, 0), ValueError, "maxsize must be a positive number or None, not 0"),
        ((print, True), ValueError, "maxsize must be"),
        ((print, 1.5), ValueError, "maxsize must be"),
        ((print, 1, "raise"), ValueError, "when_full must be 'drop_oldest' or 'wait'"),
        ((print, None, "wait"), ValueError, "when_full='wait' needs a maxsize"),
    ],
)
async def test_wrong_arguments(
    loopback: Bridge, options: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        loopback.callback(*options)


def test_a_sync_bridge_runs_it_outside_its_loop() -> None:
    with SyncBridge.loopback() as kernel:
        threads: list[Any] = []
        done = threading.Event()

        def note(step: int) -> None:
            threads.append((step, kernel.pull(f"{step} + 1"), threading.current_thread()))
            if step == 2:
                done.set()

        with kernel.callback(note) as report:
            kernel.call(call_each, report, range(3))
            assert done.wait(30)
        assert [(step, value) for step, value, _ in threads] == [(0, 1), (1, 2), (2, 3)]
        assert all(thread.name != "bridgehead" for *_, thread in threads)
        with pytest.raises(TypeError, match="plain function"):
            kernel.callback(asyncio.sleep)
        with pytest.raises(TypeError, match="takes a function"):
            kernel.callback(3)  # type: ignore[arg-type]


def test_a_function_that_exits_ends_no_later_call_of_a_sync_bridge() -> None:
    with SyncBridge.loopback() as kernel:
        seen: list[int] = []
        done = threading.Event()

        def note(step: int) -> None:
            seen.append(step)
            if step == 1:
                sys.exit(3)
            if step == 2:
                next(iter(()))
            if step == 4:
                done.set()

        report = kernel.callback(note, 2, "wait")
        kernel.call(call_each, report, range(5), timeout=30)
        assert done.wait(30)
        assert (seen, report.failed) == ([0, 1, 2, 3, 4], 2)


def test_a_sync_bridge_runs_no_async_function(caplog: pytest.LogCaptureFixture) -> None:
    class Note:
        async def __call__(self, step: int) -> None:
            raise AssertionError(step)

    with SyncBridge.loopback() as kernel:
        for function in (Note(), functools.partial(Note.__call__, None)):
            with pytest.raises(TypeError, match="plain function"):
                kernel.callback(function)
        done = threading.Event()
        report = kernel.callback(lambda step: Note()(step) if step else done.set())
        kernel.call(call_each, report, [1, 0])
        assert done.wait(30)
        assert report.failed == 1
    assert "returned a coroutine, which did not run" in caplog.text


def test_a_sync_callback_for_which_a_cell_may_wait_asks_with_now_only() -> None:
    with SyncBridge.loopback() as kernel:
        raised: list[Any] = []
        done = threading.Event()

        def note() -> None:
            try:
                kernel.pull("1")
            except NotSupported as error:
                raised.append(error)
            done.set()

        kernel.call(lambda report: report(), kernel.callback(note, 1, "wait"))
        assert done.wait(30)
        assert raised


async def test_a_function_runs_in_the_context_of_its_callback(loopback: Bridge) -> None:
    who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")
    seen: list[str] = []
    who.set("caller")
    report = loopback.callback(lambda: seen.append(who.get()))
    who.set("another")
    await loopback.call(lambda report: report(), report)
    await until(lambda: seen)
    assert seen == ["caller"]


async def test_calls_that_arrived_before_a_restart_run_before_those_after_it(
    loopback: Bridge,
) -> None:
    seen: list[str] = []
    go_on = asyncio.Event()

    async def note(text: str) -> None:
        seen.append(text)
        await go_on.wait()

    report = loopback.callback(note)
    await loopback.call(call_each, report, ["a", "b", "c"])
    await until(lambda: seen == ["a"])
    await loopback.restart()
    await loopback.call(call_each, report, ["d", "e"])
    go_on.set()
    await until(lambda: len(seen) == 5)
    assert seen == ["a", "b", "c", "d", "e"]


async def test_a_forked_process_of_the_kernel_cannot_call(loopback: Bridge) -> None:
    await loopback.push(report=loopback.callback(print))
    remote = remote_of(loopback)
    remote.callbacks.process = -1
    with pytest.raises(RemoteError, match="works in its kernel only"):
        await loopback.run("report(1)")


@pytest.mark.parametrize(
    "changes",
    [
        {"at": 1},
        {"at": -1},
        {"at": 1 << 70},
        {"at": None},
        {"sizes": [1 << 62]},
        {"sizes": [3, 997]},
        {"sizes": [-1]},
        {"groups": [[1, 1]]},
        {"groups": [[1, 1]] * (CALLS_TOGETHER + 1)},
    ],
)
async def test_a_piece_that_does_not_fit_is_asked_for_again(
    changes: dict[str, Any], loopback: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever piece arrives changed: the call arrives as it was made."""
    shorten_messages(monkeypatch, 1000, ahead=3000)
    seen: list[Any] = []
    report = loopback.callback(seen.append)
    calls = report._calls
    feed, events = calls.feed, itertools.count()

    def feed_changed(content: dict[str, Any], buffers: list[Any]) -> None:
        if next(events) in (1, 4, 6):
            content = {**content, "answer": json.dumps(json.loads(content["answer"]) | changes)}
        feed(content, buffers)

    monkeypatch.setattr(calls, "feed", feed_changed)
    await loopback.call(call_each, report, [b"1", bytes(range(256)) * 10, 3])
    await until(lambda: len(seen) == 3)
    assert seen == [b"1", bytes(range(256)) * 10, 3]
    assert report.failed == 0


@pytest.mark.slow
async def test_arguments_beyond_all_that_may_be_on_its_way_arrive(loopback: Bridge) -> None:
    seen: list[bytes] = []
    report = loopback.callback(lambda number, data: seen.append(bytes([number]) + data))
    data = bytes(range(256)) * (100 * 4096)  # 100 MiB
    await loopback.push(report=report, data=data)
    await loopback.run("report(1, data); report(2, b''); report(3, data[:-1])")
    await until(lambda: len(seen) == 3)
    assert seen == [b"\1" + data, b"\2", b"\3" + data[:-1]]


async def test_no_call_begins_after_closing(loopback: Bridge) -> None:
    seen: list[int] = []
    begun = asyncio.Event()

    async def note(step: int) -> None:
        seen.append(step)
        begun.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:  # it goes on all the same
            await asyncio.sleep(0)

    report = loopback.callback(note)
    await loopback.call(call_each, report, range(3))
    await begun.wait()
    report.close()
    await until(lambda: not remote_of(loopback).resources.known)
    assert seen == [0]


async def test_a_new_callback_beside_one_that_ends_is_heard_at_once(loopback: Bridge) -> None:
    for _ in range(50):
        seen: list[int] = []
        with loopback.callback(seen.append) as report:
            await loopback.call(call_each, report, [1])
            async with asyncio.timeout(10):  # the next regular report comes after 30 s
                await until(lambda seen=seen: seen == [1])  # type: ignore[misc]


async def test_a_callback_of_a_removed_remote_part_can_be_pushed_again(loopback: Bridge) -> None:
    seen: list[int] = []
    report = loopback.callback(seen.append)
    await loopback.call(call_each, report, range(5))
    await until(lambda: len(seen) == 5)
    await loopback.run(
        "import sys\nfor name in [n for n in sys.modules if n.startswith('_bridgehead_')]:\n"
        "    sys.modules[name].leave(globals())"
    )
    await loopback.call(call_each, report, range(5, 8))
    await until(lambda: len(seen) == 8)
    assert seen == [*range(8)]


async def test_an_unreadable_event_changes_no_count(loopback: Bridge) -> None:
    seen: list[int] = []
    report = loopback.callback(seen.append)
    await loopback.call(call_each, report, [1, 2])
    await until(lambda: seen == [1, 2])
    calls = report._calls
    for content in ({"answer": "{}", "event": "x"}, {"event": f"{calls.id}:1"}, {"answer": 5}):
        calls.feed(content, [])
    await loopback.call(call_each, report, [3])
    await until(lambda: len(seen) == 3)
    assert seen == [1, 2, 3]


@pytest.mark.parametrize("options", [(), (1, "wait")])
async def test_a_function_may_close_its_bridge(options: Any) -> None:
    """Closing does not wait for the function that closes, and the function goes on."""
    closed: list[str] = []
    async with Bridge.loopback() as bridge:

        async def stop() -> None:
            await bridge.aclose()
            closed.append(bridge.state)

        await bridge.push(report=bridge.callback(stop, *options))
        running = asyncio.ensure_future(bridge.run("report()"))
        await until(lambda: closed)
        await asyncio.gather(running, return_exceptions=True)  # its reply may come before
    assert closed == ["closed"]


@pytest.mark.parametrize("how", ["together", "after the program", "in a finally"])
async def test_several_functions_may_close_their_bridge(how: str) -> None:
    """Closing does not wait for a function that waits for it, and each of them goes on."""
    go, begun, closed = asyncio.Event(), list[int](), list[int]()
    bridge = await Bridge.loopback()

    async def stop(step: int) -> None:
        begun.append(step)
        try:
            if how != "in a finally" or step == 0:
                await go.wait()
            else:
                await asyncio.Event().wait()
        finally:
            await bridge.aclose()
            closed.append(step)

    reports = [bridge.callback(stop) for _ in range(2)]
    for step, report in enumerate(reports):
        await bridge.call(call_each, report, [step])
    await until(lambda: len(begun) == 2)
    go.set()
    if how == "after the program":
        await asyncio.sleep(0)  # both have begun to wait
    async with asyncio.timeout(30):
        if how != "in a finally":
            await bridge.aclose()
        await until(lambda: len(closed) == 2)
    assert bridge._is_released


async def test_functions_may_close_the_bridges_of_each_other() -> None:
    begun, closed = list[int](), list[int]()
    async with Bridge.loopback() as one, Bridge.loopback() as two:

        async def stop(step: int) -> None:
            begun.append(step)
            try:  # the other one may close the bridge of this one first, which cancels this
                await until(lambda: len(begun) == 2)
            finally:
                try:
                    await (one if step else two).aclose()
                finally:
                    closed.append(step)

        await one.call(call_each, one.callback(stop), [0])
        with contextlib.suppress(BridgeClosed):  # if the functions are quicker than its reply
            await two.call(call_each, two.callback(stop), [1])
        await until(lambda: len(closed) == 2)
        async with asyncio.timeout(30):
            await asyncio.gather(one.aclose(), two.aclose())


@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_a_function_that_closes_another_bridge_is_cancelled_with_its_own(when: str) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()
    one, two = await Bridge.loopback(), await Bridge.loopback()

    async def stop(step: int) -> None:
        try:
            if when == "meanwhile":
                begun.set()
            await two.aclose()
            begun.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    await one.call(call_each, one.callback(stop), [0])
    await asyncio.wait_for(begun.wait(), 30)
    await one.aclose()
    await two.aclose()
    await asyncio.wait_for(ended.wait(), 30)


async def test_a_task_that_a_function_started_may_wait_when_the_call_has_ended(
    loopback: Bridge,
) -> None:
    go, started = asyncio.Event(), list[asyncio.Task[Any]]()

    async def later() -> Any:
        await go.wait()
        return await loopback.pull("1 + 1")

    report = loopback.callback(lambda step: started.append(asyncio.create_task(later())), 1, "wait")
    await loopback.call(call_each, report, [0])
    await until(lambda: started)
    go.set()
    assert await asyncio.wait_for(started[0], 30) == 2


async def test_closing_by_a_task_that_a_function_started_cancels_a_later_call() -> None:
    go, started, cancelled = asyncio.Event(), list[asyncio.Task[Any]](), list[int]()
    bridge, second = await Bridge.loopback(), asyncio.Event()

    async def close() -> None:
        await go.wait()
        await bridge.aclose()

    async def work(step: int) -> None:
        if step == 0:
            started.append(asyncio.create_task(close()))
            return
        second.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(step)
            raise

    await bridge.call(call_each, bridge.callback(work), range(2))
    await asyncio.wait_for(second.wait(), 30)
    go.set()
    await asyncio.wait_for(started[0], 30)
    assert cancelled == [1]


def test_a_function_may_close_its_sync_bridge() -> None:
    closed = threading.Event()
    with SyncBridge.loopback() as kernel:

        def stop() -> None:
            kernel.close()
            closed.set()

        kernel["report"] = kernel.callback(stop)
        with contextlib.suppress(BridgeClosed):  # its reply may come before
            kernel.run("report()")
        assert closed.wait(5)


async def test_a_function_may_close_its_callback_and_go_on(loopback: Bridge) -> None:
    seen: list[int] = []

    async def once(step: int) -> None:
        report.close()
        await asyncio.sleep(0.01)
        seen.append(step)

    report = loopback.callback(once)
    await loopback.call(call_each, report, range(3))
    await until(lambda: seen and not remote_of(loopback).resources.known)
    assert seen == [0]


@pytest.mark.parametrize("what", ["item", "task", "watch"])
async def test_what_runs_in_the_kernel_is_not_waited_for_where_it_may_wait(
    loopback: Bridge, what: str
) -> None:
    """It would never come: the kernel waits for the function. Afterwards, all goes on."""
    raised: list[BaseException] = []
    awaited: list[Any] = []

    async def note(step: int) -> None:
        try:
            awaited.append(await waits())
        except NotSupported as error:
            raised.append(error)

    report = loopback.callback(note, 1, "wait")
    await loopback.push(report=report, x=0)
    await loopback.run("def steps():\n    for n in range(5): report(n)\n    yield n")
    if what == "item":
        items: Any = loopback.iterate("steps()")
        waits: Any = lambda: anext(items)  # noqa: E731
        found = await asyncio.wait_for(anext(items, None), 30)
        await until(lambda: len(raised) + len(awaited) == 5)
        assert [found, *awaited].count(4) == 1
    elif what == "task":
        task = loopback.submit(call_each, report, range(5))
        waits = lambda: task  # noqa: E731
        assert await asyncio.wait_for(task, 30) is None
    else:
        watch: Any = loopback.watch("x")
        waits = lambda: anext(watch)  # noqa: E731
        await anext(watch)
        await asyncio.wait_for(loopback.run("for x in range(5): report(x)"), 30)
        await until(lambda: len(raised) + len(awaited) == 5)
        if not awaited:
            assert await anext(watch) == 4
    await until(lambda: len(raised) + len(awaited) == 5)
    assert raised
    assert "ask outside of the function" in str(raised[0])


def test_a_sync_task_is_not_waited_for_where_the_kernel_may_wait() -> None:
    with SyncBridge.loopback() as kernel:
        raised: list[Any] = []

        def note(step: int) -> None:
            for ask in (task.result, task.exception):
                with contextlib.suppress(NotSupported):
                    ask()
                    return
            raised.append(step)

        report = kernel.callback(note, 1, "wait")
        kernel["report"] = report
        started = kernel.submit(call_each, report, range(5))
        task = started
        assert started.result(30) is None
        assert raised
