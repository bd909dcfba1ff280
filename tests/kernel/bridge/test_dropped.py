"""Bridges that are dropped unclosed: a warning names them, and everything of theirs is freed.

Rule: real kernels, and a loopback where no process is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import psutil
import pytest

from bridgehead import Bridge, Fleet, SyncBridge
from bridgehead._kernels.launch_folder import sweep
from support.kit import file_of, until
from support.shared import descriptors

OWN = 8  # descriptors at least that a bridge has for itself


others: set[threading.Thread] = set()  # of tests of other files, which lost one in a cell


@pytest.fixture(autouse=True)
def _know_others() -> None:
    others.update(threading.enumerate())


def threads() -> set[str]:
    """Return the threads of bridges; those of the pool of an event loop stay as long as it."""
    names = {one.name for one in threading.enumerate() if one not in others}
    return {one for one in names if one.startswith("bridgehead") and "_" not in one}


@contextlib.asynccontextmanager
async def warning(text: str, files: int) -> AsyncIterator[None]:
    """Check that a warning comes, and then fewer descriptors are open."""
    with pytest.warns(ResourceWarning, match=text):  # noqa: PT031 - in whatever thread it comes
        yield
        await until(lambda: descriptors() <= files - OWN)


@pytest.mark.parametrize("lane", ["auto", "inline"])
async def test_a_dropped_bridge_is_named_and_its_resources_are_freed(
    live: Bridge, lane: Any
) -> None:
    bridge = await Bridge.attach(file_of(live), lane=lane)
    await bridge.push(x=bytes(1_000_000))
    async with warning(rf"<Bridge idle, .* pid {live.info.pid}.*aclose", descriptors()):
        del bridge  # a thread that pickled for it may still hold it for a moment
    assert await live.pull("1 + 1") == 2


@pytest.mark.real_start
async def test_a_dropped_bridge_ends_the_kernel_that_it_launched() -> None:
    bridge = await Bridge.launch()
    pid = bridge.info.pid
    with pytest.warns(ResourceWarning, match=f"pid {pid}"):
        del bridge
    await until(lambda: not psutil.pid_exists(pid))
    await until(lambda: not os.listdir(os.environ["JUPYTER_RUNTIME_DIR"]))


async def test_a_warning_that_is_an_error_frees_as_well(
    live: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda one: seen.append(type(one.exc_value)))
    bridge = await Bridge.attach(file_of(live))
    before = descriptors()
    del bridge  # warnings are errors here
    assert seen == [ResourceWarning]
    await until(lambda: descriptors() <= before - OWN)


async def test_what_still_uses_a_bridge_keeps_it(live: Bridge) -> None:
    bridge = await Bridge.attach(file_of(live))
    await bridge.push(x=5)
    messages, watch, ref = bridge.messages(), bridge.watch("x"), bridge.ref("x")
    del bridge
    gc.collect()
    await live.run("print('heard')")
    while (await anext(messages)).type != "stream":
        pass
    del messages
    assert await anext(watch) == 5
    await watch.aclose()
    del watch
    assert await ref.pull() == 5
    with pytest.warns(ResourceWarning, match="dropped"):
        del ref


async def test_a_closed_bridge_says_nothing(live: Bridge) -> None:
    bridge = await Bridge.attach(file_of(live))
    await bridge.aclose()
    del bridge  # warnings are errors here
    async with Bridge.loopback():
        pass
    gc.collect()


async def test_a_dropped_fleet_names_each_of_its_bridges() -> None:
    fleet = Fleet([await Bridge.loopback(), await Bridge.loopback()])
    with pytest.warns(ResourceWarning, match="<Bridge idle, .*loopback") as caught:
        del fleet
    assert len(caught) == 2
    await until(lambda: not threads())


def test_a_dropped_blocking_bridge_is_named_and_closed() -> None:
    bridge = SyncBridge.loopback()
    with pytest.warns(ResourceWarning, match=r"<SyncBridge .*close\(\)") as caught:
        del bridge
    assert len(caught) == 1
    assert not threads()


def test_a_bridge_may_be_dropped_in_another_thread_and_after_its_loop() -> None:
    with asyncio.Runner() as runner:
        kept = [runner.run(_opened()), runner.run(_opened())]
        with pytest.warns(ResourceWarning, match="loopback"):
            _in_thread(kept.pop)
        runner.run(until(lambda: len(threads()) == 1))
    with pytest.warns(ResourceWarning, match="loopback"):
        kept.clear()
    asyncio.run(until(lambda: not threads()))


def _in_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


async def _opened() -> Bridge:
    return await Bridge.loopback()


PROGRAM = """
import asyncio, gc, os, sys, threading, time
from bridgehead import Bridge
kept = []
async def main():
    bridge = await Bridge.launch()
    print(bridge.info.pid, flush=True)
    if sys.argv[1] == "kept":
        kept.append(bridge)
    if sys.argv[1] == "exit":
        sys.exit(3)
try:
    asyncio.run(main())
finally:
    kept.clear()
    for thread in threading.enumerate():
        if thread.name == "bridgehead-closing":
            thread.join()
    print(os.listdir(os.environ["JUPYTER_RUNTIME_DIR"]), flush=True)
"""


@pytest.mark.parametrize("how", ["dropped", "kept", "exit"])
@pytest.mark.slow
def test_a_program_that_closes_nothing_leaves_nothing(how: str) -> None:
    """``asyncio.run`` cancels all tasks at its end, and closes the loop.

    After ``sys.exit`` the bridge is dropped while the interpreter ends: then the kernel ends by
    itself, and the next launch removes its files.
    """
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", PROGRAM, how],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    pid, left = done.stdout.splitlines()
    assert done.returncode == (3 if how == "exit" else 0)
    assert [one for one in done.stderr.splitlines() if f"pid {pid}" in one and "dropped" in one]
    if how != "exit":
        assert left == "[]"
        assert not psutil.pid_exists(int(pid))
        assert "Traceback" not in done.stderr
        assert "destroyed" not in done.stderr
    asyncio.run(until(lambda: not psutil.pid_exists(int(pid))))
    sweep(os.environ["JUPYTER_RUNTIME_DIR"])
    assert os.listdir(os.environ["JUPYTER_RUNTIME_DIR"]) == []
