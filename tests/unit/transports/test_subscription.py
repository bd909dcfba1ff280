"""What a bridge reads on iopub, with a publisher of our own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import Any

import pytest
import zmq
import zmq.asyncio

from bridgehead._transports.subscription import OutputSubscription
from bridgehead._transports.timings import Timings

SENT = 5_000


def publish(publisher: zmq.Socket[bytes]) -> None:
    """Wait for the subscriber, publish, and end as a process does: what was sent arrives."""
    publisher.recv()
    for number in range(SENT):
        publisher.send(b"kernel.%d" % number)
    publisher.close(linger=10_000)


@pytest.mark.parametrize("listens_again", [False, True])
async def test_the_last_messages_of_a_process_that_has_ended_are_read(listens_again: bool) -> None:
    """Also if another process listens at the address at once."""
    with zmq.Context() as theirs, zmq.asyncio.Context() as ours:
        publisher = theirs.socket(zmq.XPUB)
        publisher.sndhwm = 0
        port = publisher.bind_to_random_port("tcp://127.0.0.1")
        socket: Any = ours.socket(zmq.SUB)
        socket.rcvhwm = 0
        socket.subscribe(b"")
        socket.connect(f"tcp://127.0.0.1:{port}")
        subscription = OutputSubscription(Timings(last_messages=60), lambda: True)
        subscription.begin(socket)
        process = threading.Thread(target=publish, args=(publisher,))
        process.start()
        read = []

        async def reader() -> None:
            while True:
                topic = await socket.recv()
                subscription.take_topic(topic)
                read.append(topic)
                if len(read) % 16 == 0:
                    await asyncio.sleep(0)

        task = asyncio.create_task(reader())
        process.join()  # the reader reads nothing meanwhile
        if listens_again:
            again = theirs.socket(zmq.XPUB)
            while True:  # a thread of ZeroMQ's own frees the address; the reader still waits
                with contextlib.suppress(zmq.ZMQError):
                    again.bind(f"tcp://127.0.0.1:{port}")
                    break
                time.sleep(0.001)
        await subscription.drain()
        assert len(read) == SENT
        task.cancel()
        socket.close(linger=0)
        if listens_again:
            again.close(linger=0)


async def test_a_confirmation_that_does_not_come_is_asked_for_again() -> None:
    """As of ipykernel, which overlooks a subscription that arrives while it publishes."""
    with zmq.asyncio.Context() as context:
        publisher: Any = context.socket(zmq.XPUB)
        port = publisher.bind_to_random_port("tcp://127.0.0.1")
        socket: Any = context.socket(zmq.SUB)
        socket.subscribe(b"")
        socket.connect(f"tcp://127.0.0.1:{port}")
        subscription = OutputSubscription(Timings(confirmation=60), lambda: True)
        subscription.begin(socket)
        probes: list[bytes] = []

        async def kernel() -> None:
            while True:
                message = await publisher.recv()
                if message[:1] == b"\x01" and message[1:]:
                    probes.append(message[1:])
                    if len(probes) > 2:
                        subscription.welcomed(probes[-1].decode())

        task = asyncio.create_task(kernel())
        await subscription.wait_confirmed()
        assert len(set(probes)) >= 3
        assert not subscription.is_pending
        task.cancel()
        for one in (socket, publisher):
            one.close(linger=0)
