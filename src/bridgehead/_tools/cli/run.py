"""``run``: a file becomes a cell, and its output comes as it is made.

Rule: the cell is the user's own, and so is what it prints: a pipe gets it untouched, a terminal
without what would steer it. Ctrl-C goes to the cell; a second one leaves it to itself.
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


@click.command()
@click.argument("file", metavar="FILE", type=click.Path(dir_okay=False, allow_dash=True))
@target(trust=False)
@as_json
def run(target: Target, file: str, as_json: bool) -> None:
    """Run FILE as a cell of a kernel; - reads standard input.

    As a cell of a notebook: magics and top-level await work, it has a number, and others see
    its output. What it prints is printed here as it comes, its errors on standard error;
    where it raises, the exit code is 1. Ctrl-C interrupts it over there; a second Ctrl-C
    leaves, and the cell goes on.

    --json prints one object when it is done: stdout, stderr, outputs as in a notebook's file,
    data, execution_count and error.
    """
    name = "standard input" if file == "-" else file
    try:
        # Its bytes: as this process's text, what is no UTF-8 would come through as something.
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        code = io.TextIOWrapper(io.BytesIO(data), "utf-8").read()
    except (OSError, UnicodeError) as error:
        fail(f"{name} can't be read: {getattr(error, 'strerror', None) or error}", UNUSABLE)
    raise SystemExit(finish(_run(target, code, as_json)))


async def _run(target: Target, code: str, as_json: bool) -> int:
    from bridgehead import RemoteError
    from bridgehead._connection.cell import CellObserver

    show = _OutputPrinter(quiet=as_json)
    heard = CellObserver(show.take)
    async with target.open() as bridge:
        cell = asyncio.ensure_future(bridge.run(code, on_output=heard))
        show.cell = cell
        with _interrupting(bridge, cell, heard) as struck:
            try:
                result, error = await cell, None
            except RemoteError as raised:
                result, error = raised.result, raised
                if not as_json:
                    show.error(raised)
            except asyncio.CancelledError:
                if show.reader_left:
                    raise BrokenPipeError from None
                if not struck.left:
                    raise
                warn(
                    "left; the cell may still run"
                    + ("" if heard.begun else ", once it has its turn")
                )
                return INTERRUPTED
            finally:
                show.end()
    if as_json:
        _print_json(result, error)
    if error is None:
        return 0
    return INTERRUPTED if struck.asked and error.ename == "KeyboardInterrupt" else FAILED


def _print_json(result: Any, error: Any) -> None:
    told = None
    if error is not None:
        told = {"ename": error.ename, "evalue": error.evalue, "traceback": error.traceback}
    fields = ("stdout", "stderr", "outputs", "data", "execution_count")
    shown = {name: getattr(result, name, None) for name in fields}
    from bridgehead._tools.cli.terminal import write

    write(json.dumps({**shown, "error": told}, default=repr) + "\n")


class _Interrupts:
    """What Ctrl-C has done so far."""

    def __init__(self) -> None:
        self.asked: asyncio.Task[None] | None = None  # the interrupt
        self.left = False


@contextlib.contextmanager
def _interrupting(
    bridge: Bridge, cell: asyncio.Future[Any], heard: CellObserver
) -> Iterator[_Interrupts]:
    """Ctrl-C interrupts the cell, and the next one leaves it.

    A cell that waits for its turn is left at once: an interrupt would hit another one's.
    """
    loop = asyncio.get_running_loop()
    struck = _Interrupts()

    def strike() -> None:
        if struck.asked is None and heard.begun:
            struck.asked = asyncio.ensure_future(_interrupt(bridge))
        else:
            struck.left = True
            cell.cancel()

    try:
        loop.add_signal_handler(signal.SIGINT, strike)
    except NotImplementedError:  # Windows: it ends this program, and the cell goes on
        yield struck
        return
    try:
        yield struck
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        if struck.asked is not None:
            struck.asked.cancel()


async def _interrupt(bridge: Bridge) -> None:
    from bridgehead import BridgeError

    try:
        await bridge.interrupt()
    except (BridgeError, TimeoutError) as error:
        warn(f"{error}; Ctrl-C again leaves the cell to itself")


class _OutputPrinter:
    """What the cell says, on this program's own streams."""

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
        """One of its messages; an error comes once more with the reply, and waits for that."""
        if self._quiet or message.type == "error":
            return
        try:
            if message.type == "stream":
                name = "stderr" if message.content.get("name") == "stderr" else "stdout"
                self._write(message.text, name)
            elif message.type in ("execute_result", "display_data"):
                self._write(message.text + "\n", "stdout")
        except BrokenPipeError:
            self.reader_left = True
            if self.cell is not None:
                self.cell.cancel()

    def error(self, error: Any) -> None:
        """The traceback as the kernel made it."""
        lines = error.traceback or [f"{error.ename}: {error.evalue}"]
        self._write("\n".join(lines) + "\n", "stderr")

    def end(self) -> None:
        """The colours end with the cell."""
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
