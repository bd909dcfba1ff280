"""Memory of the standard library: ``memoryview`` and ``array.array`` cross out of band.

Rule: as ``reducers`` says. Large bytes, bytearrays and texts never reach a reducer: the C pickler
writes them itself (see ``wire.large``).
"""

from __future__ import annotations

import pickle
import re
import sys
from typing import Any

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.wire.large import make_bytes
    from bridgehead._shipped.wire.libraries import builder, finder
    from bridgehead._shipped.wire.names import OWN_REDUCERS


def reduce_memoryview(view: memoryview) -> Any:
    """Pickle a memoryview as bytes.

    Raises:
        PicklingError: its items are addresses, which mean nothing in another process.
    """
    codes = re.sub(":[^:]*:", "", view.format)  # without the names of fields
    if any(code in codes for code in "OPX&z"):
        raise pickle.PicklingError("a memoryview of format %r has addresses" % view.format)
    numpy: Any = sys.modules.get("numpy")
    if numpy is None or not view.c_contiguous or not view.nbytes:
        return bytes, (view.tobytes(),)
    # The garbage collector crashes on a PickleBuffer of a memoryview (CPython 3.11).
    return make_bytes, (pickle.PickleBuffer(numpy.frombuffer(view, "u1")),)


OWN_REDUCERS[memoryview] = reduce_memoryview  # cloudpickle has one, too


@finder
def number_array_reducer(kind: Any, shared: Any) -> Any:
    """Return the function that reduces ``array.array``, but no subclass of it, or None."""
    exact = getattr(sys.modules.get("array"), "array", None)
    return reduce_number_array if kind is exact and exact is not None else None


def reduce_number_array(numbers: Any) -> Any:
    """Return how to pickle an ``array.array``; its own pickle copies it twice."""
    if numbers.typecode in "uw":  # the size of characters is the platform's
        return numbers.__reduce_ex__(5)
    return make_number_array, (*_format_of(numbers.typecode), pickle.PickleBuffer(numbers))


def _format_of(typecode: str) -> tuple[str, int]:
    """Return a typecode, and the number of the format that its numbers have on this machine."""
    array: Any = sys.modules["array"]
    _, (_, _, number, _), *_ = array.array(typecode).__reduce_ex__(5)
    return typecode, number


@builder
def make_number_array(typecode: str, number: int, data: Any) -> Any:
    """Return an ``array.array`` of numbers in this format."""
    import array

    if _format_of(typecode) == (typecode, number):
        made = array.array(typecode)
        # Its memory is new, on pages of 4 KiB: no function of ``array`` leaves it to be filled.
        made.frombytes(data)
        return made
    rebuild = array._array_reconstructor  # type: ignore[attr-defined]  # from another machine
    return rebuild(array.array, typecode, number, bytes(data))
