"""From kernel to kernel: what one gives the other takes, and nobody opens it in between.

Rule: two operations, a reading in the source and a binding in the target, that are one for who
asked. The pickle is one, so that what the names share stays shared, and it is not unpickled here.

A handoff takes its place in both queues when it is called, in the source's first, and is before
the target until the source has answered. Nobody waits in a ring: a reading that waits behind
another's binding was called after that one's reading.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from bridgehead._connection.calls import Answered, Call, Deadline, Packed, check_seconds
from bridgehead._connection.connection import Foothold
from bridgehead._connection.queue import Place
from bridgehead._errors import BridgeError, IncompatiblePython, MissingInKernel
from bridgehead._lanes.relay import RELAY
from bridgehead._protocol.payload import Parcel
from bridgehead._protocol.results import Transfer


class Handoff:
    """One handoff, from its call to its end."""

    def __init__(
        self,
        source: Foothold,
        target: Foothold,
        names: Sequence[str],
        *,
        timeout: float | None,
        limit: int | None,
        data: bool,
        report: Callable[[int, int], object],
    ) -> None:
        """``data`` has either kernel know nothing but data; ``report`` is told of bytes as they
        come and as they go, half for each.
        """
        check_seconds(timeout)
        self.source, self.target, self.names = source, target, list(names)
        self.timeout, self.limit, self.data, self.report = timeout, limit, data, report
        self.started = time.perf_counter()
        self._given: Answered | None = None

    async def both(self) -> Transfer:
        """The whole, where one event loop has both bridges."""
        with _told_of("target", self.target):
            self.target.check()
        with self.source.queue.place() as there, self.target.queue.place() as here:
            if not self.target.remote.is_ready:
                with _told_of("source", self.source):
                    await there.prepare(self._meanwhile(here, self.reach()))
            await self._meanwhile(here, self.give(there))
            return await self.take(here)

    async def _meanwhile(self, here: Place, work: Coroutine[Any, Any, None]) -> None:
        """What the target has to wait for; it may go before that is done."""
        with _told_of("target", self.target):
            await here.prepare(work)

    async def reach(self) -> None:
        """See whether there is somebody to take it, before anything is read."""
        with _told_of("target", self.target):
            async with self._deadline(self.target):
                await self.target.remote.ready()

    async def give(self, place: Place | None = None) -> None:
        """Have the source pickle what it has under the names."""
        info = self.target.remote.info
        fields = {
            "expressions": self.names,
            "names": self.names,
            "reader": list(info.python[:2]),
            "max_bytes": self.limit,
            "trust": "data" if self.data else None,
        }

        def report(done: int, total: int) -> None:
            self.report(done // 2, total)

        call = Call("fetch", None, report, fields, place=place, unread=self._goes_on)
        with _told_of("source", self.source):
            try:
                async with self._deadline(self.source, call):
                    self._given = await self.source.in_turn(call)
            except IncompatiblePython:
                raise _incompatible(self.source, self.target) from None

    async def take(self, place: Place | None = None) -> Transfer:
        """Have the target bind what the source gave: all names, or none."""
        given, self._given = self._given, None
        assert given is not None
        python, code = self.source.remote.info.python[:2], given.told.get("code") is True
        parcel = Parcel(given.frames, carries_code=code, refs=False, python=python)
        came_by = given.request.lane
        segment = RELAY.pass_on(parcel.frames) if self._goes_on else None

        def report(done: int, total: int) -> None:
            self.report((total + done) // 2, total)

        fields = {"names": self.names, "opens": "data" if self.data else None, "max_bytes": None}
        call = Call("bind", None, report, fields, Packed(parcel, "none:", segment), place)
        with _told_of("target", self.target):
            try:
                async with self._deadline(self.target, call):
                    request = (await self.target.in_turn(call)).request
            except IncompatiblePython:
                raise _incompatible(self.source, self.target) from None
            except MissingInKernel as error:
                raise MissingInKernel(
                    f"the kernel that was to take it ({self.target.remote.info.executable}) cannot "
                    f"import {error.module!r}, which it needs to open it; install it there",
                    module=error.module,
                ) from None
            finally:
                if segment is not None:
                    RELAY.give_back(segment)
        self.report(request.nbytes, request.nbytes)
        seconds = time.perf_counter() - self.started
        lanes = ", ".join(dict.fromkeys((came_by, request.lane)))
        return Transfer(tuple(self.names), request.nbytes, seconds, lanes)

    @property
    def _goes_on(self) -> bool:
        """Whether the target may have the source's own memory, where it is on the direct lane.

        It can write there for ever after, and this process reads there what the source sends
        next: so it is not for one that is not trusted.
        """
        untrusted = self.data or self.target.trust.data
        return self.target.remote.info.lane == "direct" and not untrusted

    def _deadline(self, foothold: Foothold, call: Call | None = None) -> Deadline:
        left = self.timeout
        if left is not None:
            left = max(0.0, left - (time.perf_counter() - self.started))
        return Deadline(left, "handoff", foothold.transport, call, asked=self.timeout)


@contextmanager
def _told_of(which: str, foothold: Foothold) -> Iterator[None]:
    """Say of an error which of the two kernels it is about."""
    try:
        yield
    except (BridgeError, TimeoutError) as error:
        if not getattr(error, "__notes__", None):
            unbound = "; the target is as it was" if which == "source" else ""
            error.add_note(f"the {which} of a handoff, pid {foothold.remote.info.pid}{unbound}")
        raise


def _incompatible(source: Foothold, target: Foothold) -> IncompatiblePython:
    here, there = (".".join(map(str, one.remote.info.python[:2])) for one in (source, target))
    return IncompatiblePython(
        f"what was to be handed over carries code of Python {here}, and the other kernel runs "
        f"{there}; only data crosses"
    )
