"""A chunk of a map: a request that has one kernel call a function with several items.

Rule: how the items of one chunk cross, and how their outcomes come back. Which kernel gets which
items, and what is tried again, is decided in ``_bridge.fleet_map``. The kernel's end is
``_shipped/remote/mapping.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bridgehead._connection.call import Call
from bridgehead._connection.connection import Connection
from bridgehead._connection.queue import Turn
from bridgehead._connection.tasks import coroutine_response
from bridgehead._errors import BridgeError, KernelRestarted, ProtocolError
from bridgehead._protocol import payload as _payload
from bridgehead._protocol.raising import raise_error
from bridgehead._protocol.response import Response, check_fields, check_groups


class Failed:
    """In place of an item's value: why it has none."""

    __slots__ = ("_remote", "error")

    def __init__(self, error: Exception, connection: Connection | None = None) -> None:
        """Take the error; with one that reports a restart, the connection of that kernel."""
        self.error = error
        self._remote = None if connection is None else connection.remote

    def reported(self) -> Exception:
        """Return the error, which a caller gets now."""
        if self._remote is not None and isinstance(self.error, KernelRestarted):
            self._remote.restart_reported()
        return self.error


class MapRequest:
    """One chunk on its way to one kernel, and back.

    Attributes:
        call: shows whether it was sent.
        nbytes: of its arguments and its results, when it is done.
    """

    def __init__(
        self,
        connection: Connection,
        function: str,
        items: list[tuple[Any, ...]],
        index: int,
        *,
        is_async: bool,
        goes_on: bool,
        namespace: bool,
        stand_ins: Mapping[type, Callable[[Any], Any]],
    ) -> None:
        """Take an expression of the function, and the arguments of each item.

        ``index`` is that of the first item, for the error message of one that cannot be pickled.

        With ``goes_on`` an item that raises does not keep the next one from being begun.
        """
        self._connection, self._count, self._is_async = connection, len(items), is_async
        self.nbytes: int = 0
        parts = {"the items": items} if len(items) != 1 else {f"the item {index}": items[0]}
        source = _payload.PayloadSource((items,), parts, refs=stand_ins)
        fields = {
            "expressions": [function],
            "goes_on": goes_on or None,
            "namespace": namespace or None,
            **connection.trust.fields(),
        }
        self.call = Call("map", source, fields=fields)
        self.call.interrupts = not is_async
        self.call.is_unattended = self.call.any_process = True  # see ``Failed.reported``

    @property
    def is_next(self) -> bool:
        """Whether it is pickled for a kernel that has nothing else to do first."""
        first = next(iter(self._connection.queue.turns), None)
        return self.call.turn is first and self._connection.remote.is_current

    def withdraw(self) -> bool:
        """Have it never sent, unless it was; ``outcomes`` is cancelled if this is true.

        One that is next stays: it would be pickled again for the other kernel, and a third one
        without work would take it from that, and so on.
        """
        if self.call.turn is None or self.is_next or not self.call.turn.withdraw():
            return False
        self.call.interrupts = False  # there is nothing to interrupt
        return True

    async def outcomes(self) -> tuple[list[Any], float]:
        """Return the value of each item, or a ``Failed``, and the seconds that they took.

        There are fewer than items if one of them ended the chunk.

        Cancelling interrupts it in the kernel, or has it never begin.
        """
        connection = self._connection
        with Turn(connection.queue) as turn:
            if self._is_async:
                response = await coroutine_response(connection, self.call, turn)
            else:
                response = await connection.do(self.call, turn)
        self.nbytes = self.call.nbytes + sum(frame.nbytes for frame in response.frames)
        return await self._decoded(response), response.header["seconds"]

    async def _decoded(self, response: Response) -> list[Any]:
        header, frames = response.header, response.frames
        check_fields(header, "map", "failures", "seconds")
        check_groups(header, "map", len(frames))
        failures, seconds = header["failures"], header["seconds"]
        if not 0 <= seconds < math.inf:  # JSON may have NaN, too
            raise ProtocolError(f"the response has an invalid duration: {seconds!r}")
        values: list[Any] = []
        at = 0
        for count, parts in header["groups"]:
            if count > self._count - len(values):
                raise ProtocolError(f"the response has an invalid count of results: {count}")
            values += await self._opened(frames[at : at + parts], count)
            at += parts
        if not 0 < len(values) + len(failures) <= self._count:
            raise ProtocolError(
                f"the kernel sent {len(values)} results and {len(failures)} errors for "
                f"{self._count} items"
            )
        for failure in failures:
            is_there = 0 <= failure["at"] <= len(values)
            if not is_there or not 0 <= failure["parts"] <= len(frames) - at:
                raise ProtocolError(f"the response has an error at an invalid place: {failure!r}")
            error = self._error(failure["error"], frames[at : at + failure["parts"]])
            at += failure["parts"]
            values.insert(failure["at"], Failed(error))
        if len(values) < self._count and (not failures or failures[-1]["at"] != len(values) - 1):
            raise ProtocolError(
                f"the kernel sent {len(values)} results for {self._count} items, and no error"
            )
        return values

    async def _opened(self, frames: list[memoryview], count: int) -> Sequence[Any]:
        try:
            return await self._connection.trust.open_values(frames, ["a result"] * count)
        except ProtocolError:
            raise
        except BridgeError as error:
            return [Failed(error)] * count

    def _error(self, description: Any, frames: list[memoryview]) -> Exception:
        trusted = not self._connection.trust.data
        try:
            raise_error({"error": description}, frames, trusted=trusted)
        except BridgeError as error:
            return error
        raise ProtocolError("the kernel sent an error without a description")
