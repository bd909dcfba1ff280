"""Kernels of other Pythons, of ipykernel 6, and with nothing but ipykernel.

Rule: every test checks what the kernel's namespace contains afterwards, as seen by a new client.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import datetime
import decimal
import fractions
import functools
import importlib
import json
import math
import operator
import os
import pathlib
import signal
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient

from bridgehead import (
    Bridge,
    DecodeError,
    IncompatiblePython,
    IntegrityError,
    KernelDied,
    KernelRestarted,
    MissingInKernel,
    RemoteError,
    ReplyLost,
)
from bridgehead._transports.dispatch import Dispatcher
from support.elsewhere import ENVIRONMENTS, HERE, NEWEST, OLDEST, TENTH, Elsewhere, Environment
from support.kit import at_work, endless_cell, restart_beside_a_cell, until
from support.look import look

pytestmark = pytest.mark.elsewhere


def on(*names: str) -> pytest.MarkDecorator:
    """Run the test with ``live`` as a kernel of each of these environments."""
    return pytest.mark.parametrize("kernel_name", names, indirect=True)


async def seen(bridge: Bridge) -> dict[str, str]:
    return await look(bridge.info.connection_file)


@contextlib.asynccontextmanager
async def refused(bridge: Bridge, kind: type[Exception], match: str) -> AsyncIterator[Any]:
    """Expect the error, an unchanged namespace, and that the next operation works."""
    before = await seen(bridge)
    with pytest.raises(kind, match=match) as caught:
        yield caught
    await unchanged(bridge, before)


async def unchanged(bridge: Bridge, before: dict[str, str]) -> None:
    """Check that the namespace is unchanged and that the next operation works."""
    assert await seen(bridge) == before
    await bridge.push(next=[1, 2])
    assert await bridge.pull("next") == [1, 2]
    await bridge.delete("next")
    assert await seen(bridge) == before


@contextlib.asynccontextmanager
async def nothing_sent(bridge: Bridge) -> AsyncIterator[None]:
    """Check that the block sends no request: the kernel is never busy between two cells."""
    await bridge.run("pass")
    stream = bridge.messages()
    yield
    await bridge.run("pass")
    busy = 0
    async for message in stream:
        busy += message.content.get("execution_state") == "busy"
        if message.type == "execute_input":
            break
    assert busy == 1  # the second cell


@pytest.fixture
def client_module(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> ModuleType:
    """Make a module that only this process can import, no kernel."""
    name = f"client_module_{uuid.uuid4().hex[:8]}"
    (tmp_path / f"{name}.py").write_text(
        "class Point:\n"
        "    def __init__(self, x):\n"
        "        self.x = x\n"
        "    def __eq__(self, other):\n"
        "        return type(self) is type(other) and self.x == other.x\n"
        "    def __repr__(self):\n"
        "        return 'Point(%r)' % self.x\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module(name)


def code() -> dict[str, Any]:
    """Return values that contain code objects, each in another way."""
    offset = 3

    class Main:
        def double(self) -> int:
            return 2

    Main.__module__, Main.__qualname__ = "__main__", "Main"
    return {
        "lambda": lambda x: x + 1,
        "closure": functools.partial(lambda x, y: x + y + offset, 1),
        "class": Main,
        "instance": Main(),
        "nested": {"deep": [1, (2, {"deeper": lambda: 5})]},
        "beside data": {"array": np.arange(300_000.0), "key": max, "f": lambda: 6},
    }


# ------------------------------------------------------------ code between Python versions


@on(NEWEST, TENTH, OLDEST, "bare", "spyder")
async def test_code_is_refused_across_python_minors_before_anything_is_sent(
    live: Bridge, client_module: ModuleType
) -> None:
    await live.push(kept=[1])
    kernel_version = ".".join(map(str, live.info.python[:2]))
    message = rf"are code of Python .*the kernel runs Python {kernel_version}; .*Send data"
    point = client_module.Point(3)
    async with nothing_sent(live):
        for value in code().values():
            with pytest.raises(IncompatiblePython, match=message):
                await live.push({"kept": 2, "x": value})
            with pytest.raises(IncompatiblePython, match=message):
                await live.call(operator.is_, value, None, keep="x")
        with pytest.raises(IncompatiblePython, match=message):
            await live.call(lambda: 1, keep="x")
        with pytest.raises(IncompatiblePython, match=message):
            await live.push(kept=2, x=point, by_value=[client_module])
        with pytest.raises(IncompatiblePython, match=message):
            await live.call(client_module.Point, 3, keep="x", by_value=[client_module])
    await unchanged(live, {"kept": "[1]"})


DEFINED = """
def function(): return 1
class Class:
    def method(self): return 2
    def __repr__(self): return "an instance"
    def __getitem__(self, index): return lambda: index
