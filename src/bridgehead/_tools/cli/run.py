"""``run``: run a file or a line of code as a cell, and show its output as it comes.

Rule: the cell's output is the user's own. A pipe gets it unchanged, a terminal gets it without
sequences that would control the terminal. Ctrl-C interrupts the cell; a second Ctrl-C ends the
command and leaves the cell running.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bridgehead._tools.cli.exit import FAILED, INTERRUPTED, UNUSABLE, fail, finish, warn
from bridgehead._tools.cli.options import as_json, target
from bridgehead._tools.cli.target import Target

if TYPE_CHECKING:
    from bridgehead import Bridge, Message
    from bridgehead._connection.cell import CellObserver

# Errors by which an interrupted cell ends: the second one if it awaits.
BY_INTERRUPT = ("KeyboardInterrupt", "CancelledError")


@click.command()
@click.argument(
    "file", metavar="[FILE]", required=False, type=click.Path(dir_okay=False, allow_dash=True)
)
@click.option("--code", "-c", metavar="CODE", help="Run this code, in place of a file.")
@target(trust=False)
@as_json
def run(target: Target, file: str | None, code: str | None, as_json: bool) -> None:
    """Run FILE, or CODE, as a cell of a kernel; - reads standard input.

    The code runs like a cell of a notebook: magics and top-level await work, the cell has a
    number, and other clients see its output. The command prints the output as it comes, and
    errors on standard error. If the cell raises, the exit code is 1. Ctrl-C interrupts the
    cell in the kernel. A second Ctrl-C ends the command, and the cell goes on.

    --json prints one object when the cell ends: stdout, stderr, outputs as in a notebook
    file, data, execution_count and error.
    """
    if (file is None) == (code is None):
        raise click.UsageError("give either a FILE or -c CODE")
    if code is None:
        code = _content(str(file))
    raise SystemExit(finish(_run(target, code, as_json)))


def _content(file: str) -> str:
    name = "standard input" if file == "-" else file
    try:
        # Read bytes: this process's text streams would accept bytes that are not UTF-8.
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return io.TextIOWrapper(io.BytesIO(data), "utf-8").read()
    except (OSError, UnicodeError) as error:
        fail(f"{name} can't be read: {getattr(error, 'strerror', None) or error}", UNUSABLE)


async def _run(target: Target, code: str, as_json: bool) -> int:
    from bridgehead import RemoteError
    from bridgehead._connection.cell import CellObserver

    printer = _OutputPrinter(quiet=as_json)
    observer = CellObserver(printer.take)
    async with target.open() as bridge:
        cell = asyncio.ensure_future(bridge.run(code, on_output=observer))
        printer.cell = cell
        with _interrupting(bridge, cell, observer) as interrupts:
            try:
                result, error = await cell, None
            except RemoteError as raised:
                result, error = raised.result, raised
                if not as_json:
                    printer.error(raised)
            except asyncio.CancelledError:
                if printer.reader_left:
                    raise BrokenPipeError from None
                if not interrupts.abandoned:
                    raise
                warn(
                    "stopped waiting; the cell may still run"
                    + ("" if observer.begun else " when its turn comes")
                )
                return INTERRUPTED
            finally:
                printer.end()
    if as_json:
        _print_json(result, error)
    if error is None:
        return 0
    return INTERRUPTED if interrupts.request and error.ename in BY_INTERRUPT else FAILED


def _print_json(result: Any, error: Any) -> None:
    description = None
    if error is not None:
        description = {"ename": error.ename, "evalue": error.evalue, "traceback": error.traceback}
    fields = ("stdout", "stderr", "outputs", "data", "execution_count")
    values = {name: getattr(result, name, None) for name in fields}
    from bridgehead._tools.cli.terminal import write

    write(json.dumps({**values, "error": description}, default=repr) + "\n")


class _Interrupts:
    """The effects of Ctrl-C so far."""

    def __init__(self) -> None:
        self.request: asyncio.Task[None] | None = None  # interrupts the cell
        self.abandoned = False  # the command no longer waits for the cell


@contextlib.contextmanager
def _interrupting(
    bridge: Bridge, cell: asyncio.Future[Any], observer: CellObserver
) -> Iterator[_Interrupts]:
    """Interrupt the cell on the first Ctrl-C, and stop waiting for it on the second.

    While the cell waits for its turn, the first Ctrl-C stops waiting: there is nothing to
    interrupt, and no other client's cell is.
    """
    loop = asyncio.get_running_loop()
    interrupts = _Interrupts()

    def on_sigint() -> None:
        if interrupts.request is None and observer.begun:
            interrupts.request = asyncio.ensure_future(_interrupt(bridge, observer))
        else:
            interrupts.abandoned = True
            cell.cancel()

    try:
        loop.add_signal_handler(signal.SIGINT, on_sigint)
    except NotImplementedError:  # Windows: Ctrl-C ends this program, and the cell goes on
        yield interrupts
        return
    try:
        yield interrupts
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        if interrupts.request is not None:
            interrupts.request.cancel()


async def _interrupt(bridge: Bridge, cell: CellObserver) -> None:
    from bridgehead import BridgeError

    try:
        await bridge._interrupt_cell(cell.request)
    except (BridgeError, TimeoutError) as error:
        warn(f"{error}; press Ctrl-C again to stop waiting for the cell")


class _OutputPrinter:
    """Prints a cell's output on this program's own streams."""

    def __init__(self, *, quiet: bool) -> None:
        from bridgehead._tools.cli.terminal import console_for

        self._quiet = quiet
        self._consoles = {
            name: console_for(stderr=name == "stderr") for name in ("stdout", "stderr")
        }
        self._coloured: set[str] = set()
        self.cell: asyncio.Future[Any] | None = None
        self.reader_left = False

    def take(self, message: Message) -> None:
        """Print one message of the cell; an error comes again with the reply, and is shown then."""
        from bridgehead._protocol.display import shown, shown_text
        from bridgehead._protocol.raising import as_object, as_text

        if self._quiet or message.type == "error":
            return
        try:
            trust = message.trust
            if message.type == "stream":
                name = "stderr" if message.content.get("name") == "stderr" else "stdout"
                self._write(shown_text(message.text, trust), name)
            elif message.type in ("execute_result", "display_data"):
                data, _ = shown(as_object(message.content.get("data")), {}, trust)
                self._write(as_text(data.get("text/plain", "")) + "\n", "stdout")
        except BrokenPipeError:
            self.reader_left = True
            if self.cell is not None:
                self.cell.cancel()

    def error(self, error: Any) -> None:
        """Print the traceback as the kernel formatted it."""
        lines = error.traceback or [f"{error.ename}: {error.evalue}"]
        self._write("\n".join(lines) + "\n", "stderr")

    def end(self) -> None:
        """Reset the terminal's colours at the end of the cell."""
        from bridgehead._tools.cli.terminal import write

        while self._coloured and not self.reader_left:
            write("\x1b[0m", self._coloured.pop())

    def _write(self, text: str, name: str) -> None:
        from bridgehead._tools.cli.terminal import output, uncoloured, write

        console = self._consoles[name]
        terminal = console.is_terminal
        colour = terminal and not console.no_color
        shown = output(text, terminal=terminal, colour=colour)
        if name == "stderr" and not colour:
            shown = uncoloured(shown)
        if colour and "\x1b[" in shown:
            self._coloured.add(name)
        write(shown, name)
