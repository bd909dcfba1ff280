"""Arrays of numpy: their memory crosses as it is, whatever their dtype, layout and subclass.

Rule: as ``reducers`` says. numpy gives the pickler the buffer of an array only if it is contiguous,
of no subclass, and of a dtype that the buffer protocol knows. Any other array it copies into the
pickle: dates, records of dates, masked arrays, strided ones. Then each item crosses, however many
of them share one place in memory, and the copy is writable.

Here an array sends the memory that its items are in, with its strides. Only where there is more
memory than items, such as in every second row of a table, the items are copied together.
"""

from __future__ import annotations

import pickle
import sys
from typing import Any, Sequence

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.wire.frames import allocate
    from bridgehead._shipped.wire.libraries import builder, finder
    from bridgehead._shipped.wire.pickling import EXPORTED

_CONTIGUOUS, _WRITEABLE = 3, 1024  # of ``flags.num``: NPY_ARRAY_C_ or F_CONTIGUOUS, WRITEABLE


@finder
def numpy_reducer(kind: Any, shared: Any) -> Any:
    """Return the function that reduces arrays of a type, or None."""
    numpy: Any = sys.modules.get("numpy")
    base = getattr(numpy, "ndarray", None)
    if base is None or not issubclass(kind, base):
        return None
    if kind is base:
        return reduce_ndarray
    masked = getattr(sys.modules.get("numpy.ma"), "MaskedArray", None)
    if kind is masked:
        return reduce_masked
    own = (kind.__reduce__, kind.__reduce_ex__, kind.__setstate__)
    if own == (base.__reduce__, base.__reduce_ex__, base.__setstate__):
        return reduce_subclass
    return reduce_other_subclass


def reduce_ndarray(array: Any) -> Any:
    """Return how to pickle an array of no subclass."""
    flags, dtype = array.flags.num, array.dtype
    if flags & _CONTIGUOUS and dtype.char in EXPORTED:
        # What numpy itself does, in a third of the time.
        order = "C" if flags & 1 else "F"
        return make_contiguous, (pickle.PickleBuffer(array), dtype, array.shape, order)
    return _reduce_memory(array) or _with_flag(array, array.__reduce_ex__(5))


def reduce_subclass(array: Any) -> Any:
    """Return how to pickle an array of a subclass that leaves pickling to numpy."""
    return _reduce_memory(array) or _with_flag(array, array.__reduce_ex__(5))


def reduce_other_subclass(array: Any) -> Any:
    """Return how an array of a subclass pickles itself, and its flag."""
    return _with_flag(array, array.__reduce_ex__(5))


def _with_flag(array: Any, reduced: Any) -> Any:
    """Return how to pickle an array so that it arrives read-only if it is."""
    if array.flags.num & _WRITEABLE or type(reduced) is str or len(reduced) != 3:
        return reduced
    return (*reduced, None, None, set_read_only)


def _reduce_memory(array: Any) -> Any:
    """Return how to pickle an array as its memory; None if it has objects, or no items."""
    dtype, numpy = array.dtype, sys.modules["numpy"]
    if dtype.hasobject or not array.nbytes:
        return None
    kind = None if type(array) is numpy.ndarray else type(array)
    array = array.view(numpy.ndarray)
    offset, span = _extent(array)
    if span > array.nbytes:
        array = _gathered(array)
        offset, span = 0, array.nbytes
    memory = pickle.PickleBuffer(_memory(array, span))
    return make_strided, (memory, dtype, array.shape, offset, array.strides, kind)


def _extent(array: Any) -> tuple[int, int]:
    """Return the offset of an array's first item in its memory, and the size of that, in bytes."""
    steps = [(n - 1) * step for n, step in zip(array.shape, array.strides)]
    below = sum(step for step in steps if step < 0)
    return -below, sum(map(abs, steps)) + array.itemsize


def _gathered(array: Any) -> Any:
    """Copy the items of an array into memory without gaps, with its axes in the same order."""
    numpy: Any = sys.modules["numpy"]
    order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    shape = [array.shape[axis] for axis in order]
    copy = numpy.ndarray(shape, array.dtype, allocate(array.nbytes))
    copy = copy.transpose([order.index(axis) for axis in range(array.ndim)])
    copy[...] = array
    copy.flags.writeable = array.flags.writeable
    return copy


def _memory(array: Any, span: int) -> Any:
    """Return the bytes that the items of an array are in."""
    numpy: Any = sys.modules["numpy"]
    first = array[(*(slice(-1, None) if s < 0 else slice(0, 1) for s in array.strides), ...)]
    as_strided = numpy.lib.stride_tricks.as_strided
    return as_strided(first.reshape(1).view("u1"), (span,), (1,), writeable=array.flags.writeable)


@builder
def make_contiguous(memory: Any, dtype: Any, shape: Sequence[int], order: str) -> Any:
    """Return an array of the items in this memory."""
    return sys.modules["numpy"].ndarray(shape, dtype, memory, order=order)


@builder
def make_strided(
    memory: Any,
    dtype: Any,
    shape: Sequence[int],
    offset: int,
    strides: Sequence[int],
    kind: Any = None,
) -> Any:
    """Return an array of items in this memory, several of which may be in one place."""
    ndarray: Any = sys.modules["numpy"].ndarray
    return ndarray.__new__(kind or ndarray, shape, dtype, memory, offset, strides)


@builder
def set_read_only(array: Any, state: Any) -> None:
    """Give an array its items, then make it read-only."""
    array.__setstate__(state)
    array.flags.writeable = False


# ---------------------------------------------------------------- masked arrays


def reduce_masked(array: Any) -> Any:
    """Return how to pickle a masked array: as its data and its mask, which are arrays."""
    numpy: Any = sys.modules["numpy"]
    if array is numpy.ma.masked or array.dtype.hasobject:
        return reduce_other_subclass(array)
    mask = None if array._mask is numpy.ma.nomask else array._mask
    state = (array._fill_value, array._hardmask, array._sharedmask)
    return make_masked_array, (array.data, mask, *state)


@builder
def make_masked_array(data: Any, mask: Any, fill: Any, hard: bool, shared: bool) -> Any:
    """Return a masked array of this data and this mask."""
    numpy: Any = sys.modules["numpy"]
    mask = numpy.ma.nomask if mask is None else mask
    made = numpy.ma.MaskedArray(data, mask, copy=False, hard_mask=hard)
    made._fill_value, made._sharedmask = fill, shared
    return made
