"""Classes that arrive by value: made whole or not at all, and left alone where they exist."""

from __future__ import annotations

import ctypes
import enum
import functools
import gc
import pickle
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import cloudpickle.cloudpickle
import pytest

from bridgehead._shipped.wire import classes, pickling

OTHER: dict[str, Any] = {}  # what the other process knows of classes


@contextmanager
def other_process() -> Iterator[None]:
    """Unpickle as another process would, which knows none of this one's classes."""
    tracker = cloudpickle.cloudpickle
    names = ["_DYNAMIC_CLASS_TRACKER_BY_ID", "_DYNAMIC_CLASS_TRACKER_BY_CLASS"]
    own = {name: getattr(tracker, name) for name in names}
    vars(tracker).update(OTHER)
    try:
        yield
    finally:
        vars(tracker).update(own)


@pytest.fixture(autouse=True)
def other_trackers() -> Iterator[None]:
    OTHER["_DYNAMIC_CLASS_TRACKER_BY_ID"] = weakref.WeakValueDictionary()
    OTHER["_DYNAMIC_CLASS_TRACKER_BY_CLASS"] = weakref.WeakKeyDictionary()
    yield
    assert not classes._incomplete
    OTHER.clear()


def encoded(value: Any) -> list[memoryview]:
    return pickling.encode(value)[0]


def counter() -> Any:
    class Counter:
        made = 0
        registry: ClassVar[dict[str, int]] = {}

        def hello(self) -> str:
            return "first"

    return Counter


def call_when_unpickled(function: Callable[[], object]) -> Any:
    """Return an object that calls a function of this process when it is unpickled."""
    HOOKS.append(function)
    return Hook(len(HOOKS) - 1)


HOOKS: list[Callable[[], object]] = []


class Hook:
    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return call_hook, (self.number,)


def call_hook(number: int) -> object:
    return HOOKS[number]()


def fail() -> None:
    raise ValueError("this object cannot be unpickled")


def test_an_instance_leaves_the_class_alone_that_exists() -> None:
    cls = counter()
    frames = encoded([cls(), {"nested": cls()}, cls().hello])
    cls.made, cls.hello, cls.added = 7, lambda self: "changed", [1]
    registry = cls.registry
    back = pickling.decode(frames)
    assert type(back[0]) is cls
    assert (cls.made, cls().hello(), cls.added) == (7, "changed", [1])
    assert cls.registry is registry


def test_an_instance_does_not_subclass_the_base_again() -> None:
    subclasses = []

    class Base:
        def __init_subclass__(cls) -> None:
            subclasses.append(cls.__name__)

    class Plugin(Base):
        pass

    assert type(pickling.decode(encoded(Plugin()))) is Plugin
    assert subclasses == ["Plugin"]


def test_a_class_that_arrives_is_not_noted_by_a_base_that_exists() -> None:
    class Base:
        seen: ClassVar[list[str]] = []

        def __init_subclass__(cls, *, key: str) -> None:
            cls.seen.append(key)

    class First(Base, key="first"):
        pass

    first = encoded(First())

    class Second(Base, key="second"):
        pass

    second = encoded(Second())
    with other_process():
        base = type(pickling.decode(first)).__base__
        assert base is not Base
        hook = vars(base)["__init_subclass__"]
        arrived = type(pickling.decode(second))
        assert (arrived.__base__, base.seen) == (base, ["first"])
        assert vars(base)["__init_subclass__"] is hook


def test_a_class_made_in_another_thread_meanwhile_is_noted_by_its_base() -> None:
    seen = []

    class Base:
        def __init_subclass__(cls) -> None:
            seen.append(cls.__name__)

    def make() -> None:
        in_another_thread(lambda: type("Other", (Base,), {}))
        type("Arrived", (Base,), {})

    classes._without_hooks((Base,), make)
    type("Late", (Base,), {})
    assert seen == ["Other", "Late"]


def in_another_thread(function: Callable[[], object]) -> Any:
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join(10)
    return results[0]


def test_a_base_that_another_thread_pickles_meanwhile_has_its_own_hook() -> None:
    class Base:
        seen: ClassVar[list[str]] = []

        def __init_subclass__(cls) -> None:
            cls.seen.append(cls.__name__)

    def make() -> Any:
        return in_another_thread(lambda: encoded(Base))

    frames = classes._without_hooks((Base,), lambda: classes._without_hooks((Base,), make))
    with other_process():
        base = pickling.decode(frames)
        assert base is not Base
        assert type(vars(base)["__init_subclass__"]) is classmethod
        type("Sub", (base,), {})
        assert base.seen == ["Sub"]


