"""Log records: what they have, and what they never have."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import threading

import pytest

from bridgehead import Bridge, EncodeError, KernelDied, RemoteError, TransportError

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


async def test_an_error_that_a_user_gets_has_a_public_class() -> None:
    with pytest.raises(TransportError, match="no server answers") as raised:
        await Bridge.connect("http://127.0.0.1:1")
    assert type(raised.value) is TransportError
