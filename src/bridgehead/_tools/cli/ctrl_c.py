"""Ctrl-C while the kernel works for a command.

Rule: the first Ctrl-C interrupts the cell that the command runs, and no other client's. The second
one ends the command and leaves the cell running. What is no cell is cancelled by the first one.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from bridgehead._tools.cli.exit import warn

if TYPE_CHECKING:
    from bridgehead import Bridge
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
