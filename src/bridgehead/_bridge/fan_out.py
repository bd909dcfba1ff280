"""One payload for many kernels: in shared memory once, and one copy for the engines of a client.

Rule: how the frames of one pickled object reach several kernels. What is pushed, and what each
kernel returns, belongs to ``fleet``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from bridgehead._bridge.bridge import Bridge
from bridgehead._lanes.broadcast import WORTH, Broadcast, Delivery
from bridgehead._lanes.buffers import BuffersLane
from bridgehead._lanes.direct import copy_to_segment
from bridgehead._protocol.payload import Payload
from bridgehead._shipped.wire import frames as _frames
from bridgehead._shipped.wire.segments import IDLE, SHARED_BELOW, Pool, Segment
from bridgehead._transports.base import Broadcaster, Transport
from bridgehead._transports.tasks import in_thread

Share = Callable[[Bridge], tuple[Payload, Delivery | None]]


class FanOut:
    """The memory of a fleet, and of its slices, from which kernels on the direct lane read."""

    def __init__(self, pool: float) -> None:
        """``pool`` is the share of the free memory that may be used."""
        self.pool = Pool(pool, private=True)
        self._trimming: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def sharing(self, payload: Payload, bridges: Sequence[Bridge]) -> AsyncIterator[Share]:
        """Give a function that returns a bridge's payload, and the broadcast that brings it."""
        segment = await self._copied_to_segment(payload, bridges)
        broadcasts: list[Broadcast] = []
        sending: list[asyncio.Task[None]] = []
        try:
            broadcasts += await _broadcasts(payload, bridges)
            deliveries = {lane: one for cast in broadcasts for lane, one in cast.deliveries.items()}
            sending += [asyncio.create_task(cast.send()) for cast in broadcasts]

            def share(bridge: Bridge) -> tuple[Payload, Delivery | None]:
                delivery = deliveries.get(bridge._connection.remote.lane)
                if delivery is None:
                    return replace(payload, segment=segment), None
                return replace(payload, digest=delivery.header["digest"]), delivery

            yield share
        finally:
            for task in sending:
                task.cancel()
            for cast in broadcasts:
                cast.close()
            if segment is not None:
                self.pool.give_back(segment)
                self._trim_later()

    def close(self) -> None:
        if self._trimming is not None:
            self._trimming.cancel()
        self.pool.close()

    async def _copied_to_segment(
        self, payload: Payload, bridges: Sequence[Bridge]
    ) -> Segment | None:
        """Copy a payload to a segment for the kernels on the direct lane.

        Return None if no kernel is on that lane, or there is no memory. A small payload is copied
        for each kernel instead, to a part of that kernel's own slab.
        """
        lanes = [bridge.info.lane for bridge in bridges]
        if payload.nbytes < SHARED_BELOW or "direct" not in lanes:
            return None
        return await copy_to_segment(self.pool, payload.frames, lambda done, total: None)

    def _trim_later(self) -> None:
        if self._trimming is not None:
            self._trimming.cancel()
        loop = asyncio.get_running_loop()
        self._trimming = loop.call_later(IDLE + Transport.timings.memory_every, self._trim)

    def _trim(self) -> None:
        self._trimming = None
        self.pool.trim()
        if self.pool.slabs:
            self._trim_later()


async def _broadcasts(payload: Payload, bridges: Sequence[Bridge]) -> list[Broadcast]:
    """Make a broadcast for each client that reaches several of the kernels by one message."""
    groups: dict[Broadcaster, list[Bridge]] = {}
    for bridge in bridges:
        broadcaster = bridge._transport.broadcaster
        lane = bridge._connection.remote.lane
        if (
            broadcaster is not None
            and lane.name == BuffersLane.name
            and not lane.transport.life.is_lost
        ):
            groups.setdefault(broadcaster, []).append(bridge)
    found = []
    for members in groups.values():
        if len(members) < 2 or payload.nbytes < WORTH:
            continue
        # Two bridges may lead to one engine, which needs the frames once.
        lane_of = {bridge.info.epoch: bridge._connection.remote.lane for bridge in members}
        used = {lane.digest for lane in lane_of.values()}
        algorithm = next(one for one in ("sha256", "crc32", "sums") if one in used)
        digest = await in_thread(_frames.digest, algorithm, payload.frames)
        lanes = {lane: epoch for epoch, lane in lane_of.items()}
        found.append(Broadcast(lanes, payload.frames, digest))
    return found
