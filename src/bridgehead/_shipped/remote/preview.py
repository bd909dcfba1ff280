"""A short text of a value, which runs no code of the user's.

Rule: use the standard library only, and run on Python 3.8 and later. Only what Python or a known
library itself computes of its own types is looked at; a subclass has no preview, because it may
replace anything. No ``repr`` of a user's class, and no property. Any thread may call this, while a
cell changes the value.
"""

from __future__ import annotations

import sys
from itertools import islice
from types import BuiltinFunctionType, FunctionType
from typing import Any, Sequence

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.remote.inspection import of_class
    from bridgehead._shipped.remote.library_values import (
        arrow_type,
        has_labels_of_pandas,
        is_defined,
        is_of_pandas,
    )

LONGEST = 120  # characters
ITEMS, LEVELS = 5, 2  # of a container that are shown
TEXT = 60  # characters of a string
BITS = 256  # of an integer; a longer one takes long to write
WRITTEN_OUT = (bool, int, float, complex, type(None), type(Ellipsis))
BRACKETS = {list: "[]", tuple: "()", set: "{}", frozenset: ("frozenset({", "})"), dict: "{}"}
NUMBERS = "biufc"  # kinds of numpy whose items are plain numbers


def preview(value: Any) -> str | None:
    """Return a short text of a value; None if nothing can be said of it safely."""
    try:
        text = _text(value, LEVELS)
    except Exception:  # a half-built object, or one that changes at this moment
        return None
    if text is None or len(text) <= LONGEST:
        return text
    return text[: LONGEST - 1] + "…"


def _text(value: Any, levels: int) -> str | None:
    kind = type(value)
    if kind is int and value.bit_length() > BITS:
        return "<int of %d bits>" % value.bit_length()
    if any(kind is one for one in WRITTEN_OUT):  # ``in`` would call a metaclass's ``__eq__``
        return repr(value)
    if kind is str or kind is bytes or kind is bytearray:
        return repr(value[:TEXT]) + ("…" if len(value) > TEXT else "")
    for known, brackets in BRACKETS.items():
        if kind is known:
            return _container(value, kind, brackets, levels)
    if kind is FunctionType:
        code, name = value.__code__, value.__name__
        arguments = ", ".join(code.co_varnames[: code.co_argcount])
        return "%s(%s)" % (name if type(name) is str else "<function>", arguments)
    if kind is BuiltinFunctionType:
        return "%s(…)" % value.__name__
    if kind is type:
        return "class " + str(of_class(value, "__qualname__"))
    return _of_library(value, kind)


def _item(value: Any, levels: int) -> str:
    """Return the text of a part of a value, which is its type where nothing else is safe."""
    text = _text(value, levels)
    return "<%s>" % of_class(type(value), "__qualname__") if text is None else text


def _container(value: Any, kind: Any, brackets: Sequence[str], levels: int) -> str:
    before, after = brackets
    if not value:
        return repr(value)
    if not levels:
        return before + "…" + after
    if kind is dict:
        pairs = list(islice(value.items(), ITEMS))
        parts = ["%s: %s" % (_item(key, 0), _item(one, levels - 1)) for key, one in pairs]
    else:
        parts = [_item(one, levels - 1) for one in islice(value, ITEMS)]
    if len(value) > ITEMS:
        parts.append("…")
    elif kind is tuple and len(value) == 1:
        after = ",)"
    return before + ", ".join(parts) + after


def _of_library(value: Any, kind: Any) -> str | None:
    texts = LIBRARY_TEXTS.get(of_class(kind, "__module__").partition(".")[0])
    return texts(value, kind) if texts is not None and is_defined(kind) else None


def _text_of_numpy(value: Any, kind: Any) -> str | None:
    numpy = sys.modules["numpy"]
    if kind is numpy.ndarray:
        return _text_of_array(value)
    if issubclass(kind, numpy.generic):
        return repr(value.item()) if value.dtype.kind in NUMBERS else None
    return None


def _text_of_array(value: Any) -> str | None:
    if value.dtype.kind not in NUMBERS:
        return None
    if not value.ndim:
        return repr(value.item())
    items = [item.item() for item in islice(value.flat, ITEMS)]
    return "[%s]" % ", ".join([*map(repr, items), *(["…"] if value.size > ITEMS else [])])


def _text_of_pandas(value: Any, kind: Any) -> str | None:
    pandas = sys.modules["pandas"]
    if kind is pandas.DataFrame:
        return _text_of_labels(value.columns) if has_labels_of_pandas(value) else None
    if kind is pandas.Series and is_of_pandas(value) and not has_parts(arrow_type(value.dtype)):
        return _text_of_items(without_attributes(value).iloc[:ITEMS].tolist(), len(value))
    return None


def _text_of_polars(value: Any, kind: Any) -> str | None:
    polars = sys.modules["polars"]
    if kind is polars.DataFrame:
        return _text_of_labels(value.columns)
    if kind is polars.Series and not value.dtype.is_nested():
        return _text_of_items(value.head(ITEMS).to_list(), len(value))
    return None


def _text_of_pyarrow(value: Any, kind: Any) -> str | None:
    pyarrow = sys.modules["pyarrow"]
    if kind is pyarrow.Table or kind is pyarrow.RecordBatch:
        return _text_of_labels(value.schema.names)
    return None


def _text_of_torch(value: Any, kind: Any) -> str | None:
    torch = sys.modules["torch"]
    is_plain = kind is torch.Tensor or kind is torch.nn.Parameter
    if not is_plain or value.device.type != "cpu" or value.layout is not torch.strided:
        return None
    return _text_of_array(value.detach().numpy())


def _text_of_labels(labels: Any) -> str:
    shown = [_item(one, 0) for one in islice(labels, ITEMS)]
    return "columns " + ", ".join([*shown, *(["…"] if len(labels) > ITEMS else [])])


def _text_of_items(items: Any, count: int) -> str:
    shown = [_item(one, 0) for one in items]
    return "[%s]" % ", ".join([*shown, *(["…"] if count > ITEMS else [])])


LIBRARY_TEXTS = {
    "numpy": _text_of_numpy,
    "pandas": _text_of_pandas,
    "polars": _text_of_polars,
    "pyarrow": _text_of_pyarrow,
    "torch": _text_of_torch,
}


def without_attributes(value: Any) -> Any:
    """Return a table or a column of pandas over the same data, without its ``attrs``.

    pandas copies them deeply with each part that it takes (seen in 2.1), by code of the user's.
    """
    return type(value)(value, copy=False)


def has_parts(arrow: Any) -> bool:
    """Return whether the items of an Arrow type have items of their own, maybe very many."""
    return arrow is not None and bool(arrow.num_fields)