def test_a_hook_that_another_thread_sets_meanwhile_stays() -> None:
    class Base:
        def __init_subclass__(cls) -> None:
            raise AssertionError

    new = classmethod(lambda cls: None)
    state = {"__init_subclass__": new}, {}
    make = functools.partial(in_another_thread, lambda: classes._set_state(Base, state))
    classes._without_hooks((Base,), make)
    assert vars(Base)["__init_subclass__"] is new


class Noting(type):
    """A metaclass of a library: it is found by its name in the other process."""

    noted: ClassVar[list[str]] = []
    interrupts: ClassVar[list[str]] = []

    def __setattr__(cls, name: str, value: object) -> None:
        if name in cls.interrupts and type(value) is classmethod:
            raise KeyboardInterrupt
        cls.noted.append(name)
        super().__setattr__(name, value)

    def __delattr__(cls, name: str) -> None:
        cls.noted.append("no " + name)
        super().__delattr__(name)


def test_an_interrupt_leaves_a_base_whose_hook_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Base(metaclass=Noting):
        def __init_subclass__(cls) -> None:
            seen.append(cls.__name__)

    hook = vars(Base)["__init_subclass__"]
    monkeypatch.setattr(Noting, "interrupts", ["__init_subclass__"])
    with pytest.raises(KeyboardInterrupt):
        classes._without_hooks((Base,), type, "Arrived", (Base,), {})
    monkeypatch.undo()
    assert vars(Base)["__init_subclass__"] is not hook
    type("Late", (Base,), {})
    classes._without_hooks((Base,), type, "Arrived", (Base,), {})
    type("Later", (Base,), {})
    assert seen == ["Late", "Later"]


def test_a_metaclass_that_is_imported_sets_and_deletes_the_attributes() -> None:
    class Own(Noting):
        def __setattr__(cls, name: str, value: object) -> None:
            raise AttributeError("the class is frozen")

        def __delattr__(cls, name: str) -> None:
            raise AttributeError("the class is frozen")

    for metaclass in (Noting, Own):
        cls: Any = metaclass("Noted", (), {"__module__": __name__, "shown": 1})
        frames = encoded(cls)
        Noting.noted.clear()
        with other_process():
            arrived = pickling.decode(frames)
        assert arrived.shown == 1
        assert Noting.noted.count("shown") == 1
        type.__delattr__(cls, "shown")
        frames = encoded(cls)
        with other_process():
            assert pickling.decode(frames) is arrived
        assert Noting.noted.count("no shown") == 1
        assert not hasattr(arrived, "shown")


def test_a_metaclass_in_c_sets_the_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    """``type.__setattr__`` refuses its classes."""
    metaclass: Any = type(ctypes.Structure)
    module = sys.modules[metaclass.__module__]
    monkeypatch.setattr(module, metaclass.__qualname__, metaclass, raising=False)

    class Base(ctypes.Structure):
        def __init_subclass__(cls) -> None:
            cls.noted = True

    class Sub(Base):
        shown = 1

    frames = encoded(Sub)
    del Sub.noted
    later = encoded(Sub)
    with other_process():
        arrived: Any = pickling.decode(frames)
        assert arrived is not Sub
        assert (arrived.shown, arrived.noted) == (1, True)
        pickling.decode(later)
        assert not hasattr(arrived, "noted")


def test_a_class_without_a_name_or_code_is_refused() -> None:
    with pytest.raises(pickle.PicklingError, match="no name by which .* send plain values"):
        encoded(type(iter([])))


class Library:
    """A class that is found by its name in the other process."""

    seen: ClassVar[list[str]] = []

    def __init_subclass__(cls) -> None:
        cls.seen.append(cls.__name__)


def test_a_class_that_arrives_is_noted_by_a_base_that_is_imported() -> None:
    class Base(Library):
        def __init_subclass__(cls) -> None:
            super().__init_subclass__()
            raise AssertionError

    with pytest.raises(AssertionError):
        type("Plugin", (Base,), {})
    plugin: Any = classes._without_hooks((Base,), type, "Plugin", (Base,), {})
    frames = encoded(plugin())
    Library.seen.clear()
    with other_process():
        assert type(pickling.decode(frames)) is not plugin
    assert Library.seen == ["Base", "Plugin"]


def test_a_class_that_arrived_is_left_alone_by_the_next_instance() -> None:
    cls = counter()
    frames = encoded(cls())
    with other_process():
        first = pickling.decode(frames)
        type(first).made = 100
    cls.made = 5
    frames = encoded(cls())
    with other_process():
        second = pickling.decode(frames)
        assert type(second) is type(first) is not cls
        assert type(second).made == 100