instance = Class()
nested = {"deep": [function]}
class Boom(Exception):
    def __init__(self, *args): super().__init__("it went wrong")
def boom(): raise Boom
"""
DEFINED_NAMES = {"function", "Class", "instance", "nested", "Boom", "boom"}


@on(NEWEST, OLDEST)
async def test_code_that_is_defined_in_the_kernel_is_refused_by_pull(live: Bridge) -> None:
    await live.run(DEFINED)
    kernel_version = ".".join(map(str, live.info.python[:2]))
    message = (
        rf"the value carries code objects of Python {kernel_version}, "
        r"but this program runs Python .*only data"
    )
    for name in sorted(DEFINED_NAMES):
        async with refused(live, IncompatiblePython, message):
            await live.pull(name)
    async with refused(live, IncompatiblePython, message):
        await live.pull("nested", "instance")
    # User code ran to create these values, so the error is a RemoteError.
    async with refused(live, RemoteError, "the value stays in the kernel: .* code objects"):
        await live.pull("lambda: 1")
    async with refused(live, RemoteError, "the value stays in the kernel: .* code objects"):
        await live.call(operator.getitem, live.ref("instance"), 0)
    # Objects that stay in the kernel can still be used.
    assert await live.pull("function()", "instance.method()") == (1, 2)
    assert await live.call(operator.methodcaller("method"), live.ref("instance")) == 2
    ref = await live.call(operator.itemgetter("deep"), live.ref("nested"), keep="kept")
    assert await ref[0]().pull() == 1
    assert set(await seen(live)) == DEFINED_NAMES | {"kept"}


@on(NEWEST, OLDEST)
async def test_an_exception_defined_in_the_kernel_is_reported_without_its_class(
    live: Bridge,
) -> None:
    await live.run(DEFINED)
    async with refused(live, RemoteError, "Boom: it went wrong") as caught:
        await live.pull("boom()")
    assert caught.value.ename == "Boom"
    assert caught.value.__cause__ is None
    assert any("in boom" in line for line in caught.value.traceback)
    async with refused(live, RemoteError, "KeyError: 'a'") as caught:
        await live.pull("{}['a']")
    assert isinstance(caught.value.__cause__, KeyError)
    assert set(await seen(live)) == DEFINED_NAMES


@on(NEWEST, OLDEST)
async def test_a_class_without_code_of_its_own_crosses(live: Bridge) -> None:
    class Label:
        pass

    label = Label()
    label.text = "red"  # type: ignore[attr-defined]
    await live.push(label=label)
    assert await live.pull("label.text", "type(label).__name__") == ("red", "Label")
    assert isinstance(await live.pull("label"), Label)
    assert set(await seen(live)) == {"label"}


@on(NEWEST, OLDEST, "bare", "bare-here")
async def test_importable_objects_cross_by_reference(live: Bridge) -> None:
    await live.push(root=math.sqrt, dumps=json.dumps, kind=collections.OrderedDict)
    await live.push({"get": operator.itemgetter(1), "hex": functools.partial(int, base=16)})
    assert await live.pull("root(16)", "dumps([1])", "get('abc')", "hex('ff')") == (
        4.0,
        "[1]",
        "b",
        255,
    )
    assert await live.pull("root", "dumps", "kind") == (
        math.sqrt,
        json.dumps,
        collections.OrderedDict,
    )
    assert await live.call(math.sqrt, 2.25) == 1.5
    assert await live.call(json.dumps, {"a": [1, None]}, sort_keys=True) == '{"a": [1, null]}'
    assert set(await seen(live)) == {"root", "dumps", "kind", "get", "hex"}


@on(NEWEST, OLDEST)
async def test_a_value_whose_module_exists_only_in_the_kernel_is_reported(
    live: Bridge, tmp_path: Path
) -> None:
    (tmp_path / "kernel_module.py").write_text("class Thing: pass")
    await live.run(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import kernel_module; thing = kernel_module.Thing()"
    )
    async with refused(
        live, DecodeError, "'kernel_module' exists in the kernel but not in this program"
    ):
        await live.pull("thing")
    assert set(await seen(live)) == {"thing"}


# ------------------------------------------------------------ data between Python versions

DATA: dict[str, Any] = {
    "none": None,
    "flags": [True, False],
    "integers": [0, -1, 2**31, -(2**63), 2**64, 10**400],
    "floats": [0.1, -0.0, 5e-324, math.inf, 1.7976931348623157e308],
    "imaginary": 1.5 - 2j,
    "text": "naïve ✓ 𝄞 \0 \n",
    "surrogate": "\ud800",
    "raw": bytes(range(256)),
    "array": bytearray(b"abc"),
    "containers": {"list": [1, [2, (3,)]], (1, "key"): {4, 5}, None: frozenset({6})},
    "ordered": collections.OrderedDict([("b", 1), ("a", 2)]),
    "queue": collections.deque([1, 2], maxlen=5),
    "counts": collections.Counter("abca"),
    "range": range(0, 10, 3),
    "day": datetime.date(2024, 2, 29),
    "moment": datetime.datetime(2024, 2, 29, 12, 30, 1, 999999, tzinfo=datetime.UTC),
    "span": datetime.timedelta(days=-1, microseconds=5),
    "decimal": decimal.Decimal("1.10"),
    "fraction": fractions.Fraction(1, 3),
    "uuid": uuid.UUID(int=5),
    "error": ValueError("a", 1),
    "ellipsis": ...,
    "large": "x" * 3_000_000,
}


def by_lanes(*names: str) -> list[tuple[str, str]]:
    """Each of these environments with each lane that sends frames in messages, and xpython."""
    both = [(name, lane) for name in names for lane in ("buffers", "inline")]
    return [*both, ("xpython", "inline"), ("xpython", "direct")]


@pytest.mark.parametrize(("name", "lane"), by_lanes(NEWEST, TENTH, OLDEST, "bare", "bare-here"))
async def test_plain_data_crosses_both_ways(elsewhere: Elsewhere, name: str, lane: Any) -> None:
    async with Bridge.launch(elsewhere(name), lane=lane) as bridge:
        await bridge.push(DATA)
        namespace = await seen(bridge)
        back = dict(zip(DATA, await bridge.pull(*DATA), strict=True))
        await bridge.push({f"again_{name}": value for name, value in back.items()})
        again = await seen(bridge)
    assert set(namespace) == set(DATA)
    assert again == {**namespace, **{f"again_{name}": text for name, text in namespace.items()}}
    for name, value in DATA.items():
        assert type(back[name]) is type(value), name
        assert repr(back[name]) == repr(value), name
        # Python 3.12 changed the repr of an OrderedDict.
        if name not in ("ordered", "surrogate", "large"):
            assert namespace[name] == repr(value), name
    assert back["surrogate"] == "\ud800"
    shared = back["containers"]["list"]
    assert shared == [1, [2, (3,)]]


@on(NEWEST, OLDEST)
async def test_shared_objects_stay_shared_and_cycles_stay_cycles(live: Bridge) -> None:
    shared: list[Any] = [1]
    shared.append(shared)
    await live.push(one=shared, two={"same": shared})
    assert await live.pull("one is two['same'] and one[1] is one")
    one, two = await live.pull("one", "two")
    assert one is two["same"]
    assert one[1] is one
    assert await seen(live) == {"one": "[1, [...]]", "two": "{'same': [1, [...]]}"}


def arrays() -> dict[str, Any]:
    """Return arrays of every kind of dtype and layout, with odd lengths."""
    kinds = ["?", "i1", "<i2", ">i4", "<i8", "u1", "<u8", "<f2", "<f4", ">f8", "<c8", "<c16"]
    found: dict[str, Any] = {f"a{i}": np.arange(7).astype(kind) for i, kind in enumerate(kinds)}
    found.update(
        text=np.array(["a", "über", ""]),
        raw=np.array([b"a", b"\0b"]),
        days=np.array(["2024-02-29", "NaT"], dtype="M8[D]"),
        spans=np.array([1, -1], dtype="m8[ns]"),
        records=np.array([(1, 2.5, "x")], dtype=[("a", "<i4"), ("b", "<f8"), ("c", "<U3")]),
        objects=np.array([1, "two", None, [3]], dtype=object),
        empty=np.empty((0, 3)),
        single=np.array(5),
        fortran=np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        strided=np.arange(20)[::-3],
        large=np.arange(1_500_000.0),
        scalar=np.float32(1.5),
    )
    return found


@pytest.mark.parametrize(("name", "lane"), by_lanes(NEWEST, TENTH, OLDEST, "ipykernel6", "spyder"))
async def test_arrays_cross_both_ways(elsewhere: Elsewhere, name: str, lane: Any) -> None:
    sent = arrays()
    async with Bridge.launch(elsewhere(name), lane=lane) as bridge:
        await bridge.push(sent)
        namespace = await seen(bridge)
        back = dict(zip(sent, await bridge.pull(*sent), strict=True))
        await bridge.push({f"again_{name}": value for name, value in back.items()})
        same = " and ".join(
            f"again_{name}.dtype == {name}.dtype and again_{name}.tobytes() == {name}.tobytes()"
            for name in sent
            if name != "objects"
        )
        assert await bridge.pull(same) is True
        made = await bridge.pull("__import__('numpy').linspace(0, 1, 5)")
        again = await seen(bridge)
    assert set(namespace) == set(sent)
    assert again == {**namespace, **{f"again_{name}": text for name, text in namespace.items()}}
    assert made.tolist() == [0, 0.25, 0.5, 0.75, 1]
    for name, value in sent.items():
        assert name == "large" or namespace[name] == repr(value), name  # numpy 2.2 changed its repr
        assert type(back[name]) is type(value), name
        assert (back[name].dtype, back[name].shape) == (value.dtype, value.shape), name
        if name == "objects":
            assert back[name].tolist() == value.tolist()
        else:
            assert back[name].tobytes() == value.tobytes(), name
    back["large"][0] = 7  # arrays arrive writable


# ------------------------------------------------------------ a kernel that lacks packages


@on("bare", "bare-here")
async def test_a_kernel_without_numpy_and_cloudpickle_takes_plain_data(live: Bridge) -> None:
    assert set(live.info.versions) == {"ipykernel"}
    await live.push(kept=[1])
    path = live.info.executable
    assert "bare" in path
    message = (
        rf"the kernel \({path}\) cannot import 'numpy': .*Install it in the kernel's environment"
    )
    async with refused(live, MissingInKernel, message) as caught:
        await live.push(kept=2, a=np.arange(3))
    assert caught.value.module == "numpy"
    async with refused(live, MissingInKernel, message):
        await live.push(large=np.zeros(3_000_000))
    async with refused(live, MissingInKernel, message):
        await live.call(len, np.arange(3), keep="kept")

    class Label:
        pass

    # It contains no code, so it is sent; but a class needs cloudpickle.
    async with refused(live, MissingInKernel, rf"\({path}\) cannot import 'cloudpickle'"):
        await live.push(kept=2, label=Label())
    assert await seen(live) == {"kept": "[1]"}


@on("bare-here")
async def test_code_is_refused_for_a_kernel_without_cloudpickle(live: Bridge) -> None:
    await live.push(kept=[1])
    async with nothing_sent(live):
        for value in code().values():
            with pytest.raises(MissingInKernel, match="need cloudpickle in the kernel") as caught:
                await live.push(kept=2, x=value)
            assert caught.value.module == "cloudpickle"
        with pytest.raises(MissingInKernel, match="need cloudpickle in the kernel"):
            await live.call(lambda: 1, keep="x")
    await unchanged(live, {"kept": "[1]"})


@on("bare", "bare-here")
async def test_definitions_stay_in_a_kernel_without_cloudpickle(live: Bridge) -> None:
    await live.run(DEFINED)
    for name in ("function", "Class", "instance", "nested"):
        async with refused(live, MissingInKernel, "cannot import 'cloudpickle'"):
            await live.pull(name)
    async with refused(live, RemoteError, "the value stays in the kernel"):
        await live.pull("lambda: 1")
    async with refused(live, RemoteError, "Boom: it went wrong"):
        await live.pull("boom()")
    assert await live.pull("function()", "instance.method()") == (1, 2)
    assert set(await seen(live)) == DEFINED_NAMES


@on("ipykernel6")
async def test_a_module_that_only_the_client_has_crosses_by_value(
    live: Bridge, client_module: ModuleType
) -> None:
    name, point = client_module.__name__, client_module.Point(3)
    await live.push(kept=[1])
    message = rf"cannot import '{name}'.*or ship your own module with by_value=\[{name}\]"
    for attempt in (
        lambda: live.push(kept=2, p=point),
        lambda: live.push(kept=2, p={"deep": [point]}),
        lambda: live.call(client_module.Point, 3, keep="p"),
    ):
        async with refused(live, MissingInKernel, message) as caught:
            await attempt()
        assert caught.value.module == name
    await live.push(p=point, by_value=[client_module])
    assert await live.pull("p.x", "type(p).__module__") == (3, name)
    assert await live.pull("p") == point  # an instance of the client's class again
    assert await live.call(client_module.Point, 4, by_value=[client_module]) == client_module.Point(
        4
    )
    assert await seen(live) == {"kept": "[1]", "p": "Point(3)"}


# ------------------------------------------------------------ all operations on ipykernel 6


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Collect the headers of all messages that bridges send."""
    headers: list[dict[str, Any]] = []
    put = Dispatcher.put

    async def recorded(
        self: Dispatcher, channel: str, message: dict[str, Any], *a: Any, **k: Any
    ) -> Any:
        headers.append(message["header"])
        return await put(self, channel, message, *a, **k)

    monkeypatch.setattr(Dispatcher, "put", recorded)
    return headers


