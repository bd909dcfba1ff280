"""The kernel as the remote part sees it.

Rule: use the standard library only, and run on Python 3.8 and later. Every question to IPython and
ipykernel is asked here, and nothing is imported into the user's kernel for it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from typing import Any, Callable, Sequence

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.remote.bootstrap import find_shell, is_ipykernel, message_buffers
    from bridgehead._shipped.remote.cell_guard import (
        CellGuard,
        call_soon,
        cell_guard,
        loop_of_cells,
        this_thread,
    )
    from bridgehead._shipped.remote.event_queue import EventQueue
    from bridgehead._shipped.wire.frames import coalesce
    from bridgehead._shipped.wire.header import (
        CONTROL_REPLY,
        CONTROL_REQUEST,
        DATA_MESSAGE,
        ENTRY,
        EVENT_MESSAGE,
        EVENTS_REQUEST,
        OUTPUTS_END,
    )


class UnflushedStream:
    """Stands for a user's stream that cannot be flushed, while ipykernel flushes it twice.

    ipykernel flushes ``sys.stdout`` and ``sys.stderr`` before a reply and at the end of a request.
    If that fails, because a stream has no ``flush`` or is closed, it sends no reply and no status.
    """

    def __init__(self, name: str, stream: Any) -> None:
        self._name, self._stream, self.flushes = name, stream, 2

    def flush(self) -> None:
        self.flushes -= 1
        if self.flushes == 0 and getattr(sys, self._name, None) is self:
            setattr(sys, self._name, self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class StandIn:
    """Stands for a stream that a user has deleted, or that IPython cannot watch.

    What is written goes to the user's stream, if that takes it, or is dropped.
    """

    encoding, errors, closed = "utf-8", "strict", False

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> Any:
        write = getattr(self._stream, "write", None)
        return len(text) if write is None else write(text)

    def flush(self) -> None:
        flush = getattr(self._stream, "flush", None)
        if flush is not None:
            flush()

    def isatty(self) -> bool:
        return False


def replace_missing_streams(shell: Any) -> None:
    """Put something in the place of a standard stream with which no cell could run any more.

    ipykernel 7 serves no request of any client again if a stream is deleted, and says that it is
    busy. IPython 9 sets the ``write`` of both streams around each cell. Where that fails, as of
    None, no request of any client runs, and none has a reply.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name, None)
        if not hasattr(sys, name) or (hasattr(shell, "_tee") and not _can_be_watched(stream)):
            setattr(sys, name, StandIn(stream))


def _is_of_ipykernel(stream: Any) -> bool:
    try:
        return bool(type(stream).__module__ == "ipykernel.iostream")
    except Exception:  # of a metaclass
        return False


def _can_be_watched(stream: Any) -> bool:
    if _is_of_ipykernel(stream):
        return True
    try:
        stream.write = stream.write  # as IPython leaves it after each cell
    except Exception:
        return False
    return True


