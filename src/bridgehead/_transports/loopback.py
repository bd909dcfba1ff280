"""A kernel simulated by a thread of this process.

Rule: the smallest thing that answers Jupyter messages as ipykernel does, so that lanes, bridge
and the real remote part run unchanged. It is public as ``Bridge.loopback()``, for tests that take
milliseconds. It has no magics, no top-level ``await``, no interrupts, and no process of its own.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import io
import queue
import sys
import threading
import traceback
import uuid
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from bridgehead._errors import KernelRestarted, NotSupported
from bridgehead._protocol.bootstrap import remote_source
from bridgehead._transports.base import Transport
from bridgehead._transports.tasks import run_all


class LoopbackTransport(Transport):
    """Messages to a namespace in this process."""

    name = "loopback"
    digest = "crc32"
    own = no_proof = "the remote part runs in this process"
    direct = signals = False  # there is no other process
    has_control = False  # one thread serves all messages

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._serving = False  # the thread runs a cell or serves a request
        self.kernel_info = {
            "implementation": "loopback",
            "implementation_version": "",
            "language_info": {"name": "python"},
            "status": "ok",
        }
        self._start()

    def _start(self) -> None:
        """Start a kernel: an empty namespace, and the thread that serves it."""
        self._cell = LoopbackKernel(self._emit)
        self._thread = threading.Thread(target=self._serve, name="bridgehead-loopback", daemon=True)
        self._thread.start()
        self.life.connection_made()

    async def send(self, channel: str, message: dict[str, Any], buffers: Sequence[Any]) -> None:
        # A real transport sends a copy, so this one copies, too.
        copies = [memoryview(bytes(buffer)) for buffer in buffers]
        self._requests.put({**message, "buffers": copies})

    async def interrupt(self) -> None:
        raise NotSupported("a loopback has no process to interrupt")

    async def replace(self, timeout: float) -> None:
        """Make an empty namespace and a new epoch, as a real restart does."""
        self.connection_lost(lambda: KernelRestarted("the loopback was restarted"), "restarting")
        self._requests.put(None)
        await asyncio.to_thread(self._thread.join)
        self._start()

    async def close(self) -> None:
        await run_all(super().close, self._end_thread)

    def _end_thread(self) -> None:
        self._requests.put(None)
        timings = self.timings
        self._thread.join(timings.busy_thread if self._serving else timings.idle_thread)

    # ------------------------------------------------------------ the thread

    def _serve(self) -> None:
        cell = self._cell
        while (request := self._requests.get()) is not None:
            self._serving = True
            self._answer(cell, request)
            self._serving = False
        cell.leave()

    def _answer(self, cell: LoopbackKernel, request: dict[str, Any]) -> None:
        self._emit("iopub", "status", {"execution_state": "busy"}, request)
        if request["header"]["msg_type"] == "execute_request":
            reply = cell.execute(request)
            self._emit("shell", "execute_reply", reply, request)
        else:
            self._emit("shell", "kernel_info_reply", self.kernel_info, request)
        self._emit("iopub", "status", {"execution_state": "idle"}, request)

    def _emit(
        self,
        channel: str,
        message_type: str,
        content: dict[str, Any],
        parent: dict[str, Any],
        buffers: Sequence[Any] = (),
    ) -> None:
        message = {
            "header": {"msg_id": uuid.uuid4().hex, "msg_type": message_type},
            "parent_header": parent["header"],
            "metadata": {},
            "content": content,
            "buffers": [memoryview(bytes(buffer)) for buffer in buffers],
        }
        with contextlib.suppress(RuntimeError):  # the loop was closed, and the bridge with it
            self._loop.call_soon_threadsafe(self.dispatcher.received, channel, message)


class LoopbackKernel:
    """A namespace, with the parts of IPython and ipykernel that the remote part uses."""

    def __init__(self, emit: Callable[..., None]) -> None:
        self.emit = emit
        self.count = 0
        self.request: dict[str, Any] = {}
        self.user_ns: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__}
        self.user_ns["get_ipython"] = lambda: self
        self.user_global_ns = self.user_ns
        self.user_ns_hidden = dict(self.user_ns)
        from IPython.core.events import EventManager  # takes 25 ms, and only a loopback needs it

        shell: Any = self
        self.events = EventManager(shell, {"post_run_cell": lambda result: None})
        # The part of ipykernel's Kernel that the remote part uses to send.
        self.kernel = SimpleNamespace(
            get_parent=lambda channel: self.request,
            session=SimpleNamespace(send=self._send, session=uuid.uuid4().hex),
            shell_stream="shell",
            _parent_ident={"shell": b""},
        )

    def leave(self) -> None:
        remote_module = sys.modules.get(remote_source()[0])
        if remote_module is not None:
            remote_module.leave(self.user_global_ns)

    def _send(
        self, stream: str, message_type: str, content: Any, parent: Any, ident: Any, buffers: Any
    ) -> None:
        self.emit(stream, message_type, content, parent, buffers)

    def execute(self, request: dict[str, Any]) -> dict[str, Any]:
        self.request = request
        content = request["content"]
        if content["code"].strip():
            error = self._run(content["code"], request)
            self.events.trigger("post_run_cell", None)
            if error is not None:
                return {"status": "error", "execution_count": self.count, **error}
        evaluated = {key: self._value(text) for key, text in content["user_expressions"].items()}
        return {"status": "ok", "execution_count": self.count, "user_expressions": evaluated}

    def _value(self, text: str) -> dict[str, Any]:
        try:
            value = eval(text, self.user_global_ns, self.user_ns)
            return {"status": "ok", "data": bundle(value), "metadata": {}}
        except BaseException as error:
            return {"status": "error", **_error_fields(error)}

    def _run(self, code: str, request: dict[str, Any]) -> dict[str, Any] | None:
        self.count += 1
        counted = {"execution_count": self.count}
        self.emit("iopub", "execute_input", {"code": code, **counted}, request)
        out = _Stream("stdout", lambda text: self._printed("stdout", text))
        err = _Stream("stderr", lambda text: self._printed("stderr", text))
        try:
            tree = ast.parse(code, f"<cell {self.count}>")
            last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            name = f"<cell {self.count}>"
            with out, err:
                exec(compile(tree, name, "exec"), self.user_ns)
                if isinstance(last, ast.Expr):
                    value = eval(compile(ast.Expression(last.value), name, "eval"), self.user_ns)
                    if value is not None:
                        result = {"data": bundle(value), "metadata": {}, **counted}
                        self.emit("iopub", "execute_result", result, request)
        except BaseException as error:
            fields = _error_fields(error)
            self.emit("iopub", "error", fields, request)
            return fields
        return None

    def _printed(self, stream: str, text: str) -> None:
        self.emit("iopub", "stream", {"name": stream, "text": text}, self.request)


class _Stream(io.TextIOBase):
    """``sys.stdout`` or ``sys.stderr`` for a cell and the threads that it starts.

    Threads that ran before the cell keep writing to the stream that this one replaced; the
    program's own output, which shows the cell's text, is among them. Cells of several loopbacks
    may overlap. So a cell that ends restores the stream below all streams that have ended.
    """

    def __init__(self, name: str, write: Callable[[str], None]) -> None:
        self._name, self._write = name, write
        self._earlier_threads = {thread.ident for thread in threading.enumerate()}
        self._earlier_threads.discard(threading.get_ident())
        self.ended = False

    def __enter__(self) -> _Stream:
        self._replaced = getattr(sys, self._name)
        setattr(sys, self._name, self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.ended = True
        if getattr(sys, self._name) is self:
            setattr(sys, self._name, self.original)

    @property
    def original(self) -> Any:
        """The stream that this one replaced, without those that have ended."""
        stream = self._replaced
        return stream.original if isinstance(stream, _Stream) and stream.ended else stream

    def write(self, text: str) -> int:
        if threading.get_ident() in self._earlier_threads:
            return int(self.original.write(text))
        if text:
            self._write(text)
        return len(text)

    def flush(self) -> None:
        if threading.get_ident() in self._earlier_threads:
            self.original.flush()


def bundle(value: Any) -> dict[str, Any]:
    """Return a value's MIME bundle, as far as a loopback needs one."""
    make = getattr(type(value), "_repr_mimebundle_", None)
    return dict(make(value)) if make is not None else {"text/plain": repr(value)}


def _error_fields(error: BaseException) -> dict[str, Any]:
    trace = error.__traceback__.tb_next if error.__traceback__ else None
    lines = "".join(traceback.format_exception(type(error), error, trace)).splitlines()
    return {"ename": type(error).__name__, "evalue": str(error), "traceback": lines}
