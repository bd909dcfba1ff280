"""Where the loader connects, without a kernel: who is let in, and what is left afterwards.

Rule: real sockets, and the loader's own ``join`` at the other end.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bridgehead._lanes.socket import COMMON, SocketClient, SocketListener, SocketLost
from bridgehead._shipped.remote import socket_thread as _server
from bridgehead._shipped.remote.socket_thread import SocketThread, join, send_all
from bridgehead._shipped.wire.segments import Pool
from bridgehead._shipped.wire.socket import SECRET, FrameSocket
from bridgehead._transports.state import KernelState
from support.shared import descriptors, filled, needs_segments

pytestmark = needs_segments


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place for temporary files, empty."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def listener(folder: Path) -> Iterator[SocketListener]:
    listener = SocketListener(0.5)
    yield listener
    listener.close()


class Remote:
    """As much of the loader's as a server asks for: it answers with what it was asked."""

    epoch = "of this one"

    def __init__(self) -> None:
        self.servers: dict[str, SocketThread] = {}
        self.parted = threading.Event()

    def receive(self, header: Any, parts: Any, server: Any) -> Any:
        return {"was": header, "sizes": [len(part) for part in parts]}, list(parts)

    def part_from(self, server: SocketThread) -> None:
        self.servers.pop(server.name, None)
        self.parted.set()


def knock(listener: SocketListener, *said: bytes) -> socket.socket:
    """Somebody who knows where it is."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(listener.offer["path"])
    for part in said:
        sock.sendall(part)
    return sock


def secret(listener: SocketListener) -> bytes:
    return bytes.fromhex(listener.offer["secret"])


def test_it_has_no_name_that_anybody_could_find(listener: SocketListener, folder: Path) -> None:
    """H8: nothing to be created before, nor to be found; and nothing is left."""
    assert list(folder.iterdir()) == []
    path = listener.offer["path"]
    assert path.startswith(f"/proc/{os.getpid()}/fd/")
    told = os.stat(path)
    assert stat.S_ISSOCK(told.st_mode)
    assert stat.S_IMODE(told.st_mode) == 0o600
    assert told.st_nlink == 0
    assert told.st_uid == os.geteuid()


def test_a_folder_that_is_deep_or_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("a" * 100) / ("b" * 100)
    deep.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    listener = SocketListener(0.5)
    knock(listener).close()
    listener.close()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(OSError):
        SocketListener(0.5)


def test_nothing_stays_open_or_behind(folder: Path) -> None:
    before = descriptors()
    for _ in range(5):
        listener = SocketListener(0.5)
        listener.close()
        listener.close()
    assert descriptors() == before
    assert list(folder.iterdir()) == []


def test_who_shows_the_secret_is_let_in_and_shown_the_other(listener: SocketListener) -> None:
    with knock(listener, secret(listener)[:SECRET]) as loader:
        accepted = listener.accept()
        assert accepted is not None
        with accepted:
            assert loader.recv(100) == secret(listener)[SECRET:]
    assert listener.accept() is None


@pytest.mark.parametrize("said", ["nothing", "garbage", "half", "the other half", "one bit off"])
def test_who_does_not_is_sent_away_and_told_nothing(listener: SocketListener, said: str) -> None:
    whole = secret(listener)
    says = {
        "nothing": b"",
        "garbage": b"GET / HTTP/1.1\r\n\r\n" * 10,
        "half": whole[: SECRET // 2],
        "the other half": whole[SECRET:],
        "one bit off": bytes([whole[0] ^ 1]) + whole[1:SECRET],
    }[said]
    with knock(listener, says) as stranger:
        assert listener.accept() is None
        stranger.settimeout(5)
        try:
            assert stranger.recv(100) == b""
        except ConnectionResetError:
            pass


def test_nobody_there(listener: SocketListener) -> None:
    assert listener.accept() is None


def test_strangers_keep_nobody_out(listener: SocketListener) -> None:
    strangers = [knock(listener, bytes([n]) * n) for n in range(40)]
    strangers[3].close()
    remote = Remote()
    assert join(remote, listener.offer) == ""
    strangers += [knock(listener) for _ in range(20)]
    accepted = listener.accept()
    assert accepted is not None
    with accepted:
        accepted.settimeout(10)
        channel = FrameSocket(accepted, Pool(0.5))
        parts, files = channel.pack(1, {"op": "x"})
        send_all(accepted, parts, files)
        while (message := channel.next()) is None:
            assert channel.receive()
        assert message[1]["was"] == {**COMMON, "epoch": remote.epoch, "op": "x"}
        channel.close()
    assert remote.parted.wait(30)
    assert remote.servers == {}
    for stranger in strangers:
        stranger.close()


def test_the_loader_believes_only_who_knows_the_other_secret(listener: SocketListener) -> None:
    """Whoever took the near end's place reads nothing and is answered nothing."""
    remote, offer = Remote(), dict(listener.offer)
    offer["secret"] = offer["secret"][: 2 * SECRET] + "00" * SECRET
    assert join(remote, offer) == ""
    accepted = listener.accept()
    assert accepted is not None
    with accepted:
        accepted.settimeout(10)
        channel = FrameSocket(accepted, Pool(0.5))
        parts, files = channel.pack(1, {"op": "x"})
        try:
            send_all(accepted, parts, files)
            assert accepted.recv(100) == b""
        except OSError:
            pass
    assert remote.parted.wait(30)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("path", "/proc/1/fd/0"),
        ("path", "/nowhere"),
        ("path", 7),
        ("path", "/dev/null"),
        ("path", "\0"),
        ("path", "/tmp/" + "a" * 300),
        ("secret", "xyz"),
        ("secret", 7),
        ("share", None),
        ("share", "much"),
        ("common", None),
        ("common", "ab"),
        *((field, ...) for field in ("path", "secret", "name", "share", "common")),
    ],
)
def test_an_offer_with_one_thing_wrong_is_told(
    listener: SocketListener, field: str, value: Any
) -> None:
    """``...`` is for what is not there. Nothing of it stays open."""
    remote, offer = Remote(), {**listener.offer, field: value}
    if value is ...:
        del offer[field]
    before = descriptors()
    assert join(remote, offer).startswith("the kernel cannot connect to this process: ")
    assert not remote.servers
    assert descriptors() == before


