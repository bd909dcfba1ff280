"""Objects that cloudpickle can pickle cross both ways and come back unchanged.

Each case runs on a loopback and on a real kernel, over two lanes.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import importlib
import importlib.util
import math
import sys
import textwrap
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import cloudpickle
import numpy as np
import pandas as pd
import pytest

from bridgehead import Bridge, NotSupported, RemoteError, UntrustedPayload

# A kernel cannot import test modules; their functions and classes are pickled by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

PLAIN = [
    None,
    True,
    0,
    -(10**300),
    3.25,
    math.inf,
    1 + 2j,
    "",
    "naïve ☃ 𝔘\x00\n'\"\\",
    b"\x00\xff" * 10,
    bytearray(b"abc"),
    [],
    (1, (2, [3, {"four": {5}}])),
    {"a": [1, 2], 3: None, (4, 5): {"six": frozenset({7})}},
    collections.OrderedDict(b=1, a=2),
    collections.deque([1, 2], maxlen=3),
    collections.Counter("hello"),
    datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.UTC),
    datetime.timedelta(days=-1, microseconds=1),
    decimal.Decimal("1e-400"),
    fractions.Fraction(1, 3),
    uuid.UUID(int=5),
    range(3, 10, 2),
    slice(1, None, 2),
    Ellipsis,
    Path("a/b"),
    int,
    len,
    math.sin,
    ValueError("no", 1),
    {f"key_{i}": [i, i + 0.5, str(i)] for i in range(10_000)},
]


@pytest.mark.parametrize("value", PLAIN, ids=lambda v: f"{type(v).__name__}-{str(v)[:12]!a}")
async def test_plain_data_crosses_unchanged(bridge: Bridge, value: Any) -> None:
    await bridge.push(x=value)
    back = await bridge.pull("x")
    assert type(back) is type(value)
    assert repr(back) == repr(value) if isinstance(value, Exception) else back == value
    assert await bridge.pull("type(x).__qualname__") == type(value).__qualname__


def structured() -> np.ndarray[Any, Any]:
    array = np.zeros(3, dtype=[("name", "U8"), ("at", "f8", (2,)), ("n", ">i4")])
    array["name"] = ["a", "bb", "ccc"]
    array["n"] = [1, 2, 3]
    return array


def read_only() -> np.ndarray[Any, Any]:
    array = np.arange(5000.0)
    array.flags.writeable = False
    return array


DTYPES = "?bBhHiIlLqQefdgFDG"
ARRAYS = {
    **{f"dtype-{code}": np.arange(12).astype(code).reshape(3, 4) for code in DTYPES},
    "big-endian": np.arange(5, dtype=">f8"),
    "datetime64": np.array(["2020-01-01", "NaT"], dtype="datetime64[ns]"),
    "timedelta64": np.arange(3).astype("timedelta64[s]"),
    "str": np.array(["a", "ünï"]),
    "bytes": np.array([b"a", b"bc"]),
    "void": np.zeros(2, dtype="V7"),
    "structured": structured(),
    "object": np.array([1, "two", [3]], dtype=object),
    "strided": np.arange(10_000).reshape(100, 100)[::3, ::-2],
    "transposed": np.arange(10_000.0).reshape(50, 200).T,
    "fortran": np.asfortranarray(np.arange(20_000.0).reshape(100, 200)),
    "zero-size": np.empty((0, 3)),
    "zero-dimensional": np.array(7.5),
    "read-only": read_only(),
    "large": np.arange(300_000.0),
    "masked": np.ma.masked_array(np.arange(4.0), mask=[0, 1, 0, 1], fill_value=-1),
    "scalar": np.float32(2.5),
    "recarray": np.rec.array([(1, 2.0), (3, 4.0)], names="a,b"),
}


@pytest.mark.parametrize("name", ARRAYS)
async def test_numpy_arrays_cross_unchanged(bridge: Bridge, name: str) -> None:
    array = ARRAYS[name]
    await bridge.push(x=array)
    back = await bridge.pull("x")
    assert type(back) is type(array)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    np.testing.assert_array_equal(np.asarray(back), np.asarray(array))
    if isinstance(array, np.ndarray):
        assert back.flags.writeable == array.flags.writeable
        assert back.flags.aligned
        contiguous = array.flags.c_contiguous or array.flags.f_contiguous
        if contiguous:
            assert back.flags.f_contiguous == array.flags.f_contiguous
    if isinstance(array, np.ma.MaskedArray):
        assert np.array_equal(back.mask, array.mask)
        assert back.fill_value == array.fill_value
    flags = "(x.flags.writeable, x.flags.f_contiguous)"
    if isinstance(array, np.ndarray) and (array.flags.c_contiguous or array.flags.f_contiguous):
        in_kernel = await bridge.pull(flags)
        assert in_kernel == (array.flags.writeable, array.flags.f_contiguous)


async def test_what_arrives_shares_no_memory_with_what_was_sent(bridge: Bridge) -> None:
    array = np.zeros(300_000)
    await bridge.push(x=array, y=array)
    array[:] = 1
    pulled, again = await bridge.pull("x", "x")
    assert pulled.sum() == 0
    pulled[:] = 2
    assert (await bridge.pull("x.sum()")) == 0
    assert again is pulled  # one pull is one pickle, so a shared object stays shared
    assert await bridge.pull("x is y")


async def test_a_forked_child_writes_into_its_own_copy(bridge: Bridge) -> None:
    if bridge.info.transport == "loopback":
        return  # the kernel's process is this one
    await bridge.push(array=np.zeros(300_000))
    await bridge.run("import os\nif os.fork() == 0:\n    array[0] = 42\n    os._exit(0)\nos.wait()")
    assert await bridge.pull("array[0]") == 0


FRAMES = {
    "mixed": pd.DataFrame(
        {
            "f": [1.5, None, 3.0],
            "i": [1, 2, 3],
            "s": ["a", "ü", None],
            "c": pd.Categorical(["x", "y", "x"]),
            "t": pd.date_range("2020-01-01", periods=3, tz="Europe/Berlin"),
            "b": [True, False, True],
            "n": pd.array([1, None, 3], dtype="Int64"),
            "p": pd.period_range("2020", periods=3, freq="M"),
        }
    ),
    "multi-index": pd.DataFrame(
        np.arange(12.0).reshape(4, 3),
        index=pd.MultiIndex.from_product([["a", "b"], [1, 2]], names=["k", "n"]),
    ),
    "empty": pd.DataFrame({"a": pd.Series(dtype="float64")}),
    "large": pd.DataFrame(np.arange(400_000.0).reshape(-1, 4), columns=list("abcd")),
}


@pytest.mark.parametrize("name", FRAMES)
async def test_pandas_frames_cross_unchanged(bridge: Bridge, name: str) -> None:
    frame = FRAMES[name]
    frame.attrs["source"] = "client"
    await bridge.push(df=frame)
    back = await bridge.pull("df")
    pd.testing.assert_frame_equal(back, frame)
    assert back.attrs == frame.attrs
    back.iloc[:, 0] = back.iloc[:, 0]  # the frame is writable
    series = await bridge.pull("df.iloc[:, 0]")
    pd.testing.assert_series_equal(series, frame.iloc[:, 0])


@pytest.mark.objects
async def test_a_torch_tensor_crosses(bridge: Bridge) -> None:
    torch = importlib.import_module("torch")
    tensor = torch.arange(300_000.0).reshape(300, 1000)
    await bridge.push(x=tensor)
    assert torch.equal(await bridge.pull("x"), tensor)


class Account:
    """A class with state, a property, a class attribute and a subclass."""

    opened = 0

    def __init__(self, owner: str, balance: int) -> None:
        self.owner, self.balance = owner, balance
        type(self).opened += 1

    def add(self, amount: int) -> Account:
        self.balance += amount
        return self

    @property
    def rich(self) -> bool:
        return self.balance > 100


class Savings(Account):
    def add(self, amount: int) -> Account:
        return super().add(amount * 2)


class Colour(enum.Enum):
    RED = 1
    BLUE = "b"


@dataclasses.dataclass(frozen=True)
class Point:
    x: float
    y: float = 0.0


Pair = collections.namedtuple("Pair", "left right")


async def test_functions_cross(bridge: Bridge) -> None:
    offset = 40

    def closure(x: int) -> int:
        return x + offset

    def generator(n: int) -> Any:
        yield from range(n)

    async def coroutine() -> int:
        return 5

    def factorial(n: int) -> int:
        return 1 if n < 2 else n * factorial(n - 1)

    await bridge.push(
        closure=closure, generator=generator, coroutine=coroutine, factorial=factorial,
        double=lambda x: 2 * x, nested=lambda: (lambda: closure(1)),
    )  # fmt: skip
    values = await bridge.pull(
        "closure(2)", "list(generator(3))", "factorial(5)", "double(4)", "nested()()"
    )
    assert values == (42, [0, 1, 2], 120, 8, 41)
    back = await bridge.pull("closure")
    assert back(2) == 42
    import asyncio

    assert await asyncio.gather((await bridge.pull("coroutine"))()) == [5]


async def test_classes_cross_both_ways_and_keep_their_identity(bridge: Bridge) -> None:
    account = Savings("ann", 10)
    await bridge.push(account=account, Savings=Savings, point=Point(1.0), colour=Colour.BLUE)
    await bridge.run("account.add(100)")
    assert await bridge.pull("account.rich, isinstance(account, Savings)") == (True, True)
    back, point, colour, pair = await bridge.pull("account", "point", "colour", "account.add")
    assert type(back) is Savings
    assert (back.owner, back.balance) == ("ann", 210)
    assert account.balance == 10
    assert point == Point(1.0)
    assert type(point) is Point
    assert colour is Colour.BLUE
    assert pair(1).balance == 212
    await bridge.push(again=back)
    assert await bridge.pull("type(again) is type(account) is Savings")


async def test_a_class_defined_in_the_kernel_crosses(bridge: Bridge) -> None:
    await bridge.run("class Model:\n    def __init__(self, w): self.w = w\nmodel = Model([1, 2])")
    model = await bridge.pull("model")
    assert (type(model).__name__, model.w) == ("Model", [1, 2])
    await bridge.push(same=model)
    assert await bridge.pull("type(same) is Model")


async def test_shared_and_recursive_structures_keep_their_shape(bridge: Bridge) -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    tree: dict[str, Any] = {"self": None, "pair": Pair(loop, loop)}
    tree["self"] = tree
    await bridge.push({"tree": tree, "loop": loop})
    assert await bridge.pull("tree['self'] is tree and tree['pair'].left is loop")
    back, again = await bridge.pull("tree", "loop")
    assert back["self"] is back
    assert back["pair"].left is back["pair"].right is again
    assert again[1] is again


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Make a module that only this process can import."""
    (tmp_path / "only_in_client.py").write_text(
        textwrap.dedent("""
        FACTOR = 3
        def triple(x):
            return FACTOR * x
        class Box:
            def __init__(self, x): self.x = x
            def tripled(self): return triple(self.x)
        """)
    )
    spec = importlib.util.spec_from_file_location("only_in_client", tmp_path / "only_in_client.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "only_in_client", module)
    spec.loader.exec_module(module)
    return module


async def test_by_value_sends_the_users_own_module(bridge: Bridge, own_module: ModuleType) -> None:
    await bridge.push(box=own_module.Box(2), by_value=[own_module])
    assert await bridge.pull("box.tripled()") == 6
    # The registration lasts only for this push.
    assert "only_in_client" not in cloudpickle.list_registry_pickle_by_value()


async def test_a_module_registered_by_the_user_stays_registered(
    bridge: Bridge, own_module: ModuleType
) -> None:
    cloudpickle.register_pickle_by_value(own_module)
    try:
        await bridge.push(box=own_module.Box(2), by_value=[own_module])
        assert "only_in_client" in cloudpickle.list_registry_pickle_by_value()
    finally:
        cloudpickle.unregister_pickle_by_value(own_module)


@pytest.mark.parametrize("chunks", [1, 2, 3.5])
async def test_an_object_longer_than_one_message_crosses_in_chunks(
    bridge: Bridge, chunks: float
) -> None:
    chunk = bridge._connection.remote.lane.chunk
    array = np.random.default_rng(1).integers(0, 255, int(chunk * chunks), dtype=np.uint8)
    small = [np.arange(1000.0) + i for i in range(20)]
    transfer = await bridge.push(array=array, small=small)
    assert transfer.bytes > array.nbytes
    assert await bridge.pull("int(array.sum())") == int(array.sum())
    back, small_back = await bridge.pull("array", "small")
    assert np.array_equal(back, array)
    assert all(np.array_equal(a, b) for a, b in zip(small, small_back, strict=True))


async def test_call_runs_a_function_in_the_kernel_and_returns_its_value(bridge: Bridge) -> None:
    import os

    def work(a: int, *, b: Any) -> Any:
        return a + sum(b), os.getpid()

    value, pid = await bridge.call(work, 1, b=np.arange(4))
    assert value == 7
    assert pid == bridge.info.pid
    await bridge.push(data=[1, 2, 3])
    data = bridge.ref("data")
    assert await bridge.call(lambda pair: pair[0] + pair[1][0], (10, [data[2]])) == 13
    kept = await bridge.call(lambda d: {"n": len(d)}, data, keep="kept")
    assert await kept["n"].pull() == 3
    assert await bridge.pull("kept") == {"n": 3}
    with pytest.raises(RemoteError, match="ZeroDivisionError") as caught:
        await bridge.call(lambda: 1 // 0)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


async def test_a_pushed_ref_stands_for_the_kernels_object(bridge: Bridge) -> None:
    await bridge.push(data={"k": [1]})
    await bridge.push(alias=bridge.ref("data['k']"), pair=(1, bridge.ref("data")))
    assert await bridge.pull("alias is data['k'] and pair[1] is data")


async def test_names_lists_types_and_sizes_without_running_user_code(bridge: Bridge) -> None:
    class Trap:
        def __repr__(self) -> str:
            raise RuntimeError("its repr was computed")

        __len__ = __sizeof__ = __repr__  # type: ignore[assignment]
        shape = nbytes = property(__repr__)

    await bridge.push(
        a=np.zeros((3, 4)), df=FRAMES["mixed"], n=5, trap=Trap(), text="four", _private=1
    )
    listed = {name.name: name for name in await bridge.names()}
    assert set(listed) == {"a", "df", "n", "text", "trap"}
    assert (listed["a"].type, listed["a"].shape, listed["a"].bytes) == ("numpy.ndarray", (3, 4), 96)
    assert (listed["df"].type, listed["df"].shape) == ("pandas.DataFrame", (3, 8))
    assert listed["df"].bytes is not None
    assert (listed["n"].type, listed["n"].shape, listed["n"].len) == ("int", None, None)
    assert listed["text"].len == 4
    assert listed["trap"].bytes is None
    assert listed["trap"].type.endswith("Trap")
    assert [name.name for name in await bridge.names("d?")] == ["df"]
    assert [name.name for name in await bridge.names("_priv*")] == ["_private"]


@pytest.mark.slow
async def test_names_of_a_crowded_kernel_need_a_pattern(bridge: Bridge) -> None:
    await bridge.run("globals().update({f'name_{n}': n for n in range(100_001)})\ndf = 1")
    with pytest.raises(NotSupported, match=r"100,000 names match '\*'.*; give a pattern"):
        await bridge.names()
    with pytest.raises(NotSupported, match="give a pattern"):
        await bridge.names("name*", types=["int"])
    assert [name.name for name in await bridge.names("df*")] == ["df"]
    assert len(await bridge.names("name_99*")) == 1111
    async with bridge.watch_names() as updates:
        with pytest.raises(NotSupported, match="give a pattern"):
            await anext(updates)
    await bridge.run("del name_0, name_1")
    assert len(await bridge.names()) == 100_000
    await bridge.run("for n in range(2, 100_001): del globals()[f'name_{n}']")


async def test_names_have_previews_and_are_filtered(bridge: Bridge) -> None:
    class Hostile:
        def __repr__(self) -> str:
            raise AssertionError

    values = {"n": 1, "rows": [1, "a", [2]], "hostile": Hostile(), "df": pd.DataFrame({"a": [1]})}
    await bridge.push(values)
    await bridge.run("import json, sys")
    found = {name.name: name for name in await bridge.names(preview=True)}
    assert {name: one.preview for name, one in found.items()} == {
        "n": "1",
        "rows": "[1, 'a', [2]]",
        "hostile": None,
        "df": "columns 'a'",
    }
    assert "1" in repr(found["n"])
    listed = await bridge.names(types=["DataFrame", "int"])
    assert [name.name for name in listed] == ["df", "n"]
    assert [name.name for name in await bridge.names(types=["pandas.DataFrame"])] == ["df"]
    with_modules = [name.name for name in await bridge.names("[js]*", modules=True)]
    assert with_modules == ["json", "sys"]
    assert all(name.preview is None for name in listed)
    wrong: Any = "int"
    with pytest.raises(TypeError, match="types= takes a list"):
        await bridge.names(types=wrong)


async def test_deleted_names_do_not_exist(bridge: Bridge) -> None:
    await bridge.push(a=1, b=2, c=3)
    await bridge.delete("a", "b", "a")
    assert [await bridge.exists(name) for name in "abc"] == [False, False, True]
    assert not await bridge.exists("len")  # builtins are not in the namespace


async def test_operations_take_effect_in_the_order_of_their_calls(bridge: Bridge) -> None:
    import asyncio

    chunk = bridge._connection.remote.lane.chunk
    await bridge.push(seen=[])
    large = np.zeros(2 * chunk, dtype=np.uint8)
    calls = [bridge.push(x=large), *(bridge.push(x=i) for i in range(100))]
    pulls = [bridge.pull("x")]
    results = await asyncio.gather(*calls, *pulls)
    assert results[-1] == 99


NESTED = """
def nested(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value

def each(levels):
    yield nested(levels)

deep = {levels: nested(levels) for levels in (100, 250, 500, 5000)}
d100, d250, d500, d5000 = deep.values()
"""


@pytest.mark.parametrize("trust", ["pickle", "data"])
async def test_a_value_that_a_cell_nested_too_deeply_is_named(
    kernel: Bridge, trust: Literal["pickle", "data"]
) -> None:
    """Row L7: whichever way it leaves the kernel, and whichever end refuses it."""
    file = str(kernel.info.connection_file)
    async with (
        Bridge.attach(file, trust=trust) as bridge,
        Bridge.launch(trust=trust) as target,
    ):
        await bridge.run(NESTED)

        async def watched(levels: int) -> Any:
            async with bridge.watch("d100", f"d{levels}") as values:
                return await anext(values)

        async def iterated(levels: int) -> Any:
            async with bridge.iterate(f"each({levels})") as items:
                return await anext(items)

        ways: dict[str, Callable[[int], Awaitable[Any]]] = {
            r"deep\[%d\]": lambda levels: bridge.pull(f"deep[{levels}]"),
            "d%d": lambda levels: bridge.pull("d100", f"d{levels}", timeout=60),
            "d%d ": lambda levels: bridge.handoff("d100", f"d{levels}", to=target),
            "d%d cannot": watched,
            r"(an item of each\(%d\)|the item)": iterated,
            "d%d can": lambda levels: bridge.run("", pull=["d100", f"d{levels}"]),
        }
        for levels in (100, 250, 500, 5000):
            for name, way in ways.items():
                if levels == 100 or (levels == 250 and trust == "pickle"):
                    await way(levels)
                    continue
                error = UntrustedPayload if trust == "data" else RemoteError
                why = r"cross as data: .*nested (too|more)|pickled: .*(deep|recursion)"
                with pytest.raises(error, match=f"{name.replace('%d', str(levels))} ?.*({why})"):
                    await way(levels)
        assert await bridge.pull("len(d100)") == 1
        assert not await target.exists("d500")


@pytest.mark.slow
async def test_a_bytearray_can_grow_after_it_crossed(bridge: Bridge) -> None:
    """A frame is a view of it meanwhile, and a bytearray with a view cannot grow."""
    for size in (100, 1 << 20, 40 << 20):
        value = bytearray(size)
        await bridge.push(value=value, array=np.arange(5000).astype("M8[s]"))
        value.append(1)
        back, text = await bridge.pull("value", "'a' * len(value)")
        assert (len(back), len(text)) == (size, size)
        back.append(2)
        await bridge.run("value.append(3)")
    assert await bridge.pull("array.dtype.str, len(array)") == ("<M8[s]", 5000)
