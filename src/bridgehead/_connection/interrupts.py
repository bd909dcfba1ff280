"""Interrupts on their way to the kernel: of what it runs, or of one cell.

Rule: which way an interrupt takes, and when it is sent again. The kernel's end for one cell is
``_shipped/remote/cell_guard.py``: it compares the cell that runs with the one that is meant, and
sends the signal, in one step. Where nothing answers beside a cell, the transport interrupts
whatever runs, and this file can only look at the messages that have arrived.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from bridgehead._connection.remote import Installation
from bridgehead._connection.subshell import Subshell
from bridgehead._errors import KernelRestarted, NotSupported
from bridgehead._lanes.base import Lane
from bridgehead._lanes.direct import DirectLane
from bridgehead._protocol import request as _request
from bridgehead._protocol.payload import empty
from bridgehead._protocol.request import Request
from bridgehead._protocol.response import SubshellDeleted, check_fields
from bridgehead._transports.base import Transport


class Interrupts:
    """The ways by which one kernel is interrupted."""

    def __init__(self, transport: Transport, remote: Installation, subshell: Subshell) -> None:
        self._transport, self._remote, self._subshell = transport, remote, subshell

    async def to_kernel(self) -> None:
        """Interrupt whatever the kernel runs, even a cell that awaits."""
        await self._transport.interrupt()
        await self._transport.dispatcher.wake()

    async def to_cell(self, cell: str) -> bool:
        """Interrupt the cell of this message if it runs; see ``Connection.interrupt_cell``."""
        while True:
            delivered = await self._ask(cell)
            if delivered is None and self._transport.dispatcher.runs(cell):
                await self.to_kernel()
                return True
            if delivered or not self._transport.dispatcher.runs(cell):
                return bool(delivered)
            await asyncio.sleep(self._transport.timings.interrupt_again)

    async def _ask(self, cell: str) -> bool | None:
        """Ask the remote part; return whether the cell ran, or None if no thread can answer."""
        if not (self._remote.is_current and self._remote.guards_cells):
            return None
        lane, messages = self._remote.lane, self._remote.lane
        if isinstance(lane, DirectLane):
            messages = lane.messages
            # A thread that is at work answers when it is done: a subshell is quicker.
            if not (lane.lost or (lane.client.at_work and self._subshell.is_supported)):
                # If the thread has ended, nothing was done, and a subshell may still answer.
                with contextlib.suppress(KernelRestarted):
                    return await self._request(lane, cell, now=True)
        if not self._subshell.is_supported:
            return None
        for is_last in (False, True):
            shell = await self._subshell.ready()
            try:
                return await self._request(messages, cell, subshell=shell)
            except SubshellDeleted as error:  # by another client; nothing was done
                if is_last:
                    raise NotSupported(f"the kernel deletes each subshell: {error}") from None
                self._subshell.forget(shell)
        raise AssertionError

    async def _request(self, lane: Lane, cell: str, **fields: Any) -> bool:
        epoch, fields = self._remote.info.epoch, {**lane.fields(), **fields}
        header = _request.header(
            "interrupt_cell", empty(lane.digest), epoch=epoch, cell=cell, **fields
        )
        response = await lane.complete(await lane.carry(Request(header)))
        check_fields(response.header, "interrupt_cell", "delivered")
        return response.header["delivered"]
