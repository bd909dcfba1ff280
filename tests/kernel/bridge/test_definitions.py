"""Classes, functions and modules cross as what they are, and change nothing that exists."""

from __future__ import annotations

import abc
import asyncio
import collections
import dataclasses
import datetime
import enum
import functools
import importlib
import subprocess
import sys
import textwrap
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from bridgehead import Bridge, EncodeError, RemoteError

# A kernel cannot import test modules; what they define is pickled by value, as in ``__main__``.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

T = typing.TypeVar("T")

# ---------------------------------------------------------------- classes are left alone


def counter() -> Any:
    class Counter:
        made = 0

        def hello(self) -> str:
            return "first"

    return Counter


async def test_a_value_from_the_kernel_leaves_the_clients_class_alone(kernel: Bridge) -> None:
    """L1. ``pull``, ``watch``, ``call`` and an error bring instances back."""
    cls = counter()

    class Odd(Exception):
        raised = 0

    def fail(error: Exception) -> None:
        raise error

    a = cls()
    await kernel.push(a=a, nested={"deep": [a, a.hello]})
    cls.made, cls.hello = 1000, lambda self: "patched"
    assert type(await kernel.pull("a")) is cls
    assert await kernel.pull("a.hello()", "nested") is not None
    async with kernel.watch("a") as values:
        assert type(await anext(values)) is cls
    assert type(await kernel.call(lambda x: x, a)) is cls
    assert (cls.made, a.hello()) == (1000, "patched")
    error = Odd("here")
    await kernel.push(error=error)
    Odd.raised = 7
    with pytest.raises(RemoteError) as caught:
        await kernel.call(fail, error)
    assert type(caught.value.__cause__) is Odd
    assert Odd.raised == 7


async def test_a_value_from_the_client_leaves_the_kernels_class_alone(kernel: Bridge) -> None:
    """L1. So do a push that fails, and one in the middle of a cell."""
    cls = counter()
    await kernel.push(a=cls())
    await kernel.run("C = type(a)\nC.made, C.hello = 50, lambda self: 'kernel'")
    await kernel.push(b=[cls()], bound=cls().hello)
    await kernel.call(lambda x: x, cls())
    with pytest.raises(RemoteError):
        await kernel.push({"C": cls, "d": cls(), "e": Fails()})
    assert await kernel.pull("C.made, a.hello(), type(b[0]) is C") == (50, "kernel", True)
    assert await kernel.exists("d") is False
    cell = asyncio.create_task(
        kernel.run("C.made = 60\nwhile 'late' not in globals(): pass\nseen = C.made")
    )
    await kernel.push(late=cls(), now=True)
    await cell
    assert await kernel.pull("seen") == 60
    await kernel.run("class K:\n    total = 0\nk = K()")
    k = await kernel.pull("k")
    type(k).total = 7
    await kernel.run("K.total = 50")
    await kernel.push(again=k)
    assert await kernel.pull("K.total, type(again) is K") == (50, True)
    assert type(await kernel.pull("k")).total == 7


class Fails:
    def __reduce__(self) -> Any:
        return int, ("no number",)


async def test_a_class_that_is_pushed_itself_updates_the_kernels_class(kernel: Bridge) -> None:
    """L1. Its instances see that, whichever side defined it."""
    cls = counter()
    await kernel.push(a=cls())
    cls.made, cls.hello, cls.more = 3, lambda self: "second", staticmethod(lambda: "more")
    await kernel.push(b=cls())
    assert await kernel.pull("a.hello(), type(b).made") == ("first", 0)
    await kernel.push(C=cls)
    assert await kernel.pull("a.hello(), b.made, b.more(), C is type(a)") == (
        *("second", 3, "more"),
        True,
    )
    await kernel.run("class K:\n    total = 0\nk = K()")
    kernels = await kernel.pull("K")
    kernels.total, kernels.twice = 1, lambda self: 2 * self.total
    await kernel.push(K2=kernels)
    assert await kernel.pull("K is K2, k.twice()") == (True, 2)
    await kernel.run("K.total = 9")
    assert (await kernel.pull("K")).total == kernels.total == 9


