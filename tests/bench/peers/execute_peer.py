"""jupyter_client alone: buffers on an execute_request, and on iopub back, as replies have none.

This is the code of a user without a library: no digest, no errors, no concurrent reader.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import zmq
from jupyter_client.blocking.client import BlockingKernelClient

from bridgehead._tools.bench.peers import Peer
from bridgehead._tools.bench.samples import frames
from tests.bench.kernels import plain_kernel

SETUP = """
import pickle as _pickle
def _bench_push(name):
    head, *buffers = get_ipython().kernel.get_parent("shell")["buffers"]
    get_ipython().user_ns[name] = _pickle.loads(head, buffers=buffers)
    return 1
def _bench_pull(name):
    kernel, buffers = get_ipython().kernel, []
    head = _pickle.dumps(get_ipython().user_ns[name], 5, buffer_callback=buffers.append)
    parent, frames = kernel.get_parent("shell"), [head, *(b.raw() for b in buffers)]
    kernel.session.send(kernel.iopub_socket, "bench", {}, parent, ident=b"bench", buffers=frames)
    return 1
"""


class ExecuteBuffers(Peer):
    name = "execute"

    def __init__(self) -> None:
        self._stack = AsyncExitStack()

    async def start(self, modules: Sequence[str] = ()) -> None:
        manager = await self._stack.enter_async_context(plain_kernel())
        self._client = client = BlockingKernelClient()
        client.load_connection_file(manager.connection_file)
        client.start_channels(stdin=False, hb=False, control=False)
        self._stack.callback(client.context.destroy, linger=0)
        self._stack.callback(client.stop_channels)
        self._shell: Any = zmq.Socket.shadow(client.shell_channel.socket.underlying)
        self._iopub: Any = zmq.Socket.shadow(client.iopub_channel.socket.underlying)
        self._ask(SETUP + "".join(f"import {module}\n" for module in modules), "1")

    async def stop(self) -> None:
        await self._stack.aclose()

    async def push(self, name: str, value: Any) -> None:
        self._ask("", f"_bench_push({name!r})", frames(value))
        while self._iopub.poll(0):
            self._iopub.recv_multipart(copy=False)

    async def pull(self, name: str) -> Any:
        self._send("", f"_bench_pull({name!r})")
        while True:
            parts = self._iopub.recv_multipart(copy=False)
            if parts[0].bytes == b"bench":
                break
        _, parts = self._client.session.feed_identities(parts, copy=False)
        head, *buffers = self._client.session.deserialize(parts, copy=False)["buffers"]
        value = pickle.loads(head, buffers=buffers)
        self._shell.recv_multipart()
        return value

    def _send(self, code: str, expression: str, buffers: Sequence[Any] = ()) -> None:
        content = {
            "code": code,
            "silent": True,
            "store_history": False,
            "user_expressions": {"it": expression},
            "allow_stdin": False,
            "stop_on_error": True,
        }
        request = self._client.session.msg("execute_request", content)
        self._client.session.send(self._shell, request, buffers=list(buffers))

    def _ask(self, code: str, expression: str, buffers: Sequence[Any] = ()) -> None:
        self._send(code, expression, buffers)
        _, parts = self._client.session.feed_identities(self._shell.recv_multipart())
        content = self._client.session.deserialize(parts)["content"]
        assert content["user_expressions"]["it"]["status"] == "ok", content


make = ExecuteBuffers
