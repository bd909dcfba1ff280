"""The tables of constructors and reducers of the data-only codec.

Rule: a stream can call only the constructors in this table. It names a constructor, and the
constructor trusts none of its arguments. A name that is not in the table is never looked up and
never imported. The other files of this folder fill the tables; the writer and the reader look names
up and know none of these files.
"""

from __future__ import annotations

import datetime
import decimal
import re
import sys
import uuid
from typing import Any, Callable, Dict, Protocol, Tuple

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.wire.errors import WireError

FUNCTION = type(lambda: None)
NONE = type(None)
# The modules of the constructors: in the client these files, in the kernel the remote module.
HOME = re.compile(r"bridgehead\._shipped\.data(\.\w+)?|_bridgehead_[0-9a-f]{12}")

BUFFER = (bytes, bytearray, memoryview)  # the types of a buffer

CONTAINER_COST = 500  # the least charge of a table, column, array or image; an object: 16


class DataWriter(Protocol):
    """The part of the writer that reducers use."""

    def buffer(self, view: Any) -> Any:
        """Return a buffer for the arguments of a constructor."""


class DataReader(Protocol):
    """The part of the reader that constructors use; see ``budget`` for what they pay."""

    allow: Dict[str, Any]  # the allowed classes, by name
    instances: Dict[int, Any]  # instances of allowed classes, by id
    seconds: float  # of the processor that are left
    squared: bool  # whether long integers count squared, because a Decimal may convert them

    def charge(self, size: int) -> None:
        """Refuse the stream if it costs more bytes than its length allows."""

    def claim(self, size: int, *, visited: bool = True) -> None:
        """Count bytes that an object would take if it were made dense."""

    def visit(self, count: int) -> None:
        """Count what a hash, a repr or a conversion of the object that is made costs."""

    def claim_lists(self, shape: Any, count: int = 0) -> None:
        """Claim the lists that ``tolist`` makes of an array, and ``count`` containers in them."""

    def show(self, count: int) -> None:
        """Count what a repr or a copy of the object that is made costs, wherever it is met."""

    def own(self, raw: Any) -> Any:
        """Return a buffer for one object, with memory that no other value writes."""

    def linked(self, made: Any) -> Any:
        """Record an object whose deallocation recurses into objects of its kind inside it."""

    def weigh(self, *values: Any) -> int:
        """Charge the visits of values before a function that may visit them; return them."""

    def contain(self, made: Any, levels: int, part: Any) -> None:
        """Note a part that is put into an object after it was made."""

    def try_out(self, function: Any) -> None:
        """Run a function on a quarter of some values; refuse them if all would take too long."""

    def collect(self, keys: Any) -> Any:
        """Return a set of keys."""

    def insert(self, target: Any, keys: Any, values: Any = None) -> None:
        """Insert keys with their values into a dict, or without values into a set."""


_SEVERAL = (tuple, NONE, type(...))

ReduceFunction = Callable[[DataWriter, Any], Any]  # returns what __reduce__ returns
# By name: the function, the kinds of its arguments, its cost and its levels; see ``constructor``.
CONSTRUCTORS: Dict[str, Tuple[Callable[..., Any], Tuple[Any, ...], int, int]] = {}
REDUCERS: Dict[type, ReduceFunction] = {}
_libraries: Dict[str, Callable[[Any], Dict[type, ReduceFunction]]] = {}


def need(condition: Any, message: str) -> None:
    if not condition:
        raise WireError("protocol", message)


def constructor(*kinds: Any, cost: int = 16, levels: int = 1) -> Callable[[Any], Any]:
    """Add a function to the table, with the exact type or types of each argument.

    ``kinds`` are types, tuples of types, or None for an argument that the function checks itself;
    ``...`` at the end stands for any number of the last, also none. A buffer is only given where
    its type is named. ``cost`` is the charge for a call, in addition to the lengths of its
    arguments. What is made counts for so many ``levels`` of nesting, besides the containers in
    the arguments.
    """

    def enter_into_table(function: Any) -> Any:
        each = tuple(kind if type(kind) in _SEVERAL else (kind,) for kind in kinds)
        CONSTRUCTORS[function.__name__] = (function, each, cost, levels)
        return function

    return enter_into_table


def library_reducers(root: str) -> Callable[[Any], Any]:
    """Register a function that returns the reducers of a library's types.

    It is called when the library is imported and the writer meets one of its types.
    """

    def enter_into_table(function: Any) -> Any:
        _libraries[root] = function
        return function

    return enter_into_table


def find_reducer(kind: type) -> Any:
    """Return the reducer of a type, or None; add a library's reducers at its first type."""
    found = REDUCERS.get(kind)
    if found is None:
        root = str(kind.__module__).partition(".")[0]
        enter_types = _libraries.get(root)
        if enter_types is not None and root in sys.modules:
            REDUCERS.update(enter_types(sys.modules[root]))
            found = REDUCERS.get(kind)
    return found


def untrusted(name: str, **details: Any) -> WireError:
    return WireError("untrusted", "%s is not data" % name, type=name, **details)


def library(name: str) -> Any:
    """Import a library for a constructor.

    The constructors give the names; a stream never does.
    """
    try:
        module = __import__(name)
    except ImportError as error:
        raise WireError(
            "missing", "%s cannot be imported: %s" % (name, error), module=name
        ) from None
    for part in name.split(".")[1:]:
        module = getattr(module, part)
    return module


_ATOMS = {NONE, bool, int, float, str, bytes}
_STANDARD_SCALARS = {
    complex,
    datetime.date,
    datetime.time,
    datetime.datetime,
    datetime.timedelta,
    decimal.Decimal,
    uuid.UUID,
}


def is_scalar(value: Any) -> bool:
    """Return whether a value contains no other values."""
    kind = type(value)
    if kind in _ATOMS or kind in _STANDARD_SCALARS:
        return True
    fractions, numpy, pandas = map(sys.modules.get, ("fractions", "numpy", "pandas"))
    if fractions is not None and kind is fractions.Fraction:
        return True
    if numpy is not None and isinstance(value, numpy.generic):
        return True
    return pandas is not None and kind in (
        *(pandas.Timestamp, pandas.Timedelta),
        *(type(pandas.NaT), type(pandas.NA)),
    )
