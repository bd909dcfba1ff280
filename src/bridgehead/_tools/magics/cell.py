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
from bridgehead._connection.cell import CellObserver
from bridgehead._errors import BridgeError, RemoteError
from bridgehead._protocol.display import shown, shown_text
from bridgehead._protocol.results import Result
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
    display, interrupted, more = _CellDisplay(shell), False, True
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
                    _interrupt(bridge, observer)
                else:
                    raise
        except KeyboardInterrupt:
            bridge._thread.cancel(running)
            raise CellAbandoned("stopped waiting; the cell may still run in the kernel") from None
    try:
        result = running.result()
    except RemoteError as error:
        display.show_errors(but=error)
        error._is_of_magic = True
        raise
    display.show_errors()
    return result


def _interrupt(bridge: SyncBridge, cell: CellObserver) -> None:
    try:
        bridge._wait(lambda: bridge._bridge._interrupt_cell(cell.request))
    except (BridgeError, TimeoutError) as error:
        print(f"not interrupted: {error}", file=sys.stderr)  # noqa: T201 - as IPython does


class _CellDisplay:
    """Shows the outputs of one cell."""

    def __init__(self, shell: InteractiveShell) -> None:
        self._shell = shell
        self._errors: list[Message] = []

    def show_next(self, messages: SimpleQueue[Message | None]) -> bool:
        """Wait for a message and show it; return False after the last one."""
        if messages.empty():  # text without an end of line must be visible too
            sys.stdout.flush()
            sys.stderr.flush()
        message = messages.get()
        if message is not None:
            self._show(message)
        return message is not None

    def _show(self, message: Message) -> None:
        content, publisher = message.content, self._shell.display_pub
        data, metadata = _mapping(content, "data"), _mapping(content, "metadata")
        data, metadata = shown(data, metadata, message.trust)
        if message.type == "stream":
            stream = sys.stderr if content.get("name") == "stderr" else sys.stdout
            stream.write(shown_text(str(content.get("text", "")), message.trust))
        elif message.type == "clear_output":
            publisher.clear_output(wait=bool(content.get("wait")))
        elif message.type == "error":
            self._errors.append(message)
        elif message.type == "execute_result":
            # At once, not when the magic returns: a figure of the same cell comes after it.
            self._shell.displayhook(RemoteValue(data, metadata))
        else:
            publisher.publish(
                data,
                metadata,
                transient=_display_id(content),
                update=message.type == "update_display_data",
            )

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


def _display_id(content: Mapping[str, Any]) -> dict[str, Any]:
    identity = _mapping(content, "transient").get("display_id")
    return {"display_id": identity} if isinstance(identity, str) else {}


def _mapping(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = content.get(key)
    return value if isinstance(value, dict) else {}
