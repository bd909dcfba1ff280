"""Names in a pickle: which objects the receiver finds by a name, and how to send the others.

Rule: use the standard library only, and cloudpickle where it is installed. Run on Python 3.8 and
later, the same file at both ends.

Law: an object never arrives as another one of the same name. A name in a pickle is a module and an
attribute. ``__main__`` is another module in each process, a module made on the spot exists in one
process only, and the user may have registered a module with cloudpickle. What such a module has is
pickled by value, or refused.
"""

from __future__ import annotations

import copyreg
import dataclasses
import functools
import pickle
import sys
import types
import typing
from typing import Any, Callable

# Attributes of a module that Python sets when it imports the module.
_OF_IMPORT = frozenset(["__builtins__", "__cached__", "__loader__", "__spec__"])


def is_by_value(module_name: str) -> bool:
    """Return whether what this module has must cross by value."""
    if module_name in ("__main__", "__mp_main__"):
        return True
    module = sys.modules.get(module_name)
    return module is not None and (is_registered(module_name) or is_made_here(module_name))


def is_registered(module_name: str) -> bool:
    """Return whether the user gave the module, or a package of it, to cloudpickle."""
    cloudpickle: Any = sys.modules.get("cloudpickle.cloudpickle")
    registry = getattr(cloudpickle, "_PICKLE_BY_VALUE_MODULES", ())
    while registry:
        if module_name in registry:
            return True
        module_name, _, last = module_name.rpartition(".")
        if not last or not module_name:
            break
    return False


def is_made_here(module_name: str) -> bool:
    """Return whether no other process could import a module: it was not imported in this one.

    A package may make modules, too, and makes them again in another process.
    """
    root = module_name.partition(".")[0]
    spec: Any = getattr(sys.modules.get(root), "__spec__", None)
    if root == __name__ or (spec and (spec.origin or spec.submodule_search_locations)):
        return False
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        if find is not None and find(root, None) is not None:
            return False
    return True


def lookup(module_name: str | None, name: str) -> Any:
    """Return what a name in a pickle stands for in this process; None if it is nothing."""
    found: Any = sys.modules.get(module_name or "")
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def has_own_name(definition: Any) -> bool:
    """Return whether the receiver finds a function or a class by its module and name."""
    module_name = definition.__module__
    return (
        type(module_name) is str
        and lookup(module_name, definition.__qualname__) is definition
        and not is_by_value(module_name)
    )


# The numbers that ``copyreg.add_extension`` gave to names; those of another process differ.
EXTENSION_CODES: Any = copyreg._extension_registry  # type: ignore[attr-defined]


def spelled_out(module_name: Any, name: str) -> Any:
    """Return how to pickle by name what the pickler would write as a number; None for the rest."""
    if (module_name, name) in EXTENSION_CODES:
        return by_name, (module_name, name)
    return None


def by_name(module_name: str, name: str) -> Any:
    """Return what has this name, as an unpickler finds it."""
    __import__(module_name)
    return functools.reduce(getattr, name.split("."), sys.modules[module_name])


def check_name(value: Any, name: str) -> Any:
    """Return how to pickle an object that asks to be pickled by name, as the pickler takes it.

    Raises:
        PicklingError: the receiver may have another object of this name.
    """
    module_name = pickle.whichmodule(value, name)  # type: ignore[attr-defined]
    reducer = BY_VALUE.get(type(value))
    if is_by_value(module_name):
        if reducer is None:
            raise pickle.PicklingError(
                "%r is pickled by its name, and %s.%s is another object in the other process"
                % (type(value).__name__, module_name, name)
            )
        return reducer(value)
    if reducer is not None and lookup(module_name, name) is not value:
        return reducer(value)
    return spelled_out(module_name, name) or name


# ---------------------------------------------------------------- modules


def reduce_module(module: Any) -> Any:
    """Return how to pickle a module: by the name under which it is imported, or by value.

    Raises:
        PicklingError: it is ``__main__``, which is another module in each process.
    """
    name = module.__name__
    if sys.modules.get("__main__") is module:
        raise pickle.PicklingError("__main__ is another module in the other process")
    if sys.modules.get(name) is not module:
        # Another module has the name, or none; this one may have a second name.
        names = [key for key, known in [*sys.modules.items()] if known is module]
        name = names[0] if names else ""
    if name and not is_by_value(name):
        return import_module, (name,)
    state = {key: value for key, value in vars(module).items() if key not in _OF_IMPORT}
    # The state comes after the module, so that what is in it may refer to the module.
    return make_module, (module.__name__,), state


