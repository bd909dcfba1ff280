"""Maps: a function that is called with one item after the other.

Rule: use the standard library only, and run on Python 3.8 and later. A request brings the items of
one chunk, and its response has an outcome for each: a value, or the error that the item raised.
Which kernel gets which items is decided by the client.
"""

from __future__ import annotations

from time import monotonic
from typing import Any, Sequence

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.remote.iteration import SCALARS, Pickled, grouped
    from bridgehead._shipped.remote.kernel import Kernel
    from bridgehead._shipped.remote.namespace import error_response
    from bridgehead._shipped.remote.operations import Operations
    from bridgehead._shipped.remote.tasks import TaskTable
    from bridgehead._shipped.wire.digest import Buffer
    from bridgehead._shipped.wire.errors import WireError
    from bridgehead._shipped.wire.frames import snapshot
    from bridgehead._shipped.wire.functions import with_globals
    from bridgehead._shipped.wire.header import (
        FailedItem,
        HeaderAndFrames,
        RequestHeader,
        ResponseHeader,
    )


class MapChunk:
    """The items of one request, and the outcomes of those that are done."""

    def __init__(self, maps: Maps, header: RequestHeader, function: Any, items: list[Any]) -> None:
        self.maps, self.header, self.function, self.items = maps, header, function, items
        self.values: list[Any] = []
        self.failures: list[FailedItem] = []
        self.frames: list[memoryview] = []  # of the failures
        self.began = monotonic()

    def run(self) -> None:
        for args in self.items:
            try:
                self._add(self.function(*args))
            except BaseException as error:
                if not self._fail(error):
                    return

    async def run_async(self) -> HeaderAndFrames:
        for args in self.items:
            try:
                self._add(await self.function(*args))
            except BaseException as error:
                if not self._fail(error):
                    break
        return self.response()

    def _add(self, value: Any) -> None:
        # Pickled now: the function may return the same object again, with another content.
        scalar = type(value) in SCALARS
        self.values.append(value if scalar else Pickled(snapshot(self._encode((value,)))))

    def _fail(self, error: BaseException) -> bool:
        """Note what an item raised; return whether the next one is begun."""
        # An interrupt may come between any two lines, so what is there is counted, and nothing
        # else. It can be behind the last item.
        at = len(self.values) + len(self.failures)
        if at == len(self.items):
            return False
        response, frames = error_response(error)
        failure: FailedItem = {"at": at, "error": response["error"], "parts": len(frames)}
        self.failures.append(failure)
        self.frames += snapshot(frames)
        return bool(self.header.get("goes_on")) and isinstance(error, Exception)

    def _encode(self, values: tuple[Any, ...]) -> list[memoryview]:
        paths = ["the result"] * len(values)
        return self.maps.operations.values.encode(self.header, values, paths, True)[0]

    def response(self) -> HeaderAndFrames:
        groups, frames = grouped(self.values, self._encode)
        response: ResponseHeader = {
            "groups": groups,
            "failures": self.failures,
            "seconds": monotonic() - self.began,
        }
        return response, frames + self.frames


class Maps:
    """The maps of one namespace."""

    def __init__(self, kernel: Kernel, operations: Operations, tasks: TaskTable) -> None:
        self.kernel, self.operations, self.tasks = kernel, operations, tasks

    def map(self, header: RequestHeader, frames: Sequence[Buffer]) -> HeaderAndFrames:
        """Call the function that an expression gives with each of the items."""
        function = self.operations.values.evaluate(header["expressions"][0])
        if header.get("namespace"):
            function = with_globals(function, self.kernel.namespace)
        payload = self.operations.decode(header, frames, tuple)
        if len(payload) != 1 or type(payload[0]) is not list:
            raise WireError("protocol", "the payload is not a list of items")
        chunk = MapChunk(self, header, function, payload[0])
        if header.get("resource"):
            return self.tasks.start_with(header, chunk.run_async(), lambda made: made)
        self.kernel.run_interruptibly(header["id"], chunk.run)
        return chunk.response()
