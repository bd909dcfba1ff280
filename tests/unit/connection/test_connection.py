"""The loop that decides whether a call is sent again, on a loopback kernel.

Rule: each test makes one thing that a floor below may report, at a moment that the test chooses.
``test_queue`` tests the order, ``test_handoff`` two kernels.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import json
import operator
import random
import re
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bridgehead._connection
from bridgehead import Bridge, KernelRestarted, NotSupported
from bridgehead._bridge.opening import Opening
from bridgehead._lanes.base import Lane
from bridgehead._protocol import request
from bridgehead._protocol.request import KEY
from bridgehead._shipped.wire import socket
from bridgehead._shipped.wire.header import MIME

PATIENCE = 60  # s; an operation that takes longer hangs


def replaced_at_next_operation(bridge: Bridge) -> None:
    """Have another process serve the next operation, over the same connection."""
    cell: Any = bridge._transport._cell  # type: ignore[attr-defined]
    execute = cell.execute

    def execute_in_new(request: Any) -> Any:
        if request["content"]["user_expressions"] and cell.execute is execute_in_new:
            cell.execute = execute
            cell.user_ns = cell.user_global_ns = dict(cell.user_ns_hidden)
            cell.kernel.session.session = uuid.uuid4().hex
        return execute(request)

    cell.execute = execute_in_new


class Written(dict[str, Any]):
    """A header that cannot be changed."""

    def refuse(self, *args: Any, **fields: Any) -> Any:
        raise AssertionError(f"a header was changed in place: {args} {fields}")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = refuse


async def every_operation(bridge: Bridge) -> None:
    """Do each operation, with objects of one message and of several."""
    with contextlib.suppress(NotSupported):
        await bridge.push(now=True, x=1)
    for size in (10, 9 << 20):
        big = random.Random(size).randbytes(size)
        await asyncio.gather(*(bridge.push({f"x{n}": big}) for n in range(3)), bridge.pull("x0"))
        assert await bridge.pull("x1") == big
        assert await bridge.call(len, bridge.ref("x2")) == size
    async with bridge.watch("x0") as watch, bridge.iterate("range(3)") as items:
        assert len(await anext(watch)) == 9 << 20
        assert [item async for item in items] == [0, 1, 2]
    result = await bridge.run("z = y + 1", push={"y": 1}, pull=["z"])
    assert result.values == {"z": 2}
    async with await bridge.call(operator.add, 1, 2, keep=True) as kept:
        assert await bridge.pull(kept) == 3
    assert await bridge.submit(asyncio.sleep, 0, "slept") == "slept"
    assert await bridge.exists("x0")
    assert [name.name for name in await bridge.names("x0")] == ["x0"]
    await bridge.delete("x0")
    await bridge.push(trust="data", x=1)
    assert await bridge.pull("x", trust="data") == 1


async def check_headers(monkeypatch: pytest.MonkeyPatch, opening: Opening[Bridge]) -> None:
    """Do each operation, with headers that cannot be changed."""
    made: list[Any] = []

    def written(make: Callable[..., Any]) -> Callable[..., Any]:
        def write(*args: Any, **fields: Any) -> Any:
            made.append(Written(make(*args, **fields)))
            return made[-1]

        return write

    monkeypatch.setattr(request, "header", written(request.header))
    monkeypatch.setattr(Lane, "message_header", written(Lane.message_header))
    monkeypatch.setattr(socket, "_parse_header", written(socket._parse_header))
    async with asyncio.timeout(PATIENCE), opening as bridge:
        await every_operation(bridge)
    operations = {header.get("op") for header in made}
    assert operations >= {"bind", "fetch", "call", "has", "names", "drop", "batch", "stage"}
    assert operations >= {"watch", "iterate", "start", "advance", "close"}


@pytest.mark.parametrize("lane", ["buffers", "inline"])
async def test_a_header_is_never_changed_in_place(
    monkeypatch: pytest.MonkeyPatch, lane: Any
) -> None:
    await check_headers(monkeypatch, Bridge.loopback(lane=lane))


async def test_a_lack_of_memory_says_whether_the_request_was_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No memory for anything but an object: the caller gets the builtin error, with a note."""

    def fail(*args: Any) -> Any:
        raise MemoryError("none is left")

    async with Bridge.loopback(lane="buffers") as bridge:
        with pytest.raises(MemoryError, match="none is left") as caught:
            await bridge.push(x=bytes(20 << 20), progress=fail)
        note = "push: this process has no memory; the request may still run"
        assert caught.value.__notes__ == [note]
        monkeypatch.setattr(bridge._connection, "_request", fail)
        with pytest.raises(MemoryError, match="none is left") as caught:
            await bridge.push(x=1)
        assert caught.value.__notes__ == [note.replace("may still run", "was not sent")]
        monkeypatch.undo()
        await bridge.push(x=2)
        assert await bridge.pull("x") == 2


