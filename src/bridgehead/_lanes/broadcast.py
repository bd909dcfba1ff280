"""Frames to many kernels at once: one copy leaves, each kernel has them before it is asked.

Rule: it carries what a push brings, and nothing takes effect by it. Each kernel then gets a
request of its own, in its own turn, which brings nothing more; so the order of its operations,
its errors and its death are its own. One that did not get all of it gets it as it always would.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from bridgehead._errors import BridgeError
from bridgehead._lanes.base import AT_ONCE, Lane
from bridgehead._lanes.buffers import BuffersLane
from bridgehead._protocol import bootstrap as _shipping
from bridgehead._protocol import request as _request
from bridgehead._protocol.raising import raise_error
from bridgehead._shipped.wire.frames import cut
from bridgehead._shipped.wire.header import Header

WORTH = 1 << 18  # bytes; of less, a second round trip costs more than the copies


class Delivery:
    """What one kernel has of it.

    Attributes:
        header: its id is that under which the loader keeps it.
        epoch: the loader's.
        used: whether a request took it.
    """

    def __init__(self, lane: Lane, header: Header, epoch: str) -> None:
        self.lane: Lane = lane
        self.header: Header = header
        self.epoch: str = epoch
        self.used: bool = False
        self.chunks: list[asyncio.Future[Header]] = []
        self._sent: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def whole(self) -> bool:
        """Whether all of it is there, once that is known."""
        if not await asyncio.shield(self._sent):
            return False
        for told in self.chunks:
            try:
                raise_error(await asyncio.shield(told), ())
            except BridgeError:
                return False
        self.used = True
        return True

    def sent(self, whole: bool) -> None:
        if not self._sent.done():
            self._sent.set_result(whole)

    def give_up(self) -> None:
        """Have the loader drop what nobody took."""
        self.sent(False)
        if self.chunks and not self.used:
            self.lane.transport.spawn(self._dropped())

    async def _dropped(self) -> None:
        await asyncio.wait(self.chunks)  # they go another way, and must not come after this
        self.lane.forget({**self.header, "epoch": self.epoch})


class Broadcast:
    """One parcel on its way to the kernels behind ``lanes``, by what reaches them together."""

    def __init__(
        self, lanes: Mapping[Lane, str], frames: Sequence[memoryview], digest: str
    ) -> None:
        """``lanes``: each with the epoch of the loader behind it."""
        self._frames, self._lanes = frames, list(lanes)
        self._header = _request.header(
            "chunk",
            frames,
            epoch=" ".join(lanes.values()),
            algorithm="",
            digest=digest,
        )
        self.landings = {lane: Delivery(lane, self._header, lanes[lane]) for lane in lanes}

    async def send(self) -> None:
        """Send all of it. A piece goes out when the quickest kernel has one of those before.

        What a busy one has not taken waits in the schedulers: its memory is theirs.
        """
        broadcaster = self._lanes[0].transport.broadcaster
        assert broadcaster is not None
        engines = [lane.transport for lane in self._lanes]
        total, chunk = sum(self._header["sizes"]), BuffersLane.chunk
        under_way: list[list[asyncio.Future[Header]]] = []
        whole = False
        try:
            for at in range(0, total, chunk):
                if len(under_way) >= AT_ONCE:
                    await asyncio.wait(under_way.pop(0), return_when=asyncio.FIRST_COMPLETED)
                header = self._lanes[0].part(self._header, at)
                expression = _shipping.expression(BuffersLane.name, header)
                parts = list(cut(self._frames, at, at + chunk))
                told = broadcaster.broadcast(engines, expression, parts)
                for lane, future in zip(self._lanes, told, strict=True):
                    self.landings[lane].chunks.append(future)
                under_way.append(told)
            whole = True
        except BridgeError:
            pass  # an engine has just gone, or the client: each is told on its own way
        finally:
            for delivery in self.landings.values():
                delivery.sent(whole)

    def close(self) -> None:
        """What was not used is not wanted any more."""
        for delivery in self.landings.values():
            delivery.give_up()
