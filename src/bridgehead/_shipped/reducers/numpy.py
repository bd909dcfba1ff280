"""Arrays of numpy: read-only ones stay read-only, and broadcast ones cross as their base.

Rule: as ``reducers`` says. numpy pickles a contiguous array with a buffer as it is. Any other array
it copies into the pickle: then each item crosses, however many of them share one place in memory,
and the copy is writable.
"""

from __future__ import annotations

import sys
from typing import Any, Sequence


def numpy_reducer(kind: Any) -> Any:
    """Return the function that reduces arrays of a type, or None."""
    ndarray = getattr(sys.modules.get("numpy"), "ndarray", None)
    return reduce_ndarray if ndarray is not None and issubclass(kind, ndarray) else None


def reduce_ndarray(array: Any) -> Any:
    """Return how to pickle an array."""
    flags = array.flags
    if not flags.forc and not array.dtype.hasobject and type(array).__name__ == "ndarray":
        below = sum((n - 1) * s for n, s in zip(array.shape, array.strides) if s < 0)
        above = sum((n - 1) * s for n, s in zip(array.shape, array.strides) if s > 0)
        span = above - below + array.itemsize
        if span < array.nbytes:
            memory = _memory(array, span)
            return make_strided, (memory, array.dtype, array.shape, -below, array.strides)
    reduced = array.__reduce_ex__(5)
    if not flags.writeable and len(reduced) == 3:
        return (*reduced, None, None, set_read_only)
    return reduced


def _memory(array: Any, span: int) -> Any:
    """Return the bytes that the items of an array are in."""
    numpy: Any = sys.modules["numpy"]
    first = array[tuple(slice(-1, None) if s < 0 else slice(0, 1) for s in array.strides)]
    as_strided = numpy.lib.stride_tricks.as_strided
    return as_strided(first.reshape(1).view("u1"), (span,), (1,), writeable=array.flags.writeable)


def make_strided(
    memory: Any, dtype: Any, shape: Sequence[int], offset: int, strides: Sequence[int]
) -> Any:
    """Return an array of items in this memory, several of which may be in one place."""
    numpy: Any = sys.modules["numpy"]
    return numpy.ndarray(shape, dtype, memory, offset, strides)


def set_read_only(array: Any, state: Any) -> None:
    """Give an array its items, then make it read-only."""
    array.__setstate__(state)
    array.flags.writeable = False
