"""The websocket to a hostile server."""

from __future__ import annotations

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosedError

from bridgehead._transports import websocket
from bridgehead._transports.rest import Rest
from bridgehead._transports.websocket import WebsocketTransport


async def test_a_message_without_end_takes_no_memory_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(websocket, "MESSAGE", 1 << 20)

    async def answer(connection: ServerConnection) -> None:
        def parts() -> object:
            while True:
                yield b" " * (1 << 16)

        await connection.send(parts())  # type: ignore[arg-type]

    async with serve(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        rest = Rest(f"http://127.0.0.1:{port}/", "token", None)
        transport = WebsocketTransport(rest, "kernel", owned=False)
        connection = await transport._connect("session")
        with pytest.raises(ConnectionClosedError, match="1009"):
            await connection.recv()
        assert connection.protocol.close_rcvd is None  # so no request is blamed for its size
        await transport.aclose()
