"""Instances of the classes that ``allow=`` names.

Rule: the receiver has the classes. A stream names a class and gives its contents, no more.
"""

from __future__ import annotations

import collections
import copyreg
import datetime
import decimal
import enum
from typing import Any, Dict, Tuple

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.data.registry import DataReader, constructor, need, untrusted
    from bridgehead._shipped.data.standard import make_decimal


# The levels that an instance adds to the depth of a value, beside that of its dict of attributes:
# its repr takes three frames of Python.
INSTANCE = 2

ANYTHING = (object,)
# What a builtin class is made of, when an allowed class inherits its constructor. From other
# arguments some make more than has crossed: bytes(10**12), list(range(10**12)), int("9" * 10**6).
MADE_OF: Dict[type, Tuple[type, ...]] = {
    bytes: (bytes,),
    bytearray: (bytes, bytearray),
    str: (str,),
    int: (int,),
    float: (float,),
    complex: (float,),
    tuple: (tuple, list),
    set: (list,),
    frozenset: (list,),
    collections.deque: (tuple, list, int, type(None)),
    collections.defaultdict: (type(None),),
    datetime.date: (bytes, int, datetime.tzinfo, type(None)),  # and datetime.datetime
    datetime.time: (bytes, int, datetime.tzinfo, type(None)),
    datetime.timedelta: (int,),
    decimal.Decimal: (str,),
    BaseException: ANYTHING,  # keeps its arguments
    object: ANYTHING,  # takes none
}


@constructor(str, str, tuple, dict)
def make_instance(reader: DataReader, name: str, form: str, args: Any, kwargs: Any) -> Any:
    """Make an empty instance of an allowed class; ``fill_instance`` then sets its contents."""
    if name not in reader.allow:
        raise untrusted(name[:200])
    kind = reader.allow[name]
    need(form in ("new", "call"), "invalid way to make an instance")
    check_arguments(reader, kind, "__new__", args, kwargs)
    if form == "call":
        check_arguments(reader, kind, "__init__", args, kwargs)
    made = kind(*args, **kwargs) if form == "call" else kind.__new__(kind, *args, **kwargs)
    reader.instances[id(made)] = made
    reader.contain(made, INSTANCE, None)
    return made


def check_arguments(reader: DataReader, kind: Any, method: str, args: Any, kwargs: Any) -> None:
    """Refuse what a builtin constructor makes more of than has crossed; the class's own is free."""
    owner = next(one for one in kind.__mro__ if method in vars(one))
    made = vars(owner)[method]
    if hasattr(getattr(made, "__func__", made), "__code__"):
        return
    base = next((one for one in owner.__mro__ if one in MADE_OF and one is not object), owner)
    allowed = MADE_OF.get(base, ())
    if (kwargs and allowed is not ANYTHING) or not all(isinstance(arg, allowed) for arg in args):
        raise untrusted("a %s.%s of such arguments" % (kind.__module__, kind.__qualname__))
    if base is decimal.Decimal:
        for text in args:
            make_decimal(reader, text)
    elif base in (set, frozenset):
        for keys in args:
            reader.collect(keys)


def fill_instance(reader: DataReader, instance: Any, kind: Any, part: Any) -> None:
    """Set the contents of an instance in the way that pickle does."""
    # A list only grows, so that the instance has no more than it; and its length has been paid.
    need(kind == "state" or type(part) is list, "contents of an instance that are not a list")
    reader.contain(instance, INSTANCE, part)
    reader.weigh(part)  # the code of the class may visit it
    if kind == "items":
        for item in part:
            instance.append(item)
    elif kind == "pairs":
        pairs = [(key, value) for key, value in part]
        reader.insert(instance, [key for key, _ in pairs], [value for _, value in pairs])
    elif hasattr(instance, "__setstate__"):
        instance.__setstate__(part)
    else:
        slots = None
        if type(part) is tuple and len(part) == 2:
            part, slots = part
        for state in (part, slots):
            need(state is None or type(state) is dict, "invalid state of an instance")
            need(all(type(name) is str for name in state or ()), "invalid state of an instance")
        if part:
            instance.__dict__.update(part)
        for name, value in (slots or {}).items():
            need(name[:2] != "__", "invalid slot of an instance")
            setattr(instance, name, value)


def reduce_instance(value: Any, name: str) -> Any:
    kind = type(value)
    kwargs: Any = {}
    state = items = pairs = None
    if isinstance(value, enum.Enum):
        form, args = "call", (value._value_,)
    else:
        reduced = value.__reduce_ex__(5)
        if type(reduced) is not tuple or (*reduced, *[None] * 4)[5] is not None:
            raise untrusted(name)
        function, args, state, items, pairs = (*reduced, None, None, None)[:5]
        form = "call" if function is kind else "new"
        if function is copyreg.__newobj_ex__:  # type: ignore[attr-defined]
            made, args, kwargs = args
        elif function is copyreg.__newobj__:  # type: ignore[attr-defined]
            made, *args = args
        else:
            made = function
        if made is not kind:
            raise untrusted(name)
    contents: Any = [("state", state)] if state is not None else []
    contents += [("items", list(items))] if items is not None else []
    contents += [("pairs", list(pairs))] if pairs is not None else []
    return make_instance, (name, form, tuple(args), dict(kwargs)), None, None, iter(contents)