# ---------------------------------------------------------------- slots, enums, properties


@dataclasses.dataclass(slots=True)
class Slotted:
    a: int
    b: str = "x"

    def missing(self) -> Any:
        return dataclasses.MISSING


@dataclasses.dataclass(slots=True, frozen=True, weakref_slot=True)
class Frozen:
    a: int


class Private:
    __slots__ = ("__hidden", "shown")

    def __init__(self) -> None:
        self.__hidden, self.shown = 1, 2

    def both(self) -> Any:
        return self.__hidden, self.shown


class Single:
    __slots__ = "only"


class Sub(Single, abc.ABC):
    __slots__ = ("__dict__", "more")

    @abc.abstractmethod
    def method(self) -> int: ...


class Concrete(Sub, typing.Generic[T]):
    __slots__ = ()

    def method(self) -> int:
        return 1


class Tuple(collections.namedtuple("Tuple", "x y")):
    __slots__ = ()


class Typed(typing.NamedTuple):
    x: int
    y: str = "q"


class Cached:
    def __init__(self, x: int) -> None:
        self.x = x

    @functools.cached_property
    def double(self) -> int:
        return self.x * 2

    class Inner:
        pass


class ClassProperty(property):
    def __get__(self, instance: Any, owner: Any = None) -> Any:
        assert self.fget is not None
        return self.fget(owner)


class Registered(staticmethod):  # type: ignore[type-arg]
    pass


class Expiring(functools.cached_property):  # type: ignore[type-arg]
    def __init__(self, function: Any, *, seconds: int = 3) -> None:
        super().__init__(function)
        self.seconds = seconds


class Locked(property):
    __slots__ = ("__dict__", "never_set")

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        self.lock = "an attribute"


class Described:
    count = 4

    @ClassProperty
    def size(cls) -> int:
        """Return the size."""
        return cls.count

    @Registered
    def double(x: int) -> int:
        return 2 * x

    @Expiring
    def items(self) -> list[int]:
        return [self.count]

    @Locked
    def locked(self) -> int:
        return self.count


class Plugin:
    known: typing.ClassVar[list[str]] = []

    def __init_subclass__(cls, *, key: str, **options: Any) -> None:
        super().__init_subclass__(**options)
        assert cls.title
        cls.key = key
        Plugin.known.append(key)


class First(Plugin, key="first"):
    title = "First"


class Second(First, key="second"):
    pass


class Labelling(type):
    def __new__(mcs, name: str, bases: Any, namespace: Any, *, label: str) -> Any:
        return super().__new__(mcs, name, bases, {**namespace, "label": label})

    def __init__(cls, name: str, bases: Any, namespace: Any, *, label: str) -> None:
        super().__init__(name, bases, namespace)
        cls.shouted = label.upper()

    def __setattr__(cls, name: str, value: object) -> None:
        if "shouted" in vars(cls):
            raise AttributeError("the class is frozen")
        super().__setattr__(name, value)


class Labelled(metaclass=Labelling, label="here"):
    pass


class Checking(abc.ABCMeta):
    def __init__(cls, name: str, bases: Any, namespace: Any) -> None:
        super().__init__(name, bases, namespace)
        assert cls.table


class Checked(metaclass=Checking):
    table = "t"

    @classmethod
    def register(cls, other: object) -> None:
        raise RuntimeError("this is no abc.ABCMeta.register")


abc.ABCMeta.register(Checked, dict)


class Tabled(type):
    @property
    def table(cls) -> str:
        return "of the metaclass"


class Task(metaclass=Tabled):
    __name__ = "task"
    table = "of the class"

    def __call__(self) -> str:
        return self.__name__


