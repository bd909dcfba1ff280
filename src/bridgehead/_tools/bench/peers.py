"""The peers of the benchmark: a bridge's lanes, and what they are compared with.

Rule: a peer keeps an object in another process under a name, and gives it back. ``push`` returns
when that process can use the object, ``pull`` when this process can. Each peer is written as its
own documentation recommends, so the benchmark measures the peer and not a wrapper.
"""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import zmq
from jupyter_client.blocking.client import BlockingKernelClient

from bridgehead._bridge.bridge import Bridge
from bridgehead._bridge.opening import Opening
from bridgehead._tools.bench.samples import Sample, frames

SLICE = 200  # ms; a peer that waits for an answer looks for Ctrl-C after this time
INLINE_MOST = 200 * 10**6  # bytes; 1 GB as base64 takes minutes


class PeerDied(RuntimeError):
    """A peer's process ended."""


class Peer:
    """One way to bring an object to another process and back.

    Attributes:
        name: its name in tables.
        carries: whether objects go to another process and back; those of a reference may not.
        lane: whether it is a lane of bridgehead.
    """

    name: str
    carries: ClassVar[bool] = True
    lane: ClassVar[bool] = False

    async def start(self, modules: Sequence[str] = ()) -> None:
        """Get ready, and import these modules in the other process."""

    async def stop(self) -> None:
        """Release all resources, also after a ``start`` that failed half-way."""

    def refuses(self, payload: Sample) -> str | None:
        """Return why it is not measured with this payload; None if it is."""

    async def push(self, name: str, value: Any) -> None:
        raise NotImplementedError

    async def pull(self, name: str) -> Any:
        raise NotImplementedError

    async def free(self, name: str) -> None:
        """Drop the object in the other process, before the next peer needs the memory."""
        await self.push(name, 0)


class LanePeer(Peer):
    """bridgehead on one lane; each operation is one await."""

    lane = True

    def __init__(self, name: str, opening: Opening[Bridge]) -> None:
        self.name = name
        self._opening = opening
        self._opened = False

    async def start(self, modules: Sequence[str] = ()) -> None:
        self.bridge = await self._opening
        self._opened = True
        for module in modules:
            if module in self.bridge.info.versions:
                await self.bridge.pull(f"__import__({module!r}).__name__")  # binds no name

    async def stop(self) -> None:
        if self._opened:
            await self.bridge.aclose()

    def refuses(self, payload: Sample) -> str | None:
        missing = [name for name in payload.needs if name not in self.bridge.info.versions]
        if missing:
            return f"the kernel lacks {' and '.join(missing)}"
        if self.bridge.info.lane == "inline" and payload.about > INLINE_MOST:
            return "as base64 it would take minutes"
        return None

    async def push(self, name: str, value: Any) -> None:
        await self.bridge.push({name: value})

    async def pull(self, name: str) -> Any:
        return await self.bridge.pull(name)


class Memcpy(Peer):
    """The lower limit: a copy into memory that this process has already allocated."""

    name = "memcpy"
    carries = False

    def refuses(self, payload: Sample) -> str | None:
        return None if payload.is_array else "only arrays are contiguous memory"

    async def push(self, name: str, value: Any) -> None:
        import numpy

        if self._pushed is None or self._pushed.nbytes != value.nbytes:
            self._pushed, self._pulled = numpy.ones_like(value), numpy.ones_like(value)
        numpy.copyto(self._pushed, value)

    async def pull(self, name: str) -> Any:
        import numpy

        numpy.copyto(self._pulled, self._pushed)
        return self._pulled

    async def free(self, name: str) -> None:
        self._pushed = self._pulled = None

    _pushed: Any = None
    _pulled: Any = None


class PicklePeer(Peer):
    """The least that any way must do: dumps and loads of the object, in this process."""

    name = "pickle"
    carries = False

    def refuses(self, payload: Sample) -> str | None:
        return "arrays are not copied into their pickle" if payload.is_array else None

    async def push(self, name: str, value: Any) -> None:
        self._value = value
        self._copy = pickle.loads(pickle.dumps(value, protocol=5))

    async def pull(self, name: str) -> Any:
        # Also return the copy that push made: freeing a million objects must not be measured.
        copy, self._copy = self._copy, None
        return copy, pickle.loads(pickle.dumps(self._value, protocol=5))

    async def free(self, name: str) -> None:
        self._value = self._copy = None


