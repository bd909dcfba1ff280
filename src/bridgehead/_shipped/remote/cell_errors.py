"""The exception of a cell, for the client that sent the cell.

Rule: use the standard library only, and run on Python 3.8 and later. The cell's message asks for
it. IPython's reply has only its text, so it is added to the payload of the reply, which goes to
the requester alone, and is sent whatever the cell did. Of an exception group the reply of IPython 9
has not even a traceback, because IPython lets Python print that to stderr: it is added as text.

Facts measured with ``%pdb on`` and a client that answers no input (ipykernel 7.4): the debugger
starts before the reply is made, and its prompt raises ``StdinNotImplementedError``. The reply then
names this error in place of the cell's. If the cell awaits, no reply is sent at all.
"""

from __future__ import annotations

import builtins
import sys
import traceback
from base64 import b64encode
from contextlib import suppress
from typing import Any, Dict, List

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.remote.kernel import Kernel
    from bridgehead._shipped.wire.header import CELL_ERROR, PYTHON
    from bridgehead._shipped.wire.pickling import encode

GROUP: Any = getattr(builtins, "BaseExceptionGroup", ())  # none before Python 3.11
SHELL = "IPython.core.interactiveshell"  # the module whose frames run a cell
NO_DEBUGGER = "%pdb: the debugger was not started, because the client of this cell answers no input"


class CellErrors:
    """Reports what the cells of one kernel raise."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def install(self) -> None:
        """Have IPython report each cell; it stays, like the remote module.

        Any other shell, and one in which a remote part of this version did so, stays as it is.
        """
        shell = self.kernel.shell
        hooks = getattr(getattr(shell, "events", None), "callbacks", {}).get("post_run_cell")
        if hooks is None or not hasattr(shell, "payload_manager") or not self.kernel.can_send:
            return
        name = type(self).__name__
        # By the name of the module, which is another one in each version of bridgehead.
        for hook in hooks:
            owner = type(getattr(hook, "__self__", None))
            if (owner.__module__, owner.__name__) == (__name__, name):
                return
        shell.events.register("post_run_cell", self.cell_done)
        self.replace_debugger(shell)

    def replace_debugger(self, shell: Any) -> None:
        """Keep ``%pdb`` from starting a debugger in our cells that can't read its commands."""
        original = getattr(shell, "debugger", None)
        if original is None:  # a loopback
            return

        def debugger(*args: Any, **options: Any) -> Any:
            message = self.kernel.address()[1].get("content") or {}
            ours = message.get(__name__ + CELL_ERROR) is not None
            if ours and not message.get("allow_stdin") and getattr(shell, "call_pdb", False):
                with suppress(Exception):  # a user may have replaced the stream
                    sys.stderr.write(NO_DEBUGGER + "\n")
                return None
            return original(*args, **options)

        shell.debugger = debugger

    def cell_done(self, result: Any = None) -> None:
        """Add the exception of a cell to its reply, if its client asks for it and it pickles.

        A client that does not trust this kernel asks for no bytes, and gets text only. IPython
        calls this after each cell, before it makes the reply.
        """
        message = self.kernel.address()[1]
        most = (message.get("content") or {}).get(__name__ + CELL_ERROR)
        error = getattr(result, "error_before_exec", None) or getattr(result, "error_in_exec", None)
        if type(most) is not int or error is None:
            return
        report: Dict[str, Any] = {"source": __name__ + CELL_ERROR}

        def describe() -> None:
            if _has_group(error):
                report["traceback"] = _lines(error)
            if most > 0:
                frames, carries_code = encode(error, None, most, stops=True)
                parts = [b64encode(frame).decode("ascii") for frame in frames]
                report.update(frames=parts, code_of=PYTHON if carries_code else None)

        cell = str((message.get("header") or {}).get("msg_id"))
        with suppress(BaseException):  # also an interrupt: the cell has ended, and is reported
            # User code may run here, and the cell's own interrupt ends it.
            self.kernel.run_interruptibly(cell, describe)
        if len(report) > 1:
            self.kernel.shell.payload_manager.write_payload(report)


def _has_group(error: Any) -> bool:
    """Return whether IPython leaves the traceback to Python."""
    seen: List[Any] = []
    while error is not None and not any(error is one for one in seen):
        if isinstance(error, GROUP):
            return True
        seen.append(error)
        error = error.__context__
    return False


def _lines(error: Any) -> List[str]:
    """Return the traceback of a cell, without the frames that run a cell."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__name__") in (SHELL, __name__):
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace)).splitlines()
