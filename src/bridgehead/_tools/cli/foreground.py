"""What ``run`` shows of cells, and what Ctrl-C does while the kernel works for a command.

Rule: the cell's output is the user's own. A pipe gets it unchanged, a terminal gets it without
sequences that would control the terminal.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from bridgehead._tools.cli.exit import warn

if TYPE_CHECKING:
    from bridgehead import Bridge, Message
    from bridgehead._bridge.notebook import NotebookRun
    from bridgehead._connection.outputs import CellObserver

# Errors by which an interrupted cell ends: the second one if it awaits.
BY_INTERRUPT = ("KeyboardInterrupt", "CancelledError")


class CtrlC:
    """The effects of Ctrl-C so far."""

    def __init__(self) -> None:
        self.request: asyncio.Task[None] | None = None  # interrupts the cell
        self.abandoned = False  # the command no longer waits for what the kernel does for it


@contextlib.contextmanager
def interrupting(
    bridge: Bridge, cell: asyncio.Future[Any], observer: CellObserver | NotebookRun
) -> Iterator[CtrlC]:
    """Interrupt the cell on the first Ctrl-C, and stop waiting for it on the second.

    While the cell waits for its turn, the first Ctrl-C stops waiting: there is nothing to
    interrupt, and no other client's cell is.
    """
    interrupts = CtrlC()

    def on_sigint() -> None:
        if interrupts.request is None and observer.begun:
            interrupts.request = asyncio.ensure_future(_interrupt(bridge, observer))
        else:
            interrupts.abandoned = True
            cell.cancel()

    try:
        with _handling(on_sigint):
            yield interrupts
    finally:
        if interrupts.request is not None:
            interrupts.request.cancel()


@contextlib.contextmanager
def cancelling(work: asyncio.Future[Any], interrupts: CtrlC) -> Iterator[bool]:
    """Cancel the work on Ctrl-C, and note that; yield whether Ctrl-C can be handled here."""

    def on_sigint() -> None:
        interrupts.abandoned = True
        work.cancel()

    with _handling(on_sigint) as is_handled:
        yield is_handled


@contextlib.contextmanager
def _handling(on_sigint: Callable[[], None]) -> Iterator[bool]:
    """Call a function on Ctrl-C; yield whether that is possible here."""
    loop = asyncio.get_running_loop()
    before = signal.getsignal(signal.SIGINT)
    try:
        loop.add_signal_handler(signal.SIGINT, on_sigint)
    # On Windows, and in a thread that gets no signals: Ctrl-C ends this program, and the kernel
    # goes on.
    except (NotImplementedError, RuntimeError, ValueError):
        yield False
        return
    try:
        yield True
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        if before is not None:
            # The loop leaves Python's own handler, which would raise anywhere in the loop's code;
            # asyncio's cancels the command's task.
            signal.signal(signal.SIGINT, before)


async def _interrupt(bridge: Bridge, cell: CellObserver | NotebookRun) -> None:
    from bridgehead import BridgeError

    try:
        await bridge._interrupt_cell(cell.request)
    except (BridgeError, TimeoutError) as error:
        warn(f"{error}; press Ctrl-C again to stop waiting for the cell")


class OutputPrinter:
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
        """Print the traceback as the kernel formatted it, unless the cell itself printed it."""
        lines = error.traceback if self._quiet else ()
        lines = lines or error._lines_below_outputs
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
