"""256 MB through a Jupyter server with its default limits, over the time of a bare websocket.

Rule: the same machine, the same websocket library and chunks of the same size, in turns in one
run. The bare websocket talks to an echo server. The empty cell crosses the same Jupyter server on
a connection of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from websockets.asyncio.client import ClientConnection, connect

from bridgehead import Bridge
from bridgehead._transports.subprotocols import BINARY, V1
from bridgehead._transports.websocket import CHUNK
from tests.bench.targets import Reached
from tests.support.servers import TOKEN, free_port, on, serving

NBYTES = 256 << 20
ROUNDS = 7
SMALL_ROUNDS = 100
ECHO = """
import asyncio, sys
from websockets.asyncio.server import serve
async def echo(socket):
    async for message in socket:
        await socket.send(message)
async def main():
    options = {"max_size": None, "compression": None}
    async with serve(echo, "127.0.0.1", int(sys.argv[1]), **options) as server:
        await server.serve_forever()
asyncio.run(main())
"""


async def measure(wanted: argparse.Namespace) -> list[Reached]:
    array = np.random.default_rng(1).integers(0, 255, NBYTES, dtype=np.uint8)
    bare, push, pull, cell, small = [], [], [], [], []
    async with _echo() as echo, serving() as url, on(url, trust="pickle") as bridge:
        await bridge.push(x=array)
        for _ in range(ROUNDS):
            bare.append(await _timed(_echoed(echo, CHUNK)))
            push.append(await _timed(bridge.push(x=array)))
            pull.append(await _timed(bridge.pull("x")))
        async with _websocket(bridge) as socket:
            for n in range(SMALL_ROUNDS):
                cell.append(await _timed(_empty_cell(socket)))
                small.append(await _timed(bridge.push(n=n)))
    return [
        _figure("256 MB push, server / bare websocket", push, bare),
        _figure("256 MB pull, server / bare websocket", pull, bare),
        _figure("int push, server / empty cell over its websocket", small, cell),
    ]


def _figure(what: str, mine: list[float], other: list[float]) -> Reached:
    first, second = statistics.median(mine), statistics.median(other)
    return Reached(what, first / second, detail=f"{first * 1000:.3g} / {second * 1000:.3g} ms")


async def _timed(work: Any) -> float:
    started = time.perf_counter()
    await work
    return time.perf_counter() - started


@asynccontextmanager
async def _echo() -> AsyncIterator[ClientConnection]:
    port = free_port()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", ECHO, str(port))
    try:
        for _ in range(100):
            try:
                socket = await connect(f"ws://127.0.0.1:{port}", max_size=None, compression=None)
                break
            except OSError:
                await asyncio.sleep(0.1)
        async with socket:
            yield socket
    finally:
        process.terminate()
        await process.wait()


async def _echoed(socket: ClientConnection, nbytes: int) -> None:
    chunk = bytes(nbytes)

    async def send() -> None:
        for _ in range(NBYTES // nbytes):
            await socket.send(chunk)

    sending = asyncio.create_task(send())
    for _ in range(NBYTES // nbytes):
        await socket.recv()
    await sending


@asynccontextmanager
async def _websocket(bridge: Bridge) -> AsyncIterator[ClientConnection]:
    """Open a connection to the same kernel, without a bridge."""
    where = f"{bridge.info.url}api/kernels/{bridge.info.kernel_id}/channels".replace(
        "http", "ws", 1
    )
    headers = {"Authorization": f"token {TOKEN}"}
    options: Any = {"max_size": None, "compression": None, "additional_headers": headers}
    async with connect(
        f"{where}?session_id={uuid.uuid4().hex}", subprotocols=[V1], **options
    ) as one:
        yield one


async def _empty_cell(socket: ClientConnection) -> None:
    header = {
        "msg_id": uuid.uuid4().hex,
        "msg_type": "execute_request",
        "username": "",
        "session": "bare",
        "date": "2026-01-01T00:00:00Z",
        "version": "5.4",
    }
    content = {"code": "", "silent": True, "store_history": False, "user_expressions": {}}
    await socket.send(BINARY.pack("shell", {"header": header, "content": content}, ()))
    while True:
        channel, message = BINARY.unpack(await socket.recv())
        if channel == "shell" and message["parent_header"].get("msg_id") == header["msg_id"]:
            return
