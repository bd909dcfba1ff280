"""The handshake: who a kernel is, and the best lane that leads there.

Rule: one round trip, which plants the loader where it isn't yet, and what is learnt from it. When
one is due, and what it means for the caller, is the foothold's.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bridgehead._errors import NotSupported, UnsupportedKernel
from bridgehead._lanes.base import Lane
from bridgehead._lanes.buffers import BuffersLane, hello
from bridgehead._lanes.direct import DirectLane
from bridgehead._lanes.inline import InlineLane
from bridgehead._lanes.socket import SocketClient, SocketListener
from bridgehead._protocol import request as _request
from bridgehead._protocol import response as _protocol
from bridgehead._protocol.raising import as_object, as_strings, as_text, raise_error
from bridgehead._protocol.results import Info
from bridgehead._transports.base import Transport

LaneName = Literal["auto", "direct", "buffers", "inline"]
MESSAGES: dict[str, type[Lane]] = {lane.name: lane for lane in (BuffersLane, InlineLane)}
LANES = (DirectLane.name, *MESSAGES)
log = logging.getLogger("bridgehead")


def check_lane(lane: object) -> None:
    """Raise ``ValueError`` unless there is such a lane."""
    if lane not in ("auto", *LANES):
        raise ValueError(f"lane is 'auto', {', '.join(map(repr, LANES))}, not {lane!r}")


@dataclass(frozen=True, slots=True)
class Greeting:
    """What came of a handshake.

    Attributes:
        lane: the best that leads to the loader, or the one that was asked for.
        info: what a user may know of the kernel.
        process: what tells its process from the next one, which may have the same pid.
        orphans: subshells that nobody uses any more.
    """

    lane: Lane
    info: Info
    process: str
    orphans: list[str]


class Handshake:
    """How this bridge greets the kernel behind a transport; ``wanted`` is the lane it asks for.

    ``pool`` is the share of the free memory that a direct lane may take, ``trust`` the name of
    what is opened of what the kernel sends.
    """

    def __init__(self, transport: Transport, wanted: LaneName, pool: float, trust: str) -> None:
        self._transport, self._wanted, self._pool, self._trust = transport, wanted, pool, trust

    async def greet(self) -> Greeting:
        """Plant the loader, or find it there.

        Raises:
            UnsupportedKernel: it is no Python kernel, or evaluates no expressions.
            NotSupported: the lane that was asked for leads nowhere.
        """
        transport = self._transport
        kernel = _kernel_name(transport.kernel_info)
        language = as_object(transport.kernel_info.get("language_info")).get("name")
        if language != "python":
            raise UnsupportedKernel(
                f"{kernel} is a kernel for {as_text(language)}; bridgehead needs a Python kernel"
            )
        transport.dispatcher.narrow(transport.quirks.window)
        with self._listening() as listener:
            offer = listener.offer if isinstance(listener, SocketListener) else None
            header = _request.header(
                "hello", [], epoch="", algorithm=transport.digest, direct=offer
            )
            try:
                told, buffers = await hello(transport, header)
            except UnsupportedKernel as error:
                raise UnsupportedKernel(f"{kernel}: {error}") from None
            raise_error(told, ())
            told = _protocol.greeting(told)
            if self._wanted == "buffers" and not buffers:
                raise NotSupported(f"{kernel} does not pass message buffers; use lane='inline'")
            why_not = {}
            if not buffers and self._wanted != InlineLane.name:
                why_not[BuffersLane.name] = f"{kernel} does not pass message buffers"
            lane = self._messages(buffers)
            lane.sums = told.get("sums") is True
            if self._wanted not in MESSAGES:
                lane = self._direct(lane, listener, told["direct"], why_not)
        info = Info(
            kernel=kernel,
            python=tuple(told["python"]),
            executable=told["executable"],
            versions=told["versions"],
            pid=told["pid"],
            cwd=told["cwd"],
            epoch=told["epoch"],
            transport=transport.name,
            lane=lane.name,
            trust=self._trust,
            connection_file=transport.connection_file,
            url=transport.url,
            kernel_id=transport.kernel_id,
            why_not=why_not,
            features=tuple(as_strings(transport.kernel_info.get("supported_features"))),
        )
        orphans = [str(orphan) for orphan in told.get("orphans") or ()]
        return Greeting(lane, info, str(told.get("process")), orphans)

    def _messages(self, buffers: bool) -> Lane:
        """The lane of what crosses in messages; ``buffers`` says that they arrive."""
        if self._wanted in MESSAGES:
            return MESSAGES[self._wanted](self._transport)
        return (BuffersLane if buffers else InlineLane)(self._transport)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[SocketListener | str]:
        """Where the loader may connect for a direct lane, while the block lasts; or why not."""
        if self._wanted in MESSAGES:
            yield "another lane was asked for"
        elif not self._transport.direct:
            yield f"over {self._transport.name} no process can be connected to"
        elif not self._transport.ours:
            yield "the kernel is not a process of this user's on this machine"
        else:
            try:
                listener = SocketListener(self._pool)
            except OSError as error:
                yield str(error)
                return
            try:
                yield listener
            finally:
                listener.close()

    def _direct(
        self,
        messages: Lane,
        listener: SocketListener | str,
        refused: str | None,
        why_not: dict[str, str],
    ) -> Lane:
        """The direct lane beside ``messages`` if the loader connected; else these alone.

        Why it did not goes into ``why_not``.

        Raises:
            NotSupported: it did not, and no other lane was asked for.
        """
        why = listener if isinstance(listener, str) else refused
        if not why and isinstance(listener, SocketListener):
            sock = listener.accept()
            if sock is not None:
                client = SocketClient(
                    sock, self._pool, self._transport.dispatcher, self._transport.life
                )
                return DirectLane(self._transport, client, messages, listener.name)
            why = "the loader's connection did not arrive"
        if self._wanted == DirectLane.name:
            raise NotSupported(f"there is no direct way to this kernel: {why}")
        why_not[DirectLane.name] = why or "no reason was given"
        log.info("no direct lane, objects cross as messages: %s", why)
        return messages


def _kernel_name(kernel_info: Mapping[str, Any]) -> str:
    implementation = as_text(kernel_info.get("implementation", "this kernel"))
    version = as_text(kernel_info.get("implementation_version", ""))
    return f"{implementation} {version}".strip()
