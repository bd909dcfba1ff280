"""Classes that are pickled by value: what is sent of them, and what they change where they arrive.

Rule: use the standard library only, and cloudpickle where it is installed. Run on Python 3.8 and
later, the same file at both ends.

Law: an instance that arrives never changes a class that exists where it arrives. cloudpickle sends
the class with each instance, and its loader sets all attributes of the class again
(https://github.com/cloudpipe/cloudpickle/issues/439). Here a class that exists is left alone. A
class that is sent itself is another matter: ``ArrivedClasses.updated`` gives it the state that was
sent.

Law: a class arrives with what was done to it where it was made, and that is not done again. The
methods of a metaclass, and ``__init_subclass__`` of a base, may need what is not sent, or count the
classes that they see. Those of classes that the receiver imports by name do run: what they note
about the class is in this process only.
"""

from __future__ import annotations

import abc
import pickle
import sys
import weakref
from contextlib import contextmanager
from enum import Enum
from threading import RLock, get_ident
from types import (
    BuiltinFunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    resolve_bases,
)
from typing import Any, Iterator, NamedTuple

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.wire.names import has_own_name

# What the metaclass of an enum makes of its members.
_OF_MEMBERS = frozenset(
    [
        "_generate_next_value_",
        "_hashable_values_",
        "_member_map_",
        "_member_names_",
        "_member_type_",
        "_unhashable_values_",
        "_unhashable_values_map_",
        "_value2member_map_",
    ]
)
_HEAP, _IMMUTABLE = 1 << 9, 1 << 8  # of ``__flags__``; the latter from Python 3.10 on
_lock = RLock()  # a finalizer that runs inside may unpickle, too
_incomplete: dict[int, int] = {}  # by id of a class: how many arrivals are building it
_arrived: Any = weakref.WeakSet()  # the classes that another process sent first


def _cloudpickle() -> Any:
    return sys.modules["cloudpickle.cloudpickle"]


# ---------------------------------------------------------------- sending


def reduce_class(cls: Any) -> Any:
    """Return how to pickle a class by value.

    cloudpickle would lose the slots and the qualified name of a class, the aliases of an enum and
    what its members have besides a value, and an attribute that is the same object as the base's
    (https://github.com/cloudpipe/cloudpickle/issues/584).

    Raises:
        PicklingError: the class is no Python code, and has no name to be found by.
    """
    cloudpickle = _cloudpickle()
    if cls.__flags__ & (_HEAP | _IMMUTABLE) != _HEAP:
        raise pickle.PicklingError(
            "%r has no name by which the other process could import it; "
            "send plain values of it instead" % cls
        )
    if issubclass(cls, Enum):
        members, arguments = cls.__members__, [*cloudpickle._enum_getnewargs(cls)]
        arguments[3] = {name: _contents(cls, member) for name, member in members.items()}
        boundary = getattr(cls, "_boundary_", None)
        extra = {"data_type": cls._member_type_, "boundary": boundary, "hidden": _hidden(cls)}
        arguments[-1] = extra
        if type(cls) is not type(cls.__bases__[-1]):
            extra["metaclass"] = type(cls)
        details = {name: vars(member) for name, member in members.items()}
        maker, state = cloudpickle._make_skeleton_enum, (_state(cls), {"members": details})
    else:
        arguments = [*cloudpickle._class_getnewargs(cls)]
        arguments[3] = {**arguments[3], "__qualname__": cls.__qualname__, **_hidden(cls)}
        # A typing.NamedTuple makes its slots, and refuses others.
        made_by = vars(cls).get("__orig_bases__", ())
        if "__slots__" in vars(cls) and NamedTuple not in made_by:
            arguments[3]["__slots__"] = _slots(cls)
        maker, state = cloudpickle._make_skeleton_class, (_state(cls), {})
    return maker, tuple(arguments), state, None, None, cloudpickle._class_setstate


