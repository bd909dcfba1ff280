"""Signs of life on the kernel's own ZeroMQ sockets.

Rule: the readers of the transport. The test itself plays the kernel on their sockets.
"""

from __future__ import annotations

import asyncio

import pytest
import zmq
import zmq.asyncio

from bridgehead import KernelUnresponsive
from bridgehead._transports.zmq import ZmqTransport

PORTS = dict.fromkeys(("shell_port", "control_port", "iopub_port", "hb_port", "stdin_port"), 1)


async def test_what_a_kernel_published_before_its_end_can_be_read_after_it() -> None:
    """Its last outputs may wait behind a busy event loop when its connection ends."""
    context = zmq.asyncio.Context()
    kernel = context.socket(zmq.XPUB)
    kernel.sndhwm = 0
    ports = {**PORTS, "iopub_port": kernel.bind_to_random_port("tcp://127.0.0.1")}
    transport = ZmqTransport({"transport": "tcp", "ip": "127.0.0.1", "key": "k", **ports})
    transport._connect()
    assert transport._iopub is not None
    assert transport._iopub._reader is not None
    transport._iopub._reader.close()  # the test reads
    iopub = transport._iopub._socket
    try:
        async with asyncio.timeout(60):
            await kernel.recv()  # it has subscribed
            monitor = iopub.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            for number in range(1000):
                await kernel.send_multipart([b"kernel", b"%d" % number])
            kernel.close(linger=60_000)
            await monitor.recv_multipart()
            monitor.close()
            for number in range(1000):
                topic, read = await iopub.recv_multipart()
                assert (topic, int(read)) == (b"kernel", number)
    finally:
        context.destroy(linger=0)
        await transport.aclose()


@pytest.mark.timings(beat_every=0.05, silence=0.2)
async def test_the_answer_to_an_earlier_beat_is_a_sign_of_life() -> None:
    """A kernel that was stopped answers the beats that it missed, one after the other.

    The socket is readable then, but holds no message: the bridge goes on listening.
    """
    transport = ZmqTransport({"transport": "tcp", "ip": "127.0.0.1", "key": "k", **PORTS})
    context = zmq.asyncio.Context()
    kernel, heart = context.socket(zmq.ROUTER), context.socket(zmq.REQ)
    heart.set(zmq.REQ_RELAXED, 1)
    heart.set(zmq.REQ_CORRELATE, 1)
    heart.connect(f"tcp://127.0.0.1:{kernel.bind_to_random_port('tcp://127.0.0.1')}")
    listening = asyncio.create_task(transport._listen_to(heart))
    try:
        async with asyncio.timeout(20):
            await kernel.send_multipart(await kernel.recv_multipart())
            while not transport.has_pulse:
                await asyncio.sleep(0.005)
            pending = transport.life.waiter()
            missed = [await kernel.recv_multipart() for _ in range(2)]
            with pytest.raises(KernelUnresponsive):
                await pending
            assert transport.life.is_unresponsive
            await kernel.send_multipart(missed[0])
            while transport.life.is_unresponsive:
                await asyncio.sleep(0.005)
            assert not listening.done()
    finally:
        listening.cancel()
        await asyncio.wait([listening])
        context.destroy(linger=0)
        await transport.aclose()
