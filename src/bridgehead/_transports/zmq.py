"""Messages over the kernel's own ZeroMQ sockets.

Rule: sockets, readers and signs of life; ``zmq_link`` follows the connection. The sockets come
from jupyter_client's public ``connect_*`` methods, with a context and a session of our own: a
second client with the same session id would take over the first one's replies for good.

Facts this file rests on, all measured:

- ``Session.send`` on an asyncio socket sends on its shadow and consumes the reader's edge-triggered
  wake-up (replies were stuck in 11 of 40 rounds), and it blocks the loop when the queue is full. A
  serialized message that is sent through the asyncio socket itself: 0 of 723.
- With ``ZMQ_IMMEDIATE`` and a socket monitor, messages queued for a kernel that died are dropped
  with its connection and cannot run in the next one, and a lost connection is an event, not a
  guess.
- With ``ZMQ_IMMEDIATE``, messages that arrived and were not read are dropped as well. If the end of
  the connection is noticed in the middle of a message, libzmq 4.3.5 ends this process ("Assertion
  failed: !_more"): one run of two with a flood on a SUB socket was aborted. So iopub, on which
  nothing is sent, does without. A DEALER was aborted in two of 20,000 cuts; see ``read_in_turns``.
- The ``connect_*`` methods give every socket the connection file's CURVE keys. With wrong keys the
  kernel closes the connection, and ZeroMQ tries again for ever. If only one end encrypts, either
  the same happens, or a protocol error ends the attempts: it depends on which end is quicker.
- A REQ socket with ``REQ_RELAXED`` and ``REQ_CORRELATE`` is readable when the answer to an
  earlier request arrives, and ``recv`` then raises ``Again``, in pyzmq's asyncio even without
  ``NOBLOCK``.
- libzmq makes a broken connection again by itself, but not one that it closed because it had no
  memory for a message: that one has to be connected anew.
- The kernel knows a connection by an identity of its own making, so the replies to requests from
  before a break are lost, even if the process is the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import zmq
import zmq.asyncio
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_core.utils import ensure_async

from bridgehead._errors import (
    CLOSED,
    RESTARTED_MEANWHILE,
    BridgeClosed,
    BridgeError,
    KernelDied,
    KernelNotFound,
    KernelRestarted,
    KernelUnresponsive,
    NotSupported,
    TransportError,
)
from bridgehead._transports.addresses import stays_here
from bridgehead._transports.base import Transport
from bridgehead._transports.evidence import is_deserted
from bridgehead._transports.messages import Message, Messages
from bridgehead._transports.process import KernelProcess
from bridgehead._transports.request_table import INPUT
from bridgehead._transports.signed_messages import SignedMessages, split
from bridgehead._transports.tasks import run_all, waited
from bridgehead._transports.zmq_context import MonitoredContext, connect_anew, last_address
from bridgehead._transports.zmq_iopub import IopubSocket, shared_iopub
from bridgehead._transports.zmq_link import Link
from bridgehead._transports.zmq_reader import read_in_turns

CHANNELS = {
    "shell": "shell_port",
    "control": "control_port",
    "iopub": "iopub_port",
    "heartbeat": "hb_port",
}


def _security_of(info: dict[str, Any]) -> tuple[bool, ...]:
    """Return the properties of a connection that decide who can read it and who is trusted."""
    here = stays_here(info["transport"], info["ip"])
    return here, info["transport"] == "ipc", bool(info.get("curve_publickey")), bool(info["key"])


def _milliseconds(seconds: float) -> int:
    """Return a time in the unit that ZeroMQ takes."""
    return round(1000 * seconds)


class ZmqTransport(Transport):
    """A kernel on ZeroMQ sockets, ``tcp`` or ``ipc``, plain or with CURVE.

    ``kernel_process`` holds the kernel's AsyncKernelManager, if there is one. With ``owned``,
    closing ends the kernel.
    """

    def __init__(
        self,
        info: dict[str, Any],
        *,
        connection_file: str | None = None,
        kernel_process: KernelProcess | None = None,
        owned: bool = False,
    ) -> None:
        super().__init__()
        self.connection_file = connection_file
        self._kernel_process, self.owned = kernel_process, owned
        self.manager: Any = None if kernel_process is None else kernel_process.manager
        self._context = context = MonitoredContext()
        context.used_by(self)
        for option, value in (
            (zmq.RCVHWM, 0),
            (zmq.SNDHWM, 0),
            (zmq.LINGER, 0),
            (zmq.IMMEDIATE, 1),
            (zmq.RECONNECT_IVL, _milliseconds(self.timings.zmq_reconnect_every)),
        ):
            context.setsockopt(option, value)
        self._client = AsyncKernelClient(context=context)
        self._client.load_connection_info(info)  # type: ignore[arg-type]
        self._info = info
        self.session = self._client.session
        self._signed = SignedMessages(self.session)
        self.name = self._client.transport
        # Another address of this machine may be a port that SSH forwards. The outputs have a
        # connection of their own, so what they say arrives before a long reply.
        self.dispatcher.inquiry.may_be_slow = self.name != "ipc"
        if stays_here(self.name, self._client.ip):
            self.capabilities = replace(self.capabilities, digest="crc32")
        else:
            self.no_proof = "the connection leads beyond this machine"
        if kernel_process is not None and kernel_process.is_child:
            self.own = "this program started the kernel's process"
        self._sockets: dict[str, Any] = {}
        self._iopub: IopubSocket | None = None
        self._missed = 0  # heartbeats without an answer
        self._question: asyncio.Task[None] | None = None  # on control, of a silent kernel
        self.has_pulse = False  # a heartbeat has been answered, so a missing one means something
        self.link = Link(self)
        self._iopub_seen = asyncio.Event()
        # The socket's reader has the context of whichever bridge made it.
        self._opened_in = contextvars.copy_context()
        self._greeted = asyncio.Event()  # the handshake was answered
        self._introduction: asyncio.Task[None] | None = None
        self._replacing = False  # until the manager has started the new process

    # ------------------------------------------------------------ opening and closing

    async def open(self, timeout: float, connect_timeout: float, *, runs: bool = False) -> None:
        """Connect and wait until the kernel answers and its iopub messages arrive.

        Args:
            timeout: seconds for everything.
            connect_timeout: seconds until a look at the address is evidence that no kernel listens
                there. A kernel that is slow to accept the connection has ``timeout``.
            runs: whether the kernel was started before, so that it loses no message. Then this
                returns when the connection is made, so that the handshake can be sent at once;
                ``introduced`` waits for the rest. To ask first for ``kernel_info`` took 2 ms.

        Raises:
            KernelNotFound: no kernel listens at the address, it refuses the keys, or it never
                answers.
            KernelDied: the launched process ended.
            NotSupported: the launched kernel does not encrypt.
        """
        try:
            monitor = self._connect()
        except zmq.ZMQError as error:
            # This also closes the socket that failed, which is in no variable.
            self._context.destroy(linger=0)
            self._sockets.clear()
            where = self.connection_file or "the client"
            raise KernelNotFound(f"the address in {where} is not valid: {error}") from error
        self.link.watch(monitor)
        heart = self._sockets["heartbeat"]
        for channel in ("shell", "control"):
            self._read(channel, self._sockets[channel])
        self.tasks.keep(partial(self._listen_to, heart), self.timings)
        if self._kernel_process is not None:
            self.tasks.keep(partial(self._watch_process, self._kernel_process), self.timings)
        if runs:
            self.link.gate.open(None)
        await self._connected(timeout, connect_timeout, runs)
        if not runs:
            await self.introduced()

    def introduce(self, kernel_info: Any) -> None:
        if not self.kernel_info and isinstance(kernel_info, dict):
            self.kernel_info = kernel_info
        self._greeted.set()

    async def introduced(self) -> None:
        if self._introduction is None:
            return
        await self.wait_for(self._introduction)

    def _connect(self) -> Any:
        """Connect all sockets and return the monitor of the shell socket."""
        connect = self._client
        self._sockets["shell"] = connect.connect_shell()
        self._sockets["control"] = connect.connect_control()
        heart = self._sockets["heartbeat"] = connect.connect_hb()
        heart.setsockopt(zmq.REQ_RELAXED, 1)  # a lost answer does not block the next beat
        heart.setsockopt(zmq.REQ_CORRELATE, 1)
        self._share_iopub()
        return self._context.monitor

    def _share_iopub(self) -> None:
        self._iopub = shared_iopub(self, self._client, self._context, self.timings)
        self.subscription = self._iopub.subscription

    async def _connected(self, timeout: float, connect_timeout: float, runs: bool = False) -> None:
        """Wait until the kernel is connected; from then on, find out what it is."""
        end = asyncio.get_running_loop().time() + timeout
        where = self.connection_file or "the client's address"
        no_answer = f"the kernel of {where} did not answer within {timeout:g} s: "
        try:
            async with asyncio.timeout_at(end):
                await self._reached(where, connect_timeout)
        except TimeoutError:
            raise KernelNotFound(
                f"{no_answer}no connection to it was made; it is stopped, or its address is out "
                "of reach"
            ) from None
        self._introduction = self.spawn(self._introduce(end, no_answer, runs))

    async def _introduce(self, end: float, no_answer: str, runs: bool) -> None:
        try:
            async with asyncio.timeout_at(end):
                if runs:
                    async with waited(self.timings.unasked):
                        await self._greeted.wait()
                if not (runs and self.kernel_info):
                    self.kernel_info = await self._kernel_info()
                await self._wait_for_iopub()
        except TimeoutError:
            raise KernelNotFound(f"{no_answer}it has another key, or it is stuck") from None
        if self.life.state == "starting":
            self.life.state = "busy"  # until it answers on shell, behind any running cell

    async def _reached(self, where: str, connect_timeout: float) -> None:
        """Wait until shell and control are connected: before that they accept no message.

        ZeroMQ tries for ever, and does not say why it has no connection. So after
        ``connect_timeout`` seconds this looks at the address itself. On a loaded machine, or to a
        stopped kernel, the connection may take longer; that is no evidence.
        """
        loop = asyncio.get_running_loop()
        look = loop.time() + connect_timeout
        for channel in ("shell", "control"):
            while not await self._sockets[channel].poll(
                _milliseconds(self.timings.poll_every), zmq.POLLOUT
            ):
                self.life.check()
                if self.link.is_refused:
                    raise self._refusal(where)
                if loop.time() < look:
                    continue
                if self.link.was_refused:
                    raise self._refusal(where)
                if await self._is_deserted(channel, unreachable=True):
                    raise KernelNotFound(
                        f"no kernel listens at the address in {where}; it has exited, or "
                        f"{where} belongs to another kernel"
                    )
                look = loop.time() + connect_timeout

    async def _is_deserted(self, channel: str, *, unreachable: bool = False) -> bool:
        port = getattr(self._client, CHANNELS[channel])
        return await is_deserted(
            *(self._client.transport, self._client.ip, port, self.timings.zmq_greeting),
            unreachable=unreachable,
        )

    def _refusal(self, where: str) -> BridgeError:
        """Make the error for a connection that is closed at once, often without a reason."""
        if getattr(self._client, "curve_publickey", None) is None:
            return KernelNotFound(
                f"the program at the address in {where} closes every connection: it encrypts and "
                "the file lacks its CURVE keys, or it is a forwarded port without a kernel"
            )
        if self.owned:
            return NotSupported(
                "the kernel does not encrypt, although its kernelspec says that it can; its "
                "environment needs ipykernel 7.3 or later"
            )
        return KernelNotFound(
            f"the program at the address in {where} refuses the CURVE keys in the file: they "
            "belong to another kernel, or it does not encrypt, or it is a forwarded port without "
            "a kernel"
        )

    async def _kernel_info(self) -> dict[str, Any]:
        patience = self.timings.first_reply
        while True:
            self.life.check()
            with contextlib.suppress(TransportError, TimeoutError):
                return await self.dispatcher.control("kernel_info_request", {}, patience)
            patience = min(2 * patience, self.timings.longest_reply)
            await asyncio.sleep(self.timings.ask_again_after)

    async def _wait_for_iopub(self) -> None:
        """Wait until the iopub subscription works: until then the outputs of cells would be lost.

        The subscription takes a moment to arrive, and nothing confirms it but a message. The
        connection may be that of other bridges, and be gone.
        """
        for _ in range(20):
            if self._iopub_seen.is_set():
                return
            with contextlib.suppress(TransportError, TimeoutError):
                await self.dispatcher.control("kernel_info_request", {}, self.timings.iopub_message)
                if self._iopub is not None:
                    self._iopub.note_reply()
            async with waited(self.timings.iopub_message):
                await self._iopub_seen.wait()

    async def close(self) -> None:
        await run_all(super().close, self._close_sockets, self._end_kernel)

    async def _close_sockets(self) -> None:
        self.link.unwatch()
        for socket in self._sockets.values():
            # Do this before the monitor closes. With the monitor closed, libzmq would try for ever
            # to deliver an event (such as the end of a kernel just now), and ``disable_monitor``
            # would wait for that while it holds the GIL.
            if not socket.closed:
                socket.disable_monitor()
        if self._context.monitor is not None:
            self._context.monitor.close(linger=0)
        for socket in self._sockets.values():
            socket.close(linger=_milliseconds(self.timings.last_messages))
        self._sockets.clear()
        if self._iopub is not None:
            await self._iopub.leave(self)
        await self._context.left_by(self)

    async def _end_kernel(self) -> None:
        if self._kernel_process is not None and self.owned:
            await self._kernel_process.end(polite=bool(self.kernel_info))

    # ------------------------------------------------------------ sending and receiving

    def message(self, message_type: str, content: dict[str, Any]) -> dict[str, Any]:
        message: dict[str, Any] = self.session.msg(message_type, content)
        return message

    def messages(self) -> Messages:
        stream = super().messages()
        if self._iopub is not None:
            self._iopub.stream_to(self)
        return stream

    async def open_input(self) -> None:
        """Connect the channel for input, which few programs need.

        The kernel sends a question to the connection that has the identity of the request's. So
        the cells that may ask have a second connection to shell: the identity of the first one is
        of the kernel's making.
        """
        if "stdin" not in self._sockets:
            identity = uuid.uuid4().bytes
            self._sockets["stdin"] = self._client.connect_stdin(identity)
            self._sockets[INPUT] = self._client.connect_shell(identity)
            for channel, name in ("stdin", "stdin"), ("shell", INPUT):
                self._read(channel, self._sockets[name])
        for name in ("stdin", INPUT):
            socket: Any = self._sockets[name]
            while not await socket.poll(_milliseconds(self.timings.poll_every), zmq.POLLOUT):
                self.life.check()

    def outputs(self) -> contextlib.AbstractContextManager[None]:
        return self.subscription.outputs()

    async def nudge(self) -> None:
        """Make another connection to shell, which wakes the kernel's event loop, and close it."""
        with contextlib.suppress(zmq.ZMQError):  # this process has no descriptor left
            socket: Any = self._client.connect_shell()
            try:  # it counts as connected after the handshake
                await socket.poll(_milliseconds(self.timings.zmq_greeting), zmq.POLLOUT)
            finally:
                socket.close(linger=0)

    async def send(self, channel: str, message: dict[str, Any], buffers: Sequence[Any]) -> None:
        identity, generation = message["header"]["msg_id"], self.life.generation
        if self.subscription.is_pending and channel == "shell":
            await self.subscription.wait_confirmed()
        parts = [*self.session.serialize(message), *buffers]
        while True:
            message_type, gate = message["header"]["msg_type"], self.link.gate
            if message_type == "kernel_info_request" and channel == "control":
                gate.asked(identity)
            else:
                await self.link.ready(identity, generation)
                if gate.process is None:  # whichever process answers is the one that is meant
                    gate.asked(identity)
            asks = channel == "shell" and message["content"].get("allow_stdin") is True
            socket = self._sockets.get(INPUT if asks else channel)
            if socket is None:  # closed while this waited, or a task still asks after the close
                raise BridgeClosed(CLOSED)
            try:
                await socket.send_multipart(parts, flags=zmq.NOBLOCK, copy=False)
                return
            except zmq.Again:
                if asks or channel != "shell":
                    raise TransportError(
                        "the connection to the kernel is down, and the message was not sent; the "
                        "bridge connects again, so call again"
                    ) from None
                self.link.broken(identity)  # the event that says so has not arrived yet

    def _read(self, channel: str, socket: Any) -> None:
        """Read a socket from now on."""

        def take(frames: list[zmq.Frame]) -> None:
            self._arrived(channel, frames)  # looked up for each message: tests replace it

        self.tasks.keep(partial(read_in_turns, socket, take), self.timings)

    def _arrived(self, channel: str, frames: list[zmq.Frame]) -> None:
        try:
            self._received(channel, self._signed.read(split(frames)[1]))
        except Exception:  # noqa: BLE001
            # A forged, damaged or unknown message must only harm its own request.
            self.unreadable += 1

    def _received(self, channel: str, message: dict[str, Any]) -> None:
        header = message["header"]
        kind = channel, header["msg_type"]
        is_done = kind == ("shell", "execute_reply")
        if kind == ("control", "kernel_info_reply") or (is_done and self.link.gate.process is None):
            self.link.answered(message["parent_header"].get("msg_id"), header.get("session"))
        self.dispatcher.received(channel, message)
        if is_done and self._iopub is not None:
            self._iopub.note_reply()

    def take_published(self, message: Message | None, in_subshell: bool) -> None:
        """Take a message of iopub; none if it says only that the subscription works."""
        self._iopub_seen.set()
        self.life.note_responsive()
        if message is not None:
            self._opened_in.copy().run(self.dispatcher.take_published, message, in_subshell)

    def connect_anew(self, channel: str) -> None:
        """Connect a socket to its address again, in place of a connection that is gone."""
        connect_anew(self._sockets[channel])

    def connection_lost(self, why: Callable[[], BridgeError], state: str) -> None:
        super().connection_lost(why, state)
        self.link.note_lost()

    # ------------------------------------------------------------ signs of life

    @property
    def process(self) -> str | None:
        return self.link.gate.process or None

    @property
    def address(self) -> Any:
        return self._client.ip, self._client.shell_port, self._client.session.key

    async def has_ended(self) -> bool:
        """Return whether there is evidence that the process has ended."""
        if self.life.shut_down:
            return True
        if self._kernel_process is not None:
            await self.look_at_process()  # which reports it, with the exit code
            return False
        if self.local_process is not None:
            return self.local_process.has_ended() is True
        # The process cannot be looked at. All that can be known is whether a kernel listens.
        return await self._is_deserted("shell")

    @property
    def process_is(self) -> str:
        """What is known of a process of which there is no evidence that it has ended."""
        if self._kernel_process is not None:
            return "its manager does not report that its process has ended"
        if self.local_process is not None:
            return "its process runs"
        return "nothing shows that its process has ended"

    async def _listen_to(self, heart: Any) -> None:
        """Distinguish a stopped kernel from a busy one by its heartbeat.

        A thread without Python answers the heartbeat: it answers during sleep, busy loops and C
        calls that hold the GIL. Missed beats are counted, not seconds: a pause of our own loop, or
        of the whole machine, counts as one. A heartbeat that was never answered means nothing: its
        port may not be forwarded. No beat is sent while no caller waits.
        """
        self._missed, known, signs = 0, False, 0
        while True:
            if known and not self._missed:
                await asyncio.sleep(self.timings.beat_every)
            if known and not self.has_waiters and not self.life.is_unresponsive:
                self._missed = 0
                continue
            try:
                await heart.send(b"beat", flags=zmq.NOBLOCK)
            except zmq.Again:  # not connected yet, or down, which the monitor reports
                if not known:
                    await asyncio.sleep(self.timings.poll_every)
                    continue
            if await heart.poll(_milliseconds(self.timings.beat_every)):
                # libzmq drops the answers to earlier beats, and reports EAGAIN if there is no other
                # answer. Those are signs of life, too: after a stopped kernel continues, they
                # arrive first.
                with contextlib.suppress(zmq.Again):
                    await heart.recv(flags=zmq.NOBLOCK)
                self._missed, known = 0, True
                self.has_pulse = True
                self.life.note_responsive(beat=True)
                continue
            # Any other message is a sign of life as well.
            self._missed = self._missed + 1 if signs == self.life.signs else 0
            signs = self.life.signs
            if (
                known
                and self._missed * self.timings.beat_every >= self.timings.silence
                and not self.life.is_lost
            ):
                self._silent()

    def _silent(self) -> None:
        """Report a kernel that answers no heartbeat; look at its process, and ask it on control."""
        # A proxy may keep the connection to a process that has ended.
        if self.local_process is not None and self.local_process.has_ended():
            self.link.ended()
            return
        self.life.note_unresponsive(self._silence())
        self.link.gate.wake()
        if self._question is None or self._question.done():
            self._question = self.spawn(self._ask_on_control())

    async def _ask_on_control(self) -> None:
        """Connect the heartbeat anew if only its connection is gone: the kernel answers here."""
        await self.dispatcher.control("kernel_info_request", {}, self.timings.silent_answer)
        self.connect_anew("heartbeat")

    def _silence(self) -> Callable[[], KernelUnresponsive]:
        return lambda: KernelUnresponsive(
            f"the kernel's process shows no sign of life for {self.timings.silence:g} s: it is "
            "stopped, or the machine is overloaded; the bridge goes on when it answers again"
        )

    async def _watch_process(self, kernel_process: KernelProcess) -> None:
        while True:
            await kernel_process.pause(self.link.down)
            await self.look_at_process()

    async def look_at_process(self) -> None:
        process, generation = self._kernel_process, self.life.generation
        if process is None or self._replacing or self.life.is_lost:
            return
        if not await process.has_ended():
            return
        await self.subscription.drain()
        if self.life.generation == generation:  # else it is lost already, or was replaced
            by = "; another client had asked it to shut down" if self.life.shut_down else ""
            text = f"the kernel's process {process.how()}{by}{process.last_words()}"
            code = process.exit_code
            self.connection_lost(lambda: KernelDied(text, exit_code=code), "dead")

    # ------------------------------------------------------------ interrupt and restart

    async def interrupt(self) -> None:
        """Interrupt through the manager, or by an ``interrupt_request`` on the control channel."""
        self.life.check()
        if self.manager is not None:
            await ensure_async(self.manager.interrupt_kernel())
            return
        await self.dispatcher.control("interrupt_request", {})

    @property
    def no_restart(self) -> str:
        if self.manager is not None:
            return ""
        return (
            "cannot restart: this bridge attached to a kernel that another program started; "
            "restart it there, such as in its notebook"
        )

    async def replace(self, timeout: float) -> None:
        self.link.restarting = self._replacing = True
        try:
            self.connection_lost(lambda: KernelRestarted(RESTARTED_MEANWHILE), "restarting")
            down = self.link.down.is_set()
            await ensure_async(self.manager.restart_kernel(now=True))
            await self._follow()
            if not down:  # messages sent before the old connection breaks would be lost with it
                async with waited(self.timings.old_connection):
                    await self.link.down.wait()
            self.life.connection_made()
            self.life.state = "starting"
            self._replacing = False
            self.link.gate.shut(forget=True)  # an answer of the old process does not count
            await self._connected(timeout, timeout)
            await self.introduced()
        finally:
            self.link.restarting = self._replacing = False

    async def _follow(self) -> None:
        """Connect the sockets to the new address, if the provisioner started the kernel elsewhere.

        Raises:
            NotSupported: the new connection is less or more secure than the one that was checked
                when the bridge was opened.
        """
        info = dict(self.manager.get_connection_info())
        if info == self._info:
            return
        if _security_of(info) != _security_of(self._info):
            raise NotSupported(
                f"the kernel was restarted at {info['ip']}, over another kind of connection; "
                "close this bridge and open a new one"
            )
        ports = {**CHANNELS, "stdin": "stdin_port", INPUT: "shell_port"}
        for name in ports.values():
            setattr(self._client, name, 0)  # otherwise the client keeps the old port
        self._client.load_connection_info(info)  # type: ignore[arg-type]
        for channel, port in ports.items():
            socket = self._sockets.get(channel)
            if socket is None:  # the shared one, or that of questions, which no cell asked yet
                continue
            socket.disconnect(last_address(socket))
            if self._client.curve_publickey is not None:
                socket.curve_secretkey = self._client.curve_secretkey
                socket.curve_publickey = self._client.curve_publickey
                socket.curve_serverkey = self._client.curve_publickey
            between = "-" if info["transport"] == "ipc" else ":"
            socket.connect(f"{info['transport']}://{info['ip']}{between}{info[port]}")
        if self._iopub is not None:
            await self._iopub.leave(self)
            self._iopub_seen.clear()  # of the new connection, nothing is known
            self._share_iopub()
        self._info = info  # if this failed, the next restart tries again
