"""What a bridge reads on iopub: nothing of a cell without a reader, and no first output is lost.

Rule: real kernels. A test counts the messages that a bridge checked, never time.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from contextvars import ContextVar
from typing import Any

import cloudpickle
import pytest
import zmq

from bridgehead import Bridge, SyncBridge
from bridgehead._connection.outputs import CellOutputs
from bridgehead._shipped.wire.header import EVENT_MESSAGE
from bridgehead._transports import zmq_context, zmq_iopub
from bridgehead._transports.zmq import ZmqTransport
from bridgehead._transports.zmq_iopub import IopubSocket
from bridgehead._transports.zmq_link import Link
from bridgehead._transports.zmq_reader import SocketReader
from support.elsewhere import MAJORS
from support.kit import file_of, goes_on, until
from support.memory import trace_anew

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the kernel does not have it

PRINTS = "for n in range(100): print(n, flush=True)"
whose: ContextVar[str] = ContextVar("whose")


def transport_of(bridge: Bridge) -> ZmqTransport:
    assert isinstance(bridge._transport, ZmqTransport)
    return bridge._transport


def iopub_of(bridge: Bridge) -> IopubSocket:
    iopub = transport_of(bridge)._iopub
    assert iopub is not None
    return iopub


def counted(bridge: Bridge) -> Counter[str]:
    """Count, by type, the messages of iopub that a bridge checks from now on."""
    signed, found = iopub_of(bridge)._signed, Counter[str]()
    read = signed.read

    def count(frames: Sequence[zmq.Frame]) -> dict[str, Any]:
        message = read(frames)
        found[message["header"]["msg_type"]] += 1
        return message

    signed.read = count  # type: ignore[method-assign]
    return found


@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_a_bridge_does_not_check_the_outputs_of_other_clients(live: Bridge) -> None:
    with SyncBridge.attach(file_of(live)) as other:  # in an event loop of its own
        found = counted(live)
        assert other.run(PRINTS).stdout.split() == [str(n) for n in range(100)]
        other.run("from IPython.display import display; display(1)")
        assert await live.pull("1 + 1") == 2
        assert not found["stream"] + found["display_data"]
        assert found["status"]
        assert (await live.run("print('mine')")).stdout == "mine\n"


@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_the_bridges_of_a_program_check_each_message_once(live: Bridge) -> None:
    async with AsyncExitStack() as stack:
        others = [await stack.enter_async_context(Bridge.attach(file_of(live))) for _ in range(10)]
        assert {iopub_of(other) for other in others} == {iopub_of(live)}
        found = counted(live)
        assert (await live.run(PRINTS)).stdout.split() == [str(n) for n in range(100)]
        assert 1 <= found["stream"] <= 100
        assert 2 <= found["status"] <= 4
        cells = [other.run(f"print({n}); {n}") for n, other in enumerate(others)]
        shown_by = [(one.stdout, one.data["text/plain"]) for one in await asyncio.gather(*cells)]
        assert shown_by == [(f"{n}\n", str(n)) for n in range(10)]


async def test_bridges_that_close_leave_the_outputs_of_others_alone(live: Bridge) -> None:
    """The first of them made the socket that all of them read."""
    file = file_of(live)

    async def elsewhere() -> None:
        opened = [await Bridge.attach(file) for _ in range(4)]
        last = opened.pop()
        stream = last.messages()
        cell = asyncio.ensure_future(last.run("for n in range(300): print(n, flush=True)"))
        await opened.pop(0).aclose()
        for bridge in opened:
            assert (await bridge.run("print('mine')")).stdout == "mine\n"
            await bridge.aclose()
        assert (await cell).stdout.split() == [str(n) for n in range(300)]
        streamed = "".join(one.text for one in stream._waiting if one.type == "stream")
        assert streamed.count("mine\n") == 2
        async with last:
            assert (await last.run("print('last')")).stdout == "last\n"
            async with Bridge.attach(file) as later:
                assert (await later.run("print('later')")).stdout == "later\n"
        assert iopub_of(last).is_closed
        async with Bridge.attach(file) as other:
            assert iopub_of(other) is not iopub_of(last)
            assert (await other.run("print('other')")).stdout == "other\n"

    await asyncio.to_thread(asyncio.run, elsewhere())  # in an event loop without ``live``


async def test_the_states_of_all_bridges_follow_the_kernel(live: Bridge) -> None:
    async with Bridge.attach(file_of(live)) as other, Bridge.attach(file_of(live)) as third:
        cell = asyncio.ensure_future(other.run("input('?')", on_input=lambda *asked: answer))
        answer = asyncio.get_running_loop().create_future()
        async with asyncio.timeout(60):
            while {live.state, other.state, third.state} != {"busy"}:
                await asyncio.sleep(0.01)
            answer.set_result("an answer")
            await cell
            while {live.state, other.state, third.state} != {"idle"}:
                await asyncio.sleep(0.01)


async def test_outputs_arrive_where_the_event_loop_watches_no_sockets(
    live: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncio's default loop on Windows does not; pyzmq has a way of its own then."""
    file = file_of(live)

    async def run() -> str:
        loop = asyncio.get_running_loop()
        add_reader = loop.add_reader

        def add(descriptor: Any, callback: Any, *arguments: Any) -> None:
            owner = type(getattr(callback, "__self__", None))
            if owner in (Link, SocketReader):
                refused[owner.__name__] += 1
                raise NotImplementedError
            add_reader(descriptor, callback, *arguments)

        monkeypatch.setattr(loop, "add_reader", add)
        async with Bridge.attach(file) as first, Bridge.attach(file) as second:
            await first.run("print('first')")
            return (await second.run(PRINTS)).stdout

    refused = Counter[str]()
    printed = await asyncio.to_thread(asyncio.run, run())
    assert printed.split() == [str(n) for n in range(100)]
    assert refused == {"Link": 2, "SocketReader": 1}


