"""Helpers for tests of faults: a second client, a proxy for messages, time limits.

Rule: real objects only. ``Other`` is a plain jupyter_client client. ``Wire`` is a proxy of ZeroMQ
sockets between a bridge and its kernel. Only ``KEPT``, ``at_work``, ``on_its_way`` and
``set_capabilities`` look inside bridgehead.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import os
import queue
import signal
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq
import zmq.asyncio
from jupyter_client.asynchronous.client import AsyncKernelClient

from bridgehead import Bridge, KernelRestarted, RemoteError, SyncBridge

LANES: list[Any] = ["direct", "buffers", "inline"]
MESSAGES: list[Any] = ["buffers", "inline"]  # the lanes that send frames in messages
Parts = list[bytes]
DELIMITER, SIGNATURE, HEADER, PARENT, METADATA, CONTENT, BUFFERS = range(7)


# A cell that defines _kept(): how many inboxes and outboxes the remote part keeps.
KEPT = """
def _kept():
    import sys
    module = next(m for n, m in sys.modules.items() if n.startswith("_bridgehead"))
    transfers = [remote.transfers for remote in module._remotes.values()]
    return [len(box) for each in transfers for box in (each.inboxes, each.outboxes)]
"""


def set_capabilities(bridge: Bridge, **capabilities: Any) -> None:
    """Have a bridge's transport say that it can do other things, as one to another kernel would."""
    transport = bridge._transport
    transport.capabilities = replace(transport.capabilities, **capabilities)


def is_public(error: BaseException) -> bool:
    """Return whether users can import the class of an error: of bridgehead, only public ones."""
    return not type(error).__module__.startswith("bridgehead.")


@asynccontextmanager
async def reported_within(promise: float) -> AsyncIterator[None]:
    """Fail if the body takes longer than ten times ``promise`` seconds, and longer than 5 s.

    This limit finds hangs, also on a loaded machine. The benchmarks measure the true figures.
    """
    limit = max(10 * promise, 5.0)
    try:
        async with asyncio.timeout(limit) as scope:
            yield
    except TimeoutError:
        if not scope.expired():
            raise
        pytest.fail(f"nothing was reported within {limit:g} s; the promise is {promise:g} s")


async def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"the condition did not hold within {seconds:g} s"
        await asyncio.sleep(0.005)


async def awaited(asked: Any) -> Any:
    return await asked


async def first(items: Any) -> Any:
    """Return the first item of an iterator that is closed then."""
    async with items:
        return await anext(items)


def kept_and_late(bridge: Bridge | SyncBridge) -> tuple[int, ...]:
    """Return what the kernel keeps for a bridge, and how many responses came late.

    These are watches, tasks, iterations, refs and callbacks.
    """
    stats = bridge.stats
    kept = stats.watches, stats.tasks, stats.iterations, stats.refs, stats.callbacks
    return *kept, stats.late


async def goes_on(bridge: Bridge) -> None:
    """Check that the next operations on this bridge work; leave no name behind."""
    token = uuid.uuid4().hex
    async with reported_within(1):
        await bridge.push(goes_on=token)
        assert await bridge.pull("goes_on") == token
        await bridge.delete("goes_on")


@asynccontextmanager
async def endless_cell(bridge: Bridge) -> AsyncIterator[None]:
    """Run a cell that ends, with KeyboardInterrupt, when the block interrupts it."""
    going = asyncio.Event()
    cell = asyncio.ensure_future(
        # One statement: Spyder's kernel ignores an interrupt between two statements of a cell.
        bridge.run(
            "if print('going') is None:\n    while True: pass",
            on_output=lambda message: going.set(),
        )
    )
    await going.wait()
    yield
    with pytest.raises(RemoteError, match="KeyboardInterrupt"):
        await cell


async def restart_beside_a_cell(bridge: Bridge) -> None:
    """Restart a kernel that runs a cell; the cell raises ``KernelRestarted``."""
    pending = asyncio.ensure_future(bridge.run("import time; time.sleep(60)"))
    await until(lambda: bridge.state == "busy", 60)
    await bridge.restart()
    with pytest.raises(KernelRestarted):
        await pending


@asynccontextmanager
async def over(manager: Any) -> AsyncIterator[Bridge]:
    """Open a bridge over a manager; check that the kernel outlives the bridge."""
    await manager.start_kernel()
    try:
        async with Bridge.over(manager) as bridge:
            yield bridge
        assert await manager.is_alive()
    finally:
        await manager.shutdown_kernel(now=True)


def file_of(bridge: Bridge) -> str:
    return str(bridge.info.connection_file)


def sigint(bridge: Bridge) -> None:
    """Send the kernel a real SIGINT, as a terminal does."""
    os.kill(bridge.info.pid, signal.SIGINT)


