"""A cell that runs in another kernel and is shown in this IPython.

Rule: the kernel's messages are shown by IPython's own means, in their order and while the cell is
running. Everything is shown in the calling thread, as IPython does. The bridge's thread only puts
messages into a queue.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from queue import SimpleQueue
from typing import Any

from IPython.core.interactiveshell import InteractiveShell

from bridgehead._bridge.sync import SyncBridge
from bridgehead._connection.outputs import COMMS, CellObserver
from bridgehead._errors import BridgeError, RemoteError
from bridgehead._protocol.display import PLAIN, shown, shown_text, without_widget
from bridgehead._protocol.results import Result
from bridgehead._tools.magics.widget_text import WidgetTexts
from bridgehead._transports.messages import Message


class RemoteValue:
    """The representations of a cell's value; ``Out[n]`` and ``_`` hold this object.

    The value itself stays in its kernel: it may be large, or of a class that this process does
    not have. ``%bridge pull`` brings it.

    Attributes:
        data: the kernel's representations, by MIME type.
        metadata: their metadata, by MIME type.
    """

    def __init__(self, data: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        self.data, self.metadata = dict(data), dict(metadata)

    def __repr__(self) -> str:
        return str(self.data.get("text/plain", "<no text>"))

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.data, self.metadata


class CellAbandoned(KeyboardInterrupt):
    """The user stopped waiting for the cell; it may still run in the kernel."""

    def _render_traceback_(self) -> list[str]:
        return [f"KeyboardInterrupt: {self}"]


def run_shown(shell: InteractiveShell, bridge: SyncBridge, code: str) -> Result:
    """Run a cell in the bridge's kernel and show its output as it comes.

    The first ``KeyboardInterrupt`` interrupts the cell in the kernel, and no other cell, and then
    waits for the end of the cell. The second one stops waiting. So does the first one if the cell
    has not begun, because the kernel runs another client's.

    Raises:
        RemoteError: the cell raised; IPython shows the kernel's traceback.
        CellAbandoned: the user stopped waiting; the cell may still run in the kernel.
    """
    messages: SimpleQueue[Message | None] = SimpleQueue()
    observer = CellObserver(messages.put)
    running = bridge._start(
        lambda: bridge._bridge.run(code, on_output=observer),
        lambda: messages.put(None),  # after all of the cell's messages
    )
    display, interrupted, more = CellDisplay(shell), False, True
    while more:
        try:
            try:
                more = display.show_next(messages)
            except KeyboardInterrupt:
                if interrupted:
                    raise
                interrupted = True
                # The interrupt may have come right after the last item was taken from the queue.
                if running.is_done:
                    messages.put(None)
                elif observer.begun:
                    interrupt_cell(bridge, observer)
                else:
                    raise
        except KeyboardInterrupt:
            bridge._thread.cancel(running)
            raise CellAbandoned("stopped waiting; the cell may still run in the kernel") from None
    display.end()
    try:
        result = running.result()
    except RemoteError as error:
        display.show_errors(but=error)
        raise
    display.show_errors()
    return result


def interrupt_cell(bridge: SyncBridge, cell: CellObserver) -> None:
    """Interrupt a cell in its kernel, and no other cell."""
    try:
        bridge._wait(lambda: bridge._bridge._interrupt_cell(cell.request))
    except (BridgeError, TimeoutError) as error:
        print(f"not interrupted: {error}", file=sys.stderr)  # noqa: T201 - as IPython does


class CellDisplay:
    """Shows the outputs of one cell, or of the same cell in several kernels."""

    def __init__(self, shell: InteractiveShell) -> None:
        self._shell = shell
        self._errors: list[Message] = []
        self._stream = ""  # that was written to last
        self._widgets = WidgetTexts()

    def show_next(self, messages: SimpleQueue[Message | None]) -> bool:
        """Wait for a message and show it; return False after the last one."""
        if messages.empty():
            self.catch_up()
        message = messages.get()
        if message is not None:
            self.show(message)
        return message is not None

    def show(self, message: Message) -> None:
        """Show one message."""
        content = message.content
        if message.type in COMMS:
            self._widgets.take(message)
            return
        data, metadata = _mapping(content, "data"), _mapping(content, "metadata")
        data, metadata = shown(data, metadata, message.trust)
        identity = _display_id(content) or self._widgets.display_id(data)
        data = without_widget(data)
        if message.type == "stream":
            name = "stderr" if content.get("name") == "stderr" else "stdout"
            if name != self._stream:  # a kernel collects each stream for itself
                flush()
                self._stream = name
            self.write(shown_text(str(content.get("text", "")), message.trust), name)
        elif message.type == "clear_output":
            self.clear(wait=bool(content.get("wait")))
        elif message.type == "error":
            self._errors.append(message)
        elif message.type == "execute_result":
            # At once, not when the magic returns: a figure of the same cell comes after it.
            self.show_value(data, metadata)
        else:
            update = message.type == "update_display_data"
            self.publish(data, metadata, identity, update=update)

    def catch_up(self) -> None:
        """Have the front end show what was written so far, without the end of a line, too.

        A terminal cannot change what it shows: there, a widget's last text is shown at the end.
        """
        if hasattr(self._shell, "kernel"):
            for identity, text in self._widgets.changes():
                self.publish({PLAIN: text}, {}, identity, update=True)
        flush()

    def end(self) -> None:
        """Show the last texts of widgets."""
        for identity, text in self._widgets.changes():
            update = hasattr(self._shell, "kernel")
            self.publish({PLAIN: text}, {}, identity if update else "", update=update)

    def publish(
        self, data: dict[str, Any], metadata: dict[str, Any], identity: str, *, update: bool
    ) -> None:
        """Show a display, or what replaces it."""
        transient = {"display_id": identity} if identity else {}
        self._shell.display_pub.publish(data, metadata, transient=transient, update=update)

    def write(self, text: str, name: str) -> None:
        """Write text to a stream."""
        (sys.stderr if name == "stderr" else sys.stdout).write(text)

    def clear(self, wait: bool) -> None:
        """Clear the outputs so far."""
        self._shell.display_pub.clear_output(wait=wait)

    def show_value(self, data: dict[str, Any], metadata: dict[str, Any]) -> None:
        """Show the value of the cell."""
        self._shell.displayhook(RemoteValue(data, metadata))

    def show_errors(self, but: RemoteError | None = None) -> None:
        """Show the tracebacks that the cell showed, except that of its own exception.

        Only at the end is it known which one that is. IPython shows the exception itself.
        """
        for message in self._errors:
            traceback = message.content.get("traceback") or ()
            if but is None or traceback != but.traceback:
                text = "\n".join([*map(str, traceback), ""])
                sys.stderr.write(shown_text(text, message.trust))
        sys.stderr.flush()


def flush() -> None:
    """Have a front end show what was written so far."""
    sys.stdout.flush()
    sys.stderr.flush()


def _display_id(content: Mapping[str, Any]) -> str:
    identity = _mapping(content, "transient").get("display_id")
    return identity if isinstance(identity, str) else ""


def _mapping(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = content.get(key)
    return value if isinstance(value, dict) else {}
