"""Real Jupyter servers on loopback, and a proxy whose connections can be cut.

Rule: the test that uses a server starts it, in its own folders, and ends it and its kernels
through its own handle.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from bridgehead import Bridge

TOKEN = secrets.token_hex(8)
SERVER, GATEWAY = "jupyter_server", "kernel_gateway"
# Runs a module as a program that gets SIGTERM when its parent ends (PR_SET_PDEATHSIG).
RUN = """
import ctypes, runpy, signal, sys
getattr(ctypes.CDLL(None), "prctl", lambda *how: None)(1, signal.SIGTERM)
sys.argv.pop(0)
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def options(kind: str, port: int, token: str) -> list[str]:
    if kind == GATEWAY:
        return [
            f"--KernelGatewayApp.port={port}",
            "--KernelGatewayApp.port_retries=0",
            f"--KernelGatewayApp.auth_token={token}",
        ]
    return [
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={token}",
        "--ServerApp.open_browser=False",
        "--allow-root",
    ]


@asynccontextmanager
async def serving(
    kind: str = SERVER,
    *more: str,
    path: str = "/",
    ssl: Any = None,
    runtime: str | None = None,
    token: str = TOKEN,
) -> AsyncIterator[str]:
    """Run a server with its default limits; give its address.

    On SIGTERM the server ends its kernels, also if this process dies. ``runtime`` is the folder of
    the server's info file, by default a folder of its own.
    """
    with tempfile.TemporaryDirectory(prefix="bh-") as folder:
        environment = {**os.environ, "JUPYTER_RUNTIME_DIR": runtime or folder}
        for attempt in range(5):  # another process may have taken the port meanwhile
            port = free_port()
            log = Path(folder) / f"log-{attempt}"
            with log.open("wb") as out:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-c", RUN, kind, *options(kind, port, token), *more),
                    cwd=folder,
                    env=environment,
                    stdout=out,
                    stderr=out,
                )
            try:
                url = f"http{'s' if ssl else ''}://127.0.0.1:{port}{path}"
                if await _answers(process, url, ssl):
                    yield url
                    return
            finally:
                await ended(process)
        raise AssertionError(f"the server did not start: {log.read_text(errors='replace')[-2000:]}")


async def _answers(process: asyncio.subprocess.Process, url: str, ssl: Any) -> bool:
    async with httpx.AsyncClient(verify=ssl or True) as client, asyncio.timeout(180):
        while process.returncode is None:
            with contextlib.suppress(httpx.TransportError):
                await client.get(f"{url}api")
                return True
            await asyncio.sleep(0.1)
    return False


async def ended(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(20):
            await process.wait()
    except TimeoutError:
        process.kill()  # its kernels notice that it has ended, and end too
        await process.wait()


def on(url: str, **how: Any) -> Any:
    """Open a bridge to a new kernel of this server."""
    return Bridge.connect(url, TOKEN, **how)


def behind(gateway: str) -> list[str]:
    """Return the options of a server whose kernels are those of a gateway."""
    return [f"--gateway-url={gateway.rstrip('/')}", f"--GatewayClient.auth_token={TOKEN}"]


def processes(kernel_id: str | None) -> list[int]:
    """Return the processes of a server's kernel, by the name of its connection file."""
    running = psutil.process_iter(["pid", "cmdline"])
    return [one.pid for one in running if str(kernel_id) in " ".join(one.info["cmdline"] or ())]


class Other:
    """Another client of the same server."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client = httpx.AsyncClient(headers={"Authorization": f"token {TOKEN}"}, timeout=60)

    async def __aenter__(self) -> Other:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._client.aclose()

    async def kernels(self) -> set[str]:
        answer = await self._client.get(f"{self._url}api/kernels")
        return {kernel["id"] for kernel in answer.raise_for_status().json()}

    async def restart(self, kernel_id: str) -> None:
        answer = await self._client.post(f"{self._url}api/kernels/{kernel_id}/restart")
        answer.raise_for_status()

    async def has(self, kernel_id: str) -> bool:
        answer = await self._client.get(f"{self._url}api/kernels/{kernel_id}")
        return answer.status_code != 404 and bool(answer.raise_for_status())

    async def delete(self, kernel_id: str) -> None:
        (await self._client.delete(f"{self._url}api/kernels/{kernel_id}")).raise_for_status()


class Wire:
    """A proxy between a bridge and a server that can break and delay connections."""

    def __init__(self, url: str) -> None:
        self._server_url = httpx.URL(url)
        self._writers: set[asyncio.StreamWriter] = set()
        self._sockets: set[asyncio.StreamWriter] = set()  # of websockets
        self._held: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.passed = 0  # bytes, in both directions
        self.cut_at: int | None = None  # break after this number of bytes
        self.cuts = 0
        self.is_down = False  # refuse new connections
        self.opened = 0  # connections
        self.rate: int | None = None  # bytes a second, in each direction
        self.asked = b""  # the first bytes that each connection sent to the server
        self.refusals = 0  # how many DELETE requests to answer with ``refusal``, as a server does
        self.refusal = "500 Internal Server Error"

    async def __aenter__(self) -> Wire:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut_after(self, nbytes: int) -> None:
        self.passed, self.cut_at = 0, nbytes

    def cut(self) -> None:
        """Break all connections as a network does: no close frame, and bytes in flight are lost."""
        self.cuts += bool(self._writers)
        self.cut_at = None
        for writer in list(self._writers):
            writer.transport.abort()

    def hold(self) -> None:
        """Stop reading and passing on bytes of the websockets that are open now."""
        self._held |= self._sockets

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_down:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        back, to = await asyncio.open_connection(self._server_url.host, self._server_url.port)
        self._writers |= {writer, to}
        self.opened += 1
        try:
            await asyncio.gather(self._pass(reader, to, writer), self._pass(back, writer, None))
        finally:
            self._writers -= {writer, to}
            self._sockets -= {writer, to}
            self._held -= {writer, to}
            writer.transport.abort()
            to.transport.abort()

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        client: asyncio.StreamWriter | None,
    ) -> None:
        """Pass bytes on; ``client`` is where to answer what the client sends to the server."""
        with contextlib.suppress(OSError):
            first = client is not None
            while data := await reader.read(self.rate // 20 if self.rate else 1 << 16):
                if client is not None and self.refusals and data.startswith(b"DELETE "):
                    self.refusals -= 1
                    client.write(f"HTTP/1.1 {self.refusal}\r\ncontent-length: 0\r\n\r\n".encode())
                    continue
                if first:
                    self.asked, first = self.asked + data, False
                    if b"/channels?" in data:
                        self._sockets.add(writer)
                self.passed += len(data)
                if self.cut_at is not None and self.passed >= self.cut_at:
                    self.cut()
                    return
                while writer in self._held and not writer.is_closing():
                    await asyncio.sleep(0.05)
                if self.rate:
                    await asyncio.sleep(len(data) / self.rate)
                writer.write(data)
                await writer.drain()
        writer.close()
