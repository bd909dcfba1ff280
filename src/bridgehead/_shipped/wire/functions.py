"""Functions whose global names are looked up in another namespace.

Rule: use the standard library only, run on Python 3.8 and later, the same file at both ends. The
client takes the global names of its own program off a function before it is pickled; the kernel
gives the function those of the user's namespace.
"""

from __future__ import annotations

from types import CellType, FunctionType
from typing import Any

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.wire.errors import WireError


def with_globals(function: Any, scope: dict[str, Any]) -> Any:
    """Return a copy of a plain function that looks its global names up in ``scope``.

    Where the closure holds the function itself, for recursion, the copy's holds the copy. The
    annotations and ``__wrapped__`` are left out: they would bring global names of the program
    along, and the function's code does not use them.
    """
    if type(function) is not FunctionType:
        raise WireError("protocol", "the payload has no plain function")
    closure = function.__closure__ or ()
    cells = tuple(CellType() if _holds(cell, function) else cell for cell in closure)
    copy = FunctionType(function.__code__, scope, function.__name__, function.__defaults__, cells)
    for cell, original in zip(cells, closure):
        if cell is not original:
            cell.cell_contents = copy
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__qualname__, copy.__module__ = function.__qualname__, "__main__"
    vars(copy).update({key: item for key, item in vars(function).items() if key != "__wrapped__"})
    return copy


def _holds(cell: Any, value: Any) -> bool:
    try:
        return cell.cell_contents is value
    except ValueError:  # nothing was assigned to the name yet
        return False
