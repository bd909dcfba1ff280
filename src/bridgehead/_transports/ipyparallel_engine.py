"""Messages to one engine of an ipyparallel cluster.

Rule: ipyparallel carries the messages, this module translates them. An engine is an ipykernel
behind ipyparallel's schedulers. A request to the remote part travels as ipyparallel's own
``apply``, with its buffers. So it uses the launcher, the tunnel and the CURVE keys that the cluster
has. This module does not import ipyparallel: a caller who passes a client has imported it.

- The applied function is a ``Reference``: text that the engine evaluates in the user's namespace.
  So no code object is sent, the engine may run any Python, and the expression of the request needs
  no change.
- The frames of the response are buffers of the result. (A message that the remote part sends on
  the shell socket reaches the client, which does not know it and logs an error.)
- Cells are ``execute_request``, as ipyparallel's ``execute`` sends them, but without its
  ``stop_on_error``: with that, a failing cell would abort the queued requests of other clients.
- A request on the control channel reaches a thread of the engine, which serves it while the main
  thread works. ipyparallel's own process beside the engine passes it on, as it does an abort.
- There is no direct lane, even on this machine. An engine's main thread also runs its owner's
  ``apply``, which IPython does not report (``pre_execute`` is for cells only). So the kernel's
  socket thread would answer in the middle of a task.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bridgehead._errors import (
    BridgeError,
    InsecureConnection,
    KernelDied,
    KernelNotFound,
    KernelRestarted,
    NotSupported,
    ProtocolError,
    TransportError,
)
from bridgehead._protocol.bootstrap import SYS
from bridgehead._protocol.request import KEY
from bridgehead._shipped.wire.frames import coalesce
from bridgehead._shipped.wire.header import DATA_MESSAGE, MIME
from bridgehead._transports.addresses import stays_here
from bridgehead._transports.base import Transport
from bridgehead._transports.capabilities import Capabilities
from bridgehead._transports.ipyparallel_client import KERNEL, IpyparallelClient, function_text
from bridgehead._transports.ipyparallel_control import EngineControl
from bridgehead._transports.messages import Messages
from bridgehead._transports.tasks import noted_on, run_all

# An engine is on this machine if it can read a file of ours.
_PROBE = (
    "lambda path: (lambda os, kernel, open: ["
    "kernel.implementation, kernel.implementation_version, kernel.language_info['name'], "
    "os.getuid() if hasattr(os, 'getuid') else None, "
    "open(path, 'rb').read() if os.access(path, os.R_OK) else b''"
    f"])({SYS}.modules['os'], {KERNEL}, {SYS}.modules['builtins'].open)"
)


def is_client(client: Any) -> bool:
    """Return whether this is an ipyparallel client."""
    ipyparallel = sys.modules.get("ipyparallel")
    return ipyparallel is not None and isinstance(client, ipyparallel.Client)


def is_view(client: Any) -> bool:
    """Return whether this is one of ipyparallel's views."""
    ipyparallel = sys.modules.get("ipyparallel")
    return ipyparallel is not None and isinstance(client, ipyparallel.client.view.View)


def is_direct(client: Any) -> bool:
    """Return whether this is a view whose engines are fixed, and not chosen by a scheduler."""
    return is_view(client) and hasattr(client, "push")


def engine_of(view: Any) -> int:
    """Return the number of the one engine of a view.

    Raises:
        TypeError: the view has no fixed engine, or several.
    """
    targets = view.targets
    if isinstance(targets, (list, tuple)) and len(targets) == 1:
        targets = targets[0]
    if type(targets) is not int or not is_direct(view):
        raise TypeError(
            "a bridge connects to one engine: use Bridge.over(client[0]), "
            "or Fleet.over(client) or Fleet.over(client[:]) for all of them"
        )
    return targets


