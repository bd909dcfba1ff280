"""Columns of pandas that Arrow keeps: they cross without a copy.

Rule: as ``reducers`` says. pandas' own pickle of such a column puts its chunks together, and copies
it also if it is one already.
"""

from __future__ import annotations

import copyreg
import sys
from typing import Any

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.wire.libraries import finder


@finder
def arrow_column_reducer(kind: Any, shared: Any) -> Any:
    """Return the function that reduces columns of Arrow of a type, or None."""
    arrays = getattr(sys.modules.get("pandas"), "arrays", None)
    base = getattr(arrays, "ArrowExtensionArray", None)
    if base is None or not issubclass(kind, base):
        return None
    own = ("__getstate__", "__setstate__", "__reduce__", "__reduce_ex__", "__new__")
    is_known = all(getattr(kind, name, None) is getattr(base, name, None) for name in own)
    return reduce_arrow_column if is_known else None


def reduce_arrow_column(column: Any) -> Any:
    """Return how to pickle a column: as pandas does, without its copy of a single chunk."""
    state = dict(vars(column))
    chunks: Any = getattr(state.get("_pa_array"), "chunks", ())
    if len(chunks) != 1:
        return column.__reduce_ex__(5)
    state["_pa_array"] = chunks[0]
    if "_cache" in state:  # what can be computed again
        state["_cache"] = {}
    return copyreg.__newobj__, (type(column),), state  # type: ignore[attr-defined]
