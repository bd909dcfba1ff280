"""The direct lane's socket, without a kernel: who may connect, and what is left afterwards.

Rule: real sockets, and the remote part's own ``join`` at the other end.
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

from bridgehead._lanes.socket import (
    COMMON,
    LoopState,
    QueuedReply,
    SocketClient,
    SocketListener,
    SocketLost,
)
from bridgehead._shipped.remote import socket_thread as _socket_thread
from bridgehead._shipped.remote.socket_thread import (
    SocketThread,
    SwitchInterval,
    join,
    send_all,
)
from bridgehead._shipped.wire.segments import Pool
from bridgehead._shipped.wire.socket import SECRET, FrameSocket
from bridgehead._transports.state import KernelState
from bridgehead._transports.timings import Timings
from support.channels import needs_segments
from support.shared import descriptors, filled

pytestmark = needs_segments


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty folder the only one for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def listener(folder: Path) -> Iterator[SocketListener]:
    listener = SocketListener(0.5)
    yield listener
    listener.close()


class Remote:
    """What a socket thread needs of the remote part; it replies with what it received."""

    epoch = "of this one"

    def __init__(self) -> None:
        self.socket_threads: dict[str, SocketThread] = {}
        self.parted = threading.Event()
        self.switch_interval = SwitchInterval()

    def receive(self, fields: Any, parts: Any, server: Any) -> Any:
        header = {**server.common, **fields}
        return {"was": header, "sizes": [len(part) for part in parts]}, list(parts)

    def forget_thread(self, server: SocketThread) -> None:
        self.socket_threads.pop(server.name, None)
        self.parted.set()


def connect(listener: SocketListener, *sent: bytes) -> socket.socket:
    """Connect as a process that knows the path, and send ``sent``."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(listener.offer()["path"])
    for part in sent:
        sock.sendall(part)
    return sock


def secret(listener: SocketListener) -> bytes:
    return bytes.fromhex(listener.offer()["secret"])


def test_the_socket_has_no_name_that_another_process_could_find(
    listener: SocketListener, folder: Path
) -> None:
    """H8: no process can create the file first or find it, and no file is left."""
    assert list(folder.iterdir()) == []
    path = listener.offer()["path"]
    assert path.startswith(f"/proc/{os.getpid()}/fd/")
    status = os.stat(path)
    assert stat.S_ISSOCK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_nlink == 0
    assert status.st_uid == os.geteuid()


def test_a_deep_folder_works_and_a_missing_one_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("a" * 100) / ("b" * 100)
    deep.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    listener = SocketListener(0.5)
    connect(listener).close()
    listener.close()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(OSError):
        SocketListener(0.5)


def test_closing_a_listener_leaves_no_descriptor_and_no_file(folder: Path) -> None:
    before = descriptors()
    for _ in range(5):
        listener = SocketListener(0.5)
        listener.close()
        listener.close()
    assert descriptors() == before
    assert list(folder.iterdir()) == []


def test_a_process_with_the_secret_is_accepted_and_gets_the_second_secret(
    listener: SocketListener,
) -> None:
    with connect(listener, secret(listener)[:SECRET]) as kernel:
        accepted = listener.accept()
        assert accepted is not None
        with accepted:
            assert listener.welcome(accepted)
            assert kernel.recv(100) == secret(listener)[SECRET:]
    assert listener.accept() is None


