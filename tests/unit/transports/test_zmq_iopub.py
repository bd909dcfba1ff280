"""Which reader of a shared iopub socket gets which message, with a publisher of our own.

Rule: no kernel. Messages are signed as a kernel signs them.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import zmq
import zmq.asyncio
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.session import Session

from bridgehead._transports.messages import Message
from bridgehead._transports.timings import Timings
from bridgehead._transports.zmq_context import MonitoredContext
from bridgehead._transports.zmq_iopub import IopubSocket, shared_iopub

PORTS = dict.fromkeys(("shell_port", "control_port", "hb_port", "stdin_port"), 1)
STRANGER = Session(key=b"k")  # a client in another process


class Publisher:
    """The kernel's end of iopub."""

    def __init__(self) -> None:
        self.context = zmq.asyncio.Context()
        self.socket: Any = self.context.socket(zmq.XPUB)
        port = self.socket.bind_to_random_port("tcp://127.0.0.1")
        self.info = {"transport": "tcp", "ip": "127.0.0.1", "key": "k", "iopub_port": port, **PORTS}
        self.session = Session(key=b"k")

    async def publish(self, kind: str, text: str, client: Session) -> None:
        """Publish a message that a request of this client caused."""
        content = {"execution_state" if kind == "status" else "text": text}
        parent = client.msg("execute_request", {})["header"]
        parts = self.session.serialize(self.session.msg(kind, content, parent))
        topic = b"stream.stdout" if kind == "stream" else b"kernel.1." + kind.encode()
        await self.socket.send_multipart([topic, *parts])


class Reader:
    """A transport, as far as it reads iopub."""

    def __init__(self, publisher: Publisher, trust: str = "data") -> None:
        self.context = MonitoredContext()
        self.context.used_by(self)
        self.client = AsyncKernelClient(context=self.context)
        self.client.load_connection_info(publisher.info)  # type: ignore[arg-type]
        self.session: Any = self.client.session
        self.life: Any = SimpleNamespace(trust=trust)
        self.dispatcher: Any = SimpleNamespace(has_streams=False)
        self.unreadable = 0
        self.taken: list[Message | None] = []
        self.raises: BaseException | None = None
        self.iopub: IopubSocket = shared_iopub(self, self.client, self.context, Timings())

    def take_published(self, message: Message | None, in_subshell: bool) -> None:
        self.taken.append(message)
        if self.raises is not None:
            error, self.raises = self.raises, None
            raise error

    @property
    def texts(self) -> list[str]:
        return [message.text for message in self.taken if message is not None]

    async def has(self, *texts: str) -> bool:
        """Wait until it has taken so many messages; return whether it is these."""
        async with asyncio.timeout(60):
            while len(self.taken) < len(texts):
                await asyncio.sleep(0.001)
        return self.texts == list(texts)

    async def leave(self) -> None:
        await self.iopub.leave(self)
        await self.context.left_by(self)


@pytest.fixture
async def publisher() -> AsyncIterator[Publisher]:
    publisher = Publisher()
    yield publisher
    publisher.context.destroy(linger=0)


@pytest.fixture
async def readers(publisher: Publisher) -> AsyncIterator[list[Reader]]:
    readers = [Reader(publisher), Reader(publisher, "pickle"), Reader(publisher)]
    await publisher.socket.recv()  # the subscription
    yield readers
    for reader in readers:
        await reader.leave()
    assert all(reader.iopub.is_closed and reader.context.closed for reader in readers)


async def test_all_get_the_status_and_each_its_own_outputs(
    publisher: Publisher, readers: list[Reader]
) -> None:
    first, second, third = readers
    assert first.iopub is second.iopub is third.iopub
    third.dispatcher.has_streams = True
    third.iopub.stream_to(third)
    await publisher.publish("status", "busy", first.session)
    await publisher.publish("stream", "1", first.session)
    await publisher.publish("stream", "2", second.session)
    await publisher.publish("stream", "3", STRANGER)
    await publisher.publish("shutdown_reply", "4", STRANGER)
    assert await third.has("busy", "1", "2", "3", "4")
    assert first.texts == ["busy", "1", "4"]
    assert second.texts == ["busy", "2", "4"]
    assert {message.trust for message in second.taken if message} == {"pickle"}
    assert {message.trust for message in third.taken if message} == {"data"}
    third.dispatcher.has_streams = False
    await publisher.publish("stream", "of nobody who reads", first.session)
    await publisher.publish("status", "idle", STRANGER)
    assert await third.has("busy", "1", "2", "3", "4", "idle")