def filled(thing: Any, **attributes: Any) -> Any:
    for name, value in attributes.items():
        setattr(thing, name, value)
    return thing


Made = dataclasses.make_dataclass("Made", [("x", int)])
MadeSlots = dataclasses.make_dataclass("MadeSlots", [("x", int)], slots=True)
OfTypes = types.new_class("OfTypes", (Single,), exec_body=lambda ns: ns.update(n=3))
Executed: Any = {}
exec("class Executed:\n    def five(self): return 5", Executed)  # its module is "builtins"

HAS_DICT = "hasattr(v, '__dict__')"
INSTANCES: list[tuple[Any, str]] = [
    (Slotted(1), f"{HAS_DICT}, v == type(v)(1), v.b, type(v).__slots__"),
    (Slotted(1), "__import__('dataclasses').fields(v)[0].default is v.missing()"),
    (Frozen(2), f"{HAS_DICT}, hash(v), __import__('weakref').ref(v)() is v"),
    (Private(), f"{HAS_DICT}, v.both()"),
    (filled(Single(), only=3), f"{HAS_DICT}, v.only"),
    (filled(Concrete(), more=4, z=5), f"v.more, v.__dict__, v.method(), {HAS_DICT}"),
    (Tuple(1, 2), f"{HAS_DICT}, v.x, v"),
    (Typed(1), f"{HAS_DICT}, v.y, v"),
    (Cached(3), "v.double, v.__dict__"),
    (Cached.Inner(), "type(v).__qualname__"),
    (Made(3), "v == type(v)(3), v.x, type(v).__module__"),
    (MadeSlots(3), f"{HAS_DICT}, v.x"),
    (filled(OfTypes(), only=1), "v.n, v.only, type(v).__mro__[1].__name__"),
    (Executed["Executed"](), "v.five(), type(v).__module__"),
    (Described(), "v.size, type(v).size, vars(type(v))['size'].__doc__, type(v).double(4)"),
    (Described(), "v.items is v.items, type(v).items.seconds, type(v).items.attrname"),
    (Described(), "v.locked, type(v).locked.lock, hasattr(type(v).locked, 'never_set')"),
    (Second(), "v.key, v.title, type(v).__mro__[1].key, v.known"),
    (Labelled(), "v.label, v.shouted, type(type(v)).__name__"),
    (Task(), "v(), type(v).__name__, v.table, type(v).table"),
    (Checked(), "v.table, isinstance({}, type(v)), isinstance([], type(v))"),
]


@pytest.mark.parametrize(("value", "check"), INSTANCES, ids=lambda v: type(v).__name__)
async def test_an_instance_crosses_as_what_it_is(kernel: Bridge, value: Any, check: str) -> None:
    """L3, L4. There, back, and there again."""
    expected = repr(eval(check, {"v": value}))
    await kernel.push(v=value)
    assert await kernel.pull(f"repr(({check}))") == repr(eval(f"({check})", {"v": value}))
    back = await kernel.pull("v")
    assert type(back) is type(value)
    assert repr(eval(check, {"v": back})) == expected
    await kernel.push(w=back)
    assert await kernel.pull("type(v) is type(w)")


class Colour(enum.Enum):
    RED = 1
    CRIMSON = 1  # noqa: PIE796 - an alias

    @property
    def lower(self) -> str:
        return self.name.lower()


class Planet(enum.Enum):
    EARTH = (5.9, 6.3)

    def __init__(self, mass: float, radius: float) -> None:
        self.mass, self.radius = mass, radius


class Coordinate(bytes, enum.Enum):
    X = (0, "first")
    Y = (1, "second")

    def __new__(cls, value: int, label: str) -> Coordinate:
        made = bytes.__new__(cls, [value])
        made._value_, made.label = value, label  # type: ignore[attr-defined]
        return made


