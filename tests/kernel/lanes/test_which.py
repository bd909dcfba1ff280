"""Which lane a bridge takes.

Rule: the lane is looked at in ``info`` and in what a push reports.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bridgehead import Bridge, NotSupported
from bridgehead._protocol.bootstrap import remote_source
from bridgehead._transports.loopback import LoopbackTransport


async def test_auto_takes_the_fastest_lane_and_lane_takes_the_named_one(live: Bridge) -> None:
    assert live.info.lane == "direct"
    assert (await live.push(x=1)).lane == "direct"
    for lane in ("auto", "direct", "buffers", "inline"):
        async with Bridge.attach(live.info.connection_file, lane=lane) as other:
            taken = "direct" if lane == "auto" else lane
            assert other.info.lane == taken
            assert (await other.push(x=2)).lane == taken


async def test_buffers_are_taken_where_no_process_can_be_reached() -> None:
    async with Bridge.loopback() as bridge:
        assert bridge.info.lane == "buffers"
    with pytest.raises(
        NotSupported, match="lane=.direct. does not work with this kernel: .* process"
    ):
        await Bridge.loopback(lane="direct")


@pytest.fixture
def no_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pass messages on and drop their buffers, as some kernels and proxies do."""
    send = LoopbackTransport.send

    async def dropping(self: Any, channel: str, message: Any, buffers: Any) -> None:
        await send(self, channel, message, ())

    monkeypatch.setattr(LoopbackTransport, "send", dropping)


async def test_inline_is_taken_where_buffers_do_not_arrive(no_buffers: None) -> None:
    async with Bridge.loopback() as bridge:
        assert bridge.info.lane == "inline"
        await bridge.push(x=np.arange(1000.0))
        assert (await bridge.pull("x")).sum() == 499500
    with pytest.raises(NotSupported, match="does not pass message buffers; use lane='inline'"):
        await Bridge.loopback(lane="buffers")


@pytest.mark.parametrize(
    ("kernel", "binary", "why"),
    [
        ("ipython", True, "the server at http://h/, or a proxy before it, drops the buffers"),
        ("ipython", False, "the server at http://h/, or a proxy before it, passes no binary"),
        ("other", True, "other, or the server at http://h/, does not pass message buffers"),
    ],
)
async def test_the_right_program_is_blamed_for_lost_buffers(
    no_buffers: None, monkeypatch: pytest.MonkeyPatch, kernel: str, binary: bool, why: str
) -> None:
    init = LoopbackTransport.__init__

    def behind_a_server(self: Any) -> None:
        init(self)
        self.url = "http://h/"
        self.capabilities = replace(self.capabilities, binary=binary)
        self.kernel_info["implementation"] = kernel

    monkeypatch.setattr(LoopbackTransport, "__init__", behind_a_server)
    async with Bridge.loopback() as bridge:
        assert bridge.info.lane == "inline"
        assert re.search(why, bridge.info.why_not["buffers"])


def dropped(buffers: list[bytes]) -> list[bytes]:
    return []


def altered(buffers: list[bytes]) -> list[bytes]:
    """One bit of the code objects."""
    probe, code = map(bytes, buffers)
    return [probe, code[:1000] + bytes([code[1000] ^ 1]) + code[1001:]]


def doubled(buffers: list[bytes]) -> list[bytes]:
    probe, code = map(bytes, buffers)
    return [probe, code, code]


@pytest.mark.parametrize(
    ("wire", "messages", "lane"),
    [
        (list, 1, "buffers"),
        (dropped, 2, "inline"),
        (altered, 2, "buffers"),
        (doubled, 2, "buffers"),
    ],
)
async def test_the_remote_part_is_sent_in_a_buffer_or_else_in_the_expression(
    wire: Callable[[list[bytes]], list[bytes]],
    messages: int,
    lane: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Jupyter does not sign buffers: code that was altered on the way never runs."""
    send, count = LoopbackTransport.send, 0
    kept = dropped if wire is dropped else list

    async def sending(self: Any, channel: str, message: Any, buffers: Any) -> None:
        nonlocal count
        count += message["header"]["msg_type"] == "execute_request"  # others ask for news
        await send(self, channel, message, wire(buffers) if count == 1 else kept(buffers))

    with monkeypatch.context() as patched:
        patched.delitem(sys.modules, remote_source()[0], raising=False)
        patched.setattr(LoopbackTransport, "send", sending)
        async with Bridge.loopback() as bridge:
            assert count == messages
            assert bridge.info.lane == lane
            await bridge.push(x=1)
            assert await bridge.pull("x") == 1


async def test_a_kernel_without_an_interpreter_lock_gets_messages_only(live: Bridge) -> None:
    """As a free-threaded Python answers; the kernel itself is an ordinary one."""
    await live.run("import sys; sys._is_gil_enabled = lambda: False")
    async with Bridge.attach(live.info.connection_file) as other:
        assert other.info.lane == "buffers"
        assert "no global interpreter lock" in other.info.why_not["direct"]
        assert other.info.trust == "pickle"  # the proof needs no thread
        await other.push(x=np.arange(100_000))
        assert (await other.pull("x")).sum() == 4_999_950_000
    with pytest.raises(NotSupported, match="no global interpreter lock"):
        await Bridge.attach(live.info.connection_file, lane="direct")