def import_module(name: str) -> Any:
    """Import a module and return it."""
    __import__(name)
    return sys.modules[name]


def make_module(name: str) -> Any:
    """Make a module that is not in ``sys.modules``; code that it runs finds the builtins."""
    module: Any = types.ModuleType(name)
    module.__builtins__ = __builtins__
    return module


# ---------------------------------------------------------------- by value what pickles by name


def reduce_cached_function(function: Any) -> Any:
    """Pickle a function of ``lru_cache`` or ``cache``; it arrives with an empty cache."""
    parameters = getattr(function, "cache_parameters", None)  # from Python 3.9 on
    options = parameters() if parameters else {"maxsize": function.cache_info().maxsize}
    state = {name: item for name, item in vars(function).items() if name != "cache_parameters"}
    return make_cached_function, (function.__wrapped__, options), state


def make_cached_function(function: Any, options: Any) -> Any:
    """Return a function that calls another one and has a cache."""
    return functools.lru_cache(**options)(function)


# Descriptors that have no pickle, and the attributes that each is made from. cloudpickle knows some
# of them, and no subclass, such as a program's ``classproperty``.
DESCRIPTORS: dict[Any, tuple[str, ...]] = {
    property: ("fget", "fset", "fdel", "__doc__"),
    classmethod: ("__func__",),
    staticmethod: ("__func__",),
    functools.cached_property: ("func",),
}


def reduce_descriptor(value: Any) -> Any:
    """Pickle a descriptor by what it was made from, and its attributes.

    A ``cached_property`` has a lock before Python 3.12; the copy gets one of its own
    (https://github.com/cloudpipe/cloudpickle/issues/438).
    """
    base = next(base for base in DESCRIPTORS if isinstance(value, base))
    parts = tuple(getattr(value, name) for name in DESCRIPTORS[base])
    state = dict(getattr(value, "__dict__", {}))
    if base is functools.cached_property and sys.version_info < (3, 12):
        state.pop("lock", None)
    slots = {n: getattr(value, n) for n in copyreg._slotnames(type(value)) if hasattr(value, n)}  # type: ignore[attr-defined]
    return make_descriptor, (base, type(value), parts), (state, slots)


def make_descriptor(base: Any, kind: Any, parts: Any) -> Any:
    """Return a descriptor of this kind, without what the ``__init__`` of a subclass does."""
    made = base.__new__(kind, *parts)
    base.__init__(made, *parts)
    return made


def share_cells(reduced: Any, closure: Any) -> Any:
    """Return how cloudpickle reduces a function, but with the cells of its closure themselves.

    cloudpickle makes new cells for each function, so functions that share a variable would each
    have one of their own.
    """
    make, (*parts, _), (attributes, state), *rest = reduced
    return (make, (*parts, closure), (attributes, {**state, "__closure__": None}), *rest)


def reduce_cell(cell: Any) -> Any:
    """Pickle a cell of a closure; what is in it comes after it, and may refer to it."""
    try:
        return make_cell, (), (cell.cell_contents,), None, None, fill_cell
    except ValueError:  # nothing was assigned to the name yet
        return make_cell, ()


def make_cell() -> Any:
    """Return an empty cell."""
    return types.CellType()


def fill_cell(cell: Any, state: Any) -> None:
    """Give a cell its contents."""
    (cell.cell_contents,) = state


def reduce_single_dispatch(function: Any) -> Any:
    """Pickle a function of ``singledispatch`` by its implementations, without its weak cache."""
    attributes = {n: v for n, v in vars(function).items() if n not in _OF_DISPATCH}
    for name in functools.WRAPPER_ASSIGNMENTS:
        attributes[name] = getattr(function, name, None)
    state = dict(function.registry), attributes
    return make_single_dispatch, (function.__name__,), state, None, None, set_dispatch