@pytest.mark.timings(outputs_unwanted=0.0)
@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_the_first_output_of_each_cell_arrives(live: Bridge) -> None:
    """The bridge stops reading after each cell, and each cell prints at once."""
    for n in range(40):
        assert (await live.run(f"print({n})")).stdout == f"{n}\n"
        await live.push(x=n)
        await live.names()
    shown = await live.run(
        "from IPython.display import display, clear_output, update_display\n"
        "display(1, display_id='a'); update_display(2, display_id='a')"
    )
    assert [output["data"]["text/plain"] for output in shown.outputs] == ["2"]
    cells = [live.run(f"print({n}); {n}") for n in range(8)]
    found = await asyncio.gather(*cells)
    shown_by = [(one.stdout, one.data["text/plain"]) for one in found]
    assert shown_by == [(f"{n}\n", str(n)) for n in range(8)]


@pytest.mark.timings(outputs_unwanted=0.0)
@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_the_first_output_of_each_function_arrives(live: Bridge) -> None:
    """As above, for a function that prints at once."""
    for n in range(40):
        seen: list[str] = []
        await live.call(print, n, on_output=lambda message, to=seen: to.append(message.text))
        assert "".join(seen) == f"{n}\n"
        await live.push(x=n)
        await live.names()


@pytest.mark.timings(outputs_unwanted=0.0)
async def test_a_stream_of_messages_has_the_outputs_of_all_clients(live: Bridge) -> None:
    with SyncBridge.attach(file_of(live)) as other:  # in an event loop of its own
        async with Bridge.attach(file_of(live)) as unread:
            await live.push(x=1)
            other.push(x=1)
            stream = live.messages()
            await live.run("x = 2")  # sent when the kernel has confirmed what ``live`` reads
            other.run("print('from the other client')")
            await unread.run("print('from a bridge that shares the socket')")
            texts: list[str] = []
            async with asyncio.timeout(60):
                async for message in stream:
                    assert message.type != "iopub_welcome"
                    texts += [message.text] if message.type == "stream" else []
                    if len(texts) == 2:
                        break
            assert texts == ["from the other client\n", "from a bridge that shares the socket\n"]
            await stream.aclose()
            found = counted(live)
            await live.push(x=3)
            other.run(PRINTS)
            await live.push(x=4)
            other.run(PRINTS)
            assert found["stream"] < 100
            assert len(stream) == 0


NOISY = "printed = 0\nwhile True:\n    print('x' * 1000)\n    printed += 1"


def noisy() -> None:
    main: Any = __import__("__main__")
    main.printed = 0
    while True:
        print("x" * 1000)
        main.printed += 1


async def leave(bridge: Bridge, how: str) -> None:
    """Begin what prints without end, and leave it after its first output."""
    begun = asyncio.Event()

    def note(message: Any) -> None:
        begun.set()

    if how == "stream":
        async with bridge.stream(NOISY) as outputs:
            await anext(outputs)
    elif how == "timeout":
        with pytest.raises(TimeoutError):
            await bridge.run(NOISY, on_output=note, timeout=1)
    else:
        if how == "run":
            left: Any = asyncio.ensure_future(bridge.run(NOISY, on_output=note))
        elif how == "call":
            left = asyncio.ensure_future(bridge.call(noisy, on_output=note))
        else:
            left = bridge.submit(noisy, on_output=note)
        await begun.wait()
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left


