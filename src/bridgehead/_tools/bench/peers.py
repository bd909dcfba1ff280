"""What is measured side by side: the lanes of a bridge, and what they are compared with.

Rule: a peer keeps an object in another process under a name and gives it back. ``push`` returns
when the object is usable over there, ``pull`` when it is usable here. Each is written as its
own documentation would have it; what is measured is the thing, not a wrapper of ours.
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
from bridgehead._tools.bench.payloads import Sample, frames

SLICE = 200  # ms; a wait for an answer looks after this long whether anybody still waits
INLINE_MOST = 200 * 10**6  # bytes; 1 GB as base64 takes minutes


class PeerDied(RuntimeError):
    """A peer's process ended."""


class Peer:
    """One way for an object to another process and back.

    Attributes:
        name: what a table calls it.
        carries: whether an object goes to another process and comes back; a reference may not.
        lane: whether it is bridgehead.
    """

    name: str
    carries: ClassVar[bool] = True
    lane: ClassVar[bool] = False

    async def start(self, modules: Sequence[str] = ()) -> None:
        """Be ready to be measured, with these modules imported over there."""

    async def stop(self) -> None:
        """Leave nothing behind, also where ``start`` failed half-way."""

    def refuses(self, payload: Sample) -> str | None:
        """Why it is not measured with this payload."""

    async def push(self, name: str, value: Any) -> None:
        raise NotImplementedError

    async def pull(self, name: str) -> Any:
        raise NotImplementedError

    async def free(self, name: str) -> None:
        """Forget the object over there, before the next peer needs the memory."""
        await self.push(name, 0)


class LanePeer(Peer):
    """bridgehead, by one lane: one await an operation."""

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
    """The limit: a copy into memory of this process that is already there."""

    name = "memcpy"
    carries = False

    def refuses(self, payload: Sample) -> str | None:
        return None if payload.is_array else "only arrays are memory"

    async def push(self, name: str, value: Any) -> None:
        import numpy

        if self._there is None or self._there.nbytes != value.nbytes:
            self._there, self._here = numpy.ones_like(value), numpy.ones_like(value)
        numpy.copyto(self._there, value)

    async def pull(self, name: str) -> Any:
        import numpy

        numpy.copyto(self._here, self._there)
        return self._here

    async def free(self, name: str) -> None:
        self._there = self._here = None

    _there: Any = None
    _here: Any = None


class Pickle(Peer):
    """What any way must do at least: dumps and loads of the object, in this process."""

    name = "pickle"
    carries = False

    def refuses(self, payload: Sample) -> str | None:
        return "arrays travel beside their pickle" if payload.is_array else None

    async def push(self, name: str, value: Any) -> None:
        self._value = value
        self._copy = pickle.loads(pickle.dumps(value, protocol=5))

    async def pull(self, name: str) -> Any:
        # With the copy that push made: freeing a million objects is not for anybody's clock.
        copy, self._copy = self._copy, None
        return copy, pickle.loads(pickle.dumps(self._value, protocol=5))

    async def free(self, name: str) -> None:
        self._value = self._copy = None


class RawZmq(Peer):
    """Two ZeroMQ sockets, pickle 5 with its buffers beside it, and nothing else."""

    def __init__(self, kind: Literal["tcp", "ipc"] = "tcp") -> None:
        self.name = f"zmq {kind}"
        self._folder = tempfile.TemporaryDirectory(prefix="bh-") if kind == "ipc" else None
        self._address = f"ipc://{self._folder.name}/z" if self._folder else "tcp://127.0.0.1:*"
        self._context: zmq.Context[Any] = zmq.Context()
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self, modules: Sequence[str] = ()) -> None:
        server = str(Path(__file__).with_name("zmq_server.py"))
        # -P: the folder of that script is not to be where it finds its modules.
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
                await asyncio.sleep(0)  # so that Ctrl-C is heard
            assert self._process is not None
            if self._process.poll() is not None:
                raise PeerDied(
                    f"the server of raw zmq ended with exit code {self._process.returncode}"
                )


class Execute(Peer):
    """One bare round trip of an empty cell, by jupyter_client: carries nothing."""

    name = "empty cell"
    carries = False

    def __init__(self, connection_file: str, alive: Callable[[], bool] = lambda: True) -> None:
        self._file = connection_file
        self._alive = alive
        self._client = BlockingKernelClient()

    async def start(self, modules: Sequence[str] = ()) -> None:
        self._client.load_connection_file(self._file)
        self._client.start_channels(iopub=False, stdin=False, hb=False, control=False)
        # The plain socket, since the channel's own methods start a thread inside a running loop.
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
        """Nothing was kept."""

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
                await asyncio.sleep(0)  # so that Ctrl-C is heard
                if not self._alive():
                    raise PeerDied("the kernel died") from None
                continue
            _, parts = session.feed_identities(parts)
            reply = session.deserialize(parts)
            if reply["parent_header"].get("msg_id") == request["header"]["msg_id"]:
                return