class EngineTransport(Transport):
    """One engine of an ipyparallel client, by its number."""

    name = "ipyparallel"
    capabilities = Capabilities(direct=False, has_control=False, pushes=False)

    def __init__(self, client: Any, engine: int) -> None:
        super().__init__()
        self.client, self.engine = client, engine
        self.label = f"engine {engine}"
        self.identity = ""  # the uuid by which the schedulers know the engine
        self.shared = IpyparallelClient.of(client)
        self.broadcaster = self.shared
        self._cells: dict[str, Any] = {}  # execution counts, by request
        self._control = EngineControl(self.shared, self.dispatcher)

    @classmethod
    async def open(
        cls, client: Any, engine: int, *, insecure: Collection[str], timeout: float
    ) -> EngineTransport:
        """Find the engine, and whether it runs on this machine.

        Raises:
            KernelNotFound: the client has no such engine, or it did not answer in time.
            InsecureConnection: plain TCP beyond this machine.
        """
        on_loopback = _on_loopback(client)
        if not on_loopback and not _is_private(client) and "plain-tcp" not in insecure:
            raise InsecureConnection(
                "the ipyparallel client uses plain TCP beyond this machine, where others can read "
                "it (start the cluster with IPController.enable_curve=True, or give the client "
                "an sshserver); insecure='plain-tcp' would allow it"
            )
        if engine not in client.ids:
            known = ", ".join(map(str, client.ids)) or "none"
            raise KernelNotFound(f"the client has no engine {engine}; it has: {known}")
        self = cls(client, engine)
        try:
            async with asyncio.timeout(timeout):
                await self._find(on_loopback)
        except BaseException as error:
            with noted_on(error):
                await self.aclose()
            if isinstance(error, TimeoutError):
                raise KernelNotFound(
                    f"engine {engine} did not answer within {timeout:g} s: it is busy, or stuck"
                ) from None
            raise
        return self

    async def _find(self, on_loopback: bool) -> None:
        self.shared.join(self)
        identity = self.client._engines.get(self.engine)
        if identity is None:
            raise KernelNotFound(f"engine {self.engine} has just left the cluster")
        self.identity = str(identity)
        nonce, waiter = os.urandom(16), self.life.waiter()
        with tempfile.TemporaryDirectory(prefix="bridgehead-") as folder:
            file = Path(folder, "nonce")
            file.write_bytes(nonce)  # noqa: ASYNC240 - sixteen bytes
            future = self.shared.apply(self.identity, _PROBE, [str(file)])
            future.add_done_callback(lambda done: self.shared.call(_copy_result, done, waiter))
            facts = await waiter
        if isinstance(facts, BaseException) or not isinstance(facts, list) or len(facts) != 5:
            raise ProtocolError(f"engine {self.engine} is not an IPython kernel: {facts!r}")
        implementation, version, language, uid, read = facts
        self.kernel_info = {
            "implementation": implementation,
            "implementation_version": version,
            "language_info": {"name": language},
        }
        mine = os.getuid() if hasattr(os, "getuid") else None
        if on_loopback and read == nonce and uid == mine:
            self.capabilities = replace(self.capabilities, digest="crc32")
        else:
            self.no_proof = "the engine, or the way to it, is not on this machine"
        self.life.connection_made()

    # ------------------------------------------------------------ sending and receiving

    async def send(self, channel: str, message: dict[str, Any], buffers: Sequence[Any]) -> None:
        request, content = message["header"]["msg_id"], message["content"]
        if channel not in ("shell", "control"):
            raise NotSupported(
                f"ipyparallel engines do not support {message['header']['msg_type']}; nothing was "
                "sent"
            )
        shared, hook = self.shared, partial(self._follow, request)
        try:
            if channel == "control":
                self._control.send(self.identity, message)
                return
            if message["header"]["msg_type"] != "execute_request":
                future = shared.apply(self.identity, "lambda: None")
            elif content["code"]:
                future = shared.ask(
                    self.identity, "execute_request", hook, request, content=content
                )
            else:
                text = function_text(content["user_expressions"][KEY])
                future = shared.apply(self.identity, text, coalesce(buffers), hook)
        except OSError as error:
            self.closed_by_owner()
            raise TransportError(f"the ipyparallel client was closed: {error}") from None
        future.add_done_callback(
            lambda done: self.shared.call(self._on_result, request, done.msg_id, done.result())
        )

    def _follow(self, identity: str, future: Any) -> None:
        """Subscribe to the iopub messages of a request; the client passes on no others."""

        def on_message(message: dict[str, Any]) -> None:
            # The client may have made a request id of its own; the dispatcher knows ours.
            parent = {**message["parent_header"], "msg_id": identity}
            self.shared.call(self._published, identity, {**message, "parent_header": parent})

        def on_end(_: Any) -> None:
            # The client drops a request when it has both the reply and the "idle". If the reply
            # came first, it does so before it passes the "idle" on.
            if future.done():
                header, content = {"msg_type": "status", "msg_id": ""}, {"execution_state": "idle"}
                parent = {"msg_id": identity}
                idle = {"header": header, "parent_header": parent, "content": content}
                self.shared.call(self._published, identity, idle)

        future.iopub_callbacks.append(on_message)
        future.output.add_done_callback(on_end)

    def _published(self, identity: str, message: dict[str, Any]) -> None:
        if message["header"]["msg_type"] == "execute_input" and identity in self.dispatcher.pending:
            self._cells[identity] = message["content"].get("execution_count")
        try:
            self.dispatcher.received("iopub", message)
        except ProtocolError:
            self.unreadable += 1

    def _on_result(self, identity: str, request: str, value: Any) -> None:
        """Turn ipyparallel's result of a request into the messages of a kernel.

        ``request`` is the client's id of it.
        """
        self._control.finished(request)
        count = self._cells.pop(identity, None)
        if _is_death(value):
            self.engine_lost()
            return
        content: dict[str, Any] = {"status": "ok", "execution_count": count}
        if isinstance(value, list):
            text, *frames = value
            entry = {"status": "ok", "data": {MIME: text}, "metadata": {}}
            content["user_expressions"] = {KEY: entry}
            if frames:
                self._receive(DATA_MESSAGE, identity, {}, frames)
        elif isinstance(value, sys.modules["ipyparallel"].TaskAborted):
            content["status"] = "aborted"
        elif isinstance(value, BaseException):
            error = {
                "status": "error",
                "ename": getattr(value, "ename", type(value).__name__),
                "evalue": getattr(value, "evalue", str(value)),
                "traceback": (getattr(value, "traceback", None) or "").splitlines(),
            }
            if getattr(value, "engine_info", {}).get("method") == "apply":
                content["user_expressions"] = {KEY: error}
            else:
                content.update(error)
        else:
            content["execution_count"] = getattr(value, "execution_count", None)
        self._receive("execute_reply", identity, content)

    def _receive(
        self, kind: str, parent: str, content: dict[str, Any], buffers: Sequence[Any] = ()
    ) -> None:
        header = {"msg_type": kind, "msg_id": ""}
        message = {"header": header, "parent_header": {"msg_id": parent}, "content": content}
        self.dispatcher.received("shell", {**message, "buffers": list(buffers)})

    def expect_events(self, owner: str, epoch: str) -> None:
        self._control.expect_events(self.identity, owner, epoch)

    # ------------------------------------------------------------ the engine's life

    def connection_lost(self, why: Callable[[], BridgeError], state: str) -> None:
        self._control.forget_all()
        super().connection_lost(why, state)

    def engine_lost(self) -> None:
        """Handle the hub's report that it lost the engine."""
        if not self.life.is_lost:
            text = (
                f"engine {self.engine} ({self.identity}) is lost: its process ended, or the hub "
                "receives no heartbeat from it"
            )
            self.connection_lost(lambda: KernelDied(text), "dead")

    def engine_registered(self, identity: str) -> None:
        """Handle the hub's report that an engine registered under this number."""
        if self.life.state == "closed" or identity == self.identity:
            return
        self.identity = identity
        text = f"engine {self.engine} was restarted ({identity}); its namespace is new"
        self.connection_lost(lambda: KernelRestarted(text), "restarting")
        self.life.connection_made()

    def closed_by_owner(self) -> None:
        if self.life.state != "closed":
            self.connection_lost(_closed, "dead")

    async def open_input(self) -> None:
        raise NotSupported("an ipyparallel client does not receive what an engine asks for input")

    def messages(self) -> Messages:
        raise NotSupported(
            "an ipyparallel client only receives the messages of its own requests; call "
            "ipyparallel.bind_kernel() in the engine to get a connection file for Bridge.attach"
        )

    async def interrupt(self) -> None:
        """Send SIGINT through ipyparallel's nanny, a process beside the engine."""
        self.life.check()
        waiter = self.life.waiter()
        try:
            sent = self.client.send_signal(signal.SIGINT, self.engine, block=False)
        except (OSError, IndexError) as error:
            raise TransportError(f"the signal could not be sent: {error}") from None
        sent.add_done_callback(lambda done: self.shared.call(_copy_result, done, waiter))
        reply = (await waiter)[0]["content"]
        if reply.get("status") != "ok":
            raise TransportError(f"engine {self.engine} was not interrupted: {reply.get('evalue')}")

    no_restart = (
        "a single engine cannot be restarted: ipyparallel replaces all engines at once; "
        "await cluster.restart_engines(), then open new bridges"
    )

    async def replace(self, timeout: float) -> None:
        raise NotSupported(self.no_restart)

    async def close(self) -> None:
        await run_all(super().close, lambda: self.shared.leave(self))


def _copy_result(done: Any, waiter: asyncio.Future[Any]) -> None:
    if waiter.done():
        return
    if done.exception() is not None:
        waiter.set_exception(
            TransportError(f"ipyparallel lost the request, which may have run: {done.exception()}")
        )
    else:
        waiter.set_result(done.result())


def _is_death(value: Any) -> bool:
    """Return whether this is the error that the client makes for a dead engine.

    An error that a task raised names its engine.
    """
    return getattr(value, "ename", None) == "EngineError" and not value.engine_info


def _on_loopback(client: Any) -> bool:
    scheme, _, address = str(client._config["interface"]).partition("://")
    return not client._ssh and stays_here(scheme, address)


def _is_private(client: Any) -> bool:
    return bool(client._ssh or client.curve_serverkey)


def _closed() -> TransportError:
    return TransportError("the ipyparallel client was closed by its owner")