@on("ipykernel6")
async def test_all_operations_work_without_a_subshell(
    live: Bridge, sent: list[dict[str, Any]]
) -> None:
    assert live.info.versions["ipykernel"].startswith("6.31.")
    assert live.info.lane == "direct"
    transfer = await live.push({"x": 1}, f=lambda v: v + offset, values=[1, 2])
    assert transfer.names == ("x", "f", "values")
    assert await live.pull("x") == 1
    assert await live.pull("x + 1", "f(5)", "values") == (2, 105, [1, 2])
    result = await live.run("print('out')\nx = await __import__('asyncio').sleep(0, 6)\nx * 7")
    assert (result.stdout, result.data["text/plain"]) == ("out\n", "42")
    with pytest.raises(RemoteError, match="ZeroDivisionError"):
        await live.run("1 / 0")
    assert await live.call(lambda a, b: a * b, live.ref("x"), b=3) == 18
    kept = await live.call(lambda: {"deep": [7]}, keep="kept")
    assert await kept["deep"][0].pull() == 7
    names = {name.name: (name.type, name.len) for name in await live.names()}
    assert names["values"] == ("list", 2)
    assert await live.exists("kept")
    await live.delete("kept", "f")
    assert not await live.exists("kept")
    assert await seen(live) == {"x": "6", "values": "[1, 2]"}
    # ipykernel 6 never answers create_subshell_request, and ignores a subshell_id.
    assert {header["msg_type"] for header in sent} == {"execute_request"}
    assert not any("subshell_id" in header for header in sent)


