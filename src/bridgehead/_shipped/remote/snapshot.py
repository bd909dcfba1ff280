"""Reading a table that other threads may change meanwhile.

Rule: use the standard library only, and run on Python 3.8 and later. Cells, the socket thread and
the control thread share the user's namespace and the remote part's tables.
"""

from __future__ import annotations

from typing import Any

_GONE = object()


def entries(table: Any) -> Any:
    """Return the entries of a table that other threads may change meanwhile.

    ``list(table.items())`` makes tuples. Up to Python 3.11 the garbage collector may run then, and
    with it callbacks in Python (ipykernel has one), which let other threads run.
    """
    found = [(key, table.get(key, _GONE)) for key in list(table)]
    return [(key, value) for key, value in found if value is not _GONE]
