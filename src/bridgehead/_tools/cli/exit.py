"""How a command ends: its exit code, and the one sentence that says why.

Rule: what the library raises becomes a line on standard error and a code by what is known of the
request: whether it was sent, whether it ran. Nothing is shown as a traceback of this program.

    0    done
    1    it ran over there and raised, or what came back is of no use
    2    it can't be tried: a wrong argument, a missing package, a file that can't be read
    3    not sent: no such kernel, or refused before it crossed
    4    not executed: the kernel refused it, and is as it was
    5    unknown: the kernel went away meanwhile; it may have run
    124  it took longer than --timeout
    130  interrupted
    141  whoever read the output went away
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Coroutine
from typing import Any, NoReturn, TypeVar

from bridgehead._errors import BridgeError, NotExecuted, NotSent, OutcomeUnknown, RemoteError

T = TypeVar("T")

NOTICE = 1.0  # s of waiting in silence

FAILED, UNUSABLE, NOT_SENT, NOT_EXECUTED, UNKNOWN = 1, 2, 3, 4, 5
TIMED_OUT, INTERRUPTED, NO_READER = 124, 130, 141
CODES: tuple[tuple[type[Exception], int], ...] = (
    (NotSent, NOT_SENT),
    (NotExecuted, NOT_EXECUTED),
    (OutcomeUnknown, UNKNOWN),
    (TimeoutError, TIMED_OUT),
)


class NoReader(Exception):
    """Whoever read standard output went away; click would take ``BrokenPipeError`` for its own."""


def finish(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's work; what the library raises becomes one line and the exit code."""
    try:
        return asyncio.run(work)
    except RemoteError as error:
        fail(f"in the kernel: {error.ename}: {error.evalue}".rstrip(": "))
    except (BridgeError, TimeoutError) as error:
        fail(str(error), code_of(error))
    except (ImportError, ValueError, SyntaxError) as error:  # as the library refuses arguments
        fail(str(error), UNUSABLE)


async def patiently(work: Coroutine[Any, Any, T]) -> T:
    """The same work; on a terminal it says after a while that the kernel is waited for.

    It may be in the middle of a cell for hours, and a command that hangs without a word is taken
    for a broken one.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=NOTICE)
        if task.done() or not sys.stderr.isatty():
            return await task
        from bridgehead._tools.cli.terminal import console_for

        with console_for(stderr=True).status("waiting for the kernel; Ctrl-C gives up"):
            return await task
    finally:
        if not task.done():  # cancelled while it waited: the bridge is closed all the same
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def code_of(error: Exception) -> int:
    """The exit code that tells what is known of the request."""
    return next((code for kind, code in CODES if isinstance(error, kind)), FAILED)


def fail(message: str, code: int = FAILED) -> NoReturn:
    """The first line in red; what a kernel last wrote, if the message has it, below."""
    warn(message, "red")
    raise SystemExit(code)


def warn(message: str, style: str = "yellow") -> None:
    """A sentence on standard error that ends nothing."""
    from rich.text import Text

    from bridgehead._tools.cli.terminal import console_for, plain, print_wrapped

    console = console_for(stderr=True)
    line, _, rest = message.partition("\n")
    line = f"bridgehead: {plain(_as_options(line))}"
    if console.is_terminal:  # a pipe has one line for it, to be searched
        print_wrapped(console, line, style)
    else:
        console.print(Text(line), soft_wrap=True)
    for line in rest.splitlines():
        console.print(Text(f"  {plain(line)}"), soft_wrap=True)


def _as_options(message: str) -> str:
    """What the library says of its arguments, as the command line has them."""
    named = re.search(r"insecure=\[([^\]]*)\]", message)
    if named:
        options = " ".join(f"--insecure {name}" for name in re.findall(r"'([^']*)'", named[1]))
        message = message.replace(named[0], options)
    return message.replace("pass token=", "pass --token")


def not_installed(module: str, what: str = "the command line", extra: str = "all") -> NoReturn:
    """What is missing, and the pip line that brings it."""
    needed = f"bridgehead[{extra}]" if extra in ("all", "bench", "cli", "server") else extra
    sys.stderr.write(
        f"bridgehead: {what} needs {module}, which is not installed; pip install '{needed}'\n"
    )
    raise SystemExit(UNUSABLE)
