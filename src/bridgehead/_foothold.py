"""The foothold: the loader in one kernel, planted and kept planted.

Rule: the policy between an operation and its messages. Who may call, until when, over which
lane, and what a restart means: planted again, and told once, so that nothing meant for the
old kernel lands in the new one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal

from bridgehead import _protocol
from bridgehead._errors import KernelRestarted, NotSupported, ProtocolError, UnsupportedKernel
from bridgehead._lanes import Lane
from bridgehead._lanes.buffers import BuffersLane, hello
from bridgehead._lanes.inline import InlineLane
from bridgehead._results import Info
from bridgehead._transports import Transport

LaneName = Literal["auto", "buffers", "inline"]
# What a user called the operation.
SAID = {"bind": "push", "fetch": "pull", "drop": "delete", "has": "exists"}
LANES: dict[str, type[Lane]] = {lane.name: lane for lane in (BuffersLane, InlineLane)}


class Foothold:
    """The loader in the kernel behind one transport, from the event loop that opened it."""

    def __init__(self, transport: Transport, wanted: LaneName) -> None:
        self.transport = transport
        self._wanted = wanted
        self._loop = asyncio.get_running_loop()
        self._process = os.getpid()
        self._lane: Lane | None = None
        self._info: Info | None = None
        self._epoch: str | None = None  # what the caller's names are believed to live in
        self._generation = -1  # of the transport, when the loader was planted
        self._planting = asyncio.Lock()

    def check_caller(self) -> None:
        if os.getpid() != self._process:
            raise RuntimeError("this bridge was opened before a fork; open another one here")
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(
                "this bridge belongs to another event loop; open one in this loop, or use "
                "SyncBridge, which may be called from any thread"
            )

    def check(self) -> None:
        """Raise unless this caller may ask this kernel for something now."""
        self.check_caller()
        self.transport.check()

    @property
    def info(self) -> Info:
        """What the last handshake learnt."""
        if self._info is None:
            raise ProtocolError("the handshake did not happen yet")
        return self._info

    async def ask(
        self, operation: str, parcel: _protocol.Parcel, timeout: float | None, **fields: Any
    ) -> tuple[_protocol.Header, list[memoryview]]:
        """One operation: the header, the lane, the deadline, the answer."""
        async with deadline(timeout, SAID.get(operation, operation), self.transport):
            lane = await self.ready()
            info = self.info
            _protocol.check_parcel(parcel, info.python, info.versions)
            header = _protocol.header(
                operation,
                parcel.frames,
                epoch=info.epoch,
                algorithm=self.transport.digest,
                refs=parcel.refs,
                **fields,
            )
            generation, pid = self._generation, info.pid
            try:
                return await lane.carry(header, parcel.frames)
            except KernelRestarted:
                # On an unbroken connection it is the same process, whose loader somebody
                # removed: nothing was done, so plant it again and do it now.
                if generation != self.transport.generation:
                    raise
            self._generation, self._epoch = -1, None
            lane = await self.ready()
            if self.info.pid != pid:
                raise KernelRestarted("the kernel was restarted; this call was not executed")
            return await lane.carry({**header, "epoch": self.info.epoch}, parcel.frames)

    async def aclose(self) -> None:
        """Leave, and nothing half-way in the kernel."""
        if self._lane is not None:
            await self._lane.leave()
        await self.transport.aclose()

    async def ready(self) -> Lane:
        """The lane, with the loader in place; plants it again after a restart."""
        self.transport.check()
        if self._generation != self.transport.generation:
            believed = self._epoch
            await self.plant()
            if believed not in (None, self._epoch):
                raise KernelRestarted(
                    "the kernel was restarted since the last call, and its namespace is new; "
                    "this call was not sent"
                )
        assert self._lane is not None
        return self._lane

    async def plant(self) -> None:
        """The handshake: one round trip that installs the loader where it isn't yet."""
        async with self._planting:
            transport = self.transport
            generation = transport.generation
            if generation == self._generation:
                return
            kernel = _kernel_name(transport.kernel_info)
            language = (transport.kernel_info.get("language_info") or {}).get("name")
            if language != "python":
                raise UnsupportedKernel(
                    f"{kernel} is a kernel for {language}; bridgehead needs a Python kernel"
                )
            header = _protocol.header("hello", [], epoch="", algorithm=transport.digest)
            try:
                told, buffers = await hello(transport, header)
            except UnsupportedKernel as error:
                raise UnsupportedKernel(f"{kernel}: {error}") from None
            _protocol.raise_error(told, ())
            if self._wanted == "buffers" and not buffers:
                raise NotSupported(f"{kernel} does not pass message buffers; use lane='inline'")
            name = self._wanted if self._wanted != "auto" else "buffers" if buffers else "inline"
            self._lane = LANES[name](transport)
            try:
                self._info = Info(
                    kernel=kernel,
                    python=tuple(told["python"]),
                    executable=told["executable"],
                    versions=told["versions"],
                    pid=told["pid"],
                    cwd=told["cwd"],
                    epoch=told["epoch"],
                    transport=transport.name,
                    lane=name,
                    connection_file=transport.connection_file,
                )
            except (KeyError, TypeError) as error:
                raise ProtocolError(f"the loader's greeting lacks {error}") from error
            self._generation, self._epoch = generation, self._info.epoch


def check_lane(lane: object) -> None:
    """Raise ``ValueError`` unless there is such a lane."""
    if lane not in ("auto", *LANES):
        raise ValueError(f"lane is 'auto', {', '.join(map(repr, LANES))}, not {lane!r}")


def check_seconds(seconds: object) -> None:
    """Raise ``TypeError`` unless it is a number of seconds, or None."""
    if seconds is not None and not isinstance(seconds, (int, float)):
        raise TypeError(f"timeout is a number of seconds or None, not {seconds!r}")


def _kernel_name(kernel_info: Mapping[str, Any]) -> str:
    implementation = str(kernel_info.get("implementation", "this kernel"))
    return f"{implementation} {kernel_info.get('implementation_version', '')}".strip()


@asynccontextmanager
async def deadline(
    seconds: float | None, operation: str, transport: Transport, asked: float | None = None
) -> AsyncIterator[None]:
    """The builtin ``TimeoutError`` for an operation that took longer, with what is known.

    ``asked`` is what the caller had given it, where some of it was used up before.
    """
    check_seconds(seconds)
    try:
        async with asyncio.timeout(seconds) as scope:
            yield
    except TimeoutError:
        if not scope.expired():
            raise
        raise TimeoutError(
            f"{operation} got no answer within {asked or seconds:g} s; the kernel is "
            f"{transport.state}. What was sent to it may still run there"
        ) from None
