"""A handoff: objects of one kernel, bound in another kernel.

Rule: two requests, a fetch from the source and a bind in the target, that are one operation for
the caller. The source pickles all names at once, so what they share stays shared. This process
does not unpickle the payload.

Laws:
- A handoff takes its turn in both queues when it is called, in the source's queue first. In the
  target's queue it stays in front of later requests until the source has replied.
- Handoffs in a ring (a to b, b to c, c to a) cannot deadlock: a handoff takes both turns in one
  step, so it waits only for operations that were called before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, TypeVar

from bridgehead._connection.call import Call, Deadline, check_seconds
from bridgehead._connection.connection import Connection
from bridgehead._connection.queue import Turn
from bridgehead._errors import (
    BridgeError,
    IncompatiblePython,
    KernelRestarted,
    MissingInKernel,
)
from bridgehead._lanes.forwarding import FORWARDING_POOL
from bridgehead._protocol.payload import Payload
from bridgehead._protocol.response import Response
from bridgehead._protocol.results import Transfer

T = TypeVar("T")


class Handoff:
    """One handoff, from its call to its end."""

    def __init__(
        self,
        source: Connection,
        target: Connection,
        names: Sequence[str],
        *,
        timeout: float | None,
        limit: int | None,
        data: bool,
        report: Callable[[int, int], object],
    ) -> None:
        """Prepare it; with ``data``, the source sends and the target opens nothing but data.

        ``report`` is called with bytes done and bytes in all; half count when they come from the
        source, and half when they go to the target.
        """
        check_seconds(timeout)
        self.source, self.target, self.names = source, target, list(names)
        self.timeout, self.limit, self.data, self.report = timeout, limit, data, report
        self.started = time.perf_counter()

    async def run(self) -> Transfer:
        """Fetch from the source, bind in the target."""
        with _naming("target", self.target):
            self.target.check()
        with Turn(self.source.queue) as source_turn, Turn(self.target.queue) as target_turn:
            if not self.target.remote.is_ready:
                # Before the fetch: without a target, nothing has to be read. If the source is
                # restarted meanwhile, its turn fails.
                with _naming("source", self.source):
                    await source_turn.prepare(self._prepare(target_turn, self._reach()))
            fetched = await self._prepare(target_turn, self._fetch(source_turn))
            return await self._bind(target_turn, fetched)

    async def _prepare(self, target_turn: Turn, work: Coroutine[Any, Any, T]) -> T:
        """Await what comes before the bind; fail at once if the target is lost meanwhile."""
        with _naming("target", self.target):
            return await target_turn.prepare(work)

    async def _reach(self) -> None:
        """Check that the target replies; install its remote part if it is missing."""
        async with self._deadline(self.target):
            await self.target.remote.ready()

    async def _fetch(self, turn: Turn) -> Response:
        """Have the source pickle the values of the names."""
        info = self.target.remote.info
        fields = {
            "expressions": self.names,
            "names": self.names,
            "reader": list(info.python[:2]),
            "trust": "data" if self.data else None,
        }

        def report(done: int, total: int) -> None:
            self.report(done // 2, total)

        unread = self._passes_segment
        call = Call("fetch", fields=fields, limit=self.limit, report=report, unread=unread)
        call.method = "handoff"
        with _naming("source", self.source):
            try:
                async with self._deadline(self.source, call):
                    fetched = await self.source.do(call, turn)
            except IncompatiblePython:
                raise _incompatible(self.source, self.target) from None
        report(fetched.arrived, fetched.arrived)  # shared memory came in one piece
        return fetched

    async def _bind(self, turn: Turn, fetched: Response) -> Transfer:
        """Have the target bind what the source sent: all names, or none."""
        python, code = self.source.remote.info.python[:2], fetched.header.get("code") is True
        segment = FORWARDING_POOL.pass_on(fetched.frames) if self._passes_segment else None
        payload = Payload(fetched.frames, code, python=python, digest="none:", segment=segment)

        def report(done: int, total: int) -> None:
            self.report((total + done) // 2, total)

        fields = {"names": self.names, "opens": "data" if self.data else None}
        call = Call("bind", payload=payload, fields=fields, report=report)
        call.method = "handoff"
        with _naming("target", self.target):
            try:
                async with self._deadline(self.target, call):
                    response = await self.target.do(call, turn)
            except IncompatiblePython:
                raise _incompatible(self.source, self.target) from None
            except MissingInKernel as error:
                raise MissingInKernel(
                    f"the target kernel ({self.target.remote.info.executable}) cannot import "
                    f"{error.module!r}, which it needs to unpickle the payload; install it there",
                    module=error.module,
                ) from None
            finally:
                if segment is not None:
                    FORWARDING_POOL.give_back(segment)
        sent = response.request.nbytes
        self.report(sent, sent)
        seconds = time.perf_counter() - self.started
        lanes = ", ".join(dict.fromkeys((fetched.lane, response.lane)))
        return Transfer(tuple(self.names), sent, seconds, lanes)

    @property
    def _passes_segment(self) -> bool:
        """Whether the target may map the source's own segment, if it is on the direct lane.

        The target can write to that memory from then on, and this process will read from it what
        the source sends next. So a kernel that is not trusted gets a copy.
        """
        return self.target.remote.info.lane == "direct" and not (
            self.data or self.target.trust.data
        )

    def _deadline(
        self, connection: Connection, call: Call | None = None
    ) -> AbstractAsyncContextManager[None]:
        left = self.timeout
        if left is not None:
            left = max(0.0, left - (time.perf_counter() - self.started))
        return Deadline(left, "handoff", connection.transport, call, asked=self.timeout)


@contextmanager
def _naming(which: str, connection: Connection) -> Iterator[None]:
    """Add a note to an error that says which of the two kernels it is about."""
    try:
        yield
    except (BridgeError, TimeoutError) as error:
        if not getattr(error, "__notes__", None):  # else it is about the other kernel
            if isinstance(error, KernelRestarted):
                connection.remote.restart_reported()
            unchanged = "; nothing was bound in the target" if which == "source" else ""
            error.add_note(f"the {which} of a handoff, pid {connection.remote.info.pid}{unchanged}")
        raise


def _incompatible(source: Connection, target: Connection) -> IncompatiblePython:
    versions = (".".join(map(str, end.remote.info.python[:2])) for end in (source, target))
    source_python, target_python = versions
    return IncompatiblePython(
        f"the payload carries code of Python {source_python}, and the target runs Python "
        f"{target_python}; between different Python versions only data can cross"
    )
