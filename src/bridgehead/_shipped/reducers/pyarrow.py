"""Arrays of Arrow: a slice crosses without the rest of its buffers. Tables without columns.

Rule: as ``reducers`` says. Columns of tables and of pandas are made of such arrays. Arrow's own
pickle of a table has no number of rows, which a table without columns has none the less.
"""

from __future__ import annotations

import sys
from typing import Any

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.wire.libraries import builder, finder

SLACK = 256  # bytes more than needed that may cross


@finder
def arrow_reducer(kind: Any, shared: Any) -> Any:
    """Return the function that reduces Arrow arrays or tables of a type, or None."""
    pyarrow: Any = sys.modules.get("pyarrow")
    if kind in (getattr(pyarrow, "Table", None), getattr(pyarrow, "RecordBatch", None)):
        return reduce_arrow_rows
    base = getattr(pyarrow, "Array", None)
    return reduce_arrow if base is not None and issubclass(kind, base) else None


def reduce_arrow_rows(table: Any) -> Any:
    """Return how to pickle a table or a batch of rows."""
    if table.num_columns or not table.num_rows:
        return table.__reduce_ex__(5)
    return make_arrow_rows, (type(table), table.num_rows, table.schema.metadata)


@builder
def make_arrow_rows(kind: Any, count: int, metadata: Any) -> Any:
    """Return a table or a batch of rows without columns."""
    nulls = sys.modules["pyarrow"].nulls(count)
    return kind.from_arrays([nulls], names=[""], metadata=metadata).select([])


def reduce_arrow(array: Any) -> Any:
    """Return how to pickle an array; Arrow itself would pickle the whole buffers of a slice."""
    pyarrow: Any = sys.modules["pyarrow"]
    needed, total = array.nbytes, array.get_total_buffer_size()
    if str(array.type) in _VIEWS and total > SLACK:
        # A slice of these refers to all texts of the array, and concat_arrays keeps them.
        copy = array.cast(_VIEWS[str(array.type)])
        if total > 2 * copy.nbytes:
            array = copy.cast(array.type)
    elif total > needed + needed // 8 + SLACK:
        array = pyarrow.concat_arrays([array])  # copies the slice into buffers of its own
        if "dense_union" in str(array.type) and array.get_total_buffer_size() > 2 * needed + SLACK:
            array = _selected(array)
    return array.__reduce_ex__(5)


def _selected(array: Any) -> Any:
    """Return a copy of an array; ``concat_arrays`` keeps all items that a dense union refers to.

    A mask that selects all items needs no number for each of them.
    """
    pyarrow: Any = sys.modules["pyarrow"]
    count = len(array)
    bits = pyarrow.py_buffer(b"\xff" * (count // 8 + 1))
    try:
        return array.filter(pyarrow.Array.from_buffers(pyarrow.bool_(), count, [None, bits]))
    except NotImplementedError:  # a type beside the union that Arrow selects no items of
        return array


_VIEWS = {"string_view": "large_string", "binary_view": "large_binary"}
