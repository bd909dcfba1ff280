"""The event-loop thread that all SyncBridges share.

Rule: loopbacks only. ``kernel/bridge/test_sync.py`` tests a SyncBridge with a kernel.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bridgehead import BridgeClosed, KernelNotFound, SyncBridge
from bridgehead._bridge import loop_thread
from bridgehead._transports.tasks import in_thread

PATIENCE = 60


@pytest.fixture(autouse=True)
def _no_other_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give each test its own shared thread, and check that the thread ends with the test."""
    before = set(threading.enumerate())
    monkeypatch.setattr(loop_thread, "_shared", None)
    yield
    end = time.monotonic() + PATIENCE
    while any(thread not in before for thread in threading.enumerate()):
        assert time.monotonic() < end, threading.enumerate()
        time.sleep(0.01)


def run_script(tmp_path: Path, text: str) -> str:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(text))
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stderr == ""
    return done.stdout


# ---------------------------------------------------------------- start and end


def test_all_bridges_share_one_thread_which_ends_with_the_last_of_them() -> None:
    with SyncBridge.loopback() as one:
        with SyncBridge.loopback() as other:
            assert one._thread is other._thread
        assert one._thread.is_usable
        one["x"] = 1
    assert not one._thread._thread.is_alive()
    with SyncBridge.loopback() as next_one:
        assert next_one._thread is not one._thread


def test_a_failed_opening_ends_the_thread() -> None:
    before = set(threading.enumerate())
    with pytest.raises(KernelNotFound):
        SyncBridge.attach("no-such-kernel-file.json")
    assert set(threading.enumerate()) <= before


def test_many_threads_open_and_close_bridges_at_once() -> None:
    """The last bridge may close while another one opens."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for number in range(15):
                with SyncBridge.loopback() as kernel:
                    kernel["x"] = number
                    assert kernel["x"] == number
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not failures
    assert not any(thread.is_alive() for thread in threads)


def test_calls_of_other_threads_end_when_the_last_bridge_is_closed() -> None:
    kernel = SyncBridge.loopback()
    messages = kernel.messages()
    outcomes: list[Any] = []

    def iterate() -> None:
        outcomes.append(list(messages))

    def pull() -> None:
        try:
            kernel.pull("__import__('time').sleep(1)")
        except BaseException as error:
            outcomes.append(type(error))

    threads = [threading.Thread(target=target) for target in (iterate, pull)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    kernel.close()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(outcomes) == 2
    assert BridgeClosed in outcomes
    assert next(messages, None) is None


def test_a_call_that_the_loop_never_begins_raises_loop_ended() -> None:
    """The call came between the end of the loop and the end of its thread."""
    kernel = SyncBridge.loopback()
    thread = kernel._thread
    kernel.close()
    with pytest.raises(loop_thread.LoopEnded):
        thread.wait(lambda: asyncio.sleep(0))
    late = loop_thread.LoopCall(lambda: asyncio.sleep(0))
    thread._calls.add(late)
    thread._end_calls()
    with pytest.raises(loop_thread.LoopEnded):
        late.result()


def test_a_bridge_collected_in_the_loop_thread_is_closed_and_ends_the_thread() -> None:
    kernel = SyncBridge.loopback()
    thread = kernel._thread
    cycle: list[object] = [kernel]
    cycle.append(cycle)

    async def collect() -> None:
        gc.collect()

    gc.disable()
    try:
        del kernel, cycle
        with pytest.warns(ResourceWarning, match="loopback"):
            thread.wait(collect)
    finally:
        gc.enable()
    thread._thread.join(PATIENCE)
    assert not thread._thread.is_alive()


def test_a_bridge_collected_in_a_worker_thread_is_closed_and_ends_the_thread() -> None:
    """The loop waits for its workers, so no worker may wait for the loop's thread."""
    kernel = SyncBridge.loopback()
    thread = kernel._thread
    holder = [kernel]
    del kernel
    with pytest.warns(ResourceWarning, match="loopback"), pytest.raises(loop_thread.LoopEnded):
        thread.wait(lambda: in_thread(holder.clear))
    thread._thread.join(PATIENCE)
    assert not thread._thread.is_alive()


# ---------------------------------------------------------------- errors and blocking code


