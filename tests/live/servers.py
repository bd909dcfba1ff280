"""Real Jupyter servers on loopback, and a wire between a bridge and one that can be cut.

Rule: each is started by the test that uses it, in folders of its own, and ended by its own
handle, kernels included.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bridgehead import Bridge

TOKEN = secrets.token_hex(8)
SERVER, GATEWAY = "jupyter_server", "kernel_gateway"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def options(kind: str, port: int) -> list[str]:
    if kind == GATEWAY:
        return [
            f"--KernelGatewayApp.port={port}",
            "--KernelGatewayApp.port_retries=0",
            f"--KernelGatewayApp.auth_token={TOKEN}",
        ]
    return [
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={TOKEN}",
        "--ServerApp.open_browser=False",
        "--allow-root",
    ]


@asynccontextmanager
async def serving(
    kind: str = SERVER,
    *more: str,
    path: str = "/",
    ssl: Any = None,
    env: dict[str, str] | None = None,
) -> AsyncIterator[str]:
    """A server with its default limits; gives its address.

    In a group of its own, so that its kernels end with it, whatever the test did to it.
    """
    with tempfile.TemporaryDirectory(prefix="bh-") as folder:
        runtime = Path(folder) / "run"
        runtime.mkdir(mode=0o700)
        environment = {
            **os.environ,
            "JUPYTER_RUNTIME_DIR": str(runtime),
            "JUPYTER_PREFER_ENV_PATH": "0",
            **(env or {}),
        }
        for attempt in range(5):  # somebody else may have taken the port meanwhile
            port = free_port()
            log = Path(folder) / f"log-{attempt}"
            with log.open("wb") as out:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", kind, *options(kind, port), *more),
                    cwd=folder,
                    env=environment,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
            try:
                url = f"http{'s' if ssl else ''}://127.0.0.1:{port}{path}"
                if await _answers(process, url, ssl):
                    yield url
                    return
            finally:
                await _ended(process)
        raise AssertionError(f"no server: {log.read_text(errors='replace')[-2000:]}")


async def _answers(process: asyncio.subprocess.Process, url: str, ssl: Any) -> bool:
    async with httpx.AsyncClient(verify=ssl or True) as client, asyncio.timeout(60):
        while process.returncode is None:
            with contextlib.suppress(httpx.TransportError):
                await client.get(f"{url}api")
                return True
            await asyncio.sleep(0.1)
    return False


async def _ended(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGCONT)
        process.terminate()
    try:
        async with asyncio.timeout(10):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def group_of(url_process: int) -> Iterator[int]:
    raise NotImplementedError


def on(url: str, **how: Any) -> Any:
    """A bridge to a new kernel of this server."""
    return Bridge.connect(url, TOKEN, **how)


@dataclass
class Proxy:
    """Passes bytes on between a bridge and a server, until it is told not to."""

    port: int
    passed: int = 0  # bytes, both ways
    cut_at: int | None = None  # cut every connection when so many bytes have passed
    cuts: int = 0
    refusing: bool = False
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def cut(self) -> None:
        """Break all connections abruptly, as a network does: no close, a reset."""
        self.cuts += 1
        for writer in list(self._writers):
            writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                self.passed += len(data)
                if self.cut_at is not None and self.passed >= self.cut_at:
                    self.cut_at = None
                    self.cut()
                    return
                writer.write(data)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def proxy(url: str) -> AsyncIterator[Proxy]:
    """A wire to this server that can be cut."""
    there = httpx.URL(url)
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if wire.refusing:
            writer.transport.abort()
            return
        back, to = await asyncio.open_connection(there.host, there.port)
        wire._writers |= {writer, to}
        try:
            await asyncio.gather(wire._pass(reader, to), wire._pass(back, writer))
        finally:
            wire._writers -= {writer, to}
            writer.transport.abort()
            to.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    wire = Proxy(server.sockets[0].getsockname()[1])
    try:
        yield wire
    finally:
        server.close()
        wire.cut()
        for task in tasks:
            task.cancel()
        await asyncio.sleep(0.05)


def somewhere(low: int, high: int, seed: int) -> int:
    """A number of bytes after which to cut."""
    return random.Random(seed).randrange(low, high)
