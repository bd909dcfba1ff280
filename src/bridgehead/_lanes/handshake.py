"""The handshake: what a kernel is, and the best lane to it.

Rule: one round trip, which installs the remote part where it is missing, and what its reply says.
When a handshake is due, and what it means for the caller, belongs to ``_connection.remote``.
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
from bridgehead._protocol.payload import EMPTY
from bridgehead._protocol.raising import as_object, as_strings, as_text, raise_error
from bridgehead._protocol.response import greeting
from bridgehead._protocol.results import Info
from bridgehead._shipped.wire.header import ResponseHeader
from bridgehead._transports.base import Transport
from bridgehead._transports.evidence import LocalProcess

LaneName = Literal["auto", "direct", "buffers", "inline"]
MESSAGE_LANES: dict[str, type[Lane]] = {lane.name: lane for lane in (BuffersLane, InlineLane)}
LANES = (DirectLane.name, *MESSAGE_LANES)
log = logging.getLogger("bridgehead")


def check_lane(lane: object) -> None:
    """Raise ``ValueError`` unless ``lane`` names a lane or is ``"auto"``."""
    if lane not in ("auto", *LANES):
        raise ValueError(f"lane= is one of 'auto', {', '.join(map(repr, LANES))}, not {lane!r}")


@dataclass(frozen=True, slots=True)
class Greeting:
    """The result of a handshake.

    Attributes:
        lane: the best lane to the remote part, or the one that the caller asked for.
        info: what a user sees of the kernel.
        process: names the kernel process; a later process may have the same pid.
        orphans: idle subshells whose bridge has ended, or has not used them for ten minutes.
        in_main_thread: whether cells run in the main thread of the process, which a signal reaches.
        guards_cells: whether the remote part can interrupt one cell and no other.
    """

    lane: Lane
    info: Info
    process: str
    orphans: list[str]
    in_main_thread: bool
    guards_cells: bool


class Handshake:
    """The handshakes of one bridge with the kernel behind a transport.

    ``wanted`` is the lane that the caller asked for, ``pool`` the share of the free memory that a
    direct lane may take, ``trust`` the name of the trust, for ``Info``.
    """

    def __init__(self, transport: Transport, wanted: LaneName, pool: float, trust: str) -> None:
        self._transport, self._wanted, self._pool, self._trust = transport, wanted, pool, trust

    async def greet(self) -> Greeting:
        """Install the remote part or find it installed, and choose the lane.

        Raises:
            UnsupportedKernel: it is no Python kernel, or it evaluates no expressions.
            NotSupported: the lane that the caller asked for does not work with this kernel.
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
            signed = EMPTY.signed(transport.digest)
            header = _request.header("hello", signed, epoch="", direct=offer)
            try:
                reply, buffers = await hello(transport, header)
            except UnsupportedKernel as error:
                raise UnsupportedKernel(f"{kernel}: {error}") from None
            raise_error(reply, ())
            reply = greeting(reply)
            transport.local_process = LocalProcess.find(reply.get("on_machine"))
            if self._wanted == "buffers" and not buffers:
                raise NotSupported(f"{kernel} does not pass message buffers; use lane='inline'")
            why_not = {}
            if not buffers and self._wanted != InlineLane.name:
                why_not[BuffersLane.name] = f"{kernel} does not pass message buffers"
            lane = self._message_lane(buffers)
            lane.note_sums(reply)
            if self._wanted not in MESSAGE_LANES:
                lane = self._direct_or(lane, listener, reply, why_not)
        info = Info(
            kernel=kernel,
            python=tuple(reply["python"]),
            executable=reply["executable"],
            versions=reply["versions"],
            pid=reply["pid"],
            cwd=reply["cwd"],
            epoch=reply["epoch"],
            transport=transport.name,
            lane=lane.name,
            trust=self._trust,
            connection_file=transport.connection_file,
            url=transport.url,
            kernel_id=transport.kernel_id,
            why_not=why_not,
            features=tuple(as_strings(transport.kernel_info.get("supported_features"))),
        )
        orphans = [str(orphan) for orphan in reply.get("orphans") or ()]
        return Greeting(
            lane,
            info,
            str(reply.get("process")),
            orphans,
            in_main_thread=reply.get("in_main_thread") is not False,
            guards_cells=reply.get("guards_cells") is True,
        )

    def _message_lane(self, buffers: bool) -> Lane:
        """Return the lane for what crosses in messages; ``buffers`` is whether they arrive."""
        if self._wanted in MESSAGE_LANES:
            return MESSAGE_LANES[self._wanted](self._transport)
        return (BuffersLane if buffers else InlineLane)(self._transport)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[SocketListener | str]:
        """Listen for a direct lane while the block lasts; yield why not where that fails."""
        if self._wanted in MESSAGE_LANES:
            yield "lane= asks for another lane"
        elif not self._transport.direct:
            yield f"the {self._transport.name} transport cannot reach the kernel's process directly"
        elif not self._transport.ours:
            yield "the kernel is not this user's process on this machine"
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

    def _direct_or(
        self,
        messages: Lane,
        listener: SocketListener | str,
        reply: ResponseHeader,
        why_not: dict[str, str],
    ) -> Lane:
        """Return a direct lane if the remote part connected to the listener, else ``messages``.

        ``why_not`` gets the reason where there is no direct lane.

        Raises:
            NotSupported: the remote part did not connect, and the caller asked for this lane.
        """
        why = listener if isinstance(listener, str) else reply["direct"]
        if not why and isinstance(listener, SocketListener):
            sock = listener.accept()
            if sock is not None:
                dispatcher, life = self._transport.dispatcher, self._transport.life
                client = SocketClient(sock, self._pool, reply["files"], dispatcher, life)
                return DirectLane(self._transport, client, messages, listener.name)
            why = "the kernel's connection did not arrive"
        if self._wanted == DirectLane.name:
            raise NotSupported(f"lane='direct' does not work with this kernel: {why}")
        why_not[DirectLane.name] = why or "no reason was given"
        log.info("no direct lane, objects cross as messages: %s", why)
        return messages


def _kernel_name(kernel_info: Mapping[str, Any]) -> str:
    implementation = as_text(kernel_info.get("implementation", "this kernel"))
    version = as_text(kernel_info.get("implementation_version", ""))
    return f"{implementation} {version}".strip()