class Word(str, enum.Enum):  # noqa: UP042 - as many programs have it
    A = "a"
    ALPHA = "a"  # noqa: PIE796


class Access(enum.Flag):
    READ, WRITE = 4, 2
    BOTH = 6


class Bits(enum.IntFlag, boundary=enum.KEEP):
    A, B, C = 11, 37, 389


class Day(datetime.date, enum.Enum):
    FIRST = (2020, 1, 1)


class Action(enum.Enum):
    ADD = functools.partial(lambda x: x + 1)

    @classmethod
    def _missing_(cls, value: object) -> Action:
        return cls.ADD


class Sorting(enum.EnumMeta):
    def __new__(mcs, name: str, bases: Any, namespace: Any, **options: Any) -> Any:
        made = super().__new__(mcs, name, bases, namespace, **options)
        assert [one.value for one in made] == sorted(one.value for one in made)
        return made

    def last(cls) -> Any:
        return [*cls][-1]


class Size(enum.IntEnum, metaclass=Sorting):
    S, M = 1, 2


class Naming(enum.EnumMeta):
    @property
    def label(cls) -> str:
        return "of the metaclass"


class Weight(enum.Enum, metaclass=Naming):
    __name__ = "weight"
    HEAVY = 1

    @property
    def label(self) -> str:  # type: ignore[override]
        return f"{self.name} of {len(Weight)}"


ENUMS: list[tuple[Any, str]] = [
    (Colour.CRIMSON, "v.lower, type(v).RED is v, list(type(v).__members__), type(v)(1) is v"),
    (Planet.EARTH, "v.mass, v.radius, type(v)((5.9, 6.3)) is v"),
    (Coordinate.Y, "bytes(v), v.label, v.value, type(v)(1) is v"),
    (Word.ALPHA, "v == 'a', v.upper(), v.name, type(v)('a') is v"),
    (Access.READ, "v | type(v).WRITE is type(v).BOTH, ~v, v.value"),
    (Access.READ | Access.WRITE, "v is type(v).BOTH, type(v).READ in v"),
    (Bits.B, "v, int(v), type(v)(1024)"),
    (Bits.A | Bits.C, "v, int(v)"),
    (Day.FIRST, "v.year, v.isoformat()"),
    (Action.ADD, "v.value(4), type(v)(0) is v"),
    (Size.M, "v + 1, type(v).last() is v, type(type(v)).__name__"),
    (Weight.HEAVY, "v.label, type(v).label, v.__name__, type(v).__name__, [*type(v)]"),
]


@pytest.mark.parametrize(("member", "check"), ENUMS, ids=lambda v: type(v).__name__)
async def test_a_member_of_an_enum_crosses_as_what_it_is(
    kernel: Bridge, member: Any, check: str
) -> None:
    """L3. Aliases, contents and attributes of members, and the identity of members."""
    expected = repr(eval(check, {"v": member}))
    await kernel.push(v=member)
    assert await kernel.pull(f"repr(({check}))") == expected
    back = await kernel.pull("v")
    assert back == member
    assert back is member or isinstance(member, enum.Flag)


# ---------------------------------------------------------------- names


@functools.lru_cache(maxsize=3)
def price(x: int) -> int:
    return x * 2


@functools.cache
def fibonacci(n: int) -> int:
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


def total(items: list[int]) -> int:
    return sum(price(item) for item in items)


@functools.singledispatch
def kind(value: object) -> Any:
    return "object"


@kind.register
def _(value: int) -> Any:
    return "int"


@kind.register
def _(value: list) -> Any:  # type: ignore[type-arg]
    return [kind(item) for item in value]


class Shop:
    @functools.lru_cache
    def price(self, x: int) -> int:
        return x * 3

    @functools.singledispatchmethod
    def kind(self, value: object) -> str:
        return "object"

    @kind.register
    def _(self, value: int) -> str:
        return "int"


