"""The websocket to a hostile server."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosedError

from bridgehead._transports import websocket
from bridgehead._transports.rest import Rest
from bridgehead._transports.timings import Timings
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


@pytest.mark.parametrize("moves", ["arrives", "leaves"])
async def test_a_connection_is_aborted_only_if_nothing_moves(moves: str) -> None:
    """Data moves for many times the limit, then stops."""
    looks, moving = 0, 50

    class Slow:
        """A connection on which something moves between any two of the first looks at it."""

        @property
        def arrivals(self) -> int:
            nonlocal looks
            looks += 1
            return min(looks, moving) if moves == "arrives" else 0

        transport: Any = SimpleNamespace(
            get_write_buffer_size=lambda: max(moving - looks, 1) if moves == "leaves" else 1,
            abort=lambda: aborted.append(looks),
        )

    aborted: list[int] = []
    socket: Any = Slow()
    await websocket._abort_if_still(socket, Timings(moving_every=0.001, moving_within=0.005))
    assert len(aborted) == 1
    assert moving + 4 <= aborted[0] <= moving + 6
