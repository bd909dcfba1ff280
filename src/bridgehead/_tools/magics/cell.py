"""A cell that runs over there, shown here as if it had run here.

Rule: messages in, IPython's own ways of showing out, in the order in which they came and while
the cell is running. Everything is shown in the thread that called, where IPython shows things;
the bridge's thread only puts messages into a queue.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from queue import SimpleQueue
from typing import Any

from IPython.core.interactiveshell import InteractiveShell

from bridgehead._bridge.sync import SyncBridge
from bridgehead._errors import BridgeError, RemoteError
from bridgehead._protocol.results import Result
from bridgehead._transports.messages import Message


class RemoteValue:
    """What a cell's value looks like over there; ``Out[n]`` and ``_`` are this.

    The value itself stays in its kernel, where it may be large, or of classes that don't exist
    here: ``%bridge pull`` brings it.

    Attributes:
        data: its looks by MIME type, as the kernel told them.
        metadata: of these, by MIME type.
    """

    def __init__(self, data: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        self.data, self.metadata = dict(data), dict(metadata)

    def __repr__(self) -> str:
        return str(self.data.get("text/plain", "<no text>"))

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.data, self.metadata


class CellAbandoned(KeyboardInterrupt):
    """Nobody waits for the cell any more; it may go on over there."""

    def _render_traceback_(self) -> list[str]:
        return [f"KeyboardInterrupt: {self}"]


def run_shown(shell: InteractiveShell, bridge: SyncBridge, code: str) -> Result:
    """Run a cell in the bridge's kernel and show here what it gives, as it comes.

    The first ``KeyboardInterrupt`` here interrupts the kernel, whatever it is at, and the cell's
    own end is waited for; the second one gives up waiting.

    Raises:
        RemoteError: the cell raised; IPython shows the kernel's traceback of it.
        CellAbandoned: a second interrupt; the cell may go on over there.
    """
    arrived: SimpleQueue[Message | None] = SimpleQueue()
    running = bridge._start(
        lambda: bridge._bridge.run(code, on_output=arrived.put),
        lambda: arrived.put(None),  # behind all that it gave
    )
    screen, interrupted, more = _CellDisplay(shell), False, True
    while more:
        try:
            try:
                more = screen.show_next(arrived)
            except KeyboardInterrupt:
                if interrupted:
                    raise
                interrupted = True
                if running.is_done:  # its end may have been taken from the queue already
                    arrived.put(None)
                else:
                    _interrupt(bridge)
        except KeyboardInterrupt:
            bridge._thread.cancel(running)
            raise CellAbandoned(
                "nobody waits for the cell any more; it may go on over there"
            ) from None
    try:
        result = running.result()
    except RemoteError as error:
        screen.show_errors(but=error)
        raise
    screen.show_errors()
    return result


def _interrupt(bridge: SyncBridge) -> None:
    try:
        bridge.interrupt()
    except (BridgeError, TimeoutError) as error:
        print(f"not interrupted: {error}", file=sys.stderr)  # noqa: T201 - IPython's own way


class _CellDisplay:
    """Where one cell's outputs go."""

    def __init__(self, shell: InteractiveShell) -> None:
        self._shell = shell
        self._errors: list[Mapping[str, Any]] = []

    def show_next(self, arrived: SimpleQueue[Message | None]) -> bool:
        """Wait for a message and show it; false if there will be none any more."""
        if arrived.empty():  # text without an end of line must be seen too
            sys.stdout.flush()
            sys.stderr.flush()
        message = arrived.get()
        if message is not None:
            self._show(message)
        return message is not None

    def _show(self, message: Message) -> None:
        content, publisher = message.content, self._shell.display_pub
        if message.type == "stream":
            stream = sys.stderr if content.get("name") == "stderr" else sys.stdout
            stream.write(str(content.get("text", "")))
        elif message.type == "clear_output":
            publisher.clear_output(wait=bool(content.get("wait")))
        elif message.type == "error":
            self._errors.append(content)
        elif message.type == "execute_result":
            # At once, not when the magic returns: a figure of the same cell comes behind it.
            self._shell.displayhook(
                RemoteValue(_mapping(content, "data"), _mapping(content, "metadata"))
            )
        else:
            publisher.publish(
                _mapping(content, "data"),
                _mapping(content, "metadata"),
                transient=_mapping(content, "transient"),
                update=message.type == "update_display_data",
            )

    def show_errors(self, but: RemoteError | None = None) -> None:
        """The tracebacks that the cell showed, except the one that it ended with.

        Which one that is is known at the end only; what is raised here, IPython shows.
        """
        for told in self._errors:
            if but is None or told.get("traceback") != but.traceback:
                sys.stderr.write("\n".join([*map(str, told.get("traceback") or ()), ""]))
        sys.stderr.flush()


def _mapping(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = content.get(key)
    return value if isinstance(value, dict) else {}
