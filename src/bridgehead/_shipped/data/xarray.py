"""Data of xarray: variables, arrays and datasets, as arrays of numpy with names.

Rule: xarray's public constructors put a dataset together. What is not an array of numpy, such as
one of dask, is no data. An index crosses as that of pandas, so that it keeps its type, its time
zone and its frequency; one of more than one level is no data.
"""

from __future__ import annotations

from typing import Any

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.data.pandas import _try_hashes
    from bridgehead._shipped.data.registry import (
        CONTAINER_COST,
        NONE,
        DataReader,
        DataWriter,
        constructor,
        library,
        library_reducers,
        need,
        untrusted,
    )
    from bridgehead._shipped.wire.errors import WireError

_ITEMS_OF_OBJECTS = {str, bytes, float, NONE}


@constructor(tuple, None, dict, dict, cost=CONTAINER_COST)
def make_variable(reader: DataReader, dims: Any, values: Any, attrs: Any, encoding: Any) -> Any:
    numpy = library("numpy")
    need(type(values) is numpy.ndarray, "a variable that is not an array")
    need(_are_strings(dims) and len(set(dims)) == len(dims) == values.ndim, "invalid dimensions")
    need(_are_strings(attrs) and _are_strings(encoding), "a name that is not a string")
    if values.dtype.kind == "O":
        need(_ITEMS_OF_OBJECTS.issuperset(map(type, values.ravel())), "objects in a variable")
    need(values.dtype.kind in "biufcMmSUO", "a variable of another dtype")
    reader.charge(4 * values.nbytes)  # times are converted, objects looked at
    return library("xarray").Variable(dims, values, attrs, encoding)


@constructor(str, None, None, dict, dict, cost=CONTAINER_COST)
def make_labels(
    reader: DataReader, dim: str, index: Any, dtype: Any, attrs: Any, encoding: Any
) -> Any:
    """Make the variable of an index; its values are the labels, converted to a dtype."""
    numpy, pandas, xarray = library("numpy"), library("pandas"), library("xarray")
    _check_labels(numpy, pandas, index)
    need(dtype is None or isinstance(dtype, numpy.dtype), "invalid dtype of labels")
    need(_are_strings(attrs) and _are_strings(encoding), "a name that is not a string")
    width = 16 if dtype is None else dtype.itemsize
    reader.claim(width * len(index))
    if dtype is not None and dtype != index.dtype:
        numpy.asarray(index, dtype)  # a conversion that fails, fails here
    _try_hashes(reader, pandas, index)
    (made,) = xarray.indexes.PandasIndex(index, dim, dtype).create_variables().values()
    made.attrs, made.encoding = attrs, encoding
    return made


def _check_labels(numpy: Any, pandas: Any, index: Any) -> None:
    fine = isinstance(index, pandas.Index) and type(index) is not pandas.MultiIndex
    need(fine, "labels that are not an index of one level")
    dtype = index.dtype
    if type(dtype) is pandas.CategoricalDtype:
        _check_labels(numpy, pandas, index.categories)
    elif isinstance(dtype, numpy.dtype) and dtype.kind == "O":
        need(_ITEMS_OF_OBJECTS.issuperset(map(type, index)), "objects in an index")
    else:
        kinds = (numpy.dtype, pandas.StringDtype, pandas.DatetimeTZDtype)
        known = isinstance(dtype, (*kinds, pandas.PeriodDtype, pandas.IntervalDtype))
        need(known, "an index of another dtype")


@constructor(None, dict, (str, NONE), cost=CONTAINER_COST)
def make_data_array(reader: DataReader, variable: Any, coords: Any, name: Any) -> Any:
    xarray = library("xarray")
    sizes: Any = {}
    _check_variables(reader, coords, sizes)
    _check_variables(reader, {"": variable}, sizes)
    made = xarray.DataArray(variable, coords=_as_coordinates(coords), name=name)
    made.attrs, made.encoding = variable.attrs, variable.encoding
    return made