offset = 100  # a global of the function that crosses


@on("ipykernel6", OLDEST, NEWEST, "spyder")
async def test_async_work_has_outputs_and_items(live: Bridge) -> None:
    """Python 3.9 to 3.13; ``asyncio.to_thread`` crosses by reference."""
    printed: list[str] = []
    await live.call(
        asyncio.to_thread, print, "a task", on_output=lambda output: printed.append(output.text)
    )
    assert "".join(printed) == "a task\n"
    await live.run(
        "import asyncio\n"
        "closed = 0\n"
        "async def items(count):\n"
        "    global closed\n"
        "    try:\n"
        "        for n in range(count):\n"
        "            await asyncio.sleep(0)\n"
        "            yield n\n"
        "    finally:\n"
        "        await asyncio.sleep(0)\n"
        "        closed += 1"
    )
    assert [item async for item in live.iterate("items(300)")] == list(range(300))
    async with live.iterate("items(10**9)") as items:
        assert await anext(items) == 0
    async with asyncio.timeout(30):
        while await live.pull("closed") != 2:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("lane", ["buffers", "inline"])
async def test_forty_megabytes_cross_in_chunks(elsewhere: Elsewhere, lane: Any) -> None:
    async with Bridge.launch(elsewhere("ipykernel6"), lane=lane) as bridge:
        large = np.arange(5_000_000.0)
        transfer = await bridge.push(large=large, beside=b"x" * 10)
        assert transfer.bytes >= 40_000_000
        assert transfer.lane == lane
        assert await bridge.pull("float(large.sum())") == large.sum()
        assert (await bridge.pull("large")).tobytes() == large.tobytes()
        assert await seen(bridge) == {"large": repr(large), "beside": "b'xxxxxxxxxx'"}


