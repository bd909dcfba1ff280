"""The far side's view of its host: the kernel whose guest the loader is.

Rule: standard library only, Python 3.8 and later; shipped together with ``_loader.py``. What
is asked of IPython, ipykernel and the interpreter is asked here, and nothing is imported
into the user's kernel to find it out.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.remote.bootstrap import buffers_of, is_ipykernel, shell_of
    from bridgehead._shipped.wire.frames import coalesce
    from bridgehead._shipped.wire.header import DATA_MESSAGE, Header


class Kernel:
    """The kernel as the loader sees it: a namespace, the request at hand, the way back."""

    def __init__(self, scope: Header) -> None:
        self.globals = scope
        self.shell = shell_of(scope)
        self._cells = 0  # that the main thread is in: one runs in another
        self.begun = 0  # cells that ever began
        self._follows = False

    def follow_cells(self, on: bool) -> bool:
        """Be told by IPython when a cell begins and ends; false where nobody tells."""
        if on == self._follows:
            return True
        if hasattr(getattr(self.shell, "kernel", None), "engine_id"):
            return False  # ipyparallel's: of the tasks that it runs nobody is told
        events: Any = getattr(self.shell, "events", None)
        if "pre_execute" not in getattr(events, "callbacks", ()):
            return False
        self._follows, self._cells = on, 0
        for event, told in ("pre_execute", self._cell_begins), ("post_execute", self._cell_ends):
            if on != (told in events.callbacks[event]):
                (events.register if on else events.unregister)(event, told)
        return True

    def _cell_begins(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._cells += 1
            self.begun += 1

    def _cell_ends(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._cells = max(0, self._cells - 1)

    @property
    def may_run_cell(self) -> bool:
        """Whether a cell runs, or nobody tells any more because a user removed all callbacks."""
        return (
            self._cells > 0 or self._cell_begins not in self.shell.events.callbacks["pre_execute"]
        )

    def between_cells(self) -> None:
        """A message is answered in the main thread: no cell runs, whatever was told, or not."""
        if threading.current_thread() is threading.main_thread():
            self._cells = 0
            if self._follows and self.may_run_cell:
                self._follows = False
                self.follow_cells(True)

    @property
    def namespace(self) -> Any:
        return self.globals if self.shell is None else self.shell.user_ns

    @property
    def hidden(self) -> Any:
        return getattr(self.shell, "user_ns_hidden", {})

    def process(self) -> str:
        """What tells this process from the next one, which may have the same pid."""
        session = getattr(getattr(self.shell, "kernel", None), "session", None)
        return "%d %s" % (os.getpid(), getattr(session, "session", ""))

    def buffers(self) -> list[Any]:
        """The buffers of the message that is being answered; none where they don't arrive."""
        return list(buffers_of(self.shell))

    @property
    def can_send(self) -> bool:
        """Whether a message of the loader's own finds its way to a requester: in ipykernel."""
        return is_ipykernel(getattr(self.shell, "kernel", None))

    def address(self) -> tuple[Any, Any]:
        """Who made the request at hand, and its header."""
        kernel: Any = getattr(self.shell, "kernel", None)
        if not self.can_send:
            return None, {}
        return kernel._parent_ident["shell"], kernel.get_parent("shell")

    def ignore_interrupts(self) -> None:
        """From here to the end of the request an interrupt strikes nobody.

        What it could interrupt is done. Raised while ipykernel sends the reply, it would lose
        the reply; raised in the hook after it, it ends the kernel (1 in 50 random interrupts
        of large inline answers). That hook puts back the handler that ipykernel had before.
        """
        kernel: Any = getattr(self.shell, "kernel", None)
        here = threading.current_thread() is threading.main_thread()
        if here and hasattr(kernel, "saved_sigint_handler"):
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def send(
        self,
        parts: list[memoryview],
        message_type: str = DATA_MESSAGE,
        content: Any = None,
        address: Any = None,
    ) -> None:
        """Frames to a requester alone, on the shell channel; by default ahead of the reply.

        The same socket as the reply's, so that whoever has the reply has the frames; never
        iopub, which everybody sees and which loses messages.
        """
        kernel: Any = self.shell.kernel
        identity, parent = address or self.address()
        beside = parent.get("beside")
        if beside is not None:  # an engine's apply, whose result takes them along
            beside += coalesce(parts)
            return
        thread = getattr(kernel, "shell_channel_thread", None)
        if thread is not None:  # ipykernel 7: the shell socket belongs to another thread
            here = kernel.get_parent("shell").get("header") or {}
            subshell = here.get("subshell_id")
            stream = thread.manager.get_subshell_to_shell_channel_socket(subshell)
        else:
            stream = kernel.shell_stream
        kernel.session.send(
            stream, message_type, content or {}, parent=parent, ident=identity, buffers=parts
        )
