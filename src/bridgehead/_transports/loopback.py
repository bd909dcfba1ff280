"""A kernel simulated by a thread of this process.

Rule: the smallest thing that answers Jupyter messages as ipykernel does, so that lanes, bridge
and the real remote part run unchanged. It is public as ``Bridge.loopback()``, for tests that take
milliseconds. It has no magics, no top-level ``await`` in cells, no interrupts, and no process of
its own.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import contextlib
import io
import queue
import sys
import threading
import traceback
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

from bridgehead._errors import RESTARTED_MEANWHILE, KernelRestarted, NotSupported
from bridgehead._protocol.bootstrap import remote_source
from bridgehead._transports.base import Transport
from bridgehead._transports.capabilities import Capabilities
from bridgehead._transports.dispatch import END_OF_INPUT
from bridgehead._transports.tasks import in_thread, run_all


class LoopbackTransport(Transport):
    """Messages to a namespace in this process."""

    name = "loopback"
    own = no_proof = "the remote part runs in this process"
    # There is no other process, and one thread serves the messages of Jupyter.
    capabilities = Capabilities(digest="crc32", direct=False, signals=False, has_control=False)

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self.kernel_info = {
            "implementation": "loopback",
            "implementation_version": "",
            "language_info": {"name": "python"},
            "status": "ok",
        }
        self._start()

    def _start(self) -> None:
        """Start a kernel: an empty namespace, and the thread that serves it."""
        loop = asyncio.new_event_loop()
        self._cell = cell = LoopbackKernel(
            lambda *message: self._emit(cell, *message), loop, self._loop.call_soon_threadsafe
        )
        self._requests: asyncio.Queue[Any] = asyncio.Queue()  # used in the thread's loop
        self._thread = threading.Thread(
            target=self._run, args=(loop,), name="bridgehead-loopback", daemon=True
        )
        self._thread.start()
        self.life.connection_made()

    async def send(self, channel: str, message: dict[str, Any], buffers: Sequence[Any]) -> None:
        if channel == "control":
            self._serve_control(message)
            return
        # A real transport sends a copy, so this one copies, too.
        copies = [memoryview(bytes(buffer)) for buffer in buffers]
        if channel == "stdin":
            self._cell.answers.put(message["content"]["value"])
            return
        self._put({**message, "buffers": copies})

    def _serve_control(self, message: dict[str, Any]) -> None:
        """Serve a message that needs no thread of the cells."""
        kind = message["header"]["msg_type"]
        handler = self._cell.kernel.control_handlers.get(kind)
        if handler is not None:
            handler("control", [b""], message)
        else:
            known = kind == "kernel_info_request"
            content = self.kernel_info if known else {"status": "error"}
            self._cell.emit("control", kind.replace("_request", "_reply"), content, message)
            self._cell.emit("iopub", "status", {"execution_state": "idle"}, message)

    def _put(self, request: dict[str, Any] | None) -> None:
        """Give the thread a request, or None to end it."""
        with contextlib.suppress(RuntimeError):  # it has ended
            self._cell.loop.call_soon_threadsafe(self._requests.put_nowait, request)

    async def interrupt(self) -> None:
        raise NotSupported("a loopback has no process to interrupt")

    async def replace(self, timeout: float) -> None:
        """Make an empty namespace and a new epoch, as a real restart does.

        A thread cannot be killed: a cell that runs goes on, and its outputs are dropped.
        """
        self.connection_lost(lambda: KernelRestarted(RESTARTED_MEANWHILE), "restarting")
        await in_thread(self._end_thread)
        self._start()

    async def close(self) -> None:
        await run_all(super().close, self._end_thread)

    def _end_thread(self) -> None:
        self._put(None)
        self._cell.answers.put(END_OF_INPUT)
        self._cell.leave()  # a cell may wait for room of a callback
        timings = self.timings
        self._thread.join(timings.busy_thread if self._cell.serving else timings.idle_thread)

    # ------------------------------------------------------------ the thread

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(self._serve(self._cell, self._requests))

    async def _serve(self, cell: LoopbackKernel, requests: asyncio.Queue[Any]) -> None:
        while (request := await requests.get()) is not None:
            cell.serving = True
            self._answer(cell, request)
            cell.serving = False
        cell.leave()  # at the end: a request behind a cell may have made another ``Remote``

    def _answer(self, cell: LoopbackKernel, request: dict[str, Any]) -> None:
        cell.emit("iopub", "status", {"execution_state": "busy"}, request)
        if request["header"]["msg_type"] == "execute_request":
            reply = cell.execute(request)
            cell.emit("shell", "execute_reply", reply, request)
        else:
            cell.emit("shell", "kernel_info_reply", self.kernel_info, request)
        cell.emit("iopub", "status", {"execution_state": "idle"}, request)

    def _emit(
        self,
        cell: LoopbackKernel,
        channel: str,
        message_type: str,
        content: dict[str, Any],
        parent: dict[str, Any],
        buffers: Sequence[Any] = (),
    ) -> None:
        if cell is not self._cell:  # it was restarted
            return
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

    def __init__(
        self,
        emit: Callable[..., None],
        loop: asyncio.AbstractEventLoop,
        in_client: Callable[[Callable[[], object]], object],
    ) -> None:
        """Take the event loop of the cells.

        ``emit`` sends a message to the client, and ``in_client`` calls a function in its loop.
        """
        self.emit, self.loop = emit, loop
        self.count = 0
        self.serving = False  # a request, which may be a cell
        self.stages_cells = True  # for the remote part: ``_run`` takes what was sent for a cell
        self.payload: list[dict[str, Any]] = []
        self.payload_manager = SimpleNamespace(write_payload=self.payload.append)
        self.request: dict[str, Any] = {}
        # The request to which an output belongs; a task keeps the one that started it.
        self._parent: ContextVar[dict[str, Any]] = ContextVar("loopback_parent")
        self.answers: queue.SimpleQueue[str] = queue.SimpleQueue()  # to ``input()``
        own = {**vars(builtins), "input": self._input}  # other code of this program has its own
        self.user_ns: dict[str, Any] = {"__name__": "__main__", "__builtins__": own}
        self.user_ns["get_ipython"] = lambda: self
        self.user_global_ns = self.user_ns
        self.user_ns_hidden = dict(self.user_ns)
        from IPython.core.events import EventManager  # takes 25 ms, and only a loopback needs it

        shell: Any = self
        self.events = EventManager(shell, {"post_run_cell": lambda result: None})
        # The part of ipykernel's Kernel that the remote part uses to send. The client's loop is the
        # thread of the control channel.
        self.kernel = SimpleNamespace(
            control_handlers={},
            control_thread=SimpleNamespace(io_loop=SimpleNamespace(add_callback=in_client)),
            control_stream="control",
            get_parent=lambda channel: self.request,
            session=SimpleNamespace(send=self._send, session=uuid.uuid4().hex),
            shell_stream="shell",
            iopub_socket="iopub",
            _topic=str.encode,
            _parent_ident={"shell": b""},
            io_loop=SimpleNamespace(asyncio_loop=loop),
        )
        # The remote part hooks displays while there are tasks. There are none here, but streams.
        self._of_tasks = contextlib.ExitStack()
        self.display_pub = SimpleNamespace(
            register_hook=lambda hook: self._of_tasks.enter_context(
                self._streams(threading.get_ident())
            ),
            unregister_hook=lambda hook: self._of_tasks.close(),
        )

    def leave(self) -> None:
        remote_module = sys.modules.get(remote_source()[0])
        if remote_module is not None:
            remote_module.leave(self.user_global_ns)

    def _send(
        self,
        stream: str,
        message_type: str,
        content: Any,
        *,
        parent: Any,
        ident: Any,
        buffers: Any = (),
    ) -> None:
        # A header, or a message that has one, as jupyter_client's session takes them.
        self.emit(stream, message_type, content, {"header": parent, **parent}, buffers)

    def execute(self, request: dict[str, Any]) -> dict[str, Any]:
        self.request = request
        self._parent.set(request)
        content = request["content"]
        given: dict[str, Any] = {}
        if content["code"].strip():
            error = self._run(content["code"], request)
            self.events.trigger("post_run_cell", SimpleNamespace(error_in_exec=error))
            given, self.payload[:] = {"payload": [*self.payload]}, ()
            if error is not None:
                fields = {"execution_count": self.count, **_error_fields(error)}
                return {"status": "error", **fields, **given}
        with self._streams(threading.get_ident()):
            evaluated = {
                key: self._value(text) for key, text in content["user_expressions"].items()
            }
        reply = {"status": "ok", "execution_count": self.count, "user_expressions": evaluated}
        return {**reply, **given}

    def _value(self, text: str) -> dict[str, Any]:
        try:
            value = eval(text, self.user_global_ns, self.user_ns)
            return {"status": "ok", "data": bundle(value), "metadata": {}}
        except BaseException as error:
            return {"status": "error", **_error_fields(error)}

    def _run(self, code: str, request: dict[str, Any]) -> BaseException | None:
        self.count += request["content"]["store_history"]
        counted = {"execution_count": self.count}
        self.emit("iopub", "execute_input", {"code": code, **counted}, request)
        try:
            tree = ast.parse(code, f"<cell {self.count}>")
            last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            name = f"<cell {self.count}>"
            with self._streams(), self._taken(request):
                exec(compile(tree, name, "exec"), self.user_ns)
                if isinstance(last, ast.Expr):
                    value = eval(compile(ast.Expression(last.value), name, "eval"), self.user_ns)
                    if value is not None:
                        result = {"data": bundle(value), "metadata": {}, **counted}
                        self.emit("iopub", "execute_result", result, request)
        except BaseException as error:
            self.emit("iopub", "error", _error_fields(error), request)
            return error
        return None

    def _input(self, prompt: object = "") -> str:
        """Stand for ``input`` in cells: ask the client, if it can answer."""
        if not self.request["content"]["allow_stdin"]:
            raise RuntimeError("input() was called, but this client does not answer it")
        content = {"prompt": str(prompt), "password": False}
        self.emit("stdin", "input_request", content, self.request)
        answer = self.answers.get()
        if answer == END_OF_INPUT:
            raise EOFError
        return answer

    @contextlib.contextmanager
    def _taken(self, request: dict[str, Any]) -> Iterator[None]:
        """Have a cell take what was sent for it before."""
        remote_module: Any = sys.modules.get(remote_source()[0])
        if remote_module is None:
            yield
            return
        try:
            with remote_module.taken(self, request, remote_module.staged):
                yield
        except remote_module.NotTaken as error:
            raise error.args[0] from None

    @contextlib.contextmanager
    def _streams(self, only: int | None = None) -> Iterator[None]:
        """Publish what is printed while the block lasts; of one thread only, if it is given.

        A request is more frequent than a cell. What the program's own new threads print during a
        request is not the kernel's.
        """
        parent = self.request["header"]
        out = _ReplacedStream("stdout", lambda text: self._printed("stdout", text), only, parent)
        err = _ReplacedStream("stderr", lambda text: self._printed("stderr", text), only, parent)
        with out, err:
            yield

    def _printed(self, stream: str, text: str) -> None:
        # The threads of a cell have no context of their own.
        parent = self._parent.get(self.request)
        self.emit("iopub", "stream", {"name": stream, "text": text}, parent)


# The streams that ended last. ``print`` holds no reference to ``sys.stdout`` while it writes to it
# (seen in Python 3.11), so a cell that ends in another thread must not free its stream at once.
_ended: deque[_ReplacedStream] = deque(maxlen=100)


class _ReplacedStream(io.TextIOBase):
    """``sys.stdout`` or ``sys.stderr`` for a cell and the threads that it starts.

    Threads that ran before the cell keep writing to the stream that this one replaced; the
    program's own output, which shows the cell's text, is among them. Cells of several loopbacks
    may overlap. So a cell that ends restores the stream below all streams that have ended.
    """

    def __init__(
        self, name: str, write: Callable[[str], None], only: int | None, parent: dict[str, Any]
    ) -> None:
        """``only`` is the thread whose text is taken, in place of those of a cell."""
        self._name, self._write, self._only = name, write, only
        self._earlier_threads = (
            {thread.ident for thread in threading.enumerate()} if only is None else set()
        )
        self._earlier_threads.discard(threading.get_ident())
        self._parent = parent
        self.ended = False

    def __enter__(self) -> _ReplacedStream:
        self._replaced = getattr(sys, self._name)
        setattr(sys, self._name, self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.ended = True
        _ended.append(self)
        if getattr(sys, self._name) is self:
            setattr(sys, self._name, self.original)

    @property
    def original(self) -> Any:
        """The stream that this one replaced, without those that have ended."""
        stream = self._replaced
        return stream.original if isinstance(stream, _ReplacedStream) and stream.ended else stream

    def _is_foreign(self) -> bool:
        """Return whether the text of this thread goes to the stream that this one replaced."""
        thread = threading.get_ident()
        return thread in self._earlier_threads or self._only not in (None, thread)

    @property
    def parent_header(self) -> dict[str, Any]:
        """The header of the message whose text it publishes, as a stream of ipykernel has it."""
        return {} if self._is_foreign() else self._parent

    def write(self, text: str) -> int:
        if self._is_foreign():
            return int(self.original.write(text))
        if text:
            self._write(text)
        return len(text)

    def flush(self) -> None:
        if self._is_foreign():
            self.original.flush()


def bundle(value: Any) -> dict[str, Any]:
    """Return a value's MIME bundle, as far as a loopback needs one."""
    make = getattr(type(value), "_repr_mimebundle_", None)
    return dict(make(value)) if make is not None else {"text/plain": repr(value)}


def _error_fields(error: BaseException) -> dict[str, Any]:
    trace = error.__traceback__.tb_next if error.__traceback__ else None
    lines = "".join(traceback.format_exception(type(error), error, trace)).splitlines()
    return {"ename": type(error).__name__, "evalue": str(error), "traceback": lines}
