"""A proxy of a kernel's TCP ports, whose connections can be cut, refused and damaged.

Rule: bytes only; ``kit.Wire`` is the proxy that knows messages. The test starts the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from jupyter_client.manager import AsyncKernelManager

from bridgehead import Bridge
from support.kit import other

# A ZMTP frame of 2**63 - 1 bytes. libzmq has no memory for it, and closes the connection for good.
TOO_LONG = b"\x02\x7f" + b"\xff" * 7
CHANNELS = {name: f"{name}_port" for name in ("shell", "control", "iopub", "stdin")} | {
    "heartbeat": "hb_port"
}


class Cuts:
    """A proxy between a bridge and the ports of a manager's kernel.

    ``is_down`` aborts new connections. Those of the channels in ``holds`` are accepted, and nothing
    is passed on. ``rate`` is the bytes in a second that each connection carries; 0 does not limit
    them.
    """

    def __init__(self, manager: AsyncKernelManager, folder: Path) -> None:
        self.manager = manager
        self.kernel_file = manager.connection_file
        self._info = json.loads(Path(self.kernel_file).read_text())
        self.connection_file = folder / f"cuts-{uuid.uuid4().hex[:8]}.json"
        self.is_down = False
        self.holds: Collection[str] = ()
        self.rate = 0
        self.opened = dict.fromkeys(CHANNELS, 0)  # connections
        self._to_bridge: dict[str, set[asyncio.StreamWriter]] = {name: set() for name in CHANNELS}
        self._to_kernel: set[asyncio.StreamWriter] = set()
        self._held: dict[asyncio.StreamWriter, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._listeners: dict[str, asyncio.Server] = {}
        self._ports: dict[str, int] = {}

    async def __aenter__(self) -> Cuts:
        await self.listen()
        ports = {CHANNELS[name]: port for name, port in self._ports.items()}
        self.connection_file.write_text(json.dumps({**self._info, **ports}))
        self.connection_file.chmod(0o600)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop_listening()
        for event in self._held.values():
            event.set()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.connection_file.unlink()

    async def listen(self) -> None:
        """Listen, on the same ports as before."""
        for name in CHANNELS:
            port = self._ports.get(name, 0)
            serve = partial(self._serve, name)
            listener = await asyncio.start_server(serve, "127.0.0.1", port, reuse_address=True)
            self._listeners[name] = listener
            self._ports[name] = listener.sockets[0].getsockname()[1]

    async def stop_listening(self) -> None:
        """Cut all connections, and have the system refuse new ones."""
        for listener in self._listeners.values():
            listener.close()
        self.cut()

    def cut(self) -> None:
        """Cut all connections; those to the kernel, too, unless they are held back."""
        for writer in [
            *(self._to_kernel - self._held.keys()),
            *(one for some in self._to_bridge.values() for one in some),
        ]:
            writer.transport.abort()

    def hold_back(self) -> asyncio.Event:
        """Pass nothing on to the kernel over the present connections until the event is set."""
        event = asyncio.Event()
        self._held |= dict.fromkeys(self._to_kernel, event)
        return event

    def exhaust_memory(self, channel: str) -> None:
        """Send a frame for which the bridge's libzmq has no memory."""
        for writer in self._to_bridge[channel]:
            writer.write(TOO_LONG)

    async def _serve(
        self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.opened[name] += 1
        if self.is_down:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._to_bridge[name].add(writer)
        to = None
        try:
            if name in self.holds:
                await reader.read()
                return
            port = self._info[CHANNELS[name]]
            back, to = await asyncio.open_connection(self._info["ip"], port)
            self._to_kernel.add(to)
            await asyncio.gather(self._pass(reader, to), self._pass(back, writer))
        except OSError:
            pass  # the kernel does not listen
        finally:
            self._to_bridge[name].discard(writer)
            writer.transport.abort()
            if to is not None:
                self._to_kernel.discard(to)
                self._held.pop(to, None)
                to.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if self.rate:
                    await asyncio.sleep(len(data) / self.rate)
                if writer in self._held:
                    await self._held[writer].wait()
                writer.write(data)
                await writer.drain()
        writer.close()


def managed(kernel_name: str = "python3") -> AbstractAsyncContextManager[AsyncKernelManager]:
    """Start a kernel on TCP whose manager is outside the bridge."""
    return listening(AsyncKernelManager(kernel_name=kernel_name))


@asynccontextmanager
async def listening(manager: AsyncKernelManager) -> AsyncIterator[AsyncKernelManager]:
    """Start the kernel of a manager, and wait until it answers; end it behind the block."""
    await manager.start_kernel()
    try:
        async with other(manager.connection_file):  # it listens
            pass
        yield manager
    finally:
        await manager.shutdown_kernel(now=True)


@asynccontextmanager
async def cuttable(
    folder: Path, kernel_name: str = "python3", **options: Any
) -> AsyncIterator[tuple[Bridge, Cuts]]:
    """Start a kernel, and open a bridge to it whose connections pass through ``Cuts``."""
    async with (
        managed(kernel_name) as manager,
        Cuts(manager, folder) as cuts,
        Bridge.attach(cuts.connection_file, **options) as bridge,
    ):
        yield bridge, cuts