async def test_no_queued_call_runs_in_a_process_that_replaced_the_kernel_unnoticed() -> None:
    async with Bridge.loopback(lane="buffers") as bridge:
        await bridge.push(old=1)
        gate = threading.Event()
        cell: Any = bridge._transport._cell  # type: ignore[attr-defined]
        cell.user_ns["gate"] = gate
        running = asyncio.ensure_future(bridge.run("gate.wait()"))
        queued = [
            asyncio.ensure_future(work)
            for work in (
                bridge.call(operator.add, 1, 2),
                bridge.push(meant_for_old=1),
                bridge.run("cell_for_old = 1"),
                bridge.push(pickled_in_a_thread=b"x" * 5_000_000),
            )
        ]
        while len(bridge._connection.queue.turns) < 5:
            await asyncio.sleep(0)
        replaced_at_next_operation(bridge)
        gate.set()
        async with asyncio.timeout(PATIENCE):
            await running
            outcomes = await asyncio.gather(*queued, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {KernelRestarted}
        assert await bridge.names() == []
        await bridge.push(new=1)
        assert await bridge.pull("new") == 1


async def test_a_call_that_is_still_being_pickled_does_not_run_in_the_next_kernel() -> None:
    class Slow:
        def __reduce__(self) -> Any:
            begun.set()
            end.wait(PATIENCE)
            return int, (1,)

    begun, end = threading.Event(), threading.Event()
    async with Bridge.loopback() as bridge:
        slow = asyncio.ensure_future(bridge.push(x=Slow()))
        await asyncio.to_thread(begun.wait, PATIENCE)
        await bridge.restart()
        assert await bridge.names() == []  # the new kernel is known before the pickle is made
        end.set()
        with pytest.raises(KernelRestarted):
            await slow
        assert not await bridge.exists("x")


@pytest.mark.parametrize("way", ["push", "run"])
async def test_a_restart_is_reported_although_the_first_call_gives_up_as_it_is_noticed(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline of a call passes in the turn of the loop in which the handshake succeeds."""
    async with Bridge.loopback() as bridge:
        await bridge.push(old=1)
        remote = bridge._connection.remote
        install = remote.install

        async def install_and_give_up() -> None:
            await install()
            first.cancel()

        monkeypatch.setattr(remote, "install", install_and_give_up)
        bridge._transport.life.connection_lost(lambda: KernelRestarted("as it happens"), "idle")
        bridge._transport.life.connection_made()
        cell: Any = bridge._transport._cell  # type: ignore[attr-defined]
        cell.user_ns = cell.user_global_ns = dict(cell.user_ns_hidden)
        cell.kernel.session.session = uuid.uuid4().hex
        work = bridge.run("new = 1") if way == "run" else bridge.push(new=1)
        first = asyncio.ensure_future(work)
        with pytest.raises((asyncio.CancelledError, KernelRestarted)):
            await first
        monkeypatch.undo()
        if first.cancelled():
            with pytest.raises(KernelRestarted):
                await bridge.exists("old")
        assert not await bridge.exists("old")
        assert not await bridge.exists("new")


async def test_an_error_behind_a_partial_response_is_final() -> None:
    """A hostile kernel says that it did nothing, in a response that has several chunks."""

    async def pull(bridge: Bridge) -> Any:
        async with asyncio.timeout(PATIENCE):
            return await bridge.pull("x")

    async with Bridge.loopback(lane="inline", trust="data") as bridge:
        await bridge.push(x=b"x" * 9_000_000)
        dispatcher: Any = bridge._transport.dispatcher
        received = dispatcher.received

        def lie(channel: str, message: Any) -> None:
            entry = (message["content"].get("user_expressions") or {}).get(KEY, {})
            header = json.loads(entry.get("data", {}).get(MIME, "{}"))
            if sum(header.get("sizes", [])) > 1 << 20:
                header["error"] = {"kind": "epoch"}
                entry["data"][MIME] = json.dumps(header)
            received(channel, message)

        dispatcher.received = lie
        with pytest.raises(KernelRestarted):
            await pull(bridge)
        dispatcher.received = received
        assert len(await pull(bridge)) == 9_000_000


async def test_a_program_without_standard_output_keeps_it_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A loopback's kernel is a thread of this program, whose streams are not replaced."""
    async with Bridge.loopback() as bridge:
        monkeypatch.setattr(sys, "stdout", None)
        await bridge.push(x=1)
        assert sys.stdout is None
        monkeypatch.undo()
        assert await bridge.pull("x") == 1


KNOWN_OF_A_REQUEST = {
    *("BridgeError", "NotServed", "SubshellDeleted", "RequestAborted", "KernelRestarted"),
    *("KernelUnresponsive", "ReplyLost", "TransportError", "Reconnected"),
}
# Loops over several requests or replies, of which none is sent again.
ONE_AFTER_THE_OTHER = {"Installation._withdraw_cells", "Delivery.wait_complete"}


def test_what_is_sent_again() -> None:
    """The head of ``_connection`` lists each loop that goes on after such an error."""
    said = str(bridgehead._connection.__doc__).split("What is sent again")[1]
    listed = re.findall(r"``([A-Z]\w+\.\w+)``", said.split("\nWhere a restart is noticed")[0])
    root = Path(bridgehead.__file__).parent
    paths = [*(root / "_connection").glob("*.py"), *(root / "_lanes").glob("*.py")]
    paths += [root / "_transports" / name for name in ("base.py", "dispatch.py")]
    found = {
        f"{kind.name}.{function.name}"
        for path in paths
        for kind in ast.parse(path.read_text()).body
        if isinstance(kind, ast.ClassDef)
        for function in kind.body
        if isinstance(function, ast.AsyncFunctionDef) and caught_in_loops(function)
    }
    asks_after_an_answer = {"Interrupts.to_cell"}
    assert found - ONE_AFTER_THE_OTHER == set(listed) - asks_after_an_answer


def caught_in_loops(function: ast.AsyncFunctionDef) -> set[str]:
    """Return the errors that say what is known of a request, and that a loop goes on after."""
    loops = [node for node in ast.walk(function) if isinstance(node, (ast.While, ast.For))]
    caught = [
        node.type
        for loop in loops
        for node in ast.walk(loop)
        if isinstance(node, ast.ExceptHandler) and node.type is not None
    ]
    names = {node.id for kind in caught for node in ast.walk(kind) if isinstance(node, ast.Name)}
    return names & KNOWN_OF_A_REQUEST