@contextmanager
def stopped(bridge: Bridge) -> Iterator[None]:
    """Stop the kernel's process until the block ends."""
    pid = bridge.info.pid
    os.kill(pid, signal.SIGSTOP)
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.001)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def under_uvloop(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a program in an event loop of uvloop."""
    uvloop = pytest.importorskip("uvloop")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work())


class Other:
    """Another client of the same kernel."""

    def __init__(self, client: AsyncKernelClient) -> None:
        self.client = client
        self._replies: dict[str, dict[str, Any]] = {}

    def submit(self, code: str, **options: Any) -> str:
        """Send a cell with stop_on_error, as a notebook does; return the request's id."""
        return self.client.execute(code, **{"allow_stdin": False, **options})

    async def begun(self, request: str) -> None:
        """Wait until the kernel says that it serves a submitted cell."""
        await _message(self.client.get_iopub_msg, request)

    async def answer(self, request: str) -> dict[str, Any]:
        """Return the content of the reply to a submitted cell."""
        while request not in self._replies:
            with contextlib.suppress(queue.Empty):  # see ``_message``
                message = await self.client.get_shell_msg(timeout=0.5)
                self._replies[message["parent_header"].get("msg_id")] = message["content"]
        return self._replies.pop(request)

    async def execute(self, code: str, **options: Any) -> dict[str, Any]:
        """Run a cell; return the content of its reply, whatever its status is."""
        return await self.answer(self.submit(code, **options))


@asynccontextmanager
async def other(
    at: Bridge | str, session: Any = None, *, seconds: float = 60.0
) -> AsyncIterator[Other]:
    """Open a new plain client of a bridge's kernel, or of the kernel with this connection file.

    ``session`` is a session that this client shares with another one. The kernel has ``seconds`` to
    answer.
    """
    options = {} if session is None else {"session": session}
    client = AsyncKernelClient(**options)
    client.load_connection_file(at if isinstance(at, str) else str(at.info.connection_file))
    client.start_channels()
    try:
        await ready(client, seconds)
        yield Other(client)
    finally:
        client.stop_channels()
        client.context.destroy(linger=0)


async def ready(client: AsyncKernelClient, seconds: float = 60.0) -> None:
    """Wait until the kernel answers this client, and until its iopub messages arrive.

    jupyter_client's ``wait_for_ready`` takes a missed heartbeat for the kernel's death, and at the
    end it waits until iopub was silent for 0.2 s.
    """
    async with asyncio.timeout(seconds):
        while True:
            request = client.kernel_info()
            await _message(client.get_shell_msg, request)
            # The subscription may not have arrived yet; then iopub brings nothing.
            with contextlib.suppress(queue.Empty):
                idle = False
                while not idle:
                    status = await _message(client.get_iopub_msg, request, patient=False)
                    idle = status["content"].get("execution_state") == "idle"
                return


async def _message(
    receive: Callable[..., Awaitable[dict[str, Any]]], request: str, *, patient: bool = True
) -> dict[str, Any]:
    """Return the next message that belongs to a request; raise ``Empty`` if not ``patient``."""
    while True:
        # With a short timeout, because a send may consume the wake-up of a reply that arrives at
        # the same moment.
        try:
            message = await receive(timeout=0.5)
        except queue.Empty:
            if not patient:
                raise
        else:
            # That of an ``iopub_welcome`` from xeus is null.
            if (message["parent_header"] or {}).get("msg_id") == request:
                return message


# ---------------------------------------------------------------- the proxy


def kind(parts: Parts) -> str:
    """Return the type of a message, given its parts."""
    return str(json.loads(parts[HEADER])["msg_type"])


def whole(parts: Parts) -> Iterable[Parts]:
    """Pass a message on without change."""
    return [parts]


class Wire:
    """A proxy for the shell and iopub channels of one kernel.

    ``outgoing`` and ``incoming`` take the parts of a shell message and return the messages to
    pass on in its place. ``deaf`` drops every message on iopub. ``seen`` lists the messages that
    the bridge sent ("out") and the messages from the kernel ("in").
    """

    def __init__(self, connection_file: str, folder: Path) -> None:
        self._info = json.loads(Path(connection_file).read_text())
        self._key = self._info["key"].encode()
        self.connection_file = folder / f"wire-{uuid.uuid4().hex[:8]}.json"
        self.outgoing: Callable[[Parts], Iterable[Parts]] = whole
        self.incoming: Callable[[Parts], Iterable[Parts]] = whole
        self.deaf = False
        self.seen: list[tuple[str, Parts]] = []

    async def __aenter__(self) -> Wire:
        self._context = zmq.asyncio.Context()
        self._front = self._context.socket(zmq.ROUTER)
        self._listeners = self._context.socket(zmq.XPUB)
        self._iopub = self._context.socket(zmq.SUB)
        for socket in (self._front, self._listeners, self._iopub):
            socket.set(zmq.SNDHWM, 0)
            socket.set(zmq.RCVHWM, 0)
        self._iopub.subscribe(b"")
        self._backs: dict[bytes, zmq.asyncio.Socket] = {}
        self._ports = {
            "shell_port": self._bind(self._front),
            "iopub_port": self._bind(self._listeners),
        }
        self._iopub.connect(self._address(self._info["iopub_port"]))
        self.connection_file.write_text(json.dumps({**self._info, **self._ports}))
        self._tasks = [
            asyncio.create_task(work)
            for work in (self._carry_out(), self._carry_iopub(), self._hear_subscribers())
        ]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for task in self._tasks:
            task.cancel()
        outcomes = await asyncio.gather(*self._tasks, return_exceptions=True)
        self._context.destroy(linger=0)
        self.connection_file.unlink()
        for port in self._ports.values():  # ZeroMQ does not remove its Unix sockets
            Path(f"{self._info['ip']}-{port}").unlink(missing_ok=True)
        broken = [one for one in outcomes if not isinstance(one, asyncio.CancelledError)]
        assert not broken, broken

    def _address(self, port: int) -> str:
        separator = "-" if self._info["transport"] == "ipc" else ":"
        return f"{self._info['transport']}://{self._info['ip']}{separator}{port}"

    def _bind(self, socket: zmq.asyncio.Socket) -> int:
        if self._info["transport"] == "tcp":
            return socket.bind_to_random_port(f"tcp://{self._info['ip']}")
        free = (port for port in range(10, 100) if not Path(f"{self._info['ip']}-{port}").exists())
        port = next(free)  # two digits, because the path of a Unix socket must be short
        socket.bind(self._address(port))
        return port

    async def _carry_out(self) -> None:
        while True:
            identity, *parts = await self._front.recv_multipart()
            back = self._backs.get(identity)
            if back is None:
                back = self._backs[identity] = self._context.socket(zmq.DEALER)
                back.set(zmq.IDENTITY, identity)
                back.set(zmq.SNDHWM, 0)
                back.set(zmq.RCVHWM, 0)
                back.connect(self._address(self._info["shell_port"]))
                self._tasks.append(asyncio.create_task(self._carry_back(identity, back)))
            self.seen.append(("out", parts))
            for message in self.outgoing(parts):
                await back.send_multipart(message)

    async def _carry_back(self, identity: bytes, back: zmq.asyncio.Socket) -> None:
        while True:
            parts = await back.recv_multipart()
            self.seen.append(("in", parts))
            for message in self.incoming(parts):
                await self._front.send_multipart([identity, *message])

    async def _carry_iopub(self) -> None:
        while True:
            parts = await self._iopub.recv_multipart()
            if not self.deaf:
                await self._listeners.send_multipart(parts)

    async def _hear_subscribers(self) -> None:
        while True:  # otherwise the queue of their subscriptions fills
            await self._listeners.recv_multipart()

    def signed(self, parts: Parts) -> Parts:
        """Return the message with a valid signature for its parts."""
        mac = hmac.new(self._key, digestmod=hashlib.sha256)
        for part in parts[HEADER:BUFFERS]:
            mac.update(part)
        return [parts[DELIMITER], mac.hexdigest().encode(), *parts[HEADER:]]


@asynccontextmanager
async def wired(kernel: Bridge, folder: Path, **options: Any) -> AsyncIterator[tuple[Bridge, Wire]]:
    """Open a bridge to the same kernel whose messages pass through a ``Wire``."""
    async with (
        Wire(str(kernel.info.connection_file), folder) as wire,
        Bridge.attach(wire.connection_file, **options) as bridge,
    ):
        yield bridge, wire


async def all_of(*work: Awaitable[Any]) -> list[Any]:
    """Return the outcome of each: its value, or the exception that it raised."""
    return await asyncio.gather(*work, return_exceptions=True)


def at_work(bridge: Bridge) -> bool:
    """Return whether the kernel works for this bridge, in its main thread or its socket thread."""
    side_channel = bridge._transport.life.side_channel
    return bridge.state == "busy" or (side_channel is not None and side_channel.at_work)


def on_its_way(bridge: Bridge) -> bool:
    """Return whether a request of this bridge was sent and has no response yet."""
    if bridge._transport.dispatcher.in_flight:
        return True
    side_channel = bridge._transport.life.side_channel
    return side_channel is not None and side_channel.at_work
