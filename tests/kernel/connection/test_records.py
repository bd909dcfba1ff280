"""Log records: what they have, and what they never have."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal

import pytest

from bridgehead import Bridge, KernelDied, RemoteError, TransportError

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
    messages = [one.getMessage() for one in caplog.records if one.levelno == logging.DEBUG]
    forms = [
        r"push \([\w-]+\): 13,\d\d\d bytes sent, 0 received, lane direct in [\d.]+ ms",
        r"pull \([\w-]+\): 0 bytes sent, 13,\d\d\d received, lane direct in [\d.]+ ms",
        r"run \([\w-]+\): status 'ok' in [\d.]+ ms",
        r"pull \([\w-]+\): RemoteError in [\d.]+ ms",
        r"run \([\w-]+\): status 'error' in [\d.]+ ms",
    ]
    assert len(messages) == len(forms), messages
    for message, form in zip(messages, forms, strict=True):
        assert re.fullmatch(form, message), message
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
    (message,) = [one for one in caplog.messages if one.startswith("pull")]
    assert "CancelledError" in message
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
