"""Frames as binary buffers of the Jupyter messages themselves.

Rule: out as the buffers of the ``execute_request``, back as those of a message of our own
that the loader sends to the requester alone, on the socket of the reply and ahead of it.
Never on iopub. Jupyter doesn't sign buffers; the header that it does sign carries their
sizes and digest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bridgehead._errors import KernelRestarted, UnsupportedKernel
from bridgehead._lanes.base import Lane
from bridgehead._protocol.bootstrap import expression, loader_frames
from bridgehead._protocol.raising import remote_error
from bridgehead._protocol.request import execute_content
from bridgehead._protocol.response import answer
from bridgehead._shipped.wire.digest import Buffer
from bridgehead._shipped.wire.header import PROBE, Header
from bridgehead._transports.base import Transport


class BuffersLane(Lane):
    """Binary both ways."""

    name = "buffers"
    chunk = 16 << 20  # bytes
    back = 32 << 20  # bytes, in two messages

    async def cross(
        self, header: Header, parts: Sequence[memoryview], subshell: str | None
    ) -> tuple[Header, list[Buffer]]:
        content = execute_content(expression(self.name, header))
        reply = await self.transport.dispatcher.request(
            content, parts, subshell=subshell, repeatable=True
        )
        return answer(reply.content), reply.buffers


async def hello(transport: Transport, header: Header) -> tuple[Header, bool]:
    """The handshake: plants the loader, and sees whether buffers arrive on both sides."""
    # Whoever listens from here on hears nothing of the handshake, whose idle is still to come.
    alone: dict[str, Any] = {"on_message": lambda message: True, "repeatable": True}
    if not transport.binary:
        content = execute_content(expression("inline", header, install=True))
        return answer((await transport.dispatcher.request(content, **alone)).content), False
    content = execute_content(expression("probe", header, install=True, beside=True))
    reply = await transport.dispatcher.request(content, [PROBE, *loader_frames()], **alone)
    if reply.content.get("status") == "error":
        # xpython-raw takes a request without code for a mistake; in IPython only an interrupt is.
        failed = remote_error(reply.content)
        if failed.ename != "KeyboardInterrupt":
            why = f"{failed.ename}: {failed.evalue}"
            raise UnsupportedKernel(f"the kernel fails at a request without code: {why}")
    try:
        told = answer(reply.content)
    except KernelRestarted:  # the loader is not there: what was beside the expression didn't arrive
        content = execute_content(expression("probe", header, install=True))
        reply = await transport.dispatcher.request(content, [PROBE], **alone)
        told = answer(reply.content)
    came_back = [bytes(buffer) for buffer in reply.buffers] == [PROBE]
    return told, bool(told.get("buffers")) and came_back
