"""The tables of constructors and of reducers: all that a stream of data can have called.

Rule: a constructor is told by its name in this table, and trusts none of its arguments. A
name that is not in the table is never looked up, let alone imported. ``standard``, ``numpy``,
``pandas`` and ``pyarrow`` enter theirs; writer and reader look them up, and know none of these.
"""

from __future__ import annotations

import datetime
import decimal
import fractions
import re
import sys
import uuid
from typing import Any, Callable, Dict, Iterable, Protocol, Tuple

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.wire.errors import WireError

FUNCTION = type(lambda: None)
NONE = type(None)
# The modules of the constructors here, and the one they make up over there with the loader.
HOME = re.compile(r"bridgehead\._shipped\.data(\.\w+)?|_bridgehead_[0-9a-f]{12}")

PANDAS = 500  # what making one pandas container costs at least, next to an ordinary object


class DataWriter(Protocol):
    """What a reducer may ask of the writer."""

    def buffer(self, view: Any) -> Any:
        """A buffer to put in the arguments of a constructor."""


class DataReader(Protocol):
    """What a constructor may ask of the reader."""

    allow: Dict[str, Any]  # further classes, by name
    instances: Dict[int, Any]  # of these, by id

    def charge(self, size: int) -> None:
        """Refuse what costs more bytes than the stream's length allows."""

    def linked(self, made: Any) -> Any:
        """Note an object that is freed recursively together with its like directly in it."""

    def weigh(self, keys: Iterable[Any]) -> None:
        """Refuse keys whose hash visits too much, or which have none."""


ReduceFunction = Callable[[DataWriter, Any], Any]  # gives what __reduce__ does
CONSTRUCTORS: Dict[str, Tuple[Callable[..., Any], Tuple[Any, ...], int]] = {}
REDUCERS: Dict[type, ReduceFunction] = {}
_libraries: Dict[str, Callable[[Any], Dict[type, ReduceFunction]]] = {}


def need(condition: Any, message: str) -> None:
    if not condition:
        raise WireError("protocol", message)


def constructor(*kinds: Any, cost: int = 16) -> Callable[[Any], Any]:
    """Enter a function into the table, with the exact type or types of each argument.

    ``kinds`` are types, tuples of types, or None for an argument the function checks itself.
    ``cost`` is what a call is charged besides the lengths of its arguments.
    """

    def enter_into_table(function: Any) -> Any:
        each = tuple(kind if type(kind) is tuple or kind is None else (kind,) for kind in kinds)
        CONSTRUCTORS[function.__name__] = (function, each, cost)
        return function

    return enter_into_table


def library_reducers(root: str) -> Callable[[Any], Any]:
    """Enter a function that gives the reducers of a library's types, once that is imported."""

    def enter_into_table(function: Any) -> Any:
        _libraries[root] = function
        return function

    return enter_into_table


def find_reducer(kind: type) -> Any:
    """How a type is reduced, or None. A library's are entered when one of its types is met."""
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
    """A library a constructor needs; the names are this module's own, never a stream's."""
    try:
        module = __import__(name)
    except ImportError as error:
        raise WireError("missing", "%s is needed: %s" % (name, error), module=name) from None
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
    fractions.Fraction,
    uuid.UUID,
}


def is_scalar(value: Any) -> bool:
    """Whether it is one of the values that hold no others."""
    kind = type(value)
    if kind in _ATOMS or kind in _STANDARD_SCALARS:
        return True
    numpy, pandas = sys.modules.get("numpy"), sys.modules.get("pandas")
    if numpy is not None and isinstance(value, numpy.generic):
        return True
    return pandas is not None and kind in (
        *(pandas.Timestamp, pandas.Timedelta),
        *(type(pandas.NaT), type(pandas.NA)),
    )