UserId = typing.NewType("UserId", int)
Bound = typing.TypeVar("Bound", bound=Shop)
P = typing.ParamSpec("P", covariant=True)
Ts = typing.TypeVarTuple("Ts")


def typed(function: typing.Callable[P, UserId]) -> UserId:
    return UserId(5)


NAMED: dict[str, tuple[Any, str]] = {
    "price": (price, "v(2), v.cache_info().maxsize, v.__name__, v.cache_parameters()"),
    "total": (total, "v([1, 2])"),
    "fibonacci": (fibonacci, "v(30)"),
    "kind": (kind, "v(1), v('s'), v([1, 'a']), v.__name__"),
    "Shop": (Shop(), "v.price(2), v.kind(1), v.kind('a')"),
    "UserId": (UserId, "v(3), v.__supertype__, v.__name__"),
    "Bound": (Bound, "repr(v), v.__bound__.__name__"),
    "P": (P, "repr(v), v.__covariant__, v.args"),
    "Ts": (Ts, "repr(v)"),
    "typed": (typed, "v(None)"),
    "partial": (functools.partial(total, [3]), "v()"),
    "alias": (typing.Callable[P, T], "repr(v)"),
}


@pytest.mark.parametrize("name", NAMED)
async def test_what_has_a_name_here_is_not_another_object_of_that_name(
    kernel: Bridge, name: str
) -> None:
    """L2. The kernel has its own objects of these names, in the same module."""
    value, check = NAMED[name]
    await kernel.run(
        f"import sys, types; m = sys.modules[{__name__!r}] = types.ModuleType({__name__!r})\n"
        f"m.{name} = {name} = 'the kernel has another object of this name'"
    )
    await kernel.push(v=value)
    assert await kernel.pull(f"repr(({check}))") == repr(eval(check, {"v": value}))
    back = await kernel.pull("v")
    assert repr(eval(check, {"v": back})) == repr(eval(check, {"v": value}))
    if isinstance(value, (typing.NewType, typing.TypeVar, typing.ParamSpec, typing.TypeVarTuple)):
        assert back is value
    await kernel.run(f"del sys.modules[{__name__!r}]")


@pytest.mark.parametrize("value", [P, UserId], ids=["P", "UserId"])
async def test_the_first_object_of_a_kernel_is_itself_again(value: Any) -> None:
    """L2. Nothing has imported cloudpickle in the kernel yet, which knows identities."""
    async with Bridge.launch() as bridge:
        await bridge.push(v=value)
        assert await bridge.pull("v") is value


MADE_THERE = """
import functools, typing
@functools.lru_cache
def price(x): return x * 2
@functools.singledispatch
def kind(value): return "object"
@kind.register
def _(value: int): return "int"
UserId = typing.NewType("UserId", int)
Bound = typing.TypeVar("Bound", bound=int)
P = typing.ParamSpec("P")
Ts = typing.TypeVarTuple("Ts")
partial = functools.partial(price, 3)
"""
CHECKS = {
    "price": "v(2), v.__name__, v.cache_parameters()",
    "kind": "v(1), v('a'), v.__name__",
    "UserId": "v(3), v.__supertype__, v.__name__",
    "Bound": "repr(v), v.__bound__",
    "P": "repr(v), v.args",
    "Ts": "repr(v)",
    "partial": "v()",
}