@on("ipykernel6")
async def test_two_hundred_calls_at_once_get_their_own_replies(live: Bridge) -> None:
    await asyncio.gather(*(live.push({f"x{i}": i}) for i in range(200)))
    values = await asyncio.gather(*(live.pull(f"x{i} * 2") for i in range(200)))
    assert values == [2 * i for i in range(200)]
    assert await seen(live) == {f"x{i}": str(i) for i in range(200)}


@on("ipykernel6")
async def test_cancelling_some_calls_disturbs_no_other_call(live: Bridge) -> None:
    await live.push(done=[])
    cell = asyncio.ensure_future(live.run("import time; time.sleep(0.5)"))
    tasks = [asyncio.ensure_future(live.push({f"x{i}": i})) for i in range(60)]
    await asyncio.sleep(0.1)
    for task in tasks[::2]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    await cell
    assert [type(result) for result in results[::2]] == [asyncio.CancelledError] * 30
    assert not any(isinstance(result, BaseException) for result in results[1::2])
    assert await live.pull("x1 + x59") == 60
    found = await seen(live)
    # A cancelled push ran completely or not at all; the other pushes ran.
    assert {f"x{i}": str(i) for i in range(1, 60, 2)}.items() <= found.items()
    assert found.items() <= {"done": "[]", **{f"x{i}": str(i) for i in range(60)}}.items()