@pytest.mark.parametrize("shown", ["nothing", "garbage", "half", "the other half", "one bit off"])
def test_a_process_without_the_secret_is_refused_and_gets_no_bytes(
    listener: SocketListener, shown: str
) -> None:
    whole = secret(listener)
    sent = {
        "nothing": b"",
        "garbage": b"GET / HTTP/1.1\r\n\r\n" * 10,
        "half": whole[: SECRET // 2],
        "the other half": whole[SECRET:],
        "one bit off": bytes([whole[0] ^ 1]) + whole[1:SECRET],
    }[shown]
    with connect(listener, sent) as stranger:
        assert listener.accept() is None
        stranger.settimeout(5)
        try:
            assert stranger.recv(100) == b""
        except ConnectionResetError:
            pass


def test_accept_returns_none_when_no_process_connects(listener: SocketListener) -> None:
    assert listener.accept() is None


def test_other_processes_cannot_keep_the_kernel_out(listener: SocketListener) -> None:
    strangers = [connect(listener, bytes([n]) * n) for n in range(40)]
    strangers[3].close()
    remote = Remote()
    assert join(remote, listener.offer()) == ""
    strangers += [connect(listener) for _ in range(20)]
    accepted = listener.accept()
    assert accepted is not None
    assert listener.welcome(accepted)
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
    assert remote.socket_threads == {}
    for stranger in strangers:
        stranger.close()


def test_the_remote_part_serves_only_a_client_with_the_second_secret(
    listener: SocketListener,
) -> None:
    """A process that listens in place of the client reads nothing and gets no reply."""
    remote, offer = Remote(), dict(listener.offer())
    offer["secret"] = offer["secret"][: 2 * SECRET] + "00" * SECRET
    assert join(remote, offer) == ""
    accepted = listener.accept()
    assert accepted is not None
    assert listener.welcome(accepted)
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
        ("files", "many"),
        ("share", "much"),
        ("common", None),
        ("common", "ab"),
        *((field, ...) for field in ("path", "secret", "name", "share", "files", "common")),
    ],
)
def test_an_offer_with_one_wrong_field_is_reported(
    listener: SocketListener, field: str, value: Any
) -> None:
    """``...`` stands for a missing field. No descriptor stays open."""
    remote, offer = Remote(), {**listener.offer(), field: value}
    if value is ...:
        del offer[field]
    before = descriptors()
    assert join(remote, offer).startswith("the kernel cannot connect to this process: ")
    assert not remote.socket_threads
    assert descriptors() == before


def test_an_empty_offer_is_reported() -> None:
    remote = Remote()
    assert join(remote, {})
    assert not remote.socket_threads


def test_a_closed_listener_is_reported(folder: Path) -> None:
    listener = SocketListener(0.5)
    offer = listener.offer()
    listener.close()
    assert "cannot connect" in join(Remote(), offer)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_the_remote_part_refuses_the_socket_of_another_user(tmp_path: Path) -> None:
    """H6, H8: a process of another user listens at that path."""
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
        offer = {"path": str(path), "secret": "00" * 64, "name": "a", "share": 0.5, "files": 1024}
        offer["common"] = COMMON
        assert "another user's" in join(Remote(), offer)
        assert process.stdout.readline() == "b''\n"  # it did not get the secret either
    finally:
        process.kill()
        process.communicate()
        path.unlink()
        path.parent.rmdir()


# ---------------------------------------------------------------- the client


@pytest.fixture
async def connected(listener: SocketListener) -> Any:
    remote = Remote()
    assert join(remote, listener.offer()) == ""
    sock = listener.accept()
    assert sock is not None
    assert listener.welcome(sock)
    client = SocketClient(sock, 0.5, 1024, SimpleNamespace(late=0), KernelState(Timings()))
    yield client
    client.close()
    assert await asyncio.to_thread(remote.parted.wait, 30)


async def test_requests_that_exceed_the_socket_buffer_all_get_their_replies(
    connected: SocketClient,
) -> None:
    """Hundreds of requests of 50 KB, sent without waiting: each gets its own reply."""
    data = bytes(range(256)) * 200
    asked = [connected.ask({"n": n, "sizes": [len(data)]}, [data]) for n in range(500)]
    for n, (reply, frames) in enumerate(await asyncio.gather(*asked)):
        assert reply["was"]["n"] == n
        assert frames is not None
        assert bytes(frames[0]) == data
    assert not connected.at_work