async def test_an_interrupt_or_an_error_in_one_reader_keeps_nothing_from_the_others(
    publisher: Publisher, readers: list[Reader]
) -> None:
    loop, interrupts = asyncio.get_running_loop(), []
    first, second, third = readers
    first.raises, second.raises = ValueError("a damaged message"), SystemExit()
    read = first.iopub._reader
    assert read is not None
    loop.remove_reader(read._socket.FD)  # asyncio would end with the interrupt
    await publisher.publish("status", "busy", STRANGER)
    await publisher.publish("status", "idle", STRANGER)
    while not third.texts == ["busy", "idle"]:
        try:
            read.read()
        except SystemExit as error:
            interrupts.append(error)
        await asyncio.sleep(0.001)
    assert first.texts == second.texts == third.texts
    assert [one.unreadable for one in readers] == [1, 0, 0]
    assert len(interrupts) == 1


async def test_the_socket_outlives_the_reader_that_made_it(
    publisher: Publisher, readers: list[Reader]
) -> None:
    first, second, third = readers
    await first.leave()
    await first.leave()
    assert not first.context.closed
    await second.leave()
    assert second.context.closed
    await publisher.publish("status", "busy", STRANGER)
    assert await third.has("busy")
    assert not first.taken
    await third.leave()
    assert first.context.closed
    assert third.iopub.is_closed
    later = Reader(publisher)
    assert later.iopub is not third.iopub
    await later.leave()


async def test_another_event_loop_has_a_socket_of_its_own(
    publisher: Publisher, readers: list[Reader]
) -> None:
    async def elsewhere() -> IopubSocket:
        reader = Reader(publisher)
        await reader.leave()
        return reader.iopub

    assert await asyncio.to_thread(asyncio.run, elsewhere()) is not readers[0].iopub
    assert not readers[0].iopub.is_closed


async def test_a_forged_message_is_counted_and_a_confirmation_shows_that_messages_arrive(
    publisher: Publisher, readers: list[Reader]
) -> None:
    await publisher.socket.send_multipart([b"kernel.1.status", b"<IDS|MSG>", b"", b"{}"])
    await publisher.publish("iopub_welcome", "", STRANGER)
    for reader in readers:
        async with asyncio.timeout(60):
            while not reader.taken:
                await asyncio.sleep(0.001)
        assert (reader.taken, reader.unreadable) == ([None], 1)


async def test_nothing_collects_a_context_with_sockets() -> None:
    """In garbage with a cycle, it waited for ever for its sockets: pyzmq knew them no more."""
    context = MonitoredContext()
    kept = weakref.ref(context)
    cycle: list[object] = [context, context.socket(zmq.SUB)]
    cycle.append(cycle)
    del context, cycle
    gc.collect()
    found = kept()
    assert found is not None
    assert [socket.closed for socket in found.kept] == [False]
    found.destroy(linger=0)
    assert not found.kept
    del found
    gc.collect()
    assert kept() is None


async def test_a_reader_learns_of_an_interrupt_in_the_middle_of_a_message() -> None:
    """Else its future stays pending for ever, and nothing reads the socket any more."""
    context = MonitoredContext()
    receiver: Any = context.socket(zmq.PULL)
    sender: Any = context.socket(zmq.PUSH)
    sender.connect(f"tcp://127.0.0.1:{receiver.bind_to_random_port('tcp://127.0.0.1')}")
    plain = receiver._shadow_sock

    class Interrupted:
        def __getattr__(self, name: str) -> Any:
            return getattr(plain, name)

        def recv_multipart(self, *_args: Any, **_kwargs: Any) -> Any:
            raise KeyboardInterrupt

    waiting = receiver.recv_multipart()
    await sender.send(b"1")
    assert plain.poll(10_000)
    object.__setattr__(receiver, "_shadow_sock", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        receiver._handle_recv()
    object.__setattr__(receiver, "_shadow_sock", plain)
    with pytest.raises(InterruptedError):
        await waiting
    async with asyncio.timeout(10):
        assert await receiver.recv_multipart() == [b"1"]
    context.destroy(linger=0)
