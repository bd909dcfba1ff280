"""A server on loopback that answers each HTTP request as a test says, however wrong.

Rule: no Jupyter server; those are in ``servers``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

Answer = Callable[[str, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def answering(answer: Answer) -> AsyncIterator[str]:
    """Give the address of a server that answers each request by a function."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked = await reader.readuntil(b"\r\n\r\n")
            await answer(asked.split(b" ")[1].decode(), writer)
        except (OSError, EOFError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        for _ in range(3):  # asyncio loses a connection that is accepted as its server closes
            await asyncio.sleep(0)


def reply(body: object, status: str = "200 OK", *headers: str) -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def answer(path: str, writer: asyncio.StreamWriter) -> None:
        more = "".join(f"{header}\r\n" for header in headers)
        head = (
            f"HTTP/1.1 {status}\r\ncontent-length: {len(data)}\r\nconnection: close\r\n{more}\r\n"
        )
        writer.write(head.encode() + data)
        await writer.drain()

    return answer