@pytest.mark.slow
@pytest.mark.timings(outputs_unwanted=0.05)
@pytest.mark.parametrize("how", ["timeout", "run", "call", "submit", "stream"])
async def test_the_outputs_of_abandoned_work_are_dropped(live: Bridge, how: str) -> None:
    """Row K2: 20 MB of them take no memory, whatever was left."""
    await leave(live, how)
    found = counted(live)
    if how != "stream":  # it drops each output when it has been read
        async with asyncio.timeout(60):
            while transport_of(live).subscription._is_wide:
                await asyncio.sleep(0.05)
    gc.collect()
    assert not any(one._outputs for one in gc.get_objects() if type(one) is CellOutputs)
    trace_anew()
    before = await live.pull("printed", now=True)
    if how != "submit":  # the kernel is interrupted if it is cancelled
        async with asyncio.timeout(120):
            while await live.pull("printed", now=True) < before + 20_000:
                await asyncio.sleep(0.05)
    gc.collect()
    assert tracemalloc.get_traced_memory()[0] < 5 << 20
    assert not found["stream"] or how == "stream"
    await live.interrupt()
    assert (await live.run("print('after')")).stdout.splitlines()[-1] == "after"
    await goes_on(live)


@pytest.mark.timings(outputs_unwanted=0.3)
async def test_the_first_output_after_a_restart_arrives(live: Bridge) -> None:
    """Each subscription is confirmed again then, also that to everything."""
    for n in range(4):
        await live.push(x=1)
        assert (await live.run("print('before')")).stdout == "before\n"
        await live.restart()
        assert (await live.run(f"print({n})")).stdout == f"{n}\n"
        assert (await live.run(f"print({n})")).stdout == f"{n}\n"


async def test_a_reader_of_messages_goes_on_when_iopub_is_connected_anew(live: Bridge) -> None:
    await live.push(x=1)
    stream = live.messages()
    await live.run("print('before')")
    iopub_of(live).connect_anew()
    texts: list[str] = []
    async with asyncio.timeout(60):
        while "after" not in "".join(texts):
            await live.run("print('after')")
            texts += [one.text for one in stream._waiting if one.type == "stream"]
    assert (await live.run("print('later')")).stdout == "later\n"


async def test_a_bridge_calls_back_in_the_context_in_which_it_was_opened(live: Bridge) -> None:
    """Whichever bridge made the socket that brings the outputs."""
    seen: list[str] = []
    whose.set("the second one's")
    async with Bridge.attach(file_of(live)) as other:
        await other.run("print(1)", on_output=lambda _: seen.append(whose.get()))
    assert seen == ["the second one's"]


async def test_a_socket_that_cannot_be_watched_leaves_nothing(
    live: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A context that was dropped with it would freeze the event loop."""

    def fails(*_: Any) -> None:
        raise OSError("no descriptor is left")

    monkeypatch.setattr(zmq_iopub, "_sockets", {})  # it shares none
    monkeypatch.setattr(zmq_iopub, "SocketReader", fails)
    # Not the descriptors of this process: the connections of other bridges come and go.
    had = set(zmq_context._with_sockets)
    for _ in range(3):
        with pytest.raises(OSError, match="no descriptor"):
            await Bridge.attach(file_of(live))
    await until(lambda: zmq_context._with_sockets <= had)  # a context ends in a thread


async def test_the_first_cell_at_a_new_address_waits_until_its_outputs_can_arrive(
    live: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = transport_of(live)
    connect, loop = transport._client.connect_iopub, asyncio.get_running_loop()

    def connect_late() -> Any:
        socket: Any = connect()
        address = socket.get(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()
        socket.disconnect(address)

        def connect_now() -> None:
            socket.connect(address)
            reader = iopub_of(live)._reader
            assert reader is not None
            reader.read()

        loop.call_later(0.3, connect_now)
        return socket

    monkeypatch.setattr(transport._client, "connect_iopub", connect_late)
    transport._info = {**transport._info, "stdin_port": 0}  # so it is another address
    await transport._follow()
    await transport._connected(60, 60)
    await transport.introduced()
    assert (await live.run("print('first')")).stdout == "first\n"


async def test_only_a_reply_tells_that_iopub_is_silent(
    live: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel sends events in the middle of a cell, about which it publishes nothing."""
    replies: list[None] = []
    monkeypatch.setattr(iopub_of(live), "note_reply", lambda: replies.append(None))
    event = {"header": {"msg_type": EVENT_MESSAGE}, "content": {"resource": "none"}}
    transport_of(live)._received("shell", event)
    assert not replies
    await live.pull("1 + 1")
    assert replies