def _slots(cls: Any) -> tuple[str, ...]:
    """Return the names that have a place in the class's instances.

    ``__slots__`` itself may be a used-up iterator, and has names before they are mangled.
    """
    made = [name for name, value in vars(cls).items() if _is_slot(cls, value)]
    kinds = [(name, type(vars(cls).get(name))) for name in ("__dict__", "__weakref__")]
    return (*made, *(name for name, kind in kinds if kind is GetSetDescriptorType))


def _is_slot(cls: Any, value: Any) -> bool:
    return type(value) is MemberDescriptorType and value.__objclass__ is cls


def _state(cls: Any) -> dict[str, Any]:
    """Return the attributes of a class, without those that Python makes for each class.

    The names are copies. A pickle refers to a string by its identity, and would otherwise depend
    on which strings are interned.
    """
    own = vars(cls)
    state = {"".join(name): own[name] for name in sorted(own) if not _is_slot(cls, own[name])}
    while type(state.get(_HOOK)) is _PassedOver:  # another thread makes a subclass
        state[_HOOK] = state[_HOOK].hook
    for name in ("__dict__", "__weakref__", "__annotate_func__", *_hidden(cls)):
        state.pop(name, None)
    if isinstance(cls, abc.ABCMeta) and "_abc_impl" in state:
        registered = abc._get_dump(cls)[0]  # type: ignore[attr-defined]
        state["_abc_impl"] = [alive for alive in (one() for one in registered) if alive is not None]
    if issubclass(cls, Enum):
        members = cls.__members__
        return {n: v for n, v in state.items() if n not in members and n not in _OF_MEMBERS}
    return state


def _hidden(cls: Any) -> dict[str, Any]:
    """Return the attributes of a class that can only be given to it as it is made.

    Setting such an attribute later would call a descriptor of the metaclass instead: that of
    ``__name__`` renames the class.
    """
    own = vars(cls)
    hidden = {"__name__": own["__name__"]} if "__name__" in own else {}
    for base in type(cls).__mro__:
        if base is type:  # what else this has is kept in the class
            break
        for name in own.keys() & vars(base).keys():
            if hasattr(type(vars(base)[name]), "__set__"):
                hidden[name] = own[name]
    return hidden


def _contents(cls: Any, member: Any) -> tuple[Any, ...]:
    """Return a member's value, and the arguments that give its data type the same contents."""
    value, data_type = member._value_, cls._member_type_
    if data_type.__new__ is object.__new__:
        return value, ()
    if hasattr(data_type, "__getnewargs__"):
        return value, data_type.__getnewargs__(member)
    if data_type.__reduce__ is not object.__reduce__:  # a date
        return value, data_type.__reduce__(member)[1]
    return value, value if isinstance(value, tuple) else (value,)


def reduce_member(member: Any) -> Any:
    """Pickle a member of an enum by its name; its value need not be equal to its copy."""
    cls, name = type(member), member._name_
    if cls.__members__.get(name) is member:
        return getattr, (cls, name)
    return member.__reduce_ex__(5)


# ---------------------------------------------------------------- arriving


