"""Which values of libraries run no code of the user's when they are looked at.

Rule: use the standard library only, and run on Python 3.8 and later. These functions answer from
classes alone. A table of pandas may keep a column in a user's class; no method of that class is
called.
"""

from __future__ import annotations

import sys
from typing import Any

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.remote.inspection import of_class


def is_defined(kind: Any) -> bool:
    """Return whether a class is in the module that it names: a user's class may name any."""
    module = sys.modules.get(of_class(kind, "__module__"), sys)
    return vars(module).get(of_class(kind, "__name__")) is kind


def is_of_pandas(value: Any) -> bool:
    """Return whether pandas itself keeps all parts of a table, a column, an index or an array.

    Its private attributes are read. Those that are public ask an array for a view (seen in 3.1), or
    make each column anew.
    """
    kind = type(value)
    if of_class(kind, "__module__").partition(".")[0] != "pandas" or not is_defined(kind):
        return False
    pandas = sys.modules["pandas"]
    if issubclass(kind, (pandas.DataFrame, pandas.Series)):
        return all(map(is_of_pandas, value._mgr.axes)) and all(map(_is_known, value._mgr.arrays))
    if issubclass(kind, pandas.RangeIndex):  # its array would be made, and kept
        return True
    if issubclass(kind, pandas.MultiIndex):
        return all(map(is_of_pandas, value._levels))
    return _is_known(value._data if issubclass(kind, pandas.Index) else value)


def has_labels_of_pandas(frame: Any) -> bool:
    """Return whether pandas itself keeps the labels of a frame's columns."""
    return is_of_pandas(frame._mgr.axes[0])


def _is_known(array: Any) -> bool:
    """Return whether numpy or pandas itself keeps the items of an array."""
    kind = type(array)
    library = of_class(kind, "__module__").partition(".")[0]
    if library not in ("numpy", "pandas") or not is_defined(kind):
        return False
    if library == "numpy":
        return True
    dtype = array.dtype
    categories = getattr(dtype, "categories", None)
    return (categories is None or is_of_pandas(categories)) and _is_of_arrow(arrow_type(dtype))


def arrow_type(dtype: Any) -> Any:
    """Return the Arrow type of a column of pandas; None if it has none."""
    return getattr(dtype, "pyarrow_dtype", None)


def _is_of_arrow(kind: Any) -> bool:
    """Return whether neither an Arrow type nor a part of it is a user's class."""
    if kind is None:
        return True
    if isinstance(kind, getattr(sys.modules["pyarrow"], "BaseExtensionType", ())):
        return False
    parts = [kind.field(at).type for at in range(kind.num_fields)]
    return all(map(_is_of_arrow, (*parts, getattr(kind, "value_type", None))))
