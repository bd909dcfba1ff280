"""Series and frames of polars: the memory of their columns crosses as it is.

Rule: as ``reducers`` says. polars pickles a column as a file in Arrow's format, in the pickle. Here
a column lends its memory (see ``arrow_memory``). A column of a type that this does not know, such
as a category, is left to polars.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.reducers.arrow_memory import ArrowMemory, Unknown, arrow_parts
    from bridgehead._shipped.wire.libraries import builder, finder

_SMALL_COLUMN = 1 << 12  # bytes


@finder
def polars_reducer(kind: Any, shared: Any) -> Any:
    """Return the function that reduces series or frames, or None."""
    polars = sys.modules.get("polars")
    if kind is getattr(polars, "Series", shared):
        return reduce_polars_series
    return reduce_polars_frame if kind is getattr(polars, "DataFrame", shared) else None


def reduce_polars_series(series: Any) -> Any:
    """Return how to pickle a series."""
    own, size = series.__reduce_ex__, series.estimated_size()
    if size < _SMALL_COLUMN:
        return own(5)
    try:
        described, chunks = arrow_parts(series)
    except (Unknown, AttributeError):  # an older polars lends nothing
        return own(5)
    if sum(map(_nbytes, chunks)) > 2 * size + _SMALL_COLUMN:
        return own(5)  # a part of a column of texts lends the texts of all of it
    order = [name for name in ("SORTED_ASC", "SORTED_DESC") if series.flags.get(name)]
    return make_polars_series, (series.name, described, chunks, order)


def _nbytes(chunk: Any) -> int:
    """Return the bytes that a chunk lends."""
    _, _, _, buffers, children = chunk
    own: int = sum(buffer.raw().nbytes for buffer in buffers if buffer is not None)
    return own + sum(map(_nbytes, children))


def reduce_polars_frame(frame: Any) -> Any:
    """Return how to pickle a frame: as its columns."""
    if frame.width == 0 or frame.estimated_size() < _SMALL_COLUMN:
        return frame.__reduce_ex__(5)
    return make_polars_frame, (frame.get_columns(),)


@builder
def make_polars_series(name: str, described: Any, chunks: Any, order: Any) -> Any:
    """Return a series of this memory, in as many chunks."""
    polars: Any = importlib.import_module("polars")
    parts = [polars.Series(name, ArrowMemory(described, chunk)) for chunk in chunks]
    series = parts[0] if len(parts) == 1 else polars.concat(parts, rechunk=False)
    return series.set_sorted(descending=order == ["SORTED_DESC"]) if order else series


@builder
def make_polars_frame(columns: Any) -> Any:
    """Return a frame of these columns."""
    return importlib.import_module("polars").DataFrame(columns)
