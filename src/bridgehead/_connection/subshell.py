"""A subshell of the kernel, for requests while a cell runs.

Rule: at most one for each bridge, made when it is first needed and deleted when the bridge
closes. ipykernel 7 serves it in a thread of its own. ipykernel 6 never replies to a request for
one, so the bridge asks only a kernel that reports subshells. It never asks a kernel to delete a
busy subshell: the kernel would wait for it, and serve no other request meanwhile.
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


class Subshell:
    """The bridge's own subshell."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._id: str | None = None
        self._generation = -1
        self._making: asyncio.Task[None] | None = None

    async def ready(self) -> dict[str, Any]:
        """Make the subshell if there is none; return its id and its owner, for the header.

        Raises:
            NotSupported: this kernel has no subshells.
        """
        transport = self._transport
        features = as_strings(transport.kernel_info.get("supported_features"))
        if "kernel subshells" not in features:
            raise NotSupported(
                "now=True needs a kernel with subshells (ipykernel 7 or later); without now=True, "
                "the call waits for the running cell"
            )
        while self._id is None or self._generation != transport.life.generation:
            if self._making is None or self._making.done():
                self._making = transport.spawn(self._make())
            # A caller that gives up must not leave a subshell whose id nothing here knows.
            await transport.wait_for(self._making)
        return {"id": self._id, "host": platform.node(), "pid": os.getpid()}

    async def _make(self) -> None:
        transport, generation = self._transport, self._transport.life.generation
        # If the reply was lost, an idle subshell stays in the kernel. No client knows its id.
        content = await transport.until_replied(
            lambda: transport.dispatcher.control("create_subshell_request", {})
        )
        if not isinstance(content.get("subshell_id"), str):
            raise ProtocolError(
                "the kernel replied to create_subshell_request without a subshell_id"
            )
        self._id, self._generation = content["subshell_id"], generation

    def forget(self, shell: dict[str, Any] | None) -> None:
        """Note that another client deleted this subshell; ``ready`` then makes a new one."""
        if shell is not None and self._id == shell["id"]:
            self._id = None

    async def delete(self, identity: str) -> None:
        """Have the kernel delete an idle subshell: this bridge's, or an orphan."""
        with contextlib.suppress(BridgeError, TimeoutError):
            await self._transport.dispatcher.control(
                "delete_subshell_request",
                {"subshell_id": identity},
                self._transport.timings.subshell_wait,
            )

    async def aclose(self) -> None:
        """Delete the subshell; a busy one becomes an orphan, which the next bridge deletes."""
        timings = self._transport.timings
        if self._making is not None:
            await asyncio.wait([self._making], timeout=timings.subshell_wait)
        identity, self._id = self._id, None
        if identity is None or self._generation != self._transport.life.generation:
            return
        for _ in range(round(timings.subshell_served / timings.poll_every)):
            if not self._transport.dispatcher.serves(identity):
                await self.delete(identity)
                return
            await asyncio.sleep(timings.poll_every)
