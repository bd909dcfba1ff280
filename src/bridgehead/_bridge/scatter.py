"""Sequences in parts, for the kernels of a fleet, and the parts as one sequence again.

Rule: what belongs to a type is here, and no kernel. A library is not imported for this: an object
of it exists only where it is loaded.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple

from bridgehead._shipped.wire.pickling import encode

TYPES = "lists, tuples, numpy arrays, pandas and polars frames and series, and Arrow tables"


class Kind(NamedTuple):
    """How sequences of some types are divided and joined.

    Attributes:
        types: the types, which the module has if it is loaded.
        cut: returns the items from one index up to another.
        join: returns the parts, of which none is empty, as one.
    """

    module: str
    types: tuple[str, ...]
    cut: Callable[[Any, int, int], Any]
    join: Callable[[Any, list[Any]], Any]


def _slice(sequence: Any, at: int, end: int) -> Any:
    return sequence[at:end]


def _table_slice(sequence: Any, at: int, end: int) -> Any:
    return sequence.slice(at, end - at)


def _joined_arrays(numpy: Any, parts: list[Any]) -> Any:
    first = parts[0]
    if any(part.dtype != first.dtype for part in parts):
        return numpy.concatenate(parts).view(type(first))
    # By itself, ``concatenate`` takes the byte order of this machine, closes gaps between fields,
    # and drops metadata and what a class of arrays has.
    whole = numpy.empty_like(first, shape=(sum(map(len, parts)), *first.shape[1:]))
    return numpy.concatenate(parts, out=whole)


def _joined_masked(ma: Any, parts: list[Any]) -> Any:
    numpy, first = sys.modules["numpy"], parts[0]
    whole = _joined_arrays(numpy, [part.data for part in parts]).view(type(first))
    if any(part.mask is not ma.nomask for part in parts):
        whole.mask = numpy.concatenate([ma.getmaskarray(part) for part in parts])
    if first.hardmask:
        whole.harden_mask()
    if whole.dtype == first.dtype:  # else the value may not fit
        whole.fill_value = first.fill_value
    return whole


def _joined_frames(pandas: Any, parts: list[Any]) -> Any:
    first, bare = parts[0], [part.copy(deep=False) for part in parts]
    for part in bare:  # pandas would compare these by ``==``
        part.attrs = {}
        if isinstance(first, pandas.Series):
            part.name = None
    whole = pandas.concat(bare)
    # What pandas documents for subclasses; of a series, this has its name.
    for name in ("attrs", *first._metadata):  # noqa: SLF001
        values = [getattr(part, name, None) for part in parts]
        if hasattr(first, name) and _are_equal(values):
            object.__setattr__(whole, name, values[0])
    return whole


def _are_equal(values: list[Any]) -> bool:
    """Return whether all are equal, also arrays, which have no truth value, and NaN."""
    first = values[0]
    with contextlib.suppress(Exception):
        if all(value == first for value in values):
            return True
    with contextlib.suppress(Exception):  # some objects cannot be pickled
        return len({b"".join(encode(value)[0]) for value in values}) == 1
    return False


def _joined_tables(pa: Any, parts: list[Any]) -> Any:
    if parts[0].num_columns:
        return pa.concat_tables(parts)
    # Arrow takes the number of rows from the columns.
    return pa.concat_tables([one.append_column("", pa.nulls(len(one))) for one in parts]).select([])


KINDS = (
    Kind("builtins", ("list", "tuple"), _slice, lambda _, parts: type(parts[0])(chain(*parts))),
    # A masked array is a numpy array, too, and is joined by a function of its own.
    Kind("numpy.ma", ("MaskedArray",), _slice, _joined_masked),
    Kind("numpy", ("ndarray",), _slice, _joined_arrays),
    Kind(
        "pandas",
        ("DataFrame", "Series"),
        lambda frame, at, end: frame.iloc[at:end],
        _joined_frames,
    ),
    Kind("pyarrow", ("Table",), _table_slice, _joined_tables),
    Kind("polars", ("DataFrame", "Series"), _table_slice, lambda pl, parts: pl.concat(parts)),
)


def divided(sequence: Any, count: int) -> list[Any]:
    """Return so many parts of a sequence, whose lengths differ by one at most.

    Raises:
        TypeError: it is of a type that cannot be divided and joined again.
    """
    kind, name = _kind(sequence), type(sequence).__name__
    if kind is None:
        raise TypeError(f"scatter() divides {TYPES}, not {name}")
    if not getattr(sequence, "shape", (0,)):
        raise TypeError(f"scatter() divides arrays along axis 0, and this {name} has no axes")
    base, more = divmod(len(sequence), count)
    ends = [(index + 1) * base + min(index + 1, more) for index in range(count)]
    parts = [kind.cut(sequence, at, end) for at, end in zip([0, *ends], ends, strict=False)]
    if type(parts[0]) is not type(sequence):  # such as a frame's class without ``_constructor``
        raise TypeError(
            f"scatter() cannot divide this {name}: a part of it is another type, "
            f"{type(parts[0]).__name__}"
        )
    return parts


def joined(parts: Sequence[Any]) -> Any:
    """Return the parts as one sequence.

    Raises:
        TypeError: they are of different types, or of one that cannot be joined.
    """
    kind = _kind(parts[0])
    if kind is None or any(type(part) is not type(parts[0]) for part in parts):
        found = ", ".join(dict.fromkeys(type(part).__name__ for part in parts))
        raise TypeError(f"gather() joins {TYPES}, and parts of one type, not {found}; pull them")
    # An empty part may be of another dtype than the others: pandas would look for a common one.
    filled = [part for part in parts if len(part)]
    if len(filled) < 2:
        return (filled or parts)[0]
    return kind.join(sys.modules[kind.module], filled)


def _kind(sequence: Any) -> Kind | None:
    # A part of a named tuple is a plain tuple, and a part of another list is a plain list.
    if isinstance(sequence, (list, tuple)) and type(sequence) not in (list, tuple):
        return None
    for kind in KINDS:
        module = sys.modules.get(kind.module)
        if module is None:
            continue
        types = (getattr(module, name, None) for name in kind.types)
        if isinstance(sequence, tuple(one for one in types if isinstance(one, type))):
            return kind
    return None
