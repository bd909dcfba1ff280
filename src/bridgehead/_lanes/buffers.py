"""Frames as binary buffers of the Jupyter messages.

Rule: a request's frames are the buffers of its ``execute_request``. A response's frames are the
buffers of a message that the remote part sends to the requester alone, on the reply's socket and
before the reply; never on iopub. Jupyter does not sign buffers; it signs the header, which
carries their sizes and digest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from bridgehead._errors import KernelRestarted, UnsupportedKernel
from bridgehead._lanes.base import MessageLane
from bridgehead._protocol.bootstrap import expression, remote_code
from bridgehead._protocol.raising import remote_error
from bridgehead._protocol.request import execute_content
from bridgehead._protocol.response import response_header
from bridgehead._shipped.wire.digest import Buffer
from bridgehead._shipped.wire.header import PROBE, RequestHeader, ResponseHeader
from bridgehead._transports.base import Transport
from bridgehead._transports.request_table import Handlers, Reply


class BuffersLane(MessageLane):
    """Carry frames as buffers in both directions."""

    name = "buffers"
    chunk = 16 << 20  # bytes
    reply_chunk = 32 << 20  # bytes, in two messages

    def fields(self) -> dict[str, Any]:
        # On a connection that may break, the kernel keeps the whole response anyway.
        return {**super().fields(), "ahead": not self.transport.capabilities.resumable or None}

    def write(
        self, header: RequestHeader, parts: Sequence[memoryview]
    ) -> tuple[dict[str, Any], Sequence[memoryview]]:
        return execute_content(expression(self.name, header)), parts

    def read(self, reply: Reply) -> tuple[ResponseHeader, list[Buffer]]:
        return response_header(reply.content), reply.buffers


# Processes that have the remote part from this process, and their addresses, the latest last.
_shipped_to: dict[Any, None] = {}
MOST_SHIPPED_TO = 1000


async def hello(transport: Transport, header: RequestHeader) -> tuple[ResponseHeader, bool]:
    """Send the handshake, and install the remote part where it is missing.

    It may be sent before it is known which process and which Python answer: if they are not those
    that were expected, it is sent again.

    Returns the reply's header, and whether buffers arrive in both directions.

    Raises:
        UnsupportedKernel: the kernel fails at a request without code.
    """
    # The handshake takes its own iopub messages. Its "idle" may come after this returns, and
    # would otherwise reach a later ``Bridge.messages``.
    options: dict[str, Any] = {"handlers": Handlers(lambda message: True), "repeatable": True}
    if not transport.capabilities.binary:
        content = execute_content(expression("inline", header, install=True))
        return response_header(
            (await transport.dispatcher.request(content, **options)).content
        ), False
    reply_header = None
    if transport.runs_same_python is not False:
        text = expression("probe", header, install=True, in_buffer=True)
        has_it = (transport.process or transport.address) in _shipped_to
        code = [] if has_it else [remote_code()]  # 400 kB
        reply = await transport.dispatcher.request(execute_content(text), [PROBE, *code], **options)
        with contextlib.suppress(KernelRestarted):
            reply_header = _response_header(reply)
    if reply_header is None:
        # The remote part was not installed: the kernel has another Python, or is not the process
        # that has it, or its code did not arrive intact. Send the sources, in the expression.
        text = expression("probe", header, install=True)
        reply = await transport.dispatcher.request(execute_content(text), [PROBE], **options)
        reply_header = _response_header(reply)
    for key in transport.process, transport.address:
        if key is not None:
            _shipped_to[key] = None
    while len(_shipped_to) > MOST_SHIPPED_TO:
        del _shipped_to[next(iter(_shipped_to))]
    arrived = bool(reply_header.get("buffers"))
    if arrived and not _came_back(reply):
        # The one message that brings them may be lost, or late. Another reply decides.
        again = header.copy()
        again.pop("direct", None)  # the first one has begun that lane
        content = execute_content(expression("probe", again))
        reply = await transport.dispatcher.request(content, [PROBE], **options)
    return reply_header, arrived and _came_back(reply)


def _came_back(reply: Reply) -> bool:
    """Return whether the buffers of the handshake came back, maybe in a message that came twice."""
    return bool(reply.buffers) and all(bytes(buffer) == PROBE for buffer in reply.buffers)


def _response_header(reply: Reply) -> ResponseHeader:
    if reply.content.get("status") == "error":
        # xpython-raw treats a request without code as an error. IPython replies with an error only
        # after an interrupt, which says nothing against the kernel.
        remote = remote_error(reply.content)
        if remote.ename != "KeyboardInterrupt":
            why = f"{remote.ename}: {remote.evalue}"
            raise UnsupportedKernel(f"the kernel fails at a request without code: {why}")
    return response_header(reply.content)
