"""The progress of a transfer, as a callable or a bar.

Rule: bytes done and bytes in all go to one callable; an exception that it raises ends the transfer.
A bar is drawn at intervals, and not when bytes are reported. It is drawn in the event loop and the
context of the call, or in the thread that waits for the call, so that a notebook shows it in the
cell that called.
"""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from bridgehead._transports.base import Transport

Report = Callable[[int, int], object]


def reporting(progress: bool | Report, operation: str) -> AbstractContextManager[Report]:
    """Give a callable for bytes done and bytes in all; draw a bar while the block runs.

    Raises:
        TypeError: ``progress`` is neither a bool nor callable.
        ImportError: a bar needs tqdm, which is not installed.
    """
    return _SILENT if progress is False else _drawing_in_loop(progress, operation)


def _ignore(done: int, total: int) -> None:
    pass


_SILENT: AbstractContextManager[Report] = nullcontext(_ignore)


@contextmanager
def _drawing_in_loop(progress: bool | Report, operation: str) -> Iterator[Report]:
    with drawing(progress, operation) as (report, draw):
        if draw is None:
            yield report
            return
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle

        def tick() -> None:
            nonlocal timer
            draw()
            timer = loop.call_later(Transport.timings.bar_every, tick)

        # A timer runs in the context that made it, here the context of the calling cell.
        timer = loop.call_later(Transport.timings.bar_after, tick)
        try:
            yield report
        finally:
            timer.cancel()


@contextmanager
def drawing(
    progress: bool | Report, operation: str
) -> Iterator[tuple[Report, Callable[[], None] | None]]:
    """Give a callable for bytes, and a function for the caller to draw the bar with, or None.

    The function draws nothing before it is time to show the bar.

    Raises what ``reporting`` does.
    """
    if callable(progress):
        yield progress, None
        return
    if not isinstance(progress, bool):
        raise TypeError(
            "progress must be True, False or a callable of bytes done and bytes in all, "
            f"not {type(progress).__name__}"
        )
    if not progress:
        yield _ignore, None
        return
    bar = Bar(operation)
    try:
        yield bar.update, bar.draw
    except BaseException as error:
        bar.close("failed" if isinstance(error, Exception) else "cancelled")
        raise
    bar.close()


class Bar:
    """A tqdm bar of bytes: a widget in notebooks, text elsewhere; none for a short transfer.

    The tqdm bar is made when it is time to show it. tqdm's own ``delay=`` checks the time only
    when bytes arrive: it never showed a transfer that waited for a busy kernel, nor one whose bytes
    arrived all at once.
    """

    def __init__(self, operation: str) -> None:
        self._operation, self._make = operation, _maker()
        self._began = time.time()  # the clock that tqdm reads
        self._done, self._total = 0, 0
        self._bar: Any = None

    def update(self, done: int, total: int) -> None:
        """Store the progress, in any thread."""
        self._done, self._total = done, total

    def draw(self) -> None:
        """Draw the bar, if it is time to show it."""
        if self._bar is None:
            if time.time() - self._began < Transport.timings.bar_after:
                return
            self._bar = self._make(desc=self._operation, total=self._total or None)
        elif self._total and self._bar.total != self._total:
            self._bar.reset(total=self._total)
        # tqdm shows the time since the call, not since the first bytes were reported.
        self._bar.start_t = self._began
        self._bar.n = self._done
        self._bar.refresh()

    def close(self, ended: str = "") -> None:
        """Draw the bar for the last time; ``ended`` says how a transfer ended before its end."""
        self.draw()
        bar = self._bar
        if bar is None or bar.disable:  # TQDM_DISABLE
            return
        if ended:
            bar.set_description_str(f"{self._operation} {ended}", refresh=False)
            if hasattr(bar, "container"):  # a widget, which is green once all bytes have crossed
                bar.display(bar_style="danger")
        # Other bars move down below this one; this keeps them from leaving their old lines behind.
        with bar.external_write_mode(bar.fp):
            bar.close()


def _maker() -> Callable[..., Any]:
    """Return a function that makes a tqdm.auto bar of bytes, without tqdm's monitor thread."""
    try:
        with warnings.catch_warnings():
            # In a notebook without ipywidgets tqdm warns and uses a bar of text.
            warnings.simplefilter("ignore")
            from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError(
            "progress=True needs tqdm, which is not installed; pip install tqdm, or pass a callable"
        ) from error

    class Bytes(tqdm):  # type: ignore[misc]
        monitor_interval = 0

    def make(**options: Any) -> Any:
        return Bytes(unit="B", unit_scale=True, **options)

    return make
