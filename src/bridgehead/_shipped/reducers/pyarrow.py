"""Arrays of Arrow: a slice crosses without the rest of its buffers.

Rule: as ``reducers`` says. Columns of tables and of pandas are made of such arrays.
"""

from __future__ import annotations

import sys
from typing import Any

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.wire.libraries import finder

SLACK = 256  # bytes more than needed that may cross


@finder
def arrow_reducer(kind: Any, shared: Any) -> Any:
    """Return the function that reduces Arrow arrays of a type, or None."""
    base = getattr(sys.modules.get("pyarrow"), "Array", None)
    return reduce_arrow if base is not None and issubclass(kind, base) else None


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
    return array.__reduce_ex__(5)


_VIEWS = {"string_view": "large_string", "binary_view": "large_binary"}