@pytest.mark.parametrize("home", ["__main__", "made_there"])
async def test_what_a_kernel_defines_is_not_another_object_of_that_name(
    kernel: Bridge, home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L2. This process and the target of a handoff have other objects of these names."""
    others = dict.fromkeys(CHECKS, "another object of this name")
    module = types.ModuleType(home) if home == "made_there" else sys.modules[home]
    monkeypatch.setitem(sys.modules, home, module)
    for name, value in others.items():
        monkeypatch.setattr(module, name, value, raising=False)
    make = f"import sys, types; m = sys.modules.setdefault({home!r}, types.ModuleType({home!r}))\n"
    await kernel.run(make + f"exec({MADE_THERE!r}, m.__dict__)")
    async with Bridge.launch() as target:
        await target.run(make + f"m.__dict__.update({others!r})")
        for name, check in CHECKS.items():
            await kernel.run(f"v = m.{name}")
            expected = await kernel.pull(f"repr(({check}))")
            assert repr(eval(check, {"v": await kernel.pull("v")})) == expected
            await kernel.handoff("v", to=target)
            assert await target.pull(f"repr(({check}))") == expected
            assert await target.pull(f"m.{name}") == others[name]
    await kernel.run("sys.modules.pop('made_there', None)")


class Named:
    def __reduce__(self) -> str:
        return "NAMED_OBJECT"


NAMED_OBJECT = Named()
vectorized = np.frompyfunc(lambda x: x, 1, 1)


@pytest.mark.parametrize(
    "value",
    [
        NAMED_OBJECT,
        [vectorized],
        lambda: NAMED_OBJECT,
        sys.modules["__main__"],
        sys.float_info,
        type(iter([])),
    ],
    ids=[
        *("object", "ufunc", "global of a function", "the module __main__"),
        *("object of a type without a name", "type without a name"),
    ],
)
async def test_what_crosses_by_name_only_is_refused_before_it_is_sent(
    kernel: Bridge, value: Any
) -> None:
    """L2."""
    with pytest.raises(
        EncodeError, match="^v.* (another (object|module) in|no name by which) the other process"
    ):
        await kernel.push(v=value)
    assert await kernel.exists("v") is False


async def test_the_kernel_refuses_to_send_a_name_of_its_own(kernel: Bridge) -> None:
    """L2, from the kernel."""
    await kernel.run("class N:\n    def __reduce__(self): return 'OBJECT'\nOBJECT = N()")
    with pytest.raises(RemoteError, match="OBJECT cannot be pickled: .*another object"):
        await kernel.pull("OBJECT")


def test_a_scripts_own_functions_are_called_and_not_the_kernels(tmp_path: Path) -> None:
    """L2, with the ``__main__`` of two processes."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import functools, typing
        from bridgehead import SyncBridge
        UserId = typing.NewType("UserId", int)
        @functools.lru_cache
        def price(x): return x * 2
        def total(xs) -> UserId: return sum(price(x) for x in xs)
        with SyncBridge.launch() as bridge:
            bridge.run("UserId = None\\ndef price(x): return 1000")
            print(bridge.call(total, [1, 2]), bridge.pull("price(1)"))
        """)
    )
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["6", "1000"]


# ---------------------------------------------------------------- variables of closures


def counting() -> tuple[Callable[[], int], ...]:
    """Return two functions that share a variable."""
    number = 0

    def increase() -> int:
        nonlocal number
        number += 1
        return number

    return increase, lambda: number


def even_and_odd() -> Callable[[int], bool]:
    def even(n: int) -> bool:
        return n == 0 or odd(n - 1)

    def odd(n: int) -> bool:
        return n != 0 and even(n - 1)

    return even


class Account:
    """Its methods share a variable with a function outside."""

    def __init__(self) -> None:
        balance = 10

        def pay(amount: int) -> int:
            nonlocal balance
            balance -= amount
            return balance

        self.pay, self.balance = pay, lambda: balance


CLOSURES: dict[str, tuple[Callable[[], Any], str]] = {
    "two functions": (counting, "v[0](), v[0](), v[1]()"),
    "functions of an instance": (Account, "v.pay(3), v.balance(), v.pay(1)"),
    "functions that call each other": (even_and_odd, "v(10), v(7)"),
}


@pytest.mark.parametrize("case", CLOSURES)
async def test_functions_that_share_a_variable_share_it_again(kernel: Bridge, case: str) -> None:
    """L3, there and back."""
    make, check = CLOSURES[case]
    expected = eval(f"({check})", {"v": make()})
    await kernel.push(v=make(), w=make())
    assert await kernel.pull(f"({check})") == expected
    assert eval(f"({check})", {"v": await kernel.pull("w")}) == expected


# ---------------------------------------------------------------- modules

SOURCE = """
import math, functools, enum, typing
def f(y): return x + y
class C:
    def g(self): return f(1)
class E(enum.Enum):
    A = 1
cached = functools.lru_cache(f)
U = typing.NewType("U", int)
x = 1
"""


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Give a module that is in ``sys.modules`` and in no file, with a submodule."""
    module, sub = types.ModuleType("made_here"), types.ModuleType("made_here.sub")
    for one in (module, sub):
        monkeypatch.setitem(sys.modules, one.__name__, one)
        exec(SOURCE, one.__dict__)
    module.sub, module.me = sub, module  # type: ignore[attr-defined]
    return module


MODULE_USES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "the module": (lambda m: m, "v.f(1), v.C().g(), v.me is v, v.sub.f(2), v.E.A.value"),
    "its function": (lambda m: m.f, "v(1)"),
    "an instance": (lambda m: m.C(), "v.g()"),
    "a member": (lambda m: m.E.A, "v.value, v.name"),
    "a cached function": (lambda m: m.cached, "v(1)"),
    "a new type": (lambda m: m.U, "v(1), v.__name__"),
    "a function of the submodule": (lambda m: m.sub.f, "v(1)"),
    "a function with the module": (lambda m: lambda: m.sub.f(3), "v()"),
    "both": (lambda m: {"m": m, "f": m.f}, "v['f'](1), v['m'].f(1)"),
}


