"""Messages to one engine of an ipyparallel cluster, over the client that its owner has.

Rule: ipyparallel carries, this translates. An engine is an ipykernel behind ipyparallel's
schedulers; what the loader is asked crosses by their own ``apply``, with its buffers, and so over
whatever launcher, tunnel and CURVE the cluster has. ipyparallel is not imported here: whoever
hands in a client has done that.

- What is applied is a ``Reference``: text that the engine evaluates in the user's namespace. So no
  code object crosses, whatever Python is there, and the loader's expression serves as it is.
- The answer's frames are the result's own buffers. (What the loader would send on the shell
  socket reaches the client, which knows no such message and logs an error.)
- Cells are ``execute_request``, as ipyparallel's ``execute`` sends them, but for one thing: with
  its ``stop_on_error`` a failing cell would abort what others have in the queue.
- No direct lane, even on this machine: an engine's main thread also runs its owner's ``apply``, of
  which IPython tells nobody (``pre_execute`` is for cells), so a thread beside it would answer in
  the middle of a task.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bridgehead._errors import (
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
from bridgehead._transports.ipyparallel_client import KERNEL, IpyparallelClient, applied
from bridgehead._transports.messages import Messages

# What tells an engine on this machine from one elsewhere: it can read a file of ours.
_PROBE = (
    "lambda path: (lambda os, kernel, open: ["
    "kernel.implementation, kernel.implementation_version, kernel.language_info['name'], "
    "os.getuid() if hasattr(os, 'getuid') else None, "
    "open(path, 'rb').read() if os.access(path, os.R_OK) else b''"
    f"])({SYS}.modules['os'], {KERNEL}, {SYS}.modules['builtins'].open)"
)


def is_client(lender: Any) -> bool:
    """Whether it is an ipyparallel client."""
    ipyparallel = sys.modules.get("ipyparallel")
    return ipyparallel is not None and isinstance(lender, ipyparallel.Client)


def is_view(lender: Any) -> bool:
    """Whether it is one of ipyparallel's views."""
    ipyparallel = sys.modules.get("ipyparallel")
    return ipyparallel is not None and isinstance(lender, ipyparallel.client.view.View)


def is_direct(lender: Any) -> bool:
    """Whether it is a view that says itself which engines it goes to."""
    return is_view(lender) and hasattr(lender, "push")


def engine_of(view: Any) -> int:
    """The one engine of a view.

    Raises:
        TypeError: it has none of its own, or several.
    """
    targets = view.targets
    if isinstance(targets, (list, tuple)) and len(targets) == 1:
        targets = targets[0]
    if type(targets) is not int or not is_direct(view):
        raise TypeError(
            "a bridge goes to one engine: Bridge.over(client[0]); "
            "Fleet.over(client) or Fleet.over(client[:]) goes to all of them"
        )
    return targets