class ArrivedClasses:
    """The classes that arrive with one object.

    Its methods are called in the place of cloudpickle's functions, by ``Unpickler``. A class that
    is made here is known to later arrivals only while this one succeeds.
    """

    def __init__(self) -> None:
        self.updates: list[tuple[Any, Any]] = []  # classes that exist, and the states that came
        self.making: dict[int, tuple[str, Any]] = {}  # identities and classes, by id of the class

    def make_class(self, *arguments: Any) -> Any:
        """Return the class with this identity, or make it without attributes."""
        return self._make(_make_class, arguments)

    def make_enum(self, *arguments: Any) -> Any:
        """Return the enum with this identity, or make it with its members."""
        return self._make(_make_enum, arguments)

    def _make(self, maker: Any, arguments: Any) -> Any:
        *parts, identity, extra = arguments
        cls = self._known(identity)
        if cls is None:
            made = maker(*parts, None, extra)
            with _lock:
                cls = self._known(identity)
                if cls is None:
                    cls = made
                    self._build(identity, cls)
                    _cloudpickle()._lookup_class_or_track(identity, cls)
        return cls

    def _known(self, identity: str) -> Any:
        """Return the class with this identity, if there is one."""
        with _lock:
            cls = _cloudpickle()._DYNAMIC_CLASS_TRACKER_BY_ID.get(identity)
            # Another thread may be building it: then each thread gives it its whole state.
            if id(cls) in _incomplete and id(cls) not in self.making:
                self._build(identity, cls)
        return cls

    def _build(self, identity: str, cls: Any) -> None:
        # Before the class is tracked: an interrupt in between must not leave it half built.
        self.making[id(cls)] = identity, cls
        _incomplete[id(cls)] = _incomplete.get(id(cls), 0) + 1

    def set_state(self, cls: Any, state: Any) -> Any:
        """Give a class that is made here its state; note the state of one that exists."""
        if id(cls) in self.making:
            _set_state(cls, state)
        else:
            self.updates.append((cls, state))
        return cls

    def finish(self) -> None:
        """Make the new classes known, because all of the object arrived."""
        for identity, cls in self.making.values():
            _arrived.add(cls)
            with _lock:
                _incomplete.pop(id(cls), None)
                _cloudpickle()._lookup_class_or_track(identity, cls)

    def abandon(self) -> None:
        """Forget the new classes, because the object could not be unpickled."""
        for identity, cls in self.making.values():
            with _lock:
                left = _incomplete.pop(id(cls), 0) - 1
                if left > 0:
                    _incomplete[id(cls)] = left
                elif left == 0:
                    by_id = _cloudpickle()._DYNAMIC_CLASS_TRACKER_BY_ID
                    if by_id.get(identity) is cls:
                        del by_id[identity]
                    _cloudpickle()._DYNAMIC_CLASS_TRACKER_BY_CLASS.pop(cls, None)

    @contextmanager
    def updated(self, value: Any, own: bool) -> Iterator[list[Any]]:
        """Update the classes that ``value`` is or contains; undo that if the block fails.

        The block gets the list of what would be undone, and clears it when that must stay. A class
        in an attribute of an object does not count. With ``own`` false, a class that was defined in
        this process does not count either.
        """
        before: list[tuple[Any, dict[str, Any], dict[str, Any]]] = []
        try:
            sent = classes_in(value) if self.updates else {}
            for cls, state in self.updates:
                if id(cls) in sent and (own or cls in _arrived):
                    old, new = _state(cls), state[0]
                    before.append((cls, old, new))
                    _set_state(cls, state)
                    _delete(cls, old.keys() - new.keys())
            yield before
        except BaseException:
            for cls, old, new in reversed(before):
                _set_state(cls, (old, {}))
                _delete(cls, new.keys() - old.keys())
            raise


def _set_state(cls: Any, state: Any) -> None:
    """Give a class its attributes."""
    attributes, extra = state
    last = ("__firstlineno__",)  # from Python 3.13 on; setting __module__ deletes it
    for name in (*(name for name in attributes if name not in last), *last):
        if name in attributes and name != "_abc_impl":
            _set(cls, name, attributes[name])
    for subclass in attributes.get("_abc_impl", ()):
        abc.ABCMeta.register(cls, subclass)
    for name, details in extra.get("members", {}).items():
        vars(cls._member_map_[name]).update(details)


def _set(cls: Any, name: str, value: Any) -> None:
    """Set an attribute, past a ``__setattr__`` of a metaclass that is sent, which may refuse."""
    _imported(type(cls)).__setattr__(cls, name, value)


def _delete(cls: Any, names: Any) -> None:
    for name in names:
        if name in vars(cls):
            _imported(type(cls)).__delattr__(cls, name)


def classes_in(value: Any) -> dict[int, Any]:
    """Return the classes that a value is, or that are in its plain containers, by id."""
    found: dict[int, Any] = {}
    seen: set[int] = set()
    left = [value] if _may_have_classes(type(value)) else []
    while left:
        item = left.pop()
        kind = type(item)
        if issubclass(kind, type):
            found[id(item)] = item
        elif id(item) not in seen:
            seen.add(id(item))
            parts = item.values() if kind is dict else item
            # Of a million instances of one type, only the types are looked at, in C.
            kinds = {part for part in set(map(type, parts)) if _may_have_classes(part)}
            if kinds:
                left += [part for part in parts if type(part) in kinds]
    return found


