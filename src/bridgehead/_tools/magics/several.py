"""One cell in several kernels at once, each with its label before its outputs.

Rule: the outputs come as they arrive, in the order of their arrival. Printed text is shown in whole
lines, so that lines of two kernels never mix. A kernel's failure does not end the others' cells.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Mapping
from queue import SimpleQueue
from typing import Any

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

from bridgehead._bridge.loop_thread import LoopCall
from bridgehead._bridge.sync import SyncBridge
from bridgehead._connection.outputs import CellObserver
from bridgehead._errors import BridgeError, RemoteError, coloured
from bridgehead._protocol.display import PLAIN
from bridgehead._protocol.formatting import line
from bridgehead._protocol.results import Result
from bridgehead._tools.magics.cell import CellAbandoned, CellDisplay, flush, interrupt_cell
from bridgehead._transports.messages import Message

_END = re.compile(r"(?<=[\n\r])(?=[^\n])|(?<=\n)")  # of a line that is complete


def check_open(bridges: Mapping[str, SyncBridge]) -> None:
    """Raise ``UsageError`` if one of the bridges cannot be used, before anything is done."""
    for name, bridge in bridges.items():
        try:
            bridge._check()
        except BridgeError as error:  # a bridge that was closed, or whose loop has ended
            raise UsageError(f"{name}: {error}; the cell ran in no kernel") from error


def run_in_several(shell: InteractiveShell, bridges: Mapping[str, SyncBridge], code: str) -> None:
    """Run a cell in the kernels of several bridges and show its outputs as they come.

    The first ``KeyboardInterrupt`` interrupts the cells that have begun; a second one, or the
    first one if none has begun, stops waiting.

    Raises:
        UsageError: it failed in some kernels, whose errors were shown.
        CellAbandoned: the user stopped waiting; the cells may still run.
    """
    messages: SimpleQueue[tuple[str, Message | None]] = SimpleQueue()
    width = max(map(len, bridges))
    cells = {
        name: _Cell(bridge, code, name, messages, _LabelledDisplay(shell, f"{name:<{width}} | "))
        for name, bridge in bridges.items()
    }
    waiting, interrupted = dict(cells), False
    while waiting:
        try:
            try:
                if messages.empty():
                    flush()
                name, message = messages.get()
                if message is None:
                    waiting.pop(name, None)
                else:
                    cells[name].display.show(message)
            except KeyboardInterrupt:
                begun = [one for one in waiting.values() if one.observer.begun]
                if interrupted or not begun:
                    raise
                interrupted = True
                for one in begun:
                    interrupt_cell(one.bridge, one.observer)
                for name, one in waiting.items():  # its end may have been taken from the queue
                    if one.running.is_done:
                        messages.put((name, None))
        except KeyboardInterrupt:
            for one in waiting.values():
                one.bridge._thread.cancel(one.running)
            raise CellAbandoned(
                "stopped waiting; the cells may still run in their kernels"
            ) from None
    ends = {name: one.end() for name, one in cells.items()}
    failures = {name: why for name, why in ends.items() if why is not None}
    flush()
    if failures:
        whole = [name for name in cells if name not in failures]
        rest = f"; it ended in {', '.join(whole)}" if whole else ""
        failed = ", ".join(f"{name} ({line(why, 80)})" for name, why in failures.items())
        raise UsageError(f"the cell failed in {failed}{rest}")


class _Cell:
    """The cell in one kernel."""

    def __init__(
        self,
        bridge: SyncBridge,
        code: str,
        name: str,
        messages: SimpleQueue[tuple[str, Message | None]],
        display: _LabelledDisplay,
    ) -> None:
        self.bridge, self.display = bridge, display
        self.observer = CellObserver(lambda message: messages.put((name, message)))
        self.running: LoopCall[Result] = bridge._start(
            lambda: bridge._bridge.run(code, on_output=self.observer),
            lambda: messages.put((name, None)),  # after all of the cell's messages
        )

    def end(self) -> str | None:
        """Show the rest of the outputs; return what went wrong, or None."""
        self.display.end()
        try:
            self.running.result()
        except RemoteError as error:
            self.display.show_errors(but=error)
            self.display.show_failure(error._lines_below_outputs)
            return f"{error.ename}: {error.evalue}" if error.evalue else error.ename
        except (BridgeError, TimeoutError) as error:
            return str(error)
        except asyncio.CancelledError:
            return "stopped waiting"
        self.display.show_errors()
        return None


class _LabelledDisplay(CellDisplay):
    """Shows the outputs of one kernel, with its label."""

    def __init__(self, shell: InteractiveShell, label: str) -> None:
        super().__init__(shell)
        self._label = label
        self._partial = {"stdout": "", "stderr": ""}  # lines that have not ended

    def write(self, text: str, name: str) -> None:
        # Only what is new is split: a line may come as thousands of dots.
        *whole, rest = _lines(text)
        if whole:
            whole[0], self._partial[name] = self._partial[name] + whole[0], ""
        self._partial[name] += rest
        stream = sys.stderr if name == "stderr" else sys.stdout
        stream.write("".join(f"{self._label}{one}" for one in whole))

    def clear(self, wait: bool) -> None:
        """Do nothing: the outputs of the other kernels would be cleared, too."""

    def show_value(self, data: dict[str, Any], metadata: dict[str, Any]) -> None:
        self.publish(data, metadata, "", update=False)

    def publish(
        self, data: dict[str, Any], metadata: dict[str, Any], identity: str, *, update: bool
    ) -> None:
        """Show text as labelled lines, and anything else below a line with the label."""
        if update:
            super().publish(data, metadata, identity, update=True)
            return
        self._end_lines()
        if set(data) == {PLAIN}:
            self.write(f"{data[PLAIN]}\n", "stdout")
            return
        self.write("\n", "stdout")
        super().publish(data, metadata, identity, update=False)

    def show_failure(self, traceback: list[str]) -> None:
        """Show the traceback of the cell below a line with the label."""
        text = "\n".join(map(coloured, traceback))
        sys.stderr.write(f"{self._label}failed\n{text}\n")

    def end(self) -> None:
        """Show what has not been shown: lines without an end, the last texts of widgets."""
        self._end_lines()
        for _, text in self._widgets.changes():
            self.write(f"{text}\n", "stdout")

    def _end_lines(self) -> None:
        for name, text in self._partial.items():
            if text:
                self.write("\n", name)


def _lines(text: str) -> list[str]:
    """Return the lines of a text with their ends, and what comes after the last end.

    A carriage return ends a line, too: the next text of a progress bar needs a label of its own.
    """
    parts = _END.split(text)
    return parts if parts[-1][-1:] not in ("\n", "\r") else [*parts, ""]
