"""What the loader's thread does when a cell begins meanwhile, and when it is interrupted.

Rule: the real loader in this process, with a shell that is told of cells by the test.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bridgehead._protocol import request as _request
from bridgehead._shipped.remote.kernel import Kernel
from bridgehead._shipped.remote.server import Remote
from bridgehead._shipped.remote.socket_thread import SocketThread
from bridgehead._shipped.wire import pickling as _codec
from bridgehead._shipped.wire import segments as _segments
from bridgehead._shipped.wire.segments import Pool
from bridgehead._shipped.wire.socket import FrameSocket


class Begins:
    """Unpickling it is the moment at which somebody's cell begins."""

    kernel: Any = None

    def __reduce__(self) -> Any:
        return begin, ()


def begin() -> str:
    Begins.kernel._cell_begins()
    return "cells_begun"


@pytest.fixture
def server() -> Iterator[SocketThread]:
    namespace: dict[str, Any] = {}
    events = SimpleNamespace(callbacks={"pre_execute": [], "post_execute": []})
    events.register = lambda event, told: events.callbacks[event].append(told)
    events.unregister = lambda event, told: events.callbacks[event].remove(told)
    kernel = Kernel(namespace)
    kernel.shell = SimpleNamespace(user_ns=namespace, user_ns_hidden={}, events=events)
    remote = Remote(kernel)
    assert kernel.follow_cells(True)
    Begins.kernel = kernel
    near, there = socket.socketpair()
    channel = FrameSocket(there, Pool(0.5))
    try:
        yield SocketThread(remote, channel, "name", b"")
    finally:
        near.close()
        channel.close()
        channel.pool.close()


def header(server: SocketThread, operation: str, frames: Any = (), **fields: Any) -> dict[str, Any]:
    made = _request.header(operation, frames, epoch=server.remote.epoch, algorithm="none", **fields)
    return {**made, "chunk": 1 << 24}


def bind(server: SocketThread, **values: Any) -> tuple[dict[str, Any], list[memoryview]]:
    frames, _ = _codec.encode(values)
    return header(server, "bind", frames, names=list(values)), frames


def together(
    server: SocketThread, *requests: tuple[dict[str, Any], list[memoryview]]
) -> dict[str, Any]:
    frames = [frame for _, parts in requests for frame in parts]
    asked = header(server, "batch", frames, requests=[one for one, _ in requests])
    answer, _ = server.remote.receive(asked, frames, server)
    return answer


def ended(server: SocketThread) -> None:
    server.remote.kernel._cell_ends()


def test_nothing_is_bound_in_the_middle_of_a_cell_that_has_just_begun(server: SocketThread) -> None:
    asked, frames = bind(server, x=Begins())
    answer, _ = server.remote.receive(dict(asked), frames, server)
    assert answer == {"busy": True}
    assert server.remote.kernel.namespace == {}
    ended(server)
    # It is there, for the message that comes after the cell.
    answer, _ = server.remote.receive({**asked, "at": sum(asked["sizes"])}, [])
    assert "error" not in answer
    assert server.remote.kernel.namespace == {"x": "cells_begun"}


def test_the_requests_of_a_batch_behind_a_new_cell_must_be_sent_again(
    server: SocketThread,
) -> None:
    first, second, third = bind(server, x=1), bind(server, y=Begins()), bind(server, z=3)
    answer = together(server, first, second, third)
    assert [one.get("retry", False) for one in answer["answers"]] == [False, True, True]
    assert server.remote.kernel.namespace == {"x": 1}
    ended(server)
    assert together(server, bind(server, y=2), bind(server, z=3))["answers"][1].get("retry") is None
    assert server.remote.kernel.namespace == {"x": 1, "y": 2, "z": 3}


def test_a_batch_whose_first_request_is_overtaken_by_a_cell_waits_as_a_whole(server: SocketThread) -> None:
    assert together(server, bind(server, x=Begins()), bind(server, y=1)) == {"busy": True}
    assert server.remote.kernel.namespace == {}


def test_an_interrupt_while_a_response_is_copied_keeps_no_memory(
    server: SocketThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any) -> Any:
        raise KeyboardInterrupt

    server.remote.kernel.namespace["big"] = np.ones(100_000)
    monkeypatch.setattr(_segments, "write", interrupted)
    answer, out = server.remote.receive(header(server, "fetch", expressions=["big"]), [], server)
    assert answer["error"]["ename"] == "KeyboardInterrupt"
    assert not any(segment.leases for segment in server.channel.pool.segments.values())
    monkeypatch.undo()
    answer, out = server.remote.receive(header(server, "fetch", expressions=["big"]), [], server)
    assert "error" not in answer
    assert out.leases == 1
