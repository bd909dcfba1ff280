"""Evidence that a process has ended: processes of this machine, and addresses."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from bridgehead._shipped.wire.process import own_process
from bridgehead._transports.evidence import LocalProcess, is_deserted

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
FACTS = """
import json
from bridgehead._shipped.wire.process import own_process
print(json.dumps(own_process()), flush=True)
input()
"""


@pytest.fixture
def child() -> Iterator[tuple[subprocess.Popen[str], list[Any]]]:
    """Start a process that reports its facts, as a kernel does."""
    command = [sys.executable, "-c", FACTS]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())
        process.kill()


LAST_THREAD = """
import ctypes, json, threading
from bridgehead._shipped.wire.process import own_process
print(json.dumps(own_process()), flush=True)
threading.Thread(target=input).start()
ctypes.CDLL(None).pthread_exit(None)
"""


@linux
def test_a_process_whose_main_thread_alone_has_ended_has_not_ended() -> None:
    """Its other threads still have its sockets and its memory."""
    command = [sys.executable, "-c", LAST_THREAD]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as process:
        try:
            assert process.stdout is not None
            found = LocalProcess.described(json.loads(process.stdout.readline()))
            assert found is not None
            stat = Path(f"/proc/{process.pid}/stat")
            while stat.read_bytes().rpartition(b")")[2].split()[0] != b"Z":
                assert process.poll() is None
            assert found.has_ended() is False
        finally:
            process.kill()
        process.wait()
        assert found.has_ended() is True


@linux
def test_a_process_is_found_by_its_facts(child: tuple[subprocess.Popen[str], list[Any]]) -> None:
    process, facts = child
    found = LocalProcess.find(facts)
    assert found is not None
    assert (found.pid, found.has_ended()) == (process.pid, False)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # its exit code is not taken yet
    assert found.has_ended() is True
    process.wait()
    assert found.has_ended() is True
    assert LocalProcess.find(facts) is None  # it has ended before it was looked at


@linux
def test_a_process_of_another_place_or_time_is_not_found() -> None:
    """A10, J6. A container, another machine, a later process with the same pid, and nonsense."""
    facts = own_process()
    assert facts is not None
    assert LocalProcess.find(facts) is not None
    boot, namespace, pid, started = facts
    for other in (
        ["0" * 36, namespace, pid, started],
        [boot, "pid:[1]", pid, started],
        [boot, namespace, pid, started + 1],
        [boot, namespace, 1 << 40, started],
        [boot, namespace, -1, started],
        [boot, namespace, True, started],
        [boot, namespace, str(pid), started],
        [boot, namespace, pid],
        *(None, {}, [], "text", 5, [None] * 4, [[]] * 4),
    ):
        assert LocalProcess.find(other) is None


async def _served(answer: bytes | None) -> tuple[asyncio.Server, int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if answer:
            writer.write(answer)
        if answer is not None:
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    ("answer", "deserted"), [(b"\xff", False), (b"", False), (None, True)], ids=["", "mute", "ends"]
)
async def test_an_address_that_closes_every_connection_is_deserted(
    answer: bytes | None, deserted: bool
) -> None:
    server, port = await _served(answer)
    async with server:
        assert await is_deserted("tcp", "127.0.0.1", port, 1.0) is deserted


async def test_an_address_where_nothing_listens_is_deserted(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert await is_deserted("tcp", "127.0.0.1", free.getsockname()[1], 1.0)
    if sys.platform != "win32":
        assert await is_deserted("ipc", str(tmp_path / "kernel-ipc"), 1, 1.0)


async def test_localhost_is_one_address() -> None:
    """It may be two, ::1 and 127.0.0.1, of which ZeroMQ takes one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert await is_deserted("tcp", "localhost", free.getsockname()[1], 1.0)


async def test_a_listener_that_accepts_no_connection_is_not_deserted() -> None:
    """So it is with a stopped process, when more connections wait than its backlog has room for."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as server,
        contextlib.ExitStack() as more,
    ):
        for _ in range(8):
            one = more.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(server.getsockname())
        assert not await is_deserted("tcp", "127.0.0.1", server.getsockname()[1], 0.1)


@linux
@pytest.mark.parametrize("unreachable", [False, True])
async def test_an_address_without_a_way_to_it_may_count_as_deserted(unreachable: bool) -> None:
    found = await is_deserted("tcp", "255.255.255.255", 9, 1.0, unreachable=unreachable)
    assert found is unreachable


async def test_a_kernels_socket_is_not_deserted() -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        port = router.bind_to_random_port("tcp://127.0.0.1")
        assert not await is_deserted("tcp", "127.0.0.1", port, 1.0)


# In a process of its own: without a descriptor, libzmq would end this one.
WITHOUT_DESCRIPTORS = """
import asyncio, resource, socket
from bridgehead._shipped.wire.process import own_process
from bridgehead._transports.evidence import LocalProcess, is_deserted

async def main():
    found = LocalProcess.find(own_process())
    assert found.has_ended() is False
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        print(found.has_ended(), LocalProcess.find(own_process()))
        print(await is_deserted("tcp", "127.0.0.1", port, 1.0))

asyncio.run(main())
"""


@linux
def test_without_a_descriptor_nothing_is_known() -> None:
    """J6. A lack of descriptors in this process is no evidence."""
    code = [sys.executable, "-c", WITHOUT_DESCRIPTORS]
    ran = subprocess.run(code, capture_output=True, text=True, timeout=60)
    assert (ran.stdout, ran.stderr) == ("None None\nFalse\n", "")
