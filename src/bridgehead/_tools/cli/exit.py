"""How a command ends: its exit code, and one sentence that says why.

Rule: an exception of the library becomes a line on standard error and an exit code. The code says
what is known of the request: whether it was sent, whether it ran. A command never shows a
traceback of this program.

    0    done
    1    the code raised in the kernel, or the result can't be used
    2    the command can't start: a wrong argument, a missing package, or an unreadable file
    3    not sent: no such kernel, or the request was refused before it was sent
    4    not executed: the kernel refused the request and changed nothing
    5    unknown: the connection to the kernel was lost or closed; the request may have run
    124  the command took longer than --timeout
    130  interrupted
    141  the reader of the output closed the pipe
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Coroutine, Iterator
from typing import Any, NoReturn, TypeVar

from bridgehead._errors import (
    CLOSED,
    BridgeClosed,
    BridgeError,
    NotExecuted,
    NotSent,
    OutcomeUnknown,
    RemoteError,
    TransportError,
)

T = TypeVar("T")

NOTICE = 1.0  # s to wait before a terminal shows a notice

FAILED, UNUSABLE, NOT_SENT, NOT_EXECUTED, UNKNOWN = 1, 2, 3, 4, 5
TIMED_OUT, INTERRUPTED, NO_READER = 124, 130, 141
CODES: tuple[tuple[type[Exception], int], ...] = (
    (NotSent, NOT_SENT),
    (NotExecuted, NOT_EXECUTED),
    (OutcomeUnknown, UNKNOWN),
    (BridgeClosed, UNKNOWN),
    (TimeoutError, TIMED_OUT),
)


class NoReader(Exception):
    """The reader of standard output closed the pipe; click handles ``BrokenPipeError`` itself."""


def finish(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's work; an exception of the library becomes one line and the exit code."""
    try:
        return asyncio.run(work)
    except RemoteError as error:
        fail(_noted(f"in the kernel: {error.ename}: {error.evalue}".rstrip(": "), error))
    except (BridgeError, TimeoutError) as error:
        fail(_noted(str(error), error), code_of(error))
    except (ImportError, ValueError, SyntaxError) as error:  # the library refused an argument
        fail(str(error), UNUSABLE)


def _noted(text: str, error: Exception) -> str:
    """Return a text and the notes of an error: which kernel it is about, what else failed."""
    return "\n".join([text, *getattr(error, "__notes__", ())])


@contextlib.contextmanager
def not_sent() -> Iterator[None]:
    """Report a connection that cannot be made as ``NotSent``: the command has sent nothing yet."""
    try:
        yield
    except TransportError as error:
        raise NotSent(str(error)) from error


async def with_wait_notice(
    work: Coroutine[Any, Any, T] | asyncio.Future[T], ctrl_c: str = "stops waiting"
) -> T:
    """Return the result of ``work``; a terminal shows a notice if it takes longer than a second.

    A cell may run for hours, and a command that hangs without a notice looks broken. ``ctrl_c`` is
    what Ctrl-C does meanwhile.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=NOTICE)
        if task.done() or not sys.stderr.isatty():
            return await task
        from bridgehead._tools.cli.terminal import console_for

        with console_for(stderr=True).status(f"waiting for the kernel; Ctrl-C {ctrl_c}"):
            return await task
    finally:
        if not task.done():  # cancelled while waiting: still wait until the bridge is closed
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def code_of(error: Exception) -> int:
    """Return the exit code that says what is known of the request."""
    if isinstance(error, BridgeClosed) and str(error) == CLOSED:
        return NOT_SENT
    return next((code for kind, code in CODES if isinstance(error, kind)), FAILED)


def fail(message: str, code: int = FAILED) -> NoReturn:
    """Print an error and exit: the first line in red, the kernel's last output below it."""
    warn(message, "red")
    raise SystemExit(code)


def warn(message: str, style: str = "yellow") -> None:
    """Print a sentence on standard error; the command goes on."""
    from rich.text import Text

    from bridgehead._tools.cli.terminal import console_for, plain, print_wrapped

    console = console_for(stderr=True)
    line, _, rest = message.partition("\n")
    line = f"bridgehead: {plain(line)}"
    if console.is_terminal:  # a pipe gets it as one line, which is easier to search
        print_wrapped(console, line, style)
    else:
        console.print(Text(line), soft_wrap=True)
    for line in rest.splitlines():
        console.print(Text(f"  {plain(line)}"), soft_wrap=True)


def not_installed(module: str, what: str = "the command line", extra: str = "all") -> NoReturn:
    """Print which module is missing and the pip command that installs it, and exit."""
    needed = (
        f"bridgehead[{extra}]" if extra in ("all", "bench", "cli", "notebook", "server") else extra
    )
    sys.stderr.write(
        f"bridgehead: {what} needs {module}, which is not installed; pip install '{needed}'\n"
    )
    raise SystemExit(UNUSABLE)