class Kernel:
    """A namespace, the cells that run in it, the current request, and the way to its sender.

    Its cells run in one thread, which also serves the messages between two cells. That is the main
    thread, or a thread of an application. The cells of a subshell run in a thread of their own and
    do not count.
    """

    def __init__(self, scope: dict[str, Any]) -> None:
        self.globals = scope
        self.shell = find_shell(scope)
        self._thread = this_thread()  # of the cells; see ``note_thread``
        self.guard: CellGuard | None = None
        self._cells = 0  # cells that this thread is in; one cell can run inside another
        self.begun = 0  # number of cells that have begun so far
        self.serves_control = False
        self.control_address: Any = None  # of the client whose control request was served last
        self.events = EventQueue(self._answer_control)
        self._followers: set[Any] = set()
        self._publisher: Any = None  # of displays, while it is hooked

    @property
    def is_thread_of_cells(self) -> bool:
        """Whether the calling thread is the one in which cells run."""
        return this_thread() == self._thread

    def note_thread(self) -> None:
        """Note the thread of the cells: it serves each handshake, which never takes a subshell.

        ``embed_kernel`` may run the same kernel in another thread than before.
        """
        self._thread = this_thread()
        # No signal reaches another thread than the main thread.
        self.guard = (
            cell_guard(self.shell, replace_missing_streams) if self.in_main_thread else None
        )

    def follow_cells(self, follower: Any, on: bool) -> bool:
        """Have IPython report when cells begin and end; return false if it cannot.

        It reports while there is a follower.
        """
        before, after = self._followers, self._followers - {follower}
        if on:
            after = {*after, follower}
        if self._report_cells(bool(after), bool(before)):
            self._followers = after
            return True
        return not on

    def _report_cells(self, on: bool, before: bool) -> bool:
        if on == before:
            return True
        if self.only_replies:
            return False  # an ipyparallel engine does not report the tasks that it runs
        events: Any = getattr(self.shell, "events", None)
        if "pre_execute" not in getattr(events, "callbacks", ()):
            return False
        self._cells = 0
        for event, hook in ("pre_execute", self._cell_begins), ("post_execute", self._cell_ends):
            if on != (hook in events.callbacks[event]):
                (events.register if on else events.unregister)(event, hook)
        return True

    def _cell_begins(self) -> None:
        if self.is_thread_of_cells:
            self._cells += 1
            self.begun += 1

    def _cell_ends(self) -> None:
        if self.is_thread_of_cells and not self._brings_request():
            self._cells = max(0, self._cells - 1)

    def _brings_request(self) -> bool:
        """Whether the message of the cell brings a request, which belongs to the cell.

        Nothing comes between the two: what a socket thread receives waits until the request ends.
        """
        if not self.can_send:
            return False
        content = self.address()[1].get("content") or {}
        return bool(content.get("code")) and ENTRY in (content.get("user_expressions") or {})

    @property
    def only_replies(self) -> bool:
        """Whether a client gets nothing but replies: its ipyparallel engine drops the rest."""
        return hasattr(getattr(self.shell, "kernel", None), "engine_id")

    @property
    def in_main_thread(self) -> bool:
        """Whether cells run in the main thread, the only one that a signal interrupts."""
        return self._thread == threading.main_thread().ident

    @property
    def stages_cells(self) -> bool:
        """Whether a cell takes what was sent for it before; see ``taken``."""
        return self.guard is not None or hasattr(self.shell, "stages_cells")

    @property
    def is_one_thread_at_a_time(self) -> bool:
        """Whether an interpreter lock keeps two threads from running Python at once.

        Without it, a socket thread that binds or fetches names beside the main thread would need
        locks that it does not take.
        """
        return bool(getattr(sys, "_is_gil_enabled", lambda: True)())

    @property
    def may_run_cell(self) -> bool:
        """Whether a cell runs, or may run unnoticed because a user removed all callbacks."""
        return self._cells > 0 or (
            bool(self._followers)
            and self._cell_begins not in self.shell.events.callbacks["pre_execute"]
        )

    def between_cells(self) -> None:
        """Reset the count of running cells if their thread serves a message: no cell runs then."""
        if self.is_thread_of_cells and not (self._cells and self._brings_request()):
            self._cells = 0
            if self._followers and self.may_run_cell:
                # A user has removed the callbacks: add them again.
                self._report_cells(True, False)

    def request_ended(self) -> None:
        """Reset the count of running cells if the message of a cell brought the request."""
        if self._cells and self.is_thread_of_cells:
            self._cells = 0

    @property
    def namespace(self) -> Any:
        """The user's namespace."""
        return self.globals if self.shell is None else self.shell.user_ns

    @property
    def hidden(self) -> Any:
        """The names that the shell itself put into the namespace, with their values."""
        return getattr(self.shell, "user_ns_hidden", {})

    def process(self) -> str:
        """Return an identity of this process; a later one may have the same pid."""
        session = getattr(getattr(self.shell, "kernel", None), "session", None)
        return "%d %s" % (os.getpid(), getattr(session, "session", ""))

    def info(self) -> dict[str, Any] | None:
        """Return what matters of the kernel's ``kernel_info``; None if it is not known here."""
        kernel: Any = getattr(self.shell, "kernel", None)
        if not is_ipykernel(kernel):
            return None
        try:
            info = kernel.kernel_info
            language = info["language_info"]
            return {
                "implementation": str(info["implementation"]),
                "implementation_version": str(info["implementation_version"]),
                "language_info": {key: str(language[key]) for key in ("name", "version")},
                "supported_features": [str(one) for one in info.get("supported_features", ())],
            }
        except Exception:
            return None

    def buffers(self) -> list[Any]:
        """Return the buffers of the current request; none if the kernel does not pass them on."""
        return list(message_buffers(self.shell))

    @property
    def can_send(self) -> bool:
        """Whether the remote part can send messages of its own to a client: in ipykernel it can."""
        return is_ipykernel(getattr(self.shell, "kernel", None))

    def address(self) -> tuple[Any, Any]:
        """Return the identity of the current request's client, and the request itself."""
        kernel: Any = getattr(self.shell, "kernel", None)
        if not self.can_send:
            return None, {}
        return kernel._parent_ident["shell"], kernel.get_parent("shell")

    def parent(self) -> Any:
        """Return what the outputs of the current request name as the request they belong to."""
        return self.address()[1].get("header") or {}

    @property
    def can_publish(self) -> bool:
        """Whether the remote part can send messages on iopub."""
        return getattr(getattr(self.shell, "kernel", None), "iopub_socket", None) is not None

    def end_outputs(self, parent: Any) -> None:
        """Publish behind all outputs of a task that there are no more."""
        for name in ("stdout", "stderr"):
            try:
                getattr(sys, name).flush()
            except Exception:  # a user's stream; what it takes is not published
                continue
        kernel: Any = self.shell.kernel
        topic = kernel._topic(OUTPUTS_END)
        kernel.session.send(kernel.iopub_socket, OUTPUTS_END, {}, parent=parent, ident=topic)

    def hook_displays(self, hook: Callable[[Any], Any]) -> None:
        """Pass each message of a display in the thread of the cells to a hook, which returns it."""
        self._publisher = getattr(self.shell, "display_pub", None)
        if hasattr(self._publisher, "register_hook"):
            self._publisher.register_hook(hook)

    def unhook_displays(self, hook: Callable[[Any], Any]) -> None:
        """Undo ``hook_displays``; a cell may have put another publisher in place of this one."""
        publisher, self._publisher = self._publisher, None
        if hasattr(publisher, "register_hook"):
            publisher.unregister_hook(hook)

    def call_soon(self, function: Callable[[], object]) -> bool:
        """Have the event loop of the cells call a function; return false if there is no such loop.

        Any thread may call this.
        """
        return call_soon(self.shell, function)

    def serve_control(self, serve: Callable[[str], str]) -> bool:
        """Have the kernel pass on requests that come on the control channel.

        A thread of ipykernel's serves that channel, also while a cell runs. Return false if there
        is none.
        """
        kernel: Any = getattr(self.shell, "kernel", None)
        handlers = getattr(kernel, "control_handlers", None)
        if type(handlers) is not dict or getattr(kernel, "control_thread", None) is None:
            return False

        def handle(stream: Any, ident: Any, message: Any) -> None:
            self.control_address = ident, {"header": message["header"]}
            content = {"answer": serve(message["content"]["request"])}
            self._answer_control((stream, ident, message), content, ())

        def handle_events(stream: Any, ident: Any, message: Any) -> None:
            content = message["content"]
            question = None if content.get("end") else (stream, ident, message)
            self.events.ask(content["owner"], question)

        handlers[__name__ + CONTROL_REQUEST] = handle
        handlers[__name__ + EVENTS_REQUEST] = handle_events
        self.serves_control = True
        return True

    def _answer_control(self, question: Any, content: Any, parts: Sequence[memoryview]) -> None:
        """Answer a request that came on the control channel, in the thread of that channel."""
        stream, ident, message = question
        kernel: Any = self.shell.kernel
        kernel.session.send(
            stream,
            __name__ + CONTROL_REPLY,
            content,
            parent=message,
            ident=ident,
            buffers=list(parts),
        )

    def call_in_control(self, function: Callable[[], object]) -> None:
        """Have the thread of the control channel call a function, where requests are served on it.

        Any thread may call this.
        """
        with suppress(RuntimeError):  # the kernel ends
            self.shell.kernel.control_thread.io_loop.add_callback(function)

    @property
    def control_has_ended(self) -> bool:
        """Whether the thread of the control channel serves nothing any more: the kernel ends."""
        loop = getattr(self.shell.kernel.control_thread.io_loop, "asyncio_loop", None)
        return loop is not None and not loop.is_running()

    def send_event(
        self, owner: str, content: dict[str, str], parts: list[memoryview], address: Any
    ) -> None:
        """Send an event to its owner, in the thread of the cells."""
        if self.only_replies:
            self.call_in_control(lambda: self.events.put(owner, content, parts))
        else:
            self.send(parts, EVENT_MESSAGE, content, address)

    def drop_events(self, owner: str) -> None:
        """Drop what was not sent to an owner that has no resource any more."""
        if self.only_replies:
            self.call_in_control(lambda: self.events.forget(owner))

    def send_event_on_control(
        self, owner: str, content: dict[str, str], parts: list[memoryview], address: Any
    ) -> None:
        """Send an event to its owner on the control channel, in the thread of that channel."""
        if self.only_replies:
            self.events.put(owner, content, parts)
            return
        kernel: Any = self.shell.kernel
        identity, parent = address
        kernel.session.send(
            kernel.control_stream,
            EVENT_MESSAGE,
            content,
            parent=parent,
            ident=identity,
            buffers=parts,
        )

    def loop(self) -> Any:
        """Return the event loop of the cells, or None."""
        return loop_of_cells(self.shell)

    def call_later(self, seconds: float, function: Callable[[], object]) -> bool:
        """Have the event loop of the cells call a function; return false if there is no such loop.

        Call this in the thread of the cells.
        """
        loop = self.loop()
        if loop is None or loop.is_closed():
            return False
        loop.call_later(seconds, function)
        return True

    def run_interruptibly(self, request: str, work: Callable[[], Any]) -> Any:
        """Run the code of a request, which ``cancel`` interrupts where there is a guard."""
        if self.guard is None or not self.is_thread_of_cells:
            return work()
        return self.guard.run_request(request, work)

    def ignore_interrupts(self) -> None:
        """Ignore SIGINT until the request ends.

        The work that an interrupt could stop is done. An interrupt while ipykernel sends the reply
        would lose the reply; one in the hook after it would end the kernel (1 in 50 random
        interrupts of large inline responses). That hook restores the handler that ipykernel had
        before.
        """
        kernel: Any = getattr(self.shell, "kernel", None)
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and hasattr(kernel, "saved_sigint_handler"):
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def let_reply_pass(self) -> None:
        """Replace, for this request, each standard stream that ipykernel would fail to flush."""
        if not hasattr(getattr(self.shell, "kernel", None), "saved_sigint_handler"):
            return  # this kernel flushes nothing
        if self.is_thread_of_cells:
            replace_missing_streams(self.shell)
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name, None)
            if isinstance(stream, UnflushedStream):  # of a request that is served beside this one
                stream.flushes += 2
            elif stream is not None and not _is_of_ipykernel(stream):
                try:
                    stream.flush()
                except Exception:
                    setattr(sys, name, UnflushedStream(name, stream))

    @property
    def can_send_ahead(self) -> bool:
        """Whether messages leave while the current request runs, and no cell can run meanwhile.

        ipykernel 7 sends in a thread of its own. ipykernel 6 sends in the main thread, when the
        request is done; an ipyparallel task returns its frames. Beside a request in a subshell a
        cell may run.
        """
        if not self.can_send or this_thread() != self._thread:
            return False
        if getattr(self.shell.kernel, "shell_channel_thread", None) is None:
            return False
        return self.address()[1].get("beside") is None

    def send(
        self,
        parts: list[memoryview],
        message_type: str = DATA_MESSAGE,
        content: Any = None,
        address: Any = None,
        **options: Any,
    ) -> Any:
        """Send frames to one client, on the shell channel, by default ahead of the reply.

        With ``track=True`` as an option, return ZeroMQ's tracker of the frames.

        They take the same socket as the reply, so a client that has the reply has the frames.
        iopub is never used: every client sees it, and it loses messages.
        """
        kernel: Any = self.shell.kernel
        identity, parent = address or self.address()
        beside = parent.get("beside")
        if beside is not None:  # an ipyparallel task: its result carries the frames
            beside += coalesce(parts)
            return None
        thread = getattr(kernel, "shell_channel_thread", None)
        if thread is not None:  # ipykernel 7: the shell socket belongs to another thread
            current = kernel.get_parent("shell").get("header") or {}
            subshell = current.get("subshell_id")
            stream = thread.manager.get_subshell_to_shell_channel_socket(subshell)
        else:
            stream = kernel.shell_stream
        sent = kernel.session.send(
            stream,
            message_type,
            content or {},
            parent=parent,
            ident=identity,
            buffers=parts,
            **options,
        )
        return (sent or {}).get("tracker")