async def test_fields_that_all_requests_share_are_not_sent() -> None:
    client_end, kernel_end = socket.socketpair()
    client_end.setblocking(False)
    client, other = (
        SocketClient(client_end, 0.5, 1024, SimpleNamespace(late=0), KernelState(Timings())),
        FrameSocket(kernel_end, Pool(0.5)),
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


async def test_the_socket_thread_adds_the_fields_that_all_requests_share(
    connected: SocketClient,
) -> None:
    """The epoch is the remote part's own; the sizes are this request's."""
    reply, frames = await connected.ask({**COMMON, "op": "x", "id": "1", "sizes": [3]}, [b"abc"])
    assert reply["was"] == {**COMMON, "epoch": Remote.epoch, "op": "x", "id": "1", "sizes": [3]}
    assert [bytes(frame) for frame in frames or ()] == [b"abc"]


async def test_a_task_blocks_the_loop_only_while_nothing_else_is_ready() -> None:
    loop = asyncio.get_running_loop()
    state = LoopState(loop, Timings(loop_held=2))
    while loop._ready:  # type: ignore[attr-defined]  # what another test has left in this loop
        await asyncio.sleep(0)
    now = loop.time()
    assert state.may_block(now)
    assert state.may_block(now + 1)
    assert not state.may_block(now + 4)
    await asyncio.sleep(0)
    assert state.may_block(now)
    loop.call_soon(lambda: None)
    assert not state.may_block(now)
    await asyncio.sleep(0)
    loop.call_soon(lambda: None)
    assert not state.may_block(now)


async def test_the_loop_is_blocked_until_one_of_its_files_is_ready() -> None:
    loop = asyncio.get_running_loop()
    state = LoopState(loop, Timings())
    assert not state.block()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        loop.add_reader(ours, lambda: None)
        theirs.send(b"x")
        assert state.block()
        loop.remove_reader(ours)


def test_a_loop_of_another_kind_is_never_blocked() -> None:
    state = LoopState(SimpleNamespace(call_soon=None), Timings())  # type: ignore[arg-type]
    assert not state.may_block(0.0)


async def test_segments_in_queued_messages_keep_their_files(connected: SocketClient) -> None:
    """Each file goes with its own message, even if the socket was full when it was sent."""
    size, asked = 100_000, []
    filler = bytes(60_000)
    for n in range(60):
        asked.append(connected.ask({"n": n, "sizes": [len(filler)]}, [filler]))
        segment, _ = filled(connected.pool, np.full(size, n, "u1"))
        connected.channel.lease_out(segment)
        asked.append(connected.ask({"n": n, "sizes": [size]}, (), segment))
    for at, (reply, frames) in enumerate(await asyncio.gather(*asked)):
        assert reply["was"]["n"] == at // 2
        assert frames is not None
        if at % 2:
            assert (np.frombuffer(frames[0], "u1") == at // 2).all()


async def test_a_cancelled_request_disturbs_no_other(connected: SocketClient) -> None:
    asked = [connected.ask({"n": n, "sizes": []}) for n in range(50)]
    for future in asked[::2]:
        future.cancel()
    await connected.drained()
    assert [(await future)[0]["was"]["n"] for future in asked[1::2]] == list(range(1, 50, 2))


def pair() -> tuple[SocketClient, FrameSocket]:
    """Return a client and the other end of its socket, which nothing reads by itself."""
    client_end, kernel_end = socket.socketpair()
    client_end.setblocking(False)
    client = SocketClient(client_end, 0.5, 1024, SimpleNamespace(late=0), KernelState(Timings()))
    return client, FrameSocket(kernel_end, Pool(0.5))


async def received(channel: FrameSocket) -> tuple[int, Any, Any]:
    """Return the next message; the event loop goes on meanwhile."""
    while (message := channel.next()) is None:
        assert await asyncio.to_thread(channel.receive)
    return message


async def test_what_was_given_up_before_it_was_sent_is_never_sent() -> None:
    """A stopped kernel reads nothing; calls that time out meanwhile leave nothing that grows."""
    client, other = pair()
    filler, asked = bytes(60_000), []
    while client._unsent is None:
        asked.append(client.ask({"n": len(asked), "sizes": [len(filler)]}, [filler]))
    sent = len(asked)
    for n in range(100):
        segment, _ = filled(client.pool, np.full(100_000, n, "u1"))
        client.channel.lease_out(segment)
        asked.append(client.ask({"n": len(asked), "sizes": [100_000]}, (), segment))
        asked.append(client.ask({"n": len(asked), "sizes": [len(filler)]}, [filler]))
    last = client.ask({"n": "last", "sizes": []})
    for future in asked:
        future.cancel()
    await asyncio.sleep(0)  # for the callbacks of the futures
    assert list(client._queued) == [len(asked) + 1]
    assert not client.channel._leased
    assert not any(future.was_sent for future in asked[sent:] if isinstance(future, QueuedReply))
    got = [(await received(other))[1].get("n") for _ in range(sent + 1)]
    assert got == [*range(sent), "last"]
    for serial in (*range(1, sent + 1), len(asked) + 1):
        parts, files = other.pack(serial, {"right": serial})
        send_all(other.socket, parts, files)
    assert (await asyncio.wait_for(last, 30))[0]["right"] == len(asked) + 1
    assert not client.at_work
    client.close()
    other.close()


async def test_giving_up_the_last_request_ends_the_wait_for_all_replies() -> None:
    client, other = pair()
    filler, asked = bytes(60_000), []
    while client._unsent is None:
        asked.append(client.ask({"sizes": [len(filler)]}, [filler]))
    count = len(asked)
    unsent = [client.ask({"sizes": []}) for _ in range(3)]
    drained = asyncio.ensure_future(client.drained())
    await asyncio.sleep(0)  # so that it waits
    for future in reversed(unsent):
        future.cancel()
    for serial in range(1, count + 1):
        await received(other)
        assert not drained.done()
        parts, files = other.pack(serial, {})
        send_all(other.socket, parts, files)
    await asyncio.wait_for(drained, 30)
    client.close()
    other.close()


@pytest.mark.parametrize("way", ["close", "fail"])
async def test_unsent_requests_end_with_the_client(way: str) -> None:
    client, other = pair()
    filler, before = bytes(60_000), descriptors()
    asked: list[Any] = []
    while client._unsent is None or len(asked) < 50:
        segment, _ = filled(client.pool, np.full(5 << 20 if len(asked) < 5 else 100_000, 7, "u1"))
        client.channel.lease_out(segment)
        asked.append(client.ask({"sizes": [segment.capacity]}, (), segment))
        asked.append(client.ask({"sizes": [len(filler)]}, [filler]))
    if way == "fail":
        client.fail_waiters(lambda: SocketLost("silent"))
        await asyncio.sleep(0)  # for the callbacks of the futures
        assert not client._queued
    client.close()
    for future in asked:
        with pytest.raises(SocketLost):
            await future
    other.close()
    assert descriptors() <= before - 2


async def test_every_waiter_gets_socket_lost_when_the_socket_closes(
    connected: SocketClient,
) -> None:
    connected.channel.socket.shutdown(socket.SHUT_RDWR)
    asked = [connected.ask({"n": n, "sizes": []}) for n in range(3)]
    for future in asked:
        with pytest.raises(SocketLost):
            await asyncio.wait_for(future, 30)
    assert connected.is_lost
    with pytest.raises(SocketLost):
        await connected.ask({"n": 1, "sizes": []})
    await connected.drained()


async def test_garbage_closes_the_client(folder: Path) -> None:
    client_end, kernel_end = socket.socketpair()
    client_end.setblocking(False)
    client = SocketClient(client_end, 0.5, 1024, SimpleNamespace(late=0), KernelState(Timings()))
    asked = client.ask({"op": "x", "sizes": []})
    kernel_end.sendall(b"\xff" * 200)
    with pytest.raises(SocketLost):
        await asyncio.wait_for(asked, 30)
    assert client.is_lost
    kernel_end.close()


async def test_a_reply_that_is_no_object_closes_the_client() -> None:
    client_end, kernel_end = socket.socketpair()
    client_end.setblocking(False)
    client, other = (
        SocketClient(client_end, 0.5, 1024, SimpleNamespace(late=0), KernelState(Timings())),
        FrameSocket(kernel_end, Pool(0.5)),
    )
    asked = client.ask({"op": "x", "sizes": []})
    parts, files = other.pack(1, [1, 2])  # type: ignore[arg-type]
    send_all(kernel_end, parts, files)
    with pytest.raises(SocketLost):
        await asyncio.wait_for(asked, 30)
    other.close()


async def test_a_reply_without_a_request_is_ignored() -> None:
    client_end, kernel_end = socket.socketpair()
    client_end.setblocking(False)
    client, other = (
        SocketClient(client_end, 0.5, 1024, SimpleNamespace(late=0), KernelState(Timings())),
        FrameSocket(kernel_end, Pool(0.5)),
    )
    parts, files = other.pack(77, {})
    send_all(kernel_end, parts, files)
    asked = client.ask({"op": "x", "sizes": []})
    parts, files = other.pack(1, {"right": True})
    send_all(kernel_end, parts, files)
    assert (await asyncio.wait_for(asked, 30))[0]["right"]
    client.close()
    other.close()


async def test_the_socket_thread_ends_when_the_client_does_not_send_the_secret(
    listener: SocketListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not wait for ever for a client that was stopped at this point."""
    monkeypatch.setattr(_socket_thread, "CONNECT_TIMEOUT", 0.02)  # or it would be a minute
    remote = Remote()
    assert join(remote, listener.offer()) == ""
    started = time.monotonic()
    assert await asyncio.to_thread(remote.parted.wait, 60)
    assert time.monotonic() - started > 1
