"""The handshake: what a kernel is, and the best lane to it.

Rule: one round trip, which installs the remote part where it is missing, and what its reply says.
In it the kernel also proves that it is a process of this user on this machine: it connects to a
socket that only such a process can open, whatever lane is used then. When a handshake is due, and
what it means for the caller, belongs to ``_connection.installation``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bridgehead._errors import NotSupported, UnsupportedKernel
from bridgehead._lanes.base import Lane, MessageLane
from bridgehead._lanes.buffers import BuffersLane, hello
from bridgehead._lanes.direct import DirectLane
from bridgehead._lanes.inline import InlineLane
from bridgehead._lanes.socket import SocketClient, SocketListener
from bridgehead._protocol import request as _request
from bridgehead._protocol.formatting import line
from bridgehead._protocol.payload import empty
from bridgehead._protocol.raising import as_object, as_strings, as_text, raise_error
from bridgehead._protocol.response import greeting
from bridgehead._protocol.results import Info
from bridgehead._shipped.wire.header import RequestHeader, ResponseHeader
from bridgehead._shipped.wire.slabs import shared_memory
from bridgehead._transports.base import Transport
from bridgehead._transports.evidence import LocalProcess
from bridgehead._transports.tasks import retrieve_exception

LaneName = Literal["auto", "direct", "buffers", "inline"]
MESSAGE_LANES: dict[str, type[MessageLane]] = {
    lane.name: lane for lane in (BuffersLane, InlineLane)
}
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
        info: what a user sees of the kernel; the trust in it is decided later.
        proven: whether the kernel proved to be a process of this user on this machine; None if it
            could not be asked to.
        unproven: why it is not proven; empty if it is.
        process: names the kernel process; a later process may have the same pid.
        orphans: idle subshells whose bridge has ended, or has not used them for ten minutes.
        in_main_thread: whether cells run in the main thread of the process, which a signal reaches.
        guards_cells: whether the remote part can interrupt one cell and no other.
        serves_control: whether it serves requests on the control channel.
    """

    lane: Lane
    info: Info
    proven: bool | None
    unproven: str
    process: str
    orphans: list[str]
    in_main_thread: bool
    guards_cells: bool
    serves_control: bool