class RawZmq(Peer):
    """Two ZeroMQ sockets, pickle 5 with out-of-band buffers, and nothing else."""

    def __init__(self, kind: Literal["tcp", "ipc"] = "tcp") -> None:
        self.name = f"zmq {kind}"
        self._folder = tempfile.TemporaryDirectory(prefix="bh-") if kind == "ipc" else None
        self._address = f"ipc://{self._folder.name}/z" if self._folder else "tcp://127.0.0.1:*"
        self._context: zmq.Context[Any] = zmq.Context()
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self, modules: Sequence[str] = ()) -> None:
        server = str(Path(__file__).with_name("zmq_server.py"))
        # -P: Python must not look for modules in the folder of that script.
        command = [sys.executable, "-P", server, self._address, *modules]
        pipe = subprocess.PIPE
        self._process = process = subprocess.Popen(command, stdin=pipe, stdout=pipe)
        assert process.stdout is not None
        address = (await asyncio.to_thread(process.stdout.readline)).decode().strip()
        if not address:
            raise PeerDied(f"the server of raw zmq ended with exit code {process.wait()}")
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.RCVTIMEO, SLICE)
        self._socket.connect(address)

    async def stop(self) -> None:
        self._context.destroy(linger=0)
        if self._process is not None:
            self._process.kill()
            with self._process:  # closes the pipes and waits
                pass
        if self._folder is not None:
            self._folder.cleanup()

    async def push(self, name: str, value: Any) -> None:
        self._socket.send_multipart([b"push", name.encode(), *frames(value)], copy=False)
        await self._answer()

    async def pull(self, name: str) -> Any:
        self._socket.send_multipart([b"pull", name.encode()])
        head, *buffers = await self._answer()
        return pickle.loads(head.buffer, buffers=[buffer.buffer for buffer in buffers])

    async def _answer(self) -> list[zmq.Frame]:
        while True:
            try:
                parts: list[zmq.Frame] = self._socket.recv_multipart(copy=False)
                return parts
            except zmq.Again:
                await asyncio.sleep(0)  # lets the event loop handle Ctrl-C
            assert self._process is not None
            if self._process.poll() is not None:
                raise PeerDied(
                    f"the server of raw zmq ended with exit code {self._process.returncode}"
                )


class Execute(Peer):
    """The round trip of an empty cell by jupyter_client; it carries no object."""

    name = "empty cell"
    carries = False

    def __init__(self, connection_file: str, alive: Callable[[], bool] = lambda: True) -> None:
        self._file = connection_file
        self._alive = alive
        self._client = BlockingKernelClient()

    async def start(self, modules: Sequence[str] = ()) -> None:
        self._client.load_connection_file(self._file)
        self._client.start_channels(iopub=False, stdin=False, hb=False, control=False)
        # The plain socket: inside a running loop, the channel's own methods start a thread.
        self._socket: zmq.Socket[bytes] = zmq.Socket.shadow(
            self._client.shell_channel.socket.underlying
        )
        self._socket.setsockopt(zmq.RCVTIMEO, SLICE)

    async def stop(self) -> None:
        self._client.stop_channels()
        self._client.context.destroy(linger=0)

    async def push(self, name: str, value: Any) -> None:
        await self.round_trip()

    async def pull(self, name: str) -> Any:
        await self.round_trip()

    async def free(self, name: str) -> None:
        """Do nothing, because nothing was kept."""

    async def round_trip(self) -> None:
        """Send an empty cell and take its reply."""
        session = self._client.session
        content = {
            "code": "",
            "silent": True,
            "store_history": False,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": False,
        }
        request = session.msg("execute_request", content)
        session.send(self._socket, request)
        while True:
            try:
                parts = self._socket.recv_multipart()
            except zmq.Again:
                await asyncio.sleep(0)  # lets the event loop handle Ctrl-C
                if not self._alive():
                    raise PeerDied("the kernel died") from None
                continue
            _, parts = session.feed_identities(parts)
            reply = session.deserialize(parts)
            if reply["parent_header"].get("msg_id") == request["header"]["msg_id"]:
                return