class EngineTransport(Transport):
    """One engine of a client's, by its id."""

    name = "ipyparallel"
    direct = False
    pushes = False

    def __init__(self, client: Any, engine: int) -> None:
        super().__init__()
        self.client, self.engine = client, engine
        self.called = f"engine {engine}"
        self.identity = ""  # the uuid under which the schedulers know it
        self.controller = IpyparallelClient.of(client)
        self.broadcaster = self.controller
        self._cells: dict[str, Any] = {}  # execution counts, by request

    @classmethod
    async def open(
        cls, client: Any, engine: int, *, insecure: Collection[str], timeout: float
    ) -> EngineTransport:
        """Find the engine, and where it is.

        Raises:
            KernelNotFound: the client has no such engine, or it did not answer in time.
            InsecureConnection: plain TCP beyond this machine.
        """
        near = _on_loopback(client)
        if not near and not _is_private(client) and "plain-tcp" not in insecure:
            raise InsecureConnection(
                "the ipyparallel client talks plain TCP beyond this machine, readable on the "
                "way (start the cluster with IPController.enable_curve=True, or give the client "
                "an sshserver); insecure='plain-tcp' would allow it"
            )
        if engine not in client.ids:
            known = ", ".join(map(str, client.ids)) or "none"
            raise KernelNotFound(f"the client has no engine {engine}; there is: {known}")
        self = cls(client, engine)
        try:
            async with asyncio.timeout(timeout):
                await self._find(near)
        except TimeoutError:
            await self.aclose()
            raise KernelNotFound(
                f"engine {engine} did not answer within {timeout:g} s: it is busy, or stuck"
            ) from None
        except BaseException:
            await self.aclose()
            raise
        return self

    async def _find(self, near: bool) -> None:
        self.controller.join(self)
        identity = self.client._engines.get(self.engine)
        if identity is None:
            raise KernelNotFound(f"engine {self.engine} has just left")
        self.identity = str(identity)
        nonce, waiter = os.urandom(16), self.life.waiter()
        with tempfile.TemporaryDirectory(prefix="bridgehead-") as folder:
            file = Path(folder, "nonce")
            file.write_bytes(nonce)  # noqa: ASYNC240 - sixteen bytes
            future = self.controller.apply(self.identity, _PROBE, [str(file)])
            future.add_done_callback(lambda done: self.controller.call(_hand_over, done, waiter))
            told = await waiter
        if isinstance(told, BaseException) or not isinstance(told, list) or len(told) != 5:
            raise ProtocolError(f"engine {self.engine} is no IPython kernel: {told!r}")
        implementation, version, language, uid, read = told
        self.kernel_info = {
            "implementation": implementation,
            "implementation_version": version,
            "language_info": {"name": language},
        }
        mine = os.getuid() if hasattr(os, "getuid") else None
        self.ours = near and read == nonce and uid == mine
        self.digest = "crc32" if self.ours else "sha256"
        self.life.connection_made()

    # ------------------------------------------------------------ sending and receiving

    async def send(self, channel: str, message: dict[str, Any], buffers: Sequence[Any]) -> None:
        request, content = message["header"]["msg_id"], message["content"]
        if channel != "shell":
            raise NotSupported(f"an engine takes no {message['header']['msg_type']}")
        ask, hook = self.controller, partial(self._follow, request)
        try:
            if message["header"]["msg_type"] != "execute_request":
                future = ask.apply(self.identity, "lambda: None")
            elif content["code"]:
                future = ask.ask(self.identity, "execute_request", hook, content=content)
            else:
                text = applied(content["user_expressions"][KEY])
                future = ask.apply(self.identity, text, coalesce(buffers), hook)
        except OSError as error:
            self.closed_by_owner()
            raise TransportError(f"the ipyparallel client was closed: {error}") from None
        future.add_done_callback(
            lambda done: self.controller.call(self._resulted, request, done.result())
        )

    def _follow(self, identity: str, future: Any) -> None:
        """Hear what iopub tells of a request, which the client gives to nobody else's."""

        def heard(message: dict[str, Any]) -> None:
            parent = {**message["parent_header"], "msg_id": identity}
            told = {**message, "parent_header": parent}
            self.controller.call(self._published, identity, told)

        future.iopub_callbacks.append(heard)

    def _published(self, identity: str, message: dict[str, Any]) -> None:
        if message["header"]["msg_type"] == "execute_input" and identity in self.dispatcher.pending:
            self._cells[identity] = message["content"].get("execution_count")
        try:
            self.dispatcher.received("iopub", message)
        except ProtocolError:
            self.bad += 1

    def _resulted(self, identity: str, value: Any) -> None:
        """What ipyparallel has for a request, as the messages of a kernel."""
        count = self._cells.pop(identity, None)
        if _is_death(value):
            self.left()
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

    # ------------------------------------------------------------ the engine's life

    def left(self) -> None:
        """The hub says that the engine is gone."""
        if not self.life.is_lost:
            words = (
                f"engine {self.engine} ({self.identity}) is gone: its process ended, or the hub "
                "hears no heartbeat of it"
            )
            self.connection_lost(lambda: KernelDied(words), "dead")

    def came(self, identity: str) -> None:
        """An engine registered under this id."""
        if self.life.state == "closed" or identity == self.identity:
            return
        self.identity = identity
        words = f"engine {self.engine} is another process now ({identity})"
        self.connection_lost(lambda: KernelRestarted(words), "restarting")
        self.life.connection_made()

    def closed_by_owner(self) -> None:
        if self.life.state != "closed":
            self.connection_lost(_closed, "dead")

    def messages(self) -> Messages:
        raise NotSupported(
            "an ipyparallel client hears of its own requests alone; in the engine, "
            "ipyparallel.bind_kernel() makes a connection file for Bridge.attach"
        )

    async def interrupt(self) -> None:
        """SIGINT by ipyparallel's nanny, which stands beside the engine."""
        self.life.check()
        waiter = self.life.waiter()
        try:
            sent = self.client.send_signal(signal.SIGINT, self.engine, block=False)
        except (OSError, IndexError) as error:
            raise TransportError(f"the signal could not be sent: {error}") from None
        sent.add_done_callback(lambda done: self.controller.call(_hand_over, done, waiter))
        told = (await waiter)[0]["content"]
        if told.get("status") != "ok":
            raise TransportError(f"the signal did not arrive: {told.get('evalue')}")

    async def replace(self, timeout: float) -> None:
        raise NotSupported(
            "ipyparallel restarts engines together, as new ones: "
            "await cluster.restart_engines(), then open bridges to those"
        )

    async def close(self) -> None:
        await super().close()
        self.controller.leave(self)


def _hand_over(done: Any, waiter: asyncio.Future[Any]) -> None:
    if waiter.done():
        return
    if done.exception() is not None:
        waiter.set_exception(TransportError(f"ipyparallel failed: {done.exception()}"))
    else:
        waiter.set_result(done.result())


def _is_death(value: Any) -> bool:
    """Whether it is what the client makes up where an engine died; a task's own has an engine."""
    return getattr(value, "ename", None) == "EngineError" and not value.engine_info


def _on_loopback(client: Any) -> bool:
    scheme, _, address = str(client._config["interface"]).partition("://")
    return not client._ssh and stays_here(scheme, address)


def _is_private(client: Any) -> bool:
    return bool(client._ssh or client.curve_serverkey)


def _closed() -> TransportError:
    return TransportError("the ipyparallel client was closed by its owner")