@pytest.mark.parametrize("use", MODULE_USES)
async def test_a_module_made_on_the_spot_crosses_by_value(
    kernel: Bridge, made: types.ModuleType, use: str
) -> None:
    """L12."""
    get, check = MODULE_USES[use]
    await kernel.push(v=get(made))
    expected = eval(f"({check})", {"v": get(made)})
    assert await kernel.pull(f"({check})") == expected
    assert await kernel.pull("'made_here' in __import__('sys').modules") is False
    assert eval(f"({check})", {"v": await kernel.pull("v")}) == expected


async def test_a_module_with_the_name_of_another_is_not_that_one(kernel: Bridge) -> None:
    """L12, L2."""
    module: Any = types.ModuleType("json")
    module.x = 5
    await kernel.push(v=module, real=importlib.import_module("json"))
    assert await kernel.pull("v.x, hasattr(v, 'dumps'), hasattr(real, 'dumps')") == (5, False, True)


async def test_a_registered_package_crosses_with_its_submodules(
    kernel: Bridge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L12. The user gave the package to cloudpickle."""
    package = tmp_path / "registered_here"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "inner" / "__init__.py").write_text(SOURCE)
    (package / "user.py").write_text(
        "from registered_here import inner\ndef h(): return inner.f(5)"
    )
    monkeypatch.syspath_prepend(tmp_path)
    inner, user = map(importlib.import_module, ("registered_here.inner", "registered_here.user"))
    registered_here: Any = sys.modules["registered_here"]
    cloudpickle.register_pickle_by_value(registered_here)
    try:
        await kernel.push(
            h=user.h, c=inner.C(), e=inner.E.A, cached=inner.cached, m=registered_here
        )
        assert await kernel.pull("h(), c.g(), e.value, cached(1)") == (6, 2, 1, 2)
        assert await kernel.pull("m.inner.f(4), m.user.h()") == (5, 6)
        assert await kernel.pull("type(c)") is inner.C
        assert await kernel.call(lambda: user.h() + inner.f(1)) == 8
    finally:
        cloudpickle.unregister_pickle_by_value(registered_here)
        for name in ("registered_here", "registered_here.inner", "registered_here.user"):
            del sys.modules[name]
