"""Frames to many kernels at once, with one message for all.

Rule: a broadcast carries the frames of a push, and nothing takes effect by it. Each kernel then
gets a request of its own, in its turn, without frames; so the order of its operations, its
errors and its death concern no other kernel. A kernel that did not receive all frames gets them
with its own request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from bridgehead._errors import BridgeError
from bridgehead._lanes.base import CHUNKS_IN_FLIGHT, Lane
from bridgehead._lanes.buffers import BuffersLane
from bridgehead._protocol import request as _request
from bridgehead._protocol.bootstrap import expression
from bridgehead._protocol.payload import Payload
from bridgehead._protocol.raising import raise_error
from bridgehead._shipped.wire.frames import cut
from bridgehead._shipped.wire.header import RequestHeader, ResponseHeader

WORTH = 1 << 18  # bytes; for fewer, the second round trip costs more than the copies


class Delivery:
    """The part of a broadcast that goes to one kernel.

    Attributes:
        header: the broadcast's; the remote part keeps the frames under its id.
        epoch: the remote part's.
        used: whether a request takes the frames.
    """

    def __init__(self, lane: Lane, header: RequestHeader, epoch: str) -> None:
        self.lane: Lane = lane
        self.header: RequestHeader = header
        self.epoch: str = epoch
        self.used: bool = False
        self.chunks: list[asyncio.Future[ResponseHeader]] = []
        self._sent: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def is_in(self, epoch: str) -> bool:
        """Return whether it is known to be complete in the kernel with this remote part."""
        return self.used and self.epoch == epoch

    async def wait_complete(self) -> bool:
        """Wait until it is known whether all frames are in the kernel, and return that."""
        if not await asyncio.shield(self._sent):
            return False
        for reply in self.chunks:
            try:
                raise_error(await asyncio.shield(reply), ())
            except BridgeError:
                return False
        self.used = True
        return True

    def set_sent(self, complete: bool) -> None:
        """Note that no more chunks will be sent, and whether all of them were."""
        if not self._sent.done():
            self._sent.set_result(complete)

    def discard_unused(self) -> None:
        """Have the remote part drop the frames if no request took them."""
        self.set_sent(False)
        if self.chunks and not self.used:
            self.lane.transport.spawn(self._discard())

    async def _discard(self) -> None:
        # The chunks go by another connection than this message, and must arrive before it.
        await asyncio.wait(self.chunks)
        self.lane.forget({**self.header, "epoch": self.epoch})


class Broadcast:
    """One payload on its way to several kernels, over a broadcaster that reaches them all."""

    def __init__(
        self, lanes: Mapping[Lane, str], frames: Sequence[memoryview], digest: str
    ) -> None:
        """Prepare it for the kernels of ``lanes``, each with the epoch of its remote part."""
        self._frames, self._lanes = frames, list(lanes)
        payload = Payload(frames, digest=digest)
        self._header = _request.header("chunk", payload, epoch=" ".join(lanes.values()))
        self.deliveries = {lane: Delivery(lane, self._header, lanes[lane]) for lane in lanes}

    async def send(self) -> None:
        """Send all chunks. Each is sent when the fastest kernel has replied to an earlier one.

        The schedulers buffer data for busy engines, in their own memory.
        """
        broadcaster = self._lanes[0].transport.broadcaster
        assert broadcaster is not None
        engines = [lane.transport for lane in self._lanes]
        total, chunk = sum(self._header["sizes"]), BuffersLane.chunk
        in_flight: list[list[asyncio.Future[ResponseHeader]]] = []
        complete = False
        try:
            for at in range(0, total, chunk):
                if len(in_flight) >= CHUNKS_IN_FLIGHT:
                    await asyncio.wait(in_flight.pop(0), return_when=asyncio.FIRST_COMPLETED)
                header = self._lanes[0].message_header(self._header, at)
                text = expression(BuffersLane.name, header)
                parts = list(cut(self._frames, at, at + chunk))
                replies = broadcaster.broadcast(engines, text, parts)
                for lane, reply in zip(self._lanes, replies, strict=True):
                    self.deliveries[lane].chunks.append(reply)
                in_flight.append(replies)
            complete = True
        except BridgeError:
            pass  # an engine or the client was lost; each kernel's own request reports it
        finally:
            for delivery in self.deliveries.values():
                delivery.set_sent(complete)

    def close(self) -> None:
        """Have each kernel drop the frames that no request took."""
        for delivery in self.deliveries.values():
            delivery.discard_unused()