@constructor(dict, dict, dict, dict, cost=CONTAINER_COST)
def make_dataset(reader: DataReader, variables: Any, coords: Any, attrs: Any, encoding: Any) -> Any:
    sizes: Any = {}
    _check_variables(reader, coords, sizes)
    _check_variables(reader, variables, sizes)
    for name, variable in variables.items():
        need(variable.dims != (name,), "a variable of which xarray would make an index")
    need(_are_strings(attrs) and _are_strings(encoding), "a name that is not a string")
    made = library("xarray").Dataset(variables, _as_coordinates(coords), attrs)
    made.encoding = encoding
    return made


def _are_strings(names: Any) -> bool:
    return {str}.issuperset(map(type, names))


def _check_variables(reader: DataReader, variables: Any, sizes: Any) -> None:
    """Check some variables of one object; ``sizes`` are those of its dimensions until now."""
    xarray = library("xarray")
    need(_are_strings(variables), "a name that is not a string")
    for variable in variables.values():
        need(type(variable) in (xarray.Variable, xarray.IndexVariable), "not a variable")
        reader.charge(CONTAINER_COST)
        for dim, size in zip(variable.dims, variable.shape):
            need(sizes.setdefault(dim, size) == size, "a dimension of two sizes")


def _as_coordinates(coords: Any) -> Any:
    """Return coordinates; no other ones than ``make_labels`` made have an index."""
    xarray = library("xarray")
    indexes: Any = {}
    for name, variable in coords.items():
        if type(variable) is xarray.IndexVariable:
            labels = variable._data.array
            need(labels.name == name, "an index of another name")
            make = xarray.indexes.PandasIndex
            indexes[name] = make(labels, variable.dims[0], variable.dtype)
    return xarray.Coordinates(coords, indexes)


def _reduce_variable(writer: DataWriter, variable: Any) -> Any:
    numpy = library("numpy")
    kind = type(variable._data)
    if kind is not numpy.ndarray and kind.__name__ != "PandasIndexingAdapter":
        raise untrusted("an xarray variable of %s" % kind.__name__)
    if not isinstance(variable.dtype, numpy.dtype):
        raise untrusted("an xarray variable of %s" % variable.dtype)
    values = numpy.asarray(variable.values)
    return make_variable, (variable.dims, values, dict(variable.attrs), dict(variable.encoding))


def _reduce_labels(writer: DataWriter, variable: Any) -> Any:
    index, dtype = variable._data.array, variable.dtype
    try:
        _check_labels(library("numpy"), library("pandas"), index)
    except WireError as error:
        raise untrusted("an xarray index with %s" % error) from None
    dtype = dtype if isinstance(dtype, library("numpy").dtype) else None
    parts = (index, dtype, dict(variable.attrs), dict(variable.encoding))
    return make_labels, (variable.dims[0], *parts)


def _coordinates_of(value: Any) -> Any:
    indexes, found = value.xindexes, {}
    for name, coordinate in value.coords.items():
        variable = found[name] = coordinate.variable
        kind = type(indexes[name]).__name__ if name in indexes else ""
        labels = type(variable).__name__ == "IndexVariable"
        if kind not in ("", "PandasIndex") or labels != bool(kind):
            raise untrusted("an xarray index %s of %s" % (name, kind or "no coordinate"))
    return found


def _reduce_data_array(writer: DataWriter, array: Any) -> Any:
    return make_data_array, (array.variable, _coordinates_of(array), array.name)


def _reduce_dataset(writer: DataWriter, dataset: Any) -> Any:
    variables = {name: array.variable for name, array in dataset.data_vars.items()}
    parts = (dict(dataset.attrs), dict(dataset.encoding))
    return make_dataset, (variables, _coordinates_of(dataset), *parts)


@library_reducers("xarray")
def xarray_reducers(xarray: Any) -> Any:
    return {
        xarray.Variable: _reduce_variable,
        xarray.IndexVariable: _reduce_labels,
        xarray.DataArray: _reduce_data_array,
        xarray.Dataset: _reduce_dataset,
    }
