"""Name, type, shape and size of a value, without running a user's code.

Rule: use the standard library only, and run on Python 3.8 and later. A value is asked only if its
class is one that Python or a known library itself implements, and so are the classes of its parts.
Nothing is computed that takes longer for a larger value.
"""

from __future__ import annotations

import collections
import sys
from array import array
from typing import Any

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.remote.inspection import of_class
    from bridgehead._shipped.remote.library_values import is_defined, is_of_pandas
    from bridgehead._shipped.wire.header import NameDescription

# Others of these modules, such as UserDict and super(), pass on to objects of the user's.
PLAIN = (
    *(str, bytes, bytearray, list, tuple, set, frozenset, dict, range),
    *(array, collections.deque),
)


def describe(name: str, value: Any) -> NameDescription:
    """Return name, type, shape or length, and bytes of a value.

    The bytes of a plain container are its own, without its items.
    """
    kind = type(value)
    module = of_class(kind, "__module__").partition(".")[0]
    prefix = "" if module in ("builtins", "__main__") else module + "."
    description: NameDescription = {
        "name": name,
        "type": prefix + of_class(kind, "__qualname__"),
        "shape": None,
        "len": None,
        "bytes": None,
        "preview": None,
    }
    measure = _MEASURES.get(module)
    if measure is not None and is_defined(kind) and kind not in (type(describe), type):
        try:
            measure(description, value, kind)
        except Exception:  # a half-built object: report its name and type alone
            pass
    return description


def _measure_plain(found: NameDescription, value: Any, kind: Any) -> None:
    if issubclass(kind, memoryview):
        _measure_array(found, value)
        return
    if issubclass(kind, PLAIN):
        found["len"] = len(value)
    found["bytes"] = sys.getsizeof(value)


def _measure_array(found: NameDescription, value: Any) -> None:
    found["shape"] = [int(length) for length in value.shape]
    found["bytes"] = int(value.nbytes)


def _measure_numpy(found: NameDescription, value: Any, kind: Any) -> None:
    numpy = sys.modules["numpy"]
    if issubclass(kind, (numpy.ndarray, numpy.generic)):
        _measure_array(found, value)


def _measure_torch(found: NameDescription, value: Any, kind: Any) -> None:
    torch = sys.modules["torch"]
    if issubclass(kind, torch.Tensor):
        found["shape"] = [int(length) for length in value.shape]
        found["bytes"] = int(value.element_size() * value.nelement())


def _measure_polars(found: NameDescription, value: Any, kind: Any) -> None:
    polars = sys.modules["polars"]
    if issubclass(kind, (polars.DataFrame, polars.Series)):
        found["shape"] = [int(length) for length in value.shape]
        found["bytes"] = int(value.estimated_size())


def _measure_pyarrow(found: NameDescription, value: Any, kind: Any) -> None:
    pyarrow = sys.modules["pyarrow"]
    if issubclass(kind, (pyarrow.Table, pyarrow.RecordBatch)):
        _measure_array(found, value)
    elif issubclass(kind, (pyarrow.Array, pyarrow.ChunkedArray)):
        found["len"], found["bytes"] = len(value), int(value.nbytes)


def _measure_pandas(found: NameDescription, value: Any, kind: Any) -> None:
    if not is_of_pandas(value):
        return
    pandas = sys.modules["pandas"]
    if issubclass(kind, pandas.DataFrame):
        # ``memory_usage`` makes each column anew: 0.7 s for 20,000 of them.
        size = sum(part.nbytes for part in value._mgr.arrays)
        found["bytes"] = int(size + value.index.memory_usage(deep=False))
    elif issubclass(kind, (pandas.Series, pandas.Index)):
        found["bytes"] = int(value.memory_usage(deep=False))
    else:
        found["bytes"] = int(value.nbytes)
    found["shape"] = [int(length) for length in value.shape]


_MEASURES = {
    "builtins": _measure_plain,
    "collections": _measure_plain,
    "array": _measure_plain,
    "numpy": _measure_numpy,
    "pandas": _measure_pandas,
    "polars": _measure_polars,
    "pyarrow": _measure_pyarrow,
    "torch": _measure_torch,
}
