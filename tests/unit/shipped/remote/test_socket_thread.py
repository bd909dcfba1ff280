"""The socket thread when a cell begins meanwhile, and when it is interrupted.

Rule: the real remote part in this process; the test tells its shell when cells begin and end.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bridgehead._protocol import request as _request
from bridgehead._protocol.payload import Payload
from bridgehead._shipped.remote.kernel import Kernel
from bridgehead._shipped.remote.server import Remote
from bridgehead._shipped.remote.socket_thread import SocketThread
from bridgehead._shipped.wire import pickling as _pickling
from bridgehead._shipped.wire import segments as _segments
from bridgehead._shipped.wire.segments import Pool
from bridgehead._shipped.wire.socket import FrameSocket


class Begins:
    """An object that begins a cell when it is unpickled."""

    kernel: Any = None

    def __reduce__(self) -> Any:
        return begin, ()


def begin() -> str:
    Begins.kernel._cell_begins()
    return "begun"


@pytest.fixture
def thread() -> Iterator[SocketThread]:
    namespace: dict[str, Any] = {}
    events = SimpleNamespace(callbacks={"pre_execute": [], "post_execute": []})
    events.register = lambda event, hook: events.callbacks[event].append(hook)
    events.unregister = lambda event, hook: events.callbacks[event].remove(hook)
    kernel = Kernel(namespace)
    kernel.shell = SimpleNamespace(user_ns=namespace, user_ns_hidden={}, events=events)
    remote = Remote(kernel)
    assert kernel.follow_cells(remote, True)
    Begins.kernel = kernel
    client, kernel_end = socket.socketpair()
    channel = FrameSocket(kernel_end, Pool(0.5))
    try:
        yield SocketThread(remote, channel, "name", b"")
    finally:
        client.close()
        channel.close()
        channel.pool.close()


def header(thread: SocketThread, operation: str, frames: Any = (), **fields: Any) -> dict[str, Any]:
    payload = Payload(frames).signed("none")
    fields = {"chunk": 1 << 24, **fields}
    return _request.header(operation, payload, epoch=thread.remote.epoch, **fields)


def bind(thread: SocketThread, **values: Any) -> tuple[dict[str, Any], list[memoryview]]:
    frames, _ = _pickling.encode(values)
    return header(thread, "bind", frames, names=list(values)), frames


def batch(
    thread: SocketThread, *requests: tuple[dict[str, Any], list[memoryview]]
) -> dict[str, Any]:
    frames = [frame for _, parts in requests for frame in parts]
    asked = header(thread, "batch", frames, requests=[one for one, _ in requests])
    answer, _ = thread.remote.receive(asked, frames, thread)
    return answer


def end_cell(thread: SocketThread) -> None:
    thread.remote.kernel._cell_ends()


def test_nothing_is_bound_in_the_middle_of_a_cell_that_has_just_begun(thread: SocketThread) -> None:
    asked, frames = bind(thread, x=Begins())
    answer, _ = thread.remote.receive(dict(asked), frames, thread)
    assert answer == {"busy": True}
    assert thread.remote.kernel.namespace == {}
    end_cell(thread)
    # The frames are kept for the message that comes after the cell.
    answer, _ = thread.remote.receive({**asked, "at": sum(asked["sizes"])}, [])
    assert "error" not in answer
    assert thread.remote.kernel.namespace == {"x": "begun"}


def test_the_requests_of_a_batch_behind_a_new_cell_must_be_sent_again(
    thread: SocketThread,
) -> None:
    first, second, third = bind(thread, x=1), bind(thread, y=Begins()), bind(thread, z=3)
    answer = batch(thread, first, second, third)
    assert [one.get("retry", False) for one in answer["responses"]] == [False, True, True]
    assert thread.remote.kernel.namespace == {"x": 1}
    end_cell(thread)
    assert batch(thread, bind(thread, y=2), bind(thread, z=3))["responses"][1].get("retry") is None
    assert thread.remote.kernel.namespace == {"x": 1, "y": 2, "z": 3}


def test_a_batch_whose_first_request_is_overtaken_by_a_cell_waits_as_a_whole(
    thread: SocketThread,
) -> None:
    assert batch(thread, bind(thread, x=Begins()), bind(thread, y=1)) == {"busy": True}
    assert thread.remote.kernel.namespace == {}


def test_an_interrupt_while_a_response_is_copied_keeps_no_memory(
    thread: SocketThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any) -> Any:
        raise KeyboardInterrupt

    thread.remote.kernel.namespace["big"] = np.ones(100_000)
    monkeypatch.setattr(_segments, "write", interrupted)
    answer, out = thread.remote.receive(header(thread, "fetch", expressions=["big"]), [], thread)
    assert answer["error"]["ename"] == "KeyboardInterrupt"
    assert not any(slab.leased for slab in thread.channel.pool.slabs.values())
    monkeypatch.undo()
    answer, out = thread.remote.receive(header(thread, "fetch", expressions=["big"]), [], thread)
    assert "error" not in answer
    assert out.leases == 1
