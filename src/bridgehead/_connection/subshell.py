"""A subshell of the kernel, for what is asked in the middle of a running cell.

Rule: one at most for each bridge, made when it is first needed and deleted when the bridge
closes. ipykernel 7 serves it in a thread of its own; 6 never answers such a request, so it
is only asked where the kernel says that it knows subshells. A kernel is never asked to delete
one that is busy: it would wait for it, and answer nobody meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
from typing import Any

from bridgehead._errors import BridgeError, NotSupported, ProtocolError
from bridgehead._protocol.raising import as_strings
from bridgehead._transports.base import Transport

UNKNOWN = "UnknownSubshellError"  # what the kernel answers when somebody deleted it
SUBSHELL_WAIT = 2.0  # s for the kernel's control thread to make or delete one
LAST_LOOKS = 50  # 10 ms apart: whether it answered what was given up just before the close


class Subshell:
    """The bridge's own subshell."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._id: str | None = None
        self._generation = -1
        self._making: asyncio.Task[None] | None = None

    async def ready(self) -> dict[str, Any]:
        """Its id and whose it is, as the loader notes it.

        Raises:
            NotSupported: this kernel has no subshells.
        """
        transport = self._transport
        features = as_strings(transport.kernel_info.get("supported_features"))
        if "kernel subshells" not in features:
            raise NotSupported(
                "now=True needs a kernel with subshells, ipykernel 7 or later; without it the "
                "call waits for the cell that runs"
            )
        while self._id is None or self._generation != transport.life.generation:
            if self._making is None or self._making.done():
                self._making = transport.spawn(self._make())
            try:
                # Whoever gives up waiting must not leave one over there that nobody knows of.
                await asyncio.shield(self._making)
            except asyncio.CancelledError:
                transport.life.check()  # closed meanwhile
                raise
        return {"id": self._id, "host": platform.node(), "pid": os.getpid()}

    async def _make(self) -> None:
        generation = self._transport.life.generation
        told = await self._transport.dispatcher.control("create_subshell_request", {})
        if not isinstance(told.get("subshell_id"), str):
            raise ProtocolError("the kernel made no subshell")
        self._id, self._generation = told["subshell_id"], generation

    def forget(self, identity: str) -> None:
        """Somebody deleted it: it is made again when it is needed next, by now it may have been."""
        if self._id == identity:
            self._id = None

    async def delete(self, identity: str) -> None:
        """Have the kernel delete a subshell that is idle, ours or one that was left behind."""
        with contextlib.suppress(BridgeError, TimeoutError):
            await self._transport.dispatcher.control(
                "delete_subshell_request", {"subshell_id": identity}, SUBSHELL_WAIT
            )

    async def aclose(self) -> None:
        """Leave none behind; a busy one is left to the next bridge, which is told of it."""
        if self._making is not None:
            await asyncio.wait([self._making], timeout=SUBSHELL_WAIT)
        identity, self._id = self._id, None
        if identity is None or self._generation != self._transport.life.generation:
            return
        for _ in range(LAST_LOOKS):
            if not self._transport.dispatcher.serves(identity):
                await self.delete(identity)
                return
            await asyncio.sleep(0.01)