def _may_have_classes(kind: Any) -> bool:
    return kind in (list, tuple, dict, set, frozenset) or issubclass(kind, type)


def _make_class(
    metaclass: Any, name: str, bases: Any, attributes: Any, identity: None, extra: None
) -> Any:
    """Make a class with the few attributes that it needs from the beginning.

    ``identity`` is None, because the caller tracks the class.
    """
    resolved, imported = resolve_bases(bases), _imported(metaclass)
    namespace = imported.__prepare__(name, resolved)
    namespace.update((sys.intern(key), value) for key, value in attributes.items())
    if resolved is not bases:
        namespace["__orig_bases__"] = bases
    made = _without_hooks(resolved, imported.__new__, metaclass, name, resolved, namespace)
    imported.__init__(made, name, resolved, namespace)
    return made


def _imported(metaclass: Any) -> Any:
    """Return a metaclass, or the first of its bases that is not pickled by value."""
    return next(
        one
        for one in metaclass.__mro__
        if has_own_name(one) or type(vars(one).get("__new__")) is BuiltinFunctionType
    )


_HOOK = "__init_subclass__"


class _PassedOver(classmethod):  # type: ignore[type-arg]
    """What a class has in the place of its hook while one of ``threads`` makes a subclass."""

    def __init__(self, owner: Any, hook: Any, threads: list[int]) -> None:
        def pass_over(cls: Any, /, **options: Any) -> None:
            if get_ident() in threads:
                super(owner, cls).__init_subclass__(**options)
            else:
                hook.__get__(None, cls)(**options)

        super().__init__(pass_over)
        self.owner, self.hook = owner, hook


def _without_hooks(bases: Any, make: Any, *arguments: Any, **options: Any) -> Any:
    """Make a class, and pass over each ``__init_subclass__`` of a class that is pickled by value.

    Python makes no class without calling it. What other threads make meanwhile does not pass it.
    """
    classes = {cls: None for base in bases for cls in base.__mro__}
    owners = [cls for cls in classes if _HOOK in vars(cls) and not has_own_name(cls)]
    if not owners:
        return make(*arguments, **options)
    threads = [get_ident()]
    with _lock:
        passed_over = [_PassedOver(cls, vars(cls)[_HOOK], threads) for cls in owners]
        try:
            for one in passed_over:
                _set(one.owner, _HOOK, one)
            return make(*arguments, **options)
        finally:
            threads.clear()  # first: what an interrupt leaves in its place calls the hook
            for one in passed_over:
                if vars(one.owner).get(_HOOK) is one:
                    _set(one.owner, _HOOK, one.hook)


def _make_enum(
    bases: Any, name: str, qualname: str, members: Any, module: str, identity: None, extra: Any
) -> Any:
    """Make an enum without its methods; each member gets its value and contents back.

    ``identity`` is None, because the caller tracks the class. The enum's own ``__new__`` and
    ``__init__`` are in the state, which comes later, and must not run again.
    """
    metaclass: Any = extra.get("metaclass", type(bases[-1]))
    contents = [*members.values()]
    namespace = _imported(metaclass).__prepare__(name, bases)

    def new(cls: Any, index: int) -> Any:
        value, arguments = contents[index]
        member = extra["data_type"].__new__(cls, *arguments)
        member._value_ = value
        return member

    namespace["__new__"], namespace["__init__"] = new, lambda self, index: None
    namespace["__module__"], namespace["__qualname__"] = module, qualname
    for index, member in enumerate(members):
        namespace[member] = index
    options = {} if extra["boundary"] is None else {"boundary": extra["boundary"]}
    dict.update(namespace, extra["hidden"])  # none of these becomes a member
    make = _imported(metaclass).__new__
    made = _without_hooks(bases, make, metaclass, name, bases, namespace, **options)
    left = [name for name in ("__new_member__", "__new__") if vars(made).get(name) is new]
    _delete(made, ["__init__", *left])
    return made
