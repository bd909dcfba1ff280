"""Interrupts on their way to the kernel: of what it runs, or of one cell.

Rule: which way an interrupt takes, and when it is sent again. The kernel's end for one cell is
``_shipped/remote/cell_guard.py``: it compares the cell that runs with the one that is meant, and
sends the signal, in one step. Where nothing answers beside a cell, the transport interrupts
whatever runs, and this file can only look at the messages that have arrived.
"""

from __future__ import annotations

import asyncio
import contextlib

from bridgehead._connection.installation import Installation
from bridgehead._errors import BridgeError
from bridgehead._protocol.response import check_fields
from bridgehead._transports.base import Transport


class Interrupts:
    """The ways by which one kernel is interrupted."""

    def __init__(self, transport: Transport, remote: Installation) -> None:
        self._transport, self._remote = transport, remote

    async def to_kernel(self) -> None:
        """Interrupt whatever the kernel runs, even a cell that awaits."""
        await self._transport.interrupt()
        self._transport.spawn(self._wake())

    async def _wake(self) -> None:
        """Have the kernel's event loop turn; no caller waits for that.

        An interrupt takes effect at once in a cell that computes or sleeps, but in a cell that
        awaits only when the loop turns: 5.8 s later in ``await asyncio.sleep(6)`` (measured). A
        request on shell is the last resort: ipykernel ends if another interrupt comes while it
        begins or ends such a request.
        """
        with contextlib.suppress(BridgeError):
            remote = self._remote
            if not remote.is_current or await remote.request_beside("wake") is None:
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
        if not (self._remote.is_current and self._remote.greeting.guards_cells):
            return None
        response = await self._remote.request_beside("interrupt_cell", cell=cell)
        if response is None:
            return None
        check_fields(response.header, "interrupt_cell", "delivered")
        return response.header["delivered"]
