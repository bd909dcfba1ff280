"""How far a transfer is: a callable of the user's, or a bar.

Rule: bytes done and bytes in all go to one callable; what it raises ends the transfer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Report = Callable[[int, int], object]
SHOWN_AFTER = 0.5  # s; a bar for less would only flicker


@contextmanager
def reporting(progress: bool | Report, operation: str) -> Iterator[Report]:
    """What is to be called with bytes done and bytes in all, for as long as the block lasts.

    Raises:
        TypeError: it is neither a bool nor callable.
        ImportError: a bar needs tqdm, which is not installed.
    """
    if callable(progress):
        yield progress
        return
    if not isinstance(progress, bool):
        raise TypeError(
            "progress is True or a callable of bytes done and in all, "
            f"not {type(progress).__name__}"
        )
    if not progress:
        yield lambda done, total: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError(
            "progress=True shows a tqdm bar; pip install tqdm, or pass a callable"
        ) from error
    bar: Any = None

    def show(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(total=total, desc=operation, unit="B", unit_scale=True, delay=SHOWN_AFTER)
        bar.update(done - bar.n)

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()
