"""How far a transfer is: a callable of the user's, or a bar.

Rule: bytes done and bytes in all go to one callable; what it raises ends the transfer. A bar is
drawn by who asked for it, now and then, wherever the bytes are told: in the event loop and the
context of the call, or in the thread that waits. So it shows in the cell that called.
"""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Report = Callable[[int, int], object]
SHOWN_AFTER = 0.5  # s; a bar for less would only flicker
EVERY = 0.1  # s, between two drawings; as tqdm's own


@contextmanager
def reporting(progress: bool | Report, operation: str) -> Iterator[Report]:
    """What is to be called with bytes done and bytes in all, for as long as the block lasts.

    Raises:
        TypeError: it is neither a bool nor callable.
        ImportError: a bar needs tqdm, which is not installed.
    """
    with drawing(progress, operation) as (report, draw):
        if draw is None:
            yield report
            return
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle

        def tick() -> None:
            nonlocal timer
            draw()
            timer = loop.call_later(EVERY, tick)

        # It runs in the context in which it was made: that of the cell.
        timer = loop.call_later(SHOWN_AFTER, tick)
        try:
            yield report
        finally:
            timer.cancel()


@contextmanager
def drawing(
    progress: bool | Report, operation: str
) -> Iterator[tuple[Report, Callable[[], None] | None]]:
    """The same for a thread that waits: the callable, and of a bar what draws it, if it is time.

    Raises what ``reporting`` does.
    """
    if callable(progress):
        yield progress, None
        return
    if not isinstance(progress, bool):
        raise TypeError(
            "progress is True or a callable of bytes done and in all, "
            f"not {type(progress).__name__}"
        )
    if not progress:
        yield lambda done, total: None, None
        return
    bar = Bar(operation)
    try:
        yield bar.tell, bar.draw
    except BaseException as error:
        bar.close("failed" if isinstance(error, Exception) else "cancelled")
        raise
    bar.close()


class Bar:
    """A tqdm bar of bytes: a widget in notebooks, text elsewhere; none for what is short.

    It is made when it is time to show it. tqdm's own ``delay=`` only looks when something
    arrives: nothing was seen of a transfer that waited for a busy kernel, nor of one whose bytes
    came all at once.
    """

    def __init__(self, operation: str) -> None:
        self._operation, self._make = operation, _maker()
        self._began = time.time()  # as tqdm's
        self._done, self._total = 0, 0
        self._bar: Any = None

    def tell(self, done: int, total: int) -> None:
        """Note how far it is; from any thread."""
        self._done, self._total = done, total

    def draw(self) -> None:
        """Show how far it is, once it is time."""
        if self._bar is None:
            if time.time() - self._began < SHOWN_AFTER:
                return
            self._bar = self._make(desc=self._operation, total=self._total or None)
        elif self._total and self._bar.total != self._total:
            self._bar.reset(total=self._total)
        # The whole time counts, not that since the first byte was told.
        self._bar.start_t = self._began
        self._bar.n = self._done
        self._bar.refresh()

    def close(self, ended: str = "") -> None:
        """Leave it as it is now; ``ended`` says how, if it was not at its end."""
        self.draw()
        bar = self._bar
        if bar is None or bar.disable:  # TQDM_DISABLE
            return
        if ended:
            bar.set_description_str(f"{self._operation} {ended}", refresh=False)
            if hasattr(bar, "container"):  # a widget; it would be green where all bytes had gone
                bar.display(bar_style="danger")
        # It goes above the bars that go on, which would else leave lines where they were.
        with bar.external_write_mode(bar.fp):
            bar.close()


def _maker() -> Callable[..., Any]:
    """tqdm.auto's bar of bytes, without the thread in which tqdm watches bars that nobody draws."""
    try:
        with warnings.catch_warnings():
            # In a notebook without ipywidgets it says so, and gives the bar of text.
            warnings.simplefilter("ignore")
            from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError(
            "progress=True shows a tqdm bar; pip install tqdm, or pass a callable"
        ) from error

    class Bytes(tqdm):  # type: ignore[misc]
        monitor_interval = 0

    def make(**options: Any) -> Any:
        return Bytes(unit="B", unit_scale=True, **options)

    return make