def test_a_call_in_the_loop_thread_raises_runtime_error() -> None:
    with SyncBridge.loopback() as kernel, SyncBridge.loopback() as other:

        async def inside() -> None:
            other["x"] = 1

        with pytest.raises(RuntimeError, match="in the event-loop thread of all SyncBridges"):
            kernel._thread.wait(inside)
        other["x"] = 2
        assert other["x"] == 2


@pytest.mark.parametrize("raised", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_the_loop_goes_on_after_an_exception_that_ends_event_loops(
    raised: type[BaseException],
) -> None:
    async def raising() -> None:
        raise raised("by user code")

    async def spawning() -> None:
        spawned.append(asyncio.create_task(raising()))

    spawned: list[asyncio.Task[None]] = []
    with SyncBridge.loopback() as kernel, SyncBridge.loopback() as other:
        with pytest.raises(raised, match="by user code"):
            kernel._thread.wait(raising)
        kernel._thread.wait(spawning)
        other["x"] = 1
        assert other["x"] == 1
        assert isinstance(spawned[0].exception(), raised)


def test_a_blocking_callback_does_not_delay_other_bridges() -> None:
    entered, leave = threading.Event(), threading.Event()

    def block(*_: object) -> None:
        entered.set()
        assert leave.wait(PATIENCE)

    with SyncBridge.loopback() as kernel, SyncBridge.loopback(lane="inline") as other:
        calls = [
            lambda: kernel.run("print(1)", on_output=block),
            lambda: kernel.push(y=b"x" * 10**6, progress=block),
        ]
        for call in calls:
            entered.clear()
            leave.clear()
            thread = threading.Thread(target=call)
            thread.start()
            assert entered.wait(PATIENCE)
            other["x"] = 1
            assert other["x"] == 1
            leave.set()
            thread.join(PATIENCE)
            assert not thread.is_alive()


def test_blocking_pickling_does_not_delay_other_bridges() -> None:
    """More bridges pickle at once than asyncio has worker threads by default."""
    leave = threading.Event()

    class Slow:
        def __reduce__(self) -> Any:
            assert leave.wait(PATIENCE)
            return int, ()

    bridges = [SyncBridge.loopback() for _ in range((os.cpu_count() or 1) + 8)]
    threads = [
        threading.Thread(target=lambda bridge=bridge: bridge.push(slow=Slow()))
        for bridge in bridges
    ]
    try:
        for thread in threads:
            thread.start()
        with SyncBridge.loopback() as other:
            array = bytes(10**6)
            other["x"] = {"array": array}
            assert other["x"] == {"array": array}
    finally:
        leave.set()
        for thread in threads:
            thread.join(PATIENCE)
        for bridge in bridges:
            bridge.close()
    assert not any(thread.is_alive() for thread in threads)


def test_a_keyboard_interrupt_ends_only_the_call_of_its_thread(tmp_path: Path) -> None:
    shown = run_script(
        tmp_path,
        """
        import os, signal, threading
        from bridgehead import SyncBridge
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupted = threading.Event()
        begun = []
        def interrupt_soon(message):
            if not begun:
                threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            begun.append(message)
        with SyncBridge.loopback() as one, SyncBridge.loopback() as other:
            wait = "__import__('__main__').interrupted.wait()"
            pulled = []
            thread = threading.Thread(target=lambda: pulled.append(other.pull(wait + " and 42")))
            thread.start()
            try:
                one.run(f"print('begun'); {wait}; x = 2", on_output=interrupt_soon)
            except KeyboardInterrupt:
                print("interrupted")
                interrupted.set()
            thread.join()
            print(pulled, one.pull("x"))
        print([thread.name for thread in threading.enumerate() if "bridgehead" in thread.name])
        """,
    )
    assert shown == "interrupted\n[42] 2\n[]\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_starts_its_own_thread(tmp_path: Path) -> None:
    shown = run_script(
        tmp_path,
        """
        import os, warnings
        warnings.simplefilter("ignore")
        from bridgehead import SyncBridge
        kernel = SyncBridge.loopback()
        kernel["x"] = 1
        pid = os.fork()
        if pid == 0:
            try:
                kernel["x"]
            except RuntimeError as error:
                print(error, flush=True)
            with SyncBridge.loopback() as own:
                own["x"] = 2
                print(own["x"], flush=True)
            kernel.close()
            raise SystemExit
        os.waitpid(pid, 0)
        print(kernel["x"])
        """,
    )
    assert shown == "this bridge was opened before a fork; open another one here\n2\n1\n"


# ---------------------------------------------------------------- order across bridges


def test_a_handoff_takes_its_turn_in_the_target_when_it_is_called() -> None:
    """A later push to the target takes effect later, even if the source takes long."""
    with SyncBridge.loopback() as source, SyncBridge.loopback() as target:
        source["x"] = "handed off"
        source.run("import time")
        busy = threading.Thread(target=source.run, args=("time.sleep(0.5)",))
        busy.start()
        time.sleep(0.1)
        handing = threading.Thread(target=source.handoff, args=("x",), kwargs={"to": target})
        handing.start()
        time.sleep(0.1)
        target["x"] = "pushed later"
        handing.join(PATIENCE)
        busy.join(PATIENCE)
        assert target["x"] == "pushed later"


class Slow:
    """A bridge that takes a while to open, and a while to undo that when it is cancelled."""

    def __init__(self) -> None:
        self.opening, self.undone = threading.Event(), False

    async def make(self) -> Slow:
        self.opening.set()
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.2)
            self.undone = True
        return self

    async def aclose(self) -> None: ...


