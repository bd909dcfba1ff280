"""Frames as binary buffers of the Jupyter messages.

Rule: a request's frames are the buffers of its ``execute_request``. A response's frames are the
buffers of a message that the remote part sends to the requester alone, on the reply's socket and
before the reply; never on iopub. Jupyter does not sign buffers; it signs the header, which
carries their sizes and digest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bridgehead._errors import KernelRestarted, UnsupportedKernel
from bridgehead._lanes.base import Lane
from bridgehead._protocol.bootstrap import expression, remote_frames
from bridgehead._protocol.raising import remote_error
from bridgehead._protocol.request import execute_content
from bridgehead._protocol.response import response_header
from bridgehead._shipped.wire.digest import Buffer
from bridgehead._shipped.wire.header import PROBE, RequestHeader, ResponseHeader
from bridgehead._transports.base import Transport


class BuffersLane(Lane):
    """Carry frames as buffers in both directions."""

    name = "buffers"
    chunk = 16 << 20  # bytes
    reply_chunk = 32 << 20  # bytes, in two messages

    async def cross(
        self, header: RequestHeader, parts: Sequence[memoryview], subshell: str | None
    ) -> tuple[ResponseHeader, list[Buffer]]:
        content = execute_content(expression(self.name, header))
        reply = await self.transport.dispatcher.request(
            content, parts, subshell=subshell, repeatable=True
        )
        return response_header(reply.content), reply.buffers


async def hello(transport: Transport, header: RequestHeader) -> tuple[ResponseHeader, bool]:
    """Send the handshake, and install the remote part where it is missing.

    Returns the reply's header, and whether buffers arrive in both directions.

    Raises:
        UnsupportedKernel: the kernel fails at a request without code.
    """
    # The handshake takes its own iopub messages. Its "idle" may come after this returns, and
    # would otherwise reach a later ``Bridge.messages``.
    options: dict[str, Any] = {"on_message": lambda message: True, "repeatable": True}
    if not transport.binary:
        content = execute_content(expression("inline", header, install=True))
        return response_header(
            (await transport.dispatcher.request(content, **options)).content
        ), False
    content = execute_content(expression("probe", header, install=True, in_buffers=True))
    reply = await transport.dispatcher.request(content, [PROBE, *remote_frames()], **options)
    if reply.content.get("status") == "error":
        # xpython-raw treats a request without code as an error. IPython replies with an error only
        # after an interrupt, which says nothing against the kernel.
        remote = remote_error(reply.content)
        if remote.ename != "KeyboardInterrupt":
            why = f"{remote.ename}: {remote.evalue}"
            raise UnsupportedKernel(f"the kernel fails at a request without code: {why}")
    try:
        reply_header = response_header(reply.content)
    except KernelRestarted:
        # The remote part was not installed: its code was in the buffers, which did not arrive
        # intact. Send the code once more, in the expression.
        content = execute_content(expression("probe", header, install=True))
        reply = await transport.dispatcher.request(content, [PROBE], **options)
        reply_header = response_header(reply.content)
    came_back = [bytes(buffer) for buffer in reply.buffers] == [PROBE]
    return reply_header, bool(reply_header.get("buffers")) and came_back