class Handshake:
    """The handshakes of one bridge with the kernel behind a transport.

    ``wanted`` is the lane that the caller asked for, ``pool`` the share of the free memory that a
    direct lane may take. With ``proof``, the kernel is asked to prove whose process it is even if
    there is no direct lane. ``trusts`` returns whether the kernel is trusted, by its proof.
    """

    def __init__(
        self,
        transport: Transport,
        wanted: LaneName,
        pool: float,
        *,
        proof: bool,
        trusts: Callable[[bool | None], bool],
    ) -> None:
        self._transport, self._wanted, self._pool, self._proof = transport, wanted, pool, proof
        self._trusts = trusts

    async def greet(self) -> Greeting:
        """Install the remote part or find it installed, and choose the lane.

        Raises:
            UnsupportedKernel: it is no Python kernel, or it evaluates no expressions.
            NotSupported: the lane that the caller asked for does not work with this kernel.
        """
        transport = self._transport
        if transport.kernel_info:
            self._require_python()
        no_lane = self._no_direct_lane()
        with self._listening(no_lane) as listener:
            offer = None if isinstance(listener, str) else listener.offer(lane=not no_lane)
            signed = empty(transport.capabilities.digest)
            header = _request.header("hello", signed, epoch="", direct=offer)
            # No task of the transport: closing would cancel it, and with it the caller.
            asking = asyncio.ensure_future(self._ask(header))
            asking.add_done_callback(retrieve_exception)
            try:
                await transport.introduced()
                kernel = self._require_python()
                # Requests that hold a slot keep it; the next ones wait.
                transport.dispatcher.window.size = transport.quirks.window
                try:
                    reply, buffers = await asking
                except UnsupportedKernel as error:
                    raise UnsupportedKernel(f"{kernel}: {error}") from None
            finally:
                asking.cancel()
            raise_error(reply, ())
            reply = greeting(reply)
            transport.local_process = LocalProcess.find(reply.get("on_machine"))
            if self._wanted == "buffers" and not buffers:
                raise NotSupported(f"{self._who_drops_buffers(kernel)}; use lane='inline'")
            why_not = {}
            if not buffers and self._wanted != InlineLane.name:
                why_not[BuffersLane.name] = self._who_drops_buffers(kernel)
            messages = self._message_lane(buffers)
            messages.note_sums(reply)
            lane: Lane = messages
            if isinstance(listener, str):
                proven, unproven = None, listener
            else:
                sock = listener.accept()
                proven = sock is not None
                why = line(reply["direct"] or "", 200)  # the kernel may send anything
                unproven = "" if proven else why or "the kernel's connection did not arrive"
                no_lane = no_lane or unproven or why or self._unsafe(reply["memory"], proven)
                lane = self._direct_or(messages, listener, sock, reply["files"], no_lane)
            if self._wanted not in MESSAGE_LANES and not isinstance(lane, DirectLane):
                self._report(no_lane or unproven, why_not)
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
            trust="data",
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
            proven,
            unproven,
            str(reply.get("process")),
            orphans,
            in_main_thread=reply.get("in_main_thread") is not False,
            guards_cells=reply.get("guards_cells") is True,
            serves_control=reply.get("serves_control") is True,
        )

    async def _ask(self, header: RequestHeader) -> tuple[ResponseHeader, bool]:
        reply, buffers = await hello(self._transport, header)
        self._transport.introduce(reply.get("kernel_info"))
        return reply, buffers

    def _who_drops_buffers(self, kernel: str) -> str:
        """Say which program is to blame for buffers that did not arrive.

        ipykernel passes them in all versions (6.29 to 7.4, measured). A server that itself asks a
        gateway loses its own connection when a binary message comes, so none is sent.
        """
        url = self._transport.url
        if url is None:
            return f"{kernel} does not pass message buffers"
        server = f"the server at {url}, or a proxy before it,"
        if not self._transport.capabilities.binary:
            return f"{server} passes no binary messages"
        if self._transport.kernel_info.get("implementation") == "ipython":
            return f"{server} drops the buffers of messages, which {kernel} would pass"
        return f"{kernel}, or the server at {url}, does not pass message buffers"

    def _require_python(self) -> str:
        """Return what to call the kernel; raise ``UnsupportedKernel`` unless it runs Python."""
        kernel_info = self._transport.kernel_info
        kernel = _kernel_name(kernel_info)
        language = as_object(kernel_info.get("language_info")).get("name")
        if language != "python":
            raise UnsupportedKernel(
                f"{kernel} is a kernel for {as_text(language)}; bridgehead needs a Python kernel"
            )
        return kernel

    def _message_lane(self, buffers: bool) -> MessageLane:
        """Return the lane for what crosses in messages; ``buffers`` is whether they arrive."""
        if self._wanted in MESSAGE_LANES:
            return MESSAGE_LANES[self._wanted](self._transport)
        return (BuffersLane if buffers else InlineLane)(self._transport)

    def _no_direct_lane(self) -> str:
        """Return why there will be no direct lane, as far as is known here; else an empty text."""
        if self._wanted in MESSAGE_LANES:
            return "lane= asks for another lane"
        if not self._transport.capabilities.direct:
            name = self._transport.name
            return f"the {name} transport cannot reach the kernel's process directly"
        return "" if shared_memory() else "this system or this Python has no memory to share"

    @contextlib.contextmanager
    def _listening(self, no_lane: str) -> Iterator[SocketListener | str]:
        """Listen for the kernel's connection during the block; yield the listener, or why not."""
        if self._transport.no_proof:
            yield self._transport.no_proof
        elif no_lane and not self._proof:
            yield no_lane
        else:
            try:
                listener = SocketListener(self._pool)
            except (OSError, AttributeError) as error:  # a system without these sockets, or /proc
                yield f"this process cannot listen for it: {error}"
                return
            try:
                yield listener
            finally:
                listener.close()

    def _unsafe(self, memory: str, proven: bool) -> str:
        """Return why memory cannot be shared with a kernel that has this kind; else an empty text.

        The kernel could truncate plain memory, which would end this process.
        """
        if (memory == shared_memory() == "sealed") or self._trusts(proven):
            return ""
        return "the kernel is not trusted, and this system has no memory that cannot be truncated"

    def _direct_or(
        self,
        messages: MessageLane,
        listener: SocketListener,
        sock: socket.socket | None,
        files: int,
        why: str,
    ) -> Lane:
        """Return a direct lane over the kernel's connection; ``messages`` if ``why`` forbids it."""
        if sock is None:
            return messages
        if why or not listener.welcome(sock):
            sock.close()
            return messages
        transport = self._transport
        client = SocketClient(sock, self._pool, files, transport.dispatcher, transport.life)
        return DirectLane(transport, client, messages, listener.name)

    def _report(self, why: str, why_not: dict[str, str]) -> None:
        """Report that there is no direct lane.

        Raises:
            NotSupported: the caller asked for this lane.
        """
        why = why or "the kernel's connection broke"
        if self._wanted == DirectLane.name:
            raise NotSupported(f"lane='direct' does not work with this kernel: {why}")
        why_not[DirectLane.name] = why
        log.info("no direct lane, objects cross as messages: %s", why)


def _kernel_name(kernel_info: Mapping[str, Any]) -> str:
    implementation = as_text(kernel_info.get("implementation", "this kernel"))
    version = as_text(kernel_info.get("implementation_version", ""))
    return f"{implementation} {version}".strip()