def test_an_interrupted_opening_leaves_nothing_when_the_interrupt_is_raised() -> None:
    slow = Slow()

    def interrupt() -> None:
        slow.opening.wait()
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        loop_thread.open_on_shared_loop(slow.make)
    assert slow.undone


class InterruptedOnce:
    """``call_soon_threadsafe`` of a loop, interrupted the first time it is called."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, scheduled: bool) -> None:
        self._schedule, self._scheduled = loop.call_soon_threadsafe, scheduled
        self.is_interrupted = False

    def __call__(self, callback: Callable[..., object], *args: object) -> object:
        if self.is_interrupted:
            return self._schedule(callback, *args)
        self.is_interrupted = True
        if self._scheduled:
            self._schedule(callback, *args)
        raise KeyboardInterrupt


@pytest.mark.parametrize("scheduled", [False, True])
def test_an_interrupt_while_an_opening_is_handed_to_the_loop(
    scheduled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SyncBridge.loopback() as kept:
        slow, loop = Slow(), kept._thread._loop
        interrupted = InterruptedOnce(loop, scheduled=scheduled)
        monkeypatch.setattr(loop, "call_soon_threadsafe", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loop_thread.open_on_shared_loop(slow.make)
        assert slow.undone == slow.opening.is_set()
        kept["x"] = 1
        assert kept["x"] == 1
        assert kept._thread._open_bridges == 1


@pytest.mark.parametrize("scheduled", [False, True])
def test_an_interrupt_while_a_closing_is_handed_to_the_loop(
    scheduled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bridge = SyncBridge.loopback().__enter__()
    loop = bridge._thread._loop
    interrupted = InterruptedOnce(loop, scheduled=scheduled)
    monkeypatch.setattr(loop, "call_soon_threadsafe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bridge.close()
    assert interrupted.is_interrupted
    assert not bridge._thread._thread.is_alive()
    with pytest.raises(BridgeClosed):
        bridge["x"] = 1


def test_a_call_cancelled_before_its_first_step_ends() -> None:
    thread = loop_thread.shared_thread()
    slow = Slow()
    opening = loop_thread.LoopCall(lambda: thread.open(slow.make))
    thread.start(opening)
    assert slow.opening.wait(20)
    blocked = threading.Event()

    async def block() -> None:
        blocked.wait(20)

    first = thread.start(loop_thread.LoopCall(block))
    never_begun = loop_thread.LoopCall(lambda: asyncio.sleep(60))
    thread.start(never_begun)
    thread.cancel(never_begun)
    blocked.set()
    with pytest.raises(asyncio.CancelledError):
        never_begun.result()
    first.result()
    thread.cancel(opening)
    opening.wait()
    thread.join()


def test_a_finished_call_is_not_kept() -> None:
    with SyncBridge.loopback() as kept:
        with SyncBridge.loopback() as closed:
            closed["x"] = 1
        calls = kept._thread._calls
        for _ in range(100):  # the last call leaves in the iteration after its end
            if not calls:
                break
            time.sleep(0.05)
        assert calls == set()
