"""What a bridge reads on iopub: nothing of a cell without a reader, and no first output is lost.

Rule: real kernels. A test counts the messages that a bridge checked, never time.
"""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import zmq

from bridgehead import Bridge
from bridgehead._connection.outputs import CellOutputs
from bridgehead._transports.zmq import ZmqTransport
from bridgehead._transports.zmq_link import Link
from bridgehead._transports.zmq_reader import SocketReader
from support.elsewhere import MAJORS
from support.kit import file_of, goes_on

PRINTS = "for n in range(100): print(n, flush=True)"


def transport_of(bridge: Bridge) -> ZmqTransport:
    assert isinstance(bridge._transport, ZmqTransport)
    return bridge._transport


def counted(bridge: Bridge) -> Counter[str]:
    """Count, by type, the messages that a bridge checks from now on."""
    signed, found = transport_of(bridge)._signed, Counter[str]()
    read = signed.read

    def count(frames: Sequence[zmq.Frame]) -> dict[str, Any]:
        message = read(frames)
        found[message["header"]["msg_type"]] += 1
        return message

    signed.read = count  # type: ignore[method-assign]
    return found


@pytest.mark.parametrize("kernel_name", MAJORS, indirect=True)
async def test_a_bridge_does_not_check_the_outputs_of_other_clients(live: Bridge) -> None:
    async with Bridge.attach(file_of(live)) as other:
        found = counted(other)
        assert (await live.run(PRINTS)).stdout.split() == [str(n) for n in range(100)]
        await live.run("from IPython.display import display; display(1)")
        assert await other.pull("1 + 1") == 2
        assert not found["stream"] + found["display_data"]
        assert found["status"]
        assert (await other.run("print('mine')")).stdout == "mine\n"


async def test_outputs_arrive_where_the_event_loop_watches_no_sockets(
    live: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncio's default loop on Windows does not; pyzmq has a way of its own then."""
    loop = asyncio.get_running_loop()
    add_reader, refused = loop.add_reader, Counter[str]()

    def add(descriptor: Any, callback: Any, *arguments: Any) -> None:
        owner = type(getattr(callback, "__self__", None))
        if owner in (Link, SocketReader):
            refused[owner.__name__] += 1
            raise NotImplementedError
        add_reader(descriptor, callback, *arguments)

    monkeypatch.setattr(loop, "add_reader", add)
    async with Bridge.attach(file_of(live)) as other:
        assert (await other.run(PRINTS)).stdout.split() == [str(n) for n in range(100)]
    assert refused == {"Link": 1, "SocketReader": 1}


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
    async with Bridge.attach(file_of(live)) as other:
        await other.push(x=1)
        await live.push(x=1)
        stream = other.messages()
        await other.run("x = 2")  # sent when the kernel has confirmed what ``other`` reads
        await live.run("print('from the other client')")
        async with asyncio.timeout(60):
            async for message in stream:
                if message.type == "stream":
                    break
        assert message.text == "from the other client\n"
        assert not [one for one in stream._waiting if one.type == "iopub_welcome"]
        await stream.aclose()
        found = counted(other)
        await other.push(x=3)
        await live.run(PRINTS)
        await other.push(x=4)
        await live.run(PRINTS)
        assert found["stream"] < 100
        assert len(stream) == 0


@pytest.mark.slow
@pytest.mark.timings(outputs_unwanted=0.05)
@pytest.mark.parametrize("how", ["timeout", "cancel"])
async def test_the_outputs_of_an_abandoned_cell_are_dropped(live: Bridge, how: str) -> None:
    begun = asyncio.Event()
    cell = asyncio.ensure_future(
        live.run(
            "while True: print('x' * 1000)",
            on_output=lambda message: begun.set(),
            timeout=1 if how == "timeout" else None,
        )
    )
    if how == "cancel":
        await begun.wait()
        cell.cancel()
    with pytest.raises((TimeoutError, asyncio.CancelledError)):
        await cell
    del cell
    found = counted(live)
    async with asyncio.timeout(60):
        while transport_of(live).subscription._is_wide:
            await asyncio.sleep(0.05)
    gc.collect()
    assert not any(one._outputs for one in gc.get_objects() if type(one) is CellOutputs)
    assert not found["stream"]
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
    transport_of(live).connect_anew("iopub")
    texts: list[str] = []
    async with asyncio.timeout(60):
        while "after" not in "".join(texts):
            await live.run("print('after')")
            texts += [one.text for one in stream._waiting if one.type == "stream"]
    assert (await live.run("print('later')")).stdout == "later\n"