@on("ipykernel6")
async def test_a_late_reply_is_not_given_to_the_next_call(live: Bridge) -> None:
    with pytest.raises(TimeoutError):
        await live.call(time.sleep, 3, keep="late", timeout=1)
    assert await live.pull("'next'") == "next"
    assert await seen(live) == {"late": "None"}


@on("ipykernel6", OLDEST)
async def test_the_error_of_a_cell_is_its_own(live: Bridge) -> None:
    """The cause of its error, also with a debugger that gets no input."""
    for code in ("1 / 0", "await __import__('asyncio').sleep(0)\n1 / 0"):
        for before in ("%pdb off", "%pdb on"):
            await live.run(before)
            async with refused(live, RemoteError, "^ZeroDivisionError: ") as caught:
                await live.run(code)
            assert repr(caught.value.__cause__) == "ZeroDivisionError('division by zero')"


@on("ipykernel6")
async def test_an_interrupt_ends_the_cell_and_no_other_call(live: Bridge) -> None:
    await live.push(x=1)
    async with endless_cell(live):
        behind = asyncio.ensure_future(live.push(y=2))
        await asyncio.sleep(0)  # now it has its turn
        await live.interrupt()
    await behind
    await live.interrupt()  # an idle kernel ignores it
    assert await live.pull("x + y") == 3
    assert await seen(live) == {"x": "1", "y": "2"}


