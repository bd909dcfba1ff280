"""Which lane is taken, and what is checked before anything is unpickled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bridgehead import Bridge, IntegrityError, NotSupported, ReplyLost
from bridgehead._transports.loopback import LoopbackTransport


async def test_buffers_by_default_when_the_probe_saw_them_arrive(live: Bridge) -> None:
    assert live.info.lane == "buffers"
    assert (await live.push(x=1)).lane == "buffers"
    async with Bridge.attach(live.info.connection_file, lane="inline") as other:
        assert other.info.lane == "inline"
        assert (await other.push(x=2)).lane == "inline"


@pytest.fixture
def no_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wire that passes messages and drops their buffers, as some kernels and proxies do."""
    send = LoopbackTransport.send

    async def dropping(self: Any, channel: str, message: Any, buffers: Any) -> None:
        await send(self, channel, message, ())

    monkeypatch.setattr(LoopbackTransport, "send", dropping)


async def test_inline_where_buffers_do_not_arrive(no_buffers: None) -> None:
    async with Bridge.loopback() as bridge:
        assert bridge.info.lane == "inline"
        await bridge.push(x=np.arange(1000.0))
        assert (await bridge.pull("x")).sum() == 499500
    with pytest.raises(NotSupported, match="does not pass message buffers; use lane='inline'"):
        await Bridge.loopback(lane="buffers")


def flip(parts: list[bytes]) -> list[bytes]:
    damaged = bytearray(parts[-1])
    damaged[len(damaged) // 2] ^= 1
    return [*parts[:-1], bytes(damaged)]


TAMPERED = {
    "one-bit-flipped": flip,
    "a-frame-missing": lambda parts: parts[:-1],
    "a-frame-added": lambda parts: [*parts, b"more"],
    "frames-reordered": lambda parts: parts[::-1],
    "a-frame-cut": lambda parts: [*parts[:-1], parts[-1][:-1]],
    "nothing-at-all": lambda parts: [],
}


@pytest.mark.parametrize("how", TAMPERED)
@pytest.mark.parametrize("transport", ["ipc", "tcp"])
async def test_tampered_payload_is_refused(how: str, transport: str, tmp_path: Any) -> None:
    # On ipc the digest is a crc32; over TCP to another machine it would be SHA-256.
    async with Bridge.launch() as bridge:
        bridge._transport.digest = "crc32" if transport == "ipc" else "sha256"
        array = np.arange(10_000.0)
        await bridge.push(x=1)
        send = bridge._transport.send

        async def tampering(channel: str, message: Any, buffers: Any) -> None:
            parts = [bytes(part) for part in buffers]
            await send(channel, message, TAMPERED[how](parts) if parts else parts)

        bridge._transport.send = tampering  # type: ignore[method-assign]
        with pytest.raises(IntegrityError, match="the kernel refused the request"):
            await bridge.push(x=array, y=2)
        del bridge._transport.send
        assert await bridge.pull("x") == 1
        assert not await bridge.exists("y")

        # And on the way back: near checks before it unpickles.
        await bridge.push(a=array)
        received = bridge._transport.received

        def damaging(channel: str, message: Any) -> None:
            if channel == "shell" and message["buffers"]:
                parts = [bytes(part) for part in message["buffers"]]
                message = {**message, "buffers": TAMPERED[how](parts)}
            received(channel, message)

        bridge._transport.received = damaging  # type: ignore[method-assign]
        with pytest.raises(ReplyLost, match="the kernel's answer is damaged"):
            await bridge.pull("a")
        del bridge._transport.received
        assert (await bridge.pull("a")).sum() == array.sum()


async def test_the_payload_is_seen_by_nobody_else(live: Bridge) -> None:
    secret = "a secret that nobody else may see"
    async with Bridge.attach(live.info.connection_file) as other:
        stream = other.messages()
        await live.push(x=secret)
        await live.pull("x")
        await live.run("marker = 1")
        seen = []
        async for message in stream:
            seen.append(message)
            if message.type == "execute_input":
                break
        assert secret not in repr([m.content for m in seen])
        assert not any(m.buffers for m in seen)
