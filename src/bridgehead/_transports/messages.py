"""Parsed iopub messages, and a stream of them.

Rule: messages as values. This module knows no connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bridgehead._errors import ProtocolError
from bridgehead._protocol.formatting import line


@dataclass(frozen=True, slots=True, repr=False)
class Message:
    """One message of a kernel.

    Attributes:
        type: ``"status"``, ``"execute_input"``, ``"stream"``, ``"execute_result"``, …
        content: the content, as the Jupyter messaging protocol defines it.
        parent: the id of the request that caused this message; empty if there is none.
        parent_type: the type of that request, e.g. ``"execute_request"``.
        id: the id of this message.
        metadata: mostly empty.
        buffers: the binary buffers, mostly none.
        trust: the trust of the bridge, as in ``Result``.

    >>> Message("stream", {"name": "stdout", "text": "at work"})
    <stream at work>
    """

    type: str
    content: Mapping[str, Any]
    parent: str = ""
    parent_type: str = ""
    id: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    buffers: tuple[Any, ...] = ()
    trust: str = "data"

    @classmethod
    def parse(cls, message: Mapping[str, Any], trust: str = "data") -> Message:
        """Make a message from a dict such as jupyter_client's ``Session`` returns.

        Raises:
            ProtocolError: it is not a Jupyter message.

        Example::

            >>> header = {"msg_id": "1", "msg_type": "status"}
            >>> content = {"execution_state": "idle"}
            >>> Message.parse({"header": header, "parent_header": {}, "content": content})
            <status idle>
        """
        try:
            return cls(
                str(message["header"]["msg_type"]),
                dict(message["content"]),
                str(message["parent_header"].get("msg_id", "")),
                str(message["parent_header"].get("msg_type", "")),
                str(message["header"]["msg_id"]),
                dict(message.get("metadata") or {}),
                tuple(message.get("buffers") or ()),
                trust,
            )
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ProtocolError(f"this is not a Jupyter message: {error!r}") from error

    @property
    def text(self) -> str:
        """The content as one string, for people to read.

        >>> Message("error", {"ename": "ValueError", "evalue": "no"}).text
        'ValueError: no'
        """
        content = self.content
        if self.type == "status":
            return str(content.get("execution_state", ""))
        if self.type == "error":
            return f"{content.get('ename')}: {content.get('evalue')}"
        data = content.get("data")
        if isinstance(data, Mapping):
            return str(data.get("text/plain", ""))
        return str(content.get("text", content.get("code", "")))

    def __repr__(self) -> str:
        text = line(self.text.partition("\n")[0])
        return f"<{line(self.type, 30)}{text and ' '}{text}>"


class Messages:
    """An async iterator over the messages of a kernel, from the time of the call on.

    It ends when the bridge is closed or the kernel is lost. Unread messages are kept until the
    iterator is deleted. Cancelling a wait loses no message.

        >>> messages = bridge.messages()
        >>> await bridge.run("x = 1")
        <Result [1] no value>
        >>> async for message in messages:
        ...     print(message)
        ...     if message.type == "execute_input":
        ...         break
        <status busy>
        <execute_input x = 1>
    """

    def __init__(self) -> None:
        self._waiting: deque[Message] = deque()
        self._arrived = asyncio.Event()
        self._ended = False
        self.owner: object = None  # kept from being dropped while this is used

    def feed(self, message: Message) -> None:
        """Add a message that arrived; the transport calls this."""
        if not self._ended:
            self._waiting.append(message)
            self._arrived.set()

    def end(self) -> None:
        """End the stream; the transport calls this."""
        self._ended = True
        self._arrived.set()

    @property
    def is_ended(self) -> bool:
        """Whether no more messages come.

        >>> bridge.messages().is_ended
        False
        """
        return self._ended

    def __len__(self) -> int:
        """Return the number of messages that arrived and were not read."""
        return len(self._waiting)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<Messages, {len(self)} waiting{', ended' if self._ended else ''}>"

    def __aiter__(self) -> Messages:
        return self

    async def __anext__(self) -> Message:
        while not self._waiting:
            if self._ended:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        return self._waiting.popleft()

    async def aclose(self) -> None:
        """Stop listening and drop the unread messages.

        >>> messages = bridge.messages()
        >>> await messages.aclose()
        >>> [message async for message in messages]
        []
        """
        self._waiting.clear()
        self.end()