def test_no_offer_is_told() -> None:
    remote = Remote()
    assert join(remote, {})
    assert not remote.servers


def test_a_listener_that_is_closed_is_told(folder: Path) -> None:
    listener = SocketListener(0.5)
    offer = listener.offer
    listener.close()
    assert "cannot connect" in join(Remote(), offer)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_the_loader_refuses_the_socket_of_another_user(tmp_path: Path) -> None:
    """H6, H8: somebody else's process at that path."""
    path = Path(tempfile.mkdtemp(dir="/tmp")) / "s"
    path.parent.chmod(0o777)
    program = (
        "import os, socket, sys; os.setgid(65534); os.setuid(65534);"
        "s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen();"
        "print('there', flush=True); c, _ = s.accept(); print(c.recv(100), flush=True)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        offer = {"path": str(path), "secret": "00" * 64, "name": "a", "share": 0.5}
        offer["common"] = COMMON
        assert "another user's" in join(Remote(), offer)
        assert process.stdout.readline() == "b''\n"  # nor was it shown the secret
    finally:
        process.kill()
        process.communicate()
        path.unlink()
        path.parent.rmdir()


# ---------------------------------------------------------------- the link


@pytest.fixture
async def linked(listener: SocketListener) -> Any:
    remote = Remote()
    assert join(remote, listener.offer) == ""
    sock = listener.accept()
    assert sock is not None
    client = SocketClient(sock, 0.5, SimpleNamespace(late=0), KernelState())
    yield client
    client.close()
    assert await asyncio.to_thread(remote.parted.wait, 30)


async def test_more_than_the_socket_takes_at_once(linked: SocketClient) -> None:
    """Thousands of requests, sent without waiting: each has its own answer."""
    data = bytes(range(256)) * 200
    asked = [linked.ask({"n": n, "sizes": [len(data)]}, [data]) for n in range(500)]
    for n, (told, frames) in enumerate(await asyncio.gather(*asked)):
        assert told["was"]["n"] == n
        assert frames is not None
        assert bytes(frames[0]) == data
    assert not linked.at_work


async def test_what_all_requests_have_is_not_sent_and_is_there() -> None:
    near, remote = socket.socketpair()
    near.setblocking(False)
    client, other = (
        SocketClient(near, 0.5, SimpleNamespace(late=0), KernelState()),
        FrameSocket(remote, Pool(0.5)),
    )
    asked = client.ask({**COMMON, "op": "x", "id": "1", "sizes": [3]}, [b"abc"])
    while (message := other.next()) is None:
        assert other.receive()
    _, header, (frame,) = message
    assert header == {"op": "x", "id": "1", "sizes": [3]}
    assert bytes(frame) == b"abc"
    client.close()
    with pytest.raises(SocketLost):
        await asked
    other.close()


async def test_the_loader_has_what_all_requests_have(linked: SocketClient) -> None:
    """Its own epoch among it; the sizes are those of this one."""
    told, frames = await linked.ask({**COMMON, "op": "x", "id": "1", "sizes": [3]}, [b"abc"])
    assert told["was"] == {**COMMON, "epoch": Remote.epoch, "op": "x", "id": "1", "sizes": [3]}
    assert [bytes(frame) for frame in frames or ()] == [b"abc"]


async def test_segments_among_what_waits_to_be_sent(linked: SocketClient) -> None:
    """Files go with their own message, even if the socket was full when it was asked."""
    size, asked = 100_000, []
    filler = bytes(60_000)
    for n in range(60):
        asked.append(linked.ask({"n": n, "sizes": [len(filler)]}, [filler]))
        segment, _ = filled(linked.pool, np.full(size, n, "u1"))
        linked.channel.lend(segment)
        asked.append(linked.ask({"n": n, "sizes": [size]}, (), segment))
    for at, (told, frames) in enumerate(await asyncio.gather(*asked)):
        assert told["was"]["n"] == at // 2
        assert frames is not None
        if at % 2:
            assert (np.frombuffer(frames[0], "u1") == at // 2).all()


async def test_a_cancelled_question_disturbs_nobody(linked: SocketClient) -> None:
    asked = [linked.ask({"n": n, "sizes": []}) for n in range(50)]
    for future in asked[::2]:
        future.cancel()
    await linked.drained()
    assert [(await future)[0]["was"]["n"] for future in asked[1::2]] == list(range(1, 50, 2))


async def test_whoever_waits_is_told_when_it_is_lost(linked: SocketClient) -> None:
    linked.channel.socket.shutdown(socket.SHUT_RDWR)
    asked = [linked.ask({"n": n, "sizes": []}) for n in range(3)]
    for future in asked:
        with pytest.raises(SocketLost):
            await asyncio.wait_for(future, 30)
    assert linked.lost
    with pytest.raises(SocketLost):
        await linked.ask({"n": 1, "sizes": []})
    await linked.drained()


async def test_garbage_ends_the_link(folder: Path) -> None:
    near, remote = socket.socketpair()
    near.setblocking(False)
    client = SocketClient(near, 0.5, SimpleNamespace(late=0), KernelState())
    asked = client.ask({"op": "x", "sizes": []})
    remote.sendall(b"\xff" * 200)
    with pytest.raises(SocketLost):
        await asyncio.wait_for(asked, 30)
    assert client.lost
    remote.close()


async def test_an_answer_that_is_no_object_ends_the_link() -> None:
    near, remote = socket.socketpair()
    near.setblocking(False)
    client, other = (
        SocketClient(near, 0.5, SimpleNamespace(late=0), KernelState()),
        FrameSocket(remote, Pool(0.5)),
    )
    asked = client.ask({"op": "x", "sizes": []})
    parts, files = other.pack(1, [1, 2])  # type: ignore[arg-type]
    send_all(remote, parts, files)
    with pytest.raises(SocketLost):
        await asyncio.wait_for(asked, 30)
    other.close()


async def test_an_answer_that_nobody_asked_for_is_let_go() -> None:
    near, remote = socket.socketpair()
    near.setblocking(False)
    client, other = (
        SocketClient(near, 0.5, SimpleNamespace(late=0), KernelState()),
        FrameSocket(remote, Pool(0.5)),
    )
    parts, files = other.pack(77, {})
    send_all(remote, parts, files)
    asked = client.ask({"op": "x", "sizes": []})
    parts, files = other.pack(1, {"right": True})
    send_all(remote, parts, files)
    assert (await asyncio.wait_for(asked, 30))[0]["right"]
    client.close()
    other.close()


async def test_the_thread_ends_when_the_near_end_does_not_show_the_secret(
    listener: SocketListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not wait for ever for one that was stopped there."""
    monkeypatch.setattr(_server, "KNOCK", 0.05)  # or it would be a minute
    remote = Remote()
    assert join(remote, listener.offer) == ""
    started = time.monotonic()
    assert await asyncio.to_thread(remote.parted.wait, 60)
    assert time.monotonic() - started > 1
