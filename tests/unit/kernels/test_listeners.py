"""Which process listens on a port: real sockets and processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from bridgehead._kernels import listeners
from bridgehead._kernels.listeners import listens
from support.other_user import NOBODY, needs_other_user

HOW: list[Callable[[int, int], bool]] = [listens, listeners._listens]


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("asked", HOW)
def test_this_process_listens_on_its_port(asked: Callable[[int, int], bool], port: int) -> None:
    assert asked(os.getpid(), port)
    assert not asked(os.getpid(), port - 1)
    assert not asked(os.getppid(), port)
    assert not asked(2**22 + 1, port)


@pytest.mark.parametrize("asked", HOW)
def test_a_port_without_a_listener_has_none(asked: Callable[[int, int], bool]) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert not asked(os.getpid(), bound.getsockname()[1])


def test_a_listener_on_all_interfaces_counts() -> None:
    with socket.create_server(("", 0), family=socket.AF_INET6) as server:
        assert listens(os.getpid(), server.getsockname()[1])


@pytest.mark.parametrize("pid", [None, "1", True, 0, -1, 1.0, []])
def test_what_is_no_pid_listens_nowhere(pid: object, port: int) -> None:
    assert not listens(pid, port)
    assert not listens(os.getpid(), None)


@needs_other_user
@pytest.mark.parametrize("asked", HOW)
def test_a_process_of_another_user_does_not_count(asked: Callable[[int, int], bool]) -> None:
    program = (
        f"import os, socket, sys; os.setgid({NOBODY}); os.setuid({NOBODY});"
        "server = socket.create_server(('127.0.0.1', 0));"
        "print(server.getsockname()[1], flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert not asked(process.pid, int(process.stdout.readline()))
        process.communicate()