def test_a_class_that_is_sent_itself_updates_the_one_that_arrived() -> None:
    cls = counter()
    frames = encoded(cls)
    with other_process():
        arrived = pickling.decode(frames)
    cls.made, cls.hello, cls.added = 7, lambda self: "changed", [1]
    del cls.registry
    frames = encoded([cls])
    with other_process():
        assert pickling.decode(frames) == [arrived]
    assert (arrived.made, arrived().hello(), arrived.added) == (7, "changed", [1])
    assert not hasattr(arrived, "registry")
    cls.made = 8
    pickling.decode(frames)
    assert cls.made == 8  # this process defined it


def test_an_update_is_undone_if_what_follows_fails() -> None:
    cls, other = counter(), counter()
    frames = encoded((cls, other))
    with other_process():
        arrived, second = pickling.decode(frames)
    before = [dict(vars(one)) for one in (arrived, second)]
    cls.made, cls.added, other.made = 7, 8, 9
    frames = encoded({"a": cls, "b": other})
    with other_process():
        value, arrivals = pickling.unpickle(frames)
        assert arrivals is not None
        assert [dict(vars(one)) for one in (arrived, second)] == before
        with pytest.raises(KeyboardInterrupt), arrivals.updated(value, own=True):
            assert (arrived.made, arrived.added, second.made) == (7, 8, 9)
            raise KeyboardInterrupt
        assert [dict(vars(one)) for one in (arrived, second)] == before
        with arrivals.updated(value, own=True):
            pass
        assert (arrived.made, arrived.added, second.made) == (7, 8, 9)


def test_an_arrival_that_fails_leaves_no_class_and_changes_none() -> None:
    cls, known = counter(), counter()
    frames = encoded([known, cls(), call_when_unpickled(fail)])
    first, whole = encoded(known), encoded(cls())
    with other_process():
        arrived = pickling.decode(first)
        arrived.made = 100
        with pytest.raises(ValueError, match="cannot be unpickled"):
            pickling.decode(frames)
        assert arrived.made == 100
        assert list(OTHER["_DYNAMIC_CLASS_TRACKER_BY_ID"].values()) == [arrived]
        gc.disable()  # a half-made class would still be there
        try:
            assert pickling.decode(whole).hello() == "first"
        finally:
            gc.enable()


@pytest.mark.parametrize("outcome", ["both", "first fails", "second fails"])
def test_a_class_that_two_threads_build_is_whole_in_both(outcome: str) -> None:
    cls = counter()
    begun, go_on, results = threading.Event(), threading.Event(), {}

    def wait() -> None:
        begun.set()
        assert go_on.wait(10)
        if outcome == "first fails":
            fail()

    cls.late = call_when_unpickled(wait)
    first = encoded(cls())
    cls.late = None
    second = encoded([cls(), call_when_unpickled(fail if outcome == "second fails" else int)])
    third = encoded(cls())

    def decode_first() -> None:
        try:
            results["first"] = pickling.decode(first)
        except ValueError as error:
            results["first"] = error

    with other_process():
        thread = threading.Thread(target=decode_first)
        thread.start()
        assert begun.wait(10)
        try:
            results["second"] = pickling.decode(second)[0]
        except ValueError as error:
            results["second"] = error
        go_on.set()
        thread.join(10)
        assert not thread.is_alive()
        whole = [one for one in results.values() if not isinstance(one, ValueError)]
        assert len(whole) == (2 if outcome == "both" else 1)
        for one in whole:
            assert one.hello() == "first"
        assert type(pickling.decode(third)) is type(whole[0])


def test_an_enum_is_itself_again_and_an_instance_leaves_it_alone() -> None:
    class Colour(enum.StrEnum):
        RED = "r"
        CRIMSON = "r"

        def __init__(self, value: str) -> None:
            self.extra = value * 2

    assert pickling.decode(encoded(Colour.CRIMSON)) is Colour.RED
    frames = encoded(Colour.RED)
    with other_process():
        arrived = type(pickling.decode(frames))
        assert arrived is not Colour
        assert list(arrived.__members__) == ["RED", "CRIMSON"]
        assert arrived("r") is arrived.CRIMSON is arrived.RED
        assert (arrived.RED.extra, arrived.RED.upper()) == ("rr", "R")
        arrived.RED.extra = "kept"
        pickling.decode(frames)
        assert arrived.RED.extra == "kept"


def test_a_cycle_through_a_class_ends() -> None:
    class Node:
        kind: Any = None

        def kinds(self) -> Any:
            return Node.kind, Node

    Node.kind = [Node, Node()]
    frames = encoded({"a": Node})
    with other_process():
        arrived = pickling.decode(frames)["a"]
        assert arrived.kind[0] is arrived
        assert type(arrived.kind[1]) is arrived
        assert arrived().kinds()[1] is arrived
    assert len(classes.classes_in({"a": [Node, {1: (int,)}], "b": frozenset([str])})) == 3
