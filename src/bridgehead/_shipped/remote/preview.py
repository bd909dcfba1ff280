"""A short text of a value, which runs no code of the user's.

Rule: use the standard library only, and run on Python 3.8 and later. Only what Python, numpy or
pandas itself computes of its own types is looked at; a subclass has no preview, because it may
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
        code = value.__code__
        return "%s(%s)" % (value.__name__, ", ".join(code.co_varnames[: code.co_argcount]))
    if kind is BuiltinFunctionType:
        return "%s(…)" % value.__name__
    if kind is type:
        return "class " + str(of_class(value, "__qualname__"))
    return _of_library(value, kind, levels)


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


def _of_library(value: Any, kind: Any, levels: int) -> str | None:
    numpy, pandas = sys.modules.get("numpy"), sys.modules.get("pandas")
    if kind is getattr(numpy, "ndarray", None):
        if value.dtype.kind not in NUMBERS:
            return None
        items = [item.item() for item in islice(value.flat, ITEMS)]
        return "[%s]" % ", ".join([*map(repr, items), *(["…"] if value.size > ITEMS else [])])
    name = of_class(kind, "__name__")
    if numpy is not None and issubclass(kind, numpy.generic) and vars(numpy).get(name) is kind:
        return repr(value.item()) if value.dtype.kind in NUMBERS else None
    if kind is getattr(pandas, "DataFrame", None):
        if not has_labels_of_pandas(value):
            return None
        labels = [_item(one, 0) for one in islice(value.columns, ITEMS)]
        return "columns " + ", ".join([*labels, *(["…"] if len(value.columns) > ITEMS else [])])
    if kind is getattr(pandas, "Series", None):
        if not is_of_pandas(value) or has_parts(arrow_type(value.dtype)):
            return None
        items = [_item(one, 0) for one in without_attributes(value).iloc[:ITEMS].tolist()]
        return "[%s]" % ", ".join([*items, *(["…"] if len(value) > ITEMS else [])])
    return None


def without_attributes(value: Any) -> Any:
    """Return a table or a column of pandas over the same data, without its ``attrs``.

    pandas copies them deeply with each part that it takes (seen in 2.1), by code of the user's.
    """
    return type(value)(value, copy=False)


def has_parts(arrow: Any) -> bool:
    """Return whether the items of an Arrow type have items of their own, maybe very many."""
    return arrow is not None and bool(arrow.num_fields)
