"""Data of scipy: sparse matrices and arrays, by rows, by columns and by coordinates.

Rule: scipy's loops in C trust the places of the items; every place is checked before.
"""

from __future__ import annotations

from typing import Any

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.data.registry import (
        CONTAINER_COST,
        DataReader,
        DataWriter,
        constructor,
        library,
        library_reducers,
        need,
        untrusted,
    )

_BY_LINES = ("csr_array", "csr_matrix", "csc_array", "csc_matrix")
_BY_PLACES = ("coo_array", "coo_matrix")


def _check_sparse(reader: DataReader, shape: Any, values: Any, *places: Any) -> None:
    """Check the parts of a sparse matrix, and claim a line of it each way.

    Each conversion makes one. The dense form is made by nothing but ``toarray``.
    """
    numpy = library("numpy")
    need(len(shape) == 2, "a sparse matrix of other than two dimensions")
    need(all(type(n) is int and 0 <= n < 1 << 62 for n in shape), "invalid shape")
    for part in (values, *places):
        need(type(part) is numpy.ndarray and part.ndim == 1, "parts that are not flat arrays")
    need(values.dtype.kind in "biufc" and values.dtype.isnative, "invalid values")
    for part in places:
        need(part.dtype in ("i4", "i8") and part.dtype == places[0].dtype, "invalid places")
    reader.claim(8 * (shape[0] + shape[1]))


@constructor(str, tuple, None, None, None, cost=CONTAINER_COST)
def make_sparse_by_lines(
    reader: DataReader, name: str, shape: Any, values: Any, places: Any, starts: Any
) -> Any:
    need(name in _BY_LINES, "not a sparse matrix by rows or columns")
    _check_sparse(reader, shape, values, places, starts)
    lines, across = shape if name[:3] == "csr" else shape[::-1]
    need(len(starts) == lines + 1 and len(places) == len(values), "parts of other lengths")
    rising = starts[0] == 0 and bool((starts[1:] >= starts[:-1]).all())
    need(rising and starts[-1] == len(values), "invalid starts of lines")
    need(not len(places) or (places.min() >= 0 and places.max() < across), "invalid places")
    reader.charge(values.nbytes + places.nbytes + starts.nbytes)
    kind = getattr(library("scipy.sparse"), name)
    return kind((values, places, starts), shape=shape, copy=False)


@constructor(str, tuple, None, None, None, cost=CONTAINER_COST)
def make_sparse_by_places(
    reader: DataReader, name: str, shape: Any, values: Any, rows: Any, columns: Any
) -> Any:
    need(name in _BY_PLACES, "not a sparse matrix by coordinates")
    _check_sparse(reader, shape, values, rows, columns)
    for part, most in zip((rows, columns), shape):
        need(len(part) == len(values), "parts of other lengths")
        need(not len(part) or (part.min() >= 0 and part.max() < most), "invalid places")
    reader.charge(values.nbytes + rows.nbytes + columns.nbytes)
    kind = getattr(library("scipy.sparse"), name)
    return kind((values, (rows, columns)), shape=shape, copy=False)


def _reduce_sparse_by_lines(writer: DataWriter, matrix: Any) -> Any:
    numpy, name = library("numpy"), type(matrix).__name__
    count = int(matrix.indptr[-1])
    parts = [numpy.asarray(part[:count]) for part in (matrix.data, matrix.indices)]
    shape = tuple(map(int, matrix.shape))
    return make_sparse_by_lines, (name, shape, *parts, numpy.asarray(matrix.indptr))


def _reduce_sparse_by_places(writer: DataWriter, matrix: Any) -> Any:
    numpy, shape = library("numpy"), tuple(map(int, matrix.shape))
    if len(shape) != 2:
        raise untrusted("a scipy.sparse.coo_array of other than two dimensions")
    parts = [numpy.asarray(part) for part in (matrix.data, matrix.row, matrix.col)]
    return make_sparse_by_places, (type(matrix).__name__, shape, *parts)


@library_reducers("scipy")
def scipy_reducers(scipy: Any) -> Any:
    sparse = library("scipy.sparse")
    found = {getattr(sparse, name): _reduce_sparse_by_lines for name in _BY_LINES}
    found.update({getattr(sparse, name): _reduce_sparse_by_places for name in _BY_PLACES})
    return found
