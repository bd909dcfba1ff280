"""Data of scipy: sparse matrices and arrays, by rows, by columns and by coordinates.

Rule: scipy's loops in C trust the places of the items; every place is checked before.
"""

from __future__ import annotations

from typing import Any

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.data.numpy import own_integers, sent_integers
    from bridgehead._shipped.data.registry import (
        BUFFER,
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
    need(type(values) is numpy.ndarray and values.ndim == 1, "values that are not a flat array")
    need(values.dtype.kind in "biufc" and values.dtype.isnative, "invalid values")
    need(places[0].itemsize >= 4, "invalid places")
    reader.claim(8 * (shape[0] + shape[1]))


@constructor(str, tuple, None, str, BUFFER, BUFFER, cost=CONTAINER_COST)
def make_sparse_by_lines(
    reader: DataReader, name: str, shape: Any, values: Any, kind: str, places: Any, starts: Any
) -> Any:
    need(name in _BY_LINES, "not a sparse matrix by rows or columns")
    places, starts = [own_integers(reader, kind, raw) for raw in (places, starts)]
    _check_sparse(reader, shape, values, places, starts)
    lines, across = shape if name[:3] == "csr" else shape[::-1]
    need(len(starts) == lines + 1 and len(places) == len(values), "parts of other lengths")
    rising = starts[0] == 0 and bool((starts[1:] >= starts[:-1]).all())
    need(rising and starts[-1] == len(values), "invalid starts of lines")
    need(not len(places) or (places.min() >= 0 and places.max() < across), "invalid places")
    reader.charge(values.nbytes + places.nbytes + starts.nbytes)
    make = getattr(library("scipy.sparse"), name)
    return make((values, places, starts), shape=shape, copy=False)


@constructor(str, tuple, None, str, BUFFER, BUFFER, cost=CONTAINER_COST)
def make_sparse_by_places(
    reader: DataReader, name: str, shape: Any, values: Any, kind: str, rows: Any, columns: Any
) -> Any:
    need(name in _BY_PLACES, "not a sparse matrix by coordinates")
    rows, columns = [own_integers(reader, kind, raw) for raw in (rows, columns)]
    _check_sparse(reader, shape, values, rows, columns)
    for part, most in zip((rows, columns), shape):
        need(len(part) == len(values), "parts of other lengths")
        need(not len(part) or (part.min() >= 0 and part.max() < most), "invalid places")
    reader.charge(values.nbytes + rows.nbytes + columns.nbytes)
    make = getattr(library("scipy.sparse"), name)
    return make((values, (rows, columns)), shape=shape, copy=False)


def _reduce_sparse_by_lines(writer: DataWriter, matrix: Any) -> Any:
    numpy, name = library("numpy"), type(matrix).__name__
    count = int(matrix.indptr[-1])
    shape, values = tuple(map(int, matrix.shape)), numpy.asarray(matrix.data[:count])
    kind, places = sent_integers(writer, matrix.indices[:count])
    same, starts = sent_integers(writer, matrix.indptr)
    if kind != same:
        raise untrusted("a scipy.sparse.%s with places of two types" % name)
    return make_sparse_by_lines, (name, shape, values, kind, places, starts)


def _reduce_sparse_by_places(writer: DataWriter, matrix: Any) -> Any:
    numpy, shape = library("numpy"), tuple(map(int, matrix.shape))
    if len(shape) != 2:
        raise untrusted("a scipy.sparse.coo_array of other than two dimensions")
    (kind, rows), (same, columns) = [
        sent_integers(writer, part) for part in (matrix.row, matrix.col)
    ]
    if kind != same:
        raise untrusted("a scipy.sparse.%s with places of two types" % type(matrix).__name__)
    values = numpy.asarray(matrix.data)
    return make_sparse_by_places, (type(matrix).__name__, shape, values, kind, rows, columns)


@library_reducers("scipy")
def scipy_reducers(scipy: Any) -> Any:
    sparse = library("scipy.sparse")
    found = {getattr(sparse, name): _reduce_sparse_by_lines for name in _BY_LINES}
    found.update({getattr(sparse, name): _reduce_sparse_by_places for name in _BY_PLACES})
    return found
