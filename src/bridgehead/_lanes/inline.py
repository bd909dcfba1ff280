"""Frames as base64 in the expression, and in the answer's text.

Rule: works wherever ``user_expressions`` do, over anything that carries text. A string in an
expression is evaluated 6-10 times faster than a literal in ``code`` is executed.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

from bridgehead._errors import ProtocolError, ReplyLost
from bridgehead._lanes.base import Lane
from bridgehead._protocol.bootstrap import expression
from bridgehead._protocol.request import execute_content
from bridgehead._protocol.response import answer
from bridgehead._shipped.wire.digest import Buffer
from bridgehead._shipped.wire.header import Header


class InlineLane(Lane):
    """base64 both ways."""

    name = "inline"
    chunk = 4 << 20  # bytes; 5.6 MB of base64, below the 6 MiB that survive every server
    back = chunk

    async def cross(
        self, header: Header, parts: Sequence[memoryview], subshell: str | None
    ) -> tuple[Header, list[Buffer]]:
        data = base64.b64encode(b"".join(parts)).decode("ascii")
        content = execute_content(expression(self.name, header, data))
        reply = await self.transport.dispatcher.request(content, subshell=subshell, repeatable=True)
        told = answer(reply.content)
        try:
            return told, [base64.b64decode(told.pop("data", ""), validate=True)]
        except binascii.Error as error:
            raise ReplyLost(f"the kernel's answer is damaged: {error}") from None
        except (TypeError, ValueError) as error:
            raise ProtocolError(f"the answer's data is no base64: {error}") from error
