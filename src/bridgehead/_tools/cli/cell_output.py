"""The output of a cell on this program's own streams.

Rule: the output of a trusted kernel is the user's own. A pipe gets it unchanged, a terminal gets it
without sequences that would control the terminal. Of any other kernel a pipe gets none either.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridgehead import Message


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
        from bridgehead._errors import coloured

        lines = error.traceback if self._quiet else ()
        lines = lines or error._lines_below_outputs
        if error.result is None or error.result.trust != "pickle":
            lines = map(coloured, lines)
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