class Calls:
    """An object that calls a function of the kernel when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


@on("ipykernel6")
async def test_an_interrupt_while_unpickling_binds_nothing(
    live: Bridge, tmp_path: pathlib.Path
) -> None:
    await live.push(x=1)
    started = tmp_path / "started"
    values = {"x": 2, "a": Calls(os.mkdir, str(started)), "b": Calls(time.sleep, 60), "c": 3}
    async with refused(live, RemoteError, "KeyboardInterrupt"):
        push = asyncio.ensure_future(live.push(values))
        while not started.exists():
            await asyncio.sleep(0.02)
        await live.interrupt()
        await push
    assert await seen(live) == {"x": "1"}


@on("ipykernel6")
async def test_a_failed_push_leaves_the_namespace_unchanged(live: Bridge) -> None:
    class Raises:
        def __getstate__(self) -> Any:
            return {"some": "state"}

        def __setstate__(self, state: Any) -> None:
            raise RuntimeError("not today")

    await live.push(x=1)
    async with refused(live, RemoteError, "RuntimeError: not today"):
        await live.push(x=2, before=[1], bad=Raises(), after=[2])
    assert await seen(live) == {"x": "1"}


@on("ipykernel6")
async def test_a_restart_empties_the_namespace_and_is_reported_to_others_once(live: Bridge) -> None:
    async with Bridge.attach(live.info.connection_file) as other:
        await live.push(x=1)
        epoch, pid = live.info.epoch, live.info.pid
        await restart_beside_a_cell(live)
        assert live.info.epoch != epoch
        assert live.info.pid != pid
        with pytest.raises(KernelRestarted):
            async with asyncio.timeout(60):
                while True:
                    await other.push(x=2)
        assert await seen(live) == {}
        await other.push(x=3)
        assert await live.pull("x") == 3
        assert await seen(live) == {"x": "3"}


@on("ipykernel6")
@pytest.mark.parametrize("how", ["killed", "exits while unpickling"])
async def test_a_dead_kernel_is_reported_and_can_be_restarted(live: Bridge, how: str) -> None:
    await live.push(x=1)
    if how == "killed":
        push = asyncio.ensure_future(live.push(x=2, slow=Calls(time.sleep, 60)))
        await until(lambda: at_work(live))
        os.kill(live.info.pid, signal.SIGKILL)
        expected = -signal.SIGKILL
    else:
        push = asyncio.ensure_future(live.push(x=2, bad=Calls(os._exit, 7)))
        expected = 7
    with pytest.raises(KernelDied) as caught:
        async with asyncio.timeout(30):
            await push
    assert caught.value.exit_code == expected
    assert live.state == "dead"
    with pytest.raises(KernelDied):
        await live.push(x=3)
    await live.restart()
    assert await seen(live) == {}
    await live.push(x=4)
    assert await seen(live) == {"x": "4"}


@on("ipykernel6")
async def test_one_flipped_byte_is_refused_in_both_directions(live: Bridge) -> None:
    async with Bridge.attach(live.info.connection_file, lane="buffers") as bridge:
        await refuses_a_flipped_byte(bridge)


async def refuses_a_flipped_byte(live: Bridge) -> None:
    array = np.arange(10_000.0)
    await live.push(x=1)
    send, received = live._transport.send, live._transport.dispatcher.received

    def flipped(buffers: Any) -> list[bytes]:
        parts = [bytearray(part) for part in buffers]
        parts[-1][len(parts[-1]) // 2] ^= 1
        return [bytes(part) for part in parts]

    async def damaging_send(channel: str, message: Any, buffers: Any) -> None:
        await send(channel, message, flipped(buffers) if buffers else buffers)

    def damaging_received(channel: str, message: Any) -> None:
        if channel == "shell" and message["buffers"]:
            message = {**message, "buffers": flipped(message["buffers"])}
        received(channel, message)

    live._transport.send = damaging_send  # type: ignore[method-assign]
    with pytest.raises(IntegrityError, match="the kernel refused the request"):
        await live.push(x=2, a=array)
    del live._transport.send
    assert await seen(live) == {"x": "1"}
    await live.push(a=array)
    live._transport.dispatcher.received = damaging_received  # type: ignore[method-assign]
    with pytest.raises(ReplyLost, match="the kernel's response is damaged"):
        await live.pull("a")
    del live._transport.dispatcher.received
    assert (await live.pull("a")).tobytes() == array.tobytes()
    assert await seen(live) == {"x": "1", "a": repr(array)}


@on("ipykernel6")
async def test_requests_that_another_clients_cell_aborts_are_retried(live: Bridge) -> None:
    client = AsyncKernelClient()
    client.load_connection_file(str(live.info.connection_file))
    client.start_channels(shell=True, iopub=False, stdin=False, hb=False, control=False)
    try:
        client.execute("failing = True\nimport time; time.sleep(1); 1/0", stop_on_error=True)
        while live.state != "busy":
            await asyncio.sleep(0.02)
        await asyncio.gather(*(live.push({f"x{i}": i}) for i in range(20)))
        reply = await client.get_shell_msg(timeout=60)
    finally:
        client.stop_channels()
        client.context.destroy(linger=0)
    assert reply["content"]["ename"] == "ZeroDivisionError"
    assert await seen(live) == {"failing": "True", **{f"x{i}": str(i) for i in range(20)}}


# ------------------------------------------------------------ other versions of libraries

OF_PANDAS = (
    "pd.DataFrame({'a': [1, 2], 'b': ['x', None]}, index=pd.date_range('2024', periods=2))",
    "pd.Series([1, None], dtype='Int64', name='n')",
    "pd.Series(['x', None], dtype='string')",
    "pd.Series(['x', 'y'], dtype='category')",
    "pd.Series(pd.date_range('2024', periods=2, tz='Europe/Berlin'))",
    "pd.Series(pd.period_range('2024', periods=2, freq='M'))",
    "pd.Series(pd.arrays.SparseArray([0, 0, 1]))",
    "pd.array([1, 2], dtype=np.dtype('i8'))",
    "pd.MultiIndex.from_product([[1, 2], ['a']])",
    "pd.Interval(0, 1)",
    "pd.NaT",
)


@on("pandas2.0")
async def test_values_of_another_pandas_cross_as_data(live: Bridge) -> None:
    await live.run("import pandas as pd, numpy as np")
    for made in OF_PANDAS:
        back = await live.pull(made, trust="data")
        await live.push({"back": back}, trust="data")
        same = f"(repr(back), type(back)) == (repr({made}), type({made}))"
        assert await live.pull(same), made


# ------------------------------------------------------------ the environments themselves


@on(*ENVIRONMENTS)
async def test_an_environment_has_the_python_and_packages_of_its_name(
    live: Bridge, kernel_name: str
) -> None:
    # If packages of this environment leaked into it, the tests above would prove nothing.
    wanted = ENVIRONMENTS[kernel_name]
    assert live.info.python[:2] == wanted.minor
    assert kernel_name in live.info.executable
    found = await live.pull(
        "[n for n in ('bridgehead', 'numpy', 'cloudpickle')"
        " if __import__('importlib.util').util.find_spec(n)]"
    )
    assert found == ([] if "bare" in kernel_name else ["numpy", "cloudpickle"])
    assert await seen(live) == {}


def test_a_pip_that_fails_fails_the_test_with_its_output(
    elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENVIRONMENTS, "broken", Environment(HERE, ("./no/such/folder",)))
    for _ in range(2):  # the next test fails with the same output; pip does not run again
        with pytest.raises(pytest.fail.Exception, match=r"exit code 1:\n(.*\n)*.*no/such/folder"):
            elsewhere("broken")


def test_a_missing_interpreter_skips_the_test_with_a_reason(
    elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENVIRONMENTS, "ancient", Environment((3, 1), ()))
    with pytest.raises(pytest.skip.Exception, match=r"no Python 3\.1 on PATH or among pyenv"):
        elsewhere("ancient")


@on(NEWEST)
async def test_an_interrupt_ends_a_task_that_an_eager_factory_made(live: Bridge) -> None:
    await live.run(
        "import asyncio, time\n"
        "asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)\n"
        "begun = False\n"
        "async def spin():\n"
        "    global begun\n"
        "    begun = True\n"
        "    while True: time.sleep(0.01)"
    )
    spinning = asyncio.ensure_future(live.pull("await spin()"))
    async with asyncio.timeout(60):
        while not await live.pull("begun", now=True):
            await asyncio.sleep(0.01)
        await live.interrupt()
        with pytest.raises(RemoteError) as raised:
            await spinning
    assert raised.value.ename == "KeyboardInterrupt"
    assert await live.pull("1 + 1") == 2
