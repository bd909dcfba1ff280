"""Instances of the classes that ``allow=`` names.

Rule: the receiver has the classes. A stream names a class and gives its contents, no more.
"""

from __future__ import annotations

import copyreg
import enum
from typing import Any

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.data.registry import DataReader, constructor, need, untrusted


INSTANCE = 2  # levels, besides that of the dict of its attributes: three frames of a repr


@constructor(str, str, tuple, dict)
def make_instance(reader: DataReader, name: str, form: str, args: Any, kwargs: Any) -> Any:
    """Make an empty instance of an allowed class; ``fill_instance`` then sets its contents."""
    if name not in reader.allow:
        raise untrusted(name[:200])
    kind = reader.allow[name]
    need(form in ("new", "call"), "invalid way to make an instance")
    made = kind(*args, **kwargs) if form == "call" else kind.__new__(kind, *args, **kwargs)
    reader.instances[id(made)] = made
    reader.contain(made, INSTANCE, None)
    return made


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
