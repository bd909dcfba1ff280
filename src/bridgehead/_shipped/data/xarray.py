"""Data of xarray: variables, arrays and datasets, as arrays of numpy with names.

Rule: xarray's public constructors put a dataset together. What is not an array of numpy, such as
one of dask, is no data; nor is an index of more than one level.
"""

from __future__ import annotations

import functools
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

_ITEMS_OF_OBJECTS = {str, float, NONE}


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


@constructor(None, dict, (str, NONE), cost=CONTAINER_COST)
def make_data_array(reader: DataReader, variable: Any, coords: Any, name: Any) -> Any:
    xarray = library("xarray")
    _check_variables(reader, {**coords, "": variable})
    made = xarray.DataArray(variable, coords=_as_coordinates(coords), name=name)
    made.attrs, made.encoding = variable.attrs, variable.encoding
    return made


@constructor(dict, dict, dict, dict, cost=CONTAINER_COST)
def make_dataset(reader: DataReader, variables: Any, coords: Any, attrs: Any, encoding: Any) -> Any:
    _check_variables(reader, {**coords, **variables})
    need(_are_strings(attrs) and _are_strings(encoding), "a name that is not a string")
    made = library("xarray").Dataset(variables, _as_coordinates(coords), attrs)
    made.encoding = encoding
    return made


def _are_strings(names: Any) -> bool:
    return {str}.issuperset(map(type, names))


def _check_variables(reader: DataReader, variables: Any) -> None:
    """Check the variables of one object, and that the labels of its indexes do not collide."""
    xarray, pandas = library("xarray"), library("pandas")
    need(_are_strings(variables), "a name that is not a string")
    sizes: Any = {}
    for name, variable in variables.items():
        need(type(variable) is xarray.Variable, "not a variable")
        reader.charge(CONTAINER_COST)
        for dim, size in zip(variable.dims, variable.shape):
            need(sizes.setdefault(dim, size) == size, "a dimension of two sizes")
        if variable.dims == (name,):
            reader.charge(8 * variable.nbytes)
            labels = functools.partial(pandas.Index, tupleize_cols=False)
            _try_hashes(reader, pandas, labels(variable.values))


def _as_coordinates(coords: Any) -> Any:
    """Return coordinates; the one of a dimension becomes its index."""
    return {name: variable.copy(deep=False) for name, variable in coords.items()}


def _reduce_variable(writer: DataWriter, variable: Any) -> Any:
    numpy = library("numpy")
    kind = type(variable._data)
    if kind is not numpy.ndarray and kind.__name__ != "PandasIndexingAdapter":
        raise untrusted("an xarray variable of %s" % kind.__name__)
    values = numpy.asarray(variable.values)
    return make_variable, (variable.dims, values, dict(variable.attrs), dict(variable.encoding))


def _coordinates_of(value: Any) -> Any:
    for name, index in value.xindexes.items():
        if type(index).__name__ != "PandasIndex":
            raise untrusted("an xarray index %s of %s" % (name, type(index).__name__))
    plain = library("xarray").Variable
    found = {}
    for name, coordinate in value.coords.items():
        variable = coordinate.variable
        parts = (variable.dims, variable.values, variable.attrs, variable.encoding)
        found[name] = variable if type(variable) is plain else plain(*parts)
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
        xarray.DataArray: _reduce_data_array,
        xarray.Dataset: _reduce_dataset,
    }