def make_single_dispatch(name: str) -> Any:
    """Return a function of ``singledispatch`` without implementations."""

    def default(value: Any) -> None:
        pass

    default.__name__ = name
    return functools.singledispatch(default)


def set_dispatch(function: Any, state: Any) -> None:
    """Give a function of ``singledispatch`` its implementations."""
    implementations, attributes = state
    for cls, implementation in implementations.items():
        function.register(cls, implementation)
    for name, value in attributes.items():
        setattr(function, name, value)


# Its wrapper is a plain function; only its code tells what it is.
_dispatching = make_single_dispatch("")
_OF_DISPATCH = frozenset(vars(_dispatching)) - {"__wrapped__"}


def is_single_dispatch(function: Any) -> bool:
    """Return whether a function is one that ``singledispatch`` made."""
    return function.__code__ is _dispatching.__code__


def reduce_type_parameter(value: Any) -> Any:
    """Pickle a ``NewType``, ``TypeVar``, ``ParamSpec``, ``TypeVarTuple`` or a type alias."""
    kind, arguments, options = type(value), [value.__name__], {}
    if hasattr(value, "__supertype__"):
        arguments.append(value.__supertype__)
    elif hasattr(value, "__type_params__"):
        arguments.append(value.__value__)
        options["type_params"] = value.__type_params__
    arguments += getattr(value, "__constraints__", ())
    for name in ("bound", "covariant", "contravariant", "infer_variance"):
        option = getattr(value, "__%s__" % name, None)
        if option:
            options[name] = option
    if getattr(value, "has_default", bool)():
        options["default"] = value.__default__
    names = {"__module__": value.__module__}
    if hasattr(value, "__qualname__"):
        names["__qualname__"] = value.__qualname__
    cloudpickle: Any = sys.modules.get("cloudpickle.cloudpickle")
    try:
        identity = cloudpickle._get_or_create_tracker_id(value) if cloudpickle else ""
    except TypeError:  # a type alias has no weak references
        identity = ""
    return make_type_parameter, (identity, kind, arguments, options, names)


def make_type_parameter(identity: str, kind: Any, arguments: Any, options: Any, names: Any) -> Any:
    """Return the object with this identity, or make it."""
    cloudpickle: Any = sys.modules.get("cloudpickle.cloudpickle")
    known = cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.get(identity) if cloudpickle else None
    if known is not None:
        return known
    made = kind(*arguments, **options)
    for name, value in names.items():
        try:
            setattr(made, name, value)
        except (AttributeError, TypeError):  # a type alias has no settable attribute
            pass
    return cloudpickle._lookup_class_or_track(identity, made) if identity and cloudpickle else made


def _named(name: str, value: Any) -> str:
    return name


_TYPE_PARAMETERS = [
    getattr(typing, name, None)
    for name in ("NewType", "TypeVar", "ParamSpec", "TypeVarTuple", "TypeAliasType")
]
BY_VALUE: dict[Any, Callable[[Any], Any]] = {
    type(functools.lru_cache()(is_by_value)): reduce_cached_function,
    **{kind: reduce_type_parameter for kind in _TYPE_PARAMETERS if isinstance(kind, type)},
}
# These types never pickle by name, or do not say so; the pickler takes these before all others.
OWN_REDUCERS: dict[Any, Callable[[Any], Any]] = {
    types.ModuleType: reduce_module,
    types.CellType: reduce_cell,
    typing.TypeVar: lambda value: value.__name__,
}
# They are compared by identity, and have no names for the pickler.
_SENTINELS = ("MISSING", "KW_ONLY", "_HAS_DEFAULT_FACTORY")
for _name in _SENTINELS:
    if hasattr(dataclasses, _name):
        OWN_REDUCERS[type(getattr(dataclasses, _name))] = functools.partial(_named, _name)
# What a pickle of this file calls; the receiver has each of these under its own module's name.
BUILDERS: dict[str, Callable[..., Any]] = {
    build.__name__: build
    for build in (
        by_name,
        import_module,
        make_module,
        make_cached_function,
        make_descriptor,
        make_cell,
        fill_cell,
        make_single_dispatch,
        set_dispatch,
        make_type_parameter,
    )
}
