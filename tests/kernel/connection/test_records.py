"""Log records: what they have, and what they never have."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import threading
from collections.abc import AsyncIterator

import pytest

from bridgehead import (
    Bridge,
    EncodeError,
    KernelDied,
    KernelNotFound,
    KernelUnresponsive,
    NameNotFound,
    RemoteError,
    TransportError,
)
from support.kit import stopped

SECRET = "correct horse"


async def test_each_operation_is_recorded_without_its_values(
    live: Bridge, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "bridgehead")
    await live.push(hidden=SECRET * 1000)
    await live.pull("hidden + 'correct horse'")
    await live.run("print(hidden, 'correct horse')")
    with pytest.raises(RemoteError):
        await live.pull("{}['correct horse']")
    with pytest.raises(RemoteError):
        await live.run("raise ValueError('correct horse')")
    await live.run("hidden += ''", push={"hidden": SECRET * 1000}, pull=["hidden"])
    with pytest.raises(EncodeError):
        await live.push(hidden=threading.Lock())
    await live.interrupt()
    messages = [one.getMessage() for one in caplog.records if one.levelno == logging.DEBUG]
    moved, nothing = r"13,\d\d\d", "0 bytes sent, 0 received"
    forms = [
        rf"push \([\w-]+\): {moved} bytes sent, 0 received, lane direct",
        rf"pull \([\w-]+\): 0 bytes sent, {moved} received, lane direct",
        rf"run \([\w-]+\): status 'ok', {nothing}, lane buffers",
        rf"pull \([\w-]+\): RemoteError, {nothing}, lane direct",
        rf"run \([\w-]+\): status 'error', {nothing}, lane buffers",
        rf"stage \([\w-]+\): {moved} bytes sent, 0 received, lane direct",
        rf"run \([\w-]+\): status 'ok', {moved} bytes sent, {moved} received, lane buffers",
        rf"push \(not sent\): EncodeError, {nothing}, lane direct",
        r"interrupt \(no id\): delivered",
    ]
    assert len(messages) == len(forms), messages
    for message, form in zip(messages, forms, strict=True):
        whole = rf"kernel {live.info.pid}: {form} in [\d.]+ ms"
        assert re.fullmatch(whole, message), message
    assert SECRET not in caplog.text
    assert "hidden" not in caplog.text


@pytest.fixture
async def other() -> AsyncIterator[Bridge]:
    async with Bridge.launch() as bridge:
        yield bridge


async def test_work_names_and_watches_are_recorded_without_their_values(
    live: Bridge, other: Bridge, caplog: pytest.LogCaptureFixture
) -> None:
    """Each under the name of its method."""
    await live.push(hidden=[SECRET])
    caplog.set_level(logging.DEBUG, "bridgehead")

    async def slept(text: str) -> str:
        await asyncio.sleep(0)
        return text

    await live.call(len, SECRET)
    await live.call(slept, SECRET)
    with pytest.raises(RemoteError):
        await live.call(int, SECRET)
    await live.submit(str.upper, SECRET)
    await live.submit(slept, SECRET)
    await live.pull(live.ref("hidden").count(SECRET))
    await live.pull("await __import__('asyncio').sleep(0, 'correct horse')")
    async with live.iterate("hidden") as items:
        assert [item async for item in items] == [SECRET]
    async with live.iterate(list, SECRET) as items:
        assert "".join([item async for item in items]) == SECRET
    assert await anext(live.watch("hidden + ['correct horse']"))
    assert await anext(live.watch_names("hid*"))
    await live.names("hidden")
    await live.exists("hidden")
    with pytest.raises(NameNotFound):
        await live.delete("hidden", "hidden_too")
    await live.handoff("hidden", to=other)
    await live.delete("hidden")
    first = live.info.pid
    await live.restart()
    bytes_, lane = r"(\d+) bytes sent, (\d+) received", "lane direct"
    form = rf"kernel (\d+): (\w+) \(([\w-]+|no id)\): (\w+, )?({bytes_}, {lane}|done) in [\d.]+ ms"
    messages = [one.getMessage() for one in caplog.records if one.levelno == logging.DEBUG]
    found = [re.fullmatch(form, message) for message in messages]
    assert all(found), messages
    seen = [f"{one[2]} {one[4] or ''}".strip() for one in found if one]
    assert [*dict.fromkeys(seen)] == [
        *("call", "call RemoteError,", "submit", "pull", "iterate", "watch", "watch_names"),
        *("names", "exists", "delete NameNotFound,", "handoff", "delete", "restart"),
    ]
    counts = {"call": 2, "call RemoteError,": 1, "submit": 2, "pull": 2, "exists": 1, "restart": 1}
    assert {name: seen.count(name) for name in counts} == counts
    sent, received = [one for one in found if one and one[2] == "handoff"]
    assert (sent[1], received[1]) == (str(first), str(other.info.pid))
    assert (int(sent[7]), int(received[7])) == (int(received[6]), 0)
    assert re.fullmatch(rf"kernel {live.info.pid}: restart \(no id\): done in .*", messages[-1])
    assert SECRET not in caplog.text
    assert "hidden" not in caplog.text


async def test_a_restart_that_ends_early_is_recorded(
    live: Bridge, caplog: pytest.LogCaptureFixture
) -> None:
    """A deadline and a cancel end it as they end other operations; the next one succeeds."""
    caplog.set_level(logging.DEBUG, "bridgehead")
    with pytest.raises(TimeoutError):
        await live.restart(timeout=0.001)
    with contextlib.suppress(KernelNotFound):  # it may share the restart with that deadline
        await live.restart()
    restart = asyncio.ensure_future(live.restart())
    while live.state != "restarting":
        await asyncio.sleep(0)
    restart.cancel()
    with pytest.raises(asyncio.CancelledError):
        await restart
    await live.restart()
    assert await live.pull("1") == 1
    form = r"kernel \d+: restart \(no id\): (.*) in [\d.]+ ms"
    ends = [found[1] for message in caplog.messages if (found := re.fullmatch(form, message))]
    assert ends[0] == "TimeoutError, not done"
    assert ends[-2:] == ["CancelledError, not done", "done"]


async def test_a_cancelled_operation_is_recorded(
    live: Bridge, caplog: pytest.LogCaptureFixture
) -> None:
    cell = asyncio.ensure_future(live.run("import time\nwhile True: time.sleep(.01)"))
    while live.state != "busy":
        await asyncio.sleep(0.01)
    caplog.set_level(logging.DEBUG, "bridgehead")
    with pytest.raises(TimeoutError):
        await live.pull("1", timeout=0.1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):  # the caller's own: to the bridge it is a cancel
            await live.pull("1")
    with pytest.raises(TimeoutError):
        await live.run("1", timeout=0.1)
    found = [one for one in caplog.messages if re.search("pull|run", one)]
    for message, error in zip(found, ["TimeoutError", "CancelledError", "RunTimeout"], strict=True):
        assert f"): {error}, 0 bytes sent, 0 received, lane " in message
    await live.interrupt()
    with pytest.raises(RemoteError):
        await cell


async def test_stats_count_operations_and_bytes(live: Bridge) -> None:
    before = live.stats
    await live.push(x=b"x" * 1000)
    pushed = live.stats
    assert (pushed.operations, pushed.received) == (before.operations + 1, before.received)
    assert 1000 < pushed.sent - before.sent < 2000
    assert len(await live.pull("5 * x")) == 5000
    pulled = live.stats
    assert (pulled.operations, pulled.sent) == (pushed.operations + 1, pushed.sent)
    assert 5000 < pulled.received - pushed.received < 6000
    await live.run("x = 1")
    with pytest.raises(RemoteError):
        await live.pull("1/0")
    after = live.stats
    assert after.operations == pulled.operations + 2
    assert (after.retries, after.late) == (0, 0)


async def test_the_life_of_a_kernel_is_recorded(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "bridgehead")
    async with Bridge.launch() as bridge:
        first = bridge.info.pid
        await bridge.run("import os; os.write(2, b'correct horse')")
        await bridge.restart()
        second = bridge.info.pid
        os.kill(second, signal.SIGKILL)
        with pytest.raises(KernelDied):
            await bridge.pull("1")
    text = "\n".join(caplog.messages)
    events = [
        f"kernel {first}: ipython .*, lane direct, pickle",
        f"kernel {first}: restarting",
        f"kernel {second}: ipython .*, lane direct, pickle",
        f"kernel {second}: dead",
        f"kernel {second}: closed",
    ]
    assert re.search("(?s)" + ".*".join(events), text), text
    assert SECRET not in text


@pytest.mark.timings(silence=1.0)
async def test_a_kernel_that_is_stopped_for_a_while_is_recorded(
    live: Bridge, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "bridgehead")
    with stopped(live), pytest.raises(KernelUnresponsive):
        await live.pull("1")
    async with asyncio.timeout(60):
        while live.state == "unresponsive":
            await asyncio.sleep(0.01)
    assert await live.pull("1") == 1
    name = f"kernel {live.info.pid}"
    assert caplog.messages == [f"{name}: unresponsive", f"{name}: responsive again"]


async def test_an_error_that_a_user_gets_has_a_public_class() -> None:
    with pytest.raises(TransportError, match="no server answers") as raised:
        await Bridge.connect("http://127.0.0.1:1")
    assert type(raised.value) is TransportError
